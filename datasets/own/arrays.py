"""`ArrayFiles`: images and labels as arrays, in .npz files or in folders of .npy files.

A split is `train.npz` or a folder `train` of .npy files, with an array `images` (uint8 [N, H, W], [N, H, W, 3] or
[N, 3, H, W]) and one of each task's name, as `list kinds` says of its kind. Where nothing is called train, the one
.npz file that is there, or the .npy files in the folder itself, hold all samples.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from datasets.array_input import ArrayInput
from datasets.contracts import SINGLE_INPUT, DatasetSpec, MultiTaskDataset, Split, TaskSpec
from datasets.errors import unknown
from datasets.kinds import Kind
from datasets.on_disk.files import Array, FileError, read_array
from datasets.own.base import SPLITS, Found, OwnLoader, digest_of, require_splits, spaced, statistics
from datasets.own.labels import Labels, classes_of, kind_of, numbers_of
from datasets.registry import DatasetOptions

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclasses.dataclass(frozen=True)
class Part:
    """Samples of one split. images: uint8 [N, C, H, W]; targets: {task: [N, ...]}; place: for messages; rows: their
    positions in the file.
    """

    place: Path
    images: Array
    targets: Mapping[str, Array]
    rows: Sequence[int]

    def taken(self, rows: Sequence[int]) -> Part:
        """Some of the samples."""
        targets = {task: target[rows] for task, target in self.targets.items()}
        return Part(self.place, self.images[rows], targets, rows)


class FiledInput(ArrayInput):
    """Arrays that know their file."""

    path: str = ""

    def place(self, field: str, row: int) -> str:
        """The file, and which array in it."""
        return f"{self.path}, {field}"


class ArrayFiles(OwnLoader):
    """Images and labels as arrays, kept in memory. images: name of the array of images."""

    layout: ClassVar[str] = "arrays"
    images: ClassVar[str] = "images"

    def load(self, root: Path | None, split: Split, spec: DatasetSpec, options: DatasetOptions) -> MultiTaskDataset:
        """The samples of a split; their labels are checked before a run."""
        import torch

        part: Part = self.found().parts[split]
        targets = {task: torch.from_numpy(target) for task, target in part.targets.items()}
        ids = [f"{split}/{row:06d}" for row in part.rows]
        data = FiledInput(torch.from_numpy(part.images), targets, split, spec, ids)
        data.path = str(part.place)
        return MultiTaskDataset(spec, split, {SINGLE_INPUT: data})

    def find(self, folder: Path) -> Found:
        """Reads all arrays. Raises FileError and UsageError."""
        places = self._places(folder)
        whole = {name: self._read(place) for name, place in places.items()}
        notes: tuple[str, ...] = ()
        if "train" in whole:
            parts = {split: whole[split] for split in require_splits(whole, folder)}
        else:
            (everything,) = whole.values()
            sides, note = self.drawn([digest_of(image.tobytes()) for image in everything.images])
            parts, notes = {split: everything.taken(rows) for split, rows in sides.items()}, (note,)
        sizes = {split: part.images.shape[2:] for split, part in parts.items()}
        for split, size in sizes.items():
            if size != sizes["train"]:
                raise FileError(f"{parts[split].place}: expected images {sizes['train']} as in train, found {size}.")
        train = parts["train"].images
        mean, std = statistics(train[row].transpose(1, 2, 0).squeeze() for row in spaced(len(train), len(train)))
        height, width = sizes["train"]
        return Found(
            tasks=tuple(self._task(name, labels, list(parts.values())) for name, labels in self.tasks.items()),
            size=(height, width),
            parts=parts,
            counts={split: len(part.images) for split, part in parts.items()},
            files=[file for place in places.values() for file in _files(place)],
            mean=mean,
            std=std,
            notes=notes,
        )

    def _places(self, folder: Path) -> dict[str, Path]:
        """{split: file or folder}, or one place under another name that holds all samples."""
        found: dict[str, Path] = {
            split: path for split in SPLITS for path in (folder / split, folder / f"{split}.npz") if path.exists()
        }
        if found:
            require_splits(found, folder)
            return found
        archives = sorted(folder.glob("*.npz"))
        if len(archives) == 1:
            return {"all": archives[0]}
        if (folder / f"{self.images}.npy").is_file():
            return {"all": folder}
        listed = ", ".join(path.name for path in archives) or "no .npz file"
        raise FileError(
            f"{folder}: expected train.npz and test.npz, folders train and test of .npy files, one .npz file, or "
            f"{self.images}.npy; found {listed}."
        )

    def _read(self, place: Path) -> Part:
        held = dict(_arrays(place))
        wanted = [self.images, *self.tasks]
        for name in wanted:
            if name not in held:
                raise unknown(f"array of {place}", name, held)
        images = _planes(held[self.images](), place, self.images)
        targets = {}
        for name, labels in self.tasks.items():
            stored, kind, where = held[name](), kind_of(name, labels), f"{place}, {name}"
            if len(stored) != len(images):
                raise FileError(f"{where}: expected {len(images)} labels as there are images, found {len(stored)}.")
            values = numbers_of(stored, labels, where) if kind.floating else classes_of(stored, labels, kind, where)
            targets[name] = np.ascontiguousarray(values)
        return Part(place, images, targets, range(len(images)))

    def _task(self, name: str, labels: Labels, parts: Sequence[Part]) -> TaskSpec:
        kind, targets = kind_of(name, labels), [part.targets[name] for part in parts]

        def highest() -> int:
            return max(int(_legal(target, kind).max(initial=0)) for target in targets)

        if kind.fewest_channels > 1 and not kind.floating:
            return labels.task(name, labels.n_classes(highest))
        first = targets[0]
        if labels.kind == "scalar" or not kind.floating or first.ndim in (1, 3):
            return labels.task(name, 1)
        return labels.task(name, first.shape[1])


def _legal(target: Array, kind: Kind) -> Array:
    """Class ids that are not ignored."""
    import torch

    counted: Array = target[kind.valid(torch.from_numpy(target)).numpy()]
    return counted


def _files(place: Path) -> list[Path]:
    return [place] if place.is_file() else sorted(place.glob("*.npy"))


def _arrays(place: Path) -> Iterator[tuple[str, Callable[[], Array]]]:
    """(name, reads it) of the arrays in a file or a folder. Raises FileError."""
    if place.is_dir():
        for path in _files(place):
            yield path.stem, functools.partial(read_array, path)
        return
    try:
        with np.load(place, allow_pickle=False) as held:
            names = list(held)
    except (OSError, ValueError, EOFError, AttributeError) as error:
        raise FileError(f"{place}: cannot be read as arrays ({_line(error)}).") from error
    for name in names:
        yield name, functools.partial(_member, place, name)


def _member(place: Path, name: str) -> Array:
    try:
        with np.load(place, allow_pickle=False) as held:
            array: Array = held[name]
            return array
    # A damaged zip member can raise nearly anything.
    except Exception as error:
        raise FileError(f"{place}: the array {name!r} cannot be read ({_line(error)}).") from error


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _planes(images: Array, place: Path, name: str) -> Array:
    """uint8 [N, C, H, W], C = 1 or 3. Raises FileError."""
    if images.dtype == np.uint8 and images.ndim == 3:
        return images[:, None]
    if images.dtype == np.uint8 and images.ndim == 4 and images.shape[3] in (1, 3):
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    if images.dtype == np.uint8 and images.ndim == 4 and images.shape[1] in (1, 3):
        return images
    hint = ": store (images * 255).round().astype('uint8')" if images.dtype.kind == "f" else ""
    raise FileError(
        f"{place}, {name}: expected uint8 [N, H, W], [N, H, W, 3] or [N, 3, H, W], found {images.dtype} "
        f"{list(images.shape)}{hint}."
    )
