"""Optimizers and schedules of a stage, from the recipe and from what a method prescribes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmark.plan.suite import OptimizerSettings, RecipeSettings, ScheduleSettings
from methods.contracts import OptimizerSpec, ParameterGroup


def schedule_factor(schedule: ScheduleSettings, step: int, steps: int) -> float:
    """Factor on the learning rate at `step` (from 0) of a stage of `steps`: linear warm-up to 1, then the schedule.

    cosine and poly reach 0 just after the last step; `step` multiplies by gamma at each milestone, a fraction of the
    stage.
    """
    warmup = int(schedule.warmup * steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, steps - warmup)
    if schedule.name == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    if schedule.name == "poly":
        return float((1 - progress) ** schedule.power)
    if schedule.name == "step":
        return float(schedule.gamma ** sum(step >= milestone * steps for milestone in schedule.milestones))
    return 1.0


def own_rate(spec: OptimizerSpec, step: int, steps: int) -> float:
    """Learning rate that a method's own optimizer has at `step` (from 0) of a stage of `steps`."""
    if spec.cosine:
        factor = schedule_factor(ScheduleSettings(name="cosine", warmup=spec.warmup), step, steps)
        # The warm-up rises from 0; only what follows it ends above.
        floor = 0.0 if step < int(spec.warmup * steps) else spec.end_lr
        return floor + (spec.lr - floor) * factor
    if spec.decay_every is None:
        return spec.lr
    part, parts = step // spec.decay_every, -(-steps // spec.decay_every)
    return float(spec.lr * (spec.decay**part if spec.poly is None else (1 - part / parts) ** spec.poly))


def _optimizer(
    spec: OptimizerSettings | OptimizerSpec, groups: list[dict[str, Any]]
) -> torch.optim.SGD | torch.optim.Adam | torch.optim.AdamW:
    match spec.name:
        case "sgd":
            nesterov = getattr(spec, "nesterov", False)
            return torch.optim.SGD(
                groups,
                lr=spec.lr,
                momentum=spec.momentum,
                weight_decay=spec.weight_decay,
                nesterov=nesterov,
                fused=True,
            )
        case "adam":
            return torch.optim.Adam(groups, lr=spec.lr, betas=spec.betas, weight_decay=spec.weight_decay, fused=True)
        case "adamw":
            return torch.optim.AdamW(groups, lr=spec.lr, betas=spec.betas, weight_decay=spec.weight_decay, fused=True)


def _suit_fused(optimizer: torch.optim.Optimizer) -> None:
    """Bring gradients and momenta into the form that fused optimizers assume without a check.

    They read memory in order and never compare strides: every gradient gets the strides of its parameter, since those
    that a loss balancer sets, unlike those of `backward`, may have others. Fused SGD fails where some parameters have a
    momentum and some, whose task had no label so far, have none: zeros give the same first update.
    """
    for group in optimizer.param_groups:
        momentum = isinstance(optimizer, torch.optim.SGD) and group["momentum"] != 0
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            if parameter.grad.stride() != parameter.stride():
                parameter.grad = torch.empty_like(parameter).copy_(parameter.grad)
            if momentum and optimizer.state[parameter].get("momentum_buffer") is None:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


class StageOptimizers:
    """The optimizers of one stage: the recipe's over backbone, added layers and heads, and one for each own
    prescription.

    Tied parameters are taken once. What follows the recipe is scheduled and clipped by it; an own prescription says
    both for itself.
    """

    def __init__(
        self, groups: Sequence[ParameterGroup], recipe: RecipeSettings, extra: Sequence[nn.Parameter] = ()
    ) -> None:
        self.recipe = recipe
        self.recipe_parameters: list[nn.Parameter] = []
        self._optimizers: list[torch.optim.Optimizer] = []
        scheduled: list[dict[str, Any]] = []
        own: list[tuple[OptimizerSpec, list[nn.Parameter]]] = []
        seen: set[int] = set()
        settings = recipe.optimizer
        for group in groups:
            fresh = list({id(p): p for p in group.parameters if id(p) not in seen}.values())
            seen.update(map(id, fresh))
            if not fresh:
                continue
            if group.optimizer is not None:
                own.append((group.optimizer, fresh))
            elif group.name == "arch":
                raise ValueError("Architecture parameters need an optimizer of their own; no recipe covers them.")
            else:
                rate = settings.lr if group.name == "backbone" else settings.head_lr or settings.lr
                decay = settings.weight_decay if group.weight_decay is None else group.weight_decay
                scheduled.append({"params": fresh, "lr": rate * group.rate_factor, "weight_decay": decay})
                self.recipe_parameters.extend(fresh)
        if (
            extra
        ):  # learnable weights of a loss balancer: new parameters, hence the heads' rate; decay would pull them to 0
            scheduled.append({"params": list(extra), "lr": settings.head_lr or settings.lr, "weight_decay": 0.0})
        if scheduled:
            self._optimizers.append(_optimizer(settings, scheduled))
        self._rates = [group["lr"] for group in scheduled]
        self._own = [(spec, _optimizer(spec, [{"params": parameters}])) for spec, parameters in own]
        self._optimizers.extend(optimizer for _, optimizer in self._own)

    def set_rates(self, step: int, steps: int) -> None:
        """Apply the recipe's schedule for this step of the stage, and what own optimizers prescribe."""
        for spec, optimizer in self._own:
            for group in optimizer.param_groups:
                group["lr"] = own_rate(spec, step, steps)
        if self._rates:
            factor = schedule_factor(self.recipe.schedule, step, steps)
            for group, rate in zip(self._optimizers[0].param_groups, self._rates, strict=True):
                group["lr"] = rate * factor

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)

    def step(self, scaler: torch.amp.GradScaler) -> None:
        """Clip what follows the recipe and step. Overflowed half-precision steps are skipped by the scaler."""
        if scaler.is_enabled():
            for optimizer in self._optimizers:
                scaler.unscale_(optimizer)
        if self.recipe.clip_norm is not None and self.recipe_parameters:
            nn.utils.clip_grad_norm_(self.recipe_parameters, self.recipe.clip_norm)
        for norm in {spec.clip_norm for spec, _ in self._own if spec.clip_norm is not None}:
            of_it = [optimizer for spec, optimizer in self._own if spec.clip_norm == norm]
            nn.utils.clip_grad_norm_([p for one in of_it for group in one.param_groups for p in group["params"]], norm)
        for optimizer in self._optimizers:
            _suit_fused(optimizer)
            if not scaler.is_enabled():
                optimizer.step()
            elif any(p.grad is not None for group in optimizer.param_groups for p in group["params"]):
                scaler.step(optimizer)  # which takes no optimizer whose tasks all lack labels
        if scaler.is_enabled():
            scaler.update()

    @torch.no_grad()
    def restart(self, entries: Sequence[tuple[nn.Parameter, Tensor]]) -> None:
        """Set moments and momenta of some entries of parameters to 0. entries: bool tensors of their shapes. A count of
        steps, which a parameter has as a whole, goes on.
        """
        for parameter, chosen in entries:
            for optimizer in self._optimizers:
                for value in optimizer.state.get(parameter, {}).values():
                    if isinstance(value, Tensor) and value.shape == parameter.shape and value.dim() > 0:
                        value.masked_fill_(chosen, 0.0)

    def clear_state(self) -> None:
        """Forget moments and momenta, as a new optimizer would."""
        for optimizer in self._optimizers:
            optimizer.state.clear()

    def state_dict(self) -> list[dict[str, Any]]:
        """States of all optimizers, for a checkpoint."""
        return [optimizer.state_dict() for optimizer in self._optimizers]

    def load_state_dict(self, states: Sequence[dict[str, Any]]) -> None:
        """Put back what `state_dict` gave."""
        for optimizer, state in zip(self._optimizers, states, strict=True):
            optimizer.load_state_dict(state)
