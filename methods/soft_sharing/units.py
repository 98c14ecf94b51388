"""The layers through which towers exchange features: stitches, NDDR layers, layer mixes, projections.

Each gives one task its feature from those of all towers, so a network that serves some of the tasks holds only their
layers. All act on the channel axis of the backbone's layout; prefix tokens are mixed as other tokens are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from methods.backbones.alignment import Align
from methods.backbones.family import Layout, Size
from methods.graph.operations import Config, Operation, SideBySide, build_module, register_operation
from methods.streams import seeded


def channel_axis(layout: Layout) -> int:
    """The axis of the channels."""
    return {"nchw": 1, "nhwc": 3, "tokens": 2}[layout]


def initial_alpha(n_tasks: int, own: float, other: float) -> Tensor:
    """a [T, T]: `own` on the diagonal, `other` elsewhere."""
    alpha = torch.full((n_tasks, n_tasks), other)
    return alpha.fill_diagonal_(own)


@torch.library.custom_op("sharebench::linear_mix", mutates_args=())
def _linear_mix(a: Tensor, x: Tensor) -> Tensor:
    """torch.bmm under a name of its own: what it computes is counted as the elementwise sums that it stands for."""
    return torch.bmm(a, x)


@_linear_mix.register_fake
def _(a: Tensor, x: Tensor) -> Tensor:
    return a.new_empty(a.shape[0], a.shape[1], x.shape[2])


class _Mix(torch.autograd.Function):
    """y_i = sum_j a_ij * x_j for all i at once; a [I, J, C], x: J tensors of one shape with C channels on an axis.

    Every step is one pass over all features: channels first, a product of matrices for each, and back.
    """

    @staticmethod
    def forward(ctx: Any, axis: int, a: Tensor, *x: Tensor) -> tuple[Tensor, ...]:
        a = a.permute(2, 0, 1).contiguous()
        joined = _channels_first(x, axis)
        ctx.axis, ctx.like = axis, x[0]
        ctx.save_for_backward(a, joined)
        return _as_features(_linear_mix(a, joined), x[0], axis)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        a, joined = ctx.saved_tensors
        g = _channels_first(gradients, ctx.axis)
        of_a = _linear_mix(g, joined.transpose(1, 2)).permute(1, 2, 0)
        return None, of_a, *_as_features(_linear_mix(a.transpose(1, 2), g), ctx.like, ctx.axis)


def _channels_first(x: Sequence[Tensor], axis: int) -> Tensor:
    """[C, J, N] of J tensors with C channels and N other numbers each."""
    return torch.stack([value.movedim(axis, 0).flatten(1) for value in x], dim=1)


def _as_features(y: Tensor, like: Tensor, axis: int) -> tuple[Tensor, ...]:
    """The I tensors of y [C, I, N], with shape and memory format of `like`."""
    shape = like.movedim(axis, 0).shape
    return tuple(torch.empty_like(like).copy_(value.view(shape).movedim(0, axis)) for value in y.unbind(1))


class Stitch(SideBySide):
    """One task's row of a Cross-Stitch unit: y = sum_j alpha_j * x_j, alpha_j one number a channel, or one for all.

    alpha: [T, C] or [T, 1].
    """

    def __init__(self, layout: Layout, n_tasks: int, width: int) -> None:
        super().__init__()
        self.layout = layout
        self.alpha = nn.Parameter(torch.zeros(n_tasks, width))

    def forward(self, *x: Tensor) -> Tensor:
        """x: of all towers in the order of the tasks, float [B, ...] of one shape and layout."""
        alpha = self.alpha[:, :, None, None] if self.layout == "nchw" else self.alpha
        y = alpha[0] * x[0]
        for a, value in zip(alpha[1:], x[1:], strict=True):
            y = torch.addcmul(y, a, value)
        return y

    @classmethod
    def together(cls, modules: Sequence[Stitch], inputs: Sequence[Sequence[Tensor]]) -> Sequence[Tensor]:
        """All rows of a unit at once; they read the same features."""
        axis, x = channel_axis(modules[0].layout), inputs[0]
        a = torch.stack([row.alpha for row in modules])
        return cast("Sequence[Tensor]", _Mix.apply(axis, a.expand(-1, -1, x[0].shape[axis]), *x))


class SubspaceStitch(SideBySide):
    """One task's S rows of a Sluice matrix: x'_s = sum over (u, r) of A[s, u S + r] x_(u, r), one number an entry.

    alpha: [S, T S]. Channels are cut into S equal subspaces.
    """

    def __init__(self, layout: Layout, n_tasks: int, subspaces: int) -> None:
        super().__init__()
        self.axis = channel_axis(layout)
        self.subspaces = subspaces
        self.alpha = nn.Parameter(torch.zeros(subspaces, n_tasks * subspaces))

    def forward(self, *x: Tensor) -> Tensor:
        """x: of all towers in the order of the tasks. Raises ValueError where channels cannot be cut equally."""
        parts = self._parts(x)
        mixed = []
        for row in self.alpha:
            y = row[0] * parts[0]
            for a, part in zip(row[1:], parts[1:], strict=True):
                y = torch.addcmul(y, a, part)
            mixed.append(y)
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed, self.axis)

    @classmethod
    def together(cls, modules: Sequence[SubspaceStitch], inputs: Sequence[Sequence[Tensor]]) -> Sequence[Tensor]:
        """All rows of a matrix at once; they read the same features."""
        first = modules[0]
        parts = first._parts(inputs[0])
        a = torch.cat([module.alpha for module in modules])[..., None].expand(-1, -1, parts[0].shape[first.axis])
        mixed = cast("Sequence[Tensor]", _Mix.apply(first.axis, a, *parts))
        rows = [mixed[start : start + first.subspaces] for start in range(0, len(mixed), first.subspaces)]
        return [torch.cat(list(row), first.axis) for row in rows]

    def _parts(self, x: Sequence[Tensor]) -> list[Tensor]:
        if x[0].shape[self.axis] % self.subspaces:
            raise ValueError(f"{x[0].shape[self.axis]} channels cannot be cut into {self.subspaces} equal subspaces.")
        return [part for value in x for part in value.chunk(self.subspaces, self.axis)]


class LayerMix(nn.Module):
    """A task's mix of all its stages: sum_l beta_l h_l. beta: [L]."""

    def __init__(self, n_stages: int) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.zeros(n_stages))

    def forward(self, *h: Tensor) -> Tensor:
        """h: of the stages in order, all of one shape."""
        y = self.beta[0] * h[0]
        for b, value in zip(self.beta[1:], h[1:], strict=True):
            y = torch.addcmul(y, b, value)
        return y


class LastAxisBatchNorm(nn.BatchNorm1d):
    """Batch norm of channels that are the last axis: statistics over images and places."""

    def forward(self, input: Tensor) -> Tensor:
        """input: float [B, ..., C]."""
        return super().forward(input.flatten(0, -2)).view_as(input)


class Nddr(nn.Module):
    """One task's NDDR layer: a pointwise layer on the concatenated features, a batch norm, and a ReLU where asked."""

    def __init__(self, layout: Layout, channels: int, n_tasks: int, momentum: float, relu: bool) -> None:
        super().__init__()
        width = channels * n_tasks
        if layout == "nchw":
            self.pointwise: nn.Module = nn.Conv2d(width, channels, 1, bias=False)
            self.norm: nn.Module = nn.BatchNorm2d(channels, momentum=momentum)
        else:
            self.pointwise = nn.Linear(width, channels, bias=False)
            self.norm = LastAxisBatchNorm(channels, momentum=momentum)
        self.activation = nn.ReLU() if relu else nn.Identity()

    def forward(self, z: Tensor) -> Tensor:
        """z: features of all towers joined on the channel axis, in the order of the tasks."""
        return cast(Tensor, self.activation(self.norm(self.pointwise(z))))


@register_operation("cross_stitch")
def _stitch(config: Config) -> nn.Module:
    return Stitch(cast(Layout, config["layout"]), cast(int, config["tasks"]), cast(int, config["width"]))


@register_operation("sluice")
def _subspace_stitch(config: Config) -> nn.Module:
    return SubspaceStitch(cast(Layout, config["layout"]), cast(int, config["tasks"]), cast(int, config["subspaces"]))


@register_operation("layer_mix")
def _layer_mix(config: Config) -> nn.Module:
    return LayerMix(cast(int, config["stages"]))


@register_operation("nddr")
def _nddr(config: Config) -> nn.Module:
    return Nddr(
        cast(Layout, config["layout"]),
        cast(int, config["channels"]),
        cast(int, config["tasks"]),
        cast(float, config["momentum"]),
        cast(bool, config["relu"]),
    )


@register_operation("project")
def _project(config: Config) -> nn.Module:
    layout = cast(Layout, config["layout"])
    before, after = cast("Sequence[int]", config["channels"])
    pointwise = nn.Conv2d(before, after, 1, bias=False) if layout == "nchw" else nn.Linear(before, after, bias=False)
    sizes = {(a, b): (c, d) for a, b, c, d in cast("Sequence[tuple[int, int, int, int]]", config["sizes"])}
    return Align(layout, cast(int, config["prefix_tokens"]), sizes, pointwise, nn.Identity())


def _operation(kind: str, device: torch.device, seed: int = 0, **config: object) -> Operation:
    with seeded(seed, kind):  # torch initialises layers from the global stream, also those whose weights are then set
        module = build_module(kind, config)
    return Operation(kind, config, module.to(device), "added")


@torch.no_grad()
def stitch(layout: Layout, alpha: Tensor) -> Operation:
    """A row of a Cross-Stitch unit. alpha: its initial values [T, C] or [T, 1], on the device of the network."""
    operation = _operation("cross_stitch", alpha.device, layout=layout, tasks=alpha.shape[0], width=alpha.shape[1])
    cast(Stitch, operation.module).alpha.copy_(alpha)
    return operation


@torch.no_grad()
def subspace_stitch(layout: Layout, alpha: Tensor) -> Operation:
    """One task's rows of a Sluice matrix. alpha: initial values [S, T S]."""
    subspaces, width = alpha.shape
    operation = _operation("sluice", alpha.device, layout=layout, tasks=width // subspaces, subspaces=subspaces)
    cast(SubspaceStitch, operation.module).alpha.copy_(alpha)
    return operation


@torch.no_grad()
def layer_mix(beta: Tensor) -> Operation:
    """The operation that mixes a task's stages. beta: initial values [L]."""
    operation = _operation("layer_mix", beta.device, stages=len(beta))
    cast(LayerMix, operation.module).beta.copy_(beta)
    return operation


@torch.no_grad()
def nddr(layout: Layout, alpha: Tensor, channels: int, momentum: float, relu: bool) -> Operation:
    """One task's NDDR layer: blocks alpha_j I in the order of the tasks, norm 1 and 0. alpha: [T]."""
    operation = _operation(
        "nddr", alpha.device, layout=layout, channels=channels, tasks=len(alpha), momentum=momentum, relu=relu
    )
    identity = torch.eye(channels, device=alpha.device)
    blocks = torch.cat([a * identity for a in alpha], dim=1)
    weight = cast(nn.Parameter, cast(Nddr, operation.module).pointwise.weight)
    weight.copy_(blocks.view_as(weight))
    return operation


def projection(
    layout: Layout,
    prefix_tokens: int,
    channels: tuple[int, int],
    sizes: Mapping[Size, Size],
    seed: int,
    device: torch.device,
) -> Operation:
    """A pointwise layer without bias to other channels, behind average pooling to another grid; prefix tokens are not
    pooled. Pooling and projection commute, so the cheaper order is taken. sizes: {grid before: grid after}.
    """
    return _operation(
        "project",
        device,
        seed,
        layout=layout,
        prefix_tokens=prefix_tokens,
        channels=list(channels),
        sizes=[[*before, *after] for before, after in sizes.items()],
    )
