"""Are samples what their spec and kinds promise? Checked before the first step, since a run would not notice.

`faults` checks samples in memory completely, and files as far as that takes seconds; `label_faults` reads every label,
so that no training fails at an illegal label of the test split. Spec: datasets 2.1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from datasets.contracts import CachedSamples, InputData, MultiTaskDataset, TaskSpec
from datasets.errors import UsageError
from datasets.kinds import get_kind
from datasets.on_disk.loader import count_fault
from datasets.on_disk.sources import IMAGE, Fault, FileInput, summary

ROWS_AT_ONCE = 32  # whose labels one thread reads
WORKERS = 4  # threads that read labels
DARK = 1.5 / 255  # an image in which no value is above 1 of 255


def require(data: MultiTaskDataset, look: Callable[[MultiTaskDataset], Iterator[Fault]]) -> None:
    """Raise UsageError if `look` finds faults: one line with the first fault and how many more there are."""
    bad = list(look(data))
    if bad:
        raise UsageError(f"Data set {data.spec.name!r}: {summary(bad)}.")


def faults(data: MultiTaskDataset) -> Iterator[Fault]:
    """What is wrong with a split: inputs, counts, images, and the labels of what is in memory.

    Raises UsageError as `InputData.check` does.
    """
    for name in data.spec.inputs:
        if name not in data.inputs:
            listed = ", ".join(map(repr, data.inputs)) or "none"
            yield Fault(f"split {data.split!r}", "", "inputs", repr(name), listed)
            continue
        part = data.inputs[name]
        part.check()
        if not isinstance(part, FileInput):  # whose loader has counted
            yield from count_fault(len(part), data.spec, data.split, name)
            if not len(part):
                continue
        cached = _in_memory(part)
        yield from _faults_of_ends(data, name) if cached is None else _faults_in_memory(data, name, cached)
        if _is_dark(part, cached):
            found = "none above 1 of 255, as after a second division by 255"
            yield Fault(f"split {data.split!r}", "", "values of the images", "bytes of 0 to 255, or 0 to 1", found)


def label_faults(data: MultiTaskDataset) -> Iterator[Fault]:
    """Tasks with labels that are neither legal for their kind nor ignored; every label is read. Raises FileError."""
    for name in data.spec.inputs:
        part, tasks = data.inputs[name], [task for task in data.spec.tasks if data.spec.input_of(task.name) == name]
        cached = _in_memory(part)
        if cached is not None:
            yield from _cached_label_faults(part, cached, tasks, data.spec.native_size)
            continue

        def examine(start: int, part: InputData = part, tasks: list[TaskSpec] = tasks) -> list[_Labels]:
            seen = [_Labels(task, data.spec.native_size) for task in tasks]
            for row in range(start, min(start + ROWS_AT_ONCE, len(part))):
                held = part.labels(row)
                for labels in seen:
                    labels.add(row, held[labels.task.name].unsqueeze(0))
            return seen

        whole = [_Labels(task, data.spec.native_size) for task in tasks]
        with ThreadPoolExecutor(WORKERS) as pool:
            for seen in pool.map(examine, range(0, len(part), ROWS_AT_ONCE)):
                for labels, more in zip(whole, seen, strict=True):
                    labels.merge(more)
        for labels in whole:
            yield from labels.faults(part)


@dataclasses.dataclass
class _Labels:
    """What is wrong with the labels of one task. first: row of the first, and its value or form, None where all are
    right; n_labels, n_samples: how many are wrong, in how many samples.
    """

    task: TaskSpec
    size: tuple[int, int]
    first: tuple[int, str] | None = None
    n_labels: int = 0
    n_samples: int = 0

    def add(self, row: int, target: Tensor) -> None:
        """Look at the labels [N, ...] of the samples from `row` on."""
        kind, target = get_kind(self.task.kind), target.as_subclass(Tensor)
        shape = kind.target_shape(self.task, self.size)
        typed = target.is_floating_point() if kind.floating else not target.is_floating_point()
        if not typed or target.dtype == torch.bool or tuple(target.shape[1:]) != shape:
            self._count(row, f"{_form(target)} each", target.numel(), len(target))
            return
        legal = kind.legal(target, self.task)
        if bool(legal.all()):
            return
        wrong = (~legal.reshape(len(legal), -1)).any(dim=1).nonzero().flatten()
        at = int(wrong[0])
        value = kind.magnitude(target)[at][~legal[at]].flatten()[0].item()
        self._count(row + at, f"{value:g}", int((~legal).sum()), len(wrong))

    def _count(self, row: int, what: str, n_labels: int, n_samples: int) -> None:
        self.first = self.first or (row, what)
        self.n_labels += n_labels
        self.n_samples += n_samples

    def merge(self, later: _Labels) -> None:
        """Add what was seen of later samples."""
        if later.first is not None:
            self._count(*later.first, later.n_labels, later.n_samples)

    def faults(self, part: InputData) -> Iterator[Fault]:
        """None or one."""
        if self.first is None:
            return
        (row, what), kind = self.first, get_kind(self.task.kind)
        shape = list(kind.target_shape(self.task, self.size))
        expected = f"{kind.legal_values(self.task)}, {'floating point' if kind.floating else 'integer'} {shape}"
        found = f"{self.n_labels} others in {self.n_samples} of {len(part)} samples, the first {what}"
        where = part.place(self.task.name, row)
        yield Fault(where, part.ids[row], f"labels of {self.task.name!r} ({kind.name})", expected, found)


def _in_memory(part: InputData) -> CachedSamples | None:
    """The samples if they are in memory already. Files are left out: `cached` would decode every image."""
    return None if isinstance(part, FileInput) else part.cached()


def _cached_label_faults(
    part: InputData, cached: CachedSamples, tasks: Sequence[TaskSpec], size: tuple[int, int]
) -> Iterator[Fault]:
    for task in tasks:  # one at a time: some are made when they are looked up
        target = cached.targets.get(task.name)
        if target is None or len(target) != len(part):
            found = "none" if target is None else str(len(target))
            yield Fault(task.name, "", "number of labels", f"{len(part)}, as there are ids", found)
            continue
        labels = _Labels(task, size)
        labels.add(0, target)
        yield from labels.faults(part)


def _faults_in_memory(data: MultiTaskDataset, name: str, cached: CachedSamples) -> Iterator[Fault]:
    """Form of the images, then number of images, units, strata and sources, then labels."""
    part, where, size = data.inputs[name], f"split {data.split!r}", data.spec.native_size
    images, n = cached.images, len(part)
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3) or images.shape[2:] != size:
        yield Fault(where, "", "images", f"uint8 [N, 1 or 3, {size[0]}, {size[1]}]", _form(images))
    for what in ("images", "units", "strata", "sources"):
        values = images if what == "images" else getattr(part, what)
        if values is not None and len(values) != n:
            yield Fault(where, "", f"number of {what}", f"{n}, as there are ids", str(len(values)))
    if len(set(part.ids)) != n:
        yield Fault(where, "", "ids", f"{n} different ones", str(len(set(part.ids))))
    tasks = [task for task in data.spec.tasks if data.spec.input_of(task.name) == name]
    yield from _cached_label_faults(part, cached, tasks, size)


def _faults_of_ends(data: MultiTaskDataset, name: str) -> Iterator[Fault]:
    """The images of the first and the last sample."""
    part, size = data.inputs[name], data.spec.native_size
    for row in sorted({0, len(part) - 1}):
        image = _image(part, row)
        if image.dtype != torch.float32 or tuple(image.shape) != (3, *size):
            yield Fault(part.place(IMAGE, row), part.ids[row], "image", f"float32 {[3, *size]}", _form(image))
        elif not bool(((image >= 0) & (image <= 1)).all()):
            found = f"{float(image.min()):g} to {float(image.max()):g}"
            yield Fault(part.place(IMAGE, row), part.ids[row], "range of the image", "0 to 1", found)


def _is_dark(part: InputData, cached: CachedSamples | None) -> bool:
    if cached is not None:
        return float(cached.images.max()) / 255 <= DARK
    # The first image is brighter, as a rule, and no other is read.
    return all(float(_image(part, row).max()) <= DARK for row in range(len(part)))


def _image(part: InputData, row: int) -> Tensor:
    """The image of a sample, without its labels where they lie apart."""
    return part.field(IMAGE, row) if isinstance(part, FileInput) else part[row]["image"].as_subclass(Tensor)


def _form(values: Tensor) -> str:
    return f"{str(values.dtype).removeprefix('torch.')} {list(values.shape)}"
