"""Delta_m against a price: the Pareto front by hand and by definition, and the pictures of a table."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from benchmark.frontier import Point, front, points, prices
from benchmark.table_plots import draw_tables, task_columns
from benchmark.tables import aggregate
from tests.unit.records import SINGLE_TASK, make_record


def point(row: int, x: float, y: float, ranked: bool = True) -> Point:
    return Point(row, x, y, None, ranked)


def test_the_front_by_hand() -> None:
    """Cheap and good beats dear and worse; a red row is on no front, however good."""
    found = [
        point(0, 1, 0),
        point(1, 2, 3),
        point(2, 2, 2),
        point(3, 3, 3),
        point(4, 1, 9, ranked=False),
        point(5, 4, 5),
    ]
    assert [one.row for one in front(found, lower_is_better=True)] == [0, 1, 5]
    assert [one.row for one in front(found, lower_is_better=False)] == [5]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(-9, 9), st.booleans()), max_size=12), st.booleans())
def test_nothing_on_the_front_is_beaten_and_nothing_else_is_unbeaten(
    drawn: list[tuple[int, int, bool]], lower: bool
) -> None:
    found = [point(row, x, y, ranked) for row, (x, y, ranked) in enumerate(drawn)]
    sign = 1 if lower else -1

    def beats(a: Point, b: Point) -> bool:
        return a.ranked and sign * a.x <= sign * b.x and a.y >= b.y and (a.x, a.y) != (b.x, b.y)

    unbeaten = {one.row for one in found if one.ranked and not any(beats(other, one) for other in found)}
    assert {one.row for one in front(found, lower)} == unbeaten


def test_pictures_of_a_table(tmp_path: Path) -> None:
    sizes = {"x_backbone": 1.0}
    records = [
        make_record("single_task", seed, SINGLE_TASK, reference=True, size={"x_backbone": 2.0}) for seed in (0, 1)
    ]
    records += [make_record("hard_sharing", seed, size=sizes) for seed in (0, 1)]
    (table,) = aggregate(records)
    assert [column.group for _, column in task_columns(table)] == ["semseg", "depth"]
    assert prices(table)[0].name == "x_backbone"
    assert {(one.x, one.row) for one in points(table, prices(table)[0])} == {(2.0, 0), (1.0, 1)}
    files = list(draw_tables([table], tmp_path))
    assert {file.suffix for file in files} == {".png", ".svg"}
    assert len(files) == 4
    assert all(file.stat().st_size > 1000 for file in files)
    first = {file.name: file.read_bytes() for file in files}
    again = {file.name: file.read_bytes() for file in draw_tables([table], tmp_path)}
    assert first == again
