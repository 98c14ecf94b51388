"""`python -m benchmark.run`: run a suite and print its tables. Heavy imports happen only once there is work to do."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from benchmark.entry import start
from benchmark.plugins import PluginOption
from benchmark.suite import BudgetSettings, Suite, find_suite, read_suite
from benchmark.yaml_text import parse_yaml
from datasets.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from benchmark.cell import RunSettings
    from benchmark.planning import PlannedCell
    from benchmark.report import Format
    from benchmark.staleness import Present
    from benchmark.store import Store

EXIT_NOT_DONE, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
SMOKE_STEPS = 3  # a method may correlate loss curves, which takes three points
TABLES: dict[Format, str] = {"markdown": "table.md", "csv": "table.csv", "latex": "table.tex"}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def fail(error: Exception) -> NoReturn:
    """One line on stderr and exit code 2: a user's mistake is no traceback."""
    print(f"error: {error}", file=sys.stderr)
    raise typer.Exit(EXIT_USAGE)


def _split(text: str | None) -> list[str] | None:
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def changes_to(suite: dict[str, Any], option: str, key: str, names: Sequence[str]) -> list[Any]:
    """All of the suite's entries of these names, with their settings; a bare one for a name that the suite lacks."""
    known: dict[str, list[Any]] = {}
    for entry in suite.get(option) or []:
        known.setdefault(entry if isinstance(entry, str) else entry.get(key), []).append(entry)
    return [entry for name in names for entry in known.get(name, [{key: name}])]


def select(
    name: str,
    *,
    methods: str | None = None,
    datasets: str | None = None,
    tasks: str | None = None,
    backbones: str | None = None,
    seeds: str | None = None,
    settings: Sequence[str] = (),
    plugins: Sequence[str | Path] = (),
) -> Suite:
    """A suite with the choices of the command line. plugins: besides the suite's own, relative to the working
    directory. Raises UsageError.
    """
    path = find_suite(name)
    # Validated first, so that what is changed below is known to have the right form.
    read_suite(path)
    document, _ = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    changes: dict[str, Any] = {}
    for option, key, text in (
        ("methods", "name", methods),
        ("data", "dataset", datasets),
        ("backbones", "name", backbones),
    ):
        if (names := _split(text)) is not None:
            changes[option] = changes_to(document, option, key, names)
    if (chosen := _split(tasks)) is not None:
        entries = changes.get("data", document["data"])
        changes["data"] = [
            {**({"dataset": entry} if isinstance(entry, str) else entry), "tasks": chosen} for entry in entries
        ]
    if (numbers := _split(seeds)) is not None:
        try:
            changes["seeds"] = [int(number) for number in numbers]
        except ValueError as error:
            raise UsageError(f"--seeds {seeds!r}: expected whole numbers, for example 0,1,2.") from error
    suite = read_suite(path, changes, settings)
    named = tuple(str(Path(file).resolve()) for file in plugins)  # workers do not know where the command was started
    return suite.model_copy(update={"plugins": tuple(dict.fromkeys((*suite.plugins, *named)))})


def pick_device(name: str) -> str:
    """`cpu` or `cuda[:n]` for a request; `auto` takes CUDA where there is one. Raises UsageError."""
    if name == "cpu":
        return name
    if name not in ("auto", "cuda") and not name.startswith("cuda:"):
        raise UsageError(f"--device {name!r}: expected auto, cpu, cuda or cuda:0.")
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    count = torch.cuda.device_count()
    index = name.partition(":")[2]
    if not count or (index and not (index.isdigit() and int(index) < count)):
        raise UsageError(f"--device {name!r}: PyTorch sees {count} CUDA devices here; use --device cpu.")
    return name


def check_names(suite: Suite) -> None:
    """Load the suite's plug-ins and look up its methods and data sets, before torch is imported where no plug-in does.
    Raises UsageError.
    """
    from benchmark.plugins import load_plugins
    from datasets.registry import require_dataset
    from methods.registry import require_method

    load_plugins(suite.plugins)
    for method in suite.methods:
        require_method(method.name)
    for data in suite.data:
        require_dataset(data.dataset)


def execute(
    suite: Suite,
    out: Path,
    *,
    device: str = "auto",
    jobs: int | None = None,
    data_root: Path | None = None,
    refresh_stale: bool = False,
    speed: bool = True,
    step_limit: int | None = None,
    console: Console | None = None,
    print_tables: bool = True,
) -> list[str]:
    """Run what has no record yet and write the tables; returns the keys of the suite's cells. step_limit: of every
    stage, for smoke runs. Raises UsageError before the first step.
    """
    check_names(suite)
    chosen = pick_device(device)

    from benchmark.cell import RunSettings
    from benchmark.console import RunView, make_console
    from benchmark.executors import LocalExecutor
    from benchmark.planning import missing_reference, notes_of, plan
    from benchmark.staleness import Present
    from benchmark.store import Store

    console = console or make_console()
    cells = plan(suite, data_root)
    store = Store(out)
    store.require_writable()
    pending = _pending(cells, store, Present(data_root), refresh_stale, console)
    n_jobs = _jobs(jobs, chosen)
    kept = len(cells) - len(pending)
    console.print(
        f"Suite {suite.name}: {len(cells)} cells, {kept} with a record, {len(pending)} to run "
        f"({min(n_jobs, max(1, len(pending)))} workers on {chosen}). Results: {out}",
        highlight=False,
        soft_wrap=True,
    )
    if missing_reference(cells):
        console.print("Note: some cells have no single-task baseline in this suite; their Δm will be a dash.")
    for line in notes_of(pending):
        console.print(f"Note: {line}", highlight=False, markup=False, soft_wrap=True)
    settings = RunSettings(
        out=out,
        data_root=data_root,
        device=chosen,
        plugins=suite.plugins,
        refresh_stale=refresh_stale,
        step_limit=step_limit,
    )
    if pending:
        with RunView(console, [cell.title for cell in pending]) as view:
            for event in LocalExecutor(settings, n_jobs).run(pending):
                view.show(event)
    if not store.load_all():
        console.print("No cell left a record; there is nothing to print.", highlight=False)
        return [cell.key for cell in cells]
    if speed:
        _measure_speed(store, cells, settings, console)
    _write_tables(out, console, print_tables)
    _draw_figures(store, cells, console)
    return [cell.key for cell in cells]


def smoke_suite(suite: Suite) -> Suite:
    """The same suite with two final steps: does every cell run at all?"""
    return suite.model_copy(update={"budget": BudgetSettings(steps=SMOKE_STEPS, cycles=SMOKE_STEPS)})


def print_plan(
    suite: Suite,
    out: Path,
    *,
    device: str = "auto",
    jobs: int | None = None,
    data_root: Path | None = None,
    probe: bool = True,
    console: Console | None = None,
) -> int:
    """Print what a run would do and take; returns 0, or 1 where a probe failed. Raises UsageError."""
    check_names(suite)
    chosen = pick_device(device)

    from benchmark.cell import RunSettings
    from benchmark.console import make_console
    from benchmark.planning import plan
    from benchmark.show_plan import show_plan
    from benchmark.store import Store

    cells = plan(suite, data_root)
    settings = RunSettings(out=out, data_root=data_root, device=chosen, plugins=suite.plugins)
    return show_plan(cells, Store(out), settings, _jobs(jobs, chosen), probe, console or make_console())


def _jobs(jobs: int | None, device: str) -> int:
    """One worker per core that this process may use on a CPU, one on a GPU, unless asked otherwise."""
    if jobs is not None:
        return jobs
    if device != "cpu":
        return 1
    import joblib

    return int(joblib.cpu_count())


def _pending(
    cells: Sequence[PlannedCell], store: Store, present: Present, refresh_stale: bool, console: Console
) -> list[PlannedCell]:
    """Cells without a finished record; stale ones are kept and said so, unless they are to be refreshed."""
    pending = []
    for cell in cells:
        record = store.read(cell.key)
        if record is None or record.status != "done":
            pending.append(cell)
            continue
        reason = present.stale_reason(record, cell)
        if reason is not None and refresh_stale:
            pending.append(cell)
            continue
        if reason is None:
            store.unmark_stale(record)
        else:
            store.mark_stale(record, reason)
            console.print(
                f"stale: {cell.title}: {reason}; kept (--refresh-stale runs it again)",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
    return pending


def _measure_speed(store: Store, cells: Sequence[PlannedCell], settings: RunSettings, console: Console) -> None:
    """The light measurement of what is new, with no worker busy. Speed never decides the exit code of a run."""
    from benchmark.speed_jobs import measure_light

    keys = {cell.key for cell in cells if store.is_done(cell.key)}
    if not keys:
        return
    console.print("Measuring throughput; keep the machine quiet for a moment ...")
    try:
        found = measure_light(store, keys=keys, device=settings.device, plugins=settings.plugins)
    except UsageError as error:
        console.print(f"Speed was not measured: {error}", highlight=False, markup=False, soft_wrap=True)
        return
    for line in found.failures:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _write_tables(out: Path, console: Console, print_too: bool) -> None:
    """Tables to the terminal, and as files beside the records."""
    from benchmark.report import report
    from benchmark.store import write_atomic

    for form, file in TABLES.items():
        write_atomic(out / file, report(out, format=form).encode())
    if print_too:
        print(report(out, width=max(console.width, 120), color=console.is_terminal))
    console.print(f"Tables: {', '.join(str(out / file) for file in TABLES.values())}", highlight=False, soft_wrap=True)


def _draw_figures(store: Store, cells: Sequence[PlannedCell], console: Console) -> None:
    """Pictures of what the methods found, beside the records; a picture that fails never decides the exit code."""
    from benchmark.plots import draw_records
    from benchmark.store import StorageError

    records = [record for cell in cells if (record := store.read(cell.key)) is not None]
    folder = store.root / "figures"
    try:
        drawn = list(draw_records(records, store, folder))
    except (StorageError, OSError) as error:
        console.print(f"Figures were not drawn: {error}", highlight=False, markup=False, soft_wrap=True)
        return
    if drawn:
        console.print(f"Figures: {len(drawn)} new files in {folder}", highlight=False, soft_wrap=True)


@app.command()
def run(
    context: typer.Context,
    suite: Annotated[str, typer.Argument(help="A shipped suite, or the path of a YAML file.")] = "quick",
    methods: Annotated[str | None, typer.Option(help="Only these methods, comma-separated.")] = None,
    datasets: Annotated[str | None, typer.Option(help="Only these data sets.")] = None,
    tasks: Annotated[str | None, typer.Option(help="Only these tasks, in this order.")] = None,
    backbones: Annotated[str | None, typer.Option(help="Only these backbones.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Only these seeds, for example 0,1,2.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Change a setting: recipe.batch_size=32, or a parameter in all rows of a method: method.key=value.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the results. Default: results/runs/SUITE.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Worker processes. Default: one per core it may use, one on a GPU.")
    ] = None,
    data_root: Annotated[Path | None, typer.Option(help="Folder with one folder a data set.")] = None,
    refresh_stale: Annotated[bool, typer.Option(help="Run cells again whose record other code made.")] = False,
    plan_only: Annotated[
        bool, typer.Option("--plan", help="Print cells, time, memory and disk; train nothing.")
    ] = False,
    probe: Annotated[bool, typer.Option(help="With --plan: time a few steps of what has no record yet.")] = True,
    speed: Annotated[bool, typer.Option(help="Measure throughput at the end, about 15 seconds for quick.")] = True,
    smoke: Annotated[bool, typer.Option("--smoke", help="Run every cell for three steps, into OUT/smoke.")] = False,
    plugin: PluginOption = None,
) -> None:
    """Run a suite: train what has no record yet, then print the tables.

    Examples:

      python -m benchmark.run

      python -m benchmark.run standard --seeds 0,1 --methods single_task,hard_sharing

      python -m benchmark.run quick --set recipe.optimizer.lr=0.1 --out results/runs/high_rate
    """
    from benchmark.store import Store

    try:
        chosen = select(
            suite,
            methods=methods,
            datasets=datasets,
            tasks=tasks,
            backbones=backbones,
            seeds=seeds,
            settings=settings or [],
            plugins=plugin or [],
        )
        folder = out or Path("results") / "runs" / chosen.name
        root = data_root or data_root_of_environment()
        if plan_only:
            code = print_plan(chosen, folder, device=device, jobs=jobs, data_root=root, probe=probe)
            raise typer.Exit(code)
        if smoke:
            chosen, folder, speed = smoke_suite(chosen), folder / "smoke", False
        keys = execute(
            chosen,
            folder,
            device=device,
            jobs=jobs,
            data_root=root,
            refresh_stale=refresh_stale,
            speed=speed,
            step_limit=SMOKE_STEPS if smoke else None,
        )
    except UsageError as error:
        fail(error)
    except KeyboardInterrupt:
        print(f"\ninterrupted; finished cells are kept. Resume with: {_line(context)}", file=sys.stderr)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    raise typer.Exit(0 if all(map(Store(folder).is_done, keys)) else EXIT_NOT_DONE)


def data_root_of_environment() -> Path | None:
    """What SHAREBENCH_DATA names."""
    value = os.environ.get("SHAREBENCH_DATA")
    return Path(value) if value else None


def _line(context: typer.Context) -> str:
    """What was typed, with the program's name in place of its path."""
    import shlex

    return f"{context.find_root().info_name} {shlex.join(sys.argv[1:])}".rstrip()


def main() -> None:
    """Entry point of `python -m benchmark.run`."""
    start(app)


if __name__ == "__main__":
    main()
