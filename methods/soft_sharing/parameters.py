"""What can be set, for all four methods. Defaults are those of `recipe: suite` (soft_sharing 0)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from methods.contracts import MethodParams, OptimizerSpec
from methods.graph.rules import BatchNormRule

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Refinement = Literal["bottleneck", "conv3x3"]  # f_j of mtan


class PublishedParams(MethodParams):
    """The method's own training; read under `recipe: published` only.

    steps: null takes the budget's. lr: of backbone and heads; added layers learn at unit_lr times it. decay_every,
    decay: the rate is multiplied by decay every decay_every steps; poly: or is lr (1 - step / steps)^poly.
    """

    steps: Count | None = None
    optimizer: Literal["sgd", "adam"] = "sgd"
    lr: Positive = 1e-3
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: NonNegative = 0.0
    decay_every: Count | None = None
    decay: Positive = 1.0
    poly: Positive | None = None

    @model_validator(mode="after")
    def _falls_one_way(self) -> PublishedParams:
        if self.poly is not None and self.decay_every is not None:
            raise ValueError("poly and decay_every are two ways in which the rate falls; give one")
        return self

    def spec(self, rate_factor: float = 1.0, weight_decay: float | None = None) -> OptimizerSpec:
        """The optimizer of a group, its rate and weight decay those of the network where nothing else is said."""
        return OptimizerSpec(
            self.optimizer,
            self.lr * rate_factor,
            weight_decay=self.weight_decay if weight_decay is None else weight_decay,
            momentum=self.momentum if self.optimizer == "sgd" else 0.0,
            decay_every=self.decay_every if self.poly is None else 1,
            decay=self.decay,
            poly=self.poly,
        )


class SoftSharingParams(MethodParams):
    """recipe: `published` trains by the method's own recipe. unit_lr: rate of added layers, times the network's; read
    under `published` only, where added layers do not already learn at the heads' rate. unit_weight_decay: of added
    layers, null takes the network's. batch_norm: whose statistics a shared operation has in training.
    """

    published_values: ClassVar[Mapping[str, object]] = {"unit_lr": 100.0, "batch_norm": "shared"}
    published_defaults: ClassVar[Mapping[str, object]] = {}

    recipe: Literal["suite", "published"] = "suite"
    unit_lr: Positive = 1.0
    unit_weight_decay: NonNegative | None = None
    batch_norm: BatchNormRule = "per_task_stats"
    published: PublishedParams | None = None

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        """What `recipe: published` implies, where it is not given."""
        if not isinstance(values, Mapping) or values.get("recipe") != "published":
            return values
        own = values.get("published") or {}
        if isinstance(own, Mapping):
            own = {**cls.published_defaults, **own}
        return {**cls.published_values, **values, "published": own}

    @model_validator(mode="after")
    def _read_under_published_only(self) -> SoftSharingParams:
        if self.recipe == "suite" and self.published is not None:
            raise ValueError("published is read under recipe: published only")
        if self.recipe == "suite" and self.unit_lr != 1.0:
            raise ValueError("unit_lr is read under recipe: published only; the suite's added layers learn as heads do")
        return self


class TowerParams(SoftSharingParams):
    """reinit: every tower restarts from the cell's initial weights, where otherwise trained single-task networks go on.
    alpha_self, alpha_other: what a task takes of its own feature and of each other one at the start; null shares what
    alpha_self leaves of 1 equally.
    """

    reinit: bool = False
    alpha_self: Share = 0.9
    alpha_other: Share | None = None
    batch_norm: Literal["shared", "per_task_stats"] = "per_task_stats"

    def other(self, n_tasks: int) -> float:
        """The weight of each other task at the start."""
        return (1 - self.alpha_self) / (n_tasks - 1) if self.alpha_other is None else self.alpha_other
