"""The answer at a glance: one table that fits a terminal, and a verdict that says no more than the tests do."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from benchmark.records.evidence import Floor
from benchmark.records.record import Record
from benchmark.records.store import Store
from benchmark.show.glance import glance_of
from benchmark.show.glance_text import render_glance_markdown, render_glance_terminal
from benchmark.show.render import render, render_markdown, render_terminal
from benchmark.show.wording import lines_beneath
from benchmark.tables.folder import tables_of
from benchmark.tables.table import Table, aggregate
from datasets.errors import UsageError
from tests.unit.made_leaderboard import ROWS, TASKS, row, write_leaderboard
from tests.unit.made_records import make_failure, make_record

FLOORS = {task: (Floor("accuracy", 10.0, "percent", True, "class 0"),) for task in TASKS}
WARNINGS = tuple(f"{kind}: {'a long list of reasons, ' * 20}" for kind in ("not a leaderboard", "b", "c", "d", "e"))


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[Table]:
    """Equal recipe and equal tuning in one folder."""
    tables, _ = tables_of(write_leaderboard(tmp_path_factory.mktemp("leaderboard"), tuned=True))
    return sorted(tables, key=lambda table: table.untuned is not None)


def scores(value: float) -> dict[str, dict[str, float | None]]:
    return {"left": {"accuracy": value}, "right": {"accuracy": value - 1.0}}


def made(levels: Mapping[str, float], n_seeds: int = 3, **keywords: Any) -> Table:
    """A table of rows with these accuracies, which differ a little between seeds."""
    records = [
        make_record(method, seed, scores(level + random.Random(f"{method} {seed}").gauss(0, 0.1)),
                    reference=method == "alone", shared=method == "together")
        for method, level in levels.items()
        for seed in range(n_seeds)
    ]  # fmt: skip
    (table,) = aggregate(records, **keywords)
    return table


@pytest.mark.parametrize("width", [100, 237])
@pytest.mark.parametrize("untuned", [True, False])
def test_eighteen_rows_and_five_tasks_fit_a_terminal(both: list[Table], untuned: bool, width: int) -> None:
    """With warnings that are too long, floors and the lines that name the files (evidence 7, trap 8)."""
    records = [dataclasses.replace(table, banners=WARNINGS) for table in both]
    table = records[1] if untuned else dataclasses.replace(records[0], shown_in=None)
    floors = dict.fromkeys(table.evidence.firsts.values(), 10.0)
    table = dataclasses.replace(table, evidence=dataclasses.replace(table.evidence, floors=floors))
    lines = render_glance_terminal([table], width=width).splitlines()
    assert len(table.rows) == 18
    assert len(lines) <= 40 - 3  # files, picture and page follow
    assert max(map(len, lines)) <= 100
    names = [line.title.split(" ")[0] for line in glance_of(table).lines]
    start = next(n for n, line in enumerate(lines) if line.startswith("──")) + 1
    assert [line.split(" ")[0] for line in lines[start : start + 18]] == names  # a line each
    assert lines[start + 18].split() == ["constant", "prediction", "10.0"]
    assert len(glance_of(table).titles) + 1 <= 8
    assert sum(line.startswith("!") for line in lines) == 4


def test_ranked_rows_stand_best_first_and_the_others_after_them() -> None:
    levels = {"alone": 80.0, "together": 82.0, "worse": 70.0, "better": 90.0}
    assert [line.title for line in glance_of(made(levels)).lines] == ["better", "together", "alone", "worse"]
    failed = make_failure("aa", 0)
    records = [make_record(method, seed, scores(value + seed), reference=method == "alone")
               for method, value in levels.items() for seed in range(3)]  # fmt: skip
    (table,) = aggregate(
        [*records, dataclasses.replace(failed, cell={**records[0].cell, "method": {"name": "aa", "params": {}}})]
    )
    glance = glance_of(table)
    assert [line.title for line in glance.lines][-1] == "aa (0/3 seeds)"
    assert glance.verdict[-1] == "Not ranked: aa (0/3 seeds)."


def test_delta_m_has_half_of_its_interval_from_three_seeds_on() -> None:
    table = made({"alone": 80.0, "together": 82.0})
    values = table.rows[1].cells[table.delta].values
    low, high = stats.t.interval(0.95, 2, loc=0, scale=stats.sem(values))
    text = next(line.cells[1] for line in glance_of(table).lines if line.title == "together")
    assert text == f"{sum(values) / 3:+.2f} ± {(high - low) / 2:.2f}"
    assert "±" not in render_glance_terminal([made({"alone": 80.0, "together": 82.0}, 2)])


def test_four_tasks_stand_side_by_side_and_five_have_their_mean() -> None:
    def first(tasks: Mapping[str, tuple[str, float]]) -> tuple[str, str]:
        values = {task: {metric: value} for task, (metric, value) in tasks.items()}
        (table,) = aggregate([make_record("a", 0, values)])
        glance = glance_of(table)
        return " ".join(glance.titles[0]), glance.lines[0].cells[0]

    four = {task: ("accuracy", 70.0 + n) for n, task in enumerate(TASKS[:4])}
    assert first(four) == ("article / colour / gender / season accuracy % ↑", "70.0 / 71.0 / 72.0 / 73.0")
    assert first({**four, "usage": ("accuracy", 79.0)}) == ("mean of 5 tasks accuracy % ↑", "73.0")
    assert first({**four, "usage": ("miou", 79.0)})[0] == "mean of 5 tasks first metrics % ↑"
    assert first({**four, "depth": ("abs_err", 0.5)})[0] == "params x"  # metres and percent have no mean
    mixed = {"semseg": ("miou", 44.0), "depth": ("abs_err", 0.25)}
    assert first(mixed) == ("semseg miou % ↑ / depth abs_err metre ↓", "44.0 / 0.2500")


def test_metrics_of_several_tasks_stand_a_line_each_above_their_numbers() -> None:
    scores = {"left": {"accuracy": 94.8}, "right": {"accuracy": 93.3}, "edge": {"best_f1": 80.1}}
    lines = render_glance_terminal(aggregate([make_record("a" * 60, 0, scores)]), width=70).splitlines()
    assert [line.split("%")[0].strip() for line in lines if "%" in line][:2] == ["left accuracy", "right accuracy"]
    assert not [line for line in lines if line.split()[:1] == ["/"]]


def test_the_verdict_says_by_how_much_of_a_detectable_effect_the_first_row_leads() -> None:
    table = made({"alone": 80.0, "together": 82.0, "better": 90.0})
    tests = table.statistics[table.delta]
    better = next(n for n, row in enumerate(table.rows) if row.label == "better")
    lead, detectable = tests.comparisons[better].mean, tests.detectable
    assert detectable is not None
    mean = table.rows[better].cells[table.delta].mean
    assert glance_of(table).verdict == (
        f"better leads with Delta_m {mean:+.2f} %, {lead:.2f} points over together, the row that all are tested "
        f"against: {lead / detectable:.1f} x the detectable effect of {detectable:.2f}.",
        "It differs significantly from every other row.",
    )
    table = made({"alone": 80.0, "together": 90.0, "others": 89.95})
    first, second = glance_of(table).verdict
    assert first.startswith("together leads")
    assert "points over others, the next: 0." in first
    assert second == "Cannot be told apart from it: others."


@pytest.mark.parametrize(
    ("table", "why"),
    [
        (lambda: made({"alone": 80.0}), "it is one row"),
        (lambda: made({"alone": 80.0, "together": 82.0}, 2), "2 of the 3 seeds that tests begin at"),
        (lambda: made({"a": 80.0, "together": 82.0}), "no row has a Delta_m"),
        (
            lambda: made({"alone": 11.0, "together": 82.0}, floors_of=lambda record: {"left": FLOORS["usage"]}),
            "too little was learnt of left",
        ),
    ],
)
def test_a_table_without_ranks_says_why_and_names_no_leader(table: Any, why: str) -> None:
    assert glance_of(table()).verdict == (f"Nothing is ranked by Delta_m: {why}.",)


def test_a_leader_by_speed_of_training_is_called_that() -> None:
    records: list[Record] = []
    for method, level, params, steps in (
        ("alone", 80, {}, 100),
        ("together", 82, {"f": 1}, 100),
        ("together", 90, {"f": 2}, 200),
    ):
        records += [
            make_record(method, seed, scores(level + seed % 2), params=params, weight_steps=steps,
                        reference=method == "alone", shared=method == "together",
                        audit={"non_default_params": {} if steps == 100 else params})
            for seed in range(3)
        ]  # fmt: skip
    (table,) = aggregate(records)
    first, *_, last = glance_of(table).verdict
    assert first.startswith("At this budget, which measures speed of training, together (f=1) leads")
    assert last == "Not ranked: together (f=2) (weight_steps)."


def test_rows_with_red_differences_are_marked_and_named_with_the_field() -> None:
    records = [make_record("own", seed, scores(95.0), audit={"draws": 8, "tier": "other"}) for seed in range(3)]
    records += [
        make_record(m, s, scores(80.0 + s + len(m)), reference=m == "alone") for m in ("alone", "b") for s in range(3)
    ]
    (table,) = aggregate(records)
    glance = glance_of(table)
    assert glance.lines[-1].title == "✗ own"
    assert glance.verdict[-1] == "Not ranked: own (draws)."


def test_a_folder_of_both_kinds_says_for_every_row_what_tuning_alone_is_worth(both: list[Table]) -> None:
    plain, tuned = both
    assert (plain.shown_in, tuned.shown_in) == (tuned.key, None)
    assert tuned.untuned is not None
    assert tuned.untuned.key == plain.key
    theirs = {row.short: row.cells[plain.delta].mean for row in plain.rows}
    lines = glance_of(tuned).lines
    place = [" ".join(title) for title in glance_of(tuned).titles].index("default Delta_m %")
    for line in lines:
        assert float(line.cells[place].split(" ")[0]) == pytest.approx(theirs[line.title], abs=0.005)
    single = next(row for row in tuned.rows if row.is_reference)
    other = next(row for row in plain.rows if row.is_reference)
    gains = []
    for seed in range(5):
        ratios = [(single.cells[n].values[seed] / other.cells[n].values[seed] - 1) * 100 for n in range(5)]
        gains.append(sum(ratios) / 5)
    assert tuned.untuned.single_task.mean == pytest.approx(sum(gains) / 5)
    text = render_glance_terminal(both)
    assert (text.count("leads with"), tuned.key in text) == (1, True)
    assert plain.key in render_terminal(both)  # with all its numbers, in a table of its own


def test_fewer_seeds_without_tuning_are_said() -> None:
    def legend(plain: int, method: int) -> str:
        ours = [
            record
            for tuned in (False, True)
            for n, m in enumerate(("single_task", "mtan"))
            for record in row(m, {}, n, tuned)
        ]
        kept = [r for r in ours if "tuned" in r.cell or r.cell["seed"] < (method if r.method == "mtan" else plain)]
        table = next(table for table in aggregate(kept) if table.untuned is not None)
        return glance_of(table).legend

    assert "untuned, over its own" in legend(5, 5)
    assert "untuned at 2 of 5 seeds, over its own" in legend(2, 2)
    assert "untuned at 1 to 5 of 5 seeds, over its own" in legend(5, 1)


def test_a_tuned_row_finds_itself_beside_a_row_that_gives_what_was_tuned() -> None:
    """A suite may hold a row that sets by hand what another had tuned."""
    plain = list(row("adashare", {"random_policy": False}, 1))
    by_hand = [
        dataclasses.replace(
            record,
            cell={**record.cell, "method": {"name": "adashare", "params": {**record.params, "own_rate": 0.9}}},
            audit={**record.audit, "non_default_params": {"own_rate": 0.9}},
        )
        for record in plain
    ]
    single = [record for tuned in (False, True) for record in row("single_task", {}, 0, tuned)]
    tables = aggregate([*single, *plain, *by_hand, *row("adashare", {"random_policy": False}, 1, tuned=True)])
    tuned = next(table for table in tables if table.untuned is not None)
    other = next(table for table in tables if table.untuned is None)
    assert tuned.untuned is not None
    position = next(n for n, found in enumerate(tuned.rows) if found.method == "adashare")
    usual = next(found for found in other.rows if found.method == "adashare" and found.params["own_rate"] == 0.1)
    assert tuned.untuned.deltas[position] == usual.cells[other.delta]


def test_a_readers_own_row_is_ranked_beside_ours_and_warned_of_where_its_machine_differs() -> None:
    """In a copy of a leaderboard's records."""
    ours = [record for n, (method, params) in enumerate(ROWS[:4]) for record in row(method, params, n, tuned=True)]
    same = list(row("mine", {}, 6, tuned=True))
    (table,) = aggregate([*ours, *same])
    assert not [banner for banner in table.banners if banner.startswith("other ")]
    untuned = {"tried": 1, "chosen": {}, "edges": [], "scores": [None]}
    mine = [
        dataclasses.replace(
            record,
            environment={**record.environment, "cpu": "another"},
            versions={**record.versions, "torch": "9.9"},
            audit={**record.audit, "tuning_trials": 1, "tuning": untuned},
        )
        for record in same
    ]
    (table,) = aggregate([*ours, *mine], leaderboards={mine[0].table_key})
    position = next(n for n, found in enumerate(table.rows) if found.method == "mine")
    assert position in table.ranked
    assert glance_of(table).lines[0].title == "mine"
    assert [banner for banner in table.banners if banner.startswith("other ")] == [
        "other tuning trials, machine, torch than most rows have: mine; differences may be due to that"
    ]
    assert "equal tuning: rows have different tuning trials" in table.banners[0]
    assert "audit ~ tuning trials: 5; mine: not tuned" in lines_beneath(table)
    assert "mine: not tuned, trained as the suite has it" in table.notes


def test_the_markdown_form_is_the_head_of_the_whole_and_facts_are_a_line_a_method(both: list[Table]) -> None:
    tuned = [dataclasses.replace(both[1], banners=("first warning",))]
    short, whole = render_glance_markdown(tuned), render_markdown(tuned)
    for line in short.splitlines()[1:]:
        assert line in whole
    assert whole.count("first warning") == 1
    assert "- bmtas found: bmtas kept 3 edges" in whole
    assert not [line for line in whole.splitlines() if line.startswith("|") and "bmtas kept" in line]


def test_a_glance_is_no_csv(tmp_path: Path) -> None:
    Store(tmp_path).write(make_record())
    tables, _ = tables_of(tmp_path)
    with pytest.raises(UsageError, match="terminal and markdown, not csv"):
        render(tables, format="csv", glance=True)
