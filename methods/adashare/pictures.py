"""Pictures of a search: the policy, its course, and how alike tasks are."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor

from methods.adashare.policy import Policy
from methods.figures import Figure, Heatmap, Lines, Series

_MAX_COLUMNS = 40  # of the course: more cycles are thinned out evenly, the first and the last stay


def policy_figure(tasks: Sequence[str], blocks: Sequence[int], alpha: Tensor, policy: Policy) -> Figure:
    """Execute probabilities alpha [K, L] with the drawn policy framed, and the similarity of tasks beside it.

    blocks: index of each unit's block in the backbone.
    """
    return Figure(
        title="AdaShare policy",
        panels=(
            Heatmap(
                title="Probability of executing a unit",
                rows=tuple(tasks),
                columns=tuple(str(block) for block in blocks),
                values=_rows(alpha),
                row_title="task",
                column_title="unit (block of the backbone)",
                value_title="P(execute)",
                low=0.0,
                high=1.0,
                centre=0.5,
                marks=tuple((k, unit) for k, row in enumerate(policy) for unit, executed in enumerate(row) if executed),
                mark_title="executed in the deployed network",
            ),
            Heatmap(
                title="Similarity of tasks",
                rows=tuple(tasks),
                columns=tuple(tasks),
                values=_rows(similarity(alpha)),
                row_title="task",
                column_title="task",
                value_title="1 - mean |difference of P(execute)|",
                low=0.0,
                high=1.0,
            ),
        ),
    )


def similarity(alpha: Tensor) -> Tensor:
    """1 - mean over units of |alpha_i - alpha_j|, float [K, K] in [0, 1], of alpha float [K, L]. Ours."""
    return 1 - (alpha[:, None] - alpha[None]).abs().mean(-1)


def agreement(policy: Policy) -> float:
    """Share of units on which a pair of tasks decides alike, mean over pairs; 1 for a single task."""
    pairs = list(itertools.combinations(policy, 2))
    equal = [sum(a == b for a, b in zip(*pair, strict=True)) / len(pair[0]) for pair in pairs]
    return sum(equal) / len(equal) if equal else 1.0


def course_figure(tasks: Sequence[str], blocks: Sequence[int], course: Tensor, taken: int) -> Figure:
    """Course of alpha [n_cycles + 1, K, L] over completed cycles, a panel a task, and the mean over units of each.

    taken: completed cycles of the policy that was drawn from; marked.
    """
    n = len(course)
    step = -(-n // _MAX_COLUMNS)
    shown = sorted({*range(0, n, step), n - 1})
    panels = [
        Heatmap(
            title=f"Course of {task}",
            rows=tuple(str(block) for block in blocks),
            columns=tuple(str(c) for c in shown),
            values=_rows(course[shown, k].T),
            row_title="unit (block of the backbone)",
            column_title="completed cycles",
            value_title="P(execute)",
            low=0.0,
            high=1.0,
            centre=0.5,
        )
        for k, task in enumerate(tasks)
    ]
    means = course.nanmean(-1)
    series = [_series(task, means[:, k]) for k, task in enumerate(tasks)]
    marks = tuple((float(taken), float(means[taken, k]), f"drawn from, {task}") for k, task in enumerate(tasks))
    lines = Lines(
        title="Mean over units",
        series=tuple(series),
        x_title="completed cycles",
        y_title="P(execute), mean over units",
        marks=marks if all(y == y for _, y, _ in marks) else (),
        low=0.0,
        high=1.0,
    )
    return Figure(title="Course of the AdaShare policy", panels=(*panels, lines))


def _rows(values: Tensor) -> tuple[tuple[float | None, ...], ...]:
    """A matrix as data; None where it is not a number."""
    return tuple(tuple(None if v != v else v for v in row) for row in values.tolist())


def _series(label: str, values: Tensor) -> Series:
    """One task's curve, without the cycles in which no step was made."""
    points = [(float(c), y) for c, y in enumerate(values.tolist()) if y == y]
    return Series(label=label, x=tuple(x for x, _ in points), y=tuple(y for _, y in points), group=label)
