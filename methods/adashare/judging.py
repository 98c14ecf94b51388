"""How policies are compared on select: of a search, which cycle's; of several draws, which final network's."""

from __future__ import annotations

import math
from collections.abc import Sequence

from datasets.contracts import DatasetSpec
from methods.contracts import Metrics


def values_of(metrics: Metrics, data: DatasetSpec) -> list[float]:
    """Every metric of every task, in the order of the data set; NaN where none was measured."""
    found = []
    for task in data.tasks:
        for name in task.metrics:
            score = metrics[task.name].get(name)
            found.append(math.nan if score is None or score.value is None else float(score.value))
    return found


def gain(metrics: Metrics, reference: Sequence[float], data: DatasetSpec) -> float:
    """Mean over tasks of the mean over metrics of the relative gain on `reference` (as `values_of`), signed so that
    more is better.

    A metric that is 0 or missing in the reference, or missing here, is left out; a task without any counts 0.
    Official: the sum over tasks of value / reference (reference / value where lower is better) with constants from the
    paper's single-task rows. Ours measures against the first policy judged, so that no single-task network has to be
    trained and charged; the form is that of Delta_m.
    """
    values = iter(zip(values_of(metrics, data), reference, strict=True))
    total = 0.0
    for task in data.tasks:
        gains = []
        for name in task.metrics:
            value, base = next(values)
            if math.isfinite(value) and math.isfinite(base) and base != 0:
                sign = 1 if metrics[task.name][name].higher_is_better else -1
                gains.append(sign * (value - base) / abs(base))
        total += sum(gains) / len(gains) if gains else 0.0
    return total / len(data.tasks)
