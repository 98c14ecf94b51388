"""How much the towers read of each other, as numbers and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from methods.contracts import Trainer
from methods.figures import Figure, Heatmap

if TYPE_CHECKING:
    from torch import Tensor


def reads_panel(title: str, values: Tensor, names: Sequence[str], value_title: str) -> Heatmap:
    """How much each task reads of each task at one place. values: [readers, sources]."""
    return Heatmap(
        title=title,
        rows=tuple(names),
        columns=tuple(names),
        values=tuple(tuple(map(float, row)) for row in values.tolist()),
        row_title="the task that reads",
        column_title="what it reads",
        value_title=value_title,
        low=0.0,
    )


def tell_reads(trainer: Trainer, title: str, reads: Mapping[str, Tensor], names: Sequence[str], unit: str) -> None:
    """A picture, and the share that tasks read of others. reads: {place: magnitudes [readers, sources], >= 0}, where
    rows and columns of one task are neighbours of equal number.
    """
    panels = tuple(reads_panel(f"after {place}", values, names, unit) for place, values in reads.items())
    trainer.figure("reads", Figure(title=title, panels=panels))
    n_tasks = len(trainer.data.tasks)
    shares = [1 - _own(values, n_tasks) / float(values.sum()) for values in reads.values() if float(values.sum()) > 0]
    trainer.fact("read from other tasks", 100 * sum(shares) / len(shares) if shares else None, "percent")


def _own(values: Tensor, n_tasks: int) -> float:
    """The sum over the blocks on the diagonal."""
    blocks = values.unflatten(0, (n_tasks, -1)).unflatten(2, (n_tasks, -1))  # [T, s, T, s]
    return float(blocks.diagonal(dim1=0, dim2=2).sum())


def stage_heatmap(title: str, values: Tensor, tasks: Sequence[str], stages: Sequence[str], value_title: str) -> Heatmap:
    """A number for every task and stage. values: [T, L]."""
    return Heatmap(
        title=title,
        rows=tuple(tasks),
        columns=tuple(stages),
        values=tuple(tuple(map(float, row)) for row in values.tolist()),
        row_title="task",
        column_title="stage",
        value_title=value_title,
    )
