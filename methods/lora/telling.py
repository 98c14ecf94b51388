"""What is said of low-rank updates: notes for a plan; after the training counts, facts and the picture."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from methods.backbones.backbone import Backbone
from methods.contracts import Budget, Trainer
from methods.figures import Figure, Heatmap
from methods.graph.cost import Shape, node_costs
from methods.graph.task_graph import TaskGraph
from methods.lora.network import LowRankNetwork
from methods.lora.parameters import LoraParams
from methods.lora.places import require_places, share_covered
from methods.plain import plain_graph


def plan_notes(p: LoraParams, backbone: Backbone, budget: Budget, *, joint: bool) -> list[str]:
    """What a plan says of a cell. Raises UsageError where the backbone cannot have these updates."""
    places, notes = require_places(backbone, p), []
    if joint:
        notes.append(
            f"base: one network trained on all tasks for {budget.steps} steps, then its updates for {budget.steps}; "
            "hard_sharing with steps_factor 2 costs as much"
        )
    elif backbone.from_scratch:
        notes.append("lora-scratch: the frozen base has random weights; use base: joint, or pretrained weights")
    whole = len(places.blocks) - len(places.cut)
    if whole:
        notes.append(f"the last {whole} blocks run whole for every task: they are not cut into sub-layers")
    grouped = [m for m in backbone.module().modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    if grouped:
        notes.append(
            f"no updates of {len(grouped)} grouped convolutions; {share_covered(backbone, places, p):.0%} of the "
            "weights of convolutions and linear layers have an update or are trained whole"
        )
    if p.recipe == "published":
        notes.append("published recipe: AdamW at 0.0005; steps, batch size and loss weights are the cell's")
    return notes


def tell(
    trainer: Trainer,
    network: LowRankNetwork,
    graph: TaskGraph,
    deployed: TaskGraph,
    frozen: Mapping[str, Tensor],
    p: LoraParams,
) -> None:
    """Facts, the array of norms and the picture. graph: as trained; frozen: {parameter of the backbone: its start}."""
    groups = {group.name: sum(q.numel() for q in group.parameters) for group in network.groups(graph, p)}
    trainer.fact("trainable parameters", sum(groups.values()))
    trainer.fact("trainable parameters without heads", groups["backbone"] + groups["added"])
    trainer.fact("parameters that differ from the base", n_changed(network, deployed, frozen))
    one, together = macs_in_backbones(trainer, network, deployed)
    trainer.fact("MACs of one task", one, "backbones")
    trainer.fact("MACs of all tasks", together, "backbones")
    norms = network.norms()
    values = [[np.nan if value is None else value for value in row] for row in norms.values()]
    trainer.artifact("norms of updates", np.array(values))  # float64 [1 + T, layers]
    trainer.figure("updates", norms_figure(norms, network.layers()))


@torch.no_grad()
def n_changed(network: LowRankNetwork, deployed: TaskGraph, frozen: Mapping[str, Tensor]) -> int:
    """Numbers of the deployed network without heads that the base does not hold: updates that are operations, and
    numbers of the backbone that are not those at the start.
    """
    found = sum(q.numel() for q in deployed.parameters("added"))
    for name, weight in network.backbone.module().named_parameters():
        update = network.merged().get(name.removesuffix(".weight"))
        now = weight if update is None else weight + update.delta()
        found += int(torch.count_nonzero(now != frozen[name]))
    return found


def macs_in_backbones(trainer: Trainer, network: LowRankNetwork, deployed: TaskGraph) -> tuple[float, float]:
    """(mean over tasks asked for alone, all tasks for one image or for an image each) multiply-accumulates without
    heads, in those of one pass of the plain backbone.
    """
    data, backbone = trainer.data, network.backbone
    shape: Shape = (1, backbone.config.in_chans, *data.native_size)
    inputs = dict.fromkeys(data.inputs, shape)

    def macs(graph: TaskGraph, *tasks: str) -> int:
        costs = node_costs(graph, inputs)
        nodes = graph.reachable(tasks or None)
        return sum(costs[node.name].macs for node in nodes if node.operation.origin != "heads")

    plain = macs(plain_graph(data, data.task_names[:1], backbone, network.heads.__getitem__))
    each = [macs(deployed, task) / plain for task in data.task_names]
    return sum(each) / len(each), macs(deployed) / plain


def norms_figure(norms: Mapping[str, list[float | None]], layers: list[str]) -> Figure:
    """Norms of the updates, relative to the weights, by layer and task."""
    panel = Heatmap(
        title="after training",
        rows=tuple(norms),
        columns=tuple(name.replace(".module.", ".").replace(".inner.", ".") for name in layers),
        values=tuple(tuple(row) for row in norms.values()),
        row_title="update",
        column_title="layer",
        value_title="|s B A| / |W| (Frobenius)",
        low=0.0,
    )
    return Figure(title="How far low-rank updates move each layer", panels=(panel,))
