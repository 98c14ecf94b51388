"""Lossless, memory-mapped copies of data sets on disk: one array a field, rows in the order of the samples.

A copy holds the stored forms that the loader's readers give (uint8 where files are uint8, float32 where they are
floating). So samples from it equal samples from the files bit for bit, and the readers' checks run once. It is kept in
`<data root>/.prepared`, outside the source folder, with a manifest that names what it was made from. A copy of other
files is an error. Spec: datasets 2.7.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datasets.contracts import DatasetSpec
from datasets.on_disk.files import Array, FileError
from datasets.on_disk.sources import Field, Source

if TYPE_CHECKING:
    from torch import Tensor

FOLDER = ".prepared"
MANIFEST, PROGRESS, PARTIAL = "manifest.json", "progress.json", ".partial"
FORMAT = 1  # of the files here
ROWS_AT_ONCE = 32  # decoded side by side, and lost at most when a preparation is interrupted


@dataclasses.dataclass(frozen=True)
class Copy:
    """A prepared copy. folder: where it is, or would be."""

    folder: Path

    def manifest(self) -> dict[str, Any] | None:
        """The manifest of the copy; None if there is no copy. Raises FileError if it cannot be read."""
        path = self.folder / MANIFEST
        if not path.is_file():
            return None
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise FileError(f"{path}: cannot be read ({error}); remove {self.folder} or prepare again.") from error
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise FileError(f"{path}: was written by another version; remove {self.folder} or prepare again.")
        return document


def copy_of(folder: Path, spec: DatasetSpec, options: Mapping[str, object]) -> Copy:
    """Where the copy of a data set is: by layout, version, protocol and options, since these decide stored forms."""
    key = json.dumps([spec.layout, spec.version, spec.protocol, dict(options)], sort_keys=True)
    digest = hashlib.sha256(key.encode()).hexdigest()[:12]
    return Copy(folder.parent / FOLDER / f"{spec.name}-{spec.layout}-{digest}")


def use(copy: Copy, split: str, name: str, source: Source, content: Callable[[], str]) -> Source:
    """The source with its fields read from the copy; unchanged if this part has no copy.

    content: gives the content hash of the files. Raises FileError where the copy was made from other files.
    """
    manifest = copy.manifest()
    if manifest is None or f"{split}/{name}" not in manifest["parts"]:
        return source
    part = manifest["parts"][f"{split}/{name}"]
    if part["content"] != content() or part["ids"] != _ids_hash(source.ids):
        raise FileError(
            f"{copy.folder}: was prepared from other files than those that lie there now ({split}, {name}); "
            "prepare the data set again, or remove the folder."
        )
    fields = {}
    for field_name, field in source.fields.items():
        path, entry = copy.folder / part["arrays"][field_name]["file"], part["arrays"][field_name]
        if not path.is_file() or path.stat().st_size != entry["bytes"]:
            raise FileError(f"{path}: is absent or cut short; prepare the data set again, or remove {copy.folder}.")
        fields[field_name] = Field(Rows(path), Owned(field.decode), field.where)
    return dataclasses.replace(source, image=fields.pop("image"), targets=fields)


@dataclasses.dataclass(frozen=True)
class Rows:
    """Reads the row at a position of a prepared array; only its path travels to worker processes."""

    path: Path

    def __call__(self, index: int) -> Array:
        """The stored form of a sample, in the map itself. Callers that keep it or write to it must copy it."""
        row: Array = _mapped(self.path)[index]
        return row


@dataclasses.dataclass(frozen=True)
class Owned:
    """Decodes a row into a tensor that does not share memory with the file.

    It copies only if the decoder did not: copying twice costs a third of the time.
    """

    decode: Callable[[Array], Tensor]

    def __call__(self, stored: Array) -> Tensor:
        """The decoded tensor; a copy if it still shares the map's memory."""
        tensor = self.decode(stored)
        row = np.asarray(stored).__array_interface__["data"][0]
        inside = row <= tensor.untyped_storage().data_ptr() < row + max(1, stored.nbytes)
        return tensor.clone() if inside else tensor


@functools.lru_cache(maxsize=256)
def _mapped(path: Path) -> Array:
    # Copy on write: torch warns of arrays that cannot be written to, and nothing may reach the file.
    mapped: Array = np.load(path, mmap_mode="c", allow_pickle=False)
    return mapped


def prepare(
    copy: Copy,
    parts: Mapping[tuple[str, str], Source],
    contents: Mapping[tuple[str, str], str],
    *,
    workers: int = 4,
    report_progress: Callable[[int, int], None] = lambda done, n: None,
) -> Path:
    """Write the copy of all parts {(split, input): source}; goes on where an interrupted one stopped.

    contents: their content hashes. The copy appears under its name when it is whole. Raises FileError for a file that
    cannot be read, or samples that differ in shape; what was written until then is kept for the next attempt.
    """
    work = copy.folder.with_name(copy.folder.name + PARTIAL)
    asked = {
        f"{split}/{name}": [contents[split, name], _ids_hash(source.ids)] for (split, name), source in parts.items()
    }
    done = _resumable(work, asked)
    total, ready = sum(len(source.ids) for source in parts.values()), sum(done.values())
    report_progress(ready, total)
    manifest: dict[str, Any] = {"format": FORMAT, "parts": {}}
    if listings := [source.listing for source in parts.values() if source.listing is not None]:
        manifest["listing"] = listings[0]  # of the whole set, whichever part
    with ThreadPoolExecutor(workers) as pool:
        for (split, name), source in parts.items():
            part = f"{split}/{name}"
            arrays = _open(work, part, source)
            for start in range(done.get(part, 0), len(source.ids), ROWS_AT_ONCE):
                rows = range(start, min(start + ROWS_AT_ONCE, len(source.ids)))
                list(pool.map(functools.partial(_copy_row, source, arrays), rows))
                for array in arrays.values():
                    array.flush()
                done[part] = rows.stop
                _write_json(work / PROGRESS, {"asked": asked, "done": done})
                ready += len(rows)
                report_progress(ready, total)
            manifest["parts"][part] = {
                "content": contents[split, name],
                "ids": _ids_hash(source.ids),
                "arrays": {field: _entry(work, _file(part, field)) for field in arrays},
            }
    (work / PROGRESS).unlink(missing_ok=True)
    _write_json(work / MANIFEST, manifest)
    if copy.folder.exists():
        shutil.rmtree(copy.folder)
    work.rename(copy.folder)
    _mapped.cache_clear()
    return copy.folder


def _resumable(work: Path, asked: Mapping[str, list[str]]) -> dict[str, int]:
    """{part: rows that are written} of an interrupted preparation of the same files; else an empty folder."""
    try:
        progress = json.loads((work / PROGRESS).read_text(encoding="utf-8"))
        if progress["asked"] == dict(asked):
            return {part: int(n) for part, n in progress["done"].items()}
    except (OSError, ValueError, KeyError, TypeError):
        pass
    if work.exists():
        shutil.rmtree(work)
    work.mkdir(parents=True)
    return {}


def _open(work: Path, part: str, source: Source) -> dict[str, np.memmap[Any, Any]]:
    """The arrays of a part, opened where they are, else made in the shape of the first sample."""
    arrays = {}
    for name, field in source.fields.items():
        path = work / _file(part, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            try:
                arrays[name] = np.lib.format.open_memmap(path, mode="r+")
                continue
            except ValueError:  # cut off while it was made, before a row was in it
                path.unlink()
        first = np.asarray(field.read(0))
        arrays[name] = np.lib.format.open_memmap(
            path, mode="w+", dtype=first.dtype, shape=(len(source.ids), *first.shape)
        )
    return arrays


def _copy_row(source: Source, arrays: Mapping[str, Array], row: int) -> None:
    for name, field in source.fields.items():
        stored = np.asarray(field.read(row))
        array = arrays[name]
        if stored.shape != array.shape[1:] or stored.dtype != array.dtype:
            raise FileError(
                f"{field.where(row)}: expected {array.dtype} {array.shape[1:]} as in the first sample, found "
                f"{stored.dtype} {stored.shape}."
            )
        array[row] = stored


def _file(part: str, field: str) -> str:
    return f"{part}/{field}.npy"


def _entry(work: Path, file: str) -> dict[str, object]:
    return {"file": file, "bytes": (work / file).stat().st_size}


def _ids_hash(ids: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()


def _write_json(path: Path, document: object) -> None:
    """In one step, so that a reader sees the old file or the new one."""
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8") as stream:
        json.dump(document, stream, sort_keys=True)
        stream.flush()
        os.fsync(stream.fileno())
    part.replace(path)
