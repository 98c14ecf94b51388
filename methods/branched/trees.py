"""Trees over segments: chains of task partitions, each a refinement of the one before. Source: branched 2.6.

pi_d says which tasks share segment d; pi_1 coarsest, pi_D finest. A partition is canonical: tasks ascending in their
clusters, clusters ascending by their first task, so equal partitions are equal tuples and have one order.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Sequence

from datasets.errors import UsageError

Partition = tuple[tuple[int, ...], ...]
Tree = tuple[Partition, ...]
Labels = tuple[tuple[int, ...], ...]


def canonical(clusters: Iterable[Iterable[int]]) -> Partition:
    """The partition in its canonical form."""
    return tuple(sorted(tuple(sorted(cluster)) for cluster in clusters))


def together(n_tasks: int) -> Partition:
    """The partition with one cluster: everything is shared."""
    return (tuple(range(n_tasks)),)


def apart(n_tasks: int) -> Partition:
    """The partition into single tasks: nothing is shared."""
    return tuple((task,) for task in range(n_tasks))


def of_labels(labels: Sequence[int]) -> Partition:
    """Tasks with equal labels in one cluster. labels: one per task."""
    clusters: dict[int, list[int]] = {}
    for task, label in enumerate(labels):
        clusters.setdefault(label, []).append(task)
    return canonical(clusters.values())


def labels_of(partition: Partition) -> tuple[int, ...]:
    """For each task the number of its cluster."""
    numbers = {task: number for number, cluster in enumerate(partition) for task in cluster}
    return tuple(numbers[task] for task in range(len(numbers)))


@functools.lru_cache(maxsize=32)
def set_partitions(n: int) -> tuple[Partition, ...]:
    """All partitions of 0 .. n - 1 in canonical form: 1, 2, 5, 15, 52, 203, ... of them."""
    if n == 0:
        return ((),)
    found = []
    for smaller in set_partitions(n - 1):
        found.append((*smaller, (n - 1,)))
        for number, cluster in enumerate(smaller):
            found.append((*smaller[:number], (*cluster, n - 1), *smaller[number + 1 :]))
    return tuple(found)


def coarsenings(partition: Partition) -> list[Partition]:
    """All partitions of which this one is a refinement, itself among them."""
    merged = set_partitions(len(partition))
    return [canonical(itertools.chain(*(partition[item] for item in group)) for group in groups) for groups in merged]


def refinements(partition: Partition) -> list[Partition]:
    """All refinements of this partition, itself among them."""
    choices = [
        [tuple(tuple(cluster[item] for item in part) for part in parts) for parts in set_partitions(len(cluster))]
        for cluster in partition
    ]
    return [canonical(itertools.chain(*choice)) for choice in itertools.product(*choices)]


def is_refinement(fine: Partition, coarse: Partition) -> bool:
    """Whether every cluster of `fine` lies in one of `coarse`."""
    where = labels_of(coarse)
    return all(len({where[task] for task in cluster}) == 1 for cluster in fine)


def nested(groupings: Iterable[Partition]) -> Tree:
    """pi_l = {c & a : c in grouping l, a in pi_(l-1)}, pi_0 = {all}: a later re-merge is undone. Source: branching
    search 2.5.
    """
    tree: list[Partition] = []
    for grouping in groupings:
        above = labels_of(tree[-1]) if tree else (0,) * sum(map(len, grouping))
        own = labels_of(grouping)
        codes = [above[task] * len(own) + own[task] for task in range(len(own))]
        tree.append(of_labels(codes))
    return tuple(tree)


def read_tree(rows: Labels, n_tasks: int, n_segments: int) -> Tree:
    """The tree of a `fixed_tree`: one row per segment, in it the number of each task's copy.

    Raises UsageError where the shape is another, or where tasks that have parted share a later segment.
    """
    if len(rows) != n_segments or any(len(row) != n_tasks for row in rows):
        shape = f"{len(rows)} rows of {sorted({len(row) for row in rows})} labels"
        raise UsageError(
            f"fixed_tree has {shape}; expected one row for each of {n_segments} segments, with a label for each of "
            f"{n_tasks} tasks."
        )
    tree = tuple(of_labels(row) for row in rows)
    for number, (coarse, fine) in enumerate(itertools.pairwise(tree), start=2):
        if not is_refinement(fine, coarse):
            raise UsageError(
                f"fixed_tree joins tasks in row {number} that row {number - 1} has parted; each row must refine the "
                f"one before. Nearest: {[list(labels_of(partition)) for partition in nested(tree)]}."
            )
    return tree
