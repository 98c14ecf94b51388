"""Low-rank updates of a frozen backbone: one of each layer for all tasks, and in the last block one for each task.

A. Agiza, M. Neseem, S. Reda, "MTLoRA: Low-Rank Adaptation Approach for Efficient Multi-Task Learning", CVPR 2024,
https://arxiv.org/abs/2403.20320; official code https://github.com/scale-lab/MTLoRA. Symbols: W, b of a frozen layer;
s B A its shared update, s_t B_t A_t that of task t; x the stream that all tasks share, x_t that of task t.

From the official code (the paper was not read): which layers have updates, the streams and what they read, what is
trained, the published recipe. Ours: task updates in the last block of the network only, because the suite's heads read
one feature; own paths; convolutions; a base that is trained first where there are no pretrained weights; deployment
with shared updates in the weights. Not supported: heads on every stage (`task_blocks: stage_last` is refused), updates
of patch merging (MTLoRA+).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from methods.contracts import Budget, Fidelity, Method, Trainer
from methods.lora.fidelity import FIDELITY
from methods.lora.parameters import LoraParams
from methods.plain import fit_graph, plain_graph
from methods.registry import register_method
from methods.traits import Traits

if TYPE_CHECKING:
    from datasets.contracts import DatasetSpec
    from methods.backbones.backbone import Backbone
    from methods.graph.task_graph import TaskGraph


@register_method("lora")
class Lora(Method[LoraParams]):
    """A frozen backbone with low-rank updates, shared and of each task's own."""

    Params = LoraParams
    fidelity: ClassVar[Fidelity] = FIDELITY
    traits: ClassVar[Traits] = Traits("all", "some", "1 to T", before=1, size_parameter="task_rank")

    def __init__(self, params: LoraParams) -> None:
        super().__init__(params)
        self.recipe = params.recipe

    @classmethod
    def about(cls) -> Sequence[str]:
        """How to read its rows."""
        return [
            "Few trained parameters are no small network: deployed, it is the backbone with changed weights and the "
            "updates of each task. Read it beside hard_sharing, which trains all weights.",
            "With a base that is trained first (`joint`) its weights get twice the budget: the row of equal cost is "
            "hard_sharing with steps_factor 2. With a frozen base of random weights the row is flagged as "
            "lora-scratch: it is not the method of the paper.",
        ]

    def check(self, data: DatasetSpec, backbone: Backbone, budget: Budget) -> Sequence[str]:
        """The base, the layers without an update and the blocks that run whole. Raises UsageError for blocks that the
        backbone does not have, for heads on every stage and where updates cover less than half of the weights.
        """
        from methods.lora.telling import plan_notes

        return plan_notes(self.params, backbone, budget, joint=self._joint(backbone))

    def _joint(self, backbone: Backbone) -> bool:
        return self.params.base == "joint" or (self.params.base == "auto" and backbone.from_scratch)

    def run(self, trainer: Trainer) -> TaskGraph:
        """Train a joint base if it is asked for, then the updates; put the shared ones into the weights."""
        from methods.lora.network import low_rank_network, take_statistics
        from methods.lora.telling import tell

        data, backbone = trainer.data, trainer.backbone()
        heads = {task: trainer.head(task) for task in data.task_names}
        base = plain_graph(data, data.task_names, backbone, heads.__getitem__)
        if self._joint(backbone):
            fit_graph(trainer, "base", base, trainer.budget.steps, "search")
        elif backbone.from_scratch:
            trainer.flag("lora-scratch: the frozen base has random weights, where the method needs a trained one.")
        frozen = {name: weight.detach().clone() for name, weight in backbone.module().named_parameters()}
        network = low_rank_network(trainer, backbone, heads, self.params)
        graph = network.training_graph()
        take_statistics(base, graph)
        fit_graph(trainer, "lora", graph, trainer.budget.steps, train=network.groups(graph, self.params))
        deployed = network.deployed_graph(graph)
        tell(trainer, network, graph, deployed, frozen, self.params)
        return deployed
