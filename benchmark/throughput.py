"""`python -m benchmark.throughput DIR`: images per second of a run's networks by the full protocol of measurement 3.

Settings are measured one after another, each in a process of its own; every measurement is a file below DIR/speed and
is printed as a table. torch is loaded once there is something to measure.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from benchmark.entry import start
from benchmark.plugins import PluginOption
from benchmark.run import fail, pick_device
from datasets.errors import UsageError, unknown

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from benchmark.record import Record
    from benchmark.speed_files import MeasurementFile, NetworkEntry, SpeedSettings
    from benchmark.speed_jobs import SpeedJob, SpeedProtocol, TableJob
    from benchmark.throughput_files import NamedMeasurement

EXIT_NOT_MEASURED = 1
INFERENCE = ("joint", "mixed", "task")
EXECUTIONS = {"eager": False, "compiled": True}
NEVER_ON_CUDA = (
    "the CUDA path of this measurement has not yet been run on a GPU: check its numbers before you rely on them"
)
_WIDEST = 10_000  # characters

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclasses.dataclass(frozen=True)
class Choices:
    """What the command line asks for; None takes the full protocol's."""

    devices: Sequence[str] = ("auto",)
    batches: Sequence[int] | None = None
    threads: Sequence[int] | None = None
    dtypes: Sequence[str] | None = None
    memory_formats: Sequence[str] | None = None
    modes: Sequence[str] | None = None
    executions: Sequence[str] = ("eager",)
    memory: bool = True
    plugins: Sequence[str] = ()
    data_root: Path | None = None


def settings_of(choices: Choices, device: str, cores: int) -> list[SpeedSettings]:
    """Every setting that is asked for: the product of the choices. device: cpu, cuda or cuda:N; cores: physical ones.
    Raises UsageError.

    Full protocol: CUDA batch 1, 8, 32, 128, amp-bf16 in channels_last and fp32 contiguous; CPU batch 1, 8, fp32
    contiguous, one thread and a thread a core.
    """
    from benchmark.speed_files import SpeedSettings

    kind = device.partition(":")[0]
    on_cpu = kind == "cpu"
    batches = choices.batches or ((1, 8) if on_cpu else (1, 8, 32, 128))
    threads = choices.threads or (tuple(dict.fromkeys((1, cores))) if on_cpu else (1,))
    dtypes = choices.dtypes or (("fp32",) if on_cpu else ("amp-bf16", "fp32"))
    for execution in choices.executions:
        if execution not in EXECUTIONS:
            raise unknown("execution", execution, EXECUTIONS)
    found = []
    for execution, n_threads, dtype in itertools.product(choices.executions, threads, dtypes):
        usual = "channels_last" if dtype in ("amp-bf16", "bf16") and not on_cpu else "contiguous"
        for form, batch in itertools.product(choices.memory_formats or (usual,), batches):
            values: dict[str, Any] = {"device": kind, "dtype": dtype, "memory_format": form}
            found.append(SpeedSettings(batch=batch, threads=n_threads, compiled=EXECUTIONS[execution], **values))
    return list(dict.fromkeys(found))


def jobs_of(
    root: Path,
    tables: Mapping[str, Sequence[Record]],
    choices: Choices,
    device: str,
    settings: Sequence[SpeedSettings],
    protocol: SpeedProtocol,
) -> list[SpeedJob]:
    """One job a setting; train-step at the training batch of each table, apart. Raises UsageError for unknown modes."""
    from benchmark.speed_files import TRAIN
    from benchmark.speed_jobs import SpeedJob, TableJob

    wanted = tuple(choices.modes or INFERENCE)
    _check_modes(wanted, tables)
    tried: dict[SpeedSettings, list[TableJob]] = {}
    for table, records in tables.items():
        modes = _modes(records, [mode for mode in wanted if mode != TRAIN])
        if modes:
            for setting in settings:
                tried.setdefault(setting, []).append(TableJob(table, modes))
        if TRAIN in wanted:
            batch = training_batch_size(records[0])
            for setting in dict.fromkeys(dataclasses.replace(setting, batch=batch) for setting in settings):
                tried.setdefault(setting, []).append(TableJob(table, _modes(records, [TRAIN])))
    return [
        SpeedJob(
            root=root,
            tables=tuple(tables),
            settings=setting,
            protocol=protocol,
            device=device,
            plugins=tuple(choices.plugins),
            data_root=choices.data_root,
            memory=choices.memory,
        )
        for setting, tables in tried.items()
    ]


def training_batch_size(record: Record) -> int:
    """Batch size of the final training."""
    from benchmark.record import value_at

    size = value_at(record.cell, "recipe", "batch_size")
    if not isinstance(size, int):
        raise UsageError(f"Record {record.key} names no batch size; train-step needs one.")
    return size


def _modes(records: Sequence[Record], wanted: Sequence[str]) -> dict[str, tuple[str, ...]]:
    from benchmark.speed_jobs import modes_of

    found = {record.key: tuple(modes_of(record, wanted)) for record in records}
    return {key: modes for key, modes in found.items() if modes}


def _check_modes(wanted: Sequence[str], tables: Mapping[str, Sequence[Record]]) -> None:
    """Every mode asked for is one, and some network has it."""
    from benchmark.speed_files import JOINT, MIXED, TRAIN
    from benchmark.speed_jobs import modes_of

    records = [record for group in tables.values() for record in group]
    for mode in wanted:
        if mode in INFERENCE and wanted == INFERENCE:
            continue  # the default names both joint and mixed; a table has one of them
        if not any(modes_of(record, [mode]) for record in records):
            if mode in (JOINT, MIXED):
                other = MIXED if mode == JOINT else JOINT
                raise UsageError(f"--mode {mode}: no table here has it; tasks that do not share images have {other!r}.")
            known = {found for record in records for found in modes_of(record, (*INFERENCE, TRAIN))}
            raise unknown("mode", mode, {"task", *known})


def measure(
    directory: Path, choices: Choices, console: Console, protocol: SpeedProtocol | None = None
) -> tuple[int, list[NamedMeasurement]]:
    """Measure and print; returns the exit code and what was measured. Raises UsageError."""
    from benchmark.labels import row_labels, table_head
    from benchmark.speed_jobs import SpeedProtocol, failures_of, networks_of, run_job
    from benchmark.store import Store
    from benchmark.throughput_files import NamedMeasurement

    tables = networks_of(Store(directory).load_all())
    if not tables:
        raise UsageError(f"{directory} holds no finished records; expected the --out of a run.")
    from benchmark.speed_device import physical_cores

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
    from benchmark.speed_jobs import graph_hash

    return {graph_hash(record): label for record, label in zip(records, labels, strict=True)}


# Printing


def show(measurement: MeasurementFile, labels: Mapping[str, str], records: Sequence[Record], console: Console) -> None:
    """Print one measurement: what was equal for all rows, the rows, what the A/A ratio says about differences."""
    from benchmark.labels import table_head

    head = table_head(records)
    console.print(f"\n{head['data']} · {head['backbone']}", highlight=False, markup=False, soft_wrap=True)
    for line in _about(measurement):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if measurement.status == "done":
        _print_whole(_table(measurement, labels), console)


def _print_whole(table: Table, console: Console) -> None:
    """Print a table in the width that it needs: numbers that a narrow terminal or a pipe would cut are no numbers."""
    from rich.console import Console

    width = console.measure(table, options=console.options.update(width=_WIDEST)).maximum
    # A console of its own: rich never prints wider than the console is, whatever width it is asked for.
    Console(file=console.file, width=width, force_terminal=console.is_terminal).print(table)


def _about(measurement: MeasurementFile) -> Iterator[str]:
    from benchmark.speed_measure import same_speed_within

    settings = measurement.settings
    facts = [f"batch {settings.batch}", settings.dtype, settings.memory_format, f"threads {settings.threads}"]
    facts += ["compiled" if settings.compiled else "eager", measurement.device]
    facts += [f"residency {measurement.residency}"] if measurement.residency else []
    yield ", ".join(facts)
    if settings.device == "cuda":
        yield NEVER_ON_CUDA
    if measurement.aa is None:
        yield f"ref ({measurement.reference['what']}): {measurement.status}: {measurement.message}"
        return
    samples = f"{measurement.protocol['pairs']} pairs" if measurement.form == "pairs" else (
        f"{measurement.protocol['rounds']} rounds"
    )  # fmt: skip
    speed = measurement.reference["ref"]["images_per_s"]["median"]
    flags = [*measurement.flags, *(f"ref {flag}" for flag in measurement.reference["ref"]["flags"])]
    yield (
        f"ref = {measurement.reference['what']}, {speed:,.0f} images/s; {samples}; A/A {measurement.aa:.3f}"
        f"{' (' + ', '.join(flags) + ')' if flags else ''}; "
        f"differences below {100 * same_speed_within(measurement.aa):.1f} % are no differences"
    )


def _table(measurement: MeasurementFile, labels: Mapping[str, str]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    step = "latency ms" if measurement.settings.batch == 1 else "step ms"
    table = Table(box=None, pad_edge=False)
    columns = ["network", "mode", "images/s ↑", "[min, max]", "predictions/s", step, "[p10, p90]", "r ↑", "r_stl ↑"]
    columns += ["compiled in s", "graphs", "breaks"] if measurement.settings.compiled else []
    with_memory = any(entry.memory for entry in measurement.networks)
    columns += ["peak MB"] if with_memory else []
    for name in (*columns, "flags"):
        table.add_column(name, justify="left" if name in ("network", "mode", "flags") else "right", no_wrap=True)
    for entry in measurement.networks:
        cells = [labels.get(entry.graph, entry.method), entry.mode, *_numbers(entry)]
        if measurement.settings.compiled:
            cells += [_text((entry.compile or {}).get(name), form) for name, form in _COMPILE]
        if with_memory:
            peak = (entry.memory or {}).get("peak_bytes")
            cells.append(_text(None if peak is None else peak / 1e6, ",.0f"))
        table.add_row(*map(escape, cells), ", ".join((() if entry.status == "done" else (entry.status,)) + entry.flags))
    return table


_COMPILE = (("seconds", ".1f"), ("graphs", "d"), ("graph_breaks", "d"))


def _numbers(entry: NetworkEntry) -> list[str]:
    """images/s, [min, max], predictions/s, step, [p10, p90], r, r_stl."""
    speed, step = entry.images_per_s, entry.step_ms
    if speed is None or step is None:
        return [_text(None, "")] * 7
    form = ".3g" if step.median < 100 else ",.0f"
    return [
        _text(speed.median, ",.0f"),
        f"[{speed.low:,.0f}, {speed.high:,.0f}]",
        _text(entry.predictions_per_s, ",.0f"),
        _text(step.median, form),
        f"[{step.p10:{form}}, {step.p90:{form}}]",
        _text(entry.r, ".3f"),
        _text(entry.r_stl, ".3f"),
    ]


def _text(value: float | None, form: str) -> str:
    from benchmark.labels import DASH

    return DASH if value is None else format(value, form)


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
    from benchmark.console import make_console
    from benchmark.speed_jobs import SpeedProtocol
    from benchmark.store import write_atomic
    from benchmark.throughput_files import as_csv, check_plot, draw_speed

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
