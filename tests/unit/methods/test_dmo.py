"""DMO: the traps of its specification, with the numbers that it gives."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from benchmark.train.trainer import CellTrainer
from datasets.contracts import DatasetSpec, TaskSpec
from datasets.errors import UsageError
from datasets.kinds.class_kind import IGNORE
from methods.backbones.backbone import Backbone, BackboneConfig, create_backbone
from methods.contracts import Budget, Role
from methods.dmo import group_training
from methods.dmo.analysis import _scale, difficulties_of, prune
from methods.dmo.difficulty import difficulties, mean_loss, sample_losses
from methods.dmo.group_training import merge
from methods.dmo.grouping import groups_of, maximal_cliques, random_groups, read_groups, task_graph_of
from methods.dmo.method import Dmo
from methods.dmo.network import GroupNetwork, batches_of, group_graph, group_updates, is_due
from methods.dmo.parameters import DmoParams, PublishedParams, kept_fraction
from methods.dmo.pruning import hardest_last, merged_weights, survivors
from methods.dmo.similarity import combined, loss_similarity, resolved_threshold, weight_similarity
from methods.dmo.singles import train_single
from methods.graph.cost import count, size
from methods.graph.operations import Operation
from methods.graph.task_graph import TaskGraph
from methods.sparsity import macs_nonzero, n_nonzero, n_survivors, prunable
from tests.unit.harness import toy_backbone, toy_spec, toy_trainer
from tests.unit.kills import Killed, kill_after, outcome

C10, STL, USPS, MNIST = range(4)
N_RESNET18 = 11_166_912
D_RERUN = (3548 / 50_000, 3302 / 5_000, 10 / 7_291, 94 / 60_000)  # in the order above


def matrix(pairs: Mapping[tuple[int, int], float], n: int = 4) -> np.ndarray:
    s = np.eye(n)
    for (i, j), value in pairs.items():
        s[i, j] = s[j, i] = value
    return s


# The author's published matrix
S = matrix(
    {
        (C10, STL): 0.4847176,
        (C10, USPS): 0.3712503,
        (C10, MNIST): 0.4023810,
        (STL, USPS): 0.4340365,
        (STL, MNIST): 0.4558849,
        (USPS, MNIST): 0.4901332,
    }
)
S_L = matrix(
    {
        (C10, STL): 0.9728,
        (C10, USPS): 0.7441,
        (C10, MNIST): 0.7993,
        (STL, USPS): 0.8688,
        (STL, MNIST): 0.9138,
        (USPS, MNIST): 0.9809,
    }
)


def grouped(s: np.ndarray, tau_sim: float) -> set[tuple[int, ...]]:
    return set(groups_of(maximal_cliques(s, tau_sim)))


# Pruning


def test_p1_direction_of_the_exponential() -> None:
    d = (0.07096, 0.6604, 0.001371554, 0.001566667)
    q = [kept_fraction(value, 1.0) for value in d]
    assert q == pytest.approx([0.068501, 0.483355, 0.0013706, 0.0015654], abs=5e-7)
    assert kept_fraction(0.0, 1.0) == 0.0
    assert kept_fraction(1.0, 1.0) == pytest.approx(0.632121, abs=5e-7)
    values = [kept_fraction(value, 1.0) for value in np.linspace(0, 1, 50)]
    assert values == sorted(values)


def test_p2_smaller_tau_keeps_more() -> None:
    d = D_RERUN
    expected = {
        1.0: ((0.068501, 0.483355, 0.001371, 0.001565), 6_254_237),
        0.5: ((0.132309, 0.733078, 0.002739, 0.003128), 9.788e6),
        0.25: ((0.247113, 0.928753, 0.005471, 0.006247), 13.321e6),
    }
    for tau, (fractions, total) in expected.items():
        q = [kept_fraction(value, tau) for value in d]
        assert q == pytest.approx(fractions, abs=5e-7)
        kept = sum(n_survivors(value, N_RESNET18) + 9_600 + 5_130 for value in q)
        assert kept == pytest.approx(total, abs=600)


def test_p12_a_task_that_is_easy_keeps_the_floor() -> None:
    assert n_survivors(kept_fraction(0.0, 1.0), N_RESNET18) == 1
    assert n_survivors(0.01, N_RESNET18) == 111_669
    weights = [torch.randn(5, 4, generator=torch.Generator().manual_seed(k)) * (k + 1) for k in range(20)]
    found = survivors(weights, 0.0, "global", layer_floor=0)
    assert sum(found.counts) == 1
    assert found.n_floored == 0
    found = survivors(weights, 0.0, "global", layer_floor=1)
    assert found.counts == [1] * 20
    assert found.n_floored == 19
    for mask, weight in zip(found.masks, weights, strict=True):
        assert float(weight[mask].abs()) == float(weight.abs().max())
    assert survivors([torch.ones(2)], 1.0, "global", layer_floor=5).counts == [2]  # a tensor has no more than it has


def test_p13_ties_do_not_keep_more_than_k() -> None:
    found = survivors([torch.tensor([3.0, 1.0, 1.0, 1.0])], 0.5, "global", 0)
    assert found.counts == [2]
    assert found.masks[0].tolist() == [True, True, False, False]
    assert int((torch.tensor([3.0, 1.0, 1.0, 1.0]) >= 1.0).sum()) == 4  # a threshold keeps all


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.lists(st.integers(-3, 3), min_size=1, max_size=6), min_size=1, max_size=4),
    st.floats(0, 1),
)
def test_survivors_are_the_first_of_a_stable_sort(values: list[list[int]], q: float) -> None:
    weights = [torch.tensor(row, dtype=torch.float32) for row in values]
    flat = np.abs(np.concatenate([w.numpy() for w in weights]))
    k = max(1, round(q * len(flat)))
    expected = np.zeros(len(flat), dtype=bool)
    expected[np.argsort(-flat, kind="stable")[:k]] = True
    found = survivors(weights, q, "global", 0)
    assert torch.cat(found.masks).tolist() == expected.tolist()
    layered = survivors(weights, q, "layer", 0)
    assert layered.counts == [max(1, round(q * len(row))) for row in values]


def test_p14_the_harder_task_wins() -> None:
    w_a, w_b = torch.tensor([3.0, -1.0, 0.5, 2.0]), torch.tensor([5.0, 1.0, -2.0, 0.1])
    masks = [survivors([w], 0.5, "global", 0).masks for w in (w_a, w_b)]
    assert [mask[0].nonzero().flatten().tolist() for mask in masks] == [[0, 3], [0, 2]]
    for d, expected in (((0.1, 0.2), [5.0, 0.0, -2.0, 2.0]), ((0.2, 0.1), [3.0, 0.0, -2.0, 2.0])):
        order = hardest_last((0, 1), d)
        merged, union = merged_weights([[(w_a, w_b)[t]] for t in order], [masks[t] for t in order])
        assert merged[0].tolist() == expected
        assert int(union[0].sum()) == 3
    merged, _ = merged_weights([[w_a], [w_b]], masks, "mean")
    assert merged[0].tolist() == [4.0, 0.0, -2.0, 2.0]
    assert hardest_last((0, 1), (0.5, 0.5)) == [1, 0]  # of equally hard tasks the first counts as the hardest


@pytest.fixture(scope="module")
def resnet18() -> Backbone:
    return create_backbone(BackboneConfig("resnet18", image_size=(32, 32)), seed=0)


def body_of(backbone: Backbone) -> list[Operation]:
    blocks = [backbone.block_operation(index) for index in range(len(backbone.blocks))]
    return [backbone.stem_operation(), *blocks, backbone.tail_operation()]


def test_p19_prunable_weights_and_parameter_anchors(resnet18: Backbone) -> None:
    weights = prunable(body_of(resnet18))
    assert len(weights) == 20
    assert sum(w.numel() for w in weights.values()) == N_RESNET18
    assert resnet18.n_parameters() - N_RESNET18 == 9_600
    assert list(weights)[:2] == ["stem 0", "block 0 conv1"]
    assert 4 * (resnet18.n_parameters() + 5_130) == 44_726_568
    assert 20 * (resnet18.n_parameters() + 2_565) == 223_581_540
    for name, n, tensors in (("resnet34", 21_267_648, 36), ("resnet50", 23_454_912, 53)):
        with torch.device("meta"):
            other = create_backbone(BackboneConfig(name), seed=0)
        found = prunable(body_of(other))
        assert (len(found), sum(w.numel() for w in found.values())) == (tensors, n)


def test_worked_example_of_the_published_rerun(resnet18: Backbone) -> None:
    k = [n_survivors(kept_fraction(value, 1.0), N_RESNET18) for value in D_RERUN]
    assert k == [764_943, 5_397_587, 15_306, 17_481]
    assert k[USPS] + k[MNIST] - 817 == 31_970
    assert k[C10] + k[STL] - 494_956 == 5_667_574
    assert sum(k) + 4 * 14_730 == 6_254_237
    data = dataclasses.replace(
        toy_spec(size=32), tasks=tuple(TaskSpec(f"t{i}", "class", 10, ("accuracy",)) for i in range(2))
    )

    def head(task: str) -> Operation:
        from methods.backbones.heads import create_head

        return create_head(data.task(task), resnet18, seed=0)

    graph = group_graph(data, data.task_names, body_of(resnet18), head, "per_task_stats")
    total = 0
    for survived, expected in ((31_970, 51_830), (5_667_574, 5_687_434)):
        masks, left = [], survived
        for weight in prunable(body_of(resnet18)).values():
            mask = torch.arange(weight.numel()) < left
            left = max(0, left - weight.numel())
            masks.append(mask.view(weight.shape))
        assert n_nonzero(graph, masks) == expected
        total += n_nonzero(graph, masks)
    assert total == 5_739_264
    assert round(total / 44_726_568, 4) == 0.1283
    assert 2 * sum(p.numel() for p in graph.parameters()) == 22_373_544


# Difficulty


def test_p3_mu_is_a_mean_of_means() -> None:
    losses = [torch.tensor([0.0, 2.0]).double(), torch.tensor([1.6, 1.6, 1.6, 3.2]).double()]
    assert mean_loss(losses) == pytest.approx(1.5)
    assert difficulties(losses, mean_loss(losses)) == [0.5, 1.0]
    pooled = mean_loss(losses, "pooled")
    # Six samples, 10 in total: their mean is 10 / 6 = 1.6667, above three of the four of B.
    assert pooled == pytest.approx(10 / 6)
    assert difficulties(losses, pooled) == [0.5, 0.25]


def test_p4_a_loss_at_the_mean_is_hard() -> None:
    losses = [torch.ones(3, dtype=torch.float64)]
    assert mean_loss(losses) == 1.0
    assert difficulties(losses, 1.0) == [1.0]


def test_p5_losses_in_different_units() -> None:
    a, b = torch.tensor([0.5, 1.5]).double(), torch.tensor([1.0, 3.0]).double()
    for factor, mu, d in ((1, 1.5, [0.5, 0.5]), (1000, 1000.5, [0.0, 0.5])):
        assert mean_loss([a, b * factor]) == pytest.approx(mu)
        assert difficulties([a, b * factor], mean_loss([a, b * factor])) == d
        scaled = [a / 2, b * factor / (4 * factor)]
        assert mean_loss(scaled) == pytest.approx(0.5)
        assert difficulties(scaled, mean_loss(scaled)) == [0.5, 0.5]


def test_p5_units_are_looked_at_when_nothing_is_said(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, steps=4)
    single = train_single(DmoParams(), trainer, "a")
    mixed = dataclasses.replace(
        trainer.data, tasks=(trainer.data.tasks[0], TaskSpec("depth", "depth", 1, ("abs_err",)))
    )
    first = single.loss[0]
    for params, data, expected in (
        ({}, trainer.data, 1.0),
        ({}, mixed, first),
        ({"difficulty_normalise": "initial"}, trainer.data, first),
        ({"difficulty_normalise": "none"}, mixed, 1.0),
    ):
        assert _scale(DmoParams(**params), data, single) == expected


@pytest.mark.usefixtures("float64")
def test_losses_of_samples_are_those_of_each_alone(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, steps=4)
    graph = trainer.single_task("a").graph
    batches = list(trainer.batches(Role.FIT, tasks=["a"]))
    found, n_batches = sample_losses(trainer.data, graph, "a", batches)
    assert n_batches == len(batches)
    network = graph.network().eval()
    expected = torch.cat(
        [F.cross_entropy(network(b.images, ("a",))["a"], b.targets["a"].long(), reduction="none") for b in batches]
    )
    assert len(found) == 48
    # The network runs in float64; its predictions are rounded to float32, whose eps is 1.2e-7, before the losses.
    torch.testing.assert_close(found, expected.detach(), rtol=0, atol=1e-6 * max(1, float(expected.max())))
    # A sample without a label has no loss; it must not count as an easy one.
    batches[0].targets["a"][:5] = IGNORE
    assert len(sample_losses(trainer.data, graph, "a", batches)[0]) == 43


def test_difficulty_is_measured_in_eval_mode_and_leaves_the_network_alone(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, steps=4)
    graph = trainer.single_task("a").graph
    before = graph.weights_hash()
    batches = list(trainer.batches(Role.FIT, tasks=["a"]))
    graph.network().train()
    sample_losses(trainer.data, graph, "a", batches)
    assert graph.weights_hash() == before


# Grouping


def test_p6_strict_edges_and_ties_decide() -> None:
    cliques = maximal_cliques(S, 0.45)
    assert cliques == ((USPS, MNIST), (C10, STL), (STL, MNIST))
    assert groups_of(cliques) == ((USPS, MNIST), (C10, STL))
    other = ((STL, MNIST), (USPS, MNIST), (C10, STL))
    assert groups_of(other) == ((STL, MNIST), (USPS,), (C10,))
    exact = matrix({(0, 1): 0.45}, 2)
    assert task_graph_of(exact, 0.45).number_of_edges() == 0


@pytest.mark.parametrize(
    ("tau_sim", "expected"),
    [
        (0.50, {(C10,), (STL,), (USPS,), (MNIST,)}),
        (0.49, {(USPS, MNIST), (C10,), (STL,)}),
        *((tau, {(USPS, MNIST), (C10, STL)}) for tau in (0.48, 0.47, 0.46, 0.45, 0.44)),
        (0.43, {(STL, USPS, MNIST), (C10,)}),
        (0.40, {(STL, USPS, MNIST), (C10,)}),
        (0.37, {(C10, STL, USPS, MNIST)}),
    ],
)
def test_p7_groups_jump_with_the_threshold(tau_sim: float, expected: set[tuple[int, ...]]) -> None:
    assert grouped(S, tau_sim) == expected


def test_p8_of_cliques_of_one_size_the_more_similar_one_comes_first() -> None:
    cliques = maximal_cliques(S, 0.40)
    assert cliques[:2] == ((STL, USPS, MNIST), (C10, STL, MNIST))
    means = [np.mean([S[i, j] for i, j in itertools.combinations(c, 2)]) for c in cliques[:2]]
    assert means == pytest.approx([0.4600, 0.4477], abs=5e-5)
    assert maximal_cliques(S, 0.40, "size")[0] == (C10, STL, MNIST)


def test_p9_a_threshold_is_not_portable() -> None:
    assert task_graph_of(S, 0.8).number_of_edges() == 0
    assert grouped(S, 0.8) == {(C10,), (STL,), (USPS,), (MNIST,)}
    at_zero = combined(np.full((4, 4), np.nan), S_L, 0.0)
    assert maximal_cliques(at_zero, 0.8) == ((STL, USPS, MNIST), (C10, STL))
    assert grouped(at_zero, 0.8) == {(STL, USPS, MNIST), (C10,)}
    tau_sim = resolved_threshold(S, "quantile:0.667")
    assert tau_sim == pytest.approx(0.4655, abs=5e-5)
    assert grouped(S, tau_sim) == {(USPS, MNIST), (C10, STL)}


@st.composite
def similarities(draw: st.DrawFn) -> np.ndarray:
    n = draw(st.integers(1, 6))
    values = {pair: draw(st.sampled_from([0.1, 0.3, 0.5, 0.7])) for pair in itertools.combinations(range(n), 2)}
    return matrix(values, n)


@settings(max_examples=60, deadline=None)
@given(similarities(), st.sampled_from([0.0, 0.2, 0.3, 0.5]))
def test_cliques_are_those_of_a_naive_search_and_groups_lie_inside_them(s: np.ndarray, tau_sim: float) -> None:
    n = len(s)
    complete = [
        c
        for size in range(1, n + 1)
        for c in itertools.combinations(range(n), size)
        if all(s[i, j] > tau_sim for i, j in itertools.combinations(c, 2))
    ]
    maximal = {c for c in complete if not any(set(c) < set(other) for other in complete)}
    cliques = maximal_cliques(s, tau_sim)
    assert set(cliques) == maximal
    assert len(cliques) == len(maximal)
    assert [len(c) for c in cliques] == sorted((len(c) for c in cliques), reverse=True)
    groups = groups_of(cliques)
    assert sorted(t for group in groups for t in group) == list(range(n))
    assert all(s[i, j] > tau_sim for group in groups for i, j in itertools.combinations(group, 2))


def test_random_groups_have_the_sizes_that_were_found() -> None:
    found = random_groups(((0, 2, 3), (1,)), torch.Generator().manual_seed(0))
    assert [len(group) for group in found] == [3, 1]
    assert sorted(t for group in found for t in group) == [0, 1, 2, 3]
    draws = {random_groups(((0, 2, 3), (1,)), torch.Generator().manual_seed(k)) for k in range(20)}
    assert len(draws) == 4


@dataclasses.dataclass
class Weights:
    """What pruning reads of a single-task network."""

    weights: dict[str, torch.Tensor]


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_random_groups_keep_as_many_weights_as_the_groups_that_were_found(scope: str, tmp_path: Path) -> None:
    """Two networks are alike and a third is not, so that a group of the two has the smallest union."""
    random = torch.Generator().manual_seed(0)
    common = torch.randn(5000, generator=random)
    vectors = [common, common + 0.1 * torch.randn(5000, generator=random), torch.randn(5000, generator=random)]
    singles = [Weights({"stem": vector[:1000], "block": vector[1000:]}) for vector in vectors]
    found, drawn = ((0, 1), (2,)), ((0, 2), (1,))
    p, d = DmoParams(prune_scope=scope, tau_sim=0.5), [0.3, 0.2, 0.5]

    def kept(groups: tuple[tuple[int, ...], ...], used: list[Any]) -> int:
        return sum(
            int(functools.reduce(torch.logical_or, (used[task].masks[n] for task in members)).sum())
            for members in groups
            for n in range(2)
        )

    trainers = [toy_trainer(tmp_path / name) for name in ("found", "drawn")]
    for trainer in trainers:
        first, *_ = trainer.data.tasks
        tasks = tuple(dataclasses.replace(first, name=name) for name in "abc")
        trainer.context = dataclasses.replace(trainer.context, data=dataclasses.replace(trainer.data, tasks=tasks))
    plain = prune(p, trainers[0], singles, d, found, found)
    control = prune(p, trainers[1], singles, d, drawn, found)
    assert kept(drawn, plain) > 1.1 * kept(found, plain)  # what groups of equal sizes alone would have
    assert kept(drawn, control) == pytest.approx(kept(found, plain), rel=2e-3)
    assert trainers[1].facts["deviation from the size asked for"]["value"] < 0.2
    assert "deviation from the size asked for" not in trainers[0].facts
    assert not trainers[1].flags
    # One that keeps nearly all of its weights cannot keep more: the number is missed, and that is said.
    full = prune(p.model_copy(update={"pruning": "none"}), trainers[1], singles, d, ((0,), (1,), (2,)), found)
    assert kept(((0,), (1,), (2,)), full) == pytest.approx(2 * 5000, rel=2e-3)


def test_given_groups_must_be_a_partition() -> None:
    tasks = ("a", "b", "c")
    assert read_groups((("c", "a"), ("b",)), tasks) == ((0, 2), (1,))
    with pytest.raises(UsageError, match="Unknown task in groups 'd'"):
        read_groups((("a", "d"), ("b",)), tasks)
    for wrong in ((("a",), ("b",)), (("a", "b"), ("b", "c")), (("a", "b", "c"), ())):
        with pytest.raises(UsageError, match="must hold each of"):
            read_groups(wrong, tasks)


# Similarity


def test_p10_weights_of_networks_that_start_apart_do_not_correlate() -> None:
    vectors = [[torch.randn(1_000_000, generator=torch.Generator().manual_seed(k))] for k in range(2)]
    assert abs(weight_similarity(vectors)[0, 1]) < 0.005


@pytest.mark.numerical
def test_p10_p21_networks_that_start_alike_have_similarity_one(tmp_path: Path) -> None:
    weights = [list(prunable(body_of(toy_backbone())).values()) for _ in range(3)]
    s_w = weight_similarity(weights)
    assert np.abs(s_w - 1).max() < 1e-12
    assert np.ptp(s_w[np.triu_indices(3, 1)]) <= 1e-12


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.floats(-100, 100))
def test_weight_similarity_is_numpys(seed: int, offset: float) -> None:
    random = torch.Generator().manual_seed(seed)
    networks = [[torch.randn(3, 4, generator=random) + offset, torch.randn(7, generator=random)] for _ in range(3)]
    expected = np.corrcoef([torch.cat([w.flatten() for w in tensors]).double().numpy() for tensors in networks])
    assert weight_similarity(networks) == pytest.approx(expected, abs=1e-9)


def test_loss_similarity_is_scipys_and_leaves_out_what_is_not_there() -> None:
    random = np.random.default_rng(0)
    curves = random.normal(size=(3, 20))
    found = loss_similarity(curves.tolist())
    for i, j in itertools.combinations(range(3), 2):
        assert found[i, j] == pytest.approx(scipy.stats.pearsonr(curves[i], curves[j]).statistic)
    curves[1, 3] = np.nan
    kept = np.delete(curves, 3, axis=1)
    found = loss_similarity(curves.tolist())
    assert found[0, 1] == pytest.approx(np.corrcoef(kept)[0, 1])
    assert found[0, 2] == pytest.approx(np.corrcoef(curves)[0, 2])
    constant = loss_similarity([[1.0, 2.0, 3.0], [1.0, 1.0, 1.0]])
    assert math.isnan(constant[0, 1])
    assert task_graph_of(np.nan_to_num(constant), -0.5).number_of_edges() == 1
    assert task_graph_of(constant, -1.0).number_of_edges() == 0


def test_p11_decreasing_curves_correlate_by_construction() -> None:
    t = np.arange(25)
    assert loss_similarity([np.exp(-t / 5).tolist(), np.exp(-t / 8).tolist()])[0, 1] > 0.95


def test_combination_is_linear_and_does_not_read_what_has_no_weight() -> None:
    s_w, undefined = matrix({(0, 1): 0.2}, 2), matrix({(0, 1): float("nan")}, 2)
    assert combined(s_w, matrix({(0, 1): 0.8}, 2), 0.25)[0, 1] == pytest.approx(0.65)
    assert combined(s_w, undefined, 1.0)[0, 1] == 0.2


@pytest.mark.parametrize(("n_tasks", "edges"), [(3, 1), (4, 2), (5, 3), (6, 5)])
def test_p21_the_default_quantile_always_groups_somebody(n_tasks: int, edges: int) -> None:
    random = np.random.default_rng(n_tasks)
    pairs = list(itertools.combinations(range(n_tasks), 2))
    s = matrix(dict(zip(pairs, random.permutation(len(pairs)) / 100.0, strict=True)), n_tasks)
    assert task_graph_of(s, resolved_threshold(s, "quantile:0.667")).number_of_edges() == edges
    equal = matrix(dict.fromkeys(pairs, 0.4), n_tasks)
    assert task_graph_of(equal, resolved_threshold(equal, "quantile:0.667")).number_of_edges() == 0


def test_p21_two_tasks_need_a_number() -> None:
    for params in ({}, {"tau_sim": "quantile:0.5"}):
        with pytest.raises(UsageError, match=r"tau_sim is 'quantile:.*' and the cell has 2 tasks \['a', 'b'\]"):
            Dmo(DmoParams(**params)).check(toy_spec(), toy_backbone(), Budget(20))
    Dmo(DmoParams(tau_sim=0.5)).check(toy_spec(), toy_backbone(), Budget(20))
    Dmo(DmoParams(tau_bk=0.8)).check(toy_spec(), toy_backbone(), Budget(20))
    Dmo(DmoParams(groups=(("a", "b"),))).check(toy_spec(), toy_backbone(), Budget(20))
    s = matrix({(0, 1): 0.6}, 2)
    assert len(grouped(s, 0.5)) == 1
    assert len(grouped(s, 0.6)) == 2


# Runs


def run(folder: Path, params: dict[str, Any], **options: Any) -> tuple[CellTrainer, TaskGraph]:
    trainer = toy_trainer(folder, **{"steps": 4, **options})
    return trainer, Dmo(DmoParams(**params)).run(trainer)


TOGETHER = {"groups": (("a", "b"),), "keep_floor": 0.2}


@pytest.mark.numerical
def test_p15_what_is_pruned_stays_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SGD with momentum .9 and weight decay 5e-4, ten steps."""
    trainer = toy_trainer(tmp_path, steps=10)
    assert (trainer.context.recipe.optimizer.momentum, trainer.context.recipe.optimizer.weight_decay) == (0.9, 5e-4)
    seen: list[tuple[list[Tensor], list[Tensor]]] = []
    method = Dmo(DmoParams(**TOGETHER))
    masks = []

    def watched_merge(*args: Any) -> Any:
        graph, kept = merge(*args)
        masks.extend(kept)
        return graph, kept

    monkeypatch.setattr(group_training, "merge", watched_merge)
    fit = trainer.fit

    def watched(stage: Any) -> object:
        after = stage.after_step

        def look() -> None:
            after()
            seen.append([weight.detach().clone() for weight, _ in masks])

        return fit(dataclasses.replace(stage, after_step=look))

    trainer.fit = watched
    method.run(trainer)
    assert len(seen) == 10
    survived = sum(int(mask.sum()) for _, mask in masks)
    for weights in seen:
        assert all(bool((w[~mask] == 0).all()) for w, (_, mask) in zip(weights, masks, strict=True))
        assert sum(int(torch.count_nonzero(w)) for w in weights) == survived
    assert not torch.equal(seen[0][0], seen[-1][0])
    assert trainer.facts["weights kept in groups"]["value"] == survived


def test_p15_other_optimizers_do_not_revive_either(tmp_path: Path) -> None:
    recipe = {"optimizer": {"name": "adamw", "lr": 0.01, "weight_decay": 0.1}}
    trainer, graph = run(tmp_path, TOGETHER, recipe=recipe)
    body = [node.operation for node in graph.nodes.values() if node.operation.origin == "backbone"]
    zeros = sum(int((w == 0).sum()) for w in prunable(body).values())
    assert zeros == trainer.facts["bits of the masks"]["value"] - trainer.facts["weights kept in groups"]["value"]
    assert zeros > 0


LOADERS = {"cifar": 50_000, "stl": 5_000, "usps": 7_291, "mnist": 60_000}


def four_tasks() -> DatasetSpec:
    tasks = tuple(TaskSpec(name, "class", 10, ("accuracy",)) for name in LOADERS)
    return dataclasses.replace(toy_spec("multi"), tasks=tasks, counts={"train": LOADERS})


def test_p16_cycling_short_loaders_changes_the_number_of_updates() -> None:
    data, published = four_tasks(), PublishedParams(epochs=1)
    assert [batches_of(data, name, 64) for name in LOADERS] == [782, 79, 114, 938]
    assert group_updates(data, ["cifar", "stl"], published, "cycle_to_longest") == {"cifar": 782, "stl": 782}
    assert round(782 / 79, 1) == 9.9
    assert group_updates(data, ["usps", "mnist"], published, "cycle_to_longest")["usps"] == 938
    assert round(938 / 114, 1) == 8.2
    assert group_updates(data, ["cifar", "stl"], published, "equal_updates") == {"cifar": 782, "stl": 79}
    for updates, steps in ((79, 782), (114, 938), (938, 938)):
        assert sum(is_due(updates, steps, step) for step in range(steps)) == updates
        done = np.cumsum([is_due(updates, steps, step) for step in range(steps)])
        assert np.abs(done - np.arange(1, steps + 1) * updates / steps).max() < 1


def unequal(folder: Path, **options: Any) -> CellTrainer:
    spec = dataclasses.replace(toy_spec("multi"), counts={"train": {"a": 60, "b": 30}})
    return toy_trainer(folder, domains="multi", data=spec, **options)


PUBLISHED = {
    "recipe": "published",
    "published": {"epochs": 3, "batch_size": 10, "lr": 0.01},
    "groups": (("a", "b"),),
    "sampler": "equal_updates",
}


def test_p16_equal_updates_keep_every_task_at_its_own_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: dict[str, int] = {"a": 0, "b": 0}
    original = GroupNetwork.losses

    def counted(network: GroupNetwork, batch: Any, tasks: Any) -> Any:
        losses = original(network, batch, tasks)
        for task in losses:
            taken[task] += 1
        return losses

    monkeypatch.setattr(GroupNetwork, "losses", counted)
    trainer = unequal(tmp_path)
    Dmo(DmoParams(**PUBLISHED)).run(trainer)
    assert taken == {"a": 18, "b": 9}
    assert trainer.ledger.final.optimizer_steps == 18
    assert trainer.ledger.search.optimizer_steps == 27  # stage 1: each for its own epochs


@pytest.mark.parametrize("kill", [20, 33, 40])
def test_unequal_updates_resume_to_the_same_bits(kill: int, tmp_path: Path) -> None:
    killed = unequal(tmp_path / "killed", checkpoint_steps=2)
    kill_after(killed, kill)
    with pytest.raises(Killed):
        Dmo(DmoParams(**PUBLISHED)).run(killed)
    again = unequal(tmp_path / "killed")
    assert outcome(again, Dmo(DmoParams(**PUBLISHED)).run(again)) == straight_unequal()


@functools.cache
def straight_unequal() -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        trainer = unequal(Path(folder))
        return outcome(trainer, Dmo(DmoParams(**PUBLISHED)).run(trainer))


@pytest.mark.parametrize("params", [TOGETHER, {**TOGETHER, "reinit": True, "batch_norm": "per_task"}])
def test_a_killed_group_training_ends_with_the_same_bits(params: dict[str, Any], tmp_path: Path) -> None:
    expected = outcome(*run(tmp_path / "straight", params))
    for kill in (6, 10):  # in the second single-task training, in the group's
        killed = toy_trainer(tmp_path / f"killed-{kill}", steps=4, checkpoint_steps=1)
        kill_after(killed, kill)
        with pytest.raises(Killed):
            Dmo(DmoParams(**params)).run(killed)
        assert outcome(*run(tmp_path / f"killed-{kill}", params)) == expected


@pytest.mark.parametrize("rule", ["per_task_stats", "per_task", "shared"])
def test_p18_whose_statistics_a_group_has(rule: str, tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, domains="multi")
    images = {
        name: torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(k)) + k
        for k, name in enumerate(("a", "b"))
    }

    def statistics(tasks: tuple[str, ...], of: str) -> Tensor:
        graph = group_graph(trainer.data, ("a", "b"), body_of(trainer.backbone()), trainer.head, rule)
        graph.network().train()(images, tasks)
        parts = [part for node in graph.reachable([of]) for part in node.module.modules()]
        return torch.cat([part.running_mean.clone() for part in parts if isinstance(part, nn.BatchNorm2d)])

    both = statistics(("a", "b"), "a")
    if rule == "shared":
        assert not torch.allclose(both, statistics(("a",), "a"))
        assert not torch.allclose(both, statistics(("b",), "a"))
        assert torch.equal(both, statistics(("a", "b"), "b"))
    else:
        assert torch.equal(both, statistics(("a",), "a"))
        assert torch.equal(statistics(("a", "b"), "b"), statistics(("b",), "b"))


def test_p18_norms_of_its_own_are_added(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, domains="multi")
    graphs = {
        rule: group_graph(trainer.data, ("a", "b"), body_of(trainer.backbone()), trainer.head, rule)
        for rule in ("per_task_stats", "per_task", "shared")
    }
    measured = {rule: size(graph, trainer.backbone().n_parameters()) for rule, graph in graphs.items()}
    sizes = {rule: found.added for rule, found in measured.items()}
    norms = [m for m in trainer.backbone().module().modules() if isinstance(m, nn.BatchNorm2d)]
    assert sizes == {"per_task_stats": 0, "shared": 0, "per_task": sum(2 * m.num_features for m in norms)}
    assert {found.backbone for found in measured.values()} == {trainer.backbone().n_parameters()}


def test_p20_a_single_task(tmp_path: Path) -> None:
    data = toy_spec().with_tasks(["a"])
    trainer = toy_trainer(tmp_path, steps=4, data=data)
    assert Dmo(DmoParams()).check(data, toy_backbone(), Budget(4))
    graph = Dmo(DmoParams()).run(trainer)
    assert graph.tasks == ("a",)
    assert trainer.facts["groups"]["value"] == 1
    assert not {"S", "S_W", "S_L"} & set(trainer.artifacts)
    losses, _ = sample_losses(data, trainer.single_task("a").graph, "a", list(trainer.batches(Role.FIT, tasks=["a"])))
    assert trainer.facts["difficulty, a"]["value"] == float((losses >= losses.mean()).double().mean())


def test_similar_tasks_share_and_the_log_says_why(tmp_path: Path) -> None:
    trainer, graph = run(tmp_path, {"tau_sim": -1.0, "keep_floor": 0.3})
    assert trainer.elements == ["a+b"]
    assert {"S_W", "S_L", "S", "cliques", "d", "q", "survivors"} <= set(trainer.artifacts)
    assert set(trainer.figures) == {"similarity", "groups", "kept"}
    assert trainer.facts["edges"] == {"value": 1.0, "unit": "of 1"}
    for words in ("weight similarity", "loss similarity", "similarity"):
        assert {f"{words}, {label}" for label in ("minimum", "median", "maximum")} <= set(trainer.facts)
    kept = trainer.artifacts["survivors"].sum(1)
    assert trainer.facts["survivors, a"]["value"] == kept[0]
    assert max(kept) <= trainer.facts["weights kept in groups"]["value"] <= sum(kept)
    assert trainer.facts["parameters, dense"]["value"] == sum(p.numel() for p in graph.parameters())
    backbone = trainer.backbone().n_parameters()
    assert sum(p.numel() for p in graph.parameters("backbone")) == backbone
    assert trainer.weight_steps(graph) == 8
    apart = run(tmp_path / "apart", {"tau_sim": 1.0})[1]
    assert sum(p.numel() for p in apart.parameters("backbone")) == 2 * backbone


def test_what_is_not_prunable_comes_from_the_hardest_task_and_heads_start_anew(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, steps=4)
    method = Dmo(DmoParams(**TOGETHER))
    singles = [train_single(method.params, trainer, task) for task in ("a", "b")]
    d = difficulties_of(method.params, trainer, singles)
    hardest = singles[d.index(max(d))]
    expected = {
        name: value.clone()
        for operation in hardest.body
        for name, value in operation.module.state_dict(prefix=str(operation.config)).items()
        if "bn" in name
    }
    pruned = prune(method.params, trainer, singles, d, ((0, 1),), ((0, 1),))
    graph, masks = merge(method.params, trainer, singles, pruned, d, (0, 1))
    found = {
        name: value
        for node in graph.nodes.values()
        if node.operation.origin == "backbone"
        for name, value in node.module.state_dict(prefix=str(node.operation.config)).items()
        if "bn" in name
    }
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    for task in ("a", "b"):
        head = graph.nodes[graph.outputs[task].name].module
        assert torch.equal(head.linear.weight, trainer.head(task).module.linear.weight)
    assert all(bool((weight[~mask] == 0).all()) for weight, mask in masks)


@pytest.mark.numerical
def test_the_twin_restarts_under_the_same_masks(tmp_path: Path) -> None:
    trainer, graph = run(tmp_path, {**TOGETHER, "reinit": True})
    assert trainer.weight_steps(graph) == 4
    again, _ = run(tmp_path / "again", TOGETHER)
    assert trainer.facts["weights kept in groups"] == again.facts["weights kept in groups"]
    method, fresh = Dmo(DmoParams(**TOGETHER, reinit=True)), toy_trainer(tmp_path / "x", steps=4)
    singles = [train_single(method.params, fresh, task) for task in ("a", "b")]
    d = difficulties_of(method.params, fresh, singles)
    _, masks = merge(
        method.params, fresh, singles, prune(method.params, fresh, singles, d, ((0, 1),), ((0, 1),)), d, (0, 1)
    )
    initial = prunable(body_of(fresh.backbone())).values()
    assert all(torch.equal(w, start * mask) for (w, mask), start in zip(masks, initial, strict=True))


@pytest.mark.parametrize(("pruning", "expected"), [("none", 1.0), ("equal", None)])
def test_controls_of_pruning(pruning: str, expected: float | None, tmp_path: Path) -> None:
    trainer, _ = run(tmp_path, {"groups": (("a",), ("b",)), "pruning": pruning, "keep_floor": 0.0})
    q = trainer.artifacts["q"]
    assert q[0] == q[1]
    if expected is not None:
        assert q[0] == expected
    else:
        assert q[0] == pytest.approx(np.mean([kept_fraction(d, 1.0) for d in trainer.artifacts["d"]]))


def test_independent_starts_differ_and_need_a_start_from_scratch(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, steps=2)
    method = Dmo(DmoParams(init="independent", groups=(("a", "b"),)))
    singles = [train_single(method.params, trainer, task) for task in ("a", "b")]
    assert abs(weight_similarity([list(single.weights.values()) for single in singles])[0, 1]) < 0.05
    given = dataclasses.replace(toy_backbone(), from_scratch=False)
    with pytest.raises(UsageError, match="init: independent draws initial weights anew"):
        method.check(toy_spec(), given, Budget(20))


def test_published_curves_are_read_by_epoch(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path)
    method = Dmo(DmoParams(recipe="published", published={"epochs": 5, "batch_size": 20, "lr": 0.01}))
    single = train_single(method.params, trainer, "a")
    assert len(single.loss) == 5
    assert trainer.ledger.search.optimizer_steps == 15
    assert (method.params.batch_norm, method.params.sampler, method.final_batch_norm) == (
        "shared",
        "cycle_to_longest",
        "shared",
    )


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"published": {}}, "published is read under"),
        ({"loss_axis": "epoch"}, "loss_axis: epoch is read under"),
        ({"random_groups": True, "groups": (("a",),)}, "nothing for random_groups to draw"),
        ({"tau_sim": "median"}, "tau_sim"),
    ],
)
def test_parameters_that_contradict_each_other(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DmoParams(**params)


def test_curves_of_two_points_are_refused_when_planned() -> None:
    with pytest.raises(UsageError, match="2 steps in 20 cycles; loss curves of fewer than 3 points"):
        Dmo(DmoParams(tau_sim=0.5)).check(toy_spec(), toy_backbone(), Budget(2))
    Dmo(DmoParams(tau_sim=0.5, alpha=1.0)).check(toy_spec(), toy_backbone(), Budget(2))


def test_macs_of_what_is_not_zero(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path)
    graph = group_graph(trainer.data, ("a", "b"), body_of(trainer.backbone()), trainer.head, "per_task_stats")
    inputs = {"image": (1, 3, 8, 8)}
    dense, nonzero = macs_nonzero(graph, inputs)
    assert (
        dense == nonzero == sum(count(n.module, s).macs for n, s in zip(graph.reachable(), shapes(graph), strict=True))
    )
    stem = graph.reachable()[0]
    convolution = next(part for part in stem.module.modules() if isinstance(part, nn.Conv2d))
    with torch.no_grad():
        convolution.weight[: len(convolution.weight) // 2] = 0
    own = count(convolution, [(1, 3, 8, 8)]).macs
    assert macs_nonzero(graph, inputs) == (dense, dense - own // 2)


def shapes(graph: TaskGraph) -> list[list[tuple[int, ...]]]:
    known: dict[str, tuple[int, ...]] = {"image": (1, 3, 8, 8)}
    found = []
    for node in graph.reachable():
        found.append([known[value.name] for value in node.inputs])
        known[node.name] = count(node.module, found[-1]).output
    return found


def test_counts_of_the_graph_are_those_of_what_is_not_pruned(tmp_path: Path) -> None:
    trainer, graph = run(tmp_path, TOGETHER)
    found = size(graph, trainer.backbone().n_parameters())
    assert found.total == trainer.facts["parameters, not zero"]["value"]
    assert found.dense == trainer.facts["parameters, dense"]["value"]
    assert found.x_backbone < 1.0
