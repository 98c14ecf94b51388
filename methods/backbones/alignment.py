"""Alignments: layers that bring a feature to the channels and the grid of another place of the same backbone.

Adaptive average pooling over the spatial axes of the layout, a 1x1 convolution or linear layer on its channel axis,
then the backbone's own kind of norm; prefix tokens pass the pooling unchanged. What has nothing to change is an
identity.
Source: dag_search 3, DESIGN.md section 3 (layout, prefix tokens).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from datasets.errors import UsageError
from methods.backbones.backbone import Backbone
from methods.backbones.family import Layout, Shape, Size
from methods.graph.copies import copied
from methods.graph.operations import Config, Operation, build_module, parameterless, register_operation
from methods.streams import seeded

KIND = "align"


class Align(nn.Module):
    """Pooling to another grid, a pointwise layer to other channels, a norm.

    sizes: {grid of the input: grid of the output}, both (height, width); one pair for each image size.
    """

    def __init__(
        self, layout: Layout, prefix_tokens: int, sizes: Mapping[Size, Size], pointwise: nn.Module, norm: nn.Module
    ) -> None:
        super().__init__()
        self.layout = layout
        self.prefix_tokens = prefix_tokens
        self.sizes = dict(sizes)
        self.grids = {height * width: (height, width) for height, width in sizes}
        self.pointwise = pointwise
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """x: float [B, C, h, w], [B, h, w, C] or [B, prefix + h w, C]; the same layout with other C, h and w.

        Raises ValueError for a grid that belongs to no image size the alignment was built for.
        """
        return cast(Tensor, self.norm(self.pointwise(self._pooled(x))))

    def _pooled(self, x: Tensor) -> Tensor:
        if self.layout == "nchw":
            return self._pool(x)
        if self.layout == "nhwc":
            return self._pool(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        prefix, grid = x[:, : self.prefix_tokens], x[:, self.prefix_tokens :]
        height, width = self.grids.get(grid.shape[1], (1, grid.shape[1]))
        pooled = self._pool(grid.transpose(1, 2).unflatten(2, (height, width)))
        return torch.cat([prefix, pooled.flatten(2).transpose(1, 2)], dim=1)

    def _pool(self, x: Tensor) -> Tensor:
        size = (x.shape[2], x.shape[3])
        if size not in self.sizes:
            known = ", ".join(f"{height}x{width}" for height, width in self.sizes)
            raise ValueError(f"A grid of {size[0]}x{size[1]} fits no image size of this network; known: {known}.")
        return x if self.sizes[size] == size else F.adaptive_avg_pool2d(x, self.sizes[size])


class Aligner:
    """Makes alignments between the places of one backbone: place 0 is the stem's output, place i that of block i."""

    def __init__(self, backbone: Backbone) -> None:
        self.shapes: list[Shape] = [backbone.blocks[0].in_shape, *(block.out_shape for block in backbone.blocks)]
        self.layout, self.prefix_tokens = backbone.layout, backbone.prefix_tokens
        self.grids = feature_grids(backbone)
        self._backbone = backbone

    def operation(self, source: int, target: int, seed: int) -> Operation:
        """The alignment from one place to another, initialised from a stream of the seed; an identity where both have
        one shape. Raises UsageError where the backbone's norm has no counterpart here.
        """
        sizes = {grids[source]: grids[target] for grids in self.grids.values()}
        channels = self.shapes[source].channels, self.shapes[target].channels
        if channels[0] == channels[1] and all(before == after for before, after in sizes.items()):
            return parameterless("identity")
        if len(sizes) < len({(grids[source], grids[target]) for grids in self.grids.values()}):
            raise UsageError(
                f"Two image sizes of {self._backbone.config.name!r} have one grid at place {source} and two at place "
                f"{target}; choose another evaluation size."
            )
        config = {
            "layout": self.layout,
            "prefix_tokens": self.prefix_tokens,
            "channels": list(channels),
            "sizes": [[*before, *after] for before, after in sizes.items()],
            "norm": norm_config(self._backbone),
        }
        with seeded(seed, "alignment"):
            module = build_module(KIND, config)
        device = next(self._backbone.module().parameters()).device
        return Operation(KIND, config, module.to(device), "added")


@torch.no_grad()
def feature_grids(backbone: Backbone) -> dict[Size, list[Size]]:
    """{image size: grid (height, width) after the stem and after each block}, from a forward pass without data."""
    sizes = backbone.config.sizes or (backbone.input_size,)
    if backbone.layout == "tokens":
        return {size: [grid] * (len(backbone.blocks) + 1) for size, grid in zip(sizes, backbone.grids, strict=True)}
    skeleton = copied(backbone.module()).to("meta").eval()
    grids: dict[Size, list[Size]] = {}
    for size in sizes:
        x = skeleton.stem(torch.empty(1, backbone.config.in_chans, *size, device="meta"))
        features = [x]
        for block in skeleton.blocks:
            x = block(x)
            features.append(x)
        axes = (2, 3) if backbone.layout == "nchw" else (1, 2)
        grids[size] = [(feature.shape[axes[0]], feature.shape[axes[1]]) for feature in features]
    return grids


def norm_config(backbone: Backbone) -> dict[str, object]:
    """The kind of norm that the backbone's blocks use, as JSON. Raises UsageError for a kind that is not known here."""
    for module in (part for block in backbone.blocks for part in block.module.modules()):
        if isinstance(module, _NormBase):
            return {"kind": "batch", "eps": module.eps}
        if isinstance(module, nn.GroupNorm):
            return {"kind": "group", "eps": module.eps, "groups": module.num_groups}
        if isinstance(module, nn.LayerNorm):
            return {"kind": "layer", "eps": module.eps}
    raise UsageError(
        f"Backbone {backbone.config.name!r} has no batch, group or layer norm, so there is no norm for alignments."
    )


def _norm(config: Config, channels: int, layout: Layout) -> nn.Module:
    eps = cast(float, config["eps"])
    if config["kind"] == "batch":
        return nn.BatchNorm2d(channels, eps=eps)
    if config["kind"] == "group":
        groups = cast(int, config["groups"])
        return nn.GroupNorm(groups if channels % groups == 0 else 1, channels, eps=eps)
    return LayerNorm2d(channels, eps=eps) if layout == "nchw" else nn.LayerNorm(channels, eps=eps)


@register_operation(KIND)
def _align(config: Config) -> nn.Module:
    layout = cast(Layout, config["layout"])
    before, after = cast("Sequence[int]", config["channels"])
    # The norm that follows has a bias of its own.
    pointwise = nn.Conv2d(before, after, 1, bias=False) if layout == "nchw" else nn.Linear(before, after, bias=False)
    sizes = {(a, b): (c, d) for a, b, c, d in cast("Sequence[tuple[int, int, int, int]]", config["sizes"])}
    norm = _norm(cast(Config, config["norm"]), after, layout)
    return Align(layout, cast(int, config["prefix_tokens"]), sizes, pointwise, norm)
