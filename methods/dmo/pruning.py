"""The weights of each network that survive, and one sparse network of a group (dmo 2, steps 7 and 8).

W: the weights of all convolutions and linear layers of a backbone, n of them; a mask is a list of bool tensors with
their shapes, True = survives.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from methods.dmo.parameters import MergeRule, PruneScope
from methods.graph.operations import Operation

Masks = list[Tensor]


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


def n_survivors(q: float, n: int) -> int:
    """k = max(1, round(q n))."""
    return max(1, round(q * n))


@dataclasses.dataclass(frozen=True)
class Survivors:
    """masks: of W by position. n_floored: tensors that the layer floor gave weights."""

    masks: Masks
    n_floored: int

    @property
    def counts(self) -> list[int]:
        """Survivors of each tensor."""
        return [int(mask.sum()) for mask in self.masks]


@torch.no_grad()
def survivors(weights: Sequence[Tensor], q: float, scope: PruneScope, layer_floor: int) -> Survivors:
    """The largest weights in magnitude: exactly k of all, or of each tensor. Ties go to the lower index: a threshold
    would keep all of them.

    layer_floor: every tensor keeps at least this number of its largest weights, or all of them.
    """
    if scope == "global":
        flat = torch.cat([weight.abs().flatten() for weight in weights])
        chosen = _largest(flat, n_survivors(q, flat.numel())).split([weight.numel() for weight in weights])
        masks = [mask.view(weight.shape) for mask, weight in zip(chosen, weights, strict=True)]
    else:
        masks = [_largest(w.abs().flatten(), n_survivors(q, w.numel())).view(w.shape) for w in weights]
    n_floored = 0
    for number, (mask, weight) in enumerate(zip(masks, weights, strict=True)):
        least = min(layer_floor, weight.numel())
        if int(mask.sum()) < least:
            masks[number] = _largest(weight.abs().flatten(), least).view(weight.shape)
            n_floored += 1
    return Survivors(masks, n_floored)


def n_union(masks: Sequence[Masks]) -> int:
    """Weights that at least one of several networks keeps."""
    return sum(int(torch.stack(kept).any(0).sum()) for kept in zip(*masks, strict=True))


def _largest(magnitudes: Tensor, k: int) -> Tensor:
    """bool [n] with exactly k True: the k largest, of equal ones the first."""
    threshold = magnitudes.kthvalue(magnitudes.numel() - k + 1).values
    mask = magnitudes > threshold
    ties = (magnitudes == threshold).nonzero().flatten()
    mask[ties[: k - int(mask.sum())]] = True
    return mask


def hardest_last(members: Sequence[int], d: Sequence[float]) -> list[int]:
    """The tasks of a group by rising difficulty; of equally hard ones the first counts as the hardest."""
    return sorted(members, key=lambda t: (d[t], -t))


@torch.no_grad()
def merged_weights(
    weights: Sequence[Sequence[Tensor]], masks: Sequence[Masks], rule: MergeRule = "hardest"
) -> tuple[list[Tensor], Masks]:
    """(w_g, M_g): the union of the masks, and at each survivor the weight of the hardest task that keeps it, or the
    mean of those who do. weights, masks: of the group's tasks by rising difficulty.
    """
    merged, union = [], []
    for tensors, kept in zip(zip(*weights, strict=True), zip(*masks, strict=True), strict=True):
        value = torch.zeros_like(tensors[0])
        if rule == "hardest":
            for tensor, mask in zip(tensors, kept, strict=True):
                value = torch.where(mask, tensor, value)
        else:
            for tensor, mask in zip(tensors, kept, strict=True):
                value += tensor * mask
            value /= torch.stack(kept).sum(0).clamp(min=1)
        merged.append(value)
        union.append(torch.stack(kept).any(0))
    return merged, union
