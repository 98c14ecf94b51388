"""Data sets on disk that know their folder themselves: they need no data root and have one layout."""

from __future__ import annotations

import abc
from pathlib import Path

from datasets.contracts import DatasetSpec, MultiTaskDataset, Split
from datasets.on_disk.loader import FileLoader
from datasets.registry import DatasetOptions, find_layout, get_dataset


class PlacedLoader(FileLoader):
    """A data set on disk whose folder is not looked for in a data root."""

    @abc.abstractmethod
    def place(self) -> Path:
        """The folder. Raises DatasetMissingError where it is absent."""

    def load(self, root: Path | None, split: Split, spec: DatasetSpec, options: DatasetOptions) -> MultiTaskDataset:
        """As the base, whatever the data root."""
        return super().load(self.place(), split, spec, options)


def located(name: str, root: Path | str | None, layout: str | None) -> tuple[Path, str | None]:
    """(folder, layout) of a data set on disk; the layout is None where there is but one. Raises as `find_layout`."""
    loader = get_dataset(name)
    return (loader.place(), None) if isinstance(loader, PlacedLoader) else find_layout(name, root, layout)
