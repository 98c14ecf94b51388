"""Charts of the page as inline SVG. Colours are classes (`c0` to `c7`) that the style sheet sets for both themes; every
mark has a shape, an accessible name with its exact numbers, and takes the keyboard's focus. A chart is one stop of the
Tab key; the script moves between its marks with the arrow keys.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from markupsafe import Markup

from benchmark.show.marks import SHAPES, color_of, shape_of
from benchmark.tables.frontier import Point, front, staircase

_WIDTH, _HEIGHT = 640, 380
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 16, 50
_LABEL = 26  # characters of a row's label beside a bar; the accessible name has all of them


@dataclasses.dataclass(frozen=True)
class Bar:
    """One bar. style: of its row; value: its length; sd: half of its whisker; text: the cell as the table prints it."""

    label: str
    style: int
    value: float
    sd: float | None
    text: str


@dataclasses.dataclass(frozen=True)
class Curve:
    """Points (x, y) of one row; None is a gap."""

    label: str
    style: int
    values: Sequence[tuple[float, float | None]]


def marker(style: int, hollow: bool = False) -> Markup:
    """The mark of a row, 14 x 14, for legends."""
    return Markup('<svg class="key" viewBox="-8 -8 16 16" aria-hidden="true">{}</svg>').format(_mark(style, hollow))


def _mark(style: int, hollow: bool) -> Markup:
    return Markup('<path class="c{}{}" d="{}"/>').format(
        color_of(style), " hollow" if hollow else "", SHAPES[shape_of(style)][1]
    )


def scatter(found: Sequence[Point], names: Sequence[str], texts: Sequence[str], styles: Sequence[int],
            x_title: str, y_title: str, lower_is_better: bool) -> Markup:  # fmt: skip
    """Delta_m against a price with the Pareto front as a staircase.

    names, texts, styles: of the points; texts say the exact numbers, and are shown at a point under pointer or focus.
    """
    spread = [(p.y - (p.sd or 0.0), p.y + (p.sd or 0.0)) for p in found]
    x_scale = _Scale([p.x for p in found], _LEFT, _WIDTH - _RIGHT)
    y_scale = _Scale([0.0, *(y for pair in spread for y in pair)], _HEIGHT - _BOTTOM, _TOP)
    parts = [_axes(x_scale, y_scale, x_title, y_title), _staircase(front(found, lower_is_better), x_scale, y_scale)]
    for number, (point, name, text, style) in enumerate(zip(found, names, texts, styles, strict=True)):
        x, y = x_scale(point.x), y_scale(point.y)
        whisker = Markup("")
        if point.sd:
            low, high = y_scale(point.y - point.sd) - y, y_scale(point.y + point.sd) - y
            whisker = Markup('<path class="line c{}" d="M0 {:.1f}V{:.1f}"/>').format(color_of(style), low, high)
        parts.append(
            Markup('<g class="mark" transform="translate({:.1f} {:.1f})" {}>{}{}</g>').format(
                x, y, _named(f"{name}: {text}", number), whisker, _mark(style, not point.ranked)
            )
        )
    return _svg(_WIDTH, _HEIGHT, f"{y_title} against {x_title}", parts)


def _staircase(kept: Sequence[Point], x_scale: _Scale, y_scale: _Scale) -> Markup:
    if not kept:
        return Markup("")
    steps = [f"{x_scale(x):.1f} {y_scale(y):.1f}" for x, y in staircase(kept)]
    return Markup('<path class="front" d="M{}"/>').format("L".join(steps))


def bars(rows: Sequence[Bar], title: str) -> Markup:
    """Horizontal bars from zero, whiskers of one s.d., the numbers beside them."""
    step, left, width = 24, 190, 560
    height = step * len(rows) + 8
    ends = [0.0, *(row.value + (row.sd or 0.0) for row in rows), *(row.value - (row.sd or 0.0) for row in rows)]
    scale = _Scale(ends, left, width - 150, pad=0.0)
    zero = scale(0.0)
    parts = [Markup('<path class="axis" d="M{:.1f} 0V{}"/>').format(zero, height)]
    for number, row in enumerate(rows):
        y, end = 4 + step * number, scale(row.value)
        color = color_of(row.style)
        whisker = Markup("")
        if row.sd:
            low, high = scale(row.value - row.sd), scale(row.value + row.sd)
            whisker = Markup('<path class="whisker" d="M{0:.1f} {2}v8M{0:.1f} {3}H{1:.1f}M{1:.1f} {2}v8"/>').format(
                low, high, y + 6, y + 10
            )
        after = max(end, scale(row.value + (row.sd or 0.0)), zero) + 6
        parts.append(
            Markup(
                '<g class="mark" {}><text class="end" x="{}" y="{}">{}</text>'
                '<rect class="c{}" x="{:.1f}" y="{}" width="{:.1f}" height="16"/>{}'
                '<text x="{:.1f}" y="{}">{}</text></g>'
            ).format(
                _named(f"{row.label}: {row.text}", number),
                left - 8,
                y + 14,
                _short(row.label),
                color,
                min(zero, end),
                y + 2,
                max(abs(end - zero), 0.5),
                whisker,
                after,
                y + 14,
                row.text,
            )
        )
    return _svg(width, height, title, parts)


def curves(found: Sequence[Curve], title: str, x_title: str) -> Markup:
    """Lines, each with its mark at the last point."""
    width, height = 420, 260
    values = [(x, y) for curve in found for x, y in curve.values if y is not None]
    x_scale = _Scale([x for x, _ in values], _LEFT, width - _RIGHT)
    y_scale = _Scale([y for _, y in values], height - _BOTTOM, _TOP)
    parts = [_axes(x_scale, y_scale, x_title, title, (width, height), ticks=4)]
    for number, curve in enumerate(found):
        steps, pen = [], "M"
        for x, y in curve.values:
            if y is None:
                pen = "M"
                continue
            steps.append(f"{pen}{x_scale(x):.1f} {y_scale(y):.1f}")
            pen = "L"
        last_x, last = [(x, y) for x, y in curve.values if y is not None][-1]
        parts.append(
            Markup(
                '<g class="mark" {}><path class="line c{}" d="{}"/><g transform="translate({:.1f} {:.1f})">{}</g></g>'
            ).format(
                _named(f"{curve.label}: {last:.6g} at the last point", number),
                color_of(curve.style),
                "".join(steps),
                x_scale(last_x),
                y_scale(last),
                _mark(curve.style, False),
            )
        )
    return _svg(width, height, title, parts)


def _named(text: str, number: int) -> Markup:
    """What makes a mark readable and reachable. number: of the mark in its chart; the Tab key stops at 0 alone."""
    return Markup('tabindex="{1}" role="img" aria-label="{0}" data-tip="{0}"').format(text, 0 if number == 0 else -1)


def _short(text: str) -> str:
    return text if len(text) <= _LABEL else text[: _LABEL - 1] + "…"


def _svg(width: int, height: int, title: str, parts: Sequence[Markup]) -> Markup:
    head = Markup('<svg class="chart" viewBox="0 0 {} {}" role="group" aria-label="{}">').format(width, height, title)
    return head + Markup("").join(parts) + Markup("</svg>")


class _Scale:
    """Linear: values to pixels, with a margin of `pad` of the range on both sides."""

    def __init__(self, values: Sequence[float], start: float, end: float, pad: float = 0.06) -> None:
        low, high = min(values), max(values)
        room = (high - low) * pad or (0.0 if high > low else max(abs(high), 1.0) * 0.1)
        self.low, self.high, self.start, self.end = low - room, high + room, start, end

    def __call__(self, value: float) -> float:
        return self.start + (self.end - self.start) * (value - self.low) / (self.high - self.low)

    def ticks(self, n: int) -> list[float]:
        """Round values within the range, about n."""
        raw = (self.high - self.low) / n
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
        first = math.ceil(self.low / step)
        return [step * k for k in range(first, math.floor(self.high / step) + 1)]


def _axes(x_scale: _Scale, y_scale: _Scale, x_title: str, y_title: str, size: tuple[int, int] = (_WIDTH, _HEIGHT),
          ticks: int = 6) -> Markup:  # fmt: skip
    width, height = size
    lines: list[Markup] = []
    for value in x_scale.ticks(ticks):
        x, text = x_scale(value), tick_text(value)
        lines.append(Markup('<path class="grid" d="M{:.1f} {}V{}"/>').format(x, _TOP, height - _BOTTOM))
        lines.append(
            Markup('<text class="tick mid" x="{:.1f}" y="{}">{}</text>').format(x, height - _BOTTOM + 16, text)
        )
    for value in y_scale.ticks(ticks):
        y, css = y_scale(value), "axis" if value == 0 else "grid"
        lines.append(Markup('<path class="{}" d="M{} {:.1f}H{}"/>').format(css, _LEFT, y, width - _RIGHT))
        lines.append(
            Markup('<text class="tick end" x="{}" y="{:.1f}">{}</text>').format(_LEFT - 6, y + 4, tick_text(value))
        )
    middle = (_TOP + height - _BOTTOM) / 2
    across = Markup('<text class="mid" x="{}" y="{}">{}</text>').format((_LEFT + width) / 2, height - 10, x_title)
    up = Markup('<text class="mid" transform="translate(14 {}) rotate(-90)">{}</text>').format(middle, y_title)
    return Markup("").join([*lines, across, up])


def tick_text(value: float) -> str:
    """A number of an axis: 1.5 G, 300 k, 0.02."""
    for limit, suffix in ((1e9, " G"), (1e6, " M"), (1e4, " k")):
        if abs(value) >= limit:
            return f"{value / (limit if limit > 1e4 else 1e3):.4g}{suffix}"
    return f"{value:.4g}"
