"""What a data set promises: tasks and sizes known before any file is opened, one canonical sample, named inputs.

A *single-domain* set labels every image for every task and has one input, `"image"`. A *multi-domain* set gives each
task its own images; its inputs carry the names of the tasks. Methods and the harness see data through this module
only. Torch is imported for types alone: a spec is listed and checked without it.
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

# How sure we are of a reader. A reader that does not ship with this package is "by its author", whatever its spec says.
Tier = Literal["verified on genuine files", "verified on twins", "report only", "by its author"]
Split = Literal["train", "val", "test"]
# Axes of normals. verified: x right, y up, z towards the camera, checked against depth. declared: the same, according
# to the files' authors. unknown: unit vectors in the files' own axes, channel 0 taken as x. encoded: the colours 0 to
# 255 of the files, not decoded, for protocols that compare colours.
NormalsFrame = Literal["verified", "declared", "unknown", "encoded"]
IndexArray = npt.NDArray[np.int64]
SINGLE_INPUT = "image"  # the name of the one input of a single-domain set


@dataclasses.dataclass(frozen=True)
class TaskSpec:
    """One task. Loss, ignore value and form of the head belong to `kind`; see `datasets.kinds`.

    Raises UnknownNameError with the nearest names for an unknown kind or metric, and UsageError for a task that its
    kind cannot judge.
    """

    name: str
    kind: str
    channels: int  # outputs of the head: classes for `class` and `semantic`
    metrics: tuple[str, ...]
    class_names: tuple[str, ...] = ()
    weight: float = 1.0  # of the loss, equal for all methods
    unit: str = ""  # of the label, printed in column heads (`metre`, ...)
    # Of a `binary_map`: weight of positive pixels in the loss, in (0, 1); negative ones get the rest. None: equal.
    # balanced: the share of negative pixels in the batch, so that both classes weigh the same in total.
    positive_weight: float | Literal["balanced"] | None = None
    loss_divisor: float = 1.0  # of a regression's L1 loss, in the label's unit; metrics are not divided
    frame: NormalsFrame = "verified"  # of a `normals` label, see `NormalsFrame`
    partial: bool = False  # whole images may be without a label
    class_weights: tuple[float, ...] = ()  # of a `semantic` loss and of `weighted_ce_err`; empty: equal

    def __post_init__(self) -> None:
        from datasets.kinds import get_kind  # kinds are written in terms of this module

        try:
            get_kind(self.kind).check_task(self)
        except UnknownNameError as error:
            raise UnknownNameError(f"Task {self.name!r}: {error}") from None


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """A data set with its tasks, known before any file is opened."""

    name: str
    layout: str
    version: str
    protocol: str
    domains: Literal["single", "multi"]
    tasks: tuple[TaskSpec, ...]
    splits: Mapping[str, int]  # samples of each split: of every input, or of all together if `counts` tells them apart
    native_size: tuple[int, int]  # (height, width) in pixels
    mean: tuple[float, float, float]  # per RGB channel, of images in [0, 1]
    std: tuple[float, float, float]
    licence: str
    home: str
    tier: Tier = "by its author"  # of the reader; ShareBench sets it for loaders that do not ship with it
    counts: Mapping[str, Mapping[str, int]] = dataclasses.field(default_factory=dict)  # {split: {input: samples}}
    caveats: tuple[str, ...] = ()  # for readers of results; printed with the plan and beneath every table
    counts_recalled: bool = False  # nobody has checked the numbers of samples: `verify` warns where they differ
    not_mirrored: tuple[str, ...] = ()  # inputs that no flip touches, since their images mean nothing mirrored (digits)

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
    """All samples of one input as tensors."""

    images: Tensor  # uint8 [N, C, H, W], C = 1 (gray) or 3
    targets: Mapping[str, Tensor]  # {task: [N, ...]}


class InputData(abc.ABC):
    """The samples of one input of one split. Subclasses give the samples; their labels are typed here."""

    spec: DatasetSpec  # has the tasks of these labels among its own
    ids: Sequence[str]  # stable and unique
    units: Sequence[str]  # what a hold-out keeps together: the scene, the city, or the sample itself
    strata: Sequence[str] | None = None  # group of each sample (its class), if a hold-out takes a share of each group
    # Of composed data: the `fit` and `arch` parts of train as index arrays, cut by source image.
    parts: Mapping[str, IndexArray] | None = None
    sources: IndexArray | None = None  # of composed data: int64 [N, k], the source images of each sample
    notes: Sequence[str] = ()  # what was left out or is odd, a line each; printed with the plan

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.ids)

    @final
    def __getitem__(self, index: int) -> Sample:
        """The sample at `index`, counted from the end if it is negative. Raises IndexError as a list does.

        Transforms move a label with its image by the label's type. Labels get the types of their kinds here, so that no
        subclass can forget it.
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
        """The labels of a sample alone, as plain tensors. Override it where labels can be read without the image."""
        return self.sample(row)["targets"]

    def place(self, field: str, row: int) -> str:
        """The place of a field of a sample, for messages: the path of its file. field: `image` or a task."""
        return field

    def cached(self) -> CachedSamples | None:
        """All samples as tensors if the set fits in memory, else None."""
        return None

    def check(self) -> None:
        """Raise UsageError for faults of the samples that can be found within seconds. Called before a run."""
        return

    @abc.abstractmethod
    def content_hash(self) -> str:
        """sha256 (hex) of the samples' content; part of the data hash in every record."""


@dataclasses.dataclass(frozen=True)
class MultiTaskDataset:
    """One split of a data set: its spec and the samples of each input."""

    spec: DatasetSpec
    split: Split
    inputs: Mapping[str, InputData]


@dataclasses.dataclass(frozen=True)
class Batch:
    """The data of one training or evaluation step."""

    images: Mapping[str, Tensor]  # {input: float32 [B, 3, H, W]}, normalised
    targets: Mapping[str, Tensor]  # {task: [B, ...]} as the kind defines them
    index: Mapping[str, Tensor]  # {input: int64 [B]}, positions in the role's list of samples, on the CPU
    # The tasks with a valid label in the batch, known without reading from the device; None if it was not determined.
    labelled: frozenset[str] | None = None
