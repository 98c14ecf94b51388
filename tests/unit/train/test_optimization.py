"""Schedules and optimizers: what every row of a table trains with."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from benchmark.plan.suite import OptimizerSettings, RecipeSettings, ScheduleSettings
from benchmark.train.optimizers import StageOptimizers, own_rate, schedule_factor
from methods.contracts import OptimizerSpec, ParameterGroup


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"name": "constant", "warmup": 0.0}, [1, 1, 1, 1, 1]),
        ({"name": "cosine", "warmup": 0.0}, [0.5 * (1 + math.cos(math.pi * k / 5)) for k in range(5)]),
        ({"name": "poly", "warmup": 0.0, "power": 0.5}, [(1 - k / 5) ** 0.5 for k in range(5)]),
        ({"name": "step", "warmup": 0.0, "milestones": [0.4, 0.8], "gamma": 0.1}, [1, 1, 0.1, 0.1, 0.01]),
        ({"name": "constant", "warmup": 0.4}, [1 / 3, 2 / 3, 1, 1, 1]),
    ],
)
def test_schedules_by_hand(settings: dict[str, object], expected: list[float]) -> None:
    schedule = ScheduleSettings(**settings)
    assert [schedule_factor(schedule, step, 5) for step in range(5)] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "cls"), [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)]
)
def test_optimizers_take_the_recipe(name: str, cls: type) -> None:
    recipe = RecipeSettings(optimizer=OptimizerSettings(name=name, lr=0.1, weight_decay=0.2))
    built = StageOptimizers([ParameterGroup("backbone", [nn.Parameter(torch.zeros(1))])], recipe)
    (optimizer,) = built._optimizers
    assert type(optimizer) is cls
    assert optimizer.param_groups[0]["weight_decay"] == 0.2


def test_own_optimizers_keep_their_rate_or_let_it_fall_by_steps() -> None:
    """Whatever the recipe's schedule does."""
    groups = [
        ParameterGroup("backbone", [nn.Parameter(torch.zeros(1))]),
        ParameterGroup("heads", [nn.Parameter(torch.zeros(1))], OptimizerSpec("adam", 0.1)),
        ParameterGroup("arch", [nn.Parameter(torch.zeros(1))], OptimizerSpec("sgd", 0.8, decay_every=3, decay=0.5)),
    ]
    built = StageOptimizers(groups, RecipeSettings(schedule=ScheduleSettings(name="poly", warmup=0.0, power=1.0)))
    found = []
    for step in range(8):
        built.set_rates(step, 8)
        found.append([optimizer.param_groups[0]["lr"] for optimizer in built._optimizers])
    assert [rates[0] for rates in found] == pytest.approx([0.05 * (1 - step / 8) for step in range(8)])
    assert {rates[1] for rates in found} == {0.1}
    assert [rates[2] for rates in found] == pytest.approx([0.8] * 3 + [0.4] * 3 + [0.2] * 2)


def test_an_own_rate_may_fall_as_a_polynomial_of_parts_of_the_stage() -> None:
    """Of parts, not of steps, and of the parts that the stage has: four of three steps, the last one cut short."""
    spec = OptimizerSpec("sgd", 0.8, decay_every=3, poly=0.5)
    built = StageOptimizers([ParameterGroup("heads", [nn.Parameter(torch.zeros(1))], spec)], RecipeSettings())
    found = []
    for step in range(11):
        built.set_rates(step, 11)
        found.append(built._optimizers[0].param_groups[0]["lr"])
    parts = [0.8 * (1 - k / 4) ** 0.5 for k in range(4)]
    assert found == pytest.approx([parts[step // 3] for step in range(11)])
    for wrong in ({"poly": 0.9}, {"poly": 0.9, "decay_every": 3, "decay": 0.5}):
        with pytest.raises(ValueError, match="it needs decay_every and no decay"):
            OptimizerSpec("sgd", 0.1, **wrong)


@pytest.mark.numerical
def test_a_group_can_have_a_weight_decay_of_its_own() -> None:
    parameters = [nn.Parameter(torch.ones(1)) for _ in range(3)]
    groups = [
        ParameterGroup("backbone", parameters[:1]),
        ParameterGroup("added", parameters[1:2], weight_decay=0.0),
        ParameterGroup("heads", parameters[2:], weight_decay=0.5),
    ]
    recipe = RecipeSettings(
        clip_norm=None,
        optimizer=OptimizerSettings(lr=0.1, momentum=0.0, weight_decay=0.1),
        schedule={"name": "constant"},
    )
    built = StageOptimizers(groups, recipe)
    for parameter in parameters:
        parameter.grad = torch.zeros(1)
    built.step(torch.amp.GradScaler("cpu", enabled=False))
    assert [float(p.detach()) for p in parameters] == pytest.approx([0.99, 1.0, 0.95])


@pytest.mark.numerical
def test_tied_parameters_are_stepped_once() -> None:
    tied = nn.Parameter(torch.ones(1))
    recipe = RecipeSettings(clip_norm=None, optimizer=OptimizerSettings(lr=0.1, momentum=0.0, weight_decay=0.0))
    built = StageOptimizers([ParameterGroup("backbone", [tied, tied]), ParameterGroup("heads", [tied])], recipe)
    tied.grad = torch.ones(1)
    built.step(torch.amp.GradScaler("cpu", enabled=False))
    assert float(tied.detach()) == pytest.approx(0.9)


@pytest.mark.numerical
def test_clipping_bounds_the_norm_of_all_weights_together() -> None:
    parameters = [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
    recipe = RecipeSettings(clip_norm=1.0, optimizer=OptimizerSettings(lr=1.0, momentum=0.0, weight_decay=0.0))
    built = StageOptimizers([ParameterGroup("backbone", parameters)], recipe)
    for parameter, value in zip(parameters, (3.0, 4.0), strict=True):
        parameter.grad = torch.tensor([value])
    built.step(torch.amp.GradScaler("cpu", enabled=False))
    assert [-float(p.detach()) for p in parameters] == pytest.approx([0.6, 0.8], abs=1e-5)


def test_architecture_parameters_need_an_optimizer_of_their_own() -> None:
    with pytest.raises(ValueError, match="optimizer of their own"):
        StageOptimizers([ParameterGroup("arch", [nn.Parameter(torch.zeros(1))])], RecipeSettings())


def test_an_own_rate_may_fall_like_a_cosine() -> None:
    spec = OptimizerSpec("sgd", 0.2, cosine=True)
    assert [own_rate(spec, step, 4) for step in range(4)] == pytest.approx(
        [0.2 * 0.5 * (1 + math.cos(math.pi * step / 4)) for step in range(4)]
    )
    with pytest.raises(ValueError, match="one way"):
        OptimizerSpec("sgd", 0.2, decay_every=3, cosine=True)


def test_an_own_cosine_may_warm_up_and_end_above_0() -> None:
    """As published recipes of transformers do: a linear rise, then a fall from lr to end_lr."""
    spec = OptimizerSpec("adamw", 0.4, cosine=True, warmup=0.5, end_lr=0.1)
    fall = [0.1 + 0.3 * 0.5 * (1 + math.cos(math.pi * k / 4)) for k in range(4)]
    assert [own_rate(spec, step, 8) for step in range(8)] == pytest.approx([0.08, 0.16, 0.24, 0.32, *fall])
    for wrong in ({"warmup": 0.1}, {"end_lr": 0.1}):
        with pytest.raises(ValueError, match="only a cosine rate reads them"):
            OptimizerSpec("sgd", 0.2, **wrong)


@pytest.mark.numerical
def test_own_optimizers_of_one_norm_are_clipped_together() -> None:
    """A group by itself would be clipped less; the recipe's norm is for what follows the recipe."""
    spec = OptimizerSpec("sgd", 1.0, clip_norm=1.0)
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(4)]
    groups = [ParameterGroup("added", parameters[:1], spec), ParameterGroup("heads", parameters[1:2], spec)]
    groups += [ParameterGroup("arch", parameters[2:3], OptimizerSpec("sgd", 1.0))]
    groups += [ParameterGroup("backbone", parameters[3:])]
    recipe = RecipeSettings(
        clip_norm=2.0,
        optimizer=OptimizerSettings(lr=1.0, momentum=0.0, weight_decay=0.0),
        schedule={"name": "constant", "warmup": 0.0},
    )
    built = StageOptimizers(groups, recipe)
    built.set_rates(0, 1)
    for parameter, gradient in zip(parameters, (3.0, 4.0, 10.0, 10.0), strict=True):
        parameter.grad = torch.tensor([gradient])
    built.step(torch.amp.GradScaler("cpu", enabled=False))
    assert [-float(p.detach()) for p in parameters] == pytest.approx([0.6, 0.8, 10.0, 2.0], rel=1e-4)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_a_gradient_of_another_memory_layout_updates_the_right_weights(name: str) -> None:
    """Fused kernels on the CPU pair numbers by their place in memory; a loss balancer may set such gradients."""
    gradient = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    found = {}
    for layout in (torch.contiguous_format, torch.channels_last):
        weight = nn.Parameter(torch.zeros(8, 4, 3, 3).contiguous(memory_format=torch.channels_last))
        recipe = RecipeSettings(optimizer=OptimizerSettings(name=name, lr=0.1), clip_norm=None)
        built = StageOptimizers([ParameterGroup("backbone", [weight])], recipe)
        for _ in range(2):
            weight.grad = gradient.contiguous(memory_format=layout)
            built.step(torch.amp.GradScaler("cpu", enabled=False))
        found[layout] = weight.detach()
    assert torch.equal(found[torch.contiguous_format], found[torch.channels_last])
    assert torch.equal(found[torch.channels_last].sign(), -gradient.sign())


def test_a_momentum_may_begin_later_than_others() -> None:
    """A head whose task has no label in the first batch has no gradient; fused SGD would fail at the second."""
    early, late = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))
    recipe = RecipeSettings(
        optimizer=OptimizerSettings(name="sgd", lr=0.1, momentum=0.5, weight_decay=0.0), clip_norm=None
    )
    built = StageOptimizers([ParameterGroup("heads", [early, late])], recipe)
    for step in range(3):
        built.zero_grad()
        early.grad = torch.ones(3)
        late.grad = torch.ones(3) if step else None
        built.step(torch.amp.GradScaler("cpu", enabled=False))
    torch.testing.assert_close(early.detach(), torch.full((3,), -0.1 * (1 + 1.5 + 1.75)))
    torch.testing.assert_close(late.detach(), torch.full((3,), -0.1 * (1 + 1.5)))


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_entries_of_a_parameter_can_start_anew(name: str) -> None:
    """Moments of what is named are 0, as if it had had no gradient; those of its neighbours stay, and so does the count
    of steps.
    """
    weight, other = (nn.Parameter(torch.zeros(2, 3)) for _ in range(2))
    recipe = RecipeSettings(optimizer=OptimizerSettings(name=name, lr=0.1, momentum=0.9), clip_norm=None)
    built = StageOptimizers([ParameterGroup("backbone", [weight, other])], recipe)
    chosen = torch.tensor([[True, False, False], [False, False, True]])
    built.restart([(weight, chosen)])  # before the first step there is nothing
    for parameter in (weight, other):
        parameter.grad = torch.ones(2, 3)
    built.step(torch.amp.GradScaler("cpu", enabled=False))
    built.restart([(weight, chosen)])
    state = {parameter: built._optimizers[0].state[parameter] for parameter in (weight, other)}
    names = [key for key, value in state[weight].items() if value.shape == weight.shape]
    assert len(names) == (1 if name == "sgd" else 2)
    for key in names:
        assert not bool(state[weight][key][chosen].any())
        assert torch.equal(state[weight][key][~chosen], state[other][key][~chosen])
        assert bool(state[other][key].all())
    if "step" in state[weight]:
        assert float(state[weight]["step"]) == 1
