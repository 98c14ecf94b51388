"""Is a data set on disk what it should be? Every file that is not is named; nothing stops at the first fault.

`quick` reads lists, counts, files and checksums and decodes the first and the last sample of every split; `full`
decodes all of them: shapes, ranges, ids, ignored shares, unit lengths, and images that lie in two splits. What a spec
only recalls is a warning, never a fault. Spec: datasets 2.7.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from datasets.contracts import DatasetSpec, InputData, Split, TaskSpec
from datasets.errors import UsageError
from datasets.kinds import get_kind
from datasets.on_disk.files import FileError, read_bytes
from datasets.on_disk.loader import FileLoader, FileOptions, count_faults
from datasets.on_disk.placed import PlacedLoader, located
from datasets.on_disk.sample_checks import faults as sample_faults
from datasets.on_disk.sources import IMAGE, Fault, FileInput
from datasets.registry import chosen_tasks, dataset_spec, get_dataset, load, read_options, spec_of

Level = Literal["quick", "full"]
MAX_PAIRS = 5  # of equal images that a warning names
ONE_SIGNED = 0.95  # share of valid pixels from which an axis of normals is the viewing axis


@dataclasses.dataclass
class FieldSummary:
    """What the decoded samples of one field hold. n_valid, n_labels: labels that count, and all of them.
    n_void, n_samples: samples without a label that counts, and all of them.

    classes: {id: labels} of class maps. signs: per channel of normals, valid pixels that are positive.
    """

    low: float = float("inf")
    high: float = float("-inf")
    n_valid: int = 0
    n_labels: int = 0
    n_void: int = 0
    n_samples: int = 0
    classes: dict[int, int] = dataclasses.field(default_factory=lambda: defaultdict(int))
    signs: list[int] = dataclasses.field(default_factory=lambda: [0, 0, 0])

    def add(self, target: Tensor, valid: Tensor, task: TaskSpec) -> None:
        """Count one sample in."""
        self.n_labels += valid.numel()
        self.n_valid += int(valid.sum())
        self.n_samples += 1
        if not bool(valid.any()):
            self.n_void += 1
            return
        values = target[..., valid] if target.ndim > valid.ndim else target[valid]
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        if task.kind in ("semantic", "class"):
            for label, count in zip(*torch.unique(values, return_counts=True), strict=True):
                self.classes[int(label)] += int(count)
        if task.kind == "normals":
            self.signs = [sum(pair) for pair in zip(self.signs, (values > 0).sum(1).tolist(), strict=True)]


@dataclasses.dataclass(frozen=True)
class Report:
    """What was found. counts: {split: {input: samples}}. decoded: samples that were decoded.

    fields: {task: summary}. warnings: what is odd and no fault.
    """

    spec: DatasetSpec
    level: Level
    counts: Mapping[str, Mapping[str, int]]
    decoded: int
    bad: Sequence[Fault]
    warnings: Sequence[str]
    fields: Mapping[str, FieldSummary]

    @property
    def ok(self) -> bool:
        """Whether nothing is bad."""
        return not self.bad


def verify(
    name: str,
    root: Path | str | None,
    *,
    level: Level = "quick",
    profile: Literal["real", "twin"] = "real",
    layout: str | None = None,
    protocol: str = "standard",
    tasks: Sequence[str] | None = None,
    workers: int = 4,
    report_progress: Callable[[int, int], None] = lambda done, n: None,
) -> Report:
    """Check a data set, embedded or on disk.

    profile: `real` demands published counts and checksums. tasks: as `chosen_tasks`. workers: threads that decode.
    Raises DatasetMissingError where no layout is there, and UsageError as `dataset_spec`.
    """
    faults: list[Fault] = []
    spec, inputs = _listed(name, root, profile, layout, protocol, tasks, faults)
    chosen = [(part, row) for part in inputs for row in _rows(part, level)]
    fields = {task.name: FieldSummary() for task in spec.tasks}
    images: dict[tuple[str, str], list[tuple[_Part, int]]] = defaultdict(list)
    with ThreadPoolExecutor(workers) as pool:
        for done, (part, row, found) in enumerate(pool.map(lambda job: (*job, _examine(*job)), chosen), start=1):
            faults += found.faults
            for task, target, valid in found.targets:
                fields[task.name].add(target, valid, task)
            if found.image is not None:
                images[part.name, found.image].append((part, row))
            report_progress(done, len(chosen))
    counts: dict[str, dict[str, int]] = defaultdict(dict)
    for part in inputs:
        counts[part.split][part.name] = len(part.data.ids)
    notes = dict.fromkeys(note for part in inputs for note in part.data.notes)
    recalled = _recalled(spec, counts) if profile == "real" else ()
    warnings = [
        *notes,
        *recalled,
        *_across_splits(images),
        *_warnings(spec, fields, whole=level == "full" and profile == "real"),
    ]
    # A fault of the whole set is listed with each of its splits.
    return Report(spec, level, counts, len(chosen), list(dict.fromkeys(faults)), warnings, fields)


@dataclasses.dataclass(frozen=True)
class _Part:
    """The samples of one input of one split. broken: positions whose files are known to be absent."""

    spec: DatasetSpec
    split: Split
    name: str
    data: InputData
    broken: frozenset[int] = frozenset()

    @property
    def tasks(self) -> list[TaskSpec]:
        return [task for task in self.spec.tasks if self.spec.input_of(task.name) == self.name]


def _listed(
    name: str,
    root: Path | str | None,
    profile: Literal["real", "twin"],
    layout: str | None,
    protocol: str,
    tasks: Sequence[str] | None,
    faults: list[Fault],
) -> tuple[DatasetSpec, list[_Part]]:
    """Spec with the tasks that are looked at, and what every split lists; faults of lists, counts and checksums."""
    loader = get_dataset(name)
    placed = isinstance(loader, PlacedLoader)
    if not isinstance(loader, FileLoader) or not (loader.layouts or placed):  # embedded, or brought by a package
        spec = dataset_spec(name, protocol=protocol, layout=layout, tasks=tasks)
        parts = []
        for split in spec.splits:
            loaded = load(name, root, split, protocol=protocol, layout=layout, tasks=tasks)
            if not isinstance(loader, FileLoader):  # which counts, and whose files are looked at one by one
                faults += sample_faults(loaded)
            parts += [_Part(spec, loaded.split, part, data) for part, data in loaded.inputs.items()]
        return spec, parts
    folder, found = located(name, root, layout)
    options = read_options(name, {"profile": profile})
    assert isinstance(options, FileOptions)
    spec = chosen_tasks(name, spec_of(loader, protocol, options, found), options, tasks)
    if profile == "real" and found is not None:
        faults += _checksum_faults(folder, loader.layouts[found].checksums)
    parts = []
    for split in spec.splits:
        try:
            sources = loader.sources(folder, split, spec, options)  # type: ignore[arg-type]
        except FileError as error:
            faults.append(Fault(f"split {split!r}", "", "list", "a list that can be read", str(error)))
            continue
        for part, source in sources.items():
            faults += [*source.faults, *count_faults(source, spec, split, part, options)]
            absent = {fault.sample for fault in source.faults}
            broken = frozenset(row for row, sample in enumerate(source.ids) if sample in absent)
            data = FileInput(source, spec, split, part, folder)  # type: ignore[arg-type]
            parts.append(_Part(spec, split, part, data, broken))  # type: ignore[arg-type]
    return spec, parts


def _checksum_faults(folder: Path, checksums: Mapping[str, str]) -> Iterator[Fault]:
    for path, expected in checksums.items():
        if (folder / path).is_file():
            found = hashlib.sha256(read_bytes(folder / path)).hexdigest()
            if found != expected:
                yield Fault(path, "", "sha256", expected, found)


def _rows(part: _Part, level: Level) -> list[int]:
    rows = range(len(part.data.ids))
    chosen = rows if level == "full" else sorted({0, len(rows) - 1} & set(rows))
    return [row for row in chosen if row not in part.broken]


@dataclasses.dataclass
class _Found:
    """What one sample holds. image: sha256 of its decoded image."""

    faults: list[Fault]
    targets: list[tuple[TaskSpec, Tensor, Tensor]]
    image: str | None = None


def _examine(part: _Part, row: int) -> _Found:
    """Decode one sample field by field, so that one bad file hides no other."""
    found = _Found([], [])
    sample = part.data.ids[row]
    size = part.spec.native_size
    decode, where = _access(part, row)

    def fault(field: str, check: str, expected: str, what: str) -> None:
        found.faults.append(Fault(where(field), sample, check, expected, what))

    image = _decoded(decode, IMAGE, fault)
    if image is not None:
        if tuple(image.shape) != (3, *size):
            fault(IMAGE, "shape", f"(3, {size[0]}, {size[1]})", str(tuple(image.shape)))
        if not bool(image.isfinite().all()) or float(image.min()) < 0 or float(image.max()) > 1:
            fault(IMAGE, "range", "0 to 1", f"{float(image.min()):g} to {float(image.max()):g}")
        found.image = hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest()
    for task in part.tasks:
        target = _decoded(decode, task.name, fault)
        if target is None:
            continue
        kind = get_kind(task.kind)
        shape = kind.target_shape(task, size)
        if tuple(target.shape) != shape:
            fault(task.name, "shape", str(shape), str(tuple(target.shape)))
            continue
        valid, legal = kind.valid(target), kind.legal(target, task)
        if not bool(legal.all()):
            wrong = kind.magnitude(target)[~legal].flatten()[0].item()
            fault(task.name, "values", kind.legal_values(task), f"{wrong:g}")
        elif kind.dense and not bool(valid.any()) and not task.partial:
            fault(task.name, "valid pixels", "some", "none: every pixel is ignored")
        found.targets.append((task, target, valid & legal))
    return found


def _access(part: _Part, row: int) -> tuple[Callable[[str], Tensor], Callable[[str], str]]:
    """(decoded field by name, path of its file for people)."""
    data = part.data
    if isinstance(data, FileInput):
        fields = data.source.fields
        return lambda name: data.field(name, row), lambda name: _relative(fields[name].where(row), data.folder)
    sample = data[row]
    values = {IMAGE: sample["image"], **sample["targets"]}
    return lambda name: values[name].as_subclass(Tensor), lambda name: f"{part.split}/{name}"


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def _decoded(decode: Callable[[str], Tensor], name: str, fault: Callable[[str, str, str, str], None]) -> Tensor | None:
    try:
        return decode(name)
    except UsageError as error:
        fault(name, "content", "a file that can be read", str(error))
        return None


def _recalled(spec: DatasetSpec, counts: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    """Numbers of samples that differ from those that are recalled."""
    for split, inputs in counts.items():
        for name, n in inputs.items():
            if spec.counts_recalled and n != spec.count(split, name):
                yield f"split {split!r} has {n} samples; {spec.count(split, name)} is what we recall, unchecked"


def _across_splits(images: Mapping[tuple[str, str], Sequence[tuple[_Part, int]]]) -> Iterator[str]:
    """Images that two splits of one input have in common: no file is bad, yet a network has seen what judges it."""
    pairs = []
    for places in images.values():
        first, row = places[0]
        pairs += [
            f"{other.split} {other.data.ids[index]} = {first.split} {first.data.ids[row]}"
            for other, index in places[1:]
            if other.split != first.split
        ]
    if pairs:
        more = f" and {len(pairs) - MAX_PAIRS} more" if len(pairs) > MAX_PAIRS else ""
        yield f"{len(pairs)} images lie in two splits: {', '.join(pairs[:MAX_PAIRS])}{more}"


def _warnings(spec: DatasetSpec, fields: Mapping[str, FieldSummary], whole: bool) -> Iterator[str]:
    """whole: every sample of the published data was seen."""
    for task in spec.tasks:
        summary = fields[task.name]
        if task.kind in ("semantic", "class") and whole:
            absent = sorted(set(range(task.channels)) - set(summary.classes))
            if absent and summary.n_valid:
                yield f"{task.name}: {len(absent)} of {task.channels} classes have no label: {_few(absent)}"
        if task.kind == "normals" and task.frame == "unknown" and summary.n_valid:
            shares = [positive / summary.n_valid for positive in summary.signs]
            axes = [
                f"channel {number} is {'positive' if share > 0.5 else 'negative'} in {max(share, 1 - share):.0%}"
                for number, share in enumerate(shares)
                if max(share, 1 - share) > ONE_SIGNED
            ]
            seen = "; ".join(axes) if axes else "no channel is one-signed"
            yield f"{task.name}: the axes of this layout are not known; the viewing axis has one sign: {seen}"


def _few(numbers: Sequence[int], n: int = 10) -> str:
    listed = ", ".join(map(str, numbers[:n]))
    return listed if len(numbers) <= n else f"{listed} and {len(numbers) - n} more"
