"""What a run of merging reports: how far the networks have moved apart, and what each stage costs each task."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from methods.contracts import Metrics, Trainer
from methods.judging import change_of_task, relative_change
from methods.merged.arithmetic import TaskVectors
from methods.merged.disagreement import disagreement
from methods.merged.pictures import changes_figure, coefficient_figure, disagreement_figure


def tell_disagreement(trainer: Trainer, vectors: TaskVectors, tasks: tuple[str, ...]) -> None:
    """Norms, cosines and signs of the task vectors. tasks: in the order of the vectors."""
    found = disagreement(vectors)
    for task, norm in zip(tasks, found.norms, strict=True):
        trainer.fact(f"norm of the task vector, {task}", float(norm), "of |theta_0|")
    if len(tasks) == 1:
        return
    known = found.cosine[np.isfinite(found.cosine)]
    if len(tasks) == 2:
        trainer.fact("cosine of task vectors", float(known[0]) if len(known) else None)
    else:
        for word, reduce in (("minimum", np.min), ("mean", np.mean), ("maximum", np.max)):
            trainer.fact(f"cosine of task vectors, {word}", float(reduce(known)) if len(known) else None)
    known = found.opposite_share[np.isfinite(found.opposite_share)]
    trainer.fact("opposite signs", 100 * float(np.mean(known)) if len(known) else None, "percent")
    trainer.artifact("cosines by layer", found.cosines)  # float64 [P, L]
    trainer.artifact("opposite signs by layer", found.opposite)
    trainer.figure("disagreement", disagreement_figure(found, tasks))


def tell_grid(trainer: Trainer, gains: Sequence[float], chosen: float) -> None:
    """The coefficient that was chosen, and what the others would have given."""
    trainer.fact("coefficient", chosen)
    trainer.artifact("gains of the grid", np.array(gains))
    trainer.figure("coefficient", coefficient_figure(gains, chosen))
    if not np.isfinite(gains).any():
        trainer.flag("No coefficient of the grid gives finite predictions of every task; the smallest was taken.")


class Losses:
    """What the merged network loses of each single-task network, stage after stage.

    reference: metrics of the f_t, {task: {metric: score}}, in the order of the tasks.
    """

    def __init__(self, reference: Metrics) -> None:
        self.reference = reference
        self.stages: dict[str, Metrics] = {}

    def tell(self, trainer: Trainer) -> None:
        """Facts, an array [S, T] and a picture; percent, positive is better than the single-task network."""
        changes = {}
        for stage, metrics in self.stages.items():
            trainer.fact(f"gain over single tasks, {stage}", relative_change(self.reference, metrics), "percent")
            changes[stage] = [change_of_task(scores, metrics[task]) for task, scores in self.reference.items()]
        trainer.artifact("gains over single tasks", np.array(list(changes.values()), dtype=np.float64))
        trainer.figure("gains", changes_figure(changes, list(self.reference)))
