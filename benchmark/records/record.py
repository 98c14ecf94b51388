"""What a record is: fields, hashes, and the checks that a file must pass. Spec: measurement 9.

Nothing here opens a file (`benchmark.records.store` does) or imports torch: reports must start fast.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, cast

from pydantic import ConfigDict, PlainValidator, TypeAdapter, ValidationError, with_config
from typing_extensions import NotRequired, TypedDict  # pydantic reads no other TypedDict before Python 3.12

from benchmark.records.keys import canonical_json, cell_key, value_at
from datasets.errors import UsageError

if TYPE_CHECKING:
    from methods.contracts import Metrics

SCHEMA = 1
STATUSES = ("done", "diverged", "failed", "oom", "timeout", "interrupted")
INVALID = "invalid"  # what reading makes of a file that is not a record; never written
MAX_DEPTH = 50  # of nested values
LARGEST = 1e100  # a number beyond it is no measurement; sums of squares of smaller ones are finite
_MAX_DIGITS = 300  # an integer of so many is finite as a float
_ZEROS = "0" * 64
_DIGEST = re.compile(r"[0-9a-f]{64}")


def _metric_value(value: object) -> object:
    if value is None or (isinstance(value, float) and abs(value) <= LARGEST):
        return value
    raise ValueError(f"expected null or a float within {LARGEST:g}")  # not an int: 1 and 1.0 must not both occur


_some = with_config(ConfigDict(extra="allow"))  # what more there is, tables do not read, or as text only


class MetricEntry(TypedDict):
    """One measured value as stored; value is None where no unit was valid or a prediction was not finite."""

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
    """One number about what a method found, in the audit part of a record; value is None where it could not be had."""

    value: float | None
    unit: str


class ArtifactEntry(TypedDict):
    """A file beside the records; `file` is relative to the store's root, with forward slashes."""

    kind: str
    file: str
    sha256: str


@_some
class _Named(TypedDict):
    name: str


@_some
class _Balancing(_Named):
    params: NotRequired[dict[str, object]]


@_some
class _Method(_Named):
    params: dict[str, object]


@_some
class _Data(TypedDict):
    dataset: str
    protocol: str
    tasks: list[str]


@_some
class _Backbone(_Named):
    weights: str


@_some
class _Recipe(_Named):
    balancing: NotRequired[_Balancing]


@_some
class _Selection(TypedDict):
    rule: str


@_some
class _Budget(TypedDict):
    steps: int


@_some
class _Cell(TypedDict):
    method: _Method
    data: _Data
    backbone: _Backbone
    recipe: _Recipe
    selection: _Selection
    budget: _Budget
    seed: int


@_some
class _Audit(TypedDict, total=False):
    reference: str | None
    non_default_params: dict[str, object]
    facts: dict[str, Fact]
    flags: list[str]
    chosen: list[str]


@with_config(ConfigDict(extra="forbid"))
class _Document(TypedDict):
    """The fields of `Record` with the types that whoever reads a record relies on."""

    schema: int
    cell: _Cell
    status: str
    error: ErrorEntry | None
    attempts: int
    started: str
    finished: str
    versions: dict[str, object]
    environment: dict[str, object]
    roles: dict[str, object]
    n_evaluated: dict[str, object]
    selected: dict[str, object]
    metrics: dict[str, dict[str, MetricEntry]]
    size: dict[str, object]
    compute: dict[str, object]
    cost: dict[str, object]
    audit: _Audit
    reused_from: list[str]
    graph: dict[str, object]
    curves: dict[str, list[float | None]]
    artifacts: dict[str, ArtifactEntry]
    samples: dict[str, object]
    result_hash: str
    record_hash: str


def metrics_json(metrics: Metrics) -> dict[str, dict[str, MetricEntry]]:
    """Scores as a record stores them; a value that is not finite becomes null."""
    return {
        task: {
            name: MetricEntry(
                value=None if score.value is None else curve_json([score.value])[0],
                unit=score.unit,
                higher_is_better=score.higher_is_better,
                n_units=int(score.n_units),
                n_nonfinite=int(score.n_nonfinite),
                detail=dict(score.detail),
            )
            for name, score in scores.items()
        }
        for task, scores in metrics.items()
    }


def curve_json(values: Iterable[float]) -> list[float | None]:
    """A curve as a record stores it: floats, null in place of NaN, infinity and what is larger than `LARGEST`."""
    return [float(value) if abs(value) <= LARGEST else None for value in values]


@dataclasses.dataclass(frozen=True)
class Record:
    """The stored result of a cell, field by field as in its JSON; every mapping holds JSON values only.

    error: None exactly where status is `done`. Both hashes are set by `Store.write` and by reading. A record with
    status `invalid` stands for a file that could not be trusted: its cell is empty, `error.message` says why.
    """

    cell: Mapping[str, object]
    status: str
    error: ErrorEntry | None = None
    attempts: int = 1
    started: str = ""
    finished: str = ""
    versions: Mapping[str, object] = dataclasses.field(default_factory=dict)
    environment: Mapping[str, object] = dataclasses.field(default_factory=dict)
    roles: Mapping[str, str] = dataclasses.field(default_factory=dict)
    n_evaluated: Mapping[str, int] = dataclasses.field(default_factory=dict)
    selected: Mapping[str, object] = dataclasses.field(default_factory=dict)
    metrics: Mapping[str, Mapping[str, MetricEntry]] = dataclasses.field(default_factory=dict)
    size: Mapping[str, object] = dataclasses.field(default_factory=dict)
    compute: Mapping[str, object] = dataclasses.field(default_factory=dict)
    cost: Mapping[str, object] = dataclasses.field(default_factory=dict)
    audit: Mapping[str, object] = dataclasses.field(default_factory=dict)
    reused_from: Sequence[str] = ()
    graph: Mapping[str, object] = dataclasses.field(default_factory=dict)
    curves: Mapping[str, Sequence[float | None]] = dataclasses.field(default_factory=dict)
    artifacts: Mapping[str, ArtifactEntry] = dataclasses.field(default_factory=dict)
    samples: Mapping[str, object] = dataclasses.field(default_factory=dict)
    schema: int = SCHEMA
    result_hash: str = ""
    record_hash: str = ""

    @property
    def key(self) -> str:
        """The cell's key; empty for an invalid record, whose cell is not known."""
        return cell_key(self.cell) if self.cell else ""


def result_hash(record: Record) -> str:
    """sha256 (hex) over what must be reproducible: no times, dates, attempts, seconds, library versions or paths.

    Weights enter by digest: the initial ones (versions.weights_hash) and every artifact of kind `weights`.
    """
    trained = {name: entry["sha256"] for name, entry in record.artifacts.items() if entry["kind"] == "weights"}
    covered = {
        "cell": record.cell,
        "roles": record.roles,
        "n_evaluated": record.n_evaluated,
        "metrics": record.metrics,
        "size": record.size,
        "compute": record.compute,
        "graph": {name: value for name, value in record.graph.items() if name != "file"},
        "weights": {"initial": record.versions.get("weights_hash"), "trained": trained},
    }
    return hashlib.sha256(canonical_json(covered)).hexdigest()


def record_bytes(record: Record) -> bytes:
    """The file of a record: canonical JSON with both hashes; `record_hash` covers the bytes with zeros in its place."""
    fields = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    fields |= {"result_hash": result_hash(record), "record_hash": _ZEROS}
    digest = hashlib.sha256(canonical_json(fields)).hexdigest()
    return canonical_json(fields | {"record_hash": digest})


def parse_record(data: bytes) -> Record:
    """The record in a file's bytes. Raises UsageError with the reason for bytes that are not an unaltered record."""
    parsed = parse_json(data)
    problem = _problem(parsed)
    if problem is not None:
        raise UsageError(problem)
    document = cast("dict[str, Any]", parsed)
    stated = document["record_hash"]
    if not _DIGEST.fullmatch(stated):
        raise UsageError("its record_hash is not a sha256")
    field = b'"record_hash":"%s"' % stated.encode()
    zeroed = data.replace(field, b'"record_hash":"%s"' % _ZEROS.encode())
    if data.count(field) != 1 or hashlib.sha256(zeroed).hexdigest() != stated:
        raise UsageError("its bytes do not match its record_hash: changed or damaged after it was written")
    return Record(**document)


def parse_json(data: bytes) -> object:
    """The value in a JSON file of ours. Raises UsageError, with the reason, for what is not JSON, for numbers that are
    not finite as floats, and for values nested deeper than `MAX_DEPTH`.
    """
    try:
        document = json.loads(
            data.decode("utf-8"), parse_constant=_refuse_constant, parse_float=_float, parse_int=_integer
        )
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise UsageError(f"not JSON ({str(error).splitlines()[0]})") from error
    if _is_deep(document, MAX_DEPTH):
        raise UsageError(f"nested deeper than {MAX_DEPTH}")
    return document


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is too large")
    return number


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"an integer of {len(text)} digits is too large")
    return int(text)


def _is_deep(value: object, left: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return left == 0 or any(_is_deep(item, left - 1) for item in inner if isinstance(item, (dict, list)))


def _problem(document: object) -> str | None:
    """What is wrong with a parsed record, or None: everything that a report relies on has its name and type."""
    if not isinstance(document, dict):
        return f"a record is a JSON object, not {type(document).__name__}"
    if document.get("schema") != SCHEMA:
        return f"schema {document.get('schema')!r}; this version reads schema {SCHEMA}"
    try:
        _checker().validate_python(document, strict=True)
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(str(part) for part in fault["loc"])
        words = {"missing": f"{place} is missing", "extra_forbidden": f"unknown field {place!r}"}
        return words.get(fault["type"], f"{place} has the wrong type or value: {fault['msg']}")
    return _status_problem(document["status"], document["error"])


@functools.lru_cache(maxsize=1)
def _checker() -> TypeAdapter[Any]:
    return TypeAdapter(_Document)


def _status_problem(status: str, error: object) -> str | None:
    if status not in STATUSES:
        return f"status {status!r}; expected one of {', '.join(STATUSES)}"
    if (status == "done") != (error is None):
        return f"status {status!r} {'with' if error is not None else 'without'} an error"
    return None


# Values of the audit field `reference`: the baseline of Delta_m; the row that the others are tested against, which is
# also the control of search cost where it trains for the whole budget of a search.
SINGLE_TASK = "single_task"


SHARED = "shared"


def seed_of_record(record: Record) -> int:
    """The seed of its cell."""
    return cast(int, record.cell["seed"])


def method_of(record: Record) -> str:
    """Name of its method."""
    return cast(str, value_at(record.cell, "method", "name"))


def params_of(record: Record) -> Mapping[str, object]:
    """All parameters of its method, defaults filled in."""
    return cast("Mapping[str, object]", value_at(record.cell, "method", "params"))


def is_reference(record: Record) -> bool:
    """Whether its method is the single-task reference, which Delta_m compares with."""
    return record.audit.get("reference") == SINGLE_TASK


def number_at(value: object, *path: str) -> float | None:
    """The number at a key path of nested JSON objects; None where there is none, or one beyond `LARGEST`."""
    found = value_at(value, *path)
    is_number = isinstance(found, (int, float)) and not isinstance(found, bool)
    return float(cast(float, found)) if is_number and abs(cast(float, found)) <= LARGEST else None


def graph_hash(record: Record) -> str:
    """Hash of the record's task graph: what speed is stored under."""
    return str(value_at(record.graph, "hash"))


def utc_now() -> str:
    """The time, in UTC, as records write it."""
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
