"""`python -m benchmark.report DIR`: tables from the records of a run. Reads records, trains nothing."""

from __future__ import annotations

import functools
import shlex
import shutil
import sys
from collections.abc import Collection
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import typer
from typer.core import TyperCommand

from benchmark.delta import Variant
from benchmark.entry import start
from benchmark.plugins import PluginOption, load_plugins
from benchmark.record import Record, value_at
from benchmark.render import render_csv, render_latex, render_markdown, render_terminal
from benchmark.speed_files import NetworkSpeed, SpeedResults, read_speed
from benchmark.speed_jobs import light_settings
from benchmark.store import Store, write_atomic
from benchmark.tables import Table, aggregate, invalid_lines
from datasets.errors import UsageError

Format = Literal["terminal", "markdown", "csv", "latex"]
ALL_BOARDS = "all"
_DEFAULT_PAGE = ":report:"  # --html without a file
WIDTH_OF_FILES = 120  # characters a line where no terminal says how wide it is


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


def report(
    directory: Path,
    *,
    format: Format = "terminal",
    variant: Variant = "mean-metrics",
    width: int = WIDTH_OF_FILES,
    color: bool = False,
    keys: Collection[str] | None = None,
    reference: str | None = None,
    allow_red: bool = False,
) -> str:
    """The tables of all records below a folder, or of the cells `keys`, as text.

    Files that cannot be trusted are listed beneath. width, color: of terminal output. reference, allow_red: see
    `benchmark.tables.aggregate`. Raises UsageError where the folder holds no records, or no table that reference.
    """
    tables, invalid = tables_of(directory, variant=variant, keys=keys, reference=reference, allow_red=allow_red)
    match format:
        case "terminal":
            return render_terminal(tables, invalid, width, color)
        case "markdown":
            return render_markdown(tables, invalid)
        case "csv":
            return render_csv(tables, invalid)
        case "latex":
            return render_latex(tables, invalid)


def tables_of(
    directory: Path,
    *,
    variant: Variant = "mean-metrics",
    keys: Collection[str] | None = None,
    reference: str | None = None,
    allow_red: bool = False,
) -> tuple[list[Table], list[str]]:
    """The tables of `report`, and a line for each file that cannot be trusted. Raises UsageError as `report` does."""
    _, tables, invalid = _read(directory, variant, reference, allow_red, keys)
    return tables, invalid


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
    from benchmark.boards import FOLDER, board_names, read_board
    from benchmark.reproduction import fitting_boards, reproduction
    from benchmark.reproduction_text import render_reproduction

    folder = FOLDER if published is None else published
    records = _records(directory)
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
    from benchmark.difference import difference, render_difference

    runs = [_records(folder) for folder in (against, directory)]
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
    from benchmark.boards import board_names, read_board
    from benchmark.page import render_page
    from benchmark.reproduction import fitting_boards, reproduction
    from benchmark.reproduction_text import page_sections

    records, tables, invalid = _read(directory, variant, reference, allow_red, None)
    options = ["--html", f"--metric-variant {variant}"]
    options += [f"--reference {shlex.quote(reference)}"] if reference is not None else []
    options += ["--allow red"] if allow_red else []
    command = f"python -m benchmark.report {shlex.quote(directory.resolve().name)} {' '.join(options)}"
    boards = fitting_boards(records, [read_board(name) for name in board_names()])
    sections = page_sections(reproduction(records, boards))
    return render_page(tables, records, invalid, Store(directory), command=command, sections=sections)


def _read(
    directory: Path, variant: Variant, reference: str | None, allow_red: bool, keys: Collection[str] | None
) -> tuple[list[Record], list[Table], list[str]]:
    """Records, their tables, and a line for each file that cannot be trusted."""
    records = _records(directory)
    if keys is not None:
        records = [record for record in records if not record.cell or record.key in keys]
    speed = read_speed(directory)
    tables = aggregate(
        records, variant, reference=reference, allow_red=allow_red, speed_of=functools.partial(_speed_of, speed)
    )
    return records, tables, [*invalid_lines(records), *speed.problems]


def _records(directory: Path) -> list[Record]:
    """All records below a folder. Raises UsageError where there are none."""
    records = Store(directory).load_all() if _holds_records(directory) else []
    if not records:
        raise UsageError(_nothing_to_report(directory))
    return records


def _speed_of(speed: SpeedResults, record: Record) -> NetworkSpeed | None:
    """The light measurement of a record's network, of the device that it was trained on where there are several."""
    graph = record.graph.get("hash")
    devices = ("cpu", "cuda") if value_at(record.environment, "device") == "cpu" else ("cuda", "cpu")
    for device in devices:
        for mode in ("joint", "mixed"):
            found = speed.find(str(graph), light_settings(device).name, mode)
            if found is not None:
                return found
    return None


def _holds_records(directory: Path) -> bool:
    return (directory / "records").is_dir()


def _nothing_to_report(directory: Path) -> str:
    if not directory.is_dir():
        return (
            f"{directory} {'is not a folder' if directory.exists() else 'does not exist'}; expected the --out of a run."
        )
    below = [path.name for path in sorted(directory.iterdir()) if path.is_dir() and _holds_records(path)]
    hint = f" Folders in it that do: {', '.join(below)}." if below else " It is the folder that `run --out` wrote to."
    return f"{directory} holds no records.{hint}"


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
    from benchmark.plots import draw_records
    from benchmark.table_plots import draw_tables

    records, tables, _ = _read(directory, "mean-metrics", None, False, None)
    drawn = [*draw_tables(tables, folder), *draw_records(records, Store(directory), folder)]
    typer.echo(f"Figures: {len(drawn)} new files in {folder}", err=True)


def main() -> None:
    """Entry point of `python -m benchmark.report`."""
    start(app)


if __name__ == "__main__":
    main()
