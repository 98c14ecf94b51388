"""The network of `mtan`: a shared backbone in stages with the attention of every task. Symbols as there."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from datasets.errors import UsageError
from methods.backbones.alignment import feature_grids
from methods.backbones.backbone import Backbone
from methods.contracts import Role, Trainer
from methods.graph.norms import with_own_norms
from methods.graph.operations import Operation
from methods.graph.task_graph import TaskGraph, Value
from methods.soft_sharing.attention import Attention, Pooling, attention, refinement

if TYPE_CHECKING:
    from methods.soft_sharing.mtan import MtanParams

_PROBES = 256  # images of fit whose masks the picture shows


@dataclasses.dataclass(frozen=True)
class SharedStage:
    """first: up to u_j. shortcut: what brings u_j to the shape of p_j, None where it has it. last: from u_j to p_j."""

    first: tuple[Operation, ...]
    shortcut: Operation | None
    last: Operation

    def features(self, graph: TaskGraph, value: Value) -> tuple[Value, Value]:
        """(u_j, p_j). The last block runs on its shortcut's output where that is u_j, which is then computed once."""
        for block in self.first:
            value = graph.add(block, value)
        if self.shortcut is None:
            return value, graph.add(self.last, value)
        u = graph.add(self.shortcut, value)
        return u, graph.add(self.last, value, u)


def shared_stages(backbone: Backbone) -> list[SharedStage]:
    """The stages of a backbone. Raises UsageError where the last block of one changes shape and cannot be skipped."""
    made = []
    for number, stage in enumerate(backbone.stages):
        first = tuple(backbone.block_operation(index) for index in stage[:-1])
        last = backbone.blocks[stage[-1]]
        if last.in_shape == last.out_shape:
            made.append(SharedStage(first, None, backbone.block_operation(stage[-1])))
            continue
        skip = backbone.skip_operation(stage[-1])
        if skip is None:
            raise UsageError(
                f"Stage {number + 1} of {backbone.config.name!r} ends with a block that changes shape from "
                f"{tuple(last.in_shape)} to {tuple(last.out_shape)} (channels, reduction) and has no shortcut, so "
                "there is no first feature for mtan to attend with; take a ResNet."
            )
        made.append(SharedStage(first, skip, backbone.execute_operation(stage[-1])))
    return made


def pooling_of(backbone: Backbone) -> list[Pooling]:
    """How r_j comes to the grid of stage j + 1, for j = 1..L-1: 2x2 where that stage halves the resolution, with the
    rounding of the backbone's own. Raises UsageError where it does anything else.
    """
    ends = [stage[-1] for stage in backbone.stages]
    reductions = [backbone.blocks[end].out_shape.reduction for end in ends]
    found: list[Pooling] = []
    for number, (before, after) in enumerate(itertools.pairwise(reductions)):
        pairs = {(g[ends[number] + 1], g[ends[number + 1] + 1]) for g in feature_grids(backbone).values()}
        sides = [side for source, target in pairs for side in zip(source, target, strict=True)]
        fits: dict[Pooling, bool] = {
            "none": before == after and all(a == b for a, b in sides),
            "ceil": after == 2 * before and all(-(-a // 2) == b for a, b in sides),
            "floor": after == 2 * before and all(a // 2 == b for a, b in sides),
        }
        known = [pooling for pooling, is_right in fits.items() if is_right]
        if not known:
            raise UsageError(
                f"Stage {number + 2} of {backbone.config.name!r} brings grids {sorted(pairs)}; mtan pools by 2 only."
            )
        found.append(known[0])
    return found


def attention_network(p: MtanParams, trainer: Trainer, backbone: Backbone) -> tuple[TaskGraph, list[list[Operation]]]:
    """The network at its initial weights, and the attentions of each task by stage."""
    data, own_norms = trainer.data, p.batch_norm == "per_task"
    attentions, refinements = _attentions(p, trainer, backbone), _refinements(p, trainer, backbone)
    stem, stages, tail = backbone.stem_operation(), shared_stages(backbone), backbone.tail_operation()
    graph = TaskGraph(data.inputs)
    for t, task in enumerate(data.task_names):
        own = with_own_norms if own_norms and t > 0 else _as_it_is
        value = graph.add(stem, graph.input(data.input_of(task)))
        r: list[Value] = []
        q = value
        for j, stage in enumerate(stages):
            u, value = stage.features(graph, value)
            q = graph.add(attentions[t][j], value, u, *r)
            if j < len(refinements):
                r = [graph.add(own(refinements[j]), q)]
        graph.output(task, graph.add(trainer.head(task), graph.add(own(tail), q)))
    return graph, attentions


def _attentions(p: MtanParams, trainer: Trainer, backbone: Backbone) -> list[list[Operation]]:
    channels = backbone.place_channels[1:]

    def one(task: str, j: int) -> Operation:
        seed = trainer.rng(f"attention/{task}/{j + 1}").initial_seed()
        reads = channels[j] * (1 if j == 0 else 2)
        return attention(reads, channels[j], p.mid_ratio, p.mask_bias_init, seed, trainer.device)

    return [[one(task, j) for j in range(len(channels))] for task in trainer.data.task_names]


def _refinements(p: MtanParams, trainer: Trainer, backbone: Backbone) -> list[Operation]:
    channels = backbone.place_channels[1:]
    return [
        refinement(
            channels[j],
            channels[j + 1],
            p.refine,
            pooling,
            trainer.rng(f"refinement/{j + 1}").initial_seed(),
            trainer.device,
        )
        for j, pooling in enumerate(pooling_of(backbone))
    ]


def _as_it_is(operation: Operation) -> Operation:
    return operation


@torch.no_grad()
def mean_masks(trainer: Trainer, graph: TaskGraph, attentions: Sequence[Sequence[Operation]]) -> Tensor:
    """Mean mask of every task and stage over images of fit, float [T, L]."""
    total = torch.zeros(len(attentions), len(attentions[0]))
    count = torch.zeros_like(total)
    handles = []

    def watch(t: int, j: int) -> Any:
        def look(module: Attention, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            total[t, j] += float(output.double().sum())
            count[t, j] += output.numel()

        return look

    for t, row in enumerate(attentions):
        for j, one in enumerate(row):
            assert isinstance(one.module, Attention)
            handles.append(one.module.sigmoid.register_forward_hook(watch(t, j)))
    try:
        for batch in trainer.batches(Role.FIT, _PROBES):
            # Not the graph's network, in which attentions run together and call no sigmoid of their own.
            graph.module(*batch.targets).eval()(batch.images)
            trainer.charge(1, "final")
    finally:
        for handle in handles:
            handle.remove()
        graph.module().train()
    return total / count
