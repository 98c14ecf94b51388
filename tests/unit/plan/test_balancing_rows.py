"""Loss balancing as a dimension of rows: which cells a suite asks for, their keys, and how tables tell them apart."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

import benchmark
from benchmark.api.catalog import describe
from benchmark.plan.cells import PlannedCell, plan
from benchmark.plan.estimate import Estimate, kind_of, total
from benchmark.plan.remarks import missing_reference
from benchmark.plan.role_data import Splits
from benchmark.plan.suite import Suite
from benchmark.plan.suite_file import find_suite, read_suite, suite_names
from benchmark.records.keys import table_key
from benchmark.records.record import Record
from benchmark.records.store import Store
from benchmark.tables.labels import row_labels
from benchmark.tables.table import aggregate
from benchmark.train.cell import RunSettings, _CellRun
from datasets.errors import UsageError
from tests.unit.made_records import make_record

BASE: dict[str, Any] = {
    "name": "tiny",
    "data": [{"dataset": "multi_mnist", "tasks": ["left", "right"]}],
    "backbones": ["test_resnet"],
    "methods": ["single_task", "hard_sharing"],
    "seeds": [0],
    "budget": {"steps": 2, "cycles": 2},
    "recipe": {"batch_size": 16},
}


def cells(**changes: Any) -> list[PlannedCell]:
    return plan(Suite.model_validate({**BASE, **changes}))


def rows(**changes: Any) -> list[str]:
    return [cell.title.split(" · ")[0] for cell in cells(**changes)]


def test_a_list_is_a_row_of_each_and_single_tasks_stand_once() -> None:
    assert rows() == ["single_task", "hard_sharing"]
    balanced = ["single_task", "hard_sharing + pcgrad", "hard_sharing + dwa"]
    assert rows(balancing=["pcgrad", {"name": "dwa", "params": {"temperature": 1.0}}]) == balanced
    assert rows(balancing="pcgrad") == rows(recipe={"batch_size": 16, "balancing": "pcgrad"}) == balanced[:2]
    one_task = [{"dataset": "multi_mnist", "tasks": ["left"]}]
    assert rows(balancing=["equal", "pcgrad"], data=one_task) == ["single_task", "hard_sharing"]


def test_an_entry_s_own_balancing_takes_the_place_of_the_suite_s() -> None:
    entry = {"name": "hard_sharing", "balancing": ["equal", "mgda"]}
    assert rows(methods=["single_task", entry], balancing="pcgrad") == [
        "single_task",
        "hard_sharing",
        "hard_sharing + mgda",
    ]
    swept = {"name": "hard_sharing", "sweep": {"steps_factor": [1.0, 2.0]}, "balancing": ["equal", "mgda"]}
    assert len(rows(methods=[swept])) == 4


def test_keys_of_cells_that_ask_for_nothing_are_as_they_were() -> None:
    """The baseline of the gate was recorded before rows could differ in balancing."""
    file = Path(benchmark.__file__).parent.parent / "results" / "baselines" / "gate.json"
    known = set(json.loads(file.read_text(encoding="utf-8"))["cells"])
    assert {cell.key for cell in plan(read_suite(find_suite("gate")))} == known
    for name in suite_names():
        asked = {cell.recipe.balancing.name for cell in read_suite(find_suite(name)).cells()}
        assert (asked == {"equal"}) == (name != "loss_balancing")


def test_equal_in_any_spelling_is_one_cell_and_others_are_their_own() -> None:
    plain = cells()
    assert [cell.key for cell in cells(balancing="equal")] == [cell.key for cell in plain]
    assert [cell.key for cell in cells(balancing=["equal"])] == [cell.key for cell in plain]
    balanced = cells(balancing=["pcgrad"])
    assert balanced[0].key == plain[0].key  # single tasks
    assert balanced[1].key != plain[1].key
    assert table_key(balanced[1].document) == table_key(plain[1].document)
    assert not missing_reference(balanced)
    spelled = [{"name": "dwa", "params": {"temperature": 2}}]
    assert cells(balancing=spelled)[1].key == cells(balancing="dwa")[1].key


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": [{"name": "single_task", "balancing": "pcgrad"}]}, "'pcgrad': single_task trains each task alone"),
        (
            {
                "methods": [{"name": "hard_sharing", "balancing": ["pcgrad"]}],
                "data": [{"dataset": "multi_mnist", "tasks": ["left"]}],
            },
            "hard_sharing has one task here, so nothing is to be balanced; use 'equal'",
        ),
        (
            {"methods": ["bmtas"], "balancing": ["equal", "uncertainty"]},
            "'uncertainty' cannot act on bmtas: weight_step per_task makes one optimizer step per task; use 'equal'",
        ),
        (
            {"balancing": "mgda", "recipe": {"batch_size": 16, "precision": "amp-fp16"}},
            "'mgda' combines gradients, which precision amp-fp16 scales; use amp-bf16 or fp32, .* 'uncertainty'",
        ),
        ({"balancing": ["UW"]}, "torchjd's UW is called 'uncertainty' here"),
        ({"balancing": ["constant"]}, "needs weights, for example weights: {left: 1.0, right: 1.0}."),
    ],
)
def test_pairs_that_cannot_be_combined_are_refused_when_planned(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        cells(**changes)
    assert "\n" not in str(caught.value)


def test_a_joint_search_step_can_be_balanced() -> None:
    joint = {"name": "bmtas", "params": {"weight_step": "joint"}, "balancing": "uncertainty"}
    assert rows(methods=[joint]) == ["bmtas (weight_step=joint) + uncertainty"]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("balancing: []", [], r"line 5: balancing: .*at least 1 item"),
        ("balancing: [equal, equal]", [], "lists equal twice"),
        ("balancing: {nam: dwa}", [], "unknown key 'balancing.0.nam'. Nearest: name"),
        ("balancing: dwa\nrecipe: {balancing: dwa}", [], "balancing and recipe.balancing are both given"),
        ("", ["balancing"], "expected section.key=value"),
    ],
)
def test_faults_of_a_suite_are_one_line(text: str, options: list[str], message: str, tmp_path: Path) -> None:
    path = tmp_path / "suite.yaml"
    path.write_text(f"name: q\ndata: [a]\nbackbones: [b]\nmethods: [c]\n{text}\n", encoding="utf-8")
    with pytest.raises(UsageError, match=message) as caught:
        read_suite(path, settings=options)
    assert "\n" not in str(caught.value)


def test_the_command_line_sets_it_for_all_methods_or_for_one(tmp_path: Path) -> None:
    path = tmp_path / "suite.yaml"
    path.write_text("name: q\ndata: [a]\nbackbones: [b]\nmethods: [c, d]\nseeds: [0]\n", encoding="utf-8")
    suite = read_suite(path, settings=["balancing=dwa", "d.balancing=[equal, pcgrad]", "d.x=1"])
    found = [(cell.method.name, cell.recipe.balancing.name, cell.method.params) for cell in suite.cells()]
    assert found == [("c", "dwa", {}), ("d", "equal", {"x": 1}), ("d", "pcgrad", {"x": 1})]


@pytest.mark.usefixtures("toy_data")
def test_a_balanced_row_trains_and_shares_its_single_task_networks(tmp_path: Path) -> None:
    _, plain, balanced = cells(data=[{"dataset": "toy", "tasks": ["left", "right"]}], balancing=["equal", "pcgrad"])
    settings = RunSettings(tmp_path)
    run = _CellRun(balanced, settings, Store(tmp_path), Splits(None), lambda progress: None)
    key = run.single_task.key("left")
    run.planned = plain
    assert run.single_task.key("left") == key
    estimates = {kind_of(cell): Estimate(7.0, {"left": 10.0}, None, 0, "probe") for cell in (plain, balanced)}
    assert len(estimates) == 2  # a step of either takes another time
    assert total([plain, balanced], estimates, jobs=1).seconds == pytest.approx(2 * 7 + 10)
    run.planned = balanced
    record = run.run()
    assert record.status == "done"
    assert row_labels([record]) == ["hard_sharing + pcgrad"]


def balanced_record(name: str, seed: int, **params: object) -> Record:
    record = make_record("hard_sharing", seed=seed, shared=True, audit={"non_default_params": {}})
    recipe = {**record.cell["recipe"], "balancing": {"name": name, "params": params}}
    return dataclasses.replace(record, cell={**record.cell, "recipe": recipe})


def test_rows_of_one_table_are_told_apart_by_balancing_and_tested_against_the_equal_one() -> None:
    records = [
        record
        for seed in range(3)
        for record in (
            make_record("single_task", seed=seed, reference=True),
            balanced_record("equal", seed),
            balanced_record("pcgrad", seed),
            balanced_record("dwa", seed, temperature=1.0),
            balanced_record("dwa", seed, temperature=2.0),
        )
    ]
    (table,) = aggregate(records)
    labels = [row.label for row in table.rows]
    assert labels == [
        "single_task",
        "hard_sharing",
        "hard_sharing + dwa (temperature=1.0)",
        "hard_sharing + dwa (temperature=2.0)",
        "hard_sharing + pcgrad",
    ]
    assert table.reference == 1
    assert all(row.n == 3 for row in table.rows)
    (finding,) = [one for one in table.audit.findings if one.field == "balancing"]
    assert (finding.rule, finding.rows) == ("amber", (2, 3, 4))
    assert "hard_sharing + pcgrad: pcgrad" in finding.text


def test_the_ways_to_balance_are_listed_with_their_papers() -> None:
    text = describe("balancing")
    assert text.startswith("Loss balancing")
    assert "pcgrad           aggregator: Yu et al.: Gradient Surgery" in text
    assert "torchjd.scalarization.UW" in describe("uncertainty")
    assert "weights = {task: number}" in describe("constant")
