"""A tree drawn uniformly from all trees within a budget: the row that every way of choosing trees has to beat.

Ours, after the control of measurement 4c: what a search finds must be better than what a draw of that size is. Each
seed of a table draws its own tree.

Uniform is meant over trees, not over sizes or splits: the number of ways to go on below a partition is counted exactly
for what is left of the budget, and each segment's partition is drawn with those counts as weights.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from typing import ClassVar

import torch

from datasets.contracts import DatasetSpec
from datasets.errors import UsageError
from methods.backbone import Backbone
from methods.branched.branched import BudgetParams, Size, require_tasks
from methods.branched.network import fit_tree, initial_copies, tree_graph
from methods.branched.pictures import tell_tree
from methods.branched.segments import Segments, SizeBudget, budget_notes, segments_of, size_budget
from methods.branched.trees import Partition, Tree, canonical, read_tree, refinements, together
from methods.contracts import Budget, Fidelity, Method, Statement, Trainer
from methods.registry import register_method
from methods.task_graph import TaskGraph

MOST_TASKS = 8  # partitions are listed: 4,140 of eight tasks, 21,147 of nine
Shape = tuple[int, ...]  # cluster sizes, ascending: what the number of further refinements depends on


class TreeCounter:
    """Counts and draws trees of n_tasks whose sizes (sum over segments of copies x per_copy) lie in [low, high]."""

    def __init__(self, n_tasks: int, per_copy: Sequence[int], low: int, high: int) -> None:
        self.n_tasks, self.per_copy, self.low, self.high = n_tasks, tuple(per_copy), low, high
        self._at_most = functools.lru_cache(maxsize=None)(self._count_at_most)
        self._children = functools.lru_cache(maxsize=None)(_refined_shapes)

    def total(self) -> int:
        """How many trees there are."""
        return self._between(0, (self.n_tasks,), self.low, self.high)

    def _between(self, segment: int, shape: Shape, low: int, high: int) -> int:
        return self._at_most(segment, shape, high) - self._at_most(segment, shape, low - 1)

    def _count_at_most(self, segment: int, shape: Shape, budget: int) -> int:
        """Ways to fill the segments from this one on below a partition of that shape, of size at most `budget`."""
        if segment == len(self.per_copy):
            return 1 if budget >= 0 else 0
        if budget < len(shape) * sum(self.per_copy[segment:]):
            return 0
        one = self.per_copy[segment]
        return sum(
            ways * self._at_most(segment + 1, finer, budget - len(finer) * one)
            for finer, ways in self._children(shape).items()
        )

    def draw(self, rng: torch.Generator) -> Tree:
        """One of them, each equally likely. Raises UsageError where there is none."""
        if not self.total():
            raise UsageError(f"No tree has a size from {self.low:,} to {self.high:,}.")
        partition, low, high = together(self.n_tasks), self.low, self.high
        tree: list[Partition] = []
        for segment, one in enumerate(self.per_copy):
            finer = refinements(partition)
            weights = [self._between(segment + 1, shape_of(p), low - len(p) * one, high - len(p) * one) for p in finer]
            partition = finer[_weighted(weights, rng)]
            low, high = low - len(partition) * one, high - len(partition) * one
            tree.append(partition)
        return tuple(tree)


def shape_of(partition: Partition) -> Shape:
    """Cluster sizes, ascending."""
    return tuple(sorted(map(len, partition)))


def _refined_shapes(shape: Shape) -> Counter[Shape]:
    """{shape: number of refinements of that shape} of a partition with these cluster sizes."""
    start, clusters = 0, []
    for size in shape:
        clusters.append(range(start, start + size))
        start += size
    return Counter(shape_of(finer) for finer in refinements(canonical(clusters)))


def _weighted(weights: Sequence[int], rng: torch.Generator) -> int:
    """A position with probability in proportion to its weight, exactly: weights may exceed what a float holds."""
    total = sum(weights)
    high, low = torch.randint(0, 2**62, (2,), generator=rng).tolist()
    point = int(Fraction(high * 2**62 + low, 2**124) * total)
    for position, weight in enumerate(weights):
        point -= weight
        if point < 0:
            return position
    raise AssertionError("the point lies below the sum of the weights")


class RandomTreeParams(BudgetParams):
    """at_least: the smallest size that is drawn, in the form of `budget`; with 0.95 x the budget, rows match in size
    within 5 %. None draws from all trees within the budget.
    """

    at_least: Size | None = None


@register_method("random_tree")
class RandomTree(Method[RandomTreeParams]):
    """A tree drawn uniformly from all within the budget, trained like every other."""

    Params = RandomTreeParams
    is_random_architecture: ClassVar[bool] = True
    fidelity: ClassVar[Fidelity] = Fidelity(
        citation="ShareBench; the space is that of S. Vandenhende et al., Branched Multi-Task Networks, BMVC 2020",
        link="https://arxiv.org/abs/1904.02920",
        statements=(
            Statement("default", "Uniform over all trees whose size is within the budget, a new draw for each seed."),
            Statement("default", "at_least bounds the size from below, for comparisons at equal size."),
            Statement("default", "Space, initial weights and training are those of the method branched."),
        ),
    )

    def check(self, data: DatasetSpec, backbone: Backbone, budget: Budget) -> Sequence[str]:
        """The budget in numbers and how many trees it holds."""
        require_tasks(data)
        segments, limit, low = self._limits(data, backbone)
        if self.params.fixed_tree is not None:
            read_tree(self.params.fixed_tree, len(data.tasks), len(segments))
            return ()
        if len(data.tasks) > MOST_TASKS:
            raise UsageError(f"random_tree counts trees of up to {MOST_TASKS} tasks, not {len(data.tasks)}.")
        n_trees = self._counter(data, segments, limit, low).total()
        if not n_trees:
            raise UsageError(f"No tree has a size from {low:,} to {limit.total:,} {limit.unit}; lower at_least.")
        return [*budget_notes(segments, limit), f"one of {n_trees:,} trees is drawn"]

    def _limits(self, data: DatasetSpec, backbone: Backbone) -> tuple[Segments, SizeBudget, int]:
        p = self.params
        segments = segments_of(backbone, data, p.granularity)
        limit = size_budget(segments, data, p.budget, p.budget_unit, p.budget_scope)
        low = 0 if p.at_least is None else size_budget(segments, data, p.at_least, p.budget_unit, p.budget_scope).total
        return segments, limit, low

    @staticmethod
    def _counter(data: DatasetSpec, segments: Segments, limit: SizeBudget, low: int) -> TreeCounter:
        constant = segments.constant(limit.unit, limit.scope)
        per_copy = segments.per_copy(limit.unit)
        return TreeCounter(len(data.tasks), per_copy, max(0, low - constant), limit.total - constant)

    def run(self, trainer: Trainer) -> TaskGraph:
        """Draw, build, train."""
        require_tasks(trainer.data)
        segments, limit, low = self._limits(trainer.data, trainer.backbone())
        if self.params.fixed_tree is not None:
            tree = read_tree(self.params.fixed_tree, len(trainer.data.tasks), len(segments))
        else:
            counter = self._counter(trainer.data, segments, limit, low)
            tree = counter.draw(trainer.rng("tree"))
            trainer.fact("trees to draw from", counter.total())
            trainer.fact("budget", limit.relative, "x plain backbone")
        graph = tree_graph(trainer, tree, *initial_copies(trainer, segments, tree))
        tell_tree(trainer, tree, segments, graph, self.params.fixed_tree is None)
        fit_tree(trainer, graph, self.params.lr_share_scaling)
        return graph
