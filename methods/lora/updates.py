"""A low-rank update s B A of a layer's weight W, and the layers that can have one.

Linear: A in R^{r x in}, B in R^{out x r}. Convolution k x k: A is one from in to r channels with the layer's stride,
padding and dilation, B one 1 x 1 from r to out, so that s B A is a kernel of W's shape. Grouped layers have none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import cast

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from torch import Tensor, nn

from methods.backbones.backbone import backbone_config
from methods.backbones.family import find_family
from methods.backbones.forms import StageEntry
from methods.backbones.sublayers import view
from methods.graph.operations import Config, Operation, build_module, register_operation

_CONVOLUTIONS = (nn.Conv2d, Conv2dSame)  # others change their weight before they use it


class LowRank(nn.Module):
    """x -> s B A x, for one layer.

    layer: decides shapes and geometry; none of its tensors is kept. scale: s, a factor and not alpha / r. dropout: rate
    on x in training. A and B hold no numbers until `start` or a state dict gives them some.
    """

    def __init__(self, layer: nn.Module, rank: int, scale: float, dropout: float = 0.0) -> None:
        super().__init__()
        weight = layer.get_parameter("weight")
        self.scale, self.dropout, self.shape = scale, dropout, weight.shape
        is_map = isinstance(layer, nn.Conv2d)
        self.A = view(layer)  # of the layer's own class, with its stride, padding and dilation
        self.A._parameters = {"weight": nn.Parameter(weight.new_empty((rank, *weight.shape[1:]))), "bias": None}
        setattr(self.A, "out_channels" if is_map else "out_features", rank)
        out = weight.shape[0]
        self.B = nn.Conv2d(rank, out, 1, bias=False) if is_map else nn.Linear(rank, out, bias=False)
        self.B.to(weight)

    @torch.no_grad()
    def start(self, generator: torch.Generator) -> None:
        """A by He's uniform rule with slope sqrt(5), as torch starts linear layers; B = 0."""
        a, b = self.A.get_parameter("weight"), self.B.get_parameter("weight")
        a.copy_(nn.init.kaiming_uniform_(torch.empty(a.shape, dtype=a.dtype), math.sqrt(5), generator=generator))
        b.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """x: what the layer reads; of the shape that the layer gives."""
        return cast(Tensor, self.scale * self.B(self.A(F.dropout(x, self.dropout, self.training))))

    def delta(self) -> Tensor:
        """s B A in the shape of W."""
        a, b = self.A.get_parameter("weight"), self.B.get_parameter("weight")
        return self.scale * (b.flatten(1) @ a.flatten(1)).view(self.shape)

    def without_dropout(self) -> LowRank:
        """The same A and B, to deploy."""
        seen = view(self)
        seen.dropout = 0.0
        return seen


class Adapted(nn.Module):
    """A layer with an update, in its place: W x + b + s B A x."""

    def __init__(self, layer: nn.Module, update: LowRank) -> None:
        super().__init__()
        self.layer, self.update = layer, update

    def forward(self, x: Tensor) -> Tensor:
        """As the layer."""
        return cast(Tensor, self.layer(x) + self.update(x))

    @property
    def weight(self) -> Tensor:
        """W + s B A: Swin V2 multiplies by the weight of its qkv, and does not call the layer (no dropout there)."""
        return self.layer.get_parameter("weight") + self.update.delta()


def layers_of(block: nn.Module, position_bias: tuple[str, ...]) -> dict[str, nn.Module]:
    """{name: layer} of the block's (or the tail's) layers that can have an update: linear layers and convolutions, not
    grouped; but for the downsampling at a stage's entry and the bias of relative positions, which are trained whole.
    """
    left_out = {*position_bias, *(("downsample",) if isinstance(block, StageEntry) else ())}
    return {
        name: module
        for name, module in block.named_modules()
        if (isinstance(module, nn.Linear) or (type(module) in _CONVOLUTIONS and getattr(module, "groups", 1) == 1))
        and left_out.isdisjoint(name.split("."))
    }


def weights_of(body: nn.Module) -> Iterator[Tensor]:
    """Weights of all convolutions and linear layers, grouped ones too."""
    return (part.weight for part in body.modules() if isinstance(part, (nn.Conv2d, nn.Linear)))


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm; timm's have no base class in common, but all have it in their names."""
    return "Norm" in type(module).__name__


def update_operation(update: LowRank) -> Operation:
    """The update of a layer 1 x 1 as an operation by itself."""
    out, reads = update.shape[:2]
    config = {
        "reads": reads,
        "gives": out,
        "rank": update.A.get_parameter("weight").shape[0],
        "scale": update.scale,
        "map": isinstance(update.B, nn.Conv2d),
    }
    return Operation("lora.update", config, update, "added")


@register_operation("lora.update")
def _update(config: Config) -> nn.Module:
    reads, gives = cast(int, config["reads"]), cast(int, config["gives"])
    layer = nn.Conv2d(reads, gives, 1, device="meta") if config["map"] else nn.Linear(reads, gives, device="meta")
    return LowRank(layer, cast(int, config["rank"]), cast(float, config["scale"])).to_empty(device="cpu")


def adapt(block: nn.Module, updates: Mapping[str, LowRank]) -> None:
    """Put the updates into a block, by the names of their layers, in place."""
    for name, update in updates.items():
        owner, _, attribute = name.rpartition(".")
        setattr(block.get_submodule(owner), attribute, Adapted(block.get_submodule(name), update))


def added_names(module: nn.Module) -> list[str]:
    """Names of the parameters of the updates inside a module."""
    return [
        f"{name}.update.{own}"
        for name, part in module.named_modules()
        if isinstance(part, Adapted)
        for own, _ in part.update.named_parameters()
    ]


def block_operation(plain: Operation, block: nn.Module, updates: Mapping[str, LowRank]) -> Operation:
    """A whole block with one task's updates. plain: the operation of the block without them; block: a copy of it that
    shares its weights, and is changed.
    """
    adapt(block, updates)
    first = next(iter(updates.values()))
    rank = first.A.get_parameter("weight").shape[0]
    config = {**plain.config, "rank": rank, "scale": first.scale, "layers": list(updates)}
    return Operation("lora.block", config, block, "backbone", origins=dict.fromkeys(added_names(block), "added"))


@register_operation("lora.block")
def _block(config: Config) -> nn.Module:
    block = build_module("backbone", {key: config[key] for key in ("backbone", "part", "index")})
    layers = layers_of(block, find_family(backbone_config(config).name).position_bias)
    rank, scale = cast(int, config["rank"]), cast(float, config["scale"])
    adapt(block, {name: LowRank(layers[name], rank, scale) for name in cast("list[str]", config["layers"])})
    return block
