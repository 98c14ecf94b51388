"""Which worker gets which cell: what runs out of memory beside others runs again alone, several GPUs take turns."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmark.plan.cells import PlannedCell
from benchmark.train.cell import RunSettings
from benchmark.workers import executors
from benchmark.workers.executors import LocalExecutor, Outcome, n_workers, spread
from tests.unit.cells import toy_cells


class Thread(threading.Thread):
    """A worker within this process, where a test can see what it does."""

    exitcode = 0

    def terminate(self) -> None:
        pass


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Workers are threads; gives the device of each that starts."""
    started: list[str] = []

    def spawned(target: Callable[..., None], threads: int, settings: RunSettings) -> tuple[Any, Any]:
        ours, theirs = multiprocessing.Pipe()
        started.append(settings.device)
        worker = Thread(target=target, args=(theirs, settings), daemon=True)
        worker.start()
        return worker, ours

    monkeypatch.setattr(executors, "spawned", spawned)
    return started


def gpus(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    monkeypatch.setattr(executors, "_n_gpus", lambda: n)


@pytest.mark.usefixtures("toy_data")
def test_what_runs_out_of_memory_beside_others_is_tried_again_alone(
    tmp_path: Path, devices: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cell 0 has room only where it is alone, cell 1 nowhere; they meet, since each waits until the other has begun."""
    cells = toy_cells(seeds=[0, 1])
    meeting, lock = threading.Barrier(2), threading.Lock()
    running: list[int] = []
    runs: list[tuple[int, tuple[int, ...]]] = []  # a cell, and what ran when it began

    def carry_out(planned: PlannedCell, settings: RunSettings, report: object) -> Outcome:
        number = next(n for n, cell in enumerate(cells) if cell.key == planned.key)
        with lock:
            running.append(number)
            runs.append((number, tuple(running)))
            first = [cell for cell, _ in runs].count(number) == 1
        if number < 2 and first:
            meeting.wait(timeout=30)
        with lock:
            running.remove(number)
        full = number == 1 or (number == 0 and first)
        return Outcome("oom" if full else "done", "out of memory" if full else "", 0.1)

    monkeypatch.setattr(executors, "carry_out", carry_out)
    events = list(LocalExecutor(RunSettings(tmp_path), jobs=2).run(cells))
    ends = {event.cell: (event.status, event.message) for event in events if event.kind == "finished"}
    assert ends == {0: ("done", ""), 1: ("oom", "out of memory"), 2: ("done", ""), 3: ("done", "")}
    assert len([event for event in events if event.kind == "finished"]) == 4
    assert [event.message for event in events if event.kind == "note"].count(
        f"{cells[0].title} ran out of memory beside others; it is tried again alone."
    ) == 1
    again = runs[4:]
    assert sorted(again) == [(0, (0,)), (1, (1,))]  # after all others, nothing beside them
    assert devices == ["cpu", "cpu"]


@pytest.mark.usefixtures("toy_data")
def test_what_runs_out_of_memory_alone_is_not_tried_again(
    tmp_path: Path, devices: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def carry_out(planned: PlannedCell, settings: RunSettings, report: object) -> Outcome:
        calls.append(planned.key)
        return Outcome("oom", "out of memory", 0.1)

    monkeypatch.setattr(executors, "carry_out", carry_out)
    events = list(LocalExecutor(RunSettings(tmp_path), jobs=1).run(toy_cells()))
    assert [event.status for event in events if event.kind == "finished"] == ["oom", "oom"]
    assert len(calls) == 2


@pytest.mark.usefixtures("toy_data")
def test_workers_take_turns_on_the_gpus(tmp_path: Path, devices: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "carry_out", lambda *_: Outcome("done", "", 0.1))
    gpus(monkeypatch, 3)
    list(LocalExecutor(RunSettings(tmp_path, device="cuda"), jobs=5).run(toy_cells(seeds=[0, 1, 2])))
    assert devices == ["cuda:0", "cuda:1", "cuda:2", "cuda:0", "cuda:1"]
    assert [spread("cuda:2", number) for number in range(2)] == ["cuda:2"] * 2
    assert [spread("cpu", number) for number in range(2)] == ["cpu"] * 2
    assert (n_workers(None, "cuda"), n_workers(None, "cuda:1"), n_workers(2, "cuda")) == (3, 1, 2)
    gpus(monkeypatch, 1)
    assert (spread("cuda", 4), n_workers(None, "cuda")) == ("cuda", 1)
    gpus(monkeypatch, 0)
    assert (spread("cuda", 4), n_workers(None, "cuda")) == ("cuda", 1)
