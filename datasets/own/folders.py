"""`ImageFolders`: images in folders, of any size, and labels that are the folders' names, label images or a table.

Splits are folders: `train/...`, `test/...`, or `IMAGES/train`, `LABELS/train` ...; or a column `split` of the table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from datasets.contracts import SINGLE_INPUT, DatasetSpec, Split, TaskSpec
from datasets.errors import UsageError, nearest, unknown
from datasets.on_disk.checks import fingerprint, picture_shape
from datasets.on_disk.files import Array, FileError
from datasets.on_disk.loader import FileOptions
from datasets.on_disk.photographs import SUFFIXES, Fit, is_hidden
from datasets.on_disk.placed import PlacedLoader
from datasets.on_disk.sources import Fault, Field, Source, field_of_files, number_label, scale_uint8
from datasets.own.base import SPLITS, Found, OwnLoader, digest_of, require_splits, spaced, statistics
from datasets.own.labels import Labels, kind_of
from datasets.own.pictures import (
    IGNORED_PIXEL,
    ReadImage,
    ReadLabels,
    Size,
    decode_classes,
    decode_numbers,
    stored_labels,
)
from datasets.own.table import Table, column_labels, matched, read_table

if TYPE_CHECKING:
    from torch import Tensor

STORED = (".png", ".npy")  # of label images: compression of .jpg changes ids
IN_MEMORY = 2**26  # bytes of resized images that are decoded once and kept


@dataclasses.dataclass(frozen=True)
class Part:
    """Samples of one split. keys: their names, unique. files: {task: label images}; values: {task: labels [N, ...]}."""

    keys: Sequence[str]
    images: Sequence[Path]
    files: Mapping[str, Sequence[Path]]
    values: Mapping[str, Array]

    def taken(self, rows: Sequence[int]) -> Part:
        """Some of the samples."""
        return Part(
            [self.keys[row] for row in rows],
            [self.images[row] for row in rows],
            {task: [paths[row] for row in rows] for task, paths in self.files.items()},
            {task: values[rows] for task, values in self.values.items()},
        )


class ImageFolders(OwnLoader, PlacedLoader):
    """Images (.jpg, .png) in folders. Of a task, the labels are

    - label images, where `Labels` has a `folder` or a `suffix`: one for each image, of its name and size (.png, .npy);
    - a column of the `table`, where there is one;
    - else the names of the folders that the images lie in.

    images: the folder of the images, below `folder`. table: a CSV below `folder`; the first column names images.
    size: (height, width) to which all are brought; None takes that of the images, which then must be of one size.
    fit: `stretch`, or `crop`, which keeps the shape of things and cuts the longer side.
    """

    layout: ClassVar[str] = "folders"
    images: ClassVar[str] = ""
    table: ClassVar[str] = ""
    size: ClassVar[Size | None] = None
    fit: ClassVar[Fit] = "stretch"

    def sources(self, folder: Path, split: Split, spec: DatasetSpec, options: FileOptions) -> Mapping[str, Source]:
        """The images of a split. An image without a label image is a fault."""
        decode: Callable[[Array], Tensor]
        found, tasks = self.found(), self.tasks
        part: Part = found.parts[split]
        targets = {}
        for task, paths in part.files.items():
            decode = decode_numbers if kind_of(task, tasks[task]).floating else decode_classes
            targets[task] = field_of_files(paths, ReadLabels(found.size, self.fit, tasks[task]), decode)
        where = ([folder / self.table] * len(part.keys) if self.table else part.images).__getitem__
        for task, values in part.values.items():
            decode = decode_numbers if values.dtype == np.float32 else number_label
            targets[task] = Field(values.__getitem__, decode, where)
        faults = [
            Fault(_name(path, folder), part.keys[row], "existence", f"labels of {task!r}", _beside(path))
            for task, paths in part.files.items()
            for row, path in enumerate(paths)
            if not path.is_file()
        ]
        small = len(part.keys) * 3 * found.size[0] * found.size[1] <= IN_MEMORY
        return {
            SINGLE_INPUT: Source(
                ids=part.keys,
                units=part.keys,
                image=field_of_files(part.images, ReadImage(found.size, self.fit), scale_uint8),
                targets=targets,
                faults=faults,
                in_memory=small,
                meta={"domain": None},
                content=[folder / self.table] if self.table else [],
                one_size=False,
            )
        }

    def find(self, folder: Path) -> Found:
        """Lists images, pairs them with their labels, and counts what is not said. Raises FileError and UsageError."""
        table = read_table(folder / self.table) if self.table else None
        bases, notes = self._bases(folder), []
        parts = {name: self._listed(folder, name, base, table) for name, base in bases.items()}
        tasks, parts = self._labelled(parts, table)
        sides: dict[Split, Part]
        if "all" not in parts:
            sides = {split: parts[split] for split in require_splits(parts, folder)}
        else:
            whole = parts["all"]
            said = table.splits(whole.keys) if table is not None else None
            if said is not None:
                splits = require_splits(said.values(), folder / self.table)
                rows = {split: [row for row, key in enumerate(whole.keys) if said[key] == split] for split in splits}
            else:
                rows, note = self.drawn([digest_of(fingerprint(path)) for path in whole.images])
                notes.append(note)
            sides = {split: whole.taken(chosen) for split, chosen in rows.items()}
        size = self.size or _only_size([path for part in sides.values() for path in part.images])
        train, read = sides["train"].images, ReadImage(size, self.fit)
        mean, std = statistics(read(train[row]) for row in spaced(len(train)))
        files = [path for part in sides.values() for path in (*part.images, *_existing(part.files))]
        return Found(
            tasks=tasks,
            size=size,
            parts=sides,
            counts={split: len(part.keys) for split, part in sides.items()},
            files=[*files, *([folder / self.table] if self.table else [])],
            mean=mean,
            std=std,
            notes=tuple(notes),
        )

    def _bases(self, folder: Path) -> dict[str, Path]:
        """{split: folder of its images}, or {"all": folder} where no split is shown."""
        found: dict[str, Path] = {
            split: path for split in SPLITS if (path := _below(folder, self.images, split)) is not None
        }
        if found:
            require_splits(found, folder)
            return found
        if not (folder / self.images).is_dir():
            near = nearest(self.images, (path.name for path in folder.iterdir() if path.is_dir()))
            raise FileError(f"{folder / self.images}: no such folder of images; nearest: {', '.join(near) or 'none'}.")
        return {"all": folder / self.images}

    def _listed(self, folder: Path, split: str, base: Path, table: Table | None) -> Part:
        """The images below a folder, with the places of their label images."""
        places: dict[str, Path] = {}
        for task, labels in self.tasks.items():
            if labels.folder or labels.suffix:
                kind_of(task, labels)
                place = _below(folder, labels.folder, "" if split == "all" else split)
                if place is None:
                    near = nearest(labels.folder, (path.name for path in folder.iterdir() if path.is_dir()))
                    raise FileError(f"{folder / labels.folder}: no label images of {task!r}; nearest: {near}.")
                places[task] = place
        aside = {place for place in places.values() if place != base}
        suffixes = tuple(self.tasks[task].suffix for task, place in places.items() if place == base)
        images = {
            path.relative_to(base).as_posix(): path
            for path in sorted(base.rglob("*"))
            if path.suffix.lower() in SUFFIXES and not is_hidden(path.name) and aside.isdisjoint(path.parents)
            and not (suffixes and path.stem.endswith(suffixes))
        }  # fmt: skip
        if not images:
            raise FileError(f"{base}: expected images ({', '.join(SUFFIXES)}), found none.")
        if table is not None:
            images = matched(table, images)
        files = {
            task: [_label_file(place, path.relative_to(base), self.tasks[task].suffix) for path in images.values()]
            for task, place in places.items()
        }
        keys = list(images) if table is not None else [name.rpartition(".")[0] for name in images]
        keys = keys if len(set(keys)) == len(keys) else list(images)
        return Part(keys, list(images.values()), files, {})

    def _labelled(self, parts: Mapping[str, Part], table: Table | None) -> tuple[tuple[TaskSpec, ...], dict[str, Part]]:
        """The tasks, and the parts with the labels that are no files."""
        tasks, values = [], {name: dict(part.values) for name, part in parts.items()}
        for task, labels in self.tasks.items():
            if labels.folder or labels.suffix:
                tasks.append(
                    _of_label_images(task, labels, [path for part in parts.values() for path in part.files[task]])
                )
                continue
            if table is not None:
                spec, found = column_labels(table, [key for part in parts.values() for key in part.keys], task, labels)
            else:
                spec, found = _of_folders(task, labels, [key for part in parts.values() for key in part.keys])
            tasks.append(spec)
            start = 0
            for name, part in parts.items():
                values[name][task] = found[start : start + len(part.keys)]
                start += len(part.keys)
        return tuple(tasks), {name: dataclasses.replace(part, values=values[name]) for name, part in parts.items()}


def _below(folder: Path, name: str, split: str) -> Path | None:
    """The folder `name` of a split: FOLDER/SPLIT/NAME or FOLDER/NAME/SPLIT."""
    return next((path for path in (folder / split / name, folder / name / split) if path.is_dir()), None)


def _label_file(place: Path, image: Path, suffix: str) -> Path:
    paths = [place / image.with_name(f"{image.stem}{suffix}{ending}") for ending in STORED]
    return next((path for path in paths if path.is_file()), paths[0])


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _beside(path: Path) -> str:
    """What lies there in place of a file that is absent, for messages."""
    names = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    near = nearest(path.name, names, 1)
    return f"none; the nearest name there is {near[0]!r}" if near else "no folder, or an empty one"


def _existing(files: Mapping[str, Sequence[Path]]) -> Iterator[Path]:
    return (path for paths in files.values() for path in paths if path.is_file())


def _only_size(images: Sequence[Path]) -> Size:
    """(height, width) of all images. Raises UsageError where they differ."""
    shapes: dict[Path, Size] = {}
    for path in images:
        height, width = picture_shape(path) or (0, 0)
        shapes[path] = (height, width)
    first = shapes[images[0]]
    other = next((path for path, shape in shapes.items() if shape != first), None)
    if other is not None:
        raise UsageError(
            f"{other}: expected {first[0]} x {first[1]} pixels as {images[0].name}, found {shapes[other][0]} x "
            f"{shapes[other][1]}: state the size to which all are brought, such as size = (128, 128)."
        )
    return first


def _of_label_images(task: str, labels: Labels, paths: Sequence[Path]) -> TaskSpec:
    """The task of label images; they are read where the number of classes is not said."""
    kind = kind_of(task, labels)
    if not kind.dense or (kind.fewest_channels == 1 and labels.kind not in ("depth", "binary_map")):
        raise UsageError(
            f"Task {task!r}: label images are semantic, binary_map or depth; {labels.kind!r} has other labels."
        )
    if labels.kind == "depth":
        return labels.task(task, 1)
    if labels.kind == "semantic" and (labels.classes is not None or labels.class_of is not None):
        return labels.task(task, labels.n_classes(lambda: 0))
    present = [path for path in paths if path.is_file()]
    with ThreadPoolExecutor() as pool:
        held = set().union(*pool.map(lambda path: set(np.unique(stored_labels(path, labels)).tolist()), present))
    held -= {IGNORED_PIXEL}
    if held <= {0} and labels.ignore is None and labels.class_of is None:
        raise UsageError(
            f"Task {task!r}: label images hold 0 and {IGNORED_PIXEL} alone, which means ignored: if it is a class, say "
            f"ids=(0, {IGNORED_PIXEL})."
        )
    return labels.task(task, 1 if labels.kind == "binary_map" else max(held, default=0) + 1)


def _of_folders(task: str, labels: Labels, keys: Sequence[str]) -> tuple[TaskSpec, Array]:
    """The task whose classes are the first folders of the images' paths, and its labels."""
    if labels.kind != "class":
        raise UsageError(f"Task {task!r} of kind {labels.kind!r}: say where its labels are (folder, suffix or column).")
    loose = next((key for key in keys if "/" not in key), None)
    if loose is not None:
        raise FileError(f"Task {task!r}: expected images in a folder a class, found {loose!r} in none.")
    words = [key.partition("/")[0] for key in keys]
    names = labels.names or tuple(sorted(set(words)))
    for word in sorted(set(words) - set(names)):
        raise unknown(f"class of {task!r}: folder", word, names)
    return labels.task(task, len(names), names), np.array([names.index(word) for word in words], dtype=np.int64)
