"""`multilabel`: yes or no of each of C labels per image; labels float [B, C], 0.0 or 1.0, NaN ignored, label by label.
Loss: binary cross-entropy.

mean_average_precision: the mean, over labels with a yes, of the area under precision against recall as a step function
(`average_precision` of scikit-learn and torchmetrics, which give 0 to a label without a yes). f1: the mean, over labels
that are or are said to be there, of 2 TP / (2 TP + FP + FN), yes where the logit is above 0 (torchmetrics' macro mean).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from datasets.kinds.attribute import AttributeKind
from datasets.kinds.base import at_least_float32, check_floating, mean_of_valid, shapes
from datasets.kinds.constants import SURE, Constants, Mask, YesShare
from datasets.kinds.metrics import METRICS, Evaluator, Metric, MetricResult
from datasets.kinds.registry import register_kind
from datasets.protocols import STANDARD, ProtocolFlags

if TYPE_CHECKING:
    from torch import Tensor

    from datasets.contracts import TaskSpec

# The rows stand here, and not in `metrics`, which is part of the program of every cell: a kind that is added makes no
# record stale.
assert isinstance(METRICS, dict)
METRICS.update((name, Metric(name, ("multilabel",), "percent", True)) for name in ("mean_average_precision", "f1"))


@register_kind
class MultilabelKind(AttributeKind):
    """Predictions float [B, C] (logits), labels float [B, C]."""

    name = "multilabel"
    fewest_channels = 2

    def target_shape(self, task: TaskSpec, size: tuple[int, int]) -> tuple[int, ...]:
        """One number a label."""
        return (task.channels,)

    def head_channels(self, task: TaskSpec) -> int:
        """One a label."""
        return task.channels

    def loss(self, prediction: Tensor, target: Tensor, task: TaskSpec, flags: ProtocolFlags = STANDARD) -> Tensor:
        """Binary cross-entropy, mean over all labels of all samples that are known."""
        from torch.nn import functional

        logits = _logits(prediction, target, task)
        losses = functional.binary_cross_entropy_with_logits(logits, (target == 1).to(logits.dtype), reduction="none")
        return mean_of_valid(losses, self.valid(target))

    def evaluator(self, task: TaskSpec, flags: ProtocolFlags = STANDARD) -> Evaluator:
        """mean_average_precision, f1."""
        return MultilabelEvaluator(self, task)

    def constants(self, task: TaskSpec) -> Constants:
        """The prior of each label, and yes to all of them, which is best for f1."""
        return LabelShares(task.channels, self.counted(task))


class LabelShares(Constants):
    """The share of yes of each of C labels, as logits [C], and yes everywhere. Labels nobody has seen get 0."""

    def __init__(self, channels: int, mask: Mask) -> None:
        self.shares = [YesShare(mask, extremes=False) for _ in range(channels)]

    def update(self, label: Tensor) -> None:
        """Count yes and all of each label."""
        for number, share in enumerate(self.shares):
            share.update(label[:, number])

    def candidates(self) -> dict[str, Tensor]:
        """`the priors`, `all on`."""
        import torch

        priors = [share.candidates().get("the prior") for share in self.shares]
        if all(prior is None for prior in priors):
            return {}
        none = torch.zeros(1, dtype=torch.float64)
        logits = torch.cat([none if prior is None else prior for prior in priors])
        return {"the priors": logits, "all on": torch.full_like(logits, SURE)}


class MultilabelEvaluator(Evaluator):
    """Yes where the logit is above 0. `mean_average_precision` keeps one logit per sample and label."""

    def __init__(self, kind: MultilabelKind, task: TaskSpec) -> None:
        super().__init__(task, dict.fromkeys(("hits", "said", "true", "total"), task.channels), sums={})
        self.kind = kind
        self._scores: list[tuple[Tensor, Tensor]] = []  # (logits, labels), both [B, C], on the predictions' device

    def _update(self, prediction: Tensor, label: Tensor) -> None:
        logits = _logits(prediction, label, self.task)
        legal = self.kind.legal(label, self.task)
        valid, said = self.kind.valid(label) & legal, logits > 0
        self._add("illegal", (~legal).sum())
        self._add("nonfinite", (valid & ~logits.isfinite()).sum())
        self._add("hits", (valid & said & (label == 1)).sum(dim=0))
        self._add("said", (valid & said).sum(dim=0))
        self._add("true", (valid & (label == 1)).sum(dim=0))
        self._add("total", valid.sum(dim=0))
        if self._wants("mean_average_precision"):
            self._scores.append((logits, label))

    def merge(self, other: Evaluator) -> None:
        """As the base; scores are appended."""
        super().merge(other)
        assert isinstance(other, MultilabelEvaluator)
        self._scores.extend(other._scores)

    def _measure(self, name: str) -> MetricResult:
        hits, said, true, total = (self._state[name].cpu() for name in ("hits", "said", "true", "total"))
        counted = true > 0 if name == "mean_average_precision" else true + said > 0
        labels = [int(number) for number in counted.nonzero().flatten()]
        n_units = int(total.sum())
        if not labels or self._integer("nonfinite"):
            return MetricResult(None, n_units, detail={"labels": labels})
        if name == "f1":
            value = float((2 * hits[counted].double() / (true + said)[counted]).mean())
        else:
            value = float(np.mean([self._average_precision(number) for number in labels]))
        return MetricResult(100.0 * value, n_units, detail={"labels": labels})

    def _average_precision(self, number: int) -> float:
        from sklearn.metrics import average_precision_score  # takes a second

        scores = np.concatenate([logits[:, number].cpu().numpy() for logits, _ in self._scores])
        labels = np.concatenate([label[:, number].cpu().numpy() for _, label in self._scores])
        known = ~np.isnan(labels)
        return float(average_precision_score(labels[known], scores[known]))


def _logits(prediction: Tensor, target: Tensor, task: TaskSpec) -> Tensor:
    """float [B, C], float32 or wider. Raises ValueError where shapes or types do not fit."""
    check_floating(target)
    if target.ndim != 2 or target.shape[1] != task.channels or prediction.shape != target.shape:
        wanted = f"[B, {task.channels}]"
        raise ValueError(f"Expected {wanted} and {wanted}, got {shapes(prediction, target)}.")
    return at_least_float32(prediction)
