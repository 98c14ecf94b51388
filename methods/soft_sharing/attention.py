"""The layers of MTAN on features [B, C, H, W]: a task's attention over a shared feature, and the shared refinement."""

from __future__ import annotations

from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.graph.operations import Config, Operation, build_module, register_operation
from methods.soft_sharing.parameters import Refinement
from methods.streams import seeded

Pooling = Literal["none", "floor", "ceil"]
_WIDTH = 4  # a bottleneck's inner width is a quarter of what it gives


class Attention(nn.Module):
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
                raise ValueError(
                    f"The refined feature is {tuple(value.shape[2:])} where the stage has {tuple(u.shape[2:])}; "
                    "this network was built for another image size."
                )
        z = torch.cat([u, *r], dim=1) if r else u
        return cast(Tensor, self.sigmoid(self.norm_h(self.h(self.relu(self.norm_g(self.g(z)))))))

    def forward(self, p: Tensor, u: Tensor, *r: Tensor) -> Tensor:
        """p, u: last and first shared feature of the stage, float [B, C, H, W]; r: [B, C', H, W]."""
        return self.mask(u, *r) * p


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


class Refine(nn.Module):
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
