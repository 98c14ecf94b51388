"""How long the regression gate takes on a large run.

`pytest tests/perf/test_check.py -o addopts= -s` prints the figure.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmark.api.checking import accept
from benchmark.records.store import Store
from tests.unit.records import make_record

ROWS, SEEDS = 200, 5
BOUND = 10.0  # seconds


@pytest.mark.slow
def test_a_thousand_cells_are_checked_in_ten_seconds(tmp_path: Path) -> None:
    """The whole process, imports included, against a baseline of the same run: all the same, exit code 0."""
    store = Store(tmp_path / "run")
    curve = [1 / (1 + step) for step in range(20)]
    for row in range(ROWS):
        for seed in range(SEEDS):
            record = make_record("hard_sharing", seed, params={"steps_factor": 1 + row / 10})
            store.write(dataclasses.replace(record, curves={"semseg": curve, "depth": curve}))
    code, said = accept(tmp_path / "run", tmp_path / "baseline.json", "made for this test")
    assert code == 0, said
    command = [
        sys.executable,
        "-m",
        "benchmark.check",
        str(tmp_path / "run"),
        "--against",
        str(tmp_path / "baseline.json"),
    ]
    start = time.perf_counter()
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    print(f"\ncheck of {ROWS * SEEDS} cells: {seconds:.1f} s")
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    assert seconds <= BOUND
