"""Measuring in a process of its own, which starts with the threads and libraries that its settings say."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

from benchmark.records.measurements import MeasurementFile, NetworkEntry, write_measurement
from benchmark.records.record import Record
from benchmark.records.store import Store
from benchmark.speed.jobs import SpeedJob, TableJob
from benchmark.workers.processes import messages_of
from datasets.errors import UsageError


def work(connection: Connection, job: SpeedJob) -> None:
    """Body of a measuring process: sends each measurement, then None; a text where it cannot go on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    try:
        from benchmark.plan.plugins import load_plugins
        from benchmark.speed.device import configure_for_speed
        from benchmark.speed.session import measure_table
        from methods.registry import load_methods

        configure_for_speed(job.settings)
        load_methods()  # a method's module registers the operations of its graphs
        load_plugins(job.plugins)
        for table in job.tables:
            connection.send(measure_table(job, table))
            connection.recv()  # the parent may use the machine before the next table
        connection.send(None)
    except UsageError as error:
        connection.send(str(error))


def weigh(connection: Connection, job: SpeedJob, table: TableJob) -> None:
    """Body of a process that measures memory: of the one network in `table`, in its one mode."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        from benchmark.plan.plugins import load_plugins
        from benchmark.speed.device import configure_for_speed
        from benchmark.speed.session import measure_memory
        from methods.registry import load_methods

        configure_for_speed(job.settings)
        load_methods()
        load_plugins(job.plugins)
        connection.send(measure_memory(job, table))
    except UsageError as error:
        connection.send(str(error))


def run_job(job: SpeedJob) -> Iterator[MeasurementFile]:
    """Measure the tables of a job and write each measurement as it comes. Raises UsageError where it cannot."""
    messages = messages_of(work, job.settings.threads, job)
    with contextlib.closing(messages):
        for message in messages:
            if message is None:
                return
            if isinstance(message, str):
                raise UsageError(message)
            measurement: MeasurementFile = message
            if job.memory:
                entries = tuple(_with_memory(job, measurement, entry) for entry in measurement.networks)
                measurement = dataclasses.replace(measurement, networks=entries)
            write_measurement(job.root, measurement)
            yield measurement


def _with_memory(job: SpeedJob, measurement: MeasurementFile, entry: NetworkEntry) -> NetworkEntry:
    """The entry with its memory, from a process that runs this network alone. Where that fails, without."""
    if entry.status != "done":
        return entry
    keys = next(table.wanted for table in job.tables if table.table == measurement.table)
    key = next(key for key in keys if _read(job.root, key).graph_hash == entry.graph)
    messages = messages_of(weigh, job.settings.threads, job, TableJob(measurement.table, {key: (entry.mode,)}))
    with contextlib.closing(messages):
        message = next(messages)
    if isinstance(message, str):
        raise UsageError(message)
    return dataclasses.replace(entry, memory=message)


def _read(root: Path, key: str) -> Record:
    record = Store(root).read(key)
    if record is None or record.status != "done":
        raise UsageError(f"Record {key} is gone; it was there when the measurement was planned.")
    return record
