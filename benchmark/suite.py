"""Suites: YAML -> validated `Suite` -> list of `Cell`s. The plan is data; nothing here opens a data set or builds a
network.

Every key is checked (unknown keys are errors that name file, line, key and the nearest valid key); defaults are filled
in, so a cell's canonical JSON says everything that its result depends on.
"""

from __future__ import annotations

import copy
import itertools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from benchmark.yaml_text import Location, parse_yaml
from datasets.errors import UnknownNameError, UsageError, nearest, unknown
from datasets.settings import Checked

SUITES = Path(__file__).parent / "suites"
MAX_SUITE_BYTES = 100_000  # a suite is a page of text; a larger file is a mistake or an attack
MAX_SWEEP = 1_000  # rows of one entry: combinations multiply
WEIGHTS = ("none", "pretrained")  # what `weights` of a backbone takes beside a file
_BALANCING = "balancing"


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
    """How task losses become gradients: `equal` sums the weighted losses, others are torchjd's (benchmark.balancing).
    A bare name stands for one without params; a `{task: number}` among these is a vector.
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

    augmentation: steps in order, each a name or a mapping with `name` and options (datasets.augmentation).
    max_loss: a training loss above it ends the cell as diverged. workers: loader processes for sets that are not
    cached.
    """

    name: Literal["suite", "published"] = "suite"
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    batch_size: Count = 64
    clip_norm: Positive | None = 5.0
    precision: Literal["fp32", "amp-bf16", "amp-fp16"] = "fp32"
    channels_last: bool = False
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
    dilation: of the first convolution of a dilated stage, see `methods.backbone_family.BackboneConfig`.

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
                section, key = _section(params, name.split("."))
                if key in section:
                    raise ValueError(f"{name} is swept and given in params too; keep one of them")
                section[key] = value
            yield MethodSettings(name=self.name, params=params)


def _section(params: dict[str, Any], keys: Sequence[str]) -> tuple[dict[str, Any], str]:
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
    """One training to one record. `benchmark.planning.resolve` fills in what only registries know.

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


def suite_names() -> list[str]:
    """Suites that ship with the package."""
    return sorted(path.stem for path in SUITES.glob("*.yaml"))


def find_suite(name: str) -> Path:
    """File of a shipped suite, or the path itself: what ends in .yaml or .yml or has a separator. A bare name is a
    shipped suite whatever lies in the working directory. Raises UnknownNameError.
    """
    path = Path(name)
    if path.suffix in {".yaml", ".yml"} or any(mark in name for mark in (os.sep, os.altsep) if mark):
        if not path.is_file():
            raise UsageError(f"Suite file {name!r} does not exist. Shipped suites: {', '.join(suite_names())}.")
        return path
    if name not in suite_names():
        hint = f" A file is given as a path: ./{name}." if path.is_file() else ""
        raise UnknownNameError(f"{unknown('suite', name, suite_names())}{hint}")
    return SUITES / f"{name}.yaml"


def read_suite(path: Path, changes: Mapping[str, Any] | None = None, settings: Sequence[str] = ()) -> Suite:
    """The suite in a file. changes: top-level keys to replace; settings: `a.b=c` assignments.

    Raises UsageError that names file, line and key for anything that is not a valid suite.
    """
    try:
        size = path.stat().st_size
        if size > MAX_SUITE_BYTES:
            raise UsageError(f"{path}: {size} bytes; a suite has at most {MAX_SUITE_BYTES}.")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is not UTF-8 text (byte {error.start}).") from error
    document, lines = parse_yaml(text, str(path))
    if not isinstance(document, dict):
        raise UsageError(f"{path}: a suite is a mapping of keys, not {type(document).__name__}.")
    document.update(changes or {})
    for assignment in settings:
        _assign(document, assignment)
    _make_absolute(document, path.parent)
    try:
        return Suite.model_validate(document)
    except ValidationError as error:
        raise UsageError(_explain(error, path, lines)) from error


def _make_absolute(document: dict[str, Any], folder: Path) -> None:
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


def _assign(document: dict[str, Any], assignment: str) -> None:
    """Apply `a.b=c`: a top-level section of the suite, or `method.key` for the parameters of all entries of a method.
    `balancing=c` and `method.balancing=c` set the loss balancing of all methods, or of one.
    """
    path, separator, text = assignment.partition("=")
    keys = path.strip().split(".")
    if not separator or (len(keys) < 2 and keys != [_BALANCING]):
        raise UsageError(f"--set {assignment!r}: expected section.key=value, for example recipe.batch_size=32.")
    value, _ = parse_yaml(text, f"--set {assignment!r}")
    targets: list[dict[str, Any]]
    entries: list[dict[str, Any]] = []
    if keys[0] == _BALANCING:
        targets, keys = [document], ["", *keys]
    elif keys[0] in {"recipe", "budget", "selection"}:
        targets = [document.setdefault(keys[0], {})]
    else:
        entries = _method_entries(document, keys[0])
        own = keys[1:] == [_BALANCING]
        targets = entries if own else [entry.setdefault("params", {}) for entry in entries]
    for target in targets:
        try:
            section, key = _section(target, keys[1:])
        except ValueError as error:
            raise UsageError(f"--set {assignment!r}: {error}.") from error
        section[key] = value
    if entries:  # rows that differed in this alone are one row now
        methods = document["methods"]
        methods[:] = [entry for position, entry in enumerate(methods) if entry not in methods[:position]]


def _method_entries(document: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """All entries of a method, in place: a row and its control are to be changed alike."""
    methods = document["methods"] if isinstance(document.get("methods"), list) else []
    methods[:] = [{"name": entry} if entry == name else entry for entry in methods]
    found = [entry for entry in methods if isinstance(entry, dict) and entry.get("name") == name]
    if not found:
        names = [entry if isinstance(entry, str) else str(entry.get("name")) for entry in methods]
        raise unknown("section of --set", name, ["recipe", "budget", "selection", _BALANCING, *names])
    return found


def _explain(error: ValidationError, path: Path, lines: Mapping[Location, int]) -> str:
    """One line for the first fault: file, line, key path, what is wrong, nearest valid key."""
    fault = error.errors()[0]
    # A union adds the name of the branch that was tried; the lines only know the document's own keys.
    location = tuple(fault["loc"])
    known = next((location[:n] for n in range(len(location), -1, -1) if location[:n] in lines), ())
    where = f"{path}, line {lines[known]}" if known else str(path)
    key = ".".join(str(part) for part in location)
    if fault["type"] == "extra_forbidden":
        allowed = _fields_at(location[:-1])
        hint = f" Nearest: {', '.join(nearest(str(location[-1]), allowed))}. Known: {', '.join(allowed)}."
        hint = hint if allowed else ""
        return f"{where}: unknown key {key!r}.{hint}"
    given = "" if fault["type"] == "missing" else f" (given: {fault['input']!r})"
    return f"{where}: {key}: {fault['msg'].removeprefix('Value error, ')}{given}."[:500]


def _fields_at(location: Location) -> list[str]:
    """Names of the settings that may stand at a place of a suite."""
    model: type[BaseModel] = Suite
    for part in location:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part)
        inner = _model_in(field.annotation) if field else None
        if inner is None:
            return []
        model = inner
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _model_in(argument)
        if found is not None:
            return found
    return None
