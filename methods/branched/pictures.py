"""Pictures and numbers of a tree: the same for every method that ends in one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from methods.branched.segments import Segments, SizeBudget
from methods.branched.selection import Candidate, FloatArray
from methods.branched.trees import Tree, labels_of
from methods.contracts import Trainer
from methods.figures import Branch, Figure, Heatmap, Lines, Series
from methods.figures import Tree as TreePanel

if TYPE_CHECKING:
    from torch import Tensor

    from methods.graph.task_graph import TaskGraph


def tree_picture(tree: Tree, segments: Segments, tasks: Sequence[str], heads: Sequence[int]) -> Figure:
    """The dendrogram from the image to the heads, with the parameters of every node. heads: parameters of each."""
    levels: list[tuple[str, tuple[Branch, ...]]] = [
        ("stem", (Branch(tasks=tuple(tasks), parent=None, parameters=segments.stem_parameters),))
    ]
    above = (0,) * len(tasks)
    for name, partition, parameters in zip(segments.names, tree, segments.parameters, strict=True):
        branches = tuple(
            Branch(tasks=tuple(tasks[t] for t in cluster), parent=above[cluster[0]], parameters=parameters)
            for cluster in partition
        )
        levels.append((name, branches))
        above = labels_of(partition)
    paths = list(zip(*map(labels_of, tree), strict=True))
    side_by_side = sorted(range(len(tasks)), key=paths.__getitem__)  # else a shared node lies on a task that it has not
    ends = tuple(Branch(tasks=(tasks[t],), parent=above[t], parameters=heads[t]) for t in side_by_side)
    levels.append(("heads", ends))
    panel = TreePanel(title="from the image to the heads", levels=tuple(levels))
    return Figure(title="The tree: who shares which segment", panels=(panel,))


def affinity_picture(affinities: FloatArray, tree: Tree, segments: Segments, tasks: Sequence[str]) -> Figure:
    """A heatmap per location; framed: pairs of tasks that share the segment which ends there."""
    panels = []
    for name, values, partition in zip(segments.names, affinities, tree, strict=True):
        labels = labels_of(partition)
        marks = tuple((i, j) for i in range(len(tasks)) for j in range(len(tasks)) if i != j and labels[i] == labels[j])
        panels.append(
            Heatmap(
                title=f"after {name}",
                rows=tuple(tasks),
                columns=tuple(tasks),
                values=tuple(tuple(float(value) for value in row) for row in values),
                row_title="task",
                column_title="task",
                value_title="affinity (Spearman's rho of dissimilarities)",
                low=-1.0,
                high=1.0,
                centre=0.0,
                marks=marks,
                mark_title="share this segment in the chosen tree",
            )
        )
    return Figure(title="Task affinity by representation similarity", panels=tuple(panels))


def budget_picture(
    front: Sequence[Candidate], chosen: Candidate, segments: Segments, budget: SizeBudget, exact: bool
) -> Figure:
    """The cheapest tree for every budget; the one that was taken is named."""
    reference = segments.reference(budget.unit)
    points = sorted({(candidate.size / reference, candidate.clustering_cost) for candidate in front})
    unit = "parameters" if budget.unit == "params" else "MACs"
    panel = Lines(
        title="Pareto front of all trees" if exact else "trees that the beam search kept",
        series=(Series(label="trees", x=tuple(x for x, _ in points), y=tuple(y for _, y in points)),),
        x_title=f"{unit} of the encoder, x the plain backbone",
        y_title="clustering cost",
        points=True,
        marks=((chosen.size / reference, chosen.clustering_cost, f"taken at budget {budget.relative:.2f}"),),
        low=0.0,
    )
    return Figure(title="From one affinity computation: a tree for every budget", panels=(panel,))


def tell_tree(trainer: Trainer, tree: Tree, segments: Segments, graph: TaskGraph, was_chosen: bool) -> None:
    """Picture, artifact and numbers of the deployed tree; its copies by name where it was not given."""
    tasks = trainer.data.task_names
    nodes = [graph.nodes[graph.outputs[task].name] for task in tasks]
    heads = [sum(p.numel() for p in node.module.parameters()) for node in nodes]
    trainer.figure("tree", tree_picture(tree, segments, tasks, heads))
    trainer.artifact("tree", np.array([labels_of(partition) for partition in tree], dtype=np.int64))
    trainer.fact("encoder size", segments.size(tree) / segments.reference("params"), "x plain backbone")
    if trainer.data.domains == "single":  # tasks with images of their own never compute together
        trainer.fact("encoder compute", segments.size(tree, "macs") / segments.reference("macs"), "x plain backbone")
    trainer.fact("copies of segments", sum(map(len, tree)), "")
    if was_chosen:
        trainer.chosen(chosen_names(tree, segments.names, tasks))


def chosen_names(tree: Tree, segments: Sequence[str], tasks: Sequence[str]) -> list[str]:
    """A name for every copy: the segment and the tasks that share it."""
    return [
        f"{name}: {'+'.join(tasks[t] for t in cluster)}"
        for name, partition in zip(segments, tree, strict=True)
        for cluster in partition
    ]


def tell_choices(
    trainer: Trainer,
    levels: Sequence[str],
    probabilities: Sequence[Tensor],
    rows: Sequence[str],
    row_title: str,
    column_title: str,
) -> None:
    """A heatmap per level: which row chooses which column. Framed: the most probable one, the first on ties."""
    panels = []
    for level, values in zip(levels, probabilities, strict=True):
        array = values.detach().cpu().double().numpy()
        names = tuple(rows) if len(rows) == len(array) else tuple(str(number) for number in range(len(array)))
        panels.append(
            Heatmap(
                title=level,
                rows=names,
                columns=tuple(str(number) for number in range(array.shape[1])),
                values=tuple(tuple(map(float, row)) for row in array),
                row_title=row_title,
                column_title=column_title,
                value_title="probability",
                low=0.0,
                high=1.0,
                marks=tuple((number, int(np.argmax(row))) for number, row in enumerate(array)),
                mark_title="chosen",
            )
        )
    trainer.figure("choices", Figure(title=f"Which {column_title} each {row_title} chooses", panels=tuple(panels)))
