"""Hard parameter sharing: one backbone, one head per task. Every other row is compared with this one.

Caruana, "Multitask Learning", Machine Learning 28, 1997. `steps_factor` trains it longer, for
comparison with rows of a larger total budget (measurement 4d).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from methods import Fidelity, Method, MethodParams, Statement, Trainer, Traits, fit_plain, register_method
from methods.plain import CARUANA

if TYPE_CHECKING:
    from methods import TaskGraph


class HardSharingParams(MethodParams):
    """The parameters of hard sharing."""

    steps_factor: Annotated[float, Field(gt=0)] = Field(
        default=1.0, description="training steps as a multiple of the budget's"
    )


@register_method("hard_sharing")
class HardSharing(Method[HardSharingParams]):
    """One backbone for all tasks, one head for each."""

    Params = HardSharingParams
    traits: ClassVar[Traits] = Traits("all", "all", "1")
    fidelity: ClassVar[Fidelity] = Fidelity(
        citation="R. Caruana, Multitask Learning, Machine Learning 28:41-75, 1997",
        link="https://doi.org/10.1023/A:1007379606734",
        references=(CARUANA,),
        statements=(
            Statement("paper", "One network with layers shared by all tasks and an output layer per task."),
            Statement(
                "default", "The shared part is a timm backbone with its tail; recipe and losses are the suite's."
            ),
            Statement(
                "default", "On multi-domain data weights are shared, norm statistics belong to each task's path."
            ),
            Statement("default", "steps_factor: a longer training, for comparison with methods that search first."),
        ),
    )
    is_comparison_reference: ClassVar[bool] = True
    twice_as_long: ClassVar[Mapping[str, object]] = {"steps_factor": 2.0}

    def run(self, trainer: Trainer) -> TaskGraph:
        """Train all tasks jointly."""
        steps = max(1, round(trainer.budget.steps * self.params.steps_factor))
        graph, _ = fit_plain(trainer, "joint", steps)
        return graph
