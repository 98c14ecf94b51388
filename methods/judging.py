"""How much better one network is than another, by the metrics of its tasks."""

from __future__ import annotations

from collections.abc import Mapping

from methods.contracts import Metrics, Score

SMALLEST_BASELINE = 1e-8  # a smaller value is no denominator


def change_of_task(before: Mapping[str, Score], after: Mapping[str, Score]) -> float | None:
    """Mean over the metrics of one task of 100 s (after - before) / |before|, percent; s makes positive better.

    before, after: {metric: score}. Metrics without a value on either side, or with |before| < 1e-8, are left out; None
    where none is left.
    """
    changes = []
    for name, old in before.items():
        new = after[name].value
        if old.value is not None and new is not None and abs(old.value) >= SMALLEST_BASELINE:
            sign = 1.0 if old.higher_is_better else -1.0
            changes.append(100.0 * sign * (new - old.value) / abs(old.value))
    return sum(changes) / len(changes) if changes else None


def relative_change(before: Metrics, after: Metrics) -> float | None:
    """Mean over tasks of `change_of_task`, percent, positive is better; None where no task has one."""
    found = [change_of_task(scores, after[task]) for task, scores in before.items()]
    known = [change for change in found if change is not None]
    return sum(known) / len(known) if known else None
