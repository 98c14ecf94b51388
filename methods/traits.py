"""What a method is, in the few words that a table of all methods has room for."""

from __future__ import annotations

import dataclasses
from typing import Literal

Shared = Literal["all", "some", "none"]
Passes = Literal["1", "1 to T", "up to T", "T"]
Backbones = Literal["any", "maps", "maps with shortcuts", "blocks with shortcuts"]
Labels = Literal["any", "one form"]


@dataclasses.dataclass(frozen=True)
class Traits:
    """What a method shares, takes and costs for T tasks on one image, with its default parameters from random weights.

    weights, activations: how much of the backbone's every task reads.
    passes: of the backbone over an image, in the final network; `up to T` may be less than one.
    before, before_per_task: training before the final one is before + before_per_task * T budgets of the final one.
    size_parameter: dotted name of the parameter by which the network is made larger or smaller; empty if none is.
    backbones: on which it has a form: those whose features are maps, or with blocks that can be skipped.
    labels: which it takes together in one cell; one form: all of them per pixel, or all per image.
    What a method says elsewhere is not said here: its search space, its papers, whether every image needs all labels.
    """

    weights: Shared
    activations: Shared
    passes: Passes
    before: float = 0.0
    before_per_task: float = 0.0
    size_parameter: str = ""
    backbones: Backbones = "any"
    labels: Labels = "any"
