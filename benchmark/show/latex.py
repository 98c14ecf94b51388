"""Tables for a paper: one booktabs float a table with a short caption, notes apart beneath it."""

from __future__ import annotations

import dataclasses
import re
import textwrap
from collections.abc import Iterator, Sequence

from benchmark.escape import plain
from benchmark.show.glance import subject_of
from benchmark.show.names import Names, column_key, row_names
from benchmark.show.wording import RED, audit_lines, cell_text, head_line, note_lines, seeds_text
from benchmark.tables.columns import Column
from benchmark.tables.evidence import CONSTANT
from benchmark.tables.labels import DASH
from benchmark.tables.statistics import MIN_SEEDS, Summary
from benchmark.tables.table import Table
from datasets.errors import unknown

ALL_COLUMNS = "all"
_TITLE_WIDTH = 12  # characters; numbers with their spread are about as wide
_FIXED = "\N{NO-BREAK SPACE}"
_PRICES = ("x_backbone", "macs_joint")  # beside the first metric of each task and Delta_m
_SIGNS = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    "|": r"$|$",
    "±": r"$\pm$",
    "°": r"$^\circ$",
    "²": r"$^2$",
    "³": r"$^3$",
    "δ": r"$\delta$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    _FIXED: "~",
    DASH: "--",
    RED: r"$\times$",
}


@dataclasses.dataclass(frozen=True)
class Paper:
    """What of the tables is printed, and under which names.

    columns: keys of columns (`semseg.miou`), metrics (`miou`), tasks (`semseg`) or `all`, in this order; None for the
    first metric of each task, Delta_m, parameters and MACs. rows: labels, short labels or methods, in this order; None
    for all.
    """

    columns: Sequence[str] | None = None
    rows: Sequence[str] | None = None
    names: Names = Names()


def render_latex(tables: Sequence[Table], invalid: Sequence[str] = (), paper: Paper = Paper()) -> str:
    """LaTeX for the package booktabs; tables without any of the rows or of the columns are left out. Raises
    UnknownNameError for a row or column that no table has.
    """
    _check(tables, paper)
    lines = [r"% needs \usepackage{booktabs}"]
    for table in tables:
        rows, columns = _rows(table, paper.rows), _columns(table, paper.columns)
        if rows and columns:
            lines += ["", *_float(table, rows, columns, paper.names)]
            lines += ["", *_notes(table, len(rows), paper.names)]
    lines += [rf"\par {escaped(line)}" for line in invalid]
    return "\n".join(lines) + "\n"


# What is asked for


def _check(tables: Sequence[Table], paper: Paper) -> None:
    columns = [column for table in tables for column in table.columns]
    known = {name for column in columns for name in _column_names(column)}
    for name in paper.columns or ():
        if name not in known:
            raise unknown("column", name, known)
    rows = {name for table in tables for name in row_names(table)}
    for name in paper.rows or ():
        if name not in rows:
            raise unknown("row", name, rows)


def _column_names(column: Column) -> set[str]:
    names = {column_key(column), ALL_COLUMNS}
    return names | {column.group, column.name} if column.group else names


def _columns(table: Table, wanted: Sequence[str] | None) -> list[int]:
    """Positions, each once, in the order that is asked for."""
    if wanted is None:
        firsts = [table.columns[position] for position in table.evidence.firsts.values()]
        wanted = [*map(column_key, firsts), column_key(table.columns[table.delta]), *_PRICES]
    found = [n for name in wanted for n, column in enumerate(table.columns) if name in _column_names(column)]
    known = (n for n in found if any(row.cells[n].n for row in table.rows))
    return list(dict.fromkeys(known))


def _rows(table: Table, wanted: Sequence[str] | None) -> list[int]:
    if wanted is None:
        return list(range(len(table.rows)))
    exact = [(row.label, row.short) for row in table.rows]
    found = []
    for name in wanted:
        named = [n for n, labels in enumerate(exact) if name in labels]
        found += named or [n for n, row in enumerate(table.rows) if row.method == name]
    return list(dict.fromkeys(found))


# The float


# pandas' Styler.to_latex is not used: it draws no \cmidrule under the heads of tasks, and a row that begins with [ or *
# becomes an argument of the line break before it.
def _float(table: Table, rows: Sequence[int], columns: Sequence[int], names: Names) -> Iterator[str]:
    shown = [table.columns[n] for n in columns]
    counts = {seeds_text(table.rows[n]) for n in rows}
    n_title = ["n"] if len(counts) > 1 else []  # else the caption says it
    yield from (r"\begin{table}", r"\centering\small", rf"\caption{{{escaped(_caption(table, rows, counts))}}}")
    yield from (rf"\label{{tab:{table.key}}}", rf"\begin{{tabular}}{{l{'l' * len(n_title)}{'r' * len(columns)}}}")
    yield from (r"\toprule", *_heads(shown, n_title, names), r"\midrule")
    for n in rows:
        row = table.rows[n]
        cells = [_cell(row.cells[position], table.columns[position], row.n) for position in columns]
        marked = [
            rf"\textbf{{{text}}}" if (n, position) in table.best else text
            for text, position in zip(cells, columns, strict=True)
        ]
        yield _line([escaped(names.row(table, n)), *([escaped(seeds_text(row))] if n_title else []), *marked])
    floors = table.evidence.floors
    if any(position in floors for position in columns):
        texts = [
            _cell(Summary((0,), (floors[n],)), table.columns[n], 1) if n in floors else escaped(DASH) for n in columns
        ]
        yield from (r"\midrule", _line([CONSTANT.capitalize(), *([""] if n_title else []), *texts]))
    yield from (r"\bottomrule", r"\end{tabular}", r"\end{table}")


def _caption(table: Table, rows: Sequence[int], counts: set[str]) -> str:
    most = max(table.rows[n].n for n in rows)
    seeds = f"{most} seed{'s' if most > 1 else ''}"
    parts = [f"mean ± s.d. over {seeds}" if most >= MIN_SEEDS else f"means of {seeds}" if most > 1 else counts.pop()]
    if any(row in rows for row, _ in table.best):
        parts.append("bold: not told apart from the best")
    if any(n in table.audit.red for n in rows):
        parts.append(f"{RED}: not ranked")
    budget = table.head.get("budget", "")
    return f"{subject_of(table)}{f', {budget}' if budget else ''}: {'; '.join(parts)}."


def _heads(columns: Sequence[Column], n_title: Sequence[str], names: Names) -> Iterator[str]:
    """One or two lines: tasks over their metrics, or the metric over the tasks where each has that one alone."""
    metrics = [column for column in columns if column.group]
    one_metric = len(metrics) > 1 and len({column.name for column in metrics}) == 1
    one_metric = one_metric and len({column.group for column in metrics}) == len(metrics)

    def over(column: Column) -> str:
        return (names.column(column) if one_metric else names.task(column.group)) if column.group else ""

    def beneath(column: Column) -> str:
        return names.task(column.group) if one_metric and column.group else names.column(column)

    if metrics:
        yield from _spans([over(column) for column in columns], 1 + len(n_title))
    yield _line(["Method", *n_title, *(_stacked(beneath(column)) for column in columns)])


def _stacked(title: str) -> str:
    """A title in lines of few characters."""
    kept = re.sub(r" (?=[↑↓])", _FIXED, title)
    lines = textwrap.wrap(kept, _TITLE_WIDTH, break_long_words=False, break_on_hyphens=False)
    text = r" \\ ".join(map(escaped, lines))
    return escaped(title) if len(lines) < 2 else rf"\shortstack[r]{{{text}}}"


def _spans(titles: Sequence[str], before: int) -> Iterator[str]:
    """A line of titles, each over all columns in a row that it belongs to, and rules beneath them."""
    spans: list[tuple[str, int]] = []
    for title in titles:
        if spans and spans[-1][0] == title:
            spans[-1] = (title, spans[-1][1] + 1)
        else:
            spans.append((title, 1))
    yield _line([*([""] * before), *(rf"\multicolumn{{{n}}}{{c}}{{{escaped(title)}}}" for title, n in spans)])
    rules, start = [], 1 + before
    for title, n in spans:
        rules += [rf"\cmidrule(lr){{{start}-{start + n - 1}}}"] if title else []
        start += n
    yield " ".join(rules)


def _cell(summary: Summary, column: Column, row_n: int) -> str:
    """As everywhere, but of two seeds the mean alone: both values are in the other forms of the table."""
    if summary.n == 2 and summary.mean is not None:
        text = cell_text(Summary((0,), (summary.mean,)), column, 1)
        return escaped(text if row_n == summary.n else f"{text} (n={summary.n})")
    return escaped(cell_text(summary, column, row_n))


def _line(cells: Sequence[str]) -> str:
    guard = "{}" if cells[0][:1] in ("[", "*") else ""  # else an argument of the line break before it
    return guard + " & ".join(cells) + r" \\"


# Beneath


def _notes(table: Table, n_rows: int, names: Names) -> Iterator[str]:
    """What a reader must know and a caption cannot hold, but for facts of methods; the last lines say what else can be
    chosen.
    """
    left_out = len(table.rows) - n_rows
    hidden = [f"{left_out} of {len(table.rows)} rows are left out; tests, ranks and bold are over all of them"]
    yield "% Notes, apart from the float: for the text or an appendix."
    yield rf"\paragraph{{Notes on Table~\ref{{tab:{table.key}}}}}"
    yield r"{\small\begin{itemize}"
    head = [*table.banners, head_line(table), *(hidden if left_out else [])]
    for line in (*head, *note_lines(table), *audit_lines(table)):
        yield rf"\item {{}}{escaped(names.in_text(table, line))}"
    yield r"\end{itemize}}"
    for what, texts in (("columns", map(column_key, table.columns)), ("rows", (row.label for row in table.rows))):
        yield f"% --{what} are: {', '.join(map(plain, texts))}"


def escaped(text: str) -> str:
    """Text whose characters mean nothing to LaTeX, Delta_m and minus signs set as mathematics."""
    text = plain(text).replace("Delta_m", "\0")
    text = "".join(_SIGNS.get(character, character) for character in text).replace("\0", r"$\Delta_m$")
    return re.sub(r"(?<![\w)-])-(?=\d)", "$-$", text)
