"""Constant predictions: the best that can be said of a task without a look at the image, fitted on labels.

A kind offers candidates; which of them is best depends on the metric. Sums and counts are kept, so that labels of a
whole role need not be in memory.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from datasets.kinds.metrics import histogram

if TYPE_CHECKING:
    from torch import Tensor

SURE = 20.0  # a logit whose probability lies beyond every threshold of a metric
PIXELS_FOR_MEDIAN = 4096  # of an image with more, as many are drawn: a median needs the values themselves
Mask = Callable[["Tensor"], "Tensor"]  # labels -> bool, one per label: which are valid and legal


class Constants(abc.ABC):
    """Candidates for the best constant prediction of a task. Labels are added in batches, on the CPU."""

    @abc.abstractmethod
    def update(self, label: Tensor) -> None:
        """Add labels [B, ...] as the kind defines them; those that are ignored or illegal do not count."""

    @abc.abstractmethod
    def candidates(self) -> dict[str, Tensor]:
        """{what it is, for people: prediction float64 [C]} in order of preference; empty if no label counted."""


class ClassCounts(Constants):
    """The majority class, as logits; of equally frequent classes the first. It is best for accuracy and for mIoU, and
    for balanced accuracy and auroc every class is.
    """

    def __init__(self, n_classes: int, mask: Mask) -> None:
        import torch

        self.mask, self.counts = mask, torch.zeros(n_classes, dtype=torch.int64)

    def update(self, label: Tensor) -> None:
        """Count classes."""
        self.counts += histogram(label.long(), self.mask(label), len(self.counts))

    def candidates(self) -> dict[str, Tensor]:
        """`class K`."""
        import torch

        counts = self.counts.tolist()
        if not any(counts):
            return {}
        majority = counts.index(max(counts))
        return {f"class {majority}": torch.eye(len(counts), dtype=torch.float64)[majority]}


class YesShare(Constants):
    """The share of yes among yes and no, as a logit [1]; with `extremes` also yes everywhere and no everywhere."""

    def __init__(self, mask: Mask, *, extremes: bool) -> None:
        self.mask, self.extremes = mask, extremes
        self.n_yes = self.n_labels = 0

    def update(self, label: Tensor) -> None:
        """Count yes and all."""
        counted = self.mask(label)
        self.n_labels += int(counted.sum())
        self.n_yes += int((counted & (label == 1)).sum())

    def candidates(self) -> dict[str, Tensor]:
        """`the prior`, `all on`, `all off`."""
        import torch

        if not self.n_labels:
            return {}
        n_no = self.n_labels - self.n_yes
        prior = math.log(self.n_yes / n_no) if self.n_yes and n_no else math.copysign(SURE, self.n_yes - n_no)
        logits = {"the prior": max(-SURE, min(SURE, prior))}
        if self.extremes:
            logits |= {"all on": SURE, "all off": -SURE}
        return {name: torch.tensor([logit], dtype=torch.float64) for name, logit in logits.items()}


class Centres(Constants):
    """Median and mean of each of C channels. The median is that of at most `PIXELS_FOR_MEDIAN` pixels of an image."""

    def __init__(self, channels: int, mask: Mask) -> None:
        import torch

        self.channels, self.mask = channels, mask
        self.total = torch.zeros(channels, dtype=torch.float64)
        self.count = torch.zeros(channels, dtype=torch.int64)
        self._kept: list[Tensor] = []  # float [C, n], NaN where a label does not count

    def update(self, label: Tensor) -> None:
        """Add to the sums, and keep values for the median."""
        import torch

        values = torch.where(self.mask(label), label, math.nan).reshape(len(label), self.channels, -1)
        self.total += values.double().nansum(dim=(0, 2))
        self.count += (~values.isnan()).sum(dim=(0, 2))
        n_pixels = values.shape[2]
        if n_pixels > PIXELS_FOR_MEDIAN:
            drawn = torch.randperm(n_pixels, generator=torch.Generator().manual_seed(0))[:PIXELS_FOR_MEDIAN]
            values = values.index_select(2, drawn.sort().values)
        self._kept.append(values.transpose(0, 1).reshape(self.channels, -1))

    def candidates(self) -> dict[str, Tensor]:
        """`the median`, `the mean`; 0 in a channel without a label."""
        import numpy as np
        import torch

        if not int(self.count.sum()):
            return {}
        kept = torch.cat(self._kept, dim=1).double().numpy()
        known = [row[~np.isnan(row)] for row in kept]
        medians = [float(np.median(row)) if len(row) else 0.0 for row in known]
        return {
            "the median": torch.tensor(medians, dtype=torch.float64),
            "the mean": self.total / self.count.clamp(min=1),
        }


class MeanDirection(Constants):
    """The mean of vectors [B, C, H, W], of length 1."""

    def __init__(self, channels: int, mask: Mask) -> None:
        import torch

        self.mask, self.total, self.count = mask, torch.zeros(channels, dtype=torch.float64), 0

    def update(self, label: Tensor) -> None:
        """Add up vectors."""
        import torch

        counted = self.mask(label)
        self.count += int(counted.sum())
        self.total += torch.where(counted.unsqueeze(1), label, 0.0).double().sum(dim=(0, 2, 3))

    def candidates(self) -> dict[str, Tensor]:
        """`the mean direction`."""
        from torch.nn import functional

        return {"the mean direction": functional.normalize(self.total, dim=0)} if self.count else {}
