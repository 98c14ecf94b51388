"""Numbers, titles and notes as text, rounded here and nowhere else. Spec: measurement 5.

n >= 3: mean ± s.d. (divisor n - 1); n = 2: mean and both values; n = 1: the value, "n=1" and a banner. A size or cost
that is the same at every seed is printed once. Null is an en dash.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from benchmark.tables.audit_fields import Finding
from benchmark.tables.columns import Column, Form, Part
from benchmark.tables.labels import DASH
from benchmark.tables.rows import Row
from benchmark.tables.statistics import LEVEL, MIN_SEEDS, POWER, ColumnStatistics, Comparison, Summary, half_interval
from benchmark.tables.table import Table

RED, AMBER = "✗", "~"
_UNITS = {"percent": "%", "degree": "°"}
_DECIMALS = {"%": 2, "°": 2}
_LEGENDS = {
    "accuracy": "n >= 3: mean ± s.d. over seeds (divisor n - 1)",
    "size and compute": "x_backbone: (backbone + added parameters) / parameters of the plain backbone; "
    "macs_joint: multiply-accumulates for one image, all tasks at once; macs_sum: task after task; "
    "weight sharing: 1 - total / sum of what each task reads; activation sharing: 1 - joint / sum; parameters that "
    "declared masks prune are not counted",
    "speed": "throughput of all tasks together, light measurement (python -m benchmark.throughput does the full one); "
    "r: relative to the plain backbone without heads, r_stl: to the single-task row, in the same run",
    "cost": "search cost: everything before the final training; final cost: the final training; "
    "weight_steps: updates that the deployed weights have received",
    "convergence": "mean training loss of the last fifth of the final training against the fifth before; negative: it "
    "still falls",
}
_TWO_SEEDS = "two seeds: mean and both values; no test, no rank: tests begin at three seeds"
_NO_TESTS = "no tests: fewer than two rows have every seed and no red difference"
_NOT_LEARNT = "no tests, no ranks: too little was learnt of {}"
_TEST_LEGEND = (  # how p, `detectable` and the bold group were made
    f"p: two-sided paired t (assumes normal differences), Holm over the m rows compared, * below {LEVEL}; "
    f"detectable: with power {POWER}; bold: the best of a column and all that do not differ significantly from it"
)
_NO_REFERENCE = "no p-values: no row is the comparison reference (--reference ROW names one)"


def head_line(table: Table) -> str:
    """What all rows share, in one line, with the id of the table."""
    return "; ".join([*(f"{field}: {text}" for field, text in table.head.items()), f"table: {table.key}"])


def column_title(column: Column) -> str:
    """Name, unit and arrow of a column."""
    unit = unit_text(column)
    arrow = {None: "", True: " ↑", False: " ↓"}[column.higher_is_better]
    return f"{column.name}{f' [{unit}]' if unit else ''}{arrow}"


def unit_text(column: Column) -> str:
    """The unit as it is printed."""
    return _UNITS.get(column.unit, column.unit)


def cell_text(summary: Summary, column: Column, row_n: int) -> str:
    """One cell, rounded. row_n: seeds of the row; a value over fewer of them (some are null) says its own n."""
    mean, sd = summary.mean, summary.sd
    if mean is None:
        return DASH
    write, suffix = _writer(mean, column)
    constant = column.part != "accuracy" and len(set(summary.values)) == 1
    if summary.n == 1 or constant:
        text = write(mean) + suffix
    elif summary.n == 2:
        first, second = summary.values
        text = f"{write(mean)}{suffix} ({write(first)}, {write(second)})"
    else:
        text = f"{write(mean)} ± {write(sd if sd is not None else 0.0).lstrip('+')}{suffix}"
    return text if summary.n == row_n else f"{text} (n={summary.n})"


def _writer(mean: float, column: Column) -> tuple[Callable[[float], str], str]:
    """How the numbers of a cell are written, all to the precision that suits their mean, and the suffix of the cell."""
    if column.form == "count":
        scale, suffix, decimals = _scale(abs(mean))
        return lambda value: f"{value / scale:.{decimals}f}", suffix
    decimals = _decimals(column.form, mean, unit_text(column))
    sign = "+" if column.form == "signed" else ""

    def write(value: float) -> str:
        text = f"{value:{sign}.{decimals}f}"
        return text[1:] if float(text) == 0.0 and text[0] in "+-" else text  # no signed zero

    return write, ""


def _scale(value: float) -> tuple[float, str, int]:
    """Divisor, suffix and decimals of a count: 0.31 M, 1.81 G."""
    for limit, scale, suffix, decimals in ((1e9, 1e9, " G", 2), (1e5, 1e6, " M", 2), (1e3, 1e3, " k", 1)):
        if value >= limit:
            return scale, suffix, decimals
    return 1.0, "", 0


def _decimals(form: Form, mean: float, unit: str) -> int:
    if form in ("signed", "ratio"):
        return 2
    if form == "share":
        return 3
    if form == "plain":
        return 0 if mean == int(mean) else 2 if abs(mean) >= 1 else 4
    if form in ("steps", "seconds"):
        return 0 if mean == int(mean) or abs(mean) >= 100 else 1
    return _DECIMALS.get(unit, 4 if abs(mean) < 10 else 2)


def brief_text(mean: float | None, column: Column) -> str:
    """A mean alone, as the glance has it: percent and degrees with one decimal, others as in a cell."""
    if mean is None:
        return DASH
    if column.form == "value" and unit_text(column) in _DECIMALS:
        return f"{mean:.1f}"
    write, suffix = _writer(mean, column)
    return write(mean) + suffix


def times_text(ratio: float | None) -> str:
    """A ratio with two decimals."""
    return DASH if ratio is None else f"{ratio:.2f}"


def change_text(change: float | None) -> str:
    """A difference in percent or points, with its sign."""
    if change is None:
        return DASH
    text = f"{change:+.2f}"
    return text[1:] if float(text) == 0.0 else text  # no signed zero


def interval_text(summary: Summary) -> str:
    """A Delta_m, from three seeds on with half of its 95 % interval."""
    half = half_interval(summary.values)
    text = change_text(summary.mean)
    return f"{text} ± {half:.2f}" if half else text


def seeds_text(row: Row) -> str:
    """The n of a row: `n=3`, or `1/2 seeds` where some are not done; their statuses stand beneath the table."""
    return f"n={row.n}" if row.is_complete else f"{row.n}/{len(row.statuses)} seeds"


def legend(table: Table, part: Part) -> str:
    """What the numbers of a part are; without a word on ± where no row has the seeds for one."""
    if part == "accuracy" and all(row.n < MIN_SEEDS for row in table.rows):
        return "n = 2: mean and both values" if any(row.n == 2 for row in table.rows) else "values of single runs"
    return _LEGENDS[part]


def row_title(table: Table, position: int) -> str:
    """The label of a row, with the mark of a red one."""
    label = table.rows[position].label
    return f"{RED} {label}" if position in table.audit.red else label


def floor_texts(table: Table, positions: Sequence[int]) -> list[str] | None:
    """The last line of the accuracy table, a cell for each column: what a constant prediction scores. None where no
    column has a floor.
    """
    floors = table.evidence.floors
    if not any(position in floors for position in positions):
        return None
    return [
        cell_text(Summary((0,), (floors[position],)), table.columns[position], 1) if position in floors else DASH
        for position in positions
    ]


def lines_beneath(table: Table) -> list[str]:
    """What stands beneath the numbers: failures, tests and ranks, notes, facts, audit."""
    return [*note_lines(table), *fact_lines(table), *audit_lines(table)]


def note_lines(table: Table) -> list[str]:
    """Failures, tests and ranks, notes."""
    failures = [f"{row.label}: {seeds_text(row)}: {'; '.join(row.failures)}" for row in table.rows if row.failures]
    return [*failures, *_test_lines(table), *table.notes]


def fact_lines(table: Table) -> Iterator[str]:
    """What each method reports about its result, a line a row; `list METHOD` says what the numbers are."""
    facts = [(position, column) for position, column in enumerate(table.columns) if column.part == "found"]
    for row in table.rows:
        known = [(column, row.cells[position]) for position, column in facts if row.cells[position].mean is not None]
        texts = [
            f"{column.name} {cell_text(cell, column, row.n)} {unit_text(column)}".strip() for column, cell in known
        ]
        if texts:
            yield f"{row.label} found: {', '.join(texts)}"


def _test_lines(table: Table) -> Iterator[str]:
    most = max((row.n for row in table.rows), default=0)
    if len(table.rows) < 2 or most < 2:
        return
    if most < MIN_SEEDS:
        yield _TWO_SEEDS
    elif not table.statistics:
        yield _NO_TESTS if not table.evidence.not_learnt else _NOT_LEARNT.format(", ".join(table.evidence.not_learnt))
    else:
        if table.reference is None:
            yield _NO_REFERENCE
        for position in table.headline:
            yield from _tests_of_column(table, position, table.statistics[position])
        yield _TEST_LEGEND


def _tests_of_column(table: Table, position: int, tests: ColumnStatistics) -> Iterator[str]:
    """The comparisons of a column with the reference, what they could have found, and the ranks."""
    column = table.columns[position]
    name = f"{column.group} {column.name.split(' (')[0]}".strip()
    decimals = _decimals(column.form, table.rows[min(tests.ranks)].cells[position].mean or 0.0, unit_text(column))
    against, compared = "the best row", []
    if tests.comparisons and table.reference is not None:
        against = table.rows[table.reference].label
        ordered = sorted(tests.comparisons.items(), key=lambda item: (tests.ranks[item[0]], item[0]))
        compared = [f"{table.rows[row].label} {_comparison(one, decimals)}" for row, one in ordered]
    found = None if tests.detectable is None else f"{tests.detectable:.{decimals}f} {unit_text(column)}".strip()
    shown = "; ".join([*([", ".join(compared)] if compared else []), f"detectable: {found or 'unknown'}"])
    yield f"{name} against {against} (n = {tests.n}, m = {tests.m}): {shown}"
    yield f"ranks by {name}: {_ranks(table, tests)}"


def _comparison(one: Comparison, decimals: int) -> str:
    difference = f"{one.mean:+.{decimals}f}"
    if float(difference) == 0.0:
        difference = difference[1:]  # no signed zero
    if one.flag is not None or one.adjusted is None:
        return f"{difference} ({one.flag}, no p)"
    p = _probability(one.adjusted)
    return f"{difference} (p {p if p.startswith('<') else f'= {p}'}{' *' if one.is_significant else ''})"


def _probability(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def _ranks(table: Table, tests: ColumnStatistics) -> str:
    by_rank: dict[int, list[str]] = {}
    for row, rank in sorted(tests.ranks.items()):
        by_rank.setdefault(rank, []).append(table.rows[row].label)
    if len(by_rank) == 1:
        return "none: no row differs significantly from the best mean"
    return "; ".join(f"{rank} {', '.join(labels)}" for rank, labels in sorted(by_rank.items()))


def audit_lines(table: Table) -> Iterator[str]:
    """Fields that are equal for all rows, and the findings."""
    if table.audit.equal:
        yield f"audit, equal for all rows ({table.audit.n_equal} fields): {', '.join(table.audit.equal)}"
    for finding in table.audit.findings:
        yield f"audit {finding_text(finding)}"


def finding_text(finding: Finding) -> str:
    """A finding with its mark: red rows are not ranked, amber is a footnote."""
    mark = f"{RED} (not ranked)" if finding.rule == "red" else AMBER
    return f"{mark} {finding.field}: {finding.text}"
