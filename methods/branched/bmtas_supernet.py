"""The supernet of `bmtas`, what its layers cost, and the tree that its choices describe. Symbols as there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from datasets.contracts import Batch, DatasetSpec
from datasets.errors import UsageError
from methods.backbones.backbone import Backbone
from methods.branched.resource import grouping_table
from methods.branched.segments import Segments
from methods.branched.selection import Problem, exhaustive_front, within
from methods.branched.supernet import Labelled, Supernet, last_norm, mixture
from methods.branched.trees import Partition, Tree, of_labels
from methods.contracts import Trainer
from methods.graph.cost import count

if TYPE_CHECKING:
    from methods.branched.bmtas import BmtasParams

PUBLISHED_SUM = 4.7605  # GFLOPs of all layers at 512 x 512, for which resource_weight 0.05 was set (official code)
SMALLEST_PROBABILITY = 1e-30  # of a grouping, where its logarithm is taken


class BmtasSupernet(Supernet):
    """Every task chooses, at every layer, among T copies; activations are mixed, not weights."""

    params: BmtasParams

    def __init__(self, trainer: Trainer, params: BmtasParams) -> None:
        n_layers, n_tasks = len(trainer.backbone().blocks), len(trainer.data.tasks)
        super().__init__(trainer, params, [n_tasks] * n_layers, trainer.data.task_names)
        self.alpha = nn.Parameter(torch.zeros(n_layers, n_tasks, n_tasks, device=trainer.device))

    def prepare(self, backbones: Sequence[Backbone]) -> int:
        """Take scale and shift from the last norm of every copy (official code)."""
        if self.params.final_bn_affine:
            return 0
        norms = [norm for backbone in backbones for norm in map(last_norm, backbone.blocks) if norm is not None]
        for norm in norms:
            norm.register_parameter("weight", None)
            norm.register_parameter("bias", None)
        return len(norms)

    def choices(self) -> list[nn.Parameter]:
        """alpha."""
        return [self.alpha]

    def forward(self, images: Mapping[str, Tensor], tasks: Sequence[str]) -> dict[str, Tensor]:
        """x_{t,l} = sum_i w_i f_{l,i}(x_{t,l-1}), one draw of w per task, layer and pass."""
        stems: dict[str, Tensor] = {}
        predictions = {}
        for task in tasks:
            name = self.data.input_of(task)
            if name not in stems:
                stems[name] = self.stem(images, name)
            x, t = stems[name], self.tasks.index(task)
            for number in range(len(self.layers)):
                x = self._mixed(number, t, x)
            predictions[task] = self.heads[task](x)
        return predictions

    def _mixed(self, number: int, t: int, x: Tensor) -> Tensor:
        copies = [cast(nn.ModuleList, copy)[t] for copy in cast(nn.ModuleList, self.layers[number])]
        if self.warm:  # w = e_t: T independent encoders behind the stem
            return copies[t](x)
        alpha = self.alpha[number, t]
        w = mixture(alpha, self.noise(alpha.shape, alpha), self.tau, self.params.hard_samples)
        return torch.stack([w[i] * copy(x) for i, copy in enumerate(copies)]).sum(0)


class BmtasLosses(Labelled):
    """With `unused_grad: zero`, every weight that has ever had a gradient gets one of zero where it has none."""

    network: BmtasSupernet

    def __call__(self, batch: Batch, tasks: Sequence[str]) -> Mapping[str, Tensor]:
        """{task: scalar} of the labelled tasks; zeros for unused weights are part of the first one."""
        losses = dict(super().__call__(batch, tasks))
        network = self.network
        if network.params.unused_grad == "none" or not losses or network.alpha.requires_grad:
            return losses
        own = [network.tasks.index(task) for task in losses]
        first = next(iter(losses))
        for other in network.seen.nonzero().flatten().tolist():
            if other not in own:
                losses[first] = losses[first] + 0.0 * self._unused(other)
        network.seen[own] = True
        return losses

    def _unused(self, other: int) -> Tensor:
        """A sum over what only that task's steps reach: its head, and in the warm-up its copies."""
        modules: list[nn.Module] = [self.network.heads[self.network.tasks[other]]]
        if self.network.warm:
            modules += [layer[other] for layer in self.network.layers]  # type: ignore[index]
        return torch.stack([p.sum() for module in modules for p in module.parameters()]).sum()


def layer_costs(backbone: Backbone, data: DatasetSpec, params: BmtasParams, segments: Segments) -> list[float]:
    """G_l = 2 MACs / 1e9 of one copy of every layer at `lut_size`; relative: scaled to the published sum.

    Raises UsageError where the backbone has a fixed size and another is asked for.
    """
    macs: Sequence[int] = segments.macs
    if params.lut_size is not None and params.lut_size != data.native_size:
        if backbone.layout == "tokens":
            raise UsageError(f"lut_size {params.lut_size}: {backbone.config.name!r} takes {data.native_size} only.")
        shape: tuple[int, ...] = (1, backbone.config.in_chans, *params.lut_size)
        shape = count(backbone.stem, [shape]).output
        macs = []
        for number, block in enumerate(backbone.blocks):
            parts = [block.module, backbone.tail] if number == len(backbone.blocks) - 1 else [block.module]
            cost = count(nn.Sequential(*parts), [shape])
            macs, shape = [*macs, cost.macs], cost.output
    gflops = [2 * value / 1e9 for value in macs]
    scale = PUBLISHED_SUM / sum(gflops) if params.resource_norm == "relative" else 1.0
    return [value * scale for value in gflops]


def argmax_groupings(alpha: npt.NDArray[np.float32]) -> list[Partition]:
    """Per layer the tasks that choose the same copy; the first of equal logits. alpha: [L, T, copies]."""
    return [of_labels(row.tolist()) for row in np.argmax(alpha, axis=2)]


def most_probable_tree(alpha: Tensor, segments: Segments, total: int, unit: str, constant: int) -> Tree:
    """Within a size: the tree that maximises the product over layers of P(sampled grouping = pi_l). Ours."""
    table = grouping_table(alpha.shape[1])
    logs = [table.sampled(layer).clamp_min(SMALLEST_PROBABILITY).log().tolist() for layer in alpha.double().softmax(2)]
    place = {partition: number for number, partition in enumerate(table.partitions)}
    posed = Problem(
        lambda layer, partition: -logs[layer][place[partition]],
        segments.per_copy("params" if unit == "params" else "macs"),
        constant,
        alpha.shape[1],
    )
    return within(exhaustive_front(posed), total).tree
