"""Measurements of a run's networks: which are wanted, each setting in a process of its own, results to files.

A measurement holds all networks of one table (lowest seed of each row, equal graphs once) with the reference and its
copy. The process starts fresh, so that threads and libraries are what the settings say. Spec: measurement 3.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from benchmark.records.measurements import (
    JOINT,
    MIXED,
    TASK,
    TRAIN,
    SpeedResults,
    SpeedSettings,
)
from benchmark.records.record import Record
from benchmark.records.store import Store
from benchmark.speed.timing import SpeedProtocol
from datasets.errors import UsageError


@dataclasses.dataclass(frozen=True)
class TableJob:
    """What is measured together. wanted: {key of a record: its modes}, train-step never beside others."""

    table: str
    wanted: Mapping[str, tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class SpeedJob:
    """Tables at one setting. device: `cpu`, `cuda` or `cuda:N`. memory: also a pass for memory, a process a network.

    plugins: files that register operations of their own. data_root: read by train-step only, for its batch.
    """

    root: Path
    tables: tuple[TableJob, ...]
    settings: SpeedSettings
    protocol: SpeedProtocol = dataclasses.field(default_factory=SpeedProtocol)
    device: str = "cpu"
    plugins: tuple[str, ...] = ()
    data_root: Path | None = None
    memory: bool = False


# What is to be measured


def networks_of(records: Sequence[Record], keys: Collection[str] | None = None) -> dict[str, list[Record]]:
    """{table: one record a row, of the lowest seed that is done}; rows whose graphs are equal stand once.

    keys: only these cells.
    """
    rows: dict[tuple[str, bytes], Record] = {}
    for record in records:
        if record.status != "done" or (keys is not None and record.key not in keys):
            continue
        row = (record.table_key, record.row_key)
        if row not in rows or record.seed < rows[row].seed:
            rows[row] = record
    tables: dict[str, list[Record]] = {}
    for (table, _), record in sorted(rows.items(), key=lambda item: (item[0][0], not item[1].is_reference, item[0][1])):
        if record.graph_hash not in {other.graph_hash for other in tables.get(table, [])}:
            tables.setdefault(table, []).append(record)
    return tables


def with_networks(store: Store, records: Sequence[Record]) -> tuple[list[Record], int]:
    """(those whose networks are in the folder, number of finished ones without). Shipped leaderboards hold records
    without networks, beside which an own row can be measured.
    """
    done = [record for record in records if record.status == "done"]
    here = [
        record
        for record in done
        if all(name in record.artifacts and store.holds(record.artifacts[name]) for name in ("graph", "weights"))
    ]
    return here, len(done) - len(here)


def modes_of(record: Record, wanted: Sequence[str]) -> list[str]:
    """The modes asked for that a record's network has. wanted: joint, mixed, task (every task), task:NAME, train-step.

    Tasks with images of their own have the mode mixed in place of joint.
    """
    inference = MIXED if record.compute.get("macs_joint") is None else JOINT
    every = [TASK + task for task in record.tasks]
    found: list[str] = []
    for name in wanted:
        if name == TASK.rstrip(":"):
            found += every
        elif name in (inference, TRAIN, *every):
            found.append(name)
    return list(dict.fromkeys(found))


def is_measured(
    results: SpeedResults, record: Record, mode: str, settings: SpeedSettings, package: str, device: str
) -> bool:
    """Whether this code has measured the network at this setting on this kind of device."""
    found = results.find(record.graph_hash, settings.name, mode)
    if found is None or found.entry.status != "done":
        return False
    return found.measurement.versions.get("package_hash") == package and found.measurement.device == device


def done_record(store: Store, key: str) -> Record:
    """The record of a network that is to be measured. Raises UsageError where it is gone meanwhile."""
    record = store.read(key)
    if record is None or record.status != "done":
        raise UsageError(f"Record {key} is gone; it was there when the measurement was planned.")
    return record
