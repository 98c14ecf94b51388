"""Small operations and random graphs for tests of task graphs and their cost."""

from __future__ import annotations

import copy
import dataclasses

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from methods.graph.operations import Operation, build_module, parameterless, register_operation
from methods.graph.task_graph import TaskGraph, Value

CHANNELS = 3


@register_operation("test.conv_norm")
def _conv_norm(config: dict) -> nn.Module:
    return nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.BatchNorm2d(CHANNELS), nn.ReLU())


@register_operation("test.linear_map")
def _linear_map(config: dict) -> nn.Module:
    return nn.Conv2d(CHANNELS, CHANNELS, 1, bias=False)


def operation(kind: str, seed: int, origin: str = "backbone") -> Operation:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = build_module(kind, {})
    return Operation(kind, {}, module, origin)


@dataclasses.dataclass
class Program:
    """Steps of a random graph: (index of the operation, indices of its inputs among earlier values; 0 is the image)."""

    steps: list[tuple[int, tuple[int, ...]]]
    outputs: dict[str, int]


@st.composite
def programs(draw: st.DrawFn, max_steps: int = 8) -> Program:
    steps = []
    for position in range(draw(st.integers(1, max_steps))):
        kind = draw(st.integers(0, 4))
        n_inputs = 1 if kind < 3 else 2
        steps.append((kind, tuple(draw(st.integers(0, position)) for _ in range(n_inputs))))
    tasks = draw(st.lists(st.sampled_from("abcd"), min_size=1, max_size=4, unique=True))
    return Program(steps, {task: draw(st.integers(0, len(steps))) for task in tasks})


def operations(seed: int = 0) -> list[Operation]:
    """Two with batch norm, one without, and two that have no weights (one of them built twice, as equals)."""
    return [
        operation("test.conv_norm", seed),
        operation("test.conv_norm", seed + 1),
        operation("test.linear_map", seed + 2),
        parameterless("add"),
        parameterless("weighted_sum", weights=[0.25, 0.75]),
    ]


def build(program: Program, pool: list[Operation]) -> TaskGraph:
    graph = TaskGraph(["image"])
    values: list[Value] = [graph.input("image")]
    for kind, inputs in program.steps:
        values.append(graph.add(pool[kind], *(values[i] for i in inputs)))
    for task, index in program.outputs.items():
        graph.output(task, values[index])
    return graph


def naive(program: Program, pool: list[Operation], image: Tensor, *, training: bool) -> dict[str, Tensor]:
    """Every output on its own, recursively, nothing merged, on copies of the modules."""

    def value(index: int) -> Tensor:
        if index == 0:
            return image
        kind, inputs = program.steps[index - 1]
        return copy.deepcopy(pool[kind].module).train(training)(*(value(i) for i in inputs))

    return {task: value(index) for task, index in program.outputs.items()}
