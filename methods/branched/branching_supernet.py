"""The supernet of `learning_to_branch`, and the tree that its most probable parents make. Symbols as there."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from datasets.errors import UsageError
from methods.branched.segments import Segments, SizeBudget
from methods.branched.supernet import Supernet, mixture
from methods.branched.trees import Tree, of_labels
from methods.contracts import Trainer

if TYPE_CHECKING:
    from methods.branched.learning_to_branch import LearningToBranchParams

BUDGET_BEAM = 50  # partial assignments kept per level where a budget is asked for
IntArray = npt.NDArray[np.int64]


class BranchingSupernet(Supernet):
    """Levels of nodes; every node reads a soft mixture of the level before."""

    params: LearningToBranchParams

    def __init__(self, trainer: Trainer, params: LearningToBranchParams) -> None:
        n_levels, n_tasks = len(trainer.backbone().blocks), len(trainer.data.tasks)
        counts = [params.n_nodes or n_tasks] * (n_levels - 1) + [n_tasks]
        super().__init__(trainer, params, counts, trainer.data.inputs)
        self.theta = nn.ParameterList(
            torch.zeros(count, above, device=trainer.device) for above, count in itertools.pairwise(counts)
        )

    def choices(self) -> list[nn.Parameter]:
        """theta of the levels from the second on; the first has one possible parent, the stem."""
        return list(self.theta)

    def forward(self, images: Mapping[str, Tensor], tasks: Sequence[str]) -> dict[str, Tensor]:
        """Each input passes through all levels once; on multi-domain data every task's images do."""
        predictions: dict[str, Tensor] = {}
        for name in dict.fromkeys(self.data.input_of(task) for task in tasks):
            own = [task for task in tasks if self.data.input_of(task) == name]
            values = self._levels(self.stem(images, name), self.streams[name], own)
            predictions |= {task: self.heads[task](values[self.tasks.index(task)]) for task in own}
        return {task: predictions[task] for task in tasks}

    def _levels(self, x: Tensor, stream: int, tasks: Sequence[str]) -> dict[int, Tensor]:
        """The last level's nodes of these tasks."""
        wanted = {self.tasks.index(task) for task in tasks}
        values = {j: node[stream](x) for j, node in self._nodes(0) if len(self.layers) > 1 or j in wanted}
        for level in range(1, len(self.layers)):
            below = values
            last = level == len(self.layers) - 1
            theta = self.theta[level - 1]
            d = (
                None
                if self.warm
                else mixture(theta, self.noise(theta.shape, theta), self.tau, self.params.hard_samples)
            )
            values = {
                j: node[stream](self._input(below, j, d)) for j, node in self._nodes(level) if not last or j in wanted
            }
        return values

    def _nodes(self, level: int) -> list[tuple[int, nn.ModuleList]]:
        return list(enumerate(cast("nn.ModuleList", self.layers[level])))  # type: ignore[arg-type]

    @staticmethod
    def _input(below: Mapping[int, Tensor], j: int, d: Tensor | None) -> Tensor:
        """sum_i d_{j,i} y_i; in the warm-up parent j."""
        if d is None:
            return below[j % len(below)]
        return torch.stack([d[j, i] * y for i, y in below.items()]).sum(0)


def parents_of(theta: Sequence[Tensor]) -> list[IntArray]:
    """For every level from the second on the most probable parent of each node, the first on ties."""
    return [np.argmax(level.detach().cpu().numpy(), axis=1).astype(np.int64) for level in theta]


def lineages(parents: Sequence[IntArray], n_tasks: int) -> IntArray:
    """[L, T]: the node of each level that a task's path runs through, from its own node at the last level back."""
    paths = [np.arange(n_tasks, dtype=np.int64)]
    for level in reversed(parents):
        paths.append(level[paths[-1]])
    return np.stack(paths[::-1])


def tree_of(paths: IntArray) -> Tree:
    """Tasks share a level's segment where their paths run through one node: paths coalesce towards the root."""
    return tuple(of_labels(row.tolist()) for row in paths)


def most_probable_lineages(theta: Sequence[Tensor], segments: Segments, limit: SizeBudget) -> IntArray:
    """The paths of the most probable parents among those whose tree is within the budget, by beam search from the last
    level back. Ours. Raises UsageError where the space holds no such tree.
    """
    per_copy, n_tasks = segments.per_copy(limit.unit), theta[-1].shape[0]
    constant = segments.constant(limit.unit, limit.scope)
    start: tuple[tuple[int, ...], ...] = (tuple(range(n_tasks)),)
    states = [(0.0, constant + n_tasks * per_copy[-1], start)]
    for level in reversed(range(len(theta))):
        logs = theta[level].detach().cpu().double().log_softmax(1).numpy()
        rest = sum(per_copy[:level])
        grown: dict[tuple[tuple[int, ...], ...], tuple[float, int]] = {}
        for cost, size, paths in states:
            used = sorted(set(paths[0]))
            for choice in itertools.product(range(logs.shape[1]), repeat=len(used)):
                larger = size + len(set(choice)) * per_copy[level]
                if larger + rest <= limit.total:
                    parent = dict(zip(used, choice, strict=True))
                    added = -math.fsum(logs[j, i] for j, i in parent.items())
                    longer = (tuple(parent[node] for node in paths[0]), *paths)
                    grown[longer] = (cost + added, larger)
        if not grown:
            floor = constant + sum(per_copy[:-1]) + n_tasks * per_copy[-1]
            raise UsageError(f"budget is {limit.total:,}; the last level has a node per task, so at least {floor:,}.")
        ranked = sorted((cost, size, paths) for paths, (cost, size) in grown.items())
        states = ranked[:BUDGET_BEAM]
    return np.array(states[0][2], dtype=np.int64)
