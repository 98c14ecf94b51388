"""MTAN: the traps of soft_sharing 4, with the numbers that the specification gives."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmark.train.trainer import CellTrainer
from datasets.errors import UsageError
from methods.backbones.backbone import Backbone, BackboneConfig, create_backbone
from methods.contracts import Budget
from methods.graph.cost import MacCounter, size
from methods.graph.operations import Operation, Together
from methods.graph.task_graph import TaskGraph
from methods.plain import plain_graph, task_losses
from methods.soft_sharing.attention import Attention, refinement
from methods.soft_sharing.mtan import Mtan, MtanParams
from methods.soft_sharing.mtan_network import attention_network, mean_masks, pooling_of, shared_stages
from tests.numbers import assert_same
from tests.unit.harness import toy_trainer
from tests.unit.towers import backbone_of, batch_of, images_of, tasks_of, trainer_of

P = 11_176_512


@pytest.fixture(scope="module")
def resnet18() -> Backbone:
    return create_backbone(BackboneConfig("resnet18", image_size=(32, 32)), seed=0)


def network(trainer: CellTrainer, **params: Any) -> tuple[TaskGraph, list[list[Operation]]]:
    graph, attentions = attention_network(MtanParams(**params), trainer, trainer.backbone())
    return graph, attentions


def open_masks(attentions: list[list[Operation]]) -> None:
    for row in attentions:
        for one in row:
            nn.init.zeros_(one.module.norm_h.weight)
            nn.init.constant_(one.module.norm_h.bias, 20.0)


def masks_of(graph: TaskGraph, images: dict[str, Tensor]) -> list[Tensor]:
    found: list[Tensor] = []
    handles = [
        node.module.sigmoid.register_forward_hook(lambda module, inputs, output: found.append(output))
        for node in graph.nodes.values()
        if isinstance(node.module, Attention)
    ]
    graph.network()(images, graph.tasks)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("training", [False, True])
def test_m1_masks_and_the_shared_network(training: bool, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, 2, size=16)
    graph, attentions = network(trainer)
    images = images_of(trainer)
    graph.network().train(training)
    masks = masks_of(graph, images)
    assert len(masks) == 2 * 4
    assert all(bool((mask > 0).all() and (mask < 1).all()) for mask in masks)
    open_masks(attentions)
    masks = masks_of(graph, images)
    assert all(bool((mask.double() > 1 - 1e-8).all()) for mask in masks)
    trained = [graph.network().train(training)(images, graph.tasks)[task] for task in graph.tasks]
    plain = plain_graph(trainer.data, trainer.data.task_names, trainer.backbone(), trainer.head)
    expected = plain.network().train(training)(images, plain.tasks)
    for task, value in zip(graph.tasks, trained, strict=True):
        torch.testing.assert_close(value, expected[task], rtol=0, atol=1e-6)  # a mask is 1 - 2e-9: sigmoid of 20


def test_masks_start_at_the_bias_that_is_set(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, 2)
    graph, _ = network(trainer, mask_bias_init=3.0)
    heads = [node.module for node in graph.nodes.values() if isinstance(node.module, Attention)]
    assert all(torch.equal(head.norm_h.bias, torch.full_like(head.norm_h.bias, 3.0)) for head in heads)


@pytest.mark.numerical
def test_m2_a_task_changes_only_its_own_outputs(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, 2, size=16)
    graph, attentions = network(trainer)
    images = images_of(trainer)
    before = graph.network().eval()(images, ("a", "b"))
    with torch.no_grad():
        for one in attentions[0]:
            one.module.g.weight.mul_(3)
            one.module.h.weight.mul_(-2)
    after = graph.network().eval()(images, ("a", "b"))
    assert torch.equal(before["b"], after["b"])
    assert not torch.equal(before["a"], after["a"])


def test_m2_gradients_reach_what_is_shared_and_nothing_else(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, 2, size=16)
    graph, attentions = network(trainer)
    task_losses(trainer.data, graph.network())(batch_of(trainer), ("a", "b"))["a"].backward()
    others = [p for one in attentions[1] for p in one.module.parameters()]
    assert all(p.grad is None or not bool(p.grad.any()) for p in others)
    shared = {
        id(p): p for n in graph.nodes.values() if n.operation.kind == "mtan.refine" for p in n.module.parameters()
    }
    assert all(p.grad is not None and bool(p.grad.any()) for p in shared.values() if p.dim() == 4)


@pytest.mark.parametrize("rule", ["per_task_stats", "per_task"])
def test_m2_statistics_of_another_task_do_not_move(rule: str, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, 2, size=16)
    graph, _ = network(trainer, batch_norm=rule)
    images = images_of(trainer)
    refines = [node for node in graph.nodes.values() if node.operation.kind == "mtan.refine"]
    users = graph.users()

    def statistics(task: str) -> list[Tensor]:
        own = [node for node in refines if users[node.name] == (task,)]
        return [buffer.clone() for node in own for buffer in node.module.buffers()]

    before = statistics("b")
    graph.network().train()(images, ("a",))
    assert len(before) > 0
    assert all(torch.equal(old, new) for old, new in zip(before, statistics("b"), strict=True))
    assert not all(torch.equal(old, new) for old, new in zip(before, statistics("a"), strict=True))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("rule", "tasks", "cached"),
    [("shared", "abcd", True), ("per_task_stats", "acd", True), ("per_task", "abcd", True), ("shared", "abcd", False)],
)
def test_tasks_together_are_the_tasks_one_by_one(
    rule: str, tasks: str, cached: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Predictions, gradients, statistics and counted operations of a training step; small features and large ones."""
    if not cached:
        monkeypatch.setattr("methods.soft_sharing.attention._CACHED", 0)
    trainer = trainer_of(tmp_path, 4, size=16)
    graph, _ = network(trainer, batch_norm=rule)
    graph = graph.with_shared_statistics() if rule == "shared" else graph
    twin, images = copy.deepcopy(graph), images_of(trainer)
    joint = graph.network().train()
    outcomes = []
    for one, run in ((graph, lambda: joint(images, tuple(tasks))), (twin, lambda: twin.module(*tasks).train()(images))):
        with MacCounter() as counter:
            found = run()
            sum((value**2).sum() for value in found.values()).backward()
        outcomes.append(
            (counter.macs, found, one.parameters(), [b for n in one.nodes.values() for b in n.module.buffers()])
        )
    (macs, found, weights, buffers), (expected_macs, expected, others, expected_buffers) = outcomes
    assert macs == expected_macs
    assert any(isinstance(part, Together) for part in joint.modules())
    for task in tasks:
        assert_same(found[task], expected[task], task)
    for mine, yours in zip(weights, others, strict=True):
        assert (mine.grad is None) == (yours.grad is None)
        if mine.grad is not None:
            assert_same(mine.grad, yours.grad)
    for mine, yours in zip(buffers, expected_buffers, strict=True):
        if mine.is_floating_point():
            assert_same(mine, yours)
        else:
            assert torch.equal(mine, yours)


@pytest.mark.usefixtures("float64")
def test_refinements_of_other_weights_do_not_run_together() -> None:
    """Equally deep in one graph, on images of one size."""
    graph, images = TaskGraph(["image"]), {"image": torch.randn(2, 3, 6, 6)}
    for seed, task in enumerate("abc"):
        f = refinement(3, 4, "conv3x3", "none", seed, torch.device("cpu"))
        graph.output(task, graph.add(f, graph.input("image")))
    together, alone = graph.network()(images, graph.tasks), graph.module()(images)
    for task in graph.tasks:
        assert_same(together[task], alone[task], task)


@pytest.mark.parametrize(("n_tasks", "x_backbone"), [(2, 1.092), (3, 1.115), (5, 1.163), (10, 1.281)])
def test_m3_c4_counts_on_resnet18(n_tasks: int, x_backbone: float, resnet18: Backbone, tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, size=32, data=tasks_of(n_tasks, size=32), prototype=resnet18)
    graph, attentions = network(trainer)
    added = sum(p.numel() for p in graph.parameters("added"))
    assert [sum(p.numel() for one in row for p in one.module.parameters()) for row in attentions] == [263_696] * n_tasks
    assert added == n_tasks * 263_696 + 499_072
    assert round(size(graph, P).x_backbone, 3) == x_backbone
    if n_tasks == 3:
        assert added == 1_290_160
        assert 3 * (263_696 + 499_072) == 2_288_304  # what a refinement per task would have
        own_norms, _ = network(trainer, batch_norm="per_task")
        norms = sum(
            p.numel()
            for node in graph.nodes.values()
            if node.operation.kind == "mtan.refine" and graph.users()[node.name] == ("a",)
            for part in node.module.modules()
            if isinstance(part, nn.BatchNorm2d)
            for p in part.parameters()
        )
        assert sum(p.numel() for p in own_norms.parameters("added")) == added + 2 * norms


def test_m3_counts_on_resnet50(tmp_path: Path) -> None:
    resnet50 = create_backbone(BackboneConfig("resnet50", image_size=(64, 64)), seed=0)
    trainer = toy_trainer(tmp_path, size=64, data=tasks_of(2, size=64), prototype=resnet50)
    graph, attentions = network(trainer)
    assert sum(p.numel() for one in attentions[0] for p in one.module.parameters()) == 4_175_936
    assert sum(p.numel() for p in graph.parameters("added")) == 2 * 4_175_936 + 7_931_392


@pytest.mark.parametrize(
    ("name", "side"), list(itertools.product(["test_resnet", "test_convnext"], [321, 224, 97, 52]))
)
def test_m4_refined_features_fit_the_next_stage(name: str, side: int) -> None:
    """The pooling rounds as the backbone does: up where it pads, down where it does not."""
    backbone = create_backbone(BackboneConfig(name, image_size=(side, side)), seed=0)
    pooling = pooling_of(backbone)
    ends = [backbone.blocks[stage[-1]].out_shape.channels for stage in backbone.stages]
    value = backbone.stem.eval()(torch.zeros(1, 3, side, side))
    for number, stage in enumerate(backbone.stages):
        for index in stage:
            value = backbone.blocks[index].eval()(value)
        if number > 0:
            assert refined.shape[2:] == value.shape[2:]  # noqa: F821  (of the stage before)
        if number < len(pooling):
            device = torch.device("cpu")
            refine = refinement(ends[number], ends[number + 1], "bottleneck", pooling[number], 0, device)
            refined = refine.module.eval()(value)
            assert refined.shape[1] == ends[number + 1]
    if side == 52:  # 13 rounds up to 7 where a stage pads, down to 6 where it does not; even sides fit both
        assert pooling[0] == ("ceil" if name == "test_resnet" else "floor")


def test_m4_a_mismatch_raises() -> None:
    one = Attention(6, 2, 3)
    with pytest.raises(ValueError, match=r"\(3, 3\) where the stage has \(4, 4\)"):
        one(torch.ones(1, 3, 4, 4), torch.ones(1, 3, 4, 4), torch.ones(1, 3, 3, 3))


@pytest.mark.numerical
@pytest.mark.parametrize("name", ["test_resnet", "resnet10t"])
def test_m4_a_stage_of_one_block_has_two_features_of_its_output_shape(name: str) -> None:
    backbone = backbone_of(name)
    graph = TaskGraph(["image"])
    value = graph.add(backbone.stem_operation(), graph.input("image"))
    places = []
    for stage in shared_stages(backbone):
        u, value = stage.features(graph, value)
        places += [u, value]
    for number, place in enumerate(places):
        graph.output(str(number), place)
    found = graph.network().eval()({"image": torch.randn(2, 3, 32, 32)}, graph.tasks)
    for u, p in zip(range(0, 8, 2), range(1, 8, 2), strict=True):
        assert found[str(u)].shape == found[str(p)].shape
        assert not torch.equal(found[str(u)], found[str(p)])
    # The trunk is timm's, bit for bit, and nothing of it is held twice.
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(graph.network().eval()({"image": x}, ("7",))["7"], backbone.forward_features(x))
    assert sum(p.numel() for p in graph.parameters()) == backbone.n_parameters()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("test_efficientnet", r"ends with a block that changes shape from \(16, 2\) to \(24, 4\).*has no shortcut"),
        ("test_vit", "whose features are tokens; it needs nchw"),
        ("swin_tiny_patch4_window7_224", "whose features are nhwc; it needs nchw"),
    ],
)
def test_backbones_without_a_form_are_refused_when_planned(name: str, message: str) -> None:
    backbone = backbone_of(name)
    with pytest.raises(UsageError, match=message):
        Mtan(MtanParams()).check(tasks_of(2), backbone, Budget(10))


def test_the_form_of_f_is_a_switch(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, 2)
    graph, _ = network(trainer, refine="conv3x3")
    refines = {id(n.operation): n.operation.module for n in graph.nodes.values() if n.operation.kind == "mtan.refine"}
    widths = [sum(p.numel() for p in module.parameters()) for module in refines.values()]
    assert sorted(widths) == sorted(9 * a * b + 2 * b for a, b in ((32, 48), (48, 192), (192, 96)))


def test_published_is_adam_that_is_halved() -> None:
    params = MtanParams(recipe="published")
    assert params.batch_norm == "shared"
    assert params.unit_lr == 1.0
    spec = params.published.spec(params.unit_lr)
    assert (spec.name, spec.lr, spec.decay_every, spec.decay, params.published.steps) == (
        "adam",
        1e-4,
        40000,
        0.5,
        80000,
    )


def test_mean_masks_are_told(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, steps=2)
    graph, attentions = network(trainer)
    open_masks(attentions)
    torch.testing.assert_close(mean_masks(trainer, graph, attentions), torch.ones(2, 4))
    Mtan(MtanParams()).run(trainer)
    assert 0 < trainer.facts["mean mask"]["value"] < 1
    assert trainer.facts["parameters of the attention"]["value"] == sum(
        p.numel() for row in attentions for one in row for p in one.module.parameters()
    )
    assert trainer.ledger.search.optimizer_steps == 0
