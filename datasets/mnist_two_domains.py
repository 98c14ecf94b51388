"""`mnist_two_domains`: one digit per image, in two domains that share no digit: ink on paper, and paper on ink.

Ours, the small embedded stand-in for multi-domain data (datasets 1.4): each task has images of its own, so methods and
harness meet every rule of such sets offline. Digits, parts and their hash order are those of `multi_mnist`; of each
part and class, the first half in that order belongs to `plain`, the second to `inverted`. The classes take turns, so
that every stretch of samples mixes them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors

from datasets.contracts import (
    CachedSamples,
    DatasetSpec,
    IndexArray,
    InputData,
    MultiTaskDataset,
    Sample,
    Split,
    TaskSpec,
)
from datasets.errors import ProtocolError
from datasets.mnist_digits import DIGIT_SIZE, HOME, LICENCE, PARTS, PARTS_OF_SPLIT, load_digits, paste
from datasets.registry import DatasetLoader, DatasetOptions, register_dataset

VERSION = "v1"
CANVAS_SIZE = 36
DOMAINS = ("plain", "inverted")

_DIGIT_NAMES = tuple(str(digit) for digit in range(10))
_TASKS = tuple(TaskSpec(domain, "class", 10, ("accuracy",), _DIGIT_NAMES) for domain in DOMAINS)
# Of the train images of both domains together, in [0, 1]; the mean is 1/2 up to the difference between their digits.
_MEAN, _STD = 0.500, 0.488


def domain_sources(domain: str, part: str) -> IndexArray:
    """Rows of the 5,000 digits that a domain shows in a part, the classes in turn, each in hash order."""
    by_class = load_digits().parts[part].reshape(10, -1)
    half = by_class.shape[1] // 2
    mine = by_class[:, :half] if domain == DOMAINS[0] else by_class[:, half:]
    return mine.T.flatten()


class DomainInput(InputData):
    """The images of one domain in one split, each with the one label of its task."""

    def __init__(self, domain: str, split: Split, spec: DatasetSpec) -> None:
        digits = load_digits()
        pieces = {part: domain_sources(domain, part) for part in PARTS_OF_SPLIT[split]}
        rows = np.concatenate(list(pieces.values()))
        corner = np.full(len(rows), (CANVAS_SIZE - DIGIT_SIZE) // 2)
        images = paste(CANVAS_SIZE, digits.images[rows], corner, corner)
        self.images: Tensor = torch.from_numpy(255 - images if domain == "inverted" else images).unsqueeze(1)
        self.labels: Tensor = torch.from_numpy(digits.labels[rows].astype(np.int64))
        self.domain, self.spec, self.split = domain, spec, split
        self.sources = rows[:, None]
        self.ids: Sequence[str] = [f"{part}/{row:04d}" for part, piece in pieces.items() for row in piece.tolist()]
        self.units = self.ids
        if split == "train":
            n_fit = len(pieces["fit"])
            self.parts = {
                "fit": np.arange(n_fit, dtype=np.int64),
                "arch": np.arange(n_fit, len(rows), dtype=np.int64),
            }

    def __getitem__(self, index: int) -> Sample:
        """Image float32 [3, 36, 36], the gray canvas in all channels; the domain's target only."""
        row = range(len(self))[index]  # negative positions and IndexError as in a list
        gray = self.images[row].to(torch.float32).div(255)
        meta: dict[str, object] = {
            "id": self.ids[row],
            "dataset": self.spec.name,
            "layout": self.spec.layout,
            "split": self.split,
            "size": self.spec.native_size,
            "domain": self.domain,
        }
        return {
            "image": tv_tensors.Image(gray.repeat(3, 1, 1)),
            "targets": {self.domain: self.labels[row].clone()},
            "meta": meta,
        }

    def cached(self) -> CachedSamples:
        """Images uint8 [N, 1, 36, 36]."""
        return CachedSamples(self.images, {self.domain: self.labels})

    def content_hash(self) -> str:
        """sha256 over images and labels."""
        return hashlib.sha256(self.images.numpy().tobytes() + self.labels.numpy().tobytes()).hexdigest()


@register_dataset("mnist_two_domains")
class MnistTwoDomains(DatasetLoader):
    """1,750 / 250 / 500 images in each domain. Needs no data root."""

    def spec(self, protocol: str, options: DatasetOptions, layout: str | None = None) -> DatasetSpec:
        """Two tasks with ten classes."""
        if protocol != "standard":
            raise ProtocolError(f"mnist_two_domains has no labels for protocol {protocol!r}; it offers 'standard'.")
        counts = {part: 10 * (last - first) // len(DOMAINS) for part, (first, last) in PARTS.items()}
        return DatasetSpec(
            name="mnist_two_domains",
            layout="embedded",
            version=VERSION,
            protocol=protocol,
            domains="multi",
            tasks=_TASKS,
            splits={split: sum(counts[part] for part in parts) for split, parts in PARTS_OF_SPLIT.items()},
            native_size=(CANVAS_SIZE, CANVAS_SIZE),
            mean=(_MEAN, _MEAN, _MEAN),
            std=(_STD, _STD, _STD),
            licence=LICENCE,
            home=HOME,
            tier="verified on genuine files",
        )

    def load(self, root: Path | None, split: Split, spec: DatasetSpec, options: DatasetOptions) -> MultiTaskDataset:
        """The domains of the spec's tasks."""
        return MultiTaskDataset(spec, split, {task: DomainInput(task, split, spec) for task in spec.task_names})
