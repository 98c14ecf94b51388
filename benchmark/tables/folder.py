"""The tables of a run's folder: its records and its speed, read and aggregated."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection
from pathlib import Path

from benchmark.records.delta import Variant
from benchmark.records.evidence import floors_key_of, read_floors, read_leaderboards, read_misfits
from benchmark.records.measurements import NetworkSpeed, SpeedResults, light_settings, read_speed
from benchmark.records.record import Record
from benchmark.records.store import Store
from benchmark.tables.evidence import Floors
from benchmark.tables.table import Table, aggregate, invalid_lines
from datasets.errors import UsageError

ReadTables = tuple[list[Record], list[Table], list[str]]  # see `read_tables`


@dataclasses.dataclass(frozen=True)
class TableOptions:
    """How records become tables.

    variant: of Delta_m. reference: label or method of the row that the others are tested against, None for the method
    that is one by itself. allow_red: show tables with red differences under a banner, without ranks and tests.
    keys: only these cells, None for all.
    """

    variant: Variant = "mean-metrics"
    reference: str | None = None
    allow_red: bool = False
    keys: Collection[str] | None = None


def tables_of(directory: Path, options: TableOptions = TableOptions()) -> tuple[list[Table], list[str]]:
    """The tables of a run's folder, and a line for each file that cannot be trusted.

    Raises UsageError where the folder holds no records, or no table has that reference.
    """
    _, tables, invalid = read_tables(directory, options)
    return tables, invalid


def read_tables(directory: Path, options: TableOptions = TableOptions()) -> ReadTables:
    """Records, their tables, and a line for each file that cannot be trusted. Raises UsageError as `tables_of`."""
    records = read_records(directory)
    if options.keys is not None:
        records = [record for record in records if not record.cell or record.key in options.keys]
    speed = read_speed(directory)
    floors = _Floors(directory)
    leaderboards, problems = read_leaderboards(directory)
    misfits, unread = read_misfits(directory)
    tables = aggregate(
        records,
        options.variant,
        reference=options.reference,
        allow_red=options.allow_red,
        speed_of=functools.partial(_speed_of, speed),
        floors_of=floors.of,
        leaderboards=leaderboards,
        misfits=misfits,
    )
    return records, tables, [*invalid_lines(records), *speed.problems, *floors.problems, *problems, *unread]


class _Floors:
    """The floors of a folder, each file read once. problems: a line for each that was not read."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.problems: list[str] = []
        self._known: dict[str, Floors | None] = {}

    def of(self, record: Record) -> Floors | None:
        """{task: floors} on a record's data; None where the folder holds none."""
        key = floors_key_of(record)
        if key not in self._known:
            self._known[key] = None
            try:
                found = read_floors(self.directory, key)
                self._known[key] = None if found is None else found.tasks
            except UsageError as error:
                self.problems.append(str(error))
        return self._known[key]


def read_records(directory: Path) -> list[Record]:
    """All records below a folder. Raises UsageError if there are none."""
    records = Store(directory).load_all() if _holds_records(directory) else []
    if not records:
        raise UsageError(_nothing_to_report(directory))
    return records


def _speed_of(speed: SpeedResults, record: Record) -> NetworkSpeed | None:
    """The light measurement of a record's network; of several, the one on the device that it was trained on."""
    devices = ("cpu", "cuda") if record.environment.get("device") == "cpu" else ("cuda", "cpu")
    for device in devices:
        for mode in ("joint", "mixed"):
            found = speed.find(record.graph_hash, light_settings(device).name, mode)
            if found is not None:
                return found
    return None


def _holds_records(directory: Path) -> bool:
    return (directory / "records").is_dir()


def _nothing_to_report(directory: Path) -> str:
    if not directory.is_dir():
        return (
            f"{directory} {'is not a folder' if directory.exists() else 'does not exist'}; expected the --out of a run."
        )
    below = [path.name for path in sorted(directory.iterdir()) if path.is_dir() and _holds_records(path)]
    hint = f" Folders in it that do: {', '.join(below)}." if below else " It is the folder that `run --out` wrote to."
    return f"{directory} holds no records.{hint}"
