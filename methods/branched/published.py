"""Recipes of other people's code that trees can be trained by, and what data they are about.

`bmtas` has its own, from its official code. No recipe of `branched` is known, so it borrows one from the survey
repository of the paper's first author, which has no branching code: a re-enactment of nothing, and said so.
Source: branching search 3 and 4, branched 3.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from datasets.errors import UsageError
from methods.branched.network import FinalRecipe
from methods.contracts import OptimizerSpec
from methods.parameters import MethodParams

if TYPE_CHECKING:
    from datasets.contracts import DatasetSpec

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Weights = Mapping[str, float]

PASCAL_CHANNELS = {"semseg": 21, "human_parts": 7, "saliency": 1, "normals": 3, "edge": 1}
PASCAL_WEIGHTS = {"semseg": 1.0, "human_parts": 2.0, "saliency": 5.0, "normals": 10.0, "edge": 50.0}


@dataclasses.dataclass(frozen=True)
class Borrowed:
    """One setting of the survey repository. setting: what of it belongs to the cell, for the plan.

    batch_size: what an epoch is counted in, without the rest (drop_last). poly: power of the rate's fall per epoch.
    """

    epochs: int
    lr: float
    weight_decay: float
    poly: float
    batch_size: int
    channels: Mapping[str, int]
    task_weights: Weights
    setting: str


BorrowedName = Literal["nyud_2task", "pascal_5task"]
_OF_PRESET = ("epochs", "lr", "weight_decay", "poly")

BORROWED: Mapping[str, Borrowed] = {
    "nyud_2task": Borrowed(
        epochs=100,
        lr=1e-4,
        weight_decay=1e-4,
        poly=0.9,
        batch_size=8,
        channels={"semseg": 40, "depth": 1},
        task_weights={"semseg": 1.0, "depth": 1.0},
        setting="a pretrained resnet50 at output stride 8 with DeepLab heads, flips, scales of 1, 1.2 and 1.5",
    ),
    "pascal_5task": Borrowed(
        epochs=100,
        lr=1e-4,
        weight_decay=1e-4,
        poly=0.9,
        batch_size=6,
        channels=PASCAL_CHANNELS,
        task_weights=PASCAL_WEIGHTS,
        setting="a pretrained resnet18 at output stride 8 with DeepLab heads, flips, rotations up to 20 degrees, "
        "scales from 0.75 to 1.25",
    ),
}


class BorrowedParams(MethodParams):
    """The final training of a setting; single values override the preset's. Read under `recipe: published` only."""

    preset: BorrowedName = Field(description="the setting whose values are taken")
    epochs: Count = Field(description="epochs of the final training")
    lr: Positive = Field(description="learning rate (Adam)")
    weight_decay: NonNegative = Field(description="weight decay (Adam)")
    poly: Positive = Field(description="power of the rate's fall per epoch")

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or values.get("preset") not in BORROWED:
            return values
        preset = BORROWED[values["preset"]]
        return {**{name: getattr(preset, name) for name in _OF_PRESET}, **values}


class OfficialParams(MethodParams):
    """The official recipe of BMTAS. Read under `recipe: published` only."""

    search_epochs: Annotated[int, Field(ge=3)] = Field(default=160, description="E, epochs of the search")
    lr_weights: Positive = Field(default=1e-3, description="learning rate of the weights in the search, constant")
    wd_weights: NonNegative = Field(default=1e-4, description="weight decay of the weights in the search")
    retrain_epochs: Count = Field(default=130, description="epochs of the final training")
    retrain_lr: Positive = Field(
        default=0.005, description="learning rate of the final training (SGD) in its first epoch"
    )
    retrain_poly: Positive = Field(
        default=0.9, description="in epoch e from 0 the rate is retrain_lr (1 - e / E)^retrain_poly"
    )
    task_weights: dict[str, Positive] = Field(
        default=PASCAL_WEIGHTS, description="task weights, which the cell must have"
    )


OFFICIAL_BATCH = 16
OFFICIAL_SETTING = (
    "MobileNetV2 (pretrained) with R-ASPP and DeepLabV3+ heads at output stride 16, crops of 512 (256 in the search), "
    "flips, scales from 0.5 to 2"
)
MOMENTUM, RETRAIN_DECAY = 0.9, 1e-4  # of the official SGD


def steps_per_epoch(data: DatasetSpec, batch_size: int) -> tuple[int, int, int]:
    """Batches of an epoch over fit, arch, and both, incomplete ones dropped but never all of them.

    Raises UsageError for data without one set of images, where an epoch would mean several things.
    """
    if data.domains == "multi":
        raise UsageError(
            f"recipe: published counts epochs; every task of {data.name!r} has its own. Use recipe: suite."
        )
    n = data.splits["train"]
    n_fit = int(0.8 * n)
    fit, arch, both = (max(1, images // batch_size) for images in (n_fit, n - n_fit, n))
    return fit, arch, both


def poly_recipe(epochs: int, epoch_steps: int, power: float, optimizer: OptimizerSpec) -> FinalRecipe:
    """A training of `epochs` epochs whose rate falls as a polynomial after each of them."""
    return FinalRecipe(epochs * epoch_steps, dataclasses.replace(optimizer, decay_every=epoch_steps, poly=power))


def borrowed_recipe(data: DatasetSpec, params: BorrowedParams) -> FinalRecipe:
    """The final training of a preset. Raises UsageError for other tasks, channels or task weights than its own."""
    preset = BORROWED[params.preset]
    found = {task.name: task.channels for task in data.tasks}
    if found != dict(preset.channels):
        raise UsageError(
            f"Preset {params.preset!r} is about the tasks (channels) {_pairs(preset.channels)}; {data.name!r} has "
            f"{_pairs(found)}."
        )
    _require_weights(data, preset.task_weights, f"Preset {params.preset!r}")
    epoch = steps_per_epoch(data, preset.batch_size)[2]
    adam = OptimizerSpec("adam", params.lr, params.weight_decay)
    return poly_recipe(params.epochs, epoch, params.poly, adam)


def official_recipe(data: DatasetSpec, params: OfficialParams) -> FinalRecipe:
    """The official retraining of a tree. Raises UsageError for other task weights."""
    _require_weights(data, params.task_weights, "recipe: published")
    epoch = steps_per_epoch(data, OFFICIAL_BATCH)[2]
    sgd = OptimizerSpec("sgd", params.retrain_lr, RETRAIN_DECAY, MOMENTUM)
    return poly_recipe(params.retrain_epochs, epoch, params.retrain_poly, sgd)


def _require_weights(data: DatasetSpec, expected: Weights, name: str) -> None:
    found = {task.name: task.weight for task in data.tasks}
    if any(expected.get(task) != weight for task, weight in found.items()):
        raise UsageError(
            f"{name} weighs tasks {_pairs(expected)}; the cell has {_pairs(found)}. Weights are the cell's: set "
            "task_weights of its data."
        )


def _pairs(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in values.items())
