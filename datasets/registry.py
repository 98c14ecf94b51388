"""Data sets by name. The loaders of this package are found in its files, others through entry points; a loader is
imported when it is asked for.

Spec: datasets 2.3 and 2.7. A data set is a class with `spec` (no file is opened) and `load`; see `DatasetLoader`.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import importlib
import os
import pkgutil
import shlex
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

from pydantic import ValidationError

import datasets
from datasets.declared import Declared, declared
from datasets.errors import DatasetMissingError, UsageError, first_fault, unknown
from datasets.settings import Checked

if TYPE_CHECKING:
    from datasets.contracts import DatasetSpec, MultiTaskDataset, Split

DATA_ROOT_VARIABLE = "SHAREBENCH_DATA"


class DatasetOptions(Checked):
    """Base of every data set's options: unknown keys are errors, values are frozen."""


@dataclasses.dataclass(frozen=True)
class ExpectedFiles:
    """The files of a layout. tree: paths below the data set's folder, for people; size: in words.

    marks: paths below the folder that exist in this layout, by which it is recognised: all of them; `a|b` is one of
    two. unless: paths that exist only in another layout, which has all of these marks too. checksums: {path: published
    sha256}, which `verify` compares. source: where to get this release; empty for the data set's home. commands: lines
    of shell that fetch it by tools of others, to paste; `{folder}` is the data set's folder in "$SHAREBENCH_DATA".
    """

    tree: str
    size: str
    marks: tuple[str, ...] = ()
    unless: tuple[str, ...] = ()
    checksums: Mapping[str, str] = dataclasses.field(default_factory=dict)
    source: str = ""
    commands: tuple[str, ...] = ()

    def pasted(self, name: str) -> list[str]:
        """The commands for the data set of that name."""
        return [command.replace("{folder}", f'"${DATA_ROOT_VARIABLE}/{name}"') for command in self.commands]

    def missing(self, folder: Path) -> str | None:
        """The first mark that is absent, None where the layout is there."""
        absent = (mark for mark in self.marks if not any((folder / path).exists() for path in mark.split("|")))
        return next((mark.replace("|", " or ") for mark in absent), None)

    def is_other(self, folder: Path) -> bool:
        """Whether the folder says that it is another layout."""
        return any((folder / path).exists() for path in self.unless)


class DatasetLoader(abc.ABC):
    """A data set. Stateless; registered with `@register_dataset(name)`."""

    Options: ClassVar[type[DatasetOptions]] = DatasetOptions
    # What may be in `<data root>/<name>`, the usual layout first; empty for sets that need no data root.
    layouts: ClassVar[Mapping[str, ExpectedFiles]] = {}
    package: ClassVar[str] = ""  # the optional PyPI package that brings the files of a set without layouts
    protocols: ClassVar[tuple[str, ...]] = ("standard",)  # those that the set has labels for

    @abc.abstractmethod
    def spec(self, protocol: str, options: DatasetOptions, layout: str | None = None) -> DatasetSpec:
        """All tasks and sizes, without opening a file. layout: one of `layouts`, None for the first.

        Raises ProtocolError for a protocol it has no labels for.
        """

    def default_tasks(self, spec: DatasetSpec) -> tuple[str, ...]:
        """Names of the tasks that a suite gets if it names none."""
        return spec.task_names

    def unavailable(self, options: DatasetOptions, layout: str | None = None) -> Mapping[str, str]:
        """{task: reason} for tasks that options or layout take away; the reason ends the error for such a task."""
        return {}

    @abc.abstractmethod
    def load(self, root: Path | None, split: Split, spec: DatasetSpec, options: DatasetOptions) -> MultiTaskDataset:
        """One split with the tasks of `spec`. root: the data set's own folder; of a set without layouts, the data root
        as it was given.
        """


_DATASETS: dict[str, DatasetLoader] = {}
_D = TypeVar("_D", bound=type[DatasetLoader])


def register_dataset(name: str) -> Callable[[_D], _D]:
    """Class decorator that registers a data set. Raises UsageError where the name is taken."""

    def register(cls: _D) -> _D:
        place = (cls.__module__, cls.__qualname__)
        taken, ours = _DATASETS.get(name), declared_datasets().get(name)
        others = {(ours.module, ours.attribute)} if ours is not None else set()
        others |= {(type(taken).__module__, type(taken).__qualname__)} if taken is not None else set()
        for module, _ in others - {place}:
            raise UsageError(f"Data set {name!r} is registered twice: {module} and {cls.__module__}.")
        _DATASETS[name] = cls()
        return cls

    return register


def replaced(name: str, loader: DatasetLoader) -> DatasetLoader:
    """Put a loader in the place of a registered one, in this process, and return that one."""
    before = get_dataset(name)
    _DATASETS[name] = loader
    return before


def assert_own_package(package: ModuleType = datasets) -> None:
    """Raise UsageError where the import package `datasets` is, or is mixed with, Hugging Face's library of that name.

    Installed side by side the two overwrite each other's files, and package metadata cannot express a conflict.
    """
    ours = Path(__file__).parent
    file = getattr(package, "__file__", None)
    foreign = file is None or Path(file).resolve().parent != ours.resolve() or hasattr(package, "load_dataset")
    if foreign or (ours / "arrow_dataset.py").exists():
        raise UsageError(
            f"The package 'datasets' at {file} is Hugging Face's or is mixed with it, expected ShareBench's at {ours}; "
            "install ShareBench in an environment of its own."
        )


@functools.cache
def declared_datasets() -> Mapping[str, Declared]:
    """The data sets of this package, without importing them. Raises UsageError as `assert_own_package`."""
    assert_own_package()
    return declared("datasets", "register_dataset")


@functools.cache
def load_datasets() -> None:
    """Import every module of this package and every entry point of the group `sharebench.datasets`, once a process."""
    assert_own_package()
    for module in pkgutil.iter_modules(datasets.__path__, prefix="datasets."):
        importlib.import_module(module.name)
    _load_entry_points()


@functools.cache
def _load_entry_points() -> None:
    for point in entry_points(group="sharebench.datasets"):
        point.load()


def ships(loader: DatasetLoader) -> bool:
    """Whether the data set's code is in this package, not a plug-in's or a third party's."""
    return type(loader).__module__.startswith(f"{datasets.__name__}.")


def is_core(loader: DatasetLoader) -> bool:
    """Whether the data set ships with its samples: neither files nor an optional package are needed."""
    return ships(loader) and not (loader.layouts or loader.package)


def spec_of(loader: DatasetLoader, protocol: str, options: DatasetOptions, layout: str | None = None) -> DatasetSpec:
    """The spec of a loader with all tasks. A loader that does not ship with this package cannot set its tier.

    Raises ProtocolError for a protocol it has no labels for.
    """
    spec = loader.spec(protocol, options, layout) if loader.layouts else loader.spec(protocol, options)
    return spec if ships(loader) else dataclasses.replace(spec, tier="by its author")


def dataset_names() -> list[str]:
    """Names of the package's data sets and of what was registered besides, in alphabetical order."""
    _load_entry_points()
    return sorted({*declared_datasets(), *_DATASETS})


def require_dataset(name: str) -> None:
    """Raise UnknownNameError with the nearest names for an unknown data set; imports no data set of this package."""
    if name not in (names := dataset_names()):
        raise unknown("data set", name, names)


def get_dataset(name: str) -> DatasetLoader:
    """The data set of that name. Raises UnknownNameError with the nearest names."""
    ours = declared_datasets().get(name)
    if ours is not None:
        kind = getattr(importlib.import_module(ours.module), ours.attribute)
        return _DATASETS.setdefault(name, kind())
    if name not in _DATASETS:
        require_dataset(name)  # loads entry points
    return _DATASETS[name]


def dataset_spec(
    name: str,
    *,
    protocol: str = "standard",
    layout: str | None = None,
    tasks: Sequence[str] | None = None,
    options: Mapping[str, object] | DatasetOptions | None = None,
) -> DatasetSpec:
    """What a data set promises with these tasks (None: its default ones), before any file is opened.

    layout: None takes the usual one; `find_layout` tells which one is on disk. Raises UsageError or a subclass for an
    unknown data set, layout, task or option, or an unsupported protocol.
    """

    loader, chosen_options = get_dataset(name), read_options(name, options)
    if layout is not None and loader.layouts and layout not in loader.layouts:
        raise unknown(f"layout of {name}", layout, loader.layouts)
    spec = spec_of(loader, protocol, chosen_options, layout)
    if layout is not None and layout != spec.layout:
        raise unknown(f"layout of {name}", layout, [spec.layout])
    chosen = loader.default_tasks(spec) if tasks is None else tuple(tasks)
    if not chosen or len(set(chosen)) != len(chosen):
        raise UsageError(f"tasks of {name} must be a non-empty list of different names, got {list(chosen)}.")
    unavailable = loader.unavailable(chosen_options, layout)
    for task in chosen:
        if task in unavailable:
            raise UsageError(f"Task {task!r} of {name} is not available: {unavailable[task]}.")
    return spec.with_tasks(chosen)


def chosen_tasks(name: str, spec: DatasetSpec, options: DatasetOptions, tasks: Sequence[str] | None) -> DatasetSpec:
    """The spec with these tasks; None takes all that layout and options have, of sets without layouts the default ones.

    Raises UnknownNameError with the nearest names.
    """
    loader = get_dataset(name)
    if tasks is not None:
        return spec.with_tasks(tasks)
    unavailable = loader.unavailable(options, spec.layout if loader.layouts else None)
    named = spec.task_names if loader.layouts else loader.default_tasks(spec)
    return spec.with_tasks([task for task in named if task not in unavailable])


def load(
    name: str,
    root: Path | str | None,
    split: str,
    *,
    protocol: str = "standard",
    layout: str | None = None,
    tasks: Sequence[str] | None = None,
    options: Mapping[str, object] | DatasetOptions | None = None,
) -> MultiTaskDataset:
    """One split of a data set. root: the data root, None for the variable SHAREBENCH_DATA; embedded sets need neither.

    layout: None takes the one on disk. `tasks` changes neither images nor splits nor their order. Raises as
    `dataset_spec`, and DatasetMissingError where the files are absent.
    """
    loader, folder = get_dataset(name), None if root is None else Path(root)
    splits = loader.spec(loader.protocols[0], loader.Options()).splits
    if split not in splits:
        raise unknown(f"split of {name}", split, splits)
    if loader.layouts:  # first of all: the usual layout may lack the protocol or the options that this one has
        folder, layout = find_layout(name, root, layout)
    spec = dataset_spec(name, protocol=protocol, layout=layout, tasks=tasks, options=options)
    return loader.load(folder, cast("Split", split), spec, read_options(name, options))


@dataclasses.dataclass(frozen=True)
class DataChoice:
    """A data set as it is asked for. layout: None takes the usual one for its spec, and for its splits the one on disk.
    tasks: None takes the default ones. options: of the data set, not yet checked.
    """

    dataset: str
    protocol: str = "standard"
    layout: str | None = None
    tasks: tuple[str, ...] | None = None
    options: Mapping[str, object] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> DataChoice:
        """The choice in the `data` of a stored cell."""
        tasks, options = tuple(stored["tasks"]), dict(stored.get("options") or {})
        return cls(stored["dataset"], stored["protocol"], stored.get("layout"), tasks, options)

    def spec(self) -> DatasetSpec:
        """As `dataset_spec`."""
        return dataset_spec(
            self.dataset, protocol=self.protocol, layout=self.layout, tasks=self.tasks, options=self.options
        )

    def split(self, name: str, root: Path | str | None) -> MultiTaskDataset:
        """As `load`."""
        return load(
            self.dataset,
            root,
            name,
            protocol=self.protocol,
            layout=self.layout,
            tasks=self.tasks,
            options=self.options,
        )


def read_options(name: str, options: Mapping[str, object] | DatasetOptions | None) -> DatasetOptions:
    """Validated options of a data set. Raises UsageError naming the first one that is unknown or out of range."""
    model = get_dataset(name).Options
    if isinstance(options, DatasetOptions):
        if not isinstance(options, model):
            raise UsageError(f"Options of {name} must be {model.__qualname__}, got {type(options).__qualname__}.")
        return options
    given = dict(options or {})
    for key in given:
        if key not in model.model_fields:
            raise unknown(f"option of {name}", key, model.model_fields)
    try:
        return model.model_validate(given)
    except ValidationError as error:
        fault = first_fault(error)
        raise UsageError(f"Option {fault.where!r} of {name} is {fault.given!r}: {fault.text}.") from error


def find_layout(name: str, root: Path | str | None, layout: str | None = None) -> tuple[Path, str]:
    """(folder, layout) of a data set on disk: `<root>/<name>` in the layout asked for, or in the one that is there.

    root: None for the variable SHAREBENCH_DATA. Raises DatasetMissingError naming what was looked for and how to get
    it, and UsageError where two layouts lie side by side.
    """
    loader = get_dataset(name)
    if layout is not None and layout not in loader.layouts:
        raise unknown(f"layout of {name}", layout, loader.layouts)
    base = root if root is not None else os.environ.get(DATA_ROOT_VARIABLE)
    asked = [layout] if layout is not None else list(loader.layouts)
    if base is None:
        raise _missing(name, asked, None, f"neither --data-root nor {DATA_ROOT_VARIABLE} is set")
    folder = Path(base) / name
    if not folder.is_dir():
        raise _missing(name, asked, Path(base), f"no folder {folder}")
    absent = {tried: loader.layouts[tried].missing(folder) for tried in asked}
    found = [tried for tried, mark in absent.items() if mark is None]
    if len(found) > 1:
        found = [tried for tried in found if not loader.layouts[tried].is_other(folder)]
    if not found:
        tried = ", ".join(f"no {mark} for layout {name!r}" for name, mark in absent.items())
        raise _missing(name, asked, Path(base), f"in {folder}: {tried}")
    if len(found) > 1:
        raise UsageError(
            f"Data set {name!r} at {folder} looks like each of the layouts {', '.join(found)}; name one (layout: ...)."
        )
    return folder, found[0]


def _missing(name: str, layouts: Sequence[str], root: Path | None, looked: str) -> DatasetMissingError:
    """The one line that says what is expected and where it comes from. It ends with what can be pasted to get the first
    layout that has commands. root: the data root, None if it is not known.
    """
    loader = get_dataset(name)
    spec = loader.spec(loader.protocols[0], loader.Options(), layouts[0])
    expected = "; or ".join(
        f"layout {layout!r}: {name}/{files.tree} ({files.size}), from {files.source or spec.home}"
        for layout, files in ((layout, loader.layouts[layout]) for layout in layouts)
    )
    text = f"Data set {name!r}: {looked}. Expected {expected}. Licence: {spec.licence}."
    files = next((loader.layouts[layout] for layout in layouts if loader.layouts[layout].commands), None)
    if files is not None:
        place = "FOLDER" if root is None else shlex.quote(str(root.absolute()))
        lines = (f"export {DATA_ROOT_VARIABLE}={place}", *files.pasted(name))
        text += f" Read the licence, then paste: {' && '.join(lines)}"
    return DatasetMissingError(text)
