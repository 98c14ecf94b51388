"""Errors of regressions, for the kinds `dense` and `scalar`: over finite labels, in the units of the labels."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from datasets.contracts import TaskSpec
from datasets.kinds.base import check_floating
from datasets.metrics import Evaluator, MetricResult, ratio


class RegressionEvaluator(Evaluator):
    """abs_err, mse, rmse. fit: (prediction, label) -> the prediction in the shape of the label."""

    def __init__(self, task: TaskSpec, fit: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__(task, counts={"n": 1}, sums={"abs_err": 1, "square": 1})
        self.fit = fit

    def _update(self, prediction: Tensor, label: Tensor) -> None:
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
