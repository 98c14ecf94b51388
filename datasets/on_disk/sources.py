"""Samples on disk: a list of them, how each field of a sample is stored, and how it is decoded.

A loader lists what a split holds (`Source`) without opening the files of its samples, and names what is missing as
faults.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from datasets.contracts import CachedSamples, DatasetSpec, InputData, Sample, Split, TaskSpec
from datasets.errors import UsageError
from datasets.kinds import get_kind
from datasets.on_disk.checks import files_hash, header_of
from datasets.on_disk.files import Array, FileError

if TYPE_CHECKING:
    from torch import Tensor

IMAGE = "image"


@dataclasses.dataclass(frozen=True)
class Fault:
    """A deviation from what the layout promises. path: the file, below the data set's folder if it is in it."""

    path: str
    sample: str
    check: str
    expected: str
    found: str

    def __str__(self) -> str:
        sample = f" (sample {self.sample})" if self.sample else ""
        return f"{self.path}{sample}: {self.check}: expected {self.expected}, found {self.found}"


def summary(faults: Sequence[Fault]) -> str:
    """The first fault, and how many more there are."""
    n_more = len(faults) - 1
    return f"{faults[0]}" + (f" (and {n_more} more fault{'s' * (n_more > 1)})" if n_more else "")


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
    strata: the group of each sample (its class), if a hold-out takes its share of each group; else None.
    in_memory: small enough to be decoded once and kept. meta: entries of every sample's `meta`.
    content: files that the content hash covers whole (lists, small archives); of the others it covers names, sizes and
    `fingerprint`s. digest: a hash that the loader has computed already, for files that many inputs share.
    one_size: whether pictures of a field are equally large; if not, those of labels are as large as their image.
    identity: a hash of the decoded samples, which the content hash takes in place of files: layouts that hold the same
    samples have the same one. listing: what listing found by opening every file, in JSON values; a prepared copy keeps
    it. counted: whether the spec's number of samples is exact. notes: what was left out or is odd and not a fault, a
    line each.
    """

    ids: Sequence[str]
    units: Sequence[str]
    image: Field
    targets: Mapping[str, Field]
    faults: Sequence[Fault] = ()
    in_memory: bool = False
    meta: Mapping[str, object] = dataclasses.field(default_factory=dict)
    content: Sequence[Path] = ()
    digest: str = ""
    identity: str = ""
    listing: Mapping[str, object] | None = None
    counted: bool = True
    notes: Sequence[str] = ()
    strata: Sequence[str] | None = None
    one_size: bool = True

    @property
    def fields(self) -> dict[str, Field]:
        """All fields by name; the image is `image`."""
        return {IMAGE: self.image, **self.targets}


def scale_uint8(array: Array) -> Tensor:
    """uint8 [H, W] (gray, repeated) or [H, W, 3] -> float32 [3, H, W] in [0, 1]."""
    import torch

    values = torch.from_numpy(np.ascontiguousarray(array)).to(torch.float32).div_(255)
    return values.expand(3, -1, -1) if values.ndim == 2 else values.permute(2, 0, 1).contiguous()


def number_label(value: Array) -> Tensor:
    """A number -> a tensor of its type without axes."""
    import torch

    return torch.tensor(value)


class FileInput(InputData):
    """The samples of a source, read from their files when they are asked for."""

    def __init__(self, source: Source, spec: DatasetSpec, split: Split, name: str, folder: Path) -> None:
        self.source, self.spec, self.split, self.name, self.folder = source, spec, split, name, folder
        self.ids, self.units, self.strata = source.ids, source.units, source.strata
        self.notes = source.notes
        self._cached: CachedSamples | None = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks of the spec that this input serves."""
        return tuple(task for task in self.spec.task_names if self.spec.input_of(task) == self.name)

    def sample(self, row: int) -> Sample:
        """The sample at a row. Raises FileError with the path of a file that does not hold what it should."""
        from torchvision import tv_tensors

        stored = self._images[row] if self.source.in_memory else self.source.image.read(row)
        image = self._decoded(IMAGE, stored, row)
        meta: dict[str, object] = {
            "id": self.ids[row],
            "dataset": self.spec.name,
            "layout": self.spec.layout,
            "split": self.split,
            "size": tuple(image.shape[-2:]),
            **self.source.meta,
        }
        return {"image": tv_tensors.Image(image), "targets": self.labels(row), "meta": meta}

    def labels(self, row: int) -> dict[str, Tensor]:
        """The labels of a sample alone. Raises FileError."""
        return {task: self.field(task, row) for task in self.tasks}

    def place(self, field: str, row: int) -> str:
        """Path below the data set's folder where the file is in it."""
        return self._below(self.source.fields[field].where(row))

    def field(self, name: str, index: int) -> Tensor:
        """One decoded field of one sample. Raises FileError."""
        return self._decoded(name, self.source.fields[name].read(index), index)

    def _decoded(self, name: str, stored: Array, index: int) -> Tensor:
        field = self.source.fields[name]
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
            import torch

            stored = torch.from_numpy(self._images)
            stored = stored.unsqueeze(1) if stored.ndim == 3 else stored.permute(0, 3, 1, 2).contiguous()
            targets = {
                task: torch.stack([self.field(task, index) for index in range(len(self))]) for task in self.tasks
            }
            self._cached = CachedSamples(stored, targets)
        return self._cached

    @functools.cached_property
    def _images(self) -> Array:
        """Stored images of a source that is small enough, read once."""
        return np.stack([self.source.image.read(index) for index in range(len(self))])

    def content_hash(self) -> str:
        """sha256 over ids and `identity`; without one over ids, `digest`, names, sizes and fingerprints of files, and
        all bytes of those in `content`.
        """
        return self._hash

    @functools.cached_property
    def _hash(self) -> str:
        if self.source.identity:
            return hashlib.sha256("\n".join([self.source.identity, *self.ids]).encode()).hexdigest()
        fields = self.source.fields.values()
        files = sorted({field.where(index) for field in fields for index in range(len(self))})
        listed = files_hash(files, sorted(self.source.content), self.folder)
        return hashlib.sha256("\n".join([listed, self.source.digest, *self.ids]).encode()).hexdigest()

    def check(self) -> None:
        """Raise FileError for faults that show without decoding every file: names the first, counts the others.

        The first and the last sample are decoded and their labels checked; of each field, all files must be whole and
        show a picture of one size, or of the size of their image.
        """
        ends = sorted({0, len(self) - 1})
        for index in ends:
            self.field(IMAGE, index)
        for task in self.tasks:
            self._check_labels(self.spec.task(task), ends)
        seen: set[Path] = set()
        sizes: dict[int, tuple[int, ...]] = {}
        faults = [fault for name in self.source.fields for fault in self._torn_or_odd(name, seen, sizes)]
        if faults:
            raise FileError(f"Data set {self.spec.name!r} at {self.folder}: {summary(faults)}.")

    def _check_labels(self, task: TaskSpec, indices: Sequence[int]) -> None:
        """Raise FileError if a label of these samples is illegal, or none of them has a known label of a regression."""
        kind, where = get_kind(task.kind), self.source.fields[task.name].where
        known = False
        for index in indices:
            label = self.field(task.name, index)
            try:
                kind.check(label, task)
            except UsageError as error:
                raise FileError(f"{where(index)}: {error}") from error
            known |= bool(kind.valid(label).any())
        if not (known or task.partial) and isinstance(kind.fill, float):  # of classes, whole images may be void
            raise FileError(f"{where(indices[0])}: no label of {task.name!r} is known, nor in the last sample.")

    def _torn_or_odd(self, name: str, seen: set[Path], sizes: dict[int, tuple[int, ...]]) -> Iterator[Fault]:
        """Files of a field that end too early, have another size than the first one or than their image, or store their
        values in another form and cannot be decoded: of each form one is.

        seen: files that have been looked at, since fields can share one. sizes: {row: size of its image}, if these
        differ. Both grow; the image is the first field.
        """
        field = self.source.fields[name]
        first: tuple[int, ...] | None = None
        forms: dict[str, str] = {}  # what is wrong with files of a form, nothing where they can be decoded
        for index in range(len(self)):
            path = field.where(index)
            if path in seen:
                continue
            seen.add(path)
            try:
                header = header_of(path)
            except FileError as error:
                reason = str(error).removeprefix(f"{path}: ").rstrip(".")
                yield Fault(self._below(path), self.ids[index], f"{name} file", "a whole one", f"one that {reason}")
                continue
            if header is None:
                continue
            first = first or header.shape
            expected, as_what = (first, "in the first") if self.source.one_size else (sizes.get(index), "its image")
            if not self.source.one_size and name == IMAGE:
                expected = sizes[index] = header.shape
            if expected is not None and header.shape != expected:
                found = str(header.shape)
                yield Fault(self._below(path), self.ids[index], f"size of {name}", f"{expected} as {as_what}", found)
                continue
            if header.stored not in forms:
                forms[header.stored] = self._undecodable(name, index)
            if forms[header.stored]:
                found = f"{header.stored}: {forms[header.stored]}"
                yield Fault(self._below(path), self.ids[index], f"{name} file", "one that can be decoded", found)

    def _undecodable(self, name: str, index: int) -> str:
        try:
            self.field(name, index)
        except FileError as error:
            return str(error).removeprefix(f"{self.source.fields[name].where(index)}: ").rstrip(".")
        return ""

    def _below(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix() if path.is_relative_to(self.folder) else str(path)
