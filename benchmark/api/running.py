"""Running suites: what `run` does, and `run_suite` for Python. Heavy imports wait until there is work to do."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.cli import EXIT_NOT_DONE, data_root_of_environment, make_console, say
from benchmark.plan.suite import BudgetSettings, Suite
from benchmark.plan.suite_file import SuiteChoices, select
from benchmark.records.store import StorageError, Store, write_atomic
from benchmark.workers.choice import ExecutorChoice
from benchmark.workers.executors import has_cuda, n_workers
from datasets.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from benchmark.api.results import Results
    from benchmark.plan.cells import PlannedCell
    from benchmark.plan.staleness import Present
    from benchmark.records.record import Record
    from benchmark.show.render import Format
    from benchmark.tables.folder import ReadTables
    from benchmark.train.cell import RunSettings

SMOKE_STEPS = 3  # a method may correlate loss curves, which takes three points
TABLES: dict[Format, str] = {"markdown": "table.md", "csv": "table.csv", "latex": "table.tex"}
PAGE, FIGURES = "report.html", "figures"
MOST_PICTURES = 12  # of tables, at the end of a run: each takes a second or two


@dataclasses.dataclass(frozen=True)
class RunRequest:
    """What to run, where and how.

    suite: name of a shipped suite, path of a YAML file, or a Suite, which takes no choices. out: folder of the results,
    None for results/runs/SUITE. device: auto, cpu, cuda or cuda:N. jobs: cells at once, None for one a core, or one on
    CUDA. executor: where they run. data_root: folder with a folder per data set, None for SHAREBENCH_DATA.
    refresh_stale: train cells again whose record other code made. speed: measure throughput at the end. smoke: three
    steps per stage, into OUT/smoke, without speed.
    """

    suite: str | os.PathLike[str] | Suite = "quick"
    choices: SuiteChoices = SuiteChoices()
    out: Path | None = None
    device: str = "auto"
    jobs: int | None = None
    executor: ExecutorChoice = ExecutorChoice()
    data_root: Path | None = None
    refresh_stale: bool = False
    speed: bool = True
    smoke: bool = False


def run_suite(
    suite: str | os.PathLike[str] | Suite = "quick",
    out: str | os.PathLike[str] | None = None,
    *,
    methods: Sequence[str] | None = None,
    datasets: Sequence[str] | None = None,
    tasks: Sequence[str] | None = None,
    backbones: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    settings: Sequence[str] = (),
    tuned: str | os.PathLike[str] | None = None,
    device: str = "auto",
    jobs: int | None = None,
    executor: str = "local",
    address: str | None = None,
    gpus_per_cell: float | None = None,
    data_root: str | os.PathLike[str] | None = None,
    refresh_stale: bool = False,
    speed: bool = True,
    show: bool = True,
) -> Results:
    """Run what has no record yet, as `python -m benchmark.run` does, and return the results of the suite's cells.

    suite: name of a shipped suite, path of a YAML file, or a Suite. out: folder of the results, by default
    results/runs/SUITE. methods, datasets, tasks, backbones, seeds: lists that narrow the suite. settings: texts such as
    `recipe.batch_size=32`. tuned: page of `benchmark.tune` whose settings the rows take. device: auto, cpu, cuda or
    cuda:N. jobs: cells at once, None for one a core, or one on CUDA. executor, address,
    gpus_per_cell: where they run, as of `ExecutorChoice`. data_root: None takes SHAREBENCH_DATA.
    refresh_stale: train cells again whose record other code made. speed: measure throughput at the end. show: print
    progress.
    Raises UsageError before the first step for what cannot be run. A cell that fails later says so in its record.
    """
    from benchmark.api.results import Results

    console = make_console()
    console.quiet = not show
    request = RunRequest(
        suite,
        SuiteChoices(
            methods, datasets, tasks, backbones, seeds, settings, tuned=None if tuned is None else Path(tuned)
        ),
        out=None if out is None else Path(out),
        device=device,
        jobs=jobs,
        executor=ExecutorChoice(executor, address, gpus_per_cell),
        data_root=None if data_root is None else Path(data_root),
        refresh_stale=refresh_stale,
        speed=speed,
    )
    chosen, run_settings = prepare(request)
    keys, _ = execute(
        chosen, run_settings, console, jobs=jobs, executor=request.executor, speed=speed, print_tables=False
    )
    return Results(run_settings.out, keys)


def run(request: RunRequest, console: Console) -> int:
    """Run what has no record yet and print the tables; returns 0, or EXIT_NOT_DONE where a cell is not done.

    Raises UsageError before the first step.
    """
    suite, settings = prepare(request)
    speed = request.speed and not request.smoke
    keys, done = execute(suite, settings, console, jobs=request.jobs, executor=request.executor, speed=speed)
    return 0 if done.issuperset(keys) else EXIT_NOT_DONE


def print_plan(request: RunRequest, console: Console, probe: bool = True) -> int:
    """Print what a run would do and take; returns 0, or 1 where a probe failed. probe: time a few steps of what has no
    record. Data that are not here are stood in for, with what is missing. Raises UsageError.
    """
    suite, settings = prepare(request)

    from benchmark.plan.own_rows import plan_with_own_rows
    from benchmark.plan.stand_in import missing, standing_in
    from benchmark.workers.show_plan import show_plan

    absent = missing(suite, settings.data_root)
    with standing_in(absent) as plugins:
        planned, notes = plan_with_own_rows(suite, settings.data_root)
        notes += [
            f"{error} Until then times, memory and disk are those of random images and labels of the declared shape; "
            "reading the files comes on top."
            for error in absent.values()
        ]
        for line in notes:
            say(console, f"Note: {line}")
        settings = dataclasses.replace(settings, plugins=(*settings.plugins, *plugins))
        jobs = n_workers(request.jobs, settings.device)
        return show_plan(planned, Store(settings.out), settings, jobs, probe, console)


def prepare(request: RunRequest) -> tuple[Suite, RunSettings]:
    """The suite that is asked for, and how its cells run. Names and the device are checked before torch is imported.
    Raises UsageError.
    """
    if not isinstance(request.suite, Suite):
        suite = select(os.fspath(request.suite), request.choices)
    elif request.choices == SuiteChoices():
        suite = request.suite
    else:
        raise UsageError("A Suite is run as it is; methods=, seeds= and the like go with a name or a file.")
    check_names(suite)
    device = request.executor.device(request.device)
    request.executor.prepare(device)

    from benchmark.train.cell import RunSettings

    out = request.out or Path("results") / "runs" / suite.name
    settings = RunSettings(
        out=out / "smoke" if request.smoke else out,
        data_root=request.data_root or data_root_of_environment(),
        device=device,
        plugins=suite.plugins,
        refresh_stale=request.refresh_stale,
        step_limit=SMOKE_STEPS if request.smoke else None,
    )
    return (smoke_suite(suite) if request.smoke else suite), settings


def check_names(suite: Suite) -> None:
    """Load the suite's plug-ins and look up its methods and data sets. Raises UsageError."""
    from benchmark.plan.plugins import load_plugins
    from datasets.registry import require_dataset
    from methods.registry import require_method

    load_plugins(suite.plugins)
    for method in suite.methods:
        require_method(method.name)
    for data in suite.data:
        require_dataset(data.dataset)


def smoke_suite(suite: Suite) -> Suite:
    """The same suite with a final training of three steps: does every cell run at all?"""
    short = BudgetSettings(steps=SMOKE_STEPS, cycles=SMOKE_STEPS)
    return suite.model_copy(update={"budget": short, "tuned": None})  # a page is of one budget


def execute(
    suite: Suite,
    settings: RunSettings,
    console: Console,
    *,
    jobs: int | None = None,
    executor: ExecutorChoice = ExecutorChoice(),
    speed: bool = True,
    print_tables: bool = True,
) -> tuple[list[str], set[str]]:
    """Train what has no record yet, measure speed, write tables and figures; returns the keys of the suite's cells, and
    those of all cells of the folder that are done.

    jobs: cells at once, None for one a core, or one on CUDA; on a Ray cluster for all that have room. executor: where
    they run. Raises UsageError before the first step.
    """
    from benchmark.plan.own_rows import plan_with_own_rows
    from benchmark.plan.remarks import left_out, notes_of
    from benchmark.plan.role_data import Splits
    from benchmark.plan.staleness import Present
    from benchmark.records.evidence import write_leaderboard, write_misfits
    from benchmark.workers.progress import RunView

    splits = Splits(settings.data_root)
    planned, own_rows = plan_with_own_rows(suite, settings.data_root, splits)
    cells = planned.cells
    keys = [cell.key for cell in cells]
    store = Store(settings.out)
    store.require_writable()
    misfits = ((misfit.table, misfit.title, misfit.why) for misfit in planned.misfits)
    write_misfits(settings.out, misfits, {cell.row_title for cell in cells})
    if suite.leaderboard:
        write_leaderboard(settings.out, suite.name, {cell.table_key for cell in cells})
    pending = pending_cells(cells, store, Present(splits), settings.refresh_stale, console)
    del splits  # workers load what they train on; this process needs it no more
    say(
        console,
        f"Suite {suite.name}: {len(cells)} cells, {len(cells) - len(pending)} with a record, {len(pending)} to run "
        f"({executor.words(settings, jobs, len(pending))}). Results: {settings.out}",
    )
    if _lacks_reference(cells, store):
        say(console, "Note: some cells have no single-task baseline in this suite; their Δm will be a dash.")
    for line in [*left_out(planned.misfits), *own_rows, *notes_of(pending)]:
        say(console, f"Note: {line}")
    if pending:
        with RunView(console, [cell.title for cell in pending]) as view:
            for event in executor.executor(settings, jobs).run(pending):
                view.show(event)
    if not store.holds_records():
        say(console, "No cell left a record; there is nothing to print.")
        return keys, set()
    if speed:
        _measure_speed(store, keys, settings, console)
    read = _write_tables(settings.out, console, print_tables)
    known = {record.key: record for record in read[0] if record.cell}  # read once: a large suite has 10,000
    _draw_figures(store, [known[key] for key in keys if key in known], console)
    if print_tables and settings.step_limit is None:
        _write_page(settings.out, read, console)
    return keys, {key for key, record in known.items() if record.status == "done"}


def _lacks_reference(cells: Sequence[PlannedCell], store: Store) -> bool:
    """Whether some cell has no single-task baseline beside it, neither in the suite nor among the records."""
    from benchmark.plan.remarks import missing_reference

    if not missing_reference(cells):
        return False
    records = [record for record in store.load_all() if record.is_reference and record.status == "done"]
    known = {(record.table_key, record.seed) for record in records}
    known |= {(cell.table_key, cell.settings.seed) for cell in cells if cell.is_reference}
    return any((cell.table_key, cell.settings.seed) not in known for cell in cells)


def pending_cells(
    cells: Sequence[PlannedCell], store: Store, present: Present, refresh_stale: bool, console: Console
) -> list[PlannedCell]:
    """Cells without a finished record. Stale ones are kept and said so, unless they are to be refreshed."""
    pending = []
    for cell in cells:
        record = store.read(cell.key)
        if record is None or record.status != "done":
            pending.append(cell)
            continue
        reason = present.stale_reason(record, cell)
        if reason is not None and refresh_stale:
            pending.append(cell)
        elif reason is None:
            store.unmark_stale(record)
        else:
            store.mark_stale(record, reason)
            say(console, f"stale: {cell.title}: {reason}; kept (--refresh-stale runs it again)")
    return pending


def _measure_speed(store: Store, keys: Sequence[str], settings: RunSettings, console: Console) -> None:
    """The light measurement of what is new, with no worker busy. Speed never decides the exit code of a run."""
    from benchmark.speed.light import measure_light

    done = {key for key in keys if store.is_done(key)}
    if not done:
        return
    if settings.device != "cpu" and not has_cuda():
        say(
            console,
            "Speed was not measured: no CUDA device is here; `benchmark.throughput` measures where there is one.",
        )
        return
    say(console, "Measuring throughput; keep the machine quiet for a moment ...")
    try:
        found = measure_light(store, keys=done, device=settings.device, plugins=settings.plugins)
    except UsageError as error:
        say(console, f"Speed was not measured: {error}")
        return
    if found.absent:
        cells = "1 cell has its network" if found.absent == 1 else f"{found.absent} cells have their networks"
        say(console, f"{cells} elsewhere: their speed stays as it was measured there.")
    for line in found.failures:
        say(console, line)


def _write_tables(out: Path, console: Console, show: bool) -> ReadTables:
    """Write the tables as files beside the records, and to the terminal the answer and where all is; returns what was
    read.
    """
    from benchmark.show.render import render
    from benchmark.tables.folder import read_tables

    read = read_tables(out)
    _, tables, invalid = read
    for form, file in TABLES.items():
        write_atomic(out / file, render(tables, invalid, form).encode())
    if show:
        print(render(tables, invalid, width=console.width, color=console.is_terminal, glance=True), end="")
    say(console, f"Tables: {', '.join(str(out / file) for file in TABLES.values())}")
    return read


def _write_page(out: Path, read: ReadTables, console: Console) -> None:
    """The page, and Delta_m against its price as a picture, unless they are newer than all that they show. What fails
    never decides the exit code.
    """
    from benchmark.api.reporting import page_of
    from benchmark.show.table_plots import draw_delta, file_of_delta
    from benchmark.tables.folder import TableOptions

    page, figures = out / PAGE, out / FIGURES
    shown = [table for table in read[1] if table.shown_in is None][:MOST_PICTURES]
    try:
        if not _is_current(page, out):
            for table in shown:
                draw_delta(table, figures)
            write_atomic(page, page_of(out, read, TableOptions()).encode())
    except (StorageError, OSError) as error:
        say(console, f"The page was not written: {error}")
        return
    for picture in (file_of_delta(table, figures) for table in shown):
        if picture is not None and picture.is_file():
            say(console, f"Picture: {picture}")
    say(console, f"Page: {page}")


def _is_current(page: Path, out: Path) -> bool:
    """Whether a page was written after all records and measurements of a folder."""
    if not page.is_file():
        return False
    files = [path for folder in ("records", "speed") for path in (out / folder).rglob("*.json")]
    return max((path.stat().st_mtime_ns for path in files), default=0) < page.stat().st_mtime_ns


def _draw_figures(store: Store, records: Sequence[Record], console: Console) -> None:
    """Pictures of what the methods found, beside the records. One that fails never decides the exit code."""
    from benchmark.show.plots import draw_records

    folder = store.root / FIGURES
    try:
        drawn = list(draw_records(records, store, folder))
    except (StorageError, OSError) as error:
        say(console, f"Figures were not drawn: {error}")
        return
    if drawn:
        say(console, f"Figures: {len(drawn)} new files in {folder}")
