"""Records -> tables of numbers: seeds are aggregated here, before anything is rendered. Spec: measurement 1.5, 2, 4, 5.

One table per table key (a cell without method and seed), one row per method and parameters, one column per quantity,
with the audit and the tests of its rows. `benchmark.show.render` turns a table into text. No method is named here: the
records of the baseline of Delta_m, and of the row that the others are tested against, state their role in
`audit["reference"]`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import types
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from benchmark.records.delta import Variant, primary_metric
from benchmark.records.evidence import does_not_apply
from benchmark.records.keys import EQUAL_BALANCING
from benchmark.records.record import INVALID, Record
from benchmark.tables.audit import Audit, audit_rows
from benchmark.tables.audit_fields import NOT_TUNED
from benchmark.tables.columns import Column, Measured, SpeedOf, delta_column, measure, ordered_columns
from benchmark.tables.evidence import Contents, Evidence, Floors, judge
from benchmark.tables.labels import DASH, row_labels, short_labels, table_head
from benchmark.tables.rows import Row, make_row
from benchmark.tables.statistics import MIN_SEEDS, ColumnStatistics, Summary, analyse
from benchmark.tables.untuned import Untuned, beside, untuned_key
from datasets.errors import UsageError, unknown

NO_REFERENCE = f"Delta_m {DASH}: no single-task run among these records"
LONG_LABEL = 32  # characters; what a terminal of 100 columns leaves beside the numbers
SPARSE_BELOW = 0.99  # share of parameters that are not zero; biases that happen to be 0 stay above
TEST_SELECTED = "selected on the report role: re-enacts a published protocol, not ranked"
TRIALS = "trials of a tuning: judged on select, nothing here is a result"
RED_ALLOWED = "red differences allowed: nothing in this table is ranked or tested"


@dataclasses.dataclass(frozen=True)
class Table:
    """The contents of one table. head: {field: text}, printed above it and in every line of the CSV form.

    ranked: positions of the rows that are complete and not red; none where a task was not learnt. reference: position
    of the row that the others are tested against. statistics: {column: its tests}, for ranked columns in which at least
    two ranked rows have values at three seeds. headline: the columns whose tests are written out. misfits: {row that
    does not apply: why}. untuned: of a table of equal tuning, the same rows without it where the folder holds them;
    shown_in: key of the table that so shows this one's Delta_m.
    """

    key: str
    head: Mapping[str, str]
    variant: Variant
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    banners: tuple[str, ...]
    notes: tuple[str, ...]
    audit: Audit
    evidence: Evidence
    ranked: frozenset[int]
    reference: int | None
    statistics: Mapping[int, ColumnStatistics]
    headline: tuple[int, ...]
    misfits: Mapping[str, str] = dataclasses.field(default_factory=dict)
    untuned: Untuned | None = None
    shown_in: str | None = None

    @property
    def delta(self) -> int:
        """Position of the column of Delta_m."""
        return self.columns.index(delta_column(self.variant))

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """What the rows are called where room is scarce: by their labels, or by the short ones if a label is long."""
        labels = [row.label for row in self.rows]
        return tuple(labels if max(map(len, labels)) <= LONG_LABEL else (row.short for row in self.rows))

    @functools.cached_property
    def best(self) -> frozenset[tuple[int, int]]:
        """(row, column) of the first rank group of every column: the leader and all that do not differ from it."""
        found = self.statistics.items()
        return frozenset((row, column) for column, tests in found for row, rank in tests.ranks.items() if rank == 1)


def aggregate(
    records: Iterable[Record],
    variant: Variant = "mean-metrics",
    *,
    reference: str | None = None,
    allow_red: bool = False,
    speed_of: SpeedOf | None = None,
    floors_of: Callable[[Record], Floors | None] | None = None,
    leaderboards: Collection[str] = (),
    misfits: Mapping[str, Mapping[str, str]] = types.MappingProxyType({}),
) -> list[Table]:
    """One table per table key, ordered by their heads; invalid records are left out.

    reference: label or method of the row that the others are tested against; None takes the method that declares itself
    one. speed_of: the measurement of a record's network, None if it was not measured. allow_red: a table with red rows
    is not ranked at all, and a banner says so. floors_of: the scores of constant predictions on a record's data.
    leaderboards: keys of the tables that call themselves one. misfits: {table: {row that does not apply: why}}. Raises
    UsageError for a reference that no table has, and for two records of one cell, which would pass for two seeds.
    """
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if record.status != INVALID:
            groups[record.table_key].append(record)
    others = (variant, reference, allow_red, speed_of, floors_of)
    tables = [_table(key, group, *others, key in leaderboards, misfits.get(key, {})) for key, group in groups.items()]
    if reference is not None and all(table.reference is None for table in tables):
        raise unknown("reference row", reference, {row.label for table in tables for row in table.rows})
    tables = _side_by_side(tables, groups)
    return sorted(tables, key=lambda table: (*table.head.values(), table.key))


def _side_by_side(tables: Sequence[Table], groups: Mapping[str, Sequence[Record]]) -> list[Table]:
    """The tables; those of equal tuning with what their rows have without it."""
    by_key = {table.key: table for table in tables}
    for key, records in groups.items():
        other = untuned_key(records[0])
        if other in by_key:
            plain = by_key[other]
            rows = labelled_rows(records)[1], labelled_rows(groups[other])[1]
            singles = single_task_records(records)[0], single_task_records(groups[other])[0]
            found = beside(other, rows, plain.rows, plain.delta, singles, plain.variant)
            by_key[key] = dataclasses.replace(by_key[key], untuned=found)
            by_key[other] = dataclasses.replace(plain, shown_in=key)
    return list(by_key.values())


def invalid_lines(records: Iterable[Record]) -> list[str]:
    """A line for each record that could not be trusted, with file and reason."""
    return [record.error["message"] for record in records if record.status == INVALID and record.error is not None]


def _table(
    key: str,
    records: Sequence[Record],
    variant: Variant,
    wanted: str | None,
    allow_red: bool,
    speed_of: SpeedOf | None,
    floors_of: Callable[[Record], Floors | None] | None,
    is_leaderboard: bool,
    misfits: Mapping[str, str],
) -> Table:
    tasks = records[0].tasks
    seeds = sorted({record.seed for record in records})
    baselines, notes = single_task_records(records)
    labels, groups = labelled_rows(records)
    measured = [
        [measure(record, baselines, tasks, variant, speed_of) for record in group if record.status == "done"]
        for group in groups
    ]
    columns = ordered_columns([column for row in measured for one in row for column in one.values], tasks, variant)
    shorts = short_labels([group[0] for group in groups])
    rows = [make_row(*parts, columns, seeds) for parts in zip(labels, shorts, groups, measured, strict=True)]
    audit = audit_rows(labels, groups, is_leaderboard)
    unranked = audit.red if not (allow_red and audit.red) else range(len(rows))
    ranked = frozenset(n for n, row in enumerate(rows) if row.is_complete and n not in unranked)
    reference = _tested_against(labels, groups, wanted)
    statistics = dict(_statistics(rows, columns, ranked, reference))
    delta = columns.index(delta_column(variant))
    floors = next((found for record in records if floors_of is not None and (found := floors_of(record))), None)
    contents = Contents(tasks, columns, rows, groups, audit, ranked, statistics, delta, floors)
    evidence = judge(contents, is_leaderboard)
    if evidence.not_learnt:
        ranked, statistics = frozenset(), {}
    notes += _delta_notes(labels, measured) if baselines else [NO_REFERENCE]
    notes += [*_identical_notes(rows, columns), *_constant_notes(rows, columns, statistics)]
    notes += [
        *_overlap_notes(labels, groups),
        *_tuning_notes(labels, groups),
        *_flag_notes(labels, groups),
        *_sparse_notes(labels, groups),
        *_speed_notes(records, speed_of),
        *evidence.notes,
        *(does_not_apply(title, why) for title, why in misfits.items()),
    ]
    banners = [TEST_SELECTED] if records[0].selects_on_test else []
    banners += [TRIALS] if records[0].is_trial else []
    banners += [RED_ALLOWED] if allow_red and audit.red else []
    return Table(
        key=key,
        head=table_head(records),
        variant=variant,
        columns=columns,
        rows=tuple(rows),
        banners=(*evidence.banners, *banners, *_seed_banners(rows), *audit.banners),
        notes=tuple(notes),
        audit=audit,
        evidence=evidence,
        ranked=ranked,
        reference=reference,
        statistics=statistics,
        misfits=misfits,
        headline=tuple(_headline(columns, statistics, variant)),
    )


def labelled_rows(records: Sequence[Record]) -> tuple[list[str], list[list[Record]]]:
    """Labels and records of the rows: baselines of Delta_m first, then by label."""
    groups = _by_row(records)
    labels = row_labels([group[0] for group in groups])
    order = sorted(range(len(groups)), key=lambda n: (not any(record.is_reference for record in groups[n]), labels[n]))
    return [labels[n] for n in order], [groups[n] for n in order]


def _by_row(records: Sequence[Record]) -> list[list[Record]]:
    """Records grouped by method, parameters and loss balancing, each group in the order of seeds. UsageError for a cell
    given twice.
    """
    groups: dict[bytes, list[Record]] = defaultdict(list)
    for record in sorted(records, key=lambda record: record.seed):
        group = groups[record.row_key]
        if group and group[-1].seed == record.seed:
            raise UsageError(f"Two records of one cell ({record.method}, seed {record.seed}, {record.key}).")
        group.append(record)
    return list(groups.values())


def single_task_records(records: Sequence[Record]) -> tuple[dict[int, Record], list[str]]:
    """The single-task record of each seed: of several rows the one with default parameters, else none."""
    candidates: dict[int, list[Record]] = defaultdict(list)
    for record in records:
        if record.is_reference and record.status == "done":
            candidates[record.seed].append(record)
    chosen, ambiguous = {}, []
    for seed, found in sorted(candidates.items()):
        plain = found if len(found) == 1 else [record for record in found if record.has_default_params]
        if len(plain) == 1:
            chosen[seed] = plain[0]
        else:
            ambiguous.append(str(seed))
    notes = [f"Delta_m {DASH} at seed {', '.join(ambiguous)}: several single-task rows"] if ambiguous else []
    return chosen, notes


def _tested_against(labels: Sequence[str], groups: Sequence[Sequence[Record]], wanted: str | None) -> int | None:
    """The row that the others are tested against; of several of one method the one with default parameters, of several
    with those the one with equal loss balancing.
    """
    rows = list(enumerate(groups))
    if wanted in labels:
        return labels.index(wanted)
    if wanted is not None:
        found = [(n, group) for n, group in rows if group[0].method == wanted]
    else:
        found = [(n, group) for n, group in rows if any(one.is_comparison_reference for one in group)]
    if len(found) > 1:
        found = [(n, group) for n, group in found if any(one.has_default_params for one in group)]
    if len(found) > 1:
        found = [(n, group) for n, group in found if group[0].balancing == EQUAL_BALANCING]
    return found[0][0] if len(found) == 1 else None


def _statistics(
    rows: Sequence[Row], columns: Sequence[Column], ranked: Collection[int], reference: int | None
) -> Iterator[tuple[int, ColumnStatistics]]:
    """(column, its tests) of the ranked columns; rows with a null in the column are left out of it."""
    for position, column in enumerate(columns):
        if column.ranked:
            cells = {n: rows[n].cells[position] for n in sorted(ranked)}
            values = {n: cell.values for n, cell in cells.items() if cell.n == rows[n].n}
            found = analyse(values, reference, column.higher_is_better is True)
            if found is not None:
                yield position, found


def _headline(columns: Sequence[Column], tested: Collection[int], variant: Variant) -> list[int]:
    """Delta_m, or the primary metric of each task if Delta_m has no tests."""
    delta = columns.index(delta_column(variant))
    if delta in tested:
        return [delta]
    names: dict[str, list[str]] = defaultdict(list)
    for position in tested:
        names[columns[position].group].append(columns[position].name)
    primary = {group: primary_metric(found) for group, found in names.items()}
    return [position for position in sorted(tested) if primary[columns[position].group] == columns[position].name]


def _identical_notes(rows: Sequence[Row], columns: Sequence[Column]) -> list[str]:
    """Rows that agree at every seed: with fewer than three seeds only in all metrics at once, as one can by chance."""
    metrics = [position for position, column in enumerate(columns) if column.group]
    found = {labels: "every metric" for labels, _ in _equal_rows(rows, metrics)}
    single: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for position in metrics:
        for labels, n_seeds in _equal_rows(rows, [position]):
            if labels not in found and n_seeds >= MIN_SEEDS:
                single[labels].append(position)
    found |= {labels: _names(columns, positions) for labels, positions in single.items()}
    question = "one network under several names, or saturated?"
    return [f"{', '.join(labels)}: equal at every seed in {where}: {question}" for labels, where in found.items()]


def _equal_rows(rows: Sequence[Row], positions: Sequence[int]) -> Iterator[tuple[tuple[str, ...], int]]:
    """(labels, seeds) of the rows that have the same values in all these columns, two rows at least."""
    labels: dict[tuple[Summary, ...], list[str]] = defaultdict(list)
    for row in rows:
        cells = tuple(row.cells[position] for position in positions)
        if any(cell.n for cell in cells):
            labels[cells].append(row.label)
    for cells, together in labels.items():
        if len(together) > 1:
            yield tuple(together), max(cell.n for cell in cells)


def _constant_notes(
    rows: Sequence[Row], columns: Sequence[Column], statistics: Mapping[int, ColumnStatistics]
) -> list[str]:
    """Differences from the reference that are the same at every seed, which no test can judge."""
    constant: dict[int, list[int]] = defaultdict(list)
    for position, tests in statistics.items():
        for row, comparison in tests.comparisons.items():
            if comparison.flag == "constant":
                constant[row].append(position)
    return [
        f"{rows[row].label}: the same difference from the reference at every seed in {_names(columns, found)}: no p"
        for row, found in constant.items()
    ]


def _names(columns: Sequence[Column], positions: Sequence[int]) -> str:
    return ", ".join(f"{columns[n].group} {columns[n].name}".strip() for n in positions)


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


def _speed_notes(records: Sequence[Record], speed_of: SpeedOf | None) -> list[str]:
    """How speed was measured, with the A/A ratio; several measurements in one table are not compared with
    each other.
    """
    found = [speed for record in records if speed_of is not None and (speed := speed_of(record)) is not None]
    measurements = {speed.measurement.started: speed.measurement for speed in found}
    notes = []
    for measurement in measurements.values():
        aa = DASH if measurement.aa is None else f"{measurement.aa:.3f}"
        flags = f" ({', '.join(measurement.flags)})" if measurement.flags else ""
        notes.append(f"speed: {measurement.settings.name} on {measurement.device}, A/A {aa}{flags}")
    if len(measurements) > 1:
        notes.append("speed: rows of several measurements; compare r, not images/s")
    return notes


def _overlap_notes(labels: Sequence[str], groups: Sequence[Sequence[Record]]) -> list[str]:
    """How much two seeds agree in what a method chose: a search whose result changes with the seed has found noise."""
    notes = []
    for label, group in zip(labels, groups, strict=True):
        chosen = [frozenset(record.audit.get("chosen", ())) for record in group]
        pairs = [len(a & b) / len(a | b) for a, b in itertools.combinations(chosen, 2) if a | b]
        if pairs:
            notes.append(
                f"{label}: overlap between seeds {math.fsum(pairs) / len(pairs):.2f} "
                f"(Jaccard index of what was chosen, mean over {len(pairs)} pairs)"
            )
    return notes


def _tuning_notes(labels: Sequence[str], groups: Sequence[Sequence[Record]]) -> list[str]:
    """What a tuning chose for each row, the spread of what it tried, and where its range was too narrow."""
    notes = []
    for label, group in zip(labels, groups, strict=True):
        tuning = next((found for record in group if (found := record.audit.get("tuning")) is not None), None)
        if tuning is None or group[0].is_trial:
            continue
        if not tuning["chosen"]:
            notes.append(f"{label}: {NOT_TUNED}, trained as the suite has it")
            continue
        chosen = ", ".join(f"{name} {_short(value)}" for name, value in tuning["chosen"].items())
        scores = [value for value in tuning["scores"] if value is not None]
        spread = f", {min(scores):+.1f} to {max(scores):+.1f} % on select" if scores else ""
        edges = f"; at the edge of its range: {', '.join(tuning['edges'])}" if tuning["edges"] else ""
        notes.append(f"{label}: tuned to {chosen} ({tuning['tried']} settings tried{spread}){edges}")
    return notes


def _short(value: float | None) -> str:
    return "null" if value is None else f"{value:.3g}"


def _flag_notes(labels: Sequence[str], groups: Sequence[Sequence[Record]]) -> list[str]:
    """Problems that methods report about their runs, with the seeds; a problem of all runs (of the data) once."""
    said = [record.audit.get("flags", []) for group in groups for record in group]
    by_all = [flag for flag in dict.fromkeys(itertools.chain(*said)) if all(flag in flags for flags in said)]
    by_all = by_all if len(labels) > 1 else []
    notes = [f"all rows: {flag}" for flag in by_all]
    for label, group in zip(labels, groups, strict=True):
        seeds: dict[str, list[str]] = defaultdict(list)
        for record in group:
            for flag in record.audit.get("flags", []):
                if flag not in by_all:
                    seeds[flag].append(str(record.seed))
        notes += [f"{label}: {flag} (seed {', '.join(found)})" for flag, found in seeds.items()]
    return notes


def _sparse_notes(labels: Sequence[str], groups: Sequence[Sequence[Record]]) -> list[str]:
    """Unstructured zeros save no time, and pruned parameters are not counted: the table says both (measurement 2)."""
    notes = []
    for label, group in zip(labels, groups, strict=True):
        sizes = [(record.size.get("nonzero"), record.size.get("dense")) for record in group]
        shares = [nonzero / dense for nonzero, dense in sizes if nonzero is not None and dense]
        if shares and min(shares) < SPARSE_BELOW:
            kept = 100 * math.fsum(shares) / len(shares)
            text = f"{label}: {kept:.1f} % of its parameters are not zero; unstructured zeros save no time"
            masked = any(record.size.get("total") != record.size.get("dense") for record in group)
            notes.append(f"{text}, and counts leave out what its masks prune" if masked else text)
    return notes
