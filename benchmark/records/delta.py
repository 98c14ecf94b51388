"""Relative performance of a network against the suite's own single-task run at the same seed. Spec: measurement 1.5.

delta of a metric = 100 * s * (m - b) / |b| with value m, single-task value b and s = +1 for higher is better, else -1:
positive is better, whatever the metric. `mean-metrics` averages over a task's metrics J first, then over tasks;
`one-metric` takes each task's primary metric. A value that cannot be computed is null with a reason, never 0. A null in
one metric makes the whole value null: a mean over the remaining metrics would compare different quantities in different
rows.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from benchmark.records.documents import MetricEntry

Variant = Literal["mean-metrics", "one-metric"]
SMALLEST_BASELINE = 1e-8  # |b| below it: no ratio

# J of `mean-metrics`, recognised by the first metric of each set that only its kind has.
_SETS: Mapping[str, tuple[str, ...]] = {
    "miou": ("miou", "pixel_acc"),
    "mean_angle": ("mean_angle", "median_angle", "within_11_25", "within_22_5", "within_30"),
    "rel_err": ("abs_err", "rel_err", "delta_1_25", "delta_1_25_2", "delta_1_25_3"),
}
# Primary metrics; the first one present counts. The specification names those up to `accuracy`; the others are our
# choice, for tasks without any of these (rare classes, regression maps, Taskonomy under `adashare`).
_PRIMARY = (
    "miou",
    "mean_angle",
    "max_iou",
    "f_dilated",
    "accuracy",
    "balanced_accuracy",
    "accuracy_mean",
    "weighted_ce_err",
    "cosine_similarity",
    "abs_err",
    "best_f1",
    "iou_at_50",
    "auroc",
    "pixel_acc",
    "rmse",
    "mse",
)


@dataclasses.dataclass(frozen=True)
class Delta:
    """A relative performance in percent, positive is better; or None with the reason."""

    value: float | None
    reason: str | None = None


def primary_metric(names: Collection[str]) -> str | None:
    """The primary metric of a task with these metrics; None if there are several and none of them is known."""
    if "rel_err" in names and "rmse" in names:  # depth; other kinds that have an rmse are judged by abs_err
        return "rmse"
    for name in _PRIMARY:
        if name in names:
            return name
    return next(iter(names)) if len(names) == 1 else None


def compared_metrics(names: Collection[str], variant: Variant) -> tuple[str, ...]:
    """J: the measured metrics of a task that enter its Delta; empty if no primary metric is known."""
    if variant == "mean-metrics":
        for signature, metrics in _SETS.items():
            if signature in names:
                return tuple(name for name in metrics if name in names)
    primary = primary_metric(names)
    return () if primary is None else (primary,)


def delta_metric(value: float, baseline: float, higher_is_better: bool) -> float | None:
    """100 * s * (value - baseline) / |baseline|, percent; None if |baseline| < 1e-8."""
    if abs(baseline) < SMALLEST_BASELINE:
        return None
    sign = 1.0 if higher_is_better else -1.0
    return 100.0 * sign * (value - baseline) / abs(baseline)


def delta_task(
    scores: Mapping[str, MetricEntry], baseline: Mapping[str, MetricEntry], variant: Variant = "mean-metrics"
) -> Delta:
    """Delta_t of one task, percent. scores, baseline: {metric: entry} of the network and of the single-task run."""
    compared = compared_metrics(scores.keys() | baseline.keys(), variant)
    if not compared:
        return Delta(None, f"no primary metric among {', '.join(sorted(scores)) or 'none'}")
    deltas = []
    for name in compared:
        if name not in scores or name not in baseline:
            return Delta(None, f"{name} is missing in {'the row' if name not in scores else 'the single-task run'}")
        ours, reference = scores[name], baseline[name]
        if ours["higher_is_better"] != reference["higher_is_better"] or ours["unit"] != reference["unit"]:
            return Delta(None, f"{name} has another unit or direction in the single-task run")
        if ours["value"] is None or reference["value"] is None:
            return Delta(None, f"{name} is null in {'the row' if ours['value'] is None else 'the single-task run'}")
        delta = delta_metric(ours["value"], reference["value"], ours["higher_is_better"])
        if delta is None:
            return Delta(None, f"{name} is 0 in the single-task run")
        deltas.append(delta)
    return Delta(math.fsum(deltas) / len(deltas))


def delta_m(
    metrics: Mapping[str, Mapping[str, MetricEntry]],
    baseline: Mapping[str, Mapping[str, MetricEntry]],
    tasks: Sequence[str],
    variant: Variant = "mean-metrics",
) -> Delta:
    """Delta_m: the mean of Delta_t over `tasks`, percent. metrics, baseline: {task: {metric: entry}}, same seed."""
    if not tasks:
        return Delta(None, "no tasks")
    deltas = []
    for task in tasks:
        if task not in metrics or task not in baseline:
            return Delta(None, f"{task} is missing in {'the row' if task not in metrics else 'the single-task run'}")
        delta = delta_task(metrics[task], baseline[task], variant)
        if delta.value is None:
            return Delta(None, f"{task}: {delta.reason}")
        deltas.append(delta.value)
    return Delta(math.fsum(deltas) / len(deltas))
