"""Records on disk: atomic writes, verified reads, locks, artifacts. Spec: measurement 9.

One file a cell, `records/<table>/<key[:2]>/<key>.json`. Nothing is pickled, no index is authoritative, and a file whose
bytes do not match its own hash is read as a record with status `invalid` that says why, so that one torn or forged file
never stops a report. torch is not imported here: reports must start fast.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import re
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from benchmark.records.documents import ArtifactEntry, ErrorEntry
from benchmark.records.keys import KEY_DIGITS
from benchmark.records.record import INVALID, NO_CELL, Record, parse_record, record_bytes
from datasets.errors import UsageError

_KEY = re.compile(r"[0-9a-f]{32}")
_SUFFIXES = {
    "array": ".npy",
    "weights": ".safetensors",
    "graph": ".json",
    "figure": ".json",
    "json": ".json",
    "text": ".txt",
    "image": ".png",
}
_NO_FOLDER_SYNC = {errno.EINVAL, errno.EACCES, errno.EPERM, errno.EBADF, errno.ENOTSUP, errno.ENOSYS}
_SETTLED_S = 3.0  # a file written later may change again without a new time: some clocks tick every two seconds
_MAX_NAME = 60  # characters of an artifact's name that survive in its file name


class Keyed(Protocol):
    """A record or a planned cell: both have the keys that name files."""

    @property
    def key(self) -> str:
        """Of the cell."""

    @property
    def table_key(self) -> str:
        """Of its table."""


class StorageError(UsageError):
    """A file of the store cannot be read or written; the message names path and cause."""


def traceback_file(out: Path, key: str) -> Path:
    """The file, in a folder of results, for the traceback of a cell that failed by a fault in code."""
    return out / "work" / key / "traceback.txt"


def write_atomic(path: Path, data: bytes) -> None:
    """Replace the file at `path` by `data`, whole or not at all; folders are made. The suite's one write function.

    Raises StorageError, naming path and cause; the old file is then untouched and no temporary file is left.
    """
    temporary = path.with_name(f".{path.name[:80]}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:  # also an interrupt: whatever stops the write, no debris stays
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        _sync_folder(path.parent)
    except OSError as error:
        raise StorageError(f"Cannot write {path}: {error.strerror or error}.") from error


def remove_torn(folder: Path, prefix: str = "") -> None:
    """Remove the half-written files of a killed process from a folder. Hold the lock of the files written there."""
    for path in folder.glob(f".{prefix}*.tmp"):
        with contextlib.suppress(OSError):
            path.unlink()


def _sync_folder(folder: Path) -> None:
    """Make the new name durable. Not on Windows and some network file systems, which cannot open or sync a folder."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise


class Store:
    """The records, their history and their artifacts below one folder. Reading never raises for a bad file."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    def record_path(self, cell: Keyed) -> Path:
        """The file of a record, or of a planned cell's record."""
        return self.root / "records" / cell.table_key / cell.key[:2] / f"{cell.key}.json"

    def write(self, record: Record) -> Record:
        """Store a record, with both hashes set, and return it. An older record of the cell is first kept in `history/`.

        Hold `lock(record.key)`. Raises UsageError for a record that reading would refuse, and StorageError if it cannot
        be written; the older record then stays in place.
        """
        data = record_bytes(record)
        try:
            written = parse_record(data)
        except UsageError as error:
            raise UsageError(f"Record of cell {record.key} cannot be stored: {error}.") from error
        path = self.record_path(record)
        if path.exists():
            self._keep_in_history(path)
        write_atomic(path, data)
        return written

    def require_writable(self) -> None:
        """Make the folder, and try to write a file in it. Raises StorageError if that fails."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root):  # a name of its own: several runs may start on one folder
                pass
        except OSError as error:
            raise StorageError(f"Results folder {self.root} cannot be used: {error.strerror or error}.") from error

    def mark_stale(self, record: Record, reason: str) -> None:
        """Note beside a record why a run has kept it though it is stale, for later readers of the folder.

        Raises StorageError if the note cannot be written.
        """
        if self.stale_reason(record) != reason:
            write_atomic(self._stale_path(record), f"{record.record_hash} {reason}".encode())

    def unmark_stale(self, record: Record) -> None:
        """Remove the note: the record equals one that would be made now."""
        with contextlib.suppress(OSError):
            self._stale_path(record).unlink()

    def stale_reason(self, record: Record) -> str | None:
        """Why the latest run on this folder has called the record stale; None if it has not."""
        try:
            about, _, reason = self._stale_path(record).read_text(encoding="utf-8").partition(" ")
        except (OSError, UnicodeDecodeError):
            return None
        return reason if about == record.record_hash else None  # a note on the record that was here before

    def _stale_path(self, record: Record) -> Path:
        return self.record_path(record).with_suffix(".stale")

    def _keep_in_history(self, path: Path) -> None:
        # A copy, not a move: at no moment is the cell without a record. Named by content, so that a retry adds nothing.
        try:
            old = path.read_bytes()
        except OSError as error:
            raise StorageError(f"Cannot read {path}: {error.strerror or error}.") from error
        name = f"{path.stem}-{hashlib.sha256(old).hexdigest()[:12]}.json"
        write_atomic(self._history_folder(path) / name, old)

    def _history_folder(self, path: Path) -> Path:
        return self.root / "history" / path.parent.relative_to(self.root / "records")

    def read(self, key: str) -> Record | None:
        """The record of a key, with status `invalid` if the file cannot be trusted; None if there is no file."""
        _check_key(key)
        paths = sorted((self.root / "records").glob(f"*/{key[:2]}/{key}.json"))
        return self._read_file(paths[0]) if paths else None

    def load_all(self) -> list[Record]:
        """All records in the order of their paths; files that cannot be trusted as records with status `invalid`."""
        records: list[Record] = []
        first_path: dict[str, Path] = {}
        for path in sorted((self.root / "records").glob("*/*/*.json")):
            record = self._read_file(path)
            if record.status != INVALID and path.stem in first_path:
                # Two merged folders can hold a cell twice; counted twice it would pass for two seeds.
                record = self._invalid(path, f"a second record of the cell in {self._name(first_path[path.stem])}")
            elif record.status != INVALID:
                first_path[path.stem] = path
            records.append(record)
        return records

    def holds_records(self) -> bool:
        """Whether there is any file of a record, even one that cannot be trusted; none is read."""
        return any((self.root / "records").glob("*/*/*.json"))

    def is_done(self, key: str) -> bool:
        """Whether the cell has a valid record with status `done`; no other record is a cache hit."""
        record = self.read(key)
        return record is not None and record.status == "done"

    def _read_file(self, path: Path) -> Record:
        try:
            state = path.stat()
            if time.time() - state.st_mtime < _SETTLED_S:
                record = parse_record(path.read_bytes())
            else:
                record = _parsed(path, state.st_ino, state.st_mtime_ns, state.st_size)
            key = record.key
        except OSError as error:
            return self._invalid(path, f"cannot be read ({error.strerror or error})")
        except (UsageError, RecursionError) as error:
            return self._invalid(path, str(error))
        if key != path.stem:
            return self._invalid(path, f"its name is not the key of its cell, {key}")
        return record

    def _invalid(self, path: Path, reason: str) -> Record:
        message = f"{self._name(path)}: {reason}"
        error = ErrorEntry(kind=INVALID, message=message, stage=None, step=None, task=None)
        return Record(cell=NO_CELL, status=INVALID, error=error)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    @contextlib.contextmanager
    def lock(self, key: str, timeout_s: float = 5.0) -> Iterator[None]:
        """Within the block only this process works on the cell. Raises StorageError if another one still does."""
        import filelock  # reports take no lock and need not load it

        _check_key(key)
        path = self.root / "locks" / f"{key}.lock"
        lock = filelock.FileLock(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=timeout_s)
        except filelock.Timeout as error:
            raise StorageError(f"Cell {key} is being worked on by another process (it holds {path}).") from error
        except OSError as error:
            raise StorageError(f"Cannot lock {path}: {error.strerror or error}.") from error
        try:
            yield
        finally:
            lock.release()

    def remove_torn(self, cell: Keyed) -> None:
        """Remove half-written files of this cell's record, history and artifacts, left by a killed process. Hold the
        cell's lock.
        """
        remove_torn(self.record_path(cell).parent, cell.key)
        remove_torn(self._history_folder(self.record_path(cell)), cell.key)
        remove_torn(self.root / "artifacts" / cell.key[:2] / cell.key)

    def write_artifact(self, key: str, name: str, data: bytes, kind: str) -> ArtifactEntry:
        """Store the bytes of a named artifact and return its entry. kind decides the suffix (`array`: .npy)."""
        _check_key(key)
        file = f"artifacts/{key[:2]}/{key}/{safe_name(name)}{_SUFFIXES.get(kind, '.bin')}"
        write_atomic(self.root / file, data)
        return ArtifactEntry(kind=kind, file=file, sha256=hashlib.sha256(data).hexdigest())

    def holds(self, entry: ArtifactEntry) -> bool:
        """Whether there is a file of an artifact."""
        return (self.root / entry["file"]).is_file()

    def read_artifact(self, entry: ArtifactEntry) -> bytes:
        """The bytes of an artifact. Raises StorageError if they are missing, changed, or outside of the store."""
        path = self.root / entry["file"]
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise StorageError(f"Artifact file {entry['file']!r} lies outside of {self.root}.")
        try:
            data = path.read_bytes()
        except OSError as error:
            raise StorageError(f"Cannot read {path}: {error.strerror or error}.") from error
        if hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise StorageError(f"{path} does not match the sha256 of its record: changed after it was written.")
        return data


def safe_name(name: str) -> str:
    """A file name of [a-z0-9_-] for any name, equal for equal names only, safe on Windows and on file systems that
    ignore case.
    """
    plain = re.sub(r"[^a-z0-9_-]+", "-", name.lower())[:_MAX_NAME]
    if plain == name and not re.fullmatch(r"(con|prn|aux|nul|com\d|lpt\d|)", plain):
        return plain
    return f"{plain}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}".lstrip("-")


@functools.lru_cache(maxsize=2048)
def _parsed(path: Path, inode: int, mtime_ns: int, size: int) -> Record:
    """A file in one state, read once; after a change it is another entry. A run asks five times for each record."""
    return parse_record(path.read_bytes())


def _check_key(key: str) -> None:
    if not _KEY.fullmatch(key):
        raise UsageError(f"{key!r} is not a cell key; expected {KEY_DIGITS} hex digits in lower case.")
