"""Delta_m against a price: the points of a table and those on its Pareto front, for the page and the pictures alike."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

from benchmark.tables.columns import SIZE_COLUMNS, SPEED_COLUMNS, Column
from benchmark.tables.statistics import MIN_SEEDS
from benchmark.tables.table import Table

_PRICES = tuple(
    column for column in (*SIZE_COLUMNS, *SPEED_COLUMNS) if column.name in ("x_backbone", "macs_joint", "throughput, r")
)


@dataclasses.dataclass(frozen=True)
class Point:
    """A row of a table. x: mean of the price; y: mean of Delta_m in percent; sd: of Delta_m over seeds, None below
    three; ranked: False for a row that is red or incomplete, which is drawn hollow and never on the front.
    """

    row: int
    x: float
    y: float
    sd: float | None
    ranked: bool


def prices(table: Table) -> list[Column]:
    """Parameters, MACs and relative throughput: those that at least one row with a Delta_m has a value of."""
    return [column for column in _PRICES if column in table.columns and points(table, column)]


def points(table: Table, price: Column) -> list[Point]:
    """One point for each row that has a Delta_m and a value of the price, in the order of the rows."""
    across, up = table.columns.index(price), table.delta
    found = []
    for number, row in enumerate(table.rows):
        x, delta = row.cells[across].mean, row.cells[up]
        if x is not None and delta.mean is not None:
            sd = delta.sd if delta.n >= MIN_SEEDS else None
            found.append(Point(number, x, delta.mean, sd, number in table.ranked))
    return found


def front(found: Sequence[Point], lower_is_better: bool) -> list[Point]:
    """The ranked points that no other ranked point beats: at least as cheap and as good, and better in one of the two.

    Ordered by price, the cheapest first.
    """
    sign = 1.0 if lower_is_better else -1.0
    kept: list[Point] = []
    for point in sorted((one for one in found if one.ranked), key=lambda one: (sign * one.x, -one.y)):
        twin = bool(kept) and (point.x, point.y) == (kept[-1].x, kept[-1].y)
        if twin or not kept or point.y > kept[-1].y:
            kept.append(point)
    return kept


def staircase(kept: Sequence[Point]) -> list[tuple[float, float]]:
    """The front as a line (x, y): a price between two of its points buys only what the cheaper point gives."""
    corners = [(point.x, before.y) for before, point in itertools.pairwise(kept)]
    points_and_corners = itertools.zip_longest(((point.x, point.y) for point in kept), corners)
    return [place for pair in points_and_corners for place in pair if place is not None]
