"""Which worker gets which cell: what runs out of memory beside others runs again alone, several GPUs take turns."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmark.plan.cells import PlannedCell
from benchmark.records.record import Record
from benchmark.records.store import Store
from benchmark.train.cell import RunSettings
from benchmark.workers import executors
from benchmark.workers.executors import LocalExecutor, Outcome, n_workers, spread
from benchmark.workers.room import Room
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

    def in_a_thread(target: Callable[..., None], threads: int, settings: RunSettings, **_: bool) -> tuple[Any, Any]:
        ours, theirs = multiprocessing.Pipe()
        started.append(settings.device)
        worker = Thread(target=target, args=(theirs, settings), daemon=True)
        worker.start()
        return worker, ours

    monkeypatch.setattr(executors, "started", in_a_thread)
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
            meeting.wait(timeout=300)
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


def store_peak(root: Path, cell: PlannedCell, peak_bytes: int | None) -> None:
    Store(root).write(Record(cell=cell.document, status="done", cost={"peak_bytes": peak_bytes}))


@pytest.mark.usefixtures("toy_data")
def test_a_cell_waits_until_its_memory_fits_beside_the_others(
    tmp_path: Path, devices: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU of 10 GiB two cells of 4 GiB never meet (a process and PyTorch's reserve come on top), and small cells
    pass the large one that waits. The sizes are those of another seed.
    """
    for cell in toy_cells(seeds=[9]):
        store_peak(tmp_path, cell, 2**30 * (4 if cell.is_reference else 1))
    cells = sorted(toy_cells(seeds=[0, 1]), key=lambda cell: not cell.is_reference)  # the large ones first
    lock, passed = threading.Lock(), threading.Event()
    running: list[bool] = []
    met: list[list[bool]] = []

    def carry_out(planned: PlannedCell, settings: RunSettings, report: object) -> Outcome:
        with lock:
            running.append(planned.is_reference)
            met.append(list(running))
            if sorted(running) == [False, False, True]:  # in any order: threads begin as the machine lets them
                passed.set()
        passed.wait(timeout=300)
        with lock:
            running.remove(planned.is_reference)
        return Outcome("done", "", 0.1)

    monkeypatch.setattr(executors, "carry_out", carry_out)
    monkeypatch.setattr(executors, "_gpu_bytes", lambda device: 10 * 2**30)
    gpus(monkeypatch, 1)
    events = list(LocalExecutor(RunSettings(tmp_path, device="cuda"), jobs=3).run(cells))
    assert sorted(event.cell for event in events if event.status == "done") == [0, 1, 2, 3]
    assert any(sorted(cells) == [False, False, True] for cells in met)
    assert max(cells.count(True) for cells in met) == 1


@pytest.mark.usefixtures("toy_data")
def test_each_gpu_has_its_own_memory(tmp_path: Path, devices: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cells that fill a GPU run at once on two of them: each waits until the other has begun."""
    for cell in toy_cells(seeds=[9]):
        store_peak(tmp_path, cell, 7 * 2**30)
    meeting = threading.Barrier(2)

    def carry_out(planned: PlannedCell, settings: RunSettings, report: object) -> Outcome:
        meeting.wait(timeout=300)
        return Outcome("done", "", 0.1)

    monkeypatch.setattr(executors, "carry_out", carry_out)
    monkeypatch.setattr(executors, "_gpu_bytes", lambda device: 10 * 2**30)
    gpus(monkeypatch, 2)
    events = list(LocalExecutor(RunSettings(tmp_path, device="cuda"), jobs=3).run(toy_cells(seeds=[0])))
    assert [event.status for event in events if event.kind == "finished"] == ["done", "done"]


@pytest.mark.usefixtures("toy_data")
def test_sizes_of_cells_are_learnt_as_they_end(tmp_path: Path) -> None:
    cells = toy_cells(seeds=[0, 1], methods=["hard_sharing"])
    room = Room(cells, tmp_path)
    assert [room.peak_bytes(number) for number in (0, 1)] == [None, None]
    assert room.first_that_fits([1], [0], 2**31) == 1  # of unknown size
    store_peak(tmp_path, cells[0], 2**30)
    room.learn(0)
    assert [room.peak_bytes(number) for number in (0, 1)] == [2**30, 2**30]
    assert room.first_that_fits([1], [0], 2**31) is None
    assert room.first_that_fits([1], [], 2**10) == 1  # alone it is tried, whatever its size
    assert room.first_that_fits([], [], 2**31) is None


@pytest.mark.usefixtures("toy_data")
def test_workers_take_turns_on_the_gpus(tmp_path: Path, devices: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "carry_out", lambda *_: Outcome("done", "", 0.1))
    monkeypatch.setattr(executors, "_gpu_bytes", lambda device: 10 * 2**30)
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
