"""What `tune` does: equal tuning of all rows of a suite. Optuna proposes, our executor trains, our store keeps.

The folder of a tuning holds the records of its trials, single-task networks, Optuna's journal of settings and scores,
and at the end the page. The records are what a later call goes on from; the journal is for readers (optuna-dashboard).
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.api.running import RunRequest, pending_cells, prepare
from benchmark.cli import EXIT_NOT_DONE, say
from benchmark.plan.suite_file import SuiteChoices
from benchmark.records.provenance import installed
from benchmark.records.store import Store, write_atomic
from benchmark.version import __version__
from benchmark.workers.choice import ExecutorChoice
from benchmark.workers.executors import n_workers
from datasets.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from benchmark.plan.cells import Plan, PlannedCell
    from benchmark.plan.role_data import Splits
    from benchmark.plan.staleness import Present
    from benchmark.plan.suite import Suite
    from benchmark.plan.tuned_page import TunedPage, TunedTable
    from benchmark.plan.tuning import Records, TuningTable
    from benchmark.train.cell import RunSettings
    from benchmark.workers.executors import Executor

PAGE, JOURNAL = "tuned.yaml", "journal.log"
_LIBRARIES = ("optuna", "scipy", "torch", "timm")


@dataclasses.dataclass(frozen=True)
class TuneRequest:
    """What to tune, where and how.

    suite: name of a shipped suite, or path of a YAML file. trials: settings that every row may try. out: folder of the
    tuning, None for results/tuning/SUITE. device, jobs, executor, data_root, refresh_stale: as of `RunRequest`.
    """

    suite: str
    trials: int
    choices: SuiteChoices = SuiteChoices()
    out: Path | None = None
    device: str = "auto"
    jobs: int | None = None
    executor: ExecutorChoice = ExecutorChoice()
    data_root: Path | None = None
    refresh_stale: bool = False


def tune(request: TuneRequest, console: Console) -> int:
    """Train the trials that have no record yet, and write the page; returns 0, or EXIT_NOT_DONE where a trial has
    neither ended nor diverged, so that there is no page. Raises UsageError.
    """
    suite, settings, splits, planned, tables = _planned(request)

    from benchmark.plan.remarks import left_out, notes_of
    from benchmark.plan.staleness import Present
    from benchmark.plan.tuned_page import TunedPage
    from benchmark.plan.tuning import TUNING_SEED

    store = Store(settings.out)
    store.require_writable()
    executor = request.executor.executor(settings, request.jobs)
    trainer = _Trials(settings, executor, store, Present(splits), console)
    n_trials = sum(len(row.settings) for table in tables for row in (table.reference, *table.rows))
    say(
        console,
        f"Tuning of suite {suite.name}: {len(planned.cells)} rows, {n_trials} trials at seed {TUNING_SEED}, judged on "
        f"select. Results: {settings.out}",
    )
    for line in [*left_out(planned.misfits), *notes_of(planned.cells)]:
        say(console, f"Note: {line}")
    found = _tuned_tables(tables, trainer)
    if found is None:
        say(console, "No page: some trials are not done. The same command goes on from here.")
        return EXIT_NOT_DONE
    versions = {"sharebench": __version__, **{name: installed(name) for name in _LIBRARIES}}
    page = TunedPage(suite=suite.name, seed=TUNING_SEED, versions=versions, tables=tuple(found))
    write_atomic(settings.out / PAGE, page.text().encode())
    _write_journal(settings.out / JOURNAL, tables, page)
    _tell(page, console)
    say(console, f"Page: {settings.out / PAGE}. A suite names it (tuned: FILE), or `run --tuned FILE` does.")
    return 0


def print_plan(request: TuneRequest, console: Console, probe: bool = True) -> int:
    """Print the trials of a tuning and what they will take; returns 0, or 1 where a probe failed. probe: time a few
    steps of rows of which no trial has ended. Trains nothing. Raises UsageError.
    """
    _, settings, _, _, tables = _planned(request)

    from benchmark.workers.show_tuning_plan import show_tuning_plan

    jobs = n_workers(request.jobs, settings.device)
    return show_tuning_plan(tables, Store(settings.out), settings, jobs, probe, console)


def _planned(request: TuneRequest) -> tuple[Suite, RunSettings, Splits, Plan, list[TuningTable]]:
    """Suite, settings, loaded lists of data, rows, and the rows with the settings that they may try, by table."""
    if importlib.util.find_spec("optuna") is None:
        raise UsageError("Tuning needs Optuna, which is not installed: pip install 'sharebench[tune]'.")
    suite, settings = prepare(
        RunRequest(
            request.suite,
            request.choices,
            out=request.out,
            device=request.device,
            executor=request.executor,
            data_root=request.data_root,
            refresh_stale=request.refresh_stale,
        )
    )
    if request.out is None:
        settings = dataclasses.replace(settings, out=Path("results") / "tuning" / suite.name)

    from benchmark.plan.cells import plan_grid
    from benchmark.plan.role_data import Splits
    from benchmark.plan.tuning import suite_of_trials, tables_of

    splits = Splits(settings.data_root)
    planned = plan_grid(suite_of_trials(suite), settings.data_root, splits)
    return suite, settings, splits, planned, tables_of(planned.cells, request.trials)


def _tuned_tables(tables: Sequence[TuningTable], trainer: _Trials) -> list[TunedTable] | None:
    """All tables; None where trials are not done. Single-task networks come first: the others are judged by them."""
    records = trainer.records([cell for table in tables for cell in table.reference_trials()])
    if records is None:
        return None
    references = [table.tuned_reference(records) for table in tables]
    trials = [table.trials(row.factors) for table, (row, _) in zip(tables, references, strict=True)]
    records = trainer.records([cell for by_row in trials for cells in by_row.values() for cell in cells])
    if records is None:
        return None
    return [
        table.page(row, list(table.tuned_rows(by_row, records, baseline)))
        for table, (row, baseline), by_row in zip(tables, references, trials, strict=True)
    ]


@dataclasses.dataclass(frozen=True)
class _Trials:
    """Where trials are kept, and how they are trained."""

    settings: RunSettings
    executor: Executor
    store: Store
    present: Present
    console: Console

    def records(self, trials: Sequence[PlannedCell]) -> Records | None:
        """{key: record} of trials, trained now where they have none; None where some did not end."""
        from benchmark.plan.tuning import has_ended
        from benchmark.workers.progress import RunView

        unfinished = pending_cells(trials, self.store, self.present, self.settings.refresh_stale, self.console)
        pending = [cell for cell in unfinished if not self._has_diverged(cell)]
        say(self.console, f"{len(trials)} trials, {len(trials) - len(pending)} with a record, {len(pending)} to run")
        if pending:
            with RunView(self.console, [cell.title for cell in pending]) as view:
                for event in self.executor.run(pending):
                    view.show(event)
        found = {cell.key: record for cell in trials if (record := self.store.read(cell.key)) is not None}
        return found if all(cell.key in found and has_ended(found[cell.key]) for cell in trials) else None

    def _has_diverged(self, cell: PlannedCell) -> bool:
        record = self.store.read(cell.key)
        if record is None or record.status != "diverged":
            return False
        return not (self.settings.refresh_stale and self.present.stale_reason(record, cell) is not None)


def _write_journal(file: Path, tables: Sequence[TuningTable], page: TunedPage) -> None:
    """Settings and scores as Optuna's journal, a study a row; trials that it has are left as they are."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    from benchmark.plan.tuning import distributions_of

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    states = optuna.trial.TrialState
    storage = JournalStorage(JournalFileBackend(str(file)))
    for table, tuned in zip(tables, page.tables, strict=True):
        for row, found in zip((table.reference, *table.rows), (tuned.single_task, *tuned.rows), strict=True):
            if found.settings_of is not None:
                continue
            name = f"{found.title} ({found.row})"
            study = optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)
            known = {trial.user_attrs.get("cell") for trial in study.get_trials(deepcopy=False)}
            distributions = distributions_of(row.space)
            for tried in found.tried:
                if tried.cell in known:
                    continue
                # A default that the method works out itself, or that lies outside of the range, is no value of it.
                params = {
                    key: value
                    for key, value in tried.setting.items()
                    if value is not None
                    and (key not in row.space or row.space[key].low <= value <= row.space[key].high)
                }
                study.add_trial(
                    optuna.create_trial(
                        params=params,
                        distributions={key: distributions[key] for key in params},
                        user_attrs={"cell": tried.cell, "status": tried.status, **tried.scores},
                        value=tried.score,
                        state=states.FAIL if tried.score is None else states.COMPLETE,
                    )
                )


def _tell(page: TunedPage, console: Console) -> None:
    """A line a row: what was chosen, what the scores spread over, and where a range was too narrow."""
    for table in page.tables:
        for row in (table.single_task, *table.rows):
            say(console, f"{row.title}: {row.summary()}")
