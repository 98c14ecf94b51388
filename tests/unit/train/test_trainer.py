"""The training loop: what it trains, what it counts, and that a killed training ends with the same bits."""

from __future__ import annotations

import copy
import dataclasses
import functools
import random
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmark.train.stage import DivergedError
from benchmark.train.trainer import CellTrainer
from datasets.contracts import Batch
from datasets.errors import ProtocolError, UsageError
from methods.contracts import Metrics, OptimizerSpec, ParameterGroup, Role, Score, Stage
from methods.plain import fit_plain, parameter_groups, plain_graph, task_losses
from tests.unit.harness import toy_trainer
from tests.unit.kills import Killed, kill_after, outcome
from tests.unit.trial_methods import ADAM, Alternating, Masked, PerTask, SkipNetwork

METHODS = {"alternating": Alternating, "per task": PerTask, "masked": Masked}


@functools.cache
def straight(name: str) -> dict[str, object]:
    """The outcome of a training that nothing interrupts."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = toy_trainer(Path(folder), steps=6)
        return outcome(trainer, METHODS[name]().run(trainer))


@pytest.mark.parametrize("name", METHODS)
def test_killed_training_ends_with_the_bits_of_an_uninterrupted_one(name: str, tmp_path: Path) -> None:
    expected = straight(name)
    for case in range(2):
        points = random.Random(f"{name}/{case}")
        folder = tmp_path / str(case)
        for _ in range(3):  # killed up to three times, later each time
            trainer = toy_trainer(folder, steps=6, checkpoint_steps=points.choice([1, 2, 3]))
            kill_after(trainer, points.randint(1, 9))
            try:
                graph = METHODS[name]().run(trainer)
            except Killed:
                continue
            break
        else:
            trainer = toy_trainer(folder, steps=6, checkpoint_steps=2)
            graph = METHODS[name]().run(trainer)
        assert outcome(trainer, graph) == expected, case


@pytest.mark.parametrize("name", METHODS)
def test_a_kill_between_the_last_step_and_the_end_of_a_stage_loses_nothing(name: str, tmp_path: Path) -> None:
    expected = straight(name)
    folder = tmp_path / "killed"
    for _ in range(10):
        trainer = toy_trainer(folder, steps=6, checkpoint_steps=1)
        save = trainer._checkpoints.save

        def dying(number: int, payload: dict, *, finished: bool, save: Callable = save) -> None:
            if finished and not (folder / f"stage-{number:03d}.end.pt.once").exists():
                (folder / f"stage-{number:03d}.end.pt.once").touch()
                raise Killed
            save(number, payload, finished=finished)

        trainer._checkpoints.save = dying
        try:
            graph = METHODS[name]().run(trainer)
        except Killed:
            continue
        break
    assert outcome(trainer, graph) == expected


def test_clocks_continue_after_a_resume(tmp_path: Path) -> None:
    killed = toy_trainer(tmp_path, checkpoint_steps=2)
    kill_after(killed, 9)
    with pytest.raises(Killed):
        fit_plain(killed, "joint", 12)
    spent = killed.ledger.final.seconds
    assert spent > 0
    resumed = toy_trainer(tmp_path)
    fit_plain(resumed, "joint", 12)
    assert resumed.ledger.final.seconds > spent


def test_finished_stages_are_not_trained_again(tmp_path: Path) -> None:
    first = toy_trainer(tmp_path)
    expected = fit_plain(first, "joint", 12)
    second = toy_trainer(tmp_path)
    kill_after(second, 0)
    graph, result = fit_plain(second, "joint", 12)
    assert graph.weights_hash() == expected[0].weights_hash()
    assert result == expected[1]


def test_checkpoints_of_other_code_or_other_stages_are_not_used(tmp_path: Path) -> None:
    first = toy_trainer(tmp_path)
    fit_plain(first, "joint", 12)
    for trainer, steps in ((toy_trainer(tmp_path, version="other"), 12), (toy_trainer(tmp_path), 11)):
        kill_after(trainer, 0)
        with pytest.raises(Killed):
            fit_plain(trainer, "joint", steps)


def test_torn_checkpoints_are_not_used(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path)
    expected = fit_plain(trainer, "joint", 12)[0].weights_hash()
    (file,) = tmp_path.glob("stage-*.pt")
    file.write_bytes(file.read_bytes()[:1000])
    again = toy_trainer(tmp_path)
    assert fit_plain(again, "joint", 12)[0].weights_hash() == expected


@pytest.mark.numerical
def test_training_equals_a_loop_written_by_hand(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, recipe={"clip_norm": 1.0})
    graph, result = fit_plain(trainer, "joint", 12)

    other = toy_trainer(tmp_path / "other")
    backbone = other.backbone()
    heads = {task: other.head(task).module for task in ("a", "b")}
    model = nn.ModuleList([backbone.module(), *heads.values()]).train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, fused=True)
    rates = []
    for step, batch in enumerate(other.context.loaders[Role.FIT_ARCH].training(("a", "b"), 0, 12, "data-order")):
        optimizer.param_groups[0]["lr"] = 0.05 * 0.5 * (1 + np.cos(np.pi * step / 12))  # 5 % of 12 steps: no warm-up
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.zero_grad()
        feature = backbone.forward_features(batch.images["image"])
        losses = {task: nn.functional.cross_entropy(heads[task](feature), batch.targets[task]) for task in heads}
        (losses["a"] + 0.5 * losses["b"]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    by_hand = torch.cat([p.detach().flatten() for p in model.parameters()])
    trained = torch.cat([p.detach().flatten() for p in graph.parameters()])
    assert torch.equal(torch.sort(by_hand).values, torch.sort(trained).values)
    assert len(result.loss["a"]) == 4


def test_a_phase_moves_only_what_it_trains(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path)
    network = SkipNetwork(trainer)
    losses = task_losses(trainer.data, network)
    logits = [ParameterGroup("arch", [network.logits], ADAM)]

    def state() -> dict[str, torch.Tensor]:
        return copy.deepcopy(network.state_dict())

    start = state()
    trainer.fit(Stage("policy", network, 3, Role.ARCH, logits, losses, "search"))
    middle = state()
    moved = {name for name in start if not torch.equal(start[name], middle[name])}
    assert "logits" in moved
    assert not {name for name, _ in network.named_parameters()} & moved - {"logits"}
    assert any("running_mean" in name for name in moved)  # norms stay in train mode
    trainer.fit(Stage("weights", network, 3, Role.FIT, network.weights(), losses, "search"))
    assert torch.equal(network.logits, middle["logits"])
    assert all(parameter.requires_grad for parameter in network.parameters())  # as it was


def test_one_step_per_task_counts_and_uses_the_updated_weights(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path)
    asked: list[tuple[str, ...]] = []
    network = SkipNetwork(trainer)
    inner = task_losses(trainer.data, network)

    def losses(batch: object, tasks: tuple[str, ...]) -> object:
        asked.append(tuple(tasks))
        return inner(batch, tasks)

    trainer.fit(Stage("s", network, 3, Role.FIT, network.weights(), losses, "search", "per_task"))
    assert asked == [("a",), ("b",)] * 3
    assert trainer.ledger.search.optimizer_steps == 6
    assert trainer.ledger.search.images == 24
    assert trainer.ledger.final.optimizer_steps == 0


def test_optimizer_state_is_cleared_where_the_method_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counters: list[float] = []
    step = torch.optim.Adam.step

    def watched(self: torch.optim.Adam, closure: object = None) -> object:
        result = step(self)
        counters.append(float(next(iter(self.state.values()))["step"]))
        return result

    monkeypatch.setattr(torch.optim.Adam, "step", watched)
    trainer = toy_trainer(tmp_path)
    network = SkipNetwork(trainer)
    logits = [ParameterGroup("arch", [network.logits], ADAM)]
    losses = task_losses(trainer.data, network)
    trainer.fit(Stage("s", network, 8, Role.ARCH, logits, losses, "search", fresh_optimizer="cycle"))
    assert counters == [1, 2] * 4
    counters.clear()
    trainer.fit(Stage("t", network, 8, Role.ARCH, logits, losses, "search"))
    assert counters == [1, 2, 3, 4, 5, 6, 7, 8]


def test_a_method_sees_the_batch_before_its_step_and_its_work_is_counted(tmp_path: Path) -> None:
    """Once each, before the losses, with the passes of a look in train_macs: those of a method that looks at every
    second step, and of one that does not look, differ by the looks alone. A step that is counted holds no look.
    """
    macs = {}
    for looks in (False, True):
        trainer = toy_trainer(tmp_path / str(looks), steps=4)
        graph = plain_graph(trainer.data, ("a", "b"), trainer.backbone(), trainer.head)
        network = graph.network()
        inner, order = task_losses(trainer.data, network), []

        def losses(batch: Batch, tasks: Sequence[str], inner: Callable = inner, order: list = order) -> object:
            order.append(("step", batch.index["image"].tolist()))
            return inner(batch, tasks)

        def before_step(
            batch: Batch, inner: Callable = inner, order: list = order, looks: bool = looks
        ) -> Sequence[object]:
            if looks and len(order) % 4 == 0:
                inner(batch, ("a", "b"))["a"].backward()  # gradients that the step must not see
            order.append(("look", batch.index["image"].tolist()))
            return ()

        stage = Stage("s", network, 4, Role.FIT, parameter_groups(graph), losses, "final", before_step=before_step)
        trainer.fit(stage)
        assert [name for name, _ in order] == ["look", "step"] * 4
        assert all(look[1] == step[1] for look, step in zip(order[::2], order[1::2], strict=True))
        macs[looks] = trainer.ledger.final.train_macs
    with FlopCounterMode(display=False) as counter:
        batch = next(iter(trainer.context.loaders[Role.FIT].training(("a", "b"), 0, 1, "x")))
        inner(batch, ("a", "b"))["a"].backward()
    assert macs[True] - macs[False] == 2 * counter.get_total_flops() // 2


def test_cycles_share_the_steps_and_a_phase_can_start_later(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path)
    network = SkipNetwork(trainer)
    inner = task_losses(trainer.data, network)
    order: list[str] = []

    def stage(name: str, steps: int, first: int) -> Stage:
        def losses(batch: object, tasks: object) -> object:
            order.append(name)
            return inner(batch, tasks)

        begin = lambda cycle: order.append(f"{name}{cycle}")  # noqa: E731
        return Stage(
            name, network, steps, Role.FIT, network.weights(), losses, "search", before_cycle=begin, first_cycle=first
        )

    arch, weights = trainer.alternate([stage("x", 3, 1), stage("y", 5, 0)], cycles=3)
    assert order == ["y0", "y", "x1", "x", "y1", "y", "y", "x2", "x", "x", "y2", "y", "y"]
    assert len(arch.loss["a"]) == 2
    assert len(weights.loss["a"]) == 3


def test_masked_weights_stay_exactly_zero(tmp_path: Path) -> None:
    method = Masked()
    method.run(toy_trainer(tmp_path))
    for parameter, mask in zip(method.masked, method.masks, strict=True):
        assert bool((parameter[~mask] == 0).all())
        assert bool((parameter[mask] != 0).any())


@pytest.mark.parametrize(("bad", "value"), [(float("nan"), "nan"), (1e9, "1000000000")])
def test_divergence_names_stage_step_and_task(tmp_path: Path, bad: float, value: str) -> None:
    trainer = toy_trainer(tmp_path)
    network = SkipNetwork(trainer)
    inner = task_losses(trainer.data, network)
    calls = 0

    def losses(batch: object, tasks: object) -> object:
        nonlocal calls
        calls += 1
        found = dict(inner(batch, tasks))
        if calls == 6:
            found["b"] = found["b"] + bad
        return found

    stage = Stage("search", network, 12, Role.FIT, network.weights(), losses, "search")
    with pytest.raises(DivergedError, match=f"'b' is {value}.* at step 5 of stage 'search'") as caught:
        trainer.fit(stage)
    assert (caught.value.stage, caught.value.step, caught.value.task) == ("search", 5, "b")


def test_tasks_without_a_label_are_left_out_of_step_and_curve(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path)
    network = SkipNetwork(trainer)
    inner = task_losses(trainer.data, network)
    stage = Stage(
        "s",
        network,
        4,
        Role.FIT,
        network.weights(),
        lambda batch, tasks: {task: loss for task, loss in inner(batch, tasks).items() if task == "a"},
        "search",
        "per_task",
    )
    result = trainer.fit(stage)
    assert np.isnan(result.loss["b"]).all()
    assert np.isfinite(result.loss["a"]).all()
    assert trainer.ledger.search.optimizer_steps == 4


def test_learning_rates_of_heads_added_layers_and_prescribed_groups(tmp_path: Path) -> None:
    recipe = {"optimizer": {"lr": 0.1, "head_lr": 0.3, "momentum": 0.0, "weight_decay": 0.0}, "clip_norm": None}
    recipe["schedule"] = {"name": "constant", "warmup": 0.0}
    trainer = toy_trainer(tmp_path, recipe=recipe)
    parts = nn.ParameterDict({name: nn.Parameter(torch.zeros(1)) for name in ("backbone", "added", "heads", "arch")})
    groups = [ParameterGroup(name, [parts[name]]) for name in ("backbone", "added", "heads")]
    groups.append(ParameterGroup("arch", [parts["arch"]], OptimizerSpec("sgd", lr=0.7)))
    stage = Stage(
        "s", parts, 1, Role.FIT, groups, lambda batch, tasks: {"a": sum(p.sum() for p in parts.values())}, "search"
    )
    trainer.fit(stage)
    moved = {name: round(-parameter.item(), 6) for name, parameter in parts.items()}
    assert moved == {"backbone": 0.1, "added": 0.3, "heads": 0.3, "arch": 0.7}


def test_report_is_closed_to_methods(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path)
    graph = plain_graph(trainer.data, ("a", "b"), trainer.backbone(), trainer.head)
    with pytest.raises(ProtocolError, match="once, by the harness"):
        trainer.evaluate(graph.network(), Role.REPORT)
    with pytest.raises(ProtocolError, match="not open to methods"):
        list(trainer.batches(Role.REPORT))
    trainer.report(graph)
    assert trainer.ledger.evaluation_seconds > 0
    with pytest.raises(ProtocolError, match="evaluated once"):
        trainer.report(graph)


def test_a_method_can_have_batches_as_a_training_has_them(tmp_path: Path) -> None:
    """Of the recipe's size and shuffled: files are often sorted by class, and a batch of one class tells little. No
    image comes twice, there are no more batches than images, and inputs follow one another.
    """
    trainer = toy_trainer(tmp_path, domains="multi")
    batches = list(trainer.batches(Role.FIT, n_batches=4))
    assert [list(batch.images) for batch in batches] == [["a"]] * 4 + [["b"]] * 4
    seen = [row for batch in batches[:4] for row in batch.index["a"].tolist()]
    assert [len(batch.index["a"]) for batch in batches[:4]] == [8] * 4
    assert len(set(seen)) == 32
    assert seen != sorted(seen)
    again = list(trainer.batches(Role.FIT, n_batches=4, tasks=["a"]))
    assert [row for batch in again for row in batch.index["a"].tolist()] == seen
    other = list(trainer.batches(Role.FIT, n_batches=4, draw_seed=7))
    assert other[0].index["a"].tolist() != seen[:8]
    assert sum(len(batch.index["a"]) for batch in trainer.batches(Role.FIT, n_batches=50, tasks=["a"])) == 48
    with pytest.raises(ProtocolError, match="not open"):
        trainer.batches(Role.REPORT, n_batches=1)


def test_equal_initial_weights_and_heads_for_everybody(tmp_path: Path) -> None:
    one, two = toy_trainer(tmp_path / "1"), toy_trainer(tmp_path / "2")
    two.head("b")  # another order of calls
    for first, second in ((one.backbone().module(), two.backbone().module()), (one.head("a"), two.head("a"))):
        first = first if isinstance(first, nn.Module) else first.module
        second = second if isinstance(second, nn.Module) else second.module
        pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_multi_domain_tasks_see_their_own_images_and_their_own_statistics(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, domains="multi")
    graph, _ = fit_plain(trainer, "joint", 6)
    assert trainer.ledger.final.forward_passes == 12
    assert trainer.ledger.final.images == 96
    norms = [m for node in graph.nodes.values() for m in node.module.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(int(norm.num_batches_tracked) == 6 for norm in norms)
    shared = {id(parameter) for parameter in graph.subgraph("a").parameters()}
    assert shared & {id(parameter) for parameter in graph.subgraph("b").parameters()}
    metrics = trainer.evaluate(graph.network(), Role.SELECT)
    assert {task: scores["accuracy"].n_units for task, scores in metrics.items()} == {"a": 20, "b": 20}


def test_weight_steps_follow_the_weights_not_the_stages(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path)
    graph, _ = fit_plain(trainer, "first", 6)
    network = graph.network()
    stage = Stage("more", network, 4, Role.FIT, parameter_groups(graph), task_losses(trainer.data, network), "search")
    trainer.fit(stage)
    assert trainer.weight_steps(graph) == 10
    assert trainer.weight_steps(fit_plain(trainer, "fresh", 3)[0]) == 3


def test_train_macs_are_those_of_forward_and_backward(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path)
    graph, _ = fit_plain(trainer, "joint", 5)
    network, losses = graph.network(), None
    losses = task_losses(trainer.data, network)
    batch = next(iter(trainer.context.loaders[Role.FIT].training(("a", "b"), 0, 1, "x")))
    with FlopCounterMode(display=False) as counter:
        found = losses(batch, ("a", "b"))
        (found["a"] + found["b"]).backward()
    assert trainer.ledger.final.train_macs == 5 * counter.get_total_flops() // 2


def test_v1_best_on_select_takes_the_earliest_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmark.train import selection

    scores = iter([10.0, 12.0, 12.0, 11.0, 9.0])
    monkeypatch.setattr(selection.BestOnSelect, "_delta", lambda self, metrics, tasks: next(scores))
    trainer = toy_trainer(tmp_path, steps=10, selection={"rule": "best-on-select", "evaluations": 5})
    states: dict[int, str] = {}
    look = selection.BestOnSelect.look

    def watched(self: selection.BestOnSelect, run: object) -> None:
        look(self, run)
        states[run.done] = graph_hash(run.stage.network)

    def graph_hash(network: nn.Module) -> str:
        return network.graph.weights_hash()

    monkeypatch.setattr(selection.BestOnSelect, "look", watched)
    graph, _ = fit_plain(trainer, "joint", 10)
    assert trainer.selected == {"step": 4}
    assert graph.weights_hash() == states[4] != states[10]
    again = toy_trainer(tmp_path, steps=10, selection={"rule": "best-on-select", "evaluations": 5})
    assert fit_plain(again, "joint", 10)[0].weights_hash() == states[4]  # from its checkpoint
    assert again.selected == {"step": 4}


@pytest.mark.parametrize("deployed", [0, 1, 2])
def test_curves_and_step_are_those_of_the_network_that_is_returned(
    deployed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several draws that are trained to the end, not the last one but the chosen one is described."""
    scores = iter([0.0, 3.0, 1.0, 0.0, 1.0, 3.0, 3.0, 1.0, 0.0])  # best at the 2nd, 3rd and 1st of three looks
    monkeypatch.setattr("benchmark.train.selection.BestOnSelect._delta", lambda *arguments: next(scores))
    trainer = toy_trainer(tmp_path, steps=9, selection={"rule": "best-on-select", "evaluations": 3})
    trained = [fit_plain(trainer, f"draw {k}", 9 + k) for k in range(3)]
    graph, result = trained[deployed]
    trainer.report(graph)
    for task in trainer.data.task_names:
        assert trainer.curves[f"loss/{task}"] == list(result.loss[task])
    assert trainer.selected == {"step": [6, 10, 3][deployed]}


def test_per_task_steps_refuse_loss_balancing(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, recipe={"balancing": {"name": "uncertainty", "params": {}}})
    network = SkipNetwork(trainer)
    losses = task_losses(trainer.data, network)
    with pytest.raises(UsageError, match="'uncertainty' has nothing to balance"):
        trainer.fit(Stage("s", network, 2, Role.FIT, network.weights(), losses, "search", "per_task"))


@pytest.mark.numerical
@pytest.mark.parametrize("recipe", [{"precision": "amp-bf16"}, {"memory_format": "contiguous"}, {"workers": 1}])
def test_precision_memory_format_and_workers_run(tmp_path: Path, recipe: dict[str, object]) -> None:
    # 32 pixels: on 1x1 feature maps the CPU's bfloat16 convolutions give gradients that are now and then infinite.
    trainer = toy_trainer(tmp_path, recipe=recipe, cached="workers" not in recipe, size=32)
    graph, result = fit_plain(trainer, "joint", 4)
    assert np.isfinite(result.loss["a"]).all()
    plain = toy_trainer(tmp_path / "plain", size=32)
    reference, expected = fit_plain(plain, "joint", 4)
    # Before the first update; afterwards bfloat16 goes its own way.
    assert result.loss["a"][0] == pytest.approx(expected.loss["a"][0], abs=0.02 if "precision" in recipe else 1e-5)
    if "workers" in recipe:
        assert graph.weights_hash() == reference.weights_hash()


@pytest.mark.parametrize(
    ("hand_over", "message"),
    [
        (lambda trainer: trainer.fact(3, 1.0), "name of a fact is 3; expected text"),
        (lambda trainer: trainer.fact("ratio", 1.0, None), "unit of fact 'ratio' is None"),
        (lambda trainer: trainer.fact("\ud800", 1.0), "not valid Unicode"),
        (lambda trainer: trainer.flag(None), "text of a flag is None"),
        (lambda trainer: trainer.chosen(["edge", 3]), "what was chosen is 3"),
        (lambda trainer: trainer.log(("a",), 1.0), "name of a curve is"),
        (lambda trainer: trainer.artifact("names", np.array(["a"])), "Artifact 'names' is not an array of numbers"),
        (lambda trainer: trainer.artifact("objects", [object()]), "Artifact 'objects' is not an array of numbers"),
        (lambda trainer: trainer.artifact("half", torch.zeros(2, dtype=torch.bfloat16)), "Artifact 'half'"),
        (lambda trainer: trainer.artifact("weights", np.zeros(2)), "'weights': a record keeps its own"),
        (lambda trainer: trainer.artifact("figure-a", np.zeros(2)), "'figure-a': a record keeps its own"),
        (lambda trainer: trainer.figure("a", {"title": "a"}), "Figure 'a' is a dict"),
    ],
)
def test_what_a_record_cannot_hold_is_refused_when_it_is_handed_over(
    tmp_path: Path, hand_over: Callable, message: str
) -> None:
    trainer = toy_trainer(tmp_path)
    with pytest.raises(UsageError, match=message) as caught:
        hand_over(trainer)
    assert "\n" not in str(caught.value)
    assert [trainer.facts, trainer.flags, trainer.elements, trainer.artifacts, trainer.curves] == [{}, [], [], {}, {}]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_facts_that_are_not_finite_are_null_as_metrics_are(tmp_path: Path, value: float | None) -> None:
    trainer = toy_trainer(tmp_path)
    trainer.fact("ratio", value, "percent")
    assert trainer.facts == {"ratio": {"value": None, "unit": "percent"}}


def test_an_artifact_is_what_it_was_when_it_was_handed_over(tmp_path: Path) -> None:
    trainer, weights = toy_trainer(tmp_path), torch.zeros(2)
    trainer.artifact("weights at the start", weights)
    weights.add_(1)
    assert trainer.artifacts["weights at the start"].tolist() == [0.0, 0.0]


def scored(trainer: CellTrainer, monkeypatch: pytest.MonkeyPatch, values: list[float]) -> None:
    """Let the looks at select measure these accuracies of every task."""
    seen = iter(values)

    def measured(network: nn.Module, role: Role, tasks: Sequence[str]) -> Metrics:
        value = next(seen)
        return {task: {"accuracy": Score(value, "percent", True, 20)} for task in tasks}

    monkeypatch.setattr(trainer, "_evaluate", measured)


BEST = {"rule": "best-on-select", "evaluations": 4}


@pytest.mark.parametrize(
    ("values", "step", "curve", "said"),
    [
        ([0.0, 10.0, 12.0, 11.0], 9, [None, 0.0, 20.0, 10.0], "left out 1 of 4 looks .* first at step 3: .*accuracy"),
        ([0.0, 0.0, 0.0, 0.0], 12, [None] * 4, "left out 4 of 4 .*; none was left, so the last step is kept"),
        ([10.0, 0.0, 10.0, 10.0], 3, [0.0, -100.0, 0.0, 0.0], None),
    ],
)
def test_a_look_that_cannot_be_scored_stops_no_training(
    values: list[float],
    step: int,
    curve: list[float | None],
    said: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A single-task training is its own baseline, and 0 is none: the first look with a value takes its place."""
    trainer = toy_trainer(tmp_path, selection=BEST)
    trainer.context = dataclasses.replace(trainer.context, single_task=None)
    scored(trainer, monkeypatch, values)
    fit_plain(trainer, "single task a", 12)
    assert trainer.selected == {"step": step}
    found = [None if np.isnan(value) else value for value in trainer.curves["select/delta_m"]]
    assert found == [None if value is None else pytest.approx(value) for value in curve]
    assert len(trainer.flags) == (said is not None)
    assert said is None or re.search(said, trainer.flags[0])
    again = toy_trainer(tmp_path, selection=BEST)  # from its checkpoint
    again.context = dataclasses.replace(again.context, single_task=None)
    fit_plain(again, "single task a", 12)
    assert (again.selected, again.flags) == (trainer.selected, trainer.flags)


def test_a_single_task_network_that_scores_nothing_stops_no_other_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = toy_trainer(tmp_path, selection=BEST)
    scored(trainer, monkeypatch, [10.0, 0.0, 50.0, *[20.0] * 3])  # first look, then the networks of a and of b
    fit_plain(trainer, "joint", 12)
    assert trainer.selected == {"step": 12}
    assert "left out 4 of 4" in trainer.flags[0]


def test_a_look_at_select_is_no_training_time_where_a_checkpoint_follows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = toy_trainer(tmp_path, selection=BEST, checkpoint_steps=3, cycles=1)  # both fall on the same steps
    trainer.context = dataclasses.replace(trainer.context, single_task=None)
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def slow(network: nn.Module, role: Role, tasks: Sequence[str]) -> Metrics:
        now[0] += 100
        return {task: {"accuracy": Score(50.0, "percent", True, 20)} for task in tasks}

    monkeypatch.setattr(trainer, "_evaluate", slow)
    fit_plain(trainer, "joint", 12)
    assert trainer.ledger.final.seconds == 0
