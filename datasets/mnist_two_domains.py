"""`mnist_two_domains`: one digit per image, in two domains that share no digit: ink on paper, and paper on ink.

Ours, the small embedded stand-in for multi-domain data (datasets 1.4): each task has images of its own, so methods and
the harness are tested on such sets offline. Digits, parts and their hash order are those of `multi_mnist`; of each
part and class, the first half in that order belongs to `plain`, the second to `inverted`. The classes take turns, so
that every stretch of samples mixes them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from datasets import (
    ArrayInput,
    DatasetLoader,
    DatasetOptions,
    DatasetSpec,
    IndexArray,
    MultiTaskDataset,
    ProtocolError,
    Split,
    TaskSpec,
    register_dataset,
)
from datasets.mnist_digits import DIGIT_SIZE, HOME, LICENCE, PARTS, PARTS_OF_SPLIT, load_digits, paste

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


def domain_input(domain: str, split: Split, spec: DatasetSpec, task: str | None = None) -> ArrayInput:
    """The images of one domain in one split, uint8 [N, 1, 36, 36], each with the one label of its task.

    task: name of the task, None for that of the domain.
    """
    import torch

    digits = load_digits()
    pieces = {part: domain_sources(domain, part) for part in PARTS_OF_SPLIT[split]}
    rows = np.concatenate(list(pieces.values()))
    corner = np.full(len(rows), (CANVAS_SIZE - DIGIT_SIZE) // 2)
    images = paste(CANVAS_SIZE, digits.images[rows], corner, corner)
    parts = None
    if split == "train":
        n_fit = len(pieces["fit"])
        parts = {"fit": np.arange(n_fit, dtype=np.int64), "arch": np.arange(n_fit, len(rows), dtype=np.int64)}
    return ArrayInput(
        torch.from_numpy(255 - images if domain == "inverted" else images).unsqueeze(1),
        {task or domain: torch.from_numpy(digits.labels[rows].astype(np.int64))},
        split,
        spec,
        [f"{part}/{row:04d}" for part, piece in pieces.items() for row in piece.tolist()],
        parts=parts,
        sources=rows[:, None],
    )


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
        return MultiTaskDataset(spec, split, {task: domain_input(task, split, spec) for task in spec.task_names})
