"""Data sets whose files are not here, for `run --plan`: random images and legal labels of the declared shape.

A stand-in has the tasks, sizes and numbers of training samples of the data set; of the other splits it holds a few
samples, and evaluation is scaled to the declared number. What reading the files will cost is not in its estimates.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor
from torchvision import tv_tensors

from benchmark.plan.suite import Cell, Suite
from datasets.contracts import DatasetSpec, InputData, MultiTaskDataset, Sample, Split, TaskSpec
from datasets.errors import DatasetMissingError, UsageError
from datasets.kinds import get_kind
from datasets.registry import DatasetLoader, DatasetOptions, find_layout, get_dataset, read_options, replaced

EVALUATED = 32  # samples of the splits that are only evaluated
_PLUGIN = "from benchmark.plan.stand_in import install\n\ninstall({names!r})\n"


def missing(suite: Suite, root: Path | None) -> dict[str, DatasetMissingError]:
    """{name: what is missing} of the suite's data sets whose files are not in the data root."""
    found = {}
    for data in suite.data:
        if get_dataset(data.dataset).layouts:
            try:
                find_layout(data.dataset, root, data.layout)
            except DatasetMissingError as error:
                found[data.dataset] = error
    return found


def install(names: Iterable[str]) -> dict[str, DatasetLoader]:
    """Put stand-ins in the place of data sets, in this process; {name: the real loader} of those that had none."""
    real = {name: loader for name in names if not isinstance(loader := get_dataset(name), StandIn)}
    return {name: replaced(name, StandIn(loader)) for name, loader in real.items()}


@contextlib.contextmanager
def standing_in(names: Iterable[str]) -> Iterator[list[str]]:
    """Stand-ins for these data sets in this process, and the plug-ins that put them in place in a worker."""
    names = list(names)
    real = install(names)
    try:
        with tempfile.TemporaryDirectory(prefix="sharebench-stand-in-") as folder:
            yield [str(_plugin(names, Path(folder)))] if names else []
    finally:
        for name, loader in real.items():
            replaced(name, loader)


def evaluation_factor(cell: Cell) -> float:
    """Declared samples of the test split per sample that a stand-in holds; 1 for data that are here."""
    loader = get_dataset(cell.data.dataset)
    if not isinstance(loader, StandIn):
        return 1.0
    few = cell.data.choice.spec()
    real = loader.real.spec(few.protocol, read_options(few.name, cell.data.options), few.layout)
    return max(real.count("test", name) / few.count("test", name) for name in few.inputs)


def _plugin(names: Iterable[str], folder: Path) -> Path:
    path = folder / "stand_ins.py"
    path.write_text(_PLUGIN.format(names=sorted(names)), encoding="utf-8")
    return path


class StandIn(DatasetLoader):
    """In the place of `real`, a loader whose files are not here."""

    def __init__(self, real: DatasetLoader) -> None:
        self.real = real
        self.Options = real.Options  # type: ignore[misc]  # of one object in place of its class
        self.protocols = real.protocols  # type: ignore[misc]

    def spec(self, protocol: str, options: DatasetOptions, layout: str | None = None) -> DatasetSpec:
        """That of the real loader, with fewer samples to evaluate."""
        spec = self.real.spec(protocol, options, layout)
        few = {split: n if split == "train" else min(n, EVALUATED) for split, n in spec.splits.items()}
        counts = {
            split: {name: n if split == "train" else min(n, EVALUATED) for name, n in by_input.items()}
            for split, by_input in spec.counts.items()
        }
        return dataclasses.replace(spec, splits=few, counts=counts)

    def default_tasks(self, spec: DatasetSpec) -> tuple[str, ...]:
        """Those of the real loader."""
        return self.real.default_tasks(spec)

    def unavailable(self, options: DatasetOptions, layout: str | None = None) -> Mapping[str, str]:
        """Those of the real loader."""
        return self.real.unavailable(options, layout)

    def load(self, root: Path | None, split: Split, spec: DatasetSpec, options: DatasetOptions) -> MultiTaskDataset:
        """Made, not read."""
        tasks = {name: [task for task in spec.tasks if spec.input_of(task.name) == name] for name in spec.inputs}
        inputs = {name: _Made(spec, split, name, tasks[name]) for name in spec.inputs}
        return MultiTaskDataset(spec, split, inputs)


class _Made(InputData):
    """Samples of an input that are all alike: one random image, one legal label a task."""

    def __init__(self, spec: DatasetSpec, split: Split, name: str, tasks: Iterable[TaskSpec]) -> None:
        self.spec = spec
        self.ids = [f"{split}/{name}/{row:07d}" for row in range(spec.count(split, name))]
        self.units = self.ids
        generator = torch.Generator().manual_seed(0)
        self._image = torch.rand(3, *spec.native_size, generator=generator)
        self._targets = {task.name: _legal(task, spec.native_size, generator) for task in tasks}
        self._meta = {"dataset": spec.name, "layout": spec.layout, "split": split, "size": spec.native_size}

    def sample(self, row: int) -> Sample:
        """The one image and its labels, copied."""
        targets = {name: target.clone() for name, target in self._targets.items()}
        return {
            "image": tv_tensors.Image(self._image.clone()),
            "targets": targets,
            "meta": {"id": self.ids[row], **self._meta},
        }

    def content_hash(self) -> str:
        """No content, so no hash of one."""
        return "stand-in"


def _legal(task: TaskSpec, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """A label of the task. Raises UsageError for a kind that finds none of the candidates legal."""
    kind = get_kind(task.kind)
    for candidate in _candidates(kind.target_shape(task, size), kind.floating, task.channels, generator):
        if bool(kind.legal(candidate, task).all() and kind.valid(candidate).any()):
            return candidate
    raise UsageError(f"No stand-in has a legal label of kind {task.kind!r}; {kind.legal_values(task)} are legal.")


def _candidates(shape: tuple[int, ...], floating: bool, channels: int, generator: torch.Generator) -> Iterator[Tensor]:
    if not floating:
        for top in (max(channels, 2), 2, 1):
            yield torch.randint(0, top, shape, generator=generator)
        return
    yield torch.randint(0, 2, shape, generator=generator).to(torch.float32)
    yield torch.ones(shape)
    if shape:
        along = torch.zeros(shape)
        along[0] = 1  # a unit vector a pixel
        yield along
    yield torch.full(shape, 128.0)
