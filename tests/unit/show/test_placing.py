"""Labels in a chart: beside their points, over nothing else, and none where there is no room."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from benchmark.show.placing import Box, Scale, apart, beside_points, in_sight, scales_of, tick_text
from benchmark.tables.frontier import Point

ROOM: Box = (0.0, 0.0, 200.0, 100.0)
PLACES = st.tuples(st.floats(0, 200), st.floats(0, 100))


def cover(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def test_a_lone_point_has_its_label_at_its_right_and_at_its_left_where_the_chart_ends() -> None:
    (label,) = beside_points([(50.0, 50.0)], [30.0], 10.0, ROOM)
    assert label is not None
    assert label.place == (59.0, 50.0)
    assert (label.anchor, label.leader) == ("start", None)
    (label,) = beside_points([(190.0, 50.0)], [30.0], 10.0, ROOM)
    assert label is not None
    assert label.place == (181.0, 50.0)
    assert label.anchor == "end"


def test_a_label_stands_nearest_to_its_own_mark_or_has_a_leader() -> None:
    """One mark just above another: a name beside the upper one would be read as its name."""
    lines = [((0.0, 50.0), (200.0, 50.0))]  # what keeps the lower label from standing at its own height
    for dx, dy in itertools.product((0.0, 0.5, 2.0), (3.0, 5.0, 7.0, 9.0)):
        points = [(100.0, 50.0), (100.0 + dx, 50.0 + dy)]
        for n, label in enumerate(beside_points(points, [40.0, 45.0], 10.0, ROOM, lines)):
            assert label is not None
            if label.leader is None:
                left, low, right, high = label.box
                away = [
                    max(left - x, 0, x - right) ** 2 + max(low - y, 0, y - high) ** 2 for x, y in points
                ]  # fmt: skip
                assert away[n] < away[1 - n]


def test_a_label_gives_way_to_a_line() -> None:
    (label,) = beside_points([(50.0, 50.0)], [30.0], 10.0, ROOM, [((0.0, 50.0), (200.0, 50.0))])
    assert label is not None
    assert label.place[1] != 50.0


@given(st.lists(st.tuples(PLACES, st.floats(5, 80)), max_size=12))
def test_no_label_covers_a_mark_another_label_or_the_edge(drawn: list[tuple[tuple[float, float], float]]) -> None:
    points, widths = [place for place, _ in drawn], [width for _, width in drawn]
    found = beside_points(points, widths, 10.0, ROOM)
    boxes = [(n, label.box) for n, label in enumerate(found) if label is not None]
    for n, box in boxes:
        assert box[0] >= 0
        assert box[1] >= 0
        assert box[2] <= 200
        assert box[3] <= 100
        assert not any(cover(box, other) for k, other in boxes if k != n)
        marks = [(x - 5, y - 5, x + 5, y + 5) for k, (x, y) in enumerate(points) if k != n]
        assert not any(cover(box, mark) for mark in marks)


def test_where_there_is_no_room_there_is_no_label() -> None:
    assert beside_points([(50.0, 50.0)], [500.0], 10.0, ROOM) == [None]
    assert beside_points([], [], 10.0, ROOM) == []


def test_names_at_the_ends_of_lines_stand_apart_in_the_order_of_the_lines() -> None:
    assert apart([10.0, 12.0, 50.0], 10.0, 0.0, 100.0) == [10.0, 20.0, 50.0]
    assert apart([95.0, 90.0], 10.0, 0.0, 95.0) == [95.0, 85.0]


def test_axes() -> None:
    scale = Scale([73.0, 79.0], 0.0, 100.0)
    assert scale.ticks(4) == [74.0, 76.0, 78.0]
    assert [tick_text(value) for value in (1.5e9, 3e5, 2e6, 0.02)] == ["1.5 G", "300 k", "2 M", "0.02"]


def test_a_row_far_below_leaves_the_others_their_room_and_keeps_its_number() -> None:
    points = [Point(row, 1.0, y, 0.5, True) for row, y in enumerate((2.0, 1.0, 0.0, -1.0, -2.0, -18.4))]
    names = list("abcdef")
    shown, texts = in_sight(points, names)
    assert texts == [*"abcde", "f ↓ -18.40"]
    assert shown[:5] == points[:5]
    assert -4.0 < shown[5].y < -2.5  # beneath the lowest whisker
    assert shown[5].sd is None
    assert scales_of(shown, (0.0, 1.0), (0.0, 1.0))[1].low > -4.0
    assert in_sight(points[:5], names) == (points[:5], names[:5])
    assert in_sight(points[3:], names) == (points[3:], names[3:])  # of three rows none is an exception
    alike = [Point(row, 1.0, -5.0 - (row == 5), None, True) for row in range(6)]
    assert in_sight(alike, names) == (alike, names)
