"""One learnable threshold: what is below it is 0, and what is above it shrinks by it (AdapMTL).

Symbols: s a scalar, sigmoid(s) the threshold; a layer runs with sign(w) ReLU(|w| - sigmoid(s)) in place of w.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from methods.graph.task_graph import TaskGraph
from methods.sparsity import Masks, n_kept


def soft(weight: Tensor, s: Tensor) -> Tensor:
    """sign(w) ReLU(|w| - sigmoid(s)), with gradients to both."""
    return weight.sign() * (weight.abs() - s.sigmoid()).relu()


class SoftThresholdNetwork(nn.Module):
    """A graph whose prunable weights pass a soft threshold. `network(images, tasks)` as graphs.

    weights: W. target: number of them that is to be kept. While there are no more, s has no gradient, and its optimizer
    leaves it alone; the buffer `reached` tells.
    """

    reached: Tensor

    def __init__(self, graph: TaskGraph, weights: Sequence[nn.Parameter], target: int, start: float) -> None:
        super().__init__()
        self.network, self.target = graph.network(), target
        names = {id(parameter): name for name, parameter in self.network.named_parameters()}
        self.weights = {names[id(weight)]: weight for weight in weights}
        device = weights[0].device
        self.s = nn.Parameter(torch.tensor(start, device=device))
        self.register_buffer("reached", torch.zeros((), dtype=torch.bool, device=device))
        self.look()

    def forward(self, images: Mapping[str, Tensor], tasks: Sequence[str]) -> dict[str, Tensor]:
        """images: {input: float [B, C, H, W]}; gives {task: prediction}."""
        s = self.s.detach() if bool(self.reached) else self.s
        values = {name: soft(weight, s) for name, weight in self.weights.items()}
        predictions: dict[str, Tensor] = functional_call(self.network, values, (images, tasks))
        return predictions

    @property
    @torch.no_grad()
    def masks(self) -> Masks:
        """What is above the threshold, in the order of W."""
        return [weight.abs() > self.s.sigmoid() for weight in self.weights.values()]

    @torch.no_grad()
    def look(self) -> None:
        """See whether as few weights are kept as are wanted."""
        self.reached.fill_(n_kept(self.masks) <= self.target)

    @torch.no_grad()
    def deploy(self) -> None:
        """Give the graph the weights that it ran with."""
        for weight in self.weights.values():
            weight.copy_(soft(weight, self.s))
