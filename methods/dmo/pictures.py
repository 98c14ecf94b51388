"""Pictures of DMO: similarities, groups, and the kept share of each layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from methods.dmo.grouping import Groups
from methods.dmo.similarity import FloatArray, pairs_of
from methods.figures import Branch, Figure, Heatmap, Tree


def similarity_figure(matrices: Mapping[str, FloatArray], groups: Groups, tasks: Sequence[str]) -> Figure:
    """A heatmap for each matrix; framed: pairs that share a network."""
    marks = tuple((i, j) for group in groups for i in group for j in group if i != j)
    panels = tuple(
        Heatmap(
            title=_with_range(name, values),
            rows=tuple(tasks),
            columns=tuple(tasks),
            values=tuple(tuple(float(v) if np.isfinite(v) else None for v in row) for row in values),
            row_title="task",
            column_title="task",
            value_title="correlation",
            low=-1.0,
            high=1.0,
            centre=0.0,
            marks=marks,
            mark_title="share a network",
        )
        for name, values in matrices.items()
    )
    return Figure(title="How similar single-task networks are", panels=panels)


def _with_range(name: str, values: FloatArray) -> str:
    """The name with the smallest and largest value of a pair: what looks alike in colours may not be."""
    pairs = pairs_of(values)
    pairs = pairs[np.isfinite(pairs)]
    return f"{name}, {pairs.min():.4f} to {pairs.max():.4f}" if len(pairs) else name


def groups_figure(groups: Groups, nonzero: Sequence[int], heads: Sequence[int], tasks: Sequence[str]) -> Figure:
    """Which tasks share a network. nonzero: parameters of each group's backbone that are not zero; heads: of each
    task's head.
    """
    members = [tuple(tasks[t] for t in group) for group in groups]
    networks = tuple(Branch(tasks=names, parent=0, parameters=n) for names, n in zip(members, nonzero, strict=True))
    ends = tuple(
        Branch(tasks=(tasks[t],), parent=number, parameters=heads[t])
        for number, group in enumerate(groups)
        for t in group
    )
    image = (Branch(tasks=tuple(name for names in members for name in names), parent=None, parameters=0),)
    panel = Tree(
        title="parameters that are not zero",
        levels=(("images", image), ("sparse backbones", networks), ("heads", ends)),
    )
    return Figure(title="Groups of tasks, each with a sparse network", panels=(panel,))
