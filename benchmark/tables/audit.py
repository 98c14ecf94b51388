"""Fairness audit: what the rows of a table hold equal, what they do not, and which may not be ranked. Spec: measurement
6 and the equal-budget rules of 4.

Red rows are not ranked; amber is a footnote. When rows differ, those that deviate from the majority are flagged. Three
rows with two seeds each may hold for one field:

    row   seed 0   seed 1
    a     5        5
    b     5        5
    c     5        7

What is flagged depends on the scope of the field (`audit_fields`):

- `rows` (most fields): the different values of each row are [5], [5] and [5, 7]. The majority of the rows that have one
  value holds 5, and c deviates: "5; c: 5 and 7".
- `rows at one seed` (initial weights, which depend on the seed): the majority is taken at each seed apart. c deviates
  at seed 1: "as the others; c: 7 at seed 1".
- `seeds of a row` (code of the method): rows may differ. c is flagged because its own seeds disagree: "c: 5 and 7".

If two values are equally frequent, the comparison reference decides what is usual, then the single-task reference;
without either every row is flagged. A field that a record does not hold is unknown, which differs from every value; a
field that no record holds is listed as unknown for all rows.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping, Sequence

from benchmark.records.documents import Reference, stayed
from benchmark.records.keys import canonical_json
from benchmark.records.record import Record
from benchmark.tables.audit_fields import FIELDS, OF_MACHINE, UNKNOWN, AuditedRow, Field, Finding, Rule
from benchmark.tables.controls import (
    TOLERANCE,
    controls,
    missing_controls,
    random_sizes,
    searches,
    total_cost,
    uncontrolled,
)

_MAX_TEXT = 72  # characters of a value in a footnote
_HASH = re.compile(r"[0-9a-f]{16,}")


@dataclasses.dataclass(frozen=True)
class Audit:
    """equal: fields that all rows hold equal, by name or group, some with their value; n_equal: number of fields.

    banners: what is missing for the table as a whole. uncontrolled: the controls that its searches lack, in words.
    controls: {search: its random control}, both by position.
    """

    equal: tuple[str, ...]
    n_equal: int
    findings: tuple[Finding, ...]
    banners: tuple[str, ...]
    uncontrolled: tuple[str, ...] = ()
    controls: Mapping[int, int] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def red(self) -> frozenset[int]:
        """Rows with a red finding."""
        return frozenset(row for finding in self.findings if finding.rule == "red" for row in finding.rows)


def audit_rows(labels: Sequence[str], groups: Sequence[Sequence[Record]], is_leaderboard: bool = False) -> Audit:
    """The audit of one table. groups: the records of each row, done or not, in the order of seeds. is_leaderboard: a
    search that did not leave its start is red.

    Findings name rows by their position in `groups`. Rows without a done record hold nothing to compare.
    """
    rows = []
    for position, (label, group) in enumerate(zip(labels, groups, strict=True)):
        done = [record for record in group if record.status == "done"]
        if done:
            rows.append(AuditedRow(position, label, done, [record.seed for record in group]))
    if not rows:
        return Audit((), 0, (), ())
    equal: dict[str, str] = {}
    findings: list[Finding] = []
    unknown: dict[Rule, list[str]] = {"red": [], "amber": []}
    for field in FIELDS:
        values = _values(field, rows)
        if all(value is UNKNOWN for found in values for value in found):
            unknown[field.rule].append(field.name)
        elif (finding := _compared(field, rows, values)) is not None:
            findings.append(finding)
        else:
            equal[field.name] = f"{field.name} {_text(values[0][0])}" if field.shows_value else field.name
    still = functools.partial(_still_searches, rule="red" if is_leaderboard else "amber")
    specials = (_weight_steps, _seeds, _selected_on_report, _tuned_on_report, _developed_here, random_sizes, still)
    for special in specials:
        for found in special(rows):
            if isinstance(found, Finding):
                findings.append(found)
            else:
                equal[found] = found
    everywhere = tuple(row.position for row in rows)
    findings += [
        Finding("unknown for all rows", rule, everywhere, ", ".join(names)) for rule, names in unknown.items() if names
    ]
    findings.sort(key=lambda finding: finding.rule != "red")
    banners = (*_other_machines(findings, labels), *missing_controls(rows))
    return Audit(
        tuple(_grouped(equal)), len(equal), tuple(findings), banners, tuple(uncontrolled(rows)), dict(controls(rows))
    )


def _other_machines(findings: Sequence[Finding], labels: Sequence[str]) -> Iterator[str]:
    """Rows that were trained by other code, on another machine or with other versions, or not tuned as the others."""
    told = {field.name for field in FIELDS if field.group == OF_MACHINE} | {"tuning trials"}
    fields: dict[int, list[str]] = {}
    for finding in findings:
        for row in finding.rows if finding.rule == "amber" and finding.field in told else ():
            fields.setdefault(row, []).append(finding.field)
    rows: dict[str, list[str]] = {}
    for row, names in sorted(fields.items()):
        rows.setdefault(", ".join(names), []).append(labels[row])
    for what, where in rows.items():
        yield f"other {what} than most rows have: {', '.join(where)}; differences may be due to that"


def _grouped(equal: Mapping[str, str]) -> list[str]:
    """The texts of equal fields, each once; the name of the group stands for its fields if all of them are equal."""
    broken = {field.group for field in FIELDS if field.name not in equal}
    group_of = {field.name: field.group for field in FIELDS}
    shown = [text if (group := group_of.get(name, "")) in broken else group or text for name, text in equal.items()]
    return list(dict.fromkeys(shown))


def _values(field: Field, rows: Sequence[AuditedRow]) -> list[list[object]]:
    """The different values of each row, in the order of seeds; more than one if its seeds disagree."""
    if field.scope == "rows at one seed":
        return _values_at_one_seed(field, rows)
    return [_distinct([field.read(record) for record in row.records]) for row in rows]


def _values_at_one_seed(field: Field, rows: Sequence[AuditedRow]) -> list[list[object]]:
    """For each row the value of its first seed that deviates from the majority at that seed, else `as the others`."""
    by_seed: dict[int, dict[int, object]] = {}
    for number, row in enumerate(rows):
        for record in row.records:
            by_seed.setdefault(record.seed, {})[number] = field.read(record)
    result: list[list[object]] = [["as the others"] for _ in rows]
    for seed, found in sorted(by_seed.items(), reverse=True):
        majority = _majority([rows[number] for number in found], [[value] for value in found.values()])
        for number, value in found.items():
            if [value] != majority:
                result[number] = [value if value is UNKNOWN else f"{_text(value)} at seed {seed}"]
    return result


def _distinct(values: Sequence[object]) -> list[object]:
    """The values without repetition; they are JSON values, which need not be hashable."""
    result: list[object] = []
    for value in values:
        if value not in result:
            result.append(value)
    return result


def _compared(field: Field, rows: Sequence[AuditedRow], values: Sequence[list[object]]) -> Finding | None:
    """The rows that deviate, with their values; None if all agree."""
    majority: list[object] = []
    if field.scope == "seeds of a row":
        marked = [number for number, found in enumerate(values) if not _is_settled(found)]
    else:
        majority = _majority(rows, values)
        marked = [number for number, found in enumerate(values) if found != majority]
    if not marked:
        return None
    labels: dict[str, list[str]] = {}
    for number in marked:
        labels.setdefault(" and ".join(map(_text, values[number])), []).append(rows[number].label)
    parts = [_text(value) for value in majority]
    parts += [f"{', '.join(names)}: {text}" for text, names in labels.items()]
    return Finding(field.name, field.rule, tuple(rows[number].position for number in marked), "; ".join(parts))


def _is_settled(values: Sequence[object]) -> bool:
    return len(values) == 1 and values[0] is not UNKNOWN


def _majority(rows: Sequence[AuditedRow], values: Sequence[list[object]]) -> list[object]:
    """The value of most rows, as a list of one; between equally frequent ones that of the comparison reference, then
    that of the single-task reference. Empty if neither decides: then every row deviates.
    """
    settled = [(row, found[0]) for row, found in zip(rows, values, strict=True) if _is_settled(found)]
    candidates = _distinct([value for _, value in settled])
    counts = [sum(value == candidate for _, value in settled) for candidate in candidates]
    most = [candidate for candidate, count in zip(candidates, counts, strict=True) if count == max(counts)]
    if len(most) == 1:
        return most
    order: tuple[Reference, ...] = ("shared", "single_task")
    for reference in order:
        for row, value in settled:
            if row.reference == reference and value in most:
                return [value]
    return []


def _text(value: object) -> str:
    """A value in a footnote: short hashes, `a=1 b=2` for objects, commas in lists."""
    if value is UNKNOWN:
        return "unknown"
    text = _plain(value)
    return text if len(text) <= _MAX_TEXT else f"{text[: _MAX_TEXT - 1]}…"


def _plain(value: object) -> str:
    if isinstance(value, str):
        return value[:8] if _HASH.fullmatch(value) else value
    if isinstance(value, Mapping):
        return " ".join(f"{name}={_plain(item)}" for name, item in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_plain, value)) or "none"
    return canonical_json(value).decode()


# Rules that look at more than one value


def _weight_steps(rows: Sequence[AuditedRow]) -> Iterator[Finding | str]:
    """4a: a row whose weights got more updates than the budget needs a comparable row with as many."""
    budget = rows[0].records[0].cell["budget"]["steps"]
    marked: dict[Rule, dict[AuditedRow, str]] = {"red": {}, "amber": {}}
    for row in rows:
        found = _distinct([record.cost.get("weight_steps") for record in row.records])
        steps = found[0]
        if len(found) > 1 or not isinstance(steps, int):
            marked["red"][row] = " and ".join(_text(UNKNOWN if value is None else value) for value in found)
        elif steps < budget:
            marked["red"][row] = f"{steps} (fewer than the budget)"
        elif steps > budget:
            companion = _companion(row, steps, rows)
            if companion is not None:
                marked["amber"][row] = f"{steps} ({companion})"
            elif row.is_comparison_reference:
                marked["red"][row] = f"{steps} (longer than any search with its final training)"
            else:
                marked["red"][row] = f"{steps} (no reinit twin, no reference row with as many)"
    if not any(marked.values()):
        yield f"weight_steps {budget}"
    for rule, words in marked.items():
        if words:
            text = "; ".join([_text(budget), *(f"{row.label}: {word}" for row, word in words.items())])
            yield Finding("weight_steps", rule, tuple(row.position for row in words), text)


def _companion(row: AuditedRow, steps: int, rows: Sequence[AuditedRow]) -> str | None:
    """What makes a row with more updates comparable, in words; None if nothing does."""
    others = [other for other in rows if other is not row]
    for other in others:
        if _is_reinit_twin(row.records[0], other.records[0]):
            return f"beside its reinit twin {other.label}"
    for other in others:
        equal = all(record.cost.get("weight_steps") == steps for record in other.records)
        if equal and (row.is_comparison_reference or other.is_comparison_reference):
            return f"as many as {other.label}"
    longest = max((total_cost(other) for other in others if searches(other)), default=0.0)
    if row.is_comparison_reference and total_cost(row) <= (1 + TOLERANCE) * longest:
        return "a control: no more than the longest search with its final training"
    return None


def _is_reinit_twin(record: Record, other: Record) -> bool:
    """Whether `other` is the same method with the same parameters and loss balancing, restarted from the initial
    weights.
    """
    if (record.balancing, record.method) != (other.balancing, other.method) or other.params.get("reinit") is not True:
        return False
    return {**record.untuned_params, "reinit": True} == other.untuned_params


def _seeds(rows: Sequence[AuditedRow]) -> Iterator[Finding | str]:
    """Rows that were tried at other seeds than the majority; a seed that failed counts as tried."""
    field = Field("seeds", "red", lambda record: record.seed)
    finding = _compared(field, rows, [[list(row.seeds)] for row in rows])
    yield f"seeds {_text(rows[0].seeds)}" if finding is None else finding


def _selected_on_report(rows: Sequence[AuditedRow]) -> Iterator[Finding]:
    """Checkpoints chosen on the report role: red even if all rows did it."""
    marked = [row for row in rows if any(record.selects_on_test for record in row.records)]
    if marked:
        names = ", ".join(row.label for row in marked)
        yield Finding("selected on", "red", tuple(row.position for row in marked), f"the report role: {names}")


def _tuned_on_report(rows: Sequence[AuditedRow]) -> Iterator[Finding]:
    """Rows that report the seed at which their settings were chosen."""
    marked = [row for row in rows if any(record.value_at("cell.tuned.seed") == record.seed for record in row.records)]
    if marked:
        names = ", ".join(row.label for row in marked)
        yield Finding("tuned on", "red", tuple(row.position for row in marked), f"a seed that is reported: {names}")


def _developed_here(rows: Sequence[AuditedRow]) -> Iterator[Finding]:
    """4b: rows whose defaults were chosen on this data set, and rows whose records do not say."""
    values = [_distinct([record.audit.get("developed_here", UNKNOWN) for record in row.records]) for row in rows]
    marked = [number for number, found in enumerate(values) if found != [False]]
    if marked:
        names = [rows[number].label + ("" if True in values[number] else " (unknown)") for number in marked]
        yield Finding("developed here", "amber", tuple(rows[n].position for n in marked), ", ".join(names))


def _still_searches(rows: Sequence[AuditedRow], rule: Rule) -> Iterator[Finding]:
    """Searches that did not leave their start in some seed: no baselines of what the method finds."""
    marked: dict[AuditedRow, str] = {}
    for row in rows:
        changes = [
            (change, what) for record in row.records for what, change in record.audit.get("search_moved", {}).items()
        ]
        found = [(change["largest"], what) for change, what in changes if stayed(change)]
        if found:
            largest, what = min(found, key=lambda pair: (pair[0] is not None, pair[0]))
            marked[row] = (
                f"{row.label}: {what} by {'no finite number' if largest is None else f'{largest:.2g} at most'}"
            )
    if marked:
        yield Finding("search did not move", rule, tuple(row.position for row in marked), "; ".join(marked.values()))
