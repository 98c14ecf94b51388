"""A record: its fields, what readers ask of it, its hashes, and its file. Spec: measurement 9.

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
from typing import TYPE_CHECKING, Any, cast

from benchmark.records.documents import (
    LARGEST,
    ArtifactEntry,
    Audit,
    BalancingDocument,
    CellDocument,
    ComputeDocument,
    CostDocument,
    EnvironmentDocument,
    ErrorEntry,
    GraphDocument,
    MetricEntry,
    SelectedDocument,
    SizeDocument,
    problem_of,
)
from benchmark.records.keys import EQUAL_BALANCING, canonical_json, cell_key, row_key, table_key
from datasets.errors import UsageError

if TYPE_CHECKING:
    from methods.contracts import Metrics

SCHEMA = 1
STATUSES = ("done", "diverged", "failed", "oom", "timeout", "interrupted")
INVALID = "invalid"  # status of a file that could not be read as a record; never written
MAX_DEPTH = 50  # of nested values
_MAX_DIGITS = 300  # an integer with this many digits is finite as a float
_ZEROS = "0" * 64
_DIGEST = re.compile(r"[0-9a-f]{64}")


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

    error: None exactly if status is `done`. Both hashes are set by `Store.write` and by reading. A record with status
    `invalid` represents a file that could not be trusted: its cell is `NO_CELL`, and `error.message` says why.
    """

    cell: CellDocument
    status: str
    error: ErrorEntry | None = None
    attempts: int = 1
    started: str = ""
    finished: str = ""
    versions: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    environment: EnvironmentDocument = dataclasses.field(default_factory=EnvironmentDocument)
    roles: Mapping[str, str] = dataclasses.field(default_factory=dict)
    n_evaluated: Mapping[str, int] = dataclasses.field(default_factory=dict)
    selected: SelectedDocument = dataclasses.field(default_factory=SelectedDocument)
    metrics: Mapping[str, Mapping[str, MetricEntry]] = dataclasses.field(default_factory=dict)
    size: SizeDocument = dataclasses.field(default_factory=SizeDocument)
    compute: ComputeDocument = dataclasses.field(default_factory=ComputeDocument)
    cost: CostDocument = dataclasses.field(default_factory=CostDocument)
    audit: Audit = dataclasses.field(default_factory=Audit)
    reused_from: Sequence[str] = ()
    graph: GraphDocument = dataclasses.field(default_factory=GraphDocument)
    curves: Mapping[str, Sequence[float | None]] = dataclasses.field(default_factory=dict)
    artifacts: Mapping[str, ArtifactEntry] = dataclasses.field(default_factory=dict)
    samples: Mapping[str, object] = dataclasses.field(default_factory=dict)
    schema: int = SCHEMA
    result_hash: str = ""
    record_hash: str = ""

    @functools.cached_property
    def key(self) -> str:
        """The cell's key; empty for an invalid record, whose cell is not known."""
        return cell_key(self.cell) if self.cell else ""

    @functools.cached_property
    def table_key(self) -> str:
        """The key of its table, see `benchmark.records.keys.table_key`."""
        return table_key(self.cell)

    @functools.cached_property
    def row_key(self) -> bytes:
        """The key of its row within the table, see `benchmark.records.keys.row_key`."""
        return row_key(self.cell)

    @property
    def title(self) -> str:
        """For people: method, data, backbone, seed."""
        cell = self.cell
        return f"{self.method} · {cell['data']['dataset']} · {cell['backbone']['name']} · seed {self.seed}"

    @property
    def method(self) -> str:
        """Name of the method."""
        return self.cell["method"]["name"]

    @property
    def params(self) -> Mapping[str, object]:
        """All parameters of the method, defaults filled in."""
        return self.cell["method"]["params"]

    @property
    def untuned_params(self) -> dict[str, object]:
        """The parameters without those that a tuning chose, of which each row has its own."""
        chosen = self.audit.get("tuning", {}).get("chosen", {})
        return {name: value for name, value in self.params.items() if name not in chosen}

    @property
    def has_default_params(self) -> bool:
        """Whether the method has its default parameters; False if the record does not say."""
        return self.audit.get("non_default_params") == {}

    @property
    def seed(self) -> int:
        """The seed of the cell."""
        return self.cell["seed"]

    @property
    def tasks(self) -> list[str]:
        """The tasks of the cell."""
        return self.cell["data"]["tasks"]

    @property
    def balancing(self) -> BalancingDocument:
        """The loss balancing; equal if the cell does not say."""
        return self.cell["recipe"].get("balancing", EQUAL_BALANCING)

    @property
    def is_reference(self) -> bool:
        """Whether the method is the single-task reference, which Delta_m compares with."""
        return self.audit.get("reference") == "single_task"

    @property
    def is_comparison_reference(self) -> bool:
        """Whether the method is the one that all others are tested against."""
        return self.audit.get("reference") == "shared"

    @property
    def selects_on_test(self) -> bool:
        """Whether the checkpoint was chosen on the report role, which re-enacts a published protocol."""
        return self.value_at("cell.selection.select_on") == "test"

    @property
    def is_trial(self) -> bool:
        """Whether the cell is a trial of a tuning: it has metrics of select, and none of report."""
        return self.cell.get("part") == "tune"

    @property
    def select_metrics(self) -> Mapping[str, Mapping[str, MetricEntry]]:
        """{task: {metric: entry}} on select, of a trial; empty for other cells."""
        return self.selected.get("metrics", {})

    @property
    def graph_hash(self) -> str:
        """Hash of the task graph, which speed is stored under; empty if there is none."""
        return self.graph.get("hash", "")

    def value_at(self, path: str) -> object:
        """The value at a dotted path such as `cell.data.layout`; None if a key is missing."""
        first, *names = path.split(".")
        value: object = getattr(self, first)
        for name in names:
            if not isinstance(value, Mapping):
                return None
            value = value.get(name)
        return value


NO_CELL = cast(CellDocument, {})


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
    if record.is_trial:  # which has no other numbers
        covered["select"] = record.select_metrics
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
    """The value in a JSON file of the suite. Raises UsageError, with the reason, for bytes that are not JSON, for
    numbers that are not finite as floats, and for values nested deeper than `MAX_DEPTH`.
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
    """The first fault of a parsed record, or None."""
    if not isinstance(document, dict):
        return f"a record is a JSON object, not {type(document).__name__}"
    if document.get("schema") != SCHEMA:
        return f"schema {document.get('schema')!r}; this version reads schema {SCHEMA}"
    return problem_of(document) or _status_problem(document["status"], document["error"])


def _status_problem(status: str, error: object) -> str | None:
    if status not in STATUSES:
        return f"status {status!r}; expected one of {', '.join(STATUSES)}"
    if (status == "done") != (error is None):
        return f"status {status!r} {'with' if error is not None else 'without'} an error"
    return None


def utc_now() -> str:
    """The time, in UTC, as records write it."""
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
