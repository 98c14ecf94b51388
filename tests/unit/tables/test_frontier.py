"""Delta_m against a price: the Pareto front by hand and by definition, and the pictures of a table."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from benchmark.show.marks import LIGHT, SHAPES, color_of, shape_of
from benchmark.show.names import Names
from benchmark.show.page.charts import scatter
from benchmark.show.page.graphics import scatters
from benchmark.show.table_plots import BOTH, COLUMN, _against, _tasks, draw_tables, row_names, task_columns
from benchmark.tables.frontier import Point, front, points, prices, staircase
from benchmark.tables.table import aggregate
from tests.unit.made_records import SINGLE_TASK, make_record


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
    assert {file.suffix for file in files} == {".png", ".svg", ".pdf"}
    pictures = {file.stem.split("-", 2)[2] for file in files}
    assert pictures == {"delta", "delta-x_backbone", "delta-macs_joint", "tasks"}
    assert len(files) == 12
    widths = {file.stem.split("-", 2)[2]: Image.open(file).width for file in files if file.suffix == ".png"}
    assert widths["delta"] == pytest.approx(BOTH / COLUMN * widths["delta-x_backbone"], abs=2)  # a panel a price
    drawing = _against(table, prices(table)[:2], Names())
    left, right = drawing.axes
    assert [axes.get_xlabel() for axes in (left, right)] == [Names().column(price) for price in prices(table)[:2]]
    assert left.get_position().x1 < right.get_position().x0
    plt.close(drawing)
    assert all(file.stat().st_size > 1000 for file in files)
    first = {file.name: file.read_bytes() for file in files}
    again = {file.name: file.read_bytes() for file in draw_tables([table], tmp_path)}
    assert first == again


def test_page_and_picture_agree_in_marks_colours_and_the_form_of_the_front() -> None:
    """Both draw one table; the picture's drawing is asked for what it holds, the page for its text."""
    rows = {"cheap": (1.0, 0.4), "middle": (2.0, 0.45), "dear": (3.0, 0.5), "beaten": (3.0, 0.3)}
    values = {"semseg": {"miou": 40.0}}
    records = [make_record("single_task", 0, values, reference=True, size={"x_backbone": 2.0})]
    records += [
        make_record(name, 0, {"semseg": {"miou": 100 * miou}}, size={"x_backbone": x})
        for name, (x, miou) in rows.items()
    ]
    (table,) = aggregate(records)
    price = prices(table)[0]
    found = points(table, price)
    steps = staircase(front(found, lower_is_better=True))
    assert [step for step in steps if step[0] == 2.0] == [(2.0, steps[0][1]), (2.0, 12.5)]  # along, then up
    drawing = _against(table, [price], Names(rows={"middle": "In between"}))
    axis = drawing.axes[0]
    (line,) = [one for one in axis.lines if one.get_linestyle() == "--"]
    assert list(zip(*line.get_data(), strict=True)) == steps
    marks = {one.get_label(): (one.lines[0].get_marker(), one.lines[0].get_color()) for one in axis.containers}
    svg = str(scatter(found, row_names(table, Names()), [""] * 5, [""] * 5, ("", ""), True)[0])
    assert svg.count("L", svg.index('class="front"'), svg.index("/>", svg.index('class="front"'))) == len(steps) - 1
    for one in found:
        name, outline = SHAPES[shape_of(one.row)]
        assert marks[row_names(table, Names(rows={"middle": "In between"}))[one.row]] == (
            name,
            LIGHT[color_of(one.row)],
        )
        assert f'<path class="c{color_of(one.row)}" d="{outline}"/>' in svg
    beside = {text.get_text() for text in axis.texts}
    assert beside >= {"cheap", "In between", "dear", "beaten"}  # in place of a legend
    assert not drawing.legends
    assert drawing.get_size_inches()[0] == COLUMN
    plt.close(drawing)


def test_a_row_far_below_has_its_number_on_the_page_and_in_the_picture() -> None:
    records = [
        make_record(f"m{n}", 0, {"semseg": {"miou": 40.0 + n}}, reference=n == 0, size={"x_backbone": 1.0 + n})
        for n in range(5)
    ]
    records += [make_record("worst", 0, {"semseg": {"miou": 4.0}}, size={"x_backbone": 1.0})]
    (table,) = aggregate(records)
    ((block, *_), _) = scatters(table)
    assert "worst ↓ -90.00" in str(block.charts[0][1])
    drawing = _against(table, prices(table)[:1], Names())
    assert "worst ↓ -90.00" in {text.get_text() for text in drawing.axes[0].texts}
    plt.close(drawing)


def test_pictures_fit_a_column_of_a_paper_and_can_be_read() -> None:
    """Text of six points at least, and all of it within the picture, which no printer then shrinks."""
    values = {f"task{n}": {"miou": 40.0} for n in range(6)}
    records = [
        make_record("single_task", 0, values, reference=True),
        *(make_record(f"a_row_{n}", 0, values) for n in range(9)),
    ]
    for chosen, width in ((2, COLUMN), (6, BOTH)):
        kept = [
            make_record(one.method, 0, dict(list(values.items())[:chosen]), reference=one.method == "single_task")
            for one in records
        ]
        (table,) = aggregate(kept)
        both = prices(table)[:2]
        drawings = (_tasks(table, Names()), *(_against(table, some, Names()) for some in (both[:1], both)))
        for drawing, wide in zip(drawings, (width, COLUMN, BOTH), strict=True):
            drawing.canvas.draw()
            assert drawing.get_size_inches()[0] == wide
            sizes = [text.get_fontsize() for text in drawing.findobj(plt.Text) if text.get_text()]
            assert min(sizes) >= 6
            inked = drawing.get_tightbbox()
            assert min(inked.x0, inked.y0) >= 0
            across, up = drawing.get_size_inches()
            assert inked.x1 <= across + 0.01  # a pixel of the canvas
            assert inked.y1 <= up + 0.01
            plt.close(drawing)


def test_a_staircase_has_a_corner_between_two_points() -> None:
    assert staircase([]) == []
    assert staircase([point(0, 1, 0)]) == [(1, 0)]
    assert staircase([point(0, 1, 0), point(1, 2, 3)]) == [(1, 0), (2, 0), (2, 3)]
