"""Which layers get a copy per task: the K of highest score, or those of a control."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
import torch

from methods.contracts import Trainer
from methods.control import ArchitectureSize, random_architecture, tell_deviation
from methods.recon.conflicts import Conflicts, FloatArray
from methods.recon.layers import Sizes
from methods.recon.parameters import ReconParams


def order_of(p: ReconParams, trainer: Trainer, n: int, found: Conflicts | None) -> list[int]:
    """Positions of all n layers in the order in which they would get copies. found: None without a search."""
    if found is not None:
        return ranking(found.excess if p.score == "excess" else found.rate)
    if p.select == "random_layers":
        drawn: list[int] = torch.randperm(n, generator=trainer.rng("layers")).tolist()
        return drawn
    return list(range(n)) if p.select == "first" else list(range(n))[::-1]


def ranking(scores: FloatArray) -> list[int]:
    """Positions by falling score, equal ones in the order of the network [official code]."""
    order: list[int] = np.argsort(-scores, kind="stable").tolist()
    return order


def cut(p: ReconParams, sizes: Sizes, order: Sequence[int]) -> list[int]:
    """The first K layers of an order: `top_k`, or as many as `budget` takes."""
    return list(order[: number_of(p, len(order)) if p.budget is None else _n_within(p.budget, sizes, order)])


def number_of(p: ReconParams, n: int) -> int:
    """K under `top_k`, of n layers."""
    return p.top_k if isinstance(p.top_k, int) else round(p.top_k * n)


def _n_within(budget: float, sizes: Sizes, order: Sequence[int]) -> int:
    """Up to the first layer whose copies no longer fit: what is taken are layers of highest score, none left out."""
    growth = sizes.growth(order)
    return sum(1 for _ in itertools.takewhile(lambda n: n / sizes.reference <= budget, growth)) - 1


@dataclasses.dataclass(frozen=True)
class LayerSets:
    """Sets of layers as `random_architecture` draws them: a random order, cut where the parameters are nearest to the
    target's.
    """

    sizes: Sizes
    target: int

    def draw(self, rng: torch.Generator) -> list[int]:
        """One of them, in the drawn order."""
        order = torch.randperm(len(self.sizes.layers), generator=rng).tolist()
        missed = [abs(n - self.target) for n in self.sizes.growth(order)]
        return order[: missed.index(min(missed))]

    def size(self, architecture: list[int]) -> ArchitectureSize:
        """Its size."""
        return self.sizes.size(architecture)


def of_equal_size(trainer: Trainer, sizes: Sizes, searched: Sequence[int]) -> list[int]:
    """The control: random layers of the size of the searched ones."""
    space = LayerSets(sizes, sizes.parameters(searched))
    drawn = random_architecture(space, sizes.size(searched), trainer.rng("layers"))
    tell_deviation(trainer, "The random layers are {} from the size that they should have.", drawn.deviation)
    if set(drawn.architecture) == set(searched):
        trainer.flag("The random layers are those that the search found: no control of it.")
    return drawn.architecture
