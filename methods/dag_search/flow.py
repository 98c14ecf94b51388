"""Flow-based reduction: from gates in (0, 1) to the edges that a task keeps. Specification section 7.

One task at a time. Its graph has a source s, the states 1..N and a sink t: read-ins s -> i with weight sigma(alpha_i),
inner edges i -> j with sigma(gamma_ij), read-outs i -> t with sigma(beta_i). Edges are in that order everywhere.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from datasets.errors import UsageError

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
Edge = tuple[int, int]


def flow_edges(n_states: int, flow_constant: int) -> tuple[Edge, ...]:
    """E = {(i, j): 1 <= j - i <= M} over states 1..N, by source, then target; M (2N - M - 1) / 2 of them."""
    return tuple((i, j) for i in range(1, n_states + 1) for j in range(i + 1, min(n_states, i + flow_constant) + 1))


@dataclasses.dataclass(frozen=True)
class FlowGraph:
    """The edges of a task's graph. Node 0 is s, nodes 1..N the states, node N + 1 is t."""

    n_states: int
    inner: tuple[Edge, ...]

    @property
    def sink(self) -> int:
        """t."""
        return self.n_states + 1

    @functools.cached_property
    def edges(self) -> tuple[Edge, ...]:
        """Read-ins, inner edges, read-outs."""
        states = range(1, self.n_states + 1)
        return (*((0, i) for i in states), *self.inner, *((i, self.sink) for i in states))

    @functools.cached_property
    def is_inner(self) -> BoolArray:
        """Which edges are inner ones."""
        return np.array([source != 0 and target != self.sink for source, target in self.edges])

    @functools.cached_property
    def is_read_in(self) -> BoolArray:
        """Which edges are read-ins."""
        return np.array([source == 0 for source, _ in self.edges])

    @functools.cached_property
    def is_read_out(self) -> BoolArray:
        """Which edges are read-outs."""
        return np.array([target == self.sink for _, target in self.edges])

    @functools.cached_property
    def _forward_order(self) -> tuple[int, ...]:
        return tuple(sorted(range(len(self.edges)), key=lambda e: self.edges[e]))

    @functools.cached_property
    def _backward_order(self) -> tuple[int, ...]:
        return tuple(sorted(range(len(self.edges)), key=lambda e: (-self.edges[e][1], -self.edges[e][0])))

    def live(self, kept: Sequence[bool] | BoolArray) -> BoolArray:
        """The kept edges that lie on a path from s to t."""
        kept = list(kept)
        reached, reaching = [False] * (self.sink + 1), [False] * (self.sink + 1)
        reached[0] = reaching[self.sink] = True
        for e in self._forward_order:
            source, target = self.edges[e]
            if kept[e] and reached[source]:
                reached[target] = True
        for e in self._backward_order:
            source, target = self.edges[e]
            if kept[e] and reaching[target]:
                reaching[source] = True
        return np.array([k and reached[u] and reaching[w] for k, (u, w) in zip(kept, self.edges, strict=True)])

    def n_inner(self, kept: BoolArray) -> int:
        """Number of kept inner edges."""
        return int(np.count_nonzero(kept & self.is_inner))

    def counts(self, kept: BoolArray) -> tuple[int, int, int]:
        """Kept inner edges, read-ins and read-outs."""
        return tuple(int(np.count_nonzero(kept & part)) for part in (self.is_inner, self.is_read_in, self.is_read_out))  # type: ignore[return-value]


# Scores: x is the weight of every edge, 0 for an edge that does not exist


def contribution(graph: FlowGraph, x: FloatArray) -> FloatArray:
    """F(u -> w) = share(u -> w) c(w) with share(u -> w) = x_uw / sum_p x_pw, c(t) = 1, c(u) = sum_w share(u -> w) c(w).

    A unit flow that is conserved at every state: the part of the task's output that came through the edge.
    """
    entering = _sums(graph, x, end=1)
    c = np.zeros(graph.sink + 1)
    c[graph.sink] = 1.0
    flow = np.zeros(len(x))
    for e in graph._backward_order:
        source, target = graph.edges[e]
        share = x[e] / entering[target] if entering[target] > 0 else 0.0
        flow[e] = share * c[target]
        c[source] += flow[e]
    return flow


def ratio(graph: FlowGraph, x: FloatArray) -> FloatArray:
    """(share of what enters w) x (share of what leaves u) [recalled]."""
    entering, leaving = _sums(graph, x, end=1), _sums(graph, x, end=0)
    products = [entering[target] * leaving[source] for source, target in graph.edges]
    return np.array([x[e] ** 2 / product if product > 0 else 0.0 for e, product in enumerate(products)])


def magnitude(graph: FlowGraph, x: FloatArray) -> FloatArray:
    """The gate itself."""
    return x.copy()


def _sums(graph: FlowGraph, x: FloatArray, end: int) -> FloatArray:
    """Sum of the weights that enter (end 1) or leave (end 0) each node."""
    totals = np.zeros(graph.sink + 1)
    for e, edge in enumerate(graph.edges):
        totals[edge[end]] += x[e]
    return totals


# Stops


def _order(score: FloatArray, edges: Iterable[int]) -> list[int]:
    """Edges by ascending score, ties by index."""
    return sorted(edges, key=lambda e: (score[e], e))


def _without(graph: FlowGraph, kept: BoolArray, e: int) -> BoolArray | None:
    """The live edges without one edge; None if t would be unreachable or no inner edge would remain."""
    trial = kept.copy()
    trial[e] = False
    trial = graph.live(trial)
    return trial if graph.n_inner(trial) else None


def cut_to_budget(
    graph: FlowGraph, score: FloatArray, exists: BoolArray, kappa: int, max_reads: int | None = None
) -> BoolArray:
    """Stop `budget`: the weakest edges go one by one while the task has more than kappa inner edges.

    An edge stays where t would become unreachable or no inner edge would remain; what is then on no path goes at once.
    Afterwards the weakest read-ins and read-outs beyond `max_reads` go in the same way.
    """
    kept = graph.live(exists)
    for e in _order(score, range(len(score))):
        if graph.n_inner(kept) <= kappa:
            break
        if kept[e] and (trial := _without(graph, kept, e)) is not None:
            kept = trial
    for part in (graph.is_read_in, graph.is_read_out) if max_reads is not None else ():
        for e in _order(score, np.flatnonzero(part).tolist()):
            if np.count_nonzero(kept & part) <= (max_reads or 0):
                break
            if kept[e] and (trial := _without(graph, kept, e)) is not None:
                kept = trial
    return kept


def cut_to_union(
    graph: FlowGraph,
    scores: Sequence[FloatArray],
    exists: BoolArray,
    fits: Callable[[Sequence[BoolArray]], bool],
) -> list[BoolArray]:
    """`budget_unit: union_params`: one list over (task, edge) by ascending score, until the union of all tasks fits.

    Raises UsageError where nothing more can go and it still does not fit.
    """
    kept = [graph.live(exists) for _ in scores]
    entries = sorted((score[e], task, e) for task, score in enumerate(scores) for e in range(len(score)))
    for _, task, e in entries:
        if fits(kept):
            return kept
        if kept[task][e] and (trial := _without(graph, kept[task], e)) is not None:
            kept[task] = trial
    if fits(kept):
        return kept
    raise UsageError("reduction.budget is smaller than the smallest network that keeps every task connected.")


def cut_to_first_bridge(graph: FlowGraph, score: FloatArray, exists: BoolArray) -> BoolArray:
    """Stop `first_bridge` [recalled]: edges go by ascending score until the first is met whose loss would cut t off.

    Where no inner edge is left, the path with an inner edge whose smallest score is largest is put back.
    """
    kept = graph.live(exists)
    for e in _order(score, range(len(score))):
        if not kept[e]:
            continue
        trial = kept.copy()
        trial[e] = False
        trial = graph.live(trial)
        if not trial.any():
            break
        kept = trial
    if not graph.n_inner(kept):
        kept = graph.live(kept | widest_path(graph, score, exists))
    return kept


def cut_by_threshold(graph: FlowGraph, x: FloatArray, exists: BoolArray) -> BoolArray:
    """Stop `threshold`: edges with sigma > .5; where that disconnects t or leaves no inner edge, also the path with an
    inner edge whose smallest gate is largest.
    """
    opened = (x > 0.5) & exists
    kept = graph.live(opened)
    if not graph.n_inner(kept):
        kept = graph.live(opened | widest_path(graph, x, exists))
    return kept


def widest_path(graph: FlowGraph, weight: FloatArray, exists: BoolArray) -> BoolArray:
    """The path from s to t with an inner edge whose smallest weight is largest, as edges; the first one on ties."""
    # best[node][has an inner edge]: (smallest weight on the way, edges of the way)
    best: list[list[tuple[float, tuple[int, ...]] | None]] = [[None, None] for _ in range(graph.sink + 1)]
    best[0][0] = (np.inf, ())
    for e in graph._forward_order:
        source, target = graph.edges[e]
        if not exists[e]:
            continue
        for has_inner in (0, 1):
            way = best[source][has_inner]
            if way is None:
                continue
            after = int(has_inner or bool(graph.is_inner[e]))
            width = min(way[0], float(weight[e]))
            known = best[target][after]
            if known is None or width > known[0]:
                best[target][after] = (width, (*way[1], e))
    widest = best[graph.sink][1]
    assert widest is not None  # the chain of inner edges always exists
    path = np.zeros(len(graph.edges), dtype=np.bool_)
    path[list(widest[1])] = True
    return path


# Shape of what is left


@dataclasses.dataclass(frozen=True)
class SubDagShape:
    """depth: inner edges on the longest path. width: most inner edges that pass between two neighbouring states.
    density: kept inner edges / those of the flow constraint among the states that are in use. sparsity: share of all
    edges of the flow constraint, reads included, that were removed.
    """

    depth: int
    width: int
    density: float
    sparsity: float


def shape_of(graph: FlowGraph, kept: BoolArray) -> SubDagShape:
    """The shape of a task's sub-DAG."""
    inner = [graph.edges[e] for e in np.flatnonzero(kept & graph.is_inner)]
    depth = [0] * (graph.sink + 1)
    for i, j in sorted(inner):
        depth[j] = max(depth[j], depth[i] + 1)
    width = max((sum(i <= cut < j for i, j in inner) for cut in range(1, graph.n_states)), default=0)
    used = {state for edge in inner for state in edge}
    possible = sum(i in used and j in used for i, j in graph.inner)
    density = len(inner) / possible if possible else 0.0
    return SubDagShape(max(depth), width, density, 1 - int(np.count_nonzero(kept)) / len(graph.edges))
