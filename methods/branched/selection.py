"""Which tree: clustering cost, the exact front of cost over size, and the beam search for many tasks.

Source: branched 2.6 to 2.8. C_d(pi) = mean over the clusters of the largest pairwise dissimilarity inside; C(tree) is
the sum over segments. Costs are integers in units of 1e-12, the distance below which costs count as tied, so sums are
exact and a tie is a tie whatever the order of summation.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from datasets.errors import UsageError
from methods.branched.trees import (
    Partition,
    Tree,
    apart,
    canonical,
    coarsenings,
    refinements,
    set_partitions,
    together,
)

FloatArray = npt.NDArray[np.float64]
ClusterCost = Literal["mean_max", "sum_max", "mean_mean"]
LocationSemantics = Literal["own_segment", "next_segment"]
Candidates = Literal["spectral", "all"]

COST_UNIT = 1e-12
MOST_TASKS_EXHAUSTIVE = 8  # 4,140 partitions; with nine tasks the front takes hours
KMEANS_STARTS = 4


def partition_cost(delta: FloatArray, partition: Partition, kind: ClusterCost = "mean_max") -> float:
    """C_d of one partition. delta: float [N, N] dissimilarities; a cluster of one task costs 0."""
    reduce = np.mean if kind == "mean_mean" else np.max
    inside = [
        float(reduce([delta[i, j] for i, j in itertools.combinations(cluster, 2)])) if len(cluster) > 1 else 0.0
        for cluster in partition
    ]
    return sum(inside) if kind == "sum_max" else sum(inside) / len(inside)


@dataclasses.dataclass(frozen=True)
class Problem:
    """The criterion of a choice. score: (segment, partition) -> what it adds to the cost. per_copy: P_d or M_d.

    constant: size that every tree has. n_shared: first segments that may not branch; they cost nothing.
    """

    score: Callable[[int, Partition], float]
    per_copy: tuple[int, ...]
    constant: int
    n_tasks: int
    n_shared: int = 0

    def cost(self, segment: int, partition: Partition) -> int:
        """In units of 1e-12."""
        return 0 if segment < self.n_shared else round(self.score(segment, partition) / COST_UNIT)


def affinity_problem(
    affinities: FloatArray,
    per_copy: Sequence[int],
    constant: int,
    semantics: LocationSemantics = "own_segment",
    kind: ClusterCost = "mean_max",
) -> Problem:
    """The choice that affinities A [D, N, N] pose.

    own_segment: A[d] judges which tasks share segment d. next_segment: it judges segment d + 1; the first segment
    is always shared and the last affinity unused.
    """
    delta = 1 - affinities
    shift = 0 if semantics == "own_segment" else 1

    def score(segment: int, partition: Partition) -> float:
        return partition_cost(delta[segment - shift], partition, kind)

    return Problem(score, tuple(per_copy), constant, affinities.shape[1], n_shared=shift)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A tree with its size (parameters or MACs) and its clustering cost in units of 1e-12."""

    size: int
    cost: int
    tree: Tree

    @property
    def clustering_cost(self) -> float:
        """C(tree)."""
        return self.cost * COST_UNIT


def within(front: Sequence[Candidate], budget: int) -> Candidate:
    """The cheapest tree whose size is at most the budget. Raises UsageError where there is none."""
    fitting = [candidate for candidate in front if candidate.size <= budget]
    if not fitting:
        smallest = min((candidate.size for candidate in front), default=0)
        raise UsageError(f"No tree has a size of at most {budget:,}; the smallest has {smallest:,}.")
    return min(fitting, key=lambda candidate: (candidate.cost, candidate.size, candidate.tree))


def _front(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that no other beats in size and cost, by size; of equal ones the lexicographically smallest tree."""
    kept: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda c: (c.size, c.cost, c.tree)):
        if not kept or candidate.cost < kept[-1].cost:
            kept.append(candidate)
    return kept


def exhaustive_front(posed: Problem) -> list[Candidate]:
    """The best tree for every budget, exactly: ascending in size, descending in cost.

    Dynamic programming over (segment, partition), keeping the front of each: size and cost are sums over segments and
    what may follow depends on the last partition alone. Raises UsageError for more than 8 tasks.
    """
    if posed.n_tasks > MOST_TASKS_EXHAUSTIVE:
        raise UsageError(
            f"search: exhaustive takes up to {MOST_TASKS_EXHAUSTIVE} tasks, not {posed.n_tasks}; use search: beam."
        )
    partitions = [canonical(p) for p in set_partitions(posed.n_tasks)]
    finer = {partition: refinements(partition) for partition in partitions}
    root = together(posed.n_tasks)
    states: dict[Partition, list[Candidate]] = {root: [Candidate(posed.constant, 0, ())]}
    for segment, one in enumerate(posed.per_copy):
        costs = {p: posed.cost(segment, p) for p in (partitions if segment >= posed.n_shared else [root])}
        reached: dict[Partition, list[Candidate]] = {}
        for partition, front in states.items():
            for child in finer[partition]:
                if child in costs:
                    reached.setdefault(child, []).extend(front)
        states = {
            child: [
                Candidate(c.size + len(child) * one, c.cost + costs[child], (*c.tree, child)) for c in _front(parents)
            ]
            for child, parents in reached.items()
        }
    return _front([candidate for front in states.values() for candidate in front])


# Beam search


@dataclasses.dataclass(frozen=True)
class Beam:
    """width: partial trees kept. candidates: partitions by spectral clustering, or every coarsening (for tests).

    seed: of the clustering.
    """

    width: int = 10
    candidates: Candidates = "spectral"
    seed: int = 0


def beam_front(posed: Problem, affinities: FloatArray, budget: int, beam: Beam) -> list[Candidate]:
    """Trees within the budget from the deepest segment to the shallowest, the best first; not promised to be optimal.

    affinities: [D, N, N] as measured; W_d = clip of their symmetric part to [0, 1]. A partial tree is dropped where it
    would exceed the budget with all shallower segments shared. Raises UsageError where nothing fits.
    """
    weights = np.clip((affinities + affinities.transpose(0, 2, 1)) / 2, 0, 1)
    states = [Candidate(posed.constant, 0, ())]
    for segment in reversed(range(len(posed.per_copy))):
        rest = sum(posed.per_copy[:segment])
        grown: dict[Tree, Candidate] = {}
        for state in states:
            items = state.tree[0] if state.tree else apart(posed.n_tasks)
            for partition in _candidates(posed, segment, items, weights[max(segment - posed.n_shared, 0)], beam):
                size = state.size + len(partition) * posed.per_copy[segment]
                if size + rest <= budget:
                    tree = (partition, *state.tree)
                    grown[tree] = Candidate(size, state.cost + posed.cost(segment, partition), tree)
        if not grown:
            raise UsageError(f"The beam search found no tree of size at most {budget:,}; widen beam_width.")
        states = sorted(grown.values(), key=lambda c: (c.cost, c.size, c.tree))[: beam.width]
    return states


def _candidates(posed: Problem, segment: int, items: Partition, weights: FloatArray, beam: Beam) -> list[Partition]:
    """Coarsenings of the items that are tried at a segment."""
    if segment < posed.n_shared:
        return [together(posed.n_tasks)]
    if beam.candidates == "all":
        return coarsenings(items)
    similarity = np.array([[weights[np.ix_(one, other)].mean() for other in items] for one in items])
    groups = spectral_groups(similarity, beam.seed)
    found = {
        canonical(itertools.chain(*(items[k] for k in np.flatnonzero(labels == label))) for label in set(labels))
        for labels in groups
    }
    return sorted(found)


def spectral_groups(similarity: FloatArray, seed: int) -> list[npt.NDArray[np.int64]]:
    """For m = 1 .. M groups a label per item, by normalised spectral clustering: one eigendecomposition, then k-means.

    similarity: float [M, M], symmetric, not negative. Fewer than m groups may come back where items coincide.
    """
    n_items = len(similarity)
    ends = [np.zeros(n_items, dtype=np.int64), np.arange(n_items, dtype=np.int64)]
    if n_items <= 2:
        return ends[:n_items]
    off_diagonal = similarity * (1 - np.eye(n_items))
    degree = off_diagonal.sum(1)
    scale = 1 / np.sqrt(np.where(degree > 0, degree, 1.0))  # an item without any similarity stands alone
    _, vectors = np.linalg.eigh(scale[:, None] * off_diagonal * scale)
    leading = vectors[:, ::-1] * scale[:, None]  # largest eigenvalues first: the smoothest on the graph
    found = [_k_means(leading[:, :m], m, seed) for m in range(2, n_items)]
    return [ends[0], *found, ends[1]]


def _k_means(points: FloatArray, n_groups: int, seed: int) -> npt.NDArray[np.int64]:
    import warnings

    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct points than groups: fewer groups, then
        labels = KMeans(n_groups, n_init=KMEANS_STARTS, random_state=seed).fit_predict(points)
    return np.asarray(labels, dtype=np.int64)
