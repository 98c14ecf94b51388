"""Between search and fine-tuning: which edges every task keeps. Section 7."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch

from methods.control import AMBER_DEVIATION, ArchitectureSize, deviation, random_architecture
from methods.dag_search.flow import (
    BoolArray,
    FloatArray,
    FlowGraph,
    contribution,
    cut_by_threshold,
    cut_to_budget,
    cut_to_first_bridge,
    cut_to_union,
    magnitude,
    ratio,
)
from methods.dag_search.params import ReductionParams
from methods.dag_search.space import DagSpace

_SCORES = {"contribution": contribution, "ratio": ratio, "magnitude": magnitude}
MAX_DRAWS = 5000  # random scores are drawn again until the counts match, so often at most
MATCHING_DRAWS = 100  # of each task, to choose among for the size of all
CUTS = 20_000  # of all tasks, of which the nearest in size is taken; a thousand often leave more than 5 %
MOST_SLACK = 2  # edges by which a task's counts may differ where equal counts leave no cut of equal size

Cut = Sequence[BoolArray]  # the live edges of each task


@dataclasses.dataclass(frozen=True)
class Reduction:
    """kept: the live edges of each task. flow: F of each edge. missed: tasks whose random cut has other counts.

    deviation: of a random cut, the relative difference from the size of the searched one.
    """

    kept: list[BoolArray]
    flow: list[FloatArray]
    missed: tuple[int, ...] = ()
    deviation: float | None = None


def reduce(
    space: DagSpace,
    sigma: FloatArray,
    params: ReductionParams,
    kappa: int,
    size: float | None,
    rng: torch.Generator,
    size_of: Callable[[Cut], ArchitectureSize],
) -> Reduction:
    """Cut the searched gates of all tasks. sigma: [K, edges]; size: parameters that the union may have, under
    `budget_unit: union_params`; size_of: size of the network that a cut deploys.
    """
    graph = space.graph
    x = [np.where(space.exists, row, 0.0) for row in sigma.astype(np.float64)]
    flow = [contribution(graph, row) for row in x]
    if params.score == "random":
        return _random(space, x, flow, params, kappa, size, rng, size_of)
    kept = _cut(space, x, [_SCORES[params.score](graph, row) for row in x], params, kappa, size)
    return Reduction(kept, flow)


def _cut(
    space: DagSpace,
    x: Sequence[FloatArray],
    scores: Sequence[FloatArray],
    params: ReductionParams,
    kappa: int,
    size: float | None,
) -> list[BoolArray]:
    graph, exists = space.graph, space.exists
    if params.stop == "threshold":
        return [cut_by_threshold(graph, row, exists) for row in x]
    if params.stop == "first_bridge":
        return [cut_to_first_bridge(graph, score, exists) for score in scores]
    if size is not None:
        return cut_to_union(graph, scores, exists, lambda kept: space.n_parameters(kept) <= size)
    return [cut_to_budget(graph, score, exists, kappa, params.max_reads) for score in scores]


def _random(
    space: DagSpace,
    x: Sequence[FloatArray],
    flow: list[FloatArray],
    params: ReductionParams,
    kappa: int,
    size: float | None,
    rng: torch.Generator,
    size_of: Callable[[Cut], ArchitectureSize],
) -> Reduction:
    """The control: the same loop on random scores. Each task has as many inner edges, read-ins and read-outs as in the
    searched cut of the same gates by contribution, or the nearest numbers that are drawn; of such cuts of all tasks the
    one nearest in size to the searched cut, since what tasks share decides how large their union is. Where none is
    near, cuts are drawn in which tasks share more edges than by chance; where that does not suffice, the counts of a
    task may differ by an edge or two.
    """
    graph, exists = space.graph, space.exists
    searched = _cut(space, x, flow, params, kappa, size)
    if size is not None:  # the union's size is what is held equal
        scores = [_draw(len(row), rng) for row in x]
        drawn = _cut(space, x, scores, params, kappa, size)
        return Reduction(drawn, flow, deviation=deviation(size_of(drawn), size_of(searched)))
    draws = [_draws(graph, exists, graph.counts(row), kappa, params.max_reads, rng) for row in searched]
    target, best = size_of(searched), None
    for cuts in _spaces(draws, size_of):
        found = random_architecture(cuts, target, rng, CUTS)
        if best is None or found.deviation < best.deviation:
            best = found
        if best.deviation <= AMBER_DEVIATION:
            break
    assert best is not None
    missed = tuple(
        task for task, cut in enumerate(best.architecture) if graph.counts(cut) != graph.counts(searched[task])
    )
    return Reduction(list(best.architecture), flow, missed, best.deviation)


def _spaces(
    draws: Sequence[Mapping[int, Sequence[BoolArray]]], size_of: Callable[[Cut], ArchitectureSize]
) -> Iterator[_Cuts]:
    """What cuts are drawn from, the strictest first. draws: of each task, {distance in counts: cuts}."""
    for slack in range(MOST_SLACK + 1):
        pools = [
            [
                cut
                for distance, cuts in sorted(by_distance.items())
                if distance <= min(by_distance) + slack
                for cut in cuts
            ]
            for by_distance in draws
        ]
        yield _Cuts(pools, size_of)
        yield _AlikeCuts(pools, size_of)


@dataclasses.dataclass(frozen=True)
class _Cuts:
    """Cuts of all tasks, as `random_architecture` draws them. pools: the draws of each task."""

    pools: Sequence[Sequence[BoolArray]]
    size_of: Callable[[Cut], ArchitectureSize]

    def draw(self, rng: torch.Generator) -> Cut:
        """One of the draws of each task."""
        return [pool[_any_of(len(pool), rng)] for pool in self.pools]

    def size(self, architecture: Cut) -> ArchitectureSize:
        """Its size."""
        return self.size_of(architecture)


class _AlikeCuts(_Cuts):
    """Cuts whose tasks have more edges in common than by chance, some draws few and some many."""

    @functools.cached_property
    def _stacked(self) -> list[BoolArray]:
        return [np.stack(pool) for pool in self.pools]

    def draw(self, rng: torch.Generator) -> Cut:
        """Tasks choose in random order, each with a probability that is drawn too among those of its draws that add the
        fewest edges to what tasks before it keep, else among all.
        """
        chosen: dict[int, BoolArray] = {}
        union = np.zeros_like(self.pools[0][0])
        alike = float(torch.rand((), generator=rng))
        for task in torch.randperm(len(self.pools), generator=rng).tolist():
            pool = self._stacked[task]
            if float(torch.rand((), generator=rng)) < alike:
                added = np.count_nonzero(pool & ~union, axis=1)
                pool = pool[added == added.min()]
            chosen[task] = pool[_any_of(len(pool), rng)]
            union |= chosen[task]
        return [chosen[task] for task in range(len(self.pools))]


def _any_of(n: int, rng: torch.Generator) -> int:
    return int(torch.randint(n, (), generator=rng))


def _draws(
    graph: FlowGraph,
    exists: BoolArray,
    wanted: tuple[int, int, int],
    kappa: int,
    max_reads: int | None,
    rng: torch.Generator,
) -> dict[int, list[BoolArray]]:
    """{distance in counts: draws}, until enough have the wanted counts."""
    found: dict[int, list[BoolArray]] = {}
    for _ in range(MAX_DRAWS):
        drawn = cut_to_budget(graph, _draw(len(graph.edges), rng), exists, kappa, max_reads)
        distance = sum(abs(a - b) for a, b in zip(graph.counts(drawn), wanted, strict=True))
        found.setdefault(distance, []).append(drawn)
        if len(found.get(0, ())) == MATCHING_DRAWS:
            break
    return found


def _draw(n: int, rng: torch.Generator) -> FloatArray:
    return torch.rand(n, generator=rng, dtype=torch.float64).numpy()
