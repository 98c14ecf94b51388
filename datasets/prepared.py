"""Prepared copies: the stored fields of one input of one split as memory-mapped arrays, bit for bit as read from files.

They lie at `<data root>/prepared/<data set>/<layout>-<split>-<input>-<fields>/`, outside the source, with a manifest
that names the data hash of the source they were made from. `python -m benchmark.data prepare` writes them.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from datasets.files import FileError

MANIFEST = "manifest.json"
FORM = 1  # of the manifest; another one is made again


def prepared_folder(source: Path, layout: str, split: str, name: str, keys: Sequence[str]) -> Path:
    """Where the copy of one input lies. source: the data set's folder; keys: of its fields."""
    fields = hashlib.sha256("\n".join(sorted(keys)).encode()).hexdigest()[:8]
    return source.parent / "prepared" / source.name / f"{layout}-{split}-{name}-{fields}"


class Prepared:
    """Memory-mapped fields. Opened at first use, in each process anew."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, key: str, index: int) -> npt.NDArray[Any]:
        """The stored form of one field of one sample, a copy."""
        return np.array(self._arrays[key][index])

    @functools.cached_property
    def _arrays(self) -> Mapping[str, npt.NDArray[Any]]:
        files = read_manifest(self.folder)["files"]
        return {key: np.load(self.folder / file, mmap_mode="r") for key, file in files.items()}

    def __getstate__(self) -> Path:
        return self.folder

    def __setstate__(self, folder: Path) -> None:
        self.folder = folder


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished copy: `form`, `hash` of the source, `n` samples, `files` by key. Raises FileError."""
    path = folder / MANIFEST
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["form"] != FORM:
            raise FileError(f"{path}: written by another version; remove {folder} and prepare again.")
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"{path}: cannot be read; remove {folder} and prepare again.") from error
    return cast("dict[str, Any]", document)


def open_prepared(folder: Path, content_hash: str) -> Prepared | None:
    """The copy in a folder, None where there is none. Raises FileError where it was made from other data."""
    if not (folder / MANIFEST).exists():
        return None
    if read_manifest(folder)["hash"] != content_hash:
        raise FileError(
            f"{folder}: was prepared from other files than are there now; remove it, or prepare the data set again."
        )
    return Prepared(folder)
