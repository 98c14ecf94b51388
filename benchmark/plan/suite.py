"""Suites: the settings of a YAML file, validated, and the `Cell`s that it asks for. The plan is data; nothing here
opens a data set or builds a network.

Every key is checked, and an unknown key is an error that names file, line, key and the nearest valid key. Defaults are
filled in, so that a cell's canonical JSON holds everything that its result depends on.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from benchmark.records.measurements import MemoryFormat
from datasets.registry import DataChoice
from datasets.settings import Checked

MAX_SWEEP = 1_000  # rows of one entry: combinations multiply
WEIGHTS = ("none", "pretrained")  # values of a backbone's `weights` that are not a file
BALANCING = "balancing"


class Settings(Checked):
    """Base of all configuration: `datasets.settings.Checked`, and numbers are finite."""

    model_config = ConfigDict(allow_inf_nan=False)


Name = Annotated[str, Field(pattern=r"^[a-z0-9_-]+$")]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]


class OptimizerSettings(Settings):
    """Optimizer of the weights."""

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: Positive = 0.05
    head_lr: Positive | None = Field(
        default=None, description="learning rate of heads and added layers (measurement 4g); null takes `lr`"
    )
    momentum: Fraction = Field(default=0.9, description="of sgd")
    nesterov: bool = Field(default=False, description="of sgd")
    betas: tuple[Fraction, Fraction] = Field(default=(0.9, 0.999), description="of adam and adamw")
    weight_decay: NonNegative = 5e-4

    def scaled(self, factor: float) -> OptimizerSettings:
        """With every learning rate multiplied by a factor."""
        head_lr = None if self.head_lr is None else self.head_lr * factor
        return self.model_copy(update={"lr": self.lr * factor, "head_lr": head_lr})


class ScheduleSettings(Settings):
    """Factor on the learning rate over a stage; it restarts with every stage."""

    name: Literal["cosine", "step", "poly", "constant"] = "cosine"
    warmup: Fraction = Field(default=0.05, description="part of the stage in which the factor rises to 1")
    milestones: tuple[Fraction, ...] = Field(
        default=(0.5, 0.75), description="of `step`: fractions of the stage at which the factor is multiplied by gamma"
    )
    gamma: Positive = Field(default=0.1, description="of `step`")
    power: Positive = Field(default=0.9, description="of `poly`: exponent of the remaining part of the stage")


class BalancingSettings(Settings):
    """How task losses become gradients. In YAML, a bare name is short for a balancing without params."""

    name: str = Field(
        default="equal",
        description="`equal` sums the weighted losses; the others are torchjd's, see benchmark.plan.balancing",
    )
    params: dict[str, float | int | str | dict[str, float]] = Field(
        default_factory=dict, description="arguments of the balancing; `{task: number}` is a vector over the tasks"
    )

    @model_validator(mode="before")
    @classmethod
    def _a_name_is_one(cls, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            raise ValueError(
                "is one way for all rows; a list, which makes a row of each, belongs at the top level of the suite: "
                "balancing: [equal, uncertainty]"
            )
        return {"name": value} if isinstance(value, str) else value


def _one_or_several(value: Any) -> Any:
    return value if isinstance(value, (list, tuple)) else [value]


def _different(value: tuple[BalancingSettings, ...]) -> tuple[BalancingSettings, ...]:
    for position, settings in enumerate(value):
        if settings in value[:position]:
            raise ValueError(f"lists {settings.name} twice with equal params")
    return value


Balancings = Annotated[
    tuple[BalancingSettings, ...], Field(min_length=1), BeforeValidator(_one_or_several), AfterValidator(_different)
]


class RecipeSettings(Settings):
    """How every row of a table is trained."""

    name: Literal["suite", "published"] = Field(
        default="suite", description="`published` states that the settings are those of a paper"
    )
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    batch_size: Count = 64
    clip_norm: Positive | None = Field(default=5.0, description="largest norm of the gradient; null does not clip")
    precision: Literal["fp32", "amp-bf16", "amp-fp16"] = "fp32"
    memory_format: MemoryFormat = "channels_last"
    balancing: BalancingSettings = BalancingSettings()
    augmentation: tuple[str | dict[str, Any], ...] = Field(
        default=(),
        description="steps in order, each a name or a mapping with `name` and options (datasets.images.augmentation)",
    )
    max_loss: Positive = Field(default=1e6, description="a training loss above it ends the cell as diverged")
    workers: int = Field(default=0, ge=0, description="loader processes, for data sets that are not cached")

    def scaled(self, factor: float) -> RecipeSettings:
        """With every learning rate multiplied by a factor."""
        return self.model_copy(update={"optimizer": self.optimizer.scaled(factor)})


class SelectionSettings(Settings):
    """Which checkpoint of the final training is kept, and how the train split is cut into roles (measurement 1.4)."""

    rule: Literal["last", "best-on-select"] = "last"
    evaluations: Count = Field(
        default=5, description="of `best-on-select`: number of evaluations on the select role, evenly spaced"
    )
    arch_fraction: float = Field(default=0.20, gt=0, lt=1, description="part of the training samples with role arch")
    holdout_fraction: float = Field(
        default=0.10, gt=0, lt=1, description="part held out for the select role if there is no val split"
    )
    select_on: Literal["select", "test"] = Field(
        default="select",
        description="`test` re-enacts a published protocol that chose on its test images; such rows are red, unranked "
        "and marked everywhere",
    )


class BudgetSettings(Settings):
    """How long every row is trained."""

    steps: Count = Field(default=100, description="batches of the final training")
    cycles: Count = Field(default=20, description="equal parts of a stage: the unit of time within it")


class DataSettings(Settings):
    """A data set and what of it is learnt. In YAML, a bare name is short for a data set with its defaults."""

    dataset: str
    protocol: str = "standard"
    layout: str | None = Field(default=None, description="of the files on disk; null takes the one that is found")
    tasks: tuple[str, ...] | None = Field(default=None, description="null takes the data set's default tasks")
    task_weights: dict[str, Positive] = Field(
        default_factory=dict, description="factors on the losses; absent tasks keep the data set's weight"
    )
    options: dict[str, bool | int | float | str] = Field(
        default_factory=dict, description="of this data set, see `list NAME`"
    )

    @property
    def choice(self) -> DataChoice:
        """What of it decides which samples there are."""
        return DataChoice(self.dataset, self.protocol, self.layout, self.tasks, self.options)

    @field_validator("tasks")
    @classmethod
    def _some_and_unique(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and (not value or len(set(value)) != len(value)):
            raise ValueError("tasks must be a non-empty list of different names")
        return value


class BackboneSettings(Settings):
    """A timm backbone, with the same initial weights for all rows. Images have the size of the data set; vision
    transformers are built for it.
    """

    name: str
    weights: str = Field(default="none", description="`none`, `pretrained`, or a file relative to the suite's")
    in_chans: Literal[1, 3] = 3
    output_stride: Literal[8, 16, 32] = 32
    zero_init_last: bool = Field(default=False, description="the last norm of every residual branch starts at 0")
    drop_path: Fraction = Field(default=0.0, description="largest rate of stochastic depth")
    dropout: Fraction = Field(default=0.0, description="rate before the last layer of a head")
    dilation: Literal["timm", "deeplab"] = Field(
        default="timm",
        description="of the first convolution of a dilated stage, see methods.backbones.family.BackboneConfig",
    )
    patch: Count | None = Field(
        default=None, description="side of a transformer's patches in pixels; null as the model was made"
    )


class HeadSettings(Settings):
    """Heads of tasks with a label for every pixel."""

    dense: str = Field(default="conv1x1", description="name of the decoder")
    hidden: Count | None = Field(default=None, description="channels inside the decoder; null takes the published ones")


class MethodSettings(Settings):
    """A method and its parameters."""

    name: str
    params: dict[str, Any] = Field(default_factory=dict, description="those that differ from the method's defaults")


class MethodEntry(MethodSettings):
    """An entry of a suite's methods, which may make several rows. In YAML, a bare name is short for a method with its
    defaults.
    """

    balancing: Balancings | None = Field(
        default=None, description="of this entry, in place of the suite's; a list makes a row of each"
    )
    sweep: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = Field(
        default_factory=dict,
        description="`{budget: [1.0, 1.5, 2.0]}` makes a row of every value, several parameters a row of every "
        "combination; `a.b` is the parameter b of section a",
    )

    @field_validator("sweep")
    @classmethod
    def _different_values(cls, value: dict[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
        for name, values in value.items():
            seen: set[str] = set()
            for text in map(repr, values):
                if text in seen:
                    raise ValueError(f"{name} lists {text} twice")
                seen.add(text)
        if (n_rows := math.prod(map(len, value.values()))) > MAX_SWEEP:
            raise ValueError(f"makes {n_rows} rows of one entry; expected at most {MAX_SWEEP}")
        return value

    @model_validator(mode="after")
    def _swept_once(self) -> MethodEntry:
        next(self.rows())
        return self

    def rows(self) -> Iterator[MethodSettings]:
        """One setting for every combination of swept values; the last parameter varies fastest.

        Raises ValueError for a parameter that is given twice.
        """
        for values in itertools.product(*self.sweep.values()):
            params = copy.deepcopy(self.params)
            for name, value in zip(self.sweep, values, strict=True):
                section, key = section_of(params, name.split("."))
                if key in section:
                    raise ValueError(f"{name} is swept and given in params too; keep one of them")
                section[key] = value
            yield MethodSettings(name=self.name, params=params)


def section_of(params: dict[str, Any], keys: Sequence[str]) -> tuple[dict[str, Any], str]:
    """The section that a dotted name leads to, created if absent, and the last key. Raises ValueError if one of the
    keys holds a value.
    """
    for key in keys[:-1]:
        child = params.setdefault(key, {})
        if not isinstance(child, dict):
            raise ValueError(f"{key!r} is a value, not a section")
        params = child
    return params, keys[-1]


class TuningSettings(Settings):
    """What a tuning has chosen for a cell, and what that took. The first three are in the cell's key."""

    seed: int = Field(description="of the trials; no table reports it")
    single_task: dict[str, Positive] = Field(
        description="{task: factor on the learning rate} of the single-task networks of all rows"
    )
    lr_factor: Positive = Field(default=1.0, description="factor on the recipe's learning rates, of this row")
    trials: Count = Field(default=1, description="that every row may have; a small space is exhausted before")
    tried: Count = 1
    steps: int = Field(default=0, ge=0, description="optimizer steps of all trials of the row")
    chosen: dict[str, float | None] = Field(default_factory=dict)
    edges: tuple[str, ...] = Field(default=(), description="what was chosen at an edge of its range")
    scores: tuple[float | None, ...] = Field(default=(), description="mean relative gains on select, in percent")


class Suite(Settings):
    """A benchmark as asked for: the product of data sets, backbones, methods with their loss balancing, and seeds."""

    name: Name
    description: str = ""
    data: Annotated[tuple[DataSettings, ...], Field(min_length=1)]
    backbones: Annotated[tuple[BackboneSettings, ...], Field(min_length=1)]
    methods: Annotated[tuple[MethodEntry, ...], Field(min_length=1)]
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0, 1, 2)
    budget: BudgetSettings = BudgetSettings()
    head: HeadSettings = HeadSettings()
    recipe: RecipeSettings = RecipeSettings()
    selection: SelectionSettings = SelectionSettings()
    balancing: Balancings | None = Field(
        default=None,
        description="of every method whose entry names none, in place of `recipe.balancing`; a list makes a row of "
        "each. Cells with one task are not balanced and appear once",
    )
    leaderboard: bool = Field(
        default=False,
        description="its tables call themselves a leaderboard: what they lack of its evidence is printed first",
    )
    plugins: tuple[str, ...] = Field(
        default=(), description="Python files that register methods and data sets, relative to the suite's file"
    )
    tuned: str | None = Field(
        default=None,
        description="page of `benchmark.tune` with the settings of every row, relative to the suite's file",
    )

    @model_validator(mode="after")
    def _balanced_once(self) -> Suite:
        if self.balancing is not None and "balancing" in self.recipe.model_fields_set:
            raise ValueError("balancing and recipe.balancing are both given; keep one of them")
        return self

    @field_validator("methods", mode="before")
    @classmethod
    def _names_are_methods(cls, value: Any) -> Any:
        return [{"name": entry} if isinstance(entry, str) else entry for entry in value] if _is_list(value) else value

    @field_validator("backbones", mode="before")
    @classmethod
    def _names_are_backbones(cls, value: Any) -> Any:
        return [{"name": entry} if isinstance(entry, str) else entry for entry in value] if _is_list(value) else value

    @field_validator("data", mode="before")
    @classmethod
    def _names_are_data(cls, value: Any) -> Any:
        return (
            [{"dataset": entry} if isinstance(entry, str) else entry for entry in value] if _is_list(value) else value
        )

    def cells(self) -> Iterator[Cell]:
        """The cells in the order data, backbone, seed, method, so that the rows of a comparison come together."""
        usual = self.balancing or (self.recipe.balancing,)
        rows = [
            (row, self.recipe.model_copy(update={"balancing": balancing}), entry.balancing is not None)
            for entry in self.methods
            for row in entry.rows()
            for balancing in entry.balancing or usual
        ]
        for data, backbone, seed, row in itertools.product(self.data, self.backbones, self.seeds, rows):
            method, recipe, own = row
            yield Cell(
                method=method,
                data=data,
                backbone=backbone,
                head=self.head,
                recipe=recipe,
                selection=self.selection,
                budget=self.budget,
                seed=seed,
                own_balancing=own,
            )


class Cell(Settings):
    """One training, which makes one record. `benchmark.plan.cells.resolve` fills in what only registries know."""

    method: MethodSettings
    data: DataSettings
    backbone: BackboneSettings
    head: HeadSettings = HeadSettings()
    recipe: RecipeSettings
    selection: SelectionSettings
    budget: BudgetSettings
    seed: int
    own_balancing: bool = Field(
        default=False,
        description="whether the method's entry asks for the loss balancing, not the suite; not part of the key",
    )
    part: Literal["tune"] | None = Field(
        default=None, description="`tune` is a trial: judged on select, it never opens the report role"
    )
    tuning: TuningSettings | None = None

    @property
    def lr_factor(self) -> float:
        """On the recipe's learning rates, for what this row trains itself."""
        return 1.0 if self.tuning is None else self.tuning.lr_factor

    def single_task_factor(self, task: str) -> float:
        """On the recipe's learning rates, for the single-task network of a task."""
        return 1.0 if self.tuning is None else self.tuning.single_task[task]


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def make_absolute(document: dict[str, Any], folder: Path) -> None:
    """Make the paths of a suite absolute: they are relative to its file, which workers do not know."""
    if isinstance(document.get("plugins"), list):
        document["plugins"] = [str((folder / str(file)).resolve()) for file in document["plugins"]]
    if isinstance(document.get("tuned"), str):
        document["tuned"] = str((folder / document["tuned"]).resolve())
    if isinstance(document.get("backbones"), list):
        document["backbones"] = [
            {**entry, "weights": str((folder / entry["weights"]).resolve())}
            if isinstance(entry, dict) and isinstance(entry.get("weights"), str) and entry["weights"] not in WEIGHTS
            else entry
            for entry in document["backbones"]
        ]
