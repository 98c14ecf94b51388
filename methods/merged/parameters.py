"""The parameters of merging."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from methods.parameters import MethodParams

Rule = Literal["average", "task_arithmetic", "ties"]
Disjoint = Literal["mean", "sum"]
Trim = Literal["global", "tensor"]
_PUBLISHED_SURGERY_STEPS = 1000  # third party


class MergedParams(MethodParams):
    """The parameters of merging. tau_t = theta_t - theta_0; lambda scales what the rule makes of them."""

    rule: Rule = Field(
        default="average",
        description="`average`: the mean of the single-task weights; `task_arithmetic`: theta_0 + lambda times the sum "
        "of the tau_t; `ties`: the tau_t trimmed, one sign elected for each weight, entries of that sign merged",
    )
    coefficient: Annotated[float, Field(gt=0)] | Literal["select"] | None = Field(
        default=None,
        description="lambda of task_arithmetic and ties; null: 1/T for task_arithmetic, 1 for ties; `select`: the best "
        "of .1, .2, .., 1 on select",
    )
    density: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.2, description="ties: share of the entries of each tau_t that are kept, the largest ones"
    )
    disjoint: Disjoint = Field(default="mean", description="ties: how entries of the elected sign are merged")
    trim: Trim = Field(default="global", description="ties: entries are ranked over the whole tau_t, or in each tensor")
    heads: Literal["own", "retrained"] = Field(
        default="retrained",
        description="`own`: those of the single-task networks; `retrained`: fresh ones on the frozen merged backbone",
    )
    surgery_rank: Annotated[int, Field(ge=0)] = Field(
        default=0, description="r, rank of the correction of the features of each task; 0: none"
    )
    surgery_steps: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="steps that train the corrections; null: 1,000, but no more than the budget's"
    )
    finetune: bool = Field(
        default=False, description="train everything jointly for the budget's steps, from the merged weights"
    )

    @model_validator(mode="after")
    def _what_belongs_together(self) -> MergedParams:
        if self.rule == "average" and self.coefficient is not None:
            raise ValueError(
                f"coefficient is {self.coefficient!r} under rule: average, which has none; use rule: task_arithmetic"
            )
        for name in ("density", "disjoint", "trim"):
            if self.rule != "ties" and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is {getattr(self, name)!r} under rule: {self.rule}; it is read under ties")
        if self.surgery_rank == 0 and self.surgery_steps is not None:
            raise ValueError(f"surgery_steps is {self.surgery_steps} with surgery_rank 0; give surgery_rank, e.g. 16")
        if self.finetune and self.heads != "own":
            raise ValueError("finetune goes on with the single-task networks' heads; set heads: own")
        return self

    def n_surgery_steps(self, budget: int) -> int:
        """Steps that train the corrections; by default no weight gets more updates than those of other rows."""
        return min(_PUBLISHED_SURGERY_STEPS, budget) if self.surgery_steps is None else self.surgery_steps

    def fixed_coefficient(self, n_tasks: int) -> float:
        """Lambda where it is no choice. n_tasks: T."""
        if isinstance(self.coefficient, float):
            return self.coefficient
        return 1 / n_tasks if self.rule == "task_arithmetic" else 1.0
