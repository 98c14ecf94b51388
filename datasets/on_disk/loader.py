"""Data sets on disk: subclasses list their splits; counting, prepared copies and loading are the same for all.

Loading raises for the first fault and says how many there are.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field

from datasets.contracts import DatasetSpec, InputData, MultiTaskDataset, Split
from datasets.on_disk.files import FileError
from datasets.on_disk.prepared import copy_of, use
from datasets.on_disk.sources import IMAGE, Fault, FileInput, Source, summary
from datasets.registry import DatasetLoader, DatasetOptions


class FileOptions(DatasetOptions):
    """Options of every data set on disk."""

    profile: Literal["real", "twin"] = Field(
        default="real",
        description="`real` demands the published numbers of samples; `twin` takes the samples that are there. Part of "
        "a cell's key, so that a run on some of the data is never taken for one on all",
    )


class FileLoader(DatasetLoader):
    """A data set on disk. Subclasses list their splits; loading and counting are the same for all."""

    Options = FileOptions

    @abc.abstractmethod
    def sources(self, folder: Path, split: Split, spec: DatasetSpec, options: FileOptions) -> Mapping[str, Source]:
        """{input: what the split holds}, all labels of the layout included. Files of samples are not opened.

        Raises FileError where the lists themselves cannot be read.
        """

    def load(self, root: Path | None, split: Split, spec: DatasetSpec, options: DatasetOptions) -> MultiTaskDataset:
        """The samples of a split, from their prepared copy where there is one. Raises FileError for the first fault."""
        assert root is not None
        assert isinstance(options, FileOptions)
        inputs: dict[str, InputData] = {}
        for name, source in self.sources(root, split, spec, options).items():
            if name not in spec.inputs:
                continue
            require_whole(source, spec, split, name, options, root)
            files = FileInput(source, spec, split, name, root)
            copy = copy_of(root, spec, options.model_dump(mode="json"))
            inputs[name] = FileInput(use(copy, split, name, source, files.content_hash), spec, split, name, root)
        return MultiTaskDataset(spec, split, inputs)


def require_whole(source: Source, spec: DatasetSpec, split: str, name: str, options: FileOptions, folder: Path) -> None:
    """Raise FileError naming the first fault in the lists of a split, and how many there are."""
    faults = [*source.faults, *count_faults(source, spec, split, name, options)]
    if faults:
        raise FileError(f"Data set {spec.name!r} at {folder}: {summary(faults)}.")


def count_faults(source: Source, spec: DatasetSpec, split: str, name: str, options: FileOptions) -> list[Fault]:
    """A fault if a split is empty or, with profile `real`, differs from the published number of samples.

    Numbers that are only recalled, or that a release does not fix, are no reason to refuse data.
    """
    if source.ids and (options.profile != "real" or spec.counts_recalled or not source.counted):
        return []
    hint = "; the option profile: twin takes a part of the data, under a key of its own" if source.ids else ""
    return count_fault(len(source.ids), spec, split, name, hint)


def count_fault(n: int, spec: DatasetSpec, split: str, name: str, hint: str = "") -> list[Fault]:
    """A fault if an input of a split does not have the number of samples that the spec declares. hint: what to do."""
    expected = spec.count(split, name)
    if n == expected and n:
        return []
    what = f"split {split!r}" + ("" if name == IMAGE else f" of {name!r}")
    return [Fault(what, "", "number of samples", str(expected), f"{n or 'none'}{hint}")]
