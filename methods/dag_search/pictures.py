"""Pictures of a search: the found topology, the paths of the gates, overlap and shape of the tasks' networks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from methods.dag_search.flow import BoolArray, FloatArray, FlowGraph, SubDagShape
from methods.dag_search.space import DagSpace, edge_name
from methods.figures import Edge, Figure, Heatmap, Layered, Lines, Series, State


def topology(space: DagSpace, labels: Sequence[str], tasks: Sequence[str], kept: Sequence[BoolArray],
             flow: Sequence[FloatArray]) -> Figure:  # fmt: skip
    """States in order with the edges that tasks keep. labels: of the states; flow: F of every edge, a row a task."""
    n = space.graph.n_states
    drawn = []
    for e, (source, target) in enumerate(space.graph.edges):
        users = [k for k in range(len(tasks)) if kept[k][e]]
        role = "inner" if space.graph.is_inner[e] else "read-in" if source == 0 else "read-out"
        drawn.append(
            Edge(
                source=max(source - 1, 0),
                target=min(target, n) - 1,
                tasks=tuple(tasks[k] for k in users),
                role=role,  # type: ignore[arg-type]
                weight=float(np.clip(np.mean([flow[k][e] for k in users]), 0.0, 1.0)) if users else None,
            )
        )
    states = tuple(State(name=f"v{i}", label=label) for i, label in enumerate(labels, start=1))
    panel = Layered(title="Kept edges", tasks=tuple(tasks), states=states, edges=tuple(drawn))
    return Figure(title="Found architecture", panels=(panel,))


def gate_paths(graph: FlowGraph, tasks: Sequence[str], path: FloatArray) -> Figure:
    """sigma of every gate over the search, a panel a task. path: [cycles + 1, K, edges]."""
    cycles = tuple(float(cycle) for cycle in range(len(path)))
    groups = {True: "inner edges", False: "reads"}
    panels = []
    for k, task in enumerate(tasks):
        series = tuple(
            Series(
                label=edge_name(edge, graph.n_states),
                x=cycles,
                y=tuple(map(float, path[:, k, e])),
                group=groups[bool(graph.is_inner[e])],
            )
            for e, edge in enumerate(graph.edges)
        )
        panels.append(Lines(title=task, series=series, x_title="cycle", y_title="gate, sigma", low=0.0, high=1.0))
    return Figure(title="Gates over the search", panels=tuple(panels))


def overlap(tasks: Sequence[str], kept: Sequence[BoolArray]) -> Figure:
    """Share of edges that two tasks have in common (Jaccard), of all their edges."""
    values = tuple(tuple(jaccard(a, b) for b in kept) for a in kept)
    panel = Heatmap(title="Edges in common", rows=tuple(tasks), columns=tuple(tasks), values=values, low=0.0, high=1.0,
                    value_title="Jaccard index")  # fmt: skip
    return Figure(title="Overlap between tasks", panels=(panel,))


def shapes_of_tasks(tasks: Sequence[str], shapes: Sequence[SubDagShape]) -> Figure:
    """Depth, width, density and sparsity of every task's sub-DAG."""
    counts = tuple((float(shape.depth), float(shape.width)) for shape in shapes)
    shares = tuple((shape.density, shape.sparsity) for shape in shapes)
    panels = (
        Heatmap(title="Depth and width", rows=tuple(tasks), columns=("depth", "width"), values=counts, low=0.0,
                value_title="inner edges"),
        Heatmap(title="Density and sparsity", rows=tuple(tasks), columns=("density", "sparsity"), values=shares,
                low=0.0, high=1.0, value_title="share of edges"),
    )  # fmt: skip
    return Figure(title="Shape of each task's network", panels=panels)


def jaccard(a: BoolArray, b: BoolArray) -> float:
    """Share of the edges of either that both have; 1 where neither has one."""
    either = int(np.count_nonzero(a | b))
    return int(np.count_nonzero(a & b)) / either if either else 1.0
