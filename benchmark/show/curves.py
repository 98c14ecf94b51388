"""Delta_m along a parameter of a method, as a picture for papers: what the amount of sharing or of search is worth.

`flow_constant` draws Delta_m against that parameter, `kappa:sparsity` along kappa against what came of it, a number
that the method reports. Rows that differ in this parameter alone are one line; what a tuning chose does not part them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.records.keys import flat_params
from benchmark.records.store import safe_name
from benchmark.show.drawing import save_drawing
from benchmark.show.marks import LIGHT, SHAPES
from benchmark.show.names import Names
from benchmark.show.table_plots import COLUMN, DPI, FORMATS, INK, axes_at, stem_of
from benchmark.tables.rows import Row
from benchmark.tables.statistics import MIN_SEEDS
from benchmark.tables.table import Table
from datasets.errors import UsageError, unknown

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing


@dataclasses.dataclass(frozen=True)
class Curve:
    """A line of a picture. x, y: of its rows, by x. sd: of y over seeds, None below three."""

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    sd: tuple[float | None, ...]


def draw_curves(tables: Sequence[Table], wanted: Sequence[str], folder: Path, names: Names = Names()) -> Iterator[Path]:
    """Draw each wanted curve of every table that has one; gives the files. Raises UsageError for what no table has."""
    for text in wanted:
        along, _, against = text.partition(":")
        found = [(table, curves(table, along, against)) for table in tables]
        if not any(lines for _, lines in found):
            raise _absent(tables, along, against)
        for table, lines in found:
            if lines:
                stem = folder / f"{stem_of(table)}-along-{safe_name(text)}"
                make = functools.partial(_drawing, table, lines, against or along, names)
                yield from save_drawing(make, stem, dpi=DPI, formats=FORMATS)


def curves(table: Table, along: str, against: str = "") -> list[Curve]:
    """The lines of a table along a parameter, each of two values or more. against: a number that methods report, in
    place of the parameter as x. Methods without the parameter have no line.
    """
    groups: dict[tuple[str, tuple[tuple[str, str], ...]], list[tuple[float, Row]]] = {}
    for row in table.rows:
        params = dict(flat_params(row.params))
        x = _fact(table, row, against) if against else _number(params.get(along))
        if along in params and x is not None and row.cells[table.delta].mean is not None:
            others = tuple((name, value) for name, value in flat_params(row.untuned_params) if name != along)
            groups.setdefault((row.method, others), []).append((x, row))
    lines = {key: rows for key, rows in groups.items() if len({x for x, _ in rows}) > 1}
    return [_curve(table, _label(key, list(lines)), rows) for key, rows in lines.items()]


def _curve(table: Table, label: str, rows: list[tuple[float, Row]]) -> Curve:
    rows = sorted(rows, key=lambda pair: pair[0])
    cells = [row.cells[table.delta] for _, row in rows]
    return Curve(
        label,
        tuple(x for x, _ in rows),
        tuple(cell.mean for cell in cells if cell.mean is not None),
        tuple(cell.sd if cell.n >= MIN_SEEDS else None for cell in cells),
    )


def _label(key: tuple[str, tuple[tuple[str, str], ...]], keys: Sequence[tuple[str, object]]) -> str:
    """The method, where there are several, and the parameters in which its lines differ."""
    method, own = key
    siblings = [dict(others) for name, others in keys if name == method]  # type: ignore[call-overload]
    telling = [value for name, value in own if any(other.get(name) != value for other in siblings)]
    several = len({name for name, _ in keys}) > 1
    return ", ".join([method, *telling] if several or not telling else telling)


def _fact(table: Table, row: Row, name: str) -> float | None:
    found = [cell.mean for column, cell in zip(table.columns, row.cells, strict=True)
             if column.part == "found" and column.name == name]  # fmt: skip
    return found[0] if found else None


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _absent(tables: Sequence[Table], along: str, against: str) -> UsageError:
    params = {name for table in tables for row in table.rows for name, _ in flat_params(row.params)}
    facts = {column.name for table in tables for column in table.columns if column.part == "found"}
    if along not in params:
        return unknown("parameter", along, params)
    if against and against not in facts:
        return unknown("number that methods report", against, facts)
    return UsageError(f"--curve {along}: no rows differ in {along} alone.")


def _drawing(table: Table, lines: Sequence[Curve], x_title: str, names: Names) -> Drawing:
    import matplotlib.pyplot as plt

    drawing = plt.figure(figsize=(COLUMN, COLUMN * 0.75))
    across, up = (72 * inches for inches in drawing.get_size_inches())
    axes = axes_at(drawing, 34.0, 27.0, across - 42.0, up - 41.0)
    for n, line in enumerate(lines):
        has_sd = all(value is not None for value in line.sd)
        axes.errorbar(
            line.x, line.y, yerr=[value or 0.0 for value in line.sd] if has_sd else None, color=LIGHT[n % len(LIGHT)],
            fmt=f"{SHAPES[n % len(SHAPES)][0]}-", linewidth=1, elinewidth=0.8, markersize=3.5, label=line.label,
        )  # fmt: skip
    axes.axhline(0.0, color="#888888", linewidth=0.6, zorder=0)
    axes.set_xlabel(x_title, fontsize=7, labelpad=2, color=INK)
    axes.set_ylabel(names.column(table.columns[table.delta]), fontsize=7, labelpad=2, color=INK)
    if any(value is not None for line in lines for value in line.sd):
        axes.set_title("whiskers: s.d. over seeds", fontsize=6, loc="left", pad=3, color="#555555")
    if len(lines) > 1:
        axes.legend(fontsize=6.5, frameon=False)
    return drawing
