"""The plug-in data set `toy`: tiny images with labels at once, where a test needs a whole run and no real digits.

Used by the fixture `toy_data`, and as `plugins: [PATH]` by suites that other processes run.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch

from datasets import (
    SINGLE_INPUT,
    ArrayInput,
    CachedSamples,
    DatasetLoader,
    DatasetOptions,
    DatasetSpec,
    MultiTaskDataset,
    Split,
    TaskSpec,
    register_dataset,
)

SIZE = 8
SPLITS = {"train": 80, "val": 20, "test": 20}
CLASSES = {"left": 4, "right": 2}
LABELS = (0, 1, 0, 2, 0, 1, 0, 3, 1, 2)  # no two classes are equally frequent: a constant guess tells them apart


class ToyOptions(DatasetOptions):
    """multi: each task has images of its own. one_by_one: images are given one at a time, as files are read."""

    multi: bool = False
    one_by_one: bool = False


class ToyInput(ArrayInput):
    """Images from which all labels follow, whichever tasks are read."""

    one_by_one = False

    def cached(self) -> CachedSamples | None:
        return None if self.one_by_one else super().cached()

    def content_hash(self) -> str:
        return hashlib.sha256(self.images.numpy().tobytes()).hexdigest()


@register_dataset("toy")
class Toy(DatasetLoader):
    """Gray squares with noise. Their brightness tells the class of `left`; `right` is its parity."""

    Options = ToyOptions

    def spec(self, protocol: str, options: DatasetOptions, layout: str | None = None) -> DatasetSpec:
        assert isinstance(options, ToyOptions)
        return DatasetSpec(
            name="toy",
            layout="embedded",
            version="v1",
            protocol=protocol,
            domains="multi" if options.multi else "single",
            tasks=tuple(TaskSpec(name, "class", n, ("accuracy",)) for name, n in CLASSES.items()),
            splits={split: n * (len(CLASSES) if options.multi else 1) for split, n in SPLITS.items()},
            counts={split: dict.fromkeys(CLASSES, n) for split, n in SPLITS.items()} if options.multi else {},
            native_size=(SIZE, SIZE),
            mean=(0.4, 0.4, 0.4),
            std=(0.3, 0.3, 0.3),
            licence="none",
            home="tests",
            tier="verified on twins",
        )

    def load(self, root: Path | None, split: Split, spec: DatasetSpec, options: DatasetOptions) -> MultiTaskDataset:
        assert isinstance(options, ToyOptions)
        inputs = {}
        for name in spec.inputs:
            random = np.random.RandomState(list(SPLITS).index(split) + len(name))
            labels = np.resize(LABELS, SPLITS[split])
            images = random.randint(0, 40, (len(labels), 1, SIZE, SIZE)) + 50 * labels[:, None, None, None]
            targets = {"left": torch.from_numpy(labels), "right": torch.from_numpy(labels % CLASSES["right"])}
            inputs[name] = ToyInput(
                torch.from_numpy(images.astype(np.uint8)),
                {task: targets[task] for task in spec.task_names if name in (SINGLE_INPUT, task)},
                split,
                spec,
                [f"{split}-{name}-{number}" for number in range(len(labels))],
            )
            inputs[name].one_by_one = options.one_by_one
        return MultiTaskDataset(spec, split, inputs)
