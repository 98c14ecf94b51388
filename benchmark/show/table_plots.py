"""Pictures of tables, PNG and SVG for papers: Delta_m against its price with the Pareto front, and tasks side by side.

Numbers are those of the table; colours, shapes and the form of the front are those of the page.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.records.delta import primary_metric
from benchmark.records.store import safe_name
from benchmark.show.drawing import save_drawing
from benchmark.show.marks import LIGHT, SHAPES, color_of, shape_of
from benchmark.show.wording import column_title, row_title
from benchmark.tables.columns import Column, delta_column
from benchmark.tables.frontier import front, points, prices, staircase
from benchmark.tables.statistics import MIN_SEEDS
from benchmark.tables.table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing


def draw_tables(tables: Sequence[Table], folder: Path) -> Iterator[Path]:
    """Draw every table into a folder; gives the files. What a table has no numbers for is left out."""
    for table in tables:
        yield from draw_delta(table, folder)
        if task_columns(table):
            yield from save_drawing(lambda table=table: _tasks(table), folder / f"{_stem(table)}-tasks")  # type: ignore[misc]


def draw_delta(table: Table, folder: Path) -> list[Path]:
    """Draw Delta_m of a table against its prices; returns the files, none where the table has no Delta_m."""
    return save_drawing(lambda: _against_prices(table), _delta_stem(table, folder)) if prices(table) else []


def file_of_delta(table: Table, folder: Path) -> Path:
    """Where `draw_delta` writes its PNG."""
    return _delta_stem(table, folder).with_suffix(".png")


def _delta_stem(table: Table, folder: Path) -> Path:
    return folder / f"{_stem(table)}-delta"


def _stem(table: Table) -> str:
    return safe_name(f"{table.head.get('data', 'table').split(' ')[0]}-{table.key}")


def task_columns(table: Table) -> list[tuple[int, Column]]:
    """(position, column) of each task's primary metric, in the order of the tasks."""
    by_task: dict[str, dict[str, tuple[int, Column]]] = {}
    for position, column in enumerate(table.columns):
        if column.part == "accuracy" and column.group:
            by_task.setdefault(column.group, {})[column.name] = (position, column)
    named = [(columns, primary_metric(columns)) for columns in by_task.values()]
    return [columns[name] for columns, name in named if name is not None]


def _figure(n_panels: int, width: float, height: float) -> tuple[Drawing, list[Axes]]:
    import matplotlib.pyplot as plt
    import seaborn as sns

    with sns.axes_style("whitegrid"):
        drawing, axes = plt.subplots(
            1, n_panels, figsize=(width * n_panels, height), squeeze=False, layout="constrained"
        )
    return drawing, list(axes[0])


def _against_prices(table: Table) -> Drawing:
    """A panel a price; hollow marks are rows that may not be ranked, which are never on the front."""
    from matplotlib.ticker import EngFormatter

    columns = prices(table)
    drawing, axes = _figure(len(columns), 4.2, 3.8)
    for place, price in zip(axes, columns, strict=True):
        found = points(table, price)
        for point in found:
            color, marker = LIGHT[color_of(point.row)], SHAPES[shape_of(point.row)][0]
            place.errorbar(
                point.x, point.y, yerr=point.sd, fmt=marker, color=color, elinewidth=0.8, capsize=2, markersize=6,
                markerfacecolor=color if point.ranked else "white", label=row_title(table, point.row),
            )  # fmt: skip
        best = front(found, price.higher_is_better is False)
        steps = staircase(best)
        place.plot([x for x, _ in steps], [y for _, y in steps], "--", color="0.4", linewidth=1, zorder=0)
        if max(point.x for point in found) >= 1e4:  # 15 M, not 1.5 and a 1e7 in the corner
            place.xaxis.set_major_formatter(EngFormatter(sep="\N{THIN SPACE}"))
        place.set_xlabel(column_title(price))
        place.set_ylabel(column_title(delta_column(table.variant)))
    handles, labels = axes[0].get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside right center", fontsize=7, frameon=False)
    drawing.suptitle(
        "Delta_m against its price; dashed: Pareto front of ranked rows; whiskers: s.d. over seeds", fontsize=8
    )
    return drawing


def _tasks(table: Table) -> Drawing:
    """A panel a task: its primary metric, a bar a row; whiskers are one s.d. over three seeds or more."""
    columns = task_columns(table)
    drawing, axes = _figure(len(columns), 3.2, 1.0 + 0.24 * len(table.rows))
    for place, (position, column) in zip(axes, columns, strict=True):
        for number, row in enumerate(table.rows):
            cell = row.cells[position]
            if cell.mean is not None:
                sd = cell.sd if cell.n >= MIN_SEEDS else None
                place.barh(number, cell.mean, xerr=sd, color=LIGHT[color_of(number)], height=0.7, error_kw={"lw": 0.8})
        place.set_yticks(
            range(len(table.rows)), [row_title(table, number) for number in range(len(table.rows))], fontsize=7
        )
        place.set_ylim(len(table.rows) - 0.5, -0.5)
        place.set_xlabel(f"{column.group}: {column_title(column)}", fontsize=8)
        values = [row.cells[position].mean for row in table.rows]
        known = [value for value in values if value is not None]
        if known and min(known) > 0:
            place.set_xlim(left=0)
        if place is not axes[0]:
            place.set_yticklabels([])
    return drawing
