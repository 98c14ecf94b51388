"""`python -m benchmark.report DIR`: tables from the records of a run. Reads records, trains nothing."""

from __future__ import annotations

import shutil
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from typer.core import TyperCommand

from benchmark.api import reporting
from benchmark.cli import WIDTH_OF_FILES, PluginOption, make_console, split_names, start, usage_errors

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
    glance: Annotated[
        Optional[bool],  # noqa: UP045
        typer.Option(
            "--glance/--full", help="The answer of each table, the default on a terminal; or all that is known."
        ),
    ] = None,
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
    curve: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--curve", metavar="PARAM[:FACT]", help="With --figures: Delta_m along a parameter; repeatable."),
    ] = None,
    against: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--against", metavar="DIR", help="What changed since another run, cell by cell."),
    ] = None,
    board: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--board", metavar="NAME", help="Published rows beside ours: a board, or all that fit."),
    ] = None,
    published: Annotated[Optional[Path], typer.Option(metavar="FOLDER", help="With --board: of this folder.")] = None,  # noqa: UP045
    show_recalled: Annotated[
        bool, typer.Option("--show-recalled", help="With --board: also rows that were checked against no source.")
    ] = False,
    allow: Annotated[
        Optional[AllowChoice],  # noqa: UP045
        typer.Option("--allow", help="red: print tables with red differences under a banner, without ranks and tests."),
    ] = None,
    columns: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--columns", metavar="A,B", help="Of latex: delta_m, semseg.miou, a metric, a task; or all."),
    ] = None,
    rows: Annotated[Optional[str], typer.Option("--rows", metavar="A,B", help="Of latex, in this order.")] = None,  # noqa: UP045
    names: Annotated[Optional[Path], typer.Option(metavar="FILE", help="YAML page: names in print.")] = None,  # noqa: UP045
    plugin: PluginOption = None,
) -> None:
    """Print tables of the records in DIR: the answer at a glance, or with --full accuracy, Delta_m, size, compute and
    cost, mean and s.d. over seeds, with paired tests and the fairness audit beneath.

    Example: python -m benchmark.report results/runs/quick --format markdown --out table.md
    """
    color = out is None and sys.stdout.isatty()
    request = reporting.ReportRequest(
        directory,
        format=format.value,
        glance=glance,
        out=out,
        options=reporting.TableOptions(metric_variant.value, reference, allow is AllowChoice.red),
        html=directory / "report.html" if str(html) == _DEFAULT_PAGE else html,
        figures=figures,
        curves=curve or (),
        against=against,
        board=board,
        published=published,
        show_recalled=show_recalled,
        columns=split_names(columns),
        rows=split_names(rows),
        names=names,
        plugins=plugin or (),
        width=shutil.get_terminal_size().columns if color else WIDTH_OF_FILES,
        color=color,
    )
    with usage_errors():
        text = reporting.report_folder(request, make_console(stderr=True))
    typer.echo(text, nl=False)


def main() -> None:
    """Entry point of `python -m benchmark.report`."""
    start(app)


if __name__ == "__main__":
    main()
