"""Published rows beside ours: differences in protocol and numbers, and the verdict they allow. Spec: measurement 7.

A board and one of our tables are compared field by field, the board's `key` with our records; no difference is written
by hand. `recalled` rows are shown only on request, always with their mark, and enter no verdict and no Delta.
torch is not imported.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from benchmark.compare.boards import Board, BoardMetric, BoardRow
from benchmark.records.delta import Variant, delta_m
from benchmark.records.documents import MetricEntry
from benchmark.records.record import Record
from benchmark.tables.statistics import MIN_SEEDS, Summary, sample_sd
from benchmark.tables.table import labelled_rows, single_task_records

NAMES = Path(__file__).parent.parent / "published_names.yaml"
LARGEST_INTERVAL = 0.05  # of |published|: a wider one neither confirms nor denies
ROUNDING = 1e-12  # share of the published number that is rounding of our mean, not a difference
VARIANTS: tuple[Variant, ...] = ("mean-metrics", "one-metric")
Level = Literal["excludes", "amber"]
Verdict = Literal[
    "unverified",
    "not comparable",
    "no verdict",
    "inconclusive",
    "reproduced",
    "consistent",
    "better",
    "worse",
    "not run",
]


@dataclasses.dataclass(frozen=True)
class Difference:
    """One field in which a board and a row of ours differ, or which the source does not state."""

    field: str
    published: str
    ours: str
    level: Level

    def __str__(self) -> str:
        return f"{self.field}: {self.published} published, {self.ours} ours"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One number. column: `task.metric` or `aggregate.metric`. half_width: of the 95 % prediction interval of one more
    run of ours, None below two seeds. difference: ours - published, in the metric's unit.
    """

    column: str
    metric: BoardMetric
    published: float | None
    ours: Summary
    half_width: float | None
    verdict: Verdict

    @property
    def difference(self) -> float | None:
        """None if one of the two is absent."""
        mean = self.ours.mean
        return None if mean is None or self.published is None else mean - self.published


@dataclasses.dataclass(frozen=True)
class RowReport:
    """A published row beside one of ours. ours: its label, None if we have no such row (reason says why). delta:
    {variant: (published, ours)}, each against its own single-task row, None if it cannot be computed.
    """

    row: BoardRow
    ours: str | None
    reason: str
    differences: tuple[Difference, ...]
    comparisons: tuple[Comparison, ...]
    delta: Mapping[Variant, tuple[float | None, float | None]]

    @property
    def third_party(self) -> str:
        """The paper that prints the numbers of a second-hand row."""
        return self.row.source.paper if self.row.verification == "secondary" else ""


@dataclasses.dataclass(frozen=True)
class BoardReport:
    """A board beside one of our tables. table: its head, empty for a board that is only shown. notes: lines beneath,
    including which variant of Delta_m gives the one that the paper prints.
    """

    board: Board
    table: str
    rows: tuple[RowReport, ...]
    notes: tuple[str, ...]


@functools.cache
def published_names() -> Mapping[str, Any]:
    """Our names for the names in published tables: `datasets`, `methods`, `balancing`, `collective`."""
    names: Mapping[str, Any] = yaml.safe_load(NAMES.read_text(encoding="utf-8"))
    return names


def reproduction(records: Sequence[Record], boards: Sequence[Board], show_recalled: bool = False) -> list[BoardReport]:
    """Every board beside each of our tables with its data set and tasks; a board without such a table is shown alone.

    Boards that are `report_only` are shown and never paired.
    """
    tables: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if record.status == "done":
            tables[record.table_key].append(record)
    reports = []
    for board in boards:
        fitting = [] if board.reproducible == "report_only" else [t for t in tables.values() if _fits(board, t[0])]
        reports += [_report(board, table, show_recalled) for table in fitting or [[]]]
    return reports


def fitting_boards(records: Sequence[Record], boards: Sequence[Board]) -> list[Board]:
    """The boards for which we have a table."""
    done = [record for record in records if record.status == "done"]
    return [board for board in boards if board.reproducible != "report_only" and any(_fits(board, one) for one in done)]


def _fits(board: Board, record: Record) -> bool:
    """Whether a record is of the board's data set and tasks."""
    if published_names()["datasets"].get(board.dataset) != record.cell["data"]["dataset"]:
        return False
    return set(board.tasks) == set(record.tasks) or _is_collective(board)


def _is_collective(board: Board) -> bool:
    """Whether its one task represents all of ours. It has no Delta: a ratio of means is not a mean of ratios."""
    return bool(board.tasks) and set(board.tasks) <= set(published_names()["collective"])


def _report(board: Board, records: Sequence[Record], show_recalled: bool) -> BoardReport:
    labels, groups = labelled_rows(records) if records else ([], [])
    references, _ = single_task_records(records)
    shown = [row for row in board.rows if show_recalled or row.verification != "recalled"]
    rows = []
    for row in shown:
        beside = [(label, group) for label, group in zip(labels, groups, strict=True) if _is_counterpart(row, group[0])]
        rows += [_row(board, row, label, group, references) for label, group in beside]
        if not beside:
            rows.append(_alone(board, row, bool(records)))
    hidden = len(board.rows) - len(shown)
    notes = [f"{hidden} recalled rows are hidden (--show-recalled)"] if hidden else []
    return BoardReport(board, _title(records), tuple(rows), (*notes, *_printed_deltas(board)))


def _title(records: Sequence[Record]) -> str:
    if not records:
        return ""
    data, backbone = records[0].cell["data"], records[0].cell["backbone"]
    return f"{data['dataset']} ({data.get('layout')}, protocol {data['protocol']}), {backbone['name']}"


def _alone(board: Board, row: BoardRow, has_table: bool) -> RowReport:
    """A published row for which we have none."""
    if board.reproducible == "report_only":
        reason = f"shown only: {board.reproducible_reason}"
    elif row.method not in published_names()["methods"]:
        reason = "is not a method here"
    else:
        reason = "not run" if has_table else "no table of ours has its data set and tasks"
    verdict: Verdict = "unverified" if row.verification == "recalled" else "not run"
    comparisons = tuple(
        Comparison(column, metric, row.values.get(column), Summary((), ()), None, verdict)
        for column, metric in board.columns.items()
    )
    delta = {variant: (published_delta(board, row, variant), None) for variant in VARIANTS}
    return RowReport(row, None, reason, (), comparisons, delta)


def _is_counterpart(row: BoardRow, record: Record) -> bool:
    """Whether a record's method, and the balancing of its losses, are those of a published row."""
    if published_names()["methods"].get(row.method) != record.method:
        return False
    match = re.fullmatch(r"(.+) weighting", row.variant or "")
    printed = published_names()["balancing"].get(match[1], match[1]) if match else "equal"
    return _plain(printed) == _plain(record.balancing["name"])


def _plain(name: str) -> str:
    """A name without case and punctuation: Nash-MTL and nash_mtl are one."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _row(
    board: Board, row: BoardRow, label: str, group: Sequence[Record], references: Mapping[int, Record]
) -> RowReport:
    differences = tuple(_differences(board, group))
    comparisons = tuple(
        _compare(board, row, column, metric, group, differences) for column, metric in board.columns.items()
    )
    delta = {}
    for variant in VARIANTS:
        ours = [
            found.value
            for record in group
            if record.seed in references
            and (found := delta_m(record.metrics, references[record.seed].metrics, record.tasks, variant)).value
            is not None
        ]
        delta[variant] = (published_delta(board, row, variant), math.fsum(ours) / len(ours) if ours else None)
    return RowReport(row, label, "", differences, comparisons, delta)


def _compare(
    board: Board,
    row: BoardRow,
    column: str,
    metric: BoardMetric,
    group: Sequence[Record],
    differences: Sequence[Difference],
) -> Comparison:
    found = [(record.seed, value_of(record, column, metric)) for record in group]
    known = [(seed, value) for seed, value in found if value is not None]
    ours = Summary(tuple(seed for seed, _ in known), tuple(value for _, value in known))
    published = row.values.get(column)
    half_width = prediction_half_width(ours.values)
    excluded = any(difference.level == "excludes" for difference in differences)
    amber = any(difference.level == "amber" for difference in differences)
    verdict = judge(row.verification == "recalled", excluded, amber, published, ours.values, metric.higher_is_better)
    return Comparison(column, metric, published, ours, half_width, verdict)


def judge(
    recalled: bool, excluded: bool, amber: bool, published: float | None, ours: Sequence[float], higher_is_better: bool
) -> Verdict:
    """The verdict on one number; of the rules of measurement 7 the first that matches."""
    if recalled:
        return "unverified"
    if excluded or published is None or not ours:
        return "not comparable"
    if len(ours) < MIN_SEEDS:
        return "no verdict"
    half_width, mean = prediction_half_width(ours), math.fsum(ours) / len(ours)
    assert half_width is not None
    if half_width > LARGEST_INTERVAL * abs(published):
        return "inconclusive"
    if abs(mean - published) <= half_width + ROUNDING * abs(published):
        return "consistent" if amber else "reproduced"
    return "better" if (mean > published) == higher_is_better else "worse"


def prediction_half_width(values: Sequence[float]) -> float | None:
    """h = t_{0.975, n-1} s sqrt(1 + 1/n): one more run is within mean +- h in 95 % of cases; None below two."""
    if len(values) < 2:
        return None
    from scipy.stats import t  # takes most of a second, and most reports do not need it

    n = len(values)
    return float(t.ppf(0.975, n - 1)) * sample_sd(values) * math.sqrt(1 + 1 / n)


def value_of(record: Record, column: str, metric: BoardMetric) -> float | None:
    """Our number for a column of a board, in its unit; None if the record has none, or only in another unit.

    `aggregate.NAME_mean`, and columns of a task that represents all, are means of NAME over our tasks.
    """
    task, name = column.split(".", 1)
    entries: list[MetricEntry | None]
    if task == "aggregate" or task in published_names()["collective"]:
        wanted = name.removesuffix("_mean") if task == "aggregate" else name
        if task == "aggregate" and wanted == name:
            return None
        entries = [scores.get(wanted) for scores in record.metrics.values()]
    else:
        entries = [record.metrics.get(task, {}).get(name)]
    values = []
    for entry in entries:
        if entry is None or entry["value"] is None or entry["unit"] != metric.unit:
            return None
        values.append(entry["value"])
    return math.fsum(values) / len(values) if values else None


def published_delta(board: Board, row: BoardRow, variant: Variant) -> float | None:
    """Delta_m of a published row from the published numbers, percent; None for recalled rows, and if a number or the
    board's single-task row is absent. Of several single-task rows, one that was read in the source counts.
    """
    if row.verification == "recalled" or not board.tasks or _is_collective(board):
        return None
    for verification in ("read", "secondary"):
        for base in board.rows:
            named = published_names()["methods"].get(base.method)
            if base.verification == verification and named == "single_task" and base is not row:
                found = delta_m(_entries(board, row), _entries(board, base), list(board.tasks), variant).value
                if found is not None:
                    return found
    return None


def _entries(board: Board, row: BoardRow) -> dict[str, dict[str, MetricEntry]]:
    return {
        task: {
            metric.name: MetricEntry(
                value=row.values.get(f"{task}.{metric.name}"),
                unit=metric.unit,
                higher_is_better=metric.higher_is_better,
                n_units=0,
                n_nonfinite=0,
                detail={},
            )
            for metric in metrics
        }
        for task, metrics in board.tasks.items()
    }


def _printed_deltas(board: Board) -> Iterator[str]:
    """The variant that gives the Delta_m which the paper prints, within the rounding of the printed value."""
    if "aggregate.delta_m" not in board.columns:
        return
    for row in board.rows:
        printed = row.values.get("aggregate.delta_m")
        if printed is None or row.verification == "recalled":
            continue
        computed = {variant: published_delta(board, row, variant) for variant in VARIANTS}
        tolerance = 0.5 * 10.0 ** -_decimals(printed) + 1e-9
        giving = [name for name, value in computed.items() if value is not None and abs(value - printed) <= tolerance]
        if giving:
            yield f"{row.label}: prints Delta_m {printed:g}; {' and '.join(giving)} gives it from its columns"
        elif any(value is not None for value in computed.values()):
            said = ", ".join(f"{name} {value:+.2f}" for name, value in computed.items() if value is not None)
            yield f"{row.label}: prints Delta_m {printed:g}; no variant gives it from its columns ({said})"
        else:
            yield f"{row.label}: prints Delta_m {printed:g}; its columns do not suffice to compute one"


def _decimals(value: float) -> int:
    _, _, digits = f"{value:g}".partition(".")
    return len(digits)


# Differences between a board's key and our records


def _differences(board: Board, group: Sequence[Record]) -> Iterator[Difference]:
    """Fields of the key against the first record of a row."""
    record, key = group[0], board.key
    yield from _field("protocol", key.protocol, record.cell["data"]["protocol"], "excludes")
    yield from _classes(key.classes, record)
    size = None if key.eval_size is None else list(key.eval_size)
    yield from _field("evaluated size", size, record.audit.get("input_size"), "excludes")
    yield from _backbone(key.backbone, record)
    yield from _weights(key.weights, record)
    yield from _field("selection", key.selection, _selection(record), "amber")
    if key.seeds is None:
        yield Difference("seeds", "not stated", str(len(group)), "amber")
    if (tier := record.audit.get("tier")) != "verified on genuine files":
        yield Difference("reader of the data", "genuine files", str(tier), "amber")


def _field(name: str, published: object, ours: object, level: Level) -> Iterator[Difference]:
    if published is None:
        yield Difference(name, "not stated", _said(ours), level)
    elif ours is None:
        yield Difference(name, _said(published), "not recorded", level)
    elif published != ours:
        yield Difference(name, _said(published), _said(ours), level)


def _said(value: object) -> str:
    return " x ".join(map(str, value)) if isinstance(value, list) else str(value)


def _classes(published: Mapping[str, int] | None, record: Record) -> Iterator[Difference]:
    if published is None:
        yield Difference("classes", "not stated", "known", "excludes")
        return
    for task, count in published.items():
        tasks = record.tasks if task in published_names()["collective"] else [task]
        found = {record.audit.get("channels", {}).get(name) for name in tasks}
        if found != {count}:
            ours = ", ".join("not recorded" if value is None else f"{value:g}" for value in found)
            yield Difference(f"classes of {task}", str(count), ours, "excludes")


def _backbone(published: str | None, record: Record) -> Iterator[Difference]:
    """`NAME`, or `NAME:osS` if the source states the output stride."""
    name = record.cell["backbone"]["name"]
    ours = f"{name}:os{record.cell['backbone'].get('output_stride')}"
    if published is None or published == "per_row":
        yield Difference("backbone", "not stated for the row", ours, "excludes")
    elif published not in (name, ours):
        yield Difference("backbone", published, ours, "excludes")


def _weights(published: str | None, record: Record) -> Iterator[Difference]:
    """Pretrained weights are recognised by their timm tag: it ends in in1k, without _ft_, for ImageNet-1k alone."""
    ours, tag = record.cell["backbone"]["weights"], record.audit.get("weights_tag", "")
    if ours == "pretrained":
        ours = f"pretrained {tag}".strip()
    imagenet = tag.endswith("in1k") and "_ft_" not in tag
    if published is None or published == "per_row":
        yield Difference("weights", "not stated for the row", ours, "excludes")
    elif (published == "none") != (ours == "none") or (published != "none" and not imagenet):
        yield Difference("weights", published, ours, "excludes")


def _selection(record: Record) -> str:
    """`last`, `test` if the checkpoint was chosen on the test images, else `select`."""
    if record.cell["selection"]["rule"] == "last":
        return "last"
    return "test" if record.selects_on_test else "select"
