"""The control of every search: an architecture drawn at random from the method's own space, of the size that it found.

A search that does not beat it has found nothing. Spec: measurement 4c: the nearest of `n_draws` draws in `active[all]`
(parameters) and `macs_joint`; a deviation above 5 % is flagged. The drawn architecture is trained like the found one:
same final training, same number of draws k.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from datasets.errors import UsageError

if TYPE_CHECKING:
    import torch

    from methods.contracts import Trainer

A = TypeVar("A")
A_co = TypeVar("A_co", covariant=True)
N_DRAWS = 1000
AMBER_DEVIATION = 0.05


@dataclasses.dataclass(frozen=True)
class ArchitectureSize:
    """parameters: active[all]. macs: macs_joint, or macs_sum where tasks have their own images."""

    parameters: int
    macs: int


class ArchitectureSpace(Protocol[A]):
    """What a search method offers for its control: draws from its space, and their sizes.

    `size` must be cheap: a sum over a cost table, no network built.
    """

    def draw(self, rng: torch.Generator) -> A:
        """A random architecture, from the distribution that the method states."""

    def size(self, architecture: A) -> ArchitectureSize:
        """Its size, equal to what the deployed network will measure."""


@dataclasses.dataclass(frozen=True)
class RandomArchitecture(Generic[A_co]):
    """A draw. deviation: the larger of the relative differences from the target, in parameters and in MACs."""

    architecture: A_co
    size: ArchitectureSize
    deviation: float


def deviation(size: ArchitectureSize, target: ArchitectureSize) -> float:
    """The larger of the relative differences from a target, in parameters and in MACs."""
    return max(abs(size.parameters - target.parameters) / target.parameters, abs(size.macs - target.macs) / target.macs)


def tell_deviation(trainer: Trainer, sentence: str, missed: float) -> None:
    """Tell how far a control is from the size of its search, and flag what is too far. missed: relative; sentence: of
    the flag, with {} for the percentage.
    """
    trainer.fact("deviation from the size asked for", 100 * missed, "percent")
    if missed > AMBER_DEVIATION:
        trainer.flag(sentence.format(f"{100 * missed:.1f} %"))


def random_architecture(
    space: ArchitectureSpace[A], target: ArchitectureSize, rng: torch.Generator, n_draws: int = N_DRAWS
) -> RandomArchitecture[A]:
    """The nearest in size to `target` of `n_draws` draws; the earliest on ties.

    Raises UsageError for a target that is not positive.
    """
    if target.parameters <= 0 or target.macs <= 0:
        raise UsageError(f"A random architecture needs a size to match; got {target}.")
    best: RandomArchitecture[A] | None = None
    for _ in range(n_draws):
        architecture = space.draw(rng)
        size = space.size(architecture)
        missed = deviation(size, target)
        if best is None or missed < best.deviation:
            best = RandomArchitecture(architecture, size, missed)
    if best is None:
        raise UsageError(f"n_draws is {n_draws}; expected at least 1.")
    return best
