"""The frozen base of TAPS: the cell's initial weights, or one network that all tasks have trained."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from methods.backbones.backbone import Backbone
from methods.contracts import Trainer
from methods.graph.copies import copied
from methods.graph.norms import other_parameters
from methods.graph.operations import Operation
from methods.graph.task_graph import TaskGraph
from methods.plain import fit_graph, plain_graph


def copies(backbone: Backbone, n_tasks: int) -> list[Backbone]:
    """A backbone for each task; the first is `backbone`. Each has batch norms of its own, weights and statistics; every
    other parameter is shared.
    """
    shared = other_parameters(backbone.module())
    return [backbone, *(copied(backbone, shared) for _ in range(n_tasks - 1))]


def joint_base(trainer: Trainer, backbone: Backbone, heads: Mapping[str, Operation]) -> list[Backbone]:
    """Backbones of all tasks from one network trained on all of them; heads are trained with it."""
    data = trainer.data
    graph = plain_graph(data, data.task_names, backbone, heads.__getitem__)
    fit_graph(trainer, "base", graph, trainer.budget.steps, "search")
    backbones = copies(backbone, len(data.tasks))
    for task, own in zip(data.task_names, backbones, strict=True):
        _take_statistics(own, graph.subgraph(task))
    return backbones


@torch.no_grad()
def _take_statistics(backbone: Backbone, graph: TaskGraph) -> None:
    """Give a backbone the norm statistics that a single-task graph of it has gathered."""
    nodes = [node.module for node in graph.nodes.values() if node.operation.origin == "backbone"]
    for module, node in zip([backbone.stem, *(b.module for b in backbone.blocks), backbone.tail], nodes, strict=False):
        for mine, gathered in zip(module.buffers(), node.buffers(), strict=True):
            mine.copy_(gathered)
