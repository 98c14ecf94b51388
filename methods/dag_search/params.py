"""Parameters of the DAG search. Names and defaults: specification section 9."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from methods.contracts import MethodParams
from methods.graph.rules import BatchNormRule

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
    """update: what the search trains. `joint`: gates and Theta together; `alternate`: Theta on fit and gates on arch,
    in turn, half of the steps each; `gates_only`: gates, heads and alignments, Theta stays.
    recompute: keep no activations of the edges' operations, compute them again in the backward pass.
    """

    update: Literal["joint", "alternate", "gates_only"] = "joint"
    recompute: bool = False


class ReductionParams(MethodParams):
    """score, stop: which edges go, and how many. budget_unit: `edges` keeps kappa inner edges for each task;
    `union_params` cuts over all tasks until backbone and added parameters are at most `budget` x P_ref.
    max_reads: most read-ins, and most read-outs, that a task keeps; none by default.
    """

    score: Score = "contribution"
    stop: Stop = "budget"
    budget_unit: Literal["edges", "union_params"] = "edges"
    budget: Positive | None = None
    max_reads: Annotated[int, Field(ge=1)] | None = None

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
    """variant: `recalled` switches the defaults that replace a recalled form of the paper back to it.
    flow_constant: M, the longest span of an edge; `all` for N - 1. kappa: inner edges per task, N - 1 where it is null.
    squeeze_weight: of L_sq; squeeze_reads: read-ins and read-outs are squeezed too, to kappa + 2 in all.
    aggregate: `weighted_mean` or `sum` of what enters a state. gate_init: `zero` (all gates 0.5) or `chain` (the plain
    backbone's edges open).
    gate_lr: of Adam on the gates. warmup_ratio, search_ratio: in units of budget.steps.
    read_in, read_out: switched off, tasks read the stem's feature at the first state and leave at the last one only.
    reinit: train what was found from initial weights. batch_norm: rule during the search.
    """

    variant: Literal["default", "recalled"] = "default"
    flow_constant: Annotated[int, Field(ge=1)] | Literal["all"] = 3
    kappa: Annotated[int, Field(ge=1)] | None = None
    squeeze_weight: Ratio = 1e-2
    squeeze_reads: bool = False
    aggregate: Aggregate = "weighted_mean"
    gate_init: GateInit = "chain"
    gate_lr: Positive = 1e-2
    warmup_ratio: Ratio = 0.2
    search_ratio: Positive = 0.8
    read_in: bool = True
    read_out: bool = True
    search: SearchParams = SearchParams()
    reduction: ReductionParams = ReductionParams()
    reinit: bool = False
    batch_norm: BatchNormRule = "per_task_stats"

    @model_validator(mode="before")
    @classmethod
    def _fill_in_the_variant(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("variant") != "recalled":
            return values
        reduction = values.get("reduction", {})
        if isinstance(reduction, dict):
            reduction = {**RECALLED_REDUCTION, **reduction}
        return {**RECALLED, **values, "reduction": reduction}
