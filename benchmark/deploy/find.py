"""Find the record that a user names: by its file, or by a folder and the label of a row, a method or the start of a
key.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from benchmark.records.record import INVALID, Record, parse_record
from benchmark.records.store import Store
from benchmark.tables.labels import table_head
from benchmark.tables.table import labelled_rows
from datasets.errors import UsageError, nearest, unknown

_KEY_START = re.compile(r"[0-9a-f]{4,32}")


def find_record(source: Path, row: str | None = None, seed: int | None = None) -> tuple[Store, Record]:
    """The named record, and the store that holds its artifacts.

    source: the file of a record inside a run's folder, then without row and seed; or the folder of a run. row: label of
    a row, name of a method, or at least the first four digits of a cell's key; None if the folder has one row. seed:
    None takes the lowest that is done. Raises UsageError if no record fits or several do.
    """
    if source.is_file():
        if row is not None or seed is not None:
            raise UsageError(f"{source} is one record; a row or a seed goes with the folder of a run.")
        return _of_file(source)
    store = Store(source)
    records = store.load_all() if source.is_dir() else []
    rows = _rows(records)
    if not rows:
        what = "does not exist" if not source.exists() else "holds no records"
        raise UsageError(f"{source} {what}; expected the --out of a run, or the JSON file of a record in it.")
    names = {name for found in rows for name in (found.label, found.records[0].method)}
    if row is not None and row not in names and _KEY_START.fullmatch(row):
        return store, _by_key([record for found in rows for record in found.records], row, seed)
    return store, _by_seed(_one_row(rows, row), seed)


class _Row:
    """The records of one row of one table, in the order of seeds."""

    def __init__(self, label: str, records: Sequence[Record]) -> None:
        self.label = label
        self.records = sorted(records, key=lambda record: record.seed)

    def named(self, with_table: bool) -> str:
        """`1f3a09c2 = hard_sharing`; with_table: also the data and backbone of its table."""
        about = ""
        if with_table:
            head = table_head(self.records)
            about = f" on {head['data']}, {head['backbone']}"
        return f"{self.records[0].key[:8]} = {self.label}{about}"


def _rows(records: Sequence[Record]) -> list[_Row]:
    tables: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if record.status != INVALID:
            tables[record.table_key].append(record)
    return [_Row(*row) for table in tables.values() for row in zip(*labelled_rows(table), strict=True)]


def _of_file(path: Path) -> tuple[Store, Record]:
    try:
        record = parse_record(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}.") from error
    except UsageError as error:
        raise UsageError(f"{path} is not a record: {error}.") from error
    store = Store(path.resolve().parents[3]) if len(path.resolve().parents) > 3 else None
    if store is None or store.record_path(record) != path.resolve():
        raise UsageError(
            f"{path} lies outside of its run's folder, which holds its weights; give DIR {record.key[:8]}."
        )
    return store, record


def _by_key(records: Sequence[Record], start: str, seed: int | None) -> Record:
    found = [record for record in records if record.key.startswith(start)]
    if not found:
        close = ", ".join(key[:8] for key in nearest(start, [record.key[: len(start)] for record in records]))
        raise UsageError(f"No cell's key starts with {start!r}. Nearest: {close}.")
    if len(found) > 1:
        raise UsageError(f"{len(found)} cells' keys start with {start!r}: {', '.join(r.key for r in found[:4])}.")
    if seed is not None and found[0].seed != seed:
        raise UsageError(f"Cell {found[0].key[:8]} has seed {found[0].seed}, not {seed}; leave --seed out.")
    return found[0]


def _one_row(rows: Sequence[_Row], name: str | None) -> _Row:
    found = [row for row in rows if row.label == name] if name is not None else list(rows)
    if not found:
        found = [row for row in rows if row.records[0].method == name]
    if not found:
        labels = {row.label for row in rows} | {row.records[0].method for row in rows}
        raise unknown("row", str(name), labels)
    if len(found) > 1:
        what = "Which row?" if name is None else f"{name!r} is {len(found)} rows."
        more = f" and {len(found) - 6} more" if len(found) > 6 else ""
        several_tables = len({row.records[0].table_key for row in found}) > 1
        listing = "; ".join(row.named(several_tables) for row in found[:6])
        raise UsageError(f"{what} Name one by its label or its cell's key: {listing}{more}.")
    return found[0]


def _by_seed(row: _Row, seed: int | None) -> Record:
    by_seed = {record.seed: record for record in row.records}
    if seed is not None:
        if seed not in by_seed:
            raise UsageError(f"{row.label} has no seed {seed}; it has {', '.join(map(str, by_seed))}.")
        return by_seed[seed]
    done = [record for record in row.records if record.status == "done"]
    if not done:
        states = ", ".join(f"seed {number}: {record.status}" for number, record in by_seed.items())
        raise UsageError(f"{row.label} has no cell that is done ({states}); run it again.")
    return done[0]
