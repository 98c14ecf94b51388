"""Parameters of the DAG search. Names and defaults: specification section 9."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from methods.contracts import Budget
from methods.graph.rules import BatchNormRule
from methods.operating import rate_of
from methods.parameters import MethodParams, Tuned

# Of a gate's logit over the search. Twice that of other logits, which start at 1/2: a gate of the chain goes from 2 to
# -2 to close, by a gradient whose sign changes. Largest change of a gate in 160 updates: .26 at 4, .47 at 8, .72 at 16.
GATE_MOVEMENT = 16.0

Score = Literal["contribution", "ratio", "magnitude", "random"]
Stop = Literal["budget", "first_bridge", "threshold"]
GateInit = Literal["zero", "chain"]
Aggregate = Literal["weighted_mean", "sum"]

Ratio = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]

# What `variant: recalled` puts back: the forms that are commonly attributed to the paper and that our defaults replace.
RECALLED: dict[str, Any] = {"aggregate": "sum", "gate_init": "zero"}
RECALLED_REDUCTION: dict[str, Any] = {"score": "ratio", "stop": "first_bridge"}


class SearchParams(MethodParams):
    """How gates and weights are trained in the search."""

    update: Literal["joint", "alternate", "gates_only"] = Field(
        default="joint",
        description="`joint`: gates and Theta together; `alternate`: Theta on fit and gates on arch in turn, half of "
        "the steps each; `gates_only`: gates, heads and alignments",
    )
    recompute: bool = Field(
        default=False,
        description="keep no activations of the edges' operations, but compute them again in the backward pass",
    )


class ReductionParams(MethodParams):
    """Which edges the reduction removes, and how many."""

    score: Score = Field(
        default="contribution", description="importance of an edge; `random` is the control of the search"
    )
    stop: Stop = Field(default="budget", description="when the reduction ends")
    budget_unit: Literal["edges", "union_params"] = Field(
        default="edges",
        description="`edges` keeps kappa inner edges a task; `union_params` cuts until all tasks together fit `budget`",
    )
    budget: Positive | None = Field(
        default=None,
        description="backbone and added parameters over P_ref, read under `budget_unit: union_params`",
    )
    max_reads: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="most read-ins, and most read-outs, that a task keeps; null sets no limit",
    )

    @model_validator(mode="after")
    def _budget_has_a_unit(self) -> ReductionParams:
        if (self.budget_unit == "union_params") != (self.budget is not None):
            raise ValueError("budget is the size that budget_unit: union_params cuts to; give both or neither")
        if self.stop != "budget" and (self.budget_unit != "edges" or self.max_reads is not None):
            raise ValueError(f"budget_unit and max_reads belong to stop: budget, not to stop: {self.stop}")
        if self.score == "random" and self.stop != "budget":
            raise ValueError(f"score: random draws within stop: budget, not within stop: {self.stop}")
        return self


class DagSearchParams(MethodParams):
    """The parameters of the DAG search. N: number of states, one more than the backbone has blocks."""

    variant: Literal["default", "recalled"] = Field(
        default="default",
        description="`recalled` restores the recalled forms of the paper that our defaults replace",
    )
    flow_constant: Annotated[int, Field(ge=1)] | Literal["all"] = Field(
        default=3,
        description="M, the longest span of an edge; `all` for N - 1",
    )
    kappa: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="inner edges per task; null takes N - 1"
    )
    squeeze_weight: Annotated[Ratio, Tuned(1e-3, 1e-1)] = Field(
        default=1e-2, description="weight of the squeeze loss L_sq"
    )
    squeeze_reads: bool = Field(
        default=False, description="squeeze read-ins and read-outs too, to kappa + 2 edges in all"
    )
    aggregate: Aggregate = Field(default="weighted_mean", description="how what enters a state is combined")
    gate_init: GateInit = Field(
        default="chain",
        description="`zero`: all gates 0.5; `chain`: the edges of the plain backbone are open",
    )
    gate_lr: Annotated[Positive | None, Tuned(1e-3, 1e-1)] = Field(
        default=None,
        description=f"learning rate of the gates (Adam); null: a logit can move by {GATE_MOVEMENT:g} in the search",
    )
    warmup_ratio: Ratio = Field(default=0.2, description="steps of the warm-up as a multiple of the budget's")
    search_ratio: Positive = Field(default=0.8, description="steps of the search as a multiple of the budget's")
    read_in: bool = Field(
        default=True,
        description="tasks read the stem's feature at every state; false: at the first one only",
    )
    read_out: bool = Field(default=True, description="tasks leave at every state; false: at the last one only")
    search: SearchParams = Field(default=SearchParams(), description="how gates and weights are trained")
    reduction: ReductionParams = Field(default=ReductionParams(), description="which edges are removed")
    reinit: bool = Field(default=False, description="train the found architecture from initial weights")
    batch_norm: BatchNormRule = Field(default="per_task_stats", description="norm rule during the search")

    def search_steps(self, budget: Budget) -> tuple[int, int]:
        """Steps of the search, and how many of them update the gates."""
        steps = max(1, round(self.search_ratio * budget.steps))
        return steps, max(1, steps // 2) if self.search.update == "alternate" else steps

    def gate_rate(self, budget: Budget) -> float:
        """Learning rate of the gates."""
        return rate_of(self.gate_lr, self.search_steps(budget)[1], GATE_MOVEMENT)

    @model_validator(mode="before")
    @classmethod
    def _fill_in_the_variant(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("variant") != "recalled":
            return values
        reduction = values.get("reduction", {})
        if isinstance(reduction, dict):
            reduction = {**RECALLED_REDUCTION, **reduction}
        return {**RECALLED, **values, "reduction": reduction}
