"""`python -m benchmark.throughput DIR`: images per second of a run's networks by the full protocol of measurement 3."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmark.api import throughput as api
from benchmark.cli import (
    AddressOption,
    PluginOption,
    make_console,
    split_names,
    split_numbers,
    start,
    usage_errors,
)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def throughput(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The folder that a run wrote to (its --out).")],
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N, or several: cpu,cuda.")] = "auto",
    batch: Annotated[str | None, typer.Option(help="Batch sizes. Default: 1,8; on CUDA 1,8,32,128.")] = None,
    threads: Annotated[str | None, typer.Option(help="Threads. Default on a CPU: 1 and one a core.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="fp32, tf32, amp-bf16, bf16. Default: fp32; CUDA also bf16.")
    ] = None,
    memory_format: Annotated[
        str | None, typer.Option(help="contiguous, channels_last or both, comma-separated; of model and input.")
    ] = None,
    mode: Annotated[
        str | None, typer.Option(help="joint, mixed, task, task:NAME, train-step. Default: all but the last.")
    ] = None,
    execution: Annotated[
        str,
        typer.Option(
            help="eager, compiled (by torch.compile), folded (a flat graph, batch norms in the convolutions); "
            "comma-separated, eager first shows what the others gain."
        ),
    ] = "eager",
    memory: Annotated[bool, typer.Option(help="Also measure peak memory, a process for each network.")] = True,
    pairs: Annotated[int, typer.Option(min=60, help="Pairs of calls with the reference, on a CPU.")] = 60,
    rounds: Annotated[int, typer.Option(min=7, help="Rounds of slots, on CUDA.")] = 7,
    executor: Annotated[
        str, typer.Option(help="local, or ray: one node of a cluster measures, and nothing of Ray runs beside it.")
    ] = "local",
    address: AddressOption = None,
    plugin: PluginOption = None,
    data_root: Annotated[Path | None, typer.Option(help="Folder with one folder a data set, for train-step.")] = None,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write every number to a CSV file.")] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER|FILE", help="Also draw images/s and r against batch size, as PNG and SVG."),
    ] = None,
) -> None:
    """Measure throughput and latency of the networks in DIR, beside their plain backbone.

    Several values of an option are swept: every combination is a measurement in a process of its own. Nothing else
    should run on the machine meanwhile; the A/A ratio says how quiet it was.

    Examples:

      python -m benchmark.throughput results/runs/quick

      python -m benchmark.throughput results/runs/quick --batch 1 --threads 1 --mode joint,task:left

      python -m benchmark.throughput results/runs/quick --batch 1,8,32 --memory-format contiguous,channels_last
      --mode joint --csv speed.csv --plot figures
    """
    with usage_errors():
        choices = api.Choices(
            devices=split_names(device) or ("auto",),
            batches=split_numbers("--batch", batch, 1, "1,8") or None,
            threads=split_numbers("--threads", threads, 1, "1,4") or None,
            dtypes=split_names(dtype) or None,
            memory_formats=split_names(memory_format) or None,
            modes=split_names(mode) or None,
            executions=split_names(execution) or ("eager",),
            memory=memory,
            plugins=[str(path) for path in plugin or ()],
            data_root=data_root,
        )
        request = api.ThroughputRequest(
            directory,
            choices,
            pairs=pairs,
            rounds=rounds,
            csv=csv,
            plot=plot,
            executor=api.ExecutorChoice(executor, address),
        )
        code = api.throughput(request, make_console())
    raise typer.Exit(code)


def main() -> None:
    """Entry point of `python -m benchmark.throughput`."""
    start(app)


if __name__ == "__main__":
    main()
