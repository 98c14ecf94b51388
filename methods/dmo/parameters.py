"""What can be set. Defaults are those of `recipe: suite`; `recipe: published` fills in its own (dmo 4)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from methods.contracts import MethodParams
from methods.graph.rules import BatchNormRule

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Threshold = Annotated[float, Field(ge=-1, le=1)]
Quantile = Annotated[str, Field(pattern=r"^quantile:(0(\.\d+)?|1(\.0+)?)$")]

MuRule = Literal["mean_of_task_means", "pooled"]
CliqueOrder = Literal["size_then_mean", "size"]
PruneScope = Literal["global", "layer"]
MergeRule = Literal["hardest", "mean"]


def kept_fraction(d: float, tau: float) -> float:
    """q = 1 - exp(-d / tau): exp(-d / tau) is what is pruned, so harder tasks keep more, and smaller tau keeps more."""
    return -math.expm1(-d / tau)


class PublishedParams(MethodParams):
    """The training of the four-task scenario: SGD with cosine decay to 0, counted in epochs of batch_size images,
    whatever the cell's batches are. retrain_epochs, retrain_lr: of the groups, null takes those of stage 1.
    """

    epochs: Count = 25
    lr: Positive = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    batch_size: Count = 64
    retrain_epochs: Count | None = None
    retrain_lr: Positive | None = None


class DmoParams(MethodParams):
    """recipe: `published` trains by the article's recipe. init: all single-task networks start from the cell's initial
    weights, or each from a stream of its own (from scratch only). alpha: S = alpha S_W + (1 - alpha) S_L. tau_sim:
    tasks whose S is above it may share, a number or `quantile:q` of the pairs (at least three tasks); tau_bk, when set,
    in its place. loss_axis: what loss curves are correlated over. tau: pruned fraction exp(-d / tau). mu: what a
    sample's loss is compared with. difficulty_normalise: losses over the task's mean loss of the first cycle
    (`initial`) or as they are; null takes `none` where all losses are cross-entropies. prune_scope: one threshold, or
    one a tensor. keep_floor, layer_floor: least kept fraction of a network, and weights of a tensor. clique_order:
    among cliques of one size. merge_rule: whose weight a survivor of several tasks takes. batch_norm: of a group.
    sampler: of tasks with unequal numbers of images, under `published`. reinit: surviving weights restart from the
    cell's initial weights. groups: a partition of the tasks, which replaces the search for one.
    Controls: pruning `equal` keeps the same fraction of every network, `none` prunes nothing; random_groups takes
    groups of the sizes that were found at random.
    """

    recipe: Literal["suite", "published"] = "suite"
    init: Literal["shared", "independent"] = "shared"
    alpha: Share = 0.5
    tau_sim: Annotated[Threshold | Quantile, Field(union_mode="left_to_right")] = "quantile:0.667"
    tau_bk: Threshold | None = None
    loss_axis: Literal["cycle", "epoch"] = "cycle"
    tau: Positive = 1.0
    mu: MuRule = "mean_of_task_means"
    difficulty_normalise: Literal["none", "initial"] | None = None
    prune_scope: PruneScope = "global"
    keep_floor: Share = 0.01
    layer_floor: Annotated[int, Field(ge=0)] = 1
    clique_order: CliqueOrder = "size_then_mean"
    merge_rule: MergeRule = "hardest"
    batch_norm: BatchNormRule = "per_task_stats"
    sampler: Literal["equal_updates", "cycle_to_longest"] = "equal_updates"
    reinit: bool = False
    groups: Annotated[tuple[tuple[str, ...], ...], Field(min_length=1)] | None = None
    pruning: Literal["difficulty", "equal", "none"] = "difficulty"
    random_groups: bool = False
    published: PublishedParams | None = None

    @property
    def threshold(self) -> float | str:
        """tau_bk where it is set, else tau_sim."""
        return self.tau_sim if self.tau_bk is None else self.tau_bk

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        """What `recipe: published` implies, where it is not given."""
        if not isinstance(values, Mapping) or values.get("recipe") != "published":
            return values
        implied = {"loss_axis": "epoch", "batch_norm": "shared", "sampler": "cycle_to_longest", "published": {}}
        return {**implied, **values}

    @model_validator(mode="after")
    def _consistent(self) -> DmoParams:
        if self.recipe == "suite" and self.published is not None:
            raise ValueError("published is read under recipe: published only")
        if self.recipe == "suite" and self.loss_axis == "epoch":
            raise ValueError("loss_axis: epoch is read under recipe: published only; the suite counts cycles")
        if self.random_groups and self.groups is not None:
            raise ValueError("groups are given, so there is nothing for random_groups to draw; give one of the two")
        return self
