"""Which charts a table has, and of which of its rows."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

from markupsafe import Markup

from benchmark.records.record import Record
from benchmark.show.marks import N_STYLES
from benchmark.show.names import Names
from benchmark.show.page.charts import Curve, Dot, curves, dots, marker, scatter
from benchmark.show.placing import in_sight
from benchmark.show.table_plots import row_names, task_columns
from benchmark.show.wording import cell_text
from benchmark.tables.columns import Column, delta_column
from benchmark.tables.frontier import points, prices
from benchmark.tables.statistics import MIN_SEEDS, Summary
from benchmark.tables.table import Table

NAMES = Names()
MAX_POINTS = 300  # rows in a scatter
MAX_OPEN = 6  # charts of tasks that are shown without being asked for
MAX_DOTS = 24  # rows in a chart of a task
MAX_CURVES = 12  # rows in a chart of curves
MAX_CURVE_CHARTS = 12
MAX_CURVE_POINTS = 60  # of one curve; longer ones are thinned evenly, first and last point kept


@dataclasses.dataclass(frozen=True)
class Block:
    """Charts under one title. charts: (name, SVG); choice: whether the reader picks one of them at a time."""

    title: str
    charts: Sequence[tuple[str, Markup]]
    note: str = ""
    choice: bool = False
    closed: bool = False


def key_of_styles(table: Table, rows: Sequence[int]) -> Block:
    """The marks of rows that have no label in some chart."""
    return Block("Rows", [(table.rows[n].label, marker(n, n not in table.ranked)) for n in rows[:N_STYLES]])


def scatters(table: Table) -> tuple[list[Block], str]:
    """Delta_m against each price, one chart each, and the marks that found no room for their names."""
    up, charts, called, unnamed = delta_column(table.variant), [], row_names(table, NAMES), set()
    for price in prices(table):
        found, labels = in_sight(points(table, price)[:MAX_POINTS], called)
        title = NAMES.column(price)
        texts = [f"{_text(table, p.row, up)} %, {title} {_text(table, p.row, price)}" for p in found]
        names = [table.rows[p.row].label for p in found]
        svg, left = scatter(found, labels, names, texts, (title, NAMES.column(up)), price.higher_is_better is False)
        unnamed |= {found[n].row for n in left}
        charts.append((title, svg))
    if not charts:
        return [], ""
    note = (
        "Whiskers: one s.d. over seeds (n >= 3). Dashed: Pareto front of the ranked rows; rows that are red or "
        "incomplete are hollow and never on it."
    )
    limit = f"Scatter: the first {MAX_POINTS} rows." if len(table.rows) > MAX_POINTS else ""
    blocks = [Block("Delta_m against its price", charts, note, choice=len(charts) > 1)]
    return [*blocks, *([key_of_styles(table, sorted(unnamed))] if unnamed else [])], limit


def dot_charts(table: Table) -> tuple[list[Block], str]:
    """The primary metric of each task."""
    charts, called = [], row_names(table, NAMES)
    for _, column in task_columns(table):
        shown = [_dot(table, number, column, called[number]) for number in range(min(len(table.rows), MAX_DOTS))]
        kept = [dot for dot in shown if dot is not None]
        if kept:
            title = f"{column.group}: {NAMES.column(column)}"
            charts.append((title, dots(kept, title)))
    limit = f"Tasks: the first {MAX_DOTS} rows." if len(table.rows) > MAX_DOTS else ""
    note = (
        "The primary metric of each task. The axes are cut: they do not begin at zero. Whiskers: one s.d. over seeds "
        "(n >= 3)."
    )
    return [Block("Tasks", charts, note, closed=len(charts) > MAX_OPEN)] if charts else [], limit


def _dot(table: Table, number: int, column: Column, label: str) -> Dot | None:
    row = table.rows[number]
    summary = row.cells[table.columns.index(column)]
    if summary.mean is None:
        return None
    sd, text = summary.sd if summary.n >= MIN_SEEDS else None, cell_text(summary, column, row.n)
    shown = cell_text(Summary((0,), (summary.mean,)), column, 1)
    return Dot(label, shown, row.label, number, summary.mean, sd, text, number in table.ranked)


def _text(table: Table, number: int, column: Column) -> str:
    row = table.rows[number]
    return cell_text(row.cells[table.columns.index(column)], column, row.n)


def curve_charts(table: Table, firsts: Sequence[Record | None]) -> tuple[list[Block], str]:
    """Curves of each row's first done seed, a chart for each name; those that most rows have come first."""
    held = [(number, record) for number, record in enumerate(firsts) if record is not None and record.curves]
    shown = held[:MAX_CURVES]
    common = Counter(name for _, record in shown for name in record.curves)
    names = sorted(common, key=lambda name: (-common[name], name.count("/"), name))
    charts, called = [], row_names(table, NAMES)
    for name in names[:MAX_CURVE_CHARTS]:
        found = [
            Curve(
                called[number],
                f"{table.rows[number].label}, seed {record.seed}",
                number,
                thinned(record.curves[name]),
            )
            for number, record in shown
            if any(value is not None for value in record.curves.get(name, ()))
        ]
        if found:
            charts.append((name, curves(found, name, "recorded point")))
    limits = [f"Curves: the first {MAX_CURVES} rows."] if len(held) > MAX_CURVES else []
    limits += [f"Curves: {MAX_CURVE_CHARTS} of {len(names)} names."] if len(names) > MAX_CURVE_CHARTS else []
    note = f"As recorded, of each row's first done seed; at most {MAX_CURVE_POINTS} points a curve."
    return [Block("Curves", charts, note, closed=True)] if charts else [], " ".join(limits)


def thinned(values: Sequence[float | None]) -> list[tuple[float, float | None]]:
    """(position from 1, value) of at most MAX_CURVE_POINTS points, evenly spaced, with the first and the last."""
    n = len(values)
    if n <= MAX_CURVE_POINTS:
        kept = range(n)
        return [(float(place + 1), values[place]) for place in kept]
    places = [round(k * (n - 1) / (MAX_CURVE_POINTS - 1)) for k in range(MAX_CURVE_POINTS)]
    return [(float(place + 1), values[place]) for place in places]
