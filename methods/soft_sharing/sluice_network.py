"""The network of `sluice`: units over subspaces, projections, the mix of stages, the penalty. Symbols as there."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from timm.layers import EffectiveSEModule, SEModule
from timm.models._efficientnet_blocks import SqueezeExcite
from torch import Tensor, nn

from datasets.errors import UsageError
from methods.backbones.alignment import feature_grids
from methods.backbones.backbone import Backbone
from methods.contracts import Trainer
from methods.graph.operations import Operation
from methods.graph.task_graph import TaskGraph, Value
from methods.soft_sharing.towers import Tower, Units
from methods.soft_sharing.units import initial_alpha, layer_mix, projection, subspace_stitch

if TYPE_CHECKING:
    from methods.soft_sharing.sluice import SluiceParams

_GATES = (SEModule, EffectiveSEModule, SqueezeExcite)  # their last layer has C outputs and is no convolution of a stage


def initial_matrix(n_tasks: int, subspaces: int, init: str, own: float) -> Tensor:
    """A [S T, S T], index S t + s; every row sums to 1."""
    size = n_tasks * subspaces
    if init == "balanced":
        return torch.full((size, size), 1 / size)
    return initial_alpha(size, own, (1 - own) / (size - 1))


def initial_beta(n_stages: int, init: str) -> Tensor:
    """b of one task [L]; sums to 1."""
    if init == "balanced" or n_stages == 1:
        return torch.full((n_stages,), 1 / n_stages)
    beta = torch.full((n_stages,), 0.1 / (n_stages - 1))
    beta[-1] = 0.9
    return beta


def last_convolution(backbone: Backbone, index: int) -> str:
    """Name, inside a block, of the last convolution or linear layer of its branch that gives the block's channels.

    Raises UsageError where there is none.
    """
    block = backbone.blocks[index]
    shortcut = block.form.projection(block.module)
    apart: list[nn.Module] = [part for part in block.module.modules() if isinstance(part, _GATES)]
    apart += [] if shortcut is None else [shortcut]
    left_out = {id(part) for root in apart for part in root.modules()}
    found = None
    for name, part in block.module.named_modules():
        if id(part) in left_out:
            continue
        width = getattr(part, "out_channels", getattr(part, "out_features", None))
        if isinstance(part, (nn.Conv2d, nn.Linear)) and width == block.out_shape.channels:
            found = name
    if found is None:
        raise UsageError(
            f"Block {index} of {backbone.config.name!r} has no convolution with {block.out_shape.channels} channels "
            "whose subspaces could be kept orthogonal; set orth_weight 0."
        )
    return found


def orthogonality(weights: Sequence[Tensor]) -> Tensor:
    """Omega = sum over layers of ||G_1^T G_2||_F^2, G_s [D, C / 2] the filters of half s as columns.

    weights: [C, ...] of the layers, filters as rows.
    """
    total = torch.zeros((), device=weights[0].device)
    for weight in weights:
        first, second = weight.flatten(1).chunk(2)
        total = total + (first @ second.T).square().sum()
    return total


def units(p: SluiceParams, backbone: Backbone, n_tasks: int) -> Units:
    """A unit after every stage, rows of A by task."""
    matrix = initial_matrix(n_tasks, p.subspaces, p.alpha_init, p.alpha_self)
    rows = matrix.to(next(backbone.module().parameters()).device).split(p.subspaces)
    places = range(1, len(backbone.stages) + 1)
    return Units({place: [subspace_stitch(backbone.layout, row) for row in rows] for place in places})


def mixes(p: SluiceParams, trainer: Trainer, backbone: Backbone) -> list[Operation]:
    """The mix of all stages of every task."""
    beta = initial_beta(len(backbone.stages), p.beta_init)
    return [layer_mix(beta.to(trainer.device)) for _ in trainer.data.tasks]


def projections(trainer: Trainer, backbone: Backbone) -> list[list[Operation]]:
    """For each task the projections of stages 1 to L - 1 to the grid and the channels of the last one.

    Raises UsageError where two image sizes have one grid after an earlier stage and two after the last one.
    """
    ends = [stage[-1] + 1 for stage in backbone.stages]
    grids = feature_grids(backbone)
    channels = backbone.place_channels

    def one(task: str, number: int) -> Operation:
        sizes = {places[ends[number]]: places[ends[-1]] for places in grids.values()}
        if len(sizes) < len({(places[ends[number]], places[ends[-1]]) for places in grids.values()}):
            raise UsageError(
                f"Two image sizes of {backbone.config.name!r} have one grid after stage {number + 1} and two after "
                "the last one; choose another evaluation size."
            )
        seed = trainer.rng(f"projection/{task}/{number + 1}").initial_seed()
        widths = (channels[number + 1], channels[-1])
        return projection(backbone.layout, backbone.prefix_tokens, widths, sizes, seed, trainer.device)

    return [[one(task, number) for number in range(len(ends) - 1)] for task in trainer.data.task_names]


def penalty(
    p: SluiceParams, trainer: Trainer, backbone: Backbone, towers: Sequence[Tower]
) -> tuple[Callable[[], Tensor], Callable[[int], None] | None]:
    """The penalty, and a watch that logs it at each cycle relative to its value before the training (trap S2)."""
    names = [f"{last_convolution(backbone, stage[-1])}.weight" for stage in backbone.stages]
    weights = [
        blocks[-1].module.get_parameter(name)
        for tower in towers
        for blocks, name in zip(tower.stages, names, strict=True)
    ]
    omega = functools.partial(orthogonality, weights)
    start = float(omega().detach())

    def watch(cycle: int) -> None:
        trainer.log("penalty/orthogonality relative to the start", float(omega().detach()) / start)

    return (lambda: p.orth_weight * omega()), watch if start > 0 else None


def read_out(
    mixes: Sequence[Operation], projections: Sequence[Sequence[Operation]]
) -> Callable[[TaskGraph, int, Sequence[Value]], Value]:
    """The input of a task's tail: sum_l b_l h_l with earlier stages projected to the last one."""

    def read(graph: TaskGraph, task: int, history: Sequence[Value]) -> Value:
        earlier = [graph.add(one, h) for one, h in zip(projections[task], history, strict=False)]
        return graph.add(mixes[task], *earlier, history[-1])

    return read
