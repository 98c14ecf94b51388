"""The layers of task switching: from a task's code to its style, and convolutions that a style conditions.

Codes are constants of an operation's configuration; every parameter is shared by all tasks, so their number does not
depend on how many tasks there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.errors import UsageError
from methods.graph.operations import Config, Operation, build_module, register_operation
from methods.streams import seeded

Code = tuple[int, int]  # where a task's code is one: [start, stop)
_SLOPE = 0.2


def block_code(task: int, n_tasks: int, width: int) -> Code:
    """The places where a task's code is one: [start, stop), blocks of equal length. Raises UsageError for more tasks
    than places.
    """
    length = width // n_tasks
    if length == 0:
        raise UsageError(f"A code of {width} numbers cannot tell {n_tasks} tasks apart; set code_width: {n_tasks}.")
    return task * length, (task + 1) * length


class PixelNorm(nn.Module):
    """x / sqrt(mean x^2 + 1e-8) over the last axis."""

    def forward(self, x: Tensor) -> Tensor:
        """x: float [..., D]."""
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-8)


def mapping(code_width: int, width: int, layers: int) -> nn.Sequential:
    """From a code [1, code_width] to a style [1, width]. Weights keep the size of what passes through them; biases
    start at 0.
    """
    parts: list[nn.Module] = [PixelNorm()]
    for number in range(layers):
        linear = nn.Linear(code_width if number == 0 else width, width)
        nn.init.kaiming_normal_(linear.weight, a=_SLOPE)
        nn.init.zeros_(linear.bias)
        parts += [linear, nn.LeakyReLU(_SLOPE)]
    return nn.Sequential(*parts)


class Style(nn.Module):
    """A task's style: the mapping of its code, which is one in [start, stop) and zero elsewhere."""

    code: Tensor

    def __init__(self, mapping: nn.Module, code: tuple[int, int], code_width: int) -> None:
        super().__init__()
        self.mapping = mapping
        values = torch.zeros(1, code_width)
        values[:, slice(*code)] = 1
        self.register_buffer("code", values, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Float [1, D], whatever x is: a node of a graph has an input."""
        return cast(Tensor, self.mapping(self.code))


class AdaIN(nn.Module):
    """y = gamma * IN(x) + beta, [gamma; beta] affine in the style; gamma's bias starts at 1 and beta's at 0."""

    def __init__(self, style: int, channels: int) -> None:
        super().__init__()
        self.affine = nn.Linear(style, 2 * channels)
        with torch.no_grad():
            self.affine.bias.copy_(torch.cat([torch.ones(channels), torch.zeros(channels)]))

    def forward(self, style: Tensor, x: Tensor) -> Tensor:
        """style: float [1, D]; x: float [B, C, H, W]. Raises ValueError for maps of one pixel, of which nothing would
        be left.
        """
        if x.shape[2] * x.shape[3] < 2:
            raise ValueError(f"Instance norm of {x.shape[2]}x{x.shape[3]} maps is zero; take larger images.")
        gamma, beta = self.affine(style)[:, :, None, None].chunk(2, 1)
        return cast(Tensor, gamma * F.instance_norm(x) + beta)


class ConditionedConvolution(nn.Module):
    """LeakyReLU(AdaIN(conv(x))); a second feature is joined to x, which is brought to its grid first."""

    def __init__(self, style: int, reads: int, channels: int, kernel: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(reads, channels, kernel, padding=kernel // 2, bias=False)
        self.norm = AdaIN(style, channels)

    def forward(self, style: Tensor, x: Tensor, *skip: Tensor) -> Tensor:
        """style: float [1, D]; x: float [B, C, h, w]; skip: nothing, or float [B, C', H, W]."""
        if skip:
            grown = F.interpolate(x, size=skip[0].shape[2:], mode="bilinear", align_corners=False)
            x = torch.cat([grown, skip[0]], 1)
        return F.leaky_relu(self.norm(style, self.convolution(x)), _SLOPE)


class FirstChannels(nn.Module):
    """The channels of a task among those of the shared output: those beyond are masked by leaving them out."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """x: float [B, C, ...] with C >= channels; returns float [B, channels, ...]."""
        return x[:, : self.channels]


@register_operation("task_switching.style")
def _style(config: Config) -> nn.Module:
    code_width = cast(int, config["code_width"])
    net = mapping(code_width, cast(int, config["width"]), cast(int, config["layers"]))
    start, stop = cast("Sequence[int]", config["code"])
    return Style(net, (start, stop), code_width)


@register_operation("task_switching.adain")
def _adain(config: Config) -> nn.Module:
    return AdaIN(cast(int, config["style"]), cast(int, config["channels"]))


@register_operation("task_switching.convolution")
def _convolution(config: Config) -> nn.Module:
    names = ("style", "reads", "channels", "kernel")
    return ConditionedConvolution(*(cast(int, config[name]) for name in names))


@register_operation("task_switching.output")
def _output(config: Config) -> nn.Module:
    return nn.Conv2d(cast(int, config["reads"]), cast(int, config["channels"]), 1)


@register_operation("task_switching.first_channels")
def _first_channels(config: Config) -> nn.Module:
    return FirstChannels(cast(int, config["channels"]))


def styles(
    codes: Sequence[tuple[int, int]], code_width: int, width: int, layers: int, seed: int, device: torch.device
) -> list[Operation]:
    """The style of each code, all through one mapping, which is initialised from a stream of the seed."""
    with seeded(seed, "task_switching.style"):
        shared = mapping(code_width, width, layers).to(device)
    form = {"code_width": code_width, "width": width, "layers": layers}
    return [
        Operation(
            "task_switching.style", {**form, "code": list(code)}, Style(shared, code, code_width).to(device), "added"
        )
        for code in codes
    ]


def conditioned(kind: str, seed: int, device: torch.device, **config: int) -> Operation:
    """An operation `task_switching.<kind>` from a stream of the seed; the output counts as a head."""
    name = f"task_switching.{kind}"
    with seeded(seed, name):
        module = build_module(name, config)
    return Operation(name, config, module.to(device), "heads" if kind == "output" else "added")
