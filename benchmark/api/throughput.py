"""What `throughput` does: images per second of a run's networks by the full protocol of measurement 3.

Settings are measured one after another, each in a process of its own. Every measurement is a file below DIR/speed and
is printed as a table. torch is loaded once there is something to measure.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from benchmark.cli import say
from benchmark.records.store import Store, write_atomic
from benchmark.show.speed import NamedMeasurement, as_csv, check_plot, draw_speed, eager_speeds, show
from benchmark.speed.sweep import Choices, jobs_of, settings_of
from benchmark.workers.choice import ExecutorChoice
from datasets.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from benchmark.records.measurements import MeasurementFile
    from benchmark.records.record import Record
    from benchmark.speed.jobs import SpeedJob
    from benchmark.speed.timing import SpeedProtocol

EXIT_NOT_MEASURED = 1


@dataclasses.dataclass(frozen=True)
class ThroughputRequest:
    """What to measure of the networks in `directory`.

    choices: the sweep. pairs: pairs of calls with the reference, on a CPU; rounds: of slots, on CUDA. csv: file that
    takes every number. plot: folder or file of pictures. executor: of a Ray cluster one node measures.
    """

    directory: Path
    choices: Choices = Choices()
    pairs: int = 60
    rounds: int = 7
    csv: Path | None = None
    plot: Path | None = None
    executor: ExecutorChoice = ExecutorChoice()


def throughput(request: ThroughputRequest, console: Console) -> int:
    """Measure, print and write what is asked for; returns 0, or EXIT_NOT_MEASURED where a network was not measured.
    Raises UsageError.
    """
    from benchmark.speed.timing import SpeedProtocol

    if request.plot is not None:
        check_plot(request.plot)
    protocol = SpeedProtocol(pairs=request.pairs, rounds=request.rounds)
    code, measured = measure(request.directory, request.choices, console, protocol, request.executor)
    files = []
    if request.csv is not None:
        write_atomic(request.csv, as_csv(measured).encode())
        files.append(request.csv)
    if request.plot is not None:
        files += draw_speed(measured, request.plot)
    if files:
        say(console, f"Written: {', '.join(map(str, files))}")
    return code


def measure(
    directory: Path,
    choices: Choices,
    console: Console,
    protocol: SpeedProtocol,
    executor: ExecutorChoice = ExecutorChoice(),
) -> tuple[int, list[NamedMeasurement]]:
    """Measure and print; returns the exit code and what was measured. Raises UsageError."""
    from benchmark.records.measurements import failures_of
    from benchmark.speed.jobs import networks_of, with_networks
    from benchmark.tables.labels import table_head

    store = Store(directory)
    here, absent = with_networks(store, store.load_all())
    tables = networks_of(here)
    if not tables and absent:
        raise UsageError(f"{directory} holds {absent} finished records without networks; run their cells to have them.")
    if not tables:
        raise UsageError(f"{directory} holds no finished records; expected the --out of a run.")
    if absent:
        say(console, f"Records without networks here are left out: {absent}.")
    labels = {table: _labels(records) for table, records in tables.items()}
    devices = tuple(dict.fromkeys(map(executor.device, choices.devices)))
    code, measured = EXIT_NOT_MEASURED if absent else 0, list[NamedMeasurement]()
    with _place(executor, directory, devices) as place:
        jobs = _jobs(directory, tables, choices, devices, place.cores, protocol)
        for number, job in enumerate(jobs, start=1):
            count = sum(len(modes) for table in job.tables for modes in table.wanted.values())
            say(console, f"[{number}/{len(jobs)}] {job.settings.name}: {count} networks and modes")
            for measurement in place.run_job(job):
                eager = eager_speeds(measurement, measured)
                show(measurement, labels[measurement.table], tables[measurement.table], console, eager)
                for line in failures_of(measurement):
                    code = EXIT_NOT_MEASURED
                    say(console, line)
                head, names = table_head(tables[measurement.table]), labels[measurement.table]
                measured.append(NamedMeasurement(measurement, head["data"], head["backbone"], names))
    return code, measured


class _Place(Protocol):
    """Where a sweep is measured. cores: physical ones there."""

    @property
    def cores(self) -> int: ...

    def run_job(self, job: SpeedJob) -> Iterator[MeasurementFile]: ...


class _ThisMachine:
    @property
    def cores(self) -> int:
        from benchmark.speed.device import physical_cores

        return physical_cores()

    def run_job(self, job: SpeedJob) -> Iterator[MeasurementFile]:
        from benchmark.speed import process

        return process.run_job(job)


def _place(executor: ExecutorChoice, directory: Path, devices: Sequence[str]) -> AbstractContextManager[_Place]:
    if executor.name == "local":
        return nullcontext(_ThisMachine())
    from benchmark.speed.ray_node import ray_node

    return ray_node(executor.address, directory.absolute(), on_gpu=any(device != "cpu" for device in devices))


def _jobs(
    directory: Path,
    tables: Mapping[str, Sequence[Record]],
    choices: Choices,
    devices: Sequence[str],
    cores: int,
    protocol: SpeedProtocol,
) -> list[SpeedJob]:
    jobs: list[SpeedJob] = []
    for device in devices:
        jobs += jobs_of(directory, tables, choices, device, settings_of(choices, device, cores), protocol)
    return jobs


def _labels(records: Sequence[Record]) -> dict[str, str]:
    """{graph hash: label of its row}."""
    from benchmark.tables.labels import row_labels

    return {record.graph_hash: label for record, label in zip(records, row_labels(records), strict=True)}
