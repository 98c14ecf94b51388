"""The official file of NYU-v2, `nyu_depth_v2_labeled.mat`: MATLAB 7.3, which is HDF5. Spec: datasets 5.1.

MATLAB stores the first axis fastest, so through HDF5 every array comes with its axes reversed: an image is (3, width,
height) and is turned back here. 894 classes become 40 by the official map; the file holds no normals.
"""

from __future__ import annotations

import functools
import importlib
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from datasets.contracts import SINGLE_INPUT, IndexArray, Split
from datasets.errors import UsageError
from datasets.on_disk.dense import IGNORE, decode_depth, decode_labels
from datasets.on_disk.files import Array, FileError, expect
from datasets.on_disk.releases import block_of
from datasets.on_disk.sources import Field, Source, scale_uint8

FILE, LISTS, MAP_40 = "nyu_depth_v2_labeled.mat", "splits.mat", "classMapping40.mat"
CHECKSUMS = {  # sha256 of the published lists; of the 2.8 GB file none is published
    LISTS: "6e081404491a8bfba2f066beaa9713ef6046f9007aa5f799f2a350506a580cee",
    MAP_40: "ff177194cce9a2163517f1e1e6f1c64c50987162f542dedddc04bbf6ebe6d851",
}
N_RAW_CLASSES = 894
_SIZE = (480, 640)
_STORED: Mapping[str, tuple[str, tuple[int, ...]]] = {  # dataset -> type and shape of one sample as HDF5 gives it
    "images": ("uint8", (3, 640, 480)),
    "labels": ("uint16", (640, 480)),
    "depths": ("float32", (640, 480)),
}


class MatFile:
    """Reads samples of one dataset of the file, upright. Opened at first use, in each process anew."""

    def __init__(self, path: Path, dataset: str, rows: IndexArray, table: Array | None = None) -> None:
        """rows: the file's row of each sample; table: raw class -> stored class."""
        self.path, self.dataset, self.rows, self.table = path, dataset, rows, table
        self._lock = threading.Lock()
        self._file: Any = None

    def __getstate__(self) -> tuple[Path, str, IndexArray, Array | None]:
        return self.path, self.dataset, self.rows, self.table

    def __setstate__(self, state: tuple[Path, str, IndexArray, Array | None]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def __call__(self, index: int) -> Array:
        """[H, W] or [H, W, 3] of a sample. Raises FileError."""
        dtype, shape = _STORED[self.dataset]
        try:
            with self._lock:
                if self._file is None:
                    self._file = open_hdf5(self.path)
                stored = np.asarray(self._file[self.dataset][int(self.rows[index])])
        except (OSError, KeyError, IndexError, ValueError) as error:
            raise FileError(f"{self.path}: {self.dataset} of sample {index} cannot be read ({error}).") from error
        upright = np.ascontiguousarray(expect(stored, shape, [dtype], self.path).transpose())
        if self.table is None:
            return upright
        if upright.max() > N_RAW_CLASSES:
            raise FileError(f"{self.path}: expected classes 0 to {N_RAW_CLASSES}, found {upright.max()}.")
        return np.asarray(self.table[upright])


def open_hdf5(path: Path) -> Any:
    """The open file. Raises UsageError where h5py is not installed, and FileError where the file cannot be opened."""
    try:
        h5py = importlib.import_module("h5py")
    except ImportError as error:
        raise UsageError(f"{path}: reading it needs the package h5py: pip install 'sharebench[hdf5]'.") from error
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise FileError(f"{path}: cannot be read as HDF5 ({error}).") from error


def read_lists(folder: Path) -> dict[str, list[int]]:
    """{train | test: rows of the file, counted from 0}. Raises FileError."""
    lists = _matlab(folder / LISTS, ("trainNdxs", "testNdxs"))
    return {split: sorted(int(number) - 1 for number in lists[f"{split}Ndxs"].flat) for split in ("train", "test")}


def class_table(folder: Path) -> Array:
    """uint8 [895]: raw class, 0 = unlabelled -> one of 40 counted from 0, or 255. Raises FileError."""
    to_40 = _matlab(folder / MAP_40, ("mapClass",))["mapClass"].flatten().astype(np.int64)
    if to_40.shape != (N_RAW_CLASSES,) or to_40.min() < 1 or to_40.max() > 40:
        raise FileError(f"{folder / MAP_40}: expected {N_RAW_CLASSES} numbers from 1 to 40 under mapClass.")
    return np.concatenate([[IGNORE], to_40 - 1]).astype(np.uint8)


def _matlab(path: Path, names: tuple[str, ...]) -> dict[str, Array]:
    from scipy.io import loadmat  # half a second, needed in this layout only

    try:
        document = loadmat(path)
        return {name: document[name] for name in names}
    except (OSError, ValueError, KeyError, TypeError, NotImplementedError) as error:
        raise FileError(f"{path}: expected a MATLAB file with {', '.join(names)} ({error}).") from error


def mat_source(folder: Path, split: Split, merge: Array | None) -> Mapping[str, Source]:
    """The images of a split. merge: table uint8 [256] from the 40 classes to fewer."""
    path = folder / FILE
    rows = np.array(read_lists(folder)[split], dtype=np.int64)
    table = class_table(folder)
    if merge is not None:
        table = np.asarray(merge[table])
    where = functools.partial(_same, path)
    return {
        SINGLE_INPUT: Source(
            ids=[f"{row:04d}" for row in rows.tolist()],
            units=[block_of(row) for row in rows.tolist()],
            image=Field(MatFile(path, "images", rows), scale_uint8, where),
            targets={
                "semseg": Field(MatFile(path, "labels", rows, table), decode_labels, where),
                "depth": Field(MatFile(path, "depths", rows), decode_depth, where),
            },
            meta={"domain": None},
            content=[folder / LISTS, folder / MAP_40],
        )
    }


def _same(path: Path, index: int) -> Path:
    return path
