"""What the kinds that predict numbers have in common: an L1 loss (our choice), and errors over finite labels."""

from __future__ import annotations

import abc
import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from datasets.kinds.base import FloatingKind, check_floating, mean_of_valid
from datasets.kinds.constants import Centres, Constants
from datasets.kinds.metrics import Evaluator, MetricResult, ratio
from datasets.protocols import STANDARD, ProtocolFlags

if TYPE_CHECKING:
    from torch import Tensor

    from datasets.contracts import TaskSpec


class RegressionKind(FloatingKind):
    """Labels are finite numbers in the unit of the task."""

    @abc.abstractmethod
    def fit(self, prediction: Tensor, target: Tensor, task: TaskSpec, flags: ProtocolFlags = STANDARD) -> Tensor:
        """The prediction in the shape of the target, float32 or wider. Raises ValueError where shapes do not fit."""

    def legal(self, target: Tensor, task: TaskSpec) -> Tensor:
        """NaN and finite numbers."""
        return ~target.isinf()

    def legal_values(self, task: TaskSpec) -> str:
        """Finite numbers and what is ignored."""
        return f"finite numbers, or {self.ignore}"

    def loss(self, prediction: Tensor, target: Tensor, task: TaskSpec, flags: ProtocolFlags = STANDARD) -> Tensor:
        """Mean absolute difference over labelled numbers, divided by the task's `loss_divisor`."""
        import torch

        check_floating(target)
        values, valid = self.fit(prediction, target, task, flags), self.valid(target)
        # NaN labels are replaced first, so that no gradient depends on what a backward pass makes of 0 * NaN.
        difference = mean_of_valid((values - torch.where(valid, target, 0.0)).abs(), valid)
        return difference if task.loss_divisor == 1 else difference / task.loss_divisor

    def constants(self, task: TaskSpec) -> Constants:
        """Median and mean of each channel."""
        return Centres(self.head_channels(task), self.counted(task))

    def evaluator(self, task: TaskSpec, flags: ProtocolFlags = STANDARD) -> Evaluator:
        """abs_err, mse, rmse."""
        return RegressionEvaluator(task, functools.partial(self.fit, task=task, flags=flags))


class RegressionEvaluator(Evaluator):
    """abs_err, mse, rmse. fit: (prediction, label) -> the prediction in the shape of the label."""

    def __init__(self, task: TaskSpec, fit: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__(task, counts={"n": 1}, sums={"abs_err": 1, "square": 1})
        self.fit = fit

    def _update(self, prediction: Tensor, label: Tensor) -> None:
        import torch

        check_floating(label)
        values = self.fit(prediction, label).double()
        valid = label.isfinite()
        error = torch.where(valid, values - torch.where(valid, label, 0.0).double(), 0.0)
        self._add("illegal", label.isinf().sum())
        self._add("nonfinite", (valid & ~values.isfinite()).sum())
        self._add("n", valid.sum())
        self._add("abs_err", error.abs().sum())
        self._add("square", error.square().sum())

    def _measure(self, name: str) -> MetricResult:
        result = ratio(self._number("abs_err" if name == "abs_err" else "square"), self._integer("n"))
        if name == "rmse" and result.value is not None:
            return MetricResult(math.sqrt(result.value), result.n_units)
        return result
