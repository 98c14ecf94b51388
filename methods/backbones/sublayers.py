"""Blocks cut into residual sub-layers: what a method needs that shares some layers of a block and not others.

A sub-layer adds f(x) to x. f is a chain of modules of one input in which every dense layer (linear, or convolution 1x1)
stands by itself: attention up to its output projection, the projection, what follows it. The modules are the block's
own, or views of them that share every part and leave some out, so timm's code runs and none of it is repeated here.

Windows and projection: Swin projects tokens in windows, here in the map. A linear layer treats every token alike, so
both give the same up to rounding.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeAlias, TypeVar, cast

from timm.layers import DropPath, GlobalResponseNormMlp, Mlp
from timm.models import convnext, swin_transformer, swin_transformer_v2, vision_transformer
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


@dataclasses.dataclass(frozen=True)
class Sublayer:
    """x + drop(f(x)): chain holds the modules of f in order, drop the rate at which stochastic depth drops f."""

    chain: tuple[nn.Module, ...]
    drop: float = 0.0


Cutter: TypeAlias = Callable[[nn.Module], Sequence[Sublayer]]


def is_dense(module: nn.Module) -> bool:
    """Whether a module is a linear layer of the channels, the same at every place."""
    if isinstance(module, nn.Conv2d):
        return module.groups == 1 and module.kernel_size == (1, 1) and module.stride == (1, 1)
    return isinstance(module, nn.Linear)


def view(module: M, **children: nn.Module) -> M:
    """A module that shares every part with `module` but for the named children, which are those given."""
    seen = copy.copy(module)
    seen._parameters, seen._buffers = dict(module._parameters), dict(module._buffers)
    seen._modules = {**module._modules, **children}
    return seen


def not_cut(block: nn.Module) -> Sequence[Sublayer]:
    """Of blocks that stay whole."""
    return ()


def _does_nothing(module: nn.Module) -> bool:
    return type(module) is nn.Identity or (isinstance(module, nn.Dropout) and module.p == 0)


def _sublayer(parts: Sequence[nn.Module], drop: nn.Module) -> Sublayer:
    """The parts as a chain: those that do nothing left out, those between dense layers joined."""
    chain: list[nn.Module] = []
    between: list[nn.Module] = []

    def join() -> None:
        if between:
            chain.append(between[0] if len(between) == 1 else nn.Sequential(*between))
            between.clear()

    for part in parts:
        if is_dense(part):
            join()
            chain.append(part)
        elif not _does_nothing(part):
            between.append(part)
    join()
    return Sublayer(tuple(chain), drop.drop_prob if isinstance(drop, DropPath) else 0.0)


def _of(module: nn.Module, *names: str) -> list[nn.Module]:
    return [cast(nn.Module, getattr(module, name)) for name in names]


def _mlp(mlp: nn.Module) -> list[nn.Module] | None:
    """Parts of an MLP in order; None for a class whose parts do not form a chain."""
    if type(mlp) is Mlp:
        return _of(mlp, "fc1", "act", "drop1", "norm", "fc2", "drop2")
    if type(mlp) is GlobalResponseNormMlp:
        return _of(mlp, "fc1", "act", "drop1", "grn", "fc2", "drop2")
    return None


def _projected(attention: nn.Module) -> nn.Module:
    """Attention up to its output projection."""
    return view(attention, proj=nn.Identity(), proj_drop=nn.Identity())


def cut_vit_block(block: nn.Module) -> Sequence[Sublayer]:
    """x + scale(attention(norm(x))), then x + scale(mlp(norm(x)))."""
    assert isinstance(block, vision_transformer.Block)
    mlp = _mlp(block.mlp)
    if mlp is None:
        return ()
    attention = [_projected(block.attn), *_of(block.attn, "proj", "proj_drop")]
    return (
        _sublayer([block.norm1, *attention, block.ls1], block.drop_path1),
        _sublayer([block.norm2, *mlp, block.ls2], block.drop_path2),
    )


def cut_post_norm_block(block: nn.Module) -> Sequence[Sublayer]:
    """x + norm(attention(x)), then x + norm(mlp(x))."""
    assert isinstance(block, vision_transformer.ResPostBlock)
    mlp = _mlp(block.mlp)
    if mlp is None:
        return ()
    attention = [_projected(block.attn), *_of(block.attn, "proj", "proj_drop")]
    return (
        _sublayer([*attention, block.norm1], block.drop_path1),
        _sublayer([*mlp, block.norm2], block.drop_path2),
    )


class WindowAttention(nn.Module):
    """Attention in the windows of a Swin block up to the output projection, on maps float [B, H, W, C]."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        names = ("norm1", "norm2", "mlp", "drop_path1", "drop_path2")
        attention = _projected(cast(nn.Module, block.attn))
        self.block = view(block, attn=attention, **{name: nn.Identity() for name in names})

    def forward(self, x: Tensor) -> Tensor:
        """Windows out of the map, attention, and back into the map."""
        return cast(Callable[[Tensor], Tensor], self.block._attn)(x)


def cut_swin_block(block: nn.Module) -> Sequence[Sublayer]:
    """As ViT's, or with the norms at the ends (V2). Not cut where heads are not as wide together as the features."""
    assert isinstance(block, (swin_transformer.SwinTransformerBlock, swin_transformer_v2.SwinTransformerV2Block))
    mlp, projection = _mlp(block.mlp), block.attn.proj
    if mlp is None or projection.in_features != projection.out_features:
        return ()
    attention = [WindowAttention(block), *_of(block.attn, "proj", "proj_drop")]
    if isinstance(block, swin_transformer_v2.SwinTransformerV2Block):
        first, second = [*attention, block.norm1], [*mlp, block.norm2]
    else:
        first, second = [block.norm1, *attention], [block.norm2, *mlp]
    return (_sublayer(first, block.drop_path1), _sublayer(second, block.drop_path2))


class Permute(nn.Module):
    """Axes in another order."""

    def __init__(self, *axes: int) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:
        """As torch.permute."""
        return x.permute(self.axes)


class ChannelScale(nn.Module):
    """Maps float [B, C, H, W] times gamma float [C]."""

    def __init__(self, gamma: nn.Parameter) -> None:
        super().__init__()
        self.gamma = gamma

    def forward(self, x: Tensor) -> Tensor:
        """The product, as ConvNeXt's block makes it."""
        return x.mul(self.gamma.reshape(1, -1, 1, 1))


def cut_convnext_block(block: nn.Module) -> Sequence[Sublayer]:
    """x + gamma mlp(norm(depthwise(x))). Not cut where the block's skip path is more than the identity."""
    assert isinstance(block, convnext.ConvNeXtBlock)
    mlp, shortcut = _mlp(block.mlp), cast(nn.Module, block.shortcut)
    if mlp is None or not _does_nothing(shortcut):
        return ()
    parts = [block.norm, *mlp]
    if not block.use_conv_mlp:
        parts = [Permute(0, 2, 3, 1), *parts, Permute(0, 3, 1, 2)]
    scale = [] if block.gamma is None else [ChannelScale(block.gamma)]
    return (_sublayer([block.conv_dw, *parts, *scale], block.drop_path),)
