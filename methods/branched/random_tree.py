"""A tree drawn at random: the row that every way of choosing trees has to beat.

Ours, after the control of measurement 4c: what a search finds must be better than what a draw of that size is. Each
seed of a table draws its own tree, uniformly from all within the budget, or from all whose parameters and compute are
both near a given size. Methods that choose draw from the trees of the very size that they find: their `random_tree`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, model_validator

from datasets.errors import UsageError
from methods.branched.branched import VANDENHENDE, BudgetParams
from methods.branched.counting import EncoderSize, TreeCounter, require_countable, require_trees
from methods.branched.segments import Granularity, Segments, budget_notes, size_budget
from methods.branched.tree_method import Chosen, Size, Tolerance, TreeMethod
from methods.contracts import Budget, Fidelity, Statement, Trainer
from methods.control import AMBER_DEVIATION
from methods.registry import register_method
from methods.traits import Traits

if TYPE_CHECKING:
    from datasets.contracts import DatasetSpec
    from methods.backbones.backbone import Backbone

_OF_BUDGET = ("budget", "budget_unit", "budget_scope", "at_least")


class RandomTreeParams(BudgetParams):
    """The parameters of a random tree: a budget, or a size."""

    at_least: Size | None = Field(
        default=None,
        description="smallest size that is drawn, in the form of `budget`; null draws from all trees within the budget",
    )
    size: tuple[Size, Size | None] | None = Field(
        default=None,
        description="(parameters, MACs) of the encoder, in place of a budget; MACs may be null, and must be where "
        "tasks have images of their own",
    )
    size_tolerance: Tolerance = Field(default=AMBER_DEVIATION, description="relative tolerance of `size`")

    @model_validator(mode="after")
    def _one_bound(self) -> RandomTreeParams:
        given = [name for name in _OF_BUDGET if getattr(self, name) != type(self).model_fields[name].default]
        if self.size is not None and given:
            raise ValueError(f"size takes the place of a budget; leave out {', '.join(given)}")
        return self


@register_method("random_tree")
class RandomTree(TreeMethod[RandomTreeParams]):
    """A tree drawn uniformly from all of a size, trained like every other."""

    Params = RandomTreeParams
    traits: ClassVar[Traits] = Traits("some", "some", "1 to T", size_parameter="budget")
    is_random_architecture = True
    fidelity: ClassVar[Fidelity] = Fidelity(
        citation="ShareBench; the space is that of S. Vandenhende et al., Branched Multi-Task Networks, BMVC 2020",
        link="https://arxiv.org/abs/1904.02920",
        references=(VANDENHENDE,),
        statements=(
            Statement("default", "Uniform over all trees whose size is within the budget, a new draw for each seed."),
            Statement("default", "at_least bounds the size from below, for comparisons at equal size."),
            Statement("default", "size: uniform over all trees with these parameters and MACs within a tolerance."),
            Statement("default", "Space, initial weights and training are those of the method branched."),
        ),
    )

    @property
    def granularity(self) -> Granularity:
        """Whether a segment is a stage or a block."""
        return self.params.granularity

    def check_choice(self, data: DatasetSpec, backbone: Backbone, segments: Segments, budget: Budget) -> Sequence[str]:
        """The size in numbers and how many trees have it."""
        p = self.params
        require_countable(data)
        drawn = f"one of {self._counter(data, segments).total():,} trees is drawn"
        if p.size is not None:
            asked = self._size(data, segments).described(segments)
            return [f"{drawn}, within {100 * p.size_tolerance:g} % of {asked} the plain backbone"]
        limit = size_budget(segments, data, p.budget, p.budget_unit, p.budget_scope)
        return [*budget_notes(segments, limit), drawn]

    def _size(self, data: DatasetSpec, segments: Segments) -> EncoderSize:
        """The size that is asked for. Raises UsageError for MACs where all trees compute alike."""
        assert self.params.size is not None
        parameters, macs = self.params.size
        if macs is not None and data.domains == "multi":
            raise UsageError(
                f"size gives MACs, but the tasks of {data.name!r} have images of their own, so all trees compute "
                "alike; give null for them."
            )
        absolute = None if macs is None else segments.absolute(macs, "macs")
        return EncoderSize(segments.absolute(parameters, "params"), absolute)

    def _counter(self, data: DatasetSpec, segments: Segments) -> TreeCounter:
        """The trees that may be drawn. Raises UsageError where there are none."""
        if self.params.size is None:
            return self._within_budget(data, segments)
        return require_trees(segments, len(data.tasks), self._size(data, segments), self.params.size_tolerance)

    def _within_budget(self, data: DatasetSpec, segments: Segments) -> TreeCounter:
        p = self.params
        limit = size_budget(segments, data, p.budget, p.budget_unit, p.budget_scope)
        low = 0 if p.at_least is None else size_budget(segments, data, p.at_least, p.budget_unit, p.budget_scope).total
        constant = segments.constant(limit.unit, limit.scope)
        per_copy = [segments.per_copy(limit.unit)]
        counter = TreeCounter(len(data.tasks), per_copy, [low - constant], [limit.total - constant])
        if not counter.total():
            raise UsageError(f"No tree has a size from {low:,} to {limit.total:,} {limit.unit}; lower at_least.")
        return counter

    def choose(self, trainer: Trainer, segments: Segments) -> Chosen:
        """A draw."""
        p, data = self.params, trainer.data
        counter = self._counter(data, segments)
        tree = counter.draw(trainer.rng("tree"))
        trainer.fact("trees to draw from", counter.total())
        if p.size is None:
            limit = size_budget(segments, data, p.budget, p.budget_unit, p.budget_scope)
            trainer.fact("budget", limit.relative, "x plain backbone")
        else:
            missed = self._size(data, segments).deviation(segments, tree)
            trainer.fact("deviation from the size asked for", 100 * missed, "percent")
        return Chosen(tree)
