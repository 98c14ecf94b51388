"""The layers of TAPS: w_t = w + 1[s >= threshold] * delta for every convolution and linear layer of a frozen backbone.

Symbols as in `taps`: w a layer's weight, delta what a task adds to it, s the layer's score for that task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from datasets.contracts import DatasetSpec
from methods.backbones.backbone import Backbone
from methods.graph.copies import copied
from methods.graph.norms import norm_parameters
from methods.graph.operations import Operation
from methods.graph.task_graph import TaskGraph


class _Gate(torch.autograd.Function):
    """1[s >= threshold]; its gradient is handed to s as if it were s itself (straight-through)."""

    @staticmethod
    def forward(ctx: Any, score: Tensor, threshold: float) -> Tensor:
        """score: float [L]; returns float [L] of zeros and ones."""
        return (score >= threshold).to(score.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """The gradient as it comes."""
        return gradients[0], None


def layer_names(module: nn.Module) -> list[str]:
    """Names of the convolutions and linear layers, each once, in the module's order."""
    return [name for name, part in module.named_modules() if isinstance(part, (nn.Conv2d, nn.Linear))]


def body_graph(data: DatasetSpec, backbones: Sequence[Backbone], heads: Mapping[str, Operation]) -> TaskGraph:
    """A backbone and a head for each task. Parts with equal weights on equal inputs are one node.

    Parameters that a later task has for itself count as `added`.
    """
    graph = TaskGraph(data.inputs)
    known: set[int] = set()
    for task, backbone in zip(data.task_names, backbones, strict=True):
        parts = [backbone.stem_operation()]
        parts += [backbone.block_operation(index) for index in range(len(backbone.blocks))]
        parts.append(backbone.tail_operation())
        value = graph.input(data.input_of(task))
        for part in parts:
            is_new = bool(known) and any(id(p) not in known for p in part.module.parameters())
            value = graph.add(_as_added(part) if is_new else part, value)
        known |= {id(p) for p in backbone.module().parameters()}
        graph.output(task, graph.add(heads[task], value))
    return graph


def _as_added(operation: Operation) -> Operation:
    return Operation(operation.kind, operation.config, operation.module, "added")


class TaskWeights(nn.Module):
    """A frozen backbone that each task runs with weights, norms and a head of its own. `network(images, tasks)` as
    graphs.

    backbones: of each task, alike but for their norms (`base.copies`). heads: {task: operation}.
    scores: float [T, L], s of every task and layer. steps: a buffer with the optimizer steps made.
    """

    steps: Tensor

    def __init__(
        self,
        data: DatasetSpec,
        backbones: Sequence[Backbone],
        heads: Mapping[str, Operation],
        threshold: float,
        score_init: float,
    ) -> None:
        super().__init__()
        self.data, self.operations, self.threshold = data, dict(heads), threshold
        self.backbones = list(backbones)
        self.bodies = nn.ModuleList(backbone.module() for backbone in backbones)
        self.heads = nn.ModuleList(heads[task].module for task in data.task_names)
        self.layers = layer_names(self.bodies[0])
        self.base = [self.bodies[0].get_submodule(name).get_parameter("weight") for name in self.layers]
        self.deltas = nn.ModuleList(
            nn.ParameterList(nn.Parameter(torch.zeros_like(w)) for w in self.base) for _ in data.task_names
        )
        device = self.base[0].device
        shape = (len(data.task_names), len(self.layers))
        self.scores = nn.Parameter(torch.full(shape, score_init, device=device))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64, device=device))

    def forward(self, images: Mapping[str, Tensor], tasks: Sequence[str]) -> dict[str, Tensor]:
        """images: {input: float [B, C, H, W]}; gives {task: prediction}. A pass for every task."""
        found = {}
        for task in tasks:
            t = self.data.task_names.index(task)
            features = functional_call(self.bodies[t], self.weights(t), (images[self.data.input_of(task)],))
            found[task] = self.heads[t](features)
        return found

    def weights(self, t: int) -> dict[str, Tensor]:
        """{name of a layer's weight: w + 1[s >= threshold] * delta} of task t."""
        gates = cast(Tensor, _Gate.apply(self.scores[t], self.threshold)).unbind()
        deltas = cast(nn.ParameterList, self.deltas[t])
        return {
            f"{name}.weight": w + gate * delta
            for name, w, gate, delta in zip(self.layers, self.base, gates, deltas, strict=True)
        }

    @torch.no_grad()
    def count_step(self) -> None:
        """One more optimizer step was made."""
        self.steps += 1

    def sparsity(self) -> Tensor:
        """The mean of |s| over the layers of a task, summed over tasks: scalar."""
        return self.scores.abs().mean(1).sum()

    def active(self) -> Tensor:
        """bool [T, L] on the CPU: the layers whose weights are the task's own."""
        return (self.scores.detach() >= self.threshold).cpu()

    def norm_parameters(self) -> list[nn.Parameter]:
        """Weights and biases of all tasks' batch norms."""
        return norm_parameters(self.bodies)

    def parameters_with_base(self) -> int:
        """P + sum over tasks of their active layers and, but for the first, of their norms; without heads."""
        sizes = torch.tensor([w.numel() for w in self.base])
        norms = sum(p.numel() for p in self.norm_parameters()) // len(self.bodies)
        own = int((self.active() * sizes).sum())
        return sum(p.numel() for p in self.bodies[0].parameters()) + own + (len(self.bodies) - 1) * norms

    @torch.no_grad()
    def deployed(self) -> TaskGraph:
        """The network to deploy. Active layers hold w + delta; inactive ones share w, which stays one parameter."""
        active = self.active()
        kept = list(self.bodies.parameters())
        backbones = [copied(backbone, kept) for backbone in self.backbones]
        for t, backbone in enumerate(backbones):
            body, weights = backbone.module(), self.weights(t)
            for number, name in enumerate(self.layers):
                if active[t, number]:
                    body.get_submodule(name).weight = nn.Parameter(weights[f"{name}.weight"].clone())
        return body_graph(self.data, backbones, self.operations)
