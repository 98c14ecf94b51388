"""What `data` does: verify a data set on disk, draw it, and make a copy that is read faster."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.cli import data_root_of_environment, say
from benchmark.plan.plugins import load_plugins
from benchmark.plan.yaml_text import parse_yaml
from benchmark.records.store import safe_name, write_atomic
from datasets.errors import UsageError, unknown

if TYPE_CHECKING:
    from rich.console import Console

    from datasets.contracts import DatasetSpec
    from datasets.on_disk.verify import Report

EXIT_BAD = 1
SHOWN_NAMES = 8  # of renamed tensors, as examples
SPLITS = ("train", "val", "test")


@dataclasses.dataclass(frozen=True)
class DataRequest:
    """Which data set, and which part of it.

    data_root: folder with a folder per data set, None for SHAREBENCH_DATA. layout: None for the one that is found.
    protocol: whose labels. twin: a part of the data, of which published counts and checksums do not hold. tasks: only
    these; None for all of the layout. options: of the data set, texts `name=value`.
    """

    name: str
    data_root: Path | None = None
    layout: str | None = None
    protocol: str = "standard"
    twin: bool = False
    tasks: Sequence[str] | None = None
    options: Sequence[str] = ()
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


def convert_weights(file: Path, out: Path, backbone: str, console: Console) -> None:
    """Write a file of weights with timm's names, as `weights:` takes it, and print what became of each part.

    Raises UsageError where the file cannot be read or does not fit the backbone; then nothing is written.
    """
    if out.suffix != ".safetensors":
        raise UsageError(f"--to {str(out)!r}: expected a path that ends in .safetensors.")
    import safetensors.torch

    from methods.backbones.renaming import timm_state

    state, names = timm_state(file, backbone)
    write_atomic(out, safetensors.torch.save(state, metadata={"format": "pt"}))
    renamed = {new: old for new, old in names.items() if new != old}
    say(console, f"{file} (sha256 {hashlib.sha256(file.read_bytes()).hexdigest()[:16]})")
    say(console, f"  {len(state)} tensors, {len(renamed)} of them renamed; names and shapes are those of {backbone}")
    for new, old in list(renamed.items())[:: max(1, len(renamed) // SHOWN_NAMES)]:
        say(console, f"  {old} -> {new} {list(state[new].shape)}")
    say(console, f"{out} ({out.stat().st_size / 1e6:.1f} MB); a suite takes it as weights: {out}")


def _require(request: DataRequest) -> None:
    """Load the plug-ins, and raise UnknownNameError for an unknown data set before anything heavy is imported."""
    from datasets.registry import require_dataset

    load_plugins(request.plugins)
    require_dataset(request.name)


def _on_disk(request: DataRequest) -> tuple[dict[str, object], str | None]:
    """(options, layout on disk). Raises UsageError where the files are not there."""
    from datasets.registry import find_layout, get_dataset

    options = _options(request.options)
    if not get_dataset(request.name).layouts:
        return options, request.layout
    _, found = find_layout(request.name, request.root, request.layout)
    return ({**options, "profile": "twin"} if request.twin else options), found


def _options(texts: Sequence[str]) -> dict[str, object]:
    """{option: value} of texts `name=value`, values read as YAML. Raises UsageError."""
    options: dict[str, object] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise UsageError(f"--set {text!r}: expected an option of the data set and its value, such as size=35.")
        options[name.strip()], _ = parse_yaml(value, f"--set {text!r}")
    return options


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
