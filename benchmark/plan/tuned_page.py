"""The page that `benchmark.tune` writes and a suite names: the settings of every row, and how they were found.

A page belongs to the tables that it was made for: their keys hold data, backbone, recipe and budget. What it says of a
row is found by a hash of the row's own settings, so that a changed row counts as not tuned.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from benchmark.plan.suite import Cell, Count, MethodSettings, Settings, TuningSettings
from benchmark.plan.yaml_text import parse_yaml
from benchmark.records.documents import CellDocument
from benchmark.records.keys import TABLE_DIGITS, row_key, table_key
from datasets.errors import UsageError, first_fault

LR_FACTOR = "lr_factor"
MAX_PAGE_BYTES = 1_000_000  # a page has some hundred bytes a trial

Setting = Mapping[str, float | None]  # {name: value}; null is a default that the method works out itself


class Tried(Settings):
    """One trial. scores: {task: gain over the first setting} of single-task networks, {delta_m: mean relative gain over
    the tuned single-task networks} of other rows; percent on select, null where there is none. cell: key of its record.
    """

    setting: dict[str, float | None]
    status: str
    scores: dict[str, float | None]
    cell: str

    @property
    def score(self) -> float | None:
        """The mean of the scores; None if one is missing."""
        known = [value for value in self.scores.values() if value is not None]
        return math.fsum(known) / len(known) if known and len(known) == len(self.scores) else None


class TunedRow(Settings):
    """What was chosen for a row. chosen: {name: value}, of single-task networks {task: factor on the learning rate}.

    trials: how many were allowed; a small space is exhausted before. edges: names of what was chosen at an edge of its
    range. steps: optimizer steps of all trials. settings_of: of a control, the row of its search, whose trials these
    are.
    """

    row: str
    title: str
    trials: Count
    chosen: dict[str, float | None]
    edges: tuple[str, ...]
    steps: int
    tried: tuple[Tried, ...]
    settings_of: str | None = None

    @property
    def factors(self) -> dict[str, float]:
        """{task: factor on the learning rate}, of the row of single-task networks."""
        return {task: value for task, value in self.chosen.items() if value is not None}

    def summary(self) -> str:
        """What was chosen, the spread of the scores, and what lies at an edge of its range, in one line."""
        values = ", ".join(
            f"{name} {'null' if value is None else f'{value:.3g}'}" for name, value in self.chosen.items()
        )
        if self.settings_of is not None:
            return f"{values} (the control of {self.settings_of}, whose settings it takes)"
        scores = [tried.score for tried in self.tried if tried.score is not None]
        spread = f", scores {min(scores):+.2f} to {max(scores):+.2f} %" if scores else ""
        edges = f", at the edge of its range: {', '.join(self.edges)}" if self.edges else ""
        return f"{values} ({len(self.tried)} of {self.trials} trials{spread}{edges})"


class TunedTable(Settings):
    """The rows of one table. table: key of the table without tuning. steps: of its final training."""

    table: str
    data: str
    backbone: str
    steps: Count
    single_task: TunedRow
    rows: tuple[TunedRow, ...]


class TunedPage(Settings):
    """A page. seed: of all trials; no table reports it. versions: of what proposed and trained."""

    suite: str
    seed: int = Field(ge=0)
    versions: dict[str, str | None]
    tables: tuple[TunedTable, ...]

    def text(self) -> str:
        """The page as YAML."""
        head = "# Written by `python -m benchmark.tune`. A suite names it: `tuned: FILE`.\n"
        return head + yaml.dump(self.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """Texts that begin with a digit stand in quotes: a hash of digits alone is no number."""


def _quoted(dumper: _Dumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if text[:1].isdigit() else None)


_Dumper.add_representer(str, _quoted)


def row_hash(document: CellDocument) -> str:
    """Of a row within its table, 12 hex digits: its method with all parameters, and its loss balancing."""
    return hashlib.sha256(row_key(document)).hexdigest()[:TABLE_DIGITS]


@dataclasses.dataclass(frozen=True)
class ReadPage:
    """A page and where it was read. The file has no part in what is trained."""

    file: Path
    page: TunedPage

    def require_other_seeds(self, seeds: Sequence[int]) -> None:
        """Raise UsageError if the seed of the tuning is among those that a table reports."""
        if self.page.seed in seeds:
            raise UsageError(
                f"{self.file}: its rows were tuned at seed {self.page.seed}, which this suite reports; expected other "
                f"seeds than {', '.join(map(str, seeds))}."
            )

    def applied(self, cell: Cell, document: CellDocument, is_reference: bool) -> Cell:
        """The cell with what was chosen for its row. document: of the cell without tuning.

        Raises UsageError for a table or a row that was not tuned.
        """
        table = self._table(cell, document)
        wanted = row_hash(document)
        rows = [table.single_task] if is_reference else table.rows
        row = next((row for row in rows if row.row == wanted), None)
        if row is None:
            found = ", ".join(row.title for row in (table.single_task, *table.rows))
            given = f" with {cell.method.params}" if cell.method.params else ""
            raise UsageError(
                f"{self.file}: the row {cell.method.name!r}{given} was not tuned, and tuned and untuned rows do not "
                f"mix; tuned rows: {found}. `python -m benchmark.tune` tunes all rows of a suite."
            )
        usual = document["method"]["params"]
        changed = {} if is_reference else {name: value for name, value in row.chosen.items() if name != LR_FACTOR}
        params = {name: value for name, value in changed.items() if value != usual.get(name)}
        factor = None if is_reference else row.chosen.get(LR_FACTOR)
        tuning = TuningSettings(
            seed=self.page.seed,
            single_task=table.single_task.factors,
            lr_factor=1.0 if factor is None else factor,
            trials=row.trials,
            tried=len(row.tried),
            steps=row.steps,
            chosen=row.chosen,
            edges=row.edges,
            scores=tuple(tried.score for tried in row.tried),
        )
        method = MethodSettings(name=cell.method.name, params={**cell.method.params, **params})
        return cell.model_copy(update={"method": method, "tuning": tuning})

    def _table(self, cell: Cell, document: CellDocument) -> TunedTable:
        wanted = table_key(document)
        for table in self.page.tables:
            if table.table == wanted:
                return table
        found = ", ".join(f"{table.data} on {table.backbone}, {table.steps} steps" for table in self.page.tables)
        raise UsageError(
            f"{self.file}: was made for {found}, and not for this suite's {cell.data.dataset} on {cell.backbone.name}, "
            f"{cell.budget.steps} steps, with its tasks, recipe and selection; expected a page of this very table."
        )


def read_page(file: Path) -> ReadPage:
    """A page from its file. Raises UsageError that names file, key and fault."""
    try:
        size = file.stat().st_size
        if size > MAX_PAGE_BYTES:
            raise UsageError(f"{file}: {size} bytes; a tuned page has at most {MAX_PAGE_BYTES}.")
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"Tuned page {str(file)!r} cannot be read ({error.strerror}); `python -m benchmark.tune` writes one."
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{file}: is not UTF-8 text (byte {error.start}).") from error
    document: Any = parse_yaml(text, str(file))[0]
    try:
        return ReadPage(file, TunedPage.model_validate(document))
    except ValidationError as error:
        raise UsageError(f"{file}: not a page of `benchmark.tune`: {first_fault(error)}.") from error
