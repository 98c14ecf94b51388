"""Floors: fitted on fit and measured on report, once for the data of a table; and the losses of the last fifths."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import benchmark.train.floors
from benchmark.api.reporting import page, report
from benchmark.records.evidence import FLOORS, floors_key_of, read_floors
from benchmark.records.record import Record
from benchmark.train.cell import RunSettings, run_cell
from benchmark.train.floors import floors
from benchmark.train.loaders import RoleSamples
from benchmark.train.stage import StageRun
from datasets.contracts import CachedSamples, DatasetSpec, InputData, Sample, TaskSpec
from datasets.errors import UsageError
from methods.contracts import Role, Stage
from methods.plain import parameter_groups, plain_graph, task_losses
from tests.unit.cells import toy_cells
from tests.unit.harness import toy_spec, toy_trainer

DIGIT = TaskSpec("digit", "class", 3, ("accuracy",))
AGE = TaskSpec("age", "scalar", 1, ("abs_err", "mse"))


class Listed(InputData):
    """Labels alone; an image is never asked for."""

    def __init__(self, spec: DatasetSpec, targets: dict[str, Tensor], cached: bool) -> None:
        self.spec, self.targets, self._cached = spec, targets, cached
        self.ids = self.units = [str(number) for number in range(len(next(iter(targets.values()))))]

    def sample(self, row: int) -> Sample:
        raise AssertionError("an image was read")

    def labels(self, row: int) -> dict[str, Tensor]:
        return {task: values[row] for task, values in self.targets.items()}

    def cached(self) -> CachedSamples | None:
        images = torch.zeros(len(self), 1, 1, 1, dtype=torch.uint8)
        return CachedSamples(images, self.targets) if self._cached else None

    def content_hash(self) -> str:
        return "listed"


def spec_of(*tasks: TaskSpec) -> DatasetSpec:
    return dataclasses.replace(toy_spec(), tasks=tasks)


def floors_of(task: TaskSpec, fit: Tensor, report: Tensor, cached: bool = True) -> dict[str, tuple[str, float | None]]:
    spec = spec_of(task)
    parts = [
        {"image": RoleSamples(Listed(spec, {task.name: labels}, cached), np.arange(len(labels)))}
        for labels in (fit, report)
    ]
    found, n_fit = floors(spec, *parts)
    assert n_fit == {task.name: min(len(fit), benchmark.train.floors.MAX_FIT) if not cached else len(fit)}
    return {floor.metric: (floor.constant, floor.value) for floor in found[task.name]}


@pytest.mark.parametrize("cached", [True, False])
def test_a_constant_is_fitted_on_fit_never_on_report(cached: bool) -> None:
    """Class 1 is the majority of fit, class 2 that of report."""
    found = floors_of(DIGIT, torch.tensor([1, 1, 1, 2]), torch.tensor([2, 2, 2, 1]), cached)
    assert found == {"accuracy": ("class 1", 25.0)}


def test_what_is_best_for_a_metric_is_chosen_on_fit_too() -> None:
    """On fit the median is best for the absolute and the mean for the squared error; on report it is the reverse."""
    fit, report = torch.tensor([0.0, 0.0, 9.0]), torch.tensor([3.0, 3.0, 0.0, 0.0, 0.0])
    found = floors_of(AGE, fit, report)
    assert found == {"abs_err": ("the median", pytest.approx(6 / 5)), "mse": ("the mean", pytest.approx(27 / 5))}


def test_of_many_files_a_part_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark.train.floors, "MAX_FIT", 5)
    found = floors_of(DIGIT, torch.tensor([0] * 50 + [1] * 40), torch.tensor([0, 1]), cached=False)
    assert found == {"accuracy": ("class 0", 50.0)}


def trained(folder: Path, **changes: object) -> list[Record]:
    return [run_cell(cell, RunSettings(folder)) for cell in toy_cells(**changes)]


@pytest.mark.usefixtures("toy_data")
def test_the_first_cell_of_a_table_leaves_its_floors_and_the_others_find_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    original = benchmark.train.floors.floors
    monkeypatch.setattr(benchmark.train.floors, "floors", lambda *given: asked.append(1) or original(*given))
    records = trained(tmp_path / "run", seeds=[0, 1])
    assert all(record.status == "done" for record in records)
    assert len(records) == 4
    assert len(asked) == 1
    (path,) = (tmp_path / "run" / FLOORS).glob("*.json")
    assert {floors_key_of(record) for record in records} == {path.stem}
    found = read_floors(tmp_path / "run", path.stem)
    assert found is not None
    assert [(floor.metric, floor.value) for floor in found.tasks["left"]] == [("accuracy", 40.0)]
    shutil.copytree(tmp_path / "run", tmp_path / "copy")  # a floor travels with the records
    for form, line in (
        ("markdown", "| constant prediction |  | 40.00 | "),
        ("csv", ",constant prediction,,left,accuracy,"),
    ):
        assert line in report(tmp_path / "copy", format=form)
    last = [line for line in report(tmp_path / "copy").splitlines() if line.startswith("constant prediction")]
    assert len(last) == 1
    assert "constant prediction" in report(tmp_path / "copy", format="latex")
    assert "<tfoot>" in page(tmp_path / "copy")


@pytest.mark.usefixtures("toy_data")
def test_a_file_that_cannot_be_trusted_is_said_and_written_anew(tmp_path: Path) -> None:
    trained(tmp_path, methods=["hard_sharing"])
    (path,) = (tmp_path / FLOORS).glob("*.json")
    whole = path.read_bytes()
    for bad in (b"{", b'{"schema":1}', whole.replace(b"40.0", b'"high"'), whole.replace(b"40.0", b"1e200")):
        path.write_bytes(bad)
        text = report(tmp_path, format="markdown")
        assert "constant prediction" not in text
        assert f"floors/{path.name}" in text.replace("\\", "")
    path.rename(path.with_name(f"{'0' * 32}.json"))
    assert "constant prediction" not in report(tmp_path)  # a folder of before floors
    path.with_name(f"{'0' * 32}.json").write_bytes(whole)
    with pytest.raises(UsageError, match="floors/0000"):
        read_floors(tmp_path, "0" * 32)
    path.write_bytes(b"{")
    trained(tmp_path, methods=["single_task"])
    assert path.read_bytes() == whole


@pytest.mark.usefixtures("toy_data")
def test_inputs_of_their_own_have_floors_of_their_own(tmp_path: Path) -> None:
    cells = toy_cells(multi=True, methods=["hard_sharing"])
    record = run_cell(cells[0], RunSettings(tmp_path))
    found = read_floors(tmp_path, floors_key_of(record))
    assert found is not None
    assert {task: floors[0].value for task, floors in found.tasks.items()} == {"left": 40.0, "right": 60.0}


@pytest.mark.usefixtures("toy_data")
def test_a_record_keeps_the_losses_of_the_last_two_fifths(tmp_path: Path) -> None:
    """Ten steps in ten cycles of one: a curve then holds the loss of each step."""
    for record in trained(tmp_path, budget={"steps": 10, "cycles": 10}):
        for task in ("left", "right"):
            losses = record.curves[f"loss/{task}"]
            expected = [np.mean(losses[6:8]), np.mean(losses[8:10])]
            assert record.audit["last_fifths"][task] == pytest.approx(expected), record.method
    summaries = list((tmp_path / "single_task").rglob("summary.json"))
    assert all(len(json.loads(path.read_text())["last_fifths"]) == 2 for path in summaries)


def test_steps_without_a_label_take_no_part_in_the_last_fifths(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path)
    graph = plain_graph(trainer.data, trainer.data.task_names, trainer.backbone(), trainer.head)
    losses = task_losses(trainer.data, graph.network())
    run = StageRun(Stage("s", graph.network(), 10, Role.FIT, parameter_groups(graph), losses, "final"), trainer.context)
    run.loss[:, 0] = torch.arange(10.0)
    run.present[:, 0] = [True] * 9 + [False]
    assert run.last_fifths()["a"] == [6.5, 8.0]
    assert all(np.isnan(run.last_fifths()["b"]))
