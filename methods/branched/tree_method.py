"""The course that all methods of this package share: a tree is given or chosen, built from copies, shown, trained.

`TreeMethod` is that frame. A `ChoosingMethod` finds its tree in the data, and so has a control: with `random_tree` the
same search is made, but its tree is replaced by one drawn uniformly from all trees of the search space that have the
same size (measurement 4c).
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, TypeVar

from pydantic import Field, model_validator

from methods.branched.counting import require_countable, size_of, trees_of_size
from methods.branched.network import Copies, FinalRecipe, ShareScaling, fit_tree, initial_copies, tree_graph
from methods.branched.pictures import tell_tree
from methods.branched.segments import Granularity, Segments, segments_of
from methods.branched.trees import Labels, Tree, read_tree
from methods.contracts import Budget, Method, Trainer
from methods.control import AMBER_DEVIATION
from methods.parameters import MethodParams
from methods.plain import require_tasks

if TYPE_CHECKING:
    from datasets.contracts import DatasetSpec
    from methods.backbones.backbone import Backbone
    from methods.graph.operations import Operation
    from methods.graph.task_graph import TaskGraph

Size = Annotated[float, Field(ge=1)] | Annotated[int, Field(ge=1)]
Tolerance = Annotated[float, Field(ge=0, lt=1)]


class TreeParams(MethodParams):
    """Parameters of every method that ends in a tree."""

    fixed_tree: Labels | None = Field(
        default=None,
        description="a row per segment with the number of each task's copy; skips the search",
    )
    lr_share_scaling: ShareScaling = Field(
        default="none",
        description="`inverse` divides the learning rate of what m tasks share by m in the final training",
    )


class ChoiceParams(TreeParams):
    """Parameters of every method that finds its tree in the data."""

    random_tree: bool = Field(
        default=False, description="the control: a random tree of the size that the same choice finds"
    )
    size_tolerance: Tolerance = Field(
        default=AMBER_DEVIATION,
        description="relative tolerance of that size, in parameters and in MACs",
    )

    @model_validator(mode="after")
    def _finds_something(self) -> ChoiceParams:
        if self.random_tree and self.fixed_tree is not None:
            raise ValueError("random_tree is the control of a choice, and fixed_tree leaves nothing to choose")
        return self


T = TypeVar("T", bound=TreeParams)
C = TypeVar("C", bound=ChoiceParams)


@dataclasses.dataclass(frozen=True)
class Chosen:
    """A tree. copies: its initial weights, None for those of `TreeMethod.start`."""

    tree: Tree
    copies: tuple[Operation, Copies] | None = None


class TreeMethod(Method[T]):
    """A method that ends in a tree."""

    search_space: ClassVar[str] = "trees"

    @property
    def granularity(self) -> Granularity:
        """Whether a segment is a stage or a block."""
        return "block"

    def segments(self, data: DatasetSpec, backbone: Backbone) -> Segments:
        """The backbone, cut into segments. Raises UsageError for a single task."""
        require_tasks(data, "A tree")
        return segments_of(backbone, data, self.granularity)

    def final_recipe(self, data: DatasetSpec) -> FinalRecipe | None:
        """The final training if it is not the cell's. Raises UsageError for data that the recipe is not made for."""
        return None

    def recipe_notes(self, data: DatasetSpec) -> Sequence[str]:
        """Notes for a plan about a recipe that is not the cell's."""
        return ()

    def start(self, trainer: Trainer, segments: Segments, tree: Tree) -> tuple[Operation, Copies]:
        """Stem and copies that a tree starts from: the initial weights of the cell."""
        return initial_copies(trainer, segments, tree)

    @abc.abstractmethod
    def check_choice(self, data: DatasetSpec, backbone: Backbone, segments: Segments, budget: Budget) -> Sequence[str]:
        """Notes for a plan about the choice. Raises UsageError if it cannot be made."""

    @abc.abstractmethod
    def choose(self, trainer: Trainer, segments: Segments) -> Chosen:
        """The tree, if none is given."""

    def check(self, data: DatasetSpec, backbone: Backbone, budget: Budget) -> Sequence[str]:
        """Notes about the recipe, if it is not the cell's, and about the choice."""
        segments = self.segments(data, backbone)
        self.final_recipe(data)
        notes = self.recipe_notes(data)
        if self.params.fixed_tree is not None:
            read_tree(self.params.fixed_tree, len(data.tasks), len(segments))
            return notes
        return [*notes, *self.check_choice(data, backbone, segments, budget)]

    def run(self, trainer: Trainer) -> TaskGraph:
        """Choose a tree, build it, train it."""
        given, data = self.params.fixed_tree, trainer.data
        segments = self.segments(data, trainer.backbone())
        if given is not None:
            chosen = Chosen(read_tree(given, len(data.tasks), len(segments)))
        else:
            chosen = self.choose(trainer, segments)
        stem, copies = chosen.copies or self.start(trainer, segments, chosen.tree)
        graph = tree_graph(trainer, chosen.tree, stem, copies)
        tell_tree(trainer, chosen.tree, segments, graph, given is None)
        fit_tree(trainer, graph, self.params.lr_share_scaling, self.final_recipe(data))
        return graph


class ChoosingMethod(TreeMethod[C]):
    """A method that finds its tree in the data; with `random_tree` it is its own control."""

    def __init__(self, params: C) -> None:
        super().__init__(params)
        self.is_random_architecture = params.random_tree

    @abc.abstractmethod
    def check_search(self, data: DatasetSpec, backbone: Backbone, segments: Segments, budget: Budget) -> Sequence[str]:
        """Notes for a plan about the search. Raises UsageError if it cannot be made."""

    @abc.abstractmethod
    def find(self, trainer: Trainer, segments: Segments) -> Chosen:
        """The tree that the data ask for."""

    def n_copies(self, n_tasks: int, n_segments: int) -> list[range]:
        """[segment]: how many copies of it a tree that this method can find has."""
        return [range(1, n_tasks + 1)] * n_segments

    def check_choice(self, data: DatasetSpec, backbone: Backbone, segments: Segments, budget: Budget) -> Sequence[str]:
        """Notes of the search, and whether it serves a control."""
        notes = list(self.check_search(data, backbone, segments, budget))
        if not self.params.random_tree:
            return notes
        require_countable(data)
        return [*notes, f"control: a random tree of the size of the one that this finds, within {self._percent:g} %"]

    def choose(self, trainer: Trainer, segments: Segments) -> Chosen:
        """The tree that was found, or a random tree of its size."""
        found = self.find(trainer, segments)
        if not self.params.random_tree:
            return found
        n_tasks, size = len(trainer.data.tasks), size_of(segments, found.tree, trainer.data)
        space = self.n_copies(n_tasks, len(segments))
        counter = trees_of_size(segments, n_tasks, size, self.params.size_tolerance, space)
        # A stream for each method, so that two that find one size are not compared with one draw.
        tree = counter.draw(trainer.rng(f"random tree/{type(self).__name__}"))
        trainer.fact("trees to draw from", counter.total())
        trainer.fact("deviation from the size asked for", 100 * size.deviation(segments, tree), "percent")
        if counter.total() == 1:
            trainer.flag(f"no other tree has the size of the found one within {self._percent:g} %: no control of it")
        return Chosen(tree)

    @property
    def _percent(self) -> float:
        return 100 * self.params.size_tolerance
