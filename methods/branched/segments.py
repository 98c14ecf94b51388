"""A backbone cut into D segments with what a copy of each costs, and budgets for trees over them.

Segment d is a stage or a block; the tail belongs to the last one and is copied with it, the stem is always shared.
Source: branched 2.2 and 2.8, branching search 2.1.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal

from datasets.errors import UsageError
from methods.branched.trees import Tree

if TYPE_CHECKING:
    from datasets.contracts import DatasetSpec
    from methods.backbones.backbone import Backbone
    from methods.graph.cost import Shape
    from methods.graph.operations import Operation

Granularity = Literal["stage", "block"]
BudgetUnit = Literal["params", "macs"]
BudgetScope = Literal["encoder", "encoder_heads"]


@dataclasses.dataclass(frozen=True)
class Segments:
    """blocks: of the backbone in each segment. stem_*: P_0, M_0. parameters, macs: P_d, M_d of one copy, the last with
    the tail. heads_*: of all tasks' heads together.
    """

    names: tuple[str, ...]
    blocks: tuple[range, ...]
    stem_parameters: int
    parameters: tuple[int, ...]
    stem_macs: int
    macs: tuple[int, ...]
    heads_parameters: int
    heads_macs: int

    def __len__(self) -> int:
        return len(self.blocks)

    def constant(self, unit: BudgetUnit, scope: BudgetScope = "encoder") -> int:
        """Size of the part that every tree has: the stem, with `encoder_heads` also the heads."""
        stem, heads = (
            (self.stem_parameters, self.heads_parameters) if unit == "params" else (self.stem_macs, self.heads_macs)
        )
        return stem + (heads if scope == "encoder_heads" else 0)

    def per_copy(self, unit: BudgetUnit) -> tuple[int, ...]:
        """Size of one copy of each segment."""
        return self.parameters if unit == "params" else self.macs

    def reference(self, unit: BudgetUnit) -> int:
        """P_ref or M_ref: stem and one copy of every segment."""
        return self.constant(unit) + sum(self.per_copy(unit))

    def absolute(self, size: float | int, unit: BudgetUnit) -> int:
        """A size as it is given: a float is relative to the plain backbone, an integer absolute."""
        return size if isinstance(size, int) else int(size * self.reference(unit) + 0.5)

    def size(self, tree: Tree, unit: BudgetUnit = "params", scope: BudgetScope = "encoder") -> int:
        """P_0 + sum over d of |pi_d| P_d, or the same of MACs."""
        copies = zip(tree, self.per_copy(unit), strict=True)
        return self.constant(unit, scope) + sum(len(partition) * one for partition, one in copies)


def segments_of(backbone: Backbone, data: DatasetSpec, granularity: Granularity) -> Segments:
    """The backbone of a cell, cut; compute is counted at the data set's image size, batch size 1."""
    from methods.backbones.heads import create_head
    from methods.graph.cost import operation_cost

    n_blocks = len(backbone.blocks)
    blocks = tuple(backbone.stages) if granularity == "stage" else tuple(range(i, i + 1) for i in range(n_blocks))
    image: Shape = (1, backbone.config.in_chans, *data.native_size)
    stem_macs, feature = _costs([backbone.stem_operation()], image)
    parameters, macs = [], []
    for number, members in enumerate(blocks):
        operations = segment_operations(backbone, members, number == len(blocks) - 1)
        cost, feature = _costs(operations, feature)
        macs.append(cost)
        parameters.append(sum(p.numel() for operation in operations for p in operation.module.parameters()))
    heads = [create_head(task, backbone, seed=0) for task in data.tasks]
    return Segments(
        names=tuple(f"{granularity} {number + 1}" for number in range(len(blocks))),
        blocks=blocks,
        stem_parameters=sum(p.numel() for p in backbone.stem.parameters()),
        parameters=tuple(parameters),
        stem_macs=stem_macs,
        macs=tuple(macs),
        heads_parameters=sum(p.numel() for head in heads for p in head.module.parameters()),
        heads_macs=sum(operation_cost(head, [feature]).macs for head in heads),
    )


def segment_operations(backbone: Backbone, blocks: range, last: bool) -> list[Operation]:
    """The blocks of a segment in order; the last segment ends with the tail."""
    operations = [backbone.block_operation(index) for index in blocks]
    return [*operations, backbone.tail_operation()] if last else operations


def _costs(operations: list[Operation], shape: Shape) -> tuple[int, Shape]:
    """MACs of the operations one after another on an input of this shape, and the shape of the result."""
    from methods.graph.cost import operation_cost

    macs = 0
    for operation in operations:
        cost = operation_cost(operation, [shape])
        macs, shape = macs + cost.macs, cost.output
    return macs, shape


@dataclasses.dataclass(frozen=True)
class SizeBudget:
    """The largest size that a tree may have. total: parameters or MACs; relative: the same over P_ref or M_ref."""

    total: int
    unit: BudgetUnit
    scope: BudgetScope
    relative: float

    def holds(self, segments: Segments, tree: Tree) -> bool:
        """Whether the tree is within the budget."""
        return segments.size(tree, self.unit, self.scope) <= self.total


def size_budget(
    segments: Segments,
    data: DatasetSpec,
    budget: float | int,
    unit: BudgetUnit = "params",
    scope: BudgetScope = "encoder",
) -> SizeBudget:
    """The budget that is meant. budget: a float is relative to the plain backbone, an integer absolute.

    Raises UsageError where not even the all-shared tree is within it, and for MACs on data where every task has images
    of its own: there no tree saves any.
    """
    if unit == "macs" and data.domains == "multi":
        raise UsageError(
            f"budget_unit is macs, but the tasks of {data.name!r} have images of their own, so every tree computes as "
            "much as N networks; use params."
        )
    reference = segments.reference(unit)
    total = segments.absolute(budget, unit)
    floor = segments.constant(unit, scope) + sum(segments.per_copy(unit))
    if total < floor:
        hint = " An integer is absolute; write 2.0 for twice the plain backbone." if isinstance(budget, int) else ""
        raise UsageError(
            f"budget is {budget!r} = {total:,} {unit}; the all-shared tree has {floor:,} "
            f"({floor / reference:.4g} x the plain backbone), the least that can be asked for.{hint}"
        )
    return SizeBudget(total, unit, scope, total / reference)


def budget_notes(segments: Segments, budget: SizeBudget) -> list[str]:
    """Notes for a plan: the budget, and the cost of one more copy of each segment."""
    reference = segments.reference(budget.unit)
    steps = ", ".join(
        f"{name} +{one / reference:.3f}"
        for name, one in zip(segments.names, segments.per_copy(budget.unit), strict=True)
    )
    return [
        f"budget {budget.total:,} {budget.unit} = {budget.relative:.3f} x the plain backbone; "
        f"one more copy costs, in the same unit: {steps}"
    ]
