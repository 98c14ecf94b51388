"""Bodies of plain networks: their weights, the graph of hard sharing over one of them, and its norm statistics."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from datasets.contracts import Batch, DatasetSpec
from methods import plain
from methods.backbones.backbone import Backbone
from methods.contracts import Metrics, Purpose, Role, Trainer
from methods.graph.copies import copied
from methods.graph.norms import has_statistics
from methods.graph.operations import Operation, Origin
from methods.graph.task_graph import TaskGraph, estimate_statistics
from methods.merged.arithmetic import TaskVectors


@dataclasses.dataclass(frozen=True)
class Single:
    """f_t, a trained single-task network. body: stem, blocks and tail; head: what follows them."""

    graph: TaskGraph
    body: Sequence[Operation]
    head: Operation

    @classmethod
    def of(cls, graph: TaskGraph) -> Single:
        """The parts of a plain network for one task."""
        *body, head = (node.operation for node in graph.reachable())
        return cls(graph, body, head)

    def kept(self) -> Single:
        """A copy whose weights stay as they are when this one's body takes the merged weights."""
        return Single.of(copied(self.graph))


def body_of(backbone: Backbone) -> list[Operation]:
    """Stem, blocks and tail, where it does anything: the operations of a plain network before its head."""
    return [part for part in plain.body_of(backbone) if not isinstance(part.module, nn.Identity)]


def weights_of(body: Sequence[Operation]) -> dict[str, nn.Parameter]:
    """Every parameter of a body by part and name, in its order, tied ones once. Buffers are no weights."""
    modules = {}
    for operation in body:
        part, index = operation.config["part"], operation.config.get("index")
        modules[str(part) if index is None else f"{part} {index}"] = operation.module
    return dict(nn.ModuleDict(modules).named_parameters())


def task_vectors(backbone: Backbone, singles: Mapping[str, Single]) -> tuple[tuple[str, ...], TaskVectors]:
    """The tasks in alphabetical order, so that no sum depends on theirs, and their vectors from the initial weights."""
    tasks = tuple(sorted(singles))
    bodies = [body_of(backbone), *(singles[task].body for task in tasks)]
    start, *trained = ({name: theta.detach() for name, theta in weights_of(body).items()} for body in bodies)
    return tasks, TaskVectors(start, trained)


@torch.no_grad()
def write(weights: Mapping[str, Tensor], body: Sequence[Operation]) -> None:
    """Give a body these weights, in place: its parameters are those whose training the record counts."""
    for name, parameter in weights_of(body).items():
        parameter.copy_(weights[name])


def merged_graph(
    data: DatasetSpec,
    body: Sequence[Operation],
    heads: Mapping[str, Operation],
    corrections: Mapping[str, Operation] | None = None,
) -> TaskGraph:
    """One body for all tasks and a head for each: the graph of hard sharing. corrections: between body and head."""
    graph = TaskGraph(data.inputs)
    for task in data.task_names:
        value = graph.input(data.input_of(task))
        for part in (*body, *([corrections[task]] if corrections else []), heads[task]):
            value = graph.add(part, value)
        graph.output(task, value)
    return graph


def before(graph: TaskGraph, n: int) -> TaskGraph:
    """The graph without the last n operations of each task. Nodes are the same objects."""
    part = graph.subgraph(*graph.tasks)
    for task, value in graph.outputs.items():
        for _ in range(n):
            value = graph.nodes[value.name].inputs[0]
        part.outputs[task] = value
    return part.pruned()


class Counted(nn.Module):
    """A network that counts its passes: images of one input count as one, as in stages."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.passes = 0

    def forward(self, images: Mapping[str, Tensor], tasks: Sequence[str]) -> dict[str, Tensor]:
        """As the network."""
        self.passes += len(images)
        predictions: dict[str, Tensor] = self.network(images, tasks)
        return predictions


def gathers_statistics(graph: TaskGraph, origin: Origin | None = None) -> bool:
    """Whether any norm of the graph, or of its parts of one origin, reads statistics that were gathered in training."""
    nodes = [node for node in graph.nodes.values() if origin in (None, node.operation.origin)]
    return any(has_statistics(part) for node in nodes for part in node.module.modules())


def re_estimate(trainer: Trainer, graph: TaskGraph, purpose: Purpose = "search") -> None:
    """Give every node the norm statistics of its own activations, from one pass of fit, which is charged. Nothing is
    read where no norm has any.
    """
    network = Counted(graph.network())
    estimate_statistics(network, whole_batches(trainer.batches(Role.FIT)))
    trainer.charge(network.passes, purpose)


def whole_batches(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Without a shorter last batch of an input: its statistics would weigh as much as those of a whole one."""
    sizes: dict[str, int] = {}
    for batch in batches:
        if all(len(index) >= sizes.setdefault(name, len(index)) for name, index in batch.index.items()):
            yield batch


def judged(trainer: Trainer, graph: TaskGraph, purpose: Purpose | None = None) -> Metrics:
    """Metrics on select. purpose: to which the passes are charged; None for what nothing depends on."""
    network = Counted(graph.network())
    metrics = trainer.evaluate(network, Role.SELECT, graph.tasks)
    if purpose is not None:
        trainer.charge(network.passes, purpose)
    return metrics
