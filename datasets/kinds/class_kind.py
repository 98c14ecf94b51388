"""`class`: one of C classes per image; labels int64 [B] in 0 .. C - 1, -1 ignored. Loss: cross-entropy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from datasets.errors import UsageError
from datasets.kinds.base import Kind, at_least_float32, check_integer, shapes
from datasets.kinds.constants import ClassCounts, Constants
from datasets.kinds.metrics import Evaluator, MetricResult, histogram, share
from datasets.kinds.registry import register_kind
from datasets.protocols import STANDARD, ProtocolFlags

if TYPE_CHECKING:
    from torch import Tensor

    from datasets.contracts import TaskSpec

IGNORE = -1  # class ids may exceed 255


@register_kind
class ClassKind(Kind):
    """Predictions float [B, C], labels integer [B]."""

    name = "class"
    dense = False
    ignore = "-1"
    fill = None
    fewest_channels = 2

    def valid(self, target: Tensor) -> Tensor:
        """Labels other than -1."""
        return target != IGNORE

    def legal(self, target: Tensor, task: TaskSpec) -> Tensor:
        """-1 .. C - 1."""
        return (target >= IGNORE) & (target < task.channels)

    def legal_values(self, task: TaskSpec) -> str:
        """The classes and what is ignored."""
        return f"0 to {task.channels - 1}, or {self.ignore}"

    def check_task(self, task: TaskSpec) -> None:
        """Raise UsageError as the base does, and for `auroc` of a task without exactly two classes."""
        super().check_task(task)
        if "auroc" in task.metrics and task.channels != 2:
            raise UsageError(f"Task {task.name!r} has {task.channels} classes; auroc is defined for 2.")

    def loss(self, prediction: Tensor, target: Tensor, task: TaskSpec, flags: ProtocolFlags = STANDARD) -> Tensor:
        """Cross-entropy, mean over labelled samples."""
        from torch.nn import functional

        _check_shapes(prediction, target, task)
        total = functional.cross_entropy(
            at_least_float32(prediction), target.long(), ignore_index=IGNORE, reduction="sum"
        )
        return total / self.valid(target).sum().clamp(min=1)

    def evaluator(self, task: TaskSpec, flags: ProtocolFlags = STANDARD) -> Evaluator:
        """accuracy, balanced_accuracy, auroc."""
        return ClassEvaluator(task, task.channels)

    def constants(self, task: TaskSpec) -> Constants:
        """The majority class."""
        return ClassCounts(task.channels, self.counted(task))


class ClassEvaluator(Evaluator):
    """Argmax, ties to the lowest index. `auroc` keeps one score per sample: logit 1 minus logit 0."""

    def __init__(self, task: TaskSpec, n_classes: int) -> None:
        super().__init__(task, counts={"right": n_classes, "total": n_classes}, sums={})
        self.n_classes = n_classes
        self._scores: list[tuple[Tensor, Tensor]] = []  # (scores float64 [B], labels [B]) on the predictions' device

    def _update(self, prediction: Tensor, label: Tensor) -> None:
        _check_shapes(prediction, label, self.task)
        self._add_classes(prediction, label.long())

    def _add_classes(self, prediction: Tensor, label: Tensor) -> None:
        """prediction: logits float [B, n_classes]; label: int64 [B] in 0 .. n_classes - 1, -1 ignored."""
        n_classes = self.n_classes
        legal = (label >= IGNORE) & (label < n_classes)
        valid = (label != IGNORE) & legal
        right = valid & (prediction.argmax(dim=1) == label)
        self._add("illegal", (~legal).sum())
        self._add("nonfinite", (valid & ~prediction.isfinite().all(dim=1)).sum())
        self._add("total", histogram(label, valid, n_classes))
        self._add("right", histogram(label, right, n_classes))
        if self._wants("auroc"):
            logits = prediction.double()  # the difference of two float32 is exact enough here not to make ties
            self._scores.append((logits[:, 1] - logits[:, 0], label))

    def merge(self, other: Evaluator) -> None:
        """As the base; scores are appended."""
        super().merge(other)
        assert isinstance(other, ClassEvaluator)
        self._scores.extend(other._scores)

    def _measure(self, name: str) -> MetricResult:
        right, total = self._state["right"].double().cpu(), self._state["total"].cpu()
        n_samples = int(total.sum())
        if name == "accuracy":
            return share(float(right.sum()), n_samples)
        if name == "balanced_accuracy":
            present = total > 0
            recalls = right[present] / total[present]
            classes = [int(index) for index in present.nonzero().flatten()]
            value = 100.0 * float(recalls.mean()) if classes else None
            return MetricResult(value, n_samples, detail={"classes": classes})
        return self._auroc(n_samples)

    def _auroc(self, n_samples: int) -> MetricResult:
        """Share of (positive, negative) pairs in order; ties count one half."""
        if not self._scores or self._integer("nonfinite"):
            return MetricResult(None, n_samples)
        scores = np.concatenate([score.cpu().numpy() for score, _ in self._scores])
        labels = np.concatenate([label.cpu().numpy() for _, label in self._scores])
        scores, labels = scores[labels != IGNORE], labels[labels != IGNORE]
        n_positive = int((labels == 1).sum())
        detail = {"n_positive": n_positive, "n_negative": len(labels) - n_positive}
        if not all(detail.values()):
            return MetricResult(None, n_samples, detail=detail)
        from sklearn.metrics import roc_auc_score  # takes a second

        return MetricResult(100.0 * float(roc_auc_score(labels, scores)), n_samples, detail=detail)


def _check_shapes(prediction: Tensor, target: Tensor, task: TaskSpec) -> None:
    check_integer(target)
    if target.ndim != 1 or prediction.shape != (len(target), task.channels):
        raise ValueError(f"Expected [B, {task.channels}] and [B], got {shapes(prediction, target)}.")
