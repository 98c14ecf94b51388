"""`dense`: C numbers per pixel (keypoint heat maps, curvature); labels float [B, C, H, W], NaN ignored. Loss: L1.

Every number is a label of its own: a pixel may be known in one channel only.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor
from torchvision import tv_tensors

from datasets.contracts import TaskSpec
from datasets.kinds.base import Kind, check_floating, dense_prediction, mean_of_valid
from datasets.kinds.registry import register_kind
from datasets.kinds.regression import RegressionEvaluator
from datasets.metrics import Evaluator
from datasets.protocols import STANDARD, ProtocolFlags
from datasets.transforms import Dense


@register_kind
class DenseKind(Kind):
    """Predictions float [B, C, h, w], labels float [B, C, H, W]."""

    name = "dense"
    dense = True
    ignore = "NaN"
    fill = math.nan

    def valid(self, target: Tensor) -> Tensor:
        """Labels that are not NaN."""
        return ~target.isnan()

    def legal(self, target: Tensor, task: TaskSpec) -> Tensor:
        """NaN and finite numbers."""
        return ~target.isinf()

    def loss(self, prediction: Tensor, target: Tensor, task: TaskSpec, flags: ProtocolFlags = STANDARD) -> Tensor:
        """Mean absolute difference over labelled numbers."""
        check_floating(target)
        values = dense_prediction(prediction, target, task.channels, flags, per_channel=True)
        valid = self.valid(target)
        return mean_of_valid((values - torch.where(valid, target, 0.0)).abs(), valid)

    def evaluator(self, task: TaskSpec, flags: ProtocolFlags = STANDARD) -> Evaluator:
        """abs_err, mse, rmse."""
        fit = functools.partial(dense_prediction, channels=task.channels, flags=flags, per_channel=True)
        return RegressionEvaluator(task, fit)

    def target_shape(self, task: TaskSpec, size: tuple[int, int]) -> tuple[int, ...]:
        """[C, H, W]."""
        return (task.channels, *size)

    def wrapper(self, task: TaskSpec) -> type[tv_tensors.TVTensor]:
        """Dense."""
        return Dense
