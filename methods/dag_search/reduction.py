"""Between search and fine-tuning: which edges every task keeps. Section 7."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

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


@dataclasses.dataclass(frozen=True)
class Reduction:
    """kept: the live edges of each task. flow: F of each edge. missed: tasks whose random draw never matched."""

    kept: list[BoolArray]
    flow: list[FloatArray]
    missed: tuple[int, ...] = ()


def reduce(
    space: DagSpace, sigma: FloatArray, params: ReductionParams, kappa: int, size: float | None, rng: torch.Generator
) -> Reduction:
    """Cut the searched gates of all tasks. sigma: [K, edges]; size: parameters that the union may have, under
    `budget_unit: union_params`.
    """
    graph = space.graph
    x = [np.where(space.exists, row, 0.0) for row in sigma.astype(np.float64)]
    flow = [contribution(graph, row) for row in x]
    if params.score == "random":
        return _random(space, x, flow, params, kappa, size, rng)
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
) -> Reduction:
    """The control: the same loop on random scores, with as many inner edges, read-ins and read-outs as the searched
    cut of the same gates by contribution. The nearest draw where none matches.
    """
    graph, exists = space.graph, space.exists
    if size is not None:  # the union's size is what is held equal
        scores = [_draw(len(row), rng) for row in x]
        return Reduction(_cut(space, x, scores, params, kappa, size), flow)
    kept, missed = [], []
    for task, row in enumerate(x):
        wanted = graph.counts(cut_to_budget(graph, contribution(graph, row), exists, kappa, params.max_reads))
        drawn, distance = _nearest_draw(graph, exists, wanted, kappa, params.max_reads, rng)
        kept.append(drawn)
        missed += [task] if distance else []
    return Reduction(kept, flow, tuple(missed))


def _nearest_draw(
    graph: FlowGraph,
    exists: BoolArray,
    wanted: tuple[int, int, int],
    kappa: int,
    max_reads: int | None,
    rng: torch.Generator,
) -> tuple[BoolArray, int]:
    """(edges, distance in counts) of the first draw with the wanted counts, else of the first nearest one."""
    nearest: tuple[BoolArray, int] | None = None
    for _ in range(MAX_DRAWS):
        drawn = cut_to_budget(graph, _draw(len(graph.edges), rng), exists, kappa, max_reads)
        distance = sum(abs(a - b) for a, b in zip(graph.counts(drawn), wanted, strict=True))
        if nearest is None or distance < nearest[1]:
            nearest = (drawn, distance)
        if distance == 0:
            break
    assert nearest is not None
    return nearest


def _draw(n: int, rng: torch.Generator) -> FloatArray:
    return torch.rand(n, generator=rng, dtype=torch.float64).numpy()
