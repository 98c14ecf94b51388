"""`python -m benchmark.data verify|show|prepare NAME`: is a data set right, what does it look like, make it fast.

Exit codes: 0 fine, 1 something is bad, 2 usage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from benchmark.cli import data_root_of_environment, fail, start
from benchmark.plan.plugins import PluginOption, load_plugins
from datasets.errors import UsageError, unknown

if TYPE_CHECKING:
    from rich.console import Console

    from datasets.on_disk.verify import FieldSummary, Report

EXIT_BAD = 1
SPLITS = ("train", "val", "test")
MAX_FIELDS = 10  # tasks that are described one by one
MAX_SHOWN = 50  # bad files that are printed; --json writes all

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="A data set; `python -m benchmark.list` names them.")]
Root = Annotated[
    Path | None, typer.Option("--data-root", help="Folder with a folder a data set; else SHAREBENCH_DATA.")
]
LayoutOption = Annotated[str | None, typer.Option("--layout", help="Where two layouts lie side by side.")]
Protocol = Annotated[str, typer.Option(help="Whose labels: standard, adashare, mtan, ...")]
Twin = Annotated[bool, typer.Option("--twin", help="A part of the data: published counts and checksums do not apply.")]
Tasks = Annotated[
    str | None, typer.Option(help="Only these tasks, comma-separated; of sets on disk, all of the layout if left out.")
]
Workers = Annotated[int, typer.Option(min=1, help="Samples that are decoded side by side.")]


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


@app.command()
def verify(
    name: Name,
    data_root: Root = None,
    layout: LayoutOption = None,
    protocol: Protocol = "standard",
    full: Annotated[
        bool, typer.Option("--full", help="Decode every sample, not the first and last of a split.")
    ] = False,
    twin: Twin = False,
    tasks: Tasks = None,
    workers: Workers = 4,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every bad file there.")] = None,
    plugin: PluginOption = None,
) -> None:
    """Counts, files, checksums, shapes, ranges, ids; every bad file is named."""
    from benchmark.cli import make_console

    console = make_console()
    try:
        _require(name, plugin)
        from datasets.on_disk.verify import verify as examine

        with _progress(console, f"verify {name}") as report_progress:
            report = examine(
                name,
                data_root or data_root_of_environment(),
                level="full" if full else "quick",
                profile="twin" if twin else "real",
                layout=layout,
                protocol=protocol,
                tasks=_listed(tasks),
                workers=workers,
                report_progress=report_progress,
            )
    except UsageError as error:
        fail(error)
    _print_report(report, console)
    if json_file is not None:
        _write_json(report, json_file)
    raise typer.Exit(0 if report.ok else EXIT_BAD)


def _print_report(report: Report, console: Console) -> None:
    def line(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    spec = report.spec
    line(f"{spec.name}, layout {spec.layout}, protocol {spec.protocol} (tier of the layout: {spec.tier})")
    for split, inputs in report.counts.items():
        line(f"  {split}: {sum(inputs.values())} samples{_by_input(inputs)}")
    line(f"  decoded: {report.decoded} samples ({report.level})")
    for task in spec.tasks[:MAX_FIELDS]:
        line(f"  {task.name}: {_summary(report.fields[task.name], task.kind)}")
    if len(spec.tasks) > MAX_FIELDS:
        line(f"  and {len(spec.tasks) - MAX_FIELDS} more tasks")
    warnings = [*spec.caveats, *report.warnings]
    for warning in warnings[:MAX_SHOWN]:
        line(f"warning: {warning}")
    if len(warnings) > MAX_SHOWN:
        line(f"warning: {len(warnings) - MAX_SHOWN} more; --json FILE writes all")
    for fault in report.bad[:MAX_SHOWN]:
        line(f"bad: {fault}")
    if len(report.bad) > MAX_SHOWN:
        line(f"bad: {len(report.bad) - MAX_SHOWN} more; --json FILE writes all")
    line("ok" if report.ok else f"{len(report.bad)} bad")


def _by_input(inputs: Mapping[str, int]) -> str:
    if len(inputs) == 1:
        return ""
    if len(inputs) <= MAX_FIELDS:
        return f" ({', '.join(f'{name} {n}' for name, n in inputs.items())})"
    return f" (of {len(inputs)} tasks, {min(inputs.values())} to {max(inputs.values())} each)"


def _summary(summary: FieldSummary, kind: str) -> str:
    if not summary.n_valid:
        return "no label that counts"
    text = f"{kind}, values {summary.low:g} to {summary.high:g}"
    ignored = 100 * (1 - summary.n_valid / summary.n_labels)
    return f"{text}, {ignored:.1f} % ignored" + (f", {len(summary.classes)} classes" if summary.classes else "")


def _write_json(report: Report, path: Path) -> None:
    import dataclasses
    import json

    from benchmark.records.store import write_atomic

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


@app.command()
def show(
    name: Name,
    data_root: Root = None,
    layout: LayoutOption = None,
    protocol: Protocol = "standard",
    split: Annotated[str, typer.Option(help="train, val or test.")] = "train",
    tasks: Tasks = None,
    samples: Annotated[int, typer.Option(min=1, help="Rows of the sheet; of multi-domain data, columns.")] = 6,
    twin: Twin = False,
    out: Annotated[Path, typer.Option(help="Folder of the pictures.")] = Path("results") / "data",
    plugin: PluginOption = None,
) -> None:
    """A contact sheet: images of a split with every label beside them."""
    from benchmark.records.store import safe_name

    try:
        if split not in SPLITS:
            raise unknown("split", split, SPLITS)
        _require(name, plugin)
        from benchmark.show.contact_sheet import contact_sheet
        from datasets.registry import load

        options, folder, found = _chosen(name, data_root, layout, twin)
        spec = _spec(name, protocol, options, found, _listed(tasks))
        data = load(name, folder, split, protocol=protocol, layout=found, tasks=spec.task_names, options=options)
        stem = out / safe_name(f"{name}-{spec.layout}-{protocol}-{split}")
        for file in contact_sheet(data, samples, stem):
            print(file)
    except UsageError as error:
        fail(error)


@app.command()
def prepare(
    name: Name,
    data_root: Root = None,
    layout: LayoutOption = None,
    protocol: Protocol = "standard",
    twin: Twin = False,
    tasks: Tasks = None,
    workers: Workers = 4,
    plugin: PluginOption = None,
) -> None:
    """A lossless, memory-mapped copy that later runs read instead of the files; goes on where it was interrupted."""
    from benchmark.cli import make_console

    console = make_console()
    try:
        _require(name, plugin)
        from datasets.on_disk.prepare import prepare as copy

        options, folder, found = _chosen(name, data_root, layout, twin)
        with _progress(console, f"prepare {name}") as report_progress:
            written = copy(
                name,
                folder,
                found,
                protocol=protocol,
                options=options,
                tasks=_listed(tasks),
                workers=workers,
                report_progress=report_progress,
            )
    except UsageError as error:
        fail(error)
    size = sum(path.stat().st_size for path in written.rglob("*") if path.is_file())
    print(f"{written} ({size / 1e6:.1f} MB); runs with this data root read it from now on")


def _require(name: str, plugins: list[Path] | None) -> None:
    """Load the plug-ins, and raise UnknownNameError for a data set that is none before anything heavy is imported."""
    from datasets.registry import require_dataset

    load_plugins(plugins or ())
    require_dataset(name)


def _chosen(
    name: str, data_root: Path | None, layout: str | None, twin: bool
) -> tuple[dict[str, object], Path | None, str | None]:
    """(options, data root, layout on disk)."""
    from datasets.registry import find_layout, get_dataset

    root = data_root or data_root_of_environment()
    if not get_dataset(name).layouts:
        return {}, root, layout
    _, found = find_layout(name, root, layout)
    return ({"profile": "twin"} if twin else {}), root, found


def _listed(tasks: str | None) -> list[str] | None:
    return None if tasks is None else [task.strip() for task in tasks.split(",")]


def _spec(name: str, protocol: str, options: dict[str, object], layout: str | None, tasks: list[str] | None) -> Any:
    """The spec with the tasks that are asked for."""
    from datasets.registry import chosen_tasks, get_dataset, read_options, spec_of

    chosen = read_options(name, options)
    return chosen_tasks(name, spec_of(get_dataset(name), protocol, chosen, layout), chosen, tasks)


if __name__ == "__main__":
    start(app)
