"""Delta_m along a parameter: which rows make one line, where its points stand, what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmark.records.record import Record
from benchmark.records.store import Store
from benchmark.report import app
from benchmark.show.curves import Curve, curves, draw_curves
from benchmark.tables.folder import tables_of
from benchmark.tables.table import Table
from datasets.errors import UsageError
from tests.unit.made_records import SINGLE_TASK, make_record


def record(
    method: str,
    seed: int,
    params: dict[str, object],
    scale: float,
    facts: dict[str, float],
    tuned: tuple[str, ...] = (),
) -> Record:
    """Delta_m is 100 (scale - 1): metrics of semseg are better when higher, those of depth when lower. tuned: names of
    the parameters that a tuning chose.
    """
    factors = {"semseg": scale, "depth": 2 - scale}
    values = {t: {name: factors[t] * value for name, value in one.items()} for t, one in SINGLE_TASK.items()}
    made = make_record(method, seed, values, params=params)
    told = {name: {"value": value, "unit": ""} for name, value in facts.items()}
    tuning = {"chosen": {name: params[name] for name in tuned}, "tried": 5, "edges": [], "scores": []}
    return dataclasses.replace(made, audit={**made.audit, "facts": told, "tuning": tuning})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A method of two parts that differ in `how.score`; `span` grows from 1 to 10, `rate` is what a tuning chose, now a
    number and now the default, null.
    """
    root = tmp_path_factory.mktemp("sweep")
    store = Store(root)
    for seed in range(3):
        store.write(make_record("single_task", seed, reference=True))
        for score, step in (("flow", 0.01), ("random", -0.01)):
            for span in (10, 1, 2):
                params = {"span": span, "how": {"score": score}, "rate": None if span == 2 else 0.1 * span}
                store.write(record("searcher", seed, params, 1 + step * span, {"sparsity": 1 / span}, ("rate",)))
        params = {"span": 2, "how": {"score": "alone"}, "rate": 0.5}
        store.write(record("searcher", seed, params, 1.5, {"sparsity": 0.9}))
        for depth, share in ((3, 0.2), (4, 0.4)):
            store.write(record("other", seed, {"depth": depth / 10}, 1.2, {"sparsity": share}))
    return root


@pytest.fixture(scope="module")
def table(folder: Path) -> Table:
    (found,), _ = tables_of(folder)
    return found


def test_rows_that_differ_in_one_parameter_are_a_line_in_its_order(table: Table) -> None:
    """By size, not as text (1, 2, 10); what a tuning chose parts no line; a row alone is none."""
    found = {curve.label: curve for curve in curves(table, "span")}
    assert set(found) == {"flow", "random"}
    for label, sign in (("flow", 1), ("random", -1)):
        assert found[label].x == (1.0, 2.0, 10.0)
        assert found[label].y == pytest.approx((sign * 1.0, sign * 2.0, sign * 10.0))
        assert found[label].sd == pytest.approx((0.0, 0.0, 0.0), abs=1e-9)


def test_a_number_that_came_of_the_parameter_can_be_the_axis(table: Table) -> None:
    found = {curve.label: curve for curve in curves(table, "span", "sparsity")}
    assert set(found) == {"flow", "random"}  # the other method has no span
    assert found["flow"].x == pytest.approx((0.1, 0.5, 1.0))
    assert found["flow"].y == pytest.approx((10.0, 2.0, 1.0))


def test_lines_of_several_methods_carry_their_names(table: Table) -> None:
    rows = [dataclasses.replace(row, method="twin") for row in table.rows if row.params.get("span")]
    both = dataclasses.replace(table, rows=(*table.rows, *rows))
    labels = {curve.label for curve in curves(both, "span")}
    assert labels == {"searcher, flow", "searcher, random", "twin, flow", "twin, random"}


def test_two_seeds_have_no_whiskers(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for seed in range(2):
        store.write(make_record("single_task", seed, reference=True))
        for span in (1, 2):
            store.write(record("searcher", seed, {"span": span}, 1.0, {}))
    (found,), _ = tables_of(tmp_path)
    assert curves(found, "span") == [Curve("searcher", (1.0, 2.0), (0.0, 0.0), (None, None))]


def test_the_command_draws_what_is_asked_for(folder: Path, tmp_path: Path, table: Table) -> None:
    arguments = [str(folder), "--figures", str(tmp_path), "--curve", "span", "--curve", "span:sparsity"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    drawn = sorted(path.name for path in tmp_path.glob("*-along-*"))
    assert len(drawn) == 6  # two curves in three formats
    assert all(table.key in name for name in drawn)


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ("spam", "Unknown parameter 'spam'. Nearest: 'span'"),
        ("span:sparsitty", "Unknown number that methods report 'sparsitty'. Nearest: 'sparsity'"),
        ("how.score", "--curve how.score: no rows differ in how.score alone"),
    ],
)
def test_a_curve_that_no_table_has_is_refused(table: Table, tmp_path: Path, wanted: str, words: str) -> None:
    with pytest.raises(UsageError) as error:
        list(draw_curves([table], [wanted], tmp_path))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_curves_without_a_folder_for_them_are_refused(folder: Path) -> None:
    result = CliRunner().invoke(app, [str(folder), "--curve", "span"])
    assert result.exit_code == 2
    assert "--curve needs --figures FOLDER" in " ".join(result.output.split())
