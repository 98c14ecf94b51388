"""Which charts a table has, and of which of its rows."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

from markupsafe import Markup

from benchmark.records.delta import primary_metric
from benchmark.records.record import Record
from benchmark.show.marks import N_STYLES
from benchmark.show.page.charts import Bar, Curve, bars, curves, marker, scatter
from benchmark.show.wording import cell_text, column_title
from benchmark.tables.columns import Column, delta_column
from benchmark.tables.frontier import points, prices
from benchmark.tables.statistics import MIN_SEEDS
from benchmark.tables.table import Table

MAX_POINTS = 300  # rows in a scatter
MAX_BARS = 24  # rows in a bar chart
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


def key_of_styles(table: Table) -> Block:
    """The marks of the rows."""
    rows = table.rows[:N_STYLES]
    return Block("Rows", [(row.label, marker(n, n not in table.ranked)) for n, row in enumerate(rows)])


def scatters(table: Table) -> tuple[Block | None, str]:
    """Delta_m against each price, one chart each."""
    up, charts = delta_column(table.variant), []
    for price in prices(table):
        found = points(table, price)[:MAX_POINTS]
        texts = [f"{_text(table, p.row, up)} %, {price.name} {_text(table, p.row, price)}" for p in found]
        names = [table.rows[p.row].label for p in found]
        styles = [p.row for p in found]
        lower = price.higher_is_better is False
        svg = scatter(found, names, texts, styles, column_title(price), column_title(up), lower)
        charts.append((price.name, svg))
    if not charts:
        return None, ""
    note = (
        "Whiskers: one s.d. over seeds (n >= 3). Dashed: Pareto front of the ranked rows; rows that are red or "
        "incomplete are hollow and never on it."
    )
    limit = f"Scatter: the first {MAX_POINTS} rows." if len(table.rows) > MAX_POINTS else ""
    return Block("Delta_m against its price", charts, note, choice=len(charts) > 1), limit


def bar_charts(table: Table) -> tuple[Block | None, str]:
    """The primary metric of each task."""
    charts = []
    for task in dict.fromkeys(column.group for column in table.columns if column.group):
        names = [column.name for column in table.columns if column.group == task and column.part == "accuracy"]
        primary = primary_metric(names)
        column = next((c for c in table.columns if c.group == task and c.name == primary), None)
        if column is None:
            continue
        shown = [_bar(table, number, column) for number in range(min(len(table.rows), MAX_BARS))]
        kept = [bar for bar in shown if bar is not None]
        if kept:
            title = f"{task}: {column_title(column)}"
            charts.append((title, bars(kept, title)))
    limit = f"Bars: the first {MAX_BARS} rows." if len(table.rows) > MAX_BARS else ""
    note = "The primary metric of each task, from zero. Whiskers: one s.d. over seeds (n >= 3)."
    return (Block("Tasks", charts, note, closed=len(charts) > 4), limit) if charts else (None, "")


def _bar(table: Table, number: int, column: Column) -> Bar | None:
    row = table.rows[number]
    summary = row.cells[table.columns.index(column)]
    if summary.mean is None:
        return None
    sd = summary.sd if summary.n >= MIN_SEEDS else None
    return Bar(row.label, number, summary.mean, sd, cell_text(summary, column, row.n))


def _text(table: Table, number: int, column: Column) -> str:
    row = table.rows[number]
    return cell_text(row.cells[table.columns.index(column)], column, row.n)


def curve_charts(table: Table, firsts: Sequence[Record | None]) -> tuple[Block | None, str]:
    """Curves of each row's first done seed, a chart for each name; those that most rows have come first."""
    held = [(number, record) for number, record in enumerate(firsts) if record is not None and record.curves]
    shown = held[:MAX_CURVES]
    common = Counter(name for _, record in shown for name in record.curves)
    names = sorted(common, key=lambda name: (-common[name], name.count("/"), name))
    charts = []
    for name in names[:MAX_CURVE_CHARTS]:
        found = [
            Curve(f"{table.rows[number].label}, seed {record.seed}", number, thinned(record.curves[name]))
            for number, record in shown
            if any(value is not None for value in record.curves.get(name, ()))
        ]
        if found:
            charts.append((name, curves(found, name, "recorded point")))
    limits = [f"Curves: the first {MAX_CURVES} rows."] if len(held) > MAX_CURVES else []
    limits += [f"Curves: {MAX_CURVE_CHARTS} of {len(names)} names."] if len(names) > MAX_CURVE_CHARTS else []
    note = f"As recorded, of each row's first done seed; at most {MAX_CURVE_POINTS} points a curve."
    return (Block("Curves", charts, note, closed=True) if charts else None), " ".join(limits)


def thinned(values: Sequence[float | None]) -> list[tuple[float, float | None]]:
    """(position from 1, value) of at most MAX_CURVE_POINTS points, evenly spaced, with the first and the last."""
    n = len(values)
    if n <= MAX_CURVE_POINTS:
        kept = range(n)
        return [(float(place + 1), values[place]) for place in kept]
    places = [round(k * (n - 1) / (MAX_CURVE_POINTS - 1)) for k in range(MAX_CURVE_POINTS)]
    return [(float(place + 1), values[place]) for place in places]
