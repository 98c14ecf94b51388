"""What changed between two runs: doctored copies of one set of records."""

from __future__ import annotations

import csv
import dataclasses
import io
from pathlib import Path
from typing import Any

import pytest

from benchmark.api.reporting import compare_runs
from benchmark.compare.difference import Change, difference, lines, render_difference
from benchmark.records.record import Record
from benchmark.records.store import Store
from datasets.errors import UsageError
from tests.unit.records import make_record


def run() -> list[Record]:
    """Two methods at two seeds, each with a result hash as the store writes it."""
    methods = (("single_task", True), ("hard_sharing", False))
    made = [make_record(name, seed, reference=first) for name, first in methods for seed in (0, 1)]
    return [dataclasses.replace(record, result_hash=f"{number:064x}") for number, record in enumerate(made)]


def changed(record: Record, **fields: Any) -> Record:
    return dataclasses.replace(record, **fields)


def test_a_run_against_itself() -> None:
    found = difference(run(), run())
    assert found.summary == "4 cells identical, 0 changed, 0 unpaired"
    assert list(lines(found)) == [found.summary]


def test_another_metric_under_other_code_is_a_change_with_its_reason() -> None:
    new = run()
    metrics = {**new[3].metrics, "semseg": {**new[3].metrics["semseg"]}}
    metrics["semseg"]["miou"] = {**metrics["semseg"]["miou"], "value": 45.5}
    versions = {**new[3].versions, "method_hash": "f" * 64, "torch": "2.7.0"}
    new[3] = changed(new[3], metrics=metrics, versions=versions, result_hash="e" * 64)
    found = difference(run(), new)
    assert found.summary == "3 cells identical, 1 changed, 0 unpaired"
    (cell,) = (cell for cell in found.cells if cell.changes)
    assert cell.changes == (Change("semseg miou", 44.0, 45.5),)
    assert cell.changes[0].difference == 1.5
    assert not cell.unexplained
    assert {change.what for change in found.versions} == {"torch", "code of hard_sharing"}
    assert any("semseg miou: 44 -> 45.5 (+1.5)" in line for line in lines(found))


@pytest.mark.parametrize("form", ["terminal", "markdown", "csv"])
def test_another_result_of_the_same_code_is_prominent(form: str) -> None:
    new = run()
    new[2] = changed(new[2], result_hash="e" * 64)  # metrics are equal, weights are not
    found = difference(run(), new)
    assert found.summary.endswith("; 1 without a reason in code, versions or settings")
    text = render_difference(found, form)
    assert ("unexplained" if form == "csv" else "same code, versions and settings, other result") in text.replace(
        "\\", ""
    )
    assert "result_hash" in text.replace("\\", "")


def test_unpaired_cells_say_how_they_differ_from_the_nearest() -> None:
    old = [*run(), make_record("adashare", 0)]
    longer = [make_record("hard_sharing", seed, budget={"steps": 200}) for seed in (0, 1)]
    new = [*run()[:2], *longer, make_record("single_task", 2, reference=True)]
    found = difference(old, new)
    assert found.summary == "2 cells identical, 0 changed, 6 unpaired"
    reasons = {(one.title.split(" · ")[0], one.only_in): one.nearest for one in found.unpaired}
    assert reasons["hard_sharing", "old"] == (Change("budget.steps", 100, 200),)
    assert reasons["hard_sharing", "new"] == (Change("budget.steps", 100, 200),)
    assert [change.what for change in reasons["single_task", "new"]] == ["seed"]
    (alone,) = (one for one in found.unpaired if one.title.startswith("adashare"))
    assert (alone.beside, alone.nearest) == ("", ())
    assert any("the other run has no cell of its method" in line for line in lines(found))


def test_status_size_and_graph_are_compared() -> None:
    new = run()
    failed = {"kind": "CellError", "message": "loss is NaN", "stage": "joint", "step": 3, "task": None}
    new[1] = changed(new[1], status="diverged", error=failed)
    new[2] = changed(new[2], size={**new[2].size, "total": 123}, graph={**new[2].graph, "hash": "h" * 64})
    whats = {change.what for cell in difference(run(), new).cells for change in cell.changes}
    assert {"status", "size.total", "graph.hash"} <= whats


def test_csv_has_a_row_for_every_cell() -> None:
    new = [*run()[:3], make_record("hard_sharing", 5)]
    rows = list(csv.DictReader(io.StringIO(render_difference(difference(run(), new), "csv"))))
    assert [row["state"] for row in rows].count("identical") == 3
    (lost,) = (row for row in rows if row["state"] == "only in the old run")
    assert (lost["what"], lost["old"], lost["new"], lost["difference"]) == ("seed", "1", "5", "4.0")


def test_the_command_compares_two_folders(tmp_path: Path) -> None:
    for name, made in (("old", run()), ("new", run()[:3])):
        for record in made:
            Store(tmp_path / name).write(record)
    text = compare_runs(tmp_path / "new", tmp_path / "old")
    assert text.startswith("3 cells identical, 0 changed, 1 unpaired")
    with pytest.raises(UsageError, match="holds no records"):
        compare_runs(tmp_path / "new", tmp_path)
