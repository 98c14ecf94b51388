"""Samples in memory: images as bytes, with their labels."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from datasets.contracts import CachedSamples, DatasetSpec, IndexArray, InputData, Sample, Split

if TYPE_CHECKING:
    from torch import Tensor


class ArrayInput(InputData):
    """Samples from arrays.

    images: uint8 [N, C, H, W], C = 1 (gray, repeated in samples) or 3. targets: {task: [N, ...]} as the kinds define
    them; samples hold the targets of the spec's tasks. The other arguments are the attributes of `InputData`; units
    None takes the ids.
    """

    def __init__(
        self,
        images: Tensor,
        targets: Mapping[str, Tensor],
        split: Split,
        spec: DatasetSpec,
        ids: Sequence[str],
        *,
        units: Sequence[str] | None = None,
        strata: Sequence[str] | None = None,
        parts: Mapping[str, IndexArray] | None = None,
        sources: IndexArray | None = None,
    ) -> None:
        self.images, self.targets, self.split, self.spec = images, dict(targets), split, spec
        self.ids, self.units, self.strata = ids, ids if units is None else units, strata
        self.parts, self.sources = parts, sources

    def sample(self, row: int) -> Sample:
        """Image float32 [3, H, W] and the targets."""
        import torch
        from torchvision import tv_tensors

        image = self.images[row].to(torch.float32).div(255)
        meta: dict[str, object] = {
            "id": self.ids[row],
            "dataset": self.spec.name,
            "layout": self.spec.layout,
            "split": self.split,
            "size": self.spec.native_size,
            "domain": next(iter(self.targets)) if self.spec.domains == "multi" else None,
        }
        return {
            "image": tv_tensors.Image(image.repeat(3 // len(image), 1, 1)),
            "targets": {task: self.targets[task][row].clone() for task in self.spec.task_names if task in self.targets},
            "meta": meta,
        }

    def cached(self) -> CachedSamples:
        """The images and labels as they are."""
        return CachedSamples(self.images, self.targets)

    def content_hash(self) -> str:
        """sha256 over the images, then the labels of each task."""
        found = hashlib.sha256(self.images.numpy().tobytes())
        for labels in self.targets.values():
            found.update(labels.numpy().tobytes())
        return found.hexdigest()
