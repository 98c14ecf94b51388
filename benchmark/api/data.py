"""What `data` does: verify a data set on disk, draw it, and make a copy that is read faster."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.cli import data_root_of_environment, say
from benchmark.plan.plugins import load_plugins
from benchmark.records.store import safe_name, write_atomic
from datasets.errors import unknown

if TYPE_CHECKING:
    from rich.console import Console

    from datasets.contracts import DatasetSpec
    from datasets.on_disk.verify import Report

EXIT_BAD = 1
SPLITS = ("train", "val", "test")


@dataclasses.dataclass(frozen=True)
class DataRequest:
    """Which data set, and which part of it.

    data_root: folder with a folder per data set, None for SHAREBENCH_DATA. layout: None for the one that is found.
    protocol: whose labels. twin: a part of the data, of which published counts and checksums do not hold. tasks: only
    these; None for all of the layout.
    """

    name: str
    data_root: Path | None = None
    layout: str | None = None
    protocol: str = "standard"
    twin: bool = False
    tasks: Sequence[str] | None = None
    plugins: Sequence[Path] = ()

    @property
    def root(self) -> Path | None:
        """The data root that is given, or that of the environment."""
        return self.data_root or data_root_of_environment()


def verify(
    request: DataRequest, console: Console, *, full: bool = False, workers: int = 4, json_file: Path | None = None
) -> int:
    """Check a data set on disk and print a report; returns 0, or EXIT_BAD where something is bad.

    full: decode every sample, not only the first and last of a split. workers: samples that are decoded side by side.
    json_file: takes every bad file. Raises UsageError.
    """
    _require(request)
    from benchmark.show.verification import verify_lines
    from datasets.on_disk.verify import verify as examine

    with _progress(console, f"verify {request.name}") as report_progress:
        report = examine(
            request.name,
            request.root,
            level="full" if full else "quick",
            profile="twin" if request.twin else "real",
            layout=request.layout,
            protocol=request.protocol,
            tasks=request.tasks,
            workers=workers,
            report_progress=report_progress,
        )
    for line in verify_lines(report):
        say(console, line)
    if json_file is not None:
        _write_json(report, json_file)
    return 0 if report.ok else EXIT_BAD


def show(request: DataRequest, console: Console, *, split: str, samples: int, out: Path) -> None:
    """Draw images of a split with every label beside them into the folder `out`, and print the files.

    samples: rows of the sheet; of multi-domain data, columns. Raises UsageError.
    """
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    _require(request)
    from benchmark.show.contact_sheet import contact_sheet
    from datasets.registry import load

    name, protocol = request.name, request.protocol
    options, layout = _on_disk(request)
    spec = _spec(request, options, layout)
    data = load(name, request.root, split, protocol=protocol, layout=layout, tasks=spec.task_names, options=options)
    for file in contact_sheet(data, samples, out / safe_name(f"{name}-{spec.layout}-{protocol}-{split}")):
        say(console, file)


def prepare(request: DataRequest, console: Console, *, workers: int = 4) -> None:
    """Write a lossless, memory-mapped copy that later runs read in place of the files, and print where it is. An
    interrupted copy is continued. Raises UsageError.
    """
    _require(request)
    from datasets.on_disk.prepare import prepare as copy

    options, layout = _on_disk(request)
    with _progress(console, f"prepare {request.name}") as report_progress:
        written = copy(
            request.name,
            request.root,
            layout,
            protocol=request.protocol,
            options=options,
            tasks=request.tasks,
            workers=workers,
            report_progress=report_progress,
        )
    size = sum(path.stat().st_size for path in written.rglob("*") if path.is_file())
    say(console, f"{written} ({size / 1e6:.1f} MB); runs with this data root read it from now on")


def _require(request: DataRequest) -> None:
    """Load the plug-ins, and raise UnknownNameError for an unknown data set before anything heavy is imported."""
    from datasets.registry import require_dataset

    load_plugins(request.plugins)
    require_dataset(request.name)


def _on_disk(request: DataRequest) -> tuple[dict[str, object], str | None]:
    """(options, layout on disk). Raises UsageError where the files are not there."""
    from datasets.registry import find_layout, get_dataset

    if not get_dataset(request.name).layouts:
        return {}, request.layout
    _, found = find_layout(request.name, request.root, request.layout)
    return ({"profile": "twin"} if request.twin else {}), found


def _spec(request: DataRequest, options: dict[str, object], layout: str | None) -> DatasetSpec:
    """The spec with the tasks that are asked for."""
    from datasets.registry import chosen_tasks, get_dataset, read_options, spec_of

    chosen = read_options(request.name, options)
    spec = spec_of(get_dataset(request.name), request.protocol, chosen, layout)
    return chosen_tasks(request.name, spec, chosen, request.tasks)


def _write_json(report: Report, path: Path) -> None:
    document: dict[str, Any] = {
        "dataset": report.spec.name,
        "layout": report.spec.layout,
        "level": report.level,
        "ok": report.ok,
        "counts": report.counts,
        "bad": [dataclasses.asdict(fault) for fault in report.bad],
        "warnings": list(report.warnings),
    }
    write_atomic(path, json.dumps(document, indent=2).encode())


@contextmanager
def _progress(console: Console, what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar in a terminal, nothing elsewhere."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task(what, total=None)

        def report(done: int, n: int) -> None:
            progress.update(bar, completed=done, total=n)

        yield report
