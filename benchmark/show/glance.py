"""The answer of a table at a glance: one table of at most eight columns, a line a row, and a verdict. Spec: evidence 6.

Rows stand best first where they are ranked, then those that may not be. The tasks share a column: four numbers at most,
of more tasks their mean.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence

from benchmark.show.verdict import order_of, verdict
from benchmark.show.wording import RED, brief_text, change_text, interval_text, seeds_text, times_text, unit_text
from benchmark.tables.columns import COST_COLUMNS, SIZE_COLUMNS, SPEED_COLUMNS, Column
from benchmark.tables.evidence import CONSTANT
from benchmark.tables.labels import DASH
from benchmark.tables.statistics import MIN_SEEDS, Summary
from benchmark.tables.table import Table

MOST_TASKS = 4  # more have their mean
_PARAMETERS = next(column for column in SIZE_COLUMNS if column.name == "x_backbone")
_MACS = tuple(column for column in SIZE_COLUMNS if column.name.startswith("macs"))  # the second: tasks of own images
_STEPS = tuple(column for column in COST_COLUMNS if column.unit == "optimizer steps")
_SPEED = next(column for column in SPEED_COLUMNS if column.name == "throughput, r")

Cells = tuple[str, ...]  # one for each title; the first is that of the tasks


@dataclasses.dataclass(frozen=True)
class Line:
    """A row. best: whether it is of the first rank group by Delta_m."""

    title: str
    cells: Cells
    best: bool


@dataclasses.dataclass(frozen=True)
class Glance:
    """head: what the table is of. titles: of the columns after the rows' own, each in lines. floor: cells of the
    constant prediction, None where it is not known. legend: what the numbers are. verdict: at most three sentences.
    """

    head: str
    titles: tuple[tuple[str, ...], ...]
    lines: tuple[Line, ...]
    floor: Cells | None
    legend: str
    verdict: tuple[str, ...]


def glance_of(table: Table) -> Glance:
    """The glance of a table."""
    columns = [column for column in _columns(table) if any(column.texts(n) != DASH for n in range(len(table.rows)))]
    best = {row for row, column in table.best if column == table.delta}
    floors = [column.floor for column in columns]
    return Glance(
        head=_head(table),
        titles=tuple(column.title for column in columns),
        lines=tuple(
            Line(_row_title(table, n), tuple(column.texts(n) for column in columns), n in best) for n in order_of(table)
        ),
        floor=tuple(floors) if any(floors) else None,
        legend=_legend(table, columns),
        verdict=tuple(verdict(table)),
    )


@dataclasses.dataclass(frozen=True)
class _Shown:
    """A column of the glance. texts: the cell of a row; meaning: for the legend."""

    title: tuple[str, ...]
    texts: Callable[[int], str]
    meaning: str = ""
    floor: str = ""


def _columns(table: Table) -> list[_Shown]:
    found = [*_task_column(table), _delta_column(table)]
    if table.untuned is not None:
        deltas = table.untuned.deltas
        gain = change_text(table.untuned.single_task.mean)
        meaning = (
            f"default: untuned{_seeds_of(table, deltas)}, over its own single-task row (table {table.untuned.key}); "
            f"tuning alone moves the single-task networks by {gain} %"
        )
        found.append(
            _Shown(("default", "Delta_m %"), lambda n: interval_text(deltas[n]) if n in deltas else DASH, meaning)
        )
    plain = "parameters x: of the plain backbone"
    found.append(_Shown(("params", "x"), lambda n: times_text(_mean(table, n, _PARAMETERS)), plain))
    found.append(_macs_column(table))
    if _SPEED in table.columns:
        meaning = "r: throughput, x the plain backbone"
        found.append(_Shown(("speed", "r ↑"), lambda n: times_text(_mean(table, n, _SPEED)), meaning))
    meaning = "steps: of optimizers in search and final training" + (", tuning apart" if table.untuned else "")
    found.append(_Shown(("steps", "in all"), functools.partial(_steps_text, table), meaning))
    return found


def _seeds_of(table: Table, deltas: Mapping[int, Summary]) -> str:
    """At how many seeds the rows stand without tuning, where at fewer than with it."""
    shares = [(found.n, table.rows[row].cells[table.delta].n) for row, found in deltas.items()]
    if all(n >= tuned for n, tuned in shares):
        return ""
    fewest, most = min(shares)[0], max(shares)[0]
    span = str(most) if fewest == most else f"{fewest} to {most}"
    return f" at {span} of {max(tuned for _, tuned in shares)} seeds"


def _mean(table: Table, row: int, column: Column) -> float | None:
    return table.rows[row].cells[table.columns.index(column)].mean if column in table.columns else None


# Tasks


def _task_column(table: Table) -> list[_Shown]:
    """One number a task, by its first metric; the mean of more than four, if they are of one unit and direction."""
    firsts = table.evidence.firsts
    columns = [table.columns[position] for position in firsts.values()]
    floors = [table.evidence.floors.get(position) for position in firsts.values()]
    if not columns:
        return []
    if len(columns) > MOST_TASKS:
        return _mean_column(table, columns, floors)

    def texts(row: int) -> str:
        means = [table.rows[row].cells[position].mean for position in firsts.values()]
        shown = [brief_text(mean, column) for mean, column in zip(means, columns, strict=True)]
        return " / ".join(shown) if any(mean is not None for mean in means) else DASH

    # Right aligned within the column, so that a task's numbers stand above each other.
    known = [text.split(" / ") for n in range(len(table.rows)) if (text := texts(n)) != DASH]
    floor = [brief_text(value, column) for value, column in zip(floors, columns, strict=True)]
    widths = [max(map(len, place)) for place in zip(*known, floor, strict=True)] if known else []

    def aligned(text: str) -> str:
        return " / ".join(part.rjust(width) for part, width in zip(text.split(" / "), widths, strict=True))

    metrics = [_metric_title(column) for column in columns]
    title: tuple[str, ...] = (" / ".join(firsts), metrics[0])
    if len(set(metrics)) > 1:
        ends = [*[" /"] * (len(metrics) - 1), ""]
        title = tuple(f"{task} {metric}{end}" for task, metric, end in zip(firsts, metrics, ends, strict=True))
    cells = [DASH if (text := texts(n)) == DASH else aligned(text) for n in range(len(table.rows))]
    last = aligned(" / ".join(floor)) if any(value is not None for value in floors) else ""
    return [_Shown(title, cells.__getitem__, floor=last)]


def _mean_column(table: Table, columns: Sequence[Column], floors: Sequence[float | None]) -> list[_Shown]:
    if len({(column.unit, column.higher_is_better) for column in columns}) > 1:
        return []
    names = dict.fromkeys(column.name for column in columns)
    shared = columns[0] if len(names) == 1 else dataclasses.replace(columns[0], name="first metrics")
    positions = list(table.evidence.firsts.values())

    def mean(values: Sequence[float | None]) -> str:
        known = [value for value in values if value is not None]
        return brief_text(math.fsum(known) / len(known), shared) if len(known) == len(values) else DASH

    last = mean(floors)
    return [
        _Shown(
            (f"mean of {len(columns)} tasks", _metric_title(shared)),
            lambda n: mean([table.rows[n].cells[position].mean for position in positions]),
            floor="" if last == DASH else last,
        )
    ]


def _metric_title(column: Column) -> str:
    return " ".join(filter(None, [column.name, unit_text(column), "↑" if column.higher_is_better else "↓"]))


# Prices


def _delta_column(table: Table) -> _Shown:
    tested = any(row.cells[table.delta].n >= MIN_SEEDS for row in table.rows)
    meaning = f"Delta_m: {table.variant}, mean relative gain over the single-task row"
    meaning += f"; {chr(177)}: half of the 95 % interval of its mean over seeds" if tested else ""
    return _Shown(("Delta_m", "% ↑"), lambda n: interval_text(table.rows[n].cells[table.delta]), meaning)


def _macs_column(table: Table) -> _Shown:
    """Of all tasks together, relative to the row that the others are tested against; without one, the counts."""
    macs = next((column for column in _MACS if any(_mean(table, n, column) for n in range(len(table.rows)))), _MACS[0])
    base = None if table.reference is None else _mean(table, table.reference, macs)
    if table.reference is None or not base:
        return _Shown(("MACs",), lambda n: brief_text(_mean(table, n, macs), macs), "MACs: of all tasks, one image")
    meaning = f"MACs x: of {table.names[table.reference]}"

    def texts(row: int) -> str:
        mean = _mean(table, row, macs)
        return times_text(None if mean is None else mean / base)

    return _Shown(("MACs", "x"), texts, meaning)


def _steps_text(table: Table, row: int) -> str:
    spent = [mean for column in _STEPS if (mean := _mean(table, row, column)) is not None]
    return brief_text(math.fsum(spent), _STEPS[0]) if spent else DASH


# Words


def _row_title(table: Table, position: int) -> str:
    row, mark = table.rows[position], f"{RED} " if position in table.audit.red else ""
    return mark + table.names[position] + ("" if row.is_complete else f" ({seeds_text(row)})")


def subject_of(table: Table) -> str:
    """Data set and backbone of a table."""
    data, backbone = (table.head.get(field, "").split(" (")[0] for field in ("data", "backbone"))
    return f"{data} on {backbone}"


def _head(table: Table) -> str:
    n_seeds = max((len(row.statuses) for row in table.rows), default=0)
    tuning = "equal tuning" if "tuning" in table.head else "equal recipe"
    parts = [
        subject_of(table),
        table.head.get("budget", ""),
        f"{n_seeds} seed{'s' if n_seeds > 1 else ''}",
        tuning,
    ]
    return ", ".join([*filter(None, parts), f"table {table.key}"])


def _legend(table: Table, columns: Sequence[_Shown]) -> str:
    parts = [column.meaning for column in columns if column.meaning]
    if table.best:
        parts.append("bold: not told apart from the best")
    if table.audit.red:
        parts.append(f"{RED}: not ranked")
    if table.misfits:
        parts.append(f"does not apply (see the notes): {', '.join(title.split(' ')[0] for title in table.misfits)}")
    return "; ".join(parts)


def fitting_titles(glance: Glance, room: int) -> list[str]:
    """The titles of the rows, see `cut_to`."""
    return cut_to([line.title for line in glance.lines], room)


def cut_to(titles: Sequence[str], room: int) -> list[str]:
    """Titles cut in the middle to at most `room` characters, but where two would look alike."""
    half = (room - 1) // 2
    cut = [text if len(text) <= room else f"{text[: room - 1 - half]}…{text[-half:]}" for text in titles]
    return [short if cut.count(short) == 1 else text for short, text in zip(cut, titles, strict=True)]


def floor_line(glance: Glance) -> list[str]:
    """Title and cells of the constant prediction, to be printed last; empty where it is not known."""
    return [CONSTANT, *glance.floor] if glance.floor is not None else []


def header_words(glance: Glance) -> list[str]:
    """The titles as single lines, that of the rows first."""
    return ["row", *(" ".join(title) for title in glance.titles)]


def column_widths(glance: Glance, room: int) -> list[int]:
    """Characters of each column after the titles of the rows: its widest cell and the longest word above it, and as far
    as `room` characters for all of them last, the longest line above it.
    """
    cells = [*(line.cells for line in glance.lines), *([glance.floor] if glance.floor is not None else [])]
    widths = []
    for column, title in zip(zip(*cells, strict=True), glance.titles, strict=True):
        words = [len(word) for part in title for word in part.split()]
        widths.append(max(*map(len, column), *words))
    for n, title in enumerate(glance.titles):
        widths[n] += max(0, min(room - sum(widths), max(map(len, title)) - widths[n]))
    return widths
