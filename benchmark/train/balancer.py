"""A step's weighted losses become gradients, by the way to balance them that the cell names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmark.plan.balancing import EQUAL, build, entry_of
from benchmark.plan.suite import BalancingSettings
from benchmark.train.partial_labels import end_cycle, has_gaps, narrowed, widened
from datasets.errors import UsageError


class Balancer:
    """Turns the weighted losses of a step into gradients.

    A stage with one task has nothing to balance and takes the plain loss whatever the name. A task without a loss in a
    step takes no part in it: gradients are as if the others were alone, and nothing that belongs to it moves.
    """

    def __init__(self, settings: BalancingSettings, tasks: Sequence[str], device: torch.device) -> None:
        self.name = settings.name if len(tasks) > 1 else EQUAL
        self.tasks = tuple(tasks)
        self._settings, self._device = settings, device
        # torchjd's classes have no common type for what they remember or update: Any, inside this class only.
        self._module: Any = None
        self._aggregates = self._fixed_shape = self._has_gaps = False
        self._columns: int | None = None
        if self.name != EQUAL:
            entry = entry_of(self.name)
            self._module = _on(build(settings, tasks), device)
            self._aggregates, self._fixed_shape = entry.kind == "aggregator", entry.fixed_shape
        # Whether `after_step` wants the losses of the same batch under the updated weights (FAMO).
        self.needs_losses_after_step = hasattr(self._module, "update")
        # A weight of each task is a parameter of its own: optimizers leave what has no gradient alone, momentum and
        # moments included. FAMO trains its weights by itself.
        self._learned: dict[str, list[nn.Parameter]] = {}
        if self._module is not None and not self.needs_losses_after_step:
            self._learned = {
                name: [nn.Parameter(weight.clone()) for weight in vector.detach()]
                for name, vector in self._module.named_parameters()
            }

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Learnable task weights that join the optimizer; not those that the balancer trains by itself."""
        return [weight for weights in self._learned.values() for weight in weights]

    def backward(
        self,
        losses: Sequence[Tensor],
        penalty: Tensor | None,
        parameters: Sequence[nn.Parameter],
        scale: float,
        tasks: Sequence[str] | None = None,
    ) -> None:
        """Put gradients in place of none. losses: weighted scalars of `tasks`, by default of all; penalty joins
        unbalanced; scale: of half-precision training, which no aggregator is planned with.
        """
        if self._module is None:
            total = losses[0]
            for loss in losses[1:]:
                total = total + loss
            if penalty is not None:
                total = total + penalty
            (total * scale if scale != 1.0 else total).backward()
            return
        positions = self._positions(tasks)
        module = self._module_for(positions)
        if self._aggregates:
            self._aggregate(losses, penalty, parameters, module)
        else:
            weights = {
                name: torch.stack([own[position] for position in positions]) for name, own in self._learned.items()
            }
            total = torch.func.functional_call(module, weights, (torch.stack(list(losses)),))
            total = total if penalty is None else total + penalty
            (total * scale).backward()
        self._take_back(module, positions)

    def _positions(self, tasks: Sequence[str] | None) -> list[int]:
        return [self.tasks.index(task) for task in (self.tasks if tasks is None else tasks)]

    def _module_for(self, positions: Sequence[int]) -> Any:
        """torchjd's object for these tasks: the one that remembers, or one with their part of its memory.

        Raises UsageError where there can be no such part.
        """
        if len(positions) == len(self.tasks) and not self._has_gaps:
            return self._module
        if self._fixed_shape:
            missing = next(task for number, task in enumerate(self.tasks) if number not in positions)
            raise UsageError(
                f"Loss balancing {self.name!r} compares all tasks with their first step, so every batch needs a label "
                f"of every task; one has none of {missing!r}. Use one that can do without, such as 'uncertainty'."
            )
        part = _on(build(self._settings, [self.tasks[position] for position in positions]), self._device)
        _recall(part, narrowed(_remembered(self._module), self._at(positions), len(self.tasks)))
        return part

    def _take_back(self, module: Any, positions: Sequence[int]) -> None:
        """Remember what an object for some of the tasks has learned of them."""
        if module is not self._module:
            memory, part = _remembered(self._module), _remembered(module)
            _recall(self._module, widened(memory, part, self._at(positions), len(self.tasks)))

    def _at(self, positions: Sequence[int]) -> Tensor:
        return torch.tensor(positions, device=self._device)

    def _aggregate(
        self, losses: Sequence[Tensor], penalty: Tensor | None, parameters: Sequence[nn.Parameter], module: Any
    ) -> None:
        """A gradient for every task, one after another: batch norm does not allow a vectorised pullback. What several
        tasks reach goes to torchjd, what one task reaches is its own.
        """
        from torchjd.autojac import jac_to_grad

        used = list({id(p): p for p in parameters if p.requires_grad}.values())
        last = len(losses) - 1
        rows = [
            torch.autograd.grad(loss, used, retain_graph=number < last or penalty is not None, allow_unused=True)
            for number, loss in enumerate(losses)
        ]
        shared: list[nn.Parameter] = []
        for parameter, *gradients in zip(used, *rows, strict=True):
            found = [gradient for gradient in gradients if gradient is not None]
            if len(found) == 1:
                parameter.grad = found[0]
            elif found:
                full = [torch.zeros_like(parameter) if gradient is None else gradient for gradient in gradients]
                parameter.jac = torch.stack(full)  # where torchjd looks for it
                shared.append(parameter)
        if shared:
            self._require_fixed(sum(parameter.numel() for parameter in shared))
            jac_to_grad(shared, module)
        if penalty is not None:
            penalty.backward()

    def _require_fixed(self, columns: int) -> None:
        """Raises UsageError where memory of every parameter would be dropped without a word."""
        if self._fixed_shape and self._columns not in (None, columns):
            raise UsageError(
                f"Loss balancing {self.name!r} remembers every shared parameter, but which ones tasks share changes "
                "from step to step here; use one that does not, such as 'pcgrad'."
            )
        self._columns = columns

    def after_step(self, losses: Sequence[Tensor], tasks: Sequence[str] | None = None) -> None:
        """Losses of the same batch after the update, for balancers that measure their own effect."""
        if self.needs_losses_after_step:
            positions = self._positions(tasks)
            module = self._module_for(positions)
            module.update(torch.stack([loss.detach() for loss in losses]))
            self._take_back(module, positions)

    def end_cycle(self) -> None:
        """A cycle stands for an epoch (dynamic weight averaging)."""
        if callable(getattr(self._module, "step", None)):
            end_cycle(self._module)
            self._has_gaps = has_gaps(self._module)

    def state_dict(self) -> dict[str, Any]:
        """Everything a balancer remembers between steps, plain attributes included, for a checkpoint."""
        if self._module is None:
            return {}
        for name, weights in self._learned.items():
            self._module.get_parameter(name).data.copy_(torch.stack(list(weights)).detach())
        return _remembered(self._module)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        if self._module is None:
            return
        _recall(self._module, state)
        self._has_gaps = has_gaps(self._module)
        for name, weights in self._learned.items():
            for weight, value in zip(weights, self._module.get_parameter(name).detach(), strict=True):
                weight.data.copy_(value)


def _on(module: nn.Module, device: torch.device) -> nn.Module:
    """The module on a device, vectors that it keeps as plain attributes included."""
    for part in module.modules():
        for name, value in list(vars(part).items()):
            if isinstance(value, Tensor):
                setattr(part, name, value.to(device))
    return module.to(device)


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


def _recall(module: nn.Module, memory: Mapping[str, Mapping[str, Any]]) -> None:
    """Give a module what `_remembered` took of one of its kind."""
    for path, values in memory.items():
        part: Any = module.get_submodule(path)
        for name, value in values.items():
            if name == "optimizer":  # FAMO makes its Adam at the first update
                part._optimizer = torch.optim.Adam([part._w], lr=part.lr, weight_decay=part.weight_decay)
                part._optimizer.load_state_dict(value)
            elif isinstance(getattr(part, name, None), nn.Parameter):
                getattr(part, name).data.copy_(value)
            else:
                setattr(part, name, value)
