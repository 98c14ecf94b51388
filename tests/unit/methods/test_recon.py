"""Recon: the traps of more_methods 2 (R1 to R8) and the tests that its methods have in common (C1 to C6)."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from benchmark.train import alternation
from benchmark.train.trainer import CellTrainer
from datasets.errors import UsageError
from datasets.kinds.class_kind import IGNORE
from methods.backbones.backbone import Backbone, BackboneConfig, create_backbone
from methods.contracts import Budget
from methods.graph.cost import MacCounter, compute, size
from methods.graph.task_graph import TaskGraph
from methods.plain import fit_plain, plain_graph, task_losses
from methods.recon.conflicts import (
    Conflicts,
    SearchNetwork,
    chance,
    cosines,
    count_conflicts,
    n_conflicts,
    parameters_of,
)
from methods.recon.layers import Layer, Sizes, layers_of
from methods.recon.method import Recon
from methods.recon.network import split_graph
from methods.recon.parameters import ReconParams
from methods.recon.pictures import scores_figure
from methods.recon.selection import cut, number_of, of_equal_size, order_of, ranking
from methods.recon.telling import tell_conflicts
from tests.unit.harness import toy_trainer
from tests.unit.kills import Killed, kill_after, outcome
from tests.unit.towers import backbone_of, batch_of, images_of, tasks_of, trainer_of

SWIN = "swin_tiny_patch4_window7_224"
SIZES = {"test_resnet": 8, "test_vit": 32, SWIN: 32}
P = 11_176_512
NORMS = 9_600  # parameters of the 20 norms of resnet18


@functools.cache
def resnet18() -> Backbone:
    return create_backbone(BackboneConfig("resnet18", image_size=(32, 32)), seed=0)


def trainer_on(folder: Path, n_tasks: int = 2, name: str = "test_resnet", **options: Any) -> CellTrainer:
    return trainer_of(folder, n_tasks, name, SIZES[name], **options)


def run(folder: Path, n_tasks: int = 2, name: str = "test_resnet", *, options: Any = None, **params: Any) -> Any:
    trainer = trainer_on(folder, n_tasks, name, **{"steps": 4, "cycles": 2, **(options or {})})
    return trainer, Recon(ReconParams(**params)).run(trainer)


def every_other(layers: Sequence[Layer]) -> list[Layer]:
    return list(layers)[1::2]


def network(trainer: CellTrainer, severity: float = -0.02, granularity: Any = "layer") -> SearchNetwork:
    backbone = trainer.backbone()
    graph = plain_graph(trainer.data, trainer.data.task_names, backbone, trainer.head)
    layers = layers_of(backbone, granularity)
    return SearchNetwork(trainer.data, graph, parameters_of(backbone, layers), severity)


def perturb(graph: TaskGraph) -> None:
    """Copies that have parted from one another."""
    random = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in graph.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=random))


# What is counted


def vectors(products: Sequence[Sequence[float]]) -> list[list[Tensor]]:
    """One gradient a task, with these cosines."""
    rows = torch.linalg.cholesky(torch.tensor(products, dtype=torch.float64))
    return [[row] for row in rows]


def test_r1_pairs_are_counted_once_and_strictly() -> None:
    """[official code] A cosine equal to S, or a pair counted twice, would move every score."""
    gradients = vectors([[1, -0.3, 0.1], [-0.3, 1, -0.01], [0.1, -0.01, 1]])
    assert [int(n_conflicts(gradients, severity)) for severity in (-0.02, 0.0, -0.5)] == [1, 2, 0]
    halves = [[torch.tensor([1.0, 0, 0, 0])], [torch.tensor([-0.5, 0.5, 0.5, 0.5])]]  # cosine -.5, exactly
    assert [int(n_conflicts(halves, severity)) for severity in (-0.5, -0.49)] == [0, 1]
    right_angle = [[torch.tensor([1.0, 0])], [torch.tensor([0.0, 2])]]
    assert int(n_conflicts(right_angle, 0.0)) == 0


@pytest.mark.usefixtures("float64")
def test_r2_a_zero_gradient_and_the_size_of_a_loss_change_nothing(tmp_path: Path) -> None:
    """[derived] Else a task without a label would conflict, and losses in large units would decide alone."""
    zero = [[torch.zeros(3)], [torch.tensor([1.0, -1, 2])], [torch.tensor([-1.0, 1, -2])]]
    assert cosines(zero)[0].tolist() == [0, 0, 0]
    assert int(n_conflicts(zero, 0.0)) == 1

    trainer = trainer_on(tmp_path, 3)
    batch, counted = batch_of(trainer), []
    for factor in (1.0, 1000.0):
        made = network(trainer, severity=-0.1)
        plain = made._losses
        made._losses = lambda b, t, f=factor, plain=plain: {
            k: v * (f if k == "a" else 1) for k, v in plain(b, t).items()
        }
        for _ in range(3):
            made.losses(batch, trainer.data.task_names)
        counted.append(made.conflicts.tolist())
    assert counted[0] == counted[1]
    assert 0 < sum(counted[0]) < 9 * len(counted[0])


def test_r3_weight_and_bias_are_one_vector() -> None:
    """[official code] Compared alone the biases have cosine -1, and layers with a bias would rank first."""
    gradients = [[torch.tensor([[1.0]]), torch.tensor([-1.0])], [torch.tensor([[1.0]]), torch.tensor([0.5])]]
    assert cosines(gradients)[0, 1].item() == pytest.approx(0.316, abs=5e-4)
    assert int(n_conflicts(gradients, 0.0)) == 0
    assert int(n_conflicts([row[1:] for row in gradients], 0.0)) == 1
    layers = {layer.name: layer for layer in layers_of(backbone_of("test_vit"), "layer")}
    assert list(layers["blocks.0.mlp.fc1"].parameters) == ["mlp.fc1.weight", "mlp.fc1.bias"]


@pytest.mark.parametrize(
    ("name", "n", "norms"), [("resnet18", 40, 20), ("test_resnet", 30, 15), ("test_vit", 39, 13), (SWIN, 32, 10)]
)
def test_layers_are_modules_with_parameters_and_hold_each_of_them_once(name: str, n: int, norms: int) -> None:
    """[official code] A norm in the layer of its convolution, or a parameter in none, would never be copied."""
    backbone = resnet18() if name == "resnet18" else backbone_of(name, 32)
    layers = layers_of(backbone, "layer")
    assert (len(layers), sum(layer.is_norm for layer in layers)) == (n, norms)
    held = [id(p) for layer in parameters_of(backbone, layers) for p in layer]
    assert sorted(held) == sorted(id(p) for p in backbone.module().parameters())
    blocks = layers_of(backbone, "block")
    assert [block.part for block in blocks] == sorted({layer.part for layer in layers})
    assert sum(block.size for block in blocks) == backbone.n_parameters()


def test_r5_excess_is_nought_on_random_gradients() -> None:
    """[derived] The rate of random gradients depends on the size of the layer alone: norms would always win."""
    sizes, n_draws, n_tasks, random = (32, 128, 256, 1024), 8, 20, torch.Generator().manual_seed(0)
    n_pairs = n_draws * n_tasks * (n_tasks - 1) // 2  # any two of them are independent, which the variance asks for
    for severity in (-0.1, -0.02, 0.0):
        expected = chance(severity, sizes)
        n = [
            sum(
                int(n_conflicts([[g] for g in torch.randn(n_tasks, d, generator=random)], severity))
                for _ in range(n_draws)
            )
            for d in sizes
        ]
        error = np.sqrt(expected * (1 - expected) / n_pairs)
        assert (np.abs(np.array(n) / n_pairs - expected) < 3 * error).all()


@pytest.mark.parametrize(
    ("severity", "expected"),
    [(-0.1, (0.129, 0.055, 0.0007, 0.0)), (-0.02, (0.410, 0.374, 0.261, 0.00006)), (0.0, (0.5, 0.5, 0.5, 0.5))],
)
def test_r5_the_chance_of_random_gradients(severity: float, expected: tuple[float, ...]) -> None:
    """[derived] Phi(S sqrt(d)) at the sizes of two norms and of a convolution."""
    assert chance(severity, (128, 256, 1024, 36_864)) == pytest.approx(expected, abs=5e-4, rel=0.05)


def test_only_pairs_whose_losses_both_have_a_label_are_counted(tmp_path: Path) -> None:
    """[default] A rate over all steps would call rarely labelled tasks peaceful."""
    trainer = trainer_on(tmp_path, 3)
    batch, made = batch_of(trainer), network(trainer, severity=0.0)
    made.losses(batch, trainer.data.task_names)
    assert (int(made.pairs), int(made.conflicts.max())) == (3, 2)  # of three tasks at most two pairs can conflict here
    batch.targets["b"].fill_(IGNORE)
    before = made.conflicts.clone()
    made.losses(batch, trainer.data.task_names)
    assert int(made.pairs) == 3 + 1
    assert int((made.conflicts - before).max()) <= 1
    told = copy.copy(batch)
    object.__setattr__(told, "labelled", frozenset("a"))  # the loader knows: nothing is asked of the device
    made.losses(told, trainer.data.task_names)
    assert int(made.pairs) == 4


def test_gradients_of_tasks_are_those_that_the_search_compares(tmp_path: Path) -> None:
    """[paper] Counted by hand on one step, a backward pass for each task."""
    trainer = trainer_on(tmp_path, 3)
    made, batch = network(trainer, severity=-0.02), batch_of(trainer)
    copied = copy.deepcopy(made)
    made.losses(batch, trainer.data.task_names)
    losses = task_losses(trainer.data, copied.network)(batch, trainer.data.task_names)
    rows = []
    for loss in losses.values():
        copied.zero_grad()
        loss.backward(retain_graph=True)
        layers = [torch.cat([p.grad.flatten() for p in layer]) for layer in copied.layers]
        rows.append(layers)
    for k in range(len(made.layers)):
        found = [
            float(nn.functional.cosine_similarity(one[k], other[k], dim=0)) < -0.02
            for one, other in itertools.combinations(rows, 2)
        ]
        assert sum(found) == int(made.conflicts[k])


# What is selected


def sizes_of(folder: Path, n_tasks: int = 2, name: str = "test_resnet", **options: Any) -> tuple[CellTrainer, Sizes]:
    trainer = trainer_on(folder, n_tasks, name, **options)
    backbone = trainer.backbone()
    heads = {task: trainer.head(task) for task in trainer.data.task_names}
    return trainer, Sizes(trainer.data, backbone, layers_of(backbone, "layer"), heads)


def test_the_ranking_falls_and_ties_keep_the_order_of_the_network(tmp_path: Path) -> None:
    """[official code] A sort that is not stable would select other layers from one machine to the next."""
    assert ranking(np.array([0.1, 0.3, 0.1, 0.3, 0.2] * 20))[:45:4] == [1, 11, 21, 31, 41, 51, 61, 71, 81, 91, 4, 24]
    _, sizes = sizes_of(tmp_path)
    order = list(range(30))[::-1]
    assert cut(ReconParams(top_k=3), sizes, order) == [29, 28, 27]
    assert len(cut(ReconParams(), sizes, order)) == 18
    assert number_of(ReconParams(), 41) == 25  # of the released ResNet-18
    assert cut(ReconParams(top_k=0), sizes, order) == []


def test_a_budget_takes_layers_in_order_until_one_does_not_fit(tmp_path: Path) -> None:
    """[default] Layers after that one are not tried: they would be others than those of highest score."""
    _, sizes = sizes_of(tmp_path, 3)
    d = [layer.size for layer in sizes.layers]
    large, small = d.index(max(d)), d.index(min(d))
    order = [0, large, small]
    assert sizes.parameters(order) == sizes.reference + 2 * (d[0] + d[large] + d[small])
    exact = sizes.parameters([0, large]) / sizes.reference
    assert cut(ReconParams(budget=exact), sizes, order) == [0, large]
    assert cut(ReconParams(budget=exact - 1e-6), sizes, order) == [0]


def test_both_scores_rank_and_are_recorded(tmp_path: Path) -> None:
    """R5 [derived]: `excess` selects by what chance does not explain, and both rankings are in the record."""
    trainer, _ = run(tmp_path, severity=-0.1, top_k=7, score="excess", search_fraction=1.0)
    rate, excess, selected = (trainer.artifacts[name] for name in ("rate", "excess", "selected"))
    sizes = [layer.size for layer in layers_of(trainer.backbone(), "layer")]
    assert np.array_equal(rate, trainer.artifacts["conflicts"] / 4)
    assert np.allclose(excess, rate - chance(-0.1, sizes))
    assert np.flatnonzero(selected).tolist() == sorted(ranking(excess)[:7]) != sorted(ranking(rate)[:7])
    both = set(ranking(excess)[:7]) & set(ranking(rate)[:7])
    assert trainer.facts["layers that rate and excess both select"]["value"] == len(both)


def test_the_control_draws_layers_of_the_searched_size(tmp_path: Path) -> None:
    """[paper: RSP] A control that is smaller, or computes less, says nothing about the search."""
    trainer, sizes = sizes_of(tmp_path, 3)
    n = len(sizes.layers)
    for searched in ([1], list(range(0, n, 2)), list(range(20, 25))):
        drawn = of_equal_size(trainer, sizes, searched)
        assert trainer.facts["deviation from the size asked for"]["value"] <= 5
        assert set(drawn) != set(searched)
        target, found = sizes.size(searched), sizes.size(drawn)
        assert found.parameters == pytest.approx(target.parameters, rel=0.05)
        assert found.macs == pytest.approx(target.macs, rel=0.05)
    assert not trainer.flags
    everything = list(range(n))
    assert sorted(of_equal_size(trainer, sizes, everything)) == everything
    assert trainer.flags == ["The random layers are those that the search found: no control of it."]


def test_controls_are_drawn_by_a_stream_of_the_cell(tmp_path: Path) -> None:
    """[paper: RSL, first and last K] Equal seeds draw equally, other seeds do not."""

    def order(select: Any, seed: int = 0) -> list[int]:
        trainer = trainer_on(tmp_path, seed=seed)
        return order_of(ReconParams(select=select), trainer, 30, None)

    assert order("random_layers") == order("random_layers") != order("random_layers", seed=1)
    assert sorted(order("random_layers")) == list(range(30)) != order("random_layers")
    assert order("first")[:2] == [0, 1]
    assert order("last")[:2] == [29, 28]


def test_as_many_random_layers_need_no_search(tmp_path: Path) -> None:
    """[paper: RSL] K is known, so a search would be paid for nothing."""
    trainer, _ = run(tmp_path, select="random_layers", top_k=4, options={"steps": 2})
    assert (trainer.ledger.search.images, trainer.ledger.search.forward_passes) == (0, 0)
    assert trainer.artifacts["selected"].sum() == 4
    assert trainer.figures["layers"].panels[0].values[0] == tuple(1.0 + trainer.artifacts["selected"])


def test_what_the_audit_is_told() -> None:
    """Pairs of search and control share a space; only the drawn ones are random."""
    found = {
        name: Recon(ReconParams(select=name)) for name in ("conflict", "random_layers", "random_parameters", "last")
    }
    assert {method.search_space for method in found.values()} == {"layers with copies"}
    assert [method.is_random_architecture for method in found.values()] == [False, True, True, False]
    assert [method.alternates for method in found.values()] == [True, False, True, False]


# What is deployed


@pytest.mark.parametrize(
    ("name", "domains"),
    [("test_resnet", "single"), ("test_resnet", "multi"), ("test_vit", "single"), (SWIN, "single")],
)
def test_r4_without_copies_it_is_hard_sharing(name: str, domains: str, tmp_path: Path) -> None:
    """[derived] K = 0 must be the row that all others are compared with."""
    trainer = trainer_on(tmp_path, 3, name, domains=domains)
    plain = plain_graph(trainer.data, trainer.data.task_names, trainer.backbone(), trainer.head)
    assert split_graph(trainer.data, trainer.backbone(), [], trainer.head).hash() == plain.hash()


def bare(graph: TaskGraph) -> object:
    """The structure without the origin of parameters."""
    structure: Any = graph.structure()
    nodes = [{key: v for key, v in node.items() if key not in ("origin", "origins")} for node in structure["nodes"]]
    return [nodes, structure["outputs"]]


@pytest.mark.numerical
@pytest.mark.parametrize("name", list(SIZES))
def test_r4_with_all_copies_it_is_single_task_networks(name: str, tmp_path: Path) -> None:
    """[derived] The same structure, and with their weights the same predictions bit for bit."""
    trainer = trainer_on(tmp_path, 2, name)
    backbone = trainer.backbone()
    whole = split_graph(trainer.data, backbone, layers_of(backbone, "layer"), trainer.head)
    singles = [plain_graph(trainer.data, [t], trainer.backbone(), trainer.head) for t in trainer.data.task_names]
    merged = TaskGraph.merged(singles)
    assert bare(whole) == bare(merged)
    counted = size(whole, backbone.n_parameters())
    assert counted.backbone == counted.added == backbone.n_parameters()  # of the first task, of the second
    perturb(merged)
    images = images_of(trainer)
    for task in trainer.data.task_names:
        for mine, theirs in zip(whole.reachable([task]), merged.reachable([task]), strict=True):
            mine.module.load_state_dict(theirs.module.state_dict())
    found, expected = (graph.network().eval()(images, ("a", "b")) for graph in (whole, merged))
    assert all(torch.equal(found[task], expected[task]) for task in expected)


@pytest.mark.numerical
@pytest.mark.parametrize("name", list(SIZES))
def test_r6_equal_copies_give_every_task_the_shared_output(name: str, tmp_path: Path) -> None:
    """[official code] There only the first task receives a shared shortcut; here no task may lack anything."""
    trainer = trainer_on(tmp_path, 3, name)
    backbone = trainer.backbone()
    made = split_graph(trainer.data, backbone, every_other(layers_of(backbone, "layer")), trainer.head)
    plain = plain_graph(trainer.data, trainer.data.task_names, trainer.backbone(), trainer.head)
    images, tasks = images_of(trainer), trainer.data.task_names
    for mode in (True, False):
        found, expected = (graph.network().train(mode)(images, tasks) for graph in (made, plain))
        assert all(torch.equal(found[task], expected[task]) for task in tasks)


@pytest.mark.numerical
def test_r7_a_shared_norm_keeps_statistics_of_each_task(tmp_path: Path) -> None:
    """[default] The released code feeds it T times, and the statistics are right for no task."""
    trainer = trainer_on(tmp_path, 2)
    backbone = trainer.backbone()
    layers = [layer for layer in layers_of(backbone, "layer") if layer.name == "stem.0.0"]
    graph = split_graph(trainer.data, backbone, layers, trainer.head)
    perturb(graph)
    images, alone = images_of(trainer), [copy.deepcopy(graph).subgraph(task) for task in "ab"]
    graph.network().train()(images, ("a", "b"))
    for task, single in zip("ab", alone, strict=True):
        single.network().train()(images, (task,))
        pairs = list(zip(graph.reachable([task]), single.reachable([task]), strict=True))
        statistics = [list(zip(x.module.buffers(), y.module.buffers(), strict=True)) for x, y in pairs]
        assert all(torch.equal(mine, theirs) for node in statistics for mine, theirs in node)
    first, second = (graph.reachable([task])[1].module.bn1 for task in "ab")
    assert first.weight is second.weight
    assert not torch.equal(first.running_mean, second.running_mean)


def test_r8_copies_of_the_stem_s_norm_split_everything(tmp_path: Path) -> None:
    """[derived] 256 parameters more, and three times the compute: the paper counts the former only."""
    data, backbone = tasks_of(3, size=32), resnet18().clone()
    trainer = toy_trainer(tmp_path, data=data, prototype=resnet18())
    layers = [layer for layer in layers_of(backbone, "layer") if layer.name == "stem.1"]
    graph = split_graph(data, backbone, layers, trainer.head)
    plain = plain_graph(data, ["a"], resnet18(), trainer.head)
    found = size(graph, P)
    assert (found.backbone, found.added) == (P, 2 * 128)
    shape = {"image": (1, 3, 32, 32)}
    assert compute(graph, shape).macs_backbone == 3 * compute(plain, shape).macs_backbone


@pytest.mark.parametrize(("n_tasks", "expected"), [(2, 1.015), (3, 1.030)])
def test_c4_the_set_that_the_released_log_gives(n_tasks: int, expected: float, tmp_path: Path) -> None:
    """[derived] 20 norms, the first convolution and four of layer1: 166,464 parameters a further task."""
    backbone = resnet18().clone()
    layers = [
        layer
        for layer in layers_of(backbone, "layer")
        if layer.is_norm or layer.name == "stem.0" or (layer.part in (1, 2) and "conv" in layer.name)
    ]
    assert (len(layers), sum(layer.size for layer in layers)) == (25, 166_464)
    assert sum(layer.size for layer in layers if layer.is_norm) == NORMS
    trainer = trainer_of(tmp_path, n_tasks, size=32)
    graph = split_graph(tasks_of(n_tasks), backbone, layers, trainer.head)
    assert size(graph, P).added == (n_tasks - 1) * 166_464
    assert size(graph, P).x_backbone == pytest.approx(expected, abs=5e-4)


@pytest.mark.parametrize(
    ("name", "domains"), [("test_resnet", "single"), ("test_vit", "single"), ("test_resnet", "multi")]
)
def test_c4_sizes_are_those_that_are_measured(name: str, domains: str, tmp_path: Path) -> None:
    """[derived] P_ref + (T - 1) times the selected layers + heads, and the compute that the control matches."""
    trainer, sizes = sizes_of(tmp_path, 3, name, domains=domains)
    random = np.random.RandomState(0)
    shapes = dict.fromkeys(trainer.data.inputs, (1, 3, *trainer.data.native_size))
    for n in (0, 1, 5, len(sizes.layers)):
        chosen = random.permutation(len(sizes.layers))[:n].tolist()
        backbone = trainer.backbone()
        graph = split_graph(trainer.data, backbone, [sizes.layers[k] for k in chosen], trainer.head)
        measured, macs = size(graph, sizes.reference), compute(graph, shapes)
        assert (measured.backbone, measured.added + measured.backbone) == (sizes.reference, sizes.parameters(chosen))
        assert sizes.size(chosen).parameters == measured.total
        assert sizes.size(chosen).macs == (macs.macs_sum if domains == "multi" else macs.macs_joint)


@pytest.mark.parametrize(("name", "domains"), [("test_resnet", "single"), ("test_vit", "multi")])
def test_c3_sharing_survives_json_and_safetensors(name: str, domains: str, tmp_path: Path) -> None:
    """[default] A weight that came back twice would be counted twice, and train apart."""
    trainer = trainer_on(tmp_path, 3, name, domains=domains)
    backbone = trainer.backbone()
    graph = split_graph(trainer.data, backbone, every_other(layers_of(backbone, "layer")), trainer.head)
    perturb(graph)
    again = TaskGraph.from_json(graph.to_json(), graph.tensors())
    assert (again.hash(), again.weights_hash()) == (graph.hash(), graph.weights_hash())
    for origin in ("backbone", "added", "heads"):
        assert len(again.parameters(origin)) == len(graph.parameters(origin)) > 0
    assert size(again, backbone.n_parameters()) == size(graph, backbone.n_parameters())
    assert not {id(p) for p in again.parameters("backbone")} & {id(p) for p in again.parameters("added")}


# The course


def test_c1_one_task_is_the_single_task_network(tmp_path: Path) -> None:
    """[default] Nothing conflicts, so there is nothing to search."""
    trainer, graph = run(tmp_path / "recon", 1, options={"steps": 4})
    other = trainer_on(tmp_path / "plain", 1, steps=4, cycles=2)
    plain, _ = fit_plain(other, "joint", 4)
    assert (graph.hash(), graph.weights_hash()) == (plain.hash(), plain.weights_hash())
    assert trainer.ledger.search.images == 0


@pytest.mark.numerical
def test_c2_the_order_of_the_tasks_changes_nothing(tmp_path: Path) -> None:
    """[default] The first task's layers are no more the backbone than a later one's: they learn at one rate."""
    found = []
    for order in ("ab", "ba"):
        trainer = toy_trainer(
            tmp_path / order,
            data=tasks_of(2).with_tasks(list(order)),
            prototype=backbone_of("test_resnet", 8),
            recipe={"optimizer": {"head_lr": 0.03}},
            steps=4,
            cycles=2,
        )
        found.append((trainer, Recon(ReconParams(search_fraction=0.5)).run(trainer)))
    (first, one), (second, other) = found
    assert np.array_equal(first.artifacts["conflicts"], second.artifacts["conflicts"])
    assert first.elements == second.elements
    images = images_of(first)
    outputs = [graph.network().eval()(images, ("a", "b")) for graph in (one, other)]
    for task in "ab":
        torch.testing.assert_close(outputs[0][task], outputs[1][task], rtol=1e-3, atol=1e-4)


def test_c5_swin_runs_with_images_of_their_own(tmp_path: Path) -> None:
    """[default] Every other family is run by the conformance tests, this one with the slow ones only."""
    trainer, graph = run(tmp_path, 2, SWIN, top_k=3, options={"domains": "multi", "steps": 2})
    graph.require_deployable()
    assert trainer.facts["layers with copies"]["value"] == 3
    assert trainer.weight_steps(graph) == 2


def test_c6_a_search_that_was_stopped_ends_in_equal_bits(tmp_path: Path) -> None:
    """[default] Counts are buffers: a search that went on without them would rank a part of its steps."""
    options = {"steps": 4, "checkpoint_steps": 2}
    expected = outcome(*run(tmp_path / "one", search_fraction=1.0, options=options))
    killed = trainer_on(tmp_path / "two", cycles=2, **options)
    kill_after(killed, 3)
    with pytest.raises(Killed):
        Recon(ReconParams(search_fraction=1.0)).run(killed)
    assert (tmp_path / "two" / "stage-000.partial.pt").exists()
    trainer, graph = run(tmp_path / "two", search_fraction=1.0, options=options)
    assert outcome(trainer, graph) == expected
    assert trainer.facts["pairs of gradients compared"]["value"] == 4


def test_stages_and_what_they_are_charged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """[paper] A quarter of the budget with T backward passes more; then the whole budget from the initial weights."""
    monkeypatch.setattr(alternation, "MacCounter", MacCounter)
    trainer, graph = run(tmp_path, 2)
    search, final = trainer.ledger.search, trainer.ledger.final
    assert (search.optimizer_steps, final.optimizer_steps, trainer.weight_steps(graph)) == (1, 4, 4)
    plain = trainer_on(tmp_path / "plain", 2, steps=1, cycles=1)
    fit_plain(plain, "joint", 1)
    shapes = {"image": (8, 3, 8, 8)}
    forward = compute(plain_graph(plain.data, ("a", "b"), plain.backbone(), plain.head), shapes).macs_joint
    step = plain.ledger.final.train_macs
    backward, products = step - forward, 2 * 2 * plain.backbone().n_parameters()  # of the gradients of two tasks
    assert search.train_macs == pytest.approx(forward + (2 + 1) * backward + products, rel=0.02)


def test_the_final_training_starts_from_the_initial_weights(tmp_path: Path) -> None:
    """[paper, 4.2] Copies with equal bits; the released code draws each anew."""
    trainer = trainer_on(tmp_path, 2, steps=4, cycles=2, recipe={"optimizer": {"lr": 1e-30, "weight_decay": 0.0}})
    graph = Recon(ReconParams()).run(trainer)
    initial = list(trainer.backbone().module().parameters())
    for task in "ab":
        held = [p for node in graph.reachable([task])[:-1] for p in node.module.parameters()]
        for mine, start in zip(held, initial, strict=True):
            torch.testing.assert_close(mine.detach(), start.detach(), rtol=0, atol=1e-20)  # biases that were 0 moved
    assert len(graph.parameters("added")) > 0


def test_balancing_acts_in_the_final_training_alone(tmp_path: Path) -> None:
    """[paper] The search is plain joint training: else scores would tell what a balancing leaves of the conflicts."""
    found = {}
    for name in ("equal", "pcgrad"):
        recipe = {"balancing": {"name": name}}
        trainer, graph = run(tmp_path / name, severity=0.0, search_fraction=1.0, options={"recipe": recipe, "steps": 3})
        found[name] = (trainer.curves["loss/search/a"], trainer.artifacts["conflicts"].tolist(), graph.weights_hash())
    assert found["equal"][:2] == found["pcgrad"][:2]
    assert found["equal"][2] != found["pcgrad"][2]


def test_scores_are_taken_in_float32_whatever_the_precision(tmp_path: Path) -> None:
    """[default] Gradients of half precision that vanish have cosine 0: no conflicts where there are some."""
    found = []
    for precision in ("fp32", "amp-bf16"):
        trainer = trainer_on(tmp_path / precision, 2, steps=12, cycles=2, recipe={"precision": precision})
        layers = layers_of(trainer.backbone(), "layer")
        counted = count_conflicts(ReconParams(severity=0.0), trainer, layers)
        found.append((counted.n.tolist(), trainer.curves["loss/search/a"]))
    assert found[0] == found[1]


def test_what_was_found_is_told(tmp_path: Path) -> None:
    trainer, graph = run(tmp_path, top_k=5)
    layers = layers_of(trainer.backbone(), "layer")
    selected = np.flatnonzero(trainer.artifacts["selected"]).tolist()
    assert sorted(trainer.elements) == sorted(layers[k].name for k in selected)
    facts = {name: fact["value"] for name, fact in trainer.facts.items()}
    assert facts["layers with copies"] == len(selected) == 5
    assert facts["norms among them"] == 20 * sum(layers[k].is_norm for k in selected)
    assert facts["first part that is split"] == 1 + min(layers[k].part for k in selected)
    assert facts["pairs of gradients compared"] == 1
    rate = trainer.artifacts["rate"]
    assert facts["pairs that conflict"] == pytest.approx(100 * rate.mean())
    assert sorted(rate, reverse=True)[:5] == sorted(rate[selected], reverse=True)
    rates, ranks = trainer.figures["conflicts"].panels
    assert [series.y for series in rates.series] == [
        tuple(rate),
        tuple(chance(-0.02, [layer.size for layer in layers])),
    ]
    assert ranks.series[0].y == tuple(sorted(rate, reverse=True))
    assert {column for _, column in trainer.figures["layers"].panels[0].marks} == set(selected)
    first = graph.reachable(["a"])[int(facts["first part that is split"]) - 1]
    assert first.name not in {node.name for node in graph.reachable(["b"])}


def test_the_picture_marks_the_last_layer_before_the_cut() -> None:
    layers = [Layer(f"l{k}", k, {"weight": 8}, False) for k in range(4)]
    found = Conflicts(np.array([2, 9, 4, 1]), 10, np.full(4, 0.3))
    ranks = scores_figure(layers, found, found.excess, 2, "excess").panels[1]
    assert ranks.series[0].y == pytest.approx((0.6, 0.1, -0.1, -0.2))
    assert ranks.marks == ((2.0, ranks.series[0].y[1], "cut: 2 of 4 layers"),)
    assert scores_figure(layers, found, found.excess, 0, "excess").panels[1].marks == ()


def test_a_search_that_found_nothing_says_so(tmp_path: Path) -> None:
    trainer, _ = run(tmp_path, severity=-0.999)
    assert trainer.flags == ["No gradients conflicted in the search: layers were taken in the order of the network."]
    assert np.flatnonzero(trainer.artifacts["selected"]).tolist() == list(range(18))
    trainer, sizes = sizes_of(tmp_path)
    unlabelled = Conflicts(np.zeros(30, np.int64), 0, np.zeros(30))
    tell_conflicts(ReconParams(), trainer, sizes.layers, unlabelled, 18)
    assert trainer.flags[0].startswith("No batch of the search had labels of two tasks")
    assert trainer.artifacts["rate"].tolist() == [0.0] * 30


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"top_k": 31}, "top_k is 31; backbone 'test_resnet' has 30 layers, so it is 0 to 30, or a share."),
        ({"top_k": 6, "granularity": "block"}, r"has 5 blocks \(with stem and tail\), so it is 0 to 5"),
        ({"budget": 1.00001}, "budget is 1.00001 backbones; with copies of the smallest of the 30 layers"),
    ],
)
def test_what_cannot_be_is_refused_when_it_is_planned(params: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Recon(ReconParams(**params)).check(tasks_of(2), backbone_of("test_resnet"), Budget(8))


def test_the_plan_tells_the_search(tmp_path: Path) -> None:
    backbone, budget = backbone_of("test_resnet"), Budget(100)
    notes = Recon(ReconParams()).check(tasks_of(3), backbone, budget)
    search = "search: 25 steps of joint training with 3 further backward passes each"
    assert list(notes) == ["18 of 30 layers get a copy per task", search]
    assert len(Recon(ReconParams()).check(tasks_of(3, "multi"), backbone, budget)) == 3
    assert len(Recon(ReconParams(select="last")).check(tasks_of(3), backbone, budget)) == 1
    assert "one task" in Recon(ReconParams()).check(tasks_of(1), backbone, budget)[0]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"top_k": 4, "budget": 1.5}, "budget 1.5 takes the place of top_k 4; give one of the two"),
        ({"top_k": 1.0}, "top_k"),
        ({"top_k": -1}, "top_k"),
        ({"severity": 0.1}, "severity"),
        ({"severity": -1.0}, "severity"),
        ({"search_fraction": 0.0}, "search_fraction"),
        ({"budget": 1.0}, "budget"),
    ],
)
def test_parameters_that_cannot_be(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ReconParams(**params)
