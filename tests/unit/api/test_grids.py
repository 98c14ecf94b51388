"""A grid of methods, data and backbones: what has no form in a cell is left out with the reason; the rest runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from benchmark.plan.cells import plan, plan_grid
from benchmark.plan.suite_file import SuiteChoices, read_suite, select
from benchmark.records.evidence import read_misfits, write_misfits
from benchmark.report import app as report
from benchmark.run import app as run
from datasets.errors import UsageError
from methods.registry import get_method

SUITE = """
name: grid
plugins: [{toy_data}]
data: [{{dataset: toy, tasks: [left, right]}}]
backbones: [{backbones}]
methods: [{methods}]
seeds: [0, 1]
budget: {{steps: 2, cycles: 2}}
recipe: {{batch_size: 8}}
"""
WHY = "Method 'mtan' on 'toy', 'test_efficientnet': Stage "


@pytest.fixture
def grid(tmp_path: Path, toy_data: Path) -> Path:
    return written(tmp_path, toy_data, "single_task, hard_sharing, mtan", "test_efficientnet")


def written(folder: Path, toy_data: Path, methods: str, backbones: str) -> Path:
    path = folder / "grid.yaml"
    path.write_text(SUITE.format(toy_data=toy_data, methods=methods, backbones=backbones), encoding="utf-8")
    return path


def command(*arguments: str | Path) -> Result:
    return CliRunner().invoke(run, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.mark.usefixtures("quick_workers")
def test_a_row_without_a_form_is_said_everywhere_and_the_rest_runs(grid: Path, tmp_path: Path) -> None:
    planned = command(grid, "--plan", "--no-probe")
    assert planned.exit_code == 0, planned.output
    assert planned.stdout.count("does not apply: mtan · toy · test_efficientnet: " + WHY) == 1
    assert "mtan · toy · test_efficientnet · seed" not in planned.stdout
    out = tmp_path / "out"
    result = command(grid, "--out", out, "--no-speed", "--seeds", "0")
    assert result.exit_code == 0, result.output
    assert "[2/2]" in result.stdout
    assert "does not apply (see the notes): mtan" in " ".join(result.stdout.split())
    for form in ("terminal", "markdown"):
        shown = CliRunner().invoke(report, [str(out), "--full", "--format", form]).stdout.replace("\\_", "_")
        assert "does not apply: mtan · toy · test_efficientnet: " + WHY in " ".join(shown.split())
    assert "does not apply: mtan" in (out / "report.html").read_text(encoding="utf-8")


def test_asked_for_alone_it_is_an_error(tmp_path: Path, toy_data: Path, grid: Path) -> None:
    alone = written(tmp_path, toy_data, "mtan", "test_efficientnet")
    result = command(alone, "--plan", "--no-probe")
    assert result.exit_code == 2
    assert result.output.startswith(f"error: {WHY}")
    with pytest.raises(UsageError, match="mtan"):
        plan(read_suite(written(tmp_path, toy_data, "single_task, mtan", "test_efficientnet")))


def test_parameters_that_fit_nowhere_are_a_mistake_and_elsewhere_a_grid(tmp_path: Path, toy_data: Path) -> None:
    wrong = "single_task, {name: dag_search, params: {flow_constant: 5}}"
    with pytest.raises(UsageError, match="flow_constant is 5; backbone 'test_resnet' has 5 states"):
        plan_grid(read_suite(written(tmp_path, toy_data, wrong, "test_resnet")))
    both = plan_grid(read_suite(written(tmp_path, toy_data, wrong, "test_efficientnet, test_resnet")))
    assert {(cell.settings.method.name, cell.settings.backbone.name) for cell in both.cells} == {
        ("single_task", "test_efficientnet"),
        ("single_task", "test_resnet"),
        ("dag_search", "test_efficientnet"),
    }
    assert [misfit.title for misfit in both.misfits] == ["dag_search (flow_constant=5) · toy · test_resnet"]


def test_a_method_that_needs_every_label_is_left_out_on_data_whose_tasks_have_images_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(get_method("dag_search"), "needs_all_labels", True)
    suite = select("quick", SuiteChoices(methods=["single_task", "hard_sharing", "dag_search"]))
    data = suite.data[0].model_copy(update={"dataset": "mnist_two_domains", "tasks": None, "options": {}})
    planned = plan_grid(suite.model_copy(update={"data": (data,)}))
    assert {cell.settings.method.name for cell in planned.cells} == {"single_task", "hard_sharing"}
    (misfit,) = planned.misfits
    assert "It needs every label on one image; 'mnist_two_domains' gives each task its own images." in misfit.why


def test_what_is_noted_stays_until_the_row_fits(tmp_path: Path) -> None:
    table, other = "a" * 12, "b" * 12
    write_misfits(tmp_path, [(table, "mtan · x", "why"), (other, "mtan · y", "so")], {"single_task · x"})
    write_misfits(tmp_path, [(table, "taps · x", "too")], {"mtan · y"})
    found, problems = read_misfits(tmp_path)
    assert found == {table: {"mtan · x": "why", "taps · x": "too"}, other: {}}
    assert problems == ()
    (tmp_path / "misfits" / f"{table}.json").write_text("{", encoding="utf-8")
    found, problems = read_misfits(tmp_path)
    assert found == {other: {}}
    assert len(problems) == 1
    assert f"misfits/{table}.json" in problems[0]
