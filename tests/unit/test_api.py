"""Results from Python: tidy, the same numbers as the tables, and no ceremony in a script."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

import benchmark
from benchmark import Results, run_suite
from benchmark.api import FRAME_COLUMNS
from benchmark.api.reporting import report
from benchmark.deploy.find import find_record
from benchmark.plan.suite_file import find_suite, read_suite
from benchmark.records.store import Store
from datasets.errors import UsageError
from tests.unit.records import SHARED, SINGLE_TASK, make_failure, make_record

ROOT = Path(benchmark.__file__).parent.parent


def of_seed(values: dict[str, dict[str, float]], seed: int) -> dict[str, dict[str, float]]:
    return {task: {name: value + seed for name, value in scores.items()} for task, scores in values.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    store = Store(tmp_path / "run")
    for seed in (0, 1):
        store.write(make_record("stl", seed, of_seed(SINGLE_TASK, seed), reference=True))
        store.write(make_record("ours", seed, of_seed(SHARED, seed), params={"k": 2}))
    store.write(make_failure("broken", 0))
    return tmp_path / "run"


def test_a_line_is_a_cell_and_a_quantity(folder: Path) -> None:
    frame = Results(folder).frame()
    assert tuple(frame.columns) == FRAME_COLUMNS
    done = frame[frame.status == "done"]
    assert not done.duplicated(["cell", "part", "task", "metric", "unit"]).any()
    pivot = done[done.part == "accuracy"].pivot_table(
        index=["method", "seed"], columns=["task", "metric"], values="value"
    )
    for method, values in (("stl", SINGLE_TASK), ("ours", SHARED)):
        for seed in (0, 1):
            for task, scores in of_seed(values, seed).items():
                for metric, value in scores.items():
                    assert pivot.loc[(method, seed), (task, metric)] == value
    keys = {record.key for record in Store(folder).load_all()}
    assert set(frame.cell) == keys


def test_delta_and_direction_are_those_of_the_table(folder: Path) -> None:
    frame = Results(folder).frame()
    ours = frame[(frame.method == "ours") & (frame.seed == 0)]
    delta = ours[ours.metric.str.startswith("Delta_m", na=False)].iloc[0]
    semseg = (100 * (44 / 40 - 1) + 100 * (63 / 60 - 1)) / 2
    depth = (100 * (1 - 0.45 / 0.5) + 100 * (1 - 0.23 / 0.2)) / 2
    assert delta.value == pytest.approx((semseg + depth) / 2)
    assert bool(delta.higher_is_better) is True
    assert bool(ours[ours.metric == "abs_err"].iloc[0].higher_is_better) is False
    assert json.loads(delta.params) == {"k": 2}
    assert {"one-metric"} <= {
        name.split("(")[-1].rstrip(")") for name in Results(folder).frame(variant="one-metric").metric.dropna()
    }


def test_a_cell_that_is_not_done_has_one_line_and_says_why_not(folder: Path) -> None:
    frame = Results(folder).frame()
    broken = frame[frame.method == "broken"]
    assert len(broken) == 1
    assert broken.iloc[0].status == "oom"
    assert math.isnan(broken.iloc[0].value)
    assert not broken.iloc[0].ranked
    assert not Results(folder).all_done


def test_keys_choose_cells_and_missing_ones_are_not_done(folder: Path) -> None:
    records = Store(folder).load_all()
    keys = [record.key for record in records if record.status == "done"][:2]
    chosen = Results(folder, keys)
    assert [record.key for record in chosen.records] == keys
    assert set(chosen.frame().cell) == set(keys)
    assert chosen.all_done
    assert not Results(folder, [*keys, "0" * 32]).all_done
    assert not Results(folder, ["0" * 32]).all_done


def test_the_table_is_the_one_of_report(folder: Path) -> None:
    for form in ("markdown", "csv", "latex", "terminal"):
        assert Results(folder).table(form) == report(folder, format=form)
    with pytest.raises(UsageError, match="holds no records"):
        Results(folder.parent).frame()


def test_a_suite_object_is_run_as_it_is(tmp_path: Path) -> None:
    suite = read_suite(find_suite("quick"))
    with pytest.raises(UsageError, match="run as it is"):
        run_suite(suite, tmp_path, seeds=[0])
    with pytest.raises(UsageError, match="Nearest: 'quick'"):
        run_suite("quik", tmp_path)


def test_choices_are_lists_whose_parts_are_taken_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Unknown method 'single_task,hard_sharing'"):
        run_suite("quick", tmp_path, methods=["single_task,hard_sharing"])
    with pytest.raises(UsageError, match=r"methods='single_task': expected a list, for example \['single_task'\]"):
        run_suite("quick", tmp_path, methods="single_task")
    with pytest.raises(UsageError, match="valid integer"):
        run_suite("quick", tmp_path, seeds=["x"])  # type: ignore[list-item]


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, benchmark, benchmark.api; "
        "print('torch' in sys.modules, 'pandas' in sys.modules, 'pydantic' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == ["False", "False", "False"]
    with pytest.raises(AttributeError, match="no attribute 'run_sweet'"):
        benchmark.run_sweet  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute 'run_sweet'"):
        benchmark.api.run_sweet  # noqa: B018


def test_a_script_needs_no_main_guard(tmp_path: Path, toy_data: Path) -> None:
    """Workers of a script that runs a suite at its top level would run it again, each of them."""
    (tmp_path / "tiny.yaml").write_text(
        f"name: tiny\nplugins: [{toy_data}]\ndata: [toy]\nbackbones: [test_resnet]\n"
        "methods: [hard_sharing]\nseeds: [0]\nbudget: {steps: 2, cycles: 2}\nrecipe: {batch_size: 8}\n",
        encoding="utf-8",
    )
    (tmp_path / "script.py").write_text(
        "print('script')\n"
        "from benchmark import run_suite\n"
        "results = run_suite('tiny.yaml', 'out', jobs=1, speed=False, show=False)\n"
        "print(results.all_done, len(results.records), results.frame().value.notna().sum() > 10)\n",
        encoding="utf-8",
    )
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "script.py"],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["script", "True 1 True"]


def test_rows_that_differ_in_balancing_alone_are_rows_of_their_own(folder: Path) -> None:
    store = Store(folder)
    store.write(
        make_record(
            "ours", 0, of_seed(SHARED, 9), params={"k": 2}, recipe={"balancing": {"name": "pcgrad", "params": {}}}
        )
    )
    frame = Results(folder).frame()
    miou = frame[(frame.method == "ours") & (frame.metric == "miou") & (frame.seed == 0)]
    assert dict(zip(miou.label, miou.value, strict=True)) == {
        "ours": SHARED["semseg"]["miou"],
        "ours + pcgrad": SHARED["semseg"]["miou"] + 9,
    }
    assert miou.cell.nunique() == 2


def test_a_balanced_row_is_found_by_its_label(folder: Path) -> None:
    """Rows are those of the tables: what differs in balancing alone is not the equal row under another name."""
    recipe = {"balancing": {"name": "pcgrad", "params": {}}}
    balanced = Store(folder).write(make_record("ours", 0, of_seed(SHARED, 9), params={"k": 2}, recipe=recipe))
    assert find_record(folder, "ours + pcgrad")[1].key == balanced.key
    assert find_record(folder, "ours")[1].key != balanced.key
