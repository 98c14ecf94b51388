"""Preparing a data set by name: every split that its layout lists, with every label."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from datasets.errors import UsageError
from datasets.on_disk.loader import FileLoader, FileOptions, require_whole
from datasets.on_disk.placed import PlacedLoader, located
from datasets.on_disk.prepared import copy_of
from datasets.on_disk.prepared import prepare as write_copy
from datasets.on_disk.sources import FileInput, Source
from datasets.registry import chosen_tasks, get_dataset, read_options


def prepare(
    name: str,
    root: Path | str | None,
    layout: str | None = None,
    *,
    protocol: str = "standard",
    options: Mapping[str, object] | None = None,
    tasks: Sequence[str] | None = None,
    workers: int = 4,
    report_progress: Callable[[int, int], None] = lambda done, n: None,
) -> Path:
    """Write the prepared copy of a data set; gives its folder. tasks: as `chosen_tasks`.

    Raises UsageError for a set that lies in memory anyway, DatasetMissingError and FileError as loading does.
    """
    loader = get_dataset(name)
    if not isinstance(loader, FileLoader) or not (loader.layouts or isinstance(loader, PlacedLoader)):
        raise UsageError(f"Data set {name!r} needs no data root and is kept in memory; there is nothing to prepare.")
    folder, found = located(name, root, layout)
    chosen = read_options(name, options)
    assert isinstance(chosen, FileOptions)
    spec = chosen_tasks(name, loader.spec(protocol, chosen, found), chosen, tasks)
    parts: dict[tuple[str, str], Source] = {}
    contents: dict[tuple[str, str], str] = {}
    for split in spec.splits:
        for part, source in loader.sources(folder, split, spec, chosen).items():  # type: ignore[arg-type]
            if source.in_memory and source.listing is None:
                raise UsageError(f"Data set {name!r} is small and kept in memory; there is nothing to prepare.")
            require_whole(source, spec, split, part, chosen, folder)
            parts[split, part] = source
            contents[split, part] = FileInput(source, spec, split, part, folder).content_hash()  # type: ignore[arg-type]
    copy = copy_of(folder, spec, chosen.model_dump(mode="json"))
    return write_copy(copy, parts, contents, workers=workers, report_progress=report_progress)
