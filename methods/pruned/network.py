"""A network that is trained under masks: pruned weights are 0 after every step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from methods.contracts import Trainer
from methods.graph.task_graph import TaskGraph
from methods.plain import body_of, graph_of
from methods.sparsity import Masks, prunable, with_masks


def shared_graph(trainer: Trainer) -> tuple[TaskGraph, dict[str, nn.Parameter]]:
    """The graph of hard sharing, whose zeros are declared as pruned, with initial weights; and W by name."""
    body = [with_masks(operation) for operation in body_of(trainer.backbone())]
    return graph_of(trainer.data, trainer.data.task_names, body, trainer.head), prunable(body)


class MaskedNetwork(nn.Module):
    """A graph and the masks of its prunable weights. `network(images, tasks)` as graphs.

    weights: W; masks: M by position. Masks are buffers, so that a resumed training goes on with them.
    """

    def __init__(self, graph: TaskGraph, weights: Sequence[nn.Parameter], masks: Masks) -> None:
        super().__init__()
        self.network = graph.network()
        self.weights = list(weights)
        for number, (weight, mask) in enumerate(zip(weights, masks, strict=True)):
            self.register_buffer(f"mask_{number}", mask.to(weight.device, copy=True))
        self.prune()

    def forward(self, images: Mapping[str, Tensor], tasks: Sequence[str]) -> dict[str, Tensor]:
        """images: {input: float [B, C, H, W]}; gives {task: prediction}."""
        predictions: dict[str, Tensor] = self.network(images, tasks)
        return predictions

    @property
    def masks(self) -> Masks:
        """M by position."""
        return [self.get_buffer(f"mask_{number}") for number in range(len(self.weights))]

    @torch.no_grad()
    def prune(self) -> None:
        """Set what is pruned to 0: momentum and weight decay move it in every step (S6)."""
        for weight, mask in zip(self.weights, self.masks, strict=True):
            weight.masked_fill_(~mask, 0.0)
