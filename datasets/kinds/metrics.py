"""The metric registry, and the base of evaluators. Spec: measurement 1.1 and 1.2.

Every metric that is computed or shown has one row here, with unit and direction. A metric holds sums (float64) and
counts (int64) and divides once, at the end, so its value does not depend on how the samples were cut into batches.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from datasets.errors import UsageError, unknown

if TYPE_CHECKING:
    from torch import Tensor

    from datasets.contracts import TaskSpec

Unit = Literal["percent", "ratio", "degree", "label_units", "loss_value"]
Status = Literal["computed", "published only"]


class LabelError(UsageError):
    """Labels that are neither ignored nor legal for their kind."""


@dataclasses.dataclass(frozen=True)
class Metric:
    """One row of the registry.

    kinds: whose tasks it judges. unit: shares are in percent, 0 to 100; `label_units` is `TaskSpec.unit`.
    scope: of one task, or one value over all tasks of a row (computed by the harness, not by an evaluator).
    status: `published only` is shown from published boards and never computed here.
    """

    name: str
    kinds: tuple[str, ...]
    unit: Unit
    higher_is_better: bool
    scope: Literal["task", "all tasks"] = "task"
    status: Status = "computed"


_CLASSES = ("class", "attribute")
_REGRESSIONS = ("dense", "scalar")
METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", _CLASSES, "percent", True),
        Metric("accuracy_mean", _CLASSES, "percent", True, scope="all tasks"),
        Metric("balanced_accuracy", _CLASSES, "percent", True),
        Metric("auroc", _CLASSES, "percent", True),
        Metric("miou", ("semantic",), "percent", True),
        Metric("pixel_acc", ("semantic",), "percent", True),
        Metric("weighted_ce_err", ("semantic",), "loss_value", False),
        Metric("mean_angle", ("normals",), "degree", False),
        Metric("median_angle", ("normals",), "degree", False),
        Metric("within_11_25", ("normals",), "percent", True),
        Metric("within_22_5", ("normals",), "percent", True),
        Metric("within_30", ("normals",), "percent", True),
        Metric("cosine_similarity", ("normals",), "ratio", True),
        Metric("abs_err", ("depth", *_REGRESSIONS), "label_units", False),
        Metric("rel_err", ("depth",), "ratio", False),
        Metric("mse", _REGRESSIONS, "label_units", False),
        Metric("rmse", ("depth", *_REGRESSIONS), "label_units", False),
        Metric("delta_1_25", ("depth",), "percent", True),
        Metric("delta_1_25_2", ("depth",), "percent", True),
        Metric("delta_1_25_3", ("depth",), "percent", True),
        Metric("max_iou", ("binary_map",), "percent", True),
        Metric("iou_at_50", ("binary_map",), "percent", True),
        Metric("f_dilated", ("binary_map",), "percent", True),
        Metric("best_f1", ("binary_map",), "percent", True),
        # Needs an external matching tool with thinning and one-to-one matches.
        Metric("ods_f", ("binary_map",), "percent", True, status="published only"),
        Metric(
            "delta_m",
            (*_CLASSES, "semantic", "binary_map", "depth", "normals", *_REGRESSIONS),
            "percent",
            True,
            scope="all tasks",
        ),
    )
}


def get_metric(name: str) -> Metric:
    """The row of a metric. Raises UnknownNameError with the nearest names."""
    if name not in METRICS:
        raise unknown("metric", name, METRICS)
    return METRICS[name]


def computed_metrics(kind: str) -> list[str]:
    """Names of the metrics that the evaluator of a kind can compute."""
    return [
        metric.name
        for metric in METRICS.values()
        if kind in metric.kinds and metric.scope == "task" and metric.status == "computed"
    ]


def check_metrics(task: TaskSpec) -> None:
    """Raise UnknownNameError, with the nearest names, for a metric that the task's kind does not compute."""
    known = computed_metrics(task.kind)
    for name in task.metrics:
        if name not in known:
            raise unknown(f"metric of kind {task.kind!r}", name, known)


@dataclasses.dataclass(frozen=True)
class MetricResult:
    """The value of one metric."""

    # None if no unit was valid, the metric is undefined, or a prediction at a valid unit was not finite.
    value: float | None
    n_units: int  # pixels or samples that were averaged
    n_nonfinite: int = 0  # predictions at valid units that were not finite
    # What belongs beside the value: threshold, classes averaged, ...
    detail: Mapping[str, float | int | Sequence[int]] = dataclasses.field(default_factory=dict)


class Evaluator(abc.ABC):
    """Computes the metrics that a task lists over any number of batches.

    State follows the predictions to their device, and `update` reads nothing back from it: illegal labels and
    non-finite predictions are counted, and `result` judges them. Raises UnknownNameError for a metric of another kind.
    """

    def __init__(self, task: TaskSpec, counts: Mapping[str, int], sums: Mapping[str, int]) -> None:
        """counts, sums: names of int64 and float64 state vectors with their lengths."""
        import torch

        check_metrics(task)
        self.task = task
        self._state = {name: torch.zeros(size, dtype=torch.int64) for name, size in counts.items()}
        self._state |= {name: torch.zeros(size, dtype=torch.float64) for name, size in sums.items()}
        self._state |= {name: torch.zeros(1, dtype=torch.int64) for name in ("illegal", "nonfinite")}

    def update(self, prediction: Tensor, label: Tensor) -> None:
        """Add a batch. Shapes as the kind defines them; raises ValueError where they do not fit."""
        import torch

        with torch.no_grad():
            self._update(prediction, label)

    def merge(self, other: Evaluator) -> None:
        """Add what another evaluator of the same task has seen."""
        if type(other) is not type(self) or other.task != self.task:
            raise ValueError(f"Evaluators of {self.task.name!r} and {other.task.name!r} cannot be merged.")
        for name, value in other._state.items():
            self._add(name, value.to(self._state[name].device))

    def result(self) -> dict[str, MetricResult]:
        """{metric: result} for the task's metrics. Raises LabelError where an illegal label was seen."""
        illegal = int(self._state["illegal"])
        if illegal:
            raise LabelError(
                f"Task {self.task.name!r} of kind {self.task.kind!r}: {illegal} labels are neither legal nor ignored."
            )
        nonfinite = int(self._state["nonfinite"])
        results = {name: self._measure(name) for name in self.task.metrics}
        if nonfinite:
            results = {
                name: dataclasses.replace(result, value=None, n_nonfinite=nonfinite, detail={})
                for name, result in results.items()
            }
        return results

    @abc.abstractmethod
    def _update(self, prediction: Tensor, label: Tensor) -> None: ...

    @abc.abstractmethod
    def _measure(self, name: str) -> MetricResult: ...

    def _add(self, name: str, value: Tensor) -> None:
        held = self._state[name]
        self._state[name] = held.to(value.device) + value.to(held.dtype).reshape(held.shape)

    def _wants(self, *names: str) -> bool:
        return any(name in self.task.metrics for name in names)

    def _integer(self, name: str) -> int:
        return int(self._state[name])

    def _number(self, name: str) -> float:
        return float(self._state[name])


def ratio(numerator: float, denominator: int, n_units: int | None = None) -> MetricResult:
    """numerator / denominator, None where the denominator is 0; n_units is the denominator unless given."""
    units = denominator if n_units is None else n_units
    return MetricResult(numerator / denominator if denominator else None, units)


def share(numerator: float, denominator: int) -> MetricResult:
    """The same in percent."""
    return ratio(100.0 * numerator, denominator)


def histogram(index: Tensor, mask: Tensor, n_bins: int) -> Tensor:
    """int64 [n_bins]: how often each index in 0 .. n_bins - 1 occurs where `mask` holds; index int64, mask bool, [...].

    Masked indices may have any value. No host synchronisation: boolean indexing and CUDA's bincount would wait.
    """
    import torch

    index = torch.where(mask, index, n_bins).flatten()
    if index.device.type == "cpu":
        return torch.bincount(index, minlength=n_bins + 1)[:n_bins]
    zeros = torch.zeros(n_bins + 1, dtype=torch.int64, device=index.device)
    return zeros.scatter_add_(0, index, torch.ones_like(index))[:n_bins]
