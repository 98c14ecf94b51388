"""The answer at a glance as text: for a terminal of 100 columns, and as Markdown for a README or the head of a file."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from benchmark.escape import markdown_row, markdown_text, plain
from benchmark.show.glance import Glance, column_widths, fitting_titles, floor_line, glance_of, header_words
from benchmark.tables.evidence import NOT_A_LEADERBOARD
from benchmark.tables.table import Table

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 100  # columns, on wider terminals too: eyes lose the line
_LEAST_TITLE = 16  # characters of a row's title
_GAP = 3  # between columns, with the joint of the rule
_LINES = 37  # of a screen of 40, less those that name the files
_OTHER_LINES = 15  # head, titles, rule, constant prediction, legend and verdict
_WARNING_LINES = 4  # of all warnings together, at least; the rest stands in the whole report
_BREAK = 10  # characters that a line may lose at its end, as lines break between words


def render_glance_terminal(
    tables: Sequence[Table], beneath: Sequence[str] = (), width: int = WIDTH, color: bool = False
) -> str:
    """The glance of each table but those that another one shows; beneath: lines about files. color: ANSI codes."""
    from rich.console import Console
    from rich.text import Text

    out = io.StringIO()
    width = min(width, WIDTH)
    console = Console(file=out, width=width, force_terminal=color, highlight=False, legacy_windows=False)
    shown = [table for table in tables if table.shown_in is None]
    for table in shown:
        glance = glance_of(table)
        console.print(Text(plain(glance.head), style="bold"))
        for warning, style in _warnings(table, width):
            console.print(Text(warning, style=style))
        print_glance(console, glance)
        if table is not shown[-1]:
            console.print()
    for line in beneath:
        console.print(Text(plain(line)))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _warnings(table: Table, width: int) -> Iterator[tuple[str, str]]:
    """(text, style) of each banner, cut so that the whole fits a screen: a line each, the rest to the first ones."""
    room = max(_WARNING_LINES, _LINES - _OTHER_LINES - len(table.rows))
    texts = [plain(f"! {banner}") for banner in table.banners[:room]]
    spare = room - len(texts)
    for text, banner in zip(texts, table.banners, strict=False):
        wanted = math.ceil(len(text) / (width - _BREAK))
        lines = min(wanted, 1 + spare)
        spare -= lines - 1
        shown = text if lines == wanted else f"{text[: lines * (width - _BREAK)].rsplit(' ', 1)[0]} …"
        yield shown, "bold red" if banner.startswith(NOT_A_LEADERBOARD) else "bold"


def print_glance(console: Console, glance: Glance) -> None:
    """Table, legend and verdict on a console, within `WIDTH` columns."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    width = min(console.width, WIDTH)
    drawn = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 1))
    room, longest = width - _GAP * len(glance.titles), max(len(line.title) for line in glance.lines)
    widths = column_widths(glance, room - longest)
    titles = fitting_titles(glance, max(_LEAST_TITLE, room - sum(widths)))
    drawn.add_column(Text("row"), overflow="fold", vertical="bottom")
    for words, n in zip(glance.titles, widths, strict=True):
        # A task a line under each other needs no slash, which would stand on a line of its own.
        header = Text("\n".join(plain(word).removesuffix(" /") for word in words))
        drawn.add_column(header, justify="right", width=n, overflow="fold", vertical="bottom")
    for title, line in zip(titles, glance.lines, strict=True):
        style = "bold" if line.best else ""
        drawn.add_row(Text(plain(title), style), *map(Text, line.cells))
    if last := floor_line(glance):
        drawn.add_row(*map(Text, last))
    console.print(drawn)
    console.print(Text(plain(glance.legend), style="dim"), width=width)
    for sentence in glance.verdict:
        console.print(Text(plain(sentence), style="bold"), width=width)


def render_glance_markdown(tables: Sequence[Table], beneath: Sequence[str] = ()) -> str:
    """The glance of each table but those that another one shows."""
    lines: list[str] = []
    for table in tables:
        if table.shown_in is None:
            glance = glance_of(table)
            lines += [f"**{markdown_text(glance.head)}**", ""]
            lines += [*markdown_banners(table), *markdown_glance(glance)]
    lines += [f"- {markdown_text(line)}" for line in beneath]
    return "\n".join(lines).rstrip("\n") + "\n"


def markdown_banners(table: Table) -> list[str]:
    """The warnings of a table, each a block of its own."""
    return [line for banner in table.banners for line in (f"> **{markdown_text(banner)}**", "")]


def markdown_glance(glance: Glance) -> list[str]:
    """Verdict, table and legend."""
    header = [markdown_text(title) for title in header_words(glance)]
    lines = [f"**{' '.join(map(markdown_text, glance.verdict))}**", ""]  # a name may begin like a heading or a list
    lines += [markdown_row(header), "|---|" + "---:|" * (len(header) - 1)]
    for line in glance.lines:
        title = markdown_text(line.title)
        lines.append(_markdown_line(f"**{title}**" if line.best else title, line.cells))
    if last := floor_line(glance):
        lines.append(_markdown_line(last[0], last[1:]))
    return [*lines, "", f"*{markdown_text(glance.legend)}*", ""]


def _markdown_line(title: str, cells: Sequence[str]) -> str:
    return markdown_row([title, *(markdown_text(" ".join(text.split())) for text in cells)])
