"""The console script `sharebench`: the commands as subcommands. `python -m benchmark.X` runs one directly."""

from __future__ import annotations

import copy

import typer

from benchmark import check, data, export, report, run, throughput, tune
from benchmark import list as list_
from benchmark.cli import start

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)


def _add(name: str, command: typer.Typer) -> None:
    """The one command of a module under its name here, with everything that it was declared with."""
    (declared,) = command.registered_commands
    info = copy.copy(declared)
    info.name = name
    app.registered_commands.append(info)


_add("run", run.app)
_add("report", report.app)
_add("check", check.app)
_add("list", list_.app)
app.add_typer(data.app, name="data", help="Data sets on disk: verify, show, prepare.")
_add("throughput", throughput.app)
_add("export", export.app)
_add("tune", tune.app)


def main() -> None:
    """Entry point of `sharebench`."""
    start(app)


if __name__ == "__main__":
    main()
