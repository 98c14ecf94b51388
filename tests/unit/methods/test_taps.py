"""TAPS: the traps of soft_sharing 5.1, with the numbers that the specification gives."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from benchmark.train.trainer import CellTrainer
from datasets.errors import UsageError
from methods.backbones.backbone import Backbone, BackboneConfig, create_backbone
from methods.contracts import Budget
from methods.graph.cost import size
from methods.graph.task_graph import TaskGraph
from methods.plain import plain_graph, task_losses
from methods.taps.base import copies, joint_base
from methods.taps.method import Taps, TapsParams
from methods.taps.weights import TaskWeights, layer_names
from tests.numbers import assert_same
from tests.unit.harness import toy_backbone, toy_trainer
from tests.unit.towers import backbone_of, batch_of, images_of, tasks_of, trainer_of

P = 11_176_512
WEIGHTS = 11_166_912  # of the 20 convolutions


@pytest.fixture(scope="module")
def resnet18() -> Backbone:
    return create_backbone(BackboneConfig("resnet18", image_size=(32, 32)), seed=0)


def network(trainer: CellTrainer, **params: Any) -> TaskWeights:
    heads = {task: trainer.head(task) for task in trainer.data.task_names}
    return Taps(TapsParams(**params)).network(trainer.data, copies(trainer.backbone(), len(heads)), heads)


def move_deltas(made: TaskWeights, by: float = 0.05) -> None:
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for delta in made.deltas.parameters():
            delta.copy_(by * torch.randn(delta.shape, generator=random))


@pytest.mark.numerical
@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext"])
def test_t1_without_delta_or_without_score_it_is_the_base(name: str, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, 2, name, size=32)
    made = network(trainer).eval()
    images = images_of(trainer)
    plain = plain_graph(trainer.data, trainer.data.task_names, trainer.backbone(), trainer.head).network().eval()
    expected = plain(images, ("a", "b"))
    found = made(images, ("a", "b"))
    assert all(torch.equal(found[task], expected[task]) for task in expected)
    move_deltas(made)
    with torch.no_grad():
        made.scores[0] = 0.0999
    found = made(images, ("a", "b"))
    assert torch.equal(found["a"], expected["a"])
    assert not torch.equal(found["b"], expected["b"])


@pytest.mark.parametrize(("name", "n_layers"), [("resnet18", 20), ("resnet34", 36), ("resnet50", 53)])
def test_t2_the_true_number_of_layers(name: str, n_layers: int) -> None:
    backbone = create_backbone(BackboneConfig(name, image_size=(32, 32)), seed=0)
    assert len(layer_names(backbone.module())) == n_layers


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_t2_the_first_penalty_of_a_task_is_015_of_its_weight(name: str, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, 3, name, size=32)
    method = Taps(TapsParams(sparsity_weight=2.0))
    stage = method.stage(trainer, network(trainer))
    assert stage.penalty().item() == pytest.approx(3 * 0.15 * 2.0, rel=1e-6)


def test_the_penalty_waits(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, 2, steps=30)
    made = network(trainer)
    stage = Taps(TapsParams(recipe="published")).stage(trainer, made)
    seen = []
    for _ in range(4):
        seen.append(stage.penalty().item())
        stage.after_step()
    assert seen == pytest.approx([0, 0, 0.3, 0.3])  # 2 of 30 epochs
    assert int(made.state_dict()["steps"]) == 4  # a resumed training goes on with it


@pytest.mark.usefixtures("float64")
def test_t3_gradients_below_and_above_the_threshold(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, 2, size=16)
    made = network(trainer)
    move_deltas(made)
    with torch.no_grad():
        made.scores[0] = 0.05
    for parameter in made.parameters():
        parameter.requires_grad_(True)
    task_losses(trainer.data, made)(batch_of(trainer), ("a",))["a"].backward()
    # Below the threshold task a runs the base itself, whose gradient is that of w_t.
    gradients = [w.grad for w in made.base]
    assert all(bool(gradient.any()) for gradient in gradients)
    assert all(not bool(delta.grad.any()) for delta in made.deltas[0])
    expected = torch.stack([(g * d).sum() for g, d in zip(gradients, made.deltas[0], strict=True)])
    assert_same(made.scores.grad[0], expected)
    assert bool(made.scores.grad[0].all())

    made.zero_grad()
    with torch.no_grad():
        made.scores[0] = 0.1  # at the threshold: active
    task_losses(trainer.data, made)(batch_of(trainer), ("a",))["a"].backward()
    for w, delta in zip(made.base, made.deltas[0], strict=True):
        assert torch.equal(w.grad, delta.grad)
        assert bool(delta.grad.any())


def test_no_task_trains_what_another_reads(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, 2, size=16)
    made = network(trainer)
    move_deltas(made)
    stage = Taps(TapsParams()).stage(trainer, made)
    trained = [p for group in stage.train for p in group.parameters]
    assert not {id(w) for w in made.base} & {id(p) for p in trained}
    task_losses(trainer.data, made)(batch_of(trainer), ("a", "b"))["a"].backward()
    assert not bool(made.scores.grad[1].any())
    assert all(delta.grad is None for delta in made.deltas[1])
    assert all(p.grad is None for p in made.heads[1].parameters())
    norms = made.norm_parameters()
    assert [p.grad is None for p in norms] == [False] * (len(norms) // 2) + [True] * (len(norms) // 2)


def test_t4_a_step_for_every_batch_and_a_base_that_is_charged(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, steps=3)
    graph = Taps(TapsParams(lr_scores=1e-9)).run(trainer)
    assert (trainer.ledger.search.optimizer_steps, trainer.ledger.final.optimizer_steps) == (3, 3)
    assert trainer.weight_steps(graph) == 6
    assert trainer.flags == ["No score fell below the threshold, so every task changed every layer: nothing is shared."]


def test_t5_a_base_of_random_weights_is_labelled(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path / "scratch", steps=2)
    before = copy.deepcopy(trainer.backbone().module().state_dict())
    method = Taps(TapsParams(base="pretrained", threshold=1.0))
    graph = method.run(trainer)
    assert trainer.flags == ["taps-scratch: the frozen base has random weights, where the method needs a trained one."]
    assert any("taps-scratch" in note for note in method.check(trainer.data, trainer.backbone(), Budget(2)))
    assert (trainer.ledger.search.optimizer_steps, trainer.weight_steps(graph)) == (0, 2)
    weights = {id(p): p for p in graph.parameters("backbone") if p.dim() == 4}.values()
    frozen = [value for value in before.values() if value.dim() == 4]
    assert all(any(torch.equal(weight, value) for value in frozen) for weight in weights)

    given = dataclasses.replace(toy_backbone(), from_scratch=False)
    trainer = toy_trainer(tmp_path / "given", steps=2, prototype=given)
    Taps(TapsParams(threshold=1.0)).run(trainer)
    assert trainer.flags == []
    assert trainer.ledger.search.optimizer_steps == 0
    assert trainer.facts["active layers"]["value"] == 0


def test_counts_on_resnet18(resnet18: Backbone, tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, size=32, data=tasks_of(3, size=32), prototype=resnet18)
    made = network(trainer)
    heads = sum(p.numel() for p in made.heads.parameters())

    def stored(graph: TaskGraph) -> int:
        return sum(p.numel() for p in graph.parameters()) - heads

    with torch.no_grad():
        made.scores.fill_(0.0)
    assert made.parameters_with_base() == stored(made.deployed()) == P + 19_200
    with torch.no_grad():
        made.scores[1].fill_(1.0)  # one task keeps its own, two share the base
    assert made.parameters_with_base() == stored(made.deployed()) == P + 19_200 + WEIGHTS
    assert sum(p.numel() for p in made.deployed().parameters("backbone")) == P
    with torch.no_grad():
        made.scores.fill_(1.0)  # nobody runs the base, which is therefore not deployed
    assert made.parameters_with_base() == P + 19_200 + 3 * WEIGHTS
    assert stored(made.deployed()) == P + 19_200 + 2 * WEIGHTS
    assert round(size(made.deployed(), P).x_backbone, 6) == 3.0


@pytest.mark.numerical
@pytest.mark.parametrize(
    ("name", "domains"), [("test_resnet", "single"), ("test_resnet", "multi"), ("test_vit", "single")]
)
def test_the_deployed_network_is_the_trained_one(name: str, domains: str, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, 2, name, size=32, domains=domains)
    made = network(trainer)
    move_deltas(made)
    with torch.no_grad():
        made.scores[0, ::2] = 0.0
        made.scores[1, : made.scores.shape[1] // 2] = 0.0
    images = images_of(trainer)
    made.train()(images, ("a", "b"))  # statistics of each task's own
    expected = made.eval()(images, ("a", "b"))
    graph = made.deployed()
    graph.require_deployable()
    found = graph.network().eval()(images, ("a", "b"))
    assert all(torch.equal(found[task], expected[task]) for task in expected)
    nodes = [{id(p) for node in graph.reachable([t]) for p in node.module.parameters()} for t in ("a", "b")]
    shared = sum(id(w) in nodes[0] and id(w) in nodes[1] for w in made.base)
    assert shared == int((~made.active()).all(0).sum()) > 0


@pytest.mark.parametrize("domains", ["single", "multi"])
def test_taps_starts_as_thejoint_base(domains: str, tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, domains=domains, steps=3)
    heads = {task: trainer.head(task) for task in trainer.data.task_names}
    backbone = trainer.backbone()
    backbones = joint_base(trainer, backbone, heads)
    first = [b for m in (own.module() for own in backbones) for n, b in m.named_buffers() if n.endswith("running_mean")]
    half = len(first) // 2
    same = [torch.equal(x, y) for x, y in zip(first[:half], first[half:], strict=True)]
    assert all(same) if domains == "single" else not any(same)  # statistics of each task's images
    images: dict[str, Tensor] = images_of(trainer)
    made = Taps(TapsParams()).network(trainer.data, backbones, heads).eval()
    found = made(images, ("a", "b"))
    for task, own in zip(("a", "b"), backbones, strict=True):
        features = own.module().eval()(images[trainer.data.input_of(task)])
        assert torch.equal(heads[task].module.eval()(features), found[task])


def test_what_was_found_is_told(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, steps=2, recipe={"optimizer": {"lr": 1.0}})
    Taps(TapsParams(sparsity_weight=0.0, threshold=0.14, lr_scores=0.1)).run(trainer)
    scores = torch.as_tensor(trainer.artifacts["scores"])
    layers = len(layer_names(backbone_of("test_resnet").module()))
    assert scores.shape == (2, layers)
    active = scores >= 0.14
    assert [trainer.facts[f"active layers, {task}"]["value"] for task in "ab"] == active.sum(1).tolist()
    panel = trainer.figures["scores"].panels[0]
    assert set(panel.marks) == {tuple(cell) for cell in active.nonzero().tolist()}
    assert len(trainer.elements) == int(active.sum())
    assert 0 < len(trainer.elements) < active.numel()


def test_the_published_recipe_is_sgd_that_falls_as_a_cosine(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, 2)
    method = Taps(TapsParams(recipe="published"))
    for group in method.stage(trainer, network(trainer)).train:
        spec = group.optimizer
        assert (spec.name, spec.lr, spec.momentum, spec.cosine) == ("sgd", 0.01, 0.9, True)
    with pytest.raises(ValidationError, match="lr is read under recipe: published only"):
        TapsParams(lr=0.1)
    trainer = toy_trainer(tmp_path / "run", steps=2)
    graph = method.run(trainer)
    assert (method.recipe, trainer.weight_steps(graph)) == ("published", 4)


def test_one_task_has_nobody_to_share_with() -> None:
    with pytest.raises(UsageError, match="at least two tasks"):
        Taps(TapsParams()).check(tasks_of(1), backbone_of("test_resnet"), Budget(1))


def test_norms_without_statistics_and_biases_stay_the_base(tmp_path: Path) -> None:
    made = network(trainer_of(tmp_path, 2, "test_vit", size=32))
    assert made.norm_parameters() == []
    norms = [[m.weight for m in body.modules() if isinstance(m, nn.LayerNorm)] for body in made.bodies]
    assert len(norms[0]) > 0
    assert all(x is y for x, y in zip(*norms, strict=True))
