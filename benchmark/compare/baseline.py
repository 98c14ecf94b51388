"""The baseline file of the regression gate: its contents, and how it is read, made and updated.

Spec: measurement 8. Nothing here imports torch: the check must start fast.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from benchmark.records.documents import Account
from benchmark.records.keys import canonical_json, cell_key
from benchmark.records.measurements import PAIRS, ROUNDS, MeasurementFile
from benchmark.records.record import Record, parse_json
from datasets.errors import UsageError, first_fault

FORMAT = "sharebench-gate-1"
ACCURACY_FLOOR = 0.01  # share of the old mean; our choice, declared in the file
LIMITS = ("ATEN_CPU_CAPABILITY", "MKL_CBWR", "ONEDNN_MAX_CPU_ISA")  # each changed bits within six steps (measurement 8)
# Counts of the cost account; its seconds and peak bytes differ from run to run.
_ACCOUNTS: tuple[Account, ...] = ("search", "final")
_COUNTS = ("forward_passes", "images", "optimizer_steps", "train_macs")

Value = int | float | str | bool | None | list[Any]
Flat = dict[str, Value]
Bits = str | list[str | None] | None  # a float in hex or a digest; a curve; null
SpeedKey = tuple[str, str, str, str]  # device class, name of the settings, graph hash, mode


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


class Golden(_Part):
    """Bits of one cell on one platform. values: floats as float.hex, digests, by dotted name.

    cpu and versions are printed beside a difference; versions are not compared.
    """

    platform: dict[str, str | int | bool | None]
    cpu: str
    versions: dict[str, str | None]
    values: dict[str, Bits]


class CellBaseline(_Part):
    """One cell. exact: by dotted name; golden: {golden key: bits}."""

    title: str
    cell: dict[str, Any]
    exact: Flat
    golden: dict[str, Golden]


class SpeedBaseline(_Part):
    """One quiet measurement. samples: pairs or rounds; r: {graph hash: {mode: relative throughput}}."""

    device: str
    settings: str
    table: str
    started: str
    samples: int
    aa: float
    r: dict[str, dict[str, float]]

    @property
    def networks(self) -> list[SpeedKey]:
        """Every network and mode that was measured."""
        return [(self.device, self.settings, graph, mode) for graph, modes in self.r.items() for mode in modes]


class Baseline(_Part):
    """The whole file. reason, versions: of the last acceptance. accuracy_floor: share of the old mean that may be lost
    in any case. cells: {cell key: its baseline}; speed: separate measurements.
    """

    format: Literal["sharebench-gate-1"] = "sharebench-gate-1"
    reason: str
    versions: dict[str, str | None]
    accuracy_floor: float = Field(ge=0.0)
    cells: dict[str, CellBaseline]
    speed: list[SpeedBaseline]


def read_baseline(path: Path) -> Baseline:
    """The baseline in a file. Raises UsageError, one line, for a file that is missing, damaged or something else."""
    try:
        document = parse_json(path.read_bytes())
    except FileNotFoundError as error:
        raise UsageError(f"Baseline {path} does not exist; --accept REASON writes a first one.") from error
    except OSError as error:
        raise UsageError(f"Baseline {path} cannot be read: {error.strerror or error}.") from error
    except UsageError as error:
        raise UsageError(f"Baseline {path} is cut off or damaged: {error}.") from error
    form = document.get("format") if isinstance(document, dict) else None
    if form != FORMAT:
        raise UsageError(f"{path} is not a baseline of this version: its format is {form!r}, expected {FORMAT!r}.")
    try:
        baseline = Baseline.model_validate(document)
    except ValidationError as error:
        raise UsageError(f"Baseline {path}: {first_fault(error)}.") from error
    for key, entry in baseline.cells.items():
        if cell_key(entry.cell) != key:
            raise UsageError(f"Baseline {path}: cells.{key} is not the key of its cell; was the file edited by hand?")
        problem = next((name for bits in entry.golden.values() for name in _unreadable(bits.values)), None)
        if problem is not None:
            raise UsageError(f"Baseline {path}: cells.{key}: golden value {problem} is not a float in hex.")
    return baseline


def _unreadable(values: Mapping[str, Bits]) -> list[str]:
    """Names of curves and metrics that do not hold floats in hex."""
    return [name for name, value in values.items() if is_number(name) and not all(map(_is_hex, as_list(value)))]


def _is_hex(text: str | None) -> bool:
    try:
        return text is None or float.fromhex(text) is not None
    except (ValueError, OverflowError):
        return False


def is_number(name: str) -> bool:
    """Whether the golden value of this name holds floats; the others are digests."""
    return name.startswith(("metrics.", "curves."))


def as_list(value: Bits) -> list[str | None]:
    """A golden value as a list; a metric has one entry."""
    return value if isinstance(value, list) else [value]


def baseline_bytes(baseline: Baseline) -> bytes:
    """The file: canonical JSON."""
    return canonical_json(baseline.model_dump(mode="json"))


# Compared values of a record


def title(record: Record) -> str:
    """For people: method, data, backbone, seed, and the start of the key, for cells that share these."""
    return f"{record.title} ({record.key[:8]})"


def _flatten(prefix: str, value: object) -> Flat:
    if not isinstance(value, Mapping):
        return {prefix: list(value) if isinstance(value, tuple) else cast(Value, value)}
    flat: Flat = {} if value else {prefix: "none"}  # an empty table differs from an absent one
    for name, item in value.items():
        flat |= _flatten(f"{prefix}.{name}", item)
    return flat


def exact_values(record: Record) -> Flat:
    """Values that must be equal everywhere, by dotted name: counts, hashes of graph, roles and data, the schema."""
    counts: dict[str, object] = {
        part: {name: value for name, value in record.cost[part].items() if name in _COUNTS}
        for part in _ACCOUNTS
        if part in record.cost
    }
    units = {task: {name: entry["n_units"] for name, entry in row.items()} for task, row in record.metrics.items()}
    compared: dict[str, object] = {
        "schema": record.schema,
        "graph.hash": record.graph.get("hash"),
        "data_hash": record.versions.get("data_hash"),
        "roles": record.roles,
        "n_evaluated": record.n_evaluated,
        "n_units": units,
        "size": record.size,
        "compute": record.compute,
        "cost": counts | {"weight_steps": record.cost.get("weight_steps")},
    }
    return {path: value for name, part in compared.items() for path, value in _flatten(name, part).items()}


def golden_platform(record: Record) -> dict[str, str | int | bool | None] | None:
    """Everything that a record's bits depend on; None if they are not defined: on a GPU, with more than one thread, or
    without deterministic algorithms.
    """
    environment = record.environment
    threads = environment.get("threads", {}).get("intra_op")
    deterministic = environment.get("determinism", {}).get("algorithms")
    capability = environment.get("cpu_capability")
    if environment.get("device") != "cpu" or threads != 1 or deterministic is not True or capability is None:
        return None
    platform: dict[str, str | int | bool | None] = {
        "torch": str(record.versions.get("torch")),
        "platform": str(environment.get("platform")),  # system and architecture
        "cpu": str(environment.get("cpu")),  # libraries cut their loops by its caches
        "threads": 1,
        "cpu_capability": capability,
        "deterministic_algorithms": True,
    }
    for name in LIMITS:
        platform[name] = environment.get("env", {}).get(name)
    return platform


def golden_key(platform: Mapping[str, str | int | bool | None]) -> str:
    """A platform as text, the same for the same platform."""
    return "; ".join(f"{name} {value}" for name, value in sorted(platform.items()) if value is not None)


def golden_values(record: Record) -> dict[str, Bits]:
    """Metrics and loss curves as hex floats, digests of initial and trained weights, the result hash."""
    values: dict[str, Bits] = {"result_hash": record.result_hash}
    for task, scores in record.metrics.items():
        for name, entry in scores.items():
            values[f"metrics.{task}.{name}"] = _hex(entry["value"])
    for name, curve in record.curves.items():
        values[f"curves.{name}"] = [_hex(value) for value in curve]
    values["weights.initial"] = record.versions.get("weights_hash")
    for name, artifact in record.artifacts.items():
        if artifact["kind"] == "weights":
            values[f"weights.{name}"] = artifact["sha256"]
    return values


def _hex(value: float | None) -> str | None:
    return None if value is None else float(value).hex()


# Speed


def n_samples(measurement: MeasurementFile) -> int:
    """Pairs or rounds of a measurement."""
    count = measurement.protocol.get("pairs" if measurement.form == "pairs" else "rounds")
    return count if isinstance(count, int) else 0


def device_class(measurement: MeasurementFile) -> str:
    """The device with the instruction sets it was held to: other kernels have other relative speeds (our choice)."""
    variables = measurement.environment.get("env", {})
    limits = [(name, variables.get(name)) for name in LIMITS]
    return "; ".join([measurement.device, *(f"{name} {limit}" for name, limit in limits if limit is not None)])


def unfit(measurement: MeasurementFile) -> str | None:
    """Why a measurement cannot be compared at all; None if it can. Noise is judged separately."""
    if measurement.status != "done" or measurement.aa is None:
        return f"the reference could not be measured ({measurement.status})"
    needed = PAIRS if measurement.form == "pairs" else ROUNDS
    if n_samples(measurement) < needed:
        return (
            f"{n_samples(measurement)} {measurement.form if measurement.form == 'pairs' else 'rounds'}; {needed} needed"
        )
    return None


def old_ratios(baseline: Baseline, key: SpeedKey) -> list[float]:
    """r of a network in every measurement of the baseline on this device class at these settings."""
    device, settings, graph, mode = key
    return [
        entry.r[graph][mode]
        for entry in baseline.speed
        if (entry.device, entry.settings) == (device, settings) and mode in entry.r.get(graph, {})
    ]


def _speed_entry(measurement: MeasurementFile, graphs: Collection[str]) -> SpeedBaseline | None:
    if unfit(measurement) is not None or measurement.is_noisy or measurement.aa is None:
        return None
    ratios: dict[str, dict[str, float]] = {}
    for entry in measurement.networks:
        if entry.r is not None and entry.graph in graphs:
            ratios.setdefault(entry.graph, {})[entry.mode] = entry.r
    return SpeedBaseline(
        device=device_class(measurement),
        settings=measurement.settings.name,
        table=measurement.table,
        started=measurement.started,
        samples=n_samples(measurement),
        aa=measurement.aa,
        r=ratios,
    )


# Acceptance


def accepted(
    records: Sequence[Record],
    measurements: Sequence[MeasurementFile],
    reason: str,
    before: Baseline | None,
    superseded: Collection[SpeedKey] = (),
) -> Baseline:
    """The new baseline: exactly these cells, all of them `done`.

    If the exact part of a cell is as before, golden values of other platforms are kept. Quiet measurements are added to
    the older ones. superseded: networks whose old ratios are dropped, because a new speed was accepted.
    """
    cells: dict[str, CellBaseline] = {}
    for record in records:
        old = before.cells.get(record.key) if before is not None else None
        exact = exact_values(record)
        same = old is not None and canonical_json(old.exact) == canonical_json(exact)
        golden = dict(old.golden) if old is not None and same else {}
        platform = golden_platform(record)
        if platform is not None:
            golden[golden_key(platform)] = Golden(
                platform=platform,
                cpu=str(record.environment.get("cpu")),
                versions=_versions(record),
                values=golden_values(record),
            )
        cells[record.key] = CellBaseline(title=title(record), cell=dict(record.cell), exact=exact, golden=golden)
    return Baseline(
        reason=reason,
        versions=_versions(records[0]) if records else {},
        accuracy_floor=ACCURACY_FLOOR if before is None else before.accuracy_floor,
        cells=cells,
        speed=_accepted_speed(cells, measurements, before, superseded),
    )


def _versions(record: Record) -> dict[str, str | None]:
    names = ("suite", "package_hash", "python", "torch", "torchvision", "timm", "numpy")
    return {name: record.versions.get(name) for name in names}


def _accepted_speed(
    cells: Mapping[str, CellBaseline],
    measurements: Sequence[MeasurementFile],
    before: Baseline | None,
    superseded: Collection[SpeedKey],
) -> list[SpeedBaseline]:
    graphs = {str(cell.exact.get("graph.hash")) for cell in cells.values()}
    known: dict[tuple[str, str, str, str], SpeedBaseline] = {}
    for entry in before.speed if before is not None else []:
        kept = {
            graph: {
                mode: r for mode, r in modes.items() if (entry.device, entry.settings, graph, mode) not in superseded
            }
            for graph, modes in entry.r.items()
            if graph in graphs
        }
        known[_identity(entry)] = entry.model_copy(
            update={"r": {graph: modes for graph, modes in kept.items() if modes}}
        )
    for measurement in measurements:
        made = _speed_entry(measurement, graphs)
        # A known measurement stays as it is: ratios that were superseded in it must not come back.
        if made is not None and _identity(made) not in known:
            known[_identity(made)] = made
    return [known[name] for name in sorted(known) if known[name].r]


def _identity(entry: SpeedBaseline) -> tuple[str, str, str, str]:
    return entry.device, entry.settings, entry.table, entry.started
