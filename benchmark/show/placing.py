"""Where numbers and names stand in a chart, for the page and the pictures alike: linear scales, and labels beside their
points that cover neither marks nor one another.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Literal

from benchmark.tables.frontier import Point

Anchor = Literal["start", "middle", "end"]
Box = tuple[float, float, float, float]  # left, low, right, high

_CHARACTER = 0.58  # mean width of a character, of the size of the font; a little more than sans serif fonts have
_NEAR = 0.9  # from the middle of a mark to its label, of the height of a line
_FAR = (1.7, 2.6, 3.6, 4.8)  # with a leader
_WAYS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))  # right, left, up or down, corners
_ANCHORS: dict[int, tuple[Anchor, float]] = {1: ("start", 0.0), 0: ("middle", 0.5), -1: ("end", 1.0)}
_CROSSING = 4.0  # what covering a line costs, in heights of a line
_MISLEADING = 3.0  # what standing nearer to another mark costs a label without a leader


class Scale:
    """Linear: values to places, with a margin of `pad` of the range on both sides."""

    def __init__(self, values: Sequence[float], start: float, end: float, pad: float = 0.06) -> None:
        low, high = min(values), max(values)
        room = (high - low) * pad or (0.0 if high > low else max(abs(high), 1.0) * 0.1)
        self.low, self.high, self.start, self.end = low - room, high + room, start, end

    def __call__(self, value: float) -> float:
        """The place of a value."""
        return self.start + (self.end - self.start) * (value - self.low) / (self.high - self.low)

    def ticks(self, n: int) -> list[float]:
        """Round values within the range, about n."""
        raw = (self.high - self.low) / n
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
        first = math.ceil(self.low / step)
        return [step * k for k in range(first, math.floor(self.high / step) + 1)]


def scales_of(found: Sequence[Point], across: tuple[float, float], up: tuple[float, float]) -> tuple[Scale, Scale]:
    """Scales of a price and of Delta_m with its whiskers; zero, which is the single-task row, is always shown."""
    ends = [point.y + sign * (point.sd or 0.0) for point in found for sign in (-1, 1)]
    return Scale([point.x for point in found], *across), Scale([0.0, *ends], *up)


def in_sight(found: Sequence[Point], called: Sequence[str]) -> tuple[list[Point], list[str]]:
    """The points and the texts beside them. Points so far below that the others would be one line stand just beneath
    the others, without whiskers and with their Delta_m in the text. Far is more than six times the quartiles' distance
    below the lower one. called: what all rows of the table are called.
    """
    values = [point.y for point in found]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(found) > 3 else (0.0, 0.0, 0.0)
    if low == high:  # most rows are alike: nothing is squeezed
        return list(found), [called[point.row] for point in found]
    limit = low - 6 * (high - low)
    ends = [point.y - (point.sd or 0.0) for point in found if point.y >= limit]
    edge = min(ends) - 0.12 * (max(values) - min(ends))
    shown = [point if point.y >= limit else dataclasses.replace(point, y=edge, sd=None) for point in found]
    return shown, [called[p.row] if p.y >= limit else f"{called[p.row]} ↓ {p.y:+.2f}" for p in found]


def text_width(text: str, size: float) -> float:
    """About how wide a text is set in a font of this size."""
    return _CHARACTER * size * len(text)


def tick_text(value: float) -> str:
    """A number of an axis: 1.5 G, 300 k, 0.02."""
    for limit, suffix in ((1e9, " G"), (1e6, " M"), (1e4, " k")):
        if abs(value) >= limit:
            return f"{value / (limit if limit > 1e4 else 1e3):.4g}{suffix}"
    return f"{value:.4g}"


@dataclasses.dataclass(frozen=True)
class Label:
    """Where a label stands. anchor: which place of the text lies on the same of the box: start, middle or end. leader:
    end of a line from its point, None where it is next to it.
    """

    box: Box
    anchor: Anchor
    leader: tuple[float, float] | None

    @property
    def place(self) -> tuple[float, float]:
        """Where the anchor stands, at half of the text's height."""
        left, low, right, high = self.box
        return {"start": left, "middle": (left + right) / 2, "end": right}[self.anchor], (low + high) / 2


def beside_points(
    points: Sequence[tuple[float, float]],
    widths: Sequence[float],
    height: float,
    room: Box,
    lines: Sequence[tuple[tuple[float, float], tuple[float, float]]] = (),
) -> list[Label | None]:
    """A label of these widths for each point, or None where there is no room for it.

    height: of a line of text; marks are about as large. lines: straight ones, level or upright, that should stay free.
    """
    marks = [(x - height / 2, y - height / 2, x + height / 2, y + height / 2) for x, y in points]
    thin = [(min(a, c), min(b, d), max(a, c), max(b, d)) for (a, b), (c, d) in lines]
    placed: dict[int, Label] = {}
    for n in sorted(range(len(points)), key=lambda n: _nearest(points, n)):  # the crowded first
        taken = [*marks[:n], *marks[n + 1 :], *(label.box for label in placed.values())]
        best = math.inf
        for cost, label in _candidates(points[n], widths[n], height):
            cost += _CROSSING * sum(_overlap(label.box, line) for line in thin)
            if label.leader is None and _distance(label.box, points[n]) >= min(
                (_distance(label.box, other) for k, other in enumerate(points) if k != n), default=math.inf
            ):
                cost += _MISLEADING
            if cost < best and _within(label.box, room) and not any(_overlap(label.box, box) for box in taken):
                best, placed[n] = cost, label
    return [placed.get(n) for n in range(len(points))]


def _nearest(points: Sequence[tuple[float, float]], n: int) -> float:
    return min((math.dist(points[n], other) for k, other in enumerate(points) if k != n), default=0.0)


def _candidates(point: tuple[float, float], width: float, height: float) -> Iterator[tuple[float, Label]]:
    """(cost, label), the nearest first."""
    x, y = point
    for distance in (_NEAR, *_FAR):
        for preference, (right, up) in enumerate(_WAYS):
            away = distance * height * (1.0 if not (right and up) else 0.75)
            anchor, share = _ANCHORS[right]
            left = x + right * away - width * share
            middle = y + up * (away + height / 4)
            end = (x + right * away, middle)
            box = (left, middle - height / 2, left + width, middle + height / 2)
            yield distance + 0.1 * preference, Label(box, anchor, end if distance > _NEAR else None)


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _distance(box: Box, point: tuple[float, float]) -> float:
    """From the nearest place of a box to a point."""
    left, low, right, high = box
    return math.hypot(max(left - point[0], 0.0, point[0] - right), max(low - point[1], 0.0, point[1] - high))


def _within(box: Box, room: Box) -> bool:
    return room[0] <= box[0] and room[1] <= box[1] and box[2] <= room[2] and box[3] <= room[3]


def labels_of(
    found: Sequence[Point],
    texts: Sequence[str],
    scales: tuple[Scale, Scale],
    steps: Sequence[tuple[float, float]],
    room: Box,
    size: float,
) -> list[Label | None]:
    """A label for each point of a scatter. steps: of its staircase; size: of the font."""
    x, y = scales
    lines = [((x(a), y(b)), (x(c), y(d))) for (a, b), (c, d) in itertools.pairwise(steps)]
    lines += [((room[0], y(0.0)), (room[2], y(0.0)))]
    lines += [((x(p.x), y(p.y - p.sd)), (x(p.x), y(p.y + p.sd))) for p in found if p.sd]
    widths = [text_width(text, size) for text in texts]
    return beside_points([(x(p.x), y(p.y)) for p in found], widths, 1.15 * size, room, lines)


def apart(places: Sequence[float], least: float, low: float, high: float) -> list[float]:
    """Places on a line moved as little as it takes to stand `least` apart, within low and high where they fit."""
    order = sorted(range(len(places)), key=lambda n: places[n])
    moved = list(places)
    floor = low
    for n in order:
        moved[n] = max(moved[n], floor)
        floor = moved[n] + least
    ceiling = high
    for n in reversed(order):
        moved[n] = min(moved[n], ceiling)
        ceiling = moved[n] - least
    return moved
