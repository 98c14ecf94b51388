"""What a family of timm models must tell so that its members can be cut into stem, blocks and tail.

A family is one class decorated with `@family`: which timm names it covers, which arguments it builds them with, and how a
model is cut. How a block is executed and skipped is a `Form`, so that nothing outside a family knows block classes.
Source: DESIGN.md section 3 (Backbone, Block), adashare.md 2.2 (execute and skip), measurement.md 2 (tail, pooled head).
"""

from __future__ import annotations

import abc
import dataclasses
import fnmatch
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, NamedTuple, TypeVar, cast

import timm
from torch import Tensor, nn

from datasets.errors import UsageError, nearest, unknown

Layout = Literal["nchw", "nhwc", "tokens"]
Pool = Literal["mean", "class_token", "prefix_mean"]
Size = tuple[int, int]

NATIVE_STRIDE = 32  # the output stride at which every family is native; stages are cut at it
OUTPUT_STRIDES = (8, 16, 32)


@dataclasses.dataclass(frozen=True)
class BackboneConfig:
    """Which timm model is built, and how; everything that decides its shape. Raises UsageError on illegal values.

    name: timm architecture, with or without a pretrained tag. in_chans: channels of the input image.
    image_size, evaluation_size: (height, width) in pixels in training and in evaluation. Families with a position
        embedding need the first; where the second differs, they are built to take both (measurement 2).
    output_stride: 8, 16 or 32; smaller ones dilate (adashare 2.2). zero_init_last: start the last norm of every residual
        branch at zero, from scratch (timm's default on ResNets; off here, adashare T4).
    drop_path: largest rate of stochastic depth. dropout: rate in front of a head's last layer.
    """

    name: str
    in_chans: int = 3
    image_size: Size | None = None
    evaluation_size: Size | None = None
    output_stride: int = NATIVE_STRIDE
    zero_init_last: bool = False
    drop_path: float = 0.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.in_chans < 1:
            raise UsageError(f"in_chans of {self.name} is {self.in_chans}; expected at least 1.")
        if self.output_stride not in OUTPUT_STRIDES:
            raise UsageError(f"output_stride of {self.name} is {self.output_stride}; expected 8, 16 or 32.")
        for key in ("drop_path", "dropout"):
            if not 0.0 <= getattr(self, key) < 1.0:
                raise UsageError(f"{key} of {self.name} is {getattr(self, key)}; expected a rate in [0, 1).")
        for key in ("image_size", "evaluation_size"):
            size = getattr(self, key)
            if size is not None and (len(size) != 2 or min(size) < 1):
                raise UsageError(f"{key} of {self.name} is {size}; expected (height, width) in pixels.")

    @property
    def sizes(self) -> tuple[Size, ...]:
        """The distinct input sizes that were asked for, training first."""
        return tuple(dict.fromkeys(size for size in (self.image_size, self.evaluation_size) if size is not None))

    def to_json(self) -> dict[str, object]:
        """All fields as JSON values."""
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> BackboneConfig:
        """The configuration that `to_json` wrote. Raises UsageError for a key it does not know or a missing name."""
        known = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                raise unknown("key of a backbone configuration", key, known)
        if "name" not in values:
            raise UsageError("A backbone configuration needs a name.")
        arguments = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        return cls(**arguments)  # type: ignore[arg-type]


class Shape(NamedTuple):
    """Channels of a feature, and the input's side over the feature's side (at the backbone's own output stride)."""

    channels: int
    reduction: int


class Form(abc.ABC):
    """How blocks of one kind are skipped and executed: forward(x) == execute(x, skip(x)), bit for bit.

    Stateless. `module` is the block, or for `execute` anything with the same children but the projection.
    """

    @abc.abstractmethod
    def skips(self, module: nn.Module) -> bool:
        """Whether the block can be skipped."""

    @abc.abstractmethod
    def projection(self, module: nn.Module) -> nn.Module | None:
        """The part of the block that is its skip path, None where that is the identity."""

    @abc.abstractmethod
    def execute(self, module: nn.Module, x: Tensor, s: Tensor) -> Tensor:
        """The block's output where s = skip(x) is given. Changes neither x nor s."""

    @abc.abstractmethod
    def branch(self, module: nn.Module) -> nn.Module:
        """A module of two inputs (x, s) that runs `execute` and holds the block's parts without the skip path."""


class Branch(nn.Module):
    """What is run when a block is executed: its children without the skip path, shared with the block, by name."""

    def __init__(self, form: Form, block: nn.Module) -> None:
        super().__init__()
        self.form = form
        projection = form.projection(block)
        for name, child in block.named_children():
            if child is not projection:
                self.add_module(name, child)

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        """x: input of the block, s: output of its skip path."""
        return self.form.execute(self, x, s)


@dataclasses.dataclass(frozen=True)
class Residual(Form):
    """activation(F(x) + s) with F the named children in forward order; absent ones (None) are left out.

    guard: attribute that says whether the block has a skip, None where all have. inplace: add as the native forward does,
    which decides the dtype of the sum under mixed precision.
    """

    parts: tuple[str, ...]
    activation: str | None = None
    shortcut: str | None = None
    guard: str | None = None
    inplace: bool = False

    def skips(self, module: nn.Module) -> bool:
        """Spec: adashare 2.2; inverted residuals only where timm says has_skip."""
        return self.guard is None or bool(getattr(module, self.guard))

    def projection(self, module: nn.Module) -> nn.Module | None:
        """The downsample path of a ResNet block that changes shape."""
        return None if self.shortcut is None else cast("nn.Module | None", getattr(module, self.shortcut))

    def execute(self, module: nn.Module, x: Tensor, s: Tensor) -> Tensor:
        """No activation on s (adashare T2)."""
        for name in self.parts:
            part = getattr(module, name, None)
            if part is not None:
                x = part(x)
        if self.inplace:
            x += s
        else:
            x = x + s
        return x if self.activation is None else cast(Tensor, getattr(module, self.activation)(x))

    def branch(self, module: nn.Module) -> nn.Module:
        """F and the activation."""
        return Branch(self, module)


class Inner(nn.Module):
    """Runs a block's inner part on the skip path's output."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        """x is not read: the residual stream starts from s."""
        return cast(Tensor, self.inner(s))


@dataclasses.dataclass(frozen=True)
class Stream(Form):
    """inner(s): blocks that only add to a residual stream, whatever number of branches they have (adashare 2.2).

    inner, downsample: names of the children where a stage's entry downsampling belongs to the block; both None where the
    whole block is the inner part and the skip path the identity.
    """

    inner: str | None = None
    downsample: str | None = None

    def skips(self, module: nn.Module) -> bool:
        """Always."""
        return True

    def projection(self, module: nn.Module) -> nn.Module | None:
        """The downsampling at a stage's entry, which stays when the block is skipped (adashare T30)."""
        return None if self.downsample is None else cast(nn.Module, getattr(module, self.downsample))

    def _inner(self, module: nn.Module) -> nn.Module:
        return module if self.inner is None else cast(nn.Module, getattr(module, self.inner))

    def execute(self, module: nn.Module, x: Tensor, s: Tensor) -> Tensor:
        """inner(s)."""
        return cast(Tensor, self._inner(module)(s))

    def branch(self, module: nn.Module) -> nn.Module:
        """The inner part."""
        return Inner(self._inner(module))


@dataclasses.dataclass(frozen=True)
class Cut:
    """A timm model in parts: tail(blocks(stem(x))) is its forward_features.

    patch: size of a patch where features are tokens, else None. pool, pool_norm: how the model's own head pools what
    follows the tail, and the norm it applies to the result.
    """

    stem: nn.Module
    blocks: Sequence[tuple[nn.Module, Form]]
    tail: nn.Module
    prefix_tokens: int = 0
    patch: Size | None = None
    pool: Pool = "mean"
    pool_norm: nn.Module | None = None


class Family(abc.ABC):
    """One family of timm models.

    modules: timm modules that hold it; patterns: names in them (wildcards); refused: {pattern: why} of names that match but
    cannot be cut. model_types: the classes whose forward_features the cut reproduces; subclasses are refused.
    head_keys: prefixes of state-dict keys that belong to forward_head and are dropped knowingly.
    """

    modules: ClassVar[tuple[str, ...]]
    patterns: ClassVar[tuple[str, ...]] = ("*",)
    refused: ClassVar[Mapping[str, str]] = {}
    model_types: ClassVar[tuple[type[nn.Module], ...]]
    head_keys: ClassVar[tuple[str, ...]]
    layout: ClassVar[Layout] = "nchw"
    output_strides: ClassVar[tuple[int, ...]] = (NATIVE_STRIDE,)
    fixed_size: ClassVar[bool] = False
    zero_init: ClassVar[bool] = False

    def names(self) -> list[str]:
        """Names of the members, from timm's registry; builds nothing."""
        refused = list(self.refused)
        return [
            name
            for module in self.modules
            for name in timm.list_models(list(self.patterns), module=module, exclude_filters=refused)
        ]

    def check(self, config: BackboneConfig) -> None:
        """Raise UsageError for what the family cannot do, before anything is built."""
        if config.output_stride not in self.output_strides:
            raise UsageError(
                f"Backbone {config.name!r} has no output_stride {config.output_stride}; its family supports "
                f"{', '.join(map(str, self.output_strides))}."
            )
        if config.zero_init_last and not self.zero_init:
            raise UsageError(f"zero_init_last is set, but {config.name!r} has no norm that can start at zero; leave it off.")
        if self.fixed_size and config.image_size is None:
            raise UsageError(f"Backbone {config.name!r} has a position embedding and needs image_size (height, width).")

    def arguments(self, config: BackboneConfig) -> dict[str, object]:
        """Keyword arguments for timm.create_model."""
        return {"num_classes": 0, "in_chans": config.in_chans, "drop_path_rate": config.drop_path}

    def cut(self, model: nn.Module) -> Cut:
        """The model in parts. Raises UsageError where it is no genuine member."""
        if type(model) not in self.model_types:
            expected = ", ".join(cls.__name__ for cls in self.model_types)
            raise UsageError(f"timm built a {type(model).__name__} where {expected} was expected; it cannot be cut.")
        return self._cut(model)

    @abc.abstractmethod
    def _cut(self, model: nn.Module) -> Cut:
        """Cut a model whose class is one of `model_types`."""


def forms_of(blocks: Sequence[nn.Module], table: Mapping[type[nn.Module], Form]) -> list[tuple[nn.Module, Form]]:
    """Each block with its form, by exact class. Raises UsageError for a class that the table does not hold."""
    for block in blocks:
        if type(block) not in table:
            known = ", ".join(cls.__name__ for cls in table)
            raise UsageError(f"Blocks of class {type(block).__name__} cannot be executed and skipped; known: {known}.")
    return [(block, table[type(block)]) for block in blocks]


_FAMILIES: dict[str, Family] = {}
_F = TypeVar("_F", bound=type[Family])


def family(cls: _F) -> _F:
    """Class decorator that registers a family."""
    _FAMILIES[f"{cls.__module__}.{cls.__qualname__}"] = cls()
    return cls


def supported_names() -> list[str]:
    """Names of all members of all families, in alphabetical order."""
    return sorted({name for member in _FAMILIES.values() for name in member.names()})


def find_family(name: str) -> Family:
    """The family of a timm name, with or without a pretrained tag. Raises UsageError with the nearest supported names."""
    architecture, _, tag = name.partition(".")
    for member in _FAMILIES.values():
        if architecture in member.names():
            if tag and name not in timm.list_models(f"{architecture}.*", include_tags=True):
                tags = [full.partition(".")[2] for full in timm.list_models(f"{architecture}.*", include_tags=True)]
                raise unknown(f"pretrained tag of {architecture}", tag, tags)
            return member
    raise _refusal(name, architecture)


def _refusal(name: str, architecture: str) -> UsageError:
    names = supported_names()
    if not timm.is_model(architecture):
        return unknown("backbone", name, names)
    reasons = [
        reason
        for member in _FAMILIES.values()
        for pattern, reason in member.refused.items()
        if fnmatch.fnmatch(architecture, pattern)
    ]
    why = reasons[0] if reasons else "no adapter cuts its family"
    hint = ", ".join(repr(candidate) for candidate in nearest(architecture, names))
    return UsageError(f"Backbone {name!r} is known to timm, but not supported: {why}. Nearest supported: {hint}.")
