"""`python -m benchmark.report DIR`: tables from the records of a run. Reads records, trains nothing."""

from __future__ import annotations

import shlex
import shutil
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from typer.core import TyperCommand

from benchmark.cli import start
from benchmark.plan.plugins import PluginOption, load_plugins
from benchmark.records.delta import Variant
from benchmark.records.store import Store, write_atomic
from benchmark.show.render import (
    WIDTH_OF_FILES,
    Format,
    report,
)
from benchmark.tables.folder import read_records, read_tables
from datasets.errors import UsageError

ALL_BOARDS = "all"
_DEFAULT_PAGE = ":report:"  # --html without a file


class FormatChoice(str, Enum):
    """Forms of the output."""

    terminal = "terminal"
    markdown = "markdown"
    csv = "csv"
    latex = "latex"


class AllowChoice(str, Enum):
    """What `--allow` lets through."""

    red = "red"


class VariantChoice(str, Enum):
    """Variants of Delta_m."""

    mean_metrics = "mean-metrics"
    one_metric = "one-metric"


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
    if not board_names(folder):
        raise UsageError(f"{folder} holds no boards; expected NAME.yaml files as in benchmark/published.")
    if board == ALL_BOARDS:
        boards = fitting_boards(records, [read_board(name, folder) for name in board_names(folder)])
        if not boards:
            raise UsageError(
                f"No board has the data set and tasks of a table in {directory}; `list boards` shows them."
            )
    else:
        boards = [read_board(board, folder)]
    if format == "latex":
        raise UsageError("A reproduction report has the formats terminal, markdown and csv, not latex.")
    return render_reproduction(reproduction(records, boards, show_recalled), format, width)


def compare_runs(directory: Path, against: Path, *, format: Format = "terminal") -> str:
    """What changed from the run in `against` to the one in `directory`, as text. Raises UsageError for a folder without
    records.
    """
    from benchmark.compare.difference import difference, render_difference

    runs = [read_records(folder) for folder in (against, directory)]
    if format == "latex":
        raise UsageError("A difference of runs has the formats terminal, markdown and csv, not latex.")
    return render_difference(difference(*runs), format)


def page(
    directory: Path,
    *,
    variant: Variant = "mean-metrics",
    reference: str | None = None,
    allow_red: bool = False,
) -> str:
    """The same tables as one HTML page that needs no network, with charts, pictures and provenance. As `report`."""
    from benchmark.compare.boards import board_names, read_board
    from benchmark.compare.reproduction import fitting_boards, reproduction
    from benchmark.compare.reproduction_text import page_sections
    from benchmark.show.page import render_page

    records, tables, invalid = read_tables(directory, variant, reference, allow_red, None)
    options = ["--html", f"--metric-variant {variant}"]
    options += [f"--reference {shlex.quote(reference)}"] if reference is not None else []
    options += ["--allow red"] if allow_red else []
    command = f"python -m benchmark.report {shlex.quote(directory.resolve().name)} {' '.join(options)}"
    boards = fitting_boards(records, [read_board(name) for name in board_names()])
    sections = page_sections(reproduction(records, boards))
    return render_page(tables, records, invalid, Store(directory), command=command, sections=sections)


class _Command(TyperCommand):
    """`--html` takes a file, or none: what follows it is one only where it ends in .html."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given = list(args)
        for position, word in enumerate(args):
            follows = args[position + 1] if position + 1 < len(args) else ""
            if word == "--html" and not follows.lower().endswith((".html", ".htm")):
                given[position] = f"--html={_DEFAULT_PAGE}"
        return super().parse_args(ctx, given)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(cls=_Command)
def command(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The folder that a run wrote to (its --out).")],
    format: Annotated[FormatChoice, typer.Option("--format", help="Form of the output.")] = FormatChoice.terminal,
    out: Annotated[Optional[Path], typer.Option("--out", metavar="FILE", help="Write to a file.")] = None,  # noqa: UP045
    metric_variant: Annotated[
        VariantChoice,
        typer.Option("--metric-variant", help="Delta_m over each task's metrics, or over its primary metric alone."),
    ] = VariantChoice.mean_metrics,
    reference: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--reference", metavar="ROW", help="Row, or method, that the others are tested against."),
    ] = None,
    html: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--html", metavar="[FILE.html]", help="One page for a browser instead, default DIR/report.html."),
    ] = None,
    figures: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--figures", metavar="FOLDER", help="Also draw what the methods found, as PNG and SVG."),
    ] = None,
    against: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--against", metavar="DIR", help="What changed since another run, cell by cell."),
    ] = None,
    board: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--board", metavar="NAME", help="Published rows beside ours: a board, or all that fit."),
    ] = None,
    published: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--published", metavar="FOLDER", help="With --board: boards of this folder."),
    ] = None,
    show_recalled: Annotated[
        bool, typer.Option("--show-recalled", help="With --board: also rows that were checked against no source.")
    ] = False,
    allow: Annotated[
        Optional[AllowChoice],  # noqa: UP045
        typer.Option("--allow", help="red: print tables with red differences under a banner, without ranks and tests."),
    ] = None,
    plugin: PluginOption = None,
) -> None:
    """Print tables of the records in DIR: accuracy, Delta_m, size, compute and cost, mean and s.d. over seeds, with
    paired tests and the fairness audit beneath.

    Example: python -m benchmark.report results/runs/quick --format markdown --out table.md
    """
    color = out is None and sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if color else WIDTH_OF_FILES
    text = ""
    try:
        load_plugins(plugin or ())
        if html is not None:
            file = directory / "report.html" if str(html) == _DEFAULT_PAGE else html
            whole = page(
                directory, variant=metric_variant.value, reference=reference, allow_red=allow is AllowChoice.red
            )
            write_atomic(file, whole.encode("utf-8"))
            typer.echo(f"Page: {file}", err=True)
        if against is not None:
            text = compare_runs(directory, against, format=format.value)
        elif board is not None:
            text = compare_with_boards(
                directory,
                board,
                published=published,
                show_recalled=show_recalled,
                format=format.value,
                width=width,
            )
        elif html is None or out is not None:
            text = report(
                directory,
                format=format.value,
                variant=metric_variant.value,
                width=width,
                color=color,
                reference=reference,
                allow_red=allow is AllowChoice.red,
            )
        if out is not None:
            write_atomic(out, text.encode("utf-8"))
        if figures is not None:
            _draw(directory, figures)
    except UsageError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from error
    if out is None:
        typer.echo(text, nl=False)


def _draw(directory: Path, folder: Path) -> None:
    from benchmark.show.plots import draw_records
    from benchmark.show.table_plots import draw_tables

    records, tables, _ = read_tables(directory, "mean-metrics", None, False, None)
    drawn = [*draw_tables(tables, folder), *draw_records(records, Store(directory), folder)]
    typer.echo(f"Figures: {len(drawn)} new files in {folder}", err=True)


def main() -> None:
    """Entry point of `python -m benchmark.report`."""
    start(app)


if __name__ == "__main__":
    main()
