"""`tune --plan`: the trials of a tuning and what they will take, as people read it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table

from benchmark.cli import say
from benchmark.plan.cells import PlannedCell
from benchmark.plan.estimate import Estimate, from_record, kind_of
from benchmark.plan.remarks import notes_of
from benchmark.plan.tuning import TuningTable, has_ended
from benchmark.records.record import Record
from benchmark.records.store import Store
from benchmark.tables.labels import DASH
from benchmark.train.cell import RunSettings
from benchmark.workers.show_plan import duration, probed, size


@dataclasses.dataclass
class _Row:
    """A row with its trials. waiting: those that have not ended; record: of one that is done."""

    planned: PlannedCell
    trials: Sequence[PlannedCell]
    waiting: Sequence[PlannedCell]
    record: Record | None
    estimate: Estimate | None = None

    @property
    def seconds(self) -> float | None:
        """Of one trial. Single-task networks are trained by the trials of their own row; others take them over."""
        if self.estimate is None:
            return None
        networks = self.estimate.shared.values() if self.planned.is_reference else ()
        return self.estimate.seconds + sum(networks)


def show_tuning_plan(
    tables: Sequence[TuningTable], store: Store, settings: RunSettings, jobs: int, probe: bool, console: Console
) -> int:
    """Print the plan; returns 0, or 1 where a probe failed. probe: time a few steps of rows that have none."""
    rows = [row for table in tables for row in _rows(table, store)]
    failures: list[str] = []
    for row in rows:
        if row.record is not None:
            row.estimate = from_record(row.record, store.root, row.planned.settings.budget.steps)
    unknown = {kind_of(row.waiting[0]): row for row in rows if row.waiting and row.estimate is None}
    if probe and unknown:
        say(console, f"Probing {len(unknown)} rows ...")
        found = probed([row.waiting[0] for row in unknown.values()], settings, failures, console)
        for kind, row in unknown.items():
            row.estimate = found.get(kind)
    console.print(_table(rows))
    say(console, _summary(rows, jobs))
    for line in [*notes_of([row.planned for row in rows]), *failures]:
        say(console, line)
    return 1 if failures else 0


def _rows(table: TuningTable, store: Store) -> Iterator[_Row]:
    """The single-task networks first. Until their trials have ended, which rates the other trials take over is not
    known, and all of these wait.
    """
    first = _row(table.reference.cell, table.reference_trials(), store)
    yield first
    factors = dict.fromkeys(table.tasks, 1.0)
    if not first.waiting:
        records = {cell.key: record for cell in first.trials if (record := store.read(cell.key)) is not None}
        factors = table.tuned_reference(records)[0].factors
    for row, trials in zip(table.rows, table.trials(factors).values(), strict=True):
        found = _row(row.cell, trials, store)
        yield found if not first.waiting else dataclasses.replace(found, waiting=trials)


def _row(planned: PlannedCell, trials: Sequence[PlannedCell], store: Store) -> _Row:
    records = {cell.key: store.read(cell.key) for cell in trials}
    ended = [record for record in records.values() if record is not None and has_ended(record)]
    waiting = [cell for cell in trials if (record := records[cell.key]) is None or not has_ended(record)]
    return _Row(planned, trials, waiting, next((record for record in ended if record.status == "done"), None))


def _table(rows: Sequence[_Row]) -> Table:
    table = Table(box=None, pad_edge=False)
    for head in ("row", "trials", "to run", "final steps", "time of one", "peak memory", "from"):
        left = head in ("row", "from")
        table.add_column(head, justify="left" if left else "right", no_wrap=head != "row", overflow="fold")
    for row in rows:
        if not row.trials:  # the control of a search, whose settings it takes
            continue
        estimate, seconds = row.estimate, row.seconds
        table.add_row(
            row.planned.row_title,
            str(len(row.trials)),
            str(len(row.waiting)),
            str(row.planned.settings.budget.steps),
            DASH if seconds is None else duration(seconds),
            size(None if estimate is None else estimate.memory_bytes),
            "" if estimate is None else estimate.source,
        )
    return table


def _summary(rows: Sequence[_Row], jobs: int) -> str:
    n_trials, n_waiting = sum(len(row.trials) for row in rows), sum(len(row.waiting) for row in rows)
    steps = sum(row.planned.settings.budget.steps * len(row.waiting) for row in rows)
    text = f"{n_trials} trials, {n_waiting} to run on {jobs} workers: {steps} steps of final trainings, searches apart"
    waiting = [row for row in rows if row.waiting]
    known = [(row.seconds, row) for row in waiting if row.seconds is not None]
    if known:
        seconds = sum((one or 0.0) * len(row.waiting) for one, row in known) / max(1, min(jobs, n_waiting))
        peaks = [row.estimate.memory_bytes for _, row in known if row.estimate and row.estimate.memory_bytes]
        text += f"; about {duration(seconds)}, {size(max(peaks) * jobs if peaks else None)} of memory"
    if len(known) < len(waiting):
        text += f"; {len(waiting) - len(known)} rows without an estimate"
    return text + "."
