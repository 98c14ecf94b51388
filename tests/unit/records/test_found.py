"""What methods tell of their search reaches the record and the tables; what they find wrong is said at planning."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmark.plan.cells import plan
from benchmark.plan.remarks import notes_of
from benchmark.plan.suite import Suite
from benchmark.show.wording import cell_text, lines_beneath
from benchmark.tables.labels import DASH
from benchmark.tables.table import aggregate
from datasets.errors import UsageError
from methods.registry import get_method
from tests.unit.harness import toy_trainer
from tests.unit.made_records import make_record


def fact(value: float | None, unit: str = "") -> dict[str, object]:
    return {"value": value, "unit": unit}


def test_facts_are_columns_of_their_own_and_dashes_where_a_row_has_none() -> None:
    records = [
        make_record("hard_sharing", seed) for seed in range(3)
    ] + [
        make_record("searching", seed, audit={"facts": {"edges": fact(8.0 + seed), "gap": fact(-1.5, "percent")}})
        for seed in range(3)
    ]  # fmt: skip
    (table,) = aggregate(records)
    names = [column.name for column in table.columns if column.part == "found"]
    assert names == ["edges", "gap"]
    texts = {
        (row.method, column.name): cell_text(row.cells[n], column, row.n)
        for row in table.rows
        for n, column in enumerate(table.columns)
        if column.part == "found"
    }
    assert texts["searching", "edges"] == "9 ± 1"
    assert texts["searching", "gap"] == "-1.50"
    assert texts["hard_sharing", "edges"] == DASH
    assert not [n for n in table.statistics if table.columns[n].part == "found"]


def test_what_all_rows_say_is_said_once() -> None:
    """A caveat of the data comes with every record; three rows of two seeds would print it six times."""
    caveat = "the same hands are in train and test"
    records = [
        make_record(method, seed, audit={"flags": [caveat, *own]})
        for method, own in (("single_task", []), ("hard_sharing", []), ("searching", ["gates never moved"]))
        for seed in (0, 1)
    ]
    (table,) = aggregate(records)
    assert [note for note in table.notes if caveat in note] == [f"all rows: {caveat}"]
    assert "searching: gates never moved (seed 0, 1)" in table.notes


def test_flags_stand_beneath_the_table_with_their_seeds() -> None:
    records = [make_record("searching", seed, audit={"flags": ["gates never moved"]}) for seed in (0, 2)]
    records.append(make_record("searching", 1))
    (table,) = aggregate(records)
    assert "searching: gates never moved (seed 0, 2)" in lines_beneath(table)


def test_overlap_between_seeds_by_hand() -> None:
    chosen = [["a", "b"], ["b", "c"], ["a", "b", "c"]]  # 1/3, 2/3, 2/3
    records = [make_record("searching", seed, audit={"chosen": names}) for seed, names in enumerate(chosen)]
    (table,) = aggregate([*records, make_record("hard_sharing")])
    (line,) = [line for line in lines_beneath(table) if "overlap between seeds" in line]
    assert line.startswith("searching: overlap between seeds 0.56 ")
    assert "3 pairs" in line


def test_a_killed_run_tells_the_same_facts(tmp_path: Path) -> None:
    told = []
    for name in ("one", "one", "two"):  # the second time everything is replayed from checkpoints
        trainer = toy_trainer(tmp_path / name, steps=6)
        method = get_method("dag_search")
        method(method.Params()).run(trainer)
        told.append((trainer.facts, trainer.elements, trainer.flags, {n: f.model_dump() for n, f in
                     trainer.figures.items()}))  # fmt: skip
    assert told[0] == told[1] == told[2]


def suite(**params: object) -> Suite:
    return Suite.model_validate(
        {
            "name": "planned",
            "data": [{"dataset": "multi_mnist", "tasks": ["left", "right"]}],
            "backbones": ["test_resnet"],
            "methods": ["hard_sharing", {"name": "dag_search", "params": params}],
            "seeds": [0, 1],
            "budget": {"steps": 10},
        }
    )


def test_notes_of_methods_are_said_once_for_all_seeds() -> None:
    notes = notes_of(plan(suite(gate_lr=0.01)))
    assert [note.partition(":")[0] for note in notes] == ["dag_search on test_resnet, multi_mnist"] * 2
    assert "the search cannot leave its start" in notes[1]


def test_what_cannot_run_is_found_before_the_first_step() -> None:
    with pytest.raises(UsageError, match="flow_constant is 9; backbone 'test_resnet' has 5 states"):
        plan(suite(flow_constant=9))
