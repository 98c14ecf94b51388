"""DAG search: the traps of its specification (section 10), one after another."""

from __future__ import annotations

import dataclasses
import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from benchmark.train.trainer import CellTrainer
from datasets.errors import UsageError
from methods.backbones.backbone import Backbone
from methods.backbones.heads import create_head
from methods.contracts import Budget, Role
from methods.control import AMBER_DEVIATION, RandomArchitecture, deviation
from methods.dag_search import stages
from methods.dag_search.flow import cut_to_budget
from methods.dag_search.method import DagSearch
from methods.dag_search.params import DagSearchParams
from methods.dag_search.reduction import CUTS, MOST_SLACK, _AlikeCuts, _Cuts, reduce
from methods.dag_search.space import DagSpace, build_space
from methods.dag_search.supernet import Gates, Supernet
from methods.figures import Figure
from methods.graph.cost import compute, size
from methods.graph.task_graph import TaskGraph, estimate_statistics
from methods.plain import fit_graph, task_losses
from tests.numbers import assert_same
from tests.unit.harness import toy_spec, toy_trainer
from tests.unit.supernets import (
    FAMILIES,
    backbone_of,
    beginning_of,
    images_of,
    random_sub_dags,
    space_of,
    spec_of,
    supernet_of,
)

# The aggregate knows nothing of families: both on one with batch norm and on one without.
FORMS = [*((name, "weighted_mean") for name in FAMILIES), ("test_resnet", "sum"), ("test_convnext", "sum")]
LARGE = float("inf")  # logit of a gate that is exactly open; -inf of one that is exactly closed


def set_gates(gates: Gates, kept: list[np.ndarray]) -> None:
    """Gates of exactly 0 and 1."""
    logits = torch.where(torch.from_numpy(np.stack(kept)), LARGE, -LARGE)
    n = gates.graph.n_states
    with torch.no_grad():
        gates.alpha.copy_(logits[:, :n])
        gates.gamma.copy_(logits[:, n:-n])
        gates.beta.copy_(logits[:, -n:])


def trained_like(module: nn.Module, seed: int = 5) -> None:
    """Weights and norm statistics as after a training: none at its neutral start."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                noise = torch.rand(tensor.shape, generator=random)
                tensor.mul_(0.9 + 0.2 * noise).add_(0.02 * (noise - 0.5))


# Trap 1


def test_edges_of_a_longer_span_change_nothing_in_a_shorter_flow() -> None:
    backbone = backbone_of()
    three, four = space_of(backbone, 3), space_of(backbone, 4)
    by_edge = dict(zip(four.graph.inner, four.edges, strict=True))
    for edge, operation in zip(three.graph.inner, three.edges, strict=True):
        for part in ("align", "block"):
            mine, theirs = (getattr(op, part).module.state_dict() for op in (operation, by_edge[edge]))
            assert mine.keys() == theirs.keys()
            assert all(torch.equal(value, theirs[name]) for name, value in mine.items())
    assert (1, 5) in by_edge
    assert (1, 5) not in three.graph.inner


def test_edges_into_one_state_start_from_different_weights_only_where_they_are_random(tmp_path: Path) -> None:
    scratch = space_of(backbone_of())
    into = [op.block.module.state_dict() for (_, j), op in zip(scratch.graph.inner, scratch.edges, strict=True)
            if j == 4]  # fmt: skip
    assert len(into) == 3
    assert not any(torch.equal(a["conv1.weight"], b["conv1.weight"]) for a in into for b in into if a is not b)
    loaded = dataclasses.replace(backbone_of(), from_scratch=False)
    copies = space_of(loaded)
    into = [op.block.module.conv1.weight for (_, j), op in zip(copies.graph.inner, copies.edges, strict=True)
            if j == 4]  # fmt: skip
    assert all(torch.equal(weight, loaded.blocks[2].module.conv1.weight) for weight in into)
    assert len({id(weight) for weight in into}) == 3


# Trap 2


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("name", "aggregate"), FORMS)
@torch.no_grad()
def test_the_open_chain_is_the_plain_backbone(name: str, aggregate: str) -> None:
    backbone = beginning_of(name)
    trained_like(backbone.module())
    spec = spec_of(2, image=FAMILIES[name])
    supernet = supernet_of(backbone, spec, m=1, aggregate=aggregate).eval()
    n, edges = supernet.space.graph.n_states, supernet.space.graph.edges
    assert n == len(backbone.blocks) + 1
    chain = np.array([edge in {(0, 1), (n, n + 1)} or supernet.space.graph.is_inner[e] for e, edge in enumerate(edges)])
    set_gates(supernet.gates, [chain, chain])
    images = images_of(spec, batch=2)
    backbone.module().eval()
    expected = backbone.forward_features(images["image"])
    heads = supernet.heads
    for task, prediction in supernet(images, spec.task_names).items():
        assert_same(prediction, heads[task](expected))  # the tasks may be one batch: another shape, another order
    graph = supernet.space.task_graph(spec, [chain, chain], lambda task: create_head(spec.task(task), backbone, 0))
    supernet.norms.release()
    assert torch.equal(graph.module().eval()(images)["t0"], heads["t0"](expected))


@pytest.mark.numerical
@torch.no_grad()
def test_with_one_way_the_weighted_mean_does_not_care_how_open_the_edges_are() -> None:
    spec = spec_of(1)
    supernet = supernet_of(backbone_of(), spec, m=1).eval()
    gates, images = supernet.gates, images_of(spec)
    for logits in (gates.alpha, gates.beta):
        logits.fill_(-LARGE)
    gates.alpha[0, 0] = gates.beta[0, -1] = LARGE
    outputs = []
    for value in (-3.0, 0.0, 2.0):
        gates.gamma.fill_(value)
        outputs.append(supernet(images, ("t0",))["t0"])
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[1], outputs[2])


# Trap 3


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def moved(before: dict[str, Tensor], module: nn.Module) -> set[str]:
    return {name for name, value in module.state_dict().items() if not same(before[name], value)}


def same(a: Tensor, b: Tensor) -> bool:
    """Equal bits, where what was not written yet (NaN) equals itself."""
    return torch.equal(a.nan_to_num(nan=-7.0), b.nan_to_num(nan=-7.0)) if a.is_floating_point() else torch.equal(a, b)


def method_of(**params: Any) -> DagSearch:
    return DagSearch(DagSearchParams(**params))


def supernet_in(trainer: CellTrainer, method: DagSearch, **options: Any) -> Supernet:
    space = stages.space_of(method.params, trainer, 3)
    heads = {task: trainer.head(task) for task in trainer.data.task_names}
    gates = Gates(space.graph, len(heads), trainer.budget.cycles, "zero")
    return Supernet(space, trainer.data, heads, gates, batch_norm="per_task_stats", recompute=False, **options)


def test_warm_up_moves_weights_and_no_gate(tmp_path: Path) -> None:
    method, trainer = method_of(warmup_ratio=0.5), toy_trainer(tmp_path, steps=8)
    supernet = supernet_in(trainer, method)
    gates, weights = state_of(supernet.gates), state_of(supernet.operations)
    stages.warm_up(method.params, trainer, supernet)
    assert not moved(gates, supernet.gates)
    assert moved(weights, supernet.operations)
    assert trainer.ledger.search.optimizer_steps == 4
    assert trainer.ledger.search.forward_passes == 4  # one pass for all tasks
    assert torch.equal(supernet.norms.values[0], supernet.norms.values[1])


def test_gates_only_leaves_theta_where_it_is(tmp_path: Path) -> None:
    method = method_of(search={"update": "gates_only"}, search_ratio=0.5, batch_norm="per_task_stats")
    trainer = toy_trainer(tmp_path, steps=8)
    supernet = supernet_in(trainer, method)
    before = {part: state_of(getattr(supernet, part)) for part in ("gates", "heads", "norms")}
    space = supernet.space
    theta = [p for op in space.operations() if op.origin == "backbone" for p in op.module.parameters()]
    added = [p for op in space.operations() if op.origin == "added" for p in op.module.parameters()]
    values, alignments = [p.detach().clone() for p in theta], [p.detach().clone() for p in added]
    stages.search(method.params, trainer, supernet, kappa=4)
    assert {"alpha", "beta", "gamma"} <= moved(before["gates"], supernet.gates)
    assert moved(before["heads"], supernet.heads)
    assert moved(before["norms"], supernet.norms)
    assert all(torch.equal(a, b) for a, b in zip(values, theta, strict=True))
    assert all(not torch.equal(a, b) for a, b in zip(alignments, added, strict=True))


def test_alternate_trains_theta_on_fit_and_gates_on_arch(tmp_path: Path) -> None:
    method, trainer = method_of(search={"update": "alternate"}, search_ratio=1.0), toy_trainer(tmp_path, steps=8)
    asked: list[tuple[Role, str]] = []
    for role, loader in trainer.context.loaders.items():
        original = loader.training
        loader.training = lambda *args, role=role, original=original: asked.append((role, args[-1])) or original(*args)
    supernet = supernet_in(trainer, method)
    stages.search(method.params, trainer, supernet, kappa=4)
    assert {(role, stream.rpartition("/")[2]) for role, stream in asked} == {
        (Role.FIT, "search, weights"),
        (Role.ARCH, "search"),
    }
    assert trainer.ledger.search.optimizer_steps == 8


def test_fine_tuning_knows_no_gate_and_no_supernet(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, steps=6)
    graph = method_of().run(trainer)
    names = list(graph.tensors())
    assert not [name for name in names if "alpha" in name or "gamma" in name or "beta" in name]
    whole = supernet_in(toy_trainer(tmp_path / "whole", steps=6), method_of())
    kept = {id(p) for p in graph.parameters()}
    assert len(kept) < len(list(whole.parameters()))
    newest = max(tmp_path.rglob("*"), key=lambda path: path.stat().st_mtime_ns if path.is_file() else 0)
    state = torch.load(newest, weights_only=True)["payload"]
    stored = sum(value.numel() for network in state["networks"] for value in network.values())
    held = sum(value.numel() for value in graph.network().state_dict().values())
    assert stored == held


def test_nothing_of_the_supernet_lives_on_while_fine_tuning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[list[str]] = []

    def watched(*arguments: Any) -> object:
        gc.collect()
        alive.append([type(o).__name__ for o in gc.get_objects() if isinstance(o, (Supernet, Gates, DagSpace))])
        return fit_graph(*arguments)

    monkeypatch.setattr("methods.dag_search.method.fit_graph", watched)
    gc.collect()
    before = [type(o).__name__ for o in gc.get_objects() if isinstance(o, (Supernet, Gates, DagSpace))]
    method_of().run(toy_trainer(tmp_path, steps=4))
    assert alive == [before]


# Traps 5, 6, 7


@torch.no_grad()
def naive(space: DagSpace, image: Tensor, kept: np.ndarray) -> Tensor:
    """The equations of section 4 with gates 0 and 1, written out once more."""
    open_edges = {edge for edge, k in zip(space.graph.edges, kept, strict=True) if k}
    n = space.graph.n_states
    operation = dict(zip(space.graph.inner, space.edges, strict=True))
    v0 = space.stem.module(image)
    v: dict[int, Tensor] = {}
    for j in range(1, n + 1):
        terms = [space.read_in[j - 1].module(v0)] if (0, j) in open_edges else []
        for i in range(1, j):
            if (i, j) in open_edges:
                terms.append(operation[i, j].block.module(operation[i, j].align.module(v[i])))
        if terms:
            v[j] = sum(terms) / (len(terms) if space.aggregate == "weighted_mean" else 1)
    out = [space.read_out[i - 1].module(v[i]) for i in range(1, n + 1) if (i, n + 1) in open_edges]
    return space.tail.module(sum(out) / (len(out) if space.aggregate == "weighted_mean" else 1))


@pytest.mark.parametrize(("name", "aggregate"), FORMS)
@pytest.mark.usefixtures("float64")
@torch.no_grad()
def test_the_deployed_network_is_the_masked_supernet(name: str, aggregate: str) -> None:
    small = name.startswith("test_")  # the smallest Swin has 28 million parameters
    backbone = beginning_of(name)
    spec = spec_of(3, image=FAMILIES[name])
    space = space_of(backbone, 3 if small else 2, aggregate)
    heads = {task.name: create_head(task, backbone, 0) for task in spec.tasks}
    for operation in space.operations():
        operation.module.eval()
    for seed in range(3 if small else 1):
        kept = random_sub_dags(space, 3, seed)
        graph = space.task_graph(spec, kept, lambda task: heads[task])
        graph.require_deployable()
        images = images_of(spec, batch=2, seed=seed)
        predictions = graph.module().eval()(images)
        for task, row in zip(spec.task_names, kept, strict=True):
            expected = heads[task].module(naive(space, images["image"], row))
            assert_same(predictions[task], expected)
        if small and seed == 0:
            again = TaskGraph.from_json(graph.to_json(), graph.tensors())
            assert torch.equal(again.module().eval()(images)["t0"], predictions["t0"])


@pytest.mark.usefixtures("float64")
@torch.no_grad()
def test_the_supernet_with_closed_gates_is_the_masked_one() -> None:
    """Gates of exactly 0 and 1, on a sub-DAG in which every state has an open edge."""
    for name in ("test_resnet", "test_convnext"):
        spec = spec_of(2, image=FAMILIES[name])
        supernet = supernet_of(backbone_of(name), spec).eval()
        n, graph = supernet.space.graph.n_states, supernet.space.graph
        random = np.random.RandomState(3).rand(2, len(graph.edges)) < 0.5
        chain = np.array([(u, w) == (0, 1) or w == n + 1 or w - u == 1 for u, w in graph.edges])
        kept = [row | chain for row in random]
        set_gates(supernet.gates, kept)
        images = images_of(spec)
        predictions = supernet(images, spec.task_names)
        for k, task in enumerate(spec.task_names):
            with supernet.norms.each([k], [len(images["image"])]):
                expected = supernet.heads[task](naive(supernet.space, images["image"], kept[k]))
            assert_same(predictions[task], expected)


def graph_of(kept: list[np.ndarray], backbone: Backbone, space: DagSpace) -> TaskGraph:
    spec = spec_of(len(kept))
    return space.task_graph(spec, kept, lambda task: create_head(spec.task(task), backbone, 0))


def test_tasks_share_the_computation_of_equal_prefixes() -> None:
    """On a backbone with batch norm: statistics belong to the sub-expression, not to the task."""
    backbone = backbone_of()
    space = space_of(backbone)
    chain = {(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 6)}
    other = {(0, 1), (1, 2), (2, 3), (3, 5), (5, 6)}
    same, differing = (np.array([edge in edges for edge in space.graph.edges]) for edges in (chain, other))
    inputs = {"image": (1, 3, 36, 36)}
    equal = compute(graph_of([same, same], backbone, space), inputs)
    heads = sum(equal.macs_task.values()) - equal.macs_joint
    assert heads == equal.macs_task["t0"] - equal.macs_heads // 2
    mixed = compute(graph_of([same, differing], backbone, space), inputs)
    assert max(mixed.macs_task.values()) < mixed.macs_joint < mixed.macs_sum
    counted = size(graph_of([same, differing], backbone, space), backbone.n_parameters())
    assert counted.backbone + counted.added == space.n_parameters([same, differing])
    assert counted.dead == 0


@pytest.mark.usefixtures("float64")
def test_each_task_has_the_statistics_of_what_it_alone_fed_in() -> None:
    spec = spec_of(2)
    both = supernet_of(backbone_of(), spec)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for logits in (both.gates.alpha, both.gates.beta, both.gates.gamma):
            logits.copy_(torch.randn(logits.shape, generator=random))
    alone = []
    for _ in range(2):
        one = supernet_of(backbone_of(), spec)
        one.gates.load_state_dict(both.gates.state_dict())
        alone.append(one.train())
    both.train()
    for step in range(3):
        images = images_of(spec, batch=8, seed=step)
        both(images, ("t0", "t1"))
        for k, one in enumerate(alone):
            one(images, (f"t{k}",))
    images = images_of(spec, seed=9)
    with torch.no_grad():
        together = both.eval()(images, ("t0", "t1"))
        for k, one in enumerate(alone):
            assert_same(one.eval()(images, (f"t{k}",))[f"t{k}"], together[f"t{k}"])
    assert not torch.equal(both.norms.values[0], both.norms.values[1])


def test_shared_statistics_would_be_wrong_for_both() -> None:
    """Why `per_task_stats` is the default: the same passes into one set of statistics end elsewhere."""
    spec = spec_of(2)
    nets = {rule: supernet_of(backbone_of(), spec, batch_norm=rule).train() for rule in ("shared", "per_task_stats")}
    logits = torch.randn(2, 9, generator=torch.Generator().manual_seed(1))
    images = images_of(spec, batch=8)
    outputs = {}
    for rule, net in nets.items():
        with torch.no_grad():
            net.gates.gamma.copy_(3 * logits)
        net(images, ("t0", "t1"))
        outputs[rule] = net.eval()(images, ("t0",))["t0"]
    assert not torch.allclose(outputs["shared"], outputs["per_task_stats"], atol=1e-3)


# Trap 8


def test_gates_move_and_are_remembered(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, steps=12)
    method_of(gate_lr=0.05).run(trainer)
    assert 0 < trainer.facts["largest gate change"]["value"] < 1
    path = trainer.artifacts["gate-paths"]
    assert path.shape == (5, 2, 19)  # cycles + 1, tasks, 5 read-ins + 9 edges + 5 read-outs
    assert np.isfinite(path).all()
    assert set(path[0].round(4).flatten()) == {0.1192, 0.8808}  # sigma of -2 and of 2: the chain is open
    assert np.abs(np.diff(path, axis=0)).max(axis=(1, 2)).min() > 0
    assert not trainer.flags


def test_a_search_that_did_nothing_says_so(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, steps=6)
    method_of(gate_lr=1e-30, kappa=9).run(trainer)
    assert trainer.search_moved["gates"]["largest"] < 1e-6
    assert "the squeeze loss was never active" in trainer.flags


@pytest.mark.numerical
def test_squeeze_loss_and_its_gradient_by_hand() -> None:
    graph = space_of(backbone_of()).graph
    gates = Gates(graph, 2, 1, "zero")
    assert float(gates.squeeze(5, reads=False)) == 0.0  # 9 x 0.5 = 4.5
    assert int(gates.squeezed_steps) == 0
    gates.squeeze(4, reads=False).backward()
    assert torch.allclose(gates.gamma.grad, torch.full_like(gates.gamma, 0.25))  # sigma'(0)
    assert gates.alpha.grad is None
    assert int(gates.squeezed_steps) == 1
    # With reads: 4.5 + 2.5 + 2.5 - 2 = 7.5 a task.
    assert float(gates.squeeze(7, reads=True)) == pytest.approx(1.0)
    with torch.no_grad():
        gates.gamma[0].fill_(-LARGE)  # one task alone is above kappa
    assert float(gates.squeeze(4, reads=False)) == pytest.approx(0.5)


# Trap 9


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_block_branches_are_heard_at_the_start(name: str) -> None:
    """Sums of half-open gates grow with depth until branches of pre-norm networks are a hundredth of the output.

    Families that start their branches near zero (layer scale) are measured against the plain backbone.
    """
    backbone = backbone_of(name)
    spec = spec_of(1, image=FAMILIES[name])
    image = images_of(spec)["image"]
    last = max(i for i, block in enumerate(backbone.blocks) if block.skip is not None)
    plain: list[Tensor] = []
    backbone.blocks[last].module.register_forward_hook(lambda module, args, output: plain.append(args[0]))
    backbone.module().train()(image)
    expected = branch_share(backbone, last, plain[0])
    supernet = supernet_of(backbone, spec, m=3 if name.startswith("test_") else 2).train()
    edge = supernet.space.edges[supernet.space.graph.inner.index((last + 1, last + 2))]
    seen: list[Tensor] = []
    edge.block.module.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    supernet({"image": image}, ("t0",))
    assert branch_share(backbone, last, seen[0]) > min(0.1, 0.5 * expected)


def branch_share(backbone: Backbone, index: int, x: Tensor) -> float:
    block = backbone.blocks[index]
    output = block(x)
    return float((output - block.skip(x)).norm() / output.norm())


# Trap 10


def test_one_task_is_enough(tmp_path: Path) -> None:
    data = toy_spec().with_tasks(["a"])
    trainer = toy_trainer(tmp_path, steps=6, data=data)
    graph = method_of().run(trainer)
    assert graph.tasks == ("a",)
    assert trainer.facts["overlap between tasks"]["value"] is None


def test_forty_tasks_share_one_theta() -> None:
    backbone = backbone_of()
    few, many = (supernet_of(backbone, spec_of(n)) for n in (1, 40))
    own = 5 + 9 + 5 + sum(p.numel() for p in few.heads["t0"].parameters())
    grown = sum(p.numel() for p in many.parameters()) - sum(p.numel() for p in few.parameters())
    assert grown == 39 * own
    statistics = few.norms.values.numel() + few.norms.updates.numel()
    buffers = sum(b.numel() for b in many.buffers()) - sum(b.numel() for b in few.buffers())
    assert buffers == 39 * (statistics + few.gates.path[:, 0].numel())


# What the traps do not name


@pytest.mark.parametrize("rule", ["shared", "per_task_stats", "per_task"])
@pytest.mark.parametrize("domains", ["single", "multi"])
@pytest.mark.parametrize("name", ["test_resnet", "test_convnext"])
@pytest.mark.usefixtures("float64")
def test_tasks_side_by_side_are_the_tasks_one_by_one(name: str, domains: str, rule: str) -> None:
    """Outputs, gradients, and the statistics that each task's images move."""
    spec = spec_of(3, domains)
    images, random = images_of(spec), torch.Generator().manual_seed(1)
    for k, image in enumerate(images.values()):
        image.mul_(k + 1)  # inputs whose statistics differ
    together, alone = (supernet_of(backbone_of(name), spec, batch_norm=rule).train() for _ in range(2))
    with torch.no_grad():
        for logits in (together.gates.alpha, together.gates.beta, together.gates.gamma):
            logits.copy_(torch.randn(logits.shape, generator=random))
        if together.norms.weights is not None:
            together.norms.weights.mul_(torch.rand(together.norms.weights.shape, generator=random) + 0.5)
    alone.load_state_dict(together.state_dict())
    outputs = together(images, spec.task_names)
    sum(value.square().sum() for value in outputs.values()).backward()
    for task in spec.task_names:
        output = alone(images, [task])[task]
        output.square().sum().backward()
        assert_same(outputs[task], output)
    for value, other in zip(together.parameters(), alone.parameters(), strict=True):
        assert_same(value.grad, other.grad)
    # What comes before the gates was computed once for all tasks that share images, and three times alone.
    before = [together.space.stem, *together.space.read_in] if domains == "single" else []
    first = {id(buffer) for operation in before for buffer in operation.module.buffers()}
    for value, other in zip(together.buffers(), alone.buffers(), strict=True):
        if id(value) not in first:
            assert_same(value.double(), other.double())


@pytest.mark.usefixtures("float64")
def test_recomputed_activations_change_neither_gradients_nor_statistics() -> None:
    for rule in ("per_task_stats", "per_task", "shared"):
        spec, found = spec_of(2), []
        for recompute in (False, True):
            supernet = supernet_of(backbone_of(), spec, recompute=recompute, batch_norm=rule).train()
            if rule == "per_task":
                with torch.no_grad():
                    supernet.norms.weights[1] += 0.3
            output = supernet(images_of(spec), spec.task_names)
            sum(value.square().sum() for value in output.values()).backward()
            found.append(([p.grad for p in supernet.parameters()], supernet.state_dict()))
        for a, b in zip(found[0][0], found[1][0], strict=True):
            assert_same(a, b)
        for name, value in found[0][1].items():
            assert_same(value.double(), found[1][1][name].double(), name)


def test_per_task_norms_are_deployed_as_each_task_has_them(tmp_path: Path) -> None:
    method, trainer = method_of(batch_norm="per_task"), toy_trainer(tmp_path, steps=6)
    graph = method.run(trainer)
    counted = size(graph, trainer.backbone().n_parameters())
    shared = [p for node in graph.nodes.values() for p in node.module.parameters()]
    assert counted.dead == 0
    assert len({id(p) for p in shared}) < len(shared)


@pytest.mark.usefixtures("float64")
def test_every_task_of_a_multi_domain_set_sees_its_own_images() -> None:
    for name in ("test_resnet", "test_convnext"):
        spec = spec_of(2, "multi")
        supernet = supernet_of(backbone_of(name), spec).eval()
        images = images_of(spec)
        with torch.no_grad():
            before = supernet(images, ("t0", "t1"))
            other = {**images, "t1": torch.randn_like(images["t1"])}
            after = supernet(other, ("t0", "t1"))
            alone = supernet({"t0": images["t0"]}, ("t0",))
        assert_same(before["t0"], after["t0"])
        assert_same(before["t0"], alone["t0"])
        assert not torch.allclose(before["t1"], after["t1"])


def test_the_gates_of_a_task_are_moved_by_its_own_images_only(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, domains="multi", steps=6)
    supernet = supernet_in(trainer, method_of())
    batch = next(iter(trainer.context.loaders[Role.FIT].training(("a", "b"), 0, 1, "x")))
    task_losses(trainer.data, supernet)(batch, ("a",))["a"].backward()
    for logits in (supernet.gates.alpha, supernet.gates.beta, supernet.gates.gamma):
        assert logits.grad[0].abs().sum() > 0
        assert logits.grad[1].abs().sum() == 0


def test_without_reads_only_the_ends_of_the_chain_are_open(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, steps=6)
    method_of(read_in=False, read_out=False).run(trainer)
    assert trainer.facts["read-ins per task"]["value"] == 1
    assert trainer.facts["read-outs per task"]["value"] == 1
    assert {name for name in trainer.elements if " in " in name} == {"a: in 1", "b: in 1"}


@pytest.mark.parametrize(("domains", "factor"), [("single", 1.2), ("multi", 1.6)])
def test_the_union_fits_the_budget_that_was_asked_for(domains: str, factor: float, tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, domains=domains, steps=4)
    graph = method_of(reduction={"budget_unit": "union_params", "budget": factor}).run(trainer)
    counted = size(graph, trainer.backbone().n_parameters())
    assert counted.x_backbone <= factor


def test_a_random_architecture_has_the_searched_counts(tmp_path: Path) -> None:
    facts = []
    for number, score in enumerate(("contribution", "random")):
        trainer = toy_trainer(tmp_path / str(number), steps=8)
        method = method_of(reduction={"score": score})
        assert method.is_random_architecture == (score == "random")
        method.run(trainer)
        facts.append(({name: trainer.facts[name]["value"] for name in ("inner edges per task", "read-ins per task",
                       "read-outs per task")}, trainer.elements, trainer.flags))  # fmt: skip
    assert facts[0][0] == facts[1][0]
    assert facts[0][1] != facts[1][1]
    assert not [flag for flag in facts[1][2] if "other counts" in flag]


def sized_space(trainer: CellTrainer) -> tuple[DagSpace, Any]:
    """A space, and the function from cuts of it to sizes."""
    space = space_of(trainer.backbone(), 3)
    return space, space.sizes(trainer.data, trainer.backbone(), {t: trainer.head(t) for t in trainer.data.task_names})


@pytest.mark.parametrize("domains", ["single", "multi"])
def test_the_size_of_a_cut_is_that_of_its_network(domains: str, tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, domains=domains)
    backbone = trainer.backbone()
    space = space_of(backbone, 3)
    heads = {task: trainer.head(task) for task in trainer.data.task_names}
    size_of = space.sizes(trainer.data, backbone, heads)
    random = np.random.default_rng(0)
    for _ in range(20):
        kept = [cut_to_budget(space.graph, random.random(len(space.exists)), space.exists, 3, None) for _ in heads]
        graph = space.task_graph(trainer.data, kept, heads.__getitem__)
        counted = compute(graph, dict.fromkeys(graph.inputs, (1, 3, *trainer.data.native_size)))
        found = size_of(kept)
        assert found.parameters == size(graph, backbone.n_parameters()).total
        assert found.macs == (counted.macs_joint if domains == "single" else counted.macs_sum)


def test_a_random_cut_is_the_nearest_in_size_of_those_with_the_searched_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tasks that share no edge have a union of twice the edges: equal counts alone are no equal size."""
    space, size_of = sized_space(toy_trainer(tmp_path))
    sigma = np.random.default_rng(1).random((1, len(space.exists))).repeat(2, axis=0).astype(np.float32)
    params = DagSearchParams(reduction={"score": "random"}).reduction
    searched = reduce(space, sigma, DagSearchParams().reduction, 4, None, torch.Generator(), size_of)
    nearest, first = [], []
    for n_draws, deviations in ((CUTS, nearest), (1, first)):
        monkeypatch.setattr("methods.dag_search.reduction.CUTS", n_draws)
        for seed in range(2):
            drawn = reduce(space, sigma, params, 4, None, torch.Generator().manual_seed(seed), size_of)
            pairs = list(zip(drawn.kept, searched.kept, strict=True))
            far = [sum(abs(a - b) for a, b in zip(*map(space.graph.counts, pair), strict=True)) for pair in pairs]
            assert drawn.missed == tuple(task for task, distance in enumerate(far) if distance)
            assert max(far) <= MOST_SLACK
            assert not drawn.missed or n_draws == 1  # equal counts have a cut of equal size among so many
            assert drawn.deviation == deviation(size_of(drawn.kept), size_of(searched.kept))
            deviations.append(drawn.deviation)
    assert max(nearest) <= AMBER_DEVIATION
    assert min(first) > AMBER_DEVIATION
    assert searched.deviation is None


def test_counts_of_a_random_cut_may_differ_where_no_cut_of_equal_counts_has_the_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space, size_of = sized_space(toy_trainer(tmp_path))
    sigma = np.random.default_rng(1).random((2, len(space.exists))).astype(np.float32)
    params = DagSearchParams(reduction={"score": "random"}).reduction
    monkeypatch.setattr("methods.dag_search.reduction.CUTS", 20)  # too few to find the size among equal counts
    monkeypatch.setattr("methods.dag_search.reduction.AMBER_DEVIATION", 0.0)  # so that every slack is tried
    found = {}
    for slack in (0, 2):
        monkeypatch.setattr("methods.dag_search.reduction.MOST_SLACK", slack)
        found[slack] = [
            reduce(space, sigma, params, 4, None, torch.Generator().manual_seed(seed), size_of) for seed in range(8)
        ]
    assert not any(drawn.missed for drawn in found[0])
    assert any(drawn.missed for drawn in found[2])
    for without, slack in zip(found[0], found[2], strict=True):
        assert slack.deviation <= without.deviation


def test_random_cuts_of_many_tasks_that_share_their_edges_have_the_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Five tasks that draw apart keep nearly all edges between them, which no search of few common edges has."""
    spec, backbone = spec_of(5), backbone_of("test_resnet")
    space = space_of(backbone, 3)
    size_of = space.sizes(spec, backbone, {task.name: create_head(task, backbone, 0) for task in spec.tasks})
    sigma = np.random.default_rng(1).random((1, len(space.exists))).repeat(5, axis=0).astype(np.float32)
    params = DagSearchParams(reduction={"score": "random"}).reduction
    monkeypatch.setattr("methods.dag_search.reduction.CUTS", 500)

    def missed() -> list[float | None]:
        seeds = [torch.Generator().manual_seed(seed) for seed in range(3)]
        return [reduce(space, sigma, params, 4, None, seed, size_of).deviation for seed in seeds]

    assert max(missed()) <= AMBER_DEVIATION
    monkeypatch.setattr(_AlikeCuts, "draw", _Cuts.draw)
    assert min(missed()) > AMBER_DEVIATION


def test_a_random_cut_that_is_too_large_is_flagged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "methods.dag_search.reduction.random_architecture",
        lambda space, target, rng, n_draws: RandomArchitecture(space.draw(rng), target, 0.25),
    )
    trainer = toy_trainer(tmp_path, steps=8)
    method_of(reduction={"score": "random"}).run(trainer)
    assert trainer.facts["deviation from the size asked for"] == {"value": 25.0, "unit": "percent"}
    assert "The random cut is 25.0 % from the size that it should have." in trainer.flags


def test_reinit_trains_the_found_network_from_initial_weights(tmp_path: Path) -> None:
    trained, again = (toy_trainer(tmp_path / name, steps=6) for name in ("on", "again"))
    kept = method_of().run(trained)
    fresh = method_of(reinit=True).run(again)
    assert kept.hash() == fresh.hash()
    assert again.weight_steps(fresh) == 6
    assert trained.weight_steps(kept) == 6 + round(0.2 * 6) + round(0.8 * 6)


@pytest.mark.parametrize(
    ("params", "name", "message"),
    [
        ({"flow_constant": 5}, "test_resnet", "flow_constant is 5; backbone 'test_resnet' has 5 states.*1 to 4"),
        ({"flow_constant": 1, "kappa": 5}, "test_resnet", "kappa is 5; with flow_constant 1 .* has 4 edges"),
    ],
)
def test_what_the_backbone_has_no_room_for_is_found_when_planning(
    params: dict[str, Any], name: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        method_of(**params).check(spec_of(2), backbone_of(name), Budget(100))


def test_the_plan_warns_of_gates_that_cannot_close() -> None:
    notes = method_of(gate_lr=0.01).check(spec_of(2), backbone_of(), Budget(100))
    assert notes[0] == "5 states, 9 edges (M = 3), kappa = 4"
    assert "gate_lr 0.01 x 80 updates = 0.8 < 4" in notes[1]
    for params in ({}, {"gate_lr": 0.05}, {"search": {"update": "alternate"}}):
        assert len(method_of(**params).check(spec_of(2), backbone_of(), Budget(100))) == 1
    assert (
        "gate_lr 0.05 x 40 updates = 2 < 4"
        in method_of(gate_lr=0.05, search={"update": "alternate"}).check(spec_of(2), backbone_of(), Budget(100))[1]
    )


@pytest.mark.parametrize(
    "params",
    [
        {"reduction": {"budget_unit": "union_params"}},
        {"reduction": {"budget": 1.5}},
        {"reduction": {"stop": "threshold", "max_reads": 2}},
        {"reduction": {"score": "random", "stop": "first_bridge"}},
        {"flow_constant": 0},
        {"kappa": 0},
        {"gate_init": "ones"},
    ],
)
def test_parameters_that_mean_nothing_are_refused(params: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        DagSearchParams(**params)


def test_the_recalled_variant_puts_the_recalled_forms_back() -> None:
    params = DagSearchParams(variant="recalled")
    assert (params.aggregate, params.gate_init) == ("sum", "zero")
    assert (params.reduction.score, params.reduction.stop) == ("ratio", "first_bridge")
    mixed = DagSearchParams(variant="recalled", aggregate="weighted_mean", reduction={"score": "contribution"})
    assert (mixed.aggregate, mixed.reduction.score, mixed.reduction.stop) == (
        "weighted_mean",
        "contribution",
        "first_bridge",
    )


@pytest.mark.parametrize("init", ["zero", "chain"])
def test_gates_start_where_they_are_told(init: str) -> None:
    graph = space_of(backbone_of()).graph
    sigma = Gates(graph, 2, 1, init).sigma()
    for e, (u, w) in enumerate(graph.edges):
        chain = (w - u == 1 and u > 0) or (u, w) in {(0, 1), (5, 6)}
        assert float(sigma[0, e]) == pytest.approx(0.5 if init == "zero" else 0.8808 if chain else 0.1192, abs=1e-4)


@pytest.mark.parametrize(
    "params",
    [
        {"variant": "recalled"},
        {"flow_constant": "all", "warmup_ratio": 0},
        {"flow_constant": 1, "reduction": {"max_reads": 1}},
        {"squeeze_weight": 0, "reduction": {"score": "magnitude"}},
        {"squeeze_reads": True, "reduction": {"score": "ratio"}},
        {"reduction": {"stop": "threshold"}},
        {"search": {"update": "alternate", "recompute": True}, "reduction": {"stop": "first_bridge"}},
    ],
)
def test_every_switch_ends_in_a_network_for_all_tasks(params: dict[str, Any], tmp_path: Path) -> None:
    """Every value of every switch; those of different stages share a training."""
    trainer = toy_trainer(tmp_path, steps=5)
    graph = method_of(**params).run(trainer)
    assert set(graph.tasks) == {"a", "b"}
    graph.require_deployable()
    assert trainer.facts["gap at the cut"]["unit"] == "percent"
    for figure in trainer.figures.values():
        assert Figure.model_validate_json(figure.model_dump_json()) == figure


def test_relative_change_by_hand(tmp_path: Path) -> None:
    from methods.contracts import Score

    before = {"t": {"up": Score(50.0, "percent", True, 1), "down": Score(0.5, "", False, 1)},
              "u": {"up": Score(None, "percent", True, 1)}}  # fmt: skip
    after = {"t": {"up": Score(40.0, "percent", True, 1), "down": Score(0.4, "", False, 1)},
             "u": {"up": Score(1.0, "percent", True, 1)}}  # fmt: skip
    assert stages.relative_change(before, after) == pytest.approx((-20.0 + 20.0) / 2)
    assert stages.relative_change({"u": before["u"]}, {"u": after["u"]}) is None


@pytest.mark.usefixtures("float64")
def test_statistics_of_the_cut_network_are_those_of_its_own_activations(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, steps=4)
    backbone = trainer.backbone()
    space = build_space(trainer.backbone, lambda name: 0, 3, read_in=True, read_out=True, aggregate="weighted_mean")
    kept = random_sub_dags(space, 2)
    graph = space.task_graph(trainer.data, kept, trainer.head)
    network = graph.network()
    estimate_statistics(network, trainer.batches(Role.FIT, 48))
    batches = list(trainer.batches(Role.FIT, 48))
    x = torch.cat([space.stem.module[0](batch.images["image"]) for batch in batches])
    norm = next(node.module for node in graph.nodes.values() if node.operation.kind == "backbone")[1]
    means = torch.stack([space.stem.module[0](b.images["image"]).mean((0, 2, 3)) for b in batches]).mean(0)
    assert_same(norm.running_mean, means)
    assert x.shape[1] == backbone.blocks[0].in_shape.channels
