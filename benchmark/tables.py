"""Records -> tables of numbers: seeds are aggregated here, before anything is rendered. Spec: measurement 1.5, 2, 4, 5.

One table per table key (a cell without method and seed), one row per method and parameters, one column per quantity.
`benchmark.render` turns a table into text. Nothing here knows a method: the single-task reference of Delta_m is the row
whose records say `audit["reference"] == "single_task"`.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import cast

from benchmark.delta import Variant
from benchmark.quantities import (
    Column,
    Measured,
    is_reference,
    measure,
    method_of,
    number_at,
    ordered_columns,
    params_of,
    seed_of_record,
)
from benchmark.record import INVALID, Record, canonical_json, table_key, value_at
from datasets.errors import UsageError

DASH = "\N{EN DASH}"
NO_REFERENCE = f"Delta_m {DASH}: no single-task run among these records"
NOT_RUN = "not run"  # a seed that other rows of the table have
NON_DEFAULT = "non_default_params"  # audit field: the parameters that differ from the method's defaults
SPARSE_BELOW = 0.99  # share of parameters that are not zero; biases that happen to be 0 stay above
TEST_SELECTED = "selected on the report role: re-enacts a published protocol, not ranked"
MIN_SEEDS_TO_MARK = 3  # below it no value is marked best


@dataclasses.dataclass(frozen=True)
class Summary:
    """The values of one quantity in one row by seed; seeds without a value (null) are left out."""

    seeds: tuple[int, ...]
    values: tuple[float, ...]

    @property
    def n(self) -> int:
        """Number of values."""
        return len(self.values)

    @property
    def mean(self) -> float | None:
        """Arithmetic mean over seeds; None without a value."""
        return math.fsum(self.values) / self.n if self.values else None

    @property
    def sd(self) -> float | None:
        """Sample standard deviation over seeds, divisor n - 1; None for n < 2."""
        if self.n < 2:
            return None
        mean = math.fsum(self.values) / self.n
        return math.sqrt(math.fsum((value - mean) ** 2 for value in self.values) / (self.n - 1))


@dataclasses.dataclass(frozen=True)
class Row:
    """A method with its parameters over seeds. statuses: {seed: status} for the seeds of the table, in order.

    cells: as many as the table has columns, over the seeds that are done. failures: a line for each status not done.
    """

    label: str
    method: str
    params: Mapping[str, object]
    is_reference: bool
    statuses: Mapping[int, str]
    cells: tuple[Summary, ...]
    failures: tuple[str, ...]

    @property
    def n(self) -> int:
        """Number of seeds that are done."""
        return sum(status == "done" for status in self.statuses.values())

    @property
    def is_complete(self) -> bool:
        """Whether every seed of the table is done; other rows are not ranked."""
        return self.n == len(self.statuses)


@dataclasses.dataclass(frozen=True)
class Table:
    """What one table shows. head: {field: text}, printed above it and in every line of the CSV form.

    best: (row, column) indices of the best mean of a ranked column, among complete rows with at least three seeds.
    """

    key: str
    head: Mapping[str, str]
    variant: Variant
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    banners: tuple[str, ...]
    notes: tuple[str, ...]
    best: frozenset[tuple[int, int]]


def aggregate(records: Iterable[Record], variant: Variant = "mean-metrics") -> list[Table]:
    """One table per table key, ordered by what their heads say; invalid records are left out.

    Raises UsageError where one cell has two records, which counted twice would pass for two seeds.
    """
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if record.status != INVALID:
            groups[table_key(record.cell)].append(record)
    tables = [_table(key, group, variant) for key, group in groups.items()]
    return sorted(tables, key=lambda table: (*table.head.values(), table.key))


def invalid_lines(records: Iterable[Record]) -> list[str]:
    """A line for each record that could not be trusted, with file and reason."""
    return [record.error["message"] for record in records if record.status == INVALID and record.error is not None]


def _table(key: str, records: Sequence[Record], variant: Variant) -> Table:
    tasks = [str(task) for task in cast("Sequence[object]", value_at(records[0].cell, "data", "tasks"))]
    seeds = sorted({seed_of_record(record) for record in records})
    baselines, notes = _baselines(records)
    groups = _by_row(records)
    labels = _labels([group[0] for group in groups])
    measured = [
        [measure(record, baselines, tasks, variant) for record in group if record.status == "done"] for group in groups
    ]
    columns = ordered_columns([column for row in measured for one in row for column in one.values], tasks, variant)
    rows = [_row(*parts, columns, seeds) for parts in zip(labels, groups, measured, strict=True)]
    order = sorted(range(len(rows)), key=lambda position: (not rows[position].is_reference, rows[position].label))
    rows = [rows[position] for position in order]
    notes += _delta_notes(labels, measured) if baselines else [NO_REFERENCE]
    notes += _sparse_notes(labels, groups)
    on_report = value_at(records[0].cell, "selection", "select_on") == "test"
    return Table(
        key=key,
        head=_head(records),
        variant=variant,
        columns=columns,
        rows=tuple(rows),
        banners=tuple(([TEST_SELECTED] if on_report else []) + _seed_banners(rows)),
        notes=tuple(notes),
        best=frozenset() if on_report else _best(rows, columns),
    )


def _by_row(records: Sequence[Record]) -> list[list[Record]]:
    """Records grouped by method and parameters, each group in the order of seeds. UsageError for a cell given twice."""
    groups: dict[bytes, list[Record]] = defaultdict(list)
    for record in sorted(records, key=seed_of_record):
        group = groups[canonical_json(record.cell["method"])]
        if group and seed_of_record(group[-1]) == seed_of_record(record):
            raise UsageError(
                f"Two records of one cell ({method_of(record)}, seed {seed_of_record(record)}, {record.key})."
            )
        group.append(record)
    return list(groups.values())


def _baselines(records: Sequence[Record]) -> tuple[dict[int, Record], list[str]]:
    """The single-task record of each seed. Where several rows are one, the row with default parameters, else none."""
    candidates: dict[int, list[Record]] = defaultdict(list)
    for record in records:
        if is_reference(record) and record.status == "done":
            candidates[seed_of_record(record)].append(record)
    chosen, ambiguous = {}, []
    for seed, found in sorted(candidates.items()):
        plain = found if len(found) == 1 else [record for record in found if record.audit.get(NON_DEFAULT) == {}]
        if len(plain) == 1:
            chosen[seed] = plain[0]
        else:
            ambiguous.append(str(seed))
    notes = [f"Delta_m {DASH} at seed {', '.join(ambiguous)}: several single-task rows"] if ambiguous else []
    return chosen, notes


def _row(
    label: str,
    records: Sequence[Record],
    measured: Sequence[Measured],
    columns: Sequence[Column],
    seeds: Sequence[int],
) -> Row:
    cells = []
    for column in columns:
        known = [(one.seed, value) for one in measured if (value := one.values.get(column)) is not None]
        cells.append(Summary(tuple(seed for seed, _ in known), tuple(value for _, value in known)))
    found = {seed_of_record(record): record.status for record in records}
    statuses = {seed: found.get(seed, NOT_RUN) for seed in seeds}
    failures = [_failure(record) for record in records if record.status != "done"]
    if missing := [str(seed) for seed, status in statuses.items() if status == NOT_RUN]:
        failures.append(f"seed {', '.join(missing)}: {NOT_RUN}")
    first = records[0]
    reference = any(map(is_reference, records))
    return Row(label, method_of(first), params_of(first), reference, statuses, tuple(cells), tuple(failures))


def _failure(record: Record) -> str:
    """One line: seed, status, reason and where."""
    line, error = f"seed {seed_of_record(record)}: {record.status}", record.error
    if error is None:
        return line
    places = (("stage", error["stage"]), ("step", error["step"]), ("task", error["task"]))
    where = ", ".join(f"{name} {place}" for name, place in places if place is not None)
    reason = " ".join(error["message"].split()) or error["kind"]
    return f"{line}: {reason}" + (f" ({where})" if where else "")


def _labels(firsts: Sequence[Record]) -> list[str]:
    """Method and the parameters that matter: not at their default, or telling rows of one method apart."""
    flat = [dict(_flat(params_of(record))) for record in firsts]
    labels = []
    for position, record in enumerate(firsts):
        siblings = [other for other, one in zip(flat, firsts, strict=True) if method_of(one) == method_of(record)]
        names = {name for other in siblings for name in other}
        shown = {name for name in names if len({other.get(name, DASH) for other in siblings}) > 1}
        given = record.audit.get(NON_DEFAULT)
        shown |= {name for name, _ in _flat(given)} if isinstance(given, Mapping) else set()
        text = ", ".join(f"{name}={flat[position].get(name, DASH)}" for name in sorted(shown))
        labels.append(f"{method_of(record)} ({text})" if text else method_of(record))
    return labels


def _flat(params: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and texts of nested parameters."""
    for name, value in params.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value if isinstance(value, str) else canonical_json(value).decode()


def _best(rows: Sequence[Row], columns: Sequence[Column]) -> frozenset[tuple[int, int]]:
    """(row, column) of the best means; only complete rows of at least three seeds compete, and never one alone."""
    best = set()
    for position, column in enumerate(columns):
        means = {
            number: mean
            for number, row in enumerate(rows)
            if row.is_complete
            and row.cells[position].n == row.n >= MIN_SEEDS_TO_MARK
            and (mean := row.cells[position].mean) is not None
        }
        if column.ranked and len(means) > 1:
            top = max(means.values()) if column.higher_is_better else min(means.values())
            best |= {(number, position) for number, mean in means.items() if mean == top}
    return frozenset(best)


def _seed_banners(rows: Sequence[Row]) -> list[str]:
    single = [row.label for row in rows if row.n == 1]
    if not single:
        return []
    which = "" if len(single) == len(rows) else f" ({', '.join(single)})"
    return [f"one seed{which}: differences are not evidence"]


def _delta_notes(labels: Sequence[str], measured: Sequence[Sequence[Measured]]) -> list[str]:
    """A line per row and reason for which Delta_m is null."""
    seeds: dict[tuple[str, str], list[str]] = defaultdict(list)
    for label, row in zip(labels, measured, strict=True):
        for one in row:
            if one.reason is not None:
                seeds[label, one.reason].append(str(one.seed))
    return [f"Delta_m {DASH} of {label}, seed {', '.join(at)}: {reason}" for (label, reason), at in seeds.items()]


def _sparse_notes(labels: Sequence[str], groups: Sequence[Sequence[Record]]) -> list[str]:
    """Unstructured zeros are no saving of time, and the table must say so (measurement 2)."""
    notes = []
    for label, group in zip(labels, groups, strict=True):
        sizes = [(number_at(record.size, "nonzero"), number_at(record.size, "dense")) for record in group]
        shares = [nonzero / dense for nonzero, dense in sizes if nonzero is not None and dense]
        if shares and min(shares) < SPARSE_BELOW:
            kept = 100 * math.fsum(shares) / len(shares)
            notes.append(f"{label}: {kept:.1f} % of its parameters are not zero; unstructured zeros save no time")
    return notes


def _head(records: Sequence[Record]) -> dict[str, str]:
    """What all rows share, by field."""
    cell = records[0].cell
    tiers = sorted({str(record.audit["tier"]) for record in records if record.audit.get("tier")})
    head = {
        "data": _described(value_at(cell, "data"), "dataset", ("layout", "version", "options")),
        "protocol": str(value_at(cell, "data", "protocol")),
        "tasks": _described_tasks(cell),
        "backbone": _described(value_at(cell, "backbone"), "name", ("weights", "image_size", "output_stride")),
        "head": _described(value_at(cell, "head"), "name", ()),
        "recipe": str(value_at(cell, "recipe", "name")),
        "budget": f"{value_at(cell, 'budget', 'steps')} steps",
        "selection": str(value_at(cell, "selection", "rule")),
        "data tier": ", ".join(tiers) or "not recorded",
    }
    return {field: text for field, text in head.items() if text}


def _described(settings: object, name: str, first: Sequence[str]) -> str:
    """`resnet18 (weights none, output_stride 32)`: the name, the fields of `first`, then what is switched on."""
    if not isinstance(settings, Mapping):
        return ""
    shown = [field for field in first if settings.get(field) not in (None, "", {}, [])]
    if name == "name":
        shown += [field for field in settings if field not in (name, *first, "in_chans") and settings[field]]
    parts = [f"{field} {text}" for field in shown for text in [_plain_text(settings[field])]]
    title = str(settings.get(name) or "")
    return f"{title} ({', '.join(parts)})".strip() if parts else title


def _plain_text(value: object) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{name}={text}" for name, text in _flat(value))
    if isinstance(value, (list, tuple)):
        return "x".join(map(str, value))
    return str(value)


def _described_tasks(cell: Mapping[str, object]) -> str:
    names = cast("Sequence[object]", value_at(cell, "data", "tasks"))
    weights = {str(name): number_at(cell, "data", "task_weights", str(name)) for name in names}
    return ", ".join(
        name if weight in (None, 1.0) else f"{name} (weight {weight:g})" for name, weight in weights.items()
    )
