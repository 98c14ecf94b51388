"""What can be set. Defaults are those of `recipe: suite`; `recipe: published` fills in the preset's (adashare.md 4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from methods.adashare.presets import PRESETS, Phase, Preset, PresetName
from methods.contracts import MethodParams
from methods.graph.rules import BatchNormRule

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]

_OF_PRESET = (  # what `published` takes from its preset where it is not given
    *("warmup_steps", "search_steps", "retrain_steps", "w_steps", "a_steps"),
    *("lr_head", "lr_backbone", "lr_step", "lr_gamma", "search_weight_optimizer"),
)


class PublishedParams(MethodParams):
    """The official recipe of one data set; single values override the preset's. Read under `recipe: published` only.

    search_steps: warm-up included. w_steps, a_steps: steps of the two phases of a cycle, or `epoch`. lr_step, lr_gamma:
    the rates are multiplied by lr_gamma every lr_step steps.
    """

    preset: PresetName
    warmup_steps: Count
    search_steps: Count
    retrain_steps: Count
    w_steps: Annotated[Phase, Field(union_mode="left_to_right")]
    a_steps: Annotated[Phase, Field(union_mode="left_to_right")]
    lr_head: Positive
    lr_backbone: Positive
    lr_step: Count
    lr_gamma: Positive
    search_weight_optimizer: Literal["sgd", "adam"]

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or values.get("preset") not in PRESETS:
            return values
        preset = PRESETS[values["preset"]]
        return {**{name: getattr(preset, name) for name in _OF_PRESET}, **values}

    @model_validator(mode="after")
    def _search_follows_warm_up(self) -> PublishedParams:
        if self.warmup_steps >= self.search_steps:
            raise ValueError(f"search_steps ({self.search_steps}) must exceed warmup_steps ({self.warmup_steps})")
        return self


class AdaShareParams(MethodParams):
    """variant names the two losses: `official` as in the released code, `paper` as recalled from the paper.

    sparsity_form, sharing_form: each on its own. sparsity_weight, sharing_weight: w_sp, w_sh; not transferable between
    the forms. warmup_ratio, search_ratio: multiples of the budget's steps, charged to the search. n_cycles:
    alternations of the search, null takes the budget's; arch_share: the policy phase's part of a cycle. tau_start,
    tau_end: temperature, geometric per cycle; with tau_end null it is multiplied by tau_decay after every cycle.
    logit_init: equal (0.5 in both columns), random (1e-3 N(0, 1)), all_chosen (execute 0, skip all_chosen_logit).
    hard_samples: straight-through instead of soft. curriculum_speed: cycles per unlocked unit, auto opens all at half
    of the cycles. first_free_unit: units below it are never skipped. batch_norm: of the search; `shared` under
    `published` also of the final network, bn_stats_on_skip then lets units that a task skips move the statistics.
    retrain_init: `search` goes on from the searched weights. best_after_cycles: completed cycles before a policy can be
    the best on select, null takes half of them. search_evaluations: how often the search looks at select from then on,
    at equal distances. n_policies: policies drawn and trained, the best on select is kept. random_policy: the control
    of the search, a random policy of the size that the same search finds, or of random_size (parameters, macs) without
    one.
    """

    variant: Literal["official", "paper"] = "official"
    sparsity_form: Literal["neg_log_skip_mean", "log_alpha_sum"] = "neg_log_skip_mean"
    sharing_form: Literal["l1_logit_deep", "l1_prob_shallow"] = "l1_logit_deep"
    sparsity_weight: NonNegative = 0.05
    sharing_weight: NonNegative = 0.05
    recipe: Literal["suite", "published"] = "suite"
    warmup_ratio: Positive = 0.2
    search_ratio: Positive = 0.8
    n_cycles: Annotated[int, Field(ge=2)] | None = None
    arch_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    tau_start: Positive = 5.0
    tau_end: Positive | None = 0.1
    tau_decay: Annotated[float, Field(gt=0, le=1)] = 0.965
    logit_init: Literal["equal", "random", "all_chosen"] = "equal"
    all_chosen_logit: Annotated[float, Field(lt=0)] = -3.0
    hard_samples: bool = False
    curriculum: bool = True
    curriculum_speed: Positive | Literal["auto"] = "auto"
    first_free_unit: Count = 1
    lr_logits: Positive = 0.01
    wd_logits: NonNegative = 5e-4
    batch_norm: BatchNormRule = "per_task_stats"
    bn_stats_on_skip: bool = True
    retrain_init: Literal["initial", "search"] = "initial"
    best_after_cycles: Annotated[int, Field(ge=0)] | None = None
    search_evaluations: Count = 5
    n_policies: Count = 1
    policy_draw: Literal["bernoulli", "argmax"] = "bernoulli"
    random_policy: bool = False
    random_size: tuple[Count, Count] | None = None
    published: PublishedParams | None = None

    @property
    def preset(self) -> Preset | None:
        """The official setting that is re-enacted; None under `recipe: suite`."""
        return None if self.published is None else PRESETS[self.published.preset]

    @property
    def has_one_polluted_set(self) -> bool:
        """Whether the final network keeps one set of norm statistics that all tasks move, as the official one does."""
        return self.recipe == "published" and self.batch_norm == "shared"

    @property
    def final_rule(self) -> Literal["shared", "per_task"]:
        """Norms of the deployed network: of each task's own, or one set of weights (statistics belong to nodes)."""
        return "per_task" if self.batch_norm == "per_task" else "shared"

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        """What variant and recipe imply, where it is not given."""
        if not isinstance(values, Mapping):
            return values
        implied: dict[str, object] = {}
        if values.get("variant") == "paper":
            implied.update(sparsity_form="log_alpha_sum", sharing_form="l1_prob_shallow")
        if values.get("recipe") == "published":
            implied.update(tau_end=None, n_policies=8)
            published = values.get("published")
            name = published.get("preset") if isinstance(published, Mapping) else getattr(published, "preset", None)
            preset = PRESETS.get(str(name))
            if preset is not None:
                implied.update(
                    {
                        key: getattr(preset, key)
                        for key in ("sparsity_weight", "sharing_weight", "curriculum_speed", "batch_norm")
                    }
                )
        if values.get("policy_draw") == "argmax" or values.get("retrain_init") == "search":
            implied.update(n_policies=1)
        return {**implied, **values}

    @model_validator(mode="after")
    def _consistent(self) -> AdaShareParams:
        if (self.recipe == "published") != (self.published is not None):
            raise ValueError("recipe: published and published.preset belong together; give both or neither")
        if self.recipe == "suite" and self.n_policies > 1:
            raise ValueError(f"n_policies is {self.n_policies}; under recipe: suite every row trains one final network")
        if self.tau_end is not None and self.tau_end >= self.tau_start:
            raise ValueError(f"tau_end ({self.tau_end}) must be below tau_start ({self.tau_start})")
        if self.n_policies > 1 and self.policy_draw == "argmax":
            raise ValueError("policy_draw: argmax gives one policy; set n_policies to 1")
        if self.n_policies > 1 and self.retrain_init == "search":
            raise ValueError("retrain_init: search trains the searched weights themselves; set n_policies to 1")
        if self.random_size is not None and not self.random_policy:
            raise ValueError("random_size is read with random_policy: true only")
        if self.random_size is not None and self.retrain_init == "search":
            raise ValueError("random_size runs no search, so there are no weights for retrain_init: search")
        return self
