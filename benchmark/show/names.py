"""What people read in place of keys: headings of columns, and names of rows, columns and tasks from a user's page."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from benchmark.plan.yaml_text import parse_yaml
from benchmark.show.wording import RED, unit_text
from benchmark.tables.columns import Column
from benchmark.tables.table import Table
from datasets.errors import UsageError, first_fault, nearest

_HEADINGS = {
    "accuracy": "Accuracy",
    "accuracy_mean": "Mean accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "auroc": "AUROC",
    "miou": "mIoU",
    "pixel_acc": "Pixel accuracy",
    "weighted_ce_err": "Weighted cross-entropy",
    "mean_angle": "Mean angle",
    "median_angle": "Median angle",
    "within_11_25": "Within 11.25°",
    "within_22_5": "Within 22.5°",
    "within_30": "Within 30°",
    "cosine_similarity": "Cosine similarity",
    "abs_err": "Absolute error",
    "rel_err": "Relative error",
    "mse": "MSE",
    "rmse": "RMSE",
    "delta_1_25": "δ < 1.25",
    "delta_1_25_2": "δ < 1.25²",
    "delta_1_25_3": "δ < 1.25³",
    "max_iou": "Best IoU",
    "iou_at_50": "IoU at 0.5",
    "f_dilated": "F, dilated",
    "best_f1": "Best F1",
    "Delta_m (mean-metrics)": "Delta_m",
    "Delta_m (one-metric)": "Delta_m, first metrics",
    "total parameters": "Parameters",
    "x_backbone": "Parameters, x backbone",
    "macs_joint": "MACs",
    "macs_sum": "MACs, task by task",
    "weight sharing": "Weight sharing",
    "activation sharing": "Activation sharing",
    "search cost": "Search",
    "final cost": "Final training",
    "weight_steps": "Weight updates",
    "tuning cost": "Tuning",
    "throughput": "Throughput",
    "throughput, r": "Throughput, x backbone",
    "throughput, r_stl": "Throughput, x single task",
}
_KEYS = {  # of columns whose names do not say them
    ("search cost", "optimizer steps"): "search_steps",
    ("search cost", "s"): "search_seconds",
    ("final cost", "optimizer steps"): "final_steps",
    ("final cost", "s"): "final_seconds",
    ("tuning cost", "optimizer steps"): "tuning_steps",
}
_UNITS = {"optimizer steps": "steps"}
_WORDS = re.compile(rf"(?<![\w-])({'|'.join(map(re.escape, sorted(_HEADINGS, key=len, reverse=True)))})(?![\w-])")


def column_key(column: Column) -> str:
    """What a column is asked for by: `semseg.miou`, `delta_m`, `x_backbone`, `search_steps`."""
    if column.group:
        return f"{column.group}.{column.name}"
    name = column.name.split(" (")[0] if column.name.startswith("Delta_m") else column.name
    return _KEYS.get((column.name, column.unit), re.sub(r"\W+", "_", name.lower()).strip("_"))


def in_words(text: str) -> str:
    """A text of ours with headings in place of the keys of metrics and sizes."""
    return _WORDS.sub(lambda found: _HEADINGS[found[1]], text)


class Names(BaseModel):
    """What rows, columns and tasks are called. Without an entry rows and tasks keep their own names, columns have the
    headings of this module.

    rows: by label, short label or method, whose parameters then follow as they are. columns: by key or metric.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: Mapping[str, str] = {}
    columns: Mapping[str, str] = {}
    tasks: Mapping[str, str] = {}

    def row(self, table: Table, position: int, mark: bool = True) -> str:
        """Name of a row. mark: with the sign of one that may not be ranked."""
        row, short = table.rows[position], table.names[position]
        text = next((self.rows[name] for name in (row.label, short) if name in self.rows), None)
        if text is None:
            given = self.rows.get(row.method)
            text = short if given is None or not short.startswith(row.method) else given + short[len(row.method) :]
        return f"{RED} {text}" if mark and position in table.audit.red else text

    def in_text(self, table: Table, text: str) -> str:
        """A line about a table with the names of its rows in place of their labels."""
        called = {
            name: self.row(table, n, False) for n, row in enumerate(table.rows) for name in (row.label, row.short)
        }
        labels = "|".join(map(re.escape, sorted(called, key=len, reverse=True)))
        return re.sub(rf"(?<![\w.-])({labels})(?![\w.-])", lambda found: called[found[1]], text)

    def task(self, task: str) -> str:
        """Name of a task."""
        return self.tasks.get(task, task)

    def column(self, column: Column) -> str:
        """Heading of a column, without its task: name, unit and arrow."""
        given = (self.columns[name] for name in (column_key(column), column.name) if name in self.columns)
        text = next(given, None) or _HEADINGS.get(column.name, column.name)
        unit = _UNITS.get(column.unit, unit_text(column))
        arrow = {None: "", True: " ↑", False: " ↓"}[column.higher_is_better]
        return f"{text}{f' ({unit})' if unit else ''}{arrow}"

    def unused(self, tables: Sequence[Table]) -> Iterator[str]:
        """A line for each entry that names nothing in these tables, with the nearest that would."""
        columns = [column for table in tables for column in table.columns]
        known = {
            "row": {name for table in tables for name in row_names(table)},
            "column": {name for column in columns for name in (column_key(column), column.name)},
            "task": {column.group for column in columns if column.group},
        }
        for kind, given in (("row", self.rows), ("column", self.columns), ("task", self.tasks)):
            for name in given:
                if name not in known[kind]:
                    yield f"no {kind} {name!r} here{_nearest_text(name, known[kind])}"


def _nearest_text(name: str, known: Iterable[str]) -> str:
    found = nearest(name, known, 1)
    return f"; nearest: {found[0]!r}" if found else ""


def row_names(table: Table) -> set[str]:
    """What rows of a table are asked for by: labels, short labels, methods."""
    return {name for row in table.rows for name in (row.label, row.short, row.method)}


def read_names(file: Path) -> Names:
    """The names of a YAML page with the mappings `rows`, `columns` and `tasks`. Raises UsageError in one line."""
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"Names {str(file)!r} cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{file}: is not UTF-8 text (byte {error.start}).") from error
    document, _ = parse_yaml(text, str(file))
    try:
        return Names.model_validate({} if document is None else document)
    except ValidationError as error:
        expected = "expected rows, columns and tasks, each {name: text}"
        raise UsageError(f"{file}: {first_fault(error)}; {expected}.") from error
