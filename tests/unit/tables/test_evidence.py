"""Evidence on synthetic tables: a task at its floor, a budget that is too short, and what a leaderboard lacks."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from scipy import stats

from benchmark.records.evidence import Floor, write_leaderboard
from benchmark.records.record import Record
from benchmark.records.store import Store
from benchmark.show.render import render_csv, render_latex, render_markdown, render_terminal
from benchmark.tables.folder import tables_of
from benchmark.tables.table import Table, aggregate
from tests.unit.made_records import make_record

FLOORS = {"left": (Floor("accuracy", 10.0, "percent", True, "class 0"),),
          "depth": (Floor("abs_err", 1.0, "metre", False, "the median"),)}  # fmt: skip
SEEDS = range(5)


def scores(left: float, depth: float) -> dict[str, dict[str, float | None]]:
    return {"left": {"accuracy": left}, "depth": {"abs_err": depth}}


def row(
    method: str,
    left: float,
    depth: float,
    seeds: Sequence[int] = SEEDS,
    fifths: Mapping[str, list[float]] | None = None,
    **keywords: Any,
) -> list[Record]:
    """A row whose values differ a little between seeds."""
    audit = {"last_fifths": fifths or {"left": [1.0, 0.995], "depth": [1.0, 0.995]}, **keywords.pop("audit", {})}
    return [
        make_record(method, seed, scores(left + 0.01 * (seed * len(method) % 7), depth), audit=audit, **keywords)
        for seed in seeds
    ]


def plain(gain: float = 0.0, seeds: Sequence[int] = SEEDS, trials: int = 5, **keywords: Any) -> list[Record]:
    """A table that lacks nothing: single task, the reference, and the reference with twice the steps."""
    tuned = {"audit": {"tuning_trials": trials, **keywords.pop("audit", {})}}
    shared = {"shared": True, "seeds": seeds, **tuned, **keywords}
    plain_audit = {"audit": {**tuned["audit"], "non_default_params": {}}}
    return [
        *row("alone", 90.0, 0.5, seeds, reference=True, **plain_audit),
        *row("together", 89.0, 0.5, params={"longer": 1.0}, **{**shared, **plain_audit}),
        *row("together", 89.0 + gain, 0.5, params={"longer": 2.0}, weight_steps=200, **shared),
    ]


def judged(records: list[Record], floors: Mapping[str, Any] | None = FLOORS, leaderboard: bool = True) -> Table:
    keys = {record.table_key for record in records} if leaderboard else ()
    (table,) = aggregate(records, floors_of=lambda record: floors, leaderboards=keys)
    return table


def banner(table: Table, word: str) -> str:
    return next((text for text in table.banners if word in text), "")


def note(table: Table, word: str) -> str:
    return next((text for text in table.notes if word in text), "")


# What was learnt


def test_a_task_at_its_floor_is_not_ranked_and_says_so() -> None:
    """The single-task network has learnt a tenth of what the best row has."""
    table = judged([*plain(), *row("better", 91.0, 0.5)], {**FLOORS, "depth": FLOORS["depth"]}, leaderboard=False)
    assert table.ranked
    assert table.statistics
    records = [*row("alone", 90.0, 0.96, reference=True), *row("together", 89.0, 0.6, shared=True)]
    table = judged(records, leaderboard=False)
    assert table.evidence.learnt == {"left": pytest.approx(1.0), "depth": pytest.approx(0.04 / 0.4)}
    assert table.evidence.not_learnt == ["depth"]
    assert "10 %" in banner(table, "depth was hardly learnt")
    assert (table.ranked, table.statistics, table.best) == (frozenset(), {}, frozenset())
    for render in (render_terminal, render_markdown, render_latex, render_csv):
        assert "hardly learnt" in " ".join(render([table]).split())
    assert "no tests, no ranks: too little was learnt of depth" in render_markdown([table])


def test_a_task_of_which_no_row_knows_more_than_a_constant_was_not_learnt() -> None:
    table = judged([*row("alone", 10.0 - 0.1, 0.5, reference=True), *row("together", 9.9, 0.5)], leaderboard=False)
    assert table.evidence.not_learnt == ["left"]
    assert banner(table, "left was not learnt")


def test_a_red_row_is_no_measure_of_what_can_be_learnt() -> None:
    records = [*plain(), *row("cheat", 91.0, 0.01, audit={"extra_data": "all of it"})]
    floors = {**FLOORS, "depth": (Floor("abs_err", 0.9, "metre", False, "the median"),)}
    assert judged(records, floors, leaderboard=False).evidence.learnt["depth"] == pytest.approx(1.0)


def test_without_floors_or_single_task_nothing_is_said() -> None:
    for table in (judged(plain(), None, False), judged(row("together", 9.0, 2.0), FLOORS, False)):
        assert table.evidence.learnt == {}
        assert not banner(table, "learnt")
    assert "constant prediction" not in render_markdown([judged(plain(), None, False)])


def test_a_task_of_which_every_row_knows_nearly_all_is_saturated() -> None:
    records = [*row("alone", 99.4, 0.5, reference=True), *row("together", 99.2, 0.5)]
    assert note(judged(records), "left is saturated")
    assert not note(judged([*records, *row("third", 98.0, 0.5)]), "left is saturated")


def test_the_last_line_of_the_accuracy_table_is_a_constant() -> None:
    tables = [judged(plain())]
    lines = render_markdown(tables).splitlines()
    last = lines.index("| constant prediction |  | 10.00 | 1.0000 | \N{EN DASH} |")
    assert ("together (longer=2.0)" in lines[last - 1], lines[last + 1]) == (True, "")
    words = [line.split() for line in render_terminal(tables).splitlines()]
    assert ["constant", "prediction", "10.00", "1.0000", "\N{EN DASH}"] in words
    assert r"Constant prediction & 10.00 & 1.0000 & -- &" in render_latex(tables)
    found = [line for line in csv.DictReader(io.StringIO(render_csv(tables))) if line["label"] == "constant prediction"]
    assert [(line["task"], line["quantity"], line["mean"]) for line in found] == [
        ("left", "accuracy", "10.0"),
        ("depth", "abs_err", "1.0"),
    ]


# Whether training had converged


def test_twice_the_steps_that_gain_are_speed_of_training() -> None:
    table = judged(plain(gain=4.0), leaderboard=False)
    assert "together (longer=2.0) gains +2.2" in banner(table, "this budget measures speed of training")
    assert table.ranked, "a banner, and ranks"
    assert not banner(judged(plain(gain=1.0)), "speed of training")  # .6 points of Delta_m
    assert not banner(judged(plain(gain=-9.0)), "speed of training")


def test_a_gain_below_what_could_be_detected_is_none() -> None:
    noisy = [*plain(gain=4.0)]
    for seed in SEEDS:
        for swing, method in ((14.0, "noise"), (-9.0, "other")):
            left = 80 + swing * (-1) ** seed
            noisy.append(make_record(method, seed, scores(left, 0.5), audit=noisy[0].audit | {"reference": None}))
    assert not banner(judged(noisy, leaderboard=False), "gains")


def test_only_one_parameter_and_twice_the_updates_make_a_pair() -> None:
    base = [record for record in plain() if record.params.get("longer") != 2.0]
    for params, steps in (({"longer": 2.0, "other": 1}, 200), ({"longer": 5.0}, 500)):
        table = judged([*base, *row("together", 99.0, 0.5, shared=True, params=params, weight_steps=steps)])
        assert "twice the steps" in banner(table, "not a leaderboard"), params
        assert not banner(table, "gains")


def test_losses_that_fall_in_most_tasks_are_speed_of_training() -> None:
    falling, flat = [1.0, 0.97], [1.0, 0.99]
    once = plain(fifths={"left": falling, "depth": falling})[:10]
    both = judged(once, leaderboard=False)
    assert "together still falls" in banner(both, "speed of training")
    assert "left -3.0 %, depth -3.0 %" in banner(both, "speed of training")
    one = judged(plain(fifths={"left": falling, "depth": flat})[:10], leaderboard=False)  # one of two is no majority
    assert not banner(one, "speed of training")
    assert "left -3.0 %, depth -1.0 %" in note(one, "last fifth")
    assert "loss change, left" in render_markdown([one])
    assert ',,"loss change, left",percent,' in render_csv([one])


def test_where_twice_the_steps_gain_nothing_a_falling_loss_is_only_noted() -> None:
    """A rate that decays to nothing lets every training loss fall at its end."""
    falling = {"left": [1.0, 0.5], "depth": [1.0, 0.5]}
    table = judged(plain(gain=-1.0, fifths=falling))
    assert not banner(table, "speed of training")
    assert table.evidence.missing == ()
    assert "left -50.0 %, depth -50.0 %" in note(table, "last fifth")


# A leaderboard


def test_a_table_that_lacks_nothing_is_a_leaderboard() -> None:
    table = judged(plain())
    assert table.evidence.missing == ()
    assert not banner(table, "not a leaderboard")
    assert note(table, "leaderboard: every check of its evidence passed")
    assert judged(plain(), leaderboard=False).evidence.missing is None


SEARCH = {"search_steps": 100, "audit": {"tuning_trials": 5, "search_space": "trees"}}
RANDOM = {"tuning_trials": 5, "search_space": "trees", "random_architecture": True}


@pytest.mark.parametrize(
    ("records", "floors", "missing"),
    [
        (plain(seeds=range(4)), FLOORS, "4 of at least 5 seeds"),
        (plain()[:-1], FLOORS, "seeds that are not done (together (longer=2.0))"),
        (plain(trials=1), FLOORS, "equal tuning: no row was tuned"),
        ([*plain(), *row("own", 90.0, 0.5)], FLOORS, "equal tuning: rows have different tuning trials"),
        (plain(), None, "whether left, depth was learnt is not known, as the folder holds no floors"),
        (plain(), {"left": FLOORS["left"]}, "whether depth was learnt is not known"),
        (plain(), {**FLOORS, "depth": (Floor("abs_err", 0.4, "metre", False, ""),)}, "tasks that are learnt (depth"),
        (plain()[:10], FLOORS, "a check of convergence by the reference row (twice the steps)"),
        (plain(gain=9.0), FLOORS, "convergence: the budget is too short"),
        ([*plain(), *row("search", 90.0, 0.5, **SEARCH)], FLOORS, "a random control of equal size for search"),
        (
            [*plain(), *row("search", 90.0, 0.5, **{**SEARCH, "search_steps": 200})],
            FLOORS,
            "the reference row at the largest total budget (3.0 times its steps)",
        ),
    ],
)  # fmt: skip
def test_what_a_leaderboard_lacks_is_printed_first(records: list[Record], floors: Any, missing: str) -> None:
    table = judged(records, floors)
    assert table.banners[0].startswith("not a leaderboard: ")
    assert missing in table.banners[0]
    assert "\x1b[1;31m! not a leaderboard" in render_terminal([table], color=True)
    assert not banner(judged(records, floors, leaderboard=False), "not a leaderboard")


def test_a_random_architecture_of_the_same_space_and_size_is_a_control() -> None:
    search = [*plain(), *row("search", 90.0, 0.5, **SEARCH)]
    large = {"total": 999_999, "active": {}}
    assert judged([*search, *row("dice", 90.0, 0.5, audit=RANDOM)]).evidence.missing == ()
    for audit, size in (({**RANDOM, "search_space": "other"}, None), (RANDOM, large)):
        missing = judged([*search, *row("dice", 90.0, 0.5, audit=audit, size=size)]).evidence.missing
        assert missing == ("a random control of equal size for search",)


def wavy(method: str, level: float, wave: float, **keywords: Any) -> list[Record]:
    """A row whose score goes up and down by seed."""
    return [record for seed in SEEDS for record in row(method, level + wave * (-1) ** seed, 0.5, [seed], **keywords)]


def test_searches_are_tested_against_the_controls_of_their_own_space() -> None:
    groups = {"tuning_trials": 5, "search_space": "groups"}
    records = [
        *plain(),
        *wavy("tree", 90.0, 0.3, params={"random": False}, **SEARCH),
        *wavy("tree", 89.0, 0.5, audit=RANDOM, params={"random": True}),
        *wavy("dice", 70.0, 0.1, audit=RANDOM),  # of the same space and size, but of another method
        *wavy("clique", 90.0, 0.2, search_steps=100, audit=groups),
        *wavy("draw", 90.1, 0.9, audit={**groups, "random_architecture": True}),
    ]
    table = judged(records)
    deltas = {line.label: line.cells[table.delta].values for line in table.rows}
    pairs = [("clique", "draw"), ("tree (random=false)", "tree (random=true)")]
    p = [stats.ttest_rel(deltas[search], deltas[control]).pvalue for search, control in pairs]
    small, large = sorted(p)
    adjusted = {small: min(1.0, 2 * small), large: min(1.0, max(2 * small, large))}
    expected = []
    for (search, control), one in zip(pairs, p, strict=True):
        gain = sum(deltas[search]) / 5 - sum(deltas[control]) / 5
        text = "< 0.001" if adjusted[one] < 0.001 else f"= {adjusted[one]:.2g}"
        expected.append(f"{search} {gain:+.2f} (p {text}{' *' if adjusted[one] < 0.05 else ''})")
    (line,) = [line for line in table.notes if line.startswith("searches against their random controls")]
    assert line.endswith(f"paired over 5 seeds, Holm over 2: {', '.join(expected)}")
    assert [" *" in text for text in expected] == [False, True]
    assert not any("random controls" in line for line in judged(records[:-1]).notes)  # a seed that is not done
    assert not any("random controls" in line for line in judged(plain()).notes)


def test_a_folder_knows_which_of_its_tables_are_called_a_leaderboard(tmp_path: Any) -> None:
    records = plain()
    for record in records:
        Store(tmp_path).write(record)
    (table,), _ = tables_of(tmp_path)
    assert table.evidence.missing is None
    write_leaderboard(tmp_path, "mine", {records[0].table_key})
    (table,), _ = tables_of(tmp_path)
    assert "as the folder holds no floors" in table.banners[0]
    write_leaderboard(tmp_path, "mine", {"the table of another recipe"})
    (table,), _ = tables_of(tmp_path)
    assert table.evidence.missing, "a run with another recipe takes nothing away"
    (tmp_path / "leaderboards" / "mine.json").write_text("{}")
    (table,), invalid = tables_of(tmp_path)
    assert table.evidence.missing is None
    assert invalid == ["leaderboards/mine.json: schema None; this version reads schema 1"]


@pytest.mark.parametrize("leaderboard", [True, False])
def test_a_search_that_stayed_where_it_began_is_not_ranked_on_a_leaderboard(leaderboard: bool) -> None:
    still = {"search_moved": {"gates": {"largest": 0.02, "mean": 0.01}}, "tuning_trials": 5}
    table = judged([*plain(), *row("searched", 95.0, 0.4, weight_steps=200, audit=still)], leaderboard=leaderboard)
    (position,) = (n for n, one in enumerate(table.rows) if one.method == "searched")
    assert (position in table.audit.red) is leaderboard
    assert (position in table.ranked) is not leaderboard
