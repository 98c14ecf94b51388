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

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from datasets.contracts import DatasetSpec
from datasets.errors import UsageError
from methods.backbones.alignment import feature_grids
from methods.backbones.backbone import Backbone
from methods.contracts import Budget, Fidelity, Method, Reference, Role, Statement, Trainer
from methods.figures import Figure
from methods.graph.graph_norms import with_own_norms, with_shared_statistics
from methods.graph.operations import Operation
from methods.graph.task_graph import GraphNetwork, TaskGraph, Value
from methods.registry import register_method
from methods.soft_sharing.attention import Attention, Pooling, Refinement, attention, refinement
from methods.soft_sharing.parameters import SoftSharingParams
from methods.soft_sharing.pictures import stage_heatmap
from methods.soft_sharing.towers import place_channels, place_names
from methods.soft_sharing.training import joint_stage, recipe_notes, require_tasks

_PROBES = 256  # images of fit whose masks the picture shows


class MtanParams(SoftSharingParams):
    """mid_ratio: inner width of the attention, times C_j. refine: f_j, a bottleneck or one 3x3 convolution.
    mask_bias_init: initial bias in front of the sigmoid. recipe: `published` is that of NYUv2 with SegNet, Adam at
    1e-4, halved after 40,000 of 80,000 steps. unit_lr: rate of attention and f_j, times the network's, read under
    `published` only. unit_weight_decay: of attention and f_j, null takes the recipe's. batch_norm: norms of f_j and
    tail, which all tasks pass through; `per_task` gives each weights of its own too.
    """

    published_values: ClassVar[Mapping[str, object]] = {"batch_norm": "shared"}
    published_defaults: ClassVar[Mapping[str, object]] = {
        "optimizer": "adam",
        "lr": 1e-4,
        "steps": 80000,
        "decay_every": 40000,
        "decay": 0.5,
    }

    mid_ratio: Annotated[float, Field(ge=0.125, le=1)] = 0.25
    refine: Refinement = "bottleneck"
    mask_bias_init: float = 0.0


@dataclasses.dataclass(frozen=True)
class SharedStage:
    """first: up to u_j. shortcut: what brings u_j to the shape of p_j, None where it has it. last: from u_j to p_j."""

    first: tuple[Operation, ...]
    shortcut: Operation | None
    last: Operation

    def features(self, graph: TaskGraph, value: Value) -> tuple[Value, Value]:
        """(u_j, p_j). The last block runs on its shortcut's output where that is u_j, which is then computed once."""
        for block in self.first:
            value = graph.add(block, value)
        if self.shortcut is None:
            return value, graph.add(self.last, value)
        u = graph.add(self.shortcut, value)
        return u, graph.add(self.last, value, u)


def shared_stages(backbone: Backbone) -> list[SharedStage]:
    """The stages of a backbone. Raises UsageError where the last block of one changes shape and cannot be skipped."""
    made = []
    for number, stage in enumerate(backbone.stages):
        first = tuple(backbone.block_operation(index) for index in stage[:-1])
        last = backbone.blocks[stage[-1]]
        if last.in_shape == last.out_shape:
            made.append(SharedStage(first, None, backbone.block_operation(stage[-1])))
            continue
        skip = backbone.skip_operation(stage[-1])
        if skip is None:
            raise UsageError(
                f"Stage {number + 1} of {backbone.config.name!r} ends with a block that changes shape from "
                f"{tuple(last.in_shape)} to {tuple(last.out_shape)} (channels, reduction) and has no shortcut, so "
                "there is no first feature for mtan to attend with; take a ResNet."
            )
        made.append(SharedStage(first, skip, backbone.execute_operation(stage[-1])))
    return made


def pooling_of(backbone: Backbone) -> list[Pooling]:
    """How r_j comes to the grid of stage j + 1, for j = 1..L-1: 2x2 where that stage halves the resolution, with the
    rounding of the backbone's own. Raises UsageError where it does anything else.
    """
    ends = [stage[-1] for stage in backbone.stages]
    reductions = [backbone.blocks[end].out_shape.reduction for end in ends]
    found: list[Pooling] = []
    for number, (before, after) in enumerate(itertools.pairwise(reductions)):
        pairs = {(g[ends[number] + 1], g[ends[number + 1] + 1]) for g in feature_grids(backbone).values()}
        sides = [side for source, target in pairs for side in zip(source, target, strict=True)]
        fits: dict[Pooling, bool] = {
            "none": before == after and all(a == b for a, b in sides),
            "ceil": after == 2 * before and all(-(-a // 2) == b for a, b in sides),
            "floor": after == 2 * before and all(a // 2 == b for a, b in sides),
        }
        known = [pooling for pooling, is_right in fits.items() if is_right]
        if not known:
            raise UsageError(
                f"Stage {number + 2} of {backbone.config.name!r} brings grids {sorted(pairs)}; mtan pools by 2 only."
            )
        found.append(known[0])
    return found


@register_method("mtan")
class Mtan(Method[MtanParams]):
    """One backbone for all tasks; each attends to its features with masks of its own, stage after stage."""

    Params = MtanParams
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

    def __init__(self, params: MtanParams) -> None:
        super().__init__(params)
        self.recipe = params.recipe
        if params.batch_norm != "per_task_stats":
            self.final_batch_norm = params.batch_norm

    @classmethod
    def about(cls) -> Sequence[str]:
        """Where it runs."""
        return [
            "Runs on features [B, C, H, W] whose stages end with a block that keeps its shape or has a shortcut: "
            "ResNets, RegNets, ConvNeXts; not on transformers, and not on most EfficientNets and MobileNets."
        ]

    def check(self, data: DatasetSpec, backbone: Backbone, budget: Budget) -> Sequence[str]:
        """Raises UsageError for one task, and for a backbone whose stages have no form in MTAN."""
        require_tasks(data)
        require_maps(backbone)
        shared_stages(backbone)
        pooling_of(backbone)
        return recipe_notes(self.params, budget)

    def run(self, trainer: Trainer) -> TaskGraph:
        """One joint training."""
        require_tasks(trainer.data)
        backbone = trainer.backbone()
        require_maps(backbone)
        graph, attentions = self.network(trainer, backbone)
        graph = with_shared_statistics(graph) if self.params.batch_norm == "shared" else graph
        stage = joint_stage(trainer, graph, self.params)
        trainer.fit(stage)
        self._tell(trainer, graph, attentions, place_names(backbone)[1:])
        return graph

    def network(self, trainer: Trainer, backbone: Backbone) -> tuple[TaskGraph, list[list[Operation]]]:
        """The network at its initial weights, and the attentions of each task by stage."""
        data, own_norms = trainer.data, self.params.batch_norm == "per_task"
        attentions, refinements = self._attentions(trainer, backbone), self._refinements(trainer, backbone)
        stem, stages, tail = backbone.stem_operation(), shared_stages(backbone), backbone.tail_operation()
        graph = TaskGraph(data.inputs)
        for t, task in enumerate(data.task_names):
            own = with_own_norms if own_norms and t > 0 else _as_it_is
            value = graph.add(stem, graph.input(data.input_of(task)))
            r: list[Value] = []
            q = value
            for j, stage in enumerate(stages):
                u, value = stage.features(graph, value)
                q = graph.add(attentions[t][j], value, u, *r)
                if j < len(refinements):
                    r = [graph.add(own(refinements[j]), q)]
            graph.output(task, graph.add(trainer.head(task), graph.add(own(tail), q)))
        return graph, attentions

    def _attentions(self, trainer: Trainer, backbone: Backbone) -> list[list[Operation]]:
        p, channels = self.params, place_channels(backbone)[1:]

        def one(task: str, j: int) -> Operation:
            seed = trainer.rng(f"attention/{task}/{j + 1}").initial_seed()
            reads = channels[j] * (1 if j == 0 else 2)
            return attention(reads, channels[j], p.mid_ratio, p.mask_bias_init, seed, trainer.device)

        return [[one(task, j) for j in range(len(channels))] for task in trainer.data.task_names]

    def _refinements(self, trainer: Trainer, backbone: Backbone) -> list[Operation]:
        channels = place_channels(backbone)[1:]
        return [
            refinement(
                channels[j],
                channels[j + 1],
                self.params.refine,
                pooling,
                trainer.rng(f"refinement/{j + 1}").initial_seed(),
                trainer.device,
            )
            for j, pooling in enumerate(pooling_of(backbone))
        ]

    @staticmethod
    def _tell(
        trainer: Trainer, graph: TaskGraph, attentions: Sequence[Sequence[Operation]], stages: Sequence[str]
    ) -> None:
        tasks = trainer.data.task_names
        added = {id(p): p.numel() for row in attentions for one in row for p in one.module.parameters()}
        trainer.fact("parameters of the attention", sum(added.values()))
        means = mean_masks(trainer, graph, attentions)
        trainer.artifact("masks", means)  # float [T, L]
        trainer.fact("mean mask", float(means.mean()))
        panel = stage_heatmap("after training", means, tasks, stages, "mean mask on images of fit")
        trainer.figure("masks", Figure(title="How much each task lets pass", panels=(panel,)))


def _as_it_is(operation: Operation) -> Operation:
    return operation


def require_maps(backbone: Backbone) -> None:
    """Raise UsageError for layouts in which the form of f_j is an open question."""
    if backbone.layout != "nchw":
        raise UsageError(
            f"mtan has no form on backbone {backbone.config.name!r}, whose features are {backbone.layout}; it needs "
            "nchw, for example resnet18."
        )


@torch.no_grad()
def mean_masks(trainer: Trainer, graph: TaskGraph, attentions: Sequence[Sequence[Operation]]) -> Tensor:
    """Mean mask of every task and stage over images of fit, float [T, L]."""
    total = torch.zeros(len(attentions), len(attentions[0]))
    count = torch.zeros_like(total)
    handles = []

    def watch(t: int, j: int) -> Any:
        def look(module: Attention, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            total[t, j] += float(output.double().sum())
            count[t, j] += output.numel()

        return look

    for t, row in enumerate(attentions):
        for j, one in enumerate(row):
            assert isinstance(one.module, Attention)
            handles.append(one.module.sigmoid.register_forward_hook(watch(t, j)))
    network = GraphNetwork(graph).eval()
    try:
        for batch in trainer.batches(Role.FIT, _PROBES):
            network(batch.images, tuple(batch.targets))
            trainer.charge(1, "final")
    finally:
        for handle in handles:
            handle.remove()
        network.train()
    return total / count
