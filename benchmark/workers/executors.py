"""Where cells run: one door. Local worker processes, started fresh (`spawn`), one cell at a time each.

A worker that dies takes its own cell with it and nothing else: the cell is reported as failed and another worker
starts. torch is only imported in the workers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, cast

from benchmark.workers.processes import end_of, spawned

if TYPE_CHECKING:
    from benchmark.plan.cells import PlannedCell
    from benchmark.records.record import Record
    from benchmark.train.cell import RunSettings
    from benchmark.train.stage import Progress


@dataclasses.dataclass(frozen=True)
class Event:
    """A message of a worker. kind: `started`, `progress` or `finished`.

    stage, done, steps: of progress. status, message, seconds: of the end; status as in records, or `skipped` where
    another process holds the cell.
    """

    kind: str
    cell: int
    worker: int
    stage: str = ""
    done: int = 0
    steps: int = 0
    status: str = ""
    message: str = ""
    seconds: float = 0.0


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
    from benchmark.plan.plugins import load_plugins
    from benchmark.records.store import StorageError
    from benchmark.train.cell import configure_process, run_cell
    from datasets.errors import UsageError

    configure_process(settings.threads)
    load_plugins(settings.plugins)
    while (job := _receive(connection)) is not None:
        number, planned = job
        started = time.monotonic()
        status, message = "failed", ""
        try:
            record = run_cell(planned, settings, functools.partial(_send_progress, connection, number))
            status, message = record.status, _told(record, settings.out)
        except (StorageError, UsageError) as error:
            message = str(error)
        _send(connection, ("finished", number, status, message, time.monotonic() - started))


def _send_progress(connection: Connection, number: int, progress: Progress) -> None:
    _send(connection, ("progress", number, progress.stage, progress.done, progress.steps))


@dataclasses.dataclass
class _Worker:
    number: int
    process: BaseProcess
    connection: Connection
    cell: int | None = None
    started: float = 0.0


class LocalExecutor:
    """Worker processes on this machine. jobs: how many; each computes with `settings.threads` threads."""

    def __init__(self, settings: RunSettings, jobs: int) -> None:
        self.settings, self.jobs = settings, jobs
        self._workers: list[_Worker] = []

    def run(self, cells: Sequence[PlannedCell]) -> Iterator[Event]:
        """Run the cells in order, as workers become free; yields what happens. Stops all workers when left."""
        waiting = deque(range(len(cells)))
        finished = 0
        try:
            self._workers = [self._start(number) for number in range(min(self.jobs, len(cells)))]
            while finished < len(cells):
                for worker in self._workers:
                    if worker.cell is None and waiting:
                        worker.cell, worker.started = waiting.popleft(), time.monotonic()
                        worker.connection.send((worker.cell, cells[worker.cell]))
                        yield Event("started", worker.cell, worker.number)
                for event in self._events():
                    finished += event.kind == "finished"
                    yield event
        finally:
            self._stop()

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
                _, number, status, text, seconds = message
                yield Event("finished", number, worker.number, status=status, message=text, seconds=seconds)

    def _died(self, worker: _Worker) -> Iterator[Event]:
        """A worker ended without a word: fail its cell, start another."""
        how = end_of(worker.process)
        worker.connection.close()
        self._workers[self._workers.index(worker)] = self._start(worker.number)
        if worker.cell is None:
            raise RuntimeError(f"A worker process could take no cell: it ended with {how}.")
        yield Event(
            "finished",
            worker.cell,
            worker.number,
            status="failed",
            message=f"The worker process ended with {how}.",
            seconds=time.monotonic() - worker.started,
        )

    def _start(self, number: int) -> _Worker:
        return _Worker(number, *spawned(_work, self.settings.threads, self.settings))

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
