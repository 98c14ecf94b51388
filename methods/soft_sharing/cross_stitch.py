"""Cross-Stitch Networks: T networks whose features are mixed linearly after every stage.

I. Misra, A. Shrivastava, A. Gupta, M. Hebert, "Cross-Stitch Networks for Multi-task Learning", CVPR 2016,
https://arxiv.org/abs/1604.03539. Symbols: x_t feature of tower t, a_ij what task i takes of x_j.

From the paper: step 2 of the algorithm, y_i = sum_j a_ij * x_j, a number a channel or a layer; convex initial rows
(.9, .1) for two tasks; the start from single-task networks; SGD with units at 100 times the rate. Third party: units
after every stage of a ResNet. Ours: after every stage of any family, (.9, .1 / (T - 1)) for T tasks, towers that mix
the batches of tasks with images of their own one batch at a time. Not supported: units between other layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, cast

from pydantic import Field

from datasets.errors import UsageError
from methods.contracts import Budget, Fidelity, Reference, Statement, Trainer
from methods.plain import require_tasks
from methods.registry import register_method
from methods.soft_sharing.parameters import TowerParams
from methods.soft_sharing.pictures import tell_reads
from methods.soft_sharing.training import SoftSharing, joint_stage, tower_notes, tower_passes
from methods.traits import Traits

if TYPE_CHECKING:
    from torch import Tensor

    from datasets.contracts import DatasetSpec
    from methods.backbones.backbone import Backbone
    from methods.graph.task_graph import TaskGraph
    from methods.soft_sharing.towers import Units
    from methods.soft_sharing.units import Stitch


class CrossStitchParams(TowerParams):
    """The parameters of Cross-Stitch. Initial rows of a unit must sum to 1."""

    granularity: Literal["channel", "layer"] = Field(
        default="channel",
        description="a number for every channel, or one for all channels of a stage",
    )
    unit_weight_decay: Annotated[float, Field(ge=0)] | None = Field(
        default=0.0,
        description="weight decay of the units; null takes the recipe's",
    )


def stitches(backbone: Backbone, alpha: Tensor, granularity: Literal["channel", "layer"]) -> Units:
    """A unit after every stage. alpha: [T, T], initial values for all channels."""
    from methods.soft_sharing.towers import Units
    from methods.soft_sharing.units import stitch

    alpha = alpha.to(next(backbone.module().parameters()).device)
    widths = backbone.place_channels[1:] if granularity == "channel" else [1] * len(backbone.stages)
    return Units(
        {
            place: [stitch(backbone.layout, row[:, None].expand(-1, width)) for row in alpha]
            for place, width in enumerate(widths, start=1)
        }
    )


@register_method("cross_stitch")
class CrossStitch(SoftSharing[CrossStitchParams]):
    """A network for every task; after every stage each takes a learnt linear mix of all networks' features."""

    Params = CrossStitchParams
    traits: ClassVar[Traits] = Traits("all", "all", "T", before_per_task=1)
    fidelity: ClassVar[Fidelity] = Fidelity(
        citation="I. Misra, A. Shrivastava, A. Gupta, M. Hebert, Cross-Stitch Networks for Multi-task Learning, CVPR "
        "2016",
        link="https://arxiv.org/abs/1604.03539",
        references=(
            Reference(
                "misra2016crossstitch",
                "inproceedings",
                ("I. Misra", "A. Shrivastava", "A. Gupta", "M. Hebert"),
                "Cross-Stitch Networks for Multi-task Learning",
                "IEEE Conference on Computer Vision and Pattern Recognition",
                2016,
                "https://arxiv.org/abs/1604.03539",
            ),
        ),
        statements=(
            Statement("paper", "y_i = sum_j a_ij x_j after selected layers; a channel-wise, or one number a layer."),
            Statement("paper", "Rows start at (.9, .1) for two tasks; single-task networks are the better start."),
            Statement("third party", "A unit after every ResNet stage; the paper stitches pooling and fc layers."),
            Statement("default", "A unit after every stage of any family; (.9, .1 / (T - 1)) for T tasks."),
            Statement("paper", "recipe: published. SGD; units learn 100 times as fast as the networks."),
            Statement("third party", "recipe: published. Momentum .9, rate .001; its 50 epochs are published.steps."),
            Statement("default", "recipe: suite. Units learn at the heads' rate and are not decayed."),
            Statement("default", "Tasks with images of their own: each batch passes through all towers."),
        ),
    )

    def check(self, data: DatasetSpec, backbone: Backbone, budget: Budget) -> Sequence[str]:
        """The cost of the towers. Raises UsageError for one task, or for initial rows that do not sum to 1."""
        require_tasks(data)
        self._initial(len(data.tasks))
        return tower_notes(self.params, data, budget)

    def _initial(self, n_tasks: int) -> tuple[float, float]:
        """Initial a_tt and a_tj. Raises UsageError where rows do not sum to 1."""
        own, other = self.params.alpha_self, self.params.other(n_tasks)
        total = own + (n_tasks - 1) * other
        if abs(total - 1) > 1e-6:
            raise UsageError(
                f"Rows of a unit start with alpha_self {own:g} + {n_tasks - 1} x alpha_other {other:g} = {total:g}; "
                f"expected 1, for example alpha_other {(1 - own) / (n_tasks - 1):.4g}."
            )
        return own, other

    def run(self, trainer: Trainer) -> TaskGraph:
        """Single-task networks, then all of them together with the units between them."""
        from methods.soft_sharing.towers import tower_graph, towers_of
        from methods.soft_sharing.units import initial_alpha

        p, data, n_tasks = self.params, trainer.data, len(trainer.data.tasks)
        require_tasks(data)
        alpha = initial_alpha(n_tasks, *self._initial(n_tasks))
        backbone = trainer.backbone()
        towers = towers_of(trainer, p.reinit)
        units = stitches(backbone, alpha, p.granularity)
        graph = tower_graph(data, towers, units)
        graph = graph.with_shared_statistics() if p.batch_norm == "shared" else graph
        trainer.fit(joint_stage(trainer, graph, p, passes=tower_passes(data)))
        self._tell(trainer, units, backbone.place_names)
        return graph

    @staticmethod
    def _tell(trainer: Trainer, units: Units, places: Sequence[str]) -> None:
        alphas = {places[place]: alpha for place, alpha in alphas_of(units).items()}
        for place, alpha in alphas.items():
            trainer.artifact(f"alpha {place}", alpha)  # float [T, T, C]
        trainer.fact("parameters of the units", units.n_parameters())
        reads = {place: alpha.abs().mean(2) for place, alpha in alphas.items()}
        tell_reads(trainer, "What each task reads of whom", reads, trainer.data.task_names, "mean |a| over channels")


def alphas_of(units: Units) -> Mapping[int, Tensor]:
    """{place: a [T, T, C], or [T, T, 1]}, detached, on the CPU."""
    import torch

    return {
        place: torch.stack([cast("Stitch", row.module).alpha.detach().cpu() for row in rows])
        for place, rows in units.rows.items()
    }
