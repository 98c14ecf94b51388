"""The number of trees of a size, and a uniform draw from them.

The draw is uniform over trees, not over sizes or splits. The number of continuations below a partition is counted
exactly for what the size still allows, and each segment's partition is drawn with those counts as weights.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from datasets.errors import UsageError
from methods.branched.segments import BudgetUnit, Segments
from methods.branched.trees import Partition, Tree, canonical, refinements, together

if TYPE_CHECKING:
    import torch

    from datasets.contracts import DatasetSpec

MOST_TASKS = 8  # partitions are listed: 4,140 of eight tasks, 21,147 of nine
Shape = tuple[int, ...]  # cluster sizes, ascending: what the number of further refinements depends on


class TreeCounter:
    """Counts and draws trees of n_tasks with low <= sum over segments of copies x per_copy <= high in every unit.

    per_copy: [unit][segment]. low, high: [unit]. n_copies: [segment] numbers of copies that may be, None for any.
    """

    def __init__(
        self,
        n_tasks: int,
        per_copy: Sequence[Sequence[int]],
        low: Sequence[int],
        high: Sequence[int],
        n_copies: Sequence[range] | None = None,
    ) -> None:
        self.n_tasks, self.low, self.high = n_tasks, tuple(low), tuple(high)
        self.n_copies = n_copies or [range(1, n_tasks + 1)] * len(per_copy[0])
        self.per_copy = list(zip(*per_copy, strict=True))  # [segment][unit]
        self._rest = [tuple(sum(one[segment:]) for one in per_copy) for segment in range(len(self.per_copy) + 1)]
        self._ways = functools.lru_cache(maxsize=None)(self._count)
        self._free_ways = functools.lru_cache(maxsize=None)(self._count_free)
        self._children = functools.lru_cache(maxsize=None)(_refined_shapes)

    def total(self) -> int:
        """How many trees there are."""
        return self._ways(0, (self.n_tasks,), (0,) * len(self.low))

    def _count(self, segment: int, shape: Shape, spent: tuple[int, ...]) -> int:
        """Ways to fill the segments from this one on below a partition of that shape. spent: on those before it."""
        rest = self._rest[segment]
        least = [used + len(shape) * one for used, one in zip(spent, rest, strict=True)]
        most = [used + self.n_tasks * one for used, one in zip(spent, rest, strict=True)]
        if any(a > high for a, high in zip(least, self.high, strict=True)):
            return 0
        if any(a < low for a, low in zip(most, self.low, strict=True)):
            return 0
        if all(low <= a for a, low in zip(least, self.low, strict=True)) and all(
            a <= high for a, high in zip(most, self.high, strict=True)
        ):
            return self._free_ways(segment, shape)
        return sum(
            ways * self._ways(segment + 1, finer, self._after(segment, len(finer), spent))
            for finer, ways in self._children(shape).items()
            if len(finer) in self.n_copies[segment]
        )

    def _count_free(self, segment: int, shape: Shape) -> int:
        """The same where every way has a size that is allowed."""
        if segment == len(self.per_copy):
            return 1
        return sum(
            ways * self._free_ways(segment + 1, finer)
            for finer, ways in self._children(shape).items()
            if len(finer) in self.n_copies[segment]
        )

    def _after(self, segment: int, n_copies: int, spent: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(used + n_copies * one for used, one in zip(spent, self.per_copy[segment], strict=True))

    def draw(self, rng: torch.Generator) -> Tree:
        """One of them, each equally likely. Raises UsageError where there is none."""
        if not self.total():
            raise UsageError(f"No tree has a size from {self.low} to {self.high}.")
        partition, spent = together(self.n_tasks), (0,) * len(self.low)
        tree: list[Partition] = []
        for segment in range(len(self.per_copy)):
            finer = [p for p in refinements(partition) if len(p) in self.n_copies[segment]]
            weights = [self._ways(segment + 1, shape_of(p), self._after(segment, len(p), spent)) for p in finer]
            partition = finer[_weighted(weights, rng)]
            spent = self._after(segment, len(partition), spent)
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
    import torch

    total = sum(weights)
    high, low = torch.randint(0, 2**62, (2,), generator=rng).tolist()
    point = int(Fraction(high * 2**62 + low, 2**124) * total)
    for position, weight in enumerate(weights):
        point -= weight
        if point < 0:
            return position
    raise AssertionError("the point lies below the sum of the weights")


def require_countable(data: DatasetSpec) -> None:
    """Raise UsageError where partitions are too many to be listed."""
    if len(data.tasks) > MOST_TASKS:
        raise UsageError(
            f"random trees are drawn for up to {MOST_TASKS} tasks, as their number must be counted; {data.name!r} has "
            f"{len(data.tasks)}. Ask for fewer (tasks: [...]), or leave this method out."
        )


@dataclasses.dataclass(frozen=True)
class EncoderSize:
    """The size of stem, segments and tail. macs: of one joint pass; None if they need not match."""

    parameters: int
    macs: int | None

    def amounts(self) -> dict[BudgetUnit, int]:
        """The amounts that must match, by unit."""
        return {"params": self.parameters} if self.macs is None else {"params": self.parameters, "macs": self.macs}

    def described(self, segments: Segments) -> str:
        """The size in words."""
        return " and ".join(
            f"{amount:,} {unit} = {amount / segments.reference(unit):.3f} x" for unit, amount in self.amounts().items()
        )

    def deviation(self, segments: Segments, tree: Tree) -> float:
        """The larger of a tree's relative differences."""
        return max(abs(segments.size(tree, unit) - amount) / amount for unit, amount in self.amounts().items())


def size_of(segments: Segments, tree: Tree, data: DatasetSpec) -> EncoderSize:
    """The size of a tree. If every task has its own images, all trees compute alike and only parameters count."""
    return EncoderSize(segments.size(tree), segments.size(tree, "macs") if data.domains == "single" else None)


def trees_of_size(
    segments: Segments, n_tasks: int, size: EncoderSize, tolerance: float, n_copies: Sequence[range] | None = None
) -> TreeCounter:
    """The trees that have a size within a relative tolerance in each unit. n_copies: as of `TreeCounter`."""
    amounts = size.amounts()
    return TreeCounter(
        n_tasks,
        [segments.per_copy(unit) for unit in amounts],
        [math.ceil(amount * (1 - tolerance)) - segments.constant(unit) for unit, amount in amounts.items()],
        [math.floor(amount * (1 + tolerance)) - segments.constant(unit) for unit, amount in amounts.items()],
        n_copies,
    )


def require_trees(segments: Segments, n_tasks: int, size: EncoderSize, tolerance: float) -> TreeCounter:
    """The same. Raises UsageError where there is none, with the tolerance in percent from which on there is one."""
    counter = trees_of_size(segments, n_tasks, size, tolerance)
    if counter.total():
        return counter
    enough = next((p for p in range(1, 100) if trees_of_size(segments, n_tasks, size, p / 100).total()), None)
    nearest = "" if enough is None else f" The nearest one is within {enough} %."
    raise UsageError(
        f"No tree's encoder has {size.described(segments)} the plain backbone, within {100 * tolerance:g} %.{nearest}"
    )
