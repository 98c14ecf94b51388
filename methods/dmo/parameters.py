"""The parameters of DMO. Defaults are those of `recipe: suite`; `recipe: published` fills in its own (dmo 4)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from methods.graph.rules import BatchNormRule
from methods.parameters import MethodParams, Tuned

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
    """q = 1 - exp(-d / tau): exp(-d / tau) is pruned. Harder tasks keep more, and a smaller tau keeps more."""
    return -math.expm1(-d / tau)


class PublishedParams(MethodParams):
    """The training of the four-task scenario: SGD with cosine decay to 0, counted in epochs whatever the cell's batches
    are.
    """

    epochs: Count = Field(default=25, description="epochs of a single-task network")
    lr: Positive = Field(default=0.1, description="learning rate of stage 1")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.9, description="of SGD")
    weight_decay: Annotated[float, Field(ge=0)] = Field(default=5e-4, description="of SGD")
    batch_size: Count = Field(default=64, description="images in a batch, which an epoch is counted in")
    retrain_epochs: Count | None = Field(default=None, description="epochs of the groups; null takes those of stage 1")
    retrain_lr: Positive | None = Field(
        default=None, description="learning rate of the groups; null takes that of stage 1"
    )


class DmoParams(MethodParams):
    """The parameters of DMO. S: similarity of tasks, of weights (S_W) and of loss curves (S_L)."""

    recipe: Literal["suite", "published"] = Field(
        default="suite",
        description="`published` trains by the article's recipe, see `published`",
    )
    init: Literal["shared", "independent"] = Field(
        default="shared",
        description="single-task networks start from the cell's initial weights, or each from its own stream (from "
        "scratch only)",
    )
    alpha: Annotated[Share, Tuned(0.0, 1.0, log=False)] = Field(
        default=0.5, description="S = alpha S_W + (1 - alpha) S_L"
    )
    tau_sim: Annotated[Threshold | Quantile, Field(union_mode="left_to_right")] = Field(
        default="quantile:0.667",
        description="tasks whose S is above it may share: a number, or `quantile:q` of the pairs (three tasks or more)",
    )
    tau_bk: Threshold | None = Field(default=None, description="where it is set, it takes the place of tau_sim")
    loss_axis: Literal["cycle", "epoch"] = Field(default="cycle", description="what loss curves are correlated over")
    tau: Annotated[Positive, Tuned(1e-1, 1e1)] = Field(
        default=1.0,
        description="temperature of pruning: exp(-d / tau) of the weights are pruned, d the difficulty",
    )
    mu: MuRule = Field(default="mean_of_task_means", description="the mean loss that a sample's loss is compared with")
    difficulty_normalise: Literal["none", "initial"] | None = Field(
        default=None,
        description="`initial` divides losses by the task's mean loss of the first cycle; null takes `none` where all "
        "losses are cross-entropies",
    )
    prune_scope: PruneScope = Field(
        default="global", description="one threshold for all weights, or one for each tensor"
    )
    keep_floor: Share = Field(default=0.01, description="least kept fraction of a network")
    layer_floor: Annotated[int, Field(ge=0)] = Field(default=1, description="least number of kept weights of a tensor")
    clique_order: CliqueOrder = Field(default="size_then_mean", description="order of cliques of equal size")
    merge_rule: MergeRule = Field(
        default="hardest",
        description="whose weight survives where several tasks keep it: the hardest task's, or their mean",
    )
    batch_norm: BatchNormRule = Field(default="per_task_stats", description="norm rule of a group")
    sampler: Literal["equal_updates", "cycle_to_longest"] = Field(
        default="equal_updates",
        description="updates of tasks with unequal numbers of images, read under `published`",
    )
    reinit: bool = Field(default=False, description="surviving weights restart from the cell's initial weights")
    groups: Annotated[tuple[tuple[str, ...], ...], Field(min_length=1)] | None = Field(
        default=None,
        description="a partition of the tasks, in place of the search for one",
    )
    pruning: Literal["difficulty", "equal", "none"] = Field(
        default="difficulty",
        description="controls: `equal` keeps one fraction of every network, `none` prunes nothing",
    )
    random_groups: bool = Field(
        default=False, description="control: random groups of the sizes that were found, which keep as many weights"
    )
    published: PublishedParams | None = Field(
        default=None, description="the article's recipe, read under `recipe: published`"
    )

    @property
    def threshold(self) -> float | str:
        """tau_bk where it is set, else tau_sim."""
        return self.tau_sim if self.tau_bk is None else self.tau_bk

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        """Defaults that `recipe: published` changes."""
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
