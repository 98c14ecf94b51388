"""The forward pass of AdaShare's search and its norm statistics, against naive passes written here.

T names a trap of adashare.md 7. Networks are small or shown tiny images; nothing is trained for long.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmark.train.stage import StageRun
from benchmark.train.trainer import CellTrainer
from datasets.contracts import Batch, TaskSpec
from methods.adashare.method import AdaShare
from methods.adashare.network import FixedNetwork, SearchNetwork, task_backbones
from methods.adashare.parameters import AdaShareParams
from methods.adashare.schedule import Schedule, schedule
from methods.adashare.search import search_network, search_stages, warm_up_stage, weight_groups
from methods.backbones.backbone import Backbone, BackboneConfig, create_backbone
from methods.contracts import Role
from methods.plain import task_losses
from tests.numbers import assert_same
from tests.unit.harness import toy_spec, toy_trainer

SIZE = 16


def backbone_of(name: str, size: int = SIZE, **options: Any) -> Backbone:
    return create_backbone(BackboneConfig(name, image_size=(size, size), **options), seed=0)


def made(
    folder: Path,
    *,
    backbone: Backbone | None = None,
    n_tasks: int = 2,
    domains: str = "single",
    steps: int = 20,
    **values: Any,
) -> tuple[CellTrainer, AdaShare, SearchNetwork, Schedule]:
    """A trainer, the method and its network in the search, all units unlocked."""
    options: dict[str, Any] = {} if backbone is None else {"prototype": backbone}
    spec = toy_spec(domains, SIZE)
    if n_tasks == 3:
        spec = dataclasses.replace(spec, tasks=(*spec.tasks, TaskSpec("c", "class", 3, ("accuracy",))))
    trainer = toy_trainer(folder, size=SIZE, domains=domains, steps=steps, data=spec, **options)
    method = AdaShare(AdaShareParams(**values))
    plan = schedule(method.params, spec, trainer.budget, len(trainer.backbone().units))
    network = search_network(method.params, trainer, plan)
    network.end_warm_up()
    network.policies.unlock(plan.n_cycles, plan.n_cycles)
    return trainer, method, network, plan


def image(n: int = 4, seed: int = 1) -> Tensor:
    return torch.randn(n, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def set_logits(network: SearchNetwork, execute: float, skip: float) -> None:
    network.policies.logits.data[..., 0] = execute
    network.policies.logits.data[..., 1] = skip


def features_of(network: SearchNetwork, images: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the heads are given."""
    network.heads = nn.ModuleList(nn.Identity() for _ in network.heads)
    return network(images, network.tasks)


# One unit


class Part(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        return torch.full_like(x, self.value)


@pytest.mark.numerical
@pytest.mark.parametrize(("f", "expected"), [(-5.0, 1.5), (1.0, 2.25)])
def test_a_mixed_unit_by_hand(f: float, expected: float, tmp_path: Path) -> None:
    """T5: S = 2, p = .25; the activation stands inside the mix and not on the shortcut."""
    *_, network, _ = made(tmp_path, backbone=backbone_of("resnet18"))
    block = network.backbones[0].blocks[2]
    block.module.downsample = Part(2.0)
    for name in ("conv1", "bn1", "act1", "conv2", "bn2"):
        setattr(block.module, name, nn.Identity())
    block.module.bn2 = Part(f)
    mixed = network.unit(block, torch.zeros(1, 3, 2, 2), torch.tensor(0.25))
    assert mixed.unique().tolist() == [expected]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "test_resnet"])
def test_executed_and_skipped_units_block_by_block(name: str, tmp_path: Path) -> None:
    """The official unit, from the block's own layers: relu(S + F) executed, S skipped, S always run; basic blocks and
    bottlenecks, first blocks of a stage and others.
    """
    backbone = backbone_of(name)
    *_, network, _ = made(tmp_path, backbone=backbone)
    network.eval()
    x = network.backbones[0].stem(image())
    first_of_stage = 0
    for block in network.backbones[0].blocks:
        inner = block.module
        f = inner.bn2(inner.conv2(torch.relu(inner.bn1(inner.conv1(x)))))
        if hasattr(inner, "conv3"):
            f = inner.bn3(inner.conv3(torch.relu(f)))
        s = x if inner.downsample is None else inner.downsample(x)
        first_of_stage += inner.downsample is not None
        assert_same(network.unit(block, x, True), torch.relu(s + f))
        assert torch.equal(network.unit(block, x, False), s)
        p = torch.tensor(0.3)
        assert_same(network.unit(block, x, p), 0.3 * torch.relu(s + f) + 0.7 * s)
        x = torch.relu(s + f)
    assert first_of_stage >= 3
    assert len(network.backbones[0].blocks) == {"resnet18": 8, "resnet50": 16, "test_resnet": 4}[name]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "name", ["resnet18", "test_vit", "test_convnext", "swin_tiny_patch4_window7_224", "mobilenetv3_small_050"]
)
def test_columns_execute_and_skip(name: str, tmp_path: Path) -> None:
    """T1, T3, T30: sure of executing is the plain backbone, sure of skipping the stem and the shortcuts alone."""
    size = 32 if name.startswith("swin") else 64
    backbone = backbone_of(name, size)
    trainer, _, network, _ = made(tmp_path, backbone=backbone)
    network.train()
    for part in network.modules():
        if isinstance(part, nn.modules.batchnorm._NormBase):
            part.eval()
    network.policies.tau = 0.1
    images = {"image": torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))}
    plain = trainer.backbone()
    plain.module().eval()
    set_logits(network, 20, -20)
    with torch.no_grad():
        found = features_of(network, images)
        expected = plain.forward_features(images["image"])
        for value in found.values():
            assert_same(value, expected)
        set_logits(network, -20, 20)
        x = plain.stem(images["image"])
        for block in plain.blocks:
            x = block(x) if block.skip is None else block.skip(x)
        skipped = plain.tail(x)
        for value in features_of(network, images).values():
            assert_same(value, skipped)
        network.eval()  # hard draws: bit for bit
        for value in features_of(network, images).values():
            assert torch.equal(value, skipped)
        set_logits(network, 200, -200)
        for value in features_of(network, images).values():
            assert torch.equal(value, expected)


def test_a_skipped_network_keeps_projections_and_negative_values(tmp_path: Path) -> None:
    """T2."""
    *_, network, _ = made(tmp_path, backbone=backbone_of("resnet18", 64))
    network.eval()
    set_logits(network, -200, 200)
    with torch.no_grad():
        found = features_of(network, {"image": torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))})
    assert found["a"].shape == (3, 512, 2, 2)
    assert float(found["a"].min()) < 0


@pytest.mark.parametrize("zero_init", [True, False])
def test_zero_initialised_norms_hide_units_from_their_logits(zero_init: bool, tmp_path: Path) -> None:
    """T4: where execute and skip are one function no task gradient reaches a logit."""
    backbone = backbone_of("resnet18", zero_init_last=zero_init)
    trainer, _, network, _ = made(tmp_path, backbone=backbone)
    network.train()
    losses = task_losses(trainer.data, network)(batch(), network.tasks)
    sum(losses.values()).backward()
    seen = network.policies.logits.grad.abs().amax((0, 2)) > 0
    assert seen.tolist() == ([False, False] + [True] * 6 if zero_init else [True] * 8)


def batch(n: int = 8, tasks: tuple[str, ...] = ("a", "b"), seed: int = 0) -> Batch:
    random = torch.Generator().manual_seed(seed)
    sizes = {"a": 4, "b": 2, "c": 3}
    targets = {task: torch.randint(0, sizes[task], (n,), generator=random) for task in tasks}
    return Batch({"image": image(n, seed)}, targets, {"image": torch.arange(n)})


# Several tasks: computing common blocks once changes nothing


def naive(network: SearchNetwork, images: dict[str, Tensor], decisions: Any) -> dict[str, Tensor]:
    """One pass per task, unit by unit, as the official code runs it."""
    found = {}
    for k, task in enumerate(network.tasks):
        backbone = network.backbones[k]
        x = backbone.stem(images[network.inputs[k]])
        for block, decision in zip(backbone.blocks, decisions[k], strict=True):
            s = block.skip(x)
            p = float(decision) if isinstance(decision, bool) else decision
            x = p * block.execute(x, s) + (1 - p) * s
        found[task] = network.heads[k](backbone.tail(x))
    return found


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("rule", ["shared", "per_task_stats", "per_task"])
@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("domains", ["single", "multi"])
def test_common_blocks_once_equal_a_pass_for_each_task(rule: str, n: int, domains: str, tmp_path: Path) -> None:
    """Predictions, gradients and norm statistics, in training, with n of 4 units unlocked."""
    *_, network, _ = made(tmp_path, batch_norm=rule, domains=domains, n_tasks=2)
    network.train()
    network.policies.n = n
    images = {name: image(8, seed) for seed, name in enumerate(dict.fromkeys(network.inputs))}
    twin = copy.deepcopy(network)
    decisions = twin.policies.sample(torch.Generator().manual_seed(5))
    network.decide = lambda: network.policies.sample(torch.Generator().manual_seed(5))
    ours, theirs = network(images, network.tasks), naive(twin, images, decisions)
    for task in ours:
        assert_same(ours[task], theirs[task])
    for predictions in (ours, theirs):
        sum((value**2).sum() for value in predictions.values()).backward()
    pairs = list(zip(network.named_parameters(), twin.named_parameters(), strict=True))
    assert pairs
    for (name, mine), (_, yours) in pairs:
        assert (mine.grad is None) == (yours.grad is None), name
        if mine.grad is not None:
            assert_same(mine.grad, yours.grad, name)
    for (name, mine), (_, yours) in zip(network.named_buffers(), twin.named_buffers(), strict=True):
        if mine.is_floating_point():
            assert_same(mine, yours, name)
        else:
            assert torch.equal(mine, yours), name


@pytest.mark.usefixtures("float64")
def test_tasks_without_a_label_take_no_part_in_what_runs_at_once(tmp_path: Path) -> None:
    """After a step of all three tasks: predictions of two are those of their own passes, and only they move norms."""
    *_, network, _ = made(tmp_path, n_tasks=3)
    network.train()
    network({"image": image()}, network.tasks)
    twin = copy.deepcopy(network)
    network.decide = lambda: network.policies.sample(torch.Generator().manual_seed(5))
    decisions = twin.policies.sample(torch.Generator().manual_seed(5))
    ours = network({"image": image(seed=2)}, ("a", "c"))
    theirs = naive(twin, {"image": image(seed=2)}, decisions)
    for task in ("a", "c"):
        assert_same(ours[task], theirs[task])
    for k, moves in enumerate((True, False, True)):
        mine, before = network.parts[k].blocks[-1].module.bn1, twin.parts[k].blocks[-1].module.bn1
        assert int(mine.num_batches_tracked) == (2 if moves else 1)
        if moves:
            assert_same(mine.running_mean, before.running_mean)


def test_common_blocks_run_once_and_shortcuts_once_per_pass(tmp_path: Path) -> None:
    """T15: S_l sees every image once per unit and task; the blocks before the first free unit once for all three."""
    *_, network, _ = made(tmp_path, n_tasks=3, backbone=backbone_of("resnet18"), batch_norm="shared")
    network.train()
    blocks = network.backbones[0].blocks
    calls: Counter[str] = Counter()
    for index, block in enumerate(blocks):
        for name in ("conv1", "downsample"):
            part = getattr(block.module, name)
            if part is not None:
                part.register_forward_hook(lambda _, given, out, key=f"{name}{index}": calls.update({key: len(out)}))
    for n in (1, 4, 8):
        network.policies.n = n
        calls.clear()
        network({"image": image()}, network.tasks)
        first = 8 - n
        expected = {f"conv1{i}": 4 if i <= first else 12 for i in range(8)}  # images
        expected |= {f"downsample{i}": 4 if i <= first else 12 for i in (2, 4, 6)}
        assert calls == expected


def test_locked_units_ignore_their_logits(tmp_path: Path) -> None:
    """T6: at n = 1 the output does not change with A[0:7], and its gradient there is exactly 0."""
    trainer, _, network, _ = made(tmp_path, backbone=backbone_of("resnet18"))
    network.train()
    network.policies.n = 1
    network.decide = lambda: network.policies.sample(torch.Generator().manual_seed(5))
    first = network({"image": image()}, network.tasks)
    network.policies.logits.data[:, :7] = torch.randn(2, 7, 2)
    second = network({"image": image()}, network.tasks)
    for task in first:
        assert torch.equal(first[task], second[task])
    sum(task_losses(trainer.data, network)(batch(), network.tasks).values()).backward()
    grad = network.policies.logits.grad
    assert torch.equal(grad[:, :7], torch.zeros(2, 7, 2))
    assert float(grad[:, 7].abs().min()) > 0


@pytest.mark.numerical
@pytest.mark.parametrize("train", [True, False])
def test_multi_domain_tasks_see_their_own_images_only(train: bool, tmp_path: Path) -> None:
    """T28."""
    *_, network, _ = made(tmp_path, domains="multi")
    assert network.warm_up_passes == 2
    network.eval()
    network.warming_up = train
    images = {"a": image(4, 1), "b": image(4, 2)}
    network.decide = lambda: network.policies.draw(torch.Generator().manual_seed(5))
    with torch.no_grad():
        first = network(images, ("a", "b"))
        second = network({**images, "b": image(4, 3)}, ("a", "b"))
        alone = network({"a": images["a"]}, ("a",))
    assert torch.equal(first["a"], second["a"])
    assert torch.equal(first["a"], alone["a"])
    assert not torch.equal(first["b"], second["b"])


# Norms


def counts(module: nn.Module) -> set[int]:
    return {int(value) for name, value in module.named_buffers() if name.endswith("num_batches_tracked")}


@pytest.mark.parametrize(
    ("rule", "warm_up", "search"),
    [
        ("shared", [{3}], [{3 + 2 * 5}]),
        ("per_task_stats", [{3}] * 2, [{3 + 5}] * 2),
        ("per_task", [{3}] * 2, [{8}] * 2),
    ],
)
def test_how_often_statistics_are_updated(
    rule: str, warm_up: list[set[int]], search: list[set[int]], tmp_path: Path
) -> None:
    """T19: shared +1 per warm-up step and +K per search step, else +1 per step and copy."""
    trainer, method, network, plan = made(tmp_path, batch_norm=rule, n_cycles=5)
    network.warming_up = True
    trainer.fit(dataclasses.replace(warm_up_stage(method.params, trainer, network, plan), steps=3))
    network.end_warm_up()
    assert [counts(part) for part in network.parts] == warm_up
    weights, policy = search_stages(method.params, trainer, network, plan)
    trainer.alternate([dataclasses.replace(weights, steps=4), dataclasses.replace(policy, steps=1)], 4)
    assert [counts(part) for part in network.parts] == search


def test_weights_are_shared_and_norms_belong_to_the_rule() -> None:
    backbone = backbone_of("resnet18")
    total = backbone.n_parameters()
    for rule, n_parameters, n_sets in (
        ("shared", total, 1),
        ("per_task_stats", total, 3),
        ("per_task", total + 2 * 9600, 3),
    ):
        copies = task_backbones(backbone, 3, rule)
        modules = nn.ModuleList(one.module() for one in copies)
        assert sum(p.numel() for p in modules.parameters()) == n_parameters
        statistics = {id(value) for name, value in modules.named_buffers() if name.endswith("running_mean")}
        assert len(statistics) == n_sets * 20
        assert copies[0] is backbone
        downsamples = {id(one.blocks[2].skip[0].weight) for one in copies}
        assert len(downsamples) == 1, "projection convolutions stay shared"


@pytest.mark.numerical
@pytest.mark.parametrize("pollute", [True, False])
def test_statistics_of_a_unit_that_one_task_skips(pollute: bool, tmp_path: Path) -> None:
    """T20: task a executes unit 6, task b skips it, official retraining with one set of statistics."""
    trainer, *_ = made(tmp_path)
    executed = [True] * 8

    def after_a_step(tasks: tuple[str, ...], pollute: bool) -> tuple[dict[str, Tensor], FixedNetwork]:
        backbone = backbone_of("resnet18")
        heads = {task: trainer.head(task) for task in ("a", "b")}
        policy = (tuple(executed), tuple(unit != 5 for unit in range(8)))
        heads = {task: dataclasses.replace(head, module=nn.Identity()) for task, head in heads.items()}
        network = FixedNetwork(trainer.data, [backbone] * 2, heads, policy, pollute).train()
        sum(value.square().sum() for value in network({"image": image(8)}, tasks).values()).backward()
        branch = backbone.blocks[5].branch()
        return {name: value for name, value in branch.named_buffers() if "running" in name}, network

    alone, _ = after_a_step(("a",), False)
    both, network = after_a_step(("a", "b"), pollute)
    same = all(torch.equal(alone[name], value) for name, value in both.items())
    assert same is not pollute
    _, network = after_a_step(("b",), pollute)
    gradients = [p.grad for p in network.backbones[0].blocks[5].branch().parameters()]
    assert all(grad is None or not grad.any() for grad in gradients), "b must not move the weights of unit 6"


def test_units_that_no_task_executes_are_not_run_for_their_statistics(tmp_path: Path) -> None:
    trainer, *_ = made(tmp_path)
    backbone = backbone_of("resnet18")
    policy = ((False,) * 8,) * 2
    network = FixedNetwork(trainer.data, [backbone] * 2, {t: trainer.head(t) for t in ("a", "b")}, policy, True)
    assert network.polluted == set()


# Stages


def test_each_phase_moves_what_it_trains_and_nothing_else(tmp_path: Path) -> None:
    """T16."""
    trainer, method, network, plan = made(tmp_path)
    weights, policy = search_stages(method.params, trainer, network, plan)

    def moved(stage: Any) -> set[str]:
        before = {name: value.clone() for name, value in network.state_dict().items()}
        trainer.alternate([dataclasses.replace(stage, steps=2)], 2)
        return {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}

    parameters = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    watched = {name for name, _ in network.named_buffers(remove_duplicate=False) if name.startswith("parts.")}
    in_policy = moved(policy)
    assert in_policy & parameters == {"policies.logits"}
    assert {name for name in watched if name.endswith("running_mean")} <= in_policy
    in_weights = moved(weights)
    assert "policies.logits" not in in_weights
    assert parameters - {"policies.logits"} <= in_weights


def test_the_weight_step_knows_no_regulariser(tmp_path: Path) -> None:
    """T15: what is descended in the weight phase is the sum of the weighted task losses, bit for bit."""
    trainer, method, network, plan = made(tmp_path, sparsity_weight=7.0, sharing_weight=7.0)
    weights, policy = search_stages(method.params, trainer, network, plan)
    assert weights.penalty is None
    assert float(policy.penalty().detach()) > 0
    run = StageRun(weights, trainer.context)
    run.begin_phase(0, fresh=True)
    given: list[Tensor] = []
    run.balancer.backward = lambda losses, penalty, *_: given.extend([sum(losses), penalty])
    states = {name: value.clone() for name, value in network.state_dict().items()}
    noise = trainer.rng("gumbel").get_state()
    run.step(batch())
    network.load_state_dict(states)
    trainer.rng("gumbel").set_state(noise)
    losses = task_losses(trainer.data, network)(batch(), network.tasks)
    assert torch.equal(given[0], losses["a"] + 0.5 * losses["b"])
    assert given[1] is None


def test_optimizers_start_anew_in_the_search(tmp_path: Path) -> None:
    """T18: empty state; the official ones are SGD at the constant rates of heads and backbone."""
    preset = {"recipe": "published", "published": {"preset": "cityscapes_2task", "lr_step": 2}}
    for values in ({}, preset):
        trainer, method, network, plan = made(tmp_path, lr_logits=0.01, **values)
        weights, policy = search_stages(method.params, trainer, network, plan)
        run = StageRun(weights, trainer.context)
        assert all(not optimizer.state for optimizer in run.optimizers._optimizers)
        kinds = {type(optimizer) for optimizer in run.optimizers._optimizers}
        assert kinds == {torch.optim.SGD}
        if values:
            for step in (0, 1, 5, 1000):
                run.optimizers.set_rates(step, 5000)
                rates = [group["lr"] for o in run.optimizers._optimizers for group in o.param_groups]
                assert rates == [1e-3, 1e-4]  # backbone, heads
            assert {group["weight_decay"] for o in run.optimizers._optimizers for group in o.param_groups} == {1e-4}
            warm = StageRun(warm_up_stage(method.params, trainer, network, plan), trainer.context)
            assert {type(optimizer) for optimizer in warm.optimizers._optimizers} == {torch.optim.Adam}
            assert warm.optimizers._optimizers[0].defaults["betas"] == (0.5, 0.999)
            found = []
            for step in range(5):
                warm.optimizers.set_rates(step, 5000)
                found.append(warm.optimizers._optimizers[0].param_groups[0]["lr"])
            assert found == pytest.approx([1e-3, 1e-3, 5e-4, 5e-4, 2.5e-4])
        adam = StageRun(policy, trainer.context).optimizers._optimizers[0]
        assert type(adam) is torch.optim.Adam
        assert (adam.defaults["lr"], adam.defaults["weight_decay"]) == (0.01, 5e-4)
        assert adam.defaults["betas"] == (0.9, 0.999)


def test_domainnet_searches_with_adam_and_lets_the_rate_of_heads_fall(tmp_path: Path) -> None:
    _, method, network, _ = made(
        tmp_path, recipe="published", published={"preset": "domainnet", "lr_step": 2, "lr_gamma": 0.5}, domains="multi"
    )
    backbone, added, heads = weight_groups(method.params, network, "search")
    assert (backbone.optimizer.name, backbone.optimizer.lr, backbone.optimizer.decay_every) == ("adam", 1e-5, None)
    assert (heads.optimizer.lr, heads.optimizer.decay_every, heads.optimizer.decay) == (1e-3, 2, 0.5)
    assert len(added.parameters) > 0  # each task's own norms
    assert added.optimizer == backbone.optimizer


def test_evaluation_draws_anew_for_every_batch(tmp_path: Path) -> None:
    """2.4: an independent Bernoulli draw per task and unit for each evaluation batch, the stream the method's own."""
    trainer, _, network, _ = made(tmp_path)
    seen = []
    draw = network.policies.draw
    network.policies.draw = lambda rng: seen.append(draw(rng)) or seen[-1]
    before = trainer.rng("gumbel").get_state()
    trainer.evaluate(network, Role.SELECT)
    trainer.evaluate(network, Role.SELECT)
    assert len(seen) == 2
    assert seen[0] != seen[1]
    assert torch.equal(before, trainer.rng("gumbel").get_state())
