"""The LTB of LibMTL: T complete encoders whose stages read hard samples of each other's outputs, all of them kept.

Source: median-research-group/LibMTL, LibMTL/architecture/LTB.py (4336804), as described in branching search 2.6; the
code here is written anew. It has no argmax, no pruning and no retraining, saves no parameters, and draws noise at
evaluation too. What is deployed is one stored draw, as exported networks must be deterministic (ours), with every
encoder kept as there. Levels are the backbone's stages behind task-specific stems; cycles replace epochs.

Symbols: T tasks, E cycles, e the current one from 0; theta [6, T, T] of ones, of which slices 1 .. 4 are read.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from datasets.errors import UsageError
from methods.branched.supernet import gumbel, mixture, views
from methods.contracts import ParameterGroup, Role, Stage, Trainer
from methods.graph.operations import Operation, parameterless
from methods.graph.task_graph import TaskGraph, Value
from methods.plain import task_losses

SLICES = 6


def temperature(e: int, n_epochs: int) -> float:
    """tau = E / 20 / sqrt(e + 1)."""
    return n_epochs / 20 / math.sqrt(e + 1)


def is_warm(e: int, n_epochs: int) -> bool:
    """Whether all coefficients are 1 in this epoch: e < E / 100."""
    return e < n_epochs / 100


class LibmtlNetwork(nn.Module):
    """parts: [task][stage part] modules; part 0 is the stem. d: coefficients of a draw, [6, T, T], row = child."""

    def __init__(self, trainer: Trainer) -> None:
        super().__init__()
        self.data = trainer.data
        self.tasks = self.data.task_names
        backbones = [trainer.backbone() for _ in self.tasks]
        self.stages = backbones[0].stages
        if len(self.stages) > SLICES - 2:
            raise UsageError(f"variant libmtl has {SLICES - 2} levels; this backbone has {len(self.stages)} stages.")
        self.operations: list[list[list[Operation]]] = []  # [task][level]: the stem, then the stages
        for backbone in backbones:
            levels = [[backbone.block_operation(index) for index in stage] for stage in self.stages]
            self.operations.append(
                [[backbone.stem_operation()], *levels[:-1], [*levels[-1], backbone.tail_operation()]]
            )
        self.inputs = {name: number for number, name in enumerate(self.data.inputs)}
        self.encoders = nn.ModuleList(
            nn.ModuleList(
                views(nn.Sequential(*(operation.module for operation in level)), len(self.inputs), "per_task_stats")
                for level in encoder
            )
            for encoder in self.operations
        )
        self.head_operations = {task: trainer.head(task) for task in self.tasks}
        self.heads = nn.ModuleDict({task: head.module for task, head in self.head_operations.items()})
        self.theta = nn.Parameter(torch.ones(SLICES, len(self.tasks), len(self.tasks), device=trainer.device))
        self.rng = trainer.rng("gumbel")
        self.tau, self.warm = 1.0, True

    def coefficients(self, level: int) -> Tensor:
        """[T, T] of one level: straight-through samples, in evaluation too; ones in the warm-up."""
        theta = self.theta[level]
        if self.warm:
            return torch.ones_like(theta)
        return mixture(theta, gumbel(theta.shape, self.rng).to(theta.device), self.tau, hard=True)

    def forward(self, images: Mapping[str, Tensor], tasks: Sequence[str]) -> dict[str, Tensor]:
        """images: {input: float [B, C, H, W]}; gives {task: prediction}."""
        found: dict[str, Tensor] = {}
        for name in dict.fromkeys(self.data.input_of(task) for task in tasks):
            values = self._encode(images[name], self.inputs[name])
            own = [task for task in tasks if self.data.input_of(task) == name]
            found |= {task: self.heads[task](values[self.tasks.index(task)]) for task in own}
        return {task: found[task] for task in tasks}

    def _encode(self, x: Tensor, stream: int) -> list[Tensor]:
        values = [self.part(t, 0, stream)(x) for t in range(len(self.tasks))]
        for level in range(1, len(self.stages) + 1):
            d = self.coefficients(level)
            below = torch.stack(values)
            values = [
                self.part(t, level, stream)((d[t].view(-1, *[1] * (below.dim() - 1)) * below).sum(0))
                for t in range(len(self.tasks))
            ]
        return values

    def part(self, t: int, level: int, stream: int) -> nn.Module:
        """The module of encoder t at a level, 0 for the stem, with the norms of one stream."""
        return self.encoders[t][level][stream]  # type: ignore[index]

    def groups(self) -> list[ParameterGroup]:
        """Everything under one optimizer, the choices as added layers."""
        encoders = {id(p): p for p in self.encoders.parameters()}
        return [
            ParameterGroup("backbone", list(encoders.values())),
            ParameterGroup("added", [self.theta]),
            ParameterGroup("heads", list(self.heads.parameters())),
        ]


def deploy(network: LibmtlNetwork) -> TaskGraph:
    """The network with one stored draw: constant weights 0 and 1 on all parents, so every encoder stays in it."""
    n_tasks = len(network.tasks)
    network.warm = False
    draws = [network.coefficients(level).detach().argmax(1).tolist() for level in range(1, len(network.stages) + 1)]
    graph = TaskGraph(network.data.inputs)
    for name, stream in network.inputs.items():
        values = [_chain(graph, network, t, 0, stream, graph.input(name)) for t in range(n_tasks)]
        for level, parents in enumerate(draws, start=1):
            sums = [
                graph.add(parameterless("weighted_sum", weights=[float(i == parent) for i in range(n_tasks)]), *values)
                for parent in parents
            ]
            values = [_chain(graph, network, t, level, stream, sums[t]) for t in range(n_tasks)]
        for t, task in enumerate(network.tasks):
            if network.data.input_of(task) == name:
                graph.output(task, graph.add(network.head_operations[task], values[t]))
    return graph.pruned()


def _chain(graph: TaskGraph, network: LibmtlNetwork, t: int, level: int, stream: int, value: Value) -> Value:
    """The operations of an encoder's level, with the statistics that its input has gathered."""
    trained = list(network.part(t, level, stream).children())
    for operation, module in zip(network.operations[t][level], trained, strict=True):
        value = graph.add(dataclasses.replace(operation, module=module), value)
    return value


def run_libmtl(trainer: Trainer) -> TaskGraph:
    """One training of everything, then a stored draw."""
    network = LibmtlNetwork(trainer)
    n_epochs = trainer.budget.cycles

    def begin(cycle: int) -> None:
        network.tau, network.warm = temperature(cycle, n_epochs), is_warm(cycle, n_epochs)

    trainer.fit(
        Stage(
            name="libmtl",
            network=network,
            steps=trainer.budget.steps,
            role=Role.FIT_ARCH,
            train=network.groups(),
            losses=task_losses(trainer.data, network),
            purpose="final",
            before_cycle=begin,
            passes=len(network.tasks) * len(network.inputs),
        )
    )
    trainer.artifact("theta", network.theta)
    theta = network.theta.detach()[1 : len(network.stages) + 1]
    trainer.moved("choices of parents", torch.full_like(theta, 1 / theta.shape[2]), theta.softmax(2))
    trainer.flag("LibMTL's network keeps all copies: no tree was built and no parameters are saved")
    return deploy(network)
