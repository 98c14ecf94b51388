"""What is learnt: task kinds, data sets, their contracts and their protocols. Imports neither `methods` nor
`benchmark`.

The names below are what a data set of your own needs: `from datasets import DatasetLoader, register_dataset`. Each is
imported when it is first asked for, so that `import datasets` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets.array_input import ArrayInput
    from datasets.contracts import (
        SINGLE_INPUT,
        CachedSamples,
        DatasetSpec,
        IndexArray,
        InputData,
        MultiTaskDataset,
        NormalsFrame,
        Sample,
        Split,
        TaskSpec,
        Tier,
    )
    from datasets.errors import DatasetMissingError, ProtocolError, UsageError
    from datasets.on_disk.files import FileError
    from datasets.on_disk.loader import FileLoader, FileOptions
    from datasets.on_disk.sources import Fault, Field, FileInput, Source, field_of_files
    from datasets.own.arrays import ArrayFiles
    from datasets.own.folders import ImageFolders
    from datasets.own.labels import Labels
    from datasets.registry import (
        DatasetLoader,
        DatasetOptions,
        ExpectedFiles,
        dataset_spec,
        get_dataset,
        load,
        register_dataset,
    )

__all__ = [
    "SINGLE_INPUT",
    "ArrayFiles",
    "ArrayInput",
    "CachedSamples",
    "DatasetLoader",
    "DatasetMissingError",
    "DatasetOptions",
    "DatasetSpec",
    "ExpectedFiles",
    "Fault",
    "Field",
    "FileError",
    "FileInput",
    "FileLoader",
    "FileOptions",
    "ImageFolders",
    "IndexArray",
    "InputData",
    "Labels",
    "MultiTaskDataset",
    "NormalsFrame",
    "ProtocolError",
    "Sample",
    "Source",
    "Split",
    "TaskSpec",
    "Tier",
    "UsageError",
    "dataset_spec",
    "field_of_files",
    "get_dataset",
    "load",
    "register_dataset",
]

_HOMES = {
    "array_input": "ArrayInput",
    "contracts": "SINGLE_INPUT CachedSamples DatasetSpec IndexArray InputData MultiTaskDataset NormalsFrame Sample "
    "Split TaskSpec Tier",
    "errors": "DatasetMissingError ProtocolError UsageError",
    "on_disk.files": "FileError",
    "on_disk.loader": "FileLoader FileOptions",
    "on_disk.sources": "Fault Field FileInput Source field_of_files",
    "own.arrays": "ArrayFiles",
    "own.folders": "ImageFolders",
    "own.labels": "Labels",
    "registry": "DatasetLoader DatasetOptions ExpectedFiles dataset_spec get_dataset load register_dataset",
}
_HOME_OF = {name: f"datasets.{module}" for module, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> object:
    import importlib

    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
