"""Cross-Stitch, Sluice, NDDR-CNN: the traps of soft_sharing 0 to 3, with the numbers that the specification gives."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmark.plan.suite import OptimizerSettings, RecipeSettings
from benchmark.train.optimizers import StageOptimizers
from benchmark.train.stage import StageRun
from benchmark.train.trainer import CellTrainer
from datasets.errors import UsageError
from methods.backbones.backbone import Backbone, BackboneConfig, create_backbone
from methods.backbones.family import Layout
from methods.contracts import Budget, Role
from methods.graph.cost import MacCounter, compute, size
from methods.graph.operations import Operation, Together
from methods.graph.task_graph import TaskGraph
from methods.plain import plain_graph, task_losses
from methods.registry import get_method
from methods.soft_sharing.cross_stitch import CrossStitch, CrossStitchParams, stitches
from methods.soft_sharing.nddr_cnn import NddrCnn, NddrCnnParams, unit_parameters
from methods.soft_sharing.sluice import Sluice, SluiceParams
from methods.soft_sharing.sluice_network import initial_beta, initial_matrix, last_convolution, orthogonality
from methods.soft_sharing.towers import Tower, Units, tower_graph, towers_of
from methods.soft_sharing.training import joint_stage, parameter_groups
from methods.soft_sharing.units import Nddr, channel_axis, initial_alpha, nddr, stitch, subspace_stitch
from tests.numbers import assert_same
from tests.unit.harness import toy_spec, toy_trainer
from tests.unit.towers import backbone_of, batch_of, images_of, tasks_of, trainer_of

LAYOUTS = {"test_resnet": 32, "test_vit": 32, "test_convnext": 32, "swin_tiny_patch4_window7_224": 32}


def shaken(operation: Operation, seed: int) -> None:
    """Other weights and statistics than every other tower's."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in operation.module.state_dict().values():
            if tensor.is_floating_point():
                tensor.mul_(1 + 0.2 * torch.rand(tensor.shape, generator=random))


def towers(trainer: CellTrainer, *, different: bool = True) -> list[Tower]:
    made = towers_of(trainer, True)
    for number, tower in enumerate(made):
        if different:
            for operation in (tower.stem, *(b for stage in tower.stages for b in stage), tower.head):
                shaken(operation, number)
    return made


def single_networks(trainer: CellTrainer, made: Sequence[Tower]) -> TaskGraph:
    """The same towers without anything between them."""
    return tower_graph(trainer.data, copy.deepcopy(list(made)), Units({}))


def parameters_beyond(graph: TaskGraph) -> int:
    return sum(p.numel() for p in graph.parameters("added"))


# Cross-Stitch


def test_x1_orientation_of_a_unit() -> None:
    x1, x2 = torch.ones(1, 3, 2, 2), torch.full((1, 3, 2, 2), 2.0)
    a = torch.tensor([[1, 0.5], [0, 1]])
    y = [stitch("nchw", row[:, None].expand(-1, 3)).module(x1, x2).detach() for row in a]
    assert torch.equal(y[0], torch.full_like(x1, 2.0))
    assert torch.equal(y[1], torch.full_like(x1, 2.0))
    transposed = [stitch("nchw", row[:, None].expand(-1, 3)).module(x1, x2).detach() for row in a.T]
    assert [float(value.unique()) for value in transposed] == [1.0, 2.5]


@pytest.mark.numerical
@pytest.mark.parametrize("layout", ["nchw", "nhwc", "tokens"])
def test_units_mix_channels_whatever_the_layout(layout: str) -> None:
    """A number a channel: channel c of x_2 is taken c times. A wrong axis mixes places."""
    shape = {"nchw": (2, 3, 5, 4), "nhwc": (2, 5, 4, 3), "tokens": (2, 7, 3)}[layout]
    alpha = torch.stack([torch.zeros(3), torch.arange(3.0)])
    y = stitch(layout, alpha).module(torch.randn(shape), torch.ones(shape))
    for c in range(3):
        assert torch.equal(y.select(channel_axis(layout), c).unique(), torch.tensor([float(c)]))


@pytest.mark.numerical
@pytest.mark.parametrize("name", LAYOUTS)
def test_x2_c1_c6_identity_units_are_single_networks_bit_for_bit(name: str, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, 2, name, LAYOUTS[name])
    made = towers(trainer)
    plain = single_networks(trainer, made)
    stitched = tower_graph(trainer.data, made, stitches(trainer.backbone(), torch.eye(2), "channel"))
    for training in (False, True):
        images = images_of(trainer)
        for task, value in plain.network().train(training)(images, plain.tasks).items():
            assert torch.equal(stitched.network().train(training)(images, plain.tasks)[task], value)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("n_tasks", [2, 3])
def test_x2_convex_rows_leave_identical_networks_as_they_are(n_tasks: int, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, n_tasks)
    made = towers(trainer, different=False)
    plain = single_networks(trainer, made)
    alpha = initial_alpha(n_tasks, 0.9, 0.1 / (n_tasks - 1))
    stitched = tower_graph(trainer.data, made, stitches(trainer.backbone(), alpha, "channel"))
    images = images_of(trainer)
    for task, value in plain.network().eval()(images, plain.tasks).items():
        assert_same(stitched.network().eval()(images, plain.tasks)[task], value)


@pytest.mark.parametrize("n_tasks", [2, 3, 5, 20])
def test_x3_rows_sum_to_one_at_the_start(n_tasks: int) -> None:
    alpha = initial_alpha(n_tasks, *CrossStitch(CrossStitchParams())._initial(n_tasks))
    assert torch.allclose(alpha.sum(1), torch.ones(n_tasks))
    assert torch.equal(alpha.diagonal(), torch.full((n_tasks,), 0.9))
    assert torch.ones(n_tasks, n_tasks).sum(1).tolist() == [n_tasks] * n_tasks  # the all-ones unit of LibMTL


def test_x3_published_five_task_rows_are_accepted_and_others_named() -> None:
    CrossStitch(CrossStitchParams(alpha_self=0.8, alpha_other=0.05))._initial(5)
    with pytest.raises(UsageError, match=r"0\.8 \+ 2 x alpha_other 0\.05 = 0\.9; expected 1.*alpha_other 0\.1"):
        CrossStitch(CrossStitchParams(alpha_self=0.8, alpha_other=0.05))._initial(3)


def test_x4_a_loss_reaches_another_network_only_through_a_unit(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, 2)
    for a12 in (0.0, 0.3):
        made = towers(trainer)
        alpha = torch.tensor([[1.0, a12], [0.0, 1.0]])
        graph = tower_graph(trainer.data, made, stitches(trainer.backbone(), alpha, "channel"))
        task_losses(trainer.data, graph.network())(batch_of(trainer), ("a",))["a"].backward()
        reached = [p.grad is not None and bool(p.grad.any()) for p in made[1].stem.module.parameters()]
        assert any(reached) == (a12 != 0)


class TestRates:
    """X5: under `published` a unit moves 100 times as far as a backbone weight, under `suite` as far as a head's."""

    def moves(self, trainer: CellTrainer, params: CrossStitchParams) -> dict[str, float]:
        graph = tower_graph(trainer.data, towers(trainer), stitches(trainer.backbone(), torch.eye(2), "channel"))
        recipe = RecipeSettings(
            clip_norm=None, optimizer=OptimizerSettings(lr=0.01, head_lr=0.03, momentum=0.0, weight_decay=0.0)
        )
        groups = parameter_groups(graph, params)
        optimizers = StageOptimizers(groups, recipe)
        optimizers.set_rates(5, 10)
        before = [group.parameters[0].detach().clone() for group in groups]
        for parameter in graph.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizers.step(torch.amp.GradScaler("cpu", enabled=False))
        return {
            group.name: float((old - group.parameters[0].detach()).double().mean())
            for group, old in zip(groups, before, strict=True)
        }

    def test_published(self, tmp_path: Path) -> None:
        found = self.moves(trainer_of(tmp_path, 2), CrossStitchParams(recipe="published"))
        assert found["backbone"] == pytest.approx(1e-3, rel=1e-3)
        assert found["added"] == pytest.approx(0.1, rel=1e-3)

    def test_suite(self, tmp_path: Path) -> None:
        found = self.moves(trainer_of(tmp_path, 2), CrossStitchParams())
        assert found["added"] == pytest.approx(found["heads"], rel=1e-3)
        assert found["heads"] == pytest.approx(3 * found["backbone"], rel=1e-2)

    def test_units_are_not_decayed_unless_asked(self, tmp_path: Path) -> None:
        trainer = trainer_of(tmp_path, 2)
        graph = tower_graph(trainer.data, towers(trainer), stitches(trainer.backbone(), torch.eye(2), "channel"))
        for params, decay in ((CrossStitchParams(), 0.0), (CrossStitchParams(unit_weight_decay=None), 5e-4)):
            optimizers = StageOptimizers(parameter_groups(graph, params), RecipeSettings())
            assert [g["weight_decay"] for g in optimizers._optimizers[0].param_groups] == [5e-4, decay, 5e-4]

    def test_nddr_published_falls_by_poly(self, tmp_path: Path) -> None:
        params = NddrCnnParams(recipe="published")
        assert (params.unit_lr, params.unit_weight_decay, params.published.steps) == (100.0, 5e-4, 20001)
        optimizers = StageOptimizers(
            [dataclasses.replace(g) for g in parameter_groups(nddr_toy(tmp_path), params)], RecipeSettings()
        )
        optimizers.set_rates(10_000, 20_001)
        rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers._optimizers]
        factor = (1 - 10_000 / 20_001) ** 0.9
        assert rates == pytest.approx([1e-3 * factor, 0.1 * factor, 1e-3 * factor])


def nddr_toy(folder: Path) -> TaskGraph:
    trainer = trainer_of(folder, 2)
    units = NddrCnn(NddrCnnParams())._units(trainer.backbone(), 2)
    return tower_graph(trainer.data, towers(trainer), units)


@pytest.fixture(scope="module")
def resnet18() -> Backbone:
    return create_backbone(BackboneConfig("resnet18", image_size=(32, 32)), seed=0)


@pytest.mark.parametrize(("n_tasks", "expected"), [(2, 3_840), (4, 15_360), (5, 24_000), (20, 384_000)])
def test_x6_c4_unit_count_on_resnet18(n_tasks: int, expected: int, resnet18: Backbone) -> None:
    assert stitches(resnet18, torch.eye(n_tasks), "channel").n_parameters() == expected
    assert stitches(resnet18, torch.eye(n_tasks), "layer").n_parameters() == 4 * n_tasks**2


def test_stages_and_places(resnet18: Backbone) -> None:
    assert resnet18.place_channels == [64, 64, 128, 256, 512]
    assert resnet18.place_names == ["stem", "stage 1", "stage 2", "stage 3", "stage 4"]
    assert [len(stage) for stage in backbone_of("test_resnet", 8).stages] == [1, 1, 1, 1]
    assert [len(stage) for stage in backbone_of("test_vit").stages] == [1, 1, 1, 3]


# All towers


METHODS = {"cross_stitch": CrossStitch, "sluice": Sluice, "nddr_cnn": NddrCnn}


def outputs_of(name: str, trainer: CellTrainer) -> dict[str, Tensor]:
    method = get_method(name)
    graph = method(method.Params(reinit=True)).run(trainer)
    return graph.network().eval()(images_of(trainer), graph.tasks)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", METHODS)
def test_c2_n2_outputs_do_not_depend_on_the_order_of_tasks(name: str, tmp_path: Path) -> None:
    """Heads and rows carry the task's name or place: the same network comes out for both orders, up to the order in
    which numbers are added.
    """
    found = {}
    for order in (("a", "b"), ("b", "a")):
        trainer = toy_trainer(tmp_path / order[0], steps=3, data=toy_spec().with_tasks(order))
        found[order] = outputs_of(name, trainer)
    for task in ("a", "b"):
        assert_same(found["a", "b"][task], found["b", "a"][task])
    assert not torch.allclose(found["a", "b"]["a"][:, :2], found["a", "b"]["b"], atol=1e-2)


@pytest.mark.usefixtures("float64")
def test_n2_blocks_follow_the_order_of_towers(tmp_path: Path) -> None:
    """Swapping two tasks swaps outputs, when their blocks are swapped with them."""
    trainer = trainer_of(tmp_path, 2)
    made, images = towers(trainer), images_of(trainer)
    alpha = torch.tensor([[0.7, 0.2], [0.4, 0.6]])

    def outputs(order: list[int]) -> list[Tensor]:
        rows = alpha[order][:, order]
        channels = trainer.backbone().place_channels
        units = Units({p: [nddr("nchw", r, channels[p], 0.05, True) for r in rows] for p in range(1, 5)}, 1)
        graph = tower_graph(trainer.data, [made[t] for t in order], units)
        return [graph.network().eval()(images, ("a", "b"))[task] for task in ("a", "b")]

    straight, swapped = outputs([0, 1]), outputs([1, 0])
    for one, other in zip(straight, reversed(swapped), strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("name", METHODS)
def test_c3_state_comes_back(name: str, tmp_path: Path) -> None:
    method = METHODS[name]
    trainer = trainer_of(tmp_path, 2, steps=2)
    graph = method(method.Params(reinit=True)).run(trainer)
    again = TaskGraph.from_json(graph.to_json(), graph.tensors())
    assert again.hash() == graph.hash()
    images = images_of(trainer)
    expected = graph.network().eval()(images, graph.tasks)
    network = again.network().to(memory_format=torch.channels_last)  # as it was trained: the same kernels
    for task, value in network.eval()(images, graph.tasks).items():
        assert torch.equal(value, expected[task])


@pytest.mark.parametrize("name", METHODS)
def test_c5_a_step_without_rate_leaves_units_unchanged(name: str, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, 2)
    graphs = []
    original = trainer.fit

    def frozen(stage: Any) -> object:
        train = [dataclasses.replace(g, rate_factor=0.0) if g.name == "added" else g for g in stage.train]
        graphs.append((stage.network.graph, [p.detach().clone() for p in stage.network.graph.parameters("added")]))
        return original(dataclasses.replace(stage, train=train))

    trainer.fit = frozen
    method = METHODS[name]
    method(method.Params(reinit=True)).run(trainer)
    graph, before = graphs[0]
    after = graph.parameters("added")
    assert after
    assert all(torch.equal(old, new.detach()) for old, new in zip(before, after, strict=True))


@pytest.mark.parametrize("name", METHODS)
def test_tasks_with_images_of_their_own_pass_through_all_towers(name: str, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, 2, domains="multi", steps=2)
    method = METHODS[name]
    graph = method(method.Params(reinit=True)).run(trainer)
    stems = [node for node in graph.nodes.values() if node.operation.config.get("part") == "stem"]
    assert len(stems) == 4  # two towers on two inputs
    assert trainer.ledger.final.forward_passes == 2 * 4
    images = images_of(trainer)
    network = graph.network().eval()
    before = network(images, ("a", "b"))
    other = {**images, "b": images["b"] + 1}
    after = network(other, ("a", "b"))
    assert torch.equal(before["a"], after["a"])  # features of different images are never mixed
    assert not torch.equal(before["b"], after["b"])
    joint = compute(graph, dict.fromkeys(graph.inputs, (1, 3, 8, 8)))
    assert joint.macs_joint is None


@pytest.mark.parametrize("domains", ["single", "multi"])
def test_statistics_are_shared_only_where_asked(domains: str, tmp_path: Path) -> None:
    for rule in ("per_task_stats", "shared"):
        trainer = trainer_of(tmp_path / rule, 2, domains=domains, steps=2)
        method = CrossStitch(CrossStitchParams(reinit=True, batch_norm=rule))
        graph = method.run(trainer)
        assert method.final_batch_norm == ("shared" if rule == "shared" else "per_sub_expression")
        sets: dict[int, set[int]] = {}
        for node in graph.nodes.values():
            for part in node.module.modules():
                if isinstance(part, nn.BatchNorm2d):
                    sets.setdefault(id(part.weight), set()).add(id(part.running_mean))
        expected = 2 if domains == "multi" and rule == "per_task_stats" else 1
        assert {len(found) for found in sets.values()} == {expected}


def test_a_single_task_start_goes_on_and_is_charged(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, steps=6)
    graph = CrossStitch(CrossStitchParams(alpha_self=1.0)).run(trainer)
    assert trainer.weight_steps(graph) == 12
    assert trainer.ledger.search.optimizer_steps == 12  # T networks of 6 steps
    twin = toy_trainer(tmp_path / "twin", steps=6)
    graph = CrossStitch(CrossStitchParams(reinit=True)).run(twin)
    assert (twin.weight_steps(graph), twin.ledger.search.optimizer_steps) == (6, 0)


@pytest.mark.numerical
def test_towers_hold_what_single_task_training_left(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, steps=3)
    expected = TaskGraph.merged([trainer.single_task(task).graph for task in ("a", "b")])
    made = tower_graph(trainer.data, towers_of(trainer, False), Units({}))
    images = images_of(trainer)
    for task, value in expected.network().eval()(images, ("a", "b")).items():
        assert torch.equal(made.network().eval()(images, ("a", "b"))[task], value)


@pytest.mark.parametrize("name", METHODS)
def test_one_task_has_nobody_to_share_with(name: str) -> None:
    method = METHODS[name](METHODS[name].Params())
    spec = toy_spec().with_tasks(["a"])
    with pytest.raises(UsageError, match=r"at least two tasks; the cell has \['a'\]"):
        method.check(spec, backbone_of("test_resnet", 8), Budget(10))


@pytest.mark.parametrize(
    ("params", "message"),
    [({"unit_lr": 100.0}, "unit_lr is read under"), ({"published": {"lr": 0.1}}, "published is read under")],
)
def test_what_only_the_published_recipe_reads_is_refused_elsewhere(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CrossStitchParams(**params)


def test_plans_say_what_towers_cost() -> None:
    notes = CrossStitch(CrossStitchParams()).check(tasks_of(3, "multi"), backbone_of("test_resnet", 8), Budget(100))
    assert any("9 tower passes a step" in note for note in notes)
    assert any("100 more updates" in note for note in notes)
    published = CrossStitch(CrossStitchParams(recipe="published", published={"steps": 7}))
    notes = published.check(tasks_of(3), backbone_of("test_resnet", 8), Budget(100))
    assert any("7 joint steps of sgd, added layers at 100 x 0.001" in note for note in notes)


# Sluice


def test_s1_rows_sum_to_one_where_the_released_pattern_sums_to_two() -> None:
    for n_tasks in (2, 3, 5):
        for init in ("imbalanced", "balanced"):
            for subspaces in (1, 2):
                rows = initial_matrix(n_tasks, subspaces, init, 0.9).sum(1)
                assert torch.allclose(rows, torch.ones(n_tasks * subspaces))
    assert torch.allclose(initial_matrix(2, 2, "imbalanced", 0.9)[0], torch.tensor([0.9, *[0.1 / 3] * 3]))
    released = torch.tensor([[0.95, 0.95, 0.05, 0.05], [0.95, 0.95, 0.05, 0.05]])
    x = torch.ones(1, 4, 1, 1)
    assert float(subspace_stitch("nchw", released).module(x, x).detach().mean()) == pytest.approx(2.0)
    ours = subspace_stitch("nchw", initial_matrix(2, 2, "imbalanced", 0.9)[:2])
    assert torch.allclose(ours.module(x, x), x)


def test_subspaces_are_halves_of_channels_in_the_order_of_tasks() -> None:
    """Entry (s, u S + r) takes half r of tower u: with one-hot rows the output is that half."""
    x = [torch.arange(4.0).view(1, 4, 1, 1), torch.arange(10.0, 14.0).view(1, 4, 1, 1)]
    for u in range(2):
        for r in range(2):
            alpha = torch.zeros(2, 4)
            alpha[0, 2 * u + r] = 1
            y = subspace_stitch("nchw", alpha).module(*x).flatten().tolist()
            assert y == [10.0 * u + 2 * r, 10.0 * u + 2 * r + 1, 0.0, 0.0]


def test_s2_orthogonality() -> None:
    first = torch.tensor([[1.0, 0.0]])
    for second, expected in (([[0.0, 1.0]], 0.0), ([[1.0, 0.0]], 1.0)):
        weight = torch.cat([first, torch.tensor(second)])[:, :, None, None]
        assert float(orthogonality([weight])) == expected
    assert float(orthogonality([2 * weight])) == 16.0
    assert float(orthogonality([weight, 2 * weight])) == 17.0


def test_s2_the_penalty_is_logged_relative_to_the_start_and_trains(tmp_path: Path) -> None:
    ends = {}
    for weight in (0.1, 10.0):
        trainer = toy_trainer(tmp_path / str(weight), steps=4)
        Sluice(SluiceParams(reinit=True, orth_weight=weight)).run(trainer)
        curve = trainer.curves["penalty/orthogonality relative to the start"]
        assert len(curve) == trainer.budget.cycles
        assert curve[0] == 1.0
        ends[weight] = curve[-1]
    assert ends[10.0] < ends[0.1]


def test_s2_every_family_has_a_layer_that_carries_the_penalty() -> None:
    names = {
        name: last_convolution(backbone_of(name), backbone_of(name).stages[1][-1])
        for name in ("test_resnet", "test_vit", "test_convnext", "test_efficientnet", "swin_tiny_patch4_window7_224")
    }
    assert names == {
        "test_resnet": "conv2",
        "test_vit": "mlp.fc2",
        "test_convnext": "mlp.fc2",
        "test_efficientnet": "conv_pwl",
        "swin_tiny_patch4_window7_224": "mlp.fc2",
    }
    assert last_convolution(create_backbone(BackboneConfig("seresnet18"), seed=0), 7) == "conv2"  # not the gate's


@pytest.mark.numerical
def test_s3_one_subspace_and_the_last_layer_is_layer_wise_cross_stitch(tmp_path: Path) -> None:
    found = {}
    for name, method in {
        "sluice": Sluice(SluiceParams(reinit=True, subspaces=1, orth_weight=0.0)),
        "cross": CrossStitch(CrossStitchParams(reinit=True, granularity="layer")),
    }.items():
        trainer = trainer_of(tmp_path / name, 3)
        graphs: list[TaskGraph] = []
        trainer.fit = lambda stage, graphs=graphs: graphs.append(stage.network.graph)
        method.run(trainer)
        for node in graphs[0].nodes.values():
            if node.operation.kind == "layer_mix":
                with torch.no_grad():
                    node.module.beta.copy_(torch.tensor([0.0, 0.0, 0.0, 1.0]))
        found[name] = graphs[0].network().eval()(images_of(trainer), ("a", "b", "c"))
    for task, value in found["cross"].items():
        assert torch.equal(found["sluice"][task], value)


def test_s4_odd_channels_are_an_error_at_planning_and_when_run() -> None:
    backbone = backbone_of("test_resnet", 8).clone()
    block = backbone.blocks[1]
    block.out_shape = block.out_shape._replace(channels=47)
    with pytest.raises(UsageError, match="stage 2 of 'test_resnet' has 47 channels, which cannot be cut into 2"):
        Sluice(SluiceParams()).check(tasks_of(2), backbone, Budget(10))
    Sluice(SluiceParams(subspaces=1)).check(tasks_of(2), backbone, Budget(10))
    x = torch.ones(1, 5, 1, 1)
    with pytest.raises(ValueError, match="5 channels cannot be cut into 2"):
        subspace_stitch("nchw", torch.ones(2, 4)).module(x, x)


def test_s5_parameter_count_beyond_two_resnet18(resnet18: Backbone, tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, size=32, data=tasks_of(2, size=32), prototype=resnet18)
    graphs: list[TaskGraph] = []
    trainer.fit = lambda stage: graphs.append(stage.network.graph)
    Sluice(SluiceParams(reinit=True)).run(trainer)
    assert parameters_beyond(graphs[0]) == 458_824
    assert sum(p.numel() for p in graphs[0].parameters("backbone")) == 2 * 11_176_512
    assert size(graphs[0], 11_176_512).x_backbone == pytest.approx(2 + 458_824 / 11_176_512)


def test_initial_layer_mixes() -> None:
    assert initial_beta(4, "balanced").tolist() == [0.25] * 4
    assert initial_beta(4, "imbalanced").tolist() == pytest.approx([0.1 / 3] * 3 + [0.9])
    assert initial_beta(1, "imbalanced").tolist() == [1.0]


# NDDR-CNN


@pytest.mark.usefixtures("float64")
def test_n1_initial_mapping() -> None:
    x = [torch.ones(1, 3, 2, 2), torch.full((1, 3, 2, 2), 2.0)]
    z = torch.cat(x, 1)
    rows = [nddr("nchw", row, 3, 0.05, True).module for row in initial_alpha(2, 0.9, 0.1)]
    values = [float(row.eval()(z).unique()) for row in rows]
    assert values == pytest.approx([1.0999945, 1.8999905], abs=1e-7)
    noisy = z + torch.randn(z.shape, generator=torch.Generator().manual_seed(0)).abs()
    own = nddr("nchw", torch.tensor([1.0, 0.0]), 3, 0.05, True).module
    torch.testing.assert_close(own.eval()(noisy), noisy[:, :3], rtol=1e-5, atol=0)  # the norm's 1 / sqrt(1 + 1e-5)
    assert not torch.allclose(own.train()(noisy), noisy[:, :3], rtol=0.1)  # the norm rescales at once


def test_n1_metrics_before_the_joint_training_are_told(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, steps=3)
    NddrCnn(NddrCnnParams()).run(trainer)
    told = [name for name in trainer.facts if "before the joint training" in name]
    assert told == [f"accuracy on select before the joint training, {task}" for task in ("a", "b")]
    assert all(0 <= trainer.facts[name]["value"] <= 100 for name in told)


@pytest.mark.parametrize(
    ("n_tasks", "expected"), [(2, 1_396_480), (3, 3_139_200), (4, 5_578_240), (20, 139_264_000 + 38_400)]
)
def test_n3_count_on_resnet18(n_tasks: int, expected: int, resnet18: Backbone) -> None:
    assert unit_parameters(resnet18.place_channels[1:], n_tasks) == expected
    if n_tasks <= 3:
        stages = tuple(resnet18.place_names[1:])
        assert NddrCnn(NddrCnnParams(stages=stages))._units(resnet18, n_tasks).n_parameters() == expected


def test_n4_twenty_tasks_are_refused_before_memory_runs_out(resnet18: Backbone) -> None:
    method = NddrCnn(NddrCnnParams())
    with pytest.raises(UsageError, match=r"20 tasks on 'resnet18' have 140,943,360 parameters.*50,000,000"):
        method.check(tasks_of(20), resnet18, Budget(10))
    with pytest.raises(UsageError, match="max_unit_params"):
        method._units(resnet18, 20)


@pytest.mark.numerical
@pytest.mark.parametrize("name", LAYOUTS)
def test_n5_c1_own_blocks_without_norms_are_single_networks_bit_for_bit(name: str, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, 2, name, LAYOUTS[name])
    made = towers(trainer)
    plain = single_networks(trainer, made)
    units = NddrCnn(NddrCnnParams(alpha_self=1.0, relu=False))._units(trainer.backbone(), 2)
    for rows in units.rows.values():
        for row in rows:
            assert isinstance(row.module, Nddr)
            row.module.norm = nn.Identity()
    graph = tower_graph(trainer.data, made, units)
    images = images_of(trainer)
    for task, value in plain.network().eval()(images, plain.tasks).items():
        assert torch.equal(graph.network().eval()(images, plain.tasks)[task], value)


def test_nddr_places_are_named_and_relu_is_noted() -> None:
    backbone = backbone_of("test_convnext")
    with pytest.raises(UsageError, match="Nearest: 'stage 1'"):
        NddrCnn(NddrCnnParams(stages=("stage1",))).check(tasks_of(2), backbone, Budget(10))
    assert any("relu: false" in note for note in NddrCnn(NddrCnnParams()).check(tasks_of(2), backbone, Budget(10)))
    resnet = backbone_of("test_resnet", 8)
    assert not any("relu" in note for note in NddrCnn(NddrCnnParams()).check(tasks_of(2), resnet, Budget(10)))


def test_a_step_counts_the_passes_of_all_towers(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, 3)
    graph = tower_graph(trainer.data, towers(trainer), Units({}))
    stage = joint_stage(trainer, graph, CrossStitchParams(), passes=3)
    run = StageRun(stage, trainer.context)
    assert (run.stage.passes, run.stage.role, run.stage.steps) == (3, Role.FIT_ARCH, trainer.budget.steps)
    plain = plain_graph(trainer.data, trainer.data.task_names, trainer.backbone(), trainer.head)
    macs = compute(graph, {"image": (1, 3, 8, 8)})
    assert macs.macs_backbone == 3 * compute(plain, {"image": (1, 3, 8, 8)}).macs_backbone


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("layout", ["nchw", "nhwc", "tokens"])
@pytest.mark.parametrize("unit", ["channel", "layer", "subspace"])
def test_rows_that_run_together_equal_rows_one_by_one(layout: Layout, unit: str) -> None:
    """Values and gradients of units for four tasks, in the memory format of their inputs."""
    shape = {"nchw": (2, 6, 3, 5), "nhwc": (2, 3, 5, 6), "tokens": (2, 7, 6)}[layout]
    random = torch.Generator().manual_seed(0)
    if unit == "subspace":
        rows = [subspace_stitch(layout, torch.randn(2, 8, generator=random)).module for _ in range(4)]
    else:
        width = 6 if unit == "channel" else 1
        rows = [stitch(layout, torch.randn(4, width, generator=random)).module for _ in range(4)]
    memory_format = torch.channels_last if layout == "nchw" else torch.contiguous_format
    inputs = [torch.randn(shape, generator=random).contiguous(memory_format=memory_format) for _ in range(4)]
    weights = [torch.randn(shape, generator=random) for _ in range(4)]

    def values_and_gradients(outputs: Callable[[list[Tensor]], Sequence[Tensor]]) -> list[Tensor]:
        leaves = [value.clone().requires_grad_() for value in inputs]
        found = outputs(leaves)
        assert all(value.is_contiguous(memory_format=memory_format) for value in found)
        total = sum((value * weight).sum() for value, weight in zip(found, weights, strict=True))
        return [*found, *torch.autograd.grad(total, [*leaves, *(row.alpha for row in rows)])]

    alone = values_and_gradients(lambda leaves: [row(*leaves) for row in rows])
    for found, expected in zip(
        values_and_gradients(lambda leaves: Together(rows)(*leaves * len(rows))), alone, strict=True
    ):
        assert_same(found, expected)


def test_a_network_of_three_runs_its_units_together_and_counts_as_before(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, 3)
    units = stitches(trainer.backbone(), initial_alpha(3, 0.9, 0.05), "channel")
    graph = tower_graph(trainer.data, towers(trainer), units)
    network = graph.network()
    calls = [name for name, part in network.named_modules() if isinstance(part, Together)]
    assert len(calls) == len(trainer.backbone().stages)
    plain, images = graph.module(), images_of(trainer)
    counted = []
    for run in (lambda: network.eval()(images, graph.tasks), lambda: plain.eval()(images)):
        with MacCounter() as counter:
            torch.stack([value.sum() for value in run().values()]).sum().backward()
        counted.append(counter.macs)
    assert counted[0] == counted[1]
