"""Equal tuning: what is tried for a row, what is chosen, and how a suite takes it from a page."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import Field

from benchmark.plan.cells import PlannedCell, plan, resolve
from benchmark.plan.own_rows import plan_with_own_rows
from benchmark.plan.suite import Suite
from benchmark.plan.tuned_page import LR_FACTOR, ReadPage, TunedPage, read_page, row_hash
from benchmark.plan.tuning import LR_FACTORS, TUNING_SEED, TunableRow, TuningTable, suite_of_trials, tables_of
from benchmark.records.keys import table_key
from benchmark.records.record import Record
from datasets.errors import UsageError
from methods import MethodParams, Tuned
from methods.operating import StuckNote
from methods.registry import get_method, method_names
from tests.unit.made_records import metrics, spending

pytestmark = pytest.mark.usefixtures("toy_data")
OPTIMIZER = {"lr": 0.1, "head_lr": 0.2}


def suite(**changes: Any) -> Suite:
    document: dict[str, Any] = {
        "name": "tiny",
        "data": [{"dataset": "toy", "tasks": ["left", "right"]}],
        "backbones": ["test_resnet"],
        "methods": ["single_task", "hard_sharing", "dag_search"],
        "seeds": [0],
        "budget": {"steps": 6, "cycles": 3},
        "recipe": {"batch_size": 16, "optimizer": OPTIMIZER},
    }
    return Suite.model_validate({**document, **changes})


def table(trials: int = 5, **changes: Any) -> TuningTable:
    (found,) = tables_of(plan(suite_of_trials(suite(**changes))), trials)
    return found


def row(name: str, trials: int = 5, **params: Any) -> TunableRow:
    found = table(trials, methods=["single_task", {"name": name, "params": params}])
    return found.rows[0] if found.rows else found.reference


# what is tried


@pytest.mark.parametrize("name", method_names())
def test_the_ranges_of_a_method_hold_its_defaults(name: str) -> None:
    params = get_method(name).Params
    for field, mark in params.tuned().items():
        default = params.model_fields[field].get_default()
        assert default is None or mark.low <= default <= mark.high, field
        for value in (mark.low, mark.high):
            assert getattr(params(**{field: value}), field) == value


def test_a_method_marks_two_parameters_at_most() -> None:
    class Greedy(MethodParams):
        a: Annotated[float, Tuned(0.1, 1)] = 0.5
        b: Annotated[float | None, Field(gt=0), Tuned(0.1, 1)] = None
        c: Annotated[float, Tuned(0, 1, log=False)] = 0.5

    with pytest.raises(TypeError, match="Greedy marks a, b, c as Tuned; expected at most 2"):
        Greedy.tuned()
    with pytest.raises(ValueError, match="expected low < high, above 0 with log"):
        Tuned(0, 1)


def test_the_suites_own_setting_comes_first_and_all_learning_rates_are_tried() -> None:
    found = row("dag_search").settings
    own = get_method("dag_search").Params()
    assert found[0] == {LR_FACTOR: 1.0, "squeeze_weight": own.squeeze_weight, "gate_lr": own.gate_lr}
    assert len(found) == 5
    assert {setting[LR_FACTOR] for setting in found[1:]} == set(LR_FACTORS)
    assert all(1e-3 <= setting["gate_lr"] <= 1e-1 for setting in found[1:])
    assert len({tuple(setting.values()) for setting in found}) == 5
    assert row("dag_search").settings == found  # drawn from names, so the same at every start
    assert row("dag_search", 7).settings[:5] == found
    assert row("dag_search", reinit=True).settings[1:] != found[1:]
    assert [len(row("dag_search", trials).settings) for trials in (1, 2)] == [1, 2]


def test_rates_at_which_a_search_cannot_leave_its_start_are_not_tried() -> None:
    """Where gates could not move, tuning would choose a network without a search and call it the method's best."""
    for name, rate in (("dag_search", "gate_lr"), ("adashare", "lr_logits"), ("bmtas", "lr_arch")):
        methods = ["single_task", name]
        found = table(9, methods=methods, budget={"steps": 500, "cycles": 10}).rows[0]
        assert len(found.settings) == 9
        for setting in found.settings:
            trial = found.trial(setting, {"left": 1.0, "right": 1.0})
            params = trial.settings.method.params
            noted = table(
                1, methods=["single_task", {"name": name, "params": params}], budget=dict(trial.document["budget"])
            )
            assert not any(isinstance(note, StuckNote) for note in noted.rows[0].cell.notes), setting[rate]
        assert [setting[LR_FACTOR] for setting in found.settings[1:]] == [1 / 3, 3.0, 1.0, 1 / 3, 3.0, 1.0, 1 / 3, 3.0]
        short = table(9, methods=methods).rows[0]  # of six steps: no rate of the range suffices, so any is tried
        assert len(short.settings) == 9


def test_a_tiny_space_is_tried_whole_and_nothing_twice() -> None:
    assert [setting[LR_FACTOR] for setting in row("hard_sharing").settings] == [1.0, 1 / 3, 3.0]
    assert [setting[LR_FACTOR] for setting in row("hard_sharing", 2).settings] == [1.0, 1 / 3]


def test_what_the_suite_sets_is_not_tuned() -> None:
    assert set(row("dag_search", gate_lr=0.1).space) == {"squeeze_weight"}
    assert set(row("dag_search", gate_lr=0.1, squeeze_weight=0.1).space) == set()


def test_a_trial_is_a_cell_of_its_own() -> None:
    found = row("dag_search")
    setting = {LR_FACTOR: 3.0, "squeeze_weight": 0.01, "gate_lr": 0.05}
    trial = found.trial(setting, {"left": 1.0, "right": 3.0})
    assert trial.settings.seed == TUNING_SEED
    assert trial.document["part"] == "tune"
    assert trial.document["tuned"] == {"seed": TUNING_SEED, "single_task": {"left": 1.0, "right": 3.0}}
    assert trial.document["method"]["lr_factor"] == 3.0
    assert (trial.document["method"]["params"]["gate_lr"], trial.settings.method.params) == (0.05, {"gate_lr": 0.05})
    assert trial.table_key != found.cell.table_key
    assert trial.title == "dag_search (gate_lr=0.05) lr x 3 · toy · test_resnet · seed 1000"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": [0, TUNING_SEED]}, "reports seed 1000, which is that of every tuning"),
        ({"selection": {"select_on": "test"}}, "never chooses on test images"),
        ({"methods": ["hard_sharing"]}, "expected one row of these on toy on test_resnet, not 0"),
    ],
)
def test_what_cannot_be_tuned_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        table(**changes)


# what is chosen


def made(cell: PlannedCell, left: float, right: float, status: str = "done") -> Record:
    selected = {"step": 6, "metrics": metrics({"left": {"accuracy": left}, "right": {"accuracy": right}})}
    cost = {"search": spending(2, 1.0), "final": spending(6, 1.0)}
    return Record(cell=cell.document, status=status, selected=selected, cost=cost)


def page_of(found: TuningTable) -> TunedPage:
    """Single-task: x 1/3 is best for `left`, x 1 for `right`, x 3 diverged. hard_sharing: x 3 is best."""
    cells = found.reference_trials()
    values = [(50.0, 80.0, "done"), (60.0, 40.0, "done"), (99.0, 99.0, "diverged")]
    records = {cell.key: made(cell, *value) for cell, value in zip(cells, values, strict=True)}
    reference, baseline = found.tuned_reference(records)
    trials = found.trials(reference.factors)
    for cells in trials.values():
        values = [(60.0, 80.0, "done"), (30.0, 40.0, "done"), (66.0, 80.0, "done"), *[(60.0, 80.0, "done")] * 2]
        records.update({cell.key: made(cell, *value) for cell, value in zip(cells, values, strict=False)})
    rows = list(found.tuned_rows(trials, records, baseline))
    return TunedPage(suite="tiny", seed=TUNING_SEED, versions={}, tables=(found.page(reference, rows),))


def test_single_task_is_tuned_task_by_task_and_judges_the_others() -> None:
    (tuned,) = page_of(table()).tables
    assert tuned.single_task.chosen == {"left": 1 / 3, "right": 1.0}
    assert tuned.single_task.edges == ("left",)
    assert [tried.scores for tried in tuned.single_task.tried] == [
        {"left": 0.0, "right": 0.0},
        {"left": 20.0, "right": -50.0},
        {"left": None, "right": None},
    ]
    assert tuned.single_task.steps == 3 * 8
    shared = next(row for row in tuned.rows if row.title.startswith("hard_sharing"))
    assert (shared.chosen, shared.edges, shared.trials, len(shared.tried)) == ({LR_FACTOR: 3.0}, (LR_FACTOR,), 5, 3)
    # Over 60 and 80: (0 + 0) / 2, (-50 - 50) / 2, (10 + 0) / 2.
    assert [tried.scores["delta_m"] for tried in shared.tried] == pytest.approx([0.0, -50.0, 5.0])
    summary = "lr_factor 3 (3 of 5 trials, scores -50.00 to +5.00 %, at the edge of its range: lr_factor)"
    assert shared.summary() == summary


def test_of_equal_trials_the_first_is_chosen_and_an_edge_is_a_tenth_of_the_range() -> None:
    found = row("dag_search")
    assert found.edges({LR_FACTOR: 1.0, "gate_lr": 0.001, "squeeze_weight": 0.01}) == ["gate_lr"]
    assert found.edges({LR_FACTOR: 1 / 3, "gate_lr": 0.07, "squeeze_weight": 0.05}) == [LR_FACTOR, "gate_lr"]
    assert found.edges({LR_FACTOR: 1.0, "gate_lr": None, "squeeze_weight": 0.05}) == []
    only = table(methods=["single_task", "hard_sharing"])
    cells = only.reference_trials()
    reference, _ = only.tuned_reference({cell.key: made(cell, 50.0, 50.0) for cell in cells})
    assert reference.chosen == {"left": 1.0, "right": 1.0}


def test_a_row_without_any_score_is_named() -> None:
    found = table(methods=["single_task", "hard_sharing"])
    records = {cell.key: made(cell, 0.0, 50.0) for cell in found.reference_trials()}
    with pytest.raises(UsageError, match="no trial has a score of left"):
        found.tuned_reference(records)


CONTROL = {"name": "dag_search", "params": {"reduction": {"score": "random"}}}


def test_a_control_takes_what_was_chosen_for_its_search() -> None:
    """Under other settings it would draw architectures of another size than those that it stands beside."""
    found = table(methods=["single_task", CONTROL, "hard_sharing", "dag_search"])
    assert [len(row.settings) for row in found.rows] == [0, 3, 5]
    control, _, search = page_of(found).tables[0].rows
    assert (control.chosen, control.trials, control.steps, control.tried) == (
        search.chosen, search.trials, search.steps, search.tried,
    )  # fmt: skip
    assert control.settings_of == search.title
    assert control.row != search.row
    assert control.title.startswith("dag_search (reduction.score=random)")
    assert control.summary().endswith(f"(the control of {search.title}, whose settings it takes)")


def test_a_control_keeps_what_the_suite_sets_for_it(tmp_path: Path) -> None:
    given = {**CONTROL, "params": {**CONTROL["params"], "squeeze_weight": 0.5}}
    methods = ["single_task", "hard_sharing", "dag_search", given]
    page = page_of(table(methods=methods))
    assert set(page.tables[0].rows[2].chosen) == {LR_FACTOR, "gate_lr"}
    path = tmp_path / "tuned.yaml"
    path.write_text(page.text(), encoding="utf-8")
    search, control = plan(suite(tuned=str(path), methods=methods))[2:]
    ours, theirs = (cell.document["method"]["params"] for cell in (control, search))
    assert ours["squeeze_weight"] == 0.5
    assert ours["gate_lr"] == theirs["gate_lr"] == row("dag_search").settings[2]["gate_lr"]


@pytest.mark.parametrize(
    "methods",
    [
        [CONTROL],
        [CONTROL, {"name": "dag_search", "params": {"kappa": 2}}, {"name": "dag_search", "params": {"kappa": 3}}],
        ["random_tree"],
    ],
)
def test_a_control_without_a_search_that_is_certainly_its_own_is_tuned_itself(methods: list[Any]) -> None:
    first = table(methods=["single_task", *methods]).rows[0]
    assert first.search is None
    assert len(first.settings) >= 3


# what a suite takes


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tuned.yaml"
    path.write_text(page_of(table()).text(), encoding="utf-8")
    return path


def test_a_page_is_read_as_it_was_written(file: Path) -> None:
    assert read_page(file) == ReadPage(file, page_of(table()))


def test_hashes_of_digits_alone_stay_texts(tmp_path: Path) -> None:
    page = page_of(table())
    page = page.model_copy(update={"tables": (page.tables[0].model_copy(update={"table": "089123456789"}),)})
    (tmp_path / "tuned.yaml").write_text(page.text(), encoding="utf-8")
    assert read_page(tmp_path / "tuned.yaml").page == page


def test_a_tuned_suite_trains_by_its_page(file: Path) -> None:
    untuned, tuned = plan(suite()), plan(suite(tuned=str(file)))
    assert [cell.settings.method.name for cell in tuned] == [cell.settings.method.name for cell in untuned]
    single, shared, search = tuned
    assert single.settings.tuning.single_task == shared.settings.tuning.single_task == {"left": 1 / 3, "right": 1.0}
    assert "lr_factor" not in single.document["method"]
    assert shared.document["method"] == {**untuned[1].document["method"], "lr_factor": 3.0}
    recipe = shared.settings.recipe.scaled(shared.settings.lr_factor)
    assert (recipe.optimizer.lr, recipe.optimizer.head_lr) == pytest.approx((0.3, 0.6))
    setting = row("dag_search").settings[2]
    assert search.document["method"]["params"]["gate_lr"] == setting["gate_lr"]
    assert search.settings.tuning.trials == 5
    assert {cell.table_key for cell in tuned} & {cell.table_key for cell in untuned} == set()
    assert len({cell.table_key for cell in tuned}) == 1


def test_cells_without_tuning_keep_their_keys() -> None:
    for cell in plan(suite()):
        assert set(cell.document) == {
            *("method", "data", "backbone", "head", "recipe", "selection", "budget", "seed"),
        }
        assert set(cell.document["method"]) == {"name", "params"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": [0, TUNING_SEED]}, r"tuned at seed 1000, which this suite reports"),
        ({"methods": ["single_task", "adashare"]}, "the row 'adashare' was not tuned"),
        ({"methods": ["single_task", {"name": "dag_search", "params": {"kappa": 2}}]}, "'kappa': 2}"),
        ({"budget": {"steps": 7, "cycles": 3}}, "was made for toy on test_resnet, 6 steps"),
        ({"recipe": {"batch_size": 8}}, "was made for toy on test_resnet"),
    ],
)
def test_a_page_of_something_else_is_refused(file: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan(suite(tuned=str(file), **changes))


def test_a_row_of_ones_own_stands_beside_tuned_rows_as_the_suite_has_it(file: Path) -> None:
    """Its table is that of the others, whose tuned single-task networks it is compared with and takes over."""
    names = ["single_task", "dag_search", {"name": "dag_search", "params": {"kappa": 2}}, "adashare"]
    before = sorted(file.parent.iterdir())
    planned, lines = plan_with_own_rows(suite(tuned=str(file), methods=names, seeds=[0, 1]))
    cells = planned.cells
    assert sorted(file.parent.iterdir()) == before
    assert len({cell.table_key for cell in cells}) == 1
    search, *own = [cell.settings.tuning for cell in cells if cell.settings.seed == 0 and not cell.is_reference]
    by_page = {cell.settings.method.name: cell.settings.tuning for cell in plan(suite(tuned=str(file)))}
    assert search == by_page["dag_search"]
    for tuning in own:
        assert (tuning.trials, tuning.lr_factor, tuning.chosen, tuning.steps) == (1, 1.0, {}, 0)
        assert tuning.single_task == search.single_task
    assert [line.split(" is not in ")[0] for line in lines] == [
        "dag_search (kappa=2) · toy · test_resnet",
        "adashare · toy · test_resnet",
    ]
    assert "python -m benchmark.tune tiny --methods single_task,adashare, then run with --tuned" in lines[1]
    with pytest.raises(UsageError, match="was made for toy on test_resnet, 6 steps"):
        plan_with_own_rows(suite(tuned=str(file), budget={"steps": 7, "cycles": 3}))


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "cannot be read"), ("[1]", "not a page"), ("a: 1", "not a page"), ("a: [", "not valid YAML")],
)
def test_what_is_no_page_is_said(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "page.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=message):
        plan(suite(tuned=str(tmp_path / "page.yaml")))


def test_a_row_is_known_by_method_and_balancing_not_by_seed() -> None:
    cell = plan(suite())[1]
    again = resolve(cell.settings.model_copy(update={"seed": 5}))
    assert row_hash(again.document) == row_hash(cell.document)
    assert table_key(again.document) == cell.table_key
    assert dataclasses.replace(cell).key == cell.key
