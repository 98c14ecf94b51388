"""Samples on disk: a list of them, how each field of a sample is stored, and how it is decoded.

A loader lists what a split holds (`Source`) without opening the files of its samples, and names what is missing as
faults.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors

from datasets.contracts import CachedSamples, DatasetSpec, InputData, Sample, Split
from datasets.errors import UsageError
from datasets.files import Array, FileError
from datasets.kinds import get_kind

IMAGE = "image"


@dataclasses.dataclass(frozen=True)
class Fault:
    """Something that is not as the layout promises. path: the file, below the data set's folder where it is in it."""

    path: str
    sample: str
    check: str
    expected: str
    found: str

    def __str__(self) -> str:
        sample = f" (sample {self.sample})" if self.sample else ""
        return f"{self.path}{sample}: {self.check}: expected {self.expected}, found {self.found}"


@dataclasses.dataclass(frozen=True)
class Field:
    """One field of the samples of a source.

    read: the stored form of a sample at a position: uint8 where the file is uint8, float32 where it is floating; raises
    FileError. decode: stored form -> canonical tensor; raises UsageError. where: the file of a sample. All of them
    survive pickling, since worker processes may be spawned.
    """

    read: Callable[[int], Array]
    decode: Callable[[Array], Tensor]
    where: Callable[[int], Path]


@dataclasses.dataclass(frozen=True)
class FileList:
    """Reads the file at a position of a list."""

    paths: Sequence[Path]
    reader: Callable[[Path], Array]

    def __call__(self, index: int) -> Array:
        """The stored form of a sample. Raises FileError."""
        return self.reader(self.paths[index])


def field_of_files(paths: Sequence[Path], reader: Callable[[Path], Array], decode: Callable[[Array], Tensor]) -> Field:
    """A field that has a file of its own for every sample."""
    return Field(FileList(paths, reader), decode, paths.__getitem__)


@dataclasses.dataclass(frozen=True)
class Source:
    """The samples of one input of one split, listed and not yet opened.

    image: decodes to float32 [3, H, W] in [0, 1]. targets: {task: field}. units: what a hold-out keeps together.
    in_memory: small enough to be decoded once and kept. meta: what every sample says of itself.
    content: what the content hash covers beside names and sizes; None takes the files of three samples.
    """

    ids: Sequence[str]
    units: Sequence[str]
    image: Field
    targets: Mapping[str, Field]
    faults: Sequence[Fault] = ()
    in_memory: bool = False
    meta: Mapping[str, object] = dataclasses.field(default_factory=dict)
    content: Sequence[Path] | None = None

    @property
    def fields(self) -> dict[str, Field]:
        """All fields by name; the image is `image`."""
        return {IMAGE: self.image, **self.targets}


def scale_uint8(array: Array) -> Tensor:
    """uint8 [H, W] (gray, repeated) or [H, W, 3] -> float32 [3, H, W] in [0, 1]."""
    values = torch.from_numpy(np.ascontiguousarray(array)).to(torch.float32).div_(255)
    return values.expand(3, -1, -1) if values.ndim == 2 else values.permute(2, 0, 1).contiguous()


def paths_hash(paths: Sequence[Path], content: Sequence[Path], folder: Path) -> str:
    """sha256 over names (below folder) and sizes of `paths`, and over the bytes of `content`.

    Reading gigabytes at the start of every cell would cost more than it is worth; names, sizes and three samples tell
    releases apart.
    """
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.relative_to(folder).as_posix()}\t{path.stat().st_size}\n".encode())
    for path in content:
        digest.update(path.read_bytes())
    return digest.hexdigest()


class FileInput(InputData):
    """The samples of a source, read from their files when they are asked for."""

    def __init__(self, source: Source, spec: DatasetSpec, split: Split, name: str, folder: Path) -> None:
        self.source, self.spec, self.split, self.name, self.folder = source, spec, split, name, folder
        self.ids, self.units = source.ids, source.units
        self._cached: CachedSamples | None = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks of the spec that this input serves."""
        return tuple(task for task in self.spec.task_names if self.spec.input_of(task) == self.name)

    def __getitem__(self, index: int) -> Sample:
        """The sample at `index`. Raises FileError with the path of a file that does not hold what it should."""
        row = range(len(self))[index]  # negative positions and IndexError as in a list
        image = self.field(IMAGE, row)
        targets = {}
        for task in self.tasks:
            spec = self.spec.task(task)
            targets[task] = get_kind(spec.kind).wrap(self.field(task, row), spec)
        meta: dict[str, object] = {
            "id": self.ids[row],
            "dataset": self.spec.name,
            "layout": self.spec.layout,
            "split": self.split,
            "size": tuple(image.shape[-2:]),
            **self.source.meta,
        }
        return {"image": tv_tensors.Image(image), "targets": targets, "meta": meta}

    def field(self, name: str, index: int) -> Tensor:
        """One decoded field of one sample. Raises FileError."""
        field = self.source.fields[name]
        stored = field.read(index)
        try:
            return field.decode(stored)
        except FileError:
            raise
        except UsageError as error:
            raise FileError(f"{field.where(index)}: {error}") from error

    def cached(self) -> CachedSamples | None:
        """Stored images uint8 [N, C, H, W] and targets, where the source is small enough."""
        if not self.source.in_memory:
            return None
        if self._cached is None:
            images = np.stack([self.source.image.read(index) for index in range(len(self))])
            stored = torch.from_numpy(images)
            stored = stored.unsqueeze(1) if stored.ndim == 3 else stored.permute(0, 3, 1, 2).contiguous()
            targets = {
                task: torch.stack([self.field(task, index) for index in range(len(self))]) for task in self.tasks
            }
            self._cached = CachedSamples(stored, targets)
        return self._cached

    def content_hash(self) -> str:
        """sha256 over names and sizes of all files, and the content of the first, a middle and the last sample."""
        return self._hash

    @functools.cached_property
    def _hash(self) -> str:
        def files(indices: Iterable[int]) -> list[Path]:
            return sorted({field.where(index) for field in self.source.fields.values() for index in indices})

        content = self.source.content
        if content is None:
            content = files({0, len(self) // 2, len(self) - 1})
        listed = paths_hash(files(range(len(self))), content, self.folder)
        return hashlib.sha256("\n".join([listed, *self.ids]).encode()).hexdigest()
