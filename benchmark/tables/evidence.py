"""Whether a table may be believed: was anything learnt, had training converged, and what a leaderboard still lacks.

Spec: evidence 1, 2 and 5. `benchmark.tables.table` makes the rows; nothing here names a method: the records declare
references, searches and their controls.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping, Sequence

from benchmark.records.evidence import Floor
from benchmark.records.record import Record
from benchmark.tables.audit import Audit
from benchmark.tables.columns import Column, loss_change_column
from benchmark.tables.rows import Row
from benchmark.tables.statistics import MIN_SEEDS, ColumnStatistics, compare

Floors = Mapping[str, Sequence[Floor]]  # {task: floor of each metric, its first metric first}

CONSTANT = "constant prediction"  # the last line of the accuracy table
LEAST_LEARNT = 0.5  # learnt below it: the table is not ranked
SATURATED = 99.0  # percent, on a metric whose ceiling is 100
LEAST_FALL = 2.0  # percent of the training loss that the last fifth of a training may still gain
LEAST_GAIN = 1.0  # points of Delta_m that twice the steps may gain
LEAST_SEEDS = 5  # of a leaderboard
NOT_A_LEADERBOARD = "not a leaderboard"
SPEED_OF_TRAINING = "this budget measures speed of training"
_STEPS_TOLERANCE = 0.05  # twice the steps, rounded


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a table holds when it is judged. groups: the records of each row. delta: position of Delta_m.

    floors: None where the folder holds none. statistics: by column.
    """

    tasks: Sequence[str]
    columns: Sequence[Column]
    rows: Sequence[Row]
    groups: Sequence[Sequence[Record]]
    audit: Audit
    ranked: Collection[int]
    statistics: Mapping[int, ColumnStatistics]
    delta: int
    floors: Floors | None


@dataclasses.dataclass(frozen=True)
class Evidence:
    """firsts: {task: column of its first metric}. floors: {column: score of the constant prediction}.

    learnt: {task: (single task - floor) / (best row - floor)}; None where no row beats the floor. banners, notes: what
    to say. missing: of a leaderboard, None if the table is not called one.
    """

    firsts: Mapping[str, int]
    floors: Mapping[int, float]
    learnt: Mapping[str, float | None]
    banners: tuple[str, ...]
    notes: tuple[str, ...]
    missing: tuple[str, ...] | None

    @property
    def not_learnt(self) -> list[str]:
        """Tasks that too little was learnt of; with one of them a table is not ranked."""
        return [task for task, share in self.learnt.items() if share is None or share < LEAST_LEARNT]


def judge(table: Contents, is_leaderboard: bool) -> Evidence:
    """The evidence of a table; is_leaderboard: whether its suite calls it one."""
    firsts = _first_metrics(table)
    floors = dict(_floors(table))
    learnt = dict(_learnt(table, firsts, floors))
    falls, gain = _still_falling(table), _gain_of_twice(table)
    evidence = Evidence(firsts, floors, learnt, (), (), None)
    banners = [*_learnt_banners(evidence, table), *_speed_banners(table, falls, gain)]
    notes = [*_learnt_notes(learnt), *_saturated(table, firsts), *_convergence_notes(table, falls, gain)]
    missing = None
    if is_leaderboard:
        missing = tuple(_missing(table, evidence, falls, gain))
        banners[:0] = [f"{NOT_A_LEADERBOARD}: {'; '.join(missing)}"] if missing else []
        notes += [] if missing else ["leaderboard: every check of its evidence passed"]
    notes += _against_controls(table)
    return dataclasses.replace(evidence, banners=tuple(banners), notes=tuple(notes), missing=missing)


# Floors


def _first_metrics(table: Contents) -> dict[str, int]:
    """{task: column of its first metric}: that of the floors, which keep the task's order, else that of the table."""
    found: dict[str, int] = {}
    for position, column in enumerate(table.columns):
        floors = (table.floors or {}).get(column.group, ())
        if column.group in table.tasks and (not floors or floors[0].metric == column.name):
            found.setdefault(column.group, position)
    return found


def _floors(table: Contents) -> Iterator[tuple[int, float]]:
    known = {(task, floor.metric): floor for task, found in (table.floors or {}).items() for floor in found}
    for position, column in enumerate(table.columns):
        floor = known.get((column.group, column.name))
        if floor is not None and floor.value is not None and floor.unit == column.unit:
            yield position, floor.value


def _learnt(
    table: Contents, firsts: Mapping[str, int], floors: Mapping[int, float]
) -> Iterator[tuple[str, float | None]]:
    """By the mean over seeds. The best row is one that may be ranked, or a single-task row; a task without a floor or
    without a single-task row is left out.
    """
    for task, position in firsts.items():
        means = {n: row.cells[position].mean for n, row in enumerate(table.rows)}
        single = [mean for n, mean in means.items() if table.rows[n].is_reference and mean is not None]
        if position not in floors or not single:
            continue
        sign = 1.0 if table.columns[position].higher_is_better else -1.0
        above = {n: sign * (mean - floors[position]) for n, mean in means.items() if mean is not None}
        rivals = [height for n, height in above.items() if n in table.ranked or table.rows[n].is_reference]
        ours = max(sign * (mean - floors[position]) for mean in single)
        yield task, ours / max(rivals) if max(rivals) > 0 else None


def _learnt_banners(evidence: Evidence, table: Contents) -> Iterator[str]:
    for task in evidence.not_learnt:
        share = evidence.learnt[task]
        if share is None:
            yield f"{task} was not learnt: no row beats the {CONSTANT}; nothing in this table is ranked"
        else:
            yield (
                f"{task} was hardly learnt: the single-task row is {100 * share:.0f} % of the way from the {CONSTANT} "
                f"to the best row, less than {100 * LEAST_LEARNT:.0f} %; nothing in this table is ranked"
            )


def _learnt_notes(learnt: Mapping[str, float | None]) -> Iterator[str]:
    if learnt:
        shares = ", ".join(f"{task} {'none' if share is None else f'{share:.2f}'}" for task, share in learnt.items())
        yield f"learnt, (single task - {CONSTANT}) / (best row - {CONSTANT}): {shares}"


def _saturated(table: Contents, firsts: Mapping[str, int]) -> Iterator[str]:
    for task, position in firsts.items():
        column = table.columns[position]
        means = [mean for row in table.rows if (mean := row.cells[position].mean) is not None]
        if column.unit == "percent" and column.higher_is_better and len(means) > 1 and min(means) > SATURATED:
            yield f"{task} is saturated: every row is above {SATURATED:g} {column.name}; it cannot tell methods apart"


# Convergence


@dataclasses.dataclass(frozen=True)
class _Falls:
    """How much the training losses of a reference row still change. changes: {task: percent}, the mean over seeds."""

    label: str
    changes: Mapping[str, float]

    @property
    def falling(self) -> list[str]:
        return [task for task, change in self.changes.items() if change < -LEAST_FALL]

    @property
    def still(self) -> bool:
        return 2 * len(self.falling) > len(self.changes)


@dataclasses.dataclass(frozen=True)
class _Gain:
    """What a reference row gains by twice the steps. mean: of Delta_m, paired over n seeds; limit: what it may gain."""

    label: str
    mean: float
    n: int
    limit: float

    @property
    def still(self) -> bool:
        return self.mean > self.limit


def _references(table: Contents) -> list[tuple[int, Record, int]]:
    """(row, its first done record, weight steps) of the rows of the comparison reference."""
    found = []
    for position, group in enumerate(table.groups):
        done = [record for record in group if record.status == "done"]
        if done and done[0].is_comparison_reference and isinstance(steps := done[0].cost.get("weight_steps"), int):
            found.append((position, done[0], steps))
    return found


def _base(table: Contents) -> int | None:
    """The reference row that trains for the budget; of several the one with default parameters."""
    found = [one for one in _references(table) if one[2] == one[1].cell["budget"]["steps"]]
    plain = [one for one in found if one[1].has_default_params] or found
    return plain[0][0] if plain else None


def _still_falling(table: Contents) -> _Falls | None:
    """Signal (a); None where the reference row has no losses of its last fifths."""
    base = _base(table)
    if base is None:
        return None
    means = {
        task: mean
        for task in table.tasks
        for position, column in enumerate(table.columns)
        if column == loss_change_column(task) and (mean := table.rows[base].cells[position].mean) is not None
    }
    return _Falls(table.rows[base].label, means) if means else None


def _gain_of_twice(table: Contents) -> _Gain | None:
    """Signal (b); None without a row that differs from the reference in one parameter and got twice its updates."""
    references, base = _references(table), _base(table)
    for position, record, steps in references:
        for _, first, budget in (one for one in references if one[0] == base):
            names = {*record.params, *first.params}
            n_other = sum(record.params.get(name) != first.params.get(name) for name in names)
            twice = abs(steps - 2 * budget) <= _STEPS_TOLERANCE * budget
            same = (record.method, record.balancing) == (first.method, first.balancing)
            if twice and same and n_other == 1 and base is not None:
                return _paired_gain(table, base, position)
    return None


def _paired_gain(table: Contents, base: int, longer: int) -> _Gain | None:
    before, after = (table.rows[n].cells[table.delta] for n in (base, longer))
    ours = dict(zip(before.seeds, before.values, strict=True))
    gains = [value - ours[seed] for seed, value in zip(after.seeds, after.values, strict=True) if seed in ours]
    if not gains:
        return None
    tests = table.statistics.get(table.delta)
    detectable = tests.detectable if tests is not None else None
    limit = max(LEAST_GAIN, detectable or 0.0)
    return _Gain(table.rows[longer].label, math.fsum(gains) / len(gains), len(gains), limit)


def _speed_banners(table: Contents, falls: _Falls | None, gain: _Gain | None) -> Iterator[str]:
    """A falling loss decides only where twice the steps are unknown: a rate that decays to nothing lets the training
    loss of every budget fall at its end, and a network that learns its images by heart lets it fall for ever.
    """
    reasons = []
    if gain is None and falls is not None and falls.still:
        texts = ", ".join(f"{task} {falls.changes[task]:+.1f} %" for task in falls.falling)
        reasons.append(f"the training loss of {falls.label} still falls in the last fifth of its steps ({texts})")
    if gain is not None and gain.still:
        reasons.append(f"{gain.label} gains {gain.mean:+.2f} points of Delta_m by twice the steps")
    if reasons:
        yield f"{SPEED_OF_TRAINING}: {'; '.join(reasons)}"


def _convergence_notes(table: Contents, falls: _Falls | None, gain: _Gain | None) -> Iterator[str]:
    if falls is not None:
        texts = ", ".join(f"{task} {change:+.1f} %" for task, change in falls.changes.items())
        yield f"convergence, training loss of {falls.label}, last fifth against the one before: {texts}"
    if gain is not None:
        yield (
            f"convergence, twice the steps: {gain.label} {gain.mean:+.2f} points of Delta_m, paired over {gain.n} "
            f"seeds; converged up to {gain.limit:.2f}"
        )


def _against_controls(table: Contents) -> Iterator[str]:
    """What the searches gain over random architectures, tested like everything else, in one line."""
    import numpy as np

    pairs = {
        search: (table.rows[search].cells[table.delta], table.rows[control].cells[table.delta])
        for search, control in table.audit.controls.items()
    }
    seeds = next((ours.seeds for ours, _ in pairs.values()), ())
    if len(seeds) < MIN_SEEDS or any(cell.seeds != seeds for pair in pairs.values() for cell in pair):
        return
    differences = np.array([np.subtract(ours.values, theirs.values) for ours, theirs in pairs.values()])
    found = compare(differences, np.zeros(len(seeds)))
    texts = []
    for search, one in zip(pairs, found, strict=True):
        p = one.flag if one.adjusted is None else f"p {'< 0.001' if one.adjusted < 0.001 else f'= {one.adjusted:.2g}'}"
        texts.append(f"{table.rows[search].short} {one.mean:+.2f} ({p}{' *' if one.is_significant else ''})")
    yield (
        f"searches against their random controls, points of Delta_m paired over {len(seeds)} seeds, Holm over "
        f"{sum(one.adjusted is not None for one in found)}: {', '.join(texts)}"
    )


# A leaderboard


def _missing(table: Contents, evidence: Evidence, falls: _Falls | None, gain: _Gain | None) -> Iterator[str]:
    """What a table lacks to be a leaderboard, in the order of evidence 5."""
    n_seeds = len(table.rows[0].statuses)
    if n_seeds < LEAST_SEEDS:
        yield f"{n_seeds} of at least {LEAST_SEEDS} seeds"
    if incomplete := [row.label for row in table.rows if not row.is_complete]:
        yield f"seeds that are not done ({', '.join(incomplete)})"
    done = [record for group in table.groups for record in group if record.status == "done"]
    trials = {record.audit.get("tuning_trials") for record in done}
    if len(trials) != 1 or not all(isinstance(n, int) and n > 1 for n in trials):
        yield "equal tuning: " + ("rows have different tuning trials" if len(trials) > 1 else "no row was tuned")
    if unknown := [task for task in table.tasks if task not in evidence.learnt]:
        why = "" if table.floors is not None else ", as the folder holds no floors"
        yield f"whether {', '.join(unknown)} was learnt is not known{why}"
    if evidence.not_learnt:
        yield f"tasks that are learnt ({', '.join(evidence.not_learnt)} is not)"
    if falls is None or gain is None:
        parts = [text for signal, text in ((falls, "training losses"), (gain, "twice the steps")) if signal is None]
        yield f"a check of convergence by the reference row ({' and '.join(parts)})"
    if gain is not None and gain.still:
        yield "convergence: the budget is too short"
    yield from table.audit.uncontrolled
    if red := sorted(set(table.ranked) & table.audit.red):
        yield f"no ranked row with a red difference ({', '.join(table.rows[n].label for n in red)})"
