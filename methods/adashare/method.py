"""The course of AdaShare: warm-up, alternating search, draw, retraining. Source: adashare.md 2.8, 2.9 and 3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from methods.adashare.fidelity import FIDELITY
from methods.adashare.parameters import AdaShareParams
from methods.contracts import Budget, Fidelity, Method, Trainer
from methods.operating import rate_of, reach_notes
from methods.registry import register_method
from methods.traits import Traits

if TYPE_CHECKING:
    from datasets.contracts import DatasetSpec
    from methods.backbones.backbone import Backbone
    from methods.graph.task_graph import TaskGraph

# {backbone: (units, blocks)} that `list` shows; counted on the models by a test, as building them needs timm
UNITS = {
    "resnet18": (8, 8),
    "resnet34": (16, 16),
    "resnet50": (16, 16),
    "efficientnet_b0": (9, 16),
    "mobilenetv2_100": (10, 17),
    "mobilenetv3_small_100": (6, 12),
    "mobilenetv3_large_100": (10, 16),
    "convnext_tiny": (18, 18),
    "swin_tiny_patch4_window7_224": (12, 12),
    "vit_tiny_patch16_224": (12, 12),
}


@register_method("adashare")
class AdaShare(Method[AdaShareParams]):
    """Per task and block, execute or skip: a policy is searched, drawn, and the network trained under it."""

    Params = AdaShareParams
    traits: ClassVar[Traits] = Traits(
        "some", "some", "up to T", before=1, size_parameter="sparsity_weight", backbones="blocks with shortcuts"
    )
    search_space: ClassVar[str] = "policies"
    fidelity: ClassVar[Fidelity] = FIDELITY

    def __init__(self, params: AdaShareParams) -> None:
        super().__init__(params)
        self.is_random_architecture = params.random_policy
        self.draws = params.n_policies
        self.recipe = params.recipe
        self.alternates = params.random_size is None
        if params.batch_norm == "per_task" or params.has_one_polluted_set:
            self.final_batch_norm = params.batch_norm

    @classmethod
    def about(cls) -> Sequence[str]:
        """Units of well-known backbones."""
        listed = ", ".join(f"{name} {units} of {blocks}" for name, (units, blocks) in UNITS.items())
        return [f"Units, the blocks that can be skipped (others always run): {listed}; any other: `list BACKBONE`"]

    def check(self, data: DatasetSpec, backbone: Backbone, budget: Budget) -> Sequence[str]:
        """How many units the backbone has. Raises UsageError for none, for a curriculum that cannot end, and for data
        that are not those of the preset.
        """
        from methods.adashare.schedule import check_preset, check_units, schedule

        n_units = len(backbone.units)
        check_units(backbone, n_units, self.params)
        check_preset(self.params, data)
        plan = schedule(self.params, data, budget, n_units)
        notes = [f"{n_units} of {len(backbone.blocks)} blocks are units that a task can skip"]
        if self.params.random_size is None:
            notes += reach_notes("lr_logits", rate_of(self.params.lr_logits, plan.arch_steps), plan.arch_steps)
        preset = self.params.preset
        if preset is not None:
            notes.append(
                f"official recipe: {plan.warmup_steps} warm-up, {plan.weight_steps} + {plan.arch_steps} search and "
                f"{plan.final_steps} final steps x {self.draws}, whatever the budget; it used {preset.backbone} "
                f"({'pretrained' if preset.pretrained else 'from scratch'}) at output stride {preset.output_stride}, "
                f"batches of {preset.batch_size}, crops of {preset.crop}: these are the cell's to set"
            )
        return notes

    def run(self, trainer: Trainer) -> TaskGraph:
        """Search policies, draw k of them, train each from the initial weights; the best on select is deployed."""
        from methods.adashare.retraining import draw_policies, retrain, scores_of
        from methods.adashare.schedule import schedule
        from methods.adashare.search import search
        from methods.adashare.telling import tell_policy, tell_scores

        params = self.params
        plan = schedule(params, trainer.data, trainer.budget, len(trainer.backbone().units))
        network = None if params.random_size is not None else search(params, trainer, plan)
        policies = draw_policies(params, trainer, network)
        graphs = [retrain(params, trainer, plan, network, policy, k) for k, policy in enumerate(policies)]
        scores = scores_of(trainer, graphs)
        best = scores.index(max(scores))
        tell_policy(params, trainer, network, policies[best])
        tell_scores(trainer, policies, scores)
        return graphs[best]
