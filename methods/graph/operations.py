"""Operations: the modules that nodes of a task graph run. They can be compared, and built again from a configuration.

Two operations are equal when kind, configuration and tensors are the same: parameters and buffers by identity, because
equal values may diverge by training or pruning. Statistics of norms are left out. A kind is a registered factory
from a JSON configuration to a fresh module, so that a graph can come back from its JSON form and a safetensors file.
"""

from __future__ import annotations

import abc
import dataclasses
import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from datasets.errors import UsageError, unknown
from methods.graph.copies import copied

Origin = Literal["backbone", "added", "heads"]
Config = Mapping[str, object]
Factory = Callable[[Config], nn.Module]

_FACTORIES: dict[str, Factory] = {}


def register_operation(kind: str) -> Callable[[Factory], Factory]:
    """Decorator that registers the factory of a kind. Raises UsageError where the kind is taken by another module."""

    def register(factory: Factory) -> Factory:
        taken = _FACTORIES.get(kind)
        if taken is not None and (taken.__module__, taken.__qualname__) != (factory.__module__, factory.__qualname__):
            raise UsageError(f"Operation kind {kind!r} is registered twice: {taken.__module__}, {factory.__module__}.")
        _FACTORIES[kind] = factory
        return factory

    return register


def build_module(kind: str, config: Config) -> nn.Module:
    """A fresh module of that kind. Raises UnknownNameError for a kind that no imported module registers."""
    if kind not in _FACTORIES:
        raise unknown("operation kind", kind, _FACTORIES)
    return _FACTORIES[kind](config)


@dataclasses.dataclass(frozen=True, eq=False)
class Operation:
    """A module with its kind, its JSON configuration and the origin of its parameters (measurement 2).

    masks: {parameter: tensor of its shape, not zero where a weight is kept}, both by their names in the module: a
    buffer, or the parameter itself where pruned weights are stored as zeros. Weights that are not kept are not counted.
    origins: {parameter: its origin} of those that are of another origin than the operation, such as an adapter inside a
    block of the backbone. Raises UsageError for masks and parameters that the module does not hold.
    """

    kind: str
    config: Config
    module: nn.Module
    origin: Origin
    masks: Mapping[str, str] = dataclasses.field(default_factory=dict)
    origins: Mapping[str, Origin] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self.kept(self.module)
        held = dict(self.module.named_parameters(remove_duplicate=False)) if self.origins else {}
        for name, origin in self.origins.items():
            if name not in held:
                raise unknown(f"parameter in the origins of operation {self.kind!r}:", name, held)
            if origin not in get_args(Origin):
                raise unknown(f"origin of {name!r} in operation {self.kind!r}:", origin, get_args(Origin))

    @property
    def factory(self) -> Factory | str:
        """What builds modules of this kind now; the kind itself where nothing is registered for it."""
        return _FACTORIES.get(self.kind, self.kind)

    def origin_of(self, parameter: str) -> Origin:
        """The origin of a parameter by its name in the module."""
        return self.origins.get(parameter, self.origin)

    def kept(self, module: nn.Module) -> dict[int, Tensor]:
        """{id of a parameter: mask} of the masked parameters of `module`: the operation's own or a view of it."""
        if not self.masks:
            return {}
        parameters = dict(module.named_parameters(remove_duplicate=False))
        held = {**dict(module.named_buffers(remove_duplicate=False)), **parameters}
        found = {}
        for name, mask in self.masks.items():
            if name not in parameters:
                raise unknown(f"masked parameter of operation {self.kind!r}:", name, parameters)
            if mask not in held:
                raise unknown(f"mask of operation {self.kind!r}:", mask, held)
            if held[mask].shape != parameters[name].shape:
                shapes = f"{tuple(held[mask].shape)}; {name!r} has {tuple(parameters[name].shape)}"
                raise UsageError(f"Mask {mask!r} of operation {self.kind!r} has shape {shapes}.")
            found[id(parameters[name])] = held[mask]
        return found

    def identity(self) -> tuple[object, ...]:
        """Equal for operations that compute the same function with the same weights under the same masks.

        It holds parameters and buffers but no norm statistics, which belong to nodes.
        """
        statistics = statistics_names(self.module)
        tensors = (
            *self.module.named_parameters(remove_duplicate=False),
            *self.module.named_buffers(remove_duplicate=False),
        )
        held = tuple((name, _Held(tensor)) for name, tensor in tensors if name not in statistics)
        return (self.kind, canonical_config(self.config), held)


class _Held:
    """A tensor compared by identity. It is kept alive: the id of a freed one may become that of another."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Held) and other.tensor is self.tensor

    def __hash__(self) -> int:
        return id(self.tensor)


def canonical_config(config: Config) -> str:
    """The configuration as JSON with sorted keys. Raises TypeError for a value that JSON cannot hold."""
    return json.dumps(config, sort_keys=True, separators=(",", ":"), allow_nan=False)


def statistics_names(module: nn.Module) -> set[str]:
    """Names of the buffers that are norm statistics: they belong to nodes, not to operations."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, part in module.named_modules(remove_duplicate=False)
        if isinstance(part, _NormBase)
        for name, _ in part.named_buffers(recurse=False)
    }


def view_with_own_statistics(module: nn.Module) -> nn.Module:
    """A copy that shares every parameter with `module` and owns its buffers, norm statistics among them."""
    return copied(module, module.parameters())


class SideBySide(nn.Module):
    """Base of modules that may run together: T of one class take T small steps one by one, and one large one together.

    Those run together that stand equally deep in a graph and are `alike`.
    """

    def alike(self, inputs: Hashable) -> Hashable:
        """What must be equal for two of the class to run together. inputs: the places in the graph that it reads."""
        return inputs

    @classmethod
    @abc.abstractmethod
    def together(cls, modules: Sequence[Any], inputs: Sequence[Sequence[Tensor]]) -> Sequence[Tensor]:
        """What each of the modules gives for its inputs, in their order, up to rounding."""


class Together(nn.Module):
    """Several modules of one class, each on inputs of its own, as one call."""

    def __init__(self, modules: Sequence[SideBySide]) -> None:
        super().__init__()
        self.rows = nn.ModuleList(modules)

    def forward(self, *inputs: Tensor) -> Sequence[Tensor]:
        """inputs: those of the first module, of the second, and so on. The outputs of all modules, in their order."""
        n = len(inputs) // len(self.rows)
        each = [inputs[start : start + n] for start in range(0, len(inputs), n)]
        return type(cast(SideBySide, self.rows[0])).together(list(self.rows), each)


class Add(nn.Module):
    """Sum of its inputs, all of one shape."""

    def forward(self, first: Tensor, *others: Tensor) -> Tensor:
        """Inputs float [...]; the sum, in the order given."""
        for other in others:
            first = first + other
        return first


class Mean(nn.Module):
    """Mean of its inputs, all of one shape."""

    def forward(self, first: Tensor, *others: Tensor) -> Tensor:
        """Inputs float [...]; their sum in the order given, divided once."""
        total = first
        for other in others:
            total = total + other
        return total / (1 + len(others))


class WeightedSum(nn.Module):
    """Sum of its inputs with constant weights."""

    def __init__(self, weights: tuple[float, ...]) -> None:
        super().__init__()
        self.weights = weights

    def forward(self, *inputs: Tensor) -> Tensor:
        """As many inputs as weights, all of one shape."""
        if len(inputs) != len(self.weights):
            raise ValueError(f"WeightedSum has {len(self.weights)} weights and got {len(inputs)} inputs.")
        total = inputs[0] * self.weights[0]
        for value, weight in zip(inputs[1:], self.weights[1:], strict=True):
            total = total + value * weight
        return total


class Concatenate(nn.Module):
    """Inputs joined along one axis."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, *inputs: Tensor) -> Tensor:
        """Inputs equal in shape except along the axis."""
        return torch.cat(inputs, dim=self.axis)


@register_operation("add")
def _add(config: Config) -> nn.Module:
    return Add()


@register_operation("mean")
def _mean(config: Config) -> nn.Module:
    return Mean()


@register_operation("weighted_sum")
def _weighted_sum(config: Config) -> nn.Module:
    return WeightedSum(tuple(cast("list[float]", config["weights"])))


@register_operation("concatenate")
def _concatenate(config: Config) -> nn.Module:
    return Concatenate(cast(int, config["axis"]))


def parameterless(kind: str, **config: object) -> Operation:
    """An operation without weights, built from its registered kind."""
    return Operation(kind, config, build_module(kind, config), "added")
