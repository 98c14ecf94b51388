"""Low-rank updates: the traps of more_methods 4 and its common tests, with the numbers that the specification gives."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from timm.layers import Conv2dSame
from timm.models.swin_transformer_v2 import SwinTransformerV2Block
from torch import Tensor, nn

from benchmark.train.trainer import CellTrainer
from datasets.errors import UsageError
from methods.backbones.backbone import Backbone, BackboneConfig, create_backbone
from methods.contracts import Budget
from methods.graph.cost import compute
from methods.graph.operations import Operation
from methods.graph.task_graph import TaskGraph
from methods.lora.method import Lora, LoraParams
from methods.lora.network import LowRankNetwork, low_rank_network
from methods.lora.places import places_of, share_covered, trained_whole
from methods.lora.updates import Adapted, LowRank, adapt, layers_of
from methods.lora.walk import Walk
from methods.plain import fit_graph, plain_graph, task_losses
from tests.numbers import assert_same
from tests.unit.harness import toy_trainer
from tests.unit.kills import Killed, kill_after, outcome
from tests.unit.towers import backbone_of, batch_of, images_of, tasks_of, trainer_of

SWIN = "swin_tiny_patch4_window7_224"
PATHS = ("side", "side_with_shared", "own")


def made(trainer: CellTrainer, **params: Any) -> LowRankNetwork:
    heads = {task: trainer.head(task) for task in trainer.data.task_names}
    return low_rank_network(trainer, trainer.backbone(), heads, LoraParams(**params))


def move(updates: Mapping[str, LowRank], seed: int = 3, by: float = 0.05) -> None:
    """Away from B = 0."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for update in updates.values():
            for parameter in update.parameters():
                parameter.copy_(by * torch.randn(parameter.shape, generator=random))


def moved(trainer: CellTrainer, **params: Any) -> LowRankNetwork:
    network = made(trainer, **params)
    for seed, updates in enumerate([network.shared, *network.own.values()]):
        move(updates, seed)
    return network


def plain_of(trainer: CellTrainer, network: LowRankNetwork) -> TaskGraph:
    return plain_graph(trainer.data, trainer.data.task_names, network.backbone, network.heads.__getitem__)


def predictions(graph: TaskGraph, images: Mapping[str, Tensor]) -> dict[str, Tensor]:
    with torch.no_grad():
        found: dict[str, Tensor] = graph.network().eval()(images, graph.tasks)
    return found


def numel(parameters: Any) -> int:
    return sum(p.numel() for p in parameters)


# The start


def at_the_start(trainer: CellTrainer, **params: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    network, images = made(trainer, **params), images_of(trainer)
    for updates in (network.shared, *network.own.values()):
        for update in updates.values():
            update.A.weight.data.mul_(100)
    return predictions(network.training_graph(), images), predictions(plain_of(trainer, network), images)


@pytest.mark.numerical
@pytest.mark.parametrize(
    ("name", "domains", "params"),
    [
        ("test_vit", "single", {}),
        ("test_vit", "multi", {"task_path": "side_with_shared", "task_blocks": {"suffix": 2}}),
        ("test_vit", "single", {"task_path": "own"}),
        ("test_convnext", "single", {}),
        ("test_resnet", "multi", {}),
    ],
)
def test_l1_at_the_start_it_is_the_base_bit_for_bit(name: str, domains: str, params: Any, tmp_path: Path) -> None:
    """L1 [default]: else a training does not go on from the base, however A was drawn."""
    found, expected = at_the_start(trainer_of(tmp_path, 2, name, size=32, domains=domains), **params)
    assert all(torch.equal(found[task], expected[task]) for task in expected)


@pytest.mark.usefixtures("float64")
def test_l1_at_the_start_swin_is_the_base(tmp_path: Path) -> None:
    """L1: its projection runs on the map instead of windows, so bits may differ."""
    found, expected = at_the_start(trainer_of(tmp_path, 2, SWIN, size=32))
    for task, value in expected.items():
        assert_same(found[task], value)


def test_a_starts_as_linear_layers_do_and_b_at_0(tmp_path: Path) -> None:
    """[official code] He's uniform rule with slope sqrt(5): evenly in +- 1 / sqrt(in)."""
    trainer = trainer_of(tmp_path, 2, "test_vit", size=32)
    network = made(trainer)
    update = network.shared["blocks.0.module.mlp.fc2"]
    bound = update.A.weight.shape[1] ** -0.5
    assert update.A.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
    assert update.A.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert not any(bool(u.B.weight.any()) for u in network.shared.values())
    first, second = ([u.A.weight for u in network.own[task].values()] for task in "ab")
    assert not torch.equal(first[0], second[0])


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("path", PATHS)
def test_l10_the_first_step_moves_b_only(path: str, tmp_path: Path) -> None:
    """L10 [derived]: while B = 0 the gradient of A is 0; A that moves at once is read by some other way. Beside the
    shared stream a task's fc1 is read by its fc2 alone, whose B is 0: it waits a step longer.
    """
    trainer = trainer_of(tmp_path, 2, "test_vit", size=32)
    network = made(trainer, dropout=0.0, task_path=path)
    graph = network.training_graph()
    losses = task_losses(trainer.data, graph.network().train())(batch_of(trainer), ("a", "b"))
    sum(losses.values()).backward()
    for updates in (network.shared, *network.own.values()):
        for name, update in updates.items():
            assert not bool(update.A.weight.grad.any()), name
            waits = path != "own" and updates is not network.shared and name.endswith("fc1")
            assert bool(update.B.weight.grad.any()) != waits, name


# One layer


def stub_layer() -> tuple[nn.Linear, LowRank, LowRank]:
    """W = 1, b = 0, s B A = .25, s_t B_t A_t = .5."""
    w = nn.Linear(1, 1)
    shared, own = LowRank(w, 1, 0.5), LowRank(w, 1, 2.0)
    with torch.no_grad():
        for part, value in ((w.weight, 1), (w.bias, 0), (shared.A.weight, 0.5), (shared.B.weight, 1),
                            (own.A.weight, 0.5), (own.B.weight, 0.5)):  # fmt: skip
            part.fill_(value)
    return w, shared, own


@pytest.mark.parametrize(("path", "expected"), [("side", 3.5), ("side_with_shared", 4.0), ("own", 4.5)])
@pytest.mark.parametrize("is_deployed", [False, True])
def test_l2_what_a_stream_reads(path: Any, expected: float, is_deployed: bool) -> None:
    """L2 [official code; own default], x = 2 and x_t = 3: another sum is another method under this name."""
    w, shared, own = stub_layer()
    if is_deployed and path == "side_with_shared":
        w.weight.data += shared.delta()
    body = nn.ModuleDict({"fc": w})
    network = SimpleNamespace(shared={} if path == "own" else {"fc": shared}, own={"a": {"fc": own}},
                              kept_apart=lambda name: path == "side")  # fmt: skip
    walk = Walk(network, SimpleNamespace(module=lambda: body), is_deployed=is_deployed)
    graph = TaskGraph(["x", "x_t"])
    operation = Operation("backbone", {}, w, "backbone")
    y, y_t = walk._layer(graph, operation, "a", graph.input("x"), graph.input("x_t"), path)
    graph.output("y", y)
    graph.output("y_t", y_t)
    found = predictions(graph, {"x": torch.tensor([[2.0]]), "x_t": torch.tensor([[3.0]])})
    assert found["y_t"].item() == expected
    assert found["y"].item() == (expected if path == "own" else 2.5)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("rank", [16, 64])
def test_l3_the_scale_is_a_factor(rank: int) -> None:
    """L3 [official code]: an alpha / r rule would give .25 and .0625 of this at scale 4."""
    random = torch.Generator().manual_seed(0)
    layer = nn.Linear(20, 30)
    a, b = torch.randn(16, 20, generator=random), torch.randn(30, 16, generator=random)
    update = LowRank(layer, rank, 4.0)
    with torch.no_grad():
        update.A.weight.zero_()[:16].copy_(a)
        update.B.weight.zero_()[:, :16].copy_(b)
    x = torch.randn(5, 20, generator=random)
    assert_same(update(x), 4 * x @ a.T @ b.T)
    assert_same(update.delta(), 4 * b @ a)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "layer",
    [
        lambda: nn.Conv2d(6, 8, 3, stride=2, padding=1),
        lambda: nn.Conv2d(6, 8, 3, padding=2, dilation=2, bias=False),
        lambda: nn.Conv2d(6, 8, (1, 5), stride=(2, 1), padding=(0, 2)),
        lambda: Conv2dSame(6, 8, 3, stride=2),
    ],
)
def test_l9_a_convolution_with_its_update_is_one_with_the_merged_kernel(layer: Any) -> None:
    """L9 [default]: else the deployed network is not the trained one; stride, padding and dilation are the layer's."""
    random = torch.Generator().manual_seed(0)
    convolution = layer()
    update = LowRank(convolution, 3, 4.0)
    move({"": update}, by=0.5)
    x = torch.randn(2, 6, 9, 9, generator=random)
    merged = copy.deepcopy(convolution)
    merged.weight.data += update.delta().data
    assert_same(Adapted(convolution, update)(x), merged(x))
    assert not torch.allclose(merged(x), convolution(x))
    assert numel(update.parameters()) == 3 * (6 * convolution.weight[0, 0].numel() + 8)


def test_dropout_acts_on_the_input_of_an_update_in_training_only() -> None:
    """[official code] On W x it would change what the frozen network computes."""
    layer = nn.Linear(99, 1, bias=False)
    update = LowRank(layer, 1, 1.0, dropout=0.5)
    for part in (layer.weight, update.A.weight, update.B.weight):
        nn.init.ones_(part)
    adapted, x = Adapted(layer, update), torch.ones(1, 99)
    assert adapted.eval()(x).item() == 198
    kept = adapted.train()(x) - layer(x)
    assert kept.item() % 2 == 0  # a number of inputs, each doubled; 99 were odd
    assert kept.item() < 198
    assert update.without_dropout().train()(x).item() == 99


@pytest.mark.usefixtures("float64")
def test_the_side_form_by_hand(tmp_path: Path) -> None:
    """[official code] The last block of a ViT, equation by equation; attention is the base's."""
    trainer = trainer_of(tmp_path, 2, "test_vit", size=32)
    network, images = made(trainer), images_of(trainer)
    start = "blocks.5.module."
    shared = {name.removeprefix(start): u for name, u in network.shared.items() if name.startswith(start)}
    own = {name.removeprefix(start): u for name, u in network.own["b"].items()}
    move({name: shared[name] for name in ("attn.proj", "mlp.fc1")}, seed=1, by=0.3)
    move(own, seed=2, by=0.3)
    block = network.backbone.blocks[5].module.eval()
    seen: dict[str, Tensor] = {}
    block.register_forward_pre_hook(lambda module, given: seen.update(x=given[0]))
    block.attn.proj.register_forward_pre_hook(lambda module, given: seen.update(u=given[0]))
    predictions(plain_of(trainer, network), images)

    def delta(update: LowRank, v: Tensor) -> Tensor:
        return 4 * v @ update.A.weight.T @ update.B.weight.T

    proj, fc1, fc2, u = block.attn.proj, block.mlp.fc1, block.mlp.fc2, seen["u"]
    x = seen["x"] + proj(u) + delta(shared["attn.proj"], u)
    x_t = seen["x"] + proj(u) + delta(own["attn.proj"], u)
    n, n_t = block.norm2(x), block.norm2(x_t)
    h = block.mlp.act(fc1(n) + delta(shared["mlp.fc1"], n))
    h_t = block.mlp.act(fc1(n) + delta(own["mlp.fc1"], n_t))
    y_t = x_t + fc2(h) + delta(own["mlp.fc2"], h_t)
    expected = network.heads["b"].module.eval()(network.backbone.tail(y_t))
    assert_same(predictions(network.training_graph(), images)["b"], expected)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("path", PATHS)
def test_from_its_second_block_on_a_task_runs_its_own(path: str, tmp_path: Path) -> None:
    """[default] Whatever the path in the first one: there W + s_t B_t A_t is the weight, of x_t alone."""
    trainer = trainer_of(tmp_path, 2, "test_vit", size=32)
    network, images = moved(trainer, task_path=path, task_blocks={"suffix": 2}), images_of(trainer)
    graph = network.training_graph()
    (attention,) = (n for n in graph.reachable(["b"]) if n.operation.config.get("piece") == [0, 0]
                    and n.operation.config["index"] == 5)  # fmt: skip
    graph.output("x_t", attention.inputs[0])
    found = predictions(graph, images)
    block = copy.deepcopy(network.backbone.blocks[5].module).eval()
    merged = {"attn.qkv": network.shared["blocks.5.module.attn.qkv"]}
    merged |= {name: network.own["b"][f"blocks.5.module.{name}"] for name in ("attn.proj", "mlp.fc1", "mlp.fc2")}
    for name, update in merged.items():
        block.get_submodule(name).weight.data += update.delta().data
    expected = network.heads["b"].module.eval()(network.backbone.tail(block(found["x_t"])))
    assert_same(found["b"], expected)


# Deployment


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("name", "domains", "params"),
    [
        ("test_vit", "single", {"task_path": "side"}),
        ("test_vit", "single", {"task_path": "side_with_shared", "task_blocks": {"suffix": 2}}),
        ("test_vit", "multi", {"task_path": "own", "task_blocks": {"suffix": 2}}),
        ("test_vit", "single", {"task_blocks": "none"}),
        (SWIN, "single", {}),
        ("test_convnext", "single", {}),
        ("test_resnet", "multi", {}),
    ],
)
def test_l4_c3_the_deployed_network_is_the_trained_one(name: str, domains: str, params: Any, tmp_path: Path) -> None:
    """L4 [default], and C3: from JSON and tensors too. Norm statistics are those that each task's path has gathered."""
    trainer = trainer_of(tmp_path, 2, name, size=32, domains=domains)
    network, images = moved(trainer, **params), images_of(trainer)
    graph = network.training_graph()
    graph.network().train()(images, graph.tasks)
    expected = predictions(graph, images)
    deployed = network.deployed_graph(graph)
    deployed.require_deployable()
    # A part of Swin comes back by building the whole model: its pieces are tested one by one.
    again = [] if name == SWIN else [TaskGraph.from_json(deployed.to_json(), deployed.tensors())]
    for found in (deployed, *again):
        for task, value in predictions(found, images).items():
            assert_same(value, expected[task], task)
    assert not torch.allclose(expected["a"], predictions(plain_of(trainer, network), images)["a"])


@pytest.mark.numerical
def test_l4_in_single_precision(tmp_path: Path) -> None:
    """L4 [default]: the bound of the specification."""
    trainer = trainer_of(tmp_path, 2, "test_vit", size=32)
    network, images = moved(trainer), images_of(trainer)
    graph = network.training_graph()
    expected, found = predictions(graph, images), predictions(network.deployed_graph(graph), images)
    assert max((found[task] - expected[task]).abs().max().item() for task in expected) < 1e-5


@pytest.mark.usefixtures("float64")
def test_l4_what_is_put_into_weights_has_the_rank_r(tmp_path: Path) -> None:
    """L4 [default]: more than r directions are no low-rank update."""
    trainer = trainer_of(tmp_path, 2, "test_vit", size=32)
    network = moved(trainer, rank=5)
    deployed = network.deployed_graph(network.training_graph())
    name = "blocks.2.module.attn.qkv"
    block = next(node.module for node in deployed.nodes.values() if node.operation.config.get("index") == 2)
    change = block.attn.qkv.weight - network.backbone.module().get_submodule(name).weight
    singular = torch.linalg.svdvals(change.detach())
    assert singular[5] < 1e-6 * singular[0]
    assert singular[4] > 1e-3 * singular[0]
    assert torch.equal(block.attn.qkv.bias, network.backbone.blocks[2].module.attn.qkv.bias)


@pytest.mark.usefixtures("float64")
def test_swin_v2_reads_the_weight_of_its_qkv() -> None:
    """[default] It never calls that layer: an update that sits beside it alone would train nothing there."""
    block = SwinTransformerV2Block(dim=16, input_resolution=(4, 4), num_heads=2, window_size=4).eval()
    x = torch.randn(2, 4, 4, 16, generator=torch.Generator().manual_seed(0))
    layers = layers_of(block, ("cpb_mlp",))
    assert list(layers) == ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]  # not the bias of relative positions
    update = LowRank(block.attn.qkv, 2, 4.0)
    move({"": update}, by=0.5)
    merged = copy.deepcopy(block)
    merged.attn.qkv.weight.data += update.delta().data
    adapted = copy.deepcopy(block)
    adapt(adapted, {"attn.qkv": update})
    assert_same(adapted(x), merged(x))
    assert not torch.allclose(adapted(x), block(x))


def test_without_any_task_update_the_deployed_network_is_a_plain_one(tmp_path: Path) -> None:
    """`task_rank: 0` and `task_blocks: none` cost nothing once they are deployed."""
    trainer = trainer_of(tmp_path, 2, "test_vit", size=32)
    for params in ({"task_rank": 0}, {"task_blocks": "none"}):
        network = made(trainer, **params)
        deployed = network.deployed_graph(network.training_graph())
        assert deployed.hash() == plain_of(trainer, network).hash()


# What is trained, and by whom


def test_l5_frozen_weights_keep_their_bits(tmp_path: Path) -> None:
    """L5 [official code]: under weight decay too, and biases too; what is frozen is in no group."""
    given = dataclasses.replace(backbone_of("test_vit"), from_scratch=False)
    recipe = {"optimizer": {"name": "adamw", "lr": 0.01, "weight_decay": 0.5}}
    trainer = toy_trainer(tmp_path, size=32, data=tasks_of(2, size=32), prototype=given, steps=10, recipe=recipe)
    network = made(trainer)
    before = {name: value.detach().clone() for name, value in network.backbone.module().named_parameters()}
    graph = network.training_graph()
    groups = network.groups(graph, LoraParams())
    fit_graph(trainer, "lora", graph, trainer.budget.steps, train=groups)
    trained = {id(p) for group in groups for p in group.parameters}
    for name, value in network.backbone.module().named_parameters():
        is_trained = name.startswith(("stem", "tail")) or "norm" in name  # the tail is a norm
        assert (id(value) in trained) == is_trained, name
        assert torch.equal(value, before[name]) != is_trained, name


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.usefixtures("float64")
def test_l6_tasks_do_not_reach_one_another(path: str, tmp_path: Path) -> None:
    """L6 [official code]: a change of A_1, B_1 leaves task 2 as it is and, in `side`, x too; dL_1 / dA_2 = 0."""
    trainer = trainer_of(tmp_path, 2, "test_vit", size=32)
    network, images = moved(trainer, task_path=path, task_blocks={"suffix": 2}), images_of(trainer)
    graph = network.training_graph()
    before = predictions(graph, images)
    mine = {id(p) for update in network.own["a"].values() for p in update.parameters()}
    read = {id(p) for node in graph.reachable(["b"]) for p in node.module.parameters()}
    assert not mine & read
    task_losses(trainer.data, graph.network())(batch_of(trainer), ("a", "b"))["a"].backward()
    assert all(p.grad is None for update in network.own["b"].values() for p in update.parameters())
    assert all(bool(p.grad.any()) for update in network.own["a"].values() for p in update.parameters())
    move(network.own["a"], seed=9)
    after = predictions(graph, images)
    assert torch.equal(after["b"], before["b"])
    assert not torch.equal(after["a"], before["a"])


PARTS = {
    "norms": {"blocks.0.module.norm1.weight", "blocks.2.module.downsample.norm.bias", "stem.norm.weight"},
    "embeddings": {"stem.proj.weight", "stem.proj.bias"},
    "merging": {"blocks.2.module.downsample.reduction.weight"},
    "position_bias": {f"blocks.{k}.module.{'inner.' * (k == 2)}attn.relative_position_bias_table" for k in range(4)},
}


@pytest.mark.parametrize("part", PARTS)
def test_each_part_of_the_backbone_can_be_trained_by_itself(part: Any) -> None:
    """[official code] Norms, patch embedding and merging, bias of relative positions: nothing else, nothing twice."""
    backbone = backbone_of(SWIN, 32)
    names = {id(p): name for name, p in backbone.module().named_parameters()}
    found = {names[id(p)] for p in trained_whole(backbone, LoraParams(train=[part]))}
    if part == "norms":
        assert found >= PARTS[part]
        assert all("norm" in name for name in found)
        assert len(found) == sum("norm" in name for name in names.values())
    else:
        assert found == PARTS[part]
    others = [id(p) for other in PARTS if other != part for p in trained_whole(backbone, LoraParams(train=[other]))]
    assert not {id(p) for p in trained_whole(backbone, LoraParams(train=[part]))} & set(others)


def test_all_and_nothing_of_the_backbone_can_be_trained(tmp_path: Path) -> None:
    network = made(trainer_of(tmp_path, 2, "test_vit", size=32), train="all")
    assert len(network.trained) == len(list(network.backbone.module().parameters()))
    network = made(trainer_of(tmp_path, 2, "test_vit", size=32), train=[])
    groups = {g.name: g.parameters for g in network.groups(network.training_graph(), LoraParams(train=[]))}
    assert not groups["backbone"]
    assert groups["added"]
    with pytest.raises(ValidationError, match="position_bias"):
        LoraParams(train=["position"])


@pytest.mark.usefixtures("float64")
def test_one_mask_of_stochastic_depth_for_all_streams(tmp_path: Path) -> None:
    """[default] Masks of their own would have tasks train different depths of the block that they share."""
    config = BackboneConfig("test_vit", image_size=(32, 32), drop_path=0.5)
    backbone = create_backbone(config, seed=0)
    backbone.blocks = backbone.blocks[-1:]  # at the largest rate
    trainer = toy_trainer(tmp_path, size=32, data=tasks_of(3, size=32), prototype=backbone)
    network = made(trainer)
    graph = network.training_graph()
    masks = [node for node in graph.nodes.values() if node.operation.kind == "lora.drop_mask"]
    assert [node.module.keep for node in masks] == [0.5, 0.5]  # two sub-layers, whatever the number of tasks
    adds = Counter(node.inputs[2].name for node in graph.nodes.values() if node.operation.kind == "lora.masked_add")
    assert adds[masks[0].name] == 4  # the shared stream's and three tasks'
    assert adds[masks[1].name] == 3
    mask = masks[0].module.train()(torch.empty(1000, 1))
    assert set(mask.tolist()) == {0.0, 2.0}
    assert set(masks[0].module.eval()(torch.empty(9, 1)).tolist()) == {1.0}
    deployed = network.deployed_graph(graph)
    assert not any("mask" in node.operation.kind for node in deployed.nodes.values())
    first, second = predictions(graph, images_of(trainer)), predictions(deployed, images_of(trainer))
    assert_same(first["c"], second["c"])


# Sharing and counts


@pytest.fixture(scope="module")
def swin() -> Backbone:
    with torch.device("meta"):
        return create_backbone(BackboneConfig(SWIN, image_size=(224, 224)), seed=0)


def made_on(backbone: Backbone, folder: Path, n_tasks: int, side: int, **params: Any) -> LowRankNetwork:
    trainer = toy_trainer(folder, size=8, data=tasks_of(n_tasks, size=side), prototype=backbone)
    heads = {task: trainer.head(task) for task in trainer.data.task_names}
    return low_rank_network(trainer, backbone, heads, LoraParams(**params))


def passes(graph: TaskGraph) -> Counter[str]:
    """{part of the backbone: how often it runs}."""
    keys = ("part", "index", "piece")
    found = (node.operation for node in graph.nodes.values() if node.operation.kind == "backbone")
    return Counter(" ".join(str(operation.config.get(key, "")) for key in keys) for operation in found)


def test_l8_what_tasks_share_is_computed_once(swin: Backbone, tmp_path: Path) -> None:
    """L8 [derived]: T = 3, Swin-T, `last`. One pass of every block, of attention and of W_proj, W_1, W_2."""
    network = made_on(swin, tmp_path, 3, 224)
    deployed = network.deployed_graph(network.training_graph())
    found = passes(deployed)
    norm, activation = "piece 11 [1, 0]", "piece 11 [1, 2]"
    assert found.pop(norm) == found.pop(activation) == 4  # of the shared stream and of every task's
    assert found.pop("tail  ") == 3
    assert set(found.values()) == {1}
    assert {"stem  ", *(f"block {k} " for k in range(11)), "piece 11 [0, 0]", "piece 11 [0, 1]", "piece 11 [1, 1]",
            "piece 11 [1, 3]"} == set(found)  # fmt: skip
    cost = compute(deployed, {"image": (1, 3, 224, 224)})
    plain = compute(plain_graph(network.data, ["a"], swin, network.heads.__getitem__), {"image": (1, 3, 224, 224)})
    assert 1 < cost.macs_backbone / plain.macs_backbone < 1.05


def test_l8_a_suffix_runs_per_task_from_its_second_block_on(swin: Backbone, tmp_path: Path) -> None:
    """L8 [derived]: `suffix: 12` is attention T times from the second block on, which is what the side form avoids."""
    network = made_on(swin, tmp_path, 3, 224, task_blocks={"suffix": 12})
    found = passes(network.deployed_graph(network.training_graph()))
    assert [found[f"piece {k} [0, 0]"] for k in range(12)] == [1, *[3] * 11]
    assert [found[f"piece {k} [1, 1]"] for k in range(12)] == [1, *[3] * 11]


def test_c4_counts_on_swin(swin: Backbone, tmp_path: Path) -> None:
    """C4 [derived]: shared 70,656 r; task 9,216 r_t; of the shared ones 5 x 768 r would be dead in `side`."""
    p_ref = swin.n_parameters()
    for params, n_shared in (({"task_blocks": "none"}, 70_656), ({}, 70_656 - 5 * 768),
                             ({"task_path": "side_with_shared"}, 70_656)):  # fmt: skip
        network = made_on(swin, tmp_path, 3, 224, rank=16, task_rank=4, **params)
        graph = network.training_graph()
        shared = numel(p for update in network.shared.values() for p in update.parameters())
        assert shared == 16 * n_shared
        own = 0 if "task_blocks" in params else 3 * 4 * 9_216
        assert numel(graph.parameters("added")) == shared + own
        apart = 0 if params else 16 * 7 * 768  # proj and fc1, whose W x tasks read
        deployed = network.deployed_graph(graph)
        assert numel(deployed.parameters("backbone")) == p_ref
        assert numel(deployed.parameters("added")) == own + apart


@pytest.mark.parametrize("path", PATHS)
def test_c4_counts_on_vit(path: str, tmp_path: Path) -> None:
    """C4 [derived]: of L blocks (8 + 2 m) L C r and (4 + 2 m) C r_t where MLPs are m times as wide; on ViT-S/16 (m = 4,
    L = 12, C = 384) that is 73,728 r and 4,608 r_t.
    """
    n_blocks, width, m, r, r_t = 6, 64, 3, 3, 2
    network = made(trainer_of(tmp_path, 3, "test_vit", size=32), rank=r, task_rank=r_t, task_path=path)
    own = [numel(p for update in updates.values() for p in update.parameters()) for updates in network.own.values()]
    assert own == [(4 + 2 * m) * width * r_t] * 3
    without = {"side": 1 + m, "side_with_shared": 0, "own": 4 + 2 * m}[path]
    shared = numel(p for update in network.shared.values() for p in update.parameters())
    assert shared == ((8 + 2 * m) * n_blocks - without) * width * r


def test_c4_the_parameters_of_a_resnet(tmp_path: Path) -> None:
    """C4 [default]: r (in k^2 + out) for each convolution of blocks; the last block is every task's own."""
    network = made(trainer_of(tmp_path, 2, "test_resnet", size=32), rank=3, task_rank=2)
    blocks = network.backbone.blocks

    def of(convolutions: Any, rank: int) -> int:
        return sum(rank * (c.in_channels * c.weight[0, 0].numel() + c.out_channels) for c in convolutions)

    layers = [[m for m in block.modules() if isinstance(m, nn.Conv2d)] for block in blocks]
    assert numel(p for u in network.shared.values() for p in u.parameters()) == of(itertools.chain(*layers[:-1]), 3)
    assert numel(p for u in network.own["a"].values() for p in u.parameters()) == of(layers[-1], 2)
    found = passes(network.training_graph())
    assert [found[f"block {k} "] for k in range(len(blocks))] == [1] * (len(blocks) - 1) + [0]
    kinds = Counter(node.operation.kind for node in network.training_graph().nodes.values())
    assert kinds["lora.block"] == 2


def test_grouped_convolutions_have_no_update_and_a_plan_says_so(tmp_path: Path) -> None:
    """[default] Depthwise layers are left out, and how much is left is told."""
    backbone = backbone_of("test_convnext")
    found = places_of(backbone, LoraParams())
    assert {name.rsplit(".", 1)[1] for name in (*found.shared, *found.own)} == {"fc1", "fc2"}
    (note,) = (n for n in notes_of("test_convnext", tmp_path) if "grouped" in n)
    assert note.startswith("no updates of 9 grouped convolutions; 90% of the weights")
    assert share_covered(backbone, found, LoraParams()) == pytest.approx(1 - 19_992 / 202_904, abs=1e-9)


# Plans


def notes_of(name: str, folder: Path, **params: Any) -> list[str]:
    trainer = trainer_of(folder, 2, name, size=32)
    return list(Lora(LoraParams(**params)).check(trainer.data, trainer.backbone(), Budget(7)))


def test_l7_heads_read_one_feature(tmp_path: Path) -> None:
    """L7 [default]: the paper's form would have dead nodes; it is refused before anything is trained."""
    with pytest.raises(UsageError, match=r"task_blocks is 'stage_last', .* dead nodes. Choose 'last' or \{suffix: m\}"):
        notes_of("test_vit", tmp_path, task_blocks="stage_last")


def test_blocks_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="suffix: 7}, and 'test_vit' has 6 blocks; choose at most 6, or all"):
        notes_of("test_vit", tmp_path, task_blocks={"suffix": 7})
    assert places_of(backbone_of("test_vit"), LoraParams(task_blocks={"suffix": "all"})).blocks == tuple(range(6))


def test_a_path_beside_the_shared_stream_needs_a_block_that_is_cut(tmp_path: Path) -> None:
    """[default] A table would show a path that never ran."""
    with pytest.raises(UsageError, match=r"'side_with_shared', and the last blocks .* choose 'own'"):
        notes_of("test_resnet", tmp_path, task_path="side_with_shared")
    assert any("run whole for every task" in note for note in notes_of("test_resnet", tmp_path))
    assert not any("run whole" in note for note in notes_of("test_vit", tmp_path))


def test_a_backbone_of_grouped_convolutions_is_refused(tmp_path: Path) -> None:
    """[default] Most of its weights would stay as they are; the message names the share that would not."""
    backbone = backbone_of("test_resnet").clone()
    for block in backbone.blocks:
        block.module.conv1 = nn.Conv2d(32, 512, 3, groups=2)
    trainer = trainer_of(tmp_path, 2, size=32)
    share = share_covered(backbone, places_of(backbone, LoraParams()), LoraParams())
    assert 0.2 < share < 0.5
    with pytest.raises(UsageError, match=f"cover {share:.0%} of the weights .* at least 50%"):
        Lora(LoraParams()).check(trainer.data, backbone, Budget(1))


def test_a_base_of_random_weights_is_labelled_or_trained_first(tmp_path: Path) -> None:
    """[default] Updates of frozen random weights are not the method; a base that is trained is charged."""
    trainer = trainer_of(tmp_path / "scratch", 2, steps=2)
    graph = Lora(LoraParams(base="pretrained")).run(trainer)
    assert trainer.flags == ["lora-scratch: the frozen base has random weights, where the method needs a trained one."]
    assert (trainer.ledger.search.optimizer_steps, trainer.weight_steps(graph)) == (0, 2)
    assert any("lora-scratch" in note for note in notes_of("test_resnet", tmp_path, base="pretrained"))

    trainer = trainer_of(tmp_path / "joint", 2, steps=2)
    graph = Lora(LoraParams()).run(trainer)
    assert (trainer.ledger.search.optimizer_steps, trainer.ledger.final.optimizer_steps) == (2, 2)
    assert trainer.weight_steps(graph) == 4
    assert trainer.flags == []
    assert any("steps_factor 2 costs as much" in note for note in notes_of("test_resnet", tmp_path))


@pytest.mark.parametrize("domains", ["single", "multi"])
@pytest.mark.numerical
def test_updates_start_from_the_joint_base(domains: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """[default] With the norm statistics that each task's images have left in it."""
    trainer = trainer_of(tmp_path, 2, domains=domains, steps=3)
    found: dict[str, Any] = {}

    def fit(trainer: CellTrainer, name: str, graph: TaskGraph, *more: Any, **named: Any) -> None:
        if name == "base":
            fit_graph(trainer, name, graph, *more, **named)
            _look_at_base(found, trainer, graph)
        else:
            found["start"] = predictions(graph, images_of(trainer))

    monkeypatch.setattr("methods.lora.method.fit_graph", fit)
    Lora(LoraParams()).run(trainer)
    assert found["own"] == (domains == "multi")
    assert all(torch.equal(found["start"][task], found["base"][task]) for task in "ab")


def _look_at_base(found: dict[str, Any], trainer: CellTrainer, graph: TaskGraph) -> None:
    found["base"] = predictions(graph, images_of(trainer))
    norms = [next(m for node in graph.reachable([t]) for m in node.module.modules() if isinstance(m, nn.BatchNorm2d))
             for t in "ab"]  # fmt: skip
    found["own"] = not torch.equal(norms[0].running_mean, norms[1].running_mean)


def test_the_published_recipe_is_adamw_that_warms_up(tmp_path: Path) -> None:
    """[official code] For everything that the stage trains."""
    network = made(trainer_of(tmp_path, 2, "test_vit", size=32))
    method = Lora(LoraParams(recipe="published"))
    specs = {group.optimizer for group in network.groups(network.training_graph(), method.params)}
    (spec,) = specs
    assert (spec.name, spec.lr, spec.weight_decay, spec.end_lr, spec.clip_norm) == ("adamw", 5e-4, 0.05, 5e-6, 5.0)
    assert spec.warmup * 300 == pytest.approx(20)
    assert method.recipe == "published"
    assert {group.optimizer for group in network.groups(network.training_graph(), LoraParams())} == {None}
    assert any("published recipe" in note for note in notes_of("test_vit", tmp_path, recipe="published"))


# Whole runs


@pytest.mark.numerical
def test_c1_one_task_starts_as_single_task_learning(tmp_path: Path) -> None:
    """C1 [default]: with one task it is the plain network until an update moves."""
    trainer = trainer_of(tmp_path, 1, "test_vit", size=32, steps=2)
    found, expected = at_the_start(trainer)
    single = plain_graph(trainer.data, ["a"], trainer.backbone(), trainer.head)
    assert torch.equal(found["a"], expected["a"])
    assert torch.equal(found["a"], predictions(single, images_of(trainer))["a"])
    assert Lora(LoraParams(base="pretrained")).run(trainer).tasks == ("a",)


def test_c2_the_order_of_tasks_changes_nothing(tmp_path: Path) -> None:
    """C2 [default]: each task's A comes from a stream of its name."""
    found = []
    for names in ("abc", "cab"):
        data = tasks_of(3, size=32)
        data = dataclasses.replace(data, tasks=tuple(data.task(name) for name in names))
        trainer = toy_trainer(tmp_path, size=32, data=data, prototype=backbone_of("test_vit"))
        network = made(trainer)
        for task, updates in network.own.items():
            move({name: SimpleNamespace(parameters=u.B.parameters) for name, u in updates.items()}, seed=ord(task))
        graph = network.training_graph()
        deployed = network.deployed_graph(graph)
        found.append((deployed.hash(), predictions(deployed, images_of(trainer))))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(found[0][1][task], found[1][1][task]) for task in "abc")


def test_c5_swin_runs_and_what_was_found_is_told(tmp_path: Path) -> None:
    """C5 [default]; ResNet and ViT run below and in the conformance tests. Facts and picture are of the deployed
    network.
    """
    trainer = trainer_of(tmp_path, 2, SWIN, size=32, steps=2, recipe={"optimizer": {"lr": 0.1}})
    graph = Lora(LoraParams(rank=2, task_rank=1, base="pretrained")).run(trainer)
    graph.require_deployable()
    facts = {name: fact["value"] for name, fact in trainer.facts.items()}
    blocks = 16 * (2 * 96 + 2 * 192)
    added, heads = (blocks - 5 * 192) * 2 + 2 * 12 * 192, numel(graph.parameters("heads"))
    whole = numel(trained_whole(trainer.backbone(), LoraParams()))
    assert facts["trainable parameters"] == added + whole + heads
    assert facts["trainable parameters without heads"] == added + whole
    assert 1 < facts["MACs of one task"] < facts["MACs of all tasks"] < 1.05
    panel = trainer.figures["updates"].panels[0]
    assert panel.rows == ("shared", "a", "b")
    assert panel.columns[:2] == ("blocks.0.attn.qkv", "blocks.0.attn.proj")
    assert len(panel.columns) == 16
    rows = torch.as_tensor(trainer.artifacts["norms of updates"])
    assert rows.isnan().sum(1).tolist() == [1, 13, 13]  # fc2 of the last block; all but the last block's three
    assert bool((rows.nan_to_num(1) > 0).all())
    assert panel.values[0][0] == pytest.approx(rows[0, 0].item())
    assert panel.values[1][0] is None


def test_what_differs_from_the_base_is_counted_by_comparing(tmp_path: Path) -> None:
    """[default] Merged weights, what is trained whole, and updates that are deployed apart; heads are no part of it."""
    trainer = trainer_of(tmp_path, 2, "test_vit", size=32, steps=3, recipe={"optimizer": {"lr": 0.1}})
    graph = Lora(LoraParams(base="pretrained", train=["norms"])).run(trainer)
    width, n_blocks = 64, 6
    matrices = (10 * n_blocks - 1 - 3 - 3) * width**2  # without proj, fc1 and fc2 of the last block
    norms = numel(p for n, p in trainer.backbone().module().named_parameters() if "norm" in n)
    expected = matrices + norms + numel(graph.parameters("added"))
    assert trainer.facts["parameters that differ from the base"]["value"] == pytest.approx(expected, rel=2e-3)


@pytest.mark.usefixtures("float64")
def test_the_picture_shows_norms_relative_to_the_weights(tmp_path: Path) -> None:
    """[default] |s B A| / |W|, by Frobenius, in the order of the layers."""
    network = moved(trainer_of(tmp_path, 2, "test_vit", size=32))
    norms, layers = network.norms(), network.layers()
    assert list(norms) == ["shared", "a", "b"]
    update, own = network.shared["blocks.0.module.attn.qkv"], network.own["b"]["blocks.5.module.mlp.fc2"]
    for row, u, name in (("shared", update, layers[0]), ("b", own, "blocks.5.module.mlp.fc2")):
        by = 4 * u.B.weight @ u.A.weight
        expected = (by.square().sum() / network.backbone.module().get_submodule(name).weight.square().sum()).sqrt()
        assert norms[row][layers.index(name)] == pytest.approx(expected.item())


@pytest.mark.parametrize("batches", [2, 6])
def test_c6_a_run_that_was_killed_ends_in_the_same_bits(batches: int, tmp_path: Path) -> None:
    """C6 [default]: in the base and among the updates, dropout and all."""
    options = {"name": "test_vit", "size": 16, "steps": 4}
    method = Lora(LoraParams(rank=2, task_rank=1, dropout=0.3))
    whole = trainer_of(tmp_path / "whole", 2, **options)
    expected = outcome(whole, method.run(whole))
    killed = trainer_of(tmp_path / "killed", 2, checkpoint_steps=1, **options)
    kill_after(killed, batches)
    with pytest.raises(Killed):
        method.run(killed)
    resumed = trainer_of(tmp_path / "killed", 2, **options)
    assert outcome(resumed, method.run(resumed)) == expected
