"""Inside the measuring process: build the networks of a table, measure them, describe it. Spec: measurement 3."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from benchmark.records.documents import EnvironmentDocument
from benchmark.records.measurements import SCHEMA, TRAIN, MeasurementFile, NetworkEntry
from benchmark.records.networks import load_graph
from benchmark.records.provenance import environment, versions
from benchmark.records.record import utc_now
from benchmark.records.store import Store
from benchmark.speed.device import CudaDevice, device_name, device_state
from benchmark.speed.jobs import SpeedJob, TableJob, done_record
from benchmark.speed.measure import Measurement, Sampled, measure_pairs, measure_slots
from benchmark.speed.networks import TableNetworks, compile_now
from benchmark.speed.timing import COPY, REFERENCE, Contest, Failure, Network, ReferenceFailedError, failure_of
from benchmark.train.memory import peak_bytes, reset_peak
from datasets.errors import UsageError
from methods.graph.task_graph import TaskGraph

WARM_STEPS, MEASURED_STEPS = 10, 3  # of the pass for memory
Name = tuple[str, str]  # key of the record, mode


class _Session:
    """The networks of one table on one device, by (record, mode)."""

    def __init__(self, job: SpeedJob, table: TableJob) -> None:
        self.job, self.table = job, table
        self.store = Store(job.root)
        self.device = torch.device(job.device)
        self.records = {key: done_record(self.store, key) for key in table.wanted}
        self.parts = TableNetworks(next(iter(self.records.values())), job.settings, self.device)
        self.compiled: dict[str, dict[str, Any]] = {}
        modes = {mode for modes in table.wanted.values() for mode in modes}
        self.trains = TRAIN in modes
        if self.trains and modes != {TRAIN}:
            raise UsageError("train-step has a reference of its own; measure it apart from the other modes.")
        self._batch = self.parts.training_batch(job.data_root) if self.trains else None
        self._graphs: dict[str, TaskGraph] = {}

    @property
    def names(self) -> list[Name]:
        """Everything that is to be measured, in order."""
        return [(key, mode) for key, modes in self.table.wanted.items() for mode in modes]

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def network(self, key: str, mode: str) -> Network:
        """A network, built. Raises MemoryError, and UsageError where its files are missing or changed."""
        if key not in self._graphs:
            self._graphs[key] = load_graph(self.store, self.records[key])
        graph = self._graphs[key]
        if self._batch is not None:
            return self.parts.training(graph, self._batch, key)
        return self.parts.inference(graph, mode, key)

    def reference(self) -> Network:
        """A copy of what all are compared with."""
        if self._batch is not None:
            return self.parts.training_reference(self._batch)
        return self.parts.reference()

    def ready(self, name: str, build: Callable[[], Network]) -> Network | Failure:
        """Built and, where the settings say so, compiled."""
        try:
            network = build()
        except (MemoryError, UsageError) as error:
            return failure_of(error)
        if self.job.settings.execution == "compiled":
            compiled = compile_now(network, self.synchronize)
            if isinstance(compiled, Failure):
                return compiled
            self.compiled[name] = compiled
        return network


def measure_table(job: SpeedJob, table: TableJob) -> MeasurementFile:
    """Measure the networks of a table. A network that fails has its status; where ref fails, all have its."""
    started, start = utc_now(), time.monotonic()
    session = _Session(job, table)
    states = {"before": device_state(session.device)}
    failure: Failure | None = None
    measured: Measurement | None = None
    found: dict[str, Sampled | Failure] = {}
    try:
        measured, found = _measure(session)
    except ReferenceFailedError as error:
        failure = error.failure
        found = {_label(*name): failure for name in session.names}
    states["after"] = device_state(session.device)
    protocol = dataclasses.asdict(job.protocol)
    return MeasurementFile(
        schema=SCHEMA,
        status="done" if failure is None else failure.status,
        message=None if failure is None else f"reference: {failure.message}",
        started=started,
        seconds=time.monotonic() - start,
        table=table.table,
        settings=job.settings,
        form="slots" if session.device.type == "cuda" else "pairs",
        protocol=protocol,
        reference=_reference_entry(session, measured),
        aa=None if measured is None else measured.aa,
        flags=() if measured is None else measured.flags,
        cpu_share=None if measured is None else measured.cpu_share,
        residency=None if measured is None else measured.residency,
        device=device_name(job.device),
        versions=_versions(session.device),
        environment=_environment(job),
        states=states,
        networks=tuple(_entry(session, name, found) for name in session.names),
    )


def _label(key: str, mode: str) -> str:
    return f"{key}/{mode}"


def _measure(session: _Session) -> tuple[Measurement, dict[str, Sampled | Failure]]:
    """Build everything, measure what could be built."""
    built = {
        REFERENCE: session.ready(REFERENCE, session.reference),
        COPY: session.ready(COPY, session.reference),
    }
    for key, mode in session.names:
        built[_label(key, mode)] = session.ready(_label(key, mode), lambda: session.network(key, mode))  # noqa: B023
    failures = {name: result for name, result in built.items() if isinstance(result, Failure)}
    good = {name: result for name, result in built.items() if isinstance(result, Network)}
    for name in (REFERENCE, COPY):
        if name in failures:
            raise ReferenceFailedError(failures[name])
    contest, protocol = Contest.of(good), session.job.protocol
    if session.device.type == "cuda":
        measured = measure_slots(contest, CudaDevice(session.device), protocol)
    else:
        measured = measure_pairs(contest, protocol, threads=session.job.settings.threads)
    return measured, {**measured.networks, **failures}


def _entry(session: _Session, name: Name, found: Mapping[str, Sampled | Failure]) -> NetworkEntry:
    key, mode = name
    record, result = session.records[key], found[_label(key, mode)]
    entry = NetworkEntry(
        graph=record.graph_hash,
        mode=mode,
        status="done",
        batch=session.job.settings.batch,
        method=record.method,
        params=record.params,
        seed=record.seed,
        is_reference=record.is_reference,
        compile=session.compiled.get(_label(key, mode)),
    )
    if isinstance(result, Failure):
        return dataclasses.replace(entry, status=result.status, message=result.message)
    return dataclasses.replace(
        entry,
        images=result.images,
        predictions=result.predictions,
        images_per_s=result.images_per_s,
        predictions_per_s=result.predictions_per_s,
        step_ms=result.step_ms,
        r=result.r,
        r_stl=_relative_to_single_task(session, mode, result, found),
        flags=result.flags,
        warm_up=dataclasses.asdict(result.warm_up),
        raw=result.raw,
    )


def _relative_to_single_task(
    session: _Session, mode: str, result: Sampled, found: Mapping[str, Sampled | Failure]
) -> float | None:
    """images/s over that of the single-task networks: median over pairs or rounds, both taken relative to ref.

    On a CPU the two were paired with ref, not with each other; the ratio of their ratios removes the moment.
    """
    for key, record in session.records.items():
        single = found.get(_label(key, mode))
        if record.is_reference and isinstance(single, Sampled):
            return statistics.median(a / b for a, b in zip(result.ratios, single.ratios, strict=True))
    return None


def _reference_entry(session: _Session, measured: Measurement | None) -> dict[str, Any]:
    """What ref is, how fast it was, and the raw times of ref'."""
    kind = "plain backbone with a head for every task" if session.trains else "plain backbone without heads"
    entry: dict[str, Any] = {"what": kind, "backbone": session.parts.config.to_json()}
    for name, result in (("ref", measured and measured.reference), ("copy", measured and measured.copy)):
        if result:
            entry[name] = {
                "images_per_s": dataclasses.asdict(result.images_per_s),
                "step_ms": dataclasses.asdict(result.step_ms),
                "warm_up": dataclasses.asdict(result.warm_up),
                "flags": list(result.flags),
                "raw": result.raw,
            }
    return entry


def _versions(device: torch.device) -> dict[str, str | None]:
    cuda = device.type == "cuda"
    found = versions(
        training_hash="",
        method_hash="",
        data_hash=None,
        weights_hash=None,
        cuda=torch.version.cuda if cuda else None,
        cudnn=str(torch.backends.cudnn.version()) if cuda else None,
    )
    of_cells = ("training_hash", "method_hash", "data_hash", "weights_hash")
    return {name: value for name, value in found.items() if name not in of_cells}


def _environment(job: SpeedJob) -> EnvironmentDocument:
    return environment(
        device=device_name(job.device),
        threads={"intra_op": torch.get_num_threads(), "inter_op": torch.get_num_interop_threads()},
        determinism={"algorithms": torch.are_deterministic_algorithms_enabled()},
    )


def measure_memory(job: SpeedJob, table: TableJob) -> dict[str, int | None]:
    """Peak memory of the one network of `table` in three steps after a warm-up; the process is its own.

    peak_bytes: allocated on CUDA, resident size on a CPU. reserved_bytes: held by CUDA's allocator. weights_bytes.
    """
    session = _Session(job, table)
    ((key, mode),) = session.names
    network = session.network(key, mode)
    network.load()
    for _ in range(WARM_STEPS):
        network.step()
    session.synchronize()
    reset_peak(session.device)
    for _ in range(MEASURED_STEPS):
        network.step()
    session.synchronize()
    reserved = torch.cuda.max_memory_reserved(session.device) if session.device.type == "cuda" else None
    return {
        "peak_bytes": peak_bytes(session.device),
        "reserved_bytes": reserved,
        "weights_bytes": network.weights_bytes,
    }
