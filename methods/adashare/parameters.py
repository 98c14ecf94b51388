"""The parameters of AdaShare. Defaults are of `recipe: suite`; `published` takes the preset's (adashare.md 4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from methods.adashare.presets import PRESETS, Phase, Preset, PresetName
from methods.graph.rules import BatchNormRule
from methods.operating import MOVEMENT
from methods.parameters import MethodParams, Tuned

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]

_OF_PRESET = (  # what `published` takes from its preset where it is not given
    *("warmup_steps", "search_steps", "retrain_steps", "w_steps", "a_steps"),
    *("lr_head", "lr_backbone", "lr_step", "lr_gamma", "search_weight_optimizer"),
)


class PublishedParams(MethodParams):
    """The official recipe of one data set; single values override the preset's. Read under `recipe: published` only."""

    preset: PresetName = Field(description="the official setting whose values are taken")
    warmup_steps: Count = Field(description="steps of the warm-up")
    search_steps: Count = Field(description="steps of warm-up and search together")
    retrain_steps: Count = Field(description="steps of the final training")
    w_steps: Annotated[Phase, Field(union_mode="left_to_right")] = Field(
        description="steps of the weight phase of a cycle, or `epoch`",
    )
    a_steps: Annotated[Phase, Field(union_mode="left_to_right")] = Field(
        description="steps of the policy phase of a cycle, or `epoch`",
    )
    lr_head: Positive = Field(description="learning rate of the heads")
    lr_backbone: Positive = Field(description="learning rate of the backbone")
    lr_step: Count = Field(description="rates are multiplied by lr_gamma every lr_step steps")
    lr_gamma: Positive = Field(description="factor of the rates every lr_step steps")
    search_weight_optimizer: Literal["sgd", "adam"] = Field(description="optimizer of the weights during the search")

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
    """The parameters of AdaShare. w_sp and w_sh weigh the two losses of the policies."""

    variant: Literal["official", "paper"] = Field(
        default="official",
        description="the two losses as in the released code (`official`), or as recalled from the paper (`paper`)",
    )
    sparsity_form: Literal["neg_log_skip_mean", "log_alpha_sum"] = Field(
        default="neg_log_skip_mean",
        description="form of the sparsity loss, on its own",
    )
    sharing_form: Literal["l1_logit_deep", "l1_prob_shallow"] = Field(
        default="l1_logit_deep",
        description="form of the sharing loss, on its own",
    )
    sparsity_weight: Annotated[NonNegative, Tuned(5e-3, 5e-1)] = Field(
        default=0.05, description="w_sp; not transferable between the forms"
    )
    sharing_weight: NonNegative = Field(default=0.05, description="w_sh; not transferable between the forms")
    recipe: Literal["suite", "published"] = Field(
        default="suite",
        description="`published` trains by the official recipe, see `published`",
    )
    warmup_ratio: Positive = Field(
        default=0.2,
        description="steps of the warm-up as a multiple of the budget's, charged to the search",
    )
    search_ratio: Positive = Field(
        default=0.8,
        description="steps of the search as a multiple of the budget's, charged to the search",
    )
    n_cycles: Annotated[int, Field(ge=2)] | None = Field(
        default=None,
        description="alternations of the search; null takes the budget's cycles",
    )
    arch_share: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.2,
        description="share of a cycle's steps in the policy phase",
    )
    tau_start: Positive = Field(default=5.0, description="temperature at the start")
    tau_end: Positive | None = Field(
        default=0.1,
        description="temperature at the end, geometric in the cycles; null multiplies by tau_decay after every cycle",
    )
    tau_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.965,
        description="factor of the temperature after every cycle, read where tau_end is null",
    )
    logit_init: Literal["equal", "random", "all_chosen"] = Field(
        default="equal",
        description="`equal`: 0.5 in both columns; `random`: 1e-3 N(0, 1); `all_chosen`: execute 0, skip "
        "all_chosen_logit",
    )
    all_chosen_logit: Annotated[float, Field(lt=0)] = Field(
        default=-3.0,
        description="skip logit at the start under `logit_init: all_chosen`",
    )
    hard_samples: bool = Field(default=False, description="straight-through samples instead of soft ones")
    curriculum: bool = Field(default=True, description="unlock units one after another, the last one first")
    curriculum_speed: Positive | Literal["auto"] = Field(
        default="auto",
        description="cycles per unlocked unit; `auto` unlocks all at half of the cycles",
    )
    first_free_unit: Count = Field(default=1, description="units below it are never skipped")
    lr_logits: Annotated[Positive | None, Tuned(1e-3, 1e-1)] = Field(
        default=None,
        description=f"learning rate of the logits (Adam); null: a logit can move by {MOVEMENT:g} in the search, "
        "and under `published` 0.01",
    )
    wd_logits: NonNegative = Field(default=5e-4, description="weight decay of the logits, coupled")
    batch_norm: BatchNormRule = Field(
        default="per_task_stats",
        description="norm rule of the search; `shared` under `recipe: published` also of the final network",
    )
    bn_stats_on_skip: bool = Field(
        default=True,
        description="units that a task skips move its statistics too; read under `published` with `batch_norm: shared`",
    )
    retrain_init: Literal["initial", "search"] = Field(
        default="initial",
        description="`search` continues from the searched weights",
    )
    best_after_cycles: Annotated[int, Field(ge=0)] | None = Field(
        default=None,
        description="completed cycles before a policy can be the best on select; null takes half of them",
    )
    search_evaluations: Count = Field(
        default=5,
        description="how often the search is judged on select from then on, at equal distances",
    )
    n_policies: Count = Field(default=1, description="policies drawn and trained; the best on select is kept")
    policy_draw: Literal["bernoulli", "argmax"] = Field(
        default="bernoulli",
        description="`bernoulli` draws each decision, `argmax` takes the likelier one",
    )
    random_policy: bool = Field(
        default=False,
        description="the control: a random policy of the size that the same search finds",
    )
    random_size: tuple[Count, Count] | None = Field(
        default=None,
        description="(parameters, MACs) of the random policy, which then needs no search",
    )
    published: PublishedParams | None = Field(
        default=None, description="the official recipe, read under `recipe: published`"
    )

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
        """Defaults that variant and recipe change."""
        if not isinstance(values, Mapping):
            return values
        implied: dict[str, object] = {}
        if values.get("variant") == "paper":
            implied.update(sparsity_form="log_alpha_sum", sharing_form="l1_prob_shallow")
        if values.get("recipe") == "published":
            implied.update(tau_end=None, n_policies=8, lr_logits=0.01)
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
