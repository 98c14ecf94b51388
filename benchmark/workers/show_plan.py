"""`run --plan`: the cells of a suite and what they will take, as people read it."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmark.cli import say
from benchmark.plan.cells import Plan, PlannedCell
from benchmark.plan.estimate import PROBE_STEPS, Estimate, estimates_from, from_record, kind_of, total
from benchmark.plan.remarks import left_out, missing_evidence, notes_of
from benchmark.plan.stand_in import evaluation_factor
from benchmark.records.store import Store
from benchmark.tables.labels import DASH
from benchmark.train.cell import RunSettings
from benchmark.workers.executors import LocalExecutor
from benchmark.workers.progress import RunView


def show_plan(plan: Plan, store: Store, settings: RunSettings, jobs: int, probe: bool, console: Console) -> int:
    """Print the plan; returns 0, or 1 where a probe failed. probe: time a few steps of cells without a record."""
    cells = plan.cells
    pending = [cell for cell in cells if not store.is_done(cell.key)]
    estimates = estimates_from(store.load_all(), pending, store.root)
    failures: list[str] = []
    if probe:
        unknown = {kind_of(cell): cell for cell in reversed(pending) if kind_of(cell) not in estimates}
        if unknown:
            say(console, f"Probing {len(unknown)} kinds of cells ...")
            estimates |= probed(list(unknown.values()), settings, failures, console)
    console.print(_table(cells, pending, estimates))
    _summarise(pending, estimates, jobs, console)
    for line in [*left_out(plan.misfits), *missing_evidence(cells), *notes_of(cells), *failures]:
        say(console, line)
    return 1 if failures else 0


def probed(
    cells: Sequence[PlannedCell], settings: RunSettings, failures: list[str], console: Console
) -> dict[bytes, Estimate]:
    """{kind: estimate} of cells: each is trained for a few steps in a worker, one at a time so that none disturbs
    another, in a folder of its own. failures: gets a line for each that does not end well. console: shows progress.
    """
    found: dict[bytes, Estimate] = {}
    with tempfile.TemporaryDirectory(prefix="sharebench-probe-") as folder:
        root = Path(folder)
        # Baselines first: what they train is there for the others, as in the run itself.
        ordered = sorted(cells, key=lambda cell: not cell.is_reference)
        cut_short = dataclasses.replace(settings, out=root, step_limit=PROBE_STEPS)
        with RunView(console, [cell.title for cell in ordered]) as view:
            for event in LocalExecutor(cut_short, jobs=1).run(ordered):
                if event.kind != "note":  # the plan says below what is to be noted of its cells
                    view.show(event)
                if event.kind != "finished":
                    continue
                cell, record = ordered[event.cell], Store(root).read(ordered[event.cell].key)
                if record is None or record.status != "done":
                    failures.append(f"{cell.title}: the probe ended as {event.status}: {event.message}")
                    continue
                steps, evaluated = cell.settings.budget.steps, evaluation_factor(cell.settings)
                found[kind_of(cell)] = from_record(record, root, steps, PROBE_STEPS, evaluated)
    return found


def _table(cells: Sequence[PlannedCell], pending: Sequence[PlannedCell], estimates: dict[bytes, Estimate]) -> Table:
    table = Table(box=None, pad_edge=False)
    for head in ("cell", "state", "time", "networks shared", "peak memory", "in evaluation", "disk", "from"):
        left = head in ("cell", "state", "from")
        # A long title takes a second line; what is cut off elsewhere would be lost.
        table.add_column(head, justify="left" if left else "right", no_wrap=head != "cell", overflow="fold")
    waiting = {cell.key for cell in pending}
    for cell in cells:
        if cell.key not in waiting:
            table.add_row(cell.title, "done", *[""] * 6)
            continue
        estimate = estimates.get(kind_of(cell))
        if estimate is None:
            table.add_row(cell.title, "to run", *[DASH] * 6)
            continue
        table.add_row(
            cell.title,
            "to run",
            duration(estimate.seconds),
            f"{len(estimate.shared)} ({duration(sum(estimate.shared.values()))})" if estimate.shared else "0",
            size(estimate.memory_bytes),
            size(estimate.evaluation_bytes),
            size(estimate.disk_bytes),
            estimate.source,
        )
    return table


def _summarise(pending: Sequence[PlannedCell], estimates: dict[bytes, Estimate], jobs: int, console: Console) -> None:
    summary = total(pending, estimates, jobs)
    text = f"{len(pending)} cells to run on {jobs} workers"
    if summary.unknown < len(pending):
        text += (
            f": about {duration(summary.seconds)}, {size(summary.memory_bytes)} of memory, "
            f"{size(summary.disk_bytes)} on disk; {summary.n_networks} single-task networks, each trained once"
        )
    if summary.unknown:
        text += f"; {summary.unknown} cells without an estimate"
    say(console, text + ".")


def duration(seconds: float) -> str:
    """Seconds as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def size(n_bytes: int | None) -> str:
    """Bytes with a decimal unit; a dash where they are not known."""
    if n_bytes is None:
        return DASH
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.1f} MB"
