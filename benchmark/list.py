"""`python -m benchmark.list [NAME]`: what there is to run, or one method, data set, suite or the like in full."""

from __future__ import annotations

from typing import Annotated

import typer

from benchmark.api import catalog, method_table
from benchmark.cli import PluginOption, start, usage_errors
from datasets.errors import UsageError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def show(
    name: Annotated[
        str | None,
        typer.Argument(
            help="A method, data set, suite, backbone, board or loss balancing; or `augmentation`, `backbones`, "
            "`balancing`, `boards`, `heads`, `kinds`, `methods`, `metrics`."
        ),
    ] = None,
    plugin: PluginOption = None,
    check: Annotated[
        str | None,
        typer.Option(
            metavar="NAME-OR-FILE",
            help="With `backbones`: is a timm model, or every model of the families that a plug-in registers, cut "
            "right? Exit code 1 where not.",
        ),
    ] = None,
    table: Annotated[
        bool, typer.Option("--table", help="With `methods`: what each shares, takes and costs, side by side.")
    ] = False,
    form: Annotated[
        str | None, typer.Option("--format", metavar="FORM", help="Of the table: terminal (default) or markdown.")
    ] = None,
) -> None:
    """List what there is, or describe one thing."""
    with usage_errors():
        if table and name == "methods":
            print(method_table.method_table(form or "terminal", plugin or ()))
            return
        if table or form is not None:
            raise UsageError("--table and --format are of methods: list methods --table --format markdown.")
        if check is None:
            print(catalog.describe(name, plugin or ()))
            return
        if name != "backbones":
            raise UsageError("--check is of backbones: list backbones --check NAME-OR-FILE.")
        right = True
        for line, good in catalog.check_backbones(check, plugin or ()):
            print(line, flush=True)
            right &= good
    raise typer.Exit(0 if right else 1)


def main() -> None:
    """Entry point of `python -m benchmark.list`."""
    start(app)


if __name__ == "__main__":
    main()
