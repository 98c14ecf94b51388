"""The parameters of all four methods. Defaults are those of `recipe: suite` (soft_sharing 0)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from methods.contracts import OptimizerSpec
from methods.graph.rules import BatchNormRule
from methods.parameters import MethodParams, Tuned

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Refinement = Literal["bottleneck", "conv3x3"]  # f_j of mtan


class PublishedParams(MethodParams):
    """The method's own training; read under `recipe: published` only."""

    steps: Count | None = Field(default=None, description="steps of the joint training; null takes the budget's")
    optimizer: Literal["sgd", "adam"] = Field(default="sgd", description="of backbone, heads and added layers")
    lr: Positive = Field(
        default=1e-3,
        description="learning rate of backbone and heads; added layers learn at unit_lr times it",
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.9, description="read by SGD only")
    weight_decay: NonNegative = Field(default=0.0, description="of backbone and heads")
    decay_every: Count | None = Field(
        default=None, description="the rate is multiplied by `decay` every decay_every steps"
    )
    decay: Positive = Field(default=1.0, description="factor of the rate every decay_every steps")
    poly: Positive | None = Field(default=None, description="power p: the rate is lr (1 - step / steps)^p")

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
    """Parameters of all four methods."""

    published_values: ClassVar[Mapping[str, object]] = {"unit_lr": 100.0, "batch_norm": "shared"}
    published_defaults: ClassVar[Mapping[str, object]] = {}

    recipe: Literal["suite", "published"] = Field(
        default="suite",
        description="`published` trains by the method's own recipe, see `published`",
    )
    unit_lr: Positive = Field(
        default=1.0,
        description="learning rate of added layers as a multiple of the network's, read under `published` only",
    )
    unit_weight_decay: NonNegative | None = Field(
        default=None,
        description="weight decay of added layers; null takes the network's",
    )
    batch_norm: BatchNormRule = Field(
        default="per_task_stats",
        description="norm rule of operations that several tasks run; `shared` keeps one set of statistics of each",
    )
    published: PublishedParams | None = Field(
        default=None,
        description="the method's own training, read under `recipe: published`",
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        """Defaults that `recipe: published` changes."""
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
    """Parameters of the methods that have a network (tower) for every task."""

    reinit: bool = Field(
        default=False,
        description="towers restart from the cell's initial weights; otherwise trained single-task networks continue",
    )
    alpha_self: Annotated[Share, Tuned(0.5, 1.0, log=False)] = Field(
        default=0.9, description="what a task takes of its own feature at the start"
    )
    alpha_other: Share | None = Field(
        default=None,
        description="what it takes of each other task's; null shares what alpha_self leaves of 1 equally",
    )
    batch_norm: Literal["shared", "per_task_stats"] = Field(
        default="per_task_stats",
        description="`shared` keeps one set of statistics of a tower that other tasks' batches pass through too",
    )

    def other(self, n_tasks: int) -> float:
        """The weight of each other task at the start."""
        return (1 - self.alpha_self) / (n_tasks - 1) if self.alpha_other is None else self.alpha_other
