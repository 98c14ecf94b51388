"""Optimizers, schedules and loss balancing of a stage, from the recipe and from what a method prescribes."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmark.suite import BalancingSettings, OptimizerSettings, RecipeSettings, ScheduleSettings
from datasets.errors import UsageError, unknown
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
        return spec.lr * schedule_factor(ScheduleSettings(name="cosine", warmup=0), step, steps)
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
                groups, lr=spec.lr, momentum=spec.momentum, weight_decay=spec.weight_decay, nesterov=nesterov
            )
        case "adam":
            return torch.optim.Adam(groups, lr=spec.lr, betas=spec.betas, weight_decay=spec.weight_decay)
        case "adamw":
            return torch.optim.AdamW(groups, lr=spec.lr, betas=spec.betas, weight_decay=spec.weight_decay)


class StageOptimizers:
    """The optimizers of one stage: the recipe's over backbone, added layers and heads, and one for each own
    prescription.

    Tied parameters are taken once. Only what follows the recipe is scheduled and clipped.
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
        for optimizer in self._optimizers:
            scaler.step(optimizer) if scaler.is_enabled() else optimizer.step()
        if scaler.is_enabled():
            scaler.update()

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


def balancing_names() -> list[str]:
    """Names that `recipe.balancing.name` takes: `equal` and the scalarizers and aggregators of torchjd."""
    from torchjd import aggregation, scalarization

    classes = {
        name: value
        for module in (scalarization, aggregation)
        for name, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, (scalarization.Scalarizer, aggregation.Aggregator))
    }
    abstract = {name for name, value in classes.items() if inspect.isabstract(value)}
    return sorted({"equal", *classes} - abstract - {"WeightedAggregator", "GramianWeightedAggregator"})


def _build(settings: BalancingSettings, n_tasks: int) -> nn.Module:
    """A torchjd object by name. Raises UsageError for an unknown name or parameters that it does not take."""
    from torchjd import aggregation, scalarization

    if settings.name not in balancing_names():
        raise unknown("loss balancing", settings.name, balancing_names())
    cls = getattr(scalarization, settings.name, None) or getattr(aggregation, settings.name)
    parameters = inspect.signature(cls.__init__).parameters
    arguments: dict[str, Any] = dict(settings.params)
    if "shape" in parameters:
        arguments["shape"] = n_tasks
    try:
        built: nn.Module = cls(**arguments)
    except (TypeError, ValueError, ImportError) as error:
        raise UsageError(
            f"Loss balancing {settings.name!r} with {settings.params}: {error}.".replace("..", ".")
        ) from error
    return built


class Balancer:
    """Turns the weighted losses of a step into gradients.

    A stage with one task has nothing to balance and takes the plain loss whatever the name.
    """

    def __init__(self, settings: BalancingSettings, n_tasks: int, device: torch.device) -> None:
        self.name = settings.name if n_tasks > 1 else "equal"
        # torchjd's classes have no common type for what they remember or update: Any, inside this class only.
        self._module: Any = None if self.name == "equal" else _build(settings, n_tasks).to(device)
        self.n_tasks = n_tasks

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Learnable task weights that join the optimizer; not those that the balancer trains by itself."""
        if self._module is None or hasattr(self._module, "update"):
            return []
        return list(self._module.parameters())

    @property
    def needs_losses_after_step(self) -> bool:
        """Whether `after_step` wants the losses of the same batch under the updated weights (FAMO)."""
        return hasattr(self._module, "update")

    def backward(
        self, losses: Sequence[Tensor], penalty: Tensor | None, parameters: Sequence[nn.Parameter], scale: float
    ) -> None:
        """Put gradients in place. losses: weighted scalars; penalty joins unbalanced; scale: of half-precision
        training.
        """
        if self._module is None:
            total = losses[0]
            for loss in losses[1:]:
                total = total + loss
            if penalty is not None:
                total = total + penalty
            (total * scale if scale != 1.0 else total).backward()
            return
        if len(losses) != self.n_tasks:
            raise UsageError(f"Loss balancing {self.name!r} needs a loss of every task; a batch gave {len(losses)}.")
        from torchjd.scalarization import Scalarizer

        if isinstance(self._module, Scalarizer):
            total = self._module(torch.stack(list(losses)))
            total = total if penalty is None else total + penalty
            (total * scale).backward()
        else:
            self._aggregate(losses, penalty, parameters, scale)

    def _aggregate(
        self, losses: Sequence[Tensor], penalty: Tensor | None, parameters: Sequence[nn.Parameter], scale: float
    ) -> None:
        """Jacobian of the losses, aggregated by torchjd. Row by row: batch norm does not allow a vectorised
        pullback.
        """
        from torchjd import autojac

        used = [p for p in parameters if p.requires_grad]
        autojac.backward(
            [loss * scale for loss in losses], inputs=used, parallel_chunk_size=1, retain_graph=penalty is not None
        )
        autojac.jac_to_grad(used, self._module)
        if penalty is not None:
            (penalty * scale).backward()

    def after_step(self, losses: Sequence[Tensor]) -> None:
        """Losses of the same batch after the update, for balancers that measure their own effect."""
        if self.needs_losses_after_step:
            self._module.update(torch.stack([loss.detach() for loss in losses]))

    def end_cycle(self) -> None:
        """A cycle stands for an epoch (dynamic weight averaging)."""
        if callable(getattr(self._module, "step", None)):
            self._module.step()

    def state_dict(self) -> dict[str, Any]:
        """Everything a balancer remembers between steps, plain attributes included, for a checkpoint."""
        return {} if self._module is None else _remembered(self._module)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        if self._module is None:
            return
        for path, values in state.items():
            part: Any = self._module.get_submodule(path)
            for name, value in values.items():
                if name == "optimizer":  # FAMO makes its Adam at the first update
                    part._optimizer = torch.optim.Adam([part._w], lr=part.lr, weight_decay=part.weight_decay)
                    part._optimizer.load_state_dict(value)
                elif isinstance(getattr(part, name, None), nn.Parameter):
                    getattr(part, name).data.copy_(value)
                else:
                    setattr(part, name, value)


def _remembered(module: nn.Module) -> dict[str, dict[str, Any]]:
    """{submodule: {attribute: value}} of what is data: tensors, numbers, lists of them, and a private optimizer's
    state.
    """
    state: dict[str, dict[str, Any]] = {}
    for path, part in module.named_modules():
        values: dict[str, Any] = {name: p.detach().clone() for name, p in part.named_parameters(recurse=False)}
        values |= dict(part._buffers)
        for name, value in vars(part).items():
            if name in {"training"} or name.startswith(("_parameters", "_buffers", "_modules")) or "hook" in name:
                continue
            if isinstance(value, (Tensor, int, float, list, tuple)) or value is None:
                values[name] = value
            elif isinstance(value, torch.optim.Optimizer):
                values["optimizer"] = value.state_dict()
        state[path] = values
    return state
