"""Surgery: what a task's head reads is corrected towards the features of its single-task network.

Head t reads h - U_t ReLU(D_t h) with D_t [r, C] and U_t [C, r], U_t = 0 at the start; h: features at every position.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from datasets.contracts import Batch
from methods.backbones.backbone import Backbone
from methods.contracts import OptimizerSpec, ParameterGroup, Role, Stage, Trainer
from methods.graph.operations import Config, Operation, register_operation
from methods.graph.task_graph import TaskGraph
from methods.merged.network import Single, before

_KIND = "merged.surgery"
_RATE = 1e-3  # third party: Adam at this rate


class Surgery(nn.Module):
    """The correction of one task. axis: of the channels."""

    def __init__(self, channels: int, rank: int, axis: int) -> None:
        super().__init__()
        self.axis = axis
        self.down = nn.Linear(channels, rank, bias=False)  # D_t
        self.up = nn.Linear(rank, channels, bias=False)  # U_t
        nn.init.zeros_(self.up.weight)

    def forward(self, h: Tensor) -> Tensor:
        """h: float [B, ...] with C at the axis; of the same shape."""
        correction = self.up(torch.relu(self.down(h.movedim(self.axis, -1))))
        return h - correction.movedim(-1, self.axis)


@register_operation(_KIND)
def _surgery(config: Config) -> nn.Module:
    return Surgery(cast(int, config["channels"]), cast(int, config["rank"]), cast(int, config["axis"]))


def correction(trainer: Trainer, backbone: Backbone, task: str, rank: int) -> Operation:
    """A correction that changes nothing yet; D_t is drawn from a stream of the task's own."""
    axis = 1 if backbone.layout == "nchw" else -1
    config = {"channels": backbone.num_features, "rank": rank, "axis": axis}
    module = Surgery(backbone.num_features, rank, axis)
    rng = trainer.rng(f"surgery/{task}")
    nn.init.kaiming_uniform_(module.down.weight, a=5**0.5, generator=rng)  # as torch initialises a linear layer
    return Operation(_KIND, config, module.to(trainer.device), "added")


class Repair(nn.Module):
    """The corrections in training; bodies are frozen in eval mode and no part of it."""

    def __init__(self, graph: TaskGraph, corrections: Mapping[str, Operation], singles: Mapping[str, Single]) -> None:
        super().__init__()
        self.tasks = list(corrections)
        self.corrections = nn.ModuleList(operation.module for operation in corrections.values())
        # In lists, so that they are neither trained nor stored.
        self._body = [before(graph, 2).network().eval()]
        self._singles = {task: [before(one.graph, 1).network().eval()] for task, one in singles.items()}

    def losses(self, batch: Batch, tasks: Sequence[str]) -> dict[str, Tensor]:
        """{task: mean |corrected merged feature - feature of f_t|}; labels are not read."""
        found = {}
        with torch.no_grad():
            h = self._body[0](batch.images, tasks)
            targets = {task: self._singles[task][0](batch.images, [task])[task] for task in tasks}
        for task in tasks:
            corrected = self.corrections[self.tasks.index(task)](h[task])
            found[task] = (corrected.float() - targets[task].float()).abs().mean()
        return found


def train_corrections(
    trainer: Trainer,
    graph: TaskGraph,
    corrections: Mapping[str, Operation],
    singles: Mapping[str, Single],
    steps: int,
) -> None:
    """Train the corrections of a merged graph, without labels. singles: the f_t, whose weights are still their own."""
    repair = Repair(graph, corrections, singles)
    tasks = trainer.data.task_names
    trainer.fit(
        Stage(
            name="surgery",
            network=repair,
            steps=steps,
            role=Role.FIT_ARCH,
            train=[ParameterGroup("added", list(repair.parameters()), OptimizerSpec("adam", _RATE))],
            losses=repair.losses,
            purpose="search",
            tasks=tasks,
            passes=len(trainer.data.inputs) + len(tasks),
        )
    )
