"""Charts of the page as inline SVG. Colours are classes (`c0` to `c7`) that the style sheet sets for both themes; every
mark has a shape, an accessible name with its exact numbers, and takes the keyboard's focus. A chart is one stop of the
Tab key; the script moves between its marks with the arrow keys.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from markupsafe import Markup

from benchmark.show.marks import SHAPES, color_of, shape_of
from benchmark.show.placing import Label, Scale, apart, labels_of, scales_of, text_width, tick_text
from benchmark.tables.frontier import Point, front, staircase

_WIDTH, _HEIGHT = 460, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 16, 50
_FONT, _LINE = 12.0, 14.0  # of the style sheet


@dataclasses.dataclass(frozen=True)
class Dot:
    """One dot. label: what its row is called, and shown: its value, beside it; name and text, the cell as the table
    prints it: for the accessible name; sd: half of its whisker; ranked: False draws it hollow.
    """

    label: str
    shown: str
    name: str
    style: int
    value: float
    sd: float | None
    text: str
    ranked: bool


@dataclasses.dataclass(frozen=True)
class Curve:
    """Points (x, y) of one row; None is a gap. label: at the end of the line; name: for the accessible name."""

    label: str
    name: str
    style: int
    values: Sequence[tuple[float, float | None]]


def marker(style: int, hollow: bool = False) -> Markup:
    """The mark of a row, 14 x 14, for legends."""
    return Markup('<svg class="key" viewBox="-8 -8 16 16" aria-hidden="true">{}</svg>').format(_mark(style, hollow))


def _mark(style: int, hollow: bool) -> Markup:
    return Markup('<path class="c{}{}" d="{}"/>').format(
        color_of(style), " hollow" if hollow else "", SHAPES[shape_of(style)][1]
    )


def scatter(found: Sequence[Point], labels: Sequence[str], names: Sequence[str], texts: Sequence[str],
            titles: tuple[str, str], lower_is_better: bool) -> tuple[Markup, list[int]]:  # fmt: skip
    """Delta_m against a price with the Pareto front as a staircase, and positions of the points whose label found no
    room.

    labels: beside the points; names and texts, the exact numbers, are shown at a point under pointer or focus. titles:
    of the axes.
    """
    box = (float(_LEFT), float(_TOP), float(_WIDTH), float(_HEIGHT - _BOTTOM))
    x_scale, y_scale = scales_of(found, (_LEFT, _WIDTH - _RIGHT), (_HEIGHT - _BOTTOM, _TOP))
    kept = front(found, lower_is_better)
    placed = labels_of(found, labels, (x_scale, y_scale), staircase(kept), box, _FONT)
    parts = [_axes(x_scale, y_scale, *titles), _staircase(kept, x_scale, y_scale)]
    for number, (point, name, text) in enumerate(zip(found, names, texts, strict=True)):
        x, y = x_scale(point.x), y_scale(point.y)
        whisker = Markup("")
        if point.sd:
            low, high = y_scale(point.y - point.sd) - y, y_scale(point.y + point.sd) - y
            whisker = Markup('<path class="line c{}" d="M0 {:.1f}V{:.1f}"/>').format(color_of(point.row), low, high)
        parts.append(
            Markup('<g class="mark" transform="translate({:.1f} {:.1f})" {}>{}{}{}</g>').format(
                x,
                y,
                _named(f"{name}: {text}", number),
                whisker,
                _mark(point.row, not point.ranked),
                _label(labels[number], placed[number], (x, y)),
            )
        )
    svg = _svg(_WIDTH, _HEIGHT, f"{titles[1]} against {titles[0]}", parts)
    return svg, [number for number, label in enumerate(placed) if label is None]


def _label(text: str, label: Label | None, at: tuple[float, float]) -> Markup:
    if label is None:
        return Markup("")
    leader = Markup("")
    if label.leader is not None:
        leader = Markup('<path class="leader" d="M0 0L{:.1f} {:.1f}"/>').format(
            label.leader[0] - at[0], label.leader[1] - at[1]
        )
    x, y = label.place
    return leader + Markup('<text class="{}" x="{:.1f}" y="{:.1f}">{}</text>').format(
        {"start": "start", "middle": "mid", "end": "end"}[label.anchor], x - at[0], y - at[1] + _FONT / 3, text
    )


def _staircase(kept: Sequence[Point], x_scale: Scale, y_scale: Scale) -> Markup:
    if not kept:
        return Markup("")
    steps = [f"{x_scale(x):.1f} {y_scale(y):.1f}" for x, y in staircase(kept)]
    return Markup('<path class="front" d="M{}"/>').format("L".join(steps))


def dots(rows: Sequence[Dot], title: str) -> Markup:
    """A dot a row with whiskers of one s.d. on an axis that begins near the smallest, the numbers beside them."""
    step, width = 22, _WIDTH
    left = max(text_width(row.label, _FONT) for row in rows) + 12
    right = max(text_width(row.shown, _FONT) for row in rows) + 10
    height = step * len(rows) + 8
    ends = [row.value + sign * (row.sd or 0.0) for row in rows for sign in (-1, 1)]
    scale = Scale(ends, left, width - right, pad=0.08)
    parts = []
    for value in scale.ticks(4):
        x = scale(value)
        parts.append(Markup('<path class="grid" d="M{:.1f} 0V{}"/>').format(x, height))
        parts.append(
            Markup('<text class="tick mid" x="{:.1f}" y="{}">{}</text>').format(x, height + 16, tick_text(value))
        )
    for number, row in enumerate(rows):
        y = 4 + step * (number + 0.5)
        whisker = Markup("")
        if row.sd:
            low, high = scale(row.value - row.sd), scale(row.value + row.sd)
            whisker = Markup('<path class="line c{}" d="M{:.1f} {:.1f}H{:.1f}"/>').format(
                color_of(row.style), low, y, high
            )
        parts.append(
            Markup(
                '<g class="mark" {}><path class="grid" d="M{:.1f} {:.1f}H{:.1f}"/>'
                '<text class="end" x="{:.1f}" y="{:.1f}">{}</text>{}'
                '<g transform="translate({:.1f} {:.1f})">{}</g><text class="end" x="{}" y="{:.1f}">{}</text></g>'
            ).format(
                _named(f"{row.name}: {row.text}", number), left, y, width - right,
                left - 8, y + 4, row.label, whisker, scale(row.value), y, _mark(row.style, not row.ranked),
                width - 2, y + 4, row.shown,
            )
        )  # fmt: skip
    return _svg(width, height + 22, title, parts)


def curves(found: Sequence[Curve], title: str, x_title: str) -> Markup:
    """Lines, each with its mark at the last point and its name beside it."""
    width, height = _WIDTH, 260
    right = max(text_width(curve.label, _FONT) for curve in found) + 22
    values = [(x, y) for curve in found for x, y in curve.values if y is not None]
    x_scale = Scale([x for x, _ in values], _LEFT, width - right, pad=0.0)
    y_scale = Scale([y for _, y in values], height - _BOTTOM, _TOP)
    lasts = [[(x, y) for x, y in curve.values if y is not None][-1] for curve in found]
    heights = apart([y_scale(y) for _, y in lasts], _LINE, _TOP, height - _BOTTOM)
    parts = [_axes(x_scale, y_scale, x_title, title, (width - right + _RIGHT, height), ticks=4)]
    for number, (curve, last, at) in enumerate(zip(found, lasts, heights, strict=True)):
        steps, pen = [], "M"
        for x, y in curve.values:
            if y is None:
                pen = "M"
                continue
            steps.append(f"{pen}{x_scale(x):.1f} {y_scale(y):.1f}")
            pen = "L"
        x, y = x_scale(last[0]), y_scale(last[1])
        parts.append(
            Markup(
                '<g class="mark" {}><path class="line c{}" d="{}"/>'
                '<path class="leader" d="M{:.1f} {:.1f}L{:.1f} {:.1f}"/><g transform="translate({:.1f} {:.1f})">{}</g>'
                '<text x="{:.1f}" y="{:.1f}">{}</text></g>'
            ).format(
                _named(f"{curve.name}: {last[1]:.6g} at the last point", number), color_of(curve.style), "".join(steps),
                x, y, width - right + 18, at, x, y, _mark(curve.style, False), width - right + 20, at + 4, curve.label,
            )
        )  # fmt: skip
    return _svg(width, height, title, parts)


def _named(text: str, number: int) -> Markup:
    """What makes a mark readable and reachable. number: of the mark in its chart; the Tab key stops at 0 alone."""
    return Markup('tabindex="{1}" role="img" aria-label="{0}" data-tip="{0}"').format(text, 0 if number == 0 else -1)


def _svg(width: int, height: int, title: str, parts: Sequence[Markup]) -> Markup:
    head = Markup('<svg class="chart" viewBox="0 0 {} {}" role="group" aria-label="{}">').format(width, height, title)
    return head + Markup("").join(parts) + Markup("</svg>")


def _axes(x_scale: Scale, y_scale: Scale, x_title: str, y_title: str, size: tuple[float, float] = (_WIDTH, _HEIGHT),
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
