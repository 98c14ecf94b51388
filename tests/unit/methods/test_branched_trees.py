"""Trees, their selection and random ones. Source: branched 2.6 to 2.8, T11 to T19, T21; branching search T11, T23."""

from __future__ import annotations

import functools
import itertools
import warnings
from collections import Counter
from types import SimpleNamespace

import networkx
import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from datasets.errors import UsageError
from methods.backbones.backbone import BackboneConfig, create_backbone
from methods.branched import selection
from methods.branched.counting import TreeCounter
from methods.branched.segments import segments_of, size_budget
from methods.branched.selection import (
    Beam,
    Candidate,
    affinity_problem,
    beam_front,
    exhaustive_front,
    partition_cost,
    spectral_groups,
    within,
)
from methods.branched.trees import (
    apart,
    canonical,
    coarsenings,
    is_refinement,
    nested,
    of_labels,
    read_tree,
    refinements,
    set_partitions,
    together,
)
from tests.unit.harness import toy_spec
from tests.unit.trees import all_trees

COUNTS = {  # branched 2.6: number of trees by depth and tasks
    1: (2, 5, 15, 52),
    2: (3, 12, 60, 358),
    3: (4, 22, 154, 1304),
    4: (5, 35, 315, 3455),
}


def symmetric(rng: np.random.Generator, depth: int, n: int) -> np.ndarray:
    a = rng.uniform(-1, 1, (depth, n, n))
    a = (a + a.transpose(0, 2, 1)) / 2
    a[:, range(n), range(n)] = 1
    return a


def affinities(*deltas: dict[tuple[int, int], float], n: int = 3) -> np.ndarray:
    found = np.ones((len(deltas), n, n))
    for d, pairs in enumerate(deltas):
        for (i, j), value in pairs.items():
            found[d, i, j] = found[d, j, i] = 1 - value
    return found


def tree(*texts: str) -> tuple:
    return tuple(canonical([map(int, cluster) for cluster in text.split("|")]) for text in texts)


@pytest.mark.parametrize(("depth", "n"), [(d, n) for d in COUNTS for n in (2, 3, 4, 5)])
def test_there_are_as_many_trees_as_the_table_says_each_once_and_nested(depth: int, n: int) -> None:
    trees = list(all_trees(n, depth))
    assert len(trees) == len(set(trees)) == COUNTS[depth][n - 2]
    for found in trees:
        assert all(is_refinement(fine, coarse) for coarse, fine in itertools.pairwise(found))
        assert all(canonical(partition) == partition for partition in found)


def test_partitions_match_the_bell_numbers_and_refine_both_ways() -> None:
    assert [len(set_partitions(n)) for n in range(1, 7)] == [1, 2, 5, 15, 52, 203]
    assert len(refinements(together(5))) == len(coarsenings(apart(5))) == 52
    for partition in set_partitions(4):
        finer, coarser = set(refinements(partition)), set(coarsenings(partition))
        assert finer == {p for p in set_partitions(4) if is_refinement(p, partition)}
        assert coarser == {p for p in set_partitions(4) if is_refinement(partition, p)}


def test_stages_make_four_segments_on_both_families() -> None:
    spec = toy_spec(size=32)
    for name, per_stage in (("test_resnet", 1), ("vit_tiny_patch16_224", 3)):
        backbone = create_backbone(BackboneConfig(name, image_size=(32, 32)), seed=0)
        segments = segments_of(backbone, spec, "stage")
        assert [len(blocks) for blocks in segments.blocks] == [per_stage] * 4
        assert segments.reference("params") == backbone.n_parameters()


def test_cost_variants_have_the_numbers_of_the_specification() -> None:
    delta = 1 - affinities({(0, 1): 0.1, (0, 2): 0.4, (1, 2): 0.5})[0]
    found = [partition_cost(delta, p) for p in tree("012", "01|2", "02|1", "0|12", "0|1|2")]
    assert found == pytest.approx([0.5, 0.05, 0.2, 0.25, 0], abs=1e-12)
    assert partition_cost(delta, tree("01|2")[0], "sum_max") == pytest.approx(0.1)
    assert partition_cost(delta, tree("012")[0], "mean_mean") == pytest.approx(1 / 3)


def test_the_cost_is_not_monotone_under_refinement() -> None:
    delta = 1 - affinities(dict.fromkeys(itertools.combinations(range(4), 2), 1.0), n=6)[0]
    coarse, fine = tree("0123|4|5", "01|23|4|5")
    assert is_refinement(fine, coarse)
    assert partition_cost(delta, coarse) == pytest.approx(1 / 3)
    assert partition_cost(delta, fine) == pytest.approx(1 / 2)


T16 = affinities({(0, 1): 0.1, (0, 2): 0.2, (1, 2): 0.3}, {(0, 1): 0.1, (0, 2): 0.6, (1, 2): 0.5})


@pytest.mark.parametrize(
    ("budgets", "expected", "cost", "size"),
    [
        ((4, 5, 6), tree("012", "012"), 0.9, 4),
        ((7,), tree("012", "01|2"), 0.35, 7),
        ((8, 9, 10), tree("01|2", "01|2"), 0.1, 8),
        ((11,), tree("01|2", "0|1|2"), 0.05, 11),
        ((12, 99), tree("0|1|2", "0|1|2"), 0.0, 12),
    ],
)
def test_the_budget_is_global(budgets: tuple[int, ...], expected: tuple, cost: float, size: int) -> None:
    posed = affinity_problem(T16, (1, 3), 0)
    for budget in budgets:
        for front in (exhaustive_front(posed), beam_front(posed, T16, budget, Beam(4000, "all"))):
            chosen = within(front, budget)
            assert (chosen.tree, chosen.size) == (expected, size)
            assert chosen.clustering_cost == pytest.approx(cost, abs=1e-11)


@functools.cache
def listed_trees(n: int, depth: int) -> list[tuple]:
    return list(all_trees(n, depth))


def brute_force(a: np.ndarray, per_copy: tuple[int, ...], budget: int) -> Candidate:
    posed = affinity_problem(a, per_copy, 0)
    costs = [{p: posed.cost(d, p) for p in map(canonical, set_partitions(a.shape[1]))} for d in range(len(a))]
    found = [
        Candidate(
            sum(len(p) * one for p, one in zip(t, per_copy, strict=True)),
            sum(costs[d][p] for d, p in enumerate(t)),
            t,
        )
        for t in listed_trees(a.shape[1], len(a))
    ]
    return min((c for c in found if c.size <= budget), key=lambda c: (c.cost, c.size, c.tree))


def test_dynamic_programming_equals_brute_force_at_every_budget() -> None:
    rng = np.random.default_rng(0)
    for case in range(200):
        n, depth = int(rng.integers(2, 6)), int(rng.integers(1, 5))
        a = symmetric(rng, depth, n)
        if case % 3 == 0:
            a = np.round(a, 1)  # ties
        per_copy = tuple(int(p) for p in rng.integers(1, 20, depth))
        budget = int(rng.integers(sum(per_copy), n * sum(per_copy) + 1))
        expected = brute_force(a, per_copy, budget)
        posed = affinity_problem(a, per_copy, 0)
        assert within(exhaustive_front(posed), budget) == expected
        if case % 5 == 0:
            assert within(beam_front(posed, a, budget, Beam(3455, "all")), budget) == expected
        if case % 5 == 1:
            spectral = within(beam_front(posed, a, budget, Beam(3)), budget)
            assert spectral.size <= budget
            assert spectral.cost >= expected.cost
            assert all(is_refinement(fine, coarse) for coarse, fine in itertools.pairwise(spectral.tree))


def test_best_cost_never_rises_with_the_budget_and_equal_affinities_share_all() -> None:
    rng = np.random.default_rng(1)
    front = exhaustive_front(affinity_problem(symmetric(rng, 3, 4), (2, 3, 5), 7))
    assert [c.size for c in front] == sorted(c.size for c in front)
    assert all(later.cost < earlier.cost for earlier, later in itertools.pairwise(front))
    assert front[0].size == 7 + 10
    assert front[-1].tree == (apart(4),) * 3
    assert front[-1].cost == 0
    equal = exhaustive_front(affinity_problem(np.ones((3, 4, 4)), (2, 3, 5), 7))
    assert [c.tree for c in equal] == [(together(4),) * 3]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.permutations(range(4)))
@example(240511, [1, 0, 2, 3])  # two best trees of one size: which of them is taken depends on the order of the tasks
def test_relabelling_tasks_relabels_the_tree(seed: int, order: list[int]) -> None:
    a = symmetric(np.random.default_rng(seed), 3, 4)
    permuted = a[np.ix_(range(3), order, order)]
    budget, posed = 40, affinity_problem(a, (2, 3, 10), 0)
    one = within(exhaustive_front(posed), budget)
    other = within(exhaustive_front(affinity_problem(permuted, (2, 3, 10), 0)), budget)
    relabelled = tuple(canonical([[order[task] for task in cluster] for cluster in p]) for p in other.tree)
    assert (other.cost, other.size) == (one.cost, one.size)
    assert sum(posed.cost(d, p) for d, p in enumerate(relabelled)) == one.cost


def test_next_segment_shares_the_first_and_never_reads_the_last_affinity() -> None:
    a = symmetric(np.random.default_rng(2), 4, 5)
    posed = affinity_problem(a, (1, 1, 1, 1), 0, "next_segment")
    reachable = [t for t in all_trees(5, 4) if t[0] == together(5)]
    assert len(reachable) == 1304
    changed = a.copy()
    changed[3] = symmetric(np.random.default_rng(3), 1, 5)[0]
    front, other = (exhaustive_front(affinity_problem(x, (1, 2, 3, 4), 0, "next_segment")) for x in (a, changed))
    assert front == other
    assert all(candidate.tree[0] == together(5) for candidate in front)
    fitting = [t for t in reachable if sum(map(len, t)) <= 12]
    best = min(fitting, key=lambda t: (sum(posed.cost(d, p) for d, p in enumerate(t)), sum(map(len, t)), t))
    assert within(exhaustive_front(posed), 12).tree == best
    beam = beam_front(posed, a, 12, Beam(4000, "all"))
    assert within(beam, 12) == within(exhaustive_front(posed), 12)


def resnet18(n_tasks: int, size: int = 224) -> tuple:
    backbone = create_backbone(BackboneConfig("resnet18"), seed=0)
    spec = SimpleNamespace(native_size=(size, size), tasks=(), domains="single", name="x")
    return segments_of(backbone, spec, "stage"), spec


def test_budget_extremes() -> None:
    segments, spec = resnet18(3)
    assert segments.stem_parameters == 9536
    assert segments.parameters == (147_968, 525_568, 2_099_712, 8_393_728)
    a = symmetric(np.random.default_rng(4), 4, 3)
    front = exhaustive_front(affinity_problem(a, segments.parameters, segments.constant("params")))
    assert front[0].size == segments.reference("params") == 11_176_512
    assert within(front, 11_176_512).tree == (together(3),) * 4
    assert within(front, size_budget(segments, spec, 1.5).total).size == 11_176_512
    largest = within(front, 9536 + 3 * sum(segments.parameters))
    assert (largest.tree, largest.cost) == ((apart(3),) * 4, 0)
    with pytest.raises(UsageError, match="11,176,512"):
        size_budget(segments, spec, 11_176_511)
    with pytest.raises(UsageError, match=r"write 2\.0"):
        size_budget(segments, spec, 2)
    with pytest.raises(UsageError, match="No tree"):
        within(front, 11_176_511)
    with pytest.raises(UsageError, match="images of their own"):
        size_budget(segments, SimpleNamespace(domains="multi", name="x"), 1.5, "macs")


@pytest.mark.parametrize(
    ("first_split", "parameters", "macs"),
    [
        (4, 19_570_240, 2_224_603_136),
        (3, 21_669_952, 2_635_644_928),
        (2, 22_195_520, 3_046_686_720),
        (1, 22_343_488, 3_509_108_736),
    ],
)
def test_sizes_of_two_task_trees_are_those_of_the_table(first_split: int, parameters: int, macs: int) -> None:
    segments, _ = resnet18(2)
    found = tuple(apart(2) if stage >= first_split else together(2) for stage in range(1, 5))
    assert segments.size(found) == parameters
    assert segments.size(found, "macs") == macs


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((187_200, 185_280, 37_056, 37_056, 401_792, 16_768, 129), 8_830_248),
    ],
)
def test_levels_of_mixed_copies_are_summed(sizes: tuple[int, ...], expected: int) -> None:
    """The published CelebA tree, counted (T21): copies 1, 2, 3, 10, 18, 33, 40."""
    from methods.branched.segments import Segments

    segments = Segments(("",) * 7, (range(1),) * 7, 0, sizes, 0, sizes, 0, 0)
    copies = (1, 2, 3, 10, 18, 33, 40)
    assert segments.size(tuple(((0,),) * n for n in copies)) == expected


def test_spectral_clustering_never_sees_negatives(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.ndarray] = []

    def watched(similarity: np.ndarray, seed: int) -> list[np.ndarray]:
        seen.append(similarity)
        return spectral_groups(similarity, seed)

    monkeypatch.setattr(selection, "spectral_groups", watched)
    a = symmetric(np.random.default_rng(6), 3, 5)
    beam_front(affinity_problem(a, (1, 1, 1), 0), a, 12, Beam())
    assert len(seen) > 3
    assert min(float(w.min()) for w in seen) == 0.0  # clipped, where affinities are negative
    assert max(float(w.max()) for w in seen) == 1.0


def test_spectral_clustering_finds_blocks() -> None:
    block = np.full((4, 4), 0.1)
    block[:2, :2] = block[2:, 2:] = 0.9
    groups = spectral_groups(block, 0)
    assert [len(set(labels)) for labels in groups] == [1, 2, 3, 4]
    assert of_labels(groups[1].tolist()) == tree("01|23")[0]
    delta = 1 - block
    assert partition_cost(delta, tree("01|23")[0]) == pytest.approx(0.1)
    assert partition_cost(delta, tree("012|3")[0]) == pytest.approx(0.45)
    negative = np.where(np.eye(4) > 0, 1.0, -0.5)[None].repeat(3, 0)
    posed = affinity_problem(negative, (1, 1, 1), 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one, other = (beam_front(posed, negative, 9, Beam(seed=3)) for _ in range(2))
    assert one == other
    assert spectral_groups(np.ones((1, 1)), 0)[0].tolist() == [0]


def test_spectral_clusters_agree_with_scikit_learn_on_planted_blocks() -> None:
    from sklearn.cluster import SpectralClustering

    rng = np.random.default_rng(5)
    for _ in range(5):
        labels = np.repeat([0, 1, 2], [5, 4, 6])
        noise = rng.uniform(0, 0.15, (15, 15))
        w = np.where(labels[:, None] == labels, 0.8, 0.05) + (noise + noise.T) / 2
        theirs = SpectralClustering(3, affinity="precomputed", random_state=0).fit_predict(w)
        assert of_labels(spectral_groups(w, 0)[2].tolist()) == of_labels(theirs.tolist()) == of_labels(labels.tolist())


def test_choices_are_made_nested() -> None:
    rows = [[0, 0, 0, 0], [2, 2, 2, 2], [0, 0, 1, 1], [3, 3, 3, 3], [0, 1, 2, 2], [1, 1, 1, 1]]
    found = nested([of_labels(row) for row in rows])
    assert found == tree("0123", "0123", "01|23", "01|23", "0|1|23", "0|1|23")
    assert [len(partition) for partition in found] == [1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize(("n", "depth", "expected"), [(2, 5, 6), (3, 2, 12), (3, 4, 35), (4, 2, 60)])
def test_nesting_reaches_every_tree(n: int, depth: int, expected: int) -> None:
    partitions = list(map(canonical, set_partitions(n)))
    reached = {nested(groupings) for groupings in itertools.product(partitions, repeat=depth)}
    assert reached == set(all_trees(n, depth))
    assert len(reached) == expected


@pytest.mark.parametrize("depth", [2, 4, 16])
def test_numbers_of_trees_in_closed_form(depth: int) -> None:
    assert TreeCounter(2, [[1] * depth], [0], [99]).total() == depth + 1
    assert TreeCounter(3, [[1] * depth], [0], [99]).total() == (depth + 1) * (3 * depth + 2) // 2


def test_fixed_trees_are_checked() -> None:
    rows = ((0, 0, 0), (4, 4, 7), (0, 1, 2))
    assert read_tree(rows, 3, 3) == tree("012", "01|2", "0|1|2")
    with pytest.raises(UsageError, match=r"joins tasks in row 2 .*Nearest: \[\[0, 0, 1\], \[0, 0, 1\]\]"):
        read_tree(((0, 0, 1), (0, 0, 0)), 3, 2)
    with pytest.raises(UsageError, match="expected one row for each of 4 segments"):
        read_tree(rows, 3, 4)


# Random trees


@settings(max_examples=30, deadline=None)
@given(
    st.integers(2, 4),
    st.lists(st.integers(1, 6), min_size=1, max_size=3),
    st.integers(0, 30),
    st.integers(0, 30),
)
def test_trees_of_a_size_are_counted_exactly(n: int, per_copy: list[int], low: int, width: int) -> None:
    sizes = [sum(len(p) * one for p, one in zip(t, per_copy, strict=True)) for t in all_trees(n, len(per_copy))]
    counter = TreeCounter(n, [per_copy], [low], [low + width])
    assert counter.total() == sum(low <= size <= low + width for size in sizes)


def test_draws_are_uniform_over_trees_within_the_size() -> None:
    per_copy, low, high = (1, 2, 3), 9, 16
    allowed = [
        t for t in all_trees(3, 3) if low <= sum(len(p) * one for p, one in zip(t, per_copy, strict=True)) <= high
    ]
    counter, rng = TreeCounter(3, [per_copy], [low], [high]), torch.Generator().manual_seed(0)
    drawn = Counter(counter.draw(rng) for _ in range(200 * len(allowed)))
    assert set(drawn) == set(allowed)
    assert 1 < len(allowed) < 22
    assert scipy.stats.chisquare([drawn[t] for t in allowed]).pvalue > 0.01
    with pytest.raises(UsageError, match="No tree has a size"):
        TreeCounter(3, [per_copy], [7], [7]).draw(rng)


def test_a_tree_is_a_tree_for_networkx() -> None:
    """Segments' copies, joined with their parents and the stem, form an arborescence, whatever tree is drawn."""
    counter, rng = TreeCounter(5, [[1] * 6], [0], [30]), torch.Generator().manual_seed(1)
    for _ in range(20):
        graph = networkx.DiGraph()
        above = [("stem",)] * 5
        for segment, partition in enumerate(counter.draw(rng)):
            nodes = {task: (segment, cluster) for cluster in partition for task in cluster}
            graph.add_edges_from((above[task], nodes[task]) for task in range(5))
            above = [nodes[task] for task in range(5)]
        assert networkx.is_arborescence(graph)
