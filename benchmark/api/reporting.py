"""What `report` does: tables, published rows beside ours, a difference of runs, a page and pictures of a run's folder.

Reads records, trains nothing.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.cli import WIDTH_OF_FILES, say
from benchmark.plan.plugins import load_plugins
from benchmark.records.store import Store, write_atomic
from benchmark.show.latex import Paper
from benchmark.show.names import Names, read_names
from benchmark.show.render import Format, render
from benchmark.tables.folder import ReadTables, TableOptions, read_records, read_tables, tables_of
from datasets.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

ALL_BOARDS = "all"


@dataclasses.dataclass(frozen=True)
class ReportRequest:
    """What to report of the run in `directory`, and where to.

    format, width, color: of the text. glance: only the answer of each table, None for a terminal alone. out: file of
    the text, None for standard output. options: of the tables. html: file of a page; the text is then written only with
    `out`. figures: folder of pictures. against: folder of an earlier run, board: name of published rows; either takes
    the place of the tables. curves: along parameters, drawn among the figures. published: folder of boards, None for
    the shipped ones. show_recalled: also rows of a board that were checked against no source. columns, rows: of LaTeX,
    see `Paper`. names: YAML page of what LaTeX and pictures call rows, columns and tasks.
    """

    directory: Path
    format: Format = "terminal"
    glance: bool | None = None
    out: Path | None = None
    options: TableOptions = TableOptions()
    html: Path | None = None
    figures: Path | None = None
    curves: Sequence[str] = ()
    against: Path | None = None
    board: str | None = None
    published: Path | None = None
    show_recalled: bool = False
    columns: Sequence[str] | None = None
    rows: Sequence[str] | None = None
    names: Path | None = None
    plugins: Sequence[Path] = ()
    width: int = WIDTH_OF_FILES
    color: bool = False


def report_folder(request: ReportRequest, console: Console) -> str:
    """Write the files that are asked for, naming them on the console; returns the text for standard output, which is
    empty where it went to a file. Raises UsageError.
    """
    if request.curves and request.figures is None:
        raise UsageError("--curve needs --figures FOLDER, into which it is drawn.")
    load_plugins(request.plugins)
    paper = _paper(request, console)
    if request.html is not None:
        write_atomic(request.html, page(request.directory, request.options).encode("utf-8"))
        say(console, f"Page: {request.html}")
    text = _text(request, paper)
    if request.out is not None:
        write_atomic(request.out, text.encode("utf-8"))
    if request.figures is not None:
        drawn, absent = draw(request.directory, request.figures, paper.names, request.curves)
        say(console, f"Figures: {len(drawn)} files in {request.figures}")
        if absent:
            counted = (
                "1 figure of what methods found is" if absent == 1 else f"{absent} figures of what methods found are"
            )
            say(console, f"{counted} not in {request.directory}.")
    return text if request.out is None else ""


def _paper(request: ReportRequest, console: Console) -> Paper:
    if request.format != "latex" and (request.columns is not None or request.rows is not None):
        raise UsageError(f"--columns and --rows choose what --format latex prints; the format is {request.format}.")
    names = Names()
    if request.names is not None:
        names = read_names(request.names)
        for line in names.unused(read_tables(request.directory, request.options)[1]):
            say(console, f"{request.names}: {line}")
    return Paper(request.columns, request.rows, names)


def _text(request: ReportRequest, paper: Paper) -> str:
    directory, width = request.directory, request.width
    if request.against is not None:
        return compare_runs(directory, request.against, request.format)
    if request.board is not None:
        return compare_with_boards(
            directory,
            request.board,
            published=request.published,
            show_recalled=request.show_recalled,
            format=request.format,
            width=width,
        )
    if request.html is not None and request.out is None:
        return ""
    return report(directory, request.format, request.options, width, request.color, request.glance, paper)


def report(
    directory: Path,
    format: Format = "terminal",
    options: TableOptions = TableOptions(),
    width: int = WIDTH_OF_FILES,
    color: bool = False,
    glance: bool | None = None,
    paper: Paper = Paper(),
) -> str:
    """The tables of the records below a folder, as text. Files that cannot be trusted are listed beneath.

    width, color: of terminal output. glance: only the answer of each table; None for a terminal alone, where a line
    says how all is printed. paper: what LaTeX shows. Raises UsageError where the folder holds no records, no table has
    the reference row of the options, or a row or column of `paper`, and for a glance as CSV or LaTeX.
    """
    tables, invalid = tables_of(directory, options)
    short = format == "terminal" if glance is None else glance
    text = render(tables, invalid, format, width, color, short, paper)
    if short and format == "terminal":
        text += f"All tables, tests and the audit: python -m benchmark.report {shlex.quote(str(directory))} --full\n"
    return text


def compare_with_boards(
    directory: Path,
    board: str = ALL_BOARDS,
    *,
    published: Path | None = None,
    show_recalled: bool = False,
    format: Format = "terminal",
    width: int = WIDTH_OF_FILES,
) -> str:
    """Published rows beside the records below a folder, as text (measurement 7).

    board: a name, or `all` for those that have a table of ours beside them. published: a folder of boards, None for
    those that are shipped. Raises UsageError where there are no records, no such board, or none that fits.
    """
    from benchmark.compare.boards import FOLDER, board_names, read_board
    from benchmark.compare.reproduction import fitting_boards, reproduction
    from benchmark.compare.reproduction_text import render_reproduction

    folder = FOLDER if published is None else published
    records = read_records(directory)
    names = board_names(folder)
    if not names:
        raise UsageError(f"{folder} holds no boards; expected NAME.yaml files as in benchmark/published.")
    if board == ALL_BOARDS:
        boards = fitting_boards(records, [read_board(name, folder) for name in names])
        if not boards:
            raise UsageError(
                f"No board has the data set and tasks of a table in {directory}; `list boards` shows them."
            )
    else:
        boards = [read_board(board, folder)]
    if format == "latex":
        raise UsageError("A reproduction report has the formats terminal, markdown and csv, not latex.")
    return render_reproduction(reproduction(records, boards, show_recalled), format, width)


def compare_runs(directory: Path, against: Path, format: Format = "terminal") -> str:
    """What changed from the run in `against` to the one in `directory`, as text. Raises UsageError for a folder without
    records.
    """
    from benchmark.compare.difference import difference, render_difference

    runs = [read_records(folder) for folder in (against, directory)]
    if format == "latex":
        raise UsageError("A difference of runs has the formats terminal, markdown and csv, not latex.")
    return render_difference(difference(*runs), format)


def page(directory: Path, options: TableOptions = TableOptions()) -> str:
    """The tables as one HTML page that needs no network, with charts, pictures and provenance. Raises UsageError as
    `report`.
    """
    return page_of(directory, read_tables(directory, options), options)


def page_of(directory: Path, read: ReadTables, options: TableOptions) -> str:
    """The page of what was read from a folder, see `read_tables`."""
    from benchmark.compare.boards import board_names, read_board
    from benchmark.compare.reproduction import fitting_boards, reproduction
    from benchmark.compare.reproduction_text import page_sections
    from benchmark.show.page import render_page

    records, tables, invalid = read
    words = ["--html", "--metric-variant", options.variant]
    words += ["--reference", options.reference] if options.reference is not None else []
    words += ["--allow", "red"] if options.allow_red else []
    command = f"python -m benchmark.report {shlex.join([directory.resolve().name, *words])}"
    boards = fitting_boards(records, [read_board(name) for name in board_names()])
    sections = page_sections(reproduction(records, boards))
    return render_page(tables, records, invalid, Store(directory), command=command, sections=sections)


def draw(directory: Path, folder: Path, names: Names = Names(), curves: Sequence[str] = ()) -> tuple[list[Path], int]:
    """Pictures of the tables, as PNG, SVG and PDF, and of what the methods found, as PNG and SVG; returns the new
    files, and how many figures of methods the directory does not hold. curves: of Delta_m, as of `show.curves`.
    Raises UsageError for a curve that no table has.
    """
    from benchmark.show.curves import draw_curves
    from benchmark.show.plots import absent_figures, draw_records
    from benchmark.show.table_plots import draw_tables

    records, tables, _ = read_tables(directory)
    store = Store(directory)
    drawn = [*draw_curves(tables, curves, folder, names), *draw_tables(tables, folder, names)]
    return [*drawn, *draw_records(records, store, folder)], absent_figures(records, store)
