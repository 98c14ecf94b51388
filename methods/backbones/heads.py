"""Task heads, the same for every method: they read the feature that follows the tail. Source: measurement.md 2.

Pooled heads, for tasks with one label an image: the family's own pooling (class token, mean of the tokens without
prefix, mean of both tokens of distilled DeiT, mean of a map), the family's own norm where its head has one, and a
linear layer.
Dense heads, for tasks with one label a pixel: the cell's decoder (methods.backbones.decoders), by default a 1x1
convolution; losses and metrics resize its predictions. The specification fixes neither the initial weights, which are
torch's defaults for the layer, nor the default's form; both are our choice. A conv_head or attention pooling that a
pretrained model runs after its features is not part of a head.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import cast

from torch import Tensor, nn

from datasets.contracts import TaskSpec
from datasets.errors import UsageError
from datasets.kinds import get_kind
from methods.backbones.backbone import Backbone, pool_norm_module
from methods.backbones.decoders import DenseForm, create_decoder
from methods.backbones.family import BackboneConfig, Layout, Pool, Size
from methods.graph.operations import Config, Operation, build_module, register_operation
from methods.streams import seeded


class PooledHead(nn.Module):
    """Pooling, a norm, dropout and a linear layer. prefix_tokens: leading tokens that a mean leaves out."""

    def __init__(
        self, layout: Layout, pool: Pool, prefix_tokens: int, norm: nn.Module, dropout: float, linear: nn.Linear
    ) -> None:
        super().__init__()
        self.layout = layout
        self.pool = pool
        self.prefix_tokens = prefix_tokens
        self.norm = norm
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        """x: features float [B, C, h, w], [B, h, w, C] or [B, tokens, C]; returns float [B, channels]."""
        return cast(Tensor, self.linear(self.dropout(self.norm(self._pooled(x)).flatten(1))))

    def _pooled(self, x: Tensor) -> Tensor:
        """Float [B, C], or [B, C, 1, 1] of NCHW features, as their norms expect it."""
        if self.layout == "nchw":
            return x.mean((2, 3), keepdim=True)
        if self.layout == "nhwc":
            return x.mean((1, 2))
        if self.pool == "class_token":
            return x[:, 0]
        if self.pool == "prefix_mean":
            return x[:, : self.prefix_tokens].mean(1)
        return x[:, self.prefix_tokens :].mean(1)


class DenseHead(nn.Module):
    """A decoder on features brought to NCHW.

    grids: {number of tokens without prefix: (height, width)}, empty where features are maps.
    """

    def __init__(self, layout: Layout, prefix_tokens: int, grids: Mapping[int, Size], decoder: nn.Module) -> None:
        super().__init__()
        self.layout = layout
        self.prefix_tokens = prefix_tokens
        self.grids = dict(grids)
        self.decoder = decoder

    def forward(self, x: Tensor) -> Tensor:
        """x: features float [B, C, h, w], [B, h, w, C] or [B, tokens, C]; returns float [B, channels, h', w'], for most
        decoders at the resolution of the features.

        Raises ValueError for a number of tokens that belongs to no size the backbone was built for.
        """
        return cast(Tensor, self.decoder(self._map(x)))

    def _map(self, x: Tensor) -> Tensor:
        if self.layout == "nchw":
            return x
        if self.layout == "nhwc":
            return x.permute(0, 3, 1, 2)
        n_tokens = x.shape[1] - self.prefix_tokens
        if n_tokens not in self.grids:
            known = ", ".join(f"{height}x{width}" for height, width in self.grids.values())
            raise ValueError(
                f"{n_tokens} tokens fit no grid of this backbone ({known}); set its image or evaluation size."
            )
        height, width = self.grids[n_tokens]
        return x[:, self.prefix_tokens :].transpose(1, 2).reshape(x.shape[0], x.shape[2], height, width)


def create_head(task: TaskSpec, backbone: Backbone, seed: int) -> Operation:
    """A task's head: dense or pooled as its kind says, initialised from the stream `head-init/<task>` of the seed.

    A pooled head's norm starts from the backbone's weights. Raises UnknownNameError for an unknown kind, and UsageError
    where the training and evaluation sizes give equally many tokens in different grids.
    """
    kind = get_kind(task.kind)
    shared: dict[str, object] = {
        "layout": backbone.layout,
        "prefix_tokens": backbone.prefix_tokens,
        "features": backbone.num_features,
        "channels": kind.head_channels(task),
        "dropout": backbone.config.dropout,
    }
    if kind.dense:
        form: dict[str, object] = {"decoder": backbone.dense.decoder, "hidden": backbone.dense.width}
        if backbone.dense.decoder == "subpixel":
            form["reduction"] = backbone.blocks[-1].out_shape.reduction
        name, config = "head.dense", {**shared, "grids": [list(grid) for grid in backbone.grids], **form}
    else:
        norm = None if backbone.pool_norm is None else backbone.config.to_json()
        name, config = "head.pooled", {**shared, "pool": backbone.pool, "norm": norm}
    with seeded(seed, f"head-init/{task.name}"):
        module = build_module(name, config)
    if isinstance(module, PooledHead) and backbone.pool_norm is not None:
        module.norm.load_state_dict(backbone.pool_norm.state_dict())
    return Operation(name, config, module, "heads")


@dataclasses.dataclass(frozen=True)
class _HeadConfig:
    """What both heads have in common."""

    layout: Layout
    prefix_tokens: int
    features: int
    channels: int
    dropout: float

    @classmethod
    def of(cls, config: Config) -> _HeadConfig:
        return cls(**{field.name: config[field.name] for field in dataclasses.fields(cls)})  # type: ignore[arg-type]


@register_operation("head.pooled")
def _pooled(config: Config) -> nn.Module:
    head = _HeadConfig.of(config)
    norm: nn.Module = nn.Identity()
    if config["norm"] is not None:
        norm = pool_norm_module(BackboneConfig.from_json(cast("dict[str, object]", config["norm"])))
    linear = nn.Linear(head.features, head.channels)
    return PooledHead(head.layout, cast(Pool, config["pool"]), head.prefix_tokens, norm, head.dropout, linear)


@register_operation("head.dense")
def _dense(config: Config) -> nn.Module:
    head = _HeadConfig.of(config)
    grids: dict[int, Size] = {}
    for height, width in cast("list[Size]", config["grids"]):
        if grids.setdefault(height * width, (height, width)) != (height, width):
            raise UsageError(
                f"Grids of {grids[height * width]} and {(height, width)} tokens cannot be told apart by a dense head; "
                "choose another evaluation size."
            )
    form = DenseForm.of(cast(str, config["decoder"]), cast("int | None", config["hidden"]))
    reduction = cast(int, config.get("reduction", 1))
    decoder = create_decoder(form, head.features, head.channels, head.dropout, reduction)
    return DenseHead(head.layout, head.prefix_tokens, grids, decoder)
