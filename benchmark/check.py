"""`python -m benchmark.check DIR --against FILE`: has anything become worse? Reads records, trains nothing.

Exit codes: 0 same, 1 regression, 2 usage, 3 inconclusive (noise), 4 missing, failed, invalid, stale or unpaired.
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from benchmark.api import checking
from benchmark.cli import start, usage_errors


class FormatChoice(str, Enum):
    """Forms of what is printed."""

    text = "text"
    github = "github"


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def command(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The folder that a run wrote to (its --out).")],
    against: Annotated[Path, typer.Option(metavar="FILE", help="Baseline, for example results/baselines/gate.json.")],
    accept_reason: Annotated[
        str | None, typer.Option("--accept", metavar="REASON", help="Write DIR as the new baseline, with its reason.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Noise is a failure too: exit 1 in place of 3.")] = False,
    format: Annotated[
        FormatChoice,
        typer.Option("--format", help="github: annotations as well, and a table in the summary of the step."),
    ] = FormatChoice.text,
    junit: Annotated[
        Path | None, typer.Option("--junit", metavar="FILE", help="Write the findings as JUnit XML too.")
    ] = None,
) -> None:
    """Compare the run in DIR with a baseline: counts and graphs exactly, golden values bit by bit on the same platform,
    accuracy and relative speed beyond their noise.

    Exit codes: 0 same, 1 regression, 2 usage, 3 inconclusive (noise), 4 missing, failed, invalid, stale or unpaired.

    Example: python -m benchmark.check results/runs/gate --against results/baselines/gate.json
    """
    with usage_errors():
        if accept_reason is not None:
            code, text = checking.accept(directory, against, accept_reason)
        else:
            github = format is FormatChoice.github
            code, text = checking.check(directory, against, strict=strict, github=github, junit=junit)
    typer.echo(text)
    raise typer.Exit(code)


def main() -> None:
    """Entry point of `python -m benchmark.check`."""
    start(app)


if __name__ == "__main__":
    main()
