"""The coefficient from a grid, by the mean relative gain over the single-task networks on select."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from methods.contracts import Metrics, Trainer
from methods.graph.operations import Operation
from methods.graph.task_graph import TaskGraph
from methods.judging import relative_change
from methods.merged.arithmetic import along
from methods.merged.network import judged, re_estimate, write

GRID = tuple(step / 10 for step in range(1, 11))


def gains_of_grid(
    trainer: Trainer,
    graph: TaskGraph,
    body: Sequence[Operation],
    start: Mapping[str, Tensor],
    direction: Mapping[str, Tensor],
    reference: Metrics,
) -> list[float]:
    """The gain of theta_0 + lambda * direction for each lambda of `GRID`, percent; the body is left with the weights of
    the last, and with the statistics that it had.

    graph: the body with the heads of the single-task networks. reference: metrics of those networks. Statistics are
    re-estimated before each look; both passes are charged.
    """
    buffers = list(graph.network().buffers())
    kept = [buffer.clone() for buffer in buffers]
    gains = []
    for coefficient in GRID:
        write(along(start, direction, coefficient), body)
        re_estimate(trainer, graph)
        gains.append(gain(reference, judged(trainer, graph, "search")))
    for buffer, before in zip(buffers, kept, strict=True):
        buffer.copy_(before)
    return gains


def gain(reference: Metrics, metrics: Metrics) -> float:
    """`relative_change`; minus infinity where a metric that the reference has is missing, as of a prediction that is
    not finite: left out, it would count as no loss.
    """
    for task, scores in reference.items():
        if any(score.value is not None and metrics[task][name].value is None for name, score in scores.items()):
            return -math.inf
    change = relative_change(reference, metrics)
    return -math.inf if change is None else change


def best_of(gains: Sequence[float]) -> float:
    """The coefficient of the largest gain; of equal ones the smallest."""
    return GRID[gains.index(max(gains))]
