"""Merging: T single-task networks become one network by arithmetic on their weights; nothing is trained jointly.

Task arithmetic: G. Ilharco et al., ICLR 2023, https://arxiv.org/abs/2212.04089. TIES: P. Yadav et al., NeurIPS 2023,
https://arxiv.org/abs/2306.01708. Surgery: E. Yang et al., ICML 2024, https://arxiv.org/abs/2402.02705. The papers were
not read, code was: `fidelity` says which part is from where.

Symbols: theta_0 the cell's initial weights, theta_t those of the trained single-task network f_t, tau_t = theta_t -
theta_0, lambda a coefficient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from datasets.errors import UsageError
from methods.contracts import Budget, Fidelity, Method, ParameterGroup, Trainer
from methods.merged.fidelity import FIDELITY
from methods.merged.parameters import MergedParams
from methods.plain import fit_graph
from methods.registry import register_method
from methods.traits import Traits

if TYPE_CHECKING:
    from datasets.contracts import DatasetSpec
    from methods.backbones.backbone import Backbone
    from methods.contracts import Metrics
    from methods.graph.operations import Operation
    from methods.graph.task_graph import TaskGraph
    from methods.merged.arithmetic import TaskVectors, Weights
    from methods.merged.network import Single


@register_method("merged")
class Merged(Method[MergedParams]):
    """One backbone whose weights are merged from those of the single-task networks, one head for each task."""

    Params = MergedParams
    traits: ClassVar[Traits] = Traits("all", "all", "1", before_per_task=1)
    fidelity: ClassVar[Fidelity] = FIDELITY

    def __init__(self, params: MergedParams) -> None:
        super().__init__(params)
        if not params.finetune:
            self.unfit_for_balancing = "nothing that tasks share is trained jointly; finetune: true does that"

    @classmethod
    def about(cls) -> Sequence[str]:
        """How to read its rows."""
        return [
            "Deployed as hard sharing, trained as T networks: it costs nothing where single-task networks are there, "
            "and what joint training buys is the difference from hard_sharing. From random weights the row is flagged "
            "as merged-scratch: expect little of heads: own.",
            "`gain over single tasks` is measured on select after each stage: merged, with the statistics of the first "
            "task's network; with statistics re-estimated; deployed. Nothing depends on it, and it is not charged.",
        ]

    def check(self, data: DatasetSpec, backbone: Backbone, budget: Budget) -> Sequence[str]:
        """What is spent before the final training. Raises UsageError for a rank above the number of channels."""
        p, n_tasks = self.params, len(data.tasks)
        if p.surgery_rank > backbone.num_features:
            raise UsageError(
                f"surgery_rank is {p.surgery_rank} and features of {backbone.config.name!r} have "
                f"{backbone.num_features} channels; expected 0 to {backbone.num_features}, for example 16."
            )
        notes = [f"search: the {n_tasks} single-task networks, {n_tasks * budget.steps} steps; nothing is random in it"]
        if backbone.from_scratch:
            notes.append("merged-scratch: single-task networks start from random weights; use pretrained ones")
        if p.finetune:
            notes.append("weights receive twice the budget's updates; hard_sharing (steps_factor=2) has as many")
        elif p.heads == "own":
            notes.append("heads: own has no final training")
        if p.surgery_rank > 0 and p.n_surgery_steps(budget.steps) > budget.steps:
            notes.append(
                f"surgery_steps is {p.surgery_steps}, above the budget's {budget.steps}: corrections get more updates "
                "than the weights of other rows, so the row is not ranked"
            )
        return notes

    def run(self, trainer: Trainer) -> TaskGraph:
        """Stages 1 to 4: single-task networks, merging, statistics, and what is trained after it."""
        from methods.merged.network import Single, gathers_statistics, judged, merged_graph, re_estimate
        from methods.merged.surgery import correction, train_corrections
        from methods.merged.telling import Losses

        p, data = self.params, trainer.data
        backbone = trainer.backbone()
        if backbone.from_scratch:
            trainer.flag("merged-scratch: the networks start from random weights, where merging needs trained ones.")
        singles = {task: Single.of(trainer.single_task(task).graph) for task in data.task_names}
        told = Losses({task: judged(trainer, one.graph)[task] for task, one in singles.items()})
        heads = {task: one.head for task, one in singles.items()}
        first = min(singles)  # in the alphabet: the order of tasks must change nothing
        body = singles[first].body  # takes the merged weights
        corrections = {}
        if p.surgery_rank > 0:
            singles[first] = singles[first].kept()
            corrections = {task: correction(trainer, backbone, task, p.surgery_rank) for task in data.task_names}

        graph = merged_graph(data, body, heads, corrections)
        self._merge(trainer, backbone, singles, graph, body, told.reference)
        told.stages["merging"] = judged(trainer, graph)
        re_estimate(trainer, graph)
        told.stages["statistics"] = judged(trainer, graph) if gathers_statistics(graph) else told.stages["merging"]
        if corrections:
            train_corrections(trainer, graph, corrections, singles, p.n_surgery_steps(trainer.budget.steps))
            if gathers_statistics(graph, "heads"):  # of corrected features, which they now read
                re_estimate(trainer, graph)
        graph = self._trained(trainer, graph, body, corrections)
        told.stages["the end"] = judged(trainer, graph)
        told.tell(trainer)
        return graph

    def _merge(
        self,
        trainer: Trainer,
        backbone: Backbone,
        singles: Mapping[str, Single],
        graph: TaskGraph,
        body: Sequence[Operation],
        reference: Metrics,
    ) -> None:
        """Stage 2: give the body the merged weights. graph: over it; reference: metrics of the f_t on select."""
        from methods.merged.arithmetic import along, average
        from methods.merged.network import task_vectors, write
        from methods.merged.selection import best_of, gains_of_grid
        from methods.merged.telling import tell_disagreement, tell_grid

        tasks, vectors = task_vectors(backbone, singles)
        tell_disagreement(trainer, vectors, tasks)
        if self.params.rule == "average":
            write(average(vectors), body)
            return
        direction = self._direction(vectors)
        if self.params.coefficient == "select":
            gains = gains_of_grid(trainer, graph, body, vectors.start, direction, reference)
            coefficient = best_of(gains)
            tell_grid(trainer, gains, coefficient)
        else:
            coefficient = self.params.fixed_coefficient(len(tasks))
        write(along(vectors.start, direction, coefficient), body)

    def _direction(self, vectors: TaskVectors) -> Weights:
        """What lambda scales."""
        from methods.merged.arithmetic import summed, ties

        p = self.params
        return summed(vectors) if p.rule == "task_arithmetic" else ties(vectors, p.density, p.disjoint, p.trim)

    def _trained(
        self, trainer: Trainer, graph: TaskGraph, body: Sequence[Operation], corrections: Mapping[str, Operation]
    ) -> TaskGraph:
        """Stage 4: nothing, everything jointly, or fresh heads. graph: with the heads of the single-task networks."""
        from methods.merged.network import merged_graph, re_estimate

        data, steps = trainer.data, trainer.budget.steps
        if self.params.heads == "own":
            if self.params.finetune:
                fit_graph(trainer, "finetune", graph, steps)
            return graph
        graph = merged_graph(data, body, {task: trainer.head(task) for task in data.task_names}, corrections)
        fit_graph(trainer, "heads", graph, steps, train=[ParameterGroup("heads", graph.parameters("heads"))])
        re_estimate(trainer, graph, "final")  # norms were in train mode
        return graph
