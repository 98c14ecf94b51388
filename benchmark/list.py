"""`python -m benchmark.list [NAME]`: what there is to run, or one method, data set, suite or the like in full."""

from __future__ import annotations

from typing import Annotated

import typer

from benchmark.api import catalog
from benchmark.cli import PluginOption, start, usage_errors

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def show(
    name: Annotated[
        str | None,
        typer.Argument(
            help="A method, data set, suite, backbone, board or loss balancing; or `augmentation`, `backbones`, "
            "`balancing`, `boards`, `heads`, `kinds`, `metrics`."
        ),
    ] = None,
    plugin: PluginOption = None,
) -> None:
    """List what there is, or describe one thing."""
    with usage_errors():
        print(catalog.describe(name, plugin or ()))


def main() -> None:
    """Entry point of `python -m benchmark.list`."""
    start(app)


if __name__ == "__main__":
    main()
