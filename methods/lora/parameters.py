"""The parameters of low-rank updates."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from datasets.settings import Checked
from methods.contracts import OptimizerSpec
from methods.parameters import MethodParams, Tuned

TaskPath: TypeAlias = Literal["side", "side_with_shared", "own"]
TrainedPart: TypeAlias = Literal["norms", "embeddings", "merging", "position_bias"]
ALL_PARTS: tuple[TrainedPart, ...] = ("norms", "embeddings", "merging", "position_bias")

# official code: configs/mtlora; of 300 epochs the first 20 warm up
PUBLISHED = OptimizerSpec(
    "adamw", 5e-4, weight_decay=0.05, cosine=True, warmup=20 / 300, end_lr=5e-6, clip_norm=5.0
)  # fmt: skip


class Suffix(Checked):
    """The last blocks."""

    suffix: Annotated[int, Field(ge=1)] | Literal["all"] = Field(description="how many of the last blocks, or all")


class LoraParams(MethodParams):
    """The parameters of low-rank updates."""

    base: Literal["auto", "pretrained", "joint"] = Field(
        default="auto",
        description="what is frozen: the cell's initial weights (`pretrained`), or one network trained on all tasks "
        "first (`joint`); `auto` takes the former where the weights are not random",
    )
    rank: Annotated[int, Field(ge=1)] = Field(default=16, description="r of the updates that all tasks share")
    task_rank: Annotated[int, Field(ge=0)] = Field(
        default=4, description="r_t of each task's own updates; 0 has shared ones only"
    )
    scale: Annotated[float, Field(gt=0), Tuned(0.5, 16)] = Field(
        default=4.0, description="factor s of shared updates; not alpha / r"
    )
    task_scale: Annotated[float, Field(gt=0)] = Field(default=4.0, description="factor s_t of each task's own updates")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.05, description="rate of dropout on the input of every update"
    )
    task_blocks: Literal["none", "last", "stage_last"] | Suffix = Field(
        default="last",
        description="blocks with each task's own updates: none, the last one, or the last m (`{suffix: m}`), from the "
        "second of which on every task runs its own; `stage_last` is the paper's and needs heads that read every stage",
    )
    task_path: TaskPath = Field(
        default="side",
        description="what a task's stream x_t reads in its first block besides s_t B_t A_t x_t: W x of the shared "
        "stream (`side`), the shared update of it too (`side_with_shared`), or W x_t (`own`)",
    )
    train: tuple[TrainedPart, ...] | Literal["all"] = Field(
        default=ALL_PARTS,
        description="parts of the backbone that are trained whole besides the updates; `all` freezes nothing",
    )
    recipe: Literal["suite", "published"] = Field(
        default="suite",
        description="`published` trains by AdamW at 5e-4, decay .05, a cosine to 5e-6 after warm-up, clipped at 5",
    )

    @property
    def optimizer(self) -> OptimizerSpec | None:
        """Of the updates and what is trained with them; None for the cell's recipe."""
        return PUBLISHED if self.recipe == "published" else None
