"""How long reports take on ten thousand records.

`pytest tests/perf/test_report.py -o addopts= -s` prints the figures.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmark.records.store import Store
from tests.unit.made_records import SHARED, SINGLE_TASK, make_record

TABLES, ROWS, SEEDS = 20, 100, 5
MEASURED = """
import resource, sys
from benchmark.report import app
try:
    app(sys.argv[1:])
finally:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large") / "run"
    store = Store(folder)
    curve = [1 / (1 + step) for step in range(20)]
    for table in range(TABLES):
        for row in range(ROWS):
            for seed in range(SEEDS):
                values = SHARED if row else SINGLE_TASK
                moved = {
                    task: {k: v * (1 + (row + seed) / 1e4) for k, v in each.items()} for task, each in values.items()
                }
                params = {"steps_factor": 1 + row / 10} if row else {}
                record = make_record(
                    "hard_sharing" if row else "single_task",
                    seed,
                    moved,
                    reference=not row,
                    params=params,
                    budget={"steps": 100 + table},
                    size={"x_backbone": 1 + row / 50},
                    audit={"non_default_params": params},
                )
                store.write(dataclasses.replace(record, curves={"semseg": curve, "depth": curve}))
    return folder


def measured(arguments: list[str]) -> tuple[float, int]:
    """Seconds of the whole process, and its largest resident memory in bytes."""
    start = time.perf_counter()
    result = subprocess.run(
        [sys.executable, "-c", MEASURED, *arguments], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    return time.perf_counter() - start, int(result.stderr.splitlines()[-1]) * 1024


@pytest.mark.slow
def test_tables_of_ten_thousand_records(run: Path, tmp_path: Path) -> None:
    seconds, memory = measured([str(run), "--format", "markdown", "--out", str(tmp_path / "table.md")])
    print(f"\ntables of {TABLES * ROWS * SEEDS} records: {seconds:.1f} s, {memory / 1e6:.0f} MB")
    assert seconds <= 15
    assert memory <= 2**30


@pytest.mark.slow
def test_page_of_ten_thousand_records(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    seconds, memory = measured([str(run), "--html", str(file)])
    size = file.stat().st_size
    print(
        f"\npage of {TABLES * ROWS * SEEDS} records: {seconds:.1f} s, {size / 1e6:.1f} MB; memory {memory / 1e6:.0f} MB"
    )
    assert seconds <= 30
    assert size <= 15_000_000
    assert memory <= 2**30
