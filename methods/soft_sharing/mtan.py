"""MTAN: one shared backbone, over which every task attends stage by stage.

S. Liu, E. Johns, A. J. Davison, "End-to-End Multi-Task Learning with Attention", CVPR 2019,
https://arxiv.org/abs/1803.10704; official code https://github.com/lorenmt/mtan. Symbols: u_j, p_j first and last shared
feature of stage j; a_j^t mask; q_j^t = a_j^t * p_j; r_j^t = pool(f_j(q_j^t)), f_j shared by all tasks.

From the paper: masks, attended features, f_j shared. Official code: the ResNet form (u_j in front of the last block of
a stage, inner width C_j / 4, bottlenecks as f_j, the head reads q_L). Ours: u_j of stages with a single block (its
shortcut), pooling that follows the backbone's own grids. Not supported: attention in a decoder, token and NHWC layouts
(the form of f_j there is an open question), the training on the decathlon.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from methods.contracts import Budget, Fidelity, Reference, Statement, Trainer
from methods.figures import Figure
from methods.plain import require_maps, require_tasks
from methods.registry import register_method
from methods.soft_sharing.parameters import Refinement, SoftSharingParams
from methods.soft_sharing.pictures import stage_heatmap
from methods.soft_sharing.training import SoftSharing, joint_stage, recipe_notes
from methods.traits import Traits

if TYPE_CHECKING:
    from datasets.contracts import DatasetSpec
    from methods.backbones.backbone import Backbone
    from methods.graph.operations import Operation
    from methods.graph.task_graph import TaskGraph


class MtanParams(SoftSharingParams):
    """The parameters of MTAN. `recipe: published` is that of NYUv2 with SegNet."""

    published_values: ClassVar[Mapping[str, object]] = {"batch_norm": "shared"}
    published_defaults: ClassVar[Mapping[str, object]] = {
        "optimizer": "adam",
        "lr": 1e-4,
        "steps": 80000,
        "decay_every": 40000,
        "decay": 0.5,
    }

    mid_ratio: Annotated[float, Field(ge=0.125, le=1)] = Field(
        default=0.25,
        description="inner width of the attention, times C_j",
    )
    refine: Refinement = Field(default="bottleneck", description="f_j: a bottleneck, or one 3x3 convolution")
    mask_bias_init: float = Field(default=0.0, description="initial bias in front of the sigmoid")


@register_method("mtan")
class Mtan(SoftSharing[MtanParams]):
    """One backbone for all tasks; each attends to its features with masks of its own, stage after stage."""

    Params = MtanParams
    traits: ClassVar[Traits] = Traits("all", "all", "1", size_parameter="mid_ratio", backbones="maps with shortcuts")
    fidelity: ClassVar[Fidelity] = Fidelity(
        citation="S. Liu, E. Johns, A. J. Davison, End-to-End Multi-Task Learning with Attention, CVPR 2019",
        link="https://arxiv.org/abs/1803.10704",
        references=(
            Reference(
                "liu2019end",
                "inproceedings",
                ("S. Liu", "E. Johns", "A. J. Davison"),
                "End-to-End Multi-Task Learning with Attention",
                "IEEE/CVF Conference on Computer Vision and Pattern Recognition",
                2019,
                "https://arxiv.org/abs/1803.10704",
            ),
        ),
        statements=(
            Statement("paper", "Masks sigmoid(BN(h(ReLU(BN(g(z)))))) of 1x1 convolutions per task; q = a p; f shared."),
            Statement(
                "official code",
                "ResNet form: u in front of a stage's last block, inner width C / 4, f a "
                "bottleneck, no f after the last stage, the head reads q of the last stage.",
            ),
            Statement("official code", "The released ResNet is dilated and pools after its first stage only."),
            Statement("default", "2x2 maximum pooling wherever the next stage halves the grid, rounded as it rounds."),
            Statement("default", "A stage with one block: u is its shortcut's output. The tail runs per task."),
            Statement("default", "recipe: suite. Statistics of f and tail belong to each task; official code: shared."),
            Statement(
                "paper", "recipe: published. Adam 1e-4, halved at 40,000 of 80,000 steps; batch 2 is the cell's."
            ),
            Statement(
                "derived",
                "The paper's numbers use the mIoU formula before November 2020, without augmentation "
                "(lorenmt/mtan README, #56), and single-task mIoU ranged over .164 to .186 in runs of one code "
                "(#29): take at least 3 seeds, and do not compare with pooled mIoU.",
            ),
            Statement("default", "Not on NHWC or token layouts: the form of f there is an open question."),
        ),
    )

    @classmethod
    def about(cls) -> Sequence[str]:
        """The backbones on which it runs."""
        return [
            "Runs on features [B, C, H, W] whose stages end with a block that keeps its shape or has a shortcut: "
            "ResNets, RegNets, ConvNeXts; not on transformers, and not on most EfficientNets and MobileNets."
        ]

    def check(self, data: DatasetSpec, backbone: Backbone, budget: Budget) -> Sequence[str]:
        """Raises UsageError for one task, and for a backbone whose stages have no form in MTAN."""
        from methods.soft_sharing.mtan_network import pooling_of, shared_stages

        require_tasks(data)
        require_maps(backbone, "mtan")
        shared_stages(backbone)
        pooling_of(backbone)
        return recipe_notes(self.params, budget)

    def run(self, trainer: Trainer) -> TaskGraph:
        """One joint training."""
        from methods.soft_sharing.mtan_network import attention_network

        require_tasks(trainer.data)
        backbone = trainer.backbone()
        require_maps(backbone, "mtan")
        graph, attentions = attention_network(self.params, trainer, backbone)
        graph = graph.with_shared_statistics() if self.params.batch_norm == "shared" else graph
        stage = joint_stage(trainer, graph, self.params)
        trainer.fit(stage)
        self._tell(trainer, graph, attentions, backbone.place_names[1:])
        return graph

    @staticmethod
    def _tell(
        trainer: Trainer, graph: TaskGraph, attentions: Sequence[Sequence[Operation]], stages: Sequence[str]
    ) -> None:
        from methods.soft_sharing.mtan_network import mean_masks

        tasks = trainer.data.task_names
        added = {id(p): p.numel() for row in attentions for one in row for p in one.module.parameters()}
        trainer.fact("parameters of the attention", sum(added.values()))
        means = mean_masks(trainer, graph, attentions)
        trainer.artifact("masks", means)  # float [T, L]
        trainer.fact("mean mask", float(means.mean()))
        panel = stage_heatmap("after training", means, tasks, stages, "mean mask on images of fit")
        trainer.figure("masks", Figure(title="How much each task lets pass", panels=(panel,)))
