"""The course of DMO: single-task networks, similarity and difficulty, groups, pruning and merging, group training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from datasets.errors import UsageError
from methods.contracts import Budget, Fidelity, Method, Trainer
from methods.dmo.fidelity import FIDELITY
from methods.dmo.parameters import DmoParams, kept_fraction
from methods.registry import register_method
from methods.traits import Traits

if TYPE_CHECKING:
    from datasets.contracts import DatasetSpec
    from methods.backbones.backbone import Backbone
    from methods.graph.task_graph import TaskGraph

_FEWEST_POINTS = 3  # two points of two curves always correlate perfectly


@register_method("dmo")
class Dmo(Method[DmoParams]):
    """Similar tasks share one sparse network, merged from single-task networks that are pruned by difficulty."""

    Params = DmoParams
    traits: ClassVar[Traits] = Traits("some", "some", "1 to T", before_per_task=1, size_parameter="tau")
    search_space: ClassVar[str] = "groups of tasks"
    fidelity: ClassVar[Fidelity] = FIDELITY

    def __init__(self, params: DmoParams) -> None:
        super().__init__(params)
        self.is_random_architecture = params.random_groups
        self.recipe = params.recipe
        if params.batch_norm != "per_task_stats":
            self.final_batch_norm = params.batch_norm

    @classmethod
    def about(cls) -> Sequence[str]:
        """How the kept fraction follows from the difficulty, and what the counts mean."""
        kept = ", ".join(f"{d:g} keeps {100 * kept_fraction(d, 1.0):.2g} %" for d in (0.001, 0.01, 0.1, 0.5, 1.0))
        return [
            f"Difficulty is the fraction of a task's samples above the mean loss of all tasks; at tau 1, {kept}; a "
            "smaller tau keeps more, and nothing keeps less than keep_floor.",
            "Masks are unstructured: dense counts are what is stored and what runs without sparse kernels; counts that "
            "are not zero leave out what is pruned, as do total parameters, x_backbone and weight sharing; the bits of "
            "the masks come on top of them.",
        ]

    def check(self, data: DatasetSpec, backbone: Backbone, budget: Budget) -> Sequence[str]:
        """Raises UsageError for a threshold that can group no tasks, for groups that do not partition the tasks, for
        independent starts from given weights, and for loss curves of too few points.
        """
        from methods.dmo.grouping import read_groups

        p = self.params
        if p.init == "independent" and not backbone.from_scratch:
            raise UsageError(
                f"init: independent draws initial weights anew, but {backbone.config.name!r} starts from given ones; "
                "use init: shared."
            )
        if p.groups is not None:
            read_groups(p.groups, data.task_names)
        elif len(data.tasks) > 1:
            self._check_search(data, budget)
        notes = [
            "single-task networks go on in their groups, so weights receive twice the budget's updates; reinit: true "
            "is the twin that restarts"
        ]
        if p.published is not None:
            notes.append(
                f"published recipe: {p.published.epochs} epochs in batches of {p.published.batch_size}, whatever the "
                "budget; batch size, crops and flips are the cell's"
            )
        return notes if not p.reinit else notes[1:]

    def _check_search(self, data: DatasetSpec, budget: Budget) -> None:
        p = self.params
        if isinstance(p.threshold, str) and len(data.tasks) == 2:
            raise UsageError(
                f"tau_sim is {p.threshold!r} and the cell has 2 tasks {list(data.task_names)}: their one similarity "
                "never exceeds its own quantile. Set tau_sim to a number, or give groups."
            )
        if p.alpha < 1 and p.loss_axis == "cycle" and min(budget.cycles, budget.steps) < _FEWEST_POINTS:
            raise UsageError(
                f"budget has {budget.steps} steps in {budget.cycles} cycles; loss curves of fewer than "
                f"{_FEWEST_POINTS} points cannot be correlated. Take more, or alpha 1."
            )

    def run(self, trainer: Trainer) -> TaskGraph:
        """Steps 1 to 9 of the article; the groups' networks side by side."""
        from methods.dmo.analysis import difficulties_of, find_groups, prune
        from methods.dmo.group_training import fit_group, merge
        from methods.dmo.singles import train_single
        from methods.dmo.telling import tell_groups, tell_kept
        from methods.graph.task_graph import TaskGraph

        p = self.params
        singles = [train_single(p, trainer, task) for task in trainer.data.task_names]
        groups, found = find_groups(p, trainer, singles)
        d = difficulties_of(p, trainer, singles)
        pruned = prune(p, trainer, singles, d, groups, found)
        graphs, kept = [], []
        for members in groups:
            graph, masks = merge(p, trainer, singles, pruned, d, members)
            fit_group(p, trainer, graph, members, masks)
            graphs.append(graph)
            kept.append([mask for _, mask in masks])
        tell_groups(trainer, groups, graphs, kept, trainer.backbone().config.in_chans)
        tell_kept(trainer, groups, [one.masks for one in pruned], kept, list(singles[0].weights))
        return TaskGraph.merged(graphs)
