"""NDDR-CNN: T networks whose features are concatenated and reduced again by a 1x1 convolution for every task.

Y. Gao, J. Ma, M. Zhao, W. Liu, A. L. Yuille, "NDDR-CNN: Layerwise Feature Fusing in Multi-Task CNNs by Neural
Discriminative Dimensionality Reduction", CVPR 2019, https://arxiv.org/abs/1801.08297; official code (TensorFlow 1)
https://github.com/ethanygao/NDDR-CNN. Symbols: z = [x_1; ..; x_T], W_t [C, T C], y_t = BN(W_t z).

From the paper: concatenation, 1x1 convolution, norm, decay on W_t. Official code: initial blocks .9 I and .1 I, rates,
decay. Third party: a ReLU behind the norm, its momentum. Ours: .1 / (T - 1) for more than two tasks, backbones other
than CNNs (a linear layer on the channel axis). Not supported: the shortcut variant across scales.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, cast

from pydantic import Field

from datasets.errors import UsageError, unknown
from methods.contracts import Budget, Fidelity, Reference, Role, Statement, Trainer
from methods.plain import require_tasks
from methods.registry import register_method
from methods.soft_sharing.parameters import Count, TowerParams
from methods.soft_sharing.pictures import tell_reads
from methods.soft_sharing.training import SoftSharing, joint_stage, tower_notes, tower_passes
from methods.traits import Traits

if TYPE_CHECKING:
    from torch import Tensor, nn

    from datasets.contracts import DatasetSpec
    from methods.backbones.backbone import Backbone
    from methods.graph.task_graph import GraphNetwork, TaskGraph
    from methods.soft_sharing.towers import Units
    from methods.soft_sharing.units import Nddr


class NddrCnnParams(TowerParams):
    """The parameters of NDDR-CNN. W_t: the 1x1 convolution of task t."""

    published_values: ClassVar[Mapping[str, object]] = {
        **TowerParams.published_values,
        "unit_weight_decay": 5e-4,
    }
    published_defaults: ClassVar[Mapping[str, object]] = {
        "steps": 20001,
        "weight_decay": 5e-4,
        "poly": 0.9,
    }

    stages: Annotated[tuple[str, ...], Field(min_length=1)] | None = Field(
        default=None,
        description="places that have a layer (`stem`, `stage 1`, ..); null takes all",
    )
    relu: bool = Field(default=True, description="a ReLU behind the norm of each layer")
    bn_momentum: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.05, description="momentum of the norm of each layer"
    )
    max_unit_params: Count = Field(
        default=50_000_000,
        description="layers grow with T^2 C^2; more parameters than this are refused",
    )


_RESNET18 = (64, 64, 128, 256, 512)  # channels after stem and stages, for an example


def unit_parameters(channels: Sequence[int], n_tasks: int) -> int:
    """T^2 sum C^2 + 2 T sum C: parameters of the layers with their norms."""
    return n_tasks**2 * sum(c * c for c in channels) + 2 * n_tasks * sum(channels)


@register_method("nddr_cnn")
class NddrCnn(SoftSharing[NddrCnnParams]):
    """A network for every task; after every stage each takes a learnt 1x1 reduction of all networks' features."""

    Params = NddrCnnParams
    traits: ClassVar[Traits] = Traits("all", "all", "T", before_per_task=1)
    fidelity: ClassVar[Fidelity] = Fidelity(
        citation="Y. Gao, J. Ma, M. Zhao, W. Liu, A. L. Yuille, NDDR-CNN, CVPR 2019",
        link="https://arxiv.org/abs/1801.08297",
        references=(
            Reference(
                "gao2019nddr",
                "inproceedings",
                ("Y. Gao", "J. Ma", "M. Zhao", "W. Liu", "A. L. Yuille"),
                "NDDR-CNN: Layerwise Feature Fusing in Multi-Task CNNs by Neural Discriminative "
                "Dimensionality Reduction",
                "IEEE/CVF Conference on Computer Vision and Pattern Recognition",
                2019,
                "https://arxiv.org/abs/1801.08297",
            ),
        ),
        statements=(
            Statement("paper", "Concatenate, 1x1 convolution without bias per task, batch norm; single-task start."),
            Statement("official code", "W_t starts at .9 I for the own block and .1 I for the other, norm at 1 and 0."),
            Statement("third party", "A ReLU behind the norm (relu), momentum .05, layers after stem and stages."),
            Statement("default", ".1 / (T - 1) I for more than two tasks; a third party keeps .1."),
            Statement(
                "official code",
                "recipe: published. SGD .9, rate 1e-3 poly .9, decay 5e-4, 20,001 steps, layers "
                "at 100 times the rate. Batch 10 and normals x 20 are the cell's.",
            ),
            Statement("recalled", "The paper stresses a strong decay on W_t; none beyond the code's 5e-4 is applied."),
            Statement("default", "Any family: a linear layer and a batch norm on the channel axis; ReLU there too."),
            Statement("default", "Tasks with images of their own: each batch passes through all towers."),
            Statement(
                "third party",
                "The author of AdaShare explains low NDDR rows on its boards by another backbone "
                "and no ImageNet start (sunxm2357/AdaShare#6).",
            ),
        ),
    )

    @classmethod
    def about(cls) -> Sequence[str]:
        """How the layers grow with the tasks."""
        counts = ", ".join(f"{n} tasks {unit_parameters(_RESNET18, n) / 1e6:.1f}M" for n in (2, 3, 5, 10, 20))
        return [f"Layers grow with the square of the tasks; on resnet18, all stages and the stem: {counts}."]

    def check(self, data: DatasetSpec, backbone: Backbone, budget: Budget) -> Sequence[str]:
        """The cost of towers and layers. Raises UsageError for one task, for a place that the backbone lacks, and for
        more than max_unit_params.
        """
        require_tasks(data)
        places = self._places(backbone)
        n = self._require_size(backbone, places, len(data.tasks))
        notes = [f"{n:,} parameters in {len(places) * len(data.tasks)} NDDR layers"]
        if self.params.relu and any(not _ends_rectified(backbone, place) for place in places if place > 0):
            notes.append(
                f"stages of {backbone.config.name!r} end without an activation, so the ReLU of NDDR layers cuts what "
                "is negative; relu: false keeps it"
            )
        return [*notes, *tower_notes(self.params, data, budget)]

    def _places(self, backbone: Backbone) -> list[int]:
        names = backbone.place_names
        for name in self.params.stages or ():
            if name not in names:
                raise unknown(f"place for an NDDR layer on {backbone.config.name}", name, names)
        wanted = self.params.stages or names
        return [place for place, name in enumerate(names) if name in wanted]

    def _require_size(self, backbone: Backbone, places: Sequence[int], n_tasks: int) -> int:
        channels = backbone.place_channels
        n = unit_parameters([channels[place] for place in places], n_tasks)
        if n > self.params.max_unit_params:
            raise UsageError(
                f"NDDR layers for {n_tasks} tasks on {backbone.config.name!r} have {n:,} parameters, more than "
                f"max_unit_params = {self.params.max_unit_params:,}; take fewer tasks or stages, or raise it."
            )
        return n

    def _units(self, backbone: Backbone, n_tasks: int) -> Units:
        from methods.soft_sharing.towers import Units
        from methods.soft_sharing.units import channel_axis, initial_alpha, nddr

        p, places = self.params, self._places(backbone)
        self._require_size(backbone, places, n_tasks)
        channels = backbone.place_channels
        alpha = initial_alpha(n_tasks, p.alpha_self, p.other(n_tasks))
        alpha = alpha.to(next(backbone.module().parameters()).device)
        rows = {
            place: [nddr(backbone.layout, row, channels[place], p.bn_momentum, p.relu) for row in alpha]
            for place in places
        }
        return Units(rows, channel_axis(backbone.layout))

    def run(self, trainer: Trainer) -> TaskGraph:
        """Single-task networks, then all of them together with the layers between them."""
        from methods.soft_sharing.towers import tower_graph, towers_of

        p, data = self.params, trainer.data
        require_tasks(data)
        backbone = trainer.backbone()
        units = self._units(backbone, len(data.tasks))
        graph = tower_graph(data, towers_of(trainer, p.reinit), units)
        graph = graph.with_shared_statistics() if p.batch_norm == "shared" else graph
        stage = joint_stage(trainer, graph, p, passes=tower_passes(data))
        if not p.reinit:
            self._tell_start(trainer, cast("GraphNetwork", stage.network))
        trainer.fit(stage)
        self._tell(trainer, units, backbone.place_names)
        return graph

    @staticmethod
    def _tell_start(trainer: Trainer, network: GraphNetwork) -> None:
        """The layers change what single-task networks give before anything is trained: how much is left (trap N1)."""
        for task, scores in trainer.evaluate(network, Role.SELECT).items():
            name = trainer.data.task(task).metrics[0]
            trainer.fact(f"{name} on select before the joint training, {task}", scores[name].value, scores[name].unit)

    @staticmethod
    def _tell(trainer: Trainer, units: Units, places: Sequence[str]) -> None:
        trainer.fact("parameters of the units", units.n_parameters())
        norms = {places[place]: block_norms([row.module for row in rows]) for place, rows in units.rows.items()}
        for place, values in norms.items():
            trainer.artifact(f"block norms {place}", values)  # float [T, T]
        unit = "Frobenius norm of the block of W / sqrt(C)"
        tell_reads(trainer, "What each task reads of whom", norms, trainer.data.task_names, unit)


def block_norms(rows: Sequence[nn.Module]) -> Tensor:
    """||W_t[:, block u]||_F / sqrt(C) of every task t and source u, float [T, T] on the CPU; alpha at the start."""
    import torch

    weights = [cast("Tensor", cast("Nddr", row).pointwise.weight).detach().cpu().flatten(1) for row in rows]
    blocks = torch.stack([weight.unflatten(1, (len(rows), -1)) for weight in weights])  # [T, C, T, C]
    return blocks.square().sum((1, 3)).sqrt() / blocks.shape[1] ** 0.5


def _ends_rectified(backbone: Backbone, place: int) -> bool:
    """Whether the last block of a stage ends with an activation, so that nothing is negative there."""
    from methods.backbones.forms import Residual

    form = backbone.blocks[backbone.stages[place - 1][-1]].form
    return isinstance(form, Residual) and form.activation is not None
