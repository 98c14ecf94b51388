"""Suites: what a YAML file says, validated, and the `Cell`s that it asks for. The plan is data; nothing here opens a
data set or builds a network.

Every key is checked (unknown keys are errors that name file, line, key and the nearest valid key); defaults are filled
in, so a cell's canonical JSON says everything that its result depends on.
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
from datasets.settings import Checked

MAX_SWEEP = 1_000  # rows of one entry: combinations multiply
WEIGHTS = ("none", "pretrained")  # what `weights` of a backbone takes beside a file
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
    """Optimizer of the weights. head_lr: rate of heads and added layers (measurement 4g); null takes `lr`."""

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: Positive = 0.05
    head_lr: Positive | None = None
    momentum: Fraction = 0.9
    nesterov: bool = False
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    weight_decay: NonNegative = 5e-4


class ScheduleSettings(Settings):
    """Factor on the learning rate over a stage; restarts with every stage. warmup, milestones: fractions of
    the stage.
    """

    name: Literal["cosine", "step", "poly", "constant"] = "cosine"
    warmup: Fraction = 0.05
    milestones: tuple[Fraction, ...] = (0.5, 0.75)
    gamma: Positive = 0.1
    power: Positive = 0.9


class BalancingSettings(Settings):
    """How task losses become gradients: `equal` sums the weighted losses, others are torchjd's
    (benchmark.plan.balancing). A bare name stands for one without params; a `{task: number}` among these is a vector.
    """

    name: str = "equal"
    params: dict[str, float | int | str | dict[str, float]] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _a_name_is_one(cls, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            raise ValueError(
                "is one way for all rows; a list, which makes a row of each, stands at the top level of the suite: "
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
    """What every row of a table trains with. `published` is set by a method's own recipe and shown red by the audit.

    augmentation: steps in order, each a name or a mapping with `name` and options (datasets.images.augmentation).
    max_loss: a training loss above it ends the cell as diverged. workers: loader processes for sets that are not
    cached.
    """

    name: Literal["suite", "published"] = "suite"
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    batch_size: Count = 64
    clip_norm: Positive | None = 5.0
    precision: Literal["fp32", "amp-bf16", "amp-fp16"] = "fp32"
    memory_format: MemoryFormat = "channels_last"
    balancing: BalancingSettings = BalancingSettings()
    augmentation: tuple[str | dict[str, Any], ...] = ()
    max_loss: Positive = 1e6
    workers: Annotated[int, Field(ge=0)] = 0


class SelectionSettings(Settings):
    """Which checkpoint of the final training is kept, and how train is cut into roles (measurement 1.4).

    evaluations: how often `best-on-select` looks at the select role, at equal distances. select_on: `test` re-enacts a
    published protocol that chose on its test images; such rows are red, unranked and say so everywhere.
    """

    rule: Literal["last", "best-on-select"] = "last"
    evaluations: Count = 5
    arch_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.20
    holdout_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.10
    select_on: Literal["select", "test"] = "select"


class BudgetSettings(Settings):
    """steps: batches of the final training, equal for every row. cycles: parts that time inside a stage counts in."""

    steps: Count = 100
    cycles: Count = 20


class DataSettings(Settings):
    """A data set with protocol, tasks and task weights; null tasks takes the data set's default ones."""

    dataset: str
    protocol: str = "standard"
    layout: str | None = None
    tasks: tuple[str, ...] | None = None
    task_weights: dict[str, Positive] = Field(default_factory=dict)
    options: dict[str, bool | int | float | str] = Field(default_factory=dict)

    @field_validator("tasks")
    @classmethod
    def _some_and_unique(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and (not value or len(set(value)) != len(value)):
            raise ValueError("tasks must be a non-empty list of different names")
        return value


class BackboneSettings(Settings):
    """A timm backbone. weights: `none`, `pretrained`, or a file relative to the suite's; equal initial weights for all
    rows.
    dilation: of the first convolution of a dilated stage, see `methods.backbones.family.BackboneConfig`.

    Images come in the data set's size. Vision transformers are built for it.
    """

    name: str
    weights: str = "none"
    in_chans: Literal[1, 3] = 3
    output_stride: Literal[8, 16, 32] = 32
    zero_init_last: bool = False
    drop_path: Fraction = 0.0
    dropout: Fraction = 0.0
    dilation: Literal["timm", "deeplab"] = "timm"


class HeadSettings(Settings):
    """Heads of tasks with a label for every pixel: name of the decoder, and its width inside (null: as published)."""

    dense: str = "conv1x1"
    hidden: Count | None = None


class MethodSettings(Settings):
    """A method and those of its parameters that differ from their defaults."""

    name: str
    params: dict[str, Any] = Field(default_factory=dict)


class MethodEntry(MethodSettings):
    """An entry of a suite's methods. sweep: `{budget: [1.0, 1.5, 2.0]}` makes a row of every value, with several
    parameters of every combination; `a.b` is the parameter b of section a. balancing: of this entry alone, in place of
    the suite's; one, or a list that makes a row of each.
    """

    balancing: Balancings | None = None
    sweep: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = Field(default_factory=dict)

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
        """One setting for every combination of swept values, the last parameter fastest. Raises ValueError for a
        parameter that is given twice.
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
    """The section that a dotted name leads to, made where it is not there, and the last key. Raises ValueError."""
    for key in keys[:-1]:
        child = params.setdefault(key, {})
        if not isinstance(child, dict):
            raise ValueError(f"{key!r} is a value, not a section")
        params = child
    return params, keys[-1]


class Suite(Settings):
    """What was asked for: the product of data sets, backbones, methods with their loss balancing, and seeds.

    balancing: of every method that has none of its own; a list makes a row of each. What has one task is not balanced
    and stands once. It takes the place of `recipe.balancing`, which says the same of one for all rows.
    plugins: Python files that register methods and data sets of their own, relative to the suite's file.
    """

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
    balancing: Balancings | None = None
    plugins: tuple[str, ...] = ()

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
        """The cells in a fixed order: data, backbone, seed, method; so that the rows of a comparison appear
        together.
        """
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
    """One training to one record. `benchmark.plan.cells.resolve` fills in what only registries know.

    own_balancing: its method's entry asks for the loss balancing, not the suite as a whole; no part of its identity.
    """

    method: MethodSettings
    data: DataSettings
    backbone: BackboneSettings
    head: HeadSettings = HeadSettings()
    recipe: RecipeSettings
    selection: SelectionSettings
    budget: BudgetSettings
    seed: int
    own_balancing: bool = False


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def make_absolute(document: dict[str, Any], folder: Path) -> None:
    """Paths of a suite are relative to its file; workers and later runs do not know where that was."""
    if isinstance(document.get("plugins"), list):
        document["plugins"] = [str((folder / str(file)).resolve()) for file in document["plugins"]]
    if isinstance(document.get("backbones"), list):
        document["backbones"] = [
            {**entry, "weights": str((folder / entry["weights"]).resolve())}
            if isinstance(entry, dict) and isinstance(entry.get("weights"), str) and entry["weights"] not in WEIGHTS
            else entry
            for entry in document["backbones"]
        ]
