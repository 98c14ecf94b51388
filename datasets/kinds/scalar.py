"""`scalar`: one number per image (regression, ordinals); labels float [B], NaN ignored. Loss: L1, our choice."""

from __future__ import annotations

import torch
from torch import Tensor

from datasets.contracts import TaskSpec
from datasets.kinds.base import Kind, check_floating, mean_of_valid, single_prediction
from datasets.kinds.registry import register_kind
from datasets.kinds.regression import RegressionEvaluator
from datasets.metrics import Evaluator
from datasets.protocols import STANDARD, ProtocolFlags


@register_kind
class ScalarKind(Kind):
    """Predictions float [B, 1], labels float [B]."""

    name = "scalar"
    dense = False
    ignore = "NaN"
    fill = None

    def valid(self, target: Tensor) -> Tensor:
        """Labels that are not NaN."""
        return ~target.isnan()

    def legal(self, target: Tensor, task: TaskSpec) -> Tensor:
        """NaN and finite numbers."""
        return ~target.isinf()

    def loss(self, prediction: Tensor, target: Tensor, task: TaskSpec, flags: ProtocolFlags = STANDARD) -> Tensor:
        """Mean absolute difference over labelled samples."""
        check_floating(target)
        value, valid = single_prediction(prediction, target), self.valid(target)
        return mean_of_valid((value - torch.where(valid, target, 0.0)).abs(), valid)

    def evaluator(self, task: TaskSpec, flags: ProtocolFlags = STANDARD) -> Evaluator:
        """abs_err, mse, rmse."""
        return RegressionEvaluator(task, single_prediction)

    def head_channels(self, task: TaskSpec) -> int:
        """One."""
        return 1
