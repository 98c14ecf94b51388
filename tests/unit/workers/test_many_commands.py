"""Many commands on one folder, as an array of a cluster's scheduler starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from benchmark.records.store import Store

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_eight_commands_at_once_train_every_cell_once_and_all_end_well(tmp_path: Path) -> None:
    document = {
        "name": "many",
        "plugins": [str(ROOT / "tests" / "unit" / "toy_data.py")],
        "data": [{"dataset": "toy", "tasks": ["left", "right"]}],
        "backbones": ["test_resnet"],
        "methods": ["single_task", "hard_sharing", "cross_stitch"],  # the last takes the networks of the first
        "seeds": [0, 1, 2, 3],
        "budget": {"steps": 30, "cycles": 3},
        "recipe": {"batch_size": 16},
    }
    (tmp_path / "many.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    line = [sys.executable, "-m", "benchmark.run", str(tmp_path / "many.yaml"), "--out", str(tmp_path / "out")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    commands = [
        subprocess.Popen([*line, "--jobs", "1", "--no-speed"], cwd=ROOT, env=environment, stdout=subprocess.PIPE,
                         stderr=subprocess.STDOUT, text=True)
        for _ in range(8)
    ]  # fmt: skip
    ends = [(command.communicate()[0], command.returncode) for command in commands]
    assert [code for _, code in ends] == [0] * 8, ends
    records = Store(tmp_path / "out").load_all()
    assert [(record.status, record.attempts) for record in records] == [("done", 1)] * 12
    assert not (tmp_path / "out" / "history").exists()
    assert len(list((tmp_path / "out" / "single_task").glob("*/*/summary.json"))) == 8
    assert not list((tmp_path / "out").rglob("*.tmp"))
