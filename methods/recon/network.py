"""The deployed network: T backbones that share every parameter but those of the selected layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from datasets.contracts import DatasetSpec
from methods.backbones.backbone import Backbone
from methods.contracts import ParameterGroup, Trainer
from methods.graph.copies import copied
from methods.graph.operations import Operation
from methods.graph.task_graph import TaskGraph
from methods.plain import body_of, fit_graph
from methods.recon.layers import Layer, own_parameters


def split_graph(
    data: DatasetSpec, backbone: Backbone, selected: Sequence[Layer], head: Callable[[str], Operation]
) -> TaskGraph:
    """The network in which each task but the first has a copy of the selected layers, with equal values.

    Parts without such a layer are the same operation for all tasks, so up to the first one with one tasks on one image
    share every node; from there each has its own, with statistics of its own and weights that are shared where they
    were not selected. Copies count as `added`.
    """
    parts = body_of(backbone)
    own = own_parameters(selected, len(parts))
    graph = TaskGraph(data.inputs)
    for number, task in enumerate(data.task_names):
        value = graph.input(data.input_of(task))
        for part, names in zip(parts, own, strict=True):
            value = graph.add(part if number == 0 else with_copies(part, names), value)
        graph.output(task, graph.add(head(task), value))
    return graph


def with_copies(operation: Operation, names: Sequence[str]) -> Operation:
    """The operation with copies of these parameters; every other one stays the very same. Itself without any."""
    if not names:
        return operation
    shared = [p for name, p in operation.module.named_parameters() if name not in names]
    module = copied(operation.module, shared)
    return dataclasses.replace(operation, module=module, origins=dict.fromkeys(names, "added"))


def fit_split(trainer: Trainer, graph: TaskGraph) -> None:
    """The final training, on fit and arch together. Copies learn at the backbone's rate: they hold its weights, and no
    task is the first.
    """
    backbone = [*graph.parameters("backbone"), *graph.parameters("added")]
    groups = [ParameterGroup("backbone", backbone), ParameterGroup("heads", graph.parameters("heads"))]
    fit_graph(trainer, "joint", graph, trainer.budget.steps, train=groups)
