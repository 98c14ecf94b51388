"""From a policy to the deployed network, and its size. Source: adashare.md 2.7 and 5.

Weights are shared by all tasks that execute a unit; activations are shared until the decisions of two tasks first
differ. Units that no task executes are not there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import nn

from datasets.contracts import DatasetSpec
from methods.adashare.policy import Policy
from methods.backbones.backbone import Backbone
from methods.control import ArchitectureSize
from methods.graph.cost import Shape, count
from methods.graph.norms import norm_parameters
from methods.graph.operations import Operation
from methods.graph.rules import BatchNormRule
from methods.graph.task_graph import TaskGraph


def deploy(
    data: DatasetSpec, policy: Policy, backbones: Sequence[Backbone], head: Callable[[str], Operation]
) -> TaskGraph:
    """The task graph of a policy: stem, shortcuts and tail always, a unit's branch for the tasks that execute it.

    backbones: of each task. Where tasks have norms of their own, their nodes hold them as `added` parameters from the
    second user of a part on.
    """
    graph = TaskGraph([name for name in data.inputs if name in {data.input_of(task) for task in data.task_names}])
    used: dict[tuple[str, int], Backbone] = {}

    def own(part: str, index: int, backbone: Backbone, operation: Operation) -> Operation:
        first = used.setdefault((part, index), backbone)
        return operation if first is backbone else dataclasses.replace(operation, origin="added")

    units = {block: unit for unit, block in enumerate(backbones[0].units)}
    for task, executed, backbone in zip(data.task_names, policy, backbones, strict=True):
        value = graph.add(own("stem", 0, backbone, backbone.stem_operation()), graph.input(data.input_of(task)))
        for index in range(len(backbone.blocks)):
            skip = backbone.skip_operation(index)
            if skip is None:
                value = graph.add(own("block", index, backbone, backbone.block_operation(index)), value)
                continue
            s = graph.add(own("skip", index, backbone, skip), value)
            if executed[units[index]]:
                execute = own("execute", index, backbone, backbone.execute_operation(index))
                value = graph.add(execute, value, s)
            else:
                value = s
        value = graph.add(own("tail", 0, backbone, backbone.tail_operation()), value)
        graph.output(task, graph.add(head(task), value))
    return graph


@dataclasses.dataclass(frozen=True)
class _Part:
    """parameters, norm_parameters: of the operation; macs: of one evaluation at batch size 1."""

    parameters: int
    norm_parameters: int
    macs: int


class PolicySpace:
    """All policies of a backbone and a set of tasks: random draws, and the size of each without building a network.

    A draw takes one rate u ~ Uniform(0, 1) and executes each unit of each task with probability u, so that small and
    large networks are drawn alike; with a fixed rate of 1/2 few draws come near a sparse or a full policy. Ours.
    """

    def __init__(
        self,
        data: DatasetSpec,
        backbone: Backbone,
        head: Callable[[str], Operation],
        rule: BatchNormRule,
        first_free: int = 0,
    ) -> None:
        self.n_tasks, self.first_free = len(data.task_names), first_free
        self.own_norms = rule == "per_task"
        self.domains = data.domains
        self.n_units = len(backbone.units)
        shape: Shape = (1, backbone.config.in_chans, *data.native_size)
        self.always, shape = _measure(backbone.stem_operation().module, shape)
        # One entry a block, in order: (shortcut or whole block, branch); no branch where it cannot be skipped.
        self.blocks: list[tuple[_Part, _Part | None]] = []
        for index in range(len(backbone.blocks)):
            skip = backbone.skip_operation(index)
            if skip is None:
                whole, shape = _measure(backbone.block_operation(index).module, shape)
                self.blocks.append((whole, None))
            else:
                shortcut, kept = _measure(skip.module, shape)
                branch, shape = _measure(backbone.execute_operation(index).module, shape, kept)
                self.blocks.append((shortcut, branch))
        self.tail, shape = _measure(backbone.tail_operation().module, shape)
        self.heads = [_measure(head(task).module, shape)[0] for task in data.task_names]

    def draw(self, rng: torch.Generator) -> Policy:
        """A random policy."""
        rate = torch.rand((), generator=rng)
        executed = torch.rand(self.n_tasks, self.n_units, generator=rng) < rate
        executed[:, : self.first_free] = True
        return tuple(tuple(row) for row in executed.tolist())

    def size(self, architecture: Policy) -> ArchitectureSize:
        """Parameters and multiply-accumulates of the deployed network: joint, or the sum where nothing is shared."""
        parameters = sum(head.parameters for head in self.heads)
        macs = sum(head.macs for head in self.heads)
        # What each task has run so far: equal paths are equal features. Tasks with images of their own start apart.
        paths: list[tuple[object, ...]] = [() if self.domains == "single" else (k,) for k in range(self.n_tasks)]

        def run(part: _Part, users: Sequence[int]) -> None:
            nonlocal parameters, macs
            own = self.own_norms and part.norm_parameters > 0
            for k in users:
                paths[k] = (*paths[k], k if own else None)
            if users:
                parameters += part.parameters + own * (len(users) - 1) * part.norm_parameters
                macs += len({paths[k] for k in users}) * part.macs

        everyone = range(self.n_tasks)
        run(self.always, everyone)
        unit = 0
        for kept, branch in self.blocks:
            run(kept, everyone)
            if branch is not None:
                run(branch, [k for k in everyone if architecture[k][unit]])
                for k in everyone:
                    paths[k] = (*paths[k], architecture[k][unit])
                unit += 1
        run(self.tail, everyone)
        return ArchitectureSize(parameters, macs)


def _measure(module: nn.Module, *shapes: Shape) -> tuple[_Part, Shape]:
    """The cost of a module on inputs of these shapes, and the shape of its output."""
    if isinstance(module, nn.Identity):
        return _Part(0, 0, 0), shapes[0]
    cost = count(module, shapes)
    n_norm = sum(parameter.numel() for parameter in norm_parameters(module))
    return _Part(sum(p.numel() for p in module.parameters()), n_norm, cost.macs), cost.output
