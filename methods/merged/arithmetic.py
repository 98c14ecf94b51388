"""Arithmetic on the weights of single-task networks.

Symbols: T tasks; theta_0 the weights that all networks start from, theta_t those of task t, tau_t = theta_t - theta_0
its task vector; lambda a coefficient. Weights are held as {name: tensor}; sums are taken in float64. No buffer is among
them: arithmetic on running variances gives negative ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from methods.merged.parameters import Disjoint, Trim

Weights = dict[str, Tensor]


@dataclasses.dataclass(frozen=True)
class TaskVectors:
    """theta_0 and the theta_t, as tensors that are read and never changed. Raises ValueError for other names."""

    start: Mapping[str, Tensor]
    trained: Sequence[Mapping[str, Tensor]]

    def __post_init__(self) -> None:
        for weights in self.trained:
            if list(weights) != list(self.start):
                odd = sorted(weights.keys() ^ self.start.keys())
                raise ValueError(f"task vectors need the same weights of every network; not in all: {odd[:3]}")

    def tau(self, name: str) -> Tensor:
        """One tensor of all the tau_t: float64 [T, ...]."""
        return torch.stack([weights[name].double() - self.start[name].double() for weights in self.trained])


def average(vectors: TaskVectors) -> Weights:
    """mean_t theta_t, float64; of one network its own weights, without rounding."""
    return {name: torch.stack([w[name].double() for w in vectors.trained]).mean(0) for name in vectors.start}


def summed(vectors: TaskVectors) -> Weights:
    """sum_t tau_t, float64: what lambda scales in task arithmetic."""
    return {name: vectors.tau(name).sum(0) for name in vectors.start}


def along(start: Mapping[str, Tensor], direction: Mapping[str, Tensor], coefficient: float) -> Weights:
    """theta_0 + lambda * direction, float64."""
    return {name: theta.double() + coefficient * direction[name] for name, theta in start.items()}


def ties(vectors: TaskVectors, density: float, disjoint: Disjoint = "mean", trim: Trim = "global") -> Weights:
    """The merged task vector of TIES, float64: trim each tau_t, elect a sign for each weight, merge what has that sign.

    Where the trimmed tau_t sum to 0, the sign of most other weights is elected; where there is no such majority either,
    nothing is added.
    """
    kept = [_kept(vectors, t, density, trim) for t in range(len(vectors.trained))]

    def trimmed(name: str) -> Tensor:
        return vectors.tau(name) * torch.stack([masks[name] for masks in kept])

    signs = {name: trimmed(name).sum(0).sign() for name in vectors.start}
    majority = torch.stack([sign.sum() for sign in signs.values()]).sum().sign()
    merged = {}
    for name, sign in signs.items():
        tau = trimmed(name)
        agrees = tau.sign() == torch.where(sign == 0, majority, sign)
        merged[name] = (tau * agrees).sum(0)
        if disjoint == "mean":
            merged[name] /= agrees.sum(0).clamp(min=1)
    return merged


def _kept(vectors: TaskVectors, t: int, density: float, trim: Trim) -> dict[str, Tensor]:
    """Which entries of tau_t are kept: {name: bool [...]}."""
    theta = vectors.trained[t]
    sizes = {name: (theta[name].double() - start.double()).abs().flatten() for name, start in vectors.start.items()}
    if trim == "global":
        whole = largest(torch.cat(list(sizes.values())), density)
        masks = whole.split([len(size) for size in sizes.values()])
    else:
        masks = tuple(largest(size, density) for size in sizes.values())
    return {name: mask.view(theta[name].shape) for name, mask in zip(sizes, masks, strict=True)}


def largest(magnitudes: Tensor, density: float) -> Tensor:
    """bool [n] with exactly max(1, round(density n)) True: the largest, of equal ones the first. A threshold would keep
    one more, and all that equal it.
    """
    order = torch.sort(magnitudes, descending=True, stable=True).indices
    mask = torch.zeros_like(magnitudes, dtype=torch.bool)
    mask[order[: max(1, round(density * len(magnitudes)))]] = True
    return mask
