"""What a run of pruning reports: how much is kept and where, and how far tasks agree."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from methods.contracts import Trainer
from methods.control import tell_deviation
from methods.figures import Figure, Heatmap
from methods.graph.task_graph import TaskGraph
from methods.pruned.parameters import PrunedParams
from methods.sparsity import fractions, kept_figure, n_kept, n_survivors, tell_counts

_MOST_IN_PAIRS = 6  # tasks; 15 rows of a picture


def tell(
    p: PrunedParams, trainer: Trainer, graph: TaskGraph, masks: Mapping[str, Tensor], overlap: Tensor | None
) -> None:
    """Report the network that is deployed. masks: M by name. overlap: int64 [tensors, T, T], weights that two tasks
    want in common (`saliency.overlaps`), or that they have grown in common; None where tasks have no say.
    """
    tasks, kept = trainer.data.task_names, list(masks.values())
    sizes = np.array([mask.numel() for mask in kept])
    n = int(sizes.sum())
    trainer.fact("density", 100 * n_kept(kept) / n, "percent")
    trainer.fact("weights kept", n_kept(kept))
    trainer.artifact("survivors", np.array([int(mask.sum()) for mask in kept]))  # int [tensors]
    rows: dict[str, Sequence[float]] = {}
    if overlap is not None:
        wanted = overlap.diagonal(dim1=1, dim2=2).numpy()  # [tensors, T]
        trainer.artifact("overlaps", overlap)
        if p.rule != "dynamic":
            for number, task in enumerate(tasks):
                trainer.fact(f"density of the set, {task}", 100 * int(wanted[:, number].sum()) / n, "percent")
                rows[task] = (wanted[:, number] / sizes).tolist()
        if len(tasks) > 1:
            what = "grown weights" if p.rule == "dynamic" else "sets"
            trainer.fact(f"agreement of {what}", 100 * _mean_agreement(overlap), "percent")
            trainer.figure("agreement", agreement_figure(overlap, tasks, list(masks), what))
    trainer.figure("kept", kept_figure("after training", {**rows, "all tasks": fractions(kept)}, list(masks)))
    if p.keep == "solved":
        target = n_survivors(p.density, n)
        sentence = "The number of weights kept is {} from the one asked for."
        tell_deviation(trainer, sentence, abs(n_kept(kept) - target) / target)
    tell_counts(trainer, [graph], [kept], trainer.backbone().config.in_chans)


def intersection_over_union(overlap: Tensor, i: int, j: int) -> Tensor:
    """|K_i and K_j| / |K_i or K_j|, float64 [...]; NaN where both are empty. overlap: int64 [..., T, T]."""
    both = overlap[..., i, j].double()
    return both / (overlap[..., i, i] + overlap[..., j, j] - both)


def _mean_agreement(overlap: Tensor) -> float:
    """Intersection over union of all weights, the mean over pairs of tasks that have any."""
    pairs = itertools.combinations(range(overlap.shape[-1]), 2)
    values = torch.stack([intersection_over_union(overlap.sum(0), i, j) for i, j in pairs])
    return float(values.nanmean())


def agreement_figure(overlap: Tensor, tasks: Sequence[str], layers: Sequence[str], what: str) -> Figure:
    """Intersection over union of the tasks' sets in each layer: of every two tasks, or of many tasks the mean over all
    others.
    """
    pairs = {(i, j): intersection_over_union(overlap, i, j) for i, j in itertools.combinations(range(len(tasks)), 2)}
    if len(tasks) <= _MOST_IN_PAIRS:
        rows = {f"{tasks[i]}, {tasks[j]}": values for (i, j), values in pairs.items()}
    else:
        rows = {
            f"{task}, others": torch.stack([values for pair, values in pairs.items() if t in pair]).nanmean(0)
            for t, task in enumerate(tasks)
        }
    panel = Heatmap(
        title=what,
        rows=tuple(rows),
        columns=tuple(layers),
        values=tuple(tuple(None if v != v else v for v in values.tolist()) for values in rows.values()),
        row_title="tasks",
        column_title="layer",
        value_title="intersection over union",
        low=0.0,
        high=1.0,
    )
    return Figure(title="How far tasks agree on the weights of each layer", panels=(panel,))
