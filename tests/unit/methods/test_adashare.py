"""AdaShare as a method: deployment and its size, stages and draws, the random control, plans and official presets.

T names a trap of adashare.md 7.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import methods.adashare.retraining
from benchmark.api.catalog import describe
from benchmark.plan.cells import plan
from benchmark.plan.remarks import notes_of
from benchmark.plan.suite import Suite
from benchmark.plan.suite_file import find_suite, read_suite
from benchmark.records.store import Store
from benchmark.train.cell import RunSettings, run_cell
from benchmark.train.trainer import CellTrainer
from datasets.contracts import TaskSpec
from datasets.errors import UsageError
from methods.adashare.deployment import PolicySpace, deploy
from methods.adashare.judging import gain
from methods.adashare.method import UNITS, AdaShare
from methods.adashare.network import SearchNetwork, task_backbones
from methods.adashare.parameters import AdaShareParams
from methods.adashare.pictures import agreement, course_figure, policy_figure, similarity
from methods.adashare.policy import Policy
from methods.adashare.presets import PRESETS
from methods.adashare.schedule import schedule, temperature
from methods.backbones.backbone import Backbone, BackboneConfig, count_units, create_backbone
from methods.backbones.heads import create_head
from methods.contracts import Budget, Role, Score, Stage
from methods.control import ArchitectureSize, random_architecture
from methods.graph.cost import compute, size
from methods.graph.operations import Operation
from methods.graph.task_graph import TaskGraph
from methods.streams import generator
from tests.unit.harness import toy_spec, toy_trainer
from tests.unit.kills import Killed, kill_after, outcome

R18 = BackboneConfig("resnet18", image_size=(224, 224))


def method(**values: Any) -> AdaShare:
    return AdaShare(AdaShareParams(**values))


def executed(*skipped: Sequence[int], n_units: int = 8) -> Policy:
    """A row per task: all units but these (1-based)."""
    return tuple(tuple(unit not in row for unit in range(1, n_units + 1)) for row in skipped)


def deployed(
    policy: Policy, config: BackboneConfig, rule: str = "shared", domains: str = "single"
) -> tuple[TaskGraph, Backbone]:
    backbone = create_backbone(config, seed=0)
    data = dataclasses.replace(toy_spec(domains), native_size=config.image_size)
    head = lambda task: create_head(data.task(task), backbone, 0)  # noqa: E731
    return deploy(data, policy, task_backbones(backbone, len(policy), rule), head), backbone


# Deployment


@pytest.mark.parametrize(
    ("name", "skipped", "rule", "expected"),
    [
        ("resnet18", ([8], [8]), "shared", 6_455_872),
        ("resnet18", ([7], [7]), "shared", 7_635_520),  # the projection stays
        ("resnet18", (range(1, 9),) * 2, "shared", 183_360),
        ("resnet34", (range(1, 17),) * 2, "shared", 183_360),
        ("resnet50", (range(1, 17),) * 2, "shared", 2_786_112),
        ("resnet18", ([], []), "per_task", 11_186_112),
        ("resnet18", ([8], [7]), "shared", 11_176_512),  # each is executed by somebody
    ],
)
def test_units_that_nobody_executes_are_not_there(name: str, skipped: Any, rule: str, expected: int) -> None:
    """T23, in stem, blocks and tail."""
    n_units = {"resnet18": 8}.get(name, 16)
    graph, backbone = deployed(executed(*skipped, n_units=n_units), BackboneConfig(name), rule)
    graph.require_deployable()
    found = size(graph, backbone.n_parameters())
    assert found.backbone + found.added == expected
    assert found.x_backbone == expected / backbone.n_parameters()
    assert found.added == (9_600 if rule == "per_task" else 0)


@pytest.mark.parametrize(
    ("skipped", "joint", "total"),
    [
        ([], 1_813_561_344, 3_627_122_688),
        ([5], 2_455_814_144, 3_453_714_432),
        ([1], 3_277_897_728, 3_395_911_680),
        ([8], 1_813_561_344, 3_395_911_680),
        (list(range(1, 9)), None, 1_813_561_344 + 137_281_536),
    ],
)
def test_compute_is_shared_until_decisions_differ(skipped: list[int], joint: int | None, total: int) -> None:
    """T24: multiply-accumulates of stem and blocks; weights are shared later on too, activations are not."""
    policy = executed([], skipped)
    graph, _ = deployed(policy, R18)
    found = compute(graph, {"image": (1, 3, 224, 224)})
    heads = found.macs_heads
    assert found.macs_sum - heads == total
    if joint is not None:
        assert found.macs_joint is not None
        assert found.macs_joint - heads == joint


def test_statistics_belong_to_nodes() -> None:
    """T20: unit 6 of one task only has one node and one set of statistics; equal prefixes stay one node."""
    graph, _ = deployed(executed([], [6]), BackboneConfig("resnet18"))

    def nodes(part: str, index: int) -> list[Any]:
        wanted = {"part": part, "index": index}
        return [node for node in graph.nodes.values() if wanted.items() <= dict(node.operation.config).items()]

    users = graph.users()
    assert [users[node.name] for node in nodes("execute", 5)] == [("a",)]
    assert [users[node.name] for node in nodes("execute", 4)] == [("a", "b")]
    seventh = nodes("execute", 6)
    assert [users[node.name] for node in seventh] == [("a",), ("b",)]
    mine, yours = (dict(node.module.named_buffers())["bn1.running_mean"] for node in seventh)
    assert mine is not yours
    weights = [dict(node.module.named_parameters())["conv1.weight"] for node in seventh]
    assert weights[0] is weights[1]


def test_own_norms_are_added_parameters_and_nothing_merges() -> None:
    policy = executed([3], [8])
    graph, backbone = deployed(policy, R18, "per_task")
    found = size(graph, backbone.n_parameters())
    norms = {1: 256, 2: 256, 3: 512, 4: 512, 5: 1024, 6: 1024, 7: 2048, 8: 2048}
    stem, projections = 128, 256 + 512 + 1024
    both = [unit for unit in norms if unit not in (3, 8)]
    assert found.backbone == 11_176_512
    assert found.added == stem + projections + sum(norms[unit] for unit in both)
    cost = compute(graph, {"image": (1, 3, 224, 224)})
    assert cost.macs_joint == cost.macs_sum
    again = TaskGraph.from_json(graph.to_json(), graph.tensors())
    assert again.weights_hash() == graph.weights_hash()


def test_multi_domain_data_share_weights_only() -> None:
    """T28: no joint compute there."""
    graph, _ = deployed(executed([], []), R18, domains="multi")
    found = compute(graph, {"a": (1, 3, 224, 224), "b": (1, 3, 224, 224)})
    assert found.macs_joint is None
    assert found.macs_sum - found.macs_heads == 2 * 1_813_561_344


BACKBONES = {
    name: create_backbone(BackboneConfig(name, image_size=(32, 32)), seed=0)
    for name in ("test_resnet", "test_vit", "mobilenetv3_small_050")
}


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from(sorted(BACKBONES)),
    st.sampled_from(["shared", "per_task"]),
    st.sampled_from(["single", "multi"]),
    st.integers(0, 10_000),
)
def test_sizes_without_a_network_equal_those_of_the_network(name: str, rule: str, domains: str, seed: int) -> None:
    backbone = BACKBONES[name]
    spec = dataclasses.replace(toy_spec(domains), native_size=(32, 32))
    spec = dataclasses.replace(spec, tasks=(*spec.tasks, TaskSpec("c", "class", 3, ("accuracy",))))

    def head(task: str) -> Operation:
        return create_head(spec.task(task), backbone, 0)

    space = PolicySpace(spec, backbone, head, rule)
    policy = space.draw(generator(seed, "x"))
    graph = deploy(spec, policy, task_backbones(backbone.clone(), 3, rule), head)
    graph.require_deployable()
    cost = compute(graph, dict.fromkeys(spec.inputs, (1, 3, 32, 32)))
    macs = cost.macs_joint if cost.macs_joint is not None else cost.macs_sum
    assert space.size(policy) == ArchitectureSize(size(graph, 1).total, macs)


def test_random_policies_come_near_every_size() -> None:
    spec = dataclasses.replace(toy_spec(), native_size=(32, 32))
    backbone = create_backbone(BackboneConfig("resnet34", image_size=(32, 32)), seed=0)
    space = PolicySpace(spec, backbone, lambda task: create_head(spec.task(task), backbone, 0), "shared", first_free=2)
    drawn = [space.draw(generator(seed, "x")) for seed in range(50)]
    assert all(row[:2] == (True, True) for policy in drawn for row in policy)
    rates = [sum(map(sum, policy)) / 32 for policy in drawn]
    assert min(rates) < 0.3
    assert max(rates) > 0.9
    for policy in (executed([], [], n_units=16), executed(range(3, 17), range(3, 17), n_units=16), drawn[0], drawn[1]):
        found = random_architecture(space, space.size(policy), generator(0, "control"), n_draws=400)
        assert found.deviation < 0.05


# The method


@pytest.mark.parametrize("rule", ["shared", "per_task_stats", "per_task"])
@pytest.mark.parametrize("domains", ["single", "multi"])
def test_a_search_ends_in_a_network_with_the_drawn_policy(rule: str, domains: str, tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, domains=domains)
    graph = method(batch_norm=rule).run(trainer)
    policy = tuple(map(tuple, trainer.artifacts["policies"][0].tolist()))
    facts = {name: fact["value"] for name, fact in trainer.facts.items()}
    for k, task in enumerate(("a", "b")):
        nodes = [node for node in graph.reachable([task]) if node.operation.config.get("part") == "execute"]
        assert sorted(node.operation.config["index"] for node in nodes) == [i for i in range(4) if policy[k][i]]
        assert facts[f"units executed, {task}"] == sum(policy[k])
    assert facts["units that no task executes"] == sum(not (x or y) for x, y in zip(*policy, strict=True))
    executed = [f"{task}: block {i}" for k, task in enumerate(("a", "b")) for i in range(4) if policy[k][i]]
    assert trainer.elements == executed
    assert trainer.artifacts["probabilities"].shape == (2, 4)
    assert trainer.artifacts["course"].shape == (5, 2, 4)
    assert set(trainer.figures) == {"policy", "policy-course"}
    marks = trainer.figures["policy"].panels[0].marks
    assert set(marks) == {(k, unit) for k, row in enumerate(policy) for unit, runs in enumerate(row) if runs}


def test_steps_roles_and_cost_of_every_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """T25 and section 3: warm-up .2, search .8 of which policies .2, final 1; report is never asked for."""
    stages: list[Stage] = []
    original = CellTrainer._train
    monkeypatch.setattr(
        CellTrainer, "_train", lambda self, given, cycles: stages.extend(given) or original(self, given, cycles)
    )
    evaluated: list[Role] = []
    measure = CellTrainer._measure
    monkeypatch.setattr(CellTrainer, "_measure", lambda self, *args: evaluated.append(args[1]) or measure(self, *args))
    trainer = toy_trainer(tmp_path, steps=50)
    method().run(trainer)
    assert [(s.name, s.steps, s.role, s.purpose) for s in stages] == [
        ("warm-up", 10, Role.FIT_ARCH, "search"),
        ("weights", 32, Role.FIT, "search"),
        ("policy", 8, Role.ARCH, "search"),
        ("retrain", 50, Role.FIT_ARCH, "final"),
    ]
    assert set(evaluated) == {Role.SELECT}
    assert trainer.ledger.search.optimizer_steps == 50
    assert trainer.ledger.search.forward_passes == 10 + 2 * 40  # K backbone passes a step of the search
    assert trainer.ledger.final.optimizer_steps == 50
    loaders = trainer.context.loaders
    ids = {role: set(loaders[role].inputs["image"].samples.ids) for role in loaders}
    assert not ids[Role.FIT] & ids[Role.ARCH]
    assert ids[Role.FIT_ARCH] == ids[Role.FIT] | ids[Role.ARCH]


@pytest.mark.parametrize("init", ["initial", "search"])
def test_retraining_starts_from_the_initial_weights(init: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """T22."""
    started: list[dict[str, torch.Tensor]] = []
    original = methods.adashare.retraining.fit_graph

    def watched(trainer: Any, name: str, graph: TaskGraph, steps: int) -> Any:
        started.append({name: value.clone() for name, value in graph.tensors().items()})
        return original(trainer, name, graph, steps)

    monkeypatch.setattr(methods.adashare.retraining, "fit_graph", watched)
    trainer = toy_trainer(tmp_path, steps=20)
    graph = method(retrain_init=init).run(trainer)
    policy = tuple(map(tuple, trainer.artifacts["policies"][0].tolist()))
    expected = deploy(trainer.data, policy, [trainer.backbone()] * 2, trainer.head)
    fresh = {name: value for name, value in expected.tensors().items() if "running" not in name and "num_b" not in name}
    assert fresh
    same = [torch.equal(started[0][name], value) for name, value in fresh.items()]
    assert all(same) if init == "initial" else not any(same)
    assert trainer.weight_steps(graph) == (20 if init == "initial" else 4 + 13 + 20)
    if init == "search":  # statistics follow the policy before the first step
        moved = [name for name, value in started[0].items() if name.endswith("num_batches_tracked") and int(value)]
        assert moved


@pytest.mark.parametrize("domains", ["single", "multi"])
def test_a_run_killed_anywhere_ends_with_the_same_bits(domains: str, tmp_path: Path) -> None:
    """T25: buffers of the search (best policy, course), streams and what was told come back."""
    options: dict[str, Any] = {"domains": domains, "steps": 10}

    def told(trainer: CellTrainer) -> object:
        return trainer.facts, trainer.elements, trainer.figures, trainer.flags

    straight = toy_trainer(tmp_path / "straight", **options)
    expected = outcome(straight, method().run(straight))
    points = random.Random(domains)
    for _ in range(4):
        trainer = toy_trainer(tmp_path / "killed", checkpoint_steps=points.choice([1, 2, 3]), **options)
        kill_after(trainer, points.randint(1, 9))
        try:
            graph = method().run(trainer)
        except Killed:
            continue
        break
    else:
        trainer = toy_trainer(tmp_path / "killed", checkpoint_steps=2, **options)
        graph = method().run(trainer)
    assert outcome(trainer, graph) == expected
    assert told(trainer) == told(straight)


def test_the_best_cycle_on_select_is_drawn_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Judged from half of the cycles on; the logits of the best one are kept, whatever the search does after it."""
    accuracies = iter([0.5, 0.7, 0.6])
    seen: list[torch.Tensor] = []

    def evaluate(self: CellTrainer, network: SearchNetwork, role: Role, tasks: Any = None) -> Any:
        assert role is Role.SELECT
        seen.append(network.policies.logits.detach().clone())
        score = Score(next(accuracies), "percent", True, 20)
        return {task: {"accuracy": score} for task in ("a", "b")}

    monkeypatch.setattr(CellTrainer, "evaluate", evaluate)
    trainer = toy_trainer(tmp_path, steps=40)
    method().run(trainer)
    assert trainer.facts["cycle of the policy"]["value"] == 3
    assert trainer.curves["search/score on select"] == pytest.approx([0, 0.4, 0.2])
    expected = torch.softmax(seen[1], -1)[..., 0]
    assert torch.equal(torch.from_numpy(trainer.artifacts["probabilities"]), expected)
    assert not torch.equal(seen[1], seen[2])


def test_gain_on_the_first_policy_judged() -> None:
    spec = toy_spec()
    tasks = (
        TaskSpec("a", "depth", 1, ("delta_1_25", "abs_err")),
        TaskSpec("b", "class", 2, ("accuracy", "balanced_accuracy")),
    )
    data = dataclasses.replace(spec, tasks=tasks)

    def metrics(*values: float | None) -> Any:
        scores = [Score(value, "", higher, 1) for value, higher in zip(values, (True, False, True, True), strict=True)]
        return {
            "a": {"delta_1_25": scores[0], "abs_err": scores[1]},
            "b": {"accuracy": scores[2], "balanced_accuracy": scores[3]},
        }

    # a: +50 % and 10 % lower where lower is better; b: -20 %, and a metric that was 0 is left out.
    assert gain(metrics(0.6, 0.9, 0.4, 1.0), [0.4, 1.0, 0.5, 0.0], data) == pytest.approx(((0.5 + 0.1) / 2 - 0.2) / 2)
    assert gain(metrics(0.6, None, None, 1.0), [0.4, 1.0, 0.5, 0.0], data) == pytest.approx(0.5 / 2)


# Extremes


def zero_weights() -> Any:
    spec = toy_spec()
    return dataclasses.replace(spec, tasks=tuple(dataclasses.replace(task, weight=0.0) for task in spec.tasks))


def test_without_any_signal_every_probability_stays_one_half(tmp_path: Path) -> None:
    """T29a."""
    trainer = toy_trainer(tmp_path, steps=10, data=zero_weights())
    method(sparsity_weight=0, sharing_weight=0).run(trainer)
    assert (trainer.artifacts["probabilities"] == 0.5).all()
    assert (trainer.artifacts["course"] == 0.5).all()
    assert trainer.search_moved == {"execute probabilities": {"largest": 0.0, "mean": 0.0}}


def test_sparsity_alone_prunes_every_unit(tmp_path: Path) -> None:
    """T29b: ResNet-18 without a residual branch, projections kept; 183,360 of 11,176,512 parameters."""
    prototype = create_backbone(BackboneConfig("resnet18", image_size=(8, 8)), seed=0)
    trainer = toy_trainer(tmp_path, steps=6, prototype=prototype)
    graph = method(sparsity_weight=100, policy_draw="argmax", search_ratio=2.0, best_after_cycles=4).run(trainer)
    assert not trainer.artifacts["policies"].any()
    found = size(graph, prototype.n_parameters())
    assert found.backbone == 183_360
    assert trainer.facts["units that no task executes"]["value"] == 8


def test_sharing_alone_makes_one_network(tmp_path: Path) -> None:
    """T29c: equal policies of all tasks are one path: joint compute is one task's."""
    policy = executed([2, 5, 6], [2, 5, 6])
    graph, _ = deployed(policy, R18)
    found = compute(graph, {"image": (1, 3, 224, 224)})
    bodies = {found.macs_task[task] - head for task, head in zip(("a", "b"), (512 * 4, 512 * 2), strict=True)}
    assert {found.macs_joint - found.macs_heads} == bodies


# Draws and control


def test_several_draws_are_trained_and_the_best_on_select_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2.9: k networks of k policies from the initial weights; the record holds every policy and score."""
    published = {"preset": "cityscapes_2task", "warmup_steps": 2, "search_steps": 22, "retrain_steps": 4}
    published |= {"w_steps": 4, "a_steps": 1}
    made = method(recipe="published", published=published, n_policies=3, curriculum=False)
    assert (made.draws, made.recipe, made.final_batch_norm) == (3, "published", "shared")
    assert method(batch_norm="shared").final_batch_norm == "per_sub_expression"
    trainer = toy_trainer(tmp_path, steps=4)
    graph = made.run(trainer)
    policies, scores = trainer.artifacts["policies"], trainer.artifacts["policy_scores"]
    assert policies.shape == (3, 2, 4)
    assert scores.shape == (3,)
    assert scores[0] == 0
    assert len({policy.tobytes() for policy in policies}) > 1
    kept = tuple(map(tuple, policies[int(scores.argmax())].tolist()))
    nodes = {
        node.operation.config["index"]
        for node in graph.reachable(["a"])
        if node.operation.config.get("part") == "execute"
    }
    assert nodes == {unit for unit in range(4) if kept[0][unit]}
    assert {name for name in trainer.elements if name.startswith("a: ")} == {f"a: block {unit}" for unit in nodes}
    assert trainer.ledger.final.optimizer_steps == 3 * 4  # all are charged
    assert trainer.facts["score of the draws on select, best"]["value"] == scores.max()
    # One set of statistics, moved by every task, starts every node of a shared operation.
    repeated: dict[Any, list[Any]] = {}
    for node in graph.nodes.values():
        if node.operation.config.get("part") == "execute":
            repeated.setdefault(node.operation.config["index"], []).append(node.module.bn1.running_mean)
    assert all(torch.equal(values[0], value) for values in repeated.values() for value in values)


def test_the_control_has_the_size_that_the_same_search_finds(tmp_path: Path) -> None:
    searched = toy_trainer(tmp_path / "searched", steps=20)
    found = method().run(searched)
    control = method(random_policy=True)
    assert control.is_random_architecture
    assert not method().is_random_architecture
    trainer = toy_trainer(tmp_path / "control", steps=20)
    drawn = control.run(trainer)
    sizes = [size(graph, 1).total for graph in (found, drawn)]
    macs = [compute(graph, {"image": (1, 3, 8, 8)}).macs_joint for graph in (found, drawn)]
    deviation = max(abs(sizes[1] / sizes[0] - 1), abs(macs[1] / macs[0] - 1))
    assert 100 * deviation == pytest.approx(trainer.facts["deviation from the size asked for"]["value"])
    assert deviation < 0.05
    assert (trainer.artifacts["probabilities"] == searched.artifacts["probabilities"]).all()
    assert trainer.weight_steps(drawn) == searched.weight_steps(found) == 20


def test_a_control_of_a_given_size_needs_no_search(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, steps=6)
    whole, _ = deployed(executed([], [], n_units=4), BackboneConfig("test_resnet", image_size=(8, 8)))
    target = (size(whole, 1).total, compute(whole, {"image": (1, 3, 8, 8)}).macs_joint)
    graph = method(random_policy=True, random_size=target).run(trainer)
    assert trainer.ledger.search.optimizer_steps == 0
    assert trainer.artifacts["policies"].all()
    assert size(graph, 1).total == target[0]
    assert set(trainer.figures) == {"policy"}
    far = toy_trainer(tmp_path / "far", steps=2)
    method(random_policy=True, random_size=(10, 10)).run(far)
    assert "from the size that it should have" in far.flags[0]


# Plans, presets and what is said


def test_presets_give_the_cycles_of_the_official_code() -> None:
    """Section 3: derived values, at 795 and 2,975 training images."""
    expected = {
        "nyu_v2_2task": (795, 8, 48, 333, 3.5e-5, 24),
        "nyu_v2_3task": (795, 16, 48, 333, 3.5e-5, 48),
        "cityscapes_2task": (2975, 16, 185, 86, 0.234, 48),
        "taskonomy_5task": (1000, 16, 500, 160, 0.0167, 16),
        "domainnet": (1000, 16, 500, 32, 1.60, 16),
    }
    assert set(expected) == set(PRESETS)
    for name, (n_images, n_units, cycle, n_cycles, tau, best_after) in expected.items():
        params = AdaShareParams(recipe="published", published={"preset": name})
        data = dataclasses.replace(toy_spec(), splits={"train": n_images, "val": 1, "test": 1})
        made = schedule(params, data, Budget(7), n_units)
        assert made.n_cycles == n_cycles
        assert made.weight_steps + made.arch_steps == cycle * n_cycles
        assert made.best_after == best_after
        assert temperature(n_cycles, n_cycles, params) == pytest.approx(tau, rel=0.01)
        assert (made.warmup_steps, made.final_steps) == (PRESETS[name].warmup_steps, PRESETS[name].retrain_steps)
        assert max(made.looks) == n_cycles
        assert len(made.looks) == 5


def suite(**changes: Any) -> Suite:
    document: dict[str, Any] = {
        "name": "tiny",
        "data": [{"dataset": "multi_mnist", "tasks": ["left", "right"]}],
        "backbones": ["test_resnet"],
        "methods": ["adashare"],
        "seeds": [0],
        "budget": {"steps": 6, "cycles": 3},
        "recipe": {"batch_size": 16},
    }
    return Suite.model_validate({**document, **changes})


def test_a_plan_says_how_many_units_a_backbone_has() -> None:
    """T30."""
    notes = notes_of(plan(suite(backbones=["test_resnet", "mobilenetv3_small_050"])))
    assert [note.split(": ")[1] for note in notes] == [
        "4 of 4 blocks are units that a task can skip",
        "7 of 12 blocks are units that a task can skip",
    ]
    with pytest.raises(UsageError, match="'test_efficientnet' has no block that can be skipped"):
        plan(suite(backbones=["test_efficientnet"]))


def with_params(**values: Any) -> list[dict[str, Any]]:
    return [{"name": "adashare", "params": values}]


def test_plans_that_cannot_be_carried_out_are_refused() -> None:
    """T27, and presets on other data."""
    with pytest.raises(UsageError, match="16 units at curriculum_speed 3 need 46 cycles, the search has 20"):
        plan(suite(backbones=["resnet34"], methods=with_params(curriculum_speed=3), budget={"steps": 60}))
    plan(suite(backbones=["resnet34"], methods=with_params(curriculum_speed=3), budget={"steps": 60, "cycles": 46}))
    with pytest.raises(UsageError, match="first_free_unit is 5; 'test_resnet' has 4 units"):
        plan(suite(methods=with_params(first_free_unit=5)))
    with pytest.raises(UsageError, match=r"tasks \(channels\) semseg 19, depth 1"):
        plan(suite(methods=with_params(recipe="published", published={"preset": "cityscapes_2task"})))
    with pytest.raises(UsageError, match="one final network"):
        plan(suite(methods=with_params(n_policies=8)))
    data = dataclasses.replace(
        toy_spec(), tasks=(TaskSpec("semseg", "semantic", 19, ("miou",)), TaskSpec("depth", "depth", 1, ("abs_err",)))
    )
    backbone = BACKBONES["test_resnet"]
    official = method(recipe="published", published={"preset": "cityscapes_2task", "w_steps": 10, "a_steps": 5})
    with pytest.raises(UsageError, match=r"weighs tasks semseg 1, depth 20; the cell has semseg 1, depth 1"):
        official.check(data, backbone, Budget(10))
    notes = official.check(data.with_weights({"depth": 20.0}), backbone, Budget(10))
    assert "resnet34 (from scratch) at output stride 8, batches of 16, crops of 224" in notes[1]


@pytest.mark.parametrize(
    ("name", "units", "blocks"),
    [
        *(("resnet18", 8, 8), ("resnet34", 16, 16), ("resnet50", 16, 16), ("efficientnet_b0", 9, 16)),
        *(("efficientnet_lite0", 9, 16), ("mobilenetv2_100", 10, 17), ("mobilenetv3_small_100", 6, 12)),
        *(("mobilenetv3_large_100", 10, 16), ("test_efficientnet", 0, 5), ("test_vit", 6, 6)),
    ],
)
def test_units_of_other_families(name: str, units: int, blocks: int) -> None:
    """T30, 2.2."""
    assert count_units(name) == (units, blocks)


@pytest.mark.parametrize("name", UNITS)
def test_units_that_are_listed_are_those_of_the_models(name: str) -> None:
    assert UNITS[name] == count_units(name)


def test_list_says_units_and_what_is_done_where_paper_and_code_differ() -> None:
    text = " ".join(describe("adashare").split())
    assert "resnet18 8 of 8" in text
    assert "efficientnet_b0 9 of 16" in text
    for part in (
        "variant: official",
        "variant: paper",
        "best of 8",
        "We choose on select",
        "80 %",
        "18 x speed",
        "pruned",
    ):
        assert part in text


def test_shipped_suites_hold_the_method() -> None:
    assert "adashare" in [entry.name for entry in read_suite(find_suite("quick")).methods]
    standard = read_suite(find_suite("standard")).methods
    assert [entry.params for entry in standard if entry.name == "adashare"] == [{}, {"random_policy": True}]


@pytest.mark.usefixtures("toy_data")
def test_a_record_holds_policies_course_pictures_and_facts(tmp_path: Path) -> None:
    (cell,) = plan(suite(data=["toy"], methods=with_params(recipe="suite")))
    record = run_cell(cell, RunSettings(tmp_path))
    assert record.status == "done", record.error
    assert {"policies", "policy_scores", "probabilities", "course", "figure-policy", "figure-policy-course"} <= set(
        record.artifacts
    )
    assert record.audit["draws"] == 1
    assert record.audit["recipe"] == "suite"
    assert record.audit["facts"]["units executed, left"]["unit"] == "of 4"
    assert b"P(execute)" in Store(tmp_path).read_artifact(record.artifacts["figure-policy"])


# Pictures


def test_similarity_and_agreement_by_hand() -> None:
    alpha = torch.tensor([[1.0, 0.0, 0.5, 0.5], [1.0, 1.0, 0.5, 0.0]])
    assert similarity(alpha).tolist() == [[1.0, 0.625], [0.625, 1.0]]
    assert agreement(((True, False), (True, True), (False, True))) == pytest.approx((0.5 + 0 + 0.5) / 3)
    assert agreement(((True, False),)) == 1.0


def test_the_policy_picture_frames_what_was_drawn() -> None:
    figure = policy_figure(
        ("a", "b"), [0, 2, 3], torch.tensor([[0.1, 0.9, 0.4], [0.5, 0.5, 0.5]]), executed([1], [2, 3], n_units=3)
    )
    heatmap, alike = figure.panels
    assert heatmap.columns == ("0", "2", "3")
    assert heatmap.marks == ((0, 1), (0, 2), (1, 0))
    assert (heatmap.low, heatmap.high, heatmap.centre) == (0, 1, 0.5)
    assert alike.values[0][0] == 1


def test_the_course_is_thinned_out_and_keeps_its_ends() -> None:
    course = torch.linspace(0, 1, 334).view(-1, 1, 1).expand(334, 2, 3).clone()
    course[5] = float("nan")
    figure = course_figure(("a", "b"), [0, 1, 2], course, taken=333)
    first, _, lines = figure.panels
    assert first.columns[0] == "0"
    assert first.columns[-1] == "333"
    assert len(first.columns) <= 41
    assert first.rows == ("0", "1", "2")
    assert lines.series[0].y[-1] == 1.0
    assert 5.0 not in lines.series[0].x
    assert lines.marks[0] == (333.0, 1.0, "drawn from, a")
