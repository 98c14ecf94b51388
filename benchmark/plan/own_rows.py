"""A reader's own row beside tuned ones: the page of the tuning does not hold it, so it is trained as the suite has it.

Tables flag it as not tuned. What a record knows of its tuning comes from a page, so the row is added to a copy of it.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmark.plan.cells import Plan, plan_grid, resolve
from benchmark.plan.role_data import Splits
from benchmark.plan.suite import Suite
from benchmark.plan.tuned_page import LR_FACTOR, Tried, TunedPage, TunedRow, read_page, row_hash


@dataclasses.dataclass(frozen=True)
class _Own:
    """A row that the page lacks. table: key of its table, which the page has."""

    table: str
    method: str
    row: TunedRow


def plan_with_own_rows(
    suite: Suite, data_root: Path | None = None, splits: Splits | None = None
) -> tuple[Plan, list[str]]:
    """The plan of `plan_grid`, and a line for each row that the tuned page lacks: what was done, how to tune it.

    Raises UsageError as `plan_grid`, also for other single-task networks than those of the page.
    """
    if suite.tuned is None:
        return plan_grid(suite, data_root, splits), []
    file = Path(suite.tuned)
    page = read_page(file).page
    own = _own_rows(suite, page, data_root)
    if not own:
        return plan_grid(suite, data_root, splits), []
    with tempfile.TemporaryDirectory(prefix="sharebench-tuned-") as folder:
        longer = Path(folder) / file.name
        longer.write_text(_with_rows(page, own).text(), encoding="utf-8")
        planned = plan_grid(suite.model_copy(update={"tuned": str(longer)}), data_root, splits)
    reference = page.tables[0].single_task.title.split(" ")[0]
    return planned, [
        f"{one.row.title} is not in {file}: trained as the suite has it, flagged as not tuned. To tune it: python -m "
        f"benchmark.tune {suite.name} --methods {reference},{one.method}, then run with --tuned and that page."
        for one in own
    ]


def _own_rows(suite: Suite, page: TunedPage, data_root: Path | None) -> list[_Own]:
    """The rows, each once, that a table of the page lacks."""
    known = {table.table: {row.row for row in table.rows} for table in page.tables}
    setting = Tried(setting={LR_FACTOR: 1.0}, status="not tuned", scores={}, cell="")
    found = []
    for asked in suite.cells():
        cell = resolve(asked, data_root)
        row = row_hash(cell.document)
        if not cell.is_reference and row not in known.get(cell.table_key, {row}):
            known[cell.table_key].add(row)
            tuned = TunedRow(row=row, title=cell.row_title, trials=1, chosen={}, edges=(), steps=0, tried=(setting,))
            found.append(_Own(cell.table_key, cell.settings.method.name, tuned))
    return found


def _with_rows(page: TunedPage, own: Sequence[_Own]) -> TunedPage:
    tables = []
    for table in page.tables:
        rows = (*table.rows, *(one.row for one in own if one.table == table.table))
        tables.append(table.model_copy(update={"rows": rows}))
    return page.model_copy(update={"tables": tuple(tables)})
