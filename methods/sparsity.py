"""Weights that are pruned: which ones can be, which are kept, and what is left to count (dmo 2 and 5).

W: the weights of all convolutions and linear layers of a backbone, n of them; a mask is a list of bool tensors with
their shapes, True = survives. Masks are unstructured: stored as zeros they save neither memory nor time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from methods.figures import Figure, Heatmap
from methods.graph.copies import copied
from methods.graph.cost import Shape, node_costs
from methods.graph.operations import Operation
from methods.graph.task_graph import Node, TaskGraph

if TYPE_CHECKING:
    from methods.contracts import Trainer

Masks = list[Tensor]


# What can be pruned


def prunable(operations: Iterable[Operation]) -> dict[str, nn.Parameter]:
    """W by name, in the order of the network; tied weights once. Biases, norms and heads are not in it."""
    found: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for operation in operations:
        config: Mapping[str, object] = operation.config
        place = f"{config['part']} {config['index']}" if "index" in config else str(config.get("part", operation.kind))
        for name, module in operation.module.named_modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)) and id(module.weight) not in seen:
                seen.add(id(module.weight))
                found[f"{place} {name}".strip()] = cast(nn.Parameter, module.weight)
    return found


def with_masks(operation: Operation) -> Operation:
    """The operation, telling that zeros of its prunable weights are pruned (measurement 2)."""
    layers = operation.module.named_modules()
    names = [f"{name}.weight".lstrip(".") for name, module in layers if isinstance(module, (nn.Conv2d, nn.Linear))]
    return dataclasses.replace(operation, masks={name: name for name in names})


# What is kept


def n_survivors(q: float, n: int) -> int:
    """k = max(1, round(q n))."""
    return max(1, round(q * n))


def largest(values: Tensor, k: int) -> Tensor:
    """bool [n] with exactly k True: the k largest, of equal ones the first. values: [n]; k: 1 to n."""
    threshold = values.kthvalue(values.numel() - k + 1).values
    mask = values > threshold
    ties = (values == threshold).nonzero().flatten()
    mask[ties[: k - int(mask.sum())]] = True
    return mask


def union_of(masks: Sequence[Masks]) -> Masks:
    """What at least one of several masks keeps."""
    return [torch.stack(kept).any(0) for kept in zip(*masks, strict=True)]


def n_kept(masks: Masks) -> int:
    """Weights that a mask keeps."""
    return sum(int(mask.sum()) for mask in masks)


def fractions(masks: Masks) -> list[float]:
    """The kept share of each tensor."""
    return [float(mask.double().mean()) for mask in masks]


def kept_figure(title: str, rows: Mapping[str, Sequence[float]], layers: Sequence[str]) -> Figure:
    """The fraction of every layer's weights that is kept. rows: {network or set: fraction by layer}."""
    panel = Heatmap(
        title=title,
        rows=tuple(rows),
        columns=tuple(layers),
        values=tuple(tuple(map(float, row)) for row in rows.values()),
        row_title="network",
        column_title="layer",
        value_title="fraction of weights kept",
        low=0.0,
        high=1.0,
    )
    return Figure(title="What is kept of each layer", panels=(panel,))


# What is counted


def n_nonzero(graph: TaskGraph, masks: Masks) -> int:
    """nnz(M) + all parameters that are not prunable: the dense count without pruned weights."""
    pruned = sum(mask.numel() for mask in masks) - n_kept(masks)
    return sum(parameter.numel() for parameter in graph.parameters()) - pruned


def tell_counts(trainer: Trainer, graphs: Sequence[TaskGraph], kept: Sequence[Masks], in_chans: int) -> None:
    """Report what is stored and what of it is not zero, in parameters and in MACs, and the size of the masks (dmo 5).
    kept: the masks of each graph.
    """
    trainer.fact("parameters, dense", sum(p.numel() for graph in graphs for p in graph.parameters()))
    nonzero = [n_nonzero(graph, masks) for graph, masks in zip(graphs, kept, strict=True)]
    trainer.fact("parameters, not zero", sum(nonzero))
    trainer.fact("bits of the masks", sum(mask.numel() for masks in kept for mask in masks))
    shape: Shape = (1, in_chans, *trainer.data.native_size)
    macs = [macs_nonzero(graph, dict.fromkeys(graph.inputs, shape)) for graph in graphs]
    trainer.fact("MACs, dense", sum(dense for dense, _ in macs))
    trainer.fact("MACs, not zero", sum(left for _, left in macs))


@torch.no_grad()
def macs_nonzero(graph: TaskGraph, inputs: Mapping[str, Shape]) -> tuple[int, int]:
    """(dense, nonzero) multiply-accumulates of all nodes at batch size 1: those of each convolution and linear layer
    times the fraction of its weights that is not 0. What multiplies no weight (attention), and weights that a module
    uses without calling their layer, count in full.
    """
    costs = node_costs(graph, inputs)
    dense = sum(cost.macs for cost in costs.values())
    shapes = {**inputs, **{name: cost.output for name, cost in costs.items()}}
    saved = sum(_saved(node, [shapes[value.name] for value in node.inputs]) for node in graph.reachable())
    return dense, dense - round(saved)


def _saved(node: Node, shapes: Sequence[Shape]) -> float:
    """MACs of a node that multiply a zero weight."""
    zero = {
        name: 1 - int(torch.count_nonzero(part.weight)) / part.weight.numel()
        for name, part in node.module.named_modules()
        if isinstance(part, (nn.Conv2d, nn.Linear))
    }
    if not any(zero.values()):
        return 0.0
    saved = 0.0

    def watch(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def look(module: nn.Module, given: object, output: Tensor) -> None:
            nonlocal saved
            saved += zero[name] * output.numel() * module.get_parameter("weight")[0].numel()

        return look

    skeleton = copied(node.module).to("meta").eval()
    for name in zero:
        skeleton.get_submodule(name).register_forward_hook(watch(name))
    skeleton(*(torch.empty(shape, device="meta") for shape in shapes))
    return saved
