"""The flow-based reduction by hand on small graphs, and against networkx (dag_search 7, traps 1 and 4)."""

from __future__ import annotations

import itertools

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.errors import UsageError
from methods.dag_search.flow import (
    FlowGraph,
    contribution,
    cut_by_threshold,
    cut_to_budget,
    cut_to_first_bridge,
    cut_to_union,
    flow_edges,
    magnitude,
    ratio,
    shape_of,
    widest_path,
)

COUNTS = {  # N: {M: edges}, specification section 2
    5: {1: 4, 2: 7, 3: 9, 4: 10},
    9: {1: 8, 2: 15, 3: 21, 5: 30, 8: 36},
    17: {1: 16, 3: 45, 5: 70, 9: 108, 16: 136},
}


@pytest.mark.parametrize(("n", "m", "count"), [(n, m, count) for n, row in COUNTS.items() for m, count in row.items()])
def test_edge_counts_and_spans(n: int, m: int, count: int) -> None:
    edges = flow_edges(n, m)
    assert len(edges) == len(set(edges)) == count == m * (2 * n - m - 1) // 2
    assert {j - i for i, j in edges} == set(range(1, m + 1))
    assert all(1 <= i < j <= n for i, j in edges)
    assert set(flow_edges(n, 1)) <= set(edges)


def whole(n: int, m: int) -> FlowGraph:
    return FlowGraph(n, flow_edges(n, m))


DIAMOND = FlowGraph(4, ((1, 2), (1, 3), (2, 4), (3, 4)))


def diamond() -> tuple[FlowGraph, np.ndarray, np.ndarray]:
    """s -> 1 -> {2, 3} -> 4 -> t with gates .9 / .1 on the two ways."""
    weights = {(0, 1): 0.9, (1, 2): 0.9, (1, 3): 0.1, (2, 4): 0.9, (3, 4): 0.1, (4, 5): 0.9}
    x = np.array([weights.get(edge, 0.0) for edge in DIAMOND.edges])
    return DIAMOND, x, x > 0


@pytest.mark.parametrize("score", [contribution, ratio])
def test_the_diamond_keeps_its_strong_branch(score: object) -> None:
    graph, x, exists = diamond()
    kept = cut_to_budget(graph, score(graph, x), exists, kappa=2)
    assert {graph.edges[e] for e in np.flatnonzero(kept)} == {(0, 1), (1, 2), (2, 4), (4, 5)}


def test_contribution_of_the_diamond_by_hand() -> None:
    graph, x, _ = diamond()
    flow = dict(zip(graph.edges, contribution(graph, x), strict=True))
    # All of the output came through state 4 and state 1; nine tenths of it through state 2.
    assert flow[(4, 5)] == flow[(0, 1)] == 1.0
    assert flow[(2, 4)] == flow[(1, 2)] == pytest.approx(0.9)
    assert flow[(3, 4)] == flow[(1, 3)] == pytest.approx(0.1)


def test_ratio_of_the_diamond_by_hand() -> None:
    graph, x, _ = diamond()
    flow = dict(zip(graph.edges, ratio(graph, x), strict=True))
    assert flow[(1, 2)] == pytest.approx(1.0 * 0.9)  # all that enters 2, nine tenths of what leaves 1
    assert flow[(2, 4)] == pytest.approx(0.9 * 1.0)
    assert flow[(3, 4)] == pytest.approx(0.1 * 1.0)


def as_networkx(graph: FlowGraph, kept: np.ndarray) -> nx.DiGraph:
    made = nx.DiGraph([edge for edge, k in zip(graph.edges, kept, strict=True) if k])
    made.add_nodes_from([0, graph.sink])
    return made


@st.composite
def gates(draw: st.DrawFn) -> tuple[FlowGraph, np.ndarray]:
    n = draw(st.integers(3, 9))
    graph = whole(n, draw(st.integers(1, n - 1)))
    values = draw(st.lists(st.floats(0.01, 0.99), min_size=len(graph.edges), max_size=len(graph.edges)))
    return graph, np.array(values)


@settings(max_examples=60, deadline=None)
@given(gates(), st.integers(0, 2**31))
def test_live_edges_are_those_on_a_path(case: tuple[FlowGraph, np.ndarray], seed: int) -> None:
    graph, x = case
    kept = np.random.RandomState(seed).rand(len(x)) < 0.5
    made = as_networkx(graph, kept)
    on_path = [
        bool(k) and nx.has_path(made, 0, u) and nx.has_path(made, w, graph.sink)
        for (u, w), k in zip(graph.edges, kept, strict=True)
    ]
    assert graph.live(kept).tolist() == on_path


@settings(max_examples=60, deadline=None)
@given(gates(), st.integers(1, 9), st.floats(0.1, 10.0))
def test_contribution_is_a_conserved_unit_flow(case: tuple[FlowGraph, np.ndarray], state: int, scale: float) -> None:
    graph, x = case
    flow = contribution(graph, x)
    entering, leaving = np.zeros(graph.sink + 1), np.zeros(graph.sink + 1)
    for value, (u, w) in zip(flow, graph.edges, strict=True):
        leaving[u] += value
        entering[w] += value
    assert leaving[0] == pytest.approx(1.0)
    assert entering[graph.sink] == pytest.approx(1.0)
    assert entering[1:-1] == pytest.approx(leaving[1:-1])
    # Only shares of what enters a state count.
    state = min(state, graph.n_states)
    scaled = np.where([w == state for _, w in graph.edges], scale * x, x)
    assert contribution(graph, scaled) == pytest.approx(flow)


@settings(max_examples=40, deadline=None)
@given(gates(), st.integers(0, 2**31))
def test_bridges_carry_the_whole_flow(case: tuple[FlowGraph, np.ndarray], seed: int) -> None:
    graph, x = case
    kept = graph.live(np.random.RandomState(seed).rand(len(x)) < 0.35)
    if not kept.any():
        return
    flow = contribution(graph, np.where(kept, x, 0.0))
    for e in np.flatnonzero(kept):
        made = as_networkx(graph, kept)
        made.remove_edge(*graph.edges[e])
        if not nx.has_path(made, 0, graph.sink):
            assert flow[e] == pytest.approx(1.0)


@settings(max_examples=60, deadline=None)
@given(gates(), st.integers(1, 12), st.sampled_from([contribution, ratio, magnitude]))
def test_the_budget_is_kept_and_every_task_stays_connected(
    case: tuple[FlowGraph, np.ndarray], kappa: int, score: object
) -> None:
    graph, x = case
    exists = np.ones(len(x), dtype=bool)
    kept = cut_to_budget(graph, score(graph, x), exists, kappa)
    assert kept.tolist() == cut_to_budget(graph, score(graph, x), exists, kappa).tolist()
    assert nx.has_path(as_networkx(graph, kept), 0, graph.sink)
    assert kept.tolist() == graph.live(kept).tolist()
    assert graph.n_inner(kept) >= 1
    if graph.n_inner(kept) > kappa:  # a chain of bridges: nothing could go
        for e in np.flatnonzero(kept):
            trial = kept.copy()
            trial[e] = False
            assert not graph.n_inner(graph.live(trial))


@settings(max_examples=40, deadline=None)
@given(gates(), st.sampled_from([contribution, ratio]))
def test_first_bridge_stops_before_t_is_cut_off(case: tuple[FlowGraph, np.ndarray], score: object) -> None:
    graph, x = case
    kept = cut_to_first_bridge(graph, score(graph, x), np.ones(len(x), dtype=bool))
    assert graph.n_inner(kept) >= 1
    assert nx.has_path(as_networkx(graph, kept), 0, graph.sink)


def test_first_bridge_puts_an_inner_edge_back() -> None:
    """Strong reads at one state: everything else goes, and a path with an inner edge must come back."""
    graph = whole(3, 2)
    strong = {(0, 2): 0.99, (2, 4): 0.99, (2, 3): 0.3, (3, 4): 0.2, (0, 1): 0.05, (1, 2): 0.04, (1, 3): 0.01}
    x = np.array([strong.get(edge, 0.01) for edge in graph.edges])
    kept = cut_to_first_bridge(graph, magnitude(graph, x), np.ones(len(x), dtype=bool))
    assert {graph.edges[e] for e in np.flatnonzero(kept)} == {(0, 2), (2, 4), (2, 3), (3, 4)}


def test_threshold_keeps_open_gates_and_the_widest_path_where_they_do_not_connect() -> None:
    graph = whole(3, 1)  # edges: in 1-3, 1-2, 2-3, out 1-3
    opened = np.array([0.9, 0.1, 0.1, 0.8, 0.7, 0.2, 0.2, 0.6])
    kept = cut_by_threshold(graph, opened, np.ones(8, dtype=bool))
    assert kept.tolist() == [True, False, False, True, True, False, False, True]
    closed = np.array([0.4, 0.1, 0.1, 0.3, 0.2, 0.1, 0.45, 0.1])
    kept = cut_by_threshold(graph, closed, np.ones(8, dtype=bool))
    assert {graph.edges[e] for e in np.flatnonzero(kept)} == {(0, 1), (1, 2), (2, 4)}


@settings(max_examples=40, deadline=None)
@given(gates())
def test_the_widest_path_is_the_one_of_all_simple_paths(case: tuple[FlowGraph, np.ndarray]) -> None:
    graph, x = case
    if graph.n_states > 6:
        return
    exists = np.ones(len(x), dtype=bool)
    weight = dict(zip(graph.edges, x, strict=True))
    made = as_networkx(graph, exists)
    widths = [
        min(weight[edge] for edge in edges_of(path))
        for path in nx.all_simple_paths(made, 0, graph.sink)
        if len(path) > 3  # at least one inner edge
    ]
    path = widest_path(graph, x, exists)
    assert min(x[path]) == pytest.approx(max(widths))


def edges_of(path: list[int]) -> list[tuple[int, int]]:
    return list(itertools.pairwise(path))


def test_reads_are_capped_after_the_budget() -> None:
    graph = whole(6, 2)
    x = np.random.RandomState(0).rand(len(graph.edges))
    exists = np.ones(len(x), dtype=bool)
    kept = cut_to_budget(graph, magnitude(graph, x), exists, kappa=5, max_reads=1)
    inner, read_ins, read_outs = graph.counts(kept)
    assert (inner <= 5, read_ins, read_outs) == (True, 1, 1)


def test_the_union_is_cut_until_it_fits_over_all_tasks_at_once() -> None:
    graph = whole(5, 2)
    random = np.random.RandomState(1)
    scores = [random.rand(len(graph.edges)) for _ in range(3)]
    exists = np.ones(len(graph.edges), dtype=bool)

    def size(kept: list[np.ndarray]) -> int:
        return graph.n_inner(np.logical_or.reduce(kept))

    kept = cut_to_union(graph, scores, exists, lambda rows: size(list(rows)) <= 5)
    assert 3 <= size(kept) <= 5  # several edges can go at once
    assert all(graph.n_inner(row) >= 1 for row in kept)
    with pytest.raises(UsageError, match="smaller than the smallest"):
        cut_to_union(graph, scores, exists, lambda rows: False)


# Gates of the authors' pipeline figure, read off their tints [paper figure], and the edges that are left there. The
# states are 1..4, s the input, t what feeds all heads; 1-4 is no edge, since the flow allows spans up to 2.
FIGURE = {
    (0, 1): 1.0, (0, 2): 1.0, (0, 3): 0.39, (0, 4): 0.23,
    (1, 2): 0.15, (1, 3): 1.0, (2, 3): 0.60, (2, 4): 1.0, (3, 4): 0.11,
    (1, 5): 0.26, (2, 5): 1.0, (3, 5): 0.77, (4, 5): 1.0,
}  # fmt: skip
LEFT = {(0, 1), (0, 2), (1, 3), (2, 3), (2, 4), (2, 5), (3, 5), (4, 5)}


@pytest.mark.parametrize(("score", "agrees"), [(magnitude, True), (ratio, True), (contribution, False)])
def test_which_scores_rank_the_edges_of_the_papers_figure_as_it_cuts_them(score: object, agrees: bool) -> None:
    graph = whole(4, 2)
    assert set(graph.edges) == set(FIGURE)
    x = np.array([FIGURE[edge] for edge in graph.edges])
    ranked = [graph.edges[e] for e in np.argsort(score(graph, x))]  # type: ignore[operator]
    assert (set(ranked[: len(FIGURE) - len(LEFT)]) == set(FIGURE) - LEFT) is agrees


def test_the_threshold_cuts_the_papers_figure_as_it_is_drawn_and_reachability_alone_does_not() -> None:
    graph = whole(4, 2)
    x = np.array([FIGURE[edge] for edge in graph.edges])
    exists = np.ones(len(x), dtype=bool)
    kept = cut_by_threshold(graph, x, exists)
    assert {graph.edges[e] for e in np.flatnonzero(kept)} == LEFT
    assert graph.counts(kept) == (3, 2, 3)  # N - 1 inner edges, two of four read-ins, three of four read-outs
    assert shape_of(graph, kept).sparsity == pytest.approx(5 / 13)
    for score in (magnitude, ratio, contribution):
        bridged = cut_to_first_bridge(graph, score(graph, x), exists)
        assert {graph.edges[e] for e in np.flatnonzero(bridged)} != LEFT


def test_depth_width_density_and_sparsity_by_hand() -> None:
    graph = whole(4, 3)
    edges = {(0, 1), (1, 2), (2, 4), (1, 4), (4, 5)}
    kept = np.array([edge in edges for edge in graph.edges])
    shape = shape_of(graph, kept)
    assert shape.depth == 2  # 1 -> 2 -> 4
    assert shape.width == 2  # between 1 and 2: 1-2 and 1-4
    assert shape.density == 1.0  # 1-2, 1-4, 2-4 are all there are among 1, 2, 4
    assert shape.sparsity == pytest.approx(1 - 5 / 14)  # of four read-ins, six inner edges, four read-outs


def test_at_equal_gates_the_recalled_score_removes_reads_first() -> None:
    """Why it is not the default (specification 7): s leaves by N edges, inner states by about M."""
    graph = whole(9, 3)
    x = (
        np.full(len(graph.edges), 0.5)
        + 1e-3 * torch.rand(len(graph.edges), generator=torch.Generator().manual_seed(0)).double().numpy()
    )
    exists = np.ones(len(x), dtype=bool)
    recalled = graph.counts(cut_to_budget(graph, ratio(graph, x), exists, kappa=8))
    ours = graph.counts(cut_to_budget(graph, contribution(graph, x), exists, kappa=8))
    assert recalled[1] + recalled[2] < ours[1] + ours[2]
