"""Methods that end in a tree, trained on toys. Source: branched T20, T22 to T26; branching search T20, T21, T24."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from benchmark.plan.cells import method_params
from datasets.contracts import Batch
from datasets.errors import UsageError
from methods.backbones.backbone import BackboneConfig, create_backbone
from methods.branched import tree_method
from methods.branched.bmtas import Bmtas, BmtasParams
from methods.branched.branched import Branched, BranchedParams
from methods.branched.learning_to_branch import LearningToBranch, LearningToBranchParams
from methods.branched.network import _groups_by_users, fit_tree, initial_copies, tree_graph
from methods.branched.pictures import chosen_names, tree_picture
from methods.branched.random_tree import RandomTree, RandomTreeParams
from methods.branched.schedule import Schedule
from methods.branched.segments import segments_of
from methods.branched.trees import apart, read_tree, together
from methods.contracts import Budget, Method, Role, SingleTask
from methods.graph.cost import compute, size
from methods.graph.task_graph import TaskGraph
from methods.hard_sharing import HardSharing, HardSharingParams
from methods.plain import plain_graph, task_losses
from methods.registry import get_method
from tests.numbers import assert_same
from tests.unit.harness import toy_backbone, toy_spec, toy_trainer
from tests.unit.kills import Killed, kill_after, outcome

SHARED = ((0, 0),) * 4
LATE = (*((0, 0),) * 3, (0, 1))
METHODS = [
    (Branched, BranchedParams),
    (Bmtas, BmtasParams),
    (LearningToBranch, LearningToBranchParams),
    (RandomTree, RandomTreeParams),
]


def graph_of(trainer: object, rows: tuple) -> object:
    segments = segments_of(trainer.backbone(), trainer.data, "stage")
    tree = read_tree(rows, len(trainer.data.tasks), len(segments))
    return tree_graph(trainer, tree, *initial_copies(trainer, segments, tree))


@pytest.mark.numerical
@pytest.mark.parametrize(("method", "params"), METHODS, ids=lambda value: value.__name__)
def test_an_all_shared_tree_is_hard_sharing_bit_for_bit(method: type[Method], params: type, tmp_path: Path) -> None:
    trainer, other = toy_trainer(tmp_path / "tree", steps=4), toy_trainer(tmp_path / "plain", steps=4)
    found = method(params(fixed_tree=SHARED)).run(trainer)
    expected = HardSharing(HardSharingParams()).run(other)
    assert found.hash() == expected.hash()
    assert found.weights_hash() == expected.weights_hash()
    assert trainer.curves["loss/a"] == other.curves["loss/a"]
    assert trainer.ledger.search.optimizer_steps == 0


def test_a_late_split_has_the_counts_of_the_specification(tmp_path: Path) -> None:
    prototype = create_backbone(BackboneConfig("resnet18"), seed=0)
    trainer = toy_trainer(tmp_path, size=224, prototype=prototype)
    graph = graph_of(trainer, LATE)
    measured = size(graph, prototype.n_parameters())
    assert measured.backbone == 19_570_240
    assert measured.x_backbone == pytest.approx(1.7510, abs=5e-5)
    macs = compute(graph, {"image": (1, 3, 224, 224)})
    assert macs.macs_backbone == 2_224_603_136
    calls: list[str] = []
    for node in graph.nodes.values():
        if node.operation.config.get("part") == "block":
            node.module.register_forward_hook(lambda *args, name=node.name: calls.append(name))
    graph.network().eval()({"image": torch.zeros(1, 3, 64, 64)}, graph.tasks)
    assert len(calls) == 2 * (1 + 1 + 1 + 2)  # two blocks a stage; not N D = 8 stages


def test_copies_start_equal_to_the_initial_weights_and_part_in_training(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, steps=2)  # in the first step equal copies still see the same
    graph = graph_of(trainer, LATE)
    last = [node for node in graph.nodes.values() if node.operation.config.get("index") == 3]
    assert len(last) == 2
    expected = trainer.backbone().blocks[3].module.state_dict()
    for node in last:
        assert all(torch.equal(value, expected[name]) for name, value in node.module.state_dict().items())
    assert not {id(p) for p in last[0].module.parameters()} & {id(p) for p in last[1].module.parameters()}
    for task in trainer.data.task_names:
        head = graph.nodes[graph.outputs[task].name].module
        assert torch.equal(head.linear.weight, trainer.head(task).module.linear.weight)
    found = Branched(BranchedParams(fixed_tree=(*((0, 0),) * 2, (0, 1), (0, 1)))).run(trainer)
    one, other = (node for node in found.nodes.values() if node.operation.config.get("index") == 3)
    assert not torch.equal(one.module.bn1.running_mean, other.module.bn1.running_mean)


@pytest.mark.parametrize(("method", "params"), METHODS, ids=lambda value: value.__name__)
def test_chosen_trees_start_from_the_initial_weights_too(
    method: type[Method], params: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T22: whatever was trained before the tree was chosen."""
    monkeypatch.setattr(tree_method, "fit_tree", lambda *args: None)
    trainer = toy_trainer(tmp_path, steps=3)
    graph = method(params()).run(trainer)
    backbone = trainer.backbone()
    initial = {
        key: value for index, block in enumerate(backbone.blocks) for key, value in _state(index, block.module).items()
    }
    n_blocks = 0
    for node in graph.nodes.values():
        if node.operation.config.get("part") == "block":
            found = _state(node.operation.config["index"], node.module)
            assert all(torch.equal(value, initial[key]) for key, value in found.items())
            n_blocks += 1
    assert n_blocks >= len(backbone.blocks)
    for task in trainer.data.task_names:
        head = graph.nodes[graph.outputs[task].name].module
        assert torch.equal(head.linear.weight, trainer.head(task).module.linear.weight)


def _state(index: int, module: nn.Module) -> dict[tuple[int, str], torch.Tensor]:
    return {(index, name): value for name, value in module.state_dict().items()}


@pytest.mark.usefixtures("float64")
def test_shared_parts_get_the_sum_of_weighted_gradients(tmp_path: Path) -> None:
    """T24: of the step that the final training makes. lambda is 1 for a and 1/2 for b."""
    rate = 0.1
    recipe = {
        "optimizer": {"name": "sgd", "lr": rate, "momentum": 0.0, "weight_decay": 0.0},
        "schedule": {"name": "constant", "warmup": 0.0},
        "clip_norm": None,
    }
    trainer = toy_trainer(tmp_path, steps=1, recipe=recipe)
    graph = graph_of(trainer, LATE)
    copy = TaskGraph.from_json(graph.to_json(), graph.tensors())
    batch = next(iter(trainer.context.loaders[Role.FIT_ARCH].training(("a", "b"), 0, 1, "data-order")))
    losses = task_losses(trainer.data, copy.network().train())
    before = [p.requires_grad_() for p in copy.parameters()]
    gradients = {task: torch.autograd.grad(losses(batch, (task,))[task], before, allow_unused=True) for task in "ab"}
    fit_tree(trainer, graph)
    n_shared = 0
    for p, after, a, b in zip(before, graph.parameters(), gradients["a"], gradients["b"], strict=True):
        n_shared += a is not None and b is not None
        total = (0 if a is None else a) + 0.5 * (0 if b is None else b)
        assert_same(p.detach() - after.detach(), rate * total)
    assert 0 < n_shared < len(before)


def test_rates_are_divided_by_the_number_of_tasks_that_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """T24: the all-shared baseline of BMTAS needs the encoder's rate over T."""
    trainer = toy_trainer(tmp_path, steps=1)
    groups = _groups_by_users(graph_of(trainer, LATE))
    assert [(group.name, group.rate_factor) for group in groups] == [("backbone", 1), ("backbone", 0.5), ("heads", 1)]
    assert sum(p.numel() for p in groups[0].parameters) == 2 * 267_840
    assert sum(p.numel() for p in groups[1].parameters) == 372_688 - 267_840
    from benchmark.train.optimizers import StageOptimizers

    optimizer = StageOptimizers(groups, trainer.context.recipe)._optimizers[0]
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.05, 0.025, 0.05])
    scaled, plain = (
        Branched(BranchedParams(fixed_tree=SHARED, lr_share_scaling=rule)).run(toy_trainer(tmp_path / rule, steps=3))
        for rule in ("inverse", "none")
    )
    assert scaled.weights_hash() != plain.weights_hash()


def test_branched_charges_its_networks_and_says_what_it_found(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, steps=4)
    graph = Branched(BranchedParams(n_probe=20, budget=1.8)).run(trainer)
    assert trainer.ledger.search.optimizer_steps == 2 * 4
    assert trainer.ledger.search.forward_passes == 2 * 4 + 2  # and a pass of each network over the probes
    assert trainer.ledger.reused_from == ["key of a", "key of b"]
    assert trainer.search_roles == {Role.FIT_ARCH}
    assert trainer.weight_steps(graph) == 4
    facts = {name: fact["value"] for name, fact in trainer.facts.items()}
    assert facts["probe images"] == 20
    assert facts["budget"] == pytest.approx(1.8, abs=1e-5)
    assert facts["attained"] == facts["encoder size"] <= 1.8
    assert facts["encoder size"] == pytest.approx(size(graph, toy_backbone().n_parameters()).x_backbone)
    assert trainer.artifacts["affinity"].shape == (4, 2, 2)
    assert trainer.artifacts["tree"].shape == (4, 2)
    assert set(trainer.figures) == {"tree", "affinity", "budget"}
    assert [panel.kind for panel in trainer.figures["affinity"].panels] == ["heatmap"] * 4
    (panel,) = trainer.figures["tree"].panels
    assert [name for name, _ in panel.levels] == ["stem", "stage 1", "stage 2", "stage 3", "stage 4", "heads"]
    drawn = sum(branch.parameters for _, branches in panel.levels for branch in branches)
    assert drawn == sum(p.numel() for p in graph.parameters())
    (curve,) = trainer.figures["budget"].panels
    xs, ys = curve.series[0].x, curve.series[0].y
    assert list(xs) == sorted(xs)
    assert list(ys) == sorted(ys, reverse=True)
    assert curve.marks[0][0] == pytest.approx(facts["attained"])


@pytest.mark.parametrize("domains", ["single", "multi"])
def test_networks_that_are_equal_have_affinity_one(
    domains: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T5, T7: every network sees the same images in the same order."""
    trainer = toy_trainer(tmp_path, steps=1, domains=domains)

    def untrained(task: str) -> SingleTask:
        return SingleTask(plain_graph(trainer.data, [task], trainer.backbone(), trainer.head), ())

    monkeypatch.setattr(trainer, "single_task", untrained)
    Branched(BranchedParams(n_probe=20)).run(trainer)
    np.testing.assert_allclose(trainer.artifacts["affinity"], 1, atol=1e-12)
    assert trainer.artifacts["tree"].tolist() == [[0, 0]] * 4


def test_features_are_centred_where_it_is_asked_for(tmp_path: Path) -> None:
    found = []
    for on in (False, True):
        trainer = toy_trainer(tmp_path / str(on), steps=1)
        Branched(BranchedParams(center_images=on, n_probe=10)).run(trainer)
        found.append(trainer.artifacts["affinity"])
    assert found[0].shape == found[1].shape
    assert np.abs(found[0] - found[1]).max() > 1e-3


def test_probes_of_select_and_small_splits_are_said(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, steps=2)
    Branched(BranchedParams(probe_split="select", n_probe=30)).run(trainer)
    assert trainer.facts["probe images"]["value"] == 20
    assert any("20 probe images instead of 30: select" in flag for flag in trainer.flags)
    assert any("images of select" in flag for flag in trainer.flags)


@pytest.mark.parametrize("split", ["fit", "select"])
def test_probes_come_from_the_role_that_was_asked_for(split: str, tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, steps=2, domains="multi")
    asked: list[tuple[Role, int]] = []
    for role, loader in trainer.context.loaders.items():
        original = loader.ordered
        loader.ordered = lambda tasks, n=None, *more, role=role, original=original, **named: (
            asked.append((role, n)) or original(tasks, n, *more, **named)
        )
    Branched(BranchedParams(probe_split=split, n_probe=16)).run(trainer)
    assert asked == [(Role(split), 8)]  # equal parts of both domains
    assert trainer.facts["probe images"]["value"] == 16


def test_probes_that_do_not_divide_by_the_domains_are_not_called_few(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, steps=2, domains="multi")
    Branched(BranchedParams(n_probe=17)).run(trainer)
    assert trainer.facts["probe images"]["value"] == 16
    assert not any("instead of" in flag for flag in trainer.flags)


def test_a_tree_names_what_was_chosen_and_nothing_where_it_was_given(tmp_path: Path) -> None:
    tree = read_tree(((0, 0, 0), (0, 1, 0), (0, 1, 2)), 3, 3)
    assert chosen_names(tree, ("stage 1", "stage 2", "stage 3"), ("left", "right", "edge")) == [
        "stage 1: left+right+edge",
        "stage 2: left+edge",
        "stage 2: right",
        "stage 3: left",
        "stage 3: right",
        "stage 3: edge",
    ]
    for method, params in METHODS:
        trainer = toy_trainer(tmp_path / f"{method.__name__}-found", steps=3)
        method(params()).run(trainer)
        assert len(trainer.elements) == trainer.facts["copies of segments"]["value"]
        given = toy_trainer(tmp_path / f"{method.__name__}-given", steps=1)
        method(params(fixed_tree=LATE)).run(given)
        assert given.elements == []


def test_tasks_that_share_stand_side_by_side_in_the_picture() -> None:
    """A renderer places leaves in their order and a node in the middle of its leaves."""
    rows = ((0, 1, 2, 3, 2), (0, 1, 2, 3, 2), (0, 1, 2, 3, 2), (0, 1, 2, 3, 4))
    spec = toy_spec()
    data = dataclasses.replace(spec, tasks=tuple(dataclasses.replace(spec.tasks[0], name=name) for name in "abcde"))
    segments = segments_of(toy_backbone(), data, "stage")
    (panel,) = tree_picture(read_tree(rows, 5, 4), segments, data.task_names, [1, 2, 3, 4, 5]).panels
    heads = panel.levels[-1][1]
    assert [(head.tasks, head.parent, head.parameters) for head in heads] == [
        (("a",), 0, 1),
        (("b",), 1, 2),
        (("c",), 2, 3),
        (("e",), 4, 5),
        (("d",), 3, 4),
    ]
    leaves = [head.tasks[0] for head in heads]
    for _, nodes in panel.levels:
        for node in nodes:
            places = sorted(leaves.index(task) for task in node.tasks)
            assert places == list(range(places[0], places[-1] + 1))


def test_a_beam_on_few_tasks_reports_its_gap(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, steps=2)
    Branched(BranchedParams(search="beam", budget=1.9)).run(trainer)
    assert trainer.facts["clustering cost above the optimum"]["value"] >= 0
    assert trainer.figures["budget"].panels[0].title == "trees that the beam search kept"


def test_single_task_copies_are_an_ablation_with_their_steps_counted(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, steps=3)
    graph = Branched(BranchedParams(fixed_tree=LATE, branch_init="single_task")).run(trainer)
    assert trainer.weight_steps(graph) == 6
    assert Branched(BranchedParams(branch_init="single_task")).run(toy_trainer(tmp_path / "x", steps=2)).tasks == (
        "a",
        "b",
    )


@pytest.mark.parametrize(
    ("method", "params"), [(Bmtas, BmtasParams), (LearningToBranch, LearningToBranchParams)], ids=["bmtas", "ltb"]
)
def test_searched_copies_are_an_ablation_with_their_steps_counted(
    method: type[Method], params: type, tmp_path: Path
) -> None:
    trainer = toy_trainer(tmp_path, steps=5)
    graph = method(params(branch_init="search")).run(trainer)
    graph.require_deployable()
    assert trainer.weight_steps(graph) == 5 + Schedule.of(5, params()).weight_steps
    fresh = method(params()).run(toy_trainer(tmp_path / "fresh", steps=5))
    assert fresh.hash() == graph.hash()
    assert size(fresh, 1).total == size(graph, 1).total


@pytest.mark.parametrize("domains", ["single", "multi"])
def test_a_search_reads_fit_and_arch_apart_and_resumes_in_either_pass(domains: str, tmp_path: Path) -> None:
    def run(trainer: object) -> dict:
        return outcome(trainer, Bmtas(BmtasParams(n_cycles=3, arch_share=0.5)).run(trainer))

    watched = toy_trainer(tmp_path / "whole", steps=5, domains=domains)
    roles: list[str] = []
    for role, loader in watched.context.loaders.items():
        original = loader.training
        loader.training = lambda *a, role=role, original=original: roles.append(f"{role.value}:{a[3]}") or original(*a)
    expected = run(watched)
    assert set(roles) == {"fit:data-order/weights", "arch:data-order/architecture", "fit+arch:data-order"}
    for stop in (2, 4, 9) if domains == "single" else (4,):
        killed = toy_trainer(tmp_path / f"killed-{stop}", steps=5, domains=domains, checkpoint_steps=1)
        kill_after(killed, stop)
        with pytest.raises(Killed):
            run(killed)
        assert run(toy_trainer(tmp_path / f"killed-{stop}", steps=5, domains=domains)) == expected


def test_a_task_without_labels_does_not_stop_a_search(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, steps=4)
    for loader in trainer.context.loaders.values():
        original = loader.training

        def training(*args: object, original: object = original) -> object:
            for batch in original(*args):
                targets = {**batch.targets}
                if "a" in targets:
                    targets["a"] = torch.full_like(targets["a"], -1)
                yield Batch(batch.images, targets, batch.index)

        loader.training = training
    graph = Bmtas(BmtasParams()).run(trainer)
    assert all(bool(torch.isfinite(p).all()) for p in graph.parameters())
    assert trainer.ledger.search.optimizer_steps == 5  # one weight step, for b, of each batch; and the arch batch


def test_matched_sizes(tmp_path: Path) -> None:
    backbone = toy_backbone()
    reference = backbone.n_parameters()
    for budget in (1.0, 1.8, 2.0):
        graph = RandomTree(RandomTreeParams(budget=budget, at_least=0.95 * budget if budget > 1.06 else 1.0)).run(
            toy_trainer(tmp_path / f"{budget}", steps=1)
        )
        assert (
            0.95 * budget * reference <= sum(p.numel() for p in graph.parameters("backbone")) <= budget * reference + 1
        )
    assert RandomTree.is_random_architecture
    with pytest.raises(UsageError, match=r"No tree has a size .* lower at_least"):
        RandomTree(RandomTreeParams(budget=1.5, at_least=1.45)).check(toy_spec(), backbone, Budget(10))


def test_plans_say_what_a_copy_costs_and_refuse_what_cannot_run() -> None:
    spec, backbone = toy_spec(), toy_backbone()
    one = spec.with_tasks(["a"])
    for method, params in METHODS:
        with pytest.raises(UsageError, match="at least two tasks"):
            method(params()).check(one, backbone, Budget(10))
        with pytest.raises(UsageError, match="expected one row for each of 4 segments"):
            method(params(fixed_tree=((0, 0),))).check(spec, backbone, Budget(10))
    (note,) = Branched(BranchedParams()).check(spec, backbone, Budget(10))
    assert note.startswith("budget 670,838 params = 1.800 x the plain backbone")
    assert "stage 4 +0.719" in note
    notes = RandomTree(RandomTreeParams()).check(spec, backbone, Budget(10))
    assert notes[1] == "one of 2 trees is drawn"
    notes = Bmtas(BmtasParams()).check(spec, backbone, Budget(100))
    assert notes[:2] == [
        "search of 97 weight and 23 architecture batches in 20 cycles, 1 of them warm-up",
        "4 copy passes per layer and batch",
    ]
    assert notes[2] == "4 of 4 layers end in a batch norm, without scale and shift in the search"
    many = dataclasses.replace(spec, tasks=tuple(dataclasses.replace(spec.tasks[0], name=f"t{n}") for n in range(9)))
    with pytest.raises(UsageError, match="up to 8 tasks, not 9"):
        Branched(BranchedParams(search="exhaustive")).check(many, backbone, Budget(10))
    with pytest.raises(UsageError, match=r"up to 8 tasks, .* has 9\. Ask for fewer"):
        RandomTree(RandomTreeParams()).check(many, backbone, Budget(10))
    with pytest.raises(UsageError, match="up to 7 tasks, not 9"):
        Bmtas(BmtasParams()).check(many, backbone, Budget(10))
    with pytest.raises(UsageError, match="up to 6 nodes, not 9"):
        LearningToBranch(LearningToBranchParams(budget=8.0)).check(many, backbone, Budget(10))
    tokens = create_backbone(BackboneConfig("test_vit", image_size=(32, 32)), seed=0)
    with pytest.raises(UsageError, match="one image size only"):
        Bmtas(BmtasParams(search_scale=0.5)).check(toy_spec(size=32), tokens, Budget(10))


def test_parameters_are_validated() -> None:
    with pytest.raises(ValidationError, match="expected start >= end"):
        BmtasParams(tau_start=0.05)
    with pytest.raises(UsageError, match="granularty"):
        method_params(get_method("branched"), "branched", {"granularty": "block"})
    with pytest.raises(UsageError, match=r"Parameter branched\.budget"):
        method_params(get_method("branched"), "branched", {"budget": 0.5})
    with pytest.raises(UsageError, match=r"valid number .*For a row of each value: sweep: \{budget: \[\.\.\.\]\}"):
        method_params(get_method("branched"), "branched", {"budget": [1.0, 1.5]})
    with pytest.raises(UsageError, match=r"branched\.n_probe: .*\(given: 'x'\)\.$"):
        method_params(get_method("branched"), "branched", {"n_probe": "x"})
    assert isinstance(BranchedParams(budget=2).budget, int)
    assert isinstance(BranchedParams(budget=2.0).budget, float)
    assert BranchedParams(variant="third_party_b").semantics == "next_segment"
    assert BranchedParams(variant="third_party_b", location_semantics="own_segment").semantics == "own_segment"


@pytest.mark.parametrize(("method", "params"), METHODS, ids=lambda value: value.__name__)
def test_transformers_branch_with_their_tail(method: type[Method], params: type, tmp_path: Path) -> None:
    prototype = create_backbone(BackboneConfig("test_vit", image_size=(32, 32)), seed=0)
    trainer = toy_trainer(tmp_path, size=32, steps=2, prototype=prototype)
    settings = {"fixed_tree": None} if method is not Branched else {"n_probe": 10, "budget": 2.0}
    graph = method(params(**settings)).run(trainer)
    graph.require_deployable()
    n_blocks = len(prototype.blocks)
    split = method(params(fixed_tree=(*((0, 0),) * (len(trainer.artifacts["tree"]) - 1), (0, 1)))).run(
        toy_trainer(tmp_path / "split", size=32, steps=1, prototype=prototype)
    )
    tails = [node for node in split.nodes.values() if node.operation.config.get("part") == "tail"]
    assert len(tails) == (0 if type(prototype.tail) is nn.Identity else 2)
    assert n_blocks >= len(trainer.artifacts["tree"])


def test_together_and_apart() -> None:
    assert together(3) == ((0, 1, 2),)
    assert apart(3) == ((0,), (1,), (2,))
