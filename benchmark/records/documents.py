"""What the JSON of a record holds: the types that readers rely on, and the check of a file against them.

A field that has no type here is kept as it is; tables do not read it, or read it as text. Spec: measurement 9.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, PlainValidator, TypeAdapter, ValidationError, with_config
from typing_extensions import NotRequired, TypedDict  # pydantic reads no other TypedDict before Python 3.12

from datasets.errors import first_fault

STAYED = 0.1  # largest change of a probability below which a search has not left its start (evidence 3)
LARGEST = 1e100  # a number beyond it is not a measurement; sums of squares of smaller ones are finite

# The role of a method's row in its table: baseline of Delta_m, or the row that all others are tested against. The
# latter is also the control of search cost if it trains for the whole budget of a search.
Reference = Literal["single_task", "shared"]
Account = Literal["search", "final"]


def _metric_value(value: object) -> object:
    if value is None or (isinstance(value, float) and abs(value) <= LARGEST):
        return value
    raise ValueError(f"expected null or a float within {LARGEST:g}")  # not an int: 1 and 1.0 must not both occur


def _number(value: object) -> object:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if value is None or (is_number and abs(value) <= LARGEST):  # type: ignore[arg-type]
        return value
    raise ValueError(f"expected null or a number within {LARGEST:g}")


Number = Annotated[float | None, PlainValidator(_number)]
_open = with_config(ConfigDict(extra="allow"))


class MetricEntry(TypedDict):
    """One metric as stored; value is None if no unit was valid or a prediction was not finite."""

    value: Annotated[float | None, PlainValidator(_metric_value)]
    unit: str
    higher_is_better: bool
    n_units: int
    n_nonfinite: int
    detail: Mapping[str, object]


class ErrorEntry(TypedDict):
    """Why a cell is not done: class of the error, one line, and where it happened as far as known."""

    kind: str
    message: str
    stage: str | None
    step: int | None
    task: str | None


class Fact(TypedDict):
    """One number that a method reports about its result; value is None if it could not be computed."""

    value: float | None
    unit: str


class Movement(TypedDict):
    """How far the probabilities of a search went from its start: the largest and the mean absolute change; None if one
    was not finite.
    """

    largest: Number
    mean: Number


def stayed(movement: Movement) -> bool:
    """Whether a search ended where it began."""
    return movement["largest"] is None or movement["largest"] < STAYED


class ArtifactEntry(TypedDict):
    """A file beside the records; `file` is relative to the store's root, with forward slashes."""

    kind: str
    file: str
    sha256: str


# The cell


@_open
class BalancingDocument(TypedDict):
    """A loss balancing with its parameters."""

    name: str
    params: NotRequired[dict[str, object]]


@_open
class MethodDocument(TypedDict):
    """A method with all its parameters, defaults filled in. lr_factor: on the recipe's rates, of a tuned row."""

    name: str
    params: dict[str, object]
    lr_factor: NotRequired[float]


@_open
class DataDocument(TypedDict):
    """A data set as a cell uses it."""

    dataset: str
    protocol: str
    tasks: list[str]
    layout: NotRequired[str | None]
    options: NotRequired[dict[str, object]]
    task_weights: NotRequired[dict[str, float]]


@_open
class BackboneDocument(TypedDict):
    """A timm backbone. weights: `none`, `pretrained`, or `file-` and the start of the file's sha256."""

    name: str
    weights: str
    in_chans: NotRequired[int]
    output_stride: NotRequired[int]


@_open
class RecipeDocument(TypedDict):
    """What the networks were trained with."""

    name: str
    batch_size: NotRequired[int]
    balancing: NotRequired[BalancingDocument]


@_open
class SelectionDocument(TypedDict):
    """How the checkpoint was chosen. select_on: `test` if on the report role; absent means `select`."""

    rule: str
    select_on: NotRequired[str]


@_open
class BudgetDocument(TypedDict):
    """steps: batches of the final training."""

    steps: int


@_open
class TunedDocument(TypedDict):
    """The tuning that a table stands on. seed: of its trials. single_task: {task: factor on the learning rate}."""

    seed: int
    single_task: dict[str, float]


@_open
class CellDocument(TypedDict):
    """One training as asked for: everything that its result depends on, so its hash is the key of the record.

    part: `tune` for a trial, whose record has metrics of select and none of report. tuned: in tables of equal tuning.
    Both are absent from all other cells, whose keys are older.
    """

    method: MethodDocument
    data: DataDocument
    backbone: BackboneDocument
    head: NotRequired[dict[str, object]]
    recipe: RecipeDocument
    selection: SelectionDocument
    budget: BudgetDocument
    seed: int
    part: NotRequired[str]
    tuned: NotRequired[TunedDocument]


# What a run found. Fields may be absent: records of older versions lack some.


@_open
class NormalisationDocument(TypedDict):
    """Images in [0, 1] -> (x - mean) / std per channel. bgr: channels in the order blue, green, red."""

    mean: list[float]
    std: list[float]
    bgr: bool


@_open
class SelectedDocument(TypedDict, total=False):
    """step: of the final training that was kept. metrics: of a trial, on select."""

    step: object
    metrics: dict[str, dict[str, MetricEntry]]


@_open
class TuningDocument(TypedDict):
    """How the settings of a row were chosen: settings tried, values chosen, those at an edge of their range, and the
    spread of the scores (mean relative gain on select, percent).
    """

    tried: int
    chosen: dict[str, Number]
    edges: list[str]
    scores: list[Number]


@_open
class Audit(TypedDict, total=False):
    """What a fair comparison must hold equal or say (measurement 6), beside what cell, versions and costs say already.

    non_default_params: of the method. search_roles: those whose images updated weights before the final training.
    draws: final networks trained for one row. recipe: `published` if the method trains by its own. developed_here:
    whether a default was chosen by trials on this data set. tier: how well the reader of the data is verified.
    channels, units: {task: value}. weights_tag: timm's tag of the pretrained weights, empty for others. weights_entry:
    which of a checkpoint's state dicts was loaded. batch_norm: norm rule of the final network. input_size: height,
    width. facts, flags, chosen: what the method reports about its result. search_space: where it looks for an
    architecture, see `methods.contracts.Method`. search_moved: how far the search of a method that is not a random
    control went, {what it chooses by: change}. last_fifths: {task: mean training loss of the fourth and of the last
    fifth of the final training}.
    """

    reference: Reference | None
    random_architecture: bool
    non_default_params: dict[str, object]
    tuning_trials: int
    tuning: TuningDocument
    search_roles: list[str]
    draws: int
    recipe: str
    developed_here: bool
    extra_data: str
    loaders: str
    tier: str
    channels: dict[str, int]
    weights_tag: str
    weights_entry: str
    fidelity: list[str]
    normalisation: NormalisationDocument
    units: dict[str, str]
    batch_norm: str
    input_size: list[int]
    facts: dict[str, Fact]
    flags: list[str]
    chosen: list[str]
    search_space: str
    last_fifths: dict[str, list[Number]]
    search_moved: dict[str, Movement]


@_open
class SizeDocument(TypedDict, total=False):
    """Parameter counts of the deployed network; x_backbone: relative to the plain backbone. active: {task: count}."""

    total: Number
    dense: Number
    nonzero: Number
    x_backbone: Number
    active: dict[str, Number]


@_open
class ComputeDocument(TypedDict, total=False):
    """Multiply-accumulates for one input. macs_joint: all tasks on one image, None if tasks have their own images."""

    macs_joint: Number
    macs_sum: Number


@_open
class SpendingDocument(TypedDict, total=False):
    """Cost of a part of the training. images: in the batches drawn; a batch counts once, however many steps it made."""

    optimizer_steps: Number
    images: Number
    seconds: Number


@_open
class CostDocument(TypedDict, total=False):
    """Cost of the training before the final one (search) and of the final one. tuning: of all trials of the row.

    weight_steps: most updates that a deployed weight has received. peak_bytes: of training and evaluation.
    """

    weight_steps: int
    search: SpendingDocument
    final: SpendingDocument
    tuning: SpendingDocument
    peak_bytes: int | None
    evaluation_peak_bytes: int | None
    evaluation_seconds: Number
    io_seconds: Number
    unrun_seconds: Number


@_open
class EnvironmentDocument(TypedDict, total=False):
    """The machine. device: `cpu` or a GPU's name. env: variables that change bits or speed. git: commit, dirty."""

    device: str
    driver: str | None
    cpu: str
    cpu_capability: str | None
    platform: str
    threads: dict[str, int]
    env: dict[str, str]
    determinism: dict[str, bool | str]
    git: dict[str, str | bool | None]


@_open
class GraphDocument(TypedDict, total=False):
    """The stored task graph. hash: what speed is stored under."""

    hash: str
    file: str


@with_config(ConfigDict(extra="forbid"))
class RecordDocument(TypedDict):
    """The fields of `Record`."""

    schema: int
    cell: CellDocument
    status: str
    error: ErrorEntry | None
    attempts: int
    started: str
    finished: str
    versions: dict[str, str | None]
    environment: EnvironmentDocument
    roles: dict[str, str]
    n_evaluated: dict[str, int]
    selected: SelectedDocument
    metrics: dict[str, dict[str, MetricEntry]]
    size: SizeDocument
    compute: ComputeDocument
    cost: CostDocument
    audit: Audit
    reused_from: list[str]
    graph: GraphDocument
    curves: dict[str, list[float | None]]
    artifacts: dict[str, ArtifactEntry]
    samples: dict[str, object]
    result_hash: str
    record_hash: str


def problem_of(document: object) -> str | None:
    """The first fault of a parsed file, or None if every field that readers rely on has its type."""
    try:
        _checker().validate_python(document, strict=True)
    except ValidationError as error:
        fault = first_fault(error)
        words = {"missing": f"{fault.where} is missing", "extra_forbidden": f"unknown field {fault.where!r}"}
        return words.get(fault.kind, f"{fault.where} has the wrong type or value: {fault.text}")
    return None


@functools.lru_cache(maxsize=1)
def _checker() -> TypeAdapter[Any]:
    return TypeAdapter(RecordDocument)
