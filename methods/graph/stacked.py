"""Modules of several tasks that share every weight but those of norms, as one module on one batch.

K tasks that run one small layer each pay K times what a call costs beside its arithmetic. Here the batches of all tasks
lie one behind the other, so that a layer is called once; only batch norms take the parts one by one, since statistics
are each task's own.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

T = TypeVar("T")


class StackedNorm(nn.Module):
    """The norms of K tasks, each on its part of the batch."""

    def __init__(self, norms: Sequence[nn.Module]) -> None:
        super().__init__()
        self.norms = list(norms)  # a plain list: they belong to their tasks' modules, whose mode and device they follow

    def forward(self, x: Tensor) -> Tensor:
        """x: float [K B, ...], the batches of all tasks in their order."""
        parts = x.chunk(len(self.norms))
        return torch.cat([norm(part) for norm, part in zip(self.norms, parts, strict=True)])


def stacked(like: T, modules: Sequence[nn.Module]) -> T:
    """A copy of `like` for batches [K B, ...] whose part k runs as through `modules[k]`.

    like: holds the parts of `modules[0]`. modules: equal but for their batch norms. The copy shares every weight,
    buffer and norm with them, so it is made anew after they were moved.
    """
    first = modules[0]
    rows = zip(*(module.modules() for module in modules), strict=True)
    kept: dict[int, object] = {id(tensor): tensor for tensor in (*first.parameters(), *first.buffers())}
    kept |= {id(row[0]): StackedNorm(row) for row in rows if isinstance(row[0], _NormBase)}
    return copy.deepcopy(like, kept)
