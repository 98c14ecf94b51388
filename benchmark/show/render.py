"""Tables -> text: terminal, Markdown and CSV, and `benchmark.show.latex`. The words and the rounding are those of
`benchmark.show.wording`; CSV holds full precision.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from typing import Literal

from benchmark.cli import WIDTH_OF_FILES
from benchmark.escape import CsvWriter, markdown_row, markdown_text, plain
from benchmark.show.glance import glance_of
from benchmark.show.glance_text import (
    markdown_banners,
    markdown_glance,
    print_glance,
    render_glance_markdown,
    render_glance_terminal,
)
from benchmark.show.latex import Paper, render_latex
from benchmark.show.wording import (
    cell_text,
    column_title,
    finding_text,
    floor_texts,
    head_line,
    legend,
    lines_beneath,
    row_title,
    seeds_text,
)
from benchmark.tables.columns import Column, Part
from benchmark.tables.evidence import CONSTANT, NOT_A_LEADERBOARD
from benchmark.tables.table import Table
from datasets.errors import UsageError

Format = Literal["terminal", "markdown", "csv", "latex"]
# What methods found is a line a method, beneath: a table of it would be dashes but for one row a column.
PARTS: tuple[Part, ...] = ("accuracy", "size and compute", "cost", "convergence", "speed")


def _parts(table: Table) -> list[Part]:
    """Parts that the table has columns of: speed is not always measured."""
    return [part for part in PARTS if _columns_of(table, part)]


def _columns_of(table: Table, part: Part) -> list[int]:
    return [position for position, column in enumerate(table.columns) if column.part == part]


def render_terminal(
    tables: Sequence[Table], invalid: Sequence[str] = (), width: int = WIDTH_OF_FILES, color: bool = False
) -> str:
    """Text for a terminal of `width` characters; wide tables are broken between columns. color: ANSI codes for bold."""
    from rich.console import Console
    from rich.text import Text

    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=color, highlight=False, legacy_windows=False)
    for table in tables:
        console.print(Text(plain(head_line(table)), style="bold"))
        for banner in table.banners:
            style = "bold red" if banner.startswith(NOT_A_LEADERBOARD) else "bold"
            console.print(Text(plain(f"! {banner}"), style=style))
        if table.shown_in is None:
            console.print()
            print_glance(console, glance_of(table))
        for part in _parts(table):
            for positions in _fitting(table, _columns_of(table, part), width):
                console.print()
                console.print(_rich_table(table, positions))
            console.print(Text(legend(table, part), style="dim"))
        console.print()
        for line in lines_beneath(table):
            console.print(Text(plain(line)))
        console.print()
    for line in _invalid(invalid):
        console.print(Text(plain(line)))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _rich_table(table: Table, positions: Sequence[int]) -> object:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    drawn.add_column(Text("method"), overflow="fold", vertical="bottom")
    drawn.add_column(Text("n"), overflow="fold", vertical="bottom")
    for position in positions:
        title = Text("\n".join(_stacked_title(table.columns[position])))
        drawn.add_column(title, justify="right", overflow="fold", vertical="bottom")
    for number, row in enumerate(table.rows):
        cells = [
            Text(cell_text(row.cells[position], table.columns[position], row.n), _style(table, number, position))
            for position in positions
        ]
        drawn.add_row(Text(plain(row_title(table, number))), Text(seeds_text(row)), *cells)
    floors = floor_texts(table, positions)
    if floors is not None:
        drawn.add_row(Text(CONSTANT), Text(""), *map(Text, floors))
    return drawn


def _stacked_title(column: Column) -> list[str]:
    """The title in short lines: task, name, unit and arrow."""
    words = [column.group, column.name] if column.group else column.name.split(" ")
    return [plain(word) for word in [*words, column_title(column).removeprefix(column.name).strip()] if word]


def _style(table: Table, row: int, column: int) -> str:
    return "bold" if (row, column) in table.best else ""


def _fitting(table: Table, positions: Sequence[int], width: int) -> Iterator[list[int]]:
    """The columns in as few groups as fit beside `method` and `n`, in their order, at least one in each."""
    gap = 3  # rich puts two spaces and the rule's joint between columns
    labels = max((len(plain(row_title(table, number))) for number in range(len(table.rows))), default=6)
    left = min(labels, width // 3) + max((len(seeds_text(row)) for row in table.rows), default=1) + 2 * gap
    group: list[int] = []
    used = left
    for position in positions:
        column = table.columns[position]
        texts = [cell_text(row.cells[position], column, row.n) for row in table.rows]
        texts += floor_texts(table, [position]) or []
        needed = max(map(len, [*_stacked_title(column), *texts])) + gap
        if group and used + needed > width:
            yield group
            group, used = [], left
        group.append(position)
        used += needed
    if group:
        yield group


def render_markdown(tables: Sequence[Table], invalid: Sequence[str] = ()) -> str:
    """GitHub-flavoured Markdown: a paragraph for the head, one table a part, notes as a list."""
    lines: list[str] = []
    for table in tables:
        lines += [f"**{markdown_text(head_line(table))}**", ""]
        lines += markdown_banners(table)
        lines += markdown_glance(glance_of(table)) if table.shown_in is None else []
        for part in _parts(table):
            lines += [
                *_markdown_part(table, _columns_of(table, part)),
                "",
                f"*{markdown_text(legend(table, part))}*",
                "",
            ]
        notes = [f"- {markdown_text(line)}" for line in lines_beneath(table)]
        lines += [*notes, ""] if notes else []
    lines += [f"- {markdown_text(line)}" for line in _invalid(invalid)]
    return "\n".join(lines).rstrip("\n") + "\n"


def _markdown_part(table: Table, positions: Sequence[int]) -> list[str]:
    columns = [table.columns[position] for position in positions]
    titles = [f"{column.group}: {column_title(column)}" if column.group else column_title(column) for column in columns]
    lines = [markdown_row(["method", "n", *map(markdown_text, titles)]), "|---|---|" + "---:|" * len(columns)]
    for number, row in enumerate(table.rows):
        cells = []
        for position in positions:
            text = markdown_text(cell_text(row.cells[position], table.columns[position], row.n))
            cells.append(f"**{text}**" if (number, position) in table.best else text)
        lines.append(markdown_row([markdown_text(row_title(table, number)), seeds_text(row), *cells]))
    floors = floor_texts(table, positions)
    if floors is not None:
        lines.append(markdown_row([CONSTANT, "", *map(markdown_text, floors)]))
    return lines


def render_csv(tables: Sequence[Table], invalid: Sequence[str] = ()) -> str:
    """Tidy CSV in full precision: one line per row and quantity; `seeds` lines hold statuses, `record` lines bad files.

    values: JSON {seed: value}; sd: divisor n - 1, empty for n < 2; statuses: JSON {seed: status}; ranked: whether the
    row may be ranked; audit: what it differs in. Against the row in `reference`: difference, its s.d. over seeds, p and
    p after Holm over `m` comparisons; rank within the column; empty where nothing was tested.
    """
    fields = list(dict.fromkeys(field for table in tables for field in table.head))
    out = io.StringIO()
    writer = CsvWriter(out)
    writer.writerow(["table", *fields, *_CSV_QUANTITY, *_CSV_ROW, *_CSV_TESTS])
    for table in tables:
        head = [table.key, *(table.head.get(field, "") for field in fields)]
        for number in range(len(table.rows)):
            writer.writerows([*head, *line] for line in _csv_lines(table, number))
        writer.writerows([*head, *line] for line in _csv_floors(table))
    for line in invalid:
        empty = dict.fromkeys([*_CSV_QUANTITY, *_CSV_ROW, *_CSV_TESTS], "")
        writer.writerow(["", *([""] * len(fields)), *(empty | {"quantity": "record", "reason": line}).values()])
    return out.getvalue()


_CSV_QUANTITY = ("method", "label", "params", "task", "quantity", "unit", "direction", "n", "mean", "sd", "values")
_CSV_ROW = ("n_seeds", "statuses", "reason", "ranked", "audit")
_CSV_TESTS = ("reference", "difference", "difference_sd", "p", "p_holm", "m", "detectable", "rank")


def _csv_lines(table: Table, number: int) -> Iterator[list[object]]:
    row = table.rows[number]
    name = [row.method, row.label, json.dumps(row.params, ensure_ascii=False, sort_keys=True)]
    statuses = json.dumps({str(seed): status for seed, status in row.statuses.items()})
    found = [finding_text(finding) for finding in table.audit.findings if number in finding.rows]
    beneath = [len(row.statuses), statuses, "; ".join((*row.failures, *table.banners))]
    beneath += ["yes" if number in table.ranked else "no", " | ".join(found)]
    yield [*name, "", "seeds", "", "", row.n, "", "", "", *beneath, *([""] * len(_CSV_TESTS))]
    for position, (column, summary) in enumerate(zip(table.columns, row.cells, strict=True)):
        direction = {None: "", True: "higher", False: "lower"}[column.higher_is_better]
        values = json.dumps({str(seed): value for seed, value in zip(summary.seeds, summary.values, strict=True)})
        numbers = [summary.n, _exact(summary.mean), _exact(summary.sd), values]
        tests = _csv_tests(table, number, position)
        yield [*name, column.group, column.name, column.unit, direction, *numbers, *beneath, *tests]


def _csv_floors(table: Table) -> Iterator[list[object]]:
    """The scores of the constant prediction, one line a metric, as a row without method, params and seeds."""
    empty = [""] * (len(_CSV_ROW) + len(_CSV_TESTS))
    for position, value in table.evidence.floors.items():
        column = table.columns[position]
        quantity = [column.group, column.name, column.unit, "higher" if column.higher_is_better else "lower"]
        yield ["", CONSTANT, "", *quantity, "", _exact(value), "", "", *empty]


def _csv_tests(table: Table, number: int, position: int) -> list[object]:
    """The values of _CSV_TESTS for one cell."""
    tests = table.statistics.get(position)
    if tests is None or number not in tests.ranks:
        return [""] * len(_CSV_TESTS)
    after = [tests.m, _exact(tests.detectable), tests.ranks[number]]
    one = tests.comparisons.get(number)
    if one is None or table.reference is None:
        return [*([""] * 5), *after]
    label = table.rows[table.reference].label
    return [label, _exact(one.mean), _exact(one.sd), _exact(one.p), _exact(one.adjusted), *after]


def _exact(value: float | None) -> str:
    return "" if value is None else repr(value)


def _invalid(lines: Sequence[str]) -> list[str]:
    return [f"invalid record {line}" for line in lines]


def render(
    tables: Sequence[Table],
    invalid: Sequence[str] = (),
    format: Format = "terminal",
    width: int = WIDTH_OF_FILES,
    color: bool = False,
    glance: bool = False,
    paper: Paper = Paper(),
) -> str:
    """Tables as text. invalid: lines about files that cannot be trusted. width, color: of terminal output. glance: only
    the answer of each table. paper: what LaTeX shows. Raises UsageError for a glance as CSV or LaTeX, and as
    `render_latex`.
    """
    if glance and format not in ("terminal", "markdown"):
        raise UsageError(f"The answer at a glance has the formats terminal and markdown, not {format}.")
    match format:
        case "terminal" if glance:
            return render_glance_terminal(tables, _invalid(invalid), width, color)
        case "markdown" if glance:
            return render_glance_markdown(tables, _invalid(invalid))
        case "terminal":
            return render_terminal(tables, invalid, width, color)
        case "markdown":
            return render_markdown(tables, invalid)
        case "csv":
            return render_csv(tables, invalid)
        case "latex":
            return render_latex(tables, _invalid(invalid), paper)
