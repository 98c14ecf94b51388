"""`python -m benchmark.run`: run a suite and print its tables. Heavy imports happen only once there is work to do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmark.api import running
from benchmark.cli import (
    AddressOption,
    ExecutorOption,
    GpusOption,
    PluginOption,
    make_console,
    resumable,
    split_names,
    split_numbers,
    start,
    usage_errors,
)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def run(
    context: typer.Context,
    suite: Annotated[str, typer.Argument(help="A shipped suite, or the path of a YAML file.")] = "quick",
    methods: Annotated[str | None, typer.Option(help="Only these methods, comma-separated.")] = None,
    datasets: Annotated[str | None, typer.Option(help="Only these data sets.")] = None,
    tasks: Annotated[str | None, typer.Option(help="Only these tasks, in this order.")] = None,
    backbones: Annotated[str | None, typer.Option(help="Only these backbones.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Only these seeds, for example 0,1,2.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Change a setting: recipe.batch_size=32, or a parameter in all rows of a method: method.key=value.",
        ),
    ] = None,
    tuned: Annotated[Path | None, typer.Option(help="Page of `benchmark.tune` whose settings the rows take.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the results. Default: results/runs/SUITE.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Worker processes. Default: one per core it may use, one on a GPU.")
    ] = None,
    executor: ExecutorOption = "local",
    address: AddressOption = None,
    gpus_per_cell: GpusOption = None,
    data_root: Annotated[Path | None, typer.Option(help="Folder with one folder a data set.")] = None,
    refresh_stale: Annotated[bool, typer.Option(help="Run cells again whose record other code made.")] = False,
    plan_only: Annotated[
        bool, typer.Option("--plan", help="Print cells, time, memory and disk; train nothing.")
    ] = False,
    probe: Annotated[bool, typer.Option(help="With --plan: time a few steps of what has no record yet.")] = True,
    speed: Annotated[bool, typer.Option(help="Measure throughput at the end, about 15 seconds for quick.")] = True,
    smoke: Annotated[bool, typer.Option("--smoke", help="Run every cell for three steps, into OUT/smoke.")] = False,
    plugin: PluginOption = None,
) -> None:
    """Run a suite: train what has no record yet, then print the tables.

    Examples:

      python -m benchmark.run

      python -m benchmark.run standard --seeds 0,1 --methods single_task,hard_sharing

      python -m benchmark.run quick --set recipe.optimizer.lr=0.1 --out results/runs/high_rate
    """
    with resumable(context, "cells"), usage_errors():
        request = running.RunRequest(
            suite,
            running.SuiteChoices(
                methods=split_names(methods),
                datasets=split_names(datasets),
                tasks=split_names(tasks),
                backbones=split_names(backbones),
                seeds=split_numbers("--seeds", seeds, 0, "0,1,2"),
                settings=settings or (),
                plugins=plugin or (),
                tuned=tuned,
            ),
            out=out,
            device=device,
            jobs=jobs,
            executor=running.ExecutorChoice(executor, address, gpus_per_cell),
            data_root=data_root,
            refresh_stale=refresh_stale,
            speed=speed,
            smoke=smoke,
        )
        code = running.print_plan(request, make_console(), probe) if plan_only else running.run(request, make_console())
    raise typer.Exit(code)


def main() -> None:
    """Entry point of `python -m benchmark.run`."""
    start(app)


if __name__ == "__main__":
    main()
