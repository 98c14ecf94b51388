"""`run --plan` and `run --smoke`: what a suite will take is told from a few steps, and nothing is left behind."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmark.plan.cells import plan
from benchmark.plan.estimate import Estimate, from_record, kind_of, total
from benchmark.plan.suite_file import read_suite
from benchmark.records.record import Record
from benchmark.run import app
from benchmark.tables.labels import DASH
from benchmark.workers.show_plan import duration, size
from methods.contracts import Role, Stage
from methods.plain import parameter_groups, plain_graph, task_losses
from tests.unit.harness import toy_trainer

SUITE = """
name: tiny
plugins: [{toy_data}]
data: [{{dataset: toy, tasks: [left, right]}}]
backbones: [test_resnet]
methods: [single_task, hard_sharing, branched]
seeds: [0]
budget: {{steps: 40, cycles: 4}}
recipe: {{batch_size: 8}}
"""


@pytest.fixture
def suite(tmp_path: Path, toy_data: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(SUITE.format(toy_data=toy_data), encoding="utf-8")
    return path


def record(**cost: object) -> Record:
    return Record(cell={"budget": {"steps": 100, "cycles": 10}}, status="done", cost=cost, reused_from=["ab12"])


def with_network(root: Path, seconds: float) -> Path:
    folder = root / "single_task" / "ab" / "ab12"
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps({"spending": {"seconds": seconds}}), encoding="utf-8")
    return root


def test_a_record_of_another_length_scales_with_the_steps(tmp_path: Path) -> None:
    found = from_record(
        record(search={"seconds": 30.0}, final={"seconds": 10.0}, evaluation_seconds=3.0, io_seconds=1.0),
        with_network(tmp_path, 20.0),
        steps=300,
    )
    assert found.shared == {"ab12": 60.0}
    assert found.seconds == pytest.approx((30 + 10 - 20 + 1) * 3 + 3)  # evaluation is no longer for more steps
    assert found.source == "record"


def test_the_peak_in_evaluation_is_told_apart(tmp_path: Path) -> None:
    found = from_record(record(peak_bytes=9_000, evaluation_peak_bytes=7_000), with_network(tmp_path, 1.0), steps=100)
    assert (found.memory_bytes, found.evaluation_bytes) == (9_000, 7_000)


def test_a_probe_counts_what_was_cut_off_each_stage(tmp_path: Path) -> None:
    """A stage of 20,000 steps that a method brings itself is not scaled by the budget's 100."""
    cost = {"search": {"seconds": 5.0}, "final": {"seconds": 1.0}, "io_seconds": 0.5, "unrun_seconds": 1000.0}
    found = from_record(record(**cost), with_network(tmp_path, 2.0), steps=100, step_limit=10)
    assert found.shared == {"ab12": 20.0}
    assert found.seconds == pytest.approx(5 + 1 - 2 + 0.5 + 1000)
    assert found.source == "probe"


def test_a_limit_cuts_stages_and_the_ledger_says_what_they_would_have_taken(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path)
    trainer.context = dataclasses.replace(trainer.context, step_limit=3)
    graph = plain_graph(trainer.data, trainer.data.task_names, trainer.backbone(), trainer.head)
    losses = task_losses(trainer.data, graph.network())
    for steps in (2, 600):
        stage = Stage("s", graph.network(), steps, Role.FIT, parameter_groups(graph), losses, "search")
        before = trainer.ledger.search.optimizer_steps
        spent = trainer.ledger.search.seconds + trainer.ledger.io_seconds
        trainer.fit(stage)
        spent = trainer.ledger.search.seconds + trainer.ledger.io_seconds - spent
        assert trainer.ledger.search.optimizer_steps - before == min(steps, 3)
        assert trainer.ledger.unrun_seconds == pytest.approx(0.0 if steps == 2 else (600 / 3 - 1) * spent)


def test_a_network_that_several_cells_need_is_counted_once(suite: Path) -> None:
    cells = plan(read_suite(suite))
    estimates = {kind_of(cell): Estimate(7.0, {"left": 10.0, "right": 20.0}, 2_000, 500, "probe") for cell in cells}
    found = total(cells, estimates, jobs=1)
    assert found.seconds == pytest.approx(3 * 7 + 30)
    assert (found.n_networks, found.disk_bytes, found.memory_bytes, found.unknown) == (2, 1500, 2_000, 0)
    assert total(cells, estimates, jobs=2).seconds == pytest.approx(51 / 2)
    assert total(cells, {}, jobs=1).unknown == 3


@pytest.mark.usefixtures("quick_workers")
def test_a_plan_lists_every_cell_and_leaves_nothing_behind(suite: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = CliRunner().invoke(app, [str(suite), "--plan", "--out", str(out)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert not out.exists()
    rows = [line for line in result.output.splitlines() if line.rstrip().endswith("probe")]
    assert len(rows) == 3
    assert all("MB" in row for row in rows)
    assert "in evaluation" in result.output
    assert "3 cells to run" in result.output
    assert "2 single-task networks, each trained once" in result.output
    shown = [line for line in result.output.splitlines() if line.startswith(("[1/3]", "[2/3]", "[3/3]"))]
    assert len(shown) == 3, "twenty minutes of probing must not be silent"
    assert shown[0].startswith("[1/3] single_task")


@pytest.mark.usefixtures("quick_workers")
def test_a_smoke_run_takes_three_steps_a_stage_and_keeps_out_of_the_results(suite: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = CliRunner().invoke(
        app, [str(suite), "--smoke", "--methods", "hard_sharing", "--out", str(out)], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    assert not (out / "records").exists()
    (path,) = (out / "smoke" / "records").rglob("*.json")
    assert json.loads(path.read_text(encoding="utf-8"))["cost"]["final"]["optimizer_steps"] == 3
    again = CliRunner().invoke(app, [str(suite), "--plan", "--no-probe", "--out", str(out)], catch_exceptions=False)
    assert "3 cells to run" in again.output


@pytest.mark.parametrize(("seconds", "text"), [(12, "12 s"), (600, "10 min"), (7200, "2.0 h")])
def test_durations_are_said_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("n_bytes", "text"), [(None, DASH), (1_500_000, "1.5 MB"), (2_300_000_000, "2.3 GB")])
def test_sizes_have_a_decimal_unit(n_bytes: int | None, text: str) -> None:
    assert size(n_bytes) == text


def test_a_long_title_cuts_no_other_column_off(suite: Path, tmp_path: Path) -> None:
    """Without a terminal lines have 120 characters; `to run` once became `t…` beside the titles of trees."""
    text = suite.read_text(encoding="utf-8")
    entry = "{name: branched, params: {granularity: block, budget: 1.75, random_tree: true}}"
    suite.write_text(text.replace("hard_sharing, branched", f"hard_sharing, {entry}"), encoding="utf-8")
    arguments = [str(suite), "--plan", "--no-probe", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.output.count("to run") == 3 + 1  # cells, and the line that counts them
    assert "…" not in result.output


def test_a_plan_asks_for_the_row_that_shows_whether_the_budget_suffices(suite: Path, tmp_path: Path) -> None:
    def asked() -> str:
        arguments = [str(suite), "--plan", "--no-probe", "--out", str(tmp_path)]
        return " ".join(CliRunner().invoke(app, arguments, catch_exceptions=False).output.split())

    assert asked().count("add {name: hard_sharing, params: {steps_factor: 2.0}}") == 1
    entry = "{name: hard_sharing, params: {steps_factor: 2.0}}"
    text = suite.read_text(encoding="utf-8")
    suite.write_text(text.replace("hard_sharing, branched", f"hard_sharing, {entry}, branched"), encoding="utf-8")
    assert "suffice" not in asked()
