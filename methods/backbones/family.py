"""What a family of timm models must define so that its members can be cut into stem, blocks and tail.

A family is one class decorated with `@family`: which timm names it covers, which arguments it builds them with, and how
a model is cut. How a block is executed and skipped is a `Form` (`methods.backbones.forms`), so that nothing outside a
family knows block classes.
Source: DESIGN.md section 3 (Backbone, Block), adashare.md 2.2 (execute and skip), measurement.md 2 (tail, pooled head).
"""

from __future__ import annotations

import abc
import dataclasses
import fnmatch
import functools
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, NamedTuple, TypeVar, get_args

import timm
from torch import nn

from datasets.errors import UsageError, nearest, unknown
from methods.backbones.forms import Form

Layout = Literal["nchw", "nhwc", "tokens"]
Pool = Literal["mean", "class_token", "prefix_mean"]
Size = tuple[int, int]
Dilation = Literal["timm", "deeplab"]

NATIVE_STRIDE = 32  # the output stride at which every family is native; stages are cut at it
OUTPUT_STRIDES = (8, 16, 32)


@dataclasses.dataclass(frozen=True)
class BackboneConfig:
    """Which timm model is built, and how; everything that decides its shape. Raises UsageError on illegal values.

    name: timm architecture, with or without a pretrained tag. in_chans: channels of the input image.
    image_size, evaluation_size: (height, width) in pixels in training and in evaluation. Families with a position
        embedding need the first; where the second differs, they are built to take both (measurement 2).
    output_stride: 8, 16 or 32; smaller ones dilate (adashare 2.2). dilation: `timm` gives the first convolution of a
        dilated stage the dilation of the stage before, `deeplab` that of its own, as AdaShare's release does.
    zero_init_last: start the last norm of every residual branch at zero, from scratch (timm's default on ResNets; off
        here, adashare T4).
    drop_path: largest rate of stochastic depth. dropout: rate in front of a head's last layer.
    patch: side of a transformer's square patches in pixels; None as the model was made. Small ones suit small images.
    """

    name: str
    in_chans: int = 3
    image_size: Size | None = None
    evaluation_size: Size | None = None
    output_stride: int = NATIVE_STRIDE
    zero_init_last: bool = False
    drop_path: float = 0.0
    dropout: float = 0.0
    dilation: Dilation = "timm"
    patch: int | None = None

    def __post_init__(self) -> None:
        if self.dilation not in get_args(Dilation):
            raise unknown(f"dilation of {self.name}", self.dilation, get_args(Dilation))
        if self.patch is not None and self.patch < 1:
            raise UsageError(f"patch of {self.name} is {self.patch}; expected the side in pixels, at least 1.")
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
        """All fields as JSON values; dilation and patch only where they are asked for, so that stored graphs keep their
        hash.
        """
        values = {
            key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(self).items()
        }
        if self.dilation == "timm":
            del values["dilation"]
        if self.patch is None:
            del values["patch"]
        return values

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


def group_stages(reductions: Sequence[int]) -> list[range]:
    """Blocks grouped by the reduction of their output: up to 4, 8, 16, from 32; groups without a block are left out.

    One reduction throughout: four equal groups, the remainder in the last; each block its own where there are fewer.
    Source: branched 2.2, soft_sharing 0.
    """
    n = len(reductions)
    if len(set(reductions)) == 1:
        n_groups = min(4, n)
        size = n // n_groups
        return [range(i * size, n if i == n_groups - 1 else (i + 1) * size) for i in range(n_groups)]
    levels = [min(max(reduction, 4), 32) for reduction in reductions]
    starts = [i for i in range(n) if i == 0 or levels[i] != levels[i - 1]]
    return [range(start, stop) for start, stop in zip(starts, [*starts[1:], n], strict=True)]


@dataclasses.dataclass(frozen=True)
class Cut:
    """A timm model in parts: tail(blocks(stem(x))) is its forward_features.

    patch: (height, width) that an image's sides must be multiples of, where the image size is fixed; else None.
    pool, pool_norm: how the model's own head pools what follows the tail, and the norm it applies to the result, in the
        layout of the features (nchw: [B, C, 1, 1]).
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

    modules: timm modules that hold it; patterns: names in them (wildcards); refused: {pattern: why} of names that match
    but cannot be cut. model_types: the classes whose forward_features the cut reproduces; subclasses are refused.
    head_keys: prefixes of state-dict keys that belong to forward_head and are dropped knowingly.
    position_bias: names of the parts or parameters of a block that are its bias of relative positions.
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
    own_dilation: ClassVar[bool] = False
    position_bias: ClassVar[tuple[str, ...]] = ()
    own_patch: ClassVar[bool] = False

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
        if config.dilation != "timm" and not self.own_dilation:
            raise UsageError(f"dilation is {config.dilation!r}; {config.name!r} has no stage that it could change.")
        if config.patch is not None and not self.own_patch:
            raise UsageError(f"patch is {config.patch}; {config.name!r} has no patches, which transformers have.")
        if config.zero_init_last and not self.zero_init:
            raise UsageError(f"zero_init_last is set, but no norm of {config.name!r} can start at zero; leave it off.")
        if self.fixed_size and config.image_size is None:
            raise UsageError(f"Backbone {config.name!r} has a position embedding and needs image_size (height, width).")

    def arguments(self, config: BackboneConfig) -> dict[str, object]:
        """Keyword arguments for timm.create_model."""
        return {"num_classes": 0, "in_chans": config.in_chans, "drop_path_rate": config.drop_path}

    def adapt(self, model: nn.Module, config: BackboneConfig) -> None:  # noqa: B027  (most families need nothing)
        """Change what timm has no argument for in the structure of a model, whatever its weights."""

    def initialise(self, model: nn.Module, config: BackboneConfig) -> None:  # noqa: B027  (most families need nothing)
        """Change what timm has no argument for in the initial weights of a model that starts from scratch."""

    def cut(self, model: nn.Module) -> Cut:
        """The model in parts. Raises UsageError if it is not a member of the family."""
        if type(model) not in self.model_types:
            expected = ", ".join(cls.__name__ for cls in self.model_types)
            raise UsageError(f"timm built a {type(model).__name__} where {expected} was expected; it cannot be cut.")
        return self._cut(model)

    @abc.abstractmethod
    def _cut(self, model: nn.Module) -> Cut:
        """Cut a model whose class is one of `model_types`."""


_FAMILIES: dict[str, Family] = {}
_F = TypeVar("_F", bound=type[Family])


def family(cls: _F) -> _F:
    """Class decorator that registers a family."""
    _FAMILIES[f"{cls.__module__}.{cls.__qualname__}"] = cls()
    _members.cache_clear()
    return cls


@functools.cache
def _members() -> Mapping[str, Family]:
    """{name: its family}, the first one that has it, in alphabetical order of names. timm sorts its list anew at every
    call, and planning asks once a cell.
    """
    found: dict[str, Family] = {}
    for member in _FAMILIES.values():
        found.update({name: member for name in member.names() if name not in found})
    return dict(sorted(found.items()))


def supported_names() -> list[str]:
    """Names of all members of all families, in alphabetical order."""
    return list(_members())


def is_supported(architecture: str) -> bool:
    """Whether a family has this name, which is one without a pretrained tag."""
    return architecture in _members()


def find_family(name: str) -> Family:
    """The family of a timm name, with or without a pretrained tag.

    Raises UsageError with the nearest supported names.
    """
    architecture, _, tag = name.partition(".")
    member = _members().get(architecture)
    if member is None:
        raise _refusal(name, architecture)
    if tag:
        tagged = timm.list_models(f"{architecture}.*", include_tags=True)
        if name not in tagged:
            raise unknown(f"pretrained tag of {architecture}", tag, [full.partition(".")[2] for full in tagged])
    return member


def _refusal(name: str, architecture: str) -> UsageError:
    names = supported_names()
    if not timm.is_model(architecture):
        return unknown("backbone", name, names)
    current = timm.models.get_deprecated_models().get(architecture)
    if current is not None:
        return UsageError(f"Backbone {name!r} is a name that timm has given up; it is {current!r} now.")
    reasons = [
        reason
        for member in _FAMILIES.values()
        for pattern, reason in member.refused.items()
        if fnmatch.fnmatch(architecture, pattern)
    ]
    why = reasons[0] if reasons else "no adapter cuts its family"
    hint = ", ".join(repr(candidate) for candidate in nearest(architecture, names))
    return UsageError(f"Backbone {name!r} is known to timm, but not supported: {why}. Nearest supported: {hint}.")
