"""Loss balancing: gradients by hand and against torchjd's own multi-task backward, memory across a resume, costs."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmark.plan.balancing import BALANCERS, balancing_names, build, resolved
from benchmark.plan.suite import BalancingSettings, OptimizerSettings, RecipeSettings
from benchmark.train.balancer import Balancer
from benchmark.train.optimizers import StageOptimizers
from benchmark.train.stage import StageRun
from benchmark.train.trainer import CellTrainer
from datasets.errors import UsageError
from methods.contracts import ParameterGroup, Role, Stage
from methods.graph.task_graph import TaskGraph
from methods.plain import fit_plain, parameter_groups, plain_graph, task_losses
from tests.numbers import assert_same
from tests.unit.harness import toy_trainer
from tests.unit.kills import Killed, kill_after, outcome

CPU = torch.device("cpu")
TASKS = ("a", "b")
EVERY_TASK = {"weights": {"a": 2.0, "b": 0.5}}


def settings(name: str) -> BalancingSettings:
    """With what has no default."""
    return BalancingSettings(name=name, params=EVERY_TASK if name == "constant" else {})


def balancer(name: str, tasks: tuple[str, ...] = TASKS, **params: object) -> Balancer:
    return Balancer(BalancingSettings(name=name, params=params), tasks, CPU)


class Pair:
    """Two tasks that read theta with gradients (1, 0) and (-1, 1), each with a head of its own, and a spare weight."""

    def __init__(self) -> None:
        self.theta = nn.Parameter(torch.tensor([1.0, 2.0]))
        self.heads = [nn.Parameter(torch.tensor([value])) for value in (1.0, 1.0)]
        self.spare = nn.Parameter(torch.ones(1))
        self.parameters = [self.theta, *self.heads, self.spare]

    def losses(self) -> list[Tensor]:
        first, second = self.heads
        return [self.theta[0] + 3 * first.sum(), self.theta[1] - self.theta[0] + 5 * second.sum()]

    def gradients(self, how: Balancer, penalty: Tensor | None = None) -> list[list[float] | None]:
        how.backward(self.losses(), penalty, self.parameters, 1.0)
        return [None if p.grad is None else p.grad.tolist() for p in self.parameters]


def test_equal_is_the_sum() -> None:
    assert Pair().gradients(balancer("equal")) == [[0.0, 1.0], [3.0], [5.0], None]


@pytest.mark.numerical
def test_conflicting_gradients_are_projected_and_heads_keep_their_own() -> None:
    """PCGrad, algorithm 1: g1 - (g1 g2 / g2 g2) g2 = (.5, .5) and g2 - (g1 g2 / g1 g1) g1 = (0, 1)."""
    assert Pair().gradients(balancer("pcgrad")) == [[0.5, 1.5], [3.0], [5.0], None]


@pytest.mark.numerical
def test_the_shortest_convex_combination_of_two_gradients() -> None:
    """MGDA of two: w = ((g2 - g1) g2) / |g1 - g2|^2 = 3 / 5 for g1, so (.6 - .4, .4); heads have no part in it."""
    theta, *heads, spare = Pair().gradients(balancer("mgda", epsilon=1e-7, max_iters=10_000))
    assert theta == pytest.approx([0.2, 0.4], abs=1e-3)
    assert (heads, spare) == ([[3.0], [5.0]], None)


@pytest.mark.parametrize("name", ["equal", "uncertainty", "pcgrad"])
def test_a_penalty_joins_unbalanced(name: str) -> None:
    plain = Pair().gradients(balancer(name))
    pair = Pair()
    theta, *rest = pair.gradients(balancer(name), penalty=10 * pair.theta[0] + 7 * pair.spare.sum())
    assert theta == pytest.approx([plain[0][0] + 10, plain[0][1]])
    assert rest == [*plain[1:3], [7.0]]


@pytest.mark.numerical
def test_uncertainty_by_hand() -> None:
    """Sum of exp(-s) L / 2 + s / 2: at s = 0 half of each gradient, and (1 - L) / 2 for s, which decay leaves alone."""
    pair, how = Pair(), balancer("uncertainty")
    weights = how.parameters
    assert pair.gradients(how) == [[0.0, 0.5], [1.5], [2.5], None]
    assert [weight.grad.item() for weight in weights] == [(1 - 4) / 2, (1 - 6) / 2]
    recipe = RecipeSettings(
        clip_norm=None, optimizer=OptimizerSettings(lr=0.1, head_lr=0.2, momentum=0.0, weight_decay=0.5)
    )
    optimizers = StageOptimizers([ParameterGroup("backbone", [pair.theta])], recipe, how.parameters)
    for _ in range(2):  # the second step would show a decay
        optimizers.step(torch.amp.GradScaler("cpu", enabled=False))
    assert [weight.item() for weight in weights] == pytest.approx([2 * 0.2 * 1.5, 2 * 0.2 * 2.5])


@pytest.mark.numerical
def test_dynamic_weight_average_by_hand() -> None:
    """After two cycles 2 softmax(L(t - 1) / L(t - 2) / T): the task that falls slower weighs more."""
    how, weights = balancer("dwa"), nn.Parameter(torch.tensor([2.0, 2.0]))
    for values in ([2.0, 2.0], [1.0, 2.0], [1.0, 1.0]):
        weights.data, weights.grad = torch.tensor(values), None
        how.backward(list(weights), None, [weights], 1.0)
        how.end_cycle()
    first, second = math.exp(0.5 / 2), math.exp(1.0 / 2)
    assert weights.grad.tolist() == pytest.approx([2 * first / (first + second), 2 * second / (first + second)])


def test_constant_weights_follow_the_names_of_tasks_and_not_their_order() -> None:
    weights = {"b": 3.0, "a": 2.0, "c": 7.0}
    assert Pair().gradients(balancer("constant", weights=weights))[1:3] == [[6.0], [15.0]]
    assert Pair().gradients(balancer("constant", ("c", "a"), weights=weights))[1:3] == [[21.0], [10.0]]


class Network(nn.Module):
    """A shared layer and two heads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.shared, self.heads = nn.Linear(4, 6), nn.ModuleList(nn.Linear(6, 1) for _ in range(3))
        self.images, self.labels = torch.randn(16, 4), torch.randn(3, 16)

    def features_and_losses(self) -> tuple[Tensor, list[Tensor]]:
        features = self.shared(self.images).tanh()
        pairs = zip(self.heads, self.labels, strict=True)
        return features, [(head(features).squeeze(1) - label).square().mean() * 10 for head, label in pairs]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", [entry.name for entry in BALANCERS.values() if entry.kind == "aggregator"])
def test_gradients_are_those_of_torchjd_s_multi_task_backward(name: str) -> None:
    """Which is told what is shared; we find it in the graph."""
    from torchjd.autojac import jac_to_grad, mtl_backward

    tasks = ("a", "b", "c")
    ours, theirs = Network(), Network()
    try:
        how, library = Balancer(settings(name), tasks, CPU), build(resolved(settings(name), tasks), tasks)
    except UsageError as error:
        pytest.skip(str(error))
    torch.manual_seed(1)
    how.backward(ours.features_and_losses()[1], None, list(ours.parameters()), 1.0)
    torch.manual_seed(1)
    features, losses = theirs.features_and_losses()
    shared = list(theirs.shared.parameters())
    mtl_backward(
        losses, features=features, tasks_params=[list(h.parameters()) for h in theirs.heads], shared_params=shared
    )
    jac_to_grad(shared, library)
    for (label, own), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert_same(own.grad, other.grad, label)


def fitted(name: str, folder: Path, **options: object) -> tuple[CellTrainer, TaskGraph]:
    recipe = {"balancing": resolved(settings(name), TASKS).model_dump()}
    trainer = toy_trainer(folder, recipe=recipe, steps=6, cycles=3, **options)
    return trainer, fit_plain(trainer, "joint", 6)[0]


@pytest.fixture(scope="module")
def plain_weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(outcome(*fitted("equal", tmp_path_factory.mktemp("equal")))["weights"])


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.numerical) if name == "pcgrad" else name for name in balancing_names()],
)
def test_same_bits_after_a_kill_and_other_weights_than_equal(name: str, plain_weights: str, tmp_path: Path) -> None:
    """Killed in the third of three cycles, going on from within the second: what is remembered and drawn comes back."""
    try:
        expected = outcome(*fitted(name, tmp_path / "one"))
    except UsageError as error:
        pytest.skip(str(error))
    killed = toy_trainer(
        tmp_path / "two",
        recipe={"balancing": resolved(settings(name), TASKS).model_dump()},
        steps=6,
        cycles=3,
        checkpoint_steps=3,
    )
    kill_after(killed, 5)
    with pytest.raises(Killed):
        fit_plain(killed, "joint", 6)
    assert (tmp_path / "two" / "stage-000.partial.pt").exists()
    assert outcome(*fitted(name, tmp_path / "two")) == expected
    assert (name == "equal") == (expected["weights"] == plain_weights)


def test_extra_passes_are_charged(tmp_path: Path) -> None:
    """FAMO looks at every batch twice; a gradient for each of two tasks is a backward pass for each, and PCGrad takes
    their products (four) and their sum (two).
    """
    trained = {name: fitted(name, tmp_path / name)[0] for name in ("equal", "famo", "pcgrad")}
    found = {name: trainer.ledger.final for name, trainer in trained.items()}
    n_shared = trained["equal"].backbone().n_parameters()
    passes = {name: account.forward_passes for name, account in found.items()}
    assert passes == {"equal": 6, "famo": 12, "pcgrad": 6}
    forward = found["famo"].train_macs - found["equal"].train_macs
    backward = found["equal"].train_macs - forward
    assert forward > 0
    assert found["pcgrad"].train_macs == pytest.approx(forward + 2 * backward + 6 * (4 + 2) * n_shared, rel=0.002)
    assert {account.optimizer_steps for account in found.values()} == {6}


def test_a_stage_of_one_task_has_nothing_to_balance() -> None:
    for name in ("uncertainty", "pcgrad"):
        one = balancer(name, ("a",))
        assert (one.name, one.parameters, one.state_dict()) == ("equal", [], {})


@pytest.mark.parametrize(("balanced", "name"), [(True, "pcgrad"), (False, "equal")])
def test_a_stage_can_leave_the_balancing_out(balanced: bool, name: str, tmp_path: Path) -> None:
    """For a search that is plain joint training, whatever balances the final one."""
    trainer = toy_trainer(tmp_path, recipe={"balancing": resolved(settings("pcgrad"), TASKS).model_dump()})
    graph = plain_graph(trainer.data, TASKS, trainer.backbone(), trainer.head)
    losses = task_losses(trainer.data, graph.network())
    stage = Stage("s", graph.network(), 1, Role.FIT, parameter_groups(graph), losses, "search", balanced=balanced)
    assert StageRun(stage, trainer.context).balancer.name == name


def test_memory_of_every_parameter_is_not_dropped_without_a_word() -> None:
    how = balancer("excess_mtl")
    Pair().gradients(how)
    pair = Pair()
    losses = [loss + pair.spare.sum() for loss in pair.losses()]
    with pytest.raises(UsageError, match="'excess_mtl' remembers every shared parameter"):
        how.backward(losses, None, pair.parameters, 1.0)


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("pcgradd", {}, "Unknown loss balancing 'pcgradd'. Nearest: 'pcgrad'"),
        ("UW", {}, "torchjd's UW is called 'uncertainty' here"),
        ("equal", {"c": 1.0}, "'equal' takes no params"),
        ("pcgrad", {"c": 1.0}, "'pcgrad' takes no params; 'c' was given"),
        ("dwa", {"temp": 1.0}, "Unknown parameter of loss balancing 'dwa' 'temp'. Nearest: 'temperature'"),
        ("dwa", {"temperature": -1.0}, "'dwa': Parameter `temperature` should be strictly positive"),
        ("constant", {}, "'constant' needs weights, for example weights: {a: 1.0, b: 1.0}"),
        ("constant", {"weights": 2.0}, r"weights is 2.0; expected \{a: 1.0, ...\}"),
        ("constant", {"weights": {"a": 1.0}}, "needs a number for every task; 'b' has none"),
        ("constant", {"weights": {"a": 1.0, "b": 1.0, "c": 1.0}}, "Unknown task in weights"),
        ("dwa", {"temperature": {"a": 1.0, "b": 2.0}}, "expected one value"),
    ],
)
def test_what_does_not_fit_is_one_line(name: str, params: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        resolved(BalancingSettings(name=name, params=params), TASKS)
    assert "\n" not in str(caught.value)


def test_defaults_are_filled_in_and_whole_numbers_are_the_same_setting() -> None:
    found = resolved(BalancingSettings(name="dwa", params={"temperature": 2}), TASKS)
    assert found == resolved(BalancingSettings(name="dwa"), TASKS)
    assert (found.params, type(found.params["temperature"])) == ({"temperature": 2.0}, float)
    assert resolved(BalancingSettings(name="stch"), TASKS).params == {"mu": 1.0}


def test_every_way_has_a_paper_and_a_class_of_the_library() -> None:
    for entry in BALANCERS.values():
        assert entry.link.startswith("https://")
        assert entry.paper.endswith(".")
        assert set(entry.defaults) <= set(entry.parameters())


THREE = ("a", "b", "c")
WITHOUT_B = ("a", "c")


def of_three(name: str, tasks: tuple[str, ...] = THREE) -> Balancer:
    """Balances these tasks; skips where a package of this way is not installed."""
    params = {"weights": dict(zip(THREE, (2.0, 0.5, 3.0), strict=True))} if name == "constant" else {}
    try:
        return balancer(name, tasks, **params)
    except UsageError as error:
        pytest.skip(str(error))


def step_of(how: Balancer, network: Network, tasks: tuple[str, ...]) -> None:
    """Gradients of the losses of these tasks, and what follows an update."""
    torch.manual_seed(1)
    network.zero_grad()
    losses = dict(zip(THREE, network.features_and_losses()[1], strict=True))
    given = [losses[task] for task in tasks]
    how.backward(given, None, list(network.parameters()), 1.0, tasks)
    how.after_step([loss / 2 for loss in given], tasks)


@pytest.mark.parametrize("name", [name for name in balancing_names() if name != "excess_mtl"])
def test_a_task_without_a_label_leaves_the_others_gradients_as_if_they_were_alone(name: str) -> None:
    ours, alone = Network(), Network()
    step_of(of_three(name), ours, WITHOUT_B)
    step_of(of_three(name, WITHOUT_B), alone, WITHOUT_B)
    for (label, own), other in zip(ours.named_parameters(), alone.parameters(), strict=True):
        if label.startswith("heads.1"):
            assert own.grad is None
        else:
            assert torch.equal(own.grad, other.grad), label


def memory_of(how: Balancer, task: int) -> list[float]:
    """What a balancer remembers of one of three tasks, its private optimizer's moments included."""
    found: list[float] = []

    def collect(value: object) -> None:
        if isinstance(value, Tensor) and value.ndim and len(value) == len(THREE):
            found.extend(value[task].flatten().tolist() + (value[:, task].tolist() if value.ndim > 1 else []))
        elif isinstance(value, dict):
            list(map(collect, value.values()))
        elif isinstance(value, list):
            list(map(collect, value))

    collect(how.state_dict())
    return found


@pytest.mark.parametrize("name", ["uncertainty", "imtl_l", "famo", "gradvac", "dwa"])
def test_nothing_that_belongs_to_a_task_without_a_label_moves(name: str) -> None:
    """Nor by momentum: learnable weights are in the recipe's optimizer."""
    how, network = of_three(name), Network()
    group = ParameterGroup("backbone", list(network.parameters()))
    optimizers = StageOptimizers([group], RecipeSettings(clip_norm=None), how.parameters)
    scaler = torch.amp.GradScaler("cpu", enabled=False)

    def train(tasks: tuple[str, ...]) -> None:
        optimizers.zero_grad()
        step_of(how, network, tasks)
        optimizers.step(scaler)

    for _ in range(2):
        train(THREE)
    before = [memory_of(how, task) for task in range(3)]
    train(WITHOUT_B)
    after = [memory_of(how, task) for task in range(3)]
    assert before[1]
    moved = [old != new for old, new in zip(before, after, strict=True)]
    if name == "gradvac":  # of b it remembers pairs with the others alone
        assert [before[1], *moved[::2]] == [after[1], True, True]
    elif name == "dwa":  # the sum of losses, and the number of batches, which it counts for each task from now on
        assert after[1][:1] == before[1][:1]
        assert how.state_dict()[""]["_n_batches"].tolist() == [3, 2, 3]
    else:
        assert moved == [True, False, True]


def dwa_weights(cycles: list[dict[str, float]]) -> list[float]:
    """Weights of three tasks after cycles of one batch with these losses; a task that is left out has no label."""
    how, weights = of_three("dwa"), nn.Parameter(torch.ones(3))
    for cycle in cycles:
        tasks = [task for task in THREE if task in cycle]
        weights.grad = None
        losses = [weights[THREE.index(task)] * cycle[task] for task in tasks]
        how.backward(losses, None, [weights], 1.0, tasks)
        how.end_cycle()
        resumed = of_three("dwa")
        resumed.load_state_dict(how.state_dict())
        how = resumed
    weights.grad = None
    how.backward(list(weights), None, [weights], 1.0)
    return weights.grad.tolist()


def test_cycles_without_labels_leave_the_history_of_dynamic_weight_averaging_alone() -> None:
    def by_hand(*rates: float) -> list[float]:
        powers = [math.exp(rate / 2) for rate in rates]
        return pytest.approx([3 * power / sum(powers) for power in powers])

    full = [{"a": 4.0, "b": 4.0, "c": 4.0}, {"a": 2.0, "b": 3.0, "c": 4.0}]
    assert dwa_weights(full) == by_hand(0.5, 0.75, 1.0)
    assert dwa_weights([*full, {"a": 1.0, "c": 3.0}]) == by_hand(0.5, 0.75, 0.75)
    # One cycle of b alone is no rate yet: it counts as 1, as in the first cycles of all; then its own two cycles count.
    late = [{"a": 4.0, "c": 4.0}, {"a": 2.0, "c": 4.0}, {"a": 1.0, "b": 8.0, "c": 3.0}]
    assert dwa_weights(late[:2]) == by_hand(0.5, 1.0, 1.0)
    assert dwa_weights(late) == by_hand(0.5, 1.0, 0.75)
    assert dwa_weights([*late, {"a": 1.0, "b": 2.0}]) == by_hand(1.0, 0.25, 0.75)


def test_a_way_that_cannot_do_without_a_task_says_so() -> None:
    with pytest.raises(UsageError, match=r"'excess_mtl' compares .* has none of 'b'. Use one .* 'uncertainty'"):
        step_of(of_three("excess_mtl"), Network(), WITHOUT_B)


def without_labels(trainer: CellTrainer, task: str, kept: int) -> None:
    """Take the labels of a task from all training samples but the first `kept`."""
    trainer.context.loaders[Role.FIT_ARCH].inputs["image"].samples.data.targets[task][kept:] = -1


@pytest.mark.parametrize("name", ["equal", "geometric_mean", "mgda", "famo"])
def test_without_labels_of_a_task_the_other_is_trained_as_if_alone(name: str, tmp_path: Path) -> None:
    """The trunk and its head as in a training of that task; neither momentum nor decay moves the other's head."""
    trainer = toy_trainer(tmp_path / "both", recipe={"balancing": resolved(settings(name), TASKS).model_dump()})
    without_labels(trainer, "b", 0)
    graph, result = fit_plain(trainer, "joint", 4)
    alone = toy_trainer(tmp_path / "alone")
    alone.context = dataclasses.replace(alone.context, data=alone.data.with_tasks(["a"]))
    expected, expected_result = fit_plain(alone, "joint", 4)
    pairs = zip(graph.subgraph("a").parameters(), expected.parameters(), strict=True)
    assert all(torch.allclose(mine, theirs, rtol=1e-3, atol=1e-5) for mine, theirs in pairs)
    assert result.loss["a"] == pytest.approx(expected_result.loss["a"], rel=1e-3)
    assert all(map(math.isnan, result.loss["b"]))
    untouched = toy_trainer(tmp_path / "untouched").head("b").module.state_dict()
    head = dict(graph.subgraph("b").network().state_dict())
    assert all(any(torch.equal(value, other) for other in head.values()) for value in untouched.values())
    assert ["b" in flag for flag in trainer.flags] == [True]


@pytest.mark.parametrize("cached", [True, False])
def test_batches_tell_which_tasks_have_a_label_and_only_those_enter_the_curves(cached: bool, tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, cached=cached, recipe={"balancing": {"name": "dwa", "params": {}}}, cycles=8)
    without_labels(trainer, "b", 6)
    batches = list(trainer.context.loaders[Role.FIT_ARCH].training(TASKS, 0, 8, "data-order"))
    has = [bool((batch.targets["b"] >= 0).any()) for batch in batches]
    assert [batch.labelled for batch in batches] == [frozenset("ab") if one else frozenset("a") for one in has]
    assert 0 < sum(has) < 8
    _, result = fit_plain(trainer, "joint", 8)
    assert [math.isfinite(value) for value in result.loss["b"]] == has
    assert trainer.flags == []


def test_a_first_batch_without_labels_of_a_task_does_not_make_every_step_cheap(tmp_path: Path) -> None:
    full, partial = toy_trainer(tmp_path / "full"), toy_trainer(tmp_path / "partial")
    first = next(full.context.loaders[Role.FIT_ARCH].training(TASKS, 0, 1, "data-order")).index["image"]
    partial.context.loaders[Role.FIT_ARCH].inputs["image"].samples.data.targets["b"][first] = -1
    for trainer in (full, partial):
        fit_plain(trainer, "joint", 6)
    per_step = full.ledger.final.train_macs // 6
    assert 5 * per_step < partial.ledger.final.train_macs < 6 * per_step
