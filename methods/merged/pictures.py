"""Pictures of merging: where task vectors disagree, what each stage costs, and the grid of coefficients."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from methods.figures import Figure, Heatmap, Lines, Series
from methods.merged.disagreement import Disagreement, FloatArray, pair_names
from methods.merged.selection import GRID

_MOST_PAIRS = 10  # shown one by one; more are shown by their smallest, mean and largest


def disagreement_figure(found: Disagreement, tasks: tuple[str, ...]) -> Figure:
    """Cosines and opposite signs by pair and layer. Needs at least two tasks."""
    cosines = _panel(found, tasks, "direction of task vectors", "cosine", found.cosines, low=-1.0, high=1.0, centre=0.0)
    signs = _panel(
        found,
        tasks,
        "weights moved to different sides",
        "share with opposite signs",
        found.opposite,
        low=0.0,
        high=1.0,
        centre=0.5,
    )
    return Figure(title="Where the single-task weights that are merged disagree", panels=(cosines, signs))


def _panel(
    found: Disagreement,
    tasks: tuple[str, ...],
    title: str,
    value_title: str,
    values: FloatArray,
    *,
    low: float,
    high: float,
    centre: float,
) -> Heatmap:
    rows, shown = pair_names(tasks), values
    if len(rows) > _MOST_PAIRS:
        rows = [f"{word} of {len(rows)} pairs" for word in ("smallest", "mean", "largest")]
        shown = np.stack([_of_known(reduce, values) for reduce in (np.min, np.mean, np.max)])
    return Heatmap(
        title=title,
        rows=tuple(rows),
        columns=tuple(name.replace(".module.", ".") for name in found.layers),
        values=_cells(shown),
        row_title="pair of tasks",
        column_title="layer",
        value_title=value_title,
        low=low,
        high=high,
        centre=centre,
    )


def _of_known(reduce: object, values: FloatArray) -> FloatArray:
    """A reduction over pairs, of those that have a value: [P, L] -> [L]."""
    columns = [column[np.isfinite(column)] for column in values.T]
    return np.array([reduce(column) if len(column) else math.nan for column in columns])  # type: ignore[operator]


def _cells(values: FloatArray) -> tuple[tuple[float | None, ...], ...]:
    return tuple(tuple(float(value) if np.isfinite(value) else None for value in row) for row in values)


def changes_figure(changes: Mapping[str, Sequence[float | None]], tasks: Sequence[str]) -> Figure:
    """What is left of each single-task network after each stage. changes: {stage: percent of each task}."""
    panel = Heatmap(
        title="on select",
        rows=tuple(tasks),
        columns=tuple(changes),
        values=tuple(tuple(changes[stage][t] for stage in changes) for t in range(len(tasks))),
        row_title="task",
        column_title="after",
        value_title="gain over its own network, %",
        centre=0.0,
    )
    return Figure(title="What merging costs each task", panels=(panel,))


def coefficient_figure(gains: Sequence[float], chosen: float) -> Figure:
    """The grid of coefficients. gains: percent; infinite where a metric was missing."""
    points = [(x, y) for x, y in zip(GRID, gains, strict=True) if math.isfinite(y)]
    marks = tuple((x, y, f"lambda {x:g}") for x, y in points if x == chosen)
    panel = Lines(
        title="on select, with the heads of the single-task networks",
        series=(Series(label="mean over tasks", x=tuple(x for x, _ in points), y=tuple(y for _, y in points)),),
        x_title="coefficient lambda",
        y_title="relative gain over single tasks, %",
        marks=marks,
    )
    return Figure(title="Which coefficient was taken", panels=(panel,))
