"""The console script `sharebench`: the commands as subcommands. `python -m benchmark.X` runs one directly."""

from __future__ import annotations

import typer

from benchmark import check as check_command
from benchmark import data as data_command
from benchmark import export as export_command
from benchmark import list as list_command
from benchmark import report as report_command
from benchmark import run as run_command
from benchmark import throughput as throughput_command
from benchmark.entry import start

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)
app.command("run")(run_command.run)
app.command("report")(report_command.command)
app.command("check")(check_command.command)
app.command("list")(list_command.show)
app.add_typer(data_command.app, name="data", help="Data sets on disk: verify, show, prepare.")
app.command("throughput")(throughput_command.throughput)
app.command("export")(export_command.export)


def main() -> None:
    """Entry point of `sharebench`."""
    start(app)


if __name__ == "__main__":
    main()
