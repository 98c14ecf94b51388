"""T single-task networks side by side, stage by stage, with an exchange between them. Source: soft_sharing 0.

Mixing needs one image in all towers. Where tasks have images of their own, the batch of task t therefore passes through
all T towers and only output t is used: T^2 tower passes in place of T. Weights are the same in both cases; norm
statistics belong to each (tower, images).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from datasets.contracts import DatasetSpec
from methods.contracts import Trainer
from methods.graph.operations import Operation, parameterless
from methods.graph.task_graph import TaskGraph, Value

# (graph, task, its features after every stage) -> what its tail reads
ReadOut = Callable[[TaskGraph, int, Sequence[Value]], Value]


@dataclasses.dataclass(frozen=True)
class Tower:
    """One task's network in parts."""

    stem: Operation
    stages: tuple[tuple[Operation, ...], ...]
    tail: Operation
    head: Operation


@dataclasses.dataclass(frozen=True)
class Units:
    """rows: {place: what gives each task its feature there}, place 0 is after the stem, l after stage l; nothing is
    exchanged at other places. joined: the axis along which all towers' features become one input, None where a row
    takes them one by one.
    """

    rows: Mapping[int, Sequence[Operation]]
    joined: int | None = None

    def exchange(self, graph: TaskGraph, place: int, values: Sequence[Value]) -> list[Value]:
        """The features of all towers after an exchange at that place."""
        if place not in self.rows:
            return list(values)
        inputs = values
        if self.joined is not None:
            inputs = [graph.add(parameterless("concatenate", axis=self.joined), *values)]
        return [graph.add(row, *inputs) for row in self.rows[place]]

    def n_parameters(self) -> int:
        """Number of parameters of all rows."""
        return sum(p.numel() for rows in self.rows.values() for row in rows for p in row.module.parameters())


def towers_of(trainer: Trainer, reinit: bool) -> list[Tower]:
    """A tower for every task: its trained single-task network with its head, or (reinit) the cell's initial weights."""
    made = []
    for task in trainer.data.task_names:
        backbone = trainer.backbone()
        if reinit:
            blocks = [backbone.block_operation(index) for index in range(len(backbone.blocks))]
            body, head = [backbone.stem_operation(), *blocks, backbone.tail_operation()], trainer.head(task)
        else:
            nodes = trainer.single_task(task).graph.reachable([task])
            body, head = [node.operation for node in nodes[:-1]], nodes[-1].operation
        tail = body[1 + len(backbone.blocks) :] or [parameterless("identity")]
        stages = tuple(tuple(body[1 + index] for index in stage) for stage in backbone.stages)
        made.append(Tower(body[0], stages, tail[0], head))
    return made


def tower_graph(data: DatasetSpec, towers: Sequence[Tower], units: Units, read_out: ReadOut | None = None) -> TaskGraph:
    """The network of all towers with their exchanges."""
    graph = TaskGraph(data.inputs)
    for name in data.inputs:
        image = graph.input(name)
        values = units.exchange(graph, 0, [graph.add(tower.stem, image) for tower in towers])
        history: list[list[Value]] = [[] for _ in towers]
        for number in range(len(towers[0].stages)):
            for t, tower in enumerate(towers):
                for block in tower.stages[number]:
                    values[t] = graph.add(block, values[t])
            values = units.exchange(graph, number + 1, values)
            for t, value in enumerate(values):
                history[t].append(value)
        for t, (task, tower) in enumerate(zip(data.task_names, towers, strict=True)):
            if data.input_of(task) == name:
                feature = values[t] if read_out is None else read_out(graph, t, history[t])
                graph.output(task, graph.add(tower.head, graph.add(tower.tail, feature)))
    return graph.pruned()  # on other tasks' images the last exchange of a tower that is not asked for leads nowhere
