"""`semantic`: one of C classes per pixel; labels int64 [B, H, W] in 0 .. C - 1, 255 ignored. Loss: cross-entropy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from datasets.errors import UsageError
from datasets.kinds.base import Kind, check_integer, dense_prediction
from datasets.kinds.constants import ClassCounts, Constants
from datasets.kinds.metrics import Evaluator, MetricResult, histogram, ratio
from datasets.kinds.registry import register_kind
from datasets.protocols import STANDARD, ProtocolFlags

if TYPE_CHECKING:
    from torch import Tensor
    from torchvision import tv_tensors

    from datasets.contracts import TaskSpec

IGNORE = 255
SMALLEST_WEIGHT = 1e-12  # a sum of weights is at least this, so that an image without a label divides by no zero


@register_kind
class SemanticKind(Kind):
    """Predictions float [B, C, h, w], labels integer [B, H, W]."""

    name = "semantic"
    dense = True
    ignore = "255"
    fill = IGNORE
    fewest_channels = 2

    def valid(self, target: Tensor) -> Tensor:
        """Labels other than 255."""
        return target != IGNORE

    def legal(self, target: Tensor, task: TaskSpec) -> Tensor:
        """0 .. C - 1, and 255."""
        return ((target >= 0) & (target < task.channels)) | (target == IGNORE)

    def legal_values(self, task: TaskSpec) -> str:
        """The classes and what is ignored."""
        return f"0 to {task.channels - 1}, or {self.ignore}"

    def loss(self, prediction: Tensor, target: Tensor, task: TaskSpec, flags: ProtocolFlags = STANDARD) -> Tensor:
        """Cross-entropy, mean over labelled pixels, weighted by `class_weights` where the task has them."""
        from torch.nn import functional

        check_integer(target)
        logits = dense_prediction(prediction, target, task.channels, flags)
        if task.class_weights:
            losses, weights = weighted_losses(logits, target.long(), self.valid(target), task)
            return losses.sum() / weights.sum().clamp(min=SMALLEST_WEIGHT)
        total = functional.cross_entropy(logits, target.long(), ignore_index=IGNORE, reduction="sum")
        return total / self.valid(target).sum().clamp(min=1)

    def evaluator(self, task: TaskSpec, flags: ProtocolFlags = STANDARD) -> Evaluator:
        """miou, pixel_acc, weighted_ce_err."""
        return SemanticEvaluator(self, task, flags)

    def check_task(self, task: TaskSpec) -> None:
        """Raise UsageError for weights that are not one positive number a class."""
        super().check_task(task)
        weights = task.class_weights
        if weights and (len(weights) != task.channels or not all(0 < weight < math.inf for weight in weights)):
            raise UsageError(
                f"Task {task.name!r}: class_weights must be {task.channels} positive numbers, got {list(weights)}."
            )

    def constants(self, task: TaskSpec) -> Constants:
        """The majority class everywhere."""
        return ClassCounts(task.channels, self.counted(task))

    def wrapper(self, task: TaskSpec) -> type[tv_tensors.TVTensor]:
        """Mask."""
        from torchvision import tv_tensors

        return tv_tensors.Mask


def weighted_losses(logits: Tensor, label: Tensor, valid: Tensor, task: TaskSpec) -> tuple[Tensor, Tensor]:
    """(w * cross-entropy, w), both [B, H, W], 0 where not `valid`; w is the label's class weight, 1 without weights.

    logits: [B, C, H, W] of the label's size; label: int64 [B, H, W].
    """
    import torch
    from torch.nn import functional

    known = torch.where(valid, label, 0)
    table = logits.new_tensor(task.class_weights or [1.0] * task.channels)
    weights = torch.where(valid, table[known], 0.0)
    losses = functional.cross_entropy(logits, known, reduction="none")
    return torch.where(valid, losses, 0.0) * weights, weights


class SemanticEvaluator(Evaluator):
    """One confusion matrix, rows label, columns prediction; flags miou, pixel_acc, void_as_error, upsample.

    weighted_ce_err: each image's cross-entropy with class weights, divided by the sum of weights, averaged over images.
    """

    def __init__(self, kind: SemanticKind, task: TaskSpec, flags: ProtocolFlags) -> None:
        counts = {"confusion": task.channels**2, "void": 1}
        counts |= dict.fromkeys(("images", "images_skipped", "ce_images", "ce_images_skipped"), 1)
        super().__init__(task, counts, sums={"image_accuracy": 1, "weighted_ce": 1})
        self.kind, self.flags = kind, flags

    def _update(self, prediction: Tensor, label: Tensor) -> None:
        n_classes = self.task.channels
        check_integer(label)
        logits = dense_prediction(prediction, label, n_classes, self.flags)
        label = label.long()
        legal = self.kind.legal(label, self.task)
        labelled = self.kind.valid(label)
        valid = labelled & legal
        highest, chosen = logits.max(dim=1)  # on a CPU a tenth of the time of argmax over a strided axis
        self._add("illegal", (~legal).sum())
        # A sum over all keeps every NaN and infinity and takes a fraction of the time; a GPU would have to wait for it.
        if not (logits.is_cpu and logits.sum().isfinite()):
            finite = highest.isfinite() & logits.amin(dim=1).isfinite()
            self._add("nonfinite", (valid & ~finite).sum())
        self._add("confusion", histogram(label * n_classes + chosen, valid, n_classes**2))
        self._add("void", (~labelled).sum())
        if self.flags.pixel_acc == "image_mean":
            counted = legal if self.flags.void_as_error else valid
            n_counted = counted.sum(dim=(1, 2))
            n_right = (valid & (chosen == label)).sum(dim=(1, 2))
            self._add("image_accuracy", (n_right.double() / n_counted.clamp(min=1)).sum())
            self._add("images", (n_counted > 0).sum())
            self._add("images_skipped", (n_counted == 0).sum())
        if self._wants("weighted_ce_err"):
            self._add_weighted(logits.double(), label, valid)

    def _add_weighted(self, logits: Tensor, label: Tensor, valid: Tensor) -> None:
        losses, weights = (values.sum(dim=(1, 2)) for values in weighted_losses(logits, label, valid, self.task))
        counted = weights > 0
        self._add("weighted_ce", (losses / weights.clamp(min=SMALLEST_WEIGHT)).sum())
        self._add("ce_images", counted.sum())
        self._add("ce_images_skipped", (~counted).sum())

    def _measure(self, name: str) -> MetricResult:
        if name == "weighted_ce_err":
            result = ratio(self._number("weighted_ce"), self._integer("ce_images"))
            detail = {"images_skipped": self._integer("ce_images_skipped")}
            return MetricResult(result.value, result.n_units, detail=detail)
        n_classes = self.task.channels
        confusion = self._state["confusion"].cpu().reshape(n_classes, n_classes)
        return self._miou(confusion) if name == "miou" else self._pixel_accuracy(confusion)

    def _miou(self, confusion: Tensor) -> MetricResult:
        import torch

        hits = confusion.diagonal()
        union = confusion.sum(dim=0) + confusion.sum(dim=1) - hits
        n_pixels = int(confusion.sum())
        averaged = {"present": union > 0, "tp_only": hits > 0, "all_classes": torch.ones_like(union, dtype=torch.bool)}
        classes = averaged[self.flags.miou]
        detail = {"classes": [int(index) for index in classes.nonzero().flatten()]}
        if not n_pixels or not detail["classes"]:
            return MetricResult(None, n_pixels, detail={"classes": []})
        iou = hits.double() / union.clamp(min=1)
        return MetricResult(100.0 * float(iou[classes].mean()), n_pixels, detail=detail)

    def _pixel_accuracy(self, confusion: Tensor) -> MetricResult:
        if self.flags.pixel_acc == "image_mean":
            result = ratio(100.0 * self._number("image_accuracy"), self._integer("images"))
            detail = {"images_skipped": self._integer("images_skipped")}
            return MetricResult(result.value, result.n_units, detail=detail)
        void = self._integer("void") if self.flags.void_as_error else 0
        return ratio(100.0 * int(confusion.diagonal().sum()), int(confusion.sum()) + void)
