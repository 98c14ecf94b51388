"""Pruning for several tasks: the traps of more_methods 5 (S) and of its common frame (C), each by its number.

Tags are those of the rules: [official code] SHI-Labs/DiSparse-Multitask-Model-Compression and MitchellX/AdapMTL,
[derived] arithmetic on them, [default] ours.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from benchmark.train.optimizers import StageOptimizers
from benchmark.train.trainer import CellTrainer
from datasets.contracts import Batch
from datasets.errors import UsageError
from methods.contracts import Budget, Role, Stage
from methods.graph.cost import size
from methods.graph.task_graph import TaskGraph
from methods.plain import plain_graph, task_losses
from methods.pruned import saliency
from methods.pruned.dynamic import DynamicNetwork, Schedule, apportioned, erdos_renyi_kernel, halves
from methods.pruned.method import Pruned
from methods.pruned.network import MaskedNetwork, shared_graph
from methods.pruned.parameters import PrunedParams
from methods.pruned.saliency import gradient_sums, overlaps, ranks, scores, sets_of, solved_size
from methods.pruned.soft_threshold import SoftThresholdNetwork, soft
from methods.pruned.telling import agreement_figure
from methods.sparsity import Masks, n_kept, prunable, union_of
from tests.numbers import assert_same
from tests.unit.harness import toy_backbone, toy_spec, toy_trainer
from tests.unit.kills import Killed, kill_after, outcome
from tests.unit.towers import backbone_of, batch_of, images_of, tasks_of, trainer_of

N = 370_608  # prunable weights of test_resnet
RULES = ("static", "pretrained", "dynamic", "magnitude", "random", "soft_threshold")
OPTIMIZERS = {"sgd": {}, "adamw": {"optimizer": {"name": "adamw", "lr": 0.01, "weight_decay": 0.1}}}
OFTEN = {"update_every": 0.25}  # of few steps


def method(**params: Any) -> Pruned:
    return Pruned(PrunedParams(**params))


@functools.cache
def trained(rule: str, domains: str = "single") -> tuple[CellTrainer, TaskGraph]:
    """A run of 8 steps, for all tests that read one."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = toy_trainer(Path(folder), steps=8, domains=domains)
        return trainer, method(rule=rule, **(OFTEN if rule == "dynamic" else {})).run(trainer)


def fact(trainer: CellTrainer, name: str) -> float:
    return trainer.facts[name]["value"]


def masks_of(graph: TaskGraph) -> Masks:
    body = [node.operation for node in graph.nodes.values() if node.operation.origin == "backbone"]
    return [weight != 0 for weight in prunable(body).values()]


def found_sets(trainer: CellTrainer, **params: Any) -> list[Masks]:
    """K_t of each task on the trainer's initial weights."""
    graph, weights = shared_graph(trainer)
    return method(**params).sets(trainer, graph, list(weights.values()))


def equal(one: Masks, other: Masks) -> bool:
    return all(torch.equal(x, y) for x, y in zip(one, other, strict=True))


# Saliency and sets


def test_s1_rho_is_not_the_density() -> None:
    """[official code, derived] T = 2, n = 1000, rho .1: equal sets .1, disjoint ones .2. A user who asks for a density
    of .1 gets it, whatever the sets.
    """
    ascending = torch.arange(1000.0)
    for other, union, solved in ((ascending, 100, 100), (ascending.flip(0), 200, 50)):
        both = [ranks([values], 0) for values in (ascending, other)]
        shapes = [torch.Size([1000])]
        assert n_kept(union_of(sets_of(both, 100, shapes))) == union
        k = solved_size(both, 100)
        assert k == solved
        assert n_kept(union_of(sets_of(both, k, shapes))) == 100
    apart = [torch.arange(9).roll(3 * t) for t in range(3)]  # ranks: three sets without a common weight
    assert [solved_size(apart, target) for target in (3, 4, 5, 6)] == [1, 1, 2, 2]  # unions of 3, 6 and 9
    assert solved_size(apart[:2], 3) == 1  # unions of 2 and 4 are equally near


def test_s1_what_is_asked_for_is_what_is_deployed() -> None:
    """[default] The union has the density, up to T - 1 weights; each task's share follows, and both are told."""
    trainer, graph = trained("static")
    kept = n_kept(masks_of(graph))
    assert abs(kept - round(0.1 * N)) <= 1
    assert fact(trainer, "weights kept") == kept
    assert fact(trainer, "density") == pytest.approx(100 * kept / N)
    share = fact(trainer, "share kept for each task, solved")
    assert 5 <= share < 10  # of every task: between half of the density and all of it
    assert all(fact(trainer, f"density of the set, {task}") == pytest.approx(share, abs=0.01) for task in "ab")


def test_s1_a_given_rho_is_kept_by_each_task(tmp_path: Path) -> None:
    """[official code] rho set by hand: every set has it, and the union more."""
    trainer = toy_trainer(tmp_path)
    sets = found_sets(trainer, keep=0.08, n_batches=1, layer_floor=0)
    assert [n_kept(own) for own in sets] == [round(0.08 * N)] * 2
    assert round(0.08 * N) < n_kept(union_of(sets)) <= 2 * round(0.08 * N)


@st.composite
def score_lists(draw: st.DrawFn) -> list[list[Tensor]]:
    """Scores with many ties, of 1 to 3 tasks over tensors of unequal size."""
    sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    n_tasks = draw(st.integers(1, 3))
    return [
        [torch.tensor(draw(st.lists(st.integers(0, 4), min_size=k, max_size=k))).float() for k in sizes]
        for _ in range(n_tasks)
    ]


@settings(max_examples=80, deadline=None)
@given(score_lists(), st.integers(0, 2), st.floats(0.01, 1.0))
def test_s1_no_other_size_of_the_sets_comes_nearer(values: list[list[Tensor]], floor: int, share: float) -> None:
    """[default] Against every k, with floors and ties."""
    both = [ranks(own, floor) for own in values]
    shapes = [tensor.shape for tensor in values[0]]
    n = sum(shape.numel() for shape in shapes)
    target = max(1, round(share * n))
    unions = {k: n_kept(union_of(sets_of(both, k, shapes))) for k in range(1, n + 1)}
    found = solved_size(both, target)
    assert abs(unions[found] - target) == min(abs(union - target) for union in unions.values())


def test_layer_floor_keeps_the_best_of_every_tensor() -> None:
    """[default] Without a floor a tensor of small scores would be pruned whole, and with it all that passes through."""
    values = [torch.tensor([9.0, 8.0, 7.0]), torch.tensor([[0.1, 0.3], [0.2, 0.0]])]
    kept = sets_of([ranks(values, 1)], 2, [value.shape for value in values])[0]
    assert [mask.flatten().tolist() for mask in kept] == [[True, True, False], [False, True, False, False]]
    bare = sets_of([ranks(values, 0)], 2, [value.shape for value in values])[0]
    assert [int(mask.sum()) for mask in bare] == [2, 0]


def test_s2_saliency_is_that_of_the_weights_that_are_trained(tmp_path: Path) -> None:
    """[official code] measures freshly drawn weights; [default] here theta_0: other weights, another mask; a second
    call finds the same.
    """
    trainer = toy_trainer(tmp_path)
    first, again = found_sets(trainer, n_batches=2), found_sets(trainer, n_batches=2)
    assert all(equal(x, y) for x, y in zip(first, again, strict=True))
    other = toy_trainer(tmp_path / "other", prototype=toy_backbone(seed=1))
    assert not equal(union_of(first), union_of(found_sets(other, n_batches=2)))


@pytest.mark.usefixtures("float64")
def test_s3_scores_of_a_weight_by_its_gradient() -> None:
    """[official code] dL / dw = (2, 1), w = (.5, 1): w^2 |dL / dw| = (.5, 1) keeps the second. |dL / dm|, the gradient
    of a mask of ones that multiplies w, is |w dL / dw|: a tie, which the bare gradient would decide for the first.
    """
    g, w = torch.tensor([2.0, 1.0]), torch.tensor([0.5, 1.0])
    m = torch.ones(2, requires_grad=True)
    (g * (w * m)).sum().backward()
    assert scores("gradient", [g], [w])[0].tolist() == m.grad.abs().tolist() == [1.0, 1.0]
    assert scores("gradient_weight2", [g], [w])[0].tolist() == [0.5, 1.0]
    assert scores("magnitude", [g], [w])[0].tolist() == [0.5, 1.0]
    assert scores("gradient", [g], [-w])[0].tolist() == [1.0, 1.0]
    assert PrunedParams().score == "gradient"
    assert PrunedParams(rule="pretrained").score == "gradient_weight2"


@pytest.mark.usefixtures("float64")
def test_saliencies_are_sums_over_batches_of_each_task_alone(tmp_path: Path) -> None:
    """[official code] Sums of absolute values batch by batch, by a loop written by hand: a gradient that changes its
    sign counts twice, and no task sees the other's loss.
    """
    trainer = toy_trainer(tmp_path)
    graph, weights = shared_graph(trainer)
    batches = list(trainer.batches(Role.FIT, n_batches=2))
    network = graph.network()
    found, counts = gradient_sums(trainer.data, network, list(weights.values()), batches)
    assert counts == [2, 2]
    for t, task in enumerate(("a", "b")):
        alone = shared_graph(trainer)[0].network().train()
        own = prunable([node.operation for node in alone.graph.nodes.values() if node.operation.origin == "backbone"])
        expected = [torch.zeros_like(weight) for weight in own.values()]
        for batch in batches:
            alone.zero_grad()
            task_losses(trainer.data, alone)(batch, (task,))[task].backward()
            for total, weight in zip(expected, own.values(), strict=True):
                total += weight.grad.abs()
        for one, other in zip(found[t], expected, strict=True):
            assert_same(one, other)


@pytest.mark.usefixtures("float64")
def test_s4_the_scale_of_a_loss_changes_no_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """[derived] Losses in other units would else decide what all tasks keep."""
    trainer = toy_trainer(tmp_path)
    expected = found_sets(trainer, n_batches=2)
    plain = saliency.task_losses

    def scaled(*args: Any) -> Any:
        losses_of = plain(*args)
        return lambda batch, tasks: {
            task: loss * (1000 if task == "a" else 1) for task, loss in losses_of(batch, tasks).items()
        }

    monkeypatch.setattr(saliency, "task_losses", scaled)
    found = found_sets(trainer, n_batches=2)
    assert all(equal(x, y) for x, y in zip(expected, found, strict=True))
    assert not equal(*expected)  # the tasks want different weights


def test_s5_ties_keep_exactly_as_many_as_asked_for() -> None:
    """[derived] Four equal scores, keep 2: the released `>=` keeps all; [default] here the lower index."""
    kept = sets_of([ranks([torch.ones(4)], 0)], 2, [torch.Size([4])])[0][0]
    assert kept.tolist() == [True, True, False, False]
    assert int((torch.ones(4) >= 1).sum()) == 4


def test_s7_where_all_tasks_want_the_same_it_is_pruning_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[derived] M of two equal tasks is that of one; T = 1 keeps its largest |w dL / dw|, computed here by hand."""
    trainer = toy_trainer(tmp_path, data=toy_spec().with_tasks(["a"]))
    (alone,) = found_sets(trainer, n_batches=3)
    graph, weights = shared_graph(trainer)
    total = torch.zeros(N)
    for batch in trainer.batches(Role.FIT, n_batches=3, draw_seed=trainer.rng("saliency").initial_seed()):
        loss = task_losses(trainer.data, graph.network())(batch, ("a",))["a"]
        total += torch.cat([g.abs().flatten() for g in torch.autograd.grad(loss, list(weights.values()))])
    score = total * torch.cat([w.detach().abs().flatten() for w in weights.values()])
    flat = torch.cat([mask.flatten() for mask in alone])
    assert int(flat.sum()) == round(0.1 * N)
    assert float(score[flat].min()) >= float(score[~flat].max()) * (1 - 1e-5)

    sums = [torch.rand(w.shape, generator=torch.Generator().manual_seed(0)) for w in weights.values()]
    masks = []
    for n_tasks in (1, 2):
        monkeypatch.setattr(Pruned, "_gradients", lambda *_, n=n_tasks: [sums] * n)
        one = toy_trainer(tmp_path / str(n_tasks), data=toy_spec().with_tasks(["a", "b"][:n_tasks]))
        masks.append(union_of(found_sets(one)))
    assert equal(*masks)


def test_statistics_of_norms_are_left_alone(tmp_path: Path) -> None:
    """[default] Saliencies use the statistics of each batch; a network that was only looked at must not have moved."""
    trainer = toy_trainer(tmp_path)
    graph, weights = shared_graph(trainer)
    network = graph.network().eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    batches = list(trainer.batches(Role.FIT, n_batches=2))
    found, _ = gradient_sums(trainer.data, network, list(weights.values()), batches)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not network.training
    first = next(iter(weights.values()))
    losses = [task_losses(trainer.data, network)(batch, ("a",))["a"] for batch in batches]  # in eval mode: others
    other = torch.stack([torch.autograd.grad(loss, first)[0].abs() for loss in losses]).sum(0)
    assert not torch.allclose(found[0][0], other, rtol=0.1)


def test_a_task_is_asked_on_its_own_images_alone(tmp_path: Path) -> None:
    """[default] Multi-domain: b's images say nothing of a, and each task gets all of its batches."""
    trainer = toy_trainer(tmp_path, domains="multi")
    graph, weights = shared_graph(trainer)
    batches = list(trainer.batches(Role.FIT, n_batches=2))
    found, counts = gradient_sums(trainer.data, graph.network(), list(weights.values()), batches)
    assert counts == [2, 2]
    only = [dataclasses.replace(batch, labelled=None) for batch in batches if "a" in batch.images]
    alone, counts = gradient_sums(trainer.data, graph.network(), list(weights.values()), only)
    assert counts == [2, 0]
    assert all(torch.equal(x, y) for x, y in zip(found[0], alone[0], strict=True))
    assert not any(bool(total.any()) for total in alone[1])
    one = dataclasses.replace(only[0], images={"a": only[0].images["a"][:1]}, targets={"a": only[0].targets["a"][:1]})
    assert gradient_sums(trainer.data, graph.network(), list(weights.values()), [one])[1] == [0, 0]  # has no variance


def test_dropout_draws_the_same_when_a_run_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """[default] Between stages nobody seeds the global stream; after a crash the mask would be another one."""
    plain = saliency.task_losses

    def noisy(*args: Any) -> Any:
        losses_of = plain(*args)
        return lambda batch, tasks: {task: loss * torch.rand(()) for task, loss in losses_of(batch, tasks).items()}

    monkeypatch.setattr(saliency, "task_losses", noisy)
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(union_of(found_sets(toy_trainer(tmp_path), n_batches=3)))
        assert torch.initial_seed() == seed
    assert equal(*found)


def test_tasks_without_a_label_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """[default] A task without a gradient would keep arbitrary weights, and nobody would know."""
    trainer = toy_trainer(tmp_path)
    batches = trainer.batches

    def unlabelled(*args: Any, **options: Any) -> Iterator[Batch]:
        for batch in batches(*args, **options):
            yield dataclasses.replace(batch, labelled=frozenset({"a"}))

    monkeypatch.setattr(trainer, "batches", unlabelled)
    with pytest.raises(UsageError, match=r"Tasks \['b'\] have no valid label on fit"):
        found_sets(trainer, n_batches=1)


# Training under masks


@dataclasses.dataclass
class Watched:
    """Every state of the prunable weights after a step, and the network that was trained last."""

    weights: list[list[Tensor]] = dataclasses.field(default_factory=list)
    network: Any = None


def watch(trainer: CellTrainer) -> Watched:
    seen, fit = Watched(), trainer.fit

    def watched(stage: Stage) -> object:
        if stage.after_step is None:
            return fit(stage)
        seen.network = stage.network

        def look() -> None:
            stage.after_step()
            weights = stage.network.weights
            weights = weights.values() if isinstance(weights, dict) else weights
            seen.weights.append([weight.detach().clone() for weight in weights])

        return fit(dataclasses.replace(stage, after_step=look))

    trainer.fit = watched
    return seen


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_s6_pruned_weights_stay_exactly_zero(optimizer: str, tmp_path: Path) -> None:
    """[derived] SGD with momentum and AdamW with weight decay revive what is masked once only."""
    trainer = toy_trainer(tmp_path, steps=10, recipe=OPTIMIZERS[optimizer])
    seen = watch(trainer)
    method(n_batches=1).run(trainer)
    masks = seen.network.masks
    assert len(seen.weights) == 10
    for weights in seen.weights:
        assert all(bool((w[~mask] == 0).all()) for w, mask in zip(weights, masks, strict=True))
        assert sum(int(torch.count_nonzero(w)) for w in weights) == n_kept(masks)
    assert not torch.equal(seen.weights[0][0], seen.weights[-1][0])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_s6_dynamic_masks_end_at_the_target(optimizer: str, tmp_path: Path) -> None:
    """[derived] Between changes the union exceeds the target, which is logged; from `update_until` on it is met."""
    trainer = toy_trainer(tmp_path, steps=10, recipe=OPTIMIZERS[optimizer])
    seen = watch(trainer)
    method(rule="dynamic", update_every=0.2).run(trainer)
    target = round(0.1 * N)
    kept = [sum(int(torch.count_nonzero(w)) for w in weights) for weights in seen.weights]
    assert kept[8:] == [target] * 2  # masks are cut before step 8 of 10
    assert min(kept[:8]) > target
    assert n_kept(seen.network.masks) == target == fact(trainer, "weights kept")
    logged = trainer.curves["density"]
    assert len(logged) == 4  # at steps 0, 2, 4 and 6
    assert min(logged) > 0.1
    assert sorted(logged, reverse=True)[-1] == logged[-1]  # less and less is grown


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_s8_what_grows_starts_at_zero_in_weight_and_moments(
    optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[default] The release resumes stored weights. A momentum gathered while a weight was pruned would throw it."""
    restarts = []
    plain = StageOptimizers.restart

    def restart(optimizers: StageOptimizers, entries: Any) -> None:
        entries = list(entries)
        states = [[s[p] for o in optimizers._optimizers for s in [o.state] if p in s] for p, _ in entries]
        stale = sum(bool(v[new].any()) for (p, new), own in zip(entries, states, strict=True) for v in moments(own, p))
        plain(optimizers, entries)
        for (parameter, new), own in zip(entries, states, strict=True):
            assert not bool(parameter[new].any())
            assert all(not bool(value[new].any()) for value in moments(own, parameter))
        left = sum(bool(v.any()) for (p, _), own in zip(entries, states, strict=True) for v in moments(own, p))
        restarts.append((sum(int(new.sum()) for _, new in entries), stale, left))

    def moments(states: list[dict[str, Any]], parameter: Tensor) -> list[Tensor]:
        return [v for state in states for v in state.values() if isinstance(v, Tensor) and v.shape == parameter.shape]

    monkeypatch.setattr(StageOptimizers, "restart", restart)
    trainer = toy_trainer(tmp_path, steps=8, recipe=OPTIMIZERS[optimizer])
    method(rule="dynamic", **OFTEN).run(trainer)
    grown = [found for found in restarts if found[0]]
    assert len(grown) == 3  # at steps 0, 2 and 4 of 8
    assert all(stale and left for _, stale, left in grown[1:])  # there were moments, and those of others stay


def test_s8_no_tensor_is_dense_at_the_start(tmp_path: Path) -> None:
    """[default] The released code leaves the first convolution dense until masks first change."""
    network = dynamic_network(toy_trainer(tmp_path))
    assert [int(mask.sum()) for mask in network.masks] == network.targets
    assert sum(network.targets) == round(0.1 * N)
    assert all(bool((w[~mask] == 0).all()) for w, mask in zip(network.weights, network.masks, strict=True))


def dynamic_network(trainer: CellTrainer, steps: int = 8, **params: Any) -> DynamicNetwork:
    graph, weights = shared_graph(trainer)
    p = PrunedParams(rule="dynamic", **{**OFTEN, **params})
    return DynamicNetwork(graph, list(weights.values()), trainer.data, p, steps, trainer.rng("masks"))


def test_small_weights_go_and_large_gradients_grow(tmp_path: Path) -> None:
    """[official code] Each tensor keeps the largest (1 - r) k_l; every task grows the r k_l pruned ones of its largest
    gradients; the union of both is kept.
    """
    network = dynamic_network(toy_trainer(tmp_path), density=0.3)
    before = [mask.clone() for mask in network.masks]
    weights = [weight.detach().clone() for weight in network.weights]
    network.drop(0.4)
    dropped = [mask.clone() for mask in network.masks]
    for k, old, new, weight in zip(network.targets, before, dropped, weights, strict=True):
        assert int(new.sum()) == k - round(0.4 * k)
        assert not bool((new & ~old).any())
        if bool((old & ~new).any()):
            assert float(weight[new].abs().min()) >= float(weight[old & ~new].abs().max())
    random = torch.Generator().manual_seed(0)
    sums = [[torch.rand(w.shape, generator=random) for w in weights] for _ in range(2)]
    entries = network.grow(sums)
    for number, (k, old, new) in enumerate(zip(network.targets, dropped, network.masks, strict=True)):
        wanted = torch.zeros_like(old)
        for own in sums:
            candidates = torch.where(old, -1.0, own[number]).flatten()
            wanted.view(-1)[candidates.topk(k - int(old.sum())).indices] = True
        assert torch.equal(new, old | wanted)
        assert torch.equal(entries[number][1], wanted)
    sizes = network.overlap.diagonal(dim1=1, dim2=2).sum(0)
    assert sizes.tolist() == [sum(network.targets) - n_kept(dropped)] * 2
    network.drop(0.0)  # weights that have just grown are 0, and yet not those that are pruned
    assert [int(mask.sum()) for mask in network.masks] == network.targets


def test_masks_change_on_the_halves_of_the_batch(tmp_path: Path) -> None:
    """[official code] Two halves, which together are the batch; [default] a batch of three is not cut."""
    batch = batch_of(trainer_of(tmp_path, 2))
    parts = list(halves(batch))
    assert [len(part.images["image"]) for part in parts] == [2, 2]
    assert torch.equal(torch.cat([part.images["image"] for part in parts]), batch.images["image"])
    assert torch.equal(torch.cat([part.targets["b"] for part in parts]), batch.targets["b"])
    three = Batch({"image": batch.images["image"][:3]}, {"a": batch.targets["a"][:3]}, {"image": torch.arange(3)})
    assert [len(part.images["image"]) for part in halves(three)] == [3]


def test_schedule_of_the_published_length() -> None:
    """[official code] 20,000 steps: every 50 up to 15,000, from .5 to 0 as a cosine; Taskonomy 100,000: 250, 75,000."""
    schedule = Schedule.of(PrunedParams(rule="dynamic"), 20_000)
    assert (schedule.every, schedule.end, schedule.changes) == (50, 15_000, 300)
    assert [schedule.rate(step) for step in (0, 7_500, 15_000)] == pytest.approx([0.5, 0.25, 0.0])
    assert schedule.rate(5_000) == pytest.approx(0.375)
    longer = Schedule.of(PrunedParams(rule="dynamic"), 100_000)
    assert (longer.every, longer.end) == (250, 75_000)
    one = Schedule.of(PrunedParams(rule="dynamic"), 1)
    assert (one.every, one.end, one.changes) == (1, 0, 0)


def test_density_of_tensors_by_erdos_renyi_kernel() -> None:
    """[official code] (sum of the shape / size)^.9; small tensors are dense and take their share from the others."""
    shapes = [(4, 3, 1, 1), (64, 64, 3, 3), (128, 256)]
    found = erdos_renyi_kernel(shapes, 0.1)
    sizes = [math.prod(shape) for shape in shapes]
    assert found[0] == 1.0
    assert sum(d * n for d, n in zip(found, sizes, strict=True)) == pytest.approx(0.1 * sum(sizes))
    raw = [(134 / 36_864) ** 0.9, (384 / 32_768) ** 0.9]
    assert found[1] / found[2] == pytest.approx(raw[0] / raw[1])
    assert erdos_renyi_kernel(shapes, 1.0) == [1.0] * 3


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.floats(0.05, 1.0))
def test_numbers_of_weights_add_up(sizes: list[int], density: float) -> None:
    """[default] Densities of tensors are rounded such that no weight is lost or gained beside the controls."""
    total = max(1, round(density * sum(sizes)))
    found = apportioned([density] * len(sizes), sizes, total, 0)
    assert sum(found) == total
    assert all(abs(k - density * n) <= 1 for k, n in zip(found, sizes, strict=True))
    assert all(k >= 1 for k in apportioned([density] * len(sizes), sizes, total, 1))


# The soft threshold


@pytest.mark.usefixtures("float64")
def test_a_soft_threshold_by_hand() -> None:
    """[official code] sign(w) ReLU(|w| - sigmoid(s)); s learns by all weights above: -sum sign(w) g sigmoid'(s)."""
    w = torch.tensor([-0.75, -0.25, 0.5, 2.0], requires_grad=True)
    s = torch.tensor(0.0, requires_grad=True)
    g = torch.tensor([1.0, 2.0, 3.0, 5.0])
    values = soft(w, s)
    assert values.tolist() == [-0.25, 0.0, 0.0, 1.5]
    (values * g).sum().backward()
    assert w.grad.tolist() == [1.0, 0.0, 0.0, 5.0]
    assert s.grad.item() == pytest.approx(-(-1.0 + 5.0) * 0.25)


def test_a_threshold_rises_until_as_few_are_kept_as_wanted(tmp_path: Path) -> None:
    """[official code] s has no gradient while the sparsity is reached, and its optimizer, weight decay included, leaves
    it; before, weight decay moves it though its gradient is nearly 0.
    """
    trainer = toy_trainer(tmp_path, steps=8)
    graph, weights = shared_graph(trainer)
    for target, is_reached in ((N, True), (10, False)):
        made = SoftThresholdNetwork(graph, list(weights.values()), target, -30.5)
        assert bool(made.reached) == is_reached
        loss = task_losses(trainer.data, made)(batch_of(trainer), ("a",))["a"]
        (gradient,) = torch.autograd.grad(loss, [made.s], allow_unused=True)
        assert (gradient is None) == is_reached
    seen = watch(trainer)
    method(rule="soft_threshold", density=1.0).run(trainer)
    assert seen.network.s.item() == -30.5
    other = toy_trainer(tmp_path / "other", steps=8)
    moved = watch(other)
    method(rule="soft_threshold", density=0.01, lr_threshold=0.5).run(other)
    assert -30.5 + 0.4 * 8 < moved.network.s.item() <= -30.5 + 0.5 * 8 + 1e-3


def test_the_rate_of_a_threshold_lets_it_pass_all_weights_in_time() -> None:
    """[default] By weight decay alone s is at -1, a threshold of .27, after `update_until` of the steps, whatever their
    number; a given rate is taken as it is.
    """
    for params, steps in (({}, 200), ({}, 400), ({"update_until": 0.5, "threshold_init": -20.0}, 200)):
        p = PrunedParams(rule="soft_threshold", **params)
        s = nn.Parameter(torch.tensor(p.threshold_init))
        adam = torch.optim.Adam([s], p.threshold_rate(steps), betas=(0.5, 0.999), weight_decay=p.threshold_decay)
        for _ in range(round(p.update_until * steps)):
            s.grad = torch.zeros(())
            adam.step()
        assert -1.2 < s.item() < -0.5
    assert PrunedParams(rule="soft_threshold", lr_threshold=0.3).threshold_rate(100) == 0.3


@pytest.mark.numerical
@pytest.mark.parametrize("domains", ["single", "multi"])
def test_the_network_below_a_threshold_is_deployed_as_it_was_trained(domains: str, tmp_path: Path) -> None:
    """[default] Multi-domain tasks share weights at nodes of their own: all of them run with the threshold."""
    trainer = toy_trainer(tmp_path, domains=domains)
    graph, weights = shared_graph(trainer)
    dense = graph.network().eval()
    images = images_of(trainer)
    made = SoftThresholdNetwork(graph, list(weights.values()), 10, -4.0).eval()
    with torch.no_grad():
        whole, plain = made(images, ("a", "b")), dense(images, ("a", "b"))
        alone = {task: made(images, (task,))[task] for task in "ab"}
        kept = n_kept(made.masks)
        made.deploy()
        found = dense(images, ("a", "b"))
    assert 0 < kept < N
    assert n_kept(masks_of(graph)) == kept
    for task in "ab":
        assert torch.equal(found[task], whole[task])
        torch.testing.assert_close(alone[task], whole[task], rtol=1e-5, atol=1e-5)
        assert not torch.allclose(plain[task], whole[task], rtol=1e-2)


def test_a_density_that_is_missed_is_flagged() -> None:
    """[default] A threshold in few steps jumps over the target; such a row is not of the controls' size."""
    trainer, graph = trained("soft_threshold")
    missed = 100 * abs(n_kept(masks_of(graph)) - round(0.1 * N)) / round(0.1 * N)
    assert fact(trainer, "deviation from the size asked for") == pytest.approx(missed)
    assert missed > 5
    assert any("from the one asked for" in flag for flag in trainer.flags)
    assert trainer.curves["density"][0] == 1.0
    assert len(trainer.curves["density"]) == 4  # at the start of every cycle
    assert not trained("static")[0].flags


# Runs


def test_controls_keep_as_many_weights_and_are_told_apart() -> None:
    """[default] random: a draw of the same number in the same space; magnitude: the largest after dense training."""
    target = round(0.1 * N)
    for rule in ("magnitude", "random", "dynamic"):
        trainer, graph = trained(rule)
        assert n_kept(masks_of(graph)) == target
        assert fact(trainer, "deviation from the size asked for") == 0
    assert [method(rule=rule).is_random_architecture for rule in RULES] == [rule == "random" for rule in RULES]
    assert Pruned.search_space
    drawn, kept = masks_of(trained("random")[1]), masks_of(trained("magnitude")[1])
    shares = [float(mask.double().mean()) for mask in drawn if mask.numel() > 10_000]
    assert shares == pytest.approx([0.1] * len(shares), abs=0.02)  # in every tensor alike
    assert not equal(drawn, kept)


def test_a_random_mask_is_one_of_its_seed(tmp_path: Path) -> None:
    """[default] Seeds of a table draw masks of their own."""
    first, again, other = (toy_trainer(tmp_path / str(k), seed=seed) for k, seed in enumerate((0, 0, 1)))
    masks = [found_sets(trainer, rule="random")[0] for trainer in (first, again, other)]
    assert equal(masks[0], masks[1])
    assert not equal(masks[0], masks[2])


def test_magnitude_keeps_the_largest_weights_of_the_dense_network(tmp_path: Path) -> None:
    """[default] One threshold for all tensors. By `saliency: magnitude` all tasks have that mask, as heads are out."""
    trainer = toy_trainer(tmp_path)
    graph, weights = shared_graph(trainer)
    values = torch.cat([weight.detach().abs().flatten() for weight in weights.values()])
    (kept,) = method(rule="magnitude", layer_floor=0).sets(trainer, graph, list(weights.values()))
    flat = torch.cat([mask.flatten() for mask in kept])
    assert float(values[flat].min()) >= float(values[~flat].max())
    sets = method(rule="pretrained", saliency="magnitude", layer_floor=0).sets(trainer, graph, list(weights.values()))
    assert len(sets) == 2
    assert all(equal(own, kept) for own in sets)
    assert trainer.ledger.search.forward_passes == 0


def test_surviving_weights_go_on_or_restart(tmp_path: Path) -> None:
    """[official code] pretrained goes on with weights and heads of the dense network; the twin [default] has its mask
    and the initial weights, so that it may stand beside methods that restart.
    """
    states = {}
    for reinit in (False, True):
        trainer = toy_trainer(tmp_path / str(reinit), steps=4)
        fit = trainer.fit

        def watched(stage: Stage, fit: Any = fit, reinit: bool = reinit) -> object:
            if stage.name == "masked":
                states[reinit] = {k: v.clone() for k, v in stage.network.state_dict().items()}
            return fit(stage)

        trainer.fit = watched
        graph = method(rule="pretrained", reinit=reinit, n_batches=1).run(trainer)
        assert trainer.weight_steps(graph) == (4 if reinit else 8)
        assert trainer.ledger.search.optimizer_steps == 4
    masks = [name for name in states[True] if name.startswith("mask_")]
    assert all(torch.equal(states[True][name], states[False][name]) for name in masks)
    plain = plain_graph(trainer.data, ("a", "b"), trainer.backbone(), trainer.head).network().state_dict()
    for name, value in plain.items():
        restarted, went_on = states[True][f"network.{name}"], states[False][f"network.{name}"]
        assert torch.equal(restarted, torch.where(restarted == 0, 0, value))
        assert not torch.equal(went_on, restarted) or not value.is_floating_point() or value.numel() == 1
    heads = [name for name in plain if "head" in name]
    assert heads
    assert all(bool(states[True][f"network.{name}"].any()) for name in heads)


def test_work_outside_stages_is_charged() -> None:
    """[default] Six batches of fit, a pass for each of two tasks; and T passes a change of masks, whose
    multiply-accumulates the trainer counts.
    """
    assert trained("static")[0].ledger.search.forward_passes == 6 * 2
    assert fact(trained("static")[0], "batches of the saliency") == 6
    assert trained("pretrained")[0].ledger.search.forward_passes == 6 * 2 + 8
    assert trained("random")[0].ledger.search.forward_passes == 0
    assert trained("dynamic")[0].ledger.final.forward_passes == 8 + 3 * 2
    assert trained("dynamic", "multi")[0].ledger.final.forward_passes == 2 * 8 + 3 * 2


@pytest.mark.numerical
def test_c1_with_one_task_and_all_weights_it_is_the_single_task_network(tmp_path: Path) -> None:
    """[default] Bit for bit: neither the saliency nor a mask of ones leaves a trace."""
    data = toy_spec().with_tasks(["a"])
    expected = toy_trainer(tmp_path / "single", steps=4).single_task("a").graph
    graph = method(density=1.0).run(toy_trainer(tmp_path / "pruned", steps=4, data=data))
    assert graph.weights_hash() == expected.weights_hash()
    assert graph.hash() == expected.hash()


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("rule", ["static", "dynamic"])
def test_c2_the_order_of_tasks_changes_nothing(rule: str, tmp_path: Path) -> None:
    """[default] M is a union, and its size is solved for all tasks together."""
    found = []
    for names in (["a", "b"], ["b", "a"]):
        data = toy_spec()
        data = dataclasses.replace(data, tasks=tuple(data.task(name) for name in names))
        trainer = toy_trainer(tmp_path / "".join(names), steps=2, data=data)
        network = dynamic_network(trainer, steps=8)
        if rule == "static":
            found.append(union_of(found_sets(trainer, n_batches=2)))
        else:
            network.change(batch_of(trainer))
            found.append(network.masks)
    assert equal(*found)


@pytest.mark.parametrize("rule", ["dynamic", "soft_threshold"])
def test_c3_masks_come_back_from_a_file(rule: str) -> None:
    """[default] What is loaded counts what is kept, not what is stored."""
    trainer, graph = trained(rule)
    again = TaskGraph.from_json(graph.to_json(), graph.tensors())
    reference = trainer.backbone().n_parameters()
    assert size(again, reference) == size(graph, reference)
    assert size(again, reference).total < size(again, reference).dense
    assert again.weights_hash() == graph.weights_hash()


@pytest.mark.parametrize("rule", RULES)
def test_c4_parameters_are_those_of_the_formula(rule: str) -> None:
    """[default] P_ref - n + |M| + heads, of P_ref + heads that are stored; masks are n bits more; heads stay whole."""
    for domains in ("single", "multi"):
        if domains == "multi" and rule != "dynamic":
            continue
        trainer, graph = trained(rule, domains)
        graph.require_deployable()
        reference = trainer.backbone().n_parameters()
        heads = sum(p.numel() for p in graph.parameters("heads"))
        kept = int(fact(trainer, "weights kept"))
        found = size(graph, reference)
        assert found.total == reference - N + kept + heads == fact(trainer, "parameters, not zero")
        assert found.dense == reference + heads == fact(trainer, "parameters, dense")
        assert found.x_backbone == pytest.approx((reference - N + kept) / reference)
        assert found.heads == heads
        assert all(bool(p.all()) for p in graph.parameters("heads") if p.dim() > 1)
        assert fact(trainer, "bits of the masks") == N
        assert fact(trainer, "MACs, not zero") < fact(trainer, "MACs, dense")


@pytest.mark.parametrize(
    ("rule", "name"),
    [("static", "swin_tiny_patch4_window7_224"), ("dynamic", "test_vit"), ("soft_threshold", "test_vit")],
)
def test_c5_transformers_are_pruned_in_their_linear_layers(rule: str, name: str, tmp_path: Path) -> None:
    """[default] qkv, proj, fc1, fc2 and the patch embedding; norms, biases and position embeddings stay."""
    trainer = trainer_of(tmp_path, 2, name, size=32, steps=2, cycles=2)
    graph = method(rule=rule, **({"n_batches": 1} if rule == "static" else {})).run(trainer)
    body = {node.name: node.operation for node in graph.nodes.values() if node.operation.origin == "backbone"}
    names = list(prunable(body.values()))
    assert {part.split(".")[-1].split(" ")[-1] for part in names} >= {"qkv", "proj", "fc1", "fc2"}
    n = sum(weight.numel() for weight in prunable(body.values()).values())
    assert fact(trainer, "bits of the masks") == n
    if rule != "soft_threshold":
        assert fact(trainer, "density") == pytest.approx(10, abs=0.1)
    found = size(graph, trainer.backbone().n_parameters())
    assert found.dense - found.total == n - fact(trainer, "weights kept")


@pytest.mark.parametrize(
    ("rule", "kill", "params"),
    [
        ("dynamic", 5, OFTEN),
        ("soft_threshold", 5, {}),
        ("soft_threshold", 5, {"density": 0.9, "threshold_init": -6.0, "lr_threshold": 1.0}),  # reached before the kill
        ("pretrained", 11, {}),
    ],
)
def test_c6_a_killed_run_ends_with_the_same_bits(rule: str, kill: int, params: dict[str, Any], tmp_path: Path) -> None:
    """[default] Masks, step and threshold are buffers; a dense network is not trained twice."""
    killed = toy_trainer(tmp_path / "killed", steps=8, checkpoint_steps=1)
    kill_after(killed, kill)
    with pytest.raises(Killed):
        method(rule=rule, **params).run(killed)
    again = toy_trainer(tmp_path / "killed", steps=8)
    graph = method(rule=rule, **params).run(again)
    if params in ({}, OFTEN):
        assert outcome(again, graph) == outcome(*trained(rule))
        return
    straight = toy_trainer(tmp_path / "straight", steps=8)
    assert outcome(again, graph) == outcome(straight, method(rule=rule, **params).run(straight))
    assert fact(straight, "density") < 90


def test_how_far_tasks_agree_is_told_by_tensor() -> None:
    """[official code] Intersection over union of the sets, by tensor and of all weights; [default] None if empty."""
    one = [torch.tensor([1, 1, 0, 0]).bool(), torch.tensor([0, 0]).bool(), torch.tensor([1]).bool()]
    other = [torch.tensor([0, 1, 1, 0]).bool(), torch.tensor([0, 0]).bool(), torch.tensor([1]).bool()]
    overlap = overlaps([one, other])
    assert overlap.tolist() == [[[2, 1], [1, 2]], [[0, 0], [0, 0]], [[1, 1], [1, 1]]]
    (panel,) = agreement_figure(overlap, ("a", "b"), ("x", "y", "z"), "sets").panels
    assert panel.rows == ("a, b",)
    assert panel.values[0] == pytest.approx((1 / 3, None, 1.0))
    many = overlaps([one, other, *[one] * 5])
    (panel,) = agreement_figure(many, tuple("abcdefg"), ("x", "y", "z"), "sets").panels
    assert len(panel.rows) == 7
    assert panel.values[0][0] == pytest.approx((1 / 3 + 5) / 6)

    trainer, graph = trained("static")
    sets = torch.as_tensor(trainer.artifacts["overlaps"])
    both, wanted = sets[:, 0, 1].sum(), sets.diagonal(dim1=1, dim2=2).sum(0)
    assert int(wanted.sum() - both) == n_kept(masks_of(graph))
    assert fact(trainer, "agreement of sets") == pytest.approx(100 * float(both) / n_kept(masks_of(graph)))
    assert trainer.artifacts["survivors"].tolist() == [int(mask.sum()) for mask in masks_of(graph)]
    assert set(trainer.figures) == {"agreement", "kept"}
    assert trainer.figures["kept"].panels[0].rows == ("a", "b", "all tasks")
    assert "agreement of grown weights" in trained("dynamic")[0].facts
    assert set(trained("random")[0].figures) == {"kept"}


# Parameters


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"drop_rate": 0.3}, "drop_rate is read under rule: dynamic only, not under static"),
        ({"rule": "random", "n_batches": 5}, "n_batches is read under rule: static or pretrained only"),
        ({"reinit": True}, "reinit is read under rule: pretrained or magnitude only"),
        ({"rule": "soft_threshold", "layer_floor": 0}, "layer_floor is read under rule"),
        ({"keep": 0.2, "density": 0.2}, "density follows from keep, 0.2; give one of the two"),
        ({"saliency": "magnitude", "n_batches": 5}, "n_batches is read by saliencies of gradients"),
        ({"rule": "structured"}, "rule"),
        ({"density": 0.0}, "density"),
    ],
)
def test_parameters_that_nobody_would_read_are_refused(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PrunedParams(**params)


def test_a_density_below_the_floor_is_refused_when_planned() -> None:
    """[default] 20 tensors with a weight each are more than .00001 of the network."""
    data, backbone, budget = tasks_of(2), backbone_of("test_resnet"), Budget(20)
    tensors = len(trained("static")[0].artifacts["survivors"])
    with pytest.raises(
        UsageError, match=f"density 1e-05 keeps 4 of 370,608 weights, but layer_floor 1 keeps {tensors}"
    ):
        method(density=1e-5).check(data, backbone, budget)
    with pytest.raises(UsageError, match="keep 1e-05 keeps 4"):
        method(keep=1e-5).check(data, backbone, budget)
    assert method(density=1e-5, layer_floor=0).check(data, backbone, budget)


def test_the_plan_says_what_a_rule_costs() -> None:
    data, backbone = tasks_of(2), backbone_of("test_resnet")

    def notes(steps: int = 2000, **params: Any) -> str:
        return "; ".join(method(**params).check(data, backbone, Budget(steps)))

    assert notes() == "saliency: 50 batches of fit, a backward pass for each of 2 tasks"
    assert "masks change 300 times, every 5 steps before step 1500" in notes(rule="dynamic")
    assert "a dense network trains for 2000 steps first; its weights go on" in notes(rule="magnitude")
    assert "twice" not in notes(rule="magnitude", reinit=True)
    assert notes(rule="random") == notes(rule="soft_threshold") == ""
    assert "the search cannot leave its start" in notes(rule="soft_threshold", lr_threshold=1e-3)


def test_masked_network_starts_pruned(tmp_path: Path) -> None:
    """[default] Before the first step too: an evaluation at step 0 sees zeros."""
    trainer = toy_trainer(tmp_path)
    graph, weights = shared_graph(trainer)
    masks = [torch.zeros_like(weight, dtype=torch.bool) for weight in weights.values()]
    masks[0][0] = True
    MaskedNetwork(graph, list(weights.values()), masks)
    assert n_kept(masks_of(graph)) == masks[0][0].numel()
    assert all(isinstance(weight, nn.Parameter) for weight in weights.values())
