"""The plain multi-task network, its losses and its training, and checks that several methods make."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from datasets.errors import UsageError
from datasets.protocols import get_protocol
from methods.contracts import LossFunction, ParameterGroup, Purpose, Reference, Role, Stage, StageResult, Trainer

if TYPE_CHECKING:
    from torch import Tensor, nn

    from datasets.contracts import Batch, DatasetSpec
    from methods.backbones.backbone import Backbone
    from methods.graph.operations import Operation
    from methods.graph.task_graph import TaskGraph


CARUANA = Reference(
    "caruana1997multitask",
    "article",
    ("R. Caruana",),
    "Multitask Learning",
    "Machine Learning 28(1)",
    1997,
    "https://doi.org/10.1023/A:1007379606734",
)


def require_tasks(data: DatasetSpec, what: str = "Soft sharing") -> None:
    """Raise UsageError if a cell has a single task, which nothing can be shared with. what: subject of the message."""
    if len(data.tasks) < 2:
        raise UsageError(f"{what} needs at least two tasks; the cell has {list(data.task_names)}.")


def require_maps(backbone: Backbone, method: str) -> None:
    """Raise UsageError if a backbone's features are not maps [B, C, H, W]."""
    if backbone.layout != "nchw":
        raise UsageError(
            f"{method} has no form on backbone {backbone.config.name!r}, whose features are {backbone.layout}; it "
            "needs nchw, for example resnet18."
        )


def body_of(backbone: Backbone) -> list[Operation]:
    """The operations of a whole backbone in order: stem, blocks, tail."""
    blocks = [backbone.block_operation(index) for index in range(len(backbone.blocks))]
    return [backbone.stem_operation(), *blocks, backbone.tail_operation()]


def graph_of(
    data: DatasetSpec, tasks: Sequence[str], body: Sequence[Operation], head: Callable[[str], Operation]
) -> TaskGraph:
    """One body for all the tasks, a head for each. body: operations in a row.

    On one image the tasks share every activation; on multi-domain data each reads its own images, so they share weights
    while norm statistics belong to each task's nodes.
    """
    from methods.graph.task_graph import TaskGraph

    graph = TaskGraph([name for name in data.inputs if name in {data.input_of(task) for task in tasks}])
    for task in tasks:
        value = graph.input(data.input_of(task))
        for operation in body:
            value = graph.add(operation, value)
        graph.output(task, graph.add(head(task), value))
    return graph


def plain_graph(
    data: DatasetSpec, tasks: Sequence[str], backbone: Backbone, head: Callable[[str], Operation]
) -> TaskGraph:
    """One backbone for all the tasks, a head for each; see `graph_of`."""
    return graph_of(data, tasks, body_of(backbone), head)


def task_losses(data: DatasetSpec, network: nn.Module) -> LossFunction:
    """The losses that the kinds of the tasks define, of the network's predictions."""
    from datasets.kinds import get_kind  # brings torchvision, which `list METHOD` does not need

    flags = get_protocol(data.protocol, data.name)
    specs = {task.name: (get_kind(task.kind), task) for task in data.tasks}

    def losses(batch: Batch, tasks: Sequence[str]) -> Mapping[str, Tensor]:
        predictions = network(batch.images, tasks)
        found = {}
        for name in tasks:
            kind, task = specs[name]
            found[name] = kind.loss(predictions[name], batch.targets[name], task, flags)
        return found

    return losses


def parameter_groups(graph: TaskGraph) -> list[ParameterGroup]:
    """The graph's parameters by origin, in the order backbone, added, heads."""
    return [ParameterGroup(origin, graph.parameters(origin)) for origin in ("backbone", "added", "heads")]


def fit_graph(
    trainer: Trainer,
    name: str,
    graph: TaskGraph,
    steps: int,
    purpose: Purpose = "final",
    train: Sequence[ParameterGroup] | None = None,
) -> StageResult:
    """The training of a graph whose structure is fixed, for all its tasks, on fit and arch together. train: None for
    all its parameters.
    """
    network = graph.network()
    stage = Stage(
        name=name,
        network=network,
        steps=steps,
        role=Role.FIT_ARCH,
        train=parameter_groups(graph) if train is None else train,
        losses=task_losses(trainer.data, network),
        purpose=purpose,
        tasks=graph.tasks,
    )
    return trainer.fit(stage)


def fit_plain(trainer: Trainer, name: str, steps: int) -> tuple[TaskGraph, StageResult]:
    """A plain network for all tasks of the trainer's data, trained."""
    graph = plain_graph(trainer.data, trainer.data.task_names, trainer.backbone(), trainer.head)
    return graph, fit_graph(trainer, name, graph, steps)
