"""A frozen backbone with low-rank updates: the task graph that is trained, and the one that is deployed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from datasets.contracts import DatasetSpec
from methods.backbones.backbone import Backbone
from methods.backbones.sublayers import view
from methods.contracts import ParameterGroup, Trainer
from methods.graph.copies import copied
from methods.graph.norms import has_statistics
from methods.graph.operations import Operation
from methods.graph.task_graph import TaskGraph
from methods.lora.parameters import LoraParams, TaskPath
from methods.lora.places import Places, require_places, trained_whole
from methods.lora.updates import Adapted, LowRank
from methods.lora.walk import Walk

SHARED = "shared"  # the row of shared updates


@dataclasses.dataclass(frozen=True)
class LowRankNetwork:
    """A frozen backbone, its updates and the heads.

    shared: {layer: update}. own: {task: {layer: update}}. trained: parameters of the backbone that are not frozen.
    """

    data: DatasetSpec
    backbone: Backbone
    heads: Mapping[str, Operation]
    places: Places
    path: TaskPath
    shared: Mapping[str, LowRank]
    own: Mapping[str, Mapping[str, LowRank]]
    trained: Sequence[nn.Parameter]

    def training_graph(self) -> TaskGraph:
        """Updates beside the weights that they update; dropout and stochastic depth act."""
        inside = {name: update for name, update in self.shared.items() if name not in self.places.apart}
        return Walk(self, _changed(self.backbone, inside, Adapted), is_deployed=False).graph()

    @torch.no_grad()
    def deployed_graph(self, trained: TaskGraph) -> TaskGraph:
        """Shared updates in the weights, but where W x is read too. trained: whose norm statistics it takes."""
        graph = Walk(self, _changed(self.backbone, self.merged(), _merged), is_deployed=True).graph()
        take_statistics(trained, graph)
        return graph

    def merged(self) -> dict[str, LowRank]:
        """{layer: shared update} of those that are deployed in the weights."""
        return {name: update for name, update in self.shared.items() if not self.kept_apart(name)}

    def kept_apart(self, layer: str) -> bool:
        """Whether a shared update is deployed as an operation by itself."""
        return layer in self.places.apart and self.path == "side"

    def groups(self, graph: TaskGraph, p: LoraParams) -> list[ParameterGroup]:
        """What is trained of the training graph; weights under updates are in no group."""
        read = {id(q) for q in graph.parameters()}
        return [
            ParameterGroup("backbone", [q for q in self.trained if id(q) in read], p.optimizer),
            ParameterGroup("added", graph.parameters("added"), p.optimizer),
            ParameterGroup("heads", graph.parameters("heads"), p.optimizer),
        ]

    @torch.no_grad()
    def norms(self) -> dict[str, list[float | None]]:
        """{`shared`, or a task: |s B A| / |W| (Frobenius) of each layer in the order of `layers`; None without one}."""
        body = self.backbone.module()
        return {
            row: [_relative(updates.get(name), body.get_submodule(name)) for name in self.layers()]
            for row, updates in {SHARED: self.shared, **self.own}.items()
        }

    def layers(self) -> list[str]:
        """Names of the layers with an update, in the backbone's order."""
        updated = {*self.places.shared, *self.places.own}
        return [name for name, _ in self.backbone.module().named_modules() if name in updated]


def low_rank_network(
    trainer: Trainer, backbone: Backbone, heads: Mapping[str, Operation], p: LoraParams
) -> LowRankNetwork:
    """The network at its start, where every update is 0. Raises UsageError where the backbone cannot have them."""
    places, body = require_places(backbone, p), backbone.module()

    def updates(names: Sequence[str], rank: int, scale: float, stream: str) -> dict[str, LowRank]:
        generator = trainer.rng(f"updates/{stream}")
        made = {name: LowRank(body.get_submodule(name), rank, scale, p.dropout) for name in names}
        for update in made.values():
            update.start(generator)
        return made

    tasks = trainer.data.task_names
    return LowRankNetwork(
        data=trainer.data,
        backbone=backbone,
        heads=heads,
        places=places,
        path=p.task_path,
        shared=updates(places.shared, p.rank, p.scale, "of all tasks"),
        own={task: updates(places.own, p.task_rank, p.task_scale, f"task {task}") for task in tasks},
        trained=trained_whole(backbone, p),
    )


def _changed(
    backbone: Backbone, updates: Mapping[str, LowRank], change: Callable[[nn.Module, LowRank], nn.Module]
) -> Backbone:
    """A copy that shares every parameter and has changed layers in place of those with the updates."""
    changed = copied(backbone, backbone.module().parameters())
    body = changed.module()
    for name, update in updates.items():
        owner, _, attribute = name.rpartition(".")
        # `tail` itself may be the layer; the module over all parts is made anew at every call.
        setattr(body.get_submodule(owner) if owner else changed, attribute, change(body.get_submodule(name), update))
    return changed


def _merged(layer: nn.Module, update: LowRank) -> nn.Module:
    """The layer with W + s B A for W."""
    merged = view(layer)
    merged.weight = nn.Parameter(layer.get_parameter("weight") + update.delta())
    return merged


def _relative(update: LowRank | None, layer: nn.Module) -> float | None:
    if update is None:
        return None
    return float(update.delta().norm() / layer.get_parameter("weight").norm())


@torch.no_grad()
def take_statistics(source: TaskGraph, target: TaskGraph) -> None:
    """Give the norms of `target` the statistics that each task's norms have gathered in `source`, in the order of its
    path; both run the same norms.
    """
    for task in target.tasks:
        pairs = zip(_norms(source, task), _norms(target, task), strict=True)
        for gathered, mine in pairs:
            for theirs, own in zip(gathered.buffers(), mine.buffers(), strict=True):
                own.copy_(theirs)


def _norms(graph: TaskGraph, task: str) -> list[nn.Module]:
    return [part for node in graph.reachable([task]) for part in node.module.modules() if has_statistics(part)]
