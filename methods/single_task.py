"""Single-task learning: one plain network for each task, sharing nothing. The baseline of Delta_m."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from methods import Fidelity, Method, MethodParams, Statement, Trainer, Traits, register_method
from methods.plain import CARUANA

if TYPE_CHECKING:
    from methods import TaskGraph


class SingleTaskParams(MethodParams):
    """No parameters."""


@register_method("single_task")
class SingleTaskNetworks(Method[SingleTaskParams]):
    """One backbone and one head for every task; each network gets a multi-task network's steps, not a T-th of them."""

    Params = SingleTaskParams
    traits: ClassVar[Traits] = Traits("none", "none", "T")
    fidelity: ClassVar[Fidelity] = Fidelity(
        citation="the single-task baseline of every multi-task comparison, e.g. Vandenhende et al., TPAMI 2021",
        link="https://arxiv.org/abs/2004.13379",
        references=(CARUANA,),
        statements=(
            Statement(
                "default", "Same backbone, initial weights, recipe, steps, data order and seed as every other row."
            ),
            Statement(
                "default", "Trained once and reused by every method that needs single-task networks, charged to each."
            ),
        ),
    )
    is_single_task_reference: ClassVar[bool] = True

    def run(self, trainer: Trainer) -> TaskGraph:
        """Train the networks one after another and put them side by side."""
        from methods import TaskGraph

        return TaskGraph.merged([trainer.single_task(task, purpose="final").graph for task in trainer.data.task_names])
