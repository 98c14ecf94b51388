"""The common parts of both searches: copies of every layer, a soft choice between them, cycles of two passes.

Source: branching search 2.2, 2.3 and 2.6; lengths are `schedule`'s. A layer is one block of the backbone, the last one
with the tail.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, cast

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _NormBase

from datasets.contracts import Batch, DatasetSpec
from datasets.kinds import get_kind
from methods.backbones.backbone import Backbone, Block
from methods.backbones.forms import Residual
from methods.branched.network import Copies
from methods.branched.schedule import Schedule, SearchParams
from methods.branched.segments import segment_operations
from methods.branched.trees import Tree
from methods.contracts import OptimizerSpec, ParameterGroup, Role, Stage, Trainer
from methods.graph.operations import Operation, view_with_own_statistics
from methods.graph.rules import BatchNormRule
from methods.operating import rate_of
from methods.plain import task_losses


def gumbel(shape: Sequence[int], rng: torch.Generator) -> Tensor:
    """Independent draws of Gumbel(0, 1)."""
    return -torch.empty(tuple(shape)).exponential_(generator=rng).log()


def mixture(logits: Tensor, noise: Tensor, tau: float, hard: bool = False) -> Tensor:
    """w = softmax((logits + noise) / tau) along the last axis; hard: one-hot forward, soft backward."""
    soft = ((logits + noise) / tau).softmax(-1)
    if not hard:
        return soft
    one_hot = functional.one_hot(soft.argmax(-1), soft.shape[-1]).to(soft)
    return one_hot + soft - soft.detach()


def views(module: nn.Module, n: int, rule: BatchNormRule) -> nn.ModuleList:
    """n modules of the same weights: with the same norms, with own statistics, or with own scale and shift too."""
    if rule == "shared":
        return nn.ModuleList([module] * n)
    made = [module, *(view_with_own_statistics(module) for _ in range(n - 1))]
    if rule == "per_task":
        for view in made[1:]:
            for norm in norms_of(view):
                for name, parameter in list(norm.named_parameters(recurse=False)):
                    norm.register_parameter(name, nn.Parameter(parameter.detach().clone()))
    return nn.ModuleList(made)


def norms_of(module: nn.Module) -> list[_NormBase]:
    """The norms that keep statistics."""
    return [part for part in module.modules() if isinstance(part, _NormBase)]


def last_norm(block: Block) -> _NormBase | None:
    """The batch norm that the residual branch ends in; None where it ends in something else."""
    if not isinstance(block.form, Residual):
        return None
    parts = [getattr(block.module, name, None) for name in block.form.parts]
    kept = [part for part in parts if part is not None and not isinstance(part, (nn.Identity, DropPath))]
    norm = kept[-1]
    if not isinstance(norm, _NormBase) or not isinstance(getattr(norm, "act", nn.Identity()), nn.Identity):
        return None
    return norm


class Supernet(nn.Module, abc.ABC):
    """T copies of every layer behind a shared stem, and a head per task.

    copies: [L][copy] the layers' modules. layers: [L][copy][stream] views of them with the statistics of a stream, the
    stem one per input. tau, warm: set at the start of every phase. seen: which tasks have had a backward pass.
    """

    seen: Tensor

    def __init__(self, trainer: Trainer, params: SearchParams, n_copies: Sequence[int], streams: Sequence[str]) -> None:
        super().__init__()
        data = trainer.data
        self.data, self.params = data, params
        self.tasks = data.task_names
        self.streams = {name: number for number, name in enumerate(streams)}
        self.rng = trainer.rng("gumbel")
        self.tau, self.warm = params.tau_start, True
        self.backbones = [trainer.backbone() for _ in range(max(n_copies))]
        self.n_plain_norms = self.prepare(self.backbones)
        self.layers = nn.ModuleList(
            nn.ModuleList(views(_layer(self.backbones[i], number), len(streams), params.batch_norm) for i in range(n))
            for number, n in enumerate(n_copies)
        )
        stem_rule: BatchNormRule = "shared" if params.batch_norm == "shared" else "per_task_stats"
        self.stems = nn.ModuleDict(
            dict(zip(data.inputs, views(self.backbones[0].stem, len(data.inputs), stem_rule), strict=True))
        )
        self.heads = nn.ModuleDict({task: trainer.head(task).module for task in self.tasks})
        self.register_buffer("seen", torch.zeros(len(self.tasks), dtype=torch.bool))

    def prepare(self, backbones: Sequence[Backbone]) -> int:
        """Change the copies before they are used; gives how many norms were changed."""
        return 0

    @abc.abstractmethod
    def choices(self) -> list[nn.Parameter]:
        """The architecture parameters."""

    @abc.abstractmethod
    def forward(self, images: Mapping[str, Tensor], tasks: Sequence[str]) -> dict[str, Tensor]:
        """images: {input: float [B, C, H, W]}; gives {task: prediction} for the tasks asked for."""

    def stem(self, images: Mapping[str, Tensor], name: str) -> Tensor:
        """The stem's features of the images of one input."""
        x = images[name]
        if self.params.search_scale < 1:
            x = functional.interpolate(
                x, scale_factor=self.params.search_scale, mode="bilinear", align_corners=False, antialias=True
            )
        return cast(Tensor, self.stems[name](x))

    def noise(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Gumbel noise in training, none in evaluation."""
        drawn = gumbel(shape, self.rng) if self.training else torch.zeros(tuple(shape))
        return drawn.to(like.device)

    def weights(self, optimizer: OptimizerSpec | None = None) -> list[ParameterGroup]:
        """Stem and copies at the backbone's rate, heads at theirs; or all by an optimizer of the method's own."""
        body = {id(p): p for part in (self.stems, self.layers) for p in part.parameters()}
        return [
            ParameterGroup("backbone", list(body.values()), optimizer),
            ParameterGroup("heads", list(self.heads.parameters()), optimizer),
        ]

    def n_parameters(self) -> int:
        """Number of parameters without the architecture's."""
        return sum(p.numel() for group in self.weights() for p in group.parameters)

    def hold_statistics(self, held: bool) -> None:
        """held: the copies' norms use the statistics of the batch and leave their running ones as they are."""
        for norm in norms_of(self.layers):
            norm.track_running_stats = not held

    def reset_statistics(self) -> None:
        """Running mean 0, variance 1, counter 0 in all copies."""
        for norm in norms_of(self.layers):
            norm.reset_running_stats()


def _layer(backbone: Backbone, number: int) -> nn.Module:
    module = backbone.blocks[number].module
    if number < len(backbone.blocks) - 1 or type(backbone.tail) is nn.Identity:
        return module
    return _LayerWithTail(module, backbone.tail)


class _LayerWithTail(nn.Sequential):
    """The last layer of a backbone that has a tail."""


class Labelled:
    """The losses of a supernet for those tasks that have a valid label in the batch; others are left out, so that
    nothing steps for them. n_labelled: how many the last call had.
    """

    def __init__(self, data: DatasetSpec, network: Supernet) -> None:
        self.network = network
        self.losses = task_losses(data, network)
        self.kinds = {task.name: get_kind(task.kind) for task in data.tasks}
        self.n_labelled = 0

    def __call__(self, batch: Batch, tasks: Sequence[str]) -> Mapping[str, Tensor]:
        """{task: scalar}; empty where no task asked for has a label."""
        present = [task for task in tasks if bool(self.kinds[task].valid(batch.targets[task]).any())]
        self.n_labelled = len(present)
        return self.losses(batch, present) if present else {}


@dataclasses.dataclass(frozen=True)
class Search:
    """How a supernet is trained. losses: of both passes. passes: network passes for a batch with all tasks.
    weight_optimizer: None for the cell's.
    """

    network: Supernet
    schedule: Schedule
    losses: Callable[[Batch, Sequence[str]], Mapping[str, Tensor]]
    passes: int
    penalty: Callable[[], Tensor] | None = None
    weight_optimizer: OptimizerSpec | None = None

    def run(self, trainer: Trainer) -> None:
        """Cycles of an architecture pass on arch, from the end of the warm-up, and a weight pass on fit."""
        params, schedule = self.network.params, self.schedule
        adam = OptimizerSpec("adam", rate_of(params.lr_arch, schedule.arch_steps), params.wd_arch)
        fresh: Literal["stage", "cycle"] = "cycle" if params.reset_optimizer_state else "stage"
        arch = Stage(
            name="architecture",
            network=self.network,
            steps=schedule.arch_steps,
            role=Role.ARCH,
            train=[ParameterGroup("arch", self.network.choices(), adam)],
            losses=self.losses,
            purpose="search",
            penalty=self.penalty,
            before_cycle=self._begin_architecture,
            fresh_optimizer=fresh,
            first_cycle=schedule.warmup,
            passes=self.passes,
        )
        weights = Stage(
            name="weights",
            network=self.network,
            steps=schedule.weight_steps,
            role=Role.FIT,
            train=self.network.weights(self.weight_optimizer),
            losses=self.losses,
            purpose="search",
            step=params.weight_step,
            before_cycle=self._begin_weights,
            fresh_optimizer=fresh,
            passes=self.passes,
        )
        trainer.alternate([arch, weights], cycles=schedule.cycles)
        size = self.network.n_parameters() / trainer.backbone().n_parameters()
        trainer.fact("supernet parameters", size, "x plain backbone")

    def _begin_architecture(self, cycle: int) -> None:
        self.network.tau, self.network.warm = self.schedule.tau(cycle + 1), False
        self.network.hold_statistics(self.network.params.reset_bn)

    def _begin_weights(self, cycle: int) -> None:
        self.network.tau, self.network.warm = self.schedule.tau(cycle + 1), cycle < self.schedule.warmup
        self.network.hold_statistics(False)
        if self.network.params.reset_bn and not self.network.warm:
            self.network.reset_statistics()


def searched_copies(
    network: Supernet, trainer: Trainer, tree: Tree, choose: Callable[[int, int], tuple[int, int]]
) -> tuple[Operation, Copies]:
    """A stem and copies that continue from searched weights: an ablation. choose: (layer, cluster) -> (copy, task).

    Parameters stay the very objects that were trained, so that their updates are counted. Norms that had no scale and
    shift take the initial ones; statistics start anew, as a copy had several.
    """
    fresh = [trainer.backbone() for _ in range(max(map(len, tree)))]
    last = len(tree) - 1
    taken: set[tuple[int, int]] = set()

    def copies(layer: int, cluster: int) -> list[Operation]:
        copy, task = choose(layer, cluster)
        streams = cast(nn.ModuleList, cast(nn.ModuleList, network.layers[layer])[copy])
        source = streams[min(task, len(streams) - 1)]
        operations = segment_operations(fresh[cluster], range(layer, layer + 1), layer == last)
        parts = list(source.children()) if isinstance(source, _LayerWithTail) else [source]
        for operation, part in zip(operations, parts, strict=False):  # a tail that does nothing has no part
            _adopt(operation.module, part, again=(layer, copy) in taken)
        taken.add((layer, copy))
        return operations

    stem = fresh[0].stem_operation()
    _adopt(stem.module, next(iter(network.stems.values())), again=False)
    return stem, copies


def _adopt(module: nn.Module, source: nn.Module, again: bool) -> None:
    """Give a module the parameters of another by name. again: a second user gets copies of its own."""
    for name, parameter in source.named_parameters():
        prefix, _, attribute = name.rpartition(".")
        given = nn.Parameter(parameter.detach().clone()) if again else parameter
        module.get_submodule(prefix).register_parameter(attribute, given)
