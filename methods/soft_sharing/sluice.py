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

import functools
from collections.abc import Callable, Sequence
from typing import Annotated, ClassVar, Literal, cast

import torch
from pydantic import Field
from timm.layers import EffectiveSEModule, SEModule
from timm.models._efficientnet_blocks import SqueezeExcite
from torch import Tensor, nn

from datasets.contracts import DatasetSpec
from datasets.errors import UsageError
from methods.backbones.alignment import feature_grids
from methods.backbones.backbone import Backbone
from methods.contracts import Budget, Fidelity, Method, Reference, Statement, Trainer
from methods.figures import Figure
from methods.graph.graph_norms import with_shared_statistics
from methods.graph.operations import Operation
from methods.graph.task_graph import TaskGraph, Value
from methods.registry import register_method
from methods.soft_sharing.cross_stitch import initial_alpha
from methods.soft_sharing.parameters import NonNegative, TowerParams
from methods.soft_sharing.pictures import stage_heatmap, tell_reads
from methods.soft_sharing.towers import (
    Tower,
    Units,
    place_channels,
    place_names,
    tower_graph,
    tower_passes,
    towers_of,
)
from methods.soft_sharing.training import joint_stage, require_tasks, tower_notes
from methods.soft_sharing.units import LayerMix, SubspaceStitch, layer_mix, projection, subspace_stitch

_GATES = (SEModule, EffectiveSEModule, SqueezeExcite)  # their last layer has C outputs and is no convolution of a stage


class SluiceParams(TowerParams):
    """subspaces: S, parts that channels are cut into. alpha_init: `imbalanced` starts A with alpha_self on the diagonal
    and equal numbers elsewhere, `balanced` with equal numbers everywhere; rows sum to 1. beta_init: `balanced` starts b
    with 1 / L, `imbalanced` with .9 for the last stage. orth_weight: of the penalty on products of the two subspaces'
    filters, which is not invariant to the scale of weights. reinit: towers restart from the cell's initial weights,
    where otherwise trained single-task networks go on. recipe: `published` is that of Cross-Stitch, units at unit_lr
    (100) times the rate. unit_weight_decay: of units and projections, null takes the recipe's. batch_norm: `shared`
    keeps one set of statistics of a tower that other tasks' batches pass through too.
    """

    subspaces: Literal[1, 2] = 2
    alpha_init: Literal["imbalanced", "balanced"] = "imbalanced"
    alpha_other: Annotated[None, Field()] = None
    beta_init: Literal["balanced", "imbalanced"] = "balanced"
    orth_weight: NonNegative = 0.1


def initial_matrix(n_tasks: int, subspaces: int, init: str, own: float) -> Tensor:
    """A [S T, S T], index S t + s; every row sums to 1."""
    size = n_tasks * subspaces
    if init == "balanced":
        return torch.full((size, size), 1 / size)
    return initial_alpha(size, own, (1 - own) / (size - 1))


def initial_beta(n_stages: int, init: str) -> Tensor:
    """b of one task [L]; sums to 1."""
    if init == "balanced" or n_stages == 1:
        return torch.full((n_stages,), 1 / n_stages)
    beta = torch.full((n_stages,), 0.1 / (n_stages - 1))
    beta[-1] = 0.9
    return beta


def last_convolution(backbone: Backbone, index: int) -> str:
    """Name, inside a block, of the last convolution or linear layer of its branch that gives the block's channels.

    Raises UsageError where there is none.
    """
    block = backbone.blocks[index]
    shortcut = block.form.projection(block.module)
    apart: list[nn.Module] = [part for part in block.module.modules() if isinstance(part, _GATES)]
    apart += [] if shortcut is None else [shortcut]
    left_out = {id(part) for root in apart for part in root.modules()}
    found = None
    for name, part in block.module.named_modules():
        if id(part) in left_out:
            continue
        width = getattr(part, "out_channels", getattr(part, "out_features", None))
        if isinstance(part, (nn.Conv2d, nn.Linear)) and width == block.out_shape.channels:
            found = name
    if found is None:
        raise UsageError(
            f"Block {index} of {backbone.config.name!r} has no convolution with {block.out_shape.channels} channels "
            "whose subspaces could be kept orthogonal; set orth_weight 0."
        )
    return found


def orthogonality(weights: Sequence[Tensor]) -> Tensor:
    """Omega = sum over layers of ||G_1^T G_2||_F^2, G_s [D, C / 2] the filters of half s as columns.

    weights: [C, ...] of the layers, filters as rows.
    """
    total = torch.zeros((), device=weights[0].device)
    for weight in weights:
        first, second = weight.flatten(1).chunk(2)
        total = total + (first @ second.T).square().sum()
    return total


@register_method("sluice")
class Sluice(Method[SluiceParams]):
    """A network for every task; halves of channels are mixed after every stage, and all stages before the head."""

    Params = SluiceParams
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

    def __init__(self, params: SluiceParams) -> None:
        super().__init__(params)
        self.recipe = params.recipe
        if params.batch_norm == "shared":
            self.final_batch_norm = "shared"

    def check(self, data: DatasetSpec, backbone: Backbone, budget: Budget) -> Sequence[str]:
        """What the towers cost. Raises UsageError for one task, and for channels that cannot be cut."""
        require_tasks(data)
        self._require_even(backbone)
        if self._is_penalised:
            for stage in backbone.stages:
                last_convolution(backbone, stage[-1])
        return tower_notes(self.params, data, budget)

    @property
    def _is_penalised(self) -> bool:
        return self.params.subspaces == 2 and self.params.orth_weight > 0

    def _require_even(self, backbone: Backbone) -> None:
        names = place_names(backbone)
        for place, channels in enumerate(place_channels(backbone)):
            if place > 0 and channels % self.params.subspaces:
                raise UsageError(
                    f"{names[place]} of {backbone.config.name!r} has {channels} channels, which cannot be cut into "
                    f"{self.params.subspaces} equal subspaces; set subspaces 1."
                )

    def run(self, trainer: Trainer) -> TaskGraph:
        """Single-task networks, then all of them together with units, layer mixes and penalty."""
        p, data = self.params, trainer.data
        require_tasks(data)
        backbone = trainer.backbone()
        self._require_even(backbone)
        towers = towers_of(trainer, p.reinit)
        units = self._units(backbone, len(data.tasks))
        mixes = [layer_mix(initial_beta(len(backbone.stages), p.beta_init).to(trainer.device)) for _ in towers]
        read = read_out(mixes, self._projections(trainer, backbone))
        graph = tower_graph(data, towers, units, read)
        graph = with_shared_statistics(graph) if p.batch_norm == "shared" else graph
        penalty, watch = self._penalty(trainer, backbone, towers)
        stage = joint_stage(trainer, graph, p, passes=tower_passes(data), penalty=penalty, before_cycle=watch)
        trainer.fit(stage)
        self._tell(trainer, units, mixes, place_names(backbone)[1:])
        trainer.fact("parameters of the units", sum(parameter.numel() for parameter in graph.parameters("added")))
        return graph

    def _units(self, backbone: Backbone, n_tasks: int) -> Units:
        p = self.params
        matrix = initial_matrix(n_tasks, p.subspaces, p.alpha_init, p.alpha_self)
        rows = matrix.to(next(backbone.module().parameters()).device).split(p.subspaces)
        places = range(1, len(backbone.stages) + 1)
        return Units({place: [subspace_stitch(backbone.layout, row) for row in rows] for place in places})

    def _projections(self, trainer: Trainer, backbone: Backbone) -> list[list[Operation]]:
        """Of each task, for stages 1 to L - 1."""
        ends = [stage[-1] + 1 for stage in backbone.stages]
        grids = feature_grids(backbone)
        channels = place_channels(backbone)

        def one(task: str, number: int) -> Operation:
            sizes = {places[ends[number]]: places[ends[-1]] for places in grids.values()}
            if len(sizes) < len({(places[ends[number]], places[ends[-1]]) for places in grids.values()}):
                raise UsageError(
                    f"Two image sizes of {backbone.config.name!r} have one grid after stage {number + 1} and two after "
                    "the last one; choose another evaluation size."
                )
            seed = trainer.rng(f"projection/{task}/{number + 1}").initial_seed()
            widths = (channels[number + 1], channels[-1])
            return projection(backbone.layout, backbone.prefix_tokens, widths, sizes, seed, trainer.device)

        return [[one(task, number) for number in range(len(ends) - 1)] for task in trainer.data.task_names]

    def _penalty(
        self, trainer: Trainer, backbone: Backbone, towers: Sequence[Tower]
    ) -> tuple[Callable[[], Tensor] | None, Callable[[int], None] | None]:
        """The penalty, and a watch that logs it at each cycle relative to its value before the training (trap S2)."""
        if not self._is_penalised:
            return None, None
        names = [f"{last_convolution(backbone, stage[-1])}.weight" for stage in backbone.stages]
        weights = [
            blocks[-1].module.get_parameter(name)
            for tower in towers
            for blocks, name in zip(tower.stages, names, strict=True)
        ]
        omega = functools.partial(orthogonality, weights)
        start = float(omega().detach())

        def watch(cycle: int) -> None:
            trainer.log("penalty/orthogonality relative to the start", float(omega().detach()) / start)

        return (lambda: self.params.orth_weight * omega()), watch if start > 0 else None

    def _tell(self, trainer: Trainer, units: Units, mixes: Sequence[Operation], stages: Sequence[str]) -> None:
        tasks, subspaces = trainer.data.task_names, self.params.subspaces
        names = [f"{task} {s + 1}" for task in tasks for s in range(subspaces)] if subspaces > 1 else list(tasks)
        matrices = {
            name: torch.cat([cast(SubspaceStitch, row.module).alpha.detach().cpu() for row in units.rows[place]])
            for place, name in enumerate(stages, start=1)
        }
        for name, matrix in matrices.items():
            trainer.artifact(f"A {name}", matrix)  # float [S T, S T]
        beta = torch.stack([cast(LayerMix, mix.module).beta.detach().cpu() for mix in mixes])
        trainer.artifact("b", beta)  # float [T, L]
        reads = {name: matrix.abs() for name, matrix in matrices.items()}
        tell_reads(trainer, "What each subspace of each task reads of whom", reads, names, "|A|")
        panel = stage_heatmap("before the heads", beta, tasks, stages, "b")
        trainer.figure("layers", Figure(title="Which stages each task reads", panels=(panel,)))


def read_out(
    mixes: Sequence[Operation], projections: Sequence[Sequence[Operation]]
) -> Callable[[TaskGraph, int, Sequence[Value]], Value]:
    """What a task's tail reads: sum_l b_l h_l with earlier stages projected to the last one."""

    def read(graph: TaskGraph, task: int, history: Sequence[Value]) -> Value:
        earlier = [graph.add(one, h) for one, h in zip(projections[task], history, strict=False)]
        return graph.add(mixes[task], *earlier, history[-1])

    return read
