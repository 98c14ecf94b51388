"""`depth`: a distance per pixel; labels float32 [B, H, W], NaN ignored. Loss: L1.

Distances must be > 0; inverse depth and disparity (units `inverse_depth`, `disparity_px`) may be 0.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from datasets.kinds.base import check_floating, dense_prediction
from datasets.kinds.metrics import Evaluator, MetricResult, ratio, share
from datasets.kinds.registry import register_kind
from datasets.kinds.regression import RegressionKind
from datasets.protocols import STANDARD, ProtocolFlags

if TYPE_CHECKING:
    from torch import Tensor
    from torchvision import tv_tensors

    from datasets.contracts import TaskSpec

INVERSE_UNITS = ("inverse_depth", "disparity_px")
SMALLEST_DEPTH = 3e-5  # relative errors and ratios only above it (measurement 1.2)
_DELTAS = ("delta_1_25", "delta_1_25_2", "delta_1_25_3")


@register_kind
class DepthKind(RegressionKind):
    """Predictions float [B, 1, h, w], labels float [B, H, W]."""

    name = "depth"
    dense = True
    fill = math.nan

    def fit(self, prediction: Tensor, target: Tensor, task: TaskSpec, flags: ProtocolFlags = STANDARD) -> Tensor:
        """[B, H, W]."""
        return dense_prediction(prediction, target, 1, flags).squeeze(1)

    def legal(self, target: Tensor, task: TaskSpec) -> Tensor:
        """NaN, and finite values > 0 (>= 0 for inverse depth and disparity)."""
        in_range = target >= 0 if task.unit in INVERSE_UNITS else target > 0
        return target.isnan() | (in_range & target.isfinite())

    def legal_values(self, task: TaskSpec) -> str:
        """By unit, and what is ignored."""
        return f"finite numbers {'>=' if task.unit in INVERSE_UNITS else '>'} 0, or {self.ignore}"

    def evaluator(self, task: TaskSpec, flags: ProtocolFlags = STANDARD) -> Evaluator:
        """abs_err, rel_err, rmse, delta_1_25, delta_1_25_2, delta_1_25_3."""
        return DepthEvaluator(self, task, flags)

    def head_channels(self, task: TaskSpec) -> int:
        """One."""
        return 1

    def wrapper(self, task: TaskSpec) -> type[tv_tensors.TVTensor]:
        """Depth, or InverseDepth, which a zoom scales the other way."""
        from datasets.images.transforms import Depth, InverseDepth

        return InverseDepth if task.unit in INVERSE_UNITS else Depth


class DepthEvaluator(Evaluator):
    """No clamping, cropping or median scaling; flags depth_mean, ratio_nonpositive, upsample."""

    def __init__(self, kind: DepthKind, task: TaskSpec, flags: ProtocolFlags) -> None:
        counts = {"n": 1, "n_ratio": 1, "hits": 3, "nonpositive": 1, "images": 1, "images_skipped": 1}
        super().__init__(task, counts, sums={"abs_err": 1, "rel_err": 1, "square": 1, "rmse": 1})
        self.kind, self.flags = kind, flags

    def _update(self, prediction: Tensor, label: Tensor) -> None:
        import torch

        check_floating(label)
        depth = self.kind.fit(prediction, label, self.task, self.flags).double()
        legal = self.kind.legal(label, self.task)
        valid = self.kind.valid(label) & legal
        label = torch.where(valid, label, 1.0).double()
        with_ratio = valid & (label > SMALLEST_DEPTH)
        self._add("illegal", (~legal).sum())
        self._add("nonfinite", (valid & ~depth.isfinite()).sum())
        self._add("n", valid.sum())
        self._add("n_ratio", with_ratio.sum())
        self._add("nonpositive", (with_ratio & (depth <= 0)).sum())
        error = (depth - label).abs()
        if self.flags.depth_mean == "per_image":
            self._add_images(error, label, with_ratio)
        else:
            self._add("abs_err", torch.where(valid, error, 0.0).sum())
            self._add("square", torch.where(valid, error.square(), 0.0).sum())
            self._add("rel_err", torch.where(with_ratio, error / label, 0.0).sum())
        largest = torch.maximum(depth / label, label / depth)
        if self.flags.ratio_nonpositive == "infinite":
            largest = torch.where(depth > 0, largest, math.inf)
        self._add("hits", torch.stack([(with_ratio & (largest < 1.25**k)).sum() for k in (1, 2, 3)]))

    def _add_images(self, error: Tensor, label: Tensor, counted: Tensor) -> None:
        """Means of each image; images without a counted pixel are skipped and counted."""
        import torch

        n_pixels = counted.sum(dim=(1, 2))
        divisor = n_pixels.clamp(min=1)

        def mean(values: Tensor) -> Tensor:
            return torch.where(counted, values, 0.0).sum(dim=(1, 2)) / divisor

        self._add("abs_err", mean(error).sum())
        self._add("rel_err", mean(error / label).sum())
        self._add("rmse", mean(error.square()).sqrt().sum())
        self._add("images", (n_pixels > 0).sum())
        self._add("images_skipped", (n_pixels == 0).sum())

    def _measure(self, name: str) -> MetricResult:
        n_ratio = self._integer("n_ratio")
        if name in _DELTAS:
            result = share(int(self._state["hits"][_DELTAS.index(name)]), n_ratio)
            nonpositive = share(self._integer("nonpositive"), n_ratio).value
            detail = {} if nonpositive is None else {"nonpositive": nonpositive}
            return MetricResult(result.value, n_ratio, detail=detail)
        if self.flags.depth_mean == "per_image":
            result = ratio(self._number(name), self._integer("images"))
            detail = {"images_skipped": self._integer("images_skipped")}
            return MetricResult(result.value, result.n_units, detail=detail)
        if name == "rmse":
            mean = ratio(self._number("square"), self._integer("n"))
            return MetricResult(None if mean.value is None else math.sqrt(max(mean.value, 0.0)), mean.n_units)
        return ratio(self._number(name), n_ratio if name == "rel_err" else self._integer("n"))
