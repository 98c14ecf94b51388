"""BMTAS, LTB and LibMTL's LTB: the traps of the specification with their numbers. Source: branching search 7."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmark.train.stage import StageRun
from datasets.contracts import Batch
from datasets.errors import UsageError
from methods.backbones.backbone import BackboneConfig, create_backbone
from methods.branched import libmtl
from methods.branched.bmtas import Bmtas, BmtasParams
from methods.branched.bmtas_supernet import (
    BmtasLosses,
    BmtasSupernet,
    argmax_groupings,
    layer_costs,
    most_probable_tree,
)
from methods.branched.branching_supernet import (
    BranchingSupernet,
    lineages,
    most_probable_lineages,
    parents_of,
    tree_of,
)
from methods.branched.learning_to_branch import LearningToBranch, LearningToBranchParams
from methods.branched.network import initial_copies, tree_graph
from methods.branched.resource import expected_resource, grouping_probabilities, grouping_table
from methods.branched.schedule import Schedule, SearchParams
from methods.branched.segments import SizeBudget, segments_of
from methods.branched.supernet import Labelled, Search, gumbel, mixture, norms_of
from methods.branched.trees import canonical, nested, of_labels
from methods.contracts import Budget, Role
from methods.graph.cost import count
from tests.numbers import ROUNDING, assert_same
from tests.unit.harness import toy_spec, toy_trainer
from tests.unit.trees import all_trees


def partition(text: str) -> tuple:
    return canonical([map(int, cluster) for cluster in text.split("|")])


# Choices and temperatures


def test_rows_are_tasks_and_columns_are_copies() -> None:
    alpha = np.array([[[0, 0, 50], [0, 0, 50], [50, 0, 0]]], dtype=np.float32)
    assert argmax_groupings(alpha) == [partition("01|2")]
    assert argmax_groupings(alpha.transpose(0, 2, 1)) == [partition("0|12")]  # columns read as tasks
    assert argmax_groupings(alpha + np.array([[[3], [-7], [1]]], dtype=np.float32)) == [partition("01|2")]
    assert argmax_groupings(np.zeros((2, 4, 4), dtype=np.float32)) == [partition("0123")] * 2


@pytest.mark.numerical
def test_gumbel_limits() -> None:
    noise = torch.tensor([0, math.log(2), math.log(4)], dtype=torch.float64)
    for tau, expected in (
        (1, (0.142857, 0.285714, 0.571429)),
        (0.5, (0.047619, 0.190476, 0.761905)),
        (5, (0.288333, 0.331208, 0.380458)),
    ):
        assert mixture(torch.zeros(3), noise, tau).tolist() == pytest.approx(expected, abs=1e-6)
    hard = mixture(torch.zeros(3, requires_grad=True), noise, 1.0, hard=True)
    assert hard.tolist() == [0, 0, 1]
    assert hard.requires_grad


@pytest.mark.parametrize("tau", [0.1, 5.0])
def test_argmax_frequencies_are_those_of_the_logits_at_every_temperature(tau: float) -> None:
    alpha = torch.tensor([1.0, 2.0, 4.0]).log()
    rng = torch.Generator().manual_seed(0)
    chosen = mixture(alpha.expand(20000, 3), gumbel((20000, 3), rng), tau).argmax(1)
    assert (torch.bincount(chosen) / 20000).tolist() == pytest.approx([1 / 7, 2 / 7, 4 / 7], abs=0.015)


def schedule(cycles: int, warmup: int) -> Schedule:
    return Schedule(100, 20, cycles, warmup, 5.0, 0.1)


def test_temperatures_of_the_specification() -> None:
    published = schedule(160, 8)
    found = [published.tau(e) for e in (9, 10, 84, 159, 160)]
    assert found == pytest.approx([5, 4.9675, 2.5662, 0.1325, 0.1], abs=5e-5)
    cycles = schedule(20, 1)
    found = [cycles.tau(e) for e in (2, 3, 11, 19, 20)]
    assert found == pytest.approx([5, 4.7278, 2.55, 0.3722, 0.1], abs=5e-5)


@pytest.mark.parametrize(("cycles", "expected"), [(160, 8), (20, 1), (8, 1), (140, 7)])
def test_there_is_always_a_warm_up(cycles: int, expected: int) -> None:
    assert Schedule.of(10_000, SearchParams(n_cycles=cycles)).warmup == expected


@pytest.mark.parametrize("steps", [1, 2, 3, 6, 40, 100, 2000])
def test_a_search_has_its_batches_however_short(steps: int) -> None:
    found = Schedule.of(steps, SearchParams())
    assert found.weight_steps + found.arch_steps == max(3, round(1.2 * steps))
    assert found.arch_steps >= 1
    assert found.weight_steps >= found.cycles > found.warmup
    assert all(math.isfinite(found.tau(e)) for e in range(1, found.cycles + 1))
    if steps == 2000:
        assert (found.cycles, found.arch_steps) == (20, round(2400 * 0.2 * 19 / 20))


# Resource loss

UNIFORM = {  # (T, L): (bmtas, exact)
    (2, 1): (3 / 2, 3 / 2),
    (2, 3): (41 / 8, 41 / 8),
    (3, 1): (19 / 9, 19 / 9),
    (3, 2): (394 / 81, 388 / 81),
    (3, 3): (5689 / 729, 5599 / 729),
    (3, 4): (70792 / 6561, 69832 / 6561),
    (4, 2): (26837 / 4096, 26111 / 4096),
    (4, 3): (10.531643, 10.281979),
    (5, 2): (8.244086, 7.977283),
    (5, 3): (13.238326, 12.897920),
}


@pytest.mark.parametrize(("shape", "expected"), UNIFORM.items())
def test_expected_size_at_uniform_choices(shape: tuple[int, int], expected: tuple[float, float]) -> None:
    n_tasks, n_layers = shape
    alpha = torch.zeros(n_layers, n_tasks, n_tasks)
    found = [float(expected_resource(alpha, [1.0] * n_layers, estimator)) for estimator in ("bmtas", "exact")]
    assert found == pytest.approx(expected, abs=1e-6)


def brute_force(alpha: torch.Tensor, cost: list[float]) -> float:
    """Expectation over all T^(T L) choices."""
    s = alpha.double().softmax(2)
    n_layers, n_tasks = alpha.shape[:2]
    choices = list(itertools.product(range(n_tasks), repeat=n_tasks))
    total = 0.0
    for rows in itertools.product(choices, repeat=n_layers):
        p = math.prod(float(s[layer, t, row[t]]) for layer, row in enumerate(rows) for t in range(n_tasks))
        tree = nested([of_labels(row) for row in rows])
        total += p * sum(g * len(k) for g, k in zip(cost, tree, strict=True))
    return total


@pytest.mark.parametrize(("n_tasks", "n_layers"), [(2, 1), (2, 4), (3, 2)])
def test_the_exact_estimate_equals_brute_force(n_tasks: int, n_layers: int) -> None:
    random = torch.Generator().manual_seed(n_tasks)
    alpha = torch.randn(n_layers, n_tasks, n_tasks, generator=random, dtype=torch.float64) * 2
    cost = [1.0, 3.0, 0.5, 2.0][:n_layers]
    assert float(expected_resource(alpha, cost, "exact")) == pytest.approx(brute_force(alpha, cost), abs=1e-9)


@pytest.mark.parametrize(("rows", "expected"), [(((3, 1), (3, 1)), 11 / 8), (((3, 1), (1, 3)), 13 / 8)])
def test_expected_size_where_rows_differ(rows: tuple, expected: float) -> None:
    alpha = torch.tensor([rows], dtype=torch.float64).log()
    for estimator in ("bmtas", "exact"):
        assert float(expected_resource(alpha, [1.0], estimator)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("estimator", ["bmtas", "exact"])
def test_expected_size_at_the_extremes(estimator: str) -> None:
    cost = [1.0, 2.0, 3.0, 4.0, 5.0]
    shared = torch.zeros(5, 3, 3)
    shared[:, :, 0] = 50
    assert float(expected_resource(shared, cost, estimator)) == pytest.approx(15, abs=1e-6)
    assert float(expected_resource(50 * torch.eye(3).expand(5, 3, 3), cost, estimator)) == pytest.approx(45, abs=1e-6)


def test_the_official_estimate_is_never_below_the_exact_one() -> None:
    random = torch.Generator().manual_seed(0)
    for case in range(300):
        n_tasks, n_layers = 2 + case % 3, 1 + case % 4
        alpha = 3 * torch.randn(n_layers, n_tasks, n_tasks, generator=random, dtype=torch.float64)
        cost = [1.0] * n_layers
        official, exact = (float(expected_resource(alpha, cost, e)) for e in ("bmtas", "exact"))
        assert official >= exact - 1e-9
        if n_tasks == 2:
            assert official == pytest.approx(exact, abs=1e-9)
        for estimator in ("bmtas", "exact"):
            for p in grouping_probabilities(alpha.softmax(2), estimator):
                assert float(p.min()) >= -1e-12
                assert float(p.sum()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("estimator", ["bmtas", "exact"])
def test_gradients_of_the_resource_match_finite_differences(estimator: str) -> None:
    alpha = torch.randn(3, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda a: expected_resource(a, [1.0, 2.0, 0.5], estimator), (alpha,))


def test_partitions_of_many_tasks_are_refused() -> None:
    with pytest.raises(UsageError, match="up to 7 tasks, not 8"):
        grouping_table(8)


def test_compute_is_counted_at_the_table_size_and_scaled() -> None:
    conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
    assert 2 * count(conv, [(1, 8, 16, 16)]).macs == 294_912
    backbone = create_backbone(BackboneConfig("resnet18"), seed=0)
    spec = toy_spec(size=32)
    segments = segments_of(backbone, spec, "block")

    def costs(**params: object) -> list[float]:
        return layer_costs(backbone, spec, BmtasParams(**params), segments)

    once, twice = (costs(resource_norm="gflops", lut_size=size) for size in ((32, 32), (64, 64)))
    assert twice == pytest.approx([4 * value for value in once], rel=1e-12)
    assert once == pytest.approx(costs(resource_norm="gflops"), rel=1e-12)
    assert costs(resource_norm="gflops", search_scale=0.5) == once
    assert once == pytest.approx([2 * macs / 1e9 for macs in segments.macs], rel=1e-12)
    assert sum(costs()) == pytest.approx(4.7605)
    assert costs(lut_size=(64, 64)) == pytest.approx(costs(), rel=1e-12)
    tokens = create_backbone(BackboneConfig("test_vit", image_size=(32, 32)), seed=0)
    with pytest.raises(UsageError, match="takes"):
        layer_costs(tokens, spec, BmtasParams(lut_size=(64, 64)), segments_of(tokens, spec, "block"))


# The supernet of BMTAS


def supernet(folder: Path, n: int = 2, **params: object) -> tuple[object, BmtasSupernet]:
    trainer = toy_trainer(folder, steps=6, data=tasks(n)) if n != 2 else toy_trainer(folder, steps=6)
    return trainer, BmtasSupernet(trainer, BmtasParams(**params))


def tasks(n: int) -> object:
    spec = toy_spec()
    return dataclasses.replace(spec, tasks=tuple(dataclasses.replace(spec.tasks[0], name=name) for name in "abcde"[:n]))


def batch_of(trainer: object) -> Batch:
    return next(iter(trainer.batches(Role.FIT, 16)))


def test_activations_are_mixed_and_not_weights(tmp_path: Path) -> None:
    class Negated(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(-x)

    _, network = supernet(tmp_path)
    network.layers = nn.ModuleList([nn.ModuleList([nn.ModuleList([f, f]) for f in (nn.ReLU(), Negated())])])
    network.warm = False
    network.eval()  # without noise: w = (1/2, 1/2)
    assert network._mixed(0, 0, torch.tensor([-2.0])).tolist() == [1.0]


def test_in_the_warm_up_a_task_trains_its_own_copies_and_the_stem(tmp_path: Path) -> None:
    trainer, network = supernet(tmp_path)
    losses = Labelled(trainer.data, network)
    losses(batch_of(trainer), ("b",))["b"].backward()
    for layer in network.layers:
        assert all(p.grad is None for p in layer[0][0].parameters())
        assert any(float(p.grad.abs().sum()) > 0 for p in layer[1][0].parameters())
    assert all(float(p.grad.abs().sum()) > 0 for p in network.stems["image"].parameters() if p.dim() == 4)
    assert network.alpha.grad is None


def test_the_last_norm_of_a_copy_has_no_scale_in_the_search_only(tmp_path: Path) -> None:
    trainer, network = supernet(tmp_path)
    blocks = network.backbones[0].blocks
    assert network.n_plain_norms == 2 * len(blocks)
    for block in blocks:
        last = "bn3" if hasattr(block.module, "bn3") else "bn2"
        assert getattr(block.module, last).weight is None
        assert block.module.bn1.weight is not None
        if block.module.downsample is not None:
            assert all(norm.weight is not None for norm in norms_of(block.module.downsample))
    kept = BmtasSupernet(trainer, BmtasParams(final_bn_affine=True))
    assert kept.n_plain_norms == 0
    tree = (((0, 1),),) * 4
    segments = segments_of(trainer.backbone(), trainer.data, "block")
    graph = tree_graph(trainer, tree, *initial_copies(trainer, segments, tree))
    assert all(norm.weight is not None for node in graph.nodes.values() for norm in norms_of(node.module))


@pytest.mark.parametrize("rule", ["shared", "per_task_stats", "per_task"])
def test_norms_of_copies_by_rule(rule: str, tmp_path: Path) -> None:
    _, network = supernet(tmp_path, batch_norm=rule)
    one, other = network.layers[0][0][0], network.layers[0][0][1]
    assert (one is other) == (rule == "shared")
    assert (one.bn1.running_mean is other.bn1.running_mean) == (rule == "shared")
    assert (one.bn1.weight is other.bn1.weight) == (rule != "per_task")
    assert one.conv1.weight is other.conv1.weight


class Watch:
    """What a search does to its network, phase by phase."""

    def __init__(self, trainer: object, network: object, search: Search, monkeypatch: pytest.MonkeyPatch) -> None:
        self.phases: list[tuple] = []
        begin, step = StageRun.begin_phase, StageRun.step

        norm, stem = network.layers[0][0][0].bn1, network.stems["image"][1]

        def statistics() -> list[torch.Tensor]:
            return [value.clone() for value in (norm.running_mean, norm.running_var, norm.num_batches_tracked)]

        def begin_phase(run: StageRun, cycle: int, fresh: bool) -> None:
            self.entering.append(statistics())
            begin(run, cycle, fresh)
            state = statistics()
            chosen = [p.detach().clone() for p in network.choices()]
            self.phases.append((run.stage.name, cycle, network.warm, state, stem.running_mean.clone(), chosen, run))

        def watched_step(run: StageRun, batch: Batch) -> int:
            first = not run.optimizers._optimizers[0].state
            before = [p.detach().clone() for p in network.choices()]
            made = step(run, batch)
            if run.stage.name == "architecture" and first:
                after = [p.detach().clone() for p in network.choices()]
                states = [run.optimizers._optimizers[0].state[p] for p in network.choices()]
                self.first.append((before, after, [(int(s["step"]), s["exp_avg"].clone()) for s in states]))
            return made

        self.first: list[tuple] = []
        self.entering: list[list[torch.Tensor]] = []  # of each phase, before it resets anything
        monkeypatch.setattr(StageRun, "begin_phase", begin_phase)
        monkeypatch.setattr(StageRun, "step", watched_step)
        search.run(trainer)


@pytest.mark.usefixtures("float64")
def test_statistics_optimizers_and_alpha_through_the_phases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = toy_trainer(tmp_path, steps=20)
    network = BmtasSupernet(trainer, BmtasParams(n_cycles=6, lr_arch=1e-2))
    plan = Schedule.of(20, network.params)
    losses = BmtasLosses(trainer.data, network)
    watch = Watch(trainer, network, Search(network, plan, losses, 4), monkeypatch)
    names = [name for name, *_ in watch.phases]
    assert names[0] == "weights"
    assert names.count("weights") == 6
    assert names.count("architecture") == plan.arch_steps == 4
    moved = [bool(sum(float(p.abs().sum()) for p in chosen)) for *_, chosen, _ in watch.phases]
    assert moved.index(True) == names.index("architecture") + 1  # bit-identical until after the first pass
    for number, (one, other) in enumerate(itertools.pairwise(watch.phases), start=1):
        (name, _, warm, state, stem, _, _), (_, _, _, after, stem_after, _, _) = one, other
        if name == "architecture":
            assert not torch.equal(stem, stem_after)
            # Unchanged by the architecture pass, then reset for the weight pass.
            assert all(torch.equal(kept, left) for kept, left in zip(state, watch.entering[number], strict=True))
            assert [float(v.abs().sum()) for v in after] == [0, len(after[1]), 0]
        elif not warm:
            assert [float(v.abs().sum()) for v in state] == [0, len(state[1]), 0]
            assert int(after[2]) > 0
    assert len(watch.first) == plan.arch_steps  # every phase starts Adam anew
    for (before,), (after,), ((step, momentum),) in watch.first:
        assert step == 1
        gradient = momentum / (1 - 0.9)
        # Adam's first step is lr g / (|g| + eps): lr itself only where eps = 1e-8 is small against the gradient.
        assert_same(after - before, -1e-2 * gradient / (gradient.abs() + 1e-8))
        assert float((after - before).abs().max()) == pytest.approx(1e-2, rel=0.01)
    assert trainer.ledger.search.optimizer_steps == 2 * plan.weight_steps + plan.arch_steps


def test_held_statistics_stay_as_they_are(tmp_path: Path) -> None:
    trainer, network = supernet(tmp_path)
    network.warm = False
    norm, stem = network.layers[0][0][0].bn1, network.stems["image"][1]
    batch = batch_of(trainer)
    network.hold_statistics(True)
    network.train()(batch.images, ("a", "b"))
    assert int(norm.num_batches_tracked) == 0
    assert float(norm.running_mean.abs().sum()) == 0
    assert int(stem.num_batches_tracked) == 1
    network.hold_statistics(False)
    network(batch.images, ("a", "b"))
    assert int(norm.num_batches_tracked) == 1


@pytest.mark.parametrize(
    ("multiplicity", "labelled", "times"), [("per_task", 3, 3), ("per_task", 2, 2), ("once", 3, 1)]
)
def test_the_resource_counts_once_per_task_backward(
    multiplicity: str, labelled: int, times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = toy_trainer(tmp_path, steps=3, data=tasks(3))
    method = Bmtas(BmtasParams(resource_multiplicity=multiplicity, resource_weight=0.05))
    seen: list[Search] = []
    monkeypatch.setattr(Search, "run", lambda search, trainer: seen.append(search))
    segments = segments_of(trainer.backbone(), trainer.data, "block")
    method._search(trainer, segments)
    (search,) = seen
    network = search.network
    with torch.no_grad():
        network.alpha.add_(torch.randn(network.alpha.shape, generator=torch.Generator().manual_seed(0)))
    search.losses.n_labelled = labelled
    (found,) = torch.autograd.grad(search.penalty(), network.alpha)  # float64 inside, rounded to float32 at its ends
    cost = layer_costs(trainer.backbone(), trainer.data, method.params, segments)
    (once,) = torch.autograd.grad(expected_resource(network.alpha, cost, "bmtas"), network.alpha)
    torch.testing.assert_close(found, times * 0.05 * once, rtol=1e-5, atol=1e-8)


def test_a_task_without_a_label_is_left_out(tmp_path: Path) -> None:
    trainer, network = supernet(tmp_path)
    batch = batch_of(trainer)
    losses = Labelled(trainer.data, network)
    ignored = Batch(batch.images, {**batch.targets, "a": torch.full_like(batch.targets["a"], -1)}, batch.index)
    found = losses(ignored, ("a", "b"))
    assert list(found) == ["b"]
    assert losses.n_labelled == 1
    assert math.isfinite(float(found["b"].detach()))
    assert losses(ignored, ("a",)) == {}


@pytest.mark.numerical
@pytest.mark.parametrize(("unused", "moves"), [("none", False), ("zero", True)])
def test_what_a_step_does_not_use_is_stepped_only_where_asked(unused: str, moves: bool, tmp_path: Path) -> None:
    trainer, network = supernet(tmp_path, unused_grad=unused)
    losses = BmtasLosses(trainer.data, network)
    network.alpha.requires_grad_(False)
    optimizer = torch.optim.SGD([p for g in network.weights() for p in g.parameters], lr=0.1, weight_decay=0.1)
    batch = batch_of(trainer)

    def step(task: str) -> None:
        optimizer.zero_grad(set_to_none=True)
        losses(batch, (task,))[task].backward()
        optimizer.step()

    head = network.heads["b"].linear.weight
    step("a")
    before = head.detach().clone()
    step("a")
    assert torch.equal(head, before)  # b has never had a gradient
    step("b")
    before = head.detach().clone()
    step("a")
    assert torch.equal(head, before) != moves
    if moves:
        torch.testing.assert_close(head.detach(), before * (1 - 0.1 * 0.1))


@pytest.mark.usefixtures("float64")
def test_a_nested_supernet_is_the_tree_that_is_built(tmp_path: Path) -> None:
    trainer, network = supernet(tmp_path, batch_norm="shared", n=3)
    with torch.no_grad():
        for number, p in enumerate(network.parameters()):  # copies differ, or any of them would do
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(number)))
        network.alpha.zero_()
        rows = [[1, 1, 1], [0, 0, 0], [2, 2, 0], [0, 1, 2]]
        for number, row in enumerate(rows):
            for t, i in enumerate(row):
                network.alpha[number, t, i] = 1e4
    groupings = argmax_groupings(network.alpha.detach().numpy())
    tree = nested(groupings)
    assert tree == tuple(groupings)
    segments = segments_of(trainer.backbone(), trainer.data, "block")

    def copies(segment: int, cluster: int) -> list:
        layer = network.backbones[rows[segment][tree[segment][cluster][0]]]
        operations = [layer.block_operation(segment)]
        return operations

    graph = tree_graph(trainer, tree, network.backbones[0].stem_operation(), copies)
    for task in network.tasks:
        graph.nodes[graph.outputs[task].name].module.load_state_dict(network.heads[task].state_dict())
    assert len(segments) == 4
    network.warm = False
    batch = batch_of(trainer)
    with torch.inference_mode():
        expected = network.eval()(batch.images, network.tasks)
        found = graph.network().eval()(batch.images, network.tasks)
    for task in network.tasks:
        assert_same(found[task], expected[task])


def test_a_budget_gives_the_most_probable_nested_tree(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, data=tasks(3))
    segments = segments_of(trainer.backbone(), trainer.data, "block")
    alpha = 2 * torch.randn(4, 3, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    table = grouping_table(3)
    p = [dict(zip(table.partitions, table.sampled(layer).tolist(), strict=True)) for layer in alpha.softmax(2)]
    for factor in (1.0, 1.8, 2.2, 3.0):
        total = int(factor * segments.reference("params"))
        allowed = [tree for tree in all_trees(3, 4) if segments.size(tree) <= total]
        best = max(allowed, key=lambda tree: math.prod(p[layer][k] for layer, k in enumerate(tree)))
        found = most_probable_tree(alpha, segments, total, "params", segments.constant("params"))
        assert math.prod(p[layer][k] for layer, k in enumerate(found)) == pytest.approx(
            math.prod(p[layer][k] for layer, k in enumerate(best))
        )
        assert segments.size(found) <= total


# Learning to branch


@pytest.mark.parametrize(
    ("n_tasks", "expected"),
    [(2, (2, 3 / 2, 5 / 4, 9 / 8)), (3, (3, 19 / 9, 137 / 81, 1057 / 729)), (5, (5, 2101 / 625))],
)
def test_lineages_coalesce_towards_the_root(n_tasks: int, expected: tuple[float, ...]) -> None:
    n_levels = len(expected)
    rows = [np.array(row) for row in itertools.product(range(n_tasks), repeat=n_tasks)]
    counts = np.zeros(n_levels)
    choices = list(itertools.product(rows, repeat=n_levels - 1))
    for parents in choices:
        counts += [len(set(level)) for level in lineages(parents, n_tasks)[::-1].tolist()]
    assert (counts / len(choices)).tolist() == pytest.approx(expected)


def test_every_child_has_one_parent_and_unused_nodes_are_pruned() -> None:
    paths = lineages([np.array([0, 0, 2]), np.array([0, 1, 1])], 3)
    assert paths.tolist() == [[0, 0, 0], [0, 1, 1], [0, 1, 2]]
    assert tree_of(paths) == (partition("012"), partition("0|12"), partition("0|1|2"))
    assert parents_of([torch.zeros(3, 3)])[0].tolist() == [0, 0, 0]


def test_the_floor_of_the_space_is_printed_and_refused_as_a_budget(tmp_path: Path) -> None:
    spec = tasks(3)
    backbone = create_backbone(BackboneConfig("resnet18"), seed=0)
    notes = LearningToBranch(LearningToBranchParams()).check(spec, backbone, Budget(100))
    assert any("20,617,792" in note and "1.845" in note for note in notes)
    with pytest.raises(UsageError, match=r"smallest tree of learning_to_branch has 20,617,792 \(1\.845 x\)"):
        LearningToBranch(LearningToBranchParams(budget=1.8)).check(spec, backbone, Budget(100))
    segments = segments_of(backbone, spec, "block")
    apart = tree_of(lineages([np.zeros(3, dtype=int)] * 7, 3))
    assert segments.size(apart) == 20_617_792


def test_parents_within_a_budget_are_the_most_probable_ones(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, data=tasks(3))
    segments = segments_of(trainer.backbone(), trainer.data, "block")
    random = torch.Generator().manual_seed(7)
    theta = [2 * torch.randn(3, 3, generator=random) for _ in range(3)]
    logs = [level.double().log_softmax(1).numpy() for level in theta]

    def log_probability(paths: np.ndarray) -> float:
        """Of the parents of the nodes that are used; the others do not matter."""
        return sum(
            logs[level][child, parent]
            for level in range(3)
            for child, parent in set(zip(paths[level + 1].tolist(), paths[level].tolist(), strict=True))
        )

    rows = [np.array(row) for row in itertools.product(range(3), repeat=3)]
    everything = [lineages(parents, 3) for parents in itertools.product(rows, repeat=3)]
    for total in (1_000_000, 1_050_000, 1_110_000):
        allowed = [paths for paths in everything if segments.size(tree_of(paths)) <= total]
        best = max(map(log_probability, allowed))
        found = most_probable_lineages(theta, segments, SizeBudget(total, "params", "encoder", 0.0))
        assert log_probability(found) == pytest.approx(best)
        assert segments.size(tree_of(found)) <= total


@pytest.mark.usefixtures("float64")
def test_equal_nodes_part_in_the_warm_up_and_theta_learns(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, steps=6, data=tasks(3))

    def theta_gradient(mean: bool) -> tuple[float, bool]:
        network = BranchingSupernet(trainer, LearningToBranchParams())
        if mean:
            network._input = lambda below, j, d: (
                torch.stack(list(below.values())).mean(0) if d is None else (BranchingSupernet._input(below, j, d))
            )
        optimizer = torch.optim.SGD([p for g in network.weights() for p in g.parameters], lr=0.05)
        batch = batch_of(trainer)
        # Different targets, or equal heads would ask the same of equal nodes.
        targets = {task: (batch.targets["a"] + n) % 4 for n, task in enumerate(network.tasks)}
        batch = Batch(batch.images, targets, batch.index)
        losses = Labelled(trainer.data, network)
        for _ in range(50 if not mean else 5):
            optimizer.zero_grad()
            sum(losses(batch, network.tasks).values()).backward()
            optimizer.step()
        network.warm = False
        sum(losses(batch, network.tasks).values()).backward()
        equal = any(
            all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))
            for layer in list(network.layers)[:-1]
            for one, other in itertools.combinations(layer, 2)
        )
        return float(network.theta[0].grad.abs().max()), equal

    gradient, equal = theta_gradient(mean=False)
    assert gradient > 1e-6
    assert not equal
    gradient, equal = theta_gradient(mean=True)
    assert gradient <= ROUNDING
    assert equal


def test_evaluations_of_the_search_draw_no_noise(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path)
    network = BranchingSupernet(trainer, LearningToBranchParams())
    network.warm = False
    with torch.no_grad():  # nodes that differ, or every mixture of them would be the same
        for number, p in enumerate(network.layers.parameters()):
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(number)))
    images = batch_of(trainer).images
    with torch.inference_mode():
        one, other = (network.eval()(images, network.tasks) for _ in range(2))
        noisy = [network.train()(images, network.tasks)["a"] for _ in range(2)]
    assert all(torch.equal(one[task], other[task]) for task in network.tasks)
    assert not torch.allclose(noisy[0], noisy[1], atol=1e-3)


# The variant of LibMTL


def test_temperatures_of_libmtl() -> None:
    found = [libmtl.temperature(e, 200) for e in (2, 3, 99, 199)]
    assert found == pytest.approx([5.7735, 5, 1, 0.7071], abs=5e-5)
    assert [libmtl.is_warm(e, 200) for e in (0, 1, 2)] == [True, True, False]


def test_libmtl_sums_its_parents_keeps_all_copies_and_draws_in_evaluation(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, steps=4)
    network = libmtl.LibmtlNetwork(trainer)
    assert network.coefficients(1).tolist() == [[1.0] * 2] * 2
    batch = batch_of(trainer)
    network.warm, network.tau = False, 1.0
    for p in network.parameters():
        if p.dim() > 1 and p is not network.theta:
            with torch.no_grad():
                p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(id(p) % 1000)))
    sum(value.square().sum() for value in network(batch.images, network.tasks).values()).backward()
    received = network.theta.grad.flatten(1).abs().sum(1) > 0
    assert received.tolist() == [False, True, True, True, True, False]
    with torch.inference_mode():
        network.eval()
        values = [network(batch.images, network.tasks)["a"] for _ in range(6)]
    assert any(not torch.equal(values[0], other) for other in values[1:])
    graph = LearningToBranch(LearningToBranchParams(variant="libmtl")).run(trainer)
    graph.require_deployable()
    assert sum(p.numel() for p in graph.parameters("backbone")) == 2 * trainer.backbone().n_parameters()
    with torch.inference_mode():
        module = graph.network().eval()
        assert torch.equal(module(batch.images, ("a",))["a"], module(batch.images, ("a",))["a"])


@pytest.mark.usefixtures("float64")
def test_libmtl_deploys_the_trained_encoders_on_both_layouts(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, domains="multi", steps=3)
    network = libmtl.LibmtlNetwork(trainer)
    state = network.rng.get_state()
    graph = libmtl.deploy(network)
    network.rng.set_state(state)
    draws = {level: network.coefficients(level) for level in range(1, 5)}
    network.coefficients = lambda level: draws[level]
    batch = next(iter(trainer.context.loaders[Role.FIT].training(("a", "b"), 0, 1, "x")))
    with torch.inference_mode():
        expected = network.eval()(batch.images, ("a", "b"))
        found = graph.network().eval()(batch.images, ("a", "b"))
    for task in ("a", "b"):
        assert_same(found[task], expected[task])
