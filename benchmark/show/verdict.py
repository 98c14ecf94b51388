"""The verdict of a table in at most three sentences: who leads and by how much of a detectable effect, what cannot be
told apart from it, and what is not ranked and why. Spec: evidence 6.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from benchmark.show.wording import change_text, seeds_text
from benchmark.tables.evidence import SPEED_OF_TRAINING
from benchmark.tables.statistics import MIN_SEEDS, ColumnStatistics
from benchmark.tables.table import RED_ALLOWED, TRIALS, Table

MOST_NAMES = 5  # of a list in a sentence


def order_of(table: Table) -> list[int]:
    """Positions of the rows: those with ranks by Delta_m, best first, then the others in the order of the table."""
    tests = table.statistics.get(table.delta)
    ranked = [] if tests is None else sorted(tests.ranks, key=lambda n: -_delta(table, n))
    return [*ranked, *(n for n in range(len(table.rows)) if n not in ranked)]


def verdict(table: Table) -> Iterator[str]:
    """The sentences. A table without ranks by Delta_m says why in one."""
    tests = table.statistics.get(table.delta)
    if tests is None:
        yield f"Nothing is ranked by Delta_m: {_why_nothing(table)}."
        return
    ranked = order_of(table)[: len(tests.ranks)]
    yield _leader(table, tests, ranked)
    yield _tied(table, tests, ranked)
    unranked = [n for n in range(len(table.rows)) if n not in tests.ranks]
    if unranked:
        yield f"Not ranked: {_reasons(table, unranked)}."


def _delta(table: Table, row: int) -> float:
    return table.rows[row].cells[table.delta].mean or 0.0


def _why_nothing(table: Table) -> str:
    if table.evidence.not_learnt:
        return f"too little was learnt of {_listed(table.evidence.not_learnt)}"
    for banner, why in ((TRIALS, "these are trials of a tuning"), (RED_ALLOWED, "red differences are allowed")):
        if banner in table.banners:
            return why
    most = max((row.n for row in table.rows), default=0)
    if len(table.rows) < 2:
        return "it is one row"
    if most < MIN_SEEDS:
        return f"{most} of the {MIN_SEEDS} seeds that tests begin at"
    if all(row.cells[table.delta].mean is None for row in table.rows):
        return "no row has a Delta_m"
    unranked = [n for n in range(len(table.rows)) if n not in table.ranked]
    return _reasons(table, unranked) if unranked else "fewer than two rows have it at every seed"


def _leader(table: Table, tests: ColumnStatistics, ranked: Sequence[int]) -> str:
    first, second = ranked[:2]
    reference = table.reference
    base = second if reference is None or reference == first or reference not in tests.ranks else reference
    lead = _delta(table, first) - _delta(table, base)
    what = "the row that all are tested against" if base == reference else "the next"
    text = f"{table.names[first]} leads with Delta_m {change_text(_delta(table, first))} %, "
    text += f"{lead:.2f} points over {table.names[base]}, {what}"
    if tests.detectable:
        text += f": {lead / tests.detectable:.1f} x the detectable effect of {tests.detectable:.2f}"
    if any(banner.startswith(SPEED_OF_TRAINING) for banner in table.banners):
        return f"At this budget, which measures speed of training, {text}."
    return f"{text}."


def _tied(table: Table, tests: ColumnStatistics, ranked: Sequence[int]) -> str:
    tied = [table.names[n] for n in ranked[1:] if tests.ranks[n] == 1]
    if not tied:
        return "It differs significantly from every other row."
    if len(tied) == len(ranked) - 1:
        return "No other row can be told apart from it."
    return f"Cannot be told apart from it: {_listed(tied)}."


def _reasons(table: Table, rows: Sequence[int]) -> str:
    """The rows by what keeps them from being ranked: seeds that are missing, else the fields of red findings."""
    names: dict[str, list[str]] = defaultdict(list)
    for n in rows:
        row = table.rows[n]
        fields = [found.field for found in table.audit.findings if found.rule == "red" and n in found.rows]
        reason = seeds_text(row) if not row.is_complete else ", ".join(fields) or "no Delta_m at some seed"
        names[reason].append(table.names[n])
    return "; ".join(f"{_listed(found)} ({reason})" for reason, found in names.items())


def _listed(names: Sequence[str]) -> str:
    more = [f"and {len(names) - MOST_NAMES} more"] if len(names) > MOST_NAMES else []
    return ", ".join([*names[:MOST_NAMES], *more])
