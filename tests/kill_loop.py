"""Kill a run at random moments until it is through, in a process of its own: `python -m tests.kill_loop FOLDER KILLS
SEED`.

Imports everything once, with what the first step imports, and forks a child for every attempt, so that a kill costs a
second and not ten. Prints one JSON line.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from benchmark.plan.cells import PlannedCell, plan
from benchmark.plan.plugins import load_plugins
from benchmark.plan.suite import Suite
from benchmark.records.store import Store
from benchmark.train.cell import RunSettings, configure_process, run_cell


def cells() -> list[PlannedCell]:
    document = {
        "name": "killed",
        "data": ["toy"],
        "backbones": ["test_resnet"],
        "methods": ["hard_sharing"],  # best-on-select makes it train the single-task networks too
        "seeds": [0],
        "budget": {"steps": 4, "cycles": 2},
        "recipe": {"batch_size": 8, "balancing": {"name": "uncertainty"}, "optimizer": {"name": "adamw", "lr": 0.002}},
        "selection": {"rule": "best-on-select", "evaluations": 2},
    }
    return plan(Suite.model_validate(document))


def run(folder: Path) -> None:
    for cell in cells():
        run_cell(cell, RunSettings(folder, checkpoint_s=0.0))


def attempt(folder: Path, delay: float | None) -> tuple[bool, float]:
    """(whether the child got through, its seconds); it is killed after `delay` seconds, if that is not None."""
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        run(folder)
        os._exit(0)
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        elapsed = time.monotonic() - started
        if done:
            return os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0, elapsed
        if delay is not None and elapsed >= delay:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return False, elapsed
        time.sleep(0.001)


def result(folder: Path) -> dict[str, object]:
    records = [Store(folder).read(cell.key) for cell in cells()]
    assert all(record is not None and record.status == "done" for record in records), records
    return {
        "hashes": [record.result_hash for record in records],
        "curves": [record.curves for record in records],
        "steps": [record.cost["final"]["optimizer_steps"] for record in records],
        "images": [record.cost["final"]["images"] for record in records],
        "seconds": [record.cost["final"]["seconds"] for record in records],
        "leftovers": [path.name for path in folder.rglob("*") if path.suffix in {".tmp", ".pt"}],
    }


def main(folder: Path, n_kills: int, seed: int) -> None:
    configure_process(1)
    load_plugins([Path(__file__).parent / "unit" / "toy_data.py"])
    run(folder / "imports")
    moments = random.Random(seed)
    through, seconds = attempt(folder / "straight", None)
    assert through
    expected = result(folder / "straight")
    kills, rounds, mismatches, retrained = 0, 0, [], 0
    while kills < n_kills:
        place, finished_before, through = folder / f"round-{rounds}", {}, False
        while not through:
            # Early kills hit loading and the first stage, late ones evaluation and the writing of records.
            delay = moments.uniform(0.0, 1.1 * seconds) if kills < n_kills else None
            through, _ = attempt(place, delay)
            kills += not through
            for path, stamp in finished_before.items():
                retrained += path.stat().st_mtime_ns != stamp
            finished_before = {path: path.stat().st_mtime_ns for path in (place / "records").rglob("*.json")}
        found = result(place)
        same = {key: found[key] == expected[key] for key in ("hashes", "curves", "steps", "images")}
        if not all(same.values()) or found["leftovers"]:
            mismatches.append({"round": rounds, "same": same, "leftovers": found["leftovers"]})
        rounds += 1
    print(json.dumps({"kills": kills, "rounds": rounds, "mismatches": mismatches, "retrained": retrained}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
