"""Sluice networks, for images: Cross-Stitch over subspaces of channels, and a learnt mix of all stages before the head.

S. Ruder, J. Bingel, I. Augenstein, A. Sogaard, "Latent Multi-Task Architecture Learning", AAAI 2019,
https://arxiv.org/abs/1705.08142; official code for sequence tagging https://github.com/sebastianruder/sluice-networks.
Symbols: h_{t,l} feature of tower t after stage l, S subspaces, A_l [S T, S T], b [T, L], G_s filters of subspace s.

From the paper: mixing of subspaces, mixing of layers, a penalty that keeps the two subspaces of a layer orthogonal.
Official code: two subspaces, weight .1 of the penalty, b equal at the start. Everything that is about images is ours:
halves of the channels, one number an entry of A, projections of earlier stages, which convolution is penalised, initial
rows of A that sum to 1 (the released pattern for two subspaces sums to 2, so features double at every unit).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, cast

from pydantic import Field

from datasets.errors import UsageError
from methods.contracts import Budget, Fidelity, Reference, Statement, Trainer
from methods.figures import Figure
from methods.plain import require_tasks
from methods.registry import register_method
from methods.soft_sharing.parameters import NonNegative, TowerParams
from methods.soft_sharing.pictures import stage_heatmap, tell_reads
from methods.soft_sharing.training import SoftSharing, joint_stage, tower_notes, tower_passes
from methods.traits import Traits

if TYPE_CHECKING:
    from datasets.contracts import DatasetSpec
    from methods.backbones.backbone import Backbone
    from methods.graph.operations import Operation
    from methods.graph.task_graph import TaskGraph
    from methods.soft_sharing.towers import Units
    from methods.soft_sharing.units import LayerMix, SubspaceStitch


class SluiceParams(TowerParams):
    """The parameters of sluice networks. A mixes subspaces, b mixes stages."""

    subspaces: Literal[1, 2] = Field(default=2, description="S, parts that channels are cut into")
    alpha_init: Literal["imbalanced", "balanced"] = Field(
        default="imbalanced",
        description="`imbalanced`: alpha_self on the diagonal of A, equal numbers elsewhere; `balanced`: equal "
        "everywhere",
    )
    alpha_other: Annotated[None, Field()] = Field(default=None, description="not read: the rows of A sum to 1")
    beta_init: Literal["balanced", "imbalanced"] = Field(
        default="balanced",
        description="`balanced`: b starts with 1 / L; `imbalanced`: with .9 for the last stage",
    )
    orth_weight: NonNegative = Field(
        default=0.1,
        description="of the penalty on products of two subspaces' filters, which depends on the scale of weights",
    )

    @property
    def is_penalised(self) -> bool:
        """Whether the two subspaces of a layer are kept orthogonal."""
        return self.subspaces == 2 and self.orth_weight > 0


@register_method("sluice")
class Sluice(SoftSharing[SluiceParams]):
    """A network for every task; halves of channels are mixed after every stage, and all stages before the head."""

    Params = SluiceParams
    traits: ClassVar[Traits] = Traits("all", "all", "T", before_per_task=1)
    fidelity: ClassVar[Fidelity] = Fidelity(
        citation="S. Ruder, J. Bingel, I. Augenstein, A. Sogaard, Latent Multi-Task Architecture Learning, AAAI 2019",
        link="https://arxiv.org/abs/1705.08142",
        references=(
            Reference(
                "ruder2019latent",
                "inproceedings",
                ("S. Ruder", "J. Bingel", "I. Augenstein", "A. S{\\o}gaard"),
                "Latent Multi-Task Architecture Learning",
                "AAAI Conference on Artificial Intelligence",
                2019,
                "https://arxiv.org/abs/1705.08142",
            ),
        ),
        statements=(
            Statement("paper", "Subspaces of every layer are mixed by a matrix; tasks read a mix of all layers."),
            Statement("paper", "A penalty on the squared Frobenius norm of the product of both subspaces' weights."),
            Statement("official code", "Two subspaces, weight .1 of the penalty, layers mixed equally at the start."),
            Statement(
                "default",
                "No official version for images exists: halves of the channels after every stage, one "
                "number an entry; all of the following are ours as well.",
            ),
            Statement("default", "A starts at .9 on the diagonal and rows sum to 1; the released pattern sums to 2."),
            Statement("default", "Earlier stages are pooled and projected to the last one by 1x1 layers, no norm."),
            Statement("default", "The last convolution or linear layer of each stage carries the penalty."),
            Statement("default", "Start from single-task networks and recipe: published are those of Cross-Stitch."),
            Statement("default", "Tasks with images of their own: each batch passes through all towers."),
        ),
    )

    def check(self, data: DatasetSpec, backbone: Backbone, budget: Budget) -> Sequence[str]:
        """The cost of the towers. Raises UsageError for one task, and for channels that cannot be cut."""
        require_tasks(data)
        self._require_even(backbone)
        if self.params.is_penalised:
            from methods.soft_sharing.sluice_network import last_convolution

            for stage in backbone.stages:
                last_convolution(backbone, stage[-1])
        return tower_notes(self.params, data, budget)

    def _require_even(self, backbone: Backbone) -> None:
        names = backbone.place_names
        for place, channels in enumerate(backbone.place_channels):
            if place > 0 and channels % self.params.subspaces:
                raise UsageError(
                    f"{names[place]} of {backbone.config.name!r} has {channels} channels, which cannot be cut into "
                    f"{self.params.subspaces} equal subspaces; set subspaces 1."
                )

    def run(self, trainer: Trainer) -> TaskGraph:
        """Single-task networks, then all of them together with units, layer mixes and penalty."""
        from methods.soft_sharing import sluice_network as network
        from methods.soft_sharing.towers import tower_graph, towers_of

        p, data = self.params, trainer.data
        require_tasks(data)
        backbone = trainer.backbone()
        self._require_even(backbone)
        towers = towers_of(trainer, p.reinit)
        units = network.units(p, backbone, len(data.tasks))
        mixes = network.mixes(p, trainer, backbone)
        read = network.read_out(mixes, network.projections(trainer, backbone))
        graph = tower_graph(data, towers, units, read)
        graph = graph.with_shared_statistics() if p.batch_norm == "shared" else graph
        penalty, watch = network.penalty(p, trainer, backbone, towers) if p.is_penalised else (None, None)
        stage = joint_stage(trainer, graph, p, passes=tower_passes(data), penalty=penalty, before_cycle=watch)
        trainer.fit(stage)
        self._tell(trainer, units, mixes, backbone.place_names[1:])
        trainer.fact("parameters of the units", sum(parameter.numel() for parameter in graph.parameters("added")))
        return graph

    def _tell(self, trainer: Trainer, units: Units, mixes: Sequence[Operation], stages: Sequence[str]) -> None:
        import torch

        tasks, subspaces = trainer.data.task_names, self.params.subspaces
        names = [f"{task} {s + 1}" for task in tasks for s in range(subspaces)] if subspaces > 1 else list(tasks)
        matrices = {
            name: torch.cat([cast("SubspaceStitch", row.module).alpha.detach().cpu() for row in units.rows[place]])
            for place, name in enumerate(stages, start=1)
        }
        for name, matrix in matrices.items():
            trainer.artifact(f"A {name}", matrix)  # float [S T, S T]
        beta = torch.stack([cast("LayerMix", mix.module).beta.detach().cpu() for mix in mixes])
        trainer.artifact("b", beta)  # float [T, L]
        reads = {name: matrix.abs() for name, matrix in matrices.items()}
        tell_reads(trainer, "What each subspace of each task reads of whom", reads, names, "|A|")
        panel = stage_heatmap("before the heads", beta, tasks, stages, "b")
        trainer.figure("layers", Figure(title="Which stages each task reads", panels=(panel,)))
