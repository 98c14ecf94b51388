"""`python -m benchmark.tune`: the same number of trials for every row of a suite. No other command imports Optuna."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmark.api import tuning
from benchmark.cli import (
    AddressOption,
    ExecutorOption,
    GpusOption,
    PluginOption,
    make_console,
    resumable,
    split_names,
    start,
    usage_errors,
)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def tune(
    context: typer.Context,
    suite: Annotated[str, typer.Argument(help="A shipped suite, or the path of a YAML file.")],
    trials: Annotated[int, typer.Option(min=1, help="Settings that every row may try, its own among them.")] = 5,
    methods: Annotated[str | None, typer.Option(help="Only these methods, single-task networks among them.")] = None,
    datasets: Annotated[str | None, typer.Option(help="Only these data sets.")] = None,
    tasks: Annotated[str | None, typer.Option(help="Only these tasks, in this order.")] = None,
    backbones: Annotated[str | None, typer.Option(help="Only these backbones.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a setting, as of run. A parameter that is set is not tuned."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the trials. Default: results/tuning/SUITE.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Worker processes. Default: one per core it may use, one on a GPU.")
    ] = None,
    executor: ExecutorOption = "local",
    address: AddressOption = None,
    gpus_per_cell: GpusOption = None,
    data_root: Annotated[Path | None, typer.Option(help="Folder with one folder a data set.")] = None,
    refresh_stale: Annotated[bool, typer.Option(help="Run trials again whose record other code made.")] = False,
    plan_only: Annotated[
        bool, typer.Option("--plan", help="Print trials, steps, time and memory; train nothing.")
    ] = False,
    probe: Annotated[bool, typer.Option(help="With --plan: time a few steps of rows that have no trial yet.")] = True,
    plugin: PluginOption = None,
) -> None:
    """Tune every row of a suite with the same number of trials, judged on select, and write the page `tuned.yaml`.

    Examples:

      python -m benchmark.tune standard

      python -m benchmark.tune standard --trials 3 --plan

      python -m benchmark.run standard --tuned results/tuning/standard/tuned.yaml --out results/runs/tuned
    """
    with resumable(context, "trials"), usage_errors():
        request = tuning.TuneRequest(
            suite,
            trials,
            tuning.SuiteChoices(
                methods=split_names(methods),
                datasets=split_names(datasets),
                tasks=split_names(tasks),
                backbones=split_names(backbones),
                settings=settings or (),
                plugins=plugin or (),
            ),
            out=out,
            device=device,
            jobs=jobs,
            executor=tuning.ExecutorChoice(executor, address, gpus_per_cell),
            data_root=data_root,
            refresh_stale=refresh_stale,
        )
        code = tuning.print_plan(request, make_console(), probe) if plan_only else tuning.tune(request, make_console())
    raise typer.Exit(code)


def main() -> None:
    """Entry point of `python -m benchmark.tune`."""
    start(app)


if __name__ == "__main__":
    main()
