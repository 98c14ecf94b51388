"""Task switching: the traps of soft_sharing 5.3, and both forms of the network."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmark.train.trainer import CellTrainer
from datasets.contracts import DatasetSpec, TaskSpec
from datasets.errors import UsageError
from methods.backbones.backbone import BackboneConfig, create_backbone
from methods.contracts import Budget
from methods.graph.task_graph import TaskGraph
from methods.plain import task_losses
from methods.task_switching.codes import AdaIN, FirstChannels, PixelNorm, Style, block_code, mapping
from methods.task_switching.method import TaskSwitching, TaskSwitchingParams
from methods.task_switching.network import (
    conditioned_places,
    decoder_widths,
    likeness,
    place_grids,
    switching_network,
)
from tests.unit.harness import toy_trainer
from tests.unit.towers import backbone_of, batch_of, images_of, tasks_of, trainer_of


def network(trainer: CellTrainer, codes: list[tuple[int, int]] | None = None, **params: Any) -> TaskGraph:
    n_tasks = len(trainer.data.tasks)
    codes = codes or [block_code(t, n_tasks, 100) for t in range(n_tasks)]
    return switching_network(TaskSwitchingParams(**params), trainer, trainer.backbone(), codes)


def dense_tasks(n: int, size: int) -> DatasetSpec:
    kinds = (("semantic", 5, ("miou",)), ("depth", 1, ("abs_err",)), ("normals", 3, ("mean_angle",)))
    tasks = tuple(TaskSpec(chr(ord("a") + k), *kinds[k % 3]) for k in range(n))
    return dataclasses.replace(tasks_of(n, size=size), tasks=tasks)


def dense_trainer(folder: Path, n: int, size: int = 64) -> CellTrainer:
    return toy_trainer(folder, size=size, data=dense_tasks(n, size), prototype=backbone_of("test_resnet", size))


def n_parameters(graph: TaskGraph) -> int:
    return sum(p.numel() for p in graph.parameters())


def test_codes_are_blocks_of_equal_length() -> None:
    assert [block_code(t, 5, 100) for t in range(5)] == [(0, 20), (20, 40), (40, 60), (60, 80), (80, 100)]
    assert [block_code(t, 3, 100) for t in range(3)] == [(0, 33), (33, 66), (66, 99)]
    code = Style(nn.Identity(), (20, 40), 100)(torch.empty(0))
    assert code.sum() == 20
    assert bool((code[0, 20:40] == 1).all())
    with pytest.raises(UsageError, match="A code of 4 numbers cannot tell 5 tasks apart; set code_width: 5"):
        block_code(0, 5, 4)


def test_the_mapping_is_a_pixel_norm_and_eight_layers() -> None:
    assert torch.allclose(PixelNorm()(torch.tensor([[3.0, 4.0]])), torch.tensor([[3.0, 4.0]]) / 12.5**0.5)
    net = mapping(100, 512, 8)
    assert [type(part) for part in net] == [PixelNorm, *[nn.Linear, nn.LeakyReLU] * 8]
    assert {part.negative_slope for part in net if isinstance(part, nn.LeakyReLU)} == {0.2}
    assert sum(p.numel() for p in net.parameters()) == 100 * 512 + 512 + 7 * (512 * 512 + 512)
    codes = torch.eye(5).repeat_interleave(20, 1)
    styles = net(codes)
    assert 0.3 < styles.square().mean().item() < 3  # eight layers neither shrink nor blow up what passes


@pytest.mark.numerical
def test_adain_by_hand() -> None:
    norm = AdaIN(1, 1)
    assert norm.affine.bias.tolist() == [1.0, 0.0]  # gamma, beta
    with torch.no_grad():
        norm.affine.weight.copy_(torch.tensor([[2.0], [5.0]]))
    x = torch.tensor([[[[1.0, 3.0]]]])  # normalised to -1, 1
    y = norm(torch.tensor([[1.0]]), x)
    assert torch.allclose(y, torch.tensor([[[[3 * -1 + 5.0, 3 * 1 + 5.0]]]]), atol=1e-4)


@pytest.mark.parametrize("form", ["pooled", "dense"])
def test_w1_as_many_parameters_for_two_tasks_as_for_five(form: str, tmp_path: Path) -> None:
    if form == "dense":
        made = [network(dense_trainer(tmp_path / str(n), n)) for n in (2, 5)]
    else:
        made = [network(trainer_of(tmp_path / str(n), n)) for n in (2, 5)]
    assert n_parameters(made[0]) == n_parameters(made[1])
    assert all(sum(p.numel() for p in graph.parameters("backbone")) == 372_688 for graph in made)


def test_w1_counts_by_hand(tmp_path: Path) -> None:
    """test_resnet: 96 channels after the last stage; at 8x8 the last maps of several pixels are those of the stem and
    of stage 1, with 32 channels each.
    """
    trainer = trainer_of(tmp_path, 2)
    graph = network(trainer)
    channels = [n.operation.config["channels"] for n in graph.nodes.values() if n.operation.kind.endswith("adain")]
    affine = sum(2 * c * (96 + 1) for c in channels[:2])
    assert sum(p.numel() for p in graph.parameters("added")) == 100 * 96 + 96 + 7 * (96 * 96 + 96) + affine
    assert sum(p.numel() for p in graph.parameters("heads")) == 96 * 4 + 4  # one head of max C_t


def test_counts_of_the_published_decoder_on_resnet18(tmp_path: Path) -> None:
    resnet18 = create_backbone(BackboneConfig("resnet18", image_size=(64, 64)), seed=0)
    assert decoder_widths(resnet18) == [512, 256, 256, 128, 64]
    trainer = toy_trainer(tmp_path, size=64, data=dense_tasks(3, 64), prototype=resnet18)
    graph = network(trainer)
    levels = 9 * (512 * 512 + (512 + 256) * 256 + (256 + 256) * 256 + (256 + 128) * 128 + (128 + 64) * 64)
    skips = 256 * 256 + 128 * 256 + 64 * 128 + 64 * 64
    affine = (2 * (512 + 256 + 256 + 128 + 64) - 512) * 2 * (512 + 1)
    net = 100 * 512 + 512 + 7 * (512 * 512 + 512)
    assert sum(p.numel() for p in graph.parameters("added")) == levels + skips + affine + net
    assert sum(p.numel() for p in graph.parameters("heads")) == 64 * 5 + 5
    assert sum(p.numel() for p in graph.parameters("backbone")) == 11_176_512


@pytest.mark.numerical
@pytest.mark.parametrize("form", ["pooled", "dense"])
def test_w2_equal_codes_give_equal_features_and_others_do_not(form: str, tmp_path: Path) -> None:
    trainer = dense_trainer(tmp_path, 3) if form == "dense" else trainer_of(tmp_path, 3, size=32)
    graph = network(trainer, codes=[(0, 33), (0, 33), (66, 99)])
    found = graph.network().eval()(images_of(trainer), graph.tasks)
    common = min(found["a"].shape[1], found["b"].shape[1])
    assert torch.equal(found["a"][:, :common], found["b"][:, :common])
    assert not torch.allclose(found["a"][:, :1], found["c"][:, :1], atol=1e-3)
    alike = likeness(graph, graph.tasks)
    assert float(alike[0, 1]) == pytest.approx(1)
    assert float(alike[0, 2]) < 0.999


def test_w2_only_the_style_tells_tasks_apart(tmp_path: Path) -> None:
    """Without a gradient through styles, nothing else of a task's own exists."""
    trainer = trainer_of(tmp_path, 2, size=32)
    graph = network(trainer)
    own = [{id(p) for node in graph.reachable([task]) for p in node.module.parameters()} for task in "ab"]
    assert own[0] == own[1]


def test_the_encoder_runs_once_and_what_is_conditioned_once_a_task(tmp_path: Path) -> None:
    graph = network(trainer_of(tmp_path, 2, size=32))  # AdaIN after stages 1 and 2
    users = graph.users()
    parts = [(n.operation.config["part"], n.operation.config.get("index")) for n in graph.nodes.values()
             if n.operation.kind == "backbone" and len(users[n.name]) == 2]  # fmt: skip
    assert parts == [("stem", None), ("block", 0)]
    dense = network(dense_trainer(tmp_path / "dense", 2))
    users = dense.users()
    assert all(len(users[n.name]) == 2 for n in dense.nodes.values() if n.operation.kind == "backbone")
    assert all(len(users[n.name]) == 1 for n in dense.nodes.values() if n.operation.kind != "backbone")


def test_w3_maps_of_few_pixels() -> None:
    with pytest.raises(ValueError, match="Instance norm of 1x1 maps is zero"):
        AdaIN(2, 3)(torch.zeros(1, 2), torch.zeros(4, 3, 1, 1))
    assert place_grids(backbone_of("test_resnet", 8)) == [4, 4, 1, 1, 1]
    assert conditioned_places(backbone_of("test_resnet", 8), 2) == [0, 1]  # no map has nine pixels
    assert place_grids(backbone_of("test_resnet", 32))[:-1] == [64, 64, 16, 4]
    assert conditioned_places(backbone_of("test_resnet", 32), 2) == [1, 2]
    assert conditioned_places(backbone_of("test_resnet", 64), 9) == [0, 1, 2, 3]  # never the last stage's output
    tiny = backbone_of("test_resnet", 4)
    method = TaskSwitching(TaskSwitchingParams())
    with pytest.raises(UsageError, match="every map of 'test_resnet' has one pixel"):
        method.check(tasks_of(2), tiny, Budget(1))
    with pytest.raises(UsageError, match="the last map of 'test_resnet' has one pixel"):
        method.check(dense_tasks(2, 32), backbone_of("test_resnet", 32), Budget(1))


@pytest.mark.numerical
def test_the_mean_of_an_instance_normed_map_says_nothing_of_the_image() -> None:
    norm, style = AdaIN(2, 3), torch.ones(1, 2)
    pooled = norm(style, torch.randn(5, 3, 4, 4)).mean((2, 3))
    assert torch.allclose(pooled, norm.affine(style)[:, 3:].expand(5, 3), atol=1e-5)


def test_w4_masked_classes_never_win(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, 2, size=32)  # 4 and 2 classes
    graph = network(trainer)
    head = next(node.module for node in graph.nodes.values() if node.operation.origin == "heads")
    with torch.no_grad():
        head.linear.bias[2:] = 1e6
    found = graph.network().eval()(images_of(trainer), ("a", "b"))
    assert found["a"].shape[1] == 4
    assert bool((found["a"].argmax(1) >= 2).all())
    assert bool((found["b"].argmax(1) < 2).all())
    task_losses(trainer.data, graph.network())(batch_of(trainer), ("b",))["b"].backward()
    assert not bool(head.linear.weight.grad[2:].any())
    assert bool(head.linear.weight.grad[:2].any())
    assert FirstChannels(2)(torch.zeros(1, 4, 3, 3)).shape == (1, 2, 3, 3)


def test_dense_outputs_have_the_channels_of_their_task(tmp_path: Path) -> None:
    trainer = dense_trainer(tmp_path, 3)
    graph = network(trainer)
    images: dict[str, Tensor] = images_of(trainer)
    found = graph.network().eval()(images, graph.tasks)
    assert [tuple(found[task].shape[1:]) for task in "abc"] == [(5, 16, 16), (1, 16, 16), (3, 16, 16)]
    again = TaskGraph.from_json(graph.to_json(), graph.tensors()).network().eval()(images, graph.tasks)
    assert all(torch.equal(found[task], again[task]) for task in "abc")
    assert decoder_widths(backbone_of("test_resnet", 64)) == [96, 48, 48, 24, 12]  # 96 / 512 of the published ones
    network_ = graph.network().train()
    for parameter in graph.parameters():
        parameter.requires_grad_(True)
    sum(value.square().mean() for value in network_(images, graph.tasks).values()).backward()
    assert all(p.grad is not None for p in graph.parameters())


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("test_vit", tasks_of(2, size=32), "whose features are tokens; it needs nchw"),
        ("test_resnet", tasks_of(1, size=32), "at least two tasks"),
        ("test_resnet", tasks_of(101, size=32), "cannot tell 101 tasks apart"),
    ],
)  # fmt: skip
def test_what_has_no_form_is_refused_when_planned(name: str, data: DatasetSpec, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TaskSwitching(TaskSwitchingParams()).check(data, backbone_of(name), Budget(1))


def test_tasks_of_two_forms_have_no_common_output() -> None:
    mixed = dataclasses.replace(tasks_of(2), tasks=(tasks_of(1).tasks[0], dense_tasks(2, 64).tasks[1]))
    with pytest.raises(UsageError, match=r"\['b'\] have a label per pixel and \['a'\] one per image"):
        TaskSwitching(TaskSwitchingParams()).check(mixed, backbone_of("test_resnet", 64), Budget(1))


def test_the_plan_says_what_stands_in_for_the_heads() -> None:
    method, backbone = TaskSwitching(TaskSwitchingParams()), backbone_of("test_resnet", 64)
    assert method.check(tasks_of(2), backbone, Budget(1)) == [
        "AdaIN after stage 2 (64 pixels) and stage 3 (16 pixels); one output of 4 channels in place of the heads"
    ]
    assert method.check(dense_tasks(2, 64), backbone, Budget(1)) == [
        "a decoder of its own (96/48/48/24/12) and one output of 5 channels in place of the heads"
    ]


def test_what_was_found_is_told(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, steps=2)
    graph = TaskSwitching(TaskSwitchingParams()).run(trainer)
    added = sum(p.numel() for p in graph.parameters("added"))
    assert trainer.facts["parameters of mapping, norms and decoder"]["value"] == added
    assert -1 <= trainer.facts["likeness of two tasks' norms"]["value"] < 1
    assert trainer.figures["likeness"].panels[0].values[0][0] == pytest.approx(1)
    assert trainer.ledger.search.optimizer_steps == 0
