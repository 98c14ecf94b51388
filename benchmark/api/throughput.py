"""What `throughput` does: images per second of a run's networks by the full protocol of measurement 3.

Settings are measured one after another, each in a process of its own. Every measurement is a file below DIR/speed and
is printed as a table. torch is loaded once there is something to measure.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.cli import pick_device, say
from benchmark.records.store import Store, write_atomic
from benchmark.show.speed import NamedMeasurement, as_csv, check_plot, draw_speed, eager_speeds, show
from benchmark.speed.sweep import Choices, jobs_of, settings_of
from datasets.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from benchmark.records.record import Record
    from benchmark.speed.jobs import SpeedJob
    from benchmark.speed.timing import SpeedProtocol

EXIT_NOT_MEASURED = 1


@dataclasses.dataclass(frozen=True)
class ThroughputRequest:
    """What to measure of the networks in `directory`.

    choices: the sweep. pairs: pairs of calls with the reference, on a CPU; rounds: of slots, on CUDA. csv: file that
    takes every number. plot: folder or file of pictures.
    """

    directory: Path
    choices: Choices = Choices()
    pairs: int = 60
    rounds: int = 7
    csv: Path | None = None
    plot: Path | None = None


def throughput(request: ThroughputRequest, console: Console) -> int:
    """Measure, print and write what is asked for; returns 0, or EXIT_NOT_MEASURED where a network was not measured.
    Raises UsageError.
    """
    from benchmark.speed.timing import SpeedProtocol

    if request.plot is not None:
        check_plot(request.plot)
    protocol = SpeedProtocol(pairs=request.pairs, rounds=request.rounds)
    code, measured = measure(request.directory, request.choices, console, protocol)
    files = []
    if request.csv is not None:
        write_atomic(request.csv, as_csv(measured).encode())
        files.append(request.csv)
    if request.plot is not None:
        files += draw_speed(measured, request.plot)
    if files:
        say(console, f"Written: {', '.join(map(str, files))}")
    return code


def measure(
    directory: Path, choices: Choices, console: Console, protocol: SpeedProtocol
) -> tuple[int, list[NamedMeasurement]]:
    """Measure and print; returns the exit code and what was measured. Raises UsageError."""
    from benchmark.records.measurements import failures_of
    from benchmark.speed.jobs import networks_of
    from benchmark.speed.process import run_job
    from benchmark.tables.labels import table_head

    tables = networks_of(Store(directory).load_all())
    if not tables:
        raise UsageError(f"{directory} holds no finished records; expected the --out of a run.")
    jobs = _jobs(directory, tables, choices, protocol)
    labels = {table: _labels(records) for table, records in tables.items()}
    code, measured = 0, list[NamedMeasurement]()
    for number, job in enumerate(jobs, start=1):
        count = sum(len(modes) for table in job.tables for modes in table.wanted.values())
        say(console, f"[{number}/{len(jobs)}] {job.settings.name}: {count} networks and modes")
        for measurement in run_job(job):
            eager = eager_speeds(measurement, measured)
            show(measurement, labels[measurement.table], tables[measurement.table], console, eager)
            for line in failures_of(measurement):
                code = EXIT_NOT_MEASURED
                say(console, line)
            head, names = table_head(tables[measurement.table]), labels[measurement.table]
            measured.append(NamedMeasurement(measurement, head["data"], head["backbone"], names))
    return code, measured


def _jobs(
    directory: Path, tables: Mapping[str, Sequence[Record]], choices: Choices, protocol: SpeedProtocol
) -> list[SpeedJob]:
    from benchmark.speed.device import physical_cores

    jobs: list[SpeedJob] = []
    for device in dict.fromkeys(map(pick_device, choices.devices)):
        settings = settings_of(choices, device, physical_cores())
        jobs += jobs_of(directory, tables, choices, device, settings, protocol)
    return jobs


def _labels(records: Sequence[Record]) -> dict[str, str]:
    """{graph hash: label of its row}."""
    from benchmark.tables.labels import row_labels

    return {record.graph_hash: label for record, label in zip(records, row_labels(records), strict=True)}
