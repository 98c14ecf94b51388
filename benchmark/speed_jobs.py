"""Measurements of a run's networks: which are wanted, each setting in a process of its own, results to files.

A measurement holds all networks of one table (lowest seed of each row, equal graphs once) with the reference and its
copy. The process starts fresh, so that threads and libraries are what the settings say. Spec: measurement 3.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import multiprocessing
import os
import signal
import time
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

from benchmark.processes import without_main
from benchmark.provenance import cpu_name, package_hash
from benchmark.quantities import is_reference, seed_of_record
from benchmark.record import Record, row_key, table_key, value_at
from benchmark.speed import PAIRS, ROUNDS, SLOT_S, WarmUpRule
from benchmark.speed_files import (
    JOINT,
    MIXED,
    TASK,
    TRAIN,
    MeasurementFile,
    NetworkEntry,
    SpeedResults,
    SpeedSettings,
    read_speed,
    write_measurement,
)
from benchmark.store import Store
from datasets.errors import UsageError

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclasses.dataclass(frozen=True)
class SpeedProtocol:
    """How often and how long. pairs: on a CPU, per network; rounds and slot_s: on CUDA."""

    pairs: int = PAIRS
    rounds: int = ROUNDS
    slot_s: float = SLOT_S
    warm_up: WarmUpRule = dataclasses.field(default_factory=WarmUpRule)


@dataclasses.dataclass(frozen=True)
class TableJob:
    """What is measured together. wanted: {key of a record: its modes}, train-step never beside others."""

    table: str
    wanted: Mapping[str, tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class SpeedJob:
    """Tables at one setting. device: `cpu`, `cuda` or `cuda:N`. memory: also a pass for memory, a process a network.

    plugins: files that register operations of their own. data_root: read by train-step only, for its batch.
    """

    root: Path
    tables: tuple[TableJob, ...]
    settings: SpeedSettings
    protocol: SpeedProtocol = dataclasses.field(default_factory=SpeedProtocol)
    device: str = "cpu"
    plugins: tuple[str, ...] = ()
    data_root: Path | None = None
    memory: bool = False


# What is to be measured


def networks_of(records: Sequence[Record], keys: Collection[str] | None = None) -> dict[str, list[Record]]:
    """{table: one record a row, of the lowest seed that is done}; rows whose graphs are equal stand once.

    keys: only these cells.
    """
    rows: dict[tuple[str, bytes], Record] = {}
    for record in records:
        if record.status != "done" or (keys is not None and record.key not in keys):
            continue
        row = (table_key(record.cell), row_key(record.cell))
        if row not in rows or seed_of_record(record) < seed_of_record(rows[row]):
            rows[row] = record
    tables: dict[str, list[Record]] = {}
    for (table, _), record in sorted(
        rows.items(), key=lambda item: (item[0][0], not is_reference(item[1]), item[0][1])
    ):
        graphs = {graph_hash(other) for other in tables.get(table, [])}
        if graph_hash(record) not in graphs:
            tables.setdefault(table, []).append(record)
    return tables


def modes_of(record: Record, wanted: Sequence[str]) -> list[str]:
    """The modes asked for that a record's network has. wanted: joint, mixed, task (every task), task:NAME, train-step.

    Where each task has images of its own there is no joint mode, elsewhere no mixed one.
    """
    tasks = [str(task) for task in cast("Sequence[object]", value_at(record.cell, "data", "tasks"))]
    inference = MIXED if value_at(record.compute, "macs_joint") is None else JOINT
    every = [TASK + task for task in tasks]
    found: list[str] = []
    for name in wanted:
        if name == TASK.rstrip(":"):
            found += every
        elif name in (inference, TRAIN, *every):
            found.append(name)
    return list(dict.fromkeys(found))


def graph_hash(record: Record) -> str:
    """Hash of the record's task graph: what speed is stored under."""
    return str(value_at(record.graph, "hash"))


def is_measured(
    results: SpeedResults, record: Record, mode: str, settings: SpeedSettings, package: str, device: str
) -> bool:
    """Whether this code has measured the network at this setting on this kind of device."""
    found = results.find(graph_hash(record), settings.name, mode)
    if found is None or found.entry.status != "done":
        return False
    return found.measurement.versions.get("package_hash") == package and found.measurement.device == device


# One process


def work(connection: Connection, job: SpeedJob) -> None:
    """Body of a measuring process: sends each measurement, then None; a text where it cannot go on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    try:
        from benchmark.plugins import load_plugins
        from benchmark.speed_device import configure_for_speed
        from benchmark.speed_session import measure_table
        from methods.registry import load_methods

        configure_for_speed(job.settings)
        load_methods()  # a method's module registers the operations of its graphs
        load_plugins(job.plugins)
        for table in job.tables:
            connection.send(measure_table(job, table))
            connection.recv()  # the parent may use the machine before the next table
        connection.send(None)
    except UsageError as error:
        connection.send(str(error))


def weigh(connection: Connection, job: SpeedJob, table: TableJob) -> None:
    """Body of a process that measures memory: of the one network in `table`, in its one mode."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        from benchmark.plugins import load_plugins
        from benchmark.speed_device import configure_for_speed
        from benchmark.speed_session import measure_memory
        from methods.registry import load_methods

        configure_for_speed(job.settings)
        load_methods()
        load_plugins(job.plugins)
        connection.send(measure_memory(job, table))
    except UsageError as error:
        connection.send(str(error))


@contextlib.contextmanager
def _thread_variables(threads: int) -> Iterator[None]:
    """Within the block the variables that libraries read when they are loaded say `threads`."""
    saved = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    try:
        yield
    finally:
        for name, value in saved.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _messages(target: Any, threads: int, *arguments: object) -> Generator[Any, None, None]:
    """What a fresh process sends. Raises UsageError where it dies; ends it when left."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(theirs, *arguments), daemon=True)
    with _thread_variables(threads), without_main():
        process.start()
    theirs.close()  # so that the process's death is an end of file here
    try:
        while True:
            try:
                message = ours.recv()
            except EOFError:
                process.join()
                code = process.exitcode or 0
                how = f"signal {-code} (out of memory?)" if code < 0 else f"exit code {code}; its message stands above"
                raise UsageError(f"The measuring process ended with {how}.") from None
            yield message
            with contextlib.suppress(BrokenPipeError):  # it has ended meanwhile, as it should after its last word
                ours.send(True)
    finally:
        if process.is_alive():
            process.join(timeout=1)  # it has said its last word; what is still running was interrupted
        if process.is_alive():
            process.terminate()
        process.join()
        ours.close()


def run_job(job: SpeedJob) -> Iterator[MeasurementFile]:
    """Measure the tables of a job and write each measurement as it comes. Raises UsageError where it cannot."""
    messages = _messages(work, job.settings.threads, job)
    with contextlib.closing(messages):
        for message in messages:
            if message is None:
                return
            if isinstance(message, str):
                raise UsageError(message)
            measurement: MeasurementFile = message
            if job.memory:
                entries = tuple(_with_memory(job, measurement, entry) for entry in measurement.networks)
                measurement = dataclasses.replace(measurement, networks=entries)
            write_measurement(job.root, measurement)
            yield measurement


def _with_memory(job: SpeedJob, measurement: MeasurementFile, entry: NetworkEntry) -> NetworkEntry:
    """The entry with its memory, from a process that runs this network alone. Where that fails, without."""
    if entry.status != "done":
        return entry
    keys = next(table.wanted for table in job.tables if table.table == measurement.table)
    key = next(key for key in keys if graph_hash(_read(job.root, key)) == entry.graph)
    messages = _messages(weigh, job.settings.threads, job, TableJob(measurement.table, {key: (entry.mode,)}))
    with contextlib.closing(messages):
        message = next(messages)
    if isinstance(message, str):
        raise UsageError(message)
    return dataclasses.replace(entry, memory=message)


def _read(root: Path, key: str) -> Record:
    record = Store(root).read(key)
    if record is None or record.status != "done":
        raise UsageError(f"Record {key} is gone; it was there when the measurement was planned.")
    return record


# The light measurement of `run`


@dataclasses.dataclass(frozen=True)
class LightResult:
    """What the light measurement did. seconds: all of it, with the start of its process."""

    measured: int
    kept: int
    seconds: float
    flags: tuple[str, ...]
    failures: tuple[str, ...]


LIGHT_MODES = (JOINT, MIXED, TASK.rstrip(":"))
LIGHT_PROTOCOL = SpeedProtocol(warm_up=WarmUpRule(limit_s=5.0, shared=True))


def light_settings(device: str) -> SpeedSettings:
    """The one setting of the light measurement."""
    if device == "cpu":
        return SpeedSettings(batch=8)
    return SpeedSettings(batch=32, device="cuda", dtype="amp-bf16", memory_format="channels_last")


def measure_light(
    store: Store,
    *,
    keys: Collection[str] | None = None,
    device: str = "cpu",
    plugins: Sequence[str] = (),
    protocol: SpeedProtocol = LIGHT_PROTOCOL,
) -> LightResult:
    """Measure once what this code has not measured yet; to be called when no worker is busy.

    keys: only these cells. Raises UsageError where the measuring process cannot do its work.
    """
    start = time.monotonic()
    settings, results, package = light_settings(device), read_speed(store.root), package_hash()
    name = _device_name(device)
    tables, kept = [], 0
    for table, records in networks_of(store.load_all(), keys).items():
        modes = {record.key: tuple(modes_of(record, LIGHT_MODES)) for record in records}
        missing = {
            record.key
            for record in records
            for mode in modes[record.key]
            if not is_measured(results, record, mode, settings, package, name)
        }
        # The single-task networks come along again: the others are compared with them in the same measurement.
        along = {record.key for record in records if missing and (record.key in missing or is_reference(record))}
        kept += len(records) - len(along)
        if along:
            tables.append(TableJob(table, {key: value for key, value in modes.items() if key in along}))
    if not tables:
        return LightResult(0, kept, time.monotonic() - start, (), ())
    job = SpeedJob(store.root, tuple(tables), settings, protocol, device, tuple(plugins))
    files = list(run_job(job))
    return LightResult(
        measured=sum(len({entry.graph for entry in file.networks if entry.status == "done"}) for file in files),
        kept=kept,
        seconds=time.monotonic() - start,
        flags=tuple(sorted({flag for file in files for flag in file.flags})),
        failures=tuple(failure for file in files for failure in failures_of(file)),
    )


def _device_name(device: str) -> str:
    """As `speed_device.device_name`, without torch on a CPU: the command that asks has not loaded it."""
    if device == "cpu":
        return cpu_name()
    from benchmark.speed_device import device_name

    return device_name(device)


def failures_of(measurement: MeasurementFile) -> Iterator[str]:
    """A line for each network that could not be measured, with the batch that was tried."""
    for entry in measurement.networks:
        if entry.status != "done":
            yield f"{entry.method} {entry.mode}: {entry.status} at batch {entry.batch}: {entry.message}"


def utc_now() -> str:
    """The time, in UTC, as records write it."""
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
