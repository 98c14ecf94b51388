"""Pictures of tables for papers, PNG, SVG and PDF: Delta_m against each price with the Pareto front, and tasks side by
side. They are as wide as a column of a page, or as both.

Numbers are those of the table; colours, shapes, places of labels and the form of the front are those of the page.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.records.delta import primary_metric
from benchmark.records.store import safe_name
from benchmark.show.drawing import save_drawing
from benchmark.show.glance import cut_to
from benchmark.show.marks import LIGHT, SHAPES, color_of, shape_of
from benchmark.show.names import Names, column_key
from benchmark.show.placing import Label, Scale, in_sight, labels_of, scales_of, text_width, tick_text
from benchmark.tables.columns import Column
from benchmark.tables.frontier import Point, front, points, prices, staircase
from benchmark.tables.statistics import MIN_SEEDS
from benchmark.tables.table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

FORMATS = ("png", "svg", "pdf")
COLUMN, BOTH = 3.3, 6.9  # inches: a column of a paper, and both with the gap between them
MOST_IN_COLUMN, MOST_IN_BOTH = 2, 5  # panels side by side
DPI = 300
LABEL = 26  # characters of a row's name
_TEXT, _SMALL = 7.0, 6.5  # points
INK = "#222222"
_INCH = 72  # points
_HEIGHT, _BENEATH = 150.0, 27.0  # points: of a panel of Delta_m, and for its axis
_TASKS_KEY = "Axes are cut: they do not begin at zero. Whiskers: s.d. over three seeds or more."


def draw_tables(tables: Sequence[Table], folder: Path, names: Names = Names()) -> Iterator[Path]:
    """Draw every table into a folder; gives the files. What a table has no numbers for is left out."""
    for table in tables:
        known = prices(table)
        for price in known:
            yield from _save(functools.partial(_against, table, [price], names), _delta_stem(table, price, folder))
        if len(known) > 1:  # what a row costs to keep, and to run: the first and the last of the prices
            both = functools.partial(_against, table, [known[0], known[-1]], names)
            yield from _save(both, folder / f"{stem_of(table)}-delta")
        if task_columns(table):
            yield from _save(functools.partial(_tasks, table, names), folder / f"{stem_of(table)}-tasks")


def draw_delta(table: Table, folder: Path) -> list[Path]:
    """Draw Delta_m of a table against its first price; returns the files, none where the table has no Delta_m."""
    stems = [(price, _delta_stem(table, price, folder)) for price in prices(table)[:1]]
    return [file for price, stem in stems for file in _save(functools.partial(_against, table, [price], Names()), stem)]


def file_of_delta(table: Table, folder: Path) -> Path | None:
    """Where `draw_delta` writes its PNG."""
    return next((_delta_stem(table, price, folder).with_suffix(".png") for price in prices(table)), None)


def _save(make: functools.partial[Drawing], stem: Path) -> list[Path]:
    return save_drawing(make, stem, dpi=DPI, formats=FORMATS)


def _delta_stem(table: Table, price: Column, folder: Path) -> Path:
    return folder / f"{stem_of(table)}-delta-{column_key(price)}"


def stem_of(table: Table) -> str:
    """What the files of a table's pictures begin with."""
    return safe_name(f"{table.head.get('data', 'table').split(' ')[0]}-{table.key}")


def task_columns(table: Table) -> list[tuple[int, Column]]:
    """(position, column) of each task's primary metric, in the order of the tasks."""
    by_task: dict[str, dict[str, tuple[int, Column]]] = {}
    for position, column in enumerate(table.columns):
        if column.part == "accuracy" and column.group:
            by_task.setdefault(column.group, {})[column.name] = (position, column)
    named = [(columns, primary_metric(columns)) for columns in by_task.values()]
    return [columns[name] for columns, name in named if name is not None]


def row_names(table: Table, names: Names) -> list[str]:
    """What the rows of a table are called in a chart."""
    return cut_to([names.row(table, n) for n in range(len(table.rows))], LABEL)


def axes_at(drawing: Drawing, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes at a place in points: labels beside points need to know it before anything is drawn."""
    across, up = (inches * _INCH for inches in drawing.get_size_inches())
    axes: Axes = drawing.add_axes((left / across, bottom / up, width / across, height / up))
    axes.tick_params(labelsize=_SMALL, length=2, width=0.6, pad=2, colors=INK)
    axes.grid(color="#d9d9d9", linewidth=0.5)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set(linewidth=0.6, color="#888888")
    return axes


# Delta_m against a price


def _against(table: Table, prices_: Sequence[Column], names: Names) -> Drawing:
    """A panel a price. Hollow marks are rows that may not be ranked, which are never on the front. Names stand beside
    their marks; those that find no room in some panel stand beneath.
    """
    import matplotlib.pyplot as plt

    called = row_names(table, names)
    panels = [_Panel.of(table, price, called) for price in prices_]
    unnamed = {point.row for one in panels for point, label in zip(one.found, one.labels, strict=True) if label is None}
    wide = COLUMN + (len(panels) - 1) * (BOTH - COLUMN)
    below = (_SMALL + 3) * math.ceil(len(unnamed) / (2 * len(panels)))
    drawing = plt.figure(figsize=(wide, (_BENEATH + below + _HEIGHT + 14.0) / _INCH))
    for number, one in enumerate(panels):
        start = number * (BOTH - COLUMN) * _INCH
        axes = axes_at(drawing, start + one.left, _BENEATH + below, one.width, _HEIGHT)
        _draw_against(axes, table, one, called, names)
    if unnamed:
        handles = [mark for mark in drawing.axes[0].containers if mark.get_label() in {called[row] for row in unnamed}]
        drawing.legend(handles=handles, loc="lower center", ncols=2 * len(panels), fontsize=_SMALL, frameon=False,
                       borderaxespad=0.2, labelspacing=0.2, handletextpad=0.2)  # fmt: skip
    return drawing


@dataclasses.dataclass(frozen=True)
class _Panel:
    """Where everything stands in a panel of Delta_m against a price, in points from its corner."""

    price: Column
    found: Sequence[Point]
    texts: Sequence[str]
    labels: Sequence[Label | None]
    steps: Sequence[tuple[float, float]]
    scales: tuple[Scale, Scale]
    left: float
    width: float

    @classmethod
    def of(cls, table: Table, price: Column, called: Sequence[str]) -> _Panel:
        """The panel of a price. called: what rows are called."""
        found, texts = in_sight(points(table, price), called)
        ticks = scales_of(found, (0.0, 1.0), (0.0, _HEIGHT))[1].ticks(6)
        left = 17.0 + max(text_width(tick_text(tick), _SMALL) for tick in ticks)
        width = COLUMN * _INCH - left - 5.0
        scales = scales_of(found, (0.0, width), (0.0, _HEIGHT))
        steps = staircase(front(found, price.higher_is_better is False))
        labels = labels_of(found, texts, scales, steps, (0.0, 0.0, width, _HEIGHT), _SMALL)
        return cls(price, found, texts, labels, steps, scales, left, width)


def _draw_against(axes: Axes, table: Table, one: _Panel, called: Sequence[str], names: Names) -> None:
    from matplotlib.ticker import FuncFormatter

    x_scale, y_scale = one.scales
    axes.plot([x for x, _ in one.steps], [y for _, y in one.steps], "--", color="0.4", linewidth=1, zorder=1)
    axes.axhline(0.0, color="#888888", linewidth=0.6, zorder=0)
    for point, text, label in zip(one.found, one.texts, one.labels, strict=True):
        _mark(axes, table, point.row, (point.x, point.y), None, point.sd, called[point.row])
        if label is not None:
            _annotate(axes, text, point, label, (x_scale(point.x), y_scale(point.y)))
    axes.set(xlim=(x_scale.low, x_scale.high), ylim=(y_scale.low, y_scale.high))
    axes.set_xticks([tick for tick in x_scale.ticks(5) if x_scale.low <= tick <= x_scale.high])
    axes.set_yticks(y_scale.ticks(6))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: tick_text(value)))
    axes.set_xlabel(names.column(one.price), fontsize=_TEXT, labelpad=2, color=INK)
    axes.set_ylabel(names.column(table.columns[table.delta]), fontsize=_TEXT, labelpad=2, color=INK)
    axes.set_title(_key(one.found, one.steps), fontsize=6, loc="left", pad=3, color="#555555")


def _key(found: Sequence[Point], steps: Sequence[object]) -> str:
    parts = ["dashed: Pareto front"] if steps else []
    parts += ["hollow: not ranked"] if any(not point.ranked for point in found) else []
    parts += ["whiskers: s.d. over seeds"] if any(point.sd for point in found) else []
    return "; ".join(parts)


def _mark(axes: Axes, table: Table, row: int, place: tuple[float, float], across: float | None, up: float | None,
          name: str) -> None:  # fmt: skip
    """The mark of a row with whiskers."""
    color, hollow = LIGHT[color_of(row)], row not in table.ranked
    axes.errorbar(
        *place, xerr=across, yerr=up, fmt=SHAPES[shape_of(row)][0], color=color, elinewidth=0.9, capsize=0,
        markersize=4.5, markeredgewidth=0.9, markerfacecolor="white" if hollow else color, label=name, zorder=3,
    )  # fmt: skip


def _annotate(axes: Axes, text: str, point: Point, label: Label, at: tuple[float, float]) -> None:
    x, y = label.place
    side = {"start": "left", "middle": "center", "end": "right"}[label.anchor]
    axes.annotate(
        text, (point.x, point.y), (x - at[0], y - at[1]), textcoords="offset points",
        fontsize=_SMALL, ha=side, va="center", color=INK, annotation_clip=False, zorder=4,
        bbox={"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 0.2},
    )  # fmt: skip
    if label.leader is not None:
        end = (label.leader[0] - at[0], label.leader[1] - at[1])
        line = {"arrowstyle": "-", "color": "#999999", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2}
        axes.annotate("", (point.x, point.y), end, textcoords="offset points", arrowprops=line)


# Tasks


def _tasks(table: Table, names: Names) -> Drawing:
    """A panel a task: its primary metric, a dot a row on an axis that begins near the smallest."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    columns, called = task_columns(table), row_names(table, names)
    width = COLUMN if len(columns) <= MOST_IN_COLUMN else BOTH
    beside = min(len(columns), MOST_IN_COLUMN if width == COLUMN else MOST_IN_BOTH)
    n_lines = math.ceil(len(columns) / beside)
    left, gap, beneath, above = max(text_width(name, _SMALL) for name in called) + 6.0, 9.0, 20.0, 18.0
    panel = (width * _INCH - left - 4.0) / beside - gap
    height = 10.0 * len(table.rows) + 4.0
    line = height + beneath + above
    drawing = plt.figure(figsize=(width, (n_lines * line + 9.0) / _INCH))
    for n, (position, column) in enumerate(columns):
        low = (n_lines - 1 - n // beside) * line + beneath
        axes = axes_at(drawing, left + (n % beside) * (panel + gap), low, panel, height)
        for number, row in enumerate(table.rows):
            cell = row.cells[position]
            if cell.mean is not None:
                _mark(axes, table, number, (cell.mean, number), cell.sd if cell.n >= MIN_SEEDS else None, None, "")
        axes.set_yticks(range(len(table.rows)), called if n % beside == 0 else [""] * len(called))
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(table.rows) - 0.5, -0.5)
        axes.xaxis.set_major_locator(MaxNLocator(3))
        axes.margins(x=0.1)
        title = f"{names.task(column.group)}\n{names.column(column)}"
        axes.set_title(title, fontsize=_SMALL, pad=3, color=INK)
    drawing.text(0.5, 2.0 / (n_lines * line + 9.0), _TASKS_KEY, fontsize=6, ha="center", color="#555555")
    return drawing
