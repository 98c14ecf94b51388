"""The network of task switching: an encoder that no task conditions, and what a task's style conditions after it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.contracts import DatasetSpec
from datasets.errors import UsageError
from datasets.kinds import get_kind
from methods.backbones.alignment import feature_grids
from methods.backbones.backbone import Backbone
from methods.contracts import Trainer
from methods.graph.operations import Operation, parameterless
from methods.graph.task_graph import TaskGraph, Value
from methods.task_switching.codes import AdaIN, Code, ConditionedConvolution, conditioned, styles

if TYPE_CHECKING:
    from methods.task_switching.method import TaskSwitchingParams

_WIDTHS = (512, 256, 256, 128, 64)  # of the decoder, deepest level first
_FULL_WIDTH = 512  # channels of the last stage for which those widths are meant
_ENOUGH = 9  # pixels of a map: an instance norm takes two numbers from each, and of two pixels leaves only the signs


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
    """The last n places in front of a stage whose maps have 9 pixels or more, in order; where none has, those with the
    most. Not the last stage's output: the mean over an instance-normed map is beta, whatever the image. Raises
    UsageError where every map has one pixel.
    """
    grids = place_grids(backbone)[:-1]
    least = min(_ENOUGH, max(grids))
    if least == 1:
        raise UsageError(
            f"task_switching: every map of {backbone.config.name!r} has one pixel, of which instance norm leaves "
            "nothing; take larger images."
        )
    return [place for place, pixels in enumerate(grids) if pixels >= least][-n:]


def decoder_widths(backbone: Backbone) -> list[int]:
    """Channels of the decoder's levels, deepest first: the published ones, scaled with the last stage where that has
    fewer than 512. Raises UsageError where the deepest map has one pixel.
    """
    if min(place_grids(backbone)) < 2:
        raise UsageError(
            f"task_switching: the last map of {backbone.config.name!r} has one pixel, of which instance norm leaves "
            "nothing; take larger images or a smaller output stride."
        )
    scale = min(1.0, backbone.place_channels[-1] / _FULL_WIDTH)
    n_levels = len(backbone.stages) + 1
    widths = [*_WIDTHS, *([_WIDTHS[-1]] * n_levels)][:n_levels]
    return [max(1, round(width * scale)) for width in widths]


def switching_network(p: TaskSwitchingParams, trainer: Trainer, backbone: Backbone, codes: Sequence[Code]) -> TaskGraph:
    """The network at its initial weights. codes: of each task."""
    form = output_form(trainer.data)
    graph = TaskGraph(trainer.data.inputs)
    if form == "dense":
        _add_decoder(p, graph, trainer, backbone, codes)
    else:
        _add_conditioned_stages(p, graph, trainer, backbone, codes)
    return graph


def _styles(
    p: TaskSwitchingParams, trainer: Trainer, backbone: Backbone, codes: Sequence[Code]
) -> tuple[int, list[Operation]]:
    seed = trainer.rng("mapping").initial_seed()
    width = p.style_width or min(_FULL_WIDTH, backbone.place_channels[-1])
    return width, styles(codes, p.code_width, width, p.mapping_layers, seed, trainer.device)


def _add_conditioned_stages(
    p: TaskSwitchingParams, graph: TaskGraph, trainer: Trainer, backbone: Backbone, codes: Sequence[Code]
) -> None:
    """AdaIN between the last stages, which run once a task from the first AdaIN on."""
    data, channels = trainer.data, channels_of(trainer.data)
    width, style = _styles(p, trainer, backbone, codes)
    widest = data.task_names[channels.index(max(channels))]
    output = _Output(trainer.head(widest), channels)
    norms = {
        place: conditioned(
            "adain",
            trainer.rng(f"place/{place}").initial_seed(),
            trainer.device,
            style=width,
            channels=backbone.place_channels[place],
        )
        for place in conditioned_places(backbone, p.conditioned_places)
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


def _add_decoder(
    p: TaskSwitchingParams, graph: TaskGraph, trainer: Trainer, backbone: Backbone, codes: Sequence[Code]
) -> None:
    """A U-Net decoder over the unconditioned encoder, conditioned throughout."""
    data, channels = trainer.data, channels_of(trainer.data)
    width, style = _styles(p, trainer, backbone, codes)
    widths = decoder_widths(backbone)

    def convolution(name: str, reads: int, gives: int, kernel: int) -> Operation:
        seed = trainer.rng(f"decoder/{name}").initial_seed()
        form = {"style": width, "reads": reads, "channels": gives, "kernel": kernel}
        return conditioned("convolution", seed, trainer.device, **form)

    sources = backbone.place_channels[::-1]
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


def channels_of(data: DatasetSpec) -> list[int]:
    """Channels that each task reads of the shared output."""
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


@torch.no_grad()
def likeness(graph: TaskGraph, tasks: Sequence[str]) -> Tensor:
    """Cosine of the norms of every two tasks, (gamma - 1, beta) of all places: float [T, T]."""
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
