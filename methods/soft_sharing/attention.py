"""The layers of MTAN on features [B, C, H, W]: a task's attention over a shared feature, and the shared refinement.

Those of all tasks run on one batch, a task's images behind another's: a layer of few channels is called once.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.graph.norms import other_parameters
from methods.graph.operations import Config, Operation, SideBySide, build_module, register_operation
from methods.graph.stacked import StackedNorm, stacked
from methods.soft_sharing.parameters import Refinement
from methods.streams import seeded

Pooling = Literal["none", "floor", "ceil"]
_WIDTH = 4  # a bottleneck's inner width is a quarter of what it gives
_CACHED = 2**17  # values of a task's feature: above, what a layer gives leaves the cache before the next one reads it


class Attention(SideBySide):
    """One task's attention at one stage: q = a * p, a = sigmoid(BN(h(ReLU(BN(g(z)))))), z = u or [u; r].

    g, h: 1x1 convolutions with bias.
    """

    def __init__(self, reads: int, width: int, channels: int) -> None:
        super().__init__()
        self.g = nn.Conv2d(reads, width, 1)
        self.norm_g = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.h = nn.Conv2d(width, channels, 1)
        self.norm_h = nn.BatchNorm2d(channels)
        self.sigmoid = nn.Sigmoid()

    def mask(self, u: Tensor, *r: Tensor) -> Tensor:
        """a in [0, 1], of the shape of u. r: nothing, or what the stage before gave."""
        for value in r:
            if value.shape[2:] != u.shape[2:]:
                raise _other_size(value, u)
        z = torch.cat([u, *r], dim=1) if r else u
        return cast(Tensor, self.sigmoid(self.norm_h(self.h(self.relu(self.norm_g(self.g(z)))))))

    def forward(self, p: Tensor, u: Tensor, *r: Tensor) -> Tensor:
        """p, u: last and first shared feature of the stage, float [B, C, H, W]; r: [B, C', H, W]."""
        return self.mask(u, *r) * p

    def alike(self, inputs: Hashable) -> Hashable:
        """All tasks attend to one p and u, in equally wide layers."""
        return cast("tuple[object, ...]", inputs)[:2], self.g.weight.shape

    @classmethod
    def together(cls, modules: Sequence[Attention], inputs: Sequence[Sequence[Tensor]]) -> Sequence[Tensor]:
        """All tasks at one stage. A convolution is a product of matrices for each; that over u needs no copy of u."""
        p, u, n = inputs[0][0], inputs[0][1], len(modules)
        refined = [torch.cat(each) for each in zip(*(rest for _, _, *rest in inputs), strict=True)]
        rows = _rows(u, 1).expand(n, -1, -1)
        read = u.shape[1]
        weight, bias = _stacked([module.g for module in modules])
        g = torch.baddbmm(bias, rows, weight[:, :read])
        for r in refined:
            if r.shape[2:] != u.shape[2:]:
                raise _other_size(r, u)
            g = torch.baddbmm(g, _rows(r, n), weight[:, read:])
        z = F.relu(StackedNorm([module.norm_g for module in modules])(_maps(g, u)))
        weight, bias = _stacked([module.h for module in modules])
        h = _maps(torch.baddbmm(bias, _rows(z, n), weight), u)
        a = torch.sigmoid(StackedNorm([module.norm_h for module in modules])(h))
        return (a.unflatten(0, (n, -1)) * p).unbind()


def _rows(x: Tensor, n: int) -> Tensor:
    """[n, B H W, C] of [n B, C, H, W]."""
    return x.permute(0, 2, 3, 1).reshape(n, -1, x.shape[1])


def _maps(rows: Tensor, like: Tensor) -> Tensor:
    """[n B, C, H, W] of [n, B H W, C]; H and W as those of `like`."""
    return rows.reshape(-1, *like.shape[2:], rows.shape[2]).permute(0, 3, 1, 2)


def _stacked(layers: Sequence[nn.Conv2d]) -> tuple[Tensor, Tensor]:
    """Weights [n, C, C'] and biases [n, 1, C'] of 1x1 convolutions."""
    weight = torch.stack([layer.weight.flatten(1) for layer in layers]).transpose(1, 2)
    return weight, torch.stack([cast(Tensor, layer.bias) for layer in layers])[:, None]


def _other_size(r: Tensor, u: Tensor) -> ValueError:
    return ValueError(
        f"The refined feature is {tuple(r.shape[2:])} where the stage has {tuple(u.shape[2:])}; this network was built "
        "for another image size."
    )


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with norms and a shortcut, from C to C'."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        width = max(1, after // _WIDTH)
        self.branch = nn.Sequential(
            nn.Conv2d(before, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, after, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.shortcut: nn.Module = nn.Identity()
        if before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        """x: float [B, C, H, W]."""
        return F.relu(self.branch(x) + self.shortcut(x))


class Refine(SideBySide):
    """f_j, shared by all tasks, and the pooling to the next stage's grid: r = pool(f(q))."""

    def __init__(self, before: int, after: int, form: Refinement, pooling: Pooling) -> None:
        super().__init__()
        if form == "bottleneck":
            self.f: nn.Module = Bottleneck(before, after)
        else:
            self.f = nn.Sequential(nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after))
        self.pool = nn.Identity() if pooling == "none" else nn.MaxPool2d(2, 2, ceil_mode=pooling == "ceil")

    def forward(self, q: Tensor) -> Tensor:
        """q: float [B, C, H, W]; returns float [B, C', H', W']."""
        return cast(Tensor, self.pool(self.f(q)))

    def alike(self, inputs: Hashable) -> Hashable:
        """f_j has one set of weights, whatever norms its tasks have."""
        return tuple(map(id, other_parameters(self)))

    @classmethod
    def together(cls, modules: Sequence[Refine], inputs: Sequence[Sequence[Tensor]]) -> Sequence[Tensor]:
        """All tasks at one stage."""
        q = [each[0] for each in inputs]
        if q[0].numel() > _CACHED or len({each.shape for each in q}) > 1:
            return [module(each) for module, each in zip(modules, q, strict=True)]
        first = modules[0]
        return cast(Tensor, stacked(first, modules)(torch.cat(q))).chunk(len(q))


@register_operation("mtan.attention")
def _attention(config: Config) -> nn.Module:
    return Attention(cast(int, config["reads"]), cast(int, config["width"]), cast(int, config["channels"]))


@register_operation("mtan.refine")
def _refine(config: Config) -> nn.Module:
    form, pooling = cast(Refinement, config["form"]), cast(Pooling, config["pooling"])
    return Refine(cast(int, config["before"]), cast(int, config["after"]), form, pooling)


def attention(reads: int, channels: int, mid_ratio: float, bias: float, seed: int, device: torch.device) -> Operation:
    """A task's attention, from a stream of the seed. bias: initial one of the norm in front of the sigmoid."""
    config = {"reads": reads, "width": max(1, round(channels * mid_ratio)), "channels": channels}
    with seeded(seed, "mtan.attention"):
        module = cast(Attention, build_module("mtan.attention", config))
    nn.init.constant_(module.norm_h.bias, bias)
    return Operation("mtan.attention", config, module.to(device), "added")


def refinement(
    before: int, after: int, form: Refinement, pooling: Pooling, seed: int, device: torch.device
) -> Operation:
    """f_j with its pooling, from a stream of the seed."""
    config = {"before": before, "after": after, "form": form, "pooling": pooling}
    with seeded(seed, "mtan.refine"):
        module = build_module("mtan.refine", config)
    return Operation("mtan.refine", config, module.to(device), "added")
