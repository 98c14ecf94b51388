"""Which tasks share: maximal cliques of the graph of similar tasks (dmo 2, step 6)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import networkx
import numpy as np
import torch

from datasets.errors import UsageError, unknown
from methods.dmo.parameters import CliqueOrder
from methods.dmo.similarity import FloatArray

Groups = tuple[tuple[int, ...], ...]


def task_graph_of(s: FloatArray, tau_sim: float) -> networkx.Graph:
    """Tasks as nodes, an edge where S > tau_sim, strictly (eq. 4). A similarity that is undefined is none."""
    graph = networkx.Graph()
    graph.add_nodes_from(range(len(s)))
    graph.add_edges_from((i, j) for i, j in itertools.combinations(range(len(s)), 2) if s[i, j] > tau_sim)
    return graph


def maximal_cliques(s: FloatArray, tau_sim: float, order: CliqueOrder = "size_then_mean") -> Groups:
    """All maximal cliques (Bron-Kerbosch) in the order in which they are visited: largest first, then by mean pairwise
    S. What is still equal goes by the numbers of its tasks: networkx promises no order.
    """

    def rank(clique: tuple[int, ...]) -> tuple[float, float, tuple[int, ...]]:
        pairs = [s[i, j] for i, j in itertools.combinations(clique, 2)]
        mean = float(np.mean(pairs)) if pairs and order == "size_then_mean" else 0.0
        return -len(clique), -mean, clique

    cliques = [tuple(sorted(clique)) for clique in networkx.find_cliques(task_graph_of(s, tau_sim))]
    return tuple(sorted(cliques, key=rank))


def groups_of(cliques: Groups) -> Groups:
    """Each clique in turn forms a group of those of its tasks that have none yet."""
    taken: set[int] = set()
    groups = []
    for clique in cliques:
        left = tuple(task for task in clique if task not in taken)
        taken.update(left)
        if left:
            groups.append(left)
    return tuple(groups)


def read_groups(given: Sequence[Sequence[str]], tasks: Sequence[str]) -> Groups:
    """A partition by names. Raises UsageError for a task that is not there, is named twice or is missing."""
    names = [name for group in given for name in group]
    for name in names:
        if name not in tasks:
            raise unknown("task in groups", name, tasks)
    if sorted(names) != sorted(tasks) or not all(given):
        raise UsageError(f"groups {[list(group) for group in given]} must hold each of {list(tasks)} once, none empty.")
    return tuple(tuple(sorted(tasks.index(name) for name in group)) for group in given)


def random_groups(groups: Groups, rng: torch.Generator) -> Groups:
    """Groups of the same sizes with tasks drawn at random."""
    drawn = iter(torch.randperm(sum(map(len, groups)), generator=rng).tolist())
    return tuple(tuple(sorted(itertools.islice(drawn, len(group)))) for group in groups)
