"""Controls of searches: random architectures of equal size, the reference row at equal cost. Spec: measurement 4."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from benchmark.records.record import Record
from benchmark.tables.audit_fields import AuditedRow, Finding, cost_of

TOLERANCE = 0.05  # sizes and total costs that are equal for a control


def total_cost(row: AuditedRow) -> float:
    """Images of search and final training, the largest over seeds; a cost that is not recorded counts as 0."""
    return max((cost_of(record, "search") or 0.0) + (cost_of(record, "final") or 0.0) for record in row.records)


def searches(row: AuditedRow) -> bool:
    """Whether the method searched: it spent images before its final training, and not on a random draw."""
    return not _is_random(row) and any(cost_of(record, "search") for record in row.records)


def _is_random(row: AuditedRow) -> bool:
    return any(record.audit.get("random_architecture") is True for record in row.records)


def random_sizes(rows: Sequence[AuditedRow]) -> Iterator[Finding | str]:
    """4c: how far the size of a random architecture is from that of the search that it controls."""
    far: dict[AuditedRow, str] = {}
    for row in filter(_is_random, rows):
        found = [(_size_deviation(row, other), other.label) for other in _controlled(row, rows)]
        deviation, beside = min(found, default=(None, ""))
        if deviation is not None:
            text = f"{row.label} {100 * deviation:.1f} % from the size of {beside}"
            if deviation > TOLERANCE:
                far[row] = text
            else:
                yield text
    if far:
        yield Finding("random architecture", "amber", tuple(row.position for row in far), "; ".join(far.values()))


def _controlled(random: AuditedRow, rows: Sequence[AuditedRow]) -> list[AuditedRow]:
    """What a random architecture is drawn beside: its method's other rows, or else the searches of its space."""
    method = random.records[0].method
    same_method = [row for row in rows if row.records[0].method == method and not _is_random(row)]
    return same_method or [row for row in filter(searches, rows) if _space(row) == _space(random)]


def _size_deviation(row: AuditedRow, other: AuditedRow) -> float:
    """The largest relative difference in parameters and MACs over seeds; infinite if it is not known."""
    theirs = {record.seed: _sizes(record) for record in other.records}
    deviations = []
    for record in row.records:
        pairs = zip(_sizes(record), theirs.get(record.seed, (None, None)), strict=True)
        for ours, target in pairs:
            deviations.append(math.inf if ours is None or not target else abs(ours - target) / target)
    return max(deviations)


def _sizes(record: Record) -> tuple[float | None, float | None]:
    """Parameters in total, and macs_joint; macs_sum if tasks have their own images."""
    joint = record.compute.get("macs_joint")
    return record.size.get("total"), record.compute.get("macs_sum") if joint is None else joint


def missing_controls(rows: Sequence[AuditedRow]) -> Iterator[str]:
    """4c, 4d: two controls: the reference with the same total budget, and of a search a random architecture."""
    reference = _missing_reference(rows)
    missed: dict[tuple[str, str], list[str]] = {}
    for row in filter(searches, rows):
        if _space(row) == "":
            what, missing = "cost before the final training", reference
        else:
            drawn = bool(_drawn_from_space(row, rows))
            what, missing = "search", reference if drawn else [*reference, "a random architecture"]
        if missing:
            missed.setdefault((what, " and ".join(missing)), []).append(row.label)
    for (what, text), names in missed.items():
        yield f"no equal-cost control for the {what} of {', '.join(names)}: missing {text}"


def _missing_reference(rows: Sequence[AuditedRow]) -> list[str]:
    """4d: the reference row at the largest total budget of a search, in words if it is missing."""
    longest = max((total_cost(row) for row in rows if searches(row)), default=0.0)
    references = [total_cost(row) for row in rows if row.is_comparison_reference]
    if max(references, default=0.0) >= (1 - TOLERANCE) * longest:
        return []
    times = f" ({longest / min(references):.1f} times its steps)" if references and min(references) > 0 else ""
    return [f"the reference row at the largest total budget{times}"]


def _space(row: AuditedRow) -> str:
    """What the method chooses its architectures from, empty for none; a record that does not say may choose."""
    return row.records[0].audit.get("search_space", "unknown")


def _drawn_from_space(search: AuditedRow, rows: Sequence[AuditedRow]) -> list[AuditedRow]:
    """The random architectures from the space of a search."""
    return [row for row in rows if _space(search) and _is_random(row) and _space(row) == _space(search)]


def controls(rows: Sequence[AuditedRow]) -> Iterator[tuple[int, int]]:
    """(search, its control): the one nearest in size, of its own method where there is one."""
    for row in filter(searches, rows):
        found = _drawn_from_space(row, rows)
        if near := [one for one in found if one.records[0].method == row.records[0].method] or found:
            yield row.position, min(near, key=lambda other: _size_deviation(other, row)).position


def uncontrolled(rows: Sequence[AuditedRow]) -> Iterator[str]:
    """What a leaderboard needs beside its searches: a random control of equal size for each, and the reference row."""
    for row in filter(searches, rows):
        near = any(_size_deviation(other, row) <= TOLERANCE for other in _drawn_from_space(row, rows))
        if row.records[0].audit.get("search_space") and not near:
            yield f"a random control of equal size for {row.label}"
    yield from _missing_reference(rows)
