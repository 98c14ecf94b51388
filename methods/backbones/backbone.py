"""Any supported timm model as a backbone: a stem, ordered blocks that know how to be skipped, and a tail.

tail(blocks(stem(x))) equals timm's forward_features: in eval mode bit for bit on the same batch, machine and number of
threads, as the same operations run on the same shapes. The parts enter task graphs as
operations that share the backbone's own parameters and can be built again from their JSON configuration. Families are
in `methods.backbones.families`; this module names none. Source: DESIGN.md section 3, adashare.md 2.2, branched.md 2.2.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import timm
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from datasets.errors import UsageError
from methods.backbones.decoders import CONV1X1, DenseForm
from methods.backbones.family import (
    NATIVE_STRIDE,
    BackboneConfig,
    Cut,
    Layout,
    Pool,
    Shape,
    Size,
    find_family,
    group_stages,
    supported_names,
)
from methods.backbones.forms import Form
from methods.backbones.sublayers import Sublayer
from methods.backbones.weights import load_weights
from methods.graph.copies import copied
from methods.graph.operations import Config, Operation, register_operation
from methods.streams import seeded

Part = Literal["stem", "block", "skip", "execute", "piece", "tail", "pool_norm"]
_PRETRAINING_SIZE = (224, 224)  # takes every family with a position embedding; blocks do not depend on it
_PROBE_SIZE = (256, 256)  # any multiple of the largest reduction; features are measured on it, on the meta device


class Block(nn.Module):
    """One block of a backbone.

    module: the timm block. in_shape, out_shape: channels and reduction of what goes in and comes out.
    """

    def __init__(
        self, module: nn.Module, form: Form, in_shape: Shape, out_shape: Shape, layout: Layout, prefix_tokens: int
    ) -> None:
        super().__init__()
        self.module = module
        self.form = form
        self.in_shape = in_shape
        self.out_shape = out_shape
        self.layout = layout
        self.prefix_tokens = prefix_tokens
        self.identity = nn.Identity()

    @property
    def skip(self) -> nn.Module | None:
        """What remains when the block is skipped: its projection or an nn.Identity; None where it cannot be skipped."""
        if not self.form.skips(self.module):
            return None
        projection = self.form.projection(self.module)
        return self.identity if projection is None else projection

    def forward(self, x: Tensor) -> Tensor:
        """The timm block's own forward; equal to execute(x, skip(x)), bit for bit on one x, where it has a skip."""
        return cast(Tensor, self.module(x))

    def execute(self, x: Tensor, s: Tensor) -> Tensor:
        """The block's output given s = skip(x). Changes neither input.

        Raises ValueError where the block has no skip.
        """
        if not self.form.skips(self.module):
            raise ValueError("This block has no skip; call it with its input alone.")
        return self.form.execute(self.module, x, s)

    def branch(self) -> nn.Module:
        """`execute` as a module of two inputs, which holds the block's parts (shared) without the skip path."""
        return self.form.branch(self.module)

    def sublayers(self) -> Sequence[Sublayer]:
        """The block as residual sub-layers, of which the first reads s = skip(x); empty where it stays whole."""
        return self.form.sublayers(self.module)

    def clone(self) -> Block:
        """An independent copy with equal bits."""
        return copied(self)


class BackboneModule(nn.Module):
    """A backbone's stem, blocks and tail as one module, sharing their parameters."""

    def __init__(self, stem: nn.Module, blocks: Sequence[Block], tail: nn.Module) -> None:
        super().__init__()
        self.stem = stem
        self.blocks = nn.ModuleList(blocks)
        self.tail = tail

    def forward(self, x: Tensor) -> Tensor:
        """Features float [B, ...] of images float [B, C, H, W]."""
        return _run(self.stem, self.blocks, self.tail, x)


def _run(stem: nn.Module, blocks: Iterable[nn.Module], tail: nn.Module, x: Tensor) -> Tensor:
    x = stem(x)
    for block in blocks:
        x = block(x)
    return cast(Tensor, tail(x))


@dataclasses.dataclass(eq=False)
class Backbone:
    """A timm model in parts.

    stages: blocks grouped by reduction at native stride, or in four equal groups where all have one reduction.
    layout: of the features between the parts. prefix_tokens: leading tokens that have no place in the image.
    num_features: channels after the tail. input_size: (height, width) asked for, else the pretrained model's.
    mean, std: per channel, normalisation of the pretrained model, for images in [0, 1].
    grids: (height, width) in tokens of each size asked for, training first; empty where features are maps.
    from_scratch: whether the initial weights are random, neither pretrained nor from a file.
    pool, pool_norm: how the model's own head pools, and the norm it applies to the result (nchw: [B, C, 1, 1]).
        A pooled head starts from that norm's weights, which are no part of the backbone (measurement 2).
    weights_entry: of the weights' file, the entry that was loaded (`state_dict_ema`); empty without entry or file.
    dense: the form of the dense heads that are put on it: the cell's choice, kept here because every head asks for it.
    """

    config: BackboneConfig
    stem: nn.Module
    blocks: list[Block]
    tail: nn.Module
    stages: list[range]
    layout: Layout
    prefix_tokens: int
    num_features: int
    input_size: Size
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    grids: tuple[Size, ...]
    from_scratch: bool
    pool: Pool
    pool_norm: nn.Module | None
    dense: DenseForm = CONV1X1
    weights_entry: str = ""

    @property
    def grid(self) -> Size | None:
        """(height, width) in tokens at the training size; None where features are maps."""
        return self.grids[0] if self.grids else None

    @property
    def units(self) -> list[int]:
        """Indices of the blocks that can be skipped, in order."""
        return [index for index, block in enumerate(self.blocks) if block.skip is not None]

    @property
    def place_names(self) -> list[str]:
        """Names of the places 0..L where features can be read: after the stem, and after each of L stages."""
        return ["stem", *(f"stage {number + 1}" for number in range(len(self.stages)))]

    @property
    def place_channels(self) -> list[int]:
        """Channels of the features at the places 0..L."""
        return [self.blocks[0].in_shape.channels, *(self.blocks[s[-1]].out_shape.channels for s in self.stages)]

    def forward_features(self, x: Tensor) -> Tensor:
        """Features float [B, ...] in `layout` of images float [B, C, H, W]; timm's forward_features."""
        return _run(self.stem, self.blocks, self.tail, x)

    def clone(self) -> Backbone:
        """An independent copy with equal bits."""
        return copied(self)

    def module(self) -> BackboneModule:
        """One module that shares stem, blocks and tail, for state, mode and device."""
        return BackboneModule(self.stem, self.blocks, self.tail)

    def n_parameters(self) -> int:
        """P_ref: parameters of stem, blocks and tail (measurement 2)."""
        return sum(parameter.numel() for parameter in self.module().parameters())

    def stem_operation(self) -> Operation:
        """The stem: images -> features."""
        return self._operation("stem", 0, self.stem)

    def block_operation(self, index: int) -> Operation:
        """A whole block, x -> block(x)."""
        return self._operation("block", index, self.blocks[index].module)

    def skip_operation(self, index: int) -> Operation | None:
        """The skip path of a block, x -> s; None where the block cannot be skipped."""
        skip = self.blocks[index].skip
        return None if skip is None else self._operation("skip", index, skip)

    def execute_operation(self, index: int) -> Operation:
        """(x, s) -> execute(x, s). Holds the parameters of the branch only.

        Raises UsageError where the block has no skip.
        """
        if self.blocks[index].skip is None:
            raise UsageError(f"Block {index} of {self.config.name!r} cannot be skipped; use the whole block.")
        return self._operation("execute", index, self.blocks[index].branch())

    def sublayer_operations(self, index: int) -> list[list[Operation]]:
        """The chains of a block's residual sub-layers, which read the output of its skip path (`Form.sublayers`); empty
        where the block stays whole.
        """
        return [
            [self._operation("piece", index, piece, (number, place)) for place, piece in enumerate(sublayer.chain)]
            for number, sublayer in enumerate(self.blocks[index].sublayers())
        ]

    def tail_operation(self) -> Operation:
        """What follows the last block; an identity operation where nothing does."""
        return self._operation("tail", 0, self.tail)

    def _operation(self, part: Part, index: int, module: nn.Module, piece: Sequence[int] = ()) -> Operation:
        if type(module) is nn.Identity:
            return Operation("identity", {}, module, "backbone")
        config: dict[str, object] = {"backbone": self.config.to_json(), "part": part}
        if part not in ("stem", "tail"):
            config["index"] = index
        if piece:
            config["piece"] = list(piece)
        return Operation("backbone", config, module, "backbone")


def supported_backbones() -> list[str]:
    """Names that `create_backbone` takes, each also with one of timm's pretrained tags, in alphabetical order."""
    return supported_names()


def count_units(name: str) -> tuple[int, int]:
    """(blocks that can be skipped, blocks) of a backbone, without its weights. Raises UsageError as
    `create_backbone`.
    """
    size = _PRETRAINING_SIZE if find_family(name).fixed_size else None
    cut = _skeleton(BackboneConfig(name, image_size=size))
    return sum(form.skips(module) for module, form in cut.blocks), len(cut.blocks)


def create_backbone(
    config: BackboneConfig, *, weights: str | Path = "none", seed: int, dense: DenseForm = CONV1X1
) -> Backbone:
    """The backbone of a configuration.

    weights: `none` initialises by the stream `backbone-init` of the seed, so that equal seeds give equal bits on one
    machine; `pretrained` takes timm's (tag in the name, else its default); else the path of a file with a timm model's
    state (.safetensors, or torch). Raises UsageError for an unknown or unsupported name, an option that the family does
    not have, a size that is not a multiple of the patch, weights that cannot be had or do not fit.
    """
    geometry = _measure(config)
    with seeded(seed, "backbone-init"):
        model = _pretrained(config) if weights == "pretrained" else _build(config)
    member = find_family(config.name)
    entry = ""
    if weights not in ("none", "pretrained"):
        entry = load_weights(model, Path(weights), member.head_keys)
    defaults = cast("dict[str, Any]", model.pretrained_cfg)
    cut = member.cut(model)
    blocks = [
        Block(module, form, before, after, member.layout, cut.prefix_tokens)
        for (module, form), before, after in zip(cut.blocks, geometry.shapes, geometry.shapes[1:], strict=False)
    ]
    return Backbone(
        config=config,
        stem=cut.stem,
        blocks=blocks,
        tail=cut.tail,
        stages=list(geometry.stages),
        layout=member.layout,
        prefix_tokens=cut.prefix_tokens,
        num_features=geometry.num_features,
        input_size=config.image_size or tuple(defaults["input_size"][1:]),
        mean=tuple(defaults["mean"]),
        std=tuple(defaults["std"]),
        grids=geometry.grids,
        from_scratch=weights == "none",
        pool=cut.pool,
        pool_norm=cut.pool_norm,
        dense=dense,
        weights_entry=entry,
    )


def _build(config: BackboneConfig, *, device: str | None = None, pretrained: bool = False) -> nn.Module:
    member = find_family(config.name)
    member.check(config)
    arguments = cast("dict[str, Any]", member.arguments(config))
    model = timm.create_model(config.name, pretrained=pretrained, device=device, **arguments)
    member.adapt(model, config)
    if not pretrained:
        member.initialise(model, config)
    return model


def _pretrained(config: BackboneConfig) -> nn.Module:
    if not timm.is_model_pretrained(config.name):
        raise UsageError(f"timm has no pretrained weights of {config.name!r}; use 'none' or the path of a file.")
    try:
        return _build(config, pretrained=True)
    except (OSError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0][:160]
        raise UsageError(
            f"Pretrained weights of {config.name!r} cannot be had: {reason} Without network, give the path of a file."
        ) from error


@dataclasses.dataclass(frozen=True)
class _Geometry:
    """shapes: after the stem and after each block."""

    shapes: tuple[Shape, ...]
    stages: tuple[range, ...]
    num_features: int
    grids: tuple[Size, ...]


@functools.lru_cache(maxsize=32)
def _measure(config: BackboneConfig) -> _Geometry:
    """Shapes, stages and grids, from a forward pass without data.

    Raises UsageError if a size is not a multiple of the patch.
    """
    cut = _skeleton(config)
    grids = tuple(_grid(config.name, size, cut.patch) for size in config.sizes) if cut.patch else ()
    grids = grids if find_family(config.name).layout == "tokens" else ()
    shapes, num_features = _shapes(config, cut)
    native = shapes
    if config.output_stride != NATIVE_STRIDE:
        native_config = dataclasses.replace(config, output_stride=NATIVE_STRIDE)
        native, _ = _shapes(native_config, _skeleton(native_config))
    return _Geometry(tuple(shapes), tuple(group_stages([shape.reduction for shape in native[1:]])), num_features, grids)


def _skeleton(config: BackboneConfig) -> Cut:
    """The cut model on the meta device, for all to read: a graph asks for it once an operation."""
    return _skeleton_of(config, torch.get_default_dtype())


@functools.lru_cache(maxsize=8)
def _skeleton_of(config: BackboneConfig, dtype: torch.dtype) -> Cut:
    """As `_skeleton`; dtype is the default one, in which a model is built."""
    with seeded(0, "backbone-skeleton"):  # timm tries some layers on the CPU, which would move the global stream
        return find_family(config.name).cut(_build(config, device="meta"))


def _grid(name: str, size: Size, patch: Size) -> Size:
    if any(side % step for side, step in zip(size, patch, strict=True)):
        lower = tuple(max(side // step, 1) * step for side, step in zip(size, patch, strict=True))
        upper = tuple(-(-side // step) * step for side, step in zip(size, patch, strict=True))
        raise UsageError(
            f"Image size {size[0]}x{size[1]} is not a multiple of the {patch[0]}x{patch[1]} patches of {name!r}; "
            f"nearest: {lower[0]}x{lower[1]} and {upper[0]}x{upper[1]}."
        )
    return size[0] // patch[0], size[1] // patch[1]


@torch.no_grad()
def _shapes(config: BackboneConfig, cut: Cut) -> tuple[list[Shape], int]:
    """Shapes after the stem and after each block, and the channels after the tail."""
    member = find_family(config.name)
    size = cast(Size, config.image_size) if member.fixed_size else _PROBE_SIZE

    def shape_of(feature: Tensor) -> Shape:
        if member.layout == "tokens":
            return Shape(feature.shape[2], cast(Size, cut.patch)[0])
        channel_axis, height_axis = (1, 2) if member.layout == "nchw" else (3, 1)
        return Shape(feature.shape[channel_axis], round(size[0] / feature.shape[height_axis]))

    x = cut.stem.eval()(torch.empty(1, config.in_chans, *size, device="meta"))
    shapes = [shape_of(x)]
    for module, _ in cut.blocks:
        x = module.eval()(x)
        shapes.append(shape_of(x))
    return shapes, shape_of(cut.tail.eval()(x)).channels


def _select(cut: Cut, part: Part, index: int, piece: Sequence[int]) -> nn.Module:
    """One part of a cut model. piece: (number of the sub-layer, place in its chain)."""
    if part in ("stem", "tail"):
        return cut.stem if part == "stem" else cut.tail
    if part == "pool_norm":
        return nn.Identity() if cut.pool_norm is None else cut.pool_norm
    module, form = cut.blocks[index]
    if part == "block":
        return module
    if part == "execute":
        return form.branch(module)
    if part == "piece":
        number, place = piece
        return form.sublayers(module)[number].chain[place]
    projection = form.projection(module)
    return nn.Identity() if projection is None else projection


def _fresh_part(config: BackboneConfig, part: Part, index: int = 0, piece: Sequence[int] = ()) -> nn.Module:
    """A part with weights of its own, which are to be loaded: not a number until then, with fresh norm statistics.

    Built on the meta device, so that a graph of many blocks does not initialise as many whole models. Parts with
    tensors that no state dict holds (blur kernels) cannot be made so and come from a real model.
    """
    module = copied(_select(_skeleton(config), part, index, piece)).train()
    if any(name not in module.state_dict() for name, _ in module.named_buffers()):
        with seeded(0, "backbone-rebuild"):
            module = _select(find_family(config.name).cut(_build(config)), part, index, piece)
    else:
        module.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.fill_(torch.nan if tensor.is_floating_point() else 0)
    for norm in module.modules():
        if isinstance(norm, _NormBase):
            norm.reset_running_stats()
    return module


def pool_norm_module(config: BackboneConfig) -> nn.Module:
    """A module like `Backbone.pool_norm`, weights to be loaded; an nn.Identity where the model's head has no norm."""
    return _fresh_part(config, "pool_norm")


def backbone_config(config: Config) -> BackboneConfig:
    """The backbone's configuration inside an operation's."""
    return BackboneConfig.from_json(cast("dict[str, object]", config["backbone"]))


@register_operation("backbone")
def _backbone(config: Config) -> nn.Module:
    index, piece = cast(int, config.get("index", 0)), cast("list[int]", config.get("piece", []))
    return _fresh_part(backbone_config(config), cast(Part, config["part"]), index, piece)


@register_operation("identity")
def _identity(config: Config) -> nn.Module:
    return nn.Identity()
