"""Parameters of both searches, and the length of their passes. Source: branching search 2.3, 3 and 4."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from datasets.errors import UsageError
from methods.branched.segments import BudgetScope, BudgetUnit, Segments, budget_notes, size_budget
from methods.branched.tree_method import ChoiceParams, Size
from methods.graph.rules import BatchNormRule
from methods.operating import MOVEMENT, rate_of, reach_notes
from methods.parameters import Tuned

if TYPE_CHECKING:
    from datasets.contracts import DatasetSpec
    from methods.backbones.backbone import Backbone


class SearchParams(ChoiceParams):
    """The parameters of both searches. E cycles, the first E_w of them warm-up."""

    search_ratio: Annotated[float, Field(gt=0)] = Field(
        default=1.2,
        description="batches before the final training, as a multiple of its own",
    )
    n_cycles: Annotated[int, Field(ge=3)] = Field(default=20, description="E, cycles of the search")
    arch_share: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.2,
        description="share of a cycle's batches that update the architecture",
    )
    warmup_fraction: Annotated[float, Field(gt=0, lt=0.5)] = Field(default=0.05, description="E_w / E")
    tau_start: Annotated[float, Field(gt=0)] = Field(default=5.0, description="temperature after the warm-up")
    tau_end: Annotated[float, Field(gt=0)] = Field(
        default=0.1, description="temperature at the end, linear in the cycles"
    )
    hard_samples: bool = Field(default=False, description="straight-through samples instead of soft ones")
    lr_arch: Annotated[Annotated[float, Field(gt=0)] | None, Tuned(1e-3, 1e-1)] = Field(
        default=None,
        description=f"learning rate of the architecture (Adam); null: a logit can move by {MOVEMENT:g} in the search, "
        "and under `recipe: published` 0.01",
    )
    wd_arch: Annotated[float, Field(ge=0)] = Field(default=5e-5, description="weight decay of the architecture (Adam)")
    reset_optimizer_state: bool = Field(default=True, description="clear the optimizers' state every cycle")
    reset_bn: bool = Field(default=True, description="reset norm statistics every cycle")
    weight_step: Literal["per_task", "joint"] = Field(
        default="per_task",
        description="one optimizer step per task, or one for all tasks",
    )
    batch_norm: BatchNormRule = Field(default="per_task_stats", description="norm rule of copies in the search")
    search_scale: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0, description="scale of the images in the search"
    )
    branch_init: Literal["initial", "search"] = Field(
        default="initial",
        description="`search` continues from the searched weights",
    )
    budget: Size | None = Field(
        default=None,
        description="size of the tree in the form of `branched`; null as published, else the most probable tree "
        "within it",
    )
    budget_unit: BudgetUnit = Field(default="params", description="parameters or MACs")
    budget_scope: BudgetScope = Field(
        default="encoder",
        description="`encoder`: stem, segments and tail; `encoder_heads`: with the heads",
    )

    @model_validator(mode="after")
    def _agrees(self) -> SearchParams:
        if self.tau_start < self.tau_end:
            raise ValueError(f"tau_start {self.tau_start} is below tau_end {self.tau_end}; expected start >= end")
        if self.random_tree and self.branch_init == "search":
            raise ValueError("branch_init: search goes on from searched copies, which a random tree has none of")
        return self

    @property
    def unfit_for_balancing(self) -> str:
        """Why task losses cannot be balanced; empty where they can."""
        return "weight_step per_task makes one optimizer step per task" if self.weight_step == "per_task" else ""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """weight_steps, arch_steps: batches of both passes. cycles: E; warmup: E_w."""

    weight_steps: int
    arch_steps: int
    cycles: int
    warmup: int
    tau_start: float
    tau_end: float

    @classmethod
    def of(cls, steps: int, params: SearchParams) -> Schedule:
        """For a final training of `steps` steps. A search too short for n_cycles has as many cycles as weight steps."""
        total = max(3, round(params.search_ratio * steps))
        cycles = params.n_cycles
        for _ in range(2):  # the share of the warm-up depends on the cycles, and these on the weight steps
            warmup = warmup_cycles(cycles, params.warmup_fraction)
            arch = min(max(1, round(total * params.arch_share * (cycles - warmup) / cycles)), total - 2)
            cycles = min(params.n_cycles, total - arch)
        warmup = warmup_cycles(cycles, params.warmup_fraction)
        return cls(total - arch, arch, cycles, warmup, params.tau_start, params.tau_end)

    @classmethod
    def in_epochs(cls, epochs: int, weight_epoch: int, arch_epoch: int, params: SearchParams) -> Schedule:
        """E real epochs as cycles. weight_epoch, arch_epoch: batches of both passes in one of them."""
        warmup = warmup_cycles(epochs, params.warmup_fraction)
        weight, arch = weight_epoch * epochs, arch_epoch * (epochs - warmup)
        return cls(weight, arch, epochs, warmup, params.tau_start, params.tau_end)

    def tau(self, e: int) -> float:
        """tau(e) = min(start, start - (start - end) (e - E_w - 1) / (E - E_w - 1)), e = 1 .. E."""
        last = self.cycles - self.warmup - 1
        if last < 1:
            return self.tau_start
        fall = (self.tau_start - self.tau_end) * (e - self.warmup - 1) / last
        return min(self.tau_start, self.tau_start - fall)


def warmup_cycles(cycles: int, fraction: float) -> int:
    """E_w = max(1, floor(E fraction)): without a warm-up equal copies would stay equal."""
    return max(1, int(cycles * fraction + 1e-9))  # 0.07 * 100 is not 7 in floats


def search_notes(
    p: SearchParams, data: DatasetSpec, backbone: Backbone, segments: Segments, schedule: Schedule, n_cycles: int
) -> list[str]:
    """Notes for the plan of a search. n_cycles: as asked for. Raises UsageError if it cannot run on this cell."""
    if p.search_scale < 1 and backbone.layout == "tokens":
        raise UsageError(f"search_scale {p.search_scale}: {backbone.config.name!r} takes one image size only.")
    notes = [
        f"search of {schedule.weight_steps} weight and {schedule.arch_steps} architecture batches in {schedule.cycles} "
        f"cycles, {schedule.warmup} of them warm-up"
    ]
    notes += reach_notes("lr_arch", rate_of(p.lr_arch, schedule.arch_steps), schedule.arch_steps)
    if schedule.cycles < n_cycles:
        notes.append(f"too short for {n_cycles} cycles")
    if p.budget is not None:
        limit = size_budget(segments, data, p.budget, p.budget_unit, p.budget_scope)
        notes += budget_notes(segments, limit)
    return notes
