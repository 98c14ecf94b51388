"""What data of your own have in common: a folder, tasks, and a spec of which all that can be computed is computed.

A spec is asked for many times in a process and its folder is looked at once, until a folder or table in it changes.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import hashlib
import inspect
import os
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, get_args

import numpy as np

from datasets import registry
from datasets.contracts import DatasetSpec, Split, TaskSpec
from datasets.errors import DatasetMissingError, ProtocolError, UsageError
from datasets.on_disk.checks import files_hash
from datasets.on_disk.files import Array
from datasets.on_disk.photographs import is_hidden
from datasets.own.labels import Labels
from datasets.registry import DatasetLoader, DatasetOptions
from datasets.roles import hold_out

PREFIX = "own-data-v1/"  # of the hash by which a test split is drawn
SPLITS: tuple[Split, ...] = get_args(Split)
MEASURED = 100  # images of train, evenly spaced, of which mean and standard deviation are measured
DARKEST = 1 / 255  # a standard deviation is at least this, so that images of one colour divide by no zero


@dataclasses.dataclass(frozen=True)
class Found:
    """What was found in the folder. size: (height, width) of the images. parts: what a split holds. files: all that
    were looked at. mean, std: measured, where the class does not say them. notes: caveats.
    """

    tasks: tuple[TaskSpec, ...]
    size: tuple[int, int]
    parts: Mapping[Split, Any]
    counts: Mapping[Split, int]
    files: Sequence[Path]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    notes: tuple[str, ...] = ()


class OwnLoader(DatasetLoader):
    """Data of your own. A subclass sets `folder` and `tasks`; everything else has a default.

    Splits are those that the folder shows: train, test and, if there is one, val. Where it shows none, `test_share` of
    the images are test, chosen by the hash of what they hold: the same ones on every machine, copies of an image on
    one side. Without val, a tenth of train is held out to choose on, as for all data.
    """

    layout: ClassVar[str]
    folder: ClassVar[str | Path] = ""  # relative to the file of the class
    tasks: ClassVar[Mapping[str, Labels]] = {}
    test_share: ClassVar[float] = 0.2
    mean: ClassVar[tuple[float, float, float] | None] = None  # per RGB channel, of images in [0, 1]; None: measured
    std: ClassVar[tuple[float, float, float] | None] = None
    mirrored: ClassVar[bool] = True  # whether flips in a suite's augmentation may touch the images: not digits, say
    licence: ClassVar[str] = "not stated"
    home: ClassVar[str] = "own files"

    @abc.abstractmethod
    def find(self, folder: Path) -> Found:
        """What the folder holds. Raises FileError in one line for what is wrong with it."""

    @property
    def name(self) -> str:
        """The name that it is registered under."""
        return next((name for name, loader in registry._DATASETS.items() if loader is self), type(self).__name__)

    def place(self) -> Path:
        """The folder. Raises DatasetMissingError where it is absent."""
        try:
            beside = Path(inspect.getfile(type(self))).parent
        except (TypeError, OSError):  # typed into a console
            beside = Path()
        folder = (beside / self.folder).absolute()
        if not folder.is_dir():
            raise DatasetMissingError(
                f"Data set {self.name!r}: no folder {folder}; `folder` of its class is {str(self.folder)!r}, relative "
                "to the file of the class."
            )
        return folder

    def found(self) -> Found:
        """What the folder holds now."""
        folder = self.place()
        if not self.tasks:
            raise UsageError(f"Data set {self.name!r}: tasks is empty; expected {{name: Labels(kind)}}.")
        return _found(self, folder, _state(folder))

    def spec(self, protocol: str, options: DatasetOptions, layout: str | None = None) -> DatasetSpec:
        """Tasks and sizes, from the folder. Raises UsageError or a subclass where the folder does not fit the class."""
        if protocol != "standard":
            raise ProtocolError(f"{self.name} has no labels for protocol {protocol!r}; it offers 'standard'.")
        found = self.found()
        return DatasetSpec(
            name=self.name,
            layout=self.layout,
            version=_version(tuple(found.files), self.place(), _state(self.place())),
            protocol=protocol,
            domains="single",
            tasks=found.tasks,
            splits={split: found.counts[split] for split in found.counts},
            native_size=found.size,
            mean=self.mean or found.mean,
            std=self.std or found.std,
            licence=self.licence,
            home=self.home,
            caveats=found.notes,
            not_mirrored=() if self.mirrored else ("image",),
        )

    def drawn(self, digests: Sequence[str]) -> tuple[dict[Split, list[int]], str]:
        """({split: positions}, what was done in words) where the folder shows no splits. digests: of each image."""
        test = set(hold_out(self.name, digests, self.test_share, PREFIX).tolist())
        sides: dict[Split, list[int]] = {"train": [], "test": []}
        for row in range(len(digests)):
            sides["test" if row in test else "train"].append(row)
        return sides, f"test is {len(test)} of {len(digests)} images, chosen by the hash of what they hold"


def statistics(images: Iterable[Array]) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """(mean, standard deviation) per RGB channel of uint8 [H, W] or [H, W, 3], of values in [0, 1], to three digits."""
    total, squares, n = np.zeros(3), np.zeros(3), 0
    for image in images:
        values = image.reshape(-1, 3 if image.ndim == 3 else 1).astype(np.float64) / 255
        total += values.sum(axis=0)
        squares += np.square(values).sum(axis=0)
        n += len(values)
    mean = total / n
    std = np.sqrt(np.maximum(squares / n - mean**2, DARKEST**2))
    rounded = [tuple(round(float(value), 3) for value in values) for values in (mean, std)]
    return rounded[0], rounded[1]  # type: ignore[return-value]


def spaced(n: int, wanted: int = MEASURED) -> list[int]:
    """At most `wanted` positions at equal distances among n."""
    return sorted({int(place) for place in np.linspace(0, n - 1, min(n, wanted)).round()})


def require_splits(names: Iterable[str], where: Path) -> list[Split]:
    """The splits among these names, in their order. Raises UsageError where train or test is missing."""
    found = [split for split in SPLITS if split in set(names)]
    for split in ("train", "test"):
        if split not in found:
            raise UsageError(
                f"{where}: shows {' and '.join(found)} and no {split}; expected train, test and, if you like, val."
            )
    return found


def digest_of(data: bytes) -> str:
    """sha256 (hex)."""
    return hashlib.sha256(data).hexdigest()


def _state(folder: Path) -> Hashable:
    """Names and times of the folders, and of the files that are no images of one sample."""
    state: list[tuple[object, ...]] = []
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        whole = [name for name in files if name.endswith((".csv", ".npz", ".npy"))]
        for path in (Path(place), *(Path(place, name) for name in sorted(whole))):
            stat = path.stat()
            state.append((path, stat.st_mtime_ns, stat.st_size))
    return tuple(state)


@functools.lru_cache(maxsize=4)
def _found(loader: OwnLoader, folder: Path, state: Hashable) -> Found:
    return loader.find(folder)


@functools.lru_cache(maxsize=16)
def _version(files: tuple[Path, ...], folder: Path, state: Hashable) -> str:
    return files_hash(sorted(files), [], folder)[:12]
