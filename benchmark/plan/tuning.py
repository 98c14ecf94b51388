"""Equal tuning: the rows of a suite, the settings that are tried for each, and the choice among them.

Every row has the same number of trials at the suite's full budget, at a seed that no table reports, judged on select.
Its space is the learning rate x 1/3, 1, 3 of the recipe's, and what its method marks as `Tuned` and the suite does not
set itself. The first trial is the row as the suite has it. The others go round the factors of the learning rate; their
parameters are points of a scrambled Sobol sequence, which Optuna draws from a seed made of names. Points at which a
search cannot leave its start are passed over: what is tuned then is not the method. None depends on a score, so all
trials of a row can be trained at once and a killed tuning proposes the same again. If the learning rate is all there
is, the rest of the grid is tried. Source: evidence 4; the number of trials is AlgoPerf's.

The control of a search has no trials of its own. It draws an architecture of the size that its search finds and trains
it alike (measurement 4c), so it takes what was chosen for its search: under other settings it would have another size.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from benchmark.plan.cells import PlannedCell, method_params, notes_on, resolve
from benchmark.plan.suite import Cell, MethodSettings, Suite, TuningSettings
from benchmark.plan.tuned_page import LR_FACTOR, Setting, Tried, TunedRow, TunedTable, row_hash
from benchmark.records.delta import delta_m, delta_task
from benchmark.records.documents import MetricEntry
from benchmark.records.record import Record
from datasets.errors import UsageError
from methods.operating import StuckNote
from methods.parameters import Tuned
from methods.registry import get_method

if TYPE_CHECKING:
    import optuna

TUNING_SEED = 1000  # of every trial; no suite reports it
TRIALS = 5
LR_FACTORS = (1 / 3, 1.0, 3.0)
_ROUND = (1 / 3, 3.0, 1.0)  # in the order of trials after the first, which has 1
DELTA_M = "delta_m"
_EDGE = 0.1  # part of a range at either end
_DIGITS = 3  # of a drawn value: what a reader can copy
_DRAWS = 1_000  # until a space counts as exhausted

Metrics = Mapping[str, Mapping[str, MetricEntry]]
Records = Mapping[str, Record]  # {key: record}
Notes = Callable[[PlannedCell, dict[str, Any]], tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class TunableRow:
    """A row and the settings to try. cell: the row as the suite has it, at `TUNING_SEED`. space: of the parameters.

    settings: all that are tried, the suite's own first, without repetition. search: of a control, the row whose
    settings it takes; it tries none.
    """

    cell: PlannedCell
    trials: int
    space: Mapping[str, Tuned]
    settings: tuple[Setting, ...]
    search: PlannedCell | None = None

    @classmethod
    def of(cls, cell: PlannedCell, trials: int, notes: Notes, search: PlannedCell | None = None) -> TunableRow:
        """The row of a planned cell. notes: what its method notes under other parameters. Raises UsageError where
        Optuna is needed and is not installed.
        """
        given = cell.settings.method.params
        marked = get_method(cell.settings.method.name).Params.tuned()
        space = {name: mark for name, mark in marked.items() if name not in given}
        if search is not None:
            return cls(cell, trials, space, (), search)
        params = cell.document["method"]["params"]
        first: dict[str, float | None] = {LR_FACTOR: 1.0}
        for name in space:
            value = params[name]
            first[name] = float(value) if isinstance(value, (int, float)) else None

        def moves(drawn: Mapping[str, float]) -> bool:
            return not any(isinstance(note, StuckNote) for note in notes(cell, {**given, **drawn}))

        return cls(cell, trials, space, (first, *_others(space, first, trials - 1, _seed_of(cell), moves)))

    def trial(self, setting: Setting, single_task: Mapping[str, float]) -> PlannedCell:
        """The cell that tries a setting. single_task: {task: factor} of the networks of one task."""
        cell, first = self.cell.settings, self.settings[0]
        changed = {name: setting[name] for name in self.space if setting[name] != first[name]}
        factor = setting[LR_FACTOR]
        tuning = TuningSettings(
            seed=cell.seed,
            single_task=dict(single_task),
            lr_factor=1.0 if factor is None or self.cell.is_reference else factor,
            chosen=dict(setting),
        )
        method = MethodSettings(name=cell.method.name, params={**cell.method.params, **changed})
        return resolve(Cell(**{**dict(cell), "method": method, "part": "tune", "tuning": tuning}))

    def edges(self, chosen: Setting) -> list[str]:
        """What was chosen within a tenth of an end of its range, or at the least or largest learning rate."""
        found = [LR_FACTOR] if chosen[LR_FACTOR] in (LR_FACTORS[0], LR_FACTORS[-1]) else []
        for name, mark in self.space.items():
            value = chosen[name]
            if value is not None and not _EDGE <= _place(mark, value) <= 1 - _EDGE:
                found.append(name)
        return found


@dataclasses.dataclass(frozen=True)
class TuningTable:
    """The rows of one table. reference: the single-task networks, whose rates are chosen first, task by task."""

    key: str
    reference: TunableRow
    rows: tuple[TunableRow, ...]

    @property
    def tasks(self) -> list[str]:
        """The tasks of the table."""
        return self.reference.cell.document["data"]["tasks"]

    def reference_trials(self) -> list[PlannedCell]:
        """The trials of the single-task networks: each trains those of all tasks at one learning rate."""
        factors = [setting[LR_FACTOR] or 1.0 for setting in self.reference.settings]
        return [
            self.reference.trial(setting, dict.fromkeys(self.tasks, factor))
            for setting, factor in zip(self.reference.settings, factors, strict=True)
        ]

    def tuned_reference(self, records: Records) -> tuple[TunedRow, Metrics]:
        """The choice for every task, and the metrics of the chosen networks on select. records: of all trials.

        Raises UsageError for a task that no trial has a score of.
        """
        row, cells = self.reference, self.reference_trials()
        made = [records[cell.key] for cell in cells]
        scores = {task: _gains(made, task) for task in self.tasks}
        best = {task: _best(found) for task, found in scores.items()}
        if missing := [task for task, found in best.items() if found is None]:
            raise UsageError(
                f"{row.cell.title}: no trial has a score of {', '.join(missing)}, so no row can be judged."
            )
        at = {task: found for task, found in best.items() if found is not None}
        chosen = {task: row.settings[n][LR_FACTOR] for task, n in at.items()}
        edges = [task for task, factor in chosen.items() if factor in (LR_FACTORS[0], LR_FACTORS[-1])]
        by_trial = [{task: found[n] for task, found in scores.items()} for n in range(len(cells))]
        tuned = _tuned(row, cells, made, by_trial, chosen, edges)
        return tuned, {task: made[n].select_metrics[task] for task, n in at.items()}

    def trials(self, single_task: Mapping[str, float]) -> dict[str, list[PlannedCell]]:
        """{row hash: trials} of all other rows."""
        return {
            row_hash(row.cell.document): [row.trial(setting, single_task) for setting in row.settings]
            for row in self.rows
        }

    def tuned_rows(
        self, trials: Mapping[str, Sequence[PlannedCell]], records: Records, baseline: Metrics
    ) -> Iterator[TunedRow]:
        """The choice for every other row, in their order. Raises UsageError for a row that no trial has a score of."""
        chosen = {
            row_hash(row.cell.document): self._tuned_row(row, trials, records, baseline)
            for row in self.rows
            if row.search is None
        }
        for row in self.rows:
            if row.search is None:
                yield chosen[row_hash(row.cell.document)]
            else:
                yield _as_its_search(row, chosen[row_hash(row.search.document)])

    def _tuned_row(
        self, row: TunableRow, trials: Mapping[str, Sequence[PlannedCell]], records: Records, baseline: Metrics
    ) -> TunedRow:
        cells = trials[row_hash(row.cell.document)]
        made = [records[cell.key] for cell in cells]
        scores = [score_of(record, baseline, self.tasks) for record in made]
        best = _best(scores)
        if best is None:
            raise UsageError(f"{row.cell.title}: no trial has a score; leave the row out (--methods).")
        chosen = row.settings[best]
        return _tuned(row, cells, made, [{DELTA_M: score} for score in scores], chosen, row.edges(chosen))

    def page(self, reference: TunedRow, rows: Sequence[TunedRow]) -> TunedTable:
        """What a page says of the table."""
        cell = self.reference.cell.settings
        return TunedTable(
            table=self.key,
            data=cell.data.dataset,
            backbone=cell.backbone.name,
            steps=cell.budget.steps,
            single_task=reference,
            rows=tuple(rows),
        )


def suite_of_trials(suite: Suite) -> Suite:
    """The suite at the seed of the tuning, with the settings that it has without a tuned page.

    Raises UsageError for a suite that reports that seed, and for one that chooses on test images.
    """
    if TUNING_SEED in suite.seeds:
        raise UsageError(
            f"Suite {suite.name!r} reports seed {TUNING_SEED}, which is that of every tuning; expected other seeds "
            f"than {', '.join(map(str, suite.seeds))}."
        )
    if suite.selection.select_on == "test":
        raise UsageError(f"Suite {suite.name!r} has selection.select_on: test; a tuning never chooses on test images.")
    return suite.model_copy(update={"seeds": (TUNING_SEED,), "tuned": None})


def tables_of(cells: Sequence[PlannedCell], trials: int) -> list[TuningTable]:
    """The rows to tune, by table, in the order of the plan. cells: of `suite_of_trials`.

    Raises UsageError for a table without exactly one row of single-task networks.
    """
    groups: dict[str, list[PlannedCell]] = defaultdict(list)
    for cell in cells:
        groups[cell.table_key].append(cell)
    tables = []
    for key, group in groups.items():
        references = [cell for cell in group if cell.is_reference]
        if len(references) != 1:
            where = f"{group[0].settings.data.dataset} on {group[0].settings.backbone.name}"
            raise UsageError(
                f"Tuning judges rows by their gain over the single-task networks; expected one row of these on "
                f"{where}, not {len(references)}. Name their method among the suite's methods, and in --methods."
            )
        notes = notes_on(references[0])
        rows = [TunableRow.of(cell, trials, notes, _search_of(cell, group)) for cell in group if not cell.is_reference]
        tables.append(TuningTable(key, TunableRow.of(references[0], trials, notes), tuple(rows)))
    return tables


def _search_of(cell: PlannedCell, rows: Sequence[PlannedCell]) -> PlannedCell | None:
    """Of a row that draws its architecture, the row of its method that searches and differs from it least; None where
    there is none, or several differ as little.
    """
    if not _is_random(cell):
        return None
    searches = [
        other
        for other in rows
        if other.settings.method.name == cell.settings.method.name
        and other.settings.recipe.balancing == cell.settings.recipe.balancing
        and not _is_random(other)
    ]
    ours = _flat(cell.document["method"]["params"])
    distances = [len(ours ^ _flat(other.document["method"]["params"])) for other in searches]
    nearest = [other for other, n in zip(searches, distances, strict=True) if n == min(distances)]
    return nearest[0] if len(nearest) == 1 else None


def _is_random(cell: PlannedCell) -> bool:
    method = get_method(cell.settings.method.name)
    return method(method_params(method, cell.settings.method.name, cell.settings.method.params)).is_random_architecture


def _flat(params: Mapping[str, object], place: str = "") -> frozenset[tuple[str, str]]:
    """{(name, value as text)} of nested parameters."""
    found: set[tuple[str, str]] = set()
    for name, value in params.items():
        found |= _flat(value, f"{place}{name}.") if isinstance(value, Mapping) else {(place + name, repr(value))}
    return frozenset(found)


def has_ended(record: Record) -> bool:
    """Whether a trial is over: a learning rate at which a row diverges is an answer too."""
    return record.status in ("done", "diverged")


def score_of(record: Record, baseline: Metrics, tasks: Sequence[str]) -> float | None:
    """Mean relative gain of a trial over the tuned single-task networks on select, percent; None if it has none."""
    return delta_m(record.select_metrics, baseline, tasks).value if record.status == "done" else None


def proposals(
    space: Mapping[str, Tuned], count: int, seed: int, is_wanted: Callable[[Mapping[str, float]], bool]
) -> Iterator[dict[str, float]]:
    """Those of `count` points of a scrambled Sobol sequence over the parameters, as Optuna draws them, that are wanted;
    the learning rate goes round its factors, the outer ones first, so that few trials try all.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = distributions_of(space)
    del distributions[LR_FACTOR]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(sampler=optuna.samplers.QMCSampler(scramble=True, seed=seed))
        # The sampler takes its space from a trial that has ended.
        known = {name: mark.low for name, mark in space.items()}
        study.add_trial(optuna.create_trial(params=known, distributions=distributions, value=0.0))
        factors = itertools.cycle(_ROUND)
        for _ in range(count):
            drawn = study.ask(distributions).params
            point = {name: float(f"{value:.{_DIGITS}g}") for name, value in drawn.items()}
            if is_wanted(point):
                yield {LR_FACTOR: next(factors), **point}


def distributions_of(space: Mapping[str, Tuned]) -> dict[str, optuna.distributions.BaseDistribution]:
    """The space as Optuna has it."""
    import optuna

    return {
        LR_FACTOR: optuna.distributions.CategoricalDistribution(LR_FACTORS),
        **{
            name: optuna.distributions.FloatDistribution(mark.low, mark.high, log=mark.log)
            for name, mark in space.items()
        },
    }


def _others(
    space: Mapping[str, Tuned], first: Setting, count: int, seed: int, moves: Callable[[Mapping[str, float]], bool]
) -> list[Setting]:
    """At most `count` settings beside the first one, none twice. moves: whether the search can leave its start; not
    asked where it cannot at the upper ends of the ranges.
    """
    if not space:
        grid: list[Setting] = [{LR_FACTOR: factor} for factor in LR_FACTORS if factor != 1.0]
        return grid[:count]
    found: list[Setting] = []
    is_wanted = moves if moves({name: mark.high for name, mark in space.items()}) else lambda _: True
    for drawn in proposals(space, _DRAWS, seed, is_wanted) if count else ():
        setting = {name: drawn[name] for name in first}
        if setting != first and setting not in found:
            found.append(setting)
        if len(found) == count:
            break
    return found


def _seed_of(cell: PlannedCell) -> int:
    """32 bits of a hash of table and row."""
    name = f"tune/{cell.table_key}/{row_hash(cell.document)}"
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")


def _place(mark: Tuned, value: float) -> float:
    """Where a value lies in its range: 0 at the low end, 1 at the high one."""
    if mark.log:
        return math.inf if value <= 0 else math.log(value / mark.low) / math.log(mark.high / mark.low)
    return (value - mark.low) / (mark.high - mark.low)


def _best(scores: Sequence[float | None]) -> int | None:
    """The position of the largest score, the first of equal ones; None if there is none."""
    known = {n: score for n, score in enumerate(scores) if score is not None}
    return max(known, key=lambda n: (known[n], -n), default=None)


def _gains(made: Sequence[Record], task: str) -> list[float | None]:
    """Gain of every trial in one task, percent of the first trial that has a score to compare with."""
    entries = [record.select_metrics.get(task) if record.status == "done" else None for record in made]
    for base in entries:
        if base is not None and delta_task(base, base).value is not None:
            return [None if entry is None else delta_task(entry, base).value for entry in entries]
    return [None] * len(entries)


def _as_its_search(row: TunableRow, tuned: TunedRow) -> TunedRow:
    """The row of a control. tuned: of its search."""
    known = {LR_FACTOR, *row.space}
    chosen = {name: value for name, value in tuned.chosen.items() if name in known}
    edges = tuple(name for name in tuned.edges if name in known)
    own = {"row": row_hash(row.cell.document), "title": row.cell.row_title, "chosen": chosen, "edges": edges}
    return tuned.model_copy(update={**own, "settings_of": tuned.title})


def _tuned(
    row: TunableRow,
    cells: Sequence[PlannedCell],
    made: Sequence[Record],
    scores: Sequence[dict[str, float | None]],
    chosen: Setting,
    edges: Sequence[str],
) -> TunedRow:
    tried = [
        Tried(setting=dict(setting), status=record.status, scores=found, cell=cell.key)
        for setting, record, found, cell in zip(row.settings, made, scores, cells, strict=True)
    ]
    accounts = [account for record in made for account in (record.cost.get("search", {}), record.cost.get("final", {}))]
    return TunedRow(
        row=row_hash(row.cell.document),
        title=row.cell.row_title,
        trials=row.trials,
        chosen=dict(chosen),
        edges=tuple(edges),
        steps=sum(int(account.get("optimizer_steps") or 0) for account in accounts),
        tried=tuple(tried),
    )
