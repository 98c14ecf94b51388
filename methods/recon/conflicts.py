"""The search: how often the gradients of two tasks conflict in each layer while the tasks are trained jointly."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from datasets.contracts import Batch, DatasetSpec
from datasets.kinds import get_kind
from methods.backbones.backbone import Backbone
from methods.contracts import Role, Stage, Trainer
from methods.graph.task_graph import GraphNetwork, TaskGraph
from methods.plain import body_of, parameter_groups, plain_graph, task_losses
from methods.recon.layers import Layer
from methods.recon.parameters import ReconParams

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def cosines(gradients: Sequence[Sequence[Tensor]]) -> Tensor:
    """cos(g_i, g_j) of one layer: float [T, T]. gradients: [task][parameter], together one vector a task.

    A zero gradient has cosine 0 with every other.
    """
    products = torch.zeros((), dtype=gradients[0][0].dtype, device=gradients[0][0].device)
    for of_tasks in zip(*gradients, strict=True):  # the product of joined vectors is the sum over their parts
        rows = torch.stack([gradient.flatten() for gradient in of_tasks])
        products = products + rows @ rows.T
    norms = products.diagonal().sqrt()
    scale = torch.outer(norms, norms)
    return torch.where(scale > 0, products / scale, 0.0)


def n_conflicts(gradients: Sequence[Sequence[Tensor]], severity: float) -> Tensor:
    """#{i < j: cos(g_i, g_j) < S} of one layer, int64 scalar on the device. gradients: as `cosines` takes them."""
    i, j = torch.triu_indices(len(gradients), len(gradients), 1, device=gradients[0][0].device)
    return (cosines(gradients)[i, j] < severity).sum()


class SearchNetwork(nn.Module):
    """Hard sharing, whose losses count conflicts besides. `network(images, tasks)` as graphs.

    conflicts: int64 [n], s^k so far. pairs: int64 scalar, pairs of tasks that were compared, both with a valid label.
    Both are buffers, so that a resumed search goes on with them.
    """

    conflicts: Tensor
    pairs: Tensor

    def __init__(
        self, data: DatasetSpec, graph: TaskGraph, layers: Sequence[Sequence[nn.Parameter]], severity: float
    ) -> None:
        super().__init__()
        self.network: GraphNetwork = graph.network()
        self.layers, self.severity = layers, severity
        self._losses = task_losses(data, self.network)
        self._kinds = {task.name: get_kind(task.kind) for task in data.tasks}
        device = layers[0][0].device
        self.register_buffer("conflicts", torch.zeros(len(layers), dtype=torch.int64, device=device))
        self.register_buffer("pairs", torch.zeros((), dtype=torch.int64, device=device))

    def forward(self, images: Mapping[str, Tensor], tasks: Sequence[str]) -> dict[str, Tensor]:
        """images: {input: float [B, C, H, W]}; gives {task: prediction}."""
        predictions: dict[str, Tensor] = self.network(images, tasks)
        return predictions

    def losses(self, batch: Batch, tasks: Sequence[str]) -> Mapping[str, Tensor]:
        """The losses of the tasks, after their conflicts were counted; all of it in float32 whatever the cell's
        precision: gradients would vanish in half of it, and products of gradients lose their sign.
        """
        with torch.autocast(self.pairs.device.type, enabled=False):
            losses = self._losses(batch, tasks)
            self._count(batch, losses)
        return losses

    def _count(self, batch: Batch, losses: Mapping[str, Tensor]) -> None:
        """One step: T backward passes over the graph that the trainer goes back through afterwards.

        A loss without a valid label has a zero gradient, which never conflicts; its pairs are not counted either.
        """
        flat = [parameter for layer in self.layers for parameter in layer]
        rows = [torch.autograd.grad(loss, flat, retain_graph=True, materialize_grads=True) for loss in losses.values()]
        start, found = 0, []
        for layer in self.layers:
            end = start + len(layer)
            found.append(n_conflicts([row[start:end] for row in rows], self.severity))
            start = end
        self.conflicts += torch.stack(found)
        labelled = self._n_labelled(batch, tuple(losses))
        self.pairs += labelled * (labelled - 1) // 2

    def _n_labelled(self, batch: Batch, tasks: Sequence[str]) -> int | Tensor:
        """How many of the tasks have a valid label in the batch; read from the device only where the loader does not
        tell, and then without waiting for it.
        """
        if batch.labelled is not None:
            return sum(task in batch.labelled for task in tasks)
        return torch.stack([self._kinds[task].valid(batch.targets[task]).any() for task in tasks]).sum()


@dataclasses.dataclass(frozen=True)
class Conflicts:
    """What the search has counted. n: int64 [n], conflicts of each layer; pairs: that were compared; chance: float
    [n], the rate at which independent random gradients conflict.
    """

    n: IntArray
    pairs: int
    chance: FloatArray

    @property
    def rate(self) -> FloatArray:
        """Share of the compared pairs that conflict: float [n], 0 where none was compared."""
        return self.n / max(1, self.pairs)

    @property
    def excess(self) -> FloatArray:
        """Rate beyond chance: float [n]."""
        return self.rate - self.chance


def chance(severity: float, sizes: Sequence[int]) -> FloatArray:
    """Phi(S sqrt(d)): how often independent random gradients of d elements have a cosine below S. float [n].

    Their cosine has mean 0 and variance 1 / d, and is close to normal.
    """
    return np.array([NormalDist().cdf(severity * math.sqrt(d)) for d in sizes])


def count_conflicts(p: ReconParams, trainer: Trainer, layers: Sequence[Layer]) -> Conflicts:
    """The search: joint training from the initial weights, its network thrown away. layers: of the cell's backbone."""
    data, backbone = trainer.data, trainer.backbone()
    graph = plain_graph(data, data.task_names, backbone, trainer.head)
    network = SearchNetwork(data, graph, parameters_of(backbone, layers), p.severity)
    trainer.fit(
        Stage(
            name="search",
            network=network,
            steps=p.search_steps(trainer.budget),
            role=Role.FIT,
            train=parameter_groups(graph),
            losses=network.losses,
            purpose="search",
            balanced=False,  # the paper's search is plain joint training
        )
    )
    return Conflicts(
        network.conflicts.cpu().numpy(), int(network.pairs), chance(p.severity, [layer.size for layer in layers])
    )


def parameters_of(backbone: Backbone, layers: Sequence[Layer]) -> list[list[nn.Parameter]]:
    """[layer]: its parameters in this backbone."""
    parts = body_of(backbone)
    return [[parts[layer.part].module.get_parameter(name) for name in layer.parameters] for layer in layers]
