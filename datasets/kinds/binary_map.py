"""`binary_map`: yes or no per pixel (edges, saliency); labels int64 [B, H, W] in {0, 1}, 255 ignored.

Predictions are one logit per pixel. Loss: cross-entropy in which positives weigh w and negatives 1 - w.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from datasets.kinds.base import Kind, check_integer, dense_prediction, mean_of_valid
from datasets.kinds.constants import Constants, YesShare
from datasets.kinds.metrics import Evaluator, MetricResult, histogram
from datasets.kinds.registry import register_kind
from datasets.protocols import STANDARD, ProtocolFlags

if TYPE_CHECKING:
    from torch import Tensor
    from torchvision import tv_tensors

    from datasets.contracts import TaskSpec

IGNORE = 255
IOU_THRESHOLDS = tuple(k / 20 for k in range(4, 19))  # measurement 1.2: max_iou
F_THRESHOLDS = tuple(k / 100 for k in range(1, 100))  # measurement 1.2: f_dilated, best_f1
_TIE = 1e-12  # IoU sums of equal thresholds may differ in the last bits with the cut into batches


@register_kind
class BinaryMapKind(Kind):
    """Predictions float [B, 1, h, w] (logits), labels integer [B, H, W]."""

    name = "binary_map"
    dense = True
    ignore = "255"
    fill = IGNORE

    def valid(self, target: Tensor) -> Tensor:
        """Labels other than 255."""
        return target != IGNORE

    def legal(self, target: Tensor, task: TaskSpec) -> Tensor:
        """0, 1 and 255."""
        return (target == 0) | (target == 1) | (target == IGNORE)

    def legal_values(self, task: TaskSpec) -> str:
        """0, 1 and what is ignored."""
        return f"0 or 1, or {self.ignore}"

    def loss(self, prediction: Tensor, target: Tensor, task: TaskSpec, flags: ProtocolFlags = STANDARD) -> Tensor:
        """Weighted binary cross-entropy, mean over labelled pixels (the weights do not enter the divisor).

        A balanced weight is 0.5 where no pixel is positive, since negative pixels would weigh nothing then.
        """
        import torch
        from torch.nn import functional

        check_integer(target)
        logit = dense_prediction(prediction, target, 1, flags).squeeze(1)
        losses = functional.binary_cross_entropy_with_logits(logit, (target == 1).to(logit.dtype), reduction="none")
        weight: float | Tensor | None
        weight = self._balance(target, losses) if task.positive_weight == "balanced" else task.positive_weight
        if weight is not None:
            losses = losses * torch.where(target == 1, weight, 1.0 - weight)
        return mean_of_valid(losses, self.valid(target))

    def _balance(self, target: Tensor, losses: Tensor) -> Tensor:
        """Scalar of the type of `losses`: the share of negatives among the labelled pixels; 0.5 without positives."""
        import torch

        share = (target == 0).sum() / self.valid(target).sum().clamp(min=1)
        return torch.where((target == 1).any(), share, 0.5).to(losses.dtype)

    def evaluator(self, task: TaskSpec, flags: ProtocolFlags = STANDARD) -> Evaluator:
        """max_iou, iou_at_50, f_dilated, best_f1."""
        return BinaryMapEvaluator(self, task, flags)

    def constants(self, task: TaskSpec) -> Constants:
        """The prior, all on, all off."""
        return YesShare(self.counted(task), extremes=True)

    def head_channels(self, task: TaskSpec) -> int:
        """One."""
        return 1

    def wrapper(self, task: TaskSpec) -> type[tv_tensors.TVTensor]:
        """Mask."""
        from torchvision import tv_tensors

        return tv_tensors.Mask


class BinaryMapEvaluator(Evaluator):
    """All thresholds at once: a pixel's *level* is the number of thresholds below its probability (strictly).

    "Probability > threshold j" is then "level > j", and histograms of levels hold the counts of every threshold.
    """

    def __init__(self, kind: BinaryMapKind, task: TaskSpec, flags: ProtocolFlags) -> None:
        n_f, n_iou = len(F_THRESHOLDS), len(IOU_THRESHOLDS)
        names = ("predicted", "matched", "found", "predicted_exact")
        counts = dict.fromkeys(names, n_f) | {"n": 1, "true": 1, "images": 1, "images_skipped": 1}
        super().__init__(task, counts, sums={"iou": n_iou})
        self.kind, self.flags = kind, flags

    def _update(self, prediction: Tensor, label: Tensor) -> None:
        import torch

        check_integer(label)
        logit = dense_prediction(prediction, label, 1, self.flags).squeeze(1)
        legal = self.kind.legal(label, self.task)
        valid = self.kind.valid(label) & legal
        true = valid & (label == 1)
        self._add("illegal", (~legal).sum())
        self._add("nonfinite", (valid & ~logit.isfinite()).sum())
        self._add("n", valid.sum())
        self._add("true", true.sum())
        probability = logit.double().sigmoid()
        if self._wants("max_iou", "iou_at_50"):
            self._add_iou(levels(probability, IOU_THRESHOLDS), true, valid)
        if self._wants("f_dilated", "best_f1"):
            # Level 0 is predicted at no threshold, so an ignored pixel neither counts nor matches.
            level = torch.where(valid, levels(probability, F_THRESHOLDS), 0)
            self._add_f(level, true)

    def _add_iou(self, level: Tensor, true: Tensor, valid: Tensor) -> None:
        """IoU of each image at each threshold; both empty: 1. Images without a valid pixel are skipped."""
        import torch

        n_images, n_levels = len(level), len(IOU_THRESHOLDS) + 1
        index = level + n_levels * torch.arange(n_images, device=level.device).view(-1, 1, 1)

        def above(mask: Tensor) -> Tensor:  # int64 [n_images, thresholds]
            return exceeding(histogram(index, mask, n_images * n_levels).view(n_images, n_levels))

        common = above(true)
        union = above(valid) + true.sum(dim=(1, 2)).unsqueeze(1) - common
        iou = torch.where(union > 0, common.double() / union.clamp(min=1), 1.0)
        counted = valid.flatten(1).any(dim=1)
        self._add("iou", torch.where(counted.unsqueeze(1), iou, 0.0).sum(dim=0))
        self._add("images", counted.sum())
        self._add("images_skipped", (~counted).sum())

    def _add_f(self, level: Tensor, true: Tensor) -> None:
        import torch

        n_levels = len(F_THRESHOLDS) + 1
        self._add("predicted", exceeding(histogram(level, torch.ones_like(true), n_levels)))
        self._add("predicted_exact", exceeding(histogram(level, true, n_levels)))
        if self._wants("f_dilated"):
            radius_squared = tolerance_squared(level.shape[1], level.shape[2])
            near_true = dilate(true.to(torch.uint8), radius_squared) > 0
            self._add("matched", exceeding(histogram(level, near_true, n_levels)))
            near_level = dilate(level.to(torch.uint8), radius_squared).long()
            self._add("found", exceeding(histogram(near_level, true, n_levels)))

    def _measure(self, name: str) -> MetricResult:
        if name in ("max_iou", "iou_at_50"):
            return self._iou(name)
        exact, predicted = self._state["predicted_exact"], self._state["predicted"].double()
        matched, found = (exact, exact) if name == "best_f1" else (self._state["matched"], self._state["found"])
        n_pixels = self._integer("n")
        if not n_pixels:
            return MetricResult(None, 0)
        # 0 / 0 counts as 0: nothing predicted has no precision, nothing true no recall, and F is 0 then.
        precision = matched.double() / predicted.clamp(min=1)
        recall = found.double() / max(self._integer("true"), 1)
        f_score = 2 * precision * recall / (precision + recall).clamp(min=math.ulp(0.0))
        best = int(f_score.argmax())
        return MetricResult(100.0 * float(f_score[best]), n_pixels, detail={"threshold": F_THRESHOLDS[best]})

    def _iou(self, name: str) -> MetricResult:
        n_images = self._integer("images")
        if not n_images:
            return MetricResult(None, 0)
        mean = self._state["iou"].cpu() / n_images
        at_50 = IOU_THRESHOLDS.index(0.5)
        chosen = at_50 if name == "iou_at_50" else int((mean >= mean.max() - _TIE).nonzero()[0])
        detail = {"threshold": IOU_THRESHOLDS[chosen], "images_skipped": self._integer("images_skipped")}
        return MetricResult(100.0 * float(mean[chosen]), n_images, detail=detail)


def levels(probability: Tensor, thresholds: tuple[float, ...]) -> Tensor:
    """int64, shape of `probability` (float64): how many thresholds lie strictly below it; 0 for NaN.

    thresholds: ascending, evenly spaced.
    """
    n_levels, first, step = len(thresholds), thresholds[0], thresholds[1] - thresholds[0]
    # Rounding leaves the position in the grid at most one level from the truth, which the thresholds themselves tell:
    # 100 x 0.29 is 28.999... A search in them, such as `bucketize`, takes four times as long.
    position = ((probability - first) / step + 1).clamp_(0, n_levels).nan_to_num_(0).long()
    borders = probability.new_tensor([-math.inf, *thresholds, math.inf])
    below = borders.index_select(0, position.flatten()).view_as(probability)
    above = borders.index_select(0, position.flatten() + 1).view_as(probability)
    return position + (probability > above) - (probability <= below).long()


def exceeding(counts: Tensor) -> Tensor:
    """[..., L + 1] counts of the levels 0 .. L -> [..., L]: how many pixels have a level > j, j = 0 .. L - 1."""
    return counts.flip(-1).cumsum(-1).flip(-1)[..., 1:]


def tolerance_squared(height: int, width: int) -> int:
    """Largest squared distance between pixels that is within d = 0.0075 x image diagonal; exact, in integers.

    0.0075 = 3 / 400; squared distances of pixels are integers, so rounding d^2 down loses nothing.
    """
    return 9 * (height**2 + width**2) // 160000


def dilate(values: Tensor, radius_squared: int) -> Tensor:
    """Maximum over the disk dx^2 + dy^2 <= radius_squared around each pixel, cut at the border. values [B, H, W] >= 0.

    The disk is a stack of rows, and a row of half-width w is the row of w - 1 and two more pixels: 4 r maxima, not r^2.
    """
    # By hand, since scipy.ndimage leaves the device and torch has pooling over rectangles only; this one is exact.
    import torch

    height, width = values.shape[-2:]
    radius = math.isqrt(radius_squared)
    rows, result = values, values
    for half_width in range(radius + 1):
        if 0 < half_width < width:
            rows = torch.maximum(rows, _shift(values, half_width, -1))
            rows = torch.maximum(rows, _shift(values, -half_width, -1))
        for dy in range(-min(radius, height - 1), min(radius, height - 1) + 1):
            if math.isqrt(radius_squared - dy * dy) == half_width:
                result = torch.maximum(result, _shift(rows, dy, -2))
    return result


def _shift(values: Tensor, by: int, axis: int) -> Tensor:
    """Shifted copy with zeros at the border; |by| < size of the axis."""
    import torch

    if by == 0:
        return values
    size = values.shape[axis]
    kept = values.narrow(axis, max(-by, 0), size - abs(by))
    pad_shape = list(values.shape)
    pad_shape[axis] = abs(by)
    zeros = values.new_zeros(pad_shape)
    return torch.cat([zeros, kept] if by > 0 else [kept, zeros], dim=axis)
