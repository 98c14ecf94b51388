"""Speed on disk: one file a measurement, `speed/<settings>/<measurement>.json`, networks by graph hash.

Records hold no speed; reports join these files by the hash of a record's graph. torch is not imported here, so that
reports start fast. Spec: measurement 3 and 9.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import TypeAdapter, ValidationError

from benchmark.records.keys import canonical_json
from benchmark.records.record import parse_json
from benchmark.records.store import safe_name, write_atomic
from datasets.errors import UsageError, first_fault, unknown

SCHEMA = 1
FOLDER = "speed"
JOINT, MIXED, TASK, TRAIN = "joint", "mixed", "task:", "train-step"  # modes; a task's name follows its colon

DeviceKind = Literal["cpu", "cuda"]
Dtype = Literal["fp32", "tf32", "amp-bf16", "bf16"]
MemoryFormat = Literal["contiguous", "channels_last"]
Execution = Literal["eager", "compiled", "folded"]
Status = Literal["done", "oom", "failed"]
Form = Literal["pairs", "slots"]

PAIRS, ROUNDS = 60, 7
NOISY_AA = 0.03  # |aa - 1| above it: `noisy`


@dataclasses.dataclass(frozen=True)
class SpeedSettings:
    """The settings that all rows of a speed table share. Raises UsageError for an unknown value or combination.

    batch: of the input; of train-step the training batch. dtype: fp32 (TF32 off), tf32, amp-bf16 (autocast), bf16 (cast
    weights). memory_format: of model and input. threads: intra-op; inter-op is 1. execution: the network as it is, by
    torch.compile, or as a flat graph with folded batch norms.
    """

    batch: int
    device: DeviceKind = "cpu"
    dtype: Dtype = "fp32"
    memory_format: MemoryFormat = "contiguous"
    threads: int = 1
    execution: Execution = "eager"
    cudnn_benchmark: bool = False

    def __post_init__(self) -> None:
        choices = (
            *(("device", DeviceKind), ("dtype", Dtype)),
            *(("memory_format", MemoryFormat), ("execution", Execution)),
        )
        for name, kinds in choices:
            if getattr(self, name) not in get_args(kinds):
                raise unknown(name.replace("_", " "), str(getattr(self, name)), get_args(kinds))
        for name in ("batch", "threads"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; expected at least 1.")
        if self.device == "cpu" and (self.dtype == "tf32" or self.cudnn_benchmark):
            raise UsageError(f"{'tf32' if self.dtype == 'tf32' else 'cudnn_benchmark'} exists on CUDA only.")

    @property
    def name(self) -> str:
        """Folder of the settings, of [a-z0-9_-]."""
        parts = [self.device, f"b{self.batch}", self.dtype, self.memory_format, f"t{self.threads}"]
        parts += [self.execution] + (["cudnn_benchmark"] if self.cudnn_benchmark else [])
        return "-".join(parts)


@dataclasses.dataclass(frozen=True)
class Spread:
    """Median and extremes over calls (pairs) or rounds (slots)."""

    median: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class StepTimes:
    """Milliseconds of a step: on the host clock (pairs), on the device (slots)."""

    median: float
    p10: float
    p90: float
    iqr: float


@dataclasses.dataclass(frozen=True)
class NetworkEntry:
    """One network in one mode. graph: hash of its task graph; mode: joint, mixed, task:NAME or train-step.

    images, predictions: per step. r: relative to the reference, r_stl: to the single-task networks of the same table in
    the same mode. step_ms is the latency if batch is 1. message: why it is not done. raw: times as taken. compile:
    seconds, graphs and graph breaks. memory: bytes, if that pass was made. Numbers are None if status is not `done`.
    """

    graph: str
    mode: str
    status: Status
    batch: int
    method: str
    params: Mapping[str, Any]
    seed: int
    is_reference: bool
    message: str | None = None
    images: int | None = None
    predictions: int | None = None
    images_per_s: Spread | None = None
    predictions_per_s: float | None = None
    step_ms: StepTimes | None = None
    r: float | None = None
    r_stl: float | None = None
    flags: tuple[str, ...] = ()
    warm_up: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    compile: Mapping[str, Any] | None = None
    memory: Mapping[str, int | None] | None = None
    raw: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class MeasurementFile:
    """All networks of one table at one setting, measured together.

    status: `done` if the reference (ref) could be measured, else its failure. aa: A/A ratio, printed with every table.
    reference: name and speed of ref. protocol: pairs or rounds and the rule of the warm-up. states: clocks, temperature
    and the like before and after, None without a counter. started: UTC.
    """

    schema: int
    status: Status
    message: str | None
    started: str
    seconds: float
    table: str
    settings: SpeedSettings
    form: Form
    protocol: Mapping[str, Any]
    reference: Mapping[str, Any]
    aa: float | None
    flags: tuple[str, ...]
    cpu_share: float | None
    residency: str | None
    device: str
    versions: Mapping[str, Any]
    environment: Mapping[str, Any]
    states: Mapping[str, Any]
    networks: tuple[NetworkEntry, ...]

    @property
    def is_noisy(self) -> bool:
        """Whether two copies of the reference differed by more than 3 %."""
        return self.aa is not None and is_noisy(self.aa)


_PARSER = TypeAdapter(MeasurementFile)


def write_measurement(root: Path, measurement: MeasurementFile) -> Path:
    """Store a measurement and return its file. Raises StorageError."""
    data = canonical_json(dataclasses.asdict(measurement))
    stamp = measurement.started.lower().replace(":", "").replace("-", "")
    kinds = sorted({entry.mode.partition(":")[0] for entry in measurement.networks})
    name = safe_name(f"{stamp}-{measurement.table}-{'-'.join(kinds)}")
    path = root / FOLDER / measurement.settings.name / f"{name}.json"
    number = 1
    while path.exists():  # two measurements within a second
        number += 1
        path = path.with_name(f"{name}-{number}.json")
    write_atomic(path, data)
    return path


@dataclasses.dataclass(frozen=True)
class NetworkSpeed:
    """A network's entry with the measurement that it comes from."""

    entry: NetworkEntry
    measurement: MeasurementFile

    @property
    def flags(self) -> tuple[str, ...]:
        """Its own flags and those of the measurement."""
        return (*self.measurement.flags, *self.entry.flags)


@dataclasses.dataclass(frozen=True)
class SpeedResults:
    """networks: {graph hash: {name of the settings: {mode: the latest}}}; problems: a line a file that was not read."""

    networks: Mapping[str, Mapping[str, Mapping[str, NetworkSpeed]]]
    problems: tuple[str, ...]

    def find(self, graph: str, settings: str, mode: str) -> NetworkSpeed | None:
        """The latest measurement of a network, whatever its status; None if there is none."""
        return self.networks.get(graph, {}).get(settings, {}).get(mode)


def read_measurement(path: Path) -> MeasurementFile:
    """The measurement in a file. Raises UsageError with the reason if the file does not hold one."""
    try:
        document = parse_json(path.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot be read ({error.strerror or error})") from error
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA:
        raise UsageError(f"schema {schema!r}; this version reads schema {SCHEMA}")
    try:
        return _PARSER.validate_python(document)
    except ValidationError as error:
        raise UsageError(str(first_fault(error))) from error


def read_speed(root: Path) -> SpeedResults:
    """All measurements below a run's folder, the latest of each network, setting and mode. Never raises for a file."""
    found: list[tuple[str, str, MeasurementFile]] = []
    problems = []
    for path in sorted((root / FOLDER).glob("*/*.json")):
        try:
            measurement = read_measurement(path)
        except UsageError as error:
            problems.append(f"{path.relative_to(root).as_posix()}: {error}")
            continue
        found.append((measurement.started, path.name, measurement))
    networks: dict[str, dict[str, dict[str, NetworkSpeed]]] = {}
    for _, _, measurement in sorted(found, key=lambda entry: entry[:2]):
        for entry in measurement.networks:
            modes = networks.setdefault(entry.graph, {}).setdefault(measurement.settings.name, {})
            modes[entry.mode] = NetworkSpeed(entry, measurement)
    return SpeedResults(networks, tuple(problems))


def is_noisy(aa: float) -> bool:
    """Whether two copies of one network differ by more than 3 %."""
    return abs(aa - 1) > NOISY_AA


def same_speed_within(aa: float) -> float:
    """Relative differences below this are not called differences."""
    return max(2 * abs(aa - 1), NOISY_AA)


def light_settings(device: str) -> SpeedSettings:
    """The one setting of the light measurement."""
    if device == "cpu":
        return SpeedSettings(batch=8)
    return SpeedSettings(batch=32, device="cuda", dtype="amp-bf16", memory_format="channels_last")


def failures_of(measurement: MeasurementFile) -> Iterator[str]:
    """A line for each network that could not be measured, with the batch that was tried."""
    for entry in measurement.networks:
        if entry.status != "done":
            yield f"{entry.method} {entry.mode}: {entry.status} at batch {entry.batch}: {entry.message}"
