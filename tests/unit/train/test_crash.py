"""A run that is killed, or that finds the disk full, loses nothing that was finished and ends with the same result."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from benchmark.records import store as storage
from benchmark.records.record import ErrorEntry, Record
from benchmark.records.store import StorageError, Store
from benchmark.train.cell import RunSettings, run_cell
from benchmark.workers.executors import LocalExecutor
from tests.unit.cells import toy_cells

ROOT = Path(__file__).parents[3]


def kill_loop(folder: Path, kills: int, seed: int) -> dict[str, object]:
    line = [sys.executable, "-m", "tests.kill_loop", str(folder), str(kills), str(seed)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes, which this system does not have")
@pytest.mark.parametrize(("kills", "seed"), [(3, 0), pytest.param(40, 1, marks=pytest.mark.slow)])
def test_killed_runs_end_with_the_result_of_an_uninterrupted_one(tmp_path: Path, kills: int, seed: int) -> None:
    found = kill_loop(tmp_path, kills, seed)
    assert found["kills"] >= kills
    assert found["mismatches"] == []
    assert found["retrained"] == 0


@pytest.mark.usefixtures("toy_data")
def test_a_failing_disk_loses_nothing_that_was_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference, shared = toy_cells()
    expected = run_cell(shared, RunSettings(tmp_path / "straight")).result_hash
    folder = tmp_path / "failing"
    finished = run_cell(reference, RunSettings(folder))
    kept = Store(folder).record_path(finished).read_bytes()
    replace, writes = os.replace, 0
    for allowed in range(6):
        writes, code = 0, (errno.ENOSPC, errno.EROFS, errno.EIO)[allowed % 3]

        def failing(source: object, target: object, allowed: int = allowed, code: int = code) -> None:
            nonlocal writes
            writes += 1
            if writes > allowed:
                raise OSError(code, os.strerror(code))
            replace(source, target)

        monkeypatch.setattr(storage.os, "replace", failing)
        try:
            record = run_cell(shared, RunSettings(folder, checkpoint_steps=1))
            assert record.status in ("done", "failed")
        except StorageError as error:
            assert os.strerror(code) in str(error)
            assert "\n" not in str(error)
        assert Store(folder).record_path(finished).read_bytes() == kept
        assert not list(folder.rglob("*.tmp"))
    monkeypatch.setattr(storage.os, "replace", replace)
    record = run_cell(shared, RunSettings(folder))
    assert record.status == "done"
    assert record.result_hash == expected


@pytest.mark.usefixtures("toy_data")
def test_a_process_killed_in_the_writing_of_any_file_leaves_no_debris(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file of two cells is torn once: a part of it lies under its temporary name when the process ends."""
    cells = toy_cells()
    expected = [run_cell(cell, RunSettings(tmp_path / "straight")).result_hash for cell in cells]
    folder, replace = tmp_path / "killed", os.replace
    error = ErrorEntry(kind="OSError", message="", stage=None, step=None, task=None)
    Store(folder).write(Record(cell=cells[0].document, status="failed", error=error))  # it goes to history
    torn: set[Path] = set()

    def killed(source: Path, target: Path) -> None:
        if target in torn:
            replace(source, target)
            return
        torn.add(target)
        source.with_name(source.name.replace(".tmp", "0.tmp")).write_bytes(source.read_bytes()[:10])
        raise KeyboardInterrupt

    monkeypatch.setattr(storage.os, "replace", killed)
    ended: list[str] = []
    while len(ended) < len(cells):
        with contextlib.suppress(KeyboardInterrupt):
            ended.append(run_cell(cells[len(ended)], RunSettings(folder, checkpoint_steps=1)).result_hash)
    assert ended == expected
    written = {path.relative_to(folder).parts[0] for path in torn}
    assert written == {"artifacts", "floors", "history", "records", "single_task", "work"}
    assert not list(folder.rglob("*.tmp"))


@pytest.mark.usefixtures("quick_workers")
def test_two_runs_on_one_folder_do_nothing_twice(tmp_path: Path, toy_data: Path) -> None:
    settings = RunSettings(tmp_path, plugins=(str(toy_data),))
    wanted, environment = toy_cells(), dict(os.environ)
    ended: list[str] = []

    def run() -> None:
        ended.extend(event.status for event in LocalExecutor(settings, jobs=1).run(wanted) if event.kind == "finished")

    runs = [threading.Thread(target=run) for _ in range(2)]
    for one in runs:
        one.start()
    for one in runs:
        one.join()
    assert ended == ["done"] * 4  # both runs see both cells done
    assert dict(os.environ) == environment  # which both have set for their workers
    assert not list((tmp_path / "history").rglob("*.json")) if (tmp_path / "history").exists() else True
    records = Store(tmp_path).load_all()
    assert [(record.status, record.attempts) for record in records] == [("done", 1)] * 2
    assert len(list((tmp_path / "single_task").glob("*/*/summary.json"))) == 2


@pytest.mark.usefixtures("toy_data")
def test_a_torn_single_task_network_is_trained_again(tmp_path: Path) -> None:
    reference = toy_cells()[0]
    expected = run_cell(reference, RunSettings(tmp_path / "a")).result_hash
    run_cell(reference, RunSettings(tmp_path / "b"))
    for file in (tmp_path / "b" / "single_task").rglob("weights.safetensors"):
        file.write_bytes(file.read_bytes()[:100])
    for file in (tmp_path / "b" / "records").rglob("*.json"):
        file.unlink()
    assert run_cell(reference, RunSettings(tmp_path / "b")).result_hash == expected
