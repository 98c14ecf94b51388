"""The network of a group: its graph under the norm rules, and its updates (dmo 2 and 3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from datasets.contracts import Batch, DatasetSpec
from methods.contracts import LossFunction
from methods.dmo.parameters import PublishedParams
from methods.graph.norms import with_own_norms
from methods.graph.operations import Operation
from methods.graph.rules import BatchNormRule
from methods.graph.task_graph import TaskGraph
from methods.plain import task_losses


def group_graph(
    data: DatasetSpec,
    tasks: Sequence[str],
    body: Sequence[Operation],
    head: Callable[[str], Operation],
    rule: BatchNormRule,
) -> TaskGraph:
    """One backbone for the tasks of a group and fresh heads. body: stem, blocks and tail in order.

    Tasks on one image share every node; those with images of their own share weights, and norm statistics too under
    `shared`. Under `per_task` every task but the first has norms of its own.
    """
    graph = TaskGraph([name for name in data.inputs if name in {data.input_of(task) for task in tasks}])
    for number, task in enumerate(tasks):
        value = graph.input(data.input_of(task))
        for operation in body:
            own = with_own_norms(operation) if rule == "per_task" and number > 0 else operation
            value = graph.add(own, value)
        graph.output(task, graph.add(head(task), value))
    return graph.with_shared_statistics() if rule == "shared" else graph


def batches_of(data: DatasetSpec, task: str, batch_size: int) -> int:
    """Batches of one epoch of a task: of all its training images, the last one smaller."""
    return -(-data.count("train", data.input_of(task)) // batch_size)


def group_updates(data: DatasetSpec, tasks: Sequence[str], published: PublishedParams, sampler: str) -> dict[str, int]:
    """{task: updates} of a group's training: what the task had in stage 1, in retrain_epochs epochs, or under
    `cycle_to_longest` as many as the task with the most images.
    """
    epochs = published.retrain_epochs or published.epochs
    own = {task: epochs * batches_of(data, task, published.batch_size) for task in tasks}
    return own if sampler == "equal_updates" else dict.fromkeys(tasks, max(own.values()))


def is_due(updates: int, steps: int, step: int) -> bool:
    """Whether a task that gets `updates` of `steps` updates has one at `step` (from 0): as evenly as whole numbers
    allow.
    """
    return (step + 1) * updates // steps > step * updates // steps


class GroupNetwork(nn.Module):
    """A group whose tasks receive unequal numbers of updates. `network(images, tasks)` as graphs.

    updates: {task: updates in a stage of `steps`}. The step is a buffer, so that a resumed training continues with it.
    """

    step: Tensor

    def __init__(self, graph: TaskGraph, data: DatasetSpec, updates: Mapping[str, int], steps: int) -> None:
        super().__init__()
        self.network = graph.network()
        self.updates, self.steps = dict(updates), steps
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self._losses: LossFunction = task_losses(data, self.network)

    def forward(self, images: Mapping[str, Tensor], tasks: Sequence[str]) -> dict[str, Tensor]:
        """images: {input: float [B, C, H, W]}; gives {task: prediction}."""
        predictions: dict[str, Tensor] = self.network(images, tasks)
        return predictions

    def losses(self, batch: Batch, tasks: Sequence[str]) -> Mapping[str, Tensor]:
        """The losses of the tasks whose turn it is; the others are left out."""
        step = int(self.step)
        return self._losses(batch, [task for task in tasks if is_due(self.updates[task], self.steps, step)])

    def advance(self) -> None:
        """The next step."""
        self.step += 1
