"""Where cells run: one door. Behind it local worker processes, one cell at a time each, or a Ray cluster
(`ray_executor`).

A worker that dies takes its own cell with it and nothing else: the cell is reported as failed and another worker
starts. torch is only imported in the workers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from benchmark.workers.processes import end_of, started
from datasets.errors import UsageError

if TYPE_CHECKING:
    from benchmark.plan.cells import PlannedCell
    from benchmark.records.record import Record
    from benchmark.train.cell import RunSettings
    from benchmark.train.stage import Progress
    from benchmark.workers.room import Room


@dataclasses.dataclass(frozen=True)
class Event:
    """A message of a worker. kind: `started`, `progress`, `finished`, or `note` for a line about no cell.

    stage, done, steps: of progress. status, message, seconds: of the end; status as in records. message: also of a
    note.
    """

    kind: str
    cell: int = -1
    worker: int = -1
    stage: str = ""
    done: int = 0
    steps: int = 0
    status: str = ""
    message: str = ""
    seconds: float = 0.0


class Executor(Protocol):
    """Runs cells somewhere."""

    def run(self, cells: Sequence[PlannedCell]) -> Iterator[Event]:
        """Run the cells in order, as there is room; yields what happens. What still runs is stopped when left.

        Raises UsageError before the first cell where nothing can run.
        """


def n_workers(jobs: int | None, device: str) -> int:
    """One worker process per core that this process may use on a CPU, one a GPU, unless asked otherwise."""
    if jobs is not None:
        return jobs
    if device != "cpu":
        return max(1, _n_gpus()) if device == "cuda" else 1
    import joblib

    return int(joblib.cpu_count())


def spread(device: str, number: int) -> str:
    """The device of a worker: of several GPUs, where none is named, one after another."""
    n = _n_gpus() if device == "cuda" else 0
    return f"cuda:{number % n}" if n > 1 else device


def has_cuda() -> bool:
    """Whether this machine has a CUDA device."""
    return _n_gpus() > 0


@functools.cache
def _n_gpus() -> int:
    import torch

    return torch.cuda.device_count()


@functools.cache
def _gpu_bytes(device: str) -> int:
    import torch

    return int(torch.cuda.get_device_properties(device).total_memory)


def _room(cells: Sequence[PlannedCell], settings: RunSettings, jobs: int) -> Room | None:
    """Who keeps account of memory where several workers share a GPU."""
    if settings.device == "cpu" or jobs <= n_workers(None, settings.device):
        return None
    from benchmark.workers.room import Room

    return Room(cells, settings.out)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a cell ended. status: as in records. message: one line, empty where all is well. seconds: with its waiting
    for others.
    """

    status: str
    message: str
    seconds: float


def carry_out(planned: PlannedCell, settings: RunSettings, report_progress: Callable[[Progress], None]) -> Outcome:
    """Run a cell in this process, which is one of workers: its threads are set, plug-ins are loaded."""
    from benchmark.plan.plugins import load_plugins
    from benchmark.records.store import StorageError
    from benchmark.train.cell import configure_process, run_cell

    started = time.monotonic()
    configure_process(settings.threads)
    status, message = "failed", ""
    try:
        load_plugins(settings.plugins)
        record = run_cell(planned, settings, report_progress)
        status, message = record.status, _told(record, settings.out)
    except (StorageError, UsageError) as error:
        message = str(error)
    if settings.device != "cpu":  # others on this GPU may need what the cell no longer does
        import torch

        torch.cuda.empty_cache()
    return Outcome(status, message, time.monotonic() - started)


class _Orphaned(BaseException):
    """The run is gone: its worker ends as if it had been killed too, and leaves no record of a failure."""


def _told(record: Record, out: Path) -> str:
    """What is said of a record's error; of a fault in code, its kind and where its traceback lies."""
    from benchmark.records.store import traceback_file

    if record.error is None:
        return ""
    file = traceback_file(out, record.key)
    if not file.is_file():
        return record.error["message"]
    return f"{record.error['kind']}: {record.error['message']} (traceback: {file})"


def _send(connection: Connection, message: tuple[object, ...]) -> None:
    try:
        connection.send(message)
    except (BrokenPipeError, ConnectionResetError):
        raise _Orphaned from None


def _work(connection: Connection, settings: RunSettings) -> None:
    """Body of a worker: what `_serve` does, until the run is gone."""
    with contextlib.suppress(_Orphaned):
        _serve(connection, settings)


def _receive(connection: Connection) -> tuple[int, PlannedCell] | None:
    try:
        return cast("tuple[int, PlannedCell] | None", connection.recv())
    except (EOFError, ConnectionResetError):
        raise _Orphaned from None


def _serve(connection: Connection, settings: RunSettings) -> None:
    """Receive (number, cell), run it, report; None ends."""
    while (job := _receive(connection)) is not None:
        number, planned = job
        outcome = carry_out(planned, settings, functools.partial(_send_progress, connection, number))
        _send(connection, ("finished", number, outcome))


def _send_progress(connection: Connection, number: int, progress: Progress) -> None:
    _send(connection, ("progress", number, progress.stage, progress.done, progress.steps))


def finished(cell: int, worker: int, outcome: Outcome) -> Event:
    """The last event of a cell."""
    return Event("finished", cell, worker, status=outcome.status, message=outcome.message, seconds=outcome.seconds)


@dataclasses.dataclass
class _Worker:
    number: int
    device: str
    process: BaseProcess
    connection: Connection
    cell: int | None = None
    started: float = 0.0


class LocalExecutor:
    """Worker processes on this machine. jobs: how many; each computes with `settings.threads` threads. On `cuda` they
    take turns on the GPUs that there are, and several share one as far as its memory goes. A cell that runs out of
    memory while others run is tried again alone.
    """

    def __init__(self, settings: RunSettings, jobs: int) -> None:
        self.settings, self.jobs = settings, jobs
        self._workers: list[_Worker] = []

    def run(self, cells: Sequence[PlannedCell]) -> Iterator[Event]:
        """As of `Executor`."""
        waiting, crowded = deque(range(len(cells))), deque[int]()
        room = _room(cells, self.settings, self.jobs)
        had_company: set[int] = set()
        n_finished = 0
        try:
            self._workers = [self._start(number) for number in range(min(self.jobs, len(cells)))]
            while n_finished < len(cells):
                for worker in self._workers:
                    chosen = None if worker.cell is not None else self._next(worker, waiting, crowded, room)
                    if chosen is not None:
                        worker.cell = chosen
                        worker.started = time.monotonic()
                        worker.connection.send((worker.cell, cells[worker.cell]))
                        had_company |= self._busy() if len(self._busy()) > 1 else set()
                        yield Event("started", worker.cell, worker.number)
                for event in self._events():
                    if event.status == "oom" and event.cell in had_company:
                        had_company.discard(event.cell)
                        crowded.append(event.cell)
                        text = f"{cells[event.cell].title} ran out of memory beside others; it is tried again alone."
                        yield Event("note", message=text)
                        continue
                    if event.kind == "finished":
                        n_finished += 1
                        if room is not None:
                            room.learn(event.cell)
                    yield event
        finally:
            self._stop()

    def _next(self, worker: _Worker, waiting: deque[int], crowded: deque[int], room: Room | None) -> int | None:
        """The cell that an idle worker takes out of those that wait, if there is one for it now."""
        if waiting:
            chosen: int | None = waiting[0]
            if room is not None:
                beside = [w.cell for w in self._workers if w.cell is not None and w.device == worker.device]
                chosen = room.first_that_fits(waiting, beside, _gpu_bytes(worker.device))
            if chosen is not None:
                waiting.remove(chosen)
            return chosen
        return crowded.popleft() if crowded and not self._busy() else None

    def _busy(self) -> set[int]:
        """Cells that run."""
        return {worker.cell for worker in self._workers if worker.cell is not None}

    def _events(self) -> Iterator[Event]:
        """Everything that has arrived, waiting a moment for it."""
        by_channel = {worker.connection: worker for worker in self._workers}
        for channel in wait(list(by_channel), timeout=0.5):
            worker = by_channel[channel]  # type: ignore[index]
            try:
                message = worker.connection.recv()
            except (EOFError, ConnectionResetError):
                yield from self._died(worker)
                continue
            if message[0] == "progress":
                yield Event("progress", message[1], worker.number, *message[2:5])
            else:
                worker.cell = None
                yield finished(message[1], worker.number, message[2])

    def _died(self, worker: _Worker) -> Iterator[Event]:
        """A worker ended without a word: fail its cell, start another."""
        how = end_of(worker.process)
        worker.connection.close()
        self._workers[self._workers.index(worker)] = self._start(worker.number)
        if worker.cell is None:
            raise RuntimeError(f"A worker process could take no cell: it ended with {how}.")
        seconds = time.monotonic() - worker.started
        yield finished(worker.cell, worker.number, Outcome("failed", f"The worker process ended with {how}.", seconds))

    def _start(self, number: int) -> _Worker:
        device = spread(self.settings.device, number)
        settings = dataclasses.replace(self.settings, device=device)
        copied = device == "cpu"  # a process that has asked for GPUs cannot be copied
        return _Worker(number, device, *started(_work, settings.threads, settings, copied=copied))

    def _stop(self) -> None:
        for worker in self._workers:
            if worker.cell is None and worker.process.is_alive():
                try:
                    worker.connection.send(None)
                except (BrokenPipeError, OSError):
                    continue
            else:
                worker.process.terminate()
        for worker in self._workers:
            worker.process.join(timeout=10)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.connection.close()
