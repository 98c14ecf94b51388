"""What a run of DMO reports: the log that dmo 4 requires, as facts, artifacts and pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from methods.contracts import Trainer
from methods.dmo.grouping import Groups, groups_of, maximal_cliques, task_graph_of
from methods.dmo.parameters import DmoParams
from methods.dmo.pictures import groups_figure
from methods.dmo.similarity import FloatArray, combined, pairs_of, resolved_threshold
from methods.graph.task_graph import TaskGraph
from methods.sparsity import Masks, fractions, kept_figure, n_kept, n_nonzero, tell_counts

_ALIKE = 0.01  # similarities within this of each other rank noise
_WORDS = {"S_W": "weight similarity", "S_L": "loss similarity", "S": "similarity"}


def tell_similarity(trainer: Trainer, matrices: Mapping[str, FloatArray], params: DmoParams) -> None:
    """Matrices with the spread of each, and what makes groups doubtful."""
    for name, matrix in matrices.items():
        trainer.artifact(name, matrix)  # float64 [T, T]
        values = pairs_of(matrix)
        undefined = int(np.isnan(values).sum())
        if undefined:
            trainer.flag(f"{undefined} pairs of tasks have no {_WORDS[name]} (a constant curve); it counts as 0.")
        values = values[np.isfinite(values)]
        for label, value in zip(("minimum", "median", "maximum"), spread(values), strict=True):
            trainer.fact(f"{_WORDS[name]}, {label}", value)
        if name == "S" and len(values) > 1 and np.ptp(values) < _ALIKE:
            trainer.flag(f"All similarities lie within {np.ptp(values):.2g} of each other: the groups rank noise.")
    if isinstance(params.threshold, str) and len(trainer.data.tasks) == 2:
        trainer.flag(
            f"tau_sim is {params.threshold!r} with two tasks, which puts no tasks into one group; set a number."
        )


def tell_cliques(
    trainer: Trainer, matrices: Mapping[str, FloatArray], tau_sim: float, cliques: Groups, params: DmoParams
) -> None:
    """The graph of tasks, its cliques in the order of the visit, and how many groups S_W or S_L alone would give."""
    n_tasks = len(trainer.data.tasks)
    known = np.nan_to_num(matrices["S"], nan=0.0)
    trainer.fact("tau_sim", tau_sim)
    trainer.fact("edges", task_graph_of(known, tau_sim).number_of_edges(), f"of {math.comb(n_tasks, 2)}")
    trainer.fact("maximal cliques", len(cliques))
    trainer.artifact("cliques", np.array([[t in clique for t in range(n_tasks)] for clique in cliques]))
    for alpha in (0.0, 1.0):
        other = np.nan_to_num(combined(matrices["S_W"], matrices["S_L"], alpha), nan=0.0)
        found = groups_of(maximal_cliques(other, resolved_threshold(other, params.threshold), params.clique_order))
        trainer.fact(f"groups at alpha {alpha:g}", len(found))


def tell_groups(
    trainer: Trainer, groups: Groups, graphs: Sequence[TaskGraph], kept: Sequence[Masks], in_chans: int
) -> None:
    """Report the groups, with stored and with nonzero parameters (dmo 5). kept: masks of the groups."""
    tasks = trainer.data.task_names
    trainer.chosen("+".join(tasks[t] for t in group) for group in groups)
    trainer.fact("groups", len(groups))
    tell_counts(trainer, graphs, kept, in_chans)
    nonzero = [n_nonzero(graph, masks) for graph, masks in zip(graphs, kept, strict=True)]
    heads = {
        task: sum(p.numel() for p in graph.nodes[graph.outputs[task].name].module.parameters())
        for graph in graphs
        for task in graph.tasks
    }
    backbones = [n - sum(heads[task] for task in graph.tasks) for n, graph in zip(nonzero, graphs, strict=True)]
    trainer.figure("groups", groups_figure(groups, backbones, [heads[task] for task in tasks], tasks))


def tell_kept(
    trainer: Trainer, groups: Groups, pruned: Sequence[Masks], kept: Sequence[Masks], layers: Sequence[str]
) -> None:
    """The kept fraction of every layer, of each task and of each group. pruned, kept: masks by task and by group."""
    tasks = trainer.data.task_names
    rows = {task: fractions(masks) for task, masks in zip(tasks, pruned, strict=True)}
    for group, masks in zip(groups, kept, strict=True):
        rows[f"group {'+'.join(tasks[t] for t in group)}"] = fractions(masks)
    trainer.fact("weights kept in groups", sum(map(n_kept, kept)))
    trainer.artifact("group survivors", np.array([[int(mask.sum()) for mask in masks] for masks in kept]))
    trainer.figure("kept", kept_figure("tasks, then groups", rows, layers))


def spread(values: FloatArray) -> tuple[float | None, float | None, float | None]:
    """(minimum, median, maximum), None of nothing."""
    if not len(values):
        return None, None, None
    return float(values.min()), float(np.median(values)), float(values.max())
