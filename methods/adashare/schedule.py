"""How long each stage is, in steps and cycles, and what follows from the cycle: units unlocked, temperature. Source:
adashare.md 2.5, 2.6 and 3.
"""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction
from typing import TYPE_CHECKING

from datasets.errors import UsageError
from methods.adashare.parameters import AdaShareParams
from methods.adashare.presets import Phase
from methods.contracts import Budget

if TYPE_CHECKING:
    from datasets.contracts import DatasetSpec
    from methods.backbones.backbone import Backbone

ARCH_FRACTION = 0.2  # of the training images, the official 80/20 split: how many an `epoch` of each phase holds


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Steps of each stage. best_after: completed cycles before a policy can be the best. looks: completed cycles after
    which policies are judged, the last of them the whole search.
    """

    warmup_steps: int
    weight_steps: int
    arch_steps: int
    n_cycles: int
    final_steps: int
    best_after: int
    looks: frozenset[int] = frozenset()


def schedule(params: AdaShareParams, data: DatasetSpec, budget: Budget, n_units: int) -> Schedule:
    """The stages of a cell. Raises UsageError where the curriculum would not end, or the search has no whole cycle."""
    published = params.published
    if published is None:
        n_cycles = params.n_cycles or budget.cycles
        search = max(2, round(budget.steps * params.search_ratio))
        arch = min(search - 1, max(1, round(search * params.arch_share)))
        made = Schedule(
            warmup_steps=max(1, round(budget.steps * params.warmup_ratio)),
            weight_steps=search - arch,
            arch_steps=arch,
            n_cycles=n_cycles,
            final_steps=budget.steps,
            best_after=max(n_cycles // 2, _unlocked_after(params, n_units)),
        )
    else:
        w, a = _phase_steps(params, data)
        n_cycles = (published.search_steps - published.warmup_steps) // (w + a)
        made = Schedule(
            warmup_steps=published.warmup_steps,
            weight_steps=w * n_cycles,
            arch_steps=a * n_cycles,
            n_cycles=n_cycles,
            final_steps=published.retrain_steps,
            best_after=round(n_units * params.curriculum_speed) if params.curriculum_speed != "auto" else n_cycles // 2,
        )
    _check_cycles(params, made.n_cycles, n_units)
    best_after = made.best_after if params.best_after_cycles is None else params.best_after_cycles
    first = min(best_after, made.n_cycles)
    return dataclasses.replace(made, best_after=first, looks=_spread(first, made.n_cycles, params.search_evaluations))


def n_unlocked(c: int, n_units: int, n_cycles: int, params: AdaShareParams) -> int:
    """n after c completed cycles: how many units, from the last, follow their policy. In integers where speed is
    auto.
    """
    if not params.curriculum:
        return n_units
    if params.curriculum_speed == "auto":
        return min(n_units, 2 * c * (n_units - 1) // n_cycles + 1)
    return min(n_units, c // _exact(params.curriculum_speed) + 1)


def cycles_to_unlock(n_units: int, speed: float) -> int:
    """Fewest cycles of a search in whose last one all units are unlocked."""
    return math.ceil((n_units - 1) * _exact(speed)) + 1


def _exact(speed: float) -> Fraction:
    """The decimal number that was written: with floats 3 // 0.1 is 29, and the curriculum would end a cycle late."""
    return Fraction(str(speed))


def temperature(c: int, n_cycles: int, params: AdaShareParams) -> float:
    """tau after c completed cycles. Official: 5 * 0.965^c; ours: from tau_start to tau_end over the search, whatever
    its length.
    """
    if params.tau_end is None:
        return params.tau_start * params.tau_decay**c
    return params.tau_start * (params.tau_end / params.tau_start) ** (c / n_cycles)


def _spread(first: int, last: int, n: int) -> frozenset[int]:
    """Up to n whole numbers at equal distances from first to last, last among them."""
    return frozenset(last - (last - first) * k // max(1, n - 1) for k in range(n))


def _unlocked_after(params: AdaShareParams, n_units: int) -> int:
    """Completed cycles after which all units follow their policy, where a speed is given."""
    if not params.curriculum or params.curriculum_speed == "auto":
        return 0
    return cycles_to_unlock(n_units, params.curriculum_speed) - 1


def _phase_steps(params: AdaShareParams, data: DatasetSpec) -> tuple[int, int]:
    """W and A of a published cycle; `epoch` is counted in the preset's batches."""
    published, preset = params.published, params.preset
    assert published is not None
    assert preset is not None
    n_arch = round(data.splits["train"] * ARCH_FRACTION)

    def steps(phase: Phase, n_images: int) -> int:
        return max(1, n_images // preset.batch_size) if phase == "epoch" else phase

    return steps(published.w_steps, data.splits["train"] - n_arch), steps(published.a_steps, n_arch)


def _check_cycles(params: AdaShareParams, n_cycles: int, n_units: int) -> None:
    if n_cycles < 2:
        raise UsageError(f"The search of adashare has {n_cycles} cycles; expected at least 2. Set more search steps.")
    if not params.curriculum or params.curriculum_speed == "auto":
        return
    needed = cycles_to_unlock(n_units, params.curriculum_speed)
    if n_cycles < needed:
        raise UsageError(
            f"The curriculum of adashare never ends: {n_units} units at curriculum_speed {params.curriculum_speed:g} "
            f"need {needed} cycles, the search has {n_cycles}. Set curriculum_speed to auto or lower, or more cycles."
        )


def check_units(backbone: Backbone, n_units: int, params: AdaShareParams) -> None:
    """Raise UsageError where a backbone has no unit, or none that may be skipped."""
    name = backbone.config.name
    if n_units == 0:
        raise UsageError(
            f"Backbone {name!r} has no block that can be skipped (0 of {len(backbone.blocks)}), so adashare has "
            "nothing to choose; take one with residual blocks, for example resnet18."
        )
    if params.first_free_unit > n_units:
        raise UsageError(f"first_free_unit is {params.first_free_unit}; {name!r} has {n_units} units.")


def check_preset(params: AdaShareParams, data: DatasetSpec) -> None:
    """Raise UsageError where the data are not those that a preset is about: tasks, channels, task weights."""
    preset = params.preset
    if preset is None:
        return
    assert params.published is not None
    name = params.published.preset
    found = {task.name: task.channels for task in data.tasks}
    if found != dict(preset.channels) or data.domains != preset.domains:
        raise UsageError(
            f"Preset {name!r} is about {preset.domains}-domain data with the tasks (channels) "
            f"{_pairs(preset.channels)}; {data.name!r} is {data.domains}-domain with {_pairs(found)}."
        )
    weights = {task.name: task.weight for task in data.tasks}
    if weights != dict(preset.task_weights):
        raise UsageError(
            f"Preset {name!r} weighs tasks {_pairs(preset.task_weights)}; the cell has {_pairs(weights)}. Weights are "
            "the cell's: set task_weights of its data."
        )


def _pairs(values: object) -> str:
    assert isinstance(values, dict)
    return ", ".join(f"{name} {value:g}" for name, value in values.items())
