"""`python -m benchmark.throughput DIR`: images per second of a run's networks by the full protocol of measurement 3.

Settings are measured one after another, each in a process of its own; every measurement is a file below DIR/speed and
is printed as a table. torch is loaded once there is something to measure.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from benchmark.cli import fail, pick_device, start
from benchmark.plan.plugins import PluginOption
from benchmark.show.speed import show
from benchmark.speed.sweep import Choices, jobs_of, settings_of
from datasets.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from benchmark.records.record import Record
    from benchmark.show.speed import NamedMeasurement
    from benchmark.speed.jobs import SpeedJob
    from benchmark.speed.timing import SpeedProtocol

EXIT_NOT_MEASURED = 1

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def measure(
    directory: Path, choices: Choices, console: Console, protocol: SpeedProtocol | None = None
) -> tuple[int, list[NamedMeasurement]]:
    """Measure and print; returns the exit code and what was measured. Raises UsageError."""
    from benchmark.records.measurements import failures_of
    from benchmark.records.store import Store
    from benchmark.show.speed import NamedMeasurement
    from benchmark.speed.jobs import networks_of
    from benchmark.speed.process import run_job
    from benchmark.speed.timing import SpeedProtocol
    from benchmark.tables.labels import row_labels, table_head

    tables = networks_of(Store(directory).load_all())
    if not tables:
        raise UsageError(f"{directory} holds no finished records; expected the --out of a run.")
    from benchmark.speed.device import physical_cores

    jobs: list[SpeedJob] = []
    for device in dict.fromkeys(map(pick_device, choices.devices)):
        settings = settings_of(choices, device, physical_cores())
        jobs += jobs_of(directory, tables, choices, device, settings, protocol or SpeedProtocol())
    labels = {table: _labels(records, row_labels(records)) for table, records in tables.items()}
    code, measured = 0, []
    for number, job in enumerate(jobs, start=1):
        count = sum(len(modes) for table in job.tables for modes in table.wanted.values())
        console.print(
            f"[{number}/{len(jobs)}] {job.settings.name}: {count} networks and modes",
            highlight=False, markup=False, soft_wrap=True,
        )  # fmt: skip
        for measurement in run_job(job):
            show(measurement, labels[measurement.table], tables[measurement.table], console)
            for line in failures_of(measurement):
                code = EXIT_NOT_MEASURED
                console.print(line, highlight=False, markup=False, soft_wrap=True)
            head, names = table_head(tables[measurement.table]), labels[measurement.table]
            measured.append(NamedMeasurement(measurement, head["data"], head["backbone"], names))
    return code, measured


def _labels(records: Sequence[Record], labels: Sequence[str]) -> dict[str, str]:
    from benchmark.records.record import graph_hash

    return {graph_hash(record): label for record, label in zip(records, labels, strict=True)}


# Printing


# The command


def _numbers_in(option: str, text: str | None) -> tuple[int, ...] | None:
    """Whole numbers of a comma-separated option. Raises UsageError."""
    parts = _names_in(text)
    if parts is None:
        return None
    if not all(part.isdigit() and int(part) for part in parts):
        raise UsageError(f"{option} {text!r}: expected whole numbers above 0, for example 1,8.")
    return tuple(int(part) for part in parts)


def _names_in(text: str | None) -> tuple[str, ...] | None:
    parts = tuple(part.strip() for part in (text or "").split(",") if part.strip())
    return parts or None


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
        str, typer.Option(help="eager, compiled (what torch.compile makes of the networks), or both, comma-separated.")
    ] = "eager",
    memory: Annotated[bool, typer.Option(help="Also measure peak memory, a process for each network.")] = True,
    pairs: Annotated[int, typer.Option(min=60, help="Pairs of calls with the reference, on a CPU.")] = 60,
    rounds: Annotated[int, typer.Option(min=7, help="Rounds of slots, on CUDA.")] = 7,
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
    from benchmark.cli import make_console
    from benchmark.records.store import write_atomic
    from benchmark.show.speed import as_csv, check_plot, draw_speed
    from benchmark.speed.timing import SpeedProtocol

    try:
        choices = Choices(
            devices=_names_in(device) or ("auto",),
            batches=_numbers_in("--batch", batch),
            threads=_numbers_in("--threads", threads),
            dtypes=_names_in(dtype),
            memory_formats=_names_in(memory_format),
            modes=_names_in(mode),
            executions=_names_in(execution) or ("eager",),
            memory=memory,
            plugins=tuple(str(path) for path in plugin or ()),
            data_root=data_root,
        )
        if plot is not None:
            check_plot(plot)
        console = make_console()
        code, measured = measure(directory, choices, console, SpeedProtocol(pairs=pairs, rounds=rounds))
        files = []
        if csv is not None:
            write_atomic(csv, as_csv(measured).encode())
            files.append(csv)
        if plot is not None:
            files += draw_speed(measured, plot)
        if files:
            console.print(f"Written: {', '.join(map(str, files))}", highlight=False, markup=False, soft_wrap=True)
    except UsageError as error:
        fail(error)
    raise typer.Exit(code)


def main() -> None:
    """Entry point of `python -m benchmark.throughput`."""
    start(app)


if __name__ == "__main__":
    main()
