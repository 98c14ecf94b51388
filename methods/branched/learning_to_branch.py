"""Learning to Branch (LTB): every node of a level learns which node of the level before is its parent.

P. Guo, C.-Y. Lee, D. Ulbricht, "Learning to Branch for Multi-Task Learning", ICML 2020, arXiv 2006.01895. No official
code is known.

From the paper's abstract: branching as Gumbel-softmax sampling in a tree-structured space, trained end to end.
Recalled: one parent per child, a warm-up without branching decisions, soft sampling, the argmax topology trained from
scratch. From LibMTL: the mixture on the input side of a node, one node per task at the last level. Ours: all numbers,
which follow BMTAS; child j reads parent j in the warm-up, as initial weights are equal; nodes that no task needs are
pruned; `budget`, `random_tree`. variant: libmtl is that library's network (`methods.branched.libmtl`), which never
becomes a tree. Left out: several stems.

Symbols: T tasks, L levels; level l has n_l nodes; theta_l [n_l, n_(l-1)] logits, row = child, column = parent;
d = GumbelSoftmax(theta / tau); y_j = f_{l,j}(sum_i d_{j,i} y_i).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from datasets.contracts import DatasetSpec
from datasets.errors import UsageError
from methods.backbones.backbone import Backbone
from methods.branched.libmtl import run_libmtl
from methods.branched.pictures import tell_choices
from methods.branched.schedule import Schedule, SearchParams, search_notes
from methods.branched.segments import Segments, SizeBudget, size_budget
from methods.branched.supernet import Labelled, Search, Supernet, mixture, searched_copies
from methods.branched.tree_method import ChoosingMethod, Chosen
from methods.branched.trees import Tree, of_labels
from methods.contracts import Budget, Fidelity, Reference, Statement, Trainer
from methods.graph.task_graph import TaskGraph
from methods.registry import register_method

MOST_TASKS_BUDGET = 6  # 46,656 assignments of parents a level
BUDGET_BEAM = 50  # partial assignments kept per level where a budget is asked for
IntArray = npt.NDArray[np.int64]


class LearningToBranchParams(SearchParams):
    """variant: paper searches, prunes and trains a tree; libmtl keeps all copies and trains once. n_nodes: of every
    level below the last, None for one per task.
    """

    variant: Literal["paper", "libmtl"] = "paper"
    weight_step: Literal["per_task", "joint"] = "joint"
    n_nodes: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _becomes_a_tree(self) -> LearningToBranchParams:
        if self.random_tree and self.variant == "libmtl":
            raise ValueError("variant: libmtl never becomes a tree, so random_tree is no control of it")
        return self


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


@register_method("learning_to_branch")
class LearningToBranch(ChoosingMethod[LearningToBranchParams]):
    """A tree in which every node has learnt its parent, by Gumbel-softmax mixtures of the level before."""

    Params = LearningToBranchParams
    fidelity: ClassVar[Fidelity] = Fidelity(
        citation="P. Guo, C.-Y. Lee, D. Ulbricht, Learning to Branch for Multi-Task Learning, ICML 2020",
        link="https://arxiv.org/abs/2006.01895",
        references=(
            Reference(
                "guo2020learning",
                "inproceedings",
                ("P. Guo", "C.-Y. Lee", "D. Ulbricht"),
                "Learning to Branch for Multi-Task Learning",
                "International Conference on Machine Learning",
                2020,
                "https://arxiv.org/abs/2006.01895",
            ),
        ),
        statements=(
            Statement("paper", "Abstract: branching as Gumbel-softmax sampling in a tree-structured space."),
            Statement(
                "recalled", "Each child ends with one parent; warm-up, soft samples, argmax, trained from scratch."
            ),
            Statement(
                "third party", "LibMTL: mixture on the input side of a node, one node per task at the last level."
            ),
            Statement("third party", "variant libmtl: that library's network, which keeps all copies and is no tree."),
            Statement("default", "Warm-up: child j reads parent j. One stem. Unused nodes are pruned."),
            Statement("default", "Lengths, temperature, split of the data and optimizers are those of bmtas."),
            Statement("default", "budget: the most probable parents within a size; off as published."),
            Statement("default", "random_tree: the control, a uniform draw from the trees of the size found."),
        ),
    )

    def __init__(self, params: LearningToBranchParams) -> None:
        super().__init__(params)
        self.unfit_for_balancing = params.unfit_for_balancing
        self.alternates = params.fixed_tree is None and params.variant != "libmtl"

    def n_copies(self, n_tasks: int, n_segments: int) -> list[range]:
        """A node per task at the last level, up to n_nodes at the others."""
        most = self.params.n_nodes or n_tasks
        return [range(1, most + 1)] * (n_segments - 1) + [range(n_tasks, n_tasks + 1)]

    def check_search(self, data: DatasetSpec, backbone: Backbone, segments: Segments, budget: Budget) -> Sequence[str]:
        """The floor of the space, node passes, the length of the search, and the budget."""
        p, n_tasks = self.params, len(data.tasks)
        if p.variant == "libmtl":
            return ("variant libmtl keeps every copy: it saves no parameters and is no tree",)
        if p.n_nodes is not None and p.n_nodes > n_tasks:
            raise UsageError(f"n_nodes is {p.n_nodes}; a level has at most a node per task, {n_tasks}.")
        if len(segments) < 2:
            raise UsageError(f"{backbone.config.name!r} has one block; learning_to_branch needs two levels.")
        floor = segments.reference("params") + (n_tasks - 1) * segments.parameters[-1]
        notes = [
            f"the last level has a node per task, so no tree is smaller than {floor:,} parameters = "
            f"{floor / segments.reference('params'):.3f} x the plain backbone",
            f"{self._passes(data)} node passes per level and batch",
        ]
        if p.budget is not None:
            self._check_budget(data, segments)
        return [*notes, *search_notes(p, data, backbone, segments, Schedule.of(budget.steps, p), p.n_cycles)]

    def _passes(self, data: DatasetSpec) -> int:
        """Tasks with images or steps of their own each need all nodes."""
        together = data.domains == "single" and self.params.weight_step == "joint"
        return len(data.tasks) if together else len(data.tasks) ** 2

    def _check_budget(self, data: DatasetSpec, segments: Segments) -> None:
        p, n_tasks = self.params, len(data.tasks)
        if n_tasks > MOST_TASKS_BUDGET:
            raise UsageError(
                f"A budget lists the parents of up to {MOST_TASKS_BUDGET} nodes, not {n_tasks}; leave it off."
            )
        assert p.budget is not None
        limit = size_budget(segments, data, p.budget, p.budget_unit, p.budget_scope)
        one = segments.per_copy(limit.unit)
        floor = segments.constant(limit.unit, limit.scope) + sum(one[:-1]) + n_tasks * one[-1]
        if floor > limit.total:
            raise UsageError(
                f"budget is {p.budget!r} = {limit.total:,} {limit.unit}; the last level has a node per task, so the "
                f"smallest tree of learning_to_branch has {floor:,} ({floor / segments.reference(limit.unit):.4g} x)."
            )

    def run(self, trainer: Trainer) -> TaskGraph:
        """Search, prune, train the tree; or the library's single training."""
        if self.params.variant == "libmtl" and self.params.fixed_tree is None:
            self.segments(trainer.data, trainer.backbone())
            return run_libmtl(trainer)
        return super().run(trainer)

    def find(self, trainer: Trainer, segments: Segments) -> Chosen:
        """Search, prune."""
        p = self.params
        network = BranchingSupernet(trainer, p)
        losses = Labelled(trainer.data, network)
        Search(network, Schedule.of(trainer.budget.steps, p), losses, self._passes(trainer.data)).run(trainer)
        paths = self._paths(trainer, network, segments)
        tree = tree_of(paths)
        if p.branch_init == "initial":
            return Chosen(tree)

        def choose(level: int, cluster: int) -> tuple[int, int]:
            """The node that the cluster's paths run through."""
            task = tree[level][cluster][0]
            return int(paths[level, task]), 0

        return Chosen(tree, searched_copies(network, trainer, tree, choose))

    def _paths(self, trainer: Trainer, network: BranchingSupernet, segments: Segments) -> IntArray:
        """The most probable parents; where their tree exceeds a budget, the most probable ones within it."""
        p, data = self.params, trainer.data
        theta = [level.detach().cpu() for level in network.theta]
        paths = lineages(parents_of(theta), len(data.tasks))
        for number, level in enumerate(theta, start=2):
            trainer.artifact(f"theta-{number}", level)
        chosen = torch.cat([level.softmax(1).amax(1) for level in theta])
        trainer.fact("mean probability of the chosen parent", float(chosen.mean()))
        if all(bool((level == level[:, :1]).all()) for level in theta):
            trainer.flag("theta never moved from equal choices: the tree is the tie rule's, not the search's")
        if p.budget is not None:
            limit = size_budget(segments, data, p.budget, p.budget_unit, p.budget_scope)
            if not limit.holds(segments, tree_of(paths)):
                paths = most_probable_lineages(theta, segments, limit)
            trainer.fact("budget", limit.relative, "x plain backbone")
        probabilities = [level.softmax(1) for level in theta]
        tell_choices(trainer, segments.names[1:], probabilities, data.task_names, "node", "parent")
        return paths
