"""Task Switching Network: one network for all tasks, told by a code which of them it is to do.

G. Sun, T. Probst, D. P. Paudel, N. Popovic, M. Kanakis, J. Patel, D. Dai, L. Van Gool, "Task Switching Network for
Multi-Task Learning", ICCV 2021; official code (test only) https://github.com/GuoleiSun/TSNs. Symbols: y = gamma * IN(x)
+ beta (AdaIN), gamma and beta affine in a task's style, which a mapping network makes of its code.

Official code: one unconditioned encoder, U-Net decoder 512/256/256/128/64, mapping of 8 layers, block one-hot codes,
gamma's bias at 1, one output width for all tasks. Ours, because the training code is absent: initial weights, the
training, how skips join, decoder widths on small backbones, and the whole form for tasks with one label per image. Not
supported: dense and pooled tasks in one network, NHWC and token layouts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from datasets.contracts import DatasetSpec
from datasets.errors import UsageError
from datasets.kinds import get_kind
from methods.backbones.alignment import feature_grids
from methods.backbones.backbone import Backbone
from methods.contracts import Budget, Fidelity, Method, MethodParams, Reference, Statement, Trainer
from methods.figures import Figure, Heatmap
from methods.graph.operations import Operation, parameterless
from methods.graph.task_graph import TaskGraph, Value
from methods.plain import fit_graph
from methods.registry import register_method
from methods.soft_sharing.towers import place_channels, place_names
from methods.soft_sharing.training import require_tasks
from methods.task_switching.codes import AdaIN, ConditionedConvolution, block_code, conditioned, styles

Count = Annotated[int, Field(ge=1)]
Code = tuple[int, int]
_WIDTHS = (512, 256, 256, 128, 64)  # of the decoder, deepest level first
_FULL_WIDTH = 512  # channels of the last stage for which those widths are meant


class TaskSwitchingParams(MethodParams):
    """code_width: numbers in a task's code, fixed so that the network does not depend on how many tasks there are.
    style_width: of the mapping network; null takes the channels of the last stage, at most 512. mapping_layers: of the
    mapping network. conditioned_places: features between stages that pass through AdaIN where tasks have one label per
    image, the last ones whose maps have more than one pixel.
    """

    code_width: Count = 100
    style_width: Count | None = None
    mapping_layers: Count = 8
    conditioned_places: Count = 2


@dataclasses.dataclass(frozen=True)
class _Output:
    """The one output of all tasks. channels: that each task reads of it."""

    operation: Operation
    channels: Sequence[int]

    def read(self, graph: TaskGraph, t: int, value: Value) -> Value:
        """The prediction of task t."""
        value = graph.add(self.operation, value)
        if self.channels[t] == max(self.channels):
            return value
        return graph.add(parameterless("task_switching.first_channels", channels=self.channels[t]), value)


def output_form(data: DatasetSpec) -> Literal["dense", "pooled"]:
    """How all tasks read the shared output. Raises UsageError where some have a label per pixel and others do not."""
    dense = [task.name for task in data.tasks if get_kind(task.kind).dense]
    pooled = [task.name for task in data.tasks if not get_kind(task.kind).dense]
    if dense and pooled:
        raise UsageError(
            f"task_switching has one output for all tasks; {dense} have a label per pixel and {pooled} one per image. "
            "Choose tasks of one form."
        )
    return "dense" if dense else "pooled"


def place_grids(backbone: Backbone) -> list[int]:
    """Fewest pixels of a map at the places 0..L, over all image sizes."""
    ends = [0, *(stage[-1] + 1 for stage in backbone.stages)]
    return [min(g[end][0] * g[end][1] for g in feature_grids(backbone).values()) for end in ends]


def conditioned_places(backbone: Backbone, n: int) -> list[int]:
    """The last n places in front of a stage whose maps have more than one pixel, in order. Not the last stage's output:
    the mean over an instance-normed map is beta, whatever the image. Raises UsageError where there is none.
    """
    places = [place for place, pixels in enumerate(place_grids(backbone)[:-1]) if pixels > 1]
    if not places:
        raise UsageError(
            f"task_switching: every map of {backbone.config.name!r} has one pixel, of which instance norm leaves "
            "nothing; take larger images."
        )
    return places[-n:]


def decoder_widths(backbone: Backbone) -> list[int]:
    """Channels of the decoder's levels, deepest first: the published ones, scaled with the last stage where that has
    fewer than 512. Raises UsageError where the deepest map has one pixel.
    """
    if min(place_grids(backbone)) < 2:
        raise UsageError(
            f"task_switching: the last map of {backbone.config.name!r} has one pixel, of which instance norm leaves "
            "nothing; take larger images or a smaller output stride."
        )
    scale = min(1.0, place_channels(backbone)[-1] / _FULL_WIDTH)
    n_levels = len(backbone.stages) + 1
    widths = [*_WIDTHS, *([_WIDTHS[-1]] * n_levels)][:n_levels]
    return [max(1, round(width * scale)) for width in widths]


@register_method("task_switching")
class TaskSwitching(Method[TaskSwitchingParams]):
    """One network and one output for all tasks; a code of the task sets the norms of its later part."""

    Params = TaskSwitchingParams
    fidelity: ClassVar[Fidelity] = Fidelity(
        citation="G. Sun et al., Task Switching Network for Multi-Task Learning, ICCV 2021",
        link="https://github.com/GuoleiSun/TSNs",
        references=(
            Reference(
                "sun2021task",
                "inproceedings",
                (
                    "G. Sun",
                    "T. Probst",
                    "D. P. Paudel",
                    "N. Popović",
                    "M. Kanakis",
                    "J. Patel",
                    "D. Dai",
                    "L. Van Gool",
                ),
                "Task Switching Network for Multi-Task Learning",
                "IEEE/CVF International Conference on Computer Vision",
                2021,
                "https://github.com/GuoleiSun/TSNs",
            ),
        ),
        statements=(
            Statement("official code", "One encoder, not conditioned; AdaIN in every skip and decoder convolution."),
            Statement(
                "official code", "Mapping of 8 layers with PixelNorm and LeakyReLU .2; gamma's bias starts at 1."
            ),
            Statement("official code", "Block one-hot codes (5 blocks of 20); decoder 512/256/256/128/64; one output."),
            Statement("official code", "Training code of the method appears absent: training is the suite's."),
            Statement("default", "Codes of 100 numbers for any number of tasks, so parameters do not grow with it."),
            Statement(
                "default", "Decoder: a level a stage and the stem, 3x3 on the upsampled map joined to a 1x1 skip."
            ),
            Statement("default", "Decoder and style are scaled by the last stage's channels / 512 where it has fewer."),
            Statement("default", "One label per image: AdaIN in front of the last stages, whose weights tasks share."),
            Statement("default", "The output has the channels of the widest task; others read the first of them."),
            Statement("default", "The output stands in for the suite's heads, and on dense tasks for their decoder."),
            Statement("default", "Mapping and affine layers are deployed, not folded to constants of each task."),
        ),
    )

    @classmethod
    def about(cls) -> Sequence[str]:
        """What its rows are."""
        return [
            "Parameters do not grow with the number of tasks. One task a forward pass: the encoder runs once an image, "
            "what is conditioned once a task. Its one output is not the head that other rows have: they are equal in "
            "backbone, data and steps only.",
            "Runs on features [B, C, H, W], on tasks that all have a label per pixel or all one per image.",
        ]

    def check(self, data: DatasetSpec, backbone: Backbone, budget: Budget) -> Sequence[str]:
        """What the output replaces. Raises UsageError for one task, for more tasks than the code has places, for tasks
        of both forms, for other layouts than nchw and for maps of one pixel.
        """
        self._codes(data)
        require_maps(backbone)
        channels = max(_channels(data))
        if output_form(data) == "dense":
            widths = "/".join(map(str, decoder_widths(backbone)))
            return [f"a decoder of its own ({widths}) and one output of {channels} channels in place of the heads"]
        names = [place_names(backbone)[p] for p in conditioned_places(backbone, self.params.conditioned_places)]
        return [f"AdaIN after {' and '.join(names)}; one output of {channels} channels in place of the heads"]

    def _codes(self, data: DatasetSpec) -> list[Code]:
        require_tasks(data)
        return [block_code(t, len(data.tasks), self.params.code_width) for t in range(len(data.tasks))]

    def run(self, trainer: Trainer) -> TaskGraph:
        """One joint training."""
        graph = self.network(trainer, trainer.backbone(), self._codes(trainer.data))
        fit_graph(trainer, "joint", graph, trainer.budget.steps)
        self._tell(trainer, graph)
        return graph

    def network(self, trainer: Trainer, backbone: Backbone, codes: Sequence[Code]) -> TaskGraph:
        """The network at its initial weights. codes: of each task."""
        require_maps(backbone)
        form = output_form(trainer.data)
        graph = TaskGraph(trainer.data.inputs)
        if form == "dense":
            self._add_decoder(graph, trainer, backbone, codes)
        else:
            self._add_conditioned_stages(graph, trainer, backbone, codes)
        return graph

    def _styles(self, trainer: Trainer, backbone: Backbone, codes: Sequence[Code]) -> tuple[int, list[Operation]]:
        p, seed = self.params, trainer.rng("mapping").initial_seed()
        width = p.style_width or min(_FULL_WIDTH, place_channels(backbone)[-1])
        return width, styles(codes, p.code_width, width, p.mapping_layers, seed, trainer.device)

    def _add_conditioned_stages(
        self, graph: TaskGraph, trainer: Trainer, backbone: Backbone, codes: Sequence[Code]
    ) -> None:
        """AdaIN between the last stages, which run once a task from the first AdaIN on."""
        data, channels = trainer.data, _channels(trainer.data)
        width, style = self._styles(trainer, backbone, codes)
        widest = data.task_names[channels.index(max(channels))]
        output = _Output(trainer.head(widest), channels)
        norms = {
            place: conditioned(
                "adain",
                trainer.rng(f"place/{place}").initial_seed(),
                trainer.device,
                style=width,
                channels=place_channels(backbone)[place],
            )
            for place in conditioned_places(backbone, self.params.conditioned_places)
        }
        for t, task in enumerate(data.task_names):
            image = graph.input(data.input_of(task))
            told, value = graph.add(style[t], image), graph.add(backbone.stem_operation(), image)
            for place, stage in enumerate(backbone.stages):
                if place in norms:
                    value = graph.add(norms[place], told, value)
                for index in stage:
                    value = graph.add(backbone.block_operation(index), value)
            value = graph.add(backbone.tail_operation(), value)
            graph.output(task, output.read(graph, t, value))

    def _add_decoder(self, graph: TaskGraph, trainer: Trainer, backbone: Backbone, codes: Sequence[Code]) -> None:
        """A U-Net decoder over the unconditioned encoder, conditioned throughout."""
        data, channels = trainer.data, _channels(trainer.data)
        width, style = self._styles(trainer, backbone, codes)
        widths = decoder_widths(backbone)

        def convolution(name: str, reads: int, gives: int, kernel: int) -> Operation:
            seed = trainer.rng(f"decoder/{name}").initial_seed()
            form = {"style": width, "reads": reads, "channels": gives, "kernel": kernel}
            return conditioned("convolution", seed, trainer.device, **form)

        sources = place_channels(backbone)[::-1]
        sources[0] = backbone.num_features  # after the tail
        skips = [convolution(f"skip/{k}", sources[k], widths[k], 1) for k in range(1, len(widths))]
        reads = [sources[0], *(widths[k - 1] + widths[k] for k in range(1, len(widths)))]
        levels = [convolution(f"level/{k}", reads[k], widths[k], 3) for k in range(len(widths))]
        seed = trainer.rng("output").initial_seed()
        layer = conditioned("output", seed, trainer.device, reads=widths[-1], channels=max(channels))
        output = _Output(layer, channels)
        for t, task in enumerate(data.task_names):
            image = graph.input(data.input_of(task))
            told, features = graph.add(style[t], image), _encoder(graph, backbone, image)[::-1]
            value = graph.add(levels[0], told, features[0])
            for skip, level, feature in zip(skips, levels[1:], features[1:], strict=True):
                value = graph.add(level, told, value, graph.add(skip, told, feature))
            graph.output(task, output.read(graph, t, value))

    @staticmethod
    def _tell(trainer: Trainer, graph: TaskGraph) -> None:
        tasks = trainer.data.task_names
        trainer.fact("parameters of mapping, norms and decoder", sum(p.numel() for p in graph.parameters("added")))
        alike = likeness(graph, tasks)
        trainer.artifact("likeness of norms", alike)  # float [T, T]
        others = alike[~torch.eye(len(tasks), dtype=torch.bool)]
        trainer.fact("likeness of two tasks' norms", float(others.mean()), "cosine")
        panel = Heatmap(
            title="after training",
            rows=tuple(tasks),
            columns=tuple(tasks),
            values=tuple(tuple(map(float, row)) for row in alike.tolist()),
            row_title="task",
            column_title="task",
            value_title="cosine of (gamma - 1, beta)",
            low=-1.0,
            high=1.0,
            centre=0.0,
        )
        trainer.figure("likeness", Figure(title="How alike the norms of two tasks are", panels=(panel,)))


def _channels(data: DatasetSpec) -> list[int]:
    return [get_kind(task.kind).head_channels(task) for task in data.tasks]


def _encoder(graph: TaskGraph, backbone: Backbone, image: Value) -> list[Value]:
    """Features after the stem and every stage, the last one after the tail too."""
    value = graph.add(backbone.stem_operation(), image)
    found = [value]
    for stage in backbone.stages:
        for index in stage:
            value = graph.add(backbone.block_operation(index), value)
        found.append(value)
    found[-1] = graph.add(backbone.tail_operation(), value)
    return found


def require_maps(backbone: Backbone) -> None:
    """Raise UsageError for layouts on which instance norm has no settled form."""
    if backbone.layout != "nchw":
        raise UsageError(
            f"task_switching has no form on backbone {backbone.config.name!r}, whose features are {backbone.layout}; "
            "it needs nchw, for example resnet18."
        )


@torch.no_grad()
def likeness(graph: TaskGraph, tasks: Sequence[str]) -> Tensor:
    """Cosine of what each two tasks' norms have beside IN itself, (gamma - 1, beta) of all places: float [T, T]."""
    rows = []
    for task in tasks:
        nodes = graph.reachable([task])
        style = next(node.module for node in nodes if node.operation.kind == "task_switching.style")
        told = style(torch.empty(0))
        norms = [node.module for node in nodes if isinstance(node.module, (AdaIN, ConditionedConvolution))]
        affine = [(norm if isinstance(norm, AdaIN) else norm.norm).affine(told)[0] for norm in norms]
        rows.append(torch.cat([part for v in affine for part in (v[: len(v) // 2] - 1, v[len(v) // 2 :])]))
    unit = F.normalize(torch.stack(rows).double(), dim=1)
    return (unit @ unit.T).clamp(-1, 1).cpu()
