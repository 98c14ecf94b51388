"""The weights of each network that survive, and one sparse network of a group (dmo 2, steps 7 and 8).

W, n and masks as in `methods.sparsity`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from methods.dmo.parameters import MergeRule, PruneScope
from methods.sparsity import Masks, largest, n_kept, n_survivors, union_of


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
        chosen = largest(flat, n_survivors(q, flat.numel())).split([weight.numel() for weight in weights])
        masks = [mask.view(weight.shape) for mask, weight in zip(chosen, weights, strict=True)]
    else:
        masks = [largest(w.abs().flatten(), n_survivors(q, w.numel())).view(w.shape) for w in weights]
    n_floored = 0
    for number, (mask, weight) in enumerate(zip(masks, weights, strict=True)):
        least = min(layer_floor, weight.numel())
        if int(mask.sum()) < least:
            masks[number] = largest(weight.abs().flatten(), least).view(weight.shape)
            n_floored += 1
    return Survivors(masks, n_floored)


def n_union(masks: Sequence[Masks]) -> int:
    """Weights that at least one of several networks keeps."""
    return n_kept(union_of(masks))


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
