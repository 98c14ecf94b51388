"""Running suites from Python, and their results as data frames, tables and networks.

    from benchmark import run_suite
    results = run_suite("quick", seeds=[0, 1, 2], jobs=4)
    frame = results.frame()

It is the code of the command: the same cells, the same records, nothing trained twice. A script needs no
`if __name__ == "__main__"`: workers do not import it. A method or data set of your own therefore belongs into a file of
its own, which the suite names in `plugins:`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.cli import pick_device
from benchmark.plan.suite import BudgetSettings, Suite
from benchmark.records.keys import canonical_json, row_key, table_key
from benchmark.records.record import INVALID, Record, seed_of_record
from benchmark.records.store import Store
from datasets.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from benchmark.deploy.network import DeployedNetwork
    from benchmark.plan.cells import PlannedCell
    from benchmark.plan.staleness import Present
    from benchmark.records.delta import Variant
    from benchmark.show.render import Format
    from benchmark.tables.table import Table
    from benchmark.train.cell import RunSettings

FRAME_COLUMNS = (
    *("table", "data", "protocol", "backbone", "budget", "method", "label", "params", "seed", "cell", "status"),
    *("part", "task", "metric", "unit", "higher_is_better", "value", "ranked"),
)


def _lines(table: Table, number: int, keys: Mapping[tuple[str, bytes, int], str]) -> Iterator[tuple[object, ...]]:
    """Lines of the frame of one row of a table, in the order of FRAME_COLUMNS."""
    row = table.rows[number]
    shared = [table.key, *(table.head.get(field, "") for field in ("data", "protocol", "backbone", "budget"))]
    shared += [row.method, row.label, canonical_json(row.params).decode()]
    values = [dict(zip(summary.seeds, summary.values, strict=True)) for summary in row.cells]
    for seed, status in row.statuses.items():
        key = keys.get((table.key, row.key, seed))  # None: a seed that only other rows have
        if key is not None and status != "done":
            yield *shared, seed, key, status, *[None] * 6, False
        elif key is not None:
            for column, found in zip(table.columns, values, strict=True):
                quantity = (column.part, column.group, column.name, column.unit, column.higher_is_better)
                yield *shared, seed, key, status, *quantity, found.get(seed), number in table.ranked


class Results:
    """The results in a run's folder, read anew at every call. keys: only these cells, None for all of the folder."""

    def __init__(self, out: str | os.PathLike[str], keys: Sequence[str] | None = None) -> None:
        self.out = Path(out)
        self.keys = None if keys is None else tuple(keys)

    @property
    def records(self) -> list[Record]:
        """The records, in the order of the cells where they were named; with status `invalid` for untrusted files."""
        store = Store(self.out)
        if self.keys is None:
            return store.load_all()
        return [record for key in self.keys if (record := store.read(key)) is not None]

    @property
    def all_done(self) -> bool:
        """Whether there are cells, and each has a record with status `done`."""
        found = self.records
        return bool(found) and len(found) >= len(self.keys or ()) and all(r.status == "done" for r in found)

    def table(
        self,
        format: Format = "terminal",
        *,
        variant: Variant = "mean-metrics",
        reference: str | None = None,
        allow_red: bool = False,
    ) -> str:
        """The tables as text, as `report` prints them: terminal, markdown, csv or latex. Raises UsageError."""
        from benchmark.show.render import report

        return report(
            self.out, format=format, variant=variant, keys=self.keys, reference=reference, allow_red=allow_red
        )

    def frame(self, variant: Variant = "mean-metrics") -> pd.DataFrame:
        """One line a cell and quantity: metrics, Delta_m, sizes, compute, cost, what was found, and speed.

        table: its key; data, protocol, backbone, budget: what its rows share. label: the row's name in tables; params:
        of its method, as JSON. cell: key. part: accuracy, size and compute, cost, found or speed; task: empty for the
        whole network. higher_is_better: True, False or None. value: float, NaN where it is null. ranked: whether the
        row may be ranked. A cell that is not done has one line, without part and value; a record that cannot be trusted
        has none. Raises UsageError where the folder holds no records.
        """
        import pandas as pd

        from benchmark.tables.folder import tables_of

        tables, _ = tables_of(self.out, variant=variant, keys=self.keys)
        keys = {
            (table_key(record.cell), row_key(record.cell), seed_of_record(record)): record.key
            for record in self.records
            if record.status != INVALID
        }
        lines = [line for table in tables for n in range(len(table.rows)) for line in _lines(table, n, keys)]
        return pd.DataFrame(lines, columns=list(FRAME_COLUMNS)).astype({"value": float})

    def network(
        self, row: str | None = None, *, seed: int | None = None, tasks: Sequence[str] | None = None
    ) -> DeployedNetwork:
        """The trained network of a row: see `load_network`, whose `row`, `seed` and `tasks` these are."""
        from benchmark.deploy.network import load_network

        return load_network(self.out, row, seed=seed, tasks=tasks)

    def __repr__(self) -> str:
        cells = "all cells" if self.keys is None else f"{len(self.keys)} cells"
        return f"Results({str(self.out)!r}, {cells})"


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
    device: str = "auto",
    jobs: int | None = None,
    data_root: str | os.PathLike[str] | None = None,
    refresh_stale: bool = False,
    speed: bool = True,
    show: bool = True,
) -> Results:
    """Run what has no record yet, as `python -m benchmark.run` does, and give the results of the suite's cells.

    suite: name of a shipped suite, path of a YAML file, or a Suite. out: folder of the results, by default
    results/runs/SUITE. methods, datasets, tasks, backbones, seeds, settings: as the options of the command; settings
    are texts as `recipe.batch_size=32`. data_root: None takes SHAREBENCH_DATA. jobs: worker processes, None for one a
    core, or one on CUDA. speed: measure throughput at the end. show: print progress.
    Raises UsageError before the first step for what cannot be run; a cell that fails later says so in its record.
    """
    from benchmark.cli import data_root_of_environment, make_console
    from benchmark.plan.suite_file import select

    narrowed = (methods, datasets, tasks, backbones, seeds)
    if isinstance(suite, Suite):
        if any(choice is not None for choice in narrowed) or settings:
            raise UsageError("A Suite is run as it is; methods=, seeds= and the like go with a name or a file.")
        chosen = suite
    else:
        texts = [None if choice is None else ",".join(map(str, choice)) for choice in narrowed]
        names = ("methods", "datasets", "tasks", "backbones", "seeds")
        chosen = select(os.fspath(suite), settings=settings, plugins=(), **dict(zip(names, texts, strict=True)))
    folder = Path(out) if out is not None else Path("results") / "runs" / chosen.name
    root = Path(data_root) if data_root is not None else data_root_of_environment()
    console = make_console()
    console.quiet = not show
    keys = execute(
        chosen,
        folder,
        device=device,
        jobs=jobs,
        data_root=root,
        refresh_stale=refresh_stale,
        speed=speed,
        console=console,
        print_tables=False,
    )
    return Results(folder, keys)


SMOKE_STEPS = 3  # a method may correlate loss curves, which takes three points


TABLES: dict[Format, str] = {"markdown": "table.md", "csv": "table.csv", "latex": "table.tex"}


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

    from benchmark.cli import make_console
    from benchmark.plan.cells import missing_reference, notes_of, plan
    from benchmark.plan.role_data import Splits
    from benchmark.plan.staleness import Present
    from benchmark.records.store import Store
    from benchmark.train.cell import RunSettings
    from benchmark.workers.executors import LocalExecutor
    from benchmark.workers.progress import RunView

    console = console or make_console()
    splits = Splits(data_root)
    cells = plan(suite, data_root, splits)
    store = Store(out)
    store.require_writable()
    pending = _pending(cells, store, Present(splits), refresh_stale, console)
    del splits  # workers load what they train on; until they end it would lie here for nobody
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

    from benchmark.cli import make_console
    from benchmark.plan.cells import plan
    from benchmark.records.store import Store
    from benchmark.train.cell import RunSettings
    from benchmark.workers.show_plan import show_plan

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
    from benchmark.speed.light import measure_light

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
    from benchmark.records.store import write_atomic
    from benchmark.show.render import report

    for form, file in TABLES.items():
        write_atomic(out / file, report(out, format=form).encode())
    if print_too:
        print(report(out, width=max(console.width, 120), color=console.is_terminal))
    console.print(f"Tables: {', '.join(str(out / file) for file in TABLES.values())}", highlight=False, soft_wrap=True)


def _draw_figures(store: Store, cells: Sequence[PlannedCell], console: Console) -> None:
    """Pictures of what the methods found, beside the records; a picture that fails never decides the exit code."""
    from benchmark.records.store import StorageError
    from benchmark.show.plots import draw_records

    records = [record for cell in cells if (record := store.read(cell.key)) is not None]
    folder = store.root / "figures"
    try:
        drawn = list(draw_records(records, store, folder))
    except (StorageError, OSError) as error:
        console.print(f"Figures were not drawn: {error}", highlight=False, markup=False, soft_wrap=True)
        return
    if drawn:
        console.print(f"Figures: {len(drawn)} new files in {folder}", highlight=False, soft_wrap=True)


def check_names(suite: Suite) -> None:
    """Load the suite's plug-ins and look up its methods and data sets, before torch is imported where no plug-in does.
    Raises UsageError.
    """
    from benchmark.plan.plugins import load_plugins
    from datasets.registry import require_dataset
    from methods.registry import require_method

    load_plugins(suite.plugins)
    for method in suite.methods:
        require_method(method.name)
    for data in suite.data:
        require_dataset(data.dataset)
