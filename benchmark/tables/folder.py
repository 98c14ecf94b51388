"""The tables of a run's folder: its records and its speed, read and aggregated."""

from __future__ import annotations

import functools
from collections.abc import Collection
from pathlib import Path

from benchmark.records.delta import Variant
from benchmark.records.measurements import NetworkSpeed, SpeedResults, light_settings, read_speed
from benchmark.records.record import Record
from benchmark.records.store import Store
from benchmark.tables.table import Table, aggregate, invalid_lines
from datasets.errors import UsageError


def tables_of(
    directory: Path,
    *,
    variant: Variant = "mean-metrics",
    keys: Collection[str] | None = None,
    reference: str | None = None,
    allow_red: bool = False,
) -> tuple[list[Table], list[str]]:
    """The tables of `report`, and a line for each file that cannot be trusted. Raises UsageError as `report` does."""
    _, tables, invalid = read_tables(directory, variant, reference, allow_red, keys)
    return tables, invalid


def read_tables(
    directory: Path, variant: Variant, reference: str | None, allow_red: bool, keys: Collection[str] | None
) -> tuple[list[Record], list[Table], list[str]]:
    """Records, their tables, and a line for each file that cannot be trusted."""
    records = read_records(directory)
    if keys is not None:
        records = [record for record in records if not record.cell or record.key in keys]
    speed = read_speed(directory)
    tables = aggregate(
        records, variant, reference=reference, allow_red=allow_red, speed_of=functools.partial(_speed_of, speed)
    )
    return records, tables, [*invalid_lines(records), *speed.problems]


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
