"""Loss balancing: gradients by hand and against torchjd's own multi-task backward, memory across a resume, costs."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmark.balancing import BALANCERS, Balancer, balancing_names, build, resolved
from benchmark.optimization import StageOptimizers
from benchmark.suite import BalancingSettings, OptimizerSettings, RecipeSettings
from benchmark.trainer import CellTrainer
from datasets.errors import UsageError
from methods.contracts import ParameterGroup
from methods.plain import fit_plain
from methods.task_graph import TaskGraph
from tests.numbers import assert_same
from tests.unit.harness import toy_trainer
from tests.unit.test_trainer import Killed, kill_after, outcome

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
    (weights,) = how.parameters
    assert pair.gradients(how) == [[0.0, 0.5], [1.5], [2.5], None]
    assert weights.grad.tolist() == [(1 - 4) / 2, (1 - 6) / 2]
    recipe = RecipeSettings(
        clip_norm=None, optimizer=OptimizerSettings(lr=0.1, head_lr=0.2, momentum=0.0, weight_decay=0.5)
    )
    optimizers = StageOptimizers([ParameterGroup("backbone", [pair.theta])], recipe, how.parameters)
    for _ in range(2):  # the second step would show a decay
        optimizers.step(torch.amp.GradScaler("cpu", enabled=False))
    assert weights.tolist() == pytest.approx([2 * 0.2 * 1.5, 2 * 0.2 * 2.5])


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


@pytest.mark.parametrize("name", balancing_names())
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


def test_a_batch_without_labels_of_a_task_is_one_line() -> None:
    with pytest.raises(UsageError, match="'pcgrad' needs a loss of every task; a batch gave 1"):
        balancer("pcgrad").backward(Pair().losses()[:1], None, [], 1.0)


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
