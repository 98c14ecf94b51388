"""The parameters of Recon."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from methods.contracts import Budget
from methods.parameters import MethodParams, Tuned

Granularity = Literal["layer", "block"]
ScoreRule = Literal["rate", "excess"]
Select = Literal["conflict", "random_layers", "random_parameters", "first", "last"]

_Number = Annotated[int, Field(ge=0, strict=True)]  # strict: 1.0 is no number of layers
_Share = Annotated[float, Field(gt=0, lt=1)]


class ReconParams(MethodParams):
    """The parameters of Recon. A layer is a module that owns parameters."""

    granularity: Granularity = Field(
        default="layer", description="what gets a copy per task: a layer, or a whole block (stem and tail count as one)"
    )
    severity: Annotated[float, Field(gt=-1, le=0), Tuned(-0.1, 0.0, log=False)] = Field(
        default=-0.02, description="S: gradients of two tasks conflict where their cosine is below it"
    )
    top_k: _Number | _Share = Field(
        default=0.6, description="layers that get a copy per task: a number, or a share of all of them"
    )
    budget: Annotated[float, Field(gt=1, allow_inf_nan=False)] | None = Field(
        default=None,
        description="in place of top_k: the first layers of the ranking whose copies fit, in parameters of the plain "
        "backbone (P_ref)",
    )
    search_fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.25, description="steps of the search as a multiple of the budget's"
    )
    score: ScoreRule = Field(
        default="rate",
        description="`rate`: share of the pairs that conflict; `excess`: what of it is beyond the rate at which random "
        "gradients of that many parameters do",
    )
    select: Select = Field(
        default="conflict",
        description="`conflict`: by score. Controls: `random_parameters` draws layers of the size that the search "
        "finds; without a search, `random_layers` draws as many, `first` and `last` take as many in the order of the "
        "network",
    )

    @property
    def searches(self) -> bool:
        """Whether conflicts are counted."""
        return self.select in ("conflict", "random_parameters")

    @property
    def is_random(self) -> bool:
        """Whether the layers are drawn."""
        return self.select in ("random_layers", "random_parameters")

    def search_steps(self, budget: Budget) -> int:
        """Steps of the search."""
        return max(1, round(self.search_fraction * budget.steps))

    @model_validator(mode="after")
    def _one_cut(self) -> ReconParams:
        if self.budget is not None and "top_k" in self.model_fields_set and self.top_k != _default_top_k():
            raise ValueError(f"budget {self.budget:g} takes the place of top_k {self.top_k:g}; give one of the two")
        return self


def _default_top_k() -> object:
    return ReconParams.model_fields["top_k"].default
