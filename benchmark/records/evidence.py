"""What tables are judged by, in files beside the records: floors, and the tables that a suite calls a leaderboard.

`floors/<key>.json`: scores of the best constant prediction on report, one file for the data of a table. The tables of a
suite with `leaderboard: true` are listed in `leaderboards/<suite>.json`, the rows that a table lacks because their
method has no form on its data and backbone in `misfits/<table>.json`. All are checked when they are read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from benchmark.records.documents import LARGEST
from benchmark.records.keys import canonical_json, cell_key
from benchmark.records.record import Record, parse_json
from benchmark.records.store import StorageError, remove_torn, write_atomic
from datasets.errors import UsageError, first_fault

SCHEMA = 1
FLOORS, LEADERBOARDS, MISFITS = "floors", "leaderboards", "misfits"
T = TypeVar("T")

Value = Annotated[float, Field(ge=-LARGEST, le=LARGEST, allow_inf_nan=False)]


@dataclasses.dataclass(frozen=True)
class Floor:
    """The score of the best constant prediction by one metric; None if it is undefined. constant: which it is."""

    metric: str
    value: Value | None
    unit: str
    higher_is_better: bool
    constant: str


@dataclasses.dataclass(frozen=True)
class FloorsFile:
    """Floors of all tasks on one choice of data. key: see `floors_key`. n_fit: samples of each task's constant.

    tasks: {task: floors}, a task's metrics in its own order, so that the first is the one that it is judged by.
    """

    schema: int
    key: str
    dataset: str
    n_fit: Mapping[str, int]
    tasks: Mapping[str, tuple[Floor, ...]]


@dataclasses.dataclass(frozen=True)
class LeaderboardFile:
    """The keys of the tables that a suite calls a leaderboard."""

    schema: int
    suite: str
    tables: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class MisfitsFile:
    """The rows that do not apply in a table: {title of the row there: why}."""

    schema: int
    table: str
    rows: Mapping[str, str]


_FLOORS = TypeAdapter(FloorsFile)
_LEADERBOARD = TypeAdapter(LeaderboardFile)
_MISFITS = TypeAdapter(MisfitsFile)


def floors_key(data: Mapping[str, object], roles: Mapping[str, str], content: str | None) -> str:
    """What floors depend on, as 32 hex digits. data: of a cell; roles: hashes of the samples; content: of all data."""
    judged = {name: value for name, value in data.items() if name != "task_weights"}
    return cell_key({"data": judged, "roles": dict(roles), "content": content})


def floors_key_of(record: Record) -> str:
    """The key of the floors of a record's table."""
    return floors_key(record.cell["data"], record.roles, record.versions.get("data_hash"))


def write_floors(root: Path, floors: FloorsFile) -> None:
    """Store floors, and remove what a killed process has left of them. Hold the lock of their key. Raises
    StorageError.
    """
    path = _floors_path(root, floors.key)
    remove_torn(path.parent, floors.key)
    write_atomic(path, canonical_json(dataclasses.asdict(floors)))


def read_floors(root: Path, key: str) -> FloorsFile | None:
    """The floors of a key, None if there are none. Raises UsageError, naming the file, where it cannot be trusted."""
    path = _floors_path(root, key)
    if not path.is_file():
        return None
    found = _read(path, root, _FLOORS)
    if found.key != key:
        raise UsageError(f"{path.relative_to(root).as_posix()}: it holds the floors of {found.key}")
    return found


def write_leaderboard(root: Path, suite: str, tables: Collection[str]) -> None:
    """Note which tables a suite calls a leaderboard, beside those that it has called so before, since a run without the
    page of its tuning makes a table of its own. Raises StorageError.
    """
    known, _ = read_leaderboards(root)
    content = LeaderboardFile(SCHEMA, suite, tuple(sorted({*known, *tables})))
    write_atomic(root / LEADERBOARDS / f"{suite}.json", canonical_json(dataclasses.asdict(content)))


def read_leaderboards(root: Path) -> tuple[frozenset[str], tuple[str, ...]]:
    """(keys of the tables that call themselves a leaderboard, a line for each file that was not read)."""
    tables: set[str] = set()
    problems = []
    for path in sorted((root / LEADERBOARDS).glob("*.json")):
        try:
            tables.update(_read(path, root, _LEADERBOARD).tables)
        except UsageError as error:
            problems.append(str(error))
    return frozenset(tables), tuple(problems)


def write_misfits(root: Path, misfits: Iterable[tuple[str, str, str]], fitting: Collection[str]) -> None:
    """Note (table, title of a row, why) of rows that do not apply, beside those noted before; fitting: titles of rows
    that do now. Raises StorageError.
    """
    known, _ = read_misfits(root)
    found = {table: dict(rows) for table, rows in known.items()}
    for table, title, why in misfits:
        found.setdefault(table, {})[title] = why
    for table, rows in found.items():
        left = {title: why for title, why in rows.items() if title not in fitting}
        if left != known.get(table):
            content = MisfitsFile(SCHEMA, table, left)
            write_atomic(root / MISFITS / f"{table}.json", canonical_json(dataclasses.asdict(content)))


def does_not_apply(title: str, why: str) -> str:
    """A row that a table lacks, as plans and tables say it."""
    return f"does not apply: {title}: {why}"


def read_misfits(root: Path) -> tuple[dict[str, Mapping[str, str]], tuple[str, ...]]:
    """({table: {title of a row that does not apply: why}}, a line for each file that was not read)."""
    found: dict[str, Mapping[str, str]] = {}
    problems = []
    for path in sorted((root / MISFITS).glob("*.json")):
        try:
            content = _read(path, root, _MISFITS)
            found[content.table] = content.rows
        except UsageError as error:
            problems.append(str(error))
    return found, tuple(problems)


def _floors_path(root: Path, key: str) -> Path:
    return root / FLOORS / f"{key}.json"


def _read(path: Path, root: Path, adapter: TypeAdapter[T]) -> T:
    name = path.relative_to(root).as_posix()
    try:
        document = parse_json(path.read_bytes())
    except OSError as error:
        raise StorageError(f"{name}: cannot be read ({error.strerror or error})") from error
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from error
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA:
        raise UsageError(f"{name}: schema {schema!r}; this version reads schema {SCHEMA}")
    try:
        return adapter.validate_python(document)
    except ValidationError as error:
        raise UsageError(f"{name}: {first_fault(error)}") from error
