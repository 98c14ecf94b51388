"""Merging: the traps of more_methods 3 (G1 to G8) and the tests common to such methods (C1 to C6)."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from benchmark.train.ledger import Spending
from benchmark.train.stage import KeptNetwork
from benchmark.train.trainer import CellTrainer
from datasets.contracts import Batch
from datasets.errors import UsageError
from methods.contracts import Budget, Role, Score, Stage
from methods.graph.cost import compute, size
from methods.graph.task_graph import TaskGraph
from methods.judging import change_of_task, relative_change
from methods.merged import network as merged_network
from methods.merged.arithmetic import TaskVectors, along, average, largest, summed, ties
from methods.merged.disagreement import disagreement
from methods.merged.method import Merged
from methods.merged.network import Single, body_of, merged_graph, re_estimate, task_vectors, weights_of, whole_batches
from methods.merged.parameters import MergedParams
from methods.merged.pictures import disagreement_figure
from methods.merged.selection import GRID, best_of, gain
from methods.merged.surgery import Repair, Surgery, correction, train_corrections
from methods.merged.telling import tell_disagreement
from methods.plain import plain_graph
from tests.unit.kills import Killed, kill_after, outcome
from tests.unit.towers import backbone_of, images_of, tasks_of, trainer_of

SWIN = "swin_tiny_patch4_window7_224"
NETS = ["test_resnet", "test_vit", SWIN]  # batch norms on nchw, tokens, nhwc


def trainer_with_singles(folder: Path, name: str = "test_resnet", n_tasks: int = 2, **options: Any) -> CellTrainer:
    """A trainer whose single-task networks are there at once: initial weights and statistics, moved at random by the
    name of the task.
    """
    trainer = trainer_of(folder, n_tasks, name, **{"size": 8 if name == "test_resnet" else 32, "steps": 2, **options})

    def single_task(task: str) -> KeptNetwork:
        random = torch.Generator().manual_seed(ord(task))
        graph = plain_graph(trainer.data, [task], trainer.backbone(), trainer.head)
        with torch.no_grad():
            for parameter in graph.parameters():
                parameter += 0.3 * parameter.abs().mean() * torch.randn(parameter.shape, generator=random)
            for key, buffer in graph.network().named_buffers():  # small means: units that are always off show nothing
                if key.endswith("running_mean"):
                    buffer.copy_(0.05 * torch.rand(buffer.shape, generator=random) - 0.025)
                elif key.endswith("running_var"):
                    buffer.copy_(0.1 + torch.rand(buffer.shape, generator=random))
        return KeptNetwork(graph, [1.0], [1.0, 1.0], Spending(), f"key of {task}")

    trainer.context = dataclasses.replace(trainer.context, single_task=single_task)
    return trainer


def run(trainer: CellTrainer, **params: Any) -> TaskGraph:
    return Merged(MergedParams(**params)).run(trainer)


def predictions(
    trainer: CellTrainer, graph: TaskGraph, images: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    with torch.no_grad():
        found = graph.network().eval()(images or images_of(trainer), graph.tasks)
    assert all(not torch.equal(value[0], value[1]) for value in found.values()), "predictions that see no image"
    return found


def vectors_of(start: Sequence[float], *tau: Sequence[float], parts: Sequence[int] | None = None) -> TaskVectors:
    """theta_0 and theta_0 + tau_t, cut into tensors of these lengths (one of all by default)."""
    sizes = list(parts or [len(start)])
    theta_0 = torch.tensor(start, dtype=torch.float64)

    def cut(values: Tensor) -> dict[str, Tensor]:
        return {f"layer{number}.weight": part for number, part in enumerate(values.split(sizes))}

    return TaskVectors(cut(theta_0), [cut(theta_0 + torch.tensor(one, dtype=torch.float64)) for one in tau])


def flat(weights: Mapping[str, Tensor]) -> list[float]:
    return torch.cat([weight.flatten() for weight in weights.values()]).tolist()


BY_HAND = vectors_of([1, 0, 0], [1, 0, -1], [3, 2, 1])


@pytest.mark.parametrize("parts", [[3], [2, 1]])
def test_g1_the_rules_by_hand(parts: list[int]) -> None:
    """[derived] A wrong rule merges other networks than the paper's. The third sign is elected by most weights, also of
    other tensors.
    """
    v = vectors_of([1, 0, 0], [1, 0, -1], [3, 2, 1], parts=parts)
    assert flat(average(v)) == pytest.approx([3, 1, 0])
    assert flat(along(v.start, summed(v), 0.3)) == pytest.approx([2.2, 0.6, 0])
    assert flat(along(v.start, ties(v, 1.0, "mean"), 1.0)) == pytest.approx([3, 2, 1])
    assert flat(along(v.start, ties(v, 1.0, "sum"), 1.0)) == pytest.approx([5, 2, 1])


def test_g1_without_a_majority_nothing_is_added_where_task_vectors_cancel() -> None:
    """[official code] The sign of a sum of 0 comes from the others; where they are balanced too, there is none."""
    assert flat(ties(vectors_of([0, 0, 0], [1, 2, -2], [-1, 2, -2]), 1.0, "sum")) == [0, 4, -4]
    assert flat(ties(vectors_of([0, 0], [1, -2], [-1, -2]), 1.0, "sum")) == [-1, -4]


def test_g2_one_task_gets_its_own_weights_back() -> None:
    """[derived] Merging a single network changes it otherwise."""
    v = vectors_of([1, 0, 0.5], [0.1, -2, 1e-9])
    theta_1 = flat(v.trained[0])
    assert flat(average(v)) == theta_1  # no rounding
    for direction in (summed(v), ties(v, 1.0, "mean"), ties(v, 1.0, "sum")):
        assert flat(along(v.start, direction, 1.0)) == pytest.approx(theta_1, rel=1e-12)
        assert flat(along(v.start, direction, 0.0)) == flat(v.start)


def test_g2_the_average_is_task_arithmetic_with_one_over_t() -> None:
    """[derived] `coefficient: null` of task_arithmetic is 1/T, of ties 1."""
    found = along(BY_HAND.start, summed(BY_HAND), MergedParams(rule="task_arithmetic").fixed_coefficient(2))
    assert flat(found) == pytest.approx(flat(average(BY_HAND)))
    assert MergedParams(rule="task_arithmetic").fixed_coefficient(5) == 0.2
    assert MergedParams(rule="ties").fixed_coefficient(5) == 1.0
    assert MergedParams(rule="ties", coefficient=1).fixed_coefficient(5) == 1.0
    assert MergedParams(rule="ties", coefficient=0.3).fixed_coefficient(5) == 0.3


def test_g3_exactly_the_share_is_kept() -> None:
    """[derived] Trimming by a threshold keeps one too many, and all that equal it."""
    assert largest(torch.arange(1.0, 11), 0.2).nonzero().flatten().tolist() == [8, 9]
    assert largest(torch.ones(10), 0.2).nonzero().flatten().tolist() == [0, 1]  # the first of equal ones
    assert int(largest(torch.ones(3), 0.01).sum()) == 1
    tau = [1, -2, 3, 4, 5, 6, 7, 8, 9, -10]
    assert flat(ties(vectors_of([0] * 10, tau), 0.2)) == [0] * 8 + [9, -10]
    v = vectors_of([0] * 10, tau, parts=[5, 5])
    assert flat(ties(v, 0.2, trim="global")) == [0] * 8 + [9, -10]
    assert flat(ties(v, 0.2, trim="tensor")) == [0] * 4 + [5] + [0] * 4 + [-10]
    assert flat(ties(vectors_of([0] * 4, [5, 6, -4, 0], [1, 0, 3, 2]), 0.5)) == [5, 6, 3, 2]


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_g4_no_buffer_is_merged(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """[official code, derived] Arithmetic on running variances gives negative ones: .5 * 3 * .1 - .5 = -.35, and then
    predictions that are no numbers.
    """
    trainer = trainer_with_singles(tmp_path, name)
    body = body_of(trainer.backbone())
    modules = [operation.module for operation in body]
    assert len(weights_of(body)) == sum(len(list(module.parameters())) for module in modules)
    monkeypatch.setattr("methods.merged.network.re_estimate", lambda *_: None)
    graph = run(trainer, rule="task_arithmetic", coefficient=5.0, heads="own")
    kept = trainer.single_task("a").graph
    found, expected = (dict(one.subgraph("a").network().named_buffers()) for one in (graph, kept))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    assert all(bool(torch.isfinite(value).all()) for value in predictions(trainer, graph).values())


def test_g5_statistics_are_those_of_the_merged_activations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """[derived] With the statistics of f_1 a network with batch norms predicts something else."""
    trainer = trainer_with_singles(tmp_path)
    graph = run(trainer, heads="own")
    found = predictions(trainer, graph)
    batch = next(iter(trainer.batches(Role.FIT)))  # all 48 images
    conv, norm = next(iter(graph.nodes.values())).module[0][:2]
    torch.testing.assert_close(norm.running_mean, conv(batch.images["image"]).mean((0, 2, 3)), atol=1e-5, rtol=1e-5)
    assert trainer.ledger.search.forward_passes == 1
    re_estimate(trainer, graph)
    assert all(torch.equal(value, found[task]) for task, value in predictions(trainer, graph).items())
    monkeypatch.setattr("methods.merged.network.re_estimate", lambda *_: None)
    left = predictions(trainer, run(trainer_with_singles(tmp_path / "left"), heads="own"))
    assert not any(torch.equal(value, found[task]) for task, value in left.items())


def test_g5_statistics_are_of_each_input(tmp_path: Path) -> None:
    """[default] On images of its own every task has statistics of its own, over shared weights."""
    trainer = trainer_with_singles(tmp_path, domains="multi")
    graph = run(trainer, heads="own")
    means = [graph.reachable([task])[0].module[1].running_mean for task in ("a", "b")]
    assert not torch.equal(*means)
    assert trainer.ledger.search.forward_passes == 2
    assert sum(p.numel() for p in graph.parameters("backbone")) == trainer.backbone().n_parameters()


def test_g5_without_batch_norms_nothing_is_read_or_charged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """[derived] Layer norms have no statistics to repair."""
    trainer = trainer_with_singles(tmp_path, "test_vit")

    def refused(role: Role) -> Iterator[Batch]:
        pytest.fail(f"batches of {role} were read")
        yield

    monkeypatch.setattr(trainer, "batches", refused)
    run(trainer, heads="own")
    assert trainer.ledger.search.forward_passes == 0
    assert trainer.facts["gain over single tasks, merging"] == trainer.facts["gain over single tasks, statistics"]


def test_a_short_last_batch_is_left_out_of_statistics() -> None:
    """[default] One image of 257 would weigh as much as the other 256; batch norms refuse it where maps are 1 x 1."""

    def batch(name: str, n: int) -> Batch:
        return Batch({name: torch.zeros(n, 3, 1, 1)}, {}, {name: torch.arange(n)})

    batches = [batch("a", 4), batch("a", 4), batch("a", 1), batch("b", 3)]
    assert list(whole_batches(batches)) == [batches[0], batches[1], batches[3]]


@pytest.mark.parametrize(
    ("params", "weight_steps", "final_steps"),
    [({"heads": "own"}, 2, 0), ({}, 2, 2), ({"heads": "own", "finetune": True}, 4, 2)],
)
def test_g6_updates_of_the_deployed_weights(
    params: dict[str, Any], weight_steps: int, final_steps: int, tmp_path: Path
) -> None:
    """[derived] The merged weights count the training of the networks that they came from; at 0 the audit turns red."""
    trainer = trainer_with_singles(tmp_path)
    graph = run(trainer, **params)
    assert trainer.weight_steps(graph) == weight_steps
    assert trainer.ledger.final.optimizer_steps == final_steps
    counted = [trainer._weight_steps[parameter] for parameter in graph.parameters("backbone")]
    assert set(counted) == {weight_steps}


@pytest.mark.parametrize("domains", ["single", "multi"])
def test_g7_retrained_heads_leave_the_backbone_alone(
    domains: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[default] The backbone has equal bits before and after; statistics that moved with the batches are replaced."""
    trainer = trainer_with_singles(tmp_path, domains=domains)
    fit, seen = trainer.fit, []

    def watched(stage: Stage) -> object:
        fresh = {task: trainer.head(task).module.state_dict() for task in trainer.data.task_names}
        heads = {task: stage.network.graph.nodes[stage.network.graph.outputs[task].name].module for task in fresh}
        for task, state in fresh.items():
            assert all(torch.equal(heads[task].state_dict()[key], value) for key, value in state.items())
        seen.append(copy.deepcopy(stage.network.state_dict()))
        result = fit(stage)
        seen.append(copy.deepcopy(stage.network.state_dict()))
        return result

    monkeypatch.setattr(trainer, "fit", watched)
    graph = run(trainer)
    before, after = seen
    last = graph.network().state_dict()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert {key for key in moved if not key.endswith(("mean", "var", "tracked"))} == {
        key for key in before if "head_pooled" in key
    }
    running = [key for key in before if key.endswith(("running_mean", "running_var"))]
    assert not any(torch.equal(last[key], after[key]) for key in running)
    re_estimate(trainer, graph)
    assert all(torch.equal(value, last[key]) for key, value in graph.network().state_dict().items())
    tasks, vectors = task_vectors(trainer.backbone(), {t: Single.of(trainer.single_task(t).graph) for t in ("b", "a")})
    assert tasks == ("a", "b")
    expected = average(vectors)
    body = [node.operation for node in graph.reachable(["b"])[:-1]]
    assert all(torch.equal(value, expected[key].float()) for key, value in weights_of(body).items())


@pytest.mark.parametrize("name", NETS)
def test_g8_a_correction_starts_as_nothing(name: str, tmp_path: Path) -> None:
    """[derived] U_t = 0 leaves the predictions as they are, bit for bit, on every layout of features."""
    trainer = trainer_with_singles(tmp_path, name)
    backbone = trainer.backbone()
    heads = {task: trainer.head(task) for task in trainer.data.task_names}
    corrections = {task: correction(trainer, backbone, task, 3) for task in heads}
    plain, corrected = (merged_graph(trainer.data, body_of(backbone), heads, c) for c in (None, corrections))
    found, expected = predictions(trainer, corrected), predictions(trainer, plain)
    assert all(torch.equal(found[task], value) for task, value in expected.items())
    assert all(bool(c.module.down.weight.any()) for c in corrections.values())
    with torch.no_grad():
        corrections["a"].module.up.weight.fill_(0.1)
    found = predictions(trainer, corrected)
    assert [torch.equal(found[task], expected[task]) for task in ("a", "b")] == [False, True]


def test_surgery_by_hand() -> None:
    """[third party] h - U ReLU(D h) at every position, whichever axis holds the channels."""
    module = Surgery(2, 1, 1)
    with torch.no_grad():
        module.down.weight.copy_(torch.tensor([[1.0, -1.0]]))
        module.up.weight.copy_(torch.tensor([[2.0], [0.5]]))
    h = torch.tensor([[3.0, 1.0], [1.0, 3.0]])  # two positions; ReLU(D h) = 2 and 0
    expected = torch.tensor([[-1.0, 0.0], [1.0, 3.0]])
    assert torch.equal(module(h.T.reshape(1, 2, 2, 1)).flatten(1)[0].view(2, 2).T, expected)
    module.axis = -1
    assert torch.equal(module(h[None])[0], expected)
    assert sum(p.numel() for p in Surgery(512, 16, 1).parameters()) == 16_384


@pytest.mark.parametrize("domains", ["single", "multi"])
def test_surgery_brings_features_back_and_changes_nothing_else(domains: str, tmp_path: Path) -> None:
    """[third party] L1 to the features of f_t, in eval mode; a target of the merged network itself would end at 0."""
    trainer = trainer_with_singles(tmp_path, domains=domains)
    singles = {task: Single.of(trainer.single_task(task).graph) for task in ("a", "b")}
    corrections = {task: correction(trainer, trainer.backbone(), task, 8) for task in singles}
    heads = {task: one.head for task, one in singles.items()}
    graph = merged_graph(trainer.data, Single.of(trainer.single_task("a").graph).body, heads, corrections)
    re_estimate(trainer, graph)
    batch = next(iter(trainer.context.loaders[Role.FIT].training(("a", "b"), 0, 1, "x")))

    def feature(task: str, modules: Iterable[nn.Module]) -> Tensor:
        h = batch.images[trainer.data.input_of(task)]
        for module in modules:
            h = module.eval()(h)
        return h

    def losses() -> dict[str, float]:
        return {task: float(loss) for task, loss in Repair(graph, corrections, singles).losses(batch, "ab").items()}

    with torch.no_grad():
        before = losses()
        for task, one in singles.items():
            merged = feature(task, [node.module for node in graph.reachable([task])[:-2]])
            own = feature(task, [operation.module for operation in one.body])
            assert before[task] == pytest.approx(float((merged - own).abs().mean()), rel=1e-5)
    state = copy.deepcopy(graph.network().state_dict())
    train_corrections(trainer, graph, corrections, singles, 20)
    with torch.no_grad():
        after = losses()
    assert all(after[task] < before[task] for task in before)
    kept = {key: value for key, value in state.items() if "surgery" not in key}
    assert all(torch.equal(graph.network().state_dict()[key], value) for key, value in kept.items())
    assert (trainer.ledger.search.optimizer_steps, trainer.weight_steps(graph)) == (20, 20)


def test_corrections_get_no_more_updates_than_the_budget() -> None:
    """[default] The published 1,000 steps would be more than other rows' weights get at a small budget."""
    assert MergedParams(surgery_rank=1).n_surgery_steps(800) == 800
    assert MergedParams(surgery_rank=1).n_surgery_steps(5000) == 1000
    assert MergedParams(surgery_rank=1, surgery_steps=900).n_surgery_steps(800) == 900


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_c1_one_task_ends_as_its_own_network(name: str, tmp_path: Path) -> None:
    """[default] The weights are those of the single-task network, bit for bit; so are predictions without batch norms,
    whose statistics are estimated anew.
    """
    trainer = trainer_with_singles(tmp_path, name, n_tasks=1)
    graph, expected = run(trainer, heads="own"), trainer.single_task("a").graph
    assert graph.hash() == expected.hash()
    for mine, theirs in zip(graph.parameters(), expected.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    if name == "test_vit":
        assert torch.equal(predictions(trainer, graph)["a"], predictions(trainer, expected)["a"])


@pytest.mark.parametrize("domains", ["single", "multi"])
def test_c2_the_order_of_tasks_changes_nothing(domains: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """[default] Which network's parameters take the merged weights is told by names, never by the order. Statistics
    that nobody re-estimates show whose they are.
    """
    if domains == "single":
        monkeypatch.setattr("methods.merged.network.re_estimate", lambda *_: None)
    found: list[dict[str, Tensor]] = []
    images: dict[str, Tensor] = {}
    for order in (("a", "b"), ("b", "a")):
        trainer = trainer_with_singles(tmp_path / order[0], domains=domains)
        data = dataclasses.replace(trainer.data, tasks=tuple(trainer.data.task(task) for task in order))
        trainer.context = dataclasses.replace(trainer.context, data=data)
        for loader in trainer.context.loaders.values():
            loader.spec = trainer.data
        images = images if found else images_of(trainer)
        graph = run(trainer, rule="ties", heads="own", surgery_rank=2)
        found.append(predictions(trainer, graph, images))
    assert all(torch.equal(found[0][task], found[1][task]) for task in ("a", "b"))


def test_c2_no_sum_depends_on_the_order_of_tasks(tmp_path: Path) -> None:
    """[default] Sums of three tasks round, in float64 too; they are taken in one order."""
    trainer = trainer_with_singles(tmp_path, n_tasks=3)
    backbone = trainer.backbone()
    singles = {}
    with torch.no_grad():
        next(backbone.stem.parameters()).view(-1)[0] = 0
        for task, value in {"a": 1.0, "b": 2.0**-60, "c": -1.0}.items():
            singles[task] = Single.of(trainer.single_task(task).graph)
            next(singles[task].body[0].module.parameters()).view(-1)[0] = value
    orders = [dict(items) for items in itertools.permutations(singles.items())]
    for merge in (average, summed, lambda v: ties(v, 1.0, "sum")):
        found = [next(iter(merge(task_vectors(backbone, order)[1]).values())).flatten()[0] for order in orders]
        assert len(set(map(float, found))) == 1


def test_c3_files_give_the_same_network(tmp_path: Path) -> None:
    """[default] Corrections too are written to JSON and safetensors."""
    trainer = trainer_with_singles(tmp_path)
    graph = run(trainer, rule="ties", surgery_rank=2)
    again = TaskGraph.from_json(graph.to_json(), graph.tensors())
    again.network().to(memory_format=torch.channels_last)  # as in training: the same kernels
    found, expected = predictions(trainer, again), predictions(trainer, graph)
    assert all(torch.equal(found[task], value) for task, value in expected.items())
    assert again.hash() == graph.hash()


@pytest.mark.parametrize("name", NETS)
def test_c4_c5_size_and_compute_are_those_of_hard_sharing(name: str, tmp_path: Path) -> None:
    """[derived] P_ref and heads, plus 2 r C for each task with surgery; runs on ResNet, ViT and Swin."""
    trainer = trainer_with_singles(tmp_path, name)
    backbone = trainer.backbone()
    graph = run(trainer, rule="task_arithmetic", heads="own", surgery_rank=3)
    plain = plain_graph(trainer.data, trainer.data.task_names, backbone, trainer.head)
    p_ref, c = backbone.n_parameters(), backbone.num_features
    heads = sum(p.numel() for p in plain.parameters("heads"))
    assert sum(p.numel() for p in graph.parameters()) == p_ref + heads + 2 * 2 * 3 * c
    assert sum(p.numel() for p in graph.parameters("added")) == 2 * 2 * 3 * c
    assert size(graph, p_ref).x_backbone == pytest.approx((p_ref + 2 * 2 * 3 * c) / p_ref)
    without = merged_graph(trainer.data, body_of(backbone), {t: trainer.head(t) for t in trainer.data.task_names})
    assert without.hash() == plain.hash()
    shapes = dict.fromkeys(trainer.data.inputs, (1, 3, *trainer.data.native_size))
    assert compute(graph, shapes).macs_joint > compute(plain, shapes).macs_joint
    with torch.no_grad():
        assert all(bool(torch.isfinite(value).all()) for value in predictions(trainer, graph).values())


def test_c6_a_killed_run_ends_in_the_same_bits(tmp_path: Path) -> None:
    """[default] Killed in the middle of the surgery, and in the middle of what is trained after it."""
    params = {"rule": "ties", "heads": "own", "surgery_rank": 2, "surgery_steps": 2, "finetune": True}

    def trainer(folder: str) -> CellTrainer:
        return trainer_with_singles(tmp_path / folder, checkpoint_steps=1)

    whole = trainer("whole")
    expected = outcome(whole, run(whole, **params))
    for batches in (1, 3):
        killed = trainer(f"killed {batches}")
        kill_after(killed, batches)
        with pytest.raises(Killed):
            run(killed, **params)
        resumed = trainer(f"killed {batches}")
        assert outcome(resumed, run(resumed, **params)) == expected


def test_the_best_coefficient_of_the_grid_is_taken(tmp_path: Path) -> None:
    """[default] By the mean relative gain over the f_t on select, with their heads and statistics of each candidate."""
    trainer = trainer_with_singles(tmp_path)
    graph = run(trainer, rule="task_arithmetic", coefficient="select", heads="own")
    gains = trainer.artifacts["gains of the grid"]
    chosen = trainer.facts["coefficient"]["value"]
    assert gains.shape == (10,)
    assert chosen == best_of(gains.tolist())
    assert len(set(gains.tolist())) > 1
    singles = {task: trainer.single_task(task).graph for task in ("a", "b")}
    reference = {task: trainer.evaluate(one.network(), Role.SELECT, [task])[task] for task, one in singles.items()}
    final = trainer.evaluate(graph.network(), Role.SELECT)
    assert relative_change(reference, final) == pytest.approx(gains.max())
    assert trainer.facts["gain over single tasks, the end"]["value"] == pytest.approx(gains.max())
    _, vectors = task_vectors(trainer.backbone(), {task: Single.of(one) for task, one in singles.items()})
    expected = along(vectors.start, summed(vectors), chosen)
    body = [node.operation for node in graph.reachable(["a"])[:-1]]
    assert all(torch.equal(value, expected[key].float()) for key, value in weights_of(body).items())
    assert trainer.ledger.search.forward_passes == 10 * (1 + 1) + 1
    fixed = trainer_with_singles(tmp_path / "fixed")
    run(fixed, rule="task_arithmetic", coefficient=chosen, heads="own")  # the looks leave no statistics behind
    assert torch.equal(*(torch.as_tensor(t.artifacts["gains over single tasks"]) for t in (trainer, fixed)))
    assert [mark[0] for mark in trainer.figures["coefficient"].panels[0].marks] == [chosen]


def test_a_coefficient_whose_predictions_are_not_finite_is_never_the_best() -> None:
    """[default] A metric without a value would count as no loss."""
    assert GRID == (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

    def metrics(a: float | None, b: float | None) -> dict[str, dict[str, Score]]:
        return {task: {"up": Score(value, "percent", True, 1)} for task, value in {"a": a, "b": b}.items()}

    assert gain(metrics(50, 80), metrics(40, 80)) == pytest.approx(-10)
    assert gain(metrics(50, 80), metrics(40, None)) == -math.inf
    assert gain(metrics(50, None), metrics(40, None)) == pytest.approx(-20)
    assert best_of([-3, -1, -1, -math.inf, *[-5] * 6]) == 0.2
    assert best_of([-math.inf] * 10) == 0.1
    assert change_of_task({"down": Score(0.5, "", False, 1)}, {"down": Score(0.4, "", False, 1)}) == pytest.approx(20)
    assert change_of_task({"zero": Score(0.0, "", False, 1)}, {"zero": Score(0.4, "", False, 1)}) is None


def test_disagreement_by_hand() -> None:
    """Cosines and opposite signs of pairs in two layers; nothing moved gives no value."""
    v = vectors_of([3, 4, 0, 0], [1, 0, 2, -1], [1, 1, -2, -1], [0, 0, 0, 1], parts=[2, 2])
    found = disagreement(v)
    assert found.layers == ("layer0", "layer1")
    assert found.cosines[0] == pytest.approx([1 / math.sqrt(2), -3 / 5])
    assert np.isnan(found.cosines[1:, 0]).all()
    assert found.cosines[1:, 1] == pytest.approx([-1 / math.sqrt(5), -1 / math.sqrt(5)])
    assert found.opposite[:, 1].tolist() == [0.5, 1, 1]
    assert found.opposite[0, 0] == 0
    assert found.opposite_share == pytest.approx([1 / 3, 1, 1])
    assert found.cosine == pytest.approx([(1 - 3) / math.sqrt(6 * 7), -1 / math.sqrt(6), -1 / math.sqrt(7)])
    assert found.norms == pytest.approx([math.sqrt(6) / 5, math.sqrt(7) / 5, 1 / 5])
    cosines, signs = disagreement_figure(found, ("a", "b", "c")).panels
    assert cosines.rows == signs.rows == ("a / b", "a / c", "b / c")
    assert cosines.values[1][0] is None
    assert signs.values[0] == pytest.approx((0, 0.5))


def test_cosines_of_more_than_one_pair_are_told_by_their_range(tmp_path: Path) -> None:
    trainer = trainer_with_singles(tmp_path)
    tell_disagreement(trainer, vectors_of([1, 1], [1, 0], [1, 0], [0, 2]), ("a", "b", "c"))
    words = ("minimum", "mean", "maximum")
    found = [trainer.facts[f"cosine of task vectors, {word}"]["value"] for word in words]
    assert found == pytest.approx([0, 1 / 3, 1])
    tell_disagreement(trainer, vectors_of([1, 1], [0, 0], [1, 0]), ("a", "b"))
    assert trainer.facts["cosine of task vectors"]["value"] is None  # one network did not move
    assert trainer.facts["opposite signs"]["value"] is None


def test_many_pairs_are_shown_by_their_range() -> None:
    v = vectors_of([1, 1], *([1.0, t - 2.5] for t in range(6)), parts=[1, 1])
    panel = disagreement_figure(disagreement(v), tuple("abcdef")).panels[0]
    assert panel.rows == ("smallest of 15 pairs", "mean of 15 pairs", "largest of 15 pairs")
    assert panel.values[0] == (1, -1)
    assert panel.values[1][1] == pytest.approx((6 - 9) / 15)
    assert panel.values[2] == (1, 1)


def test_what_each_stage_costs_is_told(tmp_path: Path) -> None:
    """Facts and an array, by hand from the metrics on select; a task that is missing in a stage would go unseen."""
    trainer = trainer_with_singles(tmp_path)
    graph = run(trainer)
    singles = {task: trainer.single_task(task).graph for task in ("a", "b")}
    reference = {task: trainer.evaluate(one.network(), Role.SELECT, [task])[task] for task, one in singles.items()}
    final = trainer.evaluate(graph.network(), Role.SELECT)
    gains = trainer.artifacts["gains over single tasks"]
    assert gains.shape == (3, 2)
    own = trainer_with_singles(tmp_path / "own")
    run(own, heads="own")
    kept = own.artifacts["gains over single tasks"]  # deployed with nothing trained: as after re-estimation
    assert kept[0].tolist() == gains[0].tolist() != gains[1].tolist() == kept[1].tolist() == kept[2].tolist()
    assert gains[2].tolist() == pytest.approx([change_of_task(reference[task], final[task]) for task in ("a", "b")])
    names = [f"gain over single tasks, {stage}" for stage in ("merging", "statistics", "the end")]
    assert [trainer.facts[name]["value"] for name in names] == pytest.approx(gains.mean(1).tolist())
    assert trainer.figures["gains"].panels[0].columns == ("merging", "statistics", "the end")
    found = disagreement(task_vectors(trainer.backbone(), {t: Single.of(one) for t, one in singles.items()})[1])
    assert trainer.facts["norm of the task vector, b"]["value"] == pytest.approx(found.norms[1])
    assert trainer.facts["cosine of task vectors"]["value"] == pytest.approx(found.cosine[0])
    assert trainer.facts["opposite signs"]["value"] == pytest.approx(100 * found.opposite_share[0])
    assert trainer.elements == []
    assert trainer.search_moved == {}


def test_random_starts_are_labelled(tmp_path: Path) -> None:
    """[recalled] Networks from random weights need not lie in one basin."""
    scratch = trainer_with_singles(tmp_path / "scratch")
    run(scratch, heads="own")
    assert scratch.flags == [
        "merged-scratch: the networks start from random weights, where merging needs trained ones."
    ]
    given = dataclasses.replace(backbone_of("test_resnet", 8), from_scratch=False)
    trainer = trainer_with_singles(tmp_path / "given")
    trainer.context = dataclasses.replace(trainer.context, prototype=given)
    run(trainer, heads="own")
    assert trainer.flags == []
    method = Merged(MergedParams())
    notes = [any("merged-scratch" in note for note in method.check(trainer.data, b, Budget(4)))
             for b in (backbone_of("test_resnet", 8), given)]  # fmt: skip
    assert notes == [True, False]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"coefficient": 0.3}, "rule: average, which has none"),
        ({"rule": "ties", "coefficient": 0}, "greater than 0"),
        ({"density": 0.5}, "density is 0.5 under rule: average"),
        ({"rule": "task_arithmetic", "trim": "tensor"}, "trim is 'tensor' under rule: task_arithmetic"),
        ({"rule": "task_arithmetic", "disjoint": "sum"}, "disjoint is 'sum' under rule: task_arithmetic"),
        ({"finetune": True}, "set heads: own"),
        ({"surgery_steps": 10}, "surgery_rank 0"),
    ],
)
def test_parameters_that_would_do_nothing_are_refused(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        MergedParams(**params)


def test_planning_tells_cost_and_refuses_a_rank_above_the_channels() -> None:
    backbone, data = backbone_of("test_resnet", 8), tasks_of(2)
    c = backbone.num_features
    with pytest.raises(UsageError, match=rf"surgery_rank is {c + 1} .* expected 0 to {c}"):
        Merged(MergedParams(surgery_rank=c + 1)).check(data, backbone, Budget(4))

    def notes(**params: Any) -> str:
        return " ".join(Merged(MergedParams(**params)).check(data, backbone, Budget(4)))

    assert "the 2 single-task networks, 8 steps" in notes()
    assert "no final training" in notes(heads="own")
    assert "twice the budget's updates" in notes(heads="own", finetune=True)
    assert "above the budget's 4" in notes(surgery_rank=c, surgery_steps=5)
    assert "above the budget's" not in notes(surgery_rank=c)


def test_balancing_needs_something_that_is_trained_jointly() -> None:
    assert "nothing that tasks share" in Merged(MergedParams()).unfit_for_balancing
    assert "nothing that tasks share" in Merged(MergedParams(heads="own")).unfit_for_balancing
    assert Merged(MergedParams(heads="own", finetune=True)).unfit_for_balancing == ""


def test_other_weights_are_refused() -> None:
    with pytest.raises(ValueError, match=r"not in all: \['x'\]"):
        TaskVectors({"w": torch.zeros(1)}, [{"w": torch.zeros(1), "x": torch.zeros(1)}])
    assert merged_network.Counted(torch.nn.Identity()).passes == 0
