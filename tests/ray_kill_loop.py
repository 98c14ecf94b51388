"""Kill what a run on a Ray cluster consists of, at random, until its cells are done, and compare with a quiet run.

`python -m tests.ray_kill_loop FOLDER KILLS SEED [CELLS]`: a cluster of three raylets on this machine, of which the
first takes no cells; kills (-9) of cells' processes, of raylets, each replaced by a new one, and of the command itself,
which is started again. Prints one line of JSON: the kills by kind, the starts of the command, cells whose hash differs,
and cells that were trained again after they were done.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from benchmark.plan.plugins import load_plugins
from benchmark.plan.suite_file import select
from benchmark.records.store import Store
from benchmark.train.cell import RunSettings, configure_process, run_cell

ROOT = Path(__file__).parent.parent
LONGEST_PAUSE_S = 6.0  # between kills
KINDS = ("worker", "worker", "worker", "raylet", "command")


def write_suite(folder: Path, n_cells: int) -> Path:
    """Half the cells are of single-task networks, half of a method that takes nothing over."""
    document = {
        "name": "killed",
        "plugins": [str(ROOT / "tests" / "unit" / "toy_data.py")],
        "data": [{"dataset": "toy", "tasks": ["left", "right"]}],
        "backbones": ["test_resnet"],
        "methods": ["single_task", "hard_sharing"],
        "seeds": list(range(n_cells // 2)),
        "budget": {"steps": 400, "cycles": 10},
        "recipe": {"batch_size": 16},
    }
    file = folder / "killed.yaml"
    file.write_text(yaml.safe_dump(document), encoding="utf-8")
    return file


def quiet_hashes(suite: Path, folder: Path) -> dict[str, str | None]:
    """{key: hash} of the cells as one process trains them."""
    from benchmark.plan.cells import plan

    configure_process(1)
    chosen = select(str(suite))
    load_plugins(chosen.plugins)
    settings = RunSettings(folder, plugins=chosen.plugins)
    return {cell.key: run_cell(cell, settings).result_hash for cell in plan(chosen)}


def start(suite: Path, out: Path, address: str) -> subprocess.Popen[bytes]:
    """The command."""
    line = [sys.executable, "-m", "benchmark.run", str(suite), "--out", str(out), "--no-speed"]
    line += ["--executor", "ray", "--address", address]
    with (out.parent / "run.log").open("ab") as log:
        return subprocess.Popen(line, cwd=ROOT, stdout=log, stderr=log)


def workers() -> Iterator[int]:
    """Processes that train a cell: Ray names them after its task."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cmdline").read_bytes().startswith(b"ray::_run_cell"):
                yield int(process.name)
        except OSError:
            continue


def main(folder: Path, kills: int, seed: int, n_cells: int = 20) -> dict[str, Any]:
    """As the module says."""
    from ray.cluster_utils import Cluster

    os.environ.update(RAY_worker_niceness="0", OMP_NUM_THREADS="1")
    folder.mkdir(parents=True, exist_ok=True)
    drawn, suite, out = random.Random(seed), write_suite(folder, n_cells), folder / "out"
    expected = quiet_hashes(suite, folder / "quiet")
    out.mkdir()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    killed: Counter[str] = Counter()
    done: dict[Path, int] = {}  # {record: when it was written}
    trained_again: set[str] = set()
    command, starts = start(suite, out, cluster.address), 1
    while True:
        time.sleep(drawn.uniform(0.5, LONGEST_PAUSE_S))
        trained_again |= {path.stem for path, written in done.items() if path.stat().st_mtime_ns != written}
        store = Store(out)
        done = {
            path: path.stat().st_mtime_ns
            for path in (store.record_path(record) for record in store.load_all() if record.status == "done")
        }
        if command.poll() is not None:
            if len(done) == len(expected) and sum(killed.values()) >= kills:
                break
            if len(done) == len(expected):  # go on killing: half of the cells are trained anew
                for path in sorted(done)[::2]:
                    del done[path]
                    path.unlink()
            command, starts = start(suite, out, cluster.address), starts + 1
            continue
        kind = drawn.choice(KINDS) if sum(killed.values()) < kills else None
        if kind == "worker" and (found := sorted(workers())):
            os.kill(drawn.choice(found), signal.SIGKILL)
        elif kind == "raylet":
            node = nodes.pop(drawn.randrange(len(nodes)))
            cluster.remove_node(node, allow_graceful=False)
            nodes.append(cluster.add_node(num_cpus=1))
        elif kind == "command":
            command.kill()
            command.wait()
            command, starts = start(suite, out, cluster.address), starts + 1
        else:
            continue
        killed[kind] += 1
    cluster.shutdown()
    found_hashes = {record.key: record.result_hash for record in Store(out).load_all() if record.status == "done"}
    history = len(list((out / "history").rglob("*.json"))) if (out / "history").exists() else 0
    return {
        "kills": dict(killed),
        "starts": starts,
        "cells": len(expected),
        "mismatches": [key for key in expected if found_hashes.get(key) != expected[key]],
        "trained_again": sorted(trained_again),
        "failed_attempts_kept": history,
        "debris": [str(path) for path in out.rglob("*.tmp")],
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), *map(int, sys.argv[4:]))))
