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

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from datasets.errors import UsageError
from methods.branched.pictures import tell_choices
from methods.branched.schedule import Schedule, SearchParams, search_notes
from methods.branched.segments import Segments, size_budget
from methods.branched.tree_method import ChoosingMethod, Chosen
from methods.contracts import Budget, Fidelity, Reference, Statement, Trainer
from methods.registry import register_method
from methods.traits import Traits

if TYPE_CHECKING:
    from datasets.contracts import DatasetSpec
    from methods.backbones.backbone import Backbone
    from methods.branched.branching_supernet import BranchingSupernet, IntArray
    from methods.graph.task_graph import TaskGraph

MOST_TASKS_BUDGET = 6  # 46,656 assignments of parents a level


class LearningToBranchParams(SearchParams):
    """The parameters of LTB."""

    variant: Literal["paper", "libmtl"] = Field(
        default="paper",
        description="`paper` searches, prunes and trains a tree; `libmtl` keeps all copies and trains once",
    )
    weight_step: Literal["per_task", "joint"] = Field(
        default="joint",
        description="one optimizer step per task, or one for all tasks",
    )
    n_nodes: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="nodes of every level below the last; null takes one per task",
    )

    @model_validator(mode="after")
    def _becomes_a_tree(self) -> LearningToBranchParams:
        if self.random_tree and self.variant == "libmtl":
            raise ValueError("variant: libmtl never becomes a tree, so random_tree is not its control")
        return self


@register_method("learning_to_branch")
class LearningToBranch(ChoosingMethod[LearningToBranchParams]):
    """A tree in which every node has learnt its parent, by Gumbel-softmax mixtures of the level before."""

    Params = LearningToBranchParams
    traits: ClassVar[Traits] = Traits("some", "some", "1 to T", before=1.2, size_parameter="budget")
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
            Statement(
                "third party", "variant libmtl: that library's network, which keeps all copies and is not a tree."
            ),
            Statement("default", "Warm-up: child j reads parent j. One stem. Unused nodes are pruned."),
            Statement(
                "default",
                "Lengths, temperature, split of the data and optimizers are those of bmtas, the rate of theta too.",
            ),
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
            return ("variant libmtl keeps every copy: it saves no parameters and is not a tree",)
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
            from methods.branched.libmtl import run_libmtl

            self.segments(trainer.data, trainer.backbone())
            return run_libmtl(trainer)
        return super().run(trainer)

    def find(self, trainer: Trainer, segments: Segments) -> Chosen:
        """Search, prune."""
        from methods.branched.branching_supernet import BranchingSupernet, tree_of
        from methods.branched.supernet import Labelled, Search, searched_copies

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
        import torch

        from methods.branched.branching_supernet import lineages, most_probable_lineages, parents_of, tree_of

        p, data = self.params, trainer.data
        theta = [level.detach().cpu() for level in network.theta]
        paths = lineages(parents_of(theta), len(data.tasks))
        for number, level in enumerate(theta, start=2):
            trainer.artifact(f"theta-{number}", level)
        probabilities = [level.softmax(1) for level in theta]
        chosen = torch.cat([level.amax(1) for level in probabilities])
        trainer.fact("mean probability of the chosen parent", float(chosen.mean()))
        start = [torch.full_like(level, 1 / level.shape[1]).flatten() for level in theta]
        trainer.moved("choices of parents", torch.cat(start), torch.cat([level.flatten() for level in probabilities]))
        if p.budget is not None:
            limit = size_budget(segments, data, p.budget, p.budget_unit, p.budget_scope)
            if not limit.holds(segments, tree_of(paths)):
                paths = most_probable_lineages(theta, segments, limit)
            trainer.fact("budget", limit.relative, "x plain backbone")
        tell_choices(trainer, segments.names[1:], probabilities, data.task_names, "node", "parent")
        return paths
