"""What a data set promises: tasks and sizes known before any file is opened, one canonical sample, named inputs.

A *single-domain* set labels every image for every task and has one input, `"image"`. A *multi-domain* set gives each
task its own images; its inputs carry the names of the tasks. Methods and the harness only ever see this module.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, TypedDict, final

import numpy as np
import numpy.typing as npt

from datasets.errors import UnknownNameError, unknown

if TYPE_CHECKING:
    from torch import Tensor

# How sure we are of a reader; what does not ship with this package is by its author, whatever its spec says.
Tier = Literal["verified on genuine files", "verified on twins", "report only", "by its author"]
Split = Literal["train", "val", "test"]
# Axes of normals. verified: x right, y up, z towards the camera, checked against depth; declared: the same on the word
# of whoever made the files; unknown: unit vectors in the files' own axes, channel 0 taken as x; encoded: colours 0 to
# 255 as they stand in the files, not decoded, for protocols that compare them so.
NormalsFrame = Literal["verified", "declared", "unknown", "encoded"]
IndexArray = npt.NDArray[np.int64]
SINGLE_INPUT = "image"  # the name of the one input of a single-domain set


@dataclasses.dataclass(frozen=True)
class TaskSpec:
    """One task. Loss, ignore value and form of the head belong to `kind`; see `datasets.kinds`.

    channels: outputs of the head (classes for `class` and `semantic`). weight: lambda of the table, equal for all
    methods. unit: of the label, printed in column heads (`metre`, ...). positive_weight: share of the loss that
    positive pixels of a `binary_map` get, in (0, 1); None weighs both classes equally. loss_divisor: of the L1 loss of
    a regression, in the label's unit, so that it is of the order of other losses; metrics are not divided. frame: what
    the channels of a `normals` label mean, see `NormalsFrame`.

    Raises UnknownNameError for a kind or metric that there is not, with the nearest names, and UsageError for a task
    that its kind cannot judge.
    """

    name: str
    kind: str
    channels: int
    metrics: tuple[str, ...]
    class_names: tuple[str, ...] = ()
    weight: float = 1.0
    unit: str = ""
    positive_weight: float | None = None
    loss_divisor: float = 1.0
    frame: NormalsFrame = "verified"

    def __post_init__(self) -> None:
        from datasets.kinds import get_kind  # kinds are written in terms of this module

        try:
            get_kind(self.kind).check_task(self)
        except UnknownNameError as error:
            raise UnknownNameError(f"Task {self.name!r}: {error}") from None


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """A data set with its tasks, known before any file is opened. native_size: (height, width) in pixels.

    splits: expected number of samples per split, of each input; where inputs differ, of all of them together, and
    `counts` says {split: {input: samples}}. mean, std: per RGB channel, of images in [0, 1]. caveats: what whoever
    reads a result must know of the data; printed when a run is planned and beneath every table. not_mirrored: inputs
    whose images mean nothing in a mirror (digits), which every flip leaves alone. tier: of the reader; the suite sets
    it for whatever does not ship with it.
    """

    name: str
    layout: str
    version: str
    protocol: str
    domains: Literal["single", "multi"]
    tasks: tuple[TaskSpec, ...]
    splits: Mapping[str, int]
    native_size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    licence: str
    home: str
    tier: Tier = "by its author"
    counts: Mapping[str, Mapping[str, int]] = dataclasses.field(default_factory=dict)
    caveats: tuple[str, ...] = ()
    not_mirrored: tuple[str, ...] = ()

    @property
    def task_names(self) -> tuple[str, ...]:
        """Names of the tasks, in their fixed order."""
        return tuple(task.name for task in self.tasks)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs: the one input of a single-domain set, or one input per task."""
        return (SINGLE_INPUT,) if self.domains == "single" else self.task_names

    def task(self, name: str) -> TaskSpec:
        """The task of that name. Raises UnknownNameError with the nearest names."""
        for task in self.tasks:
            if task.name == name:
                return task
        raise unknown(f"task of {self.name}", name, self.task_names)

    def input_of(self, task: str) -> str:
        """Name of the input that a task's network reads."""
        return SINGLE_INPUT if self.domains == "single" else self.task(task).name

    def count(self, split: str, name: str) -> int:
        """Expected number of samples of an input in a split."""
        return self.counts[split][name] if split in self.counts else self.splits[split]

    def with_tasks(self, names: Sequence[str]) -> DatasetSpec:
        """The same data set restricted to these tasks, in this order; images, splits and their order do not change."""
        return dataclasses.replace(self, tasks=tuple(self.task(name) for name in names))

    def with_weights(self, weights: Mapping[str, float]) -> DatasetSpec:
        """The same data set with other task weights."""
        for name in weights:
            self.task(name)
        tasks = tuple(dataclasses.replace(task, weight=weights.get(task.name, task.weight)) for task in self.tasks)
        return dataclasses.replace(self, tasks=tasks)


class Sample(TypedDict):
    """One sample. image: tv_tensors.Image float32 [3, H, W], RGB in [0, 1]; meta holds at least `id`."""

    image: Tensor
    targets: dict[str, Tensor]
    meta: dict[str, object]


@dataclasses.dataclass(frozen=True)
class CachedSamples:
    """All samples of one input as tensors: images uint8 [N, C, H, W] with C = 1 (gray) or 3, targets {task:
    [N, ...]}.
    """

    images: Tensor
    targets: Mapping[str, Tensor]


class InputData(abc.ABC):
    """The samples of one input of one split. Subclasses say what a sample holds; its labels are typed here.

    spec: of the data set, with the tasks of these labels among its own. ids: stable, unique strings. units: what a
    hold-out keeps together (a scene, a city, the sample itself).
    strata: the group of each sample (its class), where a hold-out takes its share of each group; else None.
    parts: for composed data, the `fit` and `arch` parts of train as index arrays, cut by source image; else None.
    sources: int64 [N, k], the source images that went into each sample of composed data; else None.
    """

    spec: DatasetSpec
    ids: Sequence[str]
    units: Sequence[str]
    strata: Sequence[str] | None = None
    parts: Mapping[str, IndexArray] | None = None
    sources: IndexArray | None = None

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.ids)

    @final
    def __getitem__(self, index: int) -> Sample:
        """The sample at `index`, counted from the end where it is negative. Raises IndexError as a list does.

        By its type a label is moved with its image. So labels get the types of their kinds here, where every source
        passes, and no source can forget it.
        """
        from datasets.kinds import get_kind  # kinds are written in terms of this module

        sample = self.sample(range(len(self))[index])
        tasks = [self.spec.task(name) for name in sample["targets"]]
        sample["targets"] = {task.name: get_kind(task.kind).wrap(sample["targets"][task.name], task) for task in tasks}
        return sample

    @abc.abstractmethod
    def sample(self, row: int) -> Sample:
        """The sample at a row, 0 to len - 1: decoded, neither normalised nor resized, labels as plain tensors."""

    def labels(self, row: int) -> Mapping[str, Tensor]:
        """The labels of a sample alone, as plain tensors; sources that store them apart need not read the image."""
        return self.sample(row)["targets"]

    def place(self, field: str, row: int) -> str:
        """Where a field of a sample lies, for messages: the path of its file. field: `image` or a task."""
        return field

    def cached(self) -> CachedSamples | None:
        """All samples as tensors where the set fits in memory, else None."""
        return None

    def check(self) -> None:
        """Raise UsageError for what is wrong with the samples, as far as seconds can tell. Called before a run."""
        return

    @abc.abstractmethod
    def content_hash(self) -> str:
        """sha256 (hex) of what the samples hold; part of the data hash in every record."""


@dataclasses.dataclass(frozen=True)
class MultiTaskDataset:
    """One split of a data set: its spec and the samples of each input."""

    spec: DatasetSpec
    split: Split
    inputs: Mapping[str, InputData]


@dataclasses.dataclass(frozen=True)
class Batch:
    """What a training or evaluation step sees.

    images: {input: float32 [B, 3, H, W]}, normalised. targets: {task: [B, ...]} as the kind defines them.
    index: {input: int64 [B]}, positions in the role's list of samples, on the CPU.
    labelled: the tasks with a valid label in the batch, told without asking the device; None where nobody looked.
    """

    images: Mapping[str, Tensor]
    targets: Mapping[str, Tensor]
    index: Mapping[str, Tensor]
    labelled: frozenset[str] | None = None
