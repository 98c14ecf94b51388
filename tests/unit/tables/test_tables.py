"""Tables: what is averaged, what is printed at n = 1, 2, 3, what a failure looks like, in every form."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
import statistics

import pytest
from scipy import stats
from typer.testing import CliRunner

from benchmark.records.record import Record
from benchmark.records.store import Store
from benchmark.report import app
from benchmark.show.latex import Paper
from benchmark.show.render import cell_text, column_title, render_csv, render_latex, render_markdown, render_terminal
from benchmark.show.wording import lines_beneath
from benchmark.tables.columns import Column
from benchmark.tables.labels import DASH
from benchmark.tables.statistics import Summary
from benchmark.tables.table import aggregate, invalid_lines
from datasets.errors import UsageError
from tests.unit.made_records import make_failure, make_record

RENDERERS = [render_terminal, render_markdown, render_csv, render_latex]
PERCENT = Column("semseg", "miou", "percent", True, "accuracy", "value", ranked=True)
COUNT = Column("", "total parameters", "", False, "size and compute", "count")


def scores(miou: float | None, abs_err: float = 0.45) -> dict[str, dict[str, float | None]]:
    return {"semseg": {"miou": miou, "pixel_acc": 63.0}, "depth": {"abs_err": abs_err, "rel_err": 0.23}}


def only(records, **keywords):
    (table,) = aggregate(records, **keywords)
    return table


def row_of(table, label):
    return next(row for row in table.rows if row.label == label)


def cell_of(table, label, name, group=None):
    row = row_of(table, label)
    matches = [
        summary
        for column, summary in zip(table.columns, row.cells, strict=True)
        if column_title(column).startswith(name) and group in (None, column.group)
    ]
    assert len(matches) == 1, name
    return matches[0]


def test_seeds_are_aggregated_into_one_row():
    table = only([make_record(seed=seed, values=scores(40.0 + seed)) for seed in (2, 0, 1)])
    summary = cell_of(table, "hard_sharing", "miou")
    assert summary.seeds == (0, 1, 2)
    assert summary.values == (40.0, 41.0, 42.0)


# what is printed


@pytest.mark.parametrize(
    ("column", "values", "row_n", "text"),
    [
        (PERCENT, (45.678,), 1, "45.68"),
        (PERCENT, (45.0, 46.0), 2, "45.50 (45.00, 46.00)"),
        (PERCENT, (45.0, 46.0, 47.0), 3, "46.00 ± 1.00"),
        (PERCENT, (45.0, 45.0, 45.0), 3, "45.00 ± 0.00"),
        (PERCENT, (45.0, 46.0), 3, "45.50 (45.00, 46.00) (n=2)"),
        (PERCENT, (45.0,), 3, "45.00 (n=1)"),
        (PERCENT, (), 3, DASH),
        (COUNT, (312_345.0,) * 3, 3, "0.31 M"),
        (COUNT, (310_000.0, 320_000.0, 330_000.0), 3, "0.32 ± 0.01 M"),
        (COUNT, (1_814_073_344.0,), 1, "1.81 G"),
        (COUNT, (55_296.0,), 1, "55.3 k"),
        (COUNT, (999.0,), 1, "999"),
        (COUNT, (0.0,), 1, "0"),
        (dataclasses.replace(PERCENT, unit="degree"), (14.789,), 1, "14.79"),
        (dataclasses.replace(PERCENT, unit="metre"), (0.123456,), 1, "0.1235"),
        (dataclasses.replace(PERCENT, unit="metre"), (123.456,), 1, "123.46"),
        (dataclasses.replace(PERCENT, form="signed"), (4.583,), 1, "+4.58"),
        (dataclasses.replace(PERCENT, form="signed"), (-4.583,), 1, "-4.58"),
        (dataclasses.replace(PERCENT, form="signed"), (0.0,), 1, "0.00"),
        (dataclasses.replace(PERCENT, form="signed"), (-0.001,), 1, "0.00"),
        (dataclasses.replace(PERCENT, form="signed"), (1.0, 2.0, 3.0), 3, "+2.00 ± 1.00"),
        (dataclasses.replace(COUNT, form="share"), (3 / 7,), 1, "0.429"),
        (dataclasses.replace(COUNT, form="ratio"), (1.5,), 1, "1.50"),
        (dataclasses.replace(COUNT, form="steps"), (1200.0,), 1, "1200"),
        (dataclasses.replace(COUNT, form="seconds"), (12.34,), 1, "12.3"),
        (dataclasses.replace(COUNT, form="seconds"), (1234.5,), 1, "1234"),
    ],
)
def test_cells(column, values, row_n, text):
    assert cell_text(Summary(tuple(range(len(values))), values), column, row_n) == text


@pytest.mark.parametrize(
    ("column", "title"),
    [
        (PERCENT, "miou [%] ↑"),
        (Column("depth", "abs_err", "inverse depth", False, "accuracy", "value"), "abs_err [inverse depth] ↓"),
        (Column("normals", "mean_angle", "degree", False, "accuracy", "value"), "mean_angle [°] ↓"),
        (Column("", "weight sharing", "", None, "size and compute", "share"), "weight sharing"),
    ],
)
def test_titles_have_unit_and_direction(column, title):
    assert column_title(column) == title


def test_one_seed_has_a_banner_and_neither_spread_nor_mark():
    records = [make_record("a", 0, scores(40.0)), make_record("b", 0, scores(50.0))]
    table = only(records)
    assert table.banners == ("one seed: differences are not evidence",)
    assert not table.best
    for text in (render_terminal([table], color=True), render_markdown([table]), render_latex([table])):
        assert "differences are not evidence" in text
        assert "n=1" in text
        assert "±" not in text
        assert r"\pm" not in text
    assert "**50.00**" not in render_markdown([table])
    assert r"\textbf{50.00}" not in render_latex([table])
    assert "differences are not evidence" in render_csv([table])


def test_two_seeds_show_both_values_and_no_mark():
    records = [make_record(name, seed, scores(40.0 + 2 * seed)) for name in ("a", "b") for seed in (0, 1)]
    table = only(records)
    assert not table.best
    assert table.banners == ()
    text = render_markdown([table])
    assert "41.00 (40.00, 42.00)" in text
    assert "n=2" in text
    assert "±" not in text


def test_the_best_mean_is_marked_from_three_seeds_on_and_follows_the_arrow():
    good = [make_record("good", seed, scores(50.0 + seed, abs_err=0.39 + 0.01 * seed)) for seed in range(3)]
    poor = [make_record("poor", seed, scores(40.0 + 1.1 * seed, abs_err=0.5 + 0.011 * seed)) for seed in range(3)]
    table = only(good + poor)
    text = render_markdown([table])
    assert "**51.00 ± 1.00**" in text
    assert "**0.4000 ± 0.0100**" in text  # lower is better
    assert "**41.00" not in text
    assert "**0.5" not in text
    assert r"\textbf{51.00 $\pm$ 1.00}" in render_latex([table])
    assert "\x1b[1m" in render_terminal([table], color=True)
    assert "bold: the best of a column and all that do not differ significantly from it" in text
    assert "**0.31 M**" not in text  # a price is not a result


def test_a_row_with_fewer_seeds_is_not_ranked():
    few = [make_record("few", seed, scores(90.0)) for seed in range(3)] + [make_failure("few", 3)]
    full = [make_record("a", seed, scores(50.0)) for seed in range(4)]
    full += [make_record("b", seed, scores(40.0 + seed / 8)) for seed in range(4)]
    text = render_markdown([only([*few, *full])])
    assert "**50.00 ± 0.00**" in text
    assert "90.00 ± 0.00" in text
    assert "**90.00" not in text


def test_one_row_alone_is_not_the_best():
    assert not only([make_record(seed=seed) for seed in range(3)]).best


def test_equal_means_are_both_marked():
    records = [make_record(name, seed, scores(50.0)) for name in ("a", "b") for seed in range(3)]
    assert render_markdown([only(records)]).count("**50.00 ± 0.00**") == 2


# tests, ranks and audit beneath a table

LINES = {
    "shared": (40.0, 41.0, 40.5, 40.2, 40.9),
    "good": (45.1, 45.9, 45.6, 45.0, 46.1),
    "same": (40.3, 40.8, 40.9, 40.1, 40.6),
}


def rows_of(n, lines=LINES, **keywords):
    return [
        make_record(name, seed, varied(values[seed], seed), shared=name == "shared", **keywords)
        for name, values in lines.items()
        for seed in range(n)
    ]


def varied(miou, seed):
    depth = {"abs_err": 0.5 - miou / 500, "rel_err": 0.3 - miou / 400 + seed / 999}
    return {"semseg": {"miou": miou, "pixel_acc": 60.0 + miou / 3 - seed / 7}, "depth": depth}


def with_baseline(n, lines=LINES):
    return [*rows_of(n, lines), *(reference(seed, values=varied(39.0 + seed / 16, seed)) for seed in range(n))]


def column_index(table, group, name):
    return next(n for n, column in enumerate(table.columns) if (column.group, column.name) == (group, name))


def test_p_values_are_those_of_scipy_after_holm_over_the_rows_of_the_table():
    table = only(rows_of(5))
    tests = table.statistics[column_index(table, "semseg", "miou")]
    assert table.rows[table.reference].label == "shared"
    labels = [row.label for row in table.rows]
    p = {name: stats.ttest_rel(LINES[name], LINES["shared"]).pvalue for name in ("good", "same")}
    assert tests.m == 2
    assert tests.comparisons[labels.index("good")].p == pytest.approx(p["good"])
    assert tests.comparisons[labels.index("good")].adjusted == pytest.approx(2 * p["good"])
    assert tests.comparisons[labels.index("same")].adjusted == pytest.approx(p["same"])
    assert {labels[row]: rank for row, rank in tests.ranks.items()} == {"good": 1, "same": 2, "shared": 2}


def test_what_a_clean_table_says_beneath():
    lines = lines_beneath(only(with_baseline(5)))
    (tests,) = [line for line in lines if line.startswith("Delta_m against shared (n = 5, m = 3): ")]
    assert "good +" in tests
    assert "*" in tests
    assert "; detectable: " in tests
    assert tests.endswith(" %")
    assert "ranks by Delta_m: 1 good; 2 same, shared; 4 stl" in lines
    (legend,) = [line for line in lines if line.startswith("p: ")]
    assert "paired t (assumes normal differences)" in legend
    (audit,) = [line for line in lines if line.startswith("audit")]
    assert audit.startswith(f"audit, equal for all rows ({only(with_baseline(5)).audit.n_equal} fields): data, ")
    drawn = render_terminal([only(with_baseline(5))]).rstrip().splitlines()
    start = next(number for number, line in enumerate(drawn) if line.startswith("Delta_m against"))
    assert len(drawn) - start <= 8  # what a tired reader sees beneath the numbers


def test_without_a_baseline_the_primary_metrics_are_tested():
    lines = "\n".join(lines_beneath(only(rows_of(5))))
    assert "semseg miou against shared (n = 5, m = 2)" in lines
    assert "Delta_m against" not in lines
    assert "pixel_acc against" not in lines


def test_a_sixth_seed_takes_no_star_away():
    lines = {name: (*values, sum(values) / 5) for name, values in LINES.items()}
    five, six = ("\n".join(lines_beneath(only(rows_of(n, lines)))) for n in (5, 6))
    assert five.count(" *") > 0
    assert six.count(" *") >= five.count(" *")
    assert "paired t (assumes normal differences)" in six
    assert "detectable: nothing" not in six


def test_two_seeds_are_said_in_plain_words():
    lines = lines_beneath(only(rows_of(2)))
    assert lines[0] == "two seeds: mean and both values; no test, no rank: tests begin at three seeds"
    assert not any("p = " in line or "ranks" in line for line in lines)


def test_one_seed_has_no_line_of_tests():
    text = "\n".join(lines_beneath(only(rows_of(1))))
    for word in ("against", "ranks", "detectable", "p:", "two seeds"):
        assert word not in text


def test_without_a_reference_row_there_are_ranks_but_no_p():
    records = [record for record in rows_of(5) if record.cell["method"]["name"] != "shared"]
    text = "\n".join(lines_beneath(only(records)))
    assert "no p-values: no row is the comparison reference (--reference ROW names one)" in text
    assert "semseg miou against the best row (n = 5, m = 1): detectable: " in text
    assert "ranks by semseg miou: 1 good; 2 same" in text


def test_any_row_can_be_the_reference():
    table = only(rows_of(5), reference="same")
    assert table.rows[table.reference].label == "same"
    assert "semseg miou against same" in "\n".join(lines_beneath(table))
    with pytest.raises(UsageError, match=r"Unknown reference row 'sam'\. Nearest: 'same'"):
        aggregate(rows_of(5), reference="sam")


def test_of_several_reference_rows_the_one_with_defaults_is_tested_against():
    variants = [
        make_record("shared", seed, scores(40.0 + seed / 8 + k), shared=True, params={"k": k}, audit=non_default)
        for seed in range(3)
        for k, non_default in ((1, {"non_default_params": {}}), (2, {"non_default_params": {"k": 2}}))
    ]
    table = only([*variants, *(make_record("a", seed, scores(41.0 - seed)) for seed in range(3))])
    assert table.rows[table.reference].label == "shared (k=1)"
    unsaid = {"reference": "shared"}
    bare = [dataclasses.replace(record, audit=unsaid) for record in variants]
    assert only(bare).reference is None


def test_incomplete_rows_are_neither_tested_nor_ranked():
    records = [*rows_of(4), make_record("good", 4, scores(46.1)), make_record("same", 4, scores(40.6))]
    table = only([*records, make_failure("shared", 4)])
    assert {table.rows[row].label for row in table.ranked} == {"good", "same"}
    text = "\n".join(lines_beneath(table))
    assert "shared: 4/5 seeds" in text
    assert "against the best row" in text  # the reference itself is incomplete
    assert all(table.rows[row].label != "shared" for tests in table.statistics.values() for row in tests.ranks)


def test_a_null_takes_a_row_out_of_that_column_only():
    records = [*rows_of(5), *(make_record("null", seed, scores(None if seed else 90.0)) for seed in range(5))]
    table = only(records)
    labels = {table.rows[row].label for row in table.statistics[column_index(table, "semseg", "miou")].ranks}
    assert labels == set(LINES)
    depth = {table.rows[row].label for row in table.statistics[column_index(table, "depth", "abs_err")].ranks}
    assert "null" in depth


def red_rows(n=5):
    return [
        dataclasses.replace(record, audit={**record.audit, "draws": 8})
        if record.cell["method"]["name"] == "good"
        else record
        for record in rows_of(n)
    ]


def test_red_rows_are_marked_in_every_form_and_not_ranked():
    table = only(red_rows())
    assert [table.rows[row].label for row in sorted(table.audit.red)] == ["good"]
    assert all(table.rows[row].label != "good" for tests in table.statistics.values() for row in tests.ranks)
    assert "| ✗ good |" in render_markdown([table])
    assert r"$\times$ good" in render_latex([table])
    assert "✗ good" in render_terminal([table])
    assert "✗ (not ranked) draws: 1; good: 8" in " ".join(render_terminal([table]).split())
    lines = list(csv.DictReader(io.StringIO(render_csv([table]))))
    assert {line["ranked"] for line in lines if line["method"] == "good"} == {"no"}
    assert {line["audit"] for line in lines if line["method"] == "good"} == {"✗ (not ranked) draws: 1; good: 8"}
    assert {line["ranked"] for line in lines if line["method"] == "same"} == {"yes"}
    clean = only(rows_of(5))
    for render in RENDERERS:
        assert "✗" not in render([clean])
        assert "$\\times$" not in render([clean])


def test_allowing_red_ranks_nothing_and_says_so():
    table = only(red_rows(), allow_red=True)
    assert not table.ranked
    assert not table.best
    assert not table.statistics
    for render in RENDERERS:
        text = " ".join(render([table]).split())
        assert "red differences allowed: nothing in this table is ranked or tested" in text
        assert "draws: 1; good: 8" in text  # nothing switches the audit off
    assert only(rows_of(5), allow_red=True) == only(rows_of(5))


def test_report_takes_both_options(tmp_path):
    store = Store(tmp_path)
    for record in red_rows(3):
        store.write(record)

    def run(*arguments):
        return CliRunner().invoke(app, [str(tmp_path), "--format", "markdown", *arguments])

    assert "red differences allowed" not in run().stdout
    assert "red differences allowed" in run("--allow", "red").stdout
    assert "against same" in run("--reference", "same").stdout
    assert run("--allow", "amber").exit_code == 2
    wrong = run("--reference", "sme")
    assert wrong.exit_code == 2
    assert "Nearest: 'same'" in wrong.output


def test_one_network_under_two_names_is_flagged():
    twice = {"a": LINES["good"], "b": LINES["good"], "shared": LINES["shared"]}
    for n in (1, 2, 3, 5):
        text = "\n".join(lines_beneath(only(rows_of(n, twice))))
        assert "a, b: equal at every seed in every metric: one network under several names, or saturated?" in text
        assert "equal at every seed" not in "\n".join(lines_beneath(only(rows_of(n))))


def test_one_equal_metric_is_flagged_from_three_seeds_on():
    def text(n):
        records = [
            make_record(name, s, scores(miou + s, miou / 99))
            for name, miou in (("a", 4.0), ("b", 5.0))
            for s in range(n)
        ]
        return "\n".join(lines_beneath(only(records)))

    assert "a, b: equal at every seed in semseg pixel_acc, depth rel_err: one network" in text(3)
    assert "equal at every seed" not in text(2)  # chance


def test_a_constant_difference_is_flagged_and_has_no_p():
    shifted = {"shared": LINES["shared"], "a": tuple(value + 1.0 for value in LINES["shared"])}
    table = only(rows_of(5, shifted))
    text = "\n".join(lines_beneath(table))
    assert "a: the same difference from the reference at every seed in semseg miou" in text
    assert "a +1.00 (constant, no p); detectable: unknown" in text
    assert set(table.statistics[column_index(table, "semseg", "miou")].ranks.values()) == {1}


def test_a_search_without_controls_is_said_above_the_table():
    records = [*rows_of(3), *(make_record("search", seed, search_steps=50) for seed in range(3))]
    for render in RENDERERS:
        assert "no equal-cost control for the search of search" in " ".join(render([only(records)]).split())


def test_csv_holds_the_tests_in_full_precision():
    lines = list(csv.DictReader(io.StringIO(render_csv([only(rows_of(5))]))))
    (good,) = [line for line in lines if (line["method"], line["quantity"]) == ("good", "miou")]
    p = stats.ttest_rel(LINES["good"], LINES["shared"]).pvalue
    assert float(good["p"]) == pytest.approx(p, rel=1e-12)
    assert float(good["p_holm"]) == pytest.approx(2 * p, rel=1e-12)
    assert (good["reference"], good["m"], good["rank"]) == ("shared", "2", "1")
    assert float(good["difference"]) == pytest.approx(5.02)
    (size,) = [line for line in lines if (line["method"], line["quantity"]) == ("good", "total parameters")]
    assert size["p"] == size["rank"] == ""


# failures


def test_failures_are_results():
    records = [make_record("dmo", 0), make_failure("dmo", 1, "oom", "CUDA out of memory\nat B = 32")]
    for render in RENDERERS:
        text = " ".join(render([only(records)]).split())
        assert "CUDA out of memory at B = 32" in text
        assert "stage search, step 120" in text
    assert "| dmo | 1/2 seeds |" in render_markdown([only(records)])


def test_a_row_without_any_result_is_printed():
    table = only([make_record("a", 0), make_failure("dmo", 0, "diverged", "loss is nan")])
    line = next(line for line in render_markdown([table]).splitlines() if line.startswith("| dmo | 0/1 seeds"))
    assert line == "| dmo | 0/1 seeds |" + f" {DASH} |" * 5


def test_a_table_of_failures_alone_is_printed():
    text = render_terminal([only([make_failure("dmo", 0, "timeout", "after 600 s")])])
    assert "timeout: after 600 s" in text


def test_seeds_that_others_have_are_missed():
    records = [make_record("a", 0), make_record("a", 1), make_record("b", 0)]
    table = only(records)
    assert not row_of(table, "b").is_complete
    assert "b: 1/2 seeds: seed 1: not run" in render_terminal([table])
    assert table.banners == ("one seed (b): differences are not evidence",)


def test_a_null_metric_is_a_dash_never_zero():
    table = only([make_record("a", 0, scores(None))])
    line = next(line for line in render_markdown([table]).splitlines() if line.startswith("| a | n="))
    assert line.split(" | ")[2] == DASH
    assert "miou" in render_markdown([table])


# Delta_m


def reference(seed: int, **keywords):
    return make_record("stl", seed, reference=True, **keywords)


def test_delta_is_taken_at_the_same_seed_and_then_averaged():
    stl = [reference(seed, values=scores(miou)) for seed, miou in ((0, 40.0), (1, 50.0))]
    ours = [make_record("ours", seed, scores(miou)) for seed, miou in ((0, 44.0), (1, 45.0))]
    summary = cell_of(only(stl + ours), "ours", "Delta_m")
    # miou +10 % and -10 %, one of four metrics in two tasks: +2.5, -2.5; against the mean reference -0.28
    assert summary.values == pytest.approx((2.5, -2.5))
    assert summary.mean == pytest.approx(0.0)


def test_the_variant_stands_in_the_head():
    records = [reference(0), make_record("ours", 0)]
    default, other = only(records), only(records, variant="one-metric")
    assert "Delta_m (mean-metrics) [%] ↑" in {column_title(column) for column in default.columns}
    assert "Delta_m (one-metric) [%] ↑" in {column_title(column) for column in other.columns}
    assert cell_of(default, "ours", "Delta_m").mean == pytest.approx((7.5 - 2.5) / 2)
    assert cell_of(other, "ours", "Delta_m").mean == pytest.approx(10.0)  # miou, and abs_err where there is no rmse


def test_the_reference_is_known_by_its_audit_not_by_its_name():
    table = only([make_record("single_task", 0), make_record("ours", 0)])
    assert cell_of(table, "ours", "Delta_m").n == 0
    assert "no single-task run among these records" in render_markdown([table])


def test_no_reference_at_a_seed_is_a_dash_with_its_reason():
    table = only([reference(0), make_record("ours", 0), make_record("ours", 1)])
    assert cell_of(table, "ours", "Delta_m").seeds == (0,)
    assert "of ours, seed 1: no single-task run of this seed" in " ".join(table.notes)
    assert "(n=1)" in render_terminal([table])


def test_a_reference_of_another_table_does_not_count():
    tables = aggregate([reference(0, recipe={"name": "published"}), make_record("ours", 0)])
    assert len(tables) == 2
    assert all(cell_of(table, "ours", "Delta_m").n == 0 for table in tables if table.rows[0].label == "ours")


def test_a_failed_reference_does_not_count():
    failed = make_failure("stl", 0)
    table = only([dataclasses.replace(failed, audit={"reference": "single_task"}), make_record("ours", 0)])
    assert cell_of(table, "ours", "Delta_m").n == 0


def test_of_several_references_the_default_one_counts_and_else_none():
    variants = [reference(0, params={"x": x}, values=scores(miou)) for x, miou in ((1, 40.0), (2, 80.0))]
    table = only([*variants, make_record("ours", 0)])
    assert cell_of(table, "ours", "Delta_m").n == 0
    assert "several single-task rows" in " ".join(table.notes)
    marked = [
        dataclasses.replace(record, audit={**record.audit, "non_default_params": given})
        for record, given in zip(variants, ({}, {"x": 2}), strict=True)
    ]
    table = only([*marked, make_record("ours", 0, scores(44.0))])
    assert cell_of(table, "ours", "Delta_m").mean == pytest.approx(2.5)


def test_the_reference_stands_first():
    table = only([make_record("a", 0), reference(0)])
    assert [row.label for row in table.rows] == ["stl", "a"]


# size, compute, cost


@pytest.mark.parametrize(
    ("total", "active", "joint", "macs_sum", "weights", "activations"),
    [  # measurement P4: hard sharing, a skipped block, a split after block 2, single tasks
        (40, (40, 40), 400, 800, 0.5, 0.5),
        (40, (40, 30), 600, 700, 3 / 7, 1 / 7),
        (60, (40, 40), 600, 800, 0.25, 0.25),
        (80, (40, 40), 800, 800, 0.0, 0.0),
    ],
)
def test_p4_sharing_of_weights_is_not_sharing_of_activations(total, active, joint, macs_sum, weights, activations):
    size = {"total": total, "x_backbone": 1.0, "active": {"semseg": active[0], "depth": active[1], "all": total}}
    table = only([make_record(size=size, compute={"macs_joint": joint, "macs_sum": macs_sum})])
    assert cell_of(table, "hard_sharing", "weight sharing").mean == pytest.approx(weights)
    assert cell_of(table, "hard_sharing", "activation sharing").mean == pytest.approx(activations)


def test_multi_domain_sets_have_no_joint_pass():
    table = only([make_record(compute={"macs_joint": None, "macs_sum": 10})])
    assert cell_of(table, "hard_sharing", "macs_joint").n == 0
    assert cell_of(table, "hard_sharing", "activation sharing").n == 0
    assert cell_of(table, "hard_sharing", "macs_sum").mean == 10.0


def test_search_and_final_training_are_priced_apart():
    table = only([make_record(search_steps=20)])
    assert cell_of(table, "hard_sharing", "search cost [optimizer steps]").mean == 20
    assert cell_of(table, "hard_sharing", "search cost [s]").mean == 3.25
    assert cell_of(table, "hard_sharing", "final cost [optimizer steps]").mean == 100
    assert cell_of(table, "hard_sharing", "final cost [s]").mean == 12.5
    assert cell_of(table, "hard_sharing", "weight_steps").mean == 100


def test_heads_name_the_quantity():
    titles = [column_title(column) for column in only([make_record()]).columns]
    assert {"total parameters ↓", "x_backbone ↓", "macs_joint ↓", "macs_sum ↓"} <= set(titles)
    assert not {"params", "#params", "flops"} & {title.lower().split(" [")[0] for title in titles}


def test_zeros_that_save_no_time_are_said():
    table = only([make_record(size={"total": 100, "dense": 100, "nonzero": 30})])
    assert "30.0 % of its parameters are not zero" in " ".join(table.notes)
    assert "masks" not in " ".join(table.notes)
    table = only([make_record(size={"total": 30, "dense": 100, "nonzero": 30})])
    assert "counts leave out what its masks prune" in " ".join(table.notes)


# rows, columns, tables


def test_labels_show_the_parameters_that_matter():
    records = [
        make_record("ada", 0, params={"variant": "official", "search": {"steps": 1}, "same": 3}),
        make_record("ada", 0, params={"variant": "paper", "search": {"steps": 2}, "same": 3}),
        make_record("dmo", 0, params={"same": 4, "k": 2.0}, audit={"non_default_params": {"k": 2.0}}),
    ]
    labels = {row.label for row in only(records).rows}
    assert labels == {
        "ada (search.steps=1, variant=official)",
        "ada (search.steps=2, variant=paper)",
        "dmo (k=2.0)",
    }


def test_columns_follow_tasks_and_the_registry():
    values = {
        "semseg": {"pixel_acc": 1.0, "miou": 1.0},
        "depth": {"rmse": 1.0, "abs_err": 1.0, "own": 1.0, "delta_1_25": 1.0},
    }
    columns = only([make_record(values=values)]).columns
    names = [(column.group, column.name) for column in columns if column.group]
    assert names == [
        ("semseg", "miou"),
        ("semseg", "pixel_acc"),
        ("depth", "abs_err"),
        ("depth", "rmse"),
        ("depth", "delta_1_25"),
        ("depth", "own"),
    ]


def test_values_of_another_unit_get_their_own_column():
    record = make_record("a", 0)
    other = make_record("b", 0)
    entry = {**other.metrics["depth"]["abs_err"], "unit": "disparity"}
    other = dataclasses.replace(other, metrics={**other.metrics, "depth": {**other.metrics["depth"], "abs_err": entry}})
    titles = [column_title(column) for column in only([record, other]).columns]
    assert {"abs_err [metre] ↓", "abs_err [disparity] ↓"} <= set(titles)


@pytest.mark.parametrize("section", ["data", "backbone", "recipe", "selection", "budget"])
def test_what_differs_never_shares_a_table(section):
    assert len(aggregate([make_record("a", 0), make_record("b", 0, **{section: {"more": 1}})])) == 2


def test_the_head_says_what_all_rows_share():
    cell = {"data": {"task_weights": {"semseg": 1.0, "depth": 2.0}}, "backbone": {"drop_path": 0.1}}
    text = render_markdown([only([make_record(**cell)])]).replace("\\", "")
    for part in (
        "data: toy (layout default, version 1)",
        "protocol: standard",
        "tasks: semseg, depth (weight 2)",
        "backbone: resnet18 (weights none, output_stride 32, drop_path 0.1)",
        "recipe: suite",
        "budget: 100 steps",
        "selection: last",
        "data tier: verified on twins",
    ):
        assert part in text


def test_rows_selected_on_the_report_role_are_marked_in_every_form_and_unranked():
    records = [
        make_record(name, seed, scores(miou), selection={"select_on": "test"})
        for seed in range(3)
        for name, miou in (("a", 40.0), ("b", 50.0))
    ]
    table = only(records)
    assert not table.best
    for render in RENDERERS:
        assert "selected on the report role" in " ".join(render([table]).split())


def test_one_cell_twice_is_refused():
    with pytest.raises(UsageError, match=r"Two records of one cell \(hard_sharing, seed 0"):
        aggregate([make_record(), make_record()])


def test_invalid_records_are_lines_and_no_rows():
    error = {"kind": "invalid", "message": "records/x.json: torn", "stage": None, "step": None, "task": None}
    invalid = Record(cell={}, status="invalid", error=error)
    assert len(only([invalid, make_record()]).rows) == 1
    lines = invalid_lines([invalid, make_record()])
    assert lines == ["records/x.json: torn"]
    for render in RENDERERS:
        assert "records/x.json: torn" in render([only([make_record()])], lines)
    assert render_terminal([], lines) == "invalid record records/x.json: torn\n"


# forms


def test_csv_is_tidy_and_exact():
    values = (1 / 3, 2 / 3, 0.1)
    records = [make_record("a,b", seed, scores(value)) for seed, value in enumerate(values)] + [make_failure("a,b", 3)]
    lines = list(csv.DictReader(io.StringIO(render_csv([only(records)]))))
    (line,) = [line for line in lines if line["quantity"] == "miou"]
    assert float(line["mean"]) == statistics.fmean(values)
    assert float(line["sd"]) == pytest.approx(statistics.stdev(values), rel=1e-15)
    assert json.loads(line["values"]) == {str(seed): value for seed, value in enumerate(values)}
    assert (line["n"], line["n_seeds"], line["method"], line["task"]) == ("3", "4", "a,b", "semseg")
    assert (line["unit"], line["direction"], line["data"][:3]) == ("percent", "higher", "toy")
    assert json.loads(line["statuses"])["3"] == "oom"
    (counted,) = [line for line in lines if line["quantity"] == "seeds"]
    assert counted["n"] == "3"
    assert "out of memory" in counted["reason"]


def test_csv_reads_with_pandas():
    pandas = pytest.importorskip("pandas")
    records = [make_record(name, seed, scores(40.0 + seed)) for name in "ab" for seed in range(2)]
    frame = pandas.read_csv(io.StringIO(render_csv([only(records)])))
    picked = frame[frame.quantity == "miou"].set_index("method")
    assert picked.loc["a", "mean"] == 40.5
    assert picked.loc["b", "sd"] == pytest.approx(0.5**0.5)


def test_latex_is_escaped_and_balanced():
    records = [make_record("a_b & 50%", seed, params={"p": "#{x}~^\\"}) for seed in range(3)]
    records += [make_record("a_b & 50%", seed, params={"p": "y"}) for seed in range(3)]
    text = render_latex([only(records)], paper=Paper(columns=["all"]))
    assert r"a\_b \& 50\% (p=\#\{x\}\textasciitilde{}\textasciicircum{}\textbackslash{})" in text
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 1
    width = re.search(r"begin{tabular}{([lr]*)}", text)[1]
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0]
    assert [line.replace(r"\&", "").count(" & ") + 1 for line in body.strip().splitlines()] == [len(width)] * 2
    assert DASH not in text
    assert r"$\Delta_m$" in text
    assert r"\multicolumn{2}{c}{depth}" in text
    assert r"\cmidrule(lr){2-3} \cmidrule(lr){4-5}" in text


def test_latex_minus_signs_are_minus_signs():
    records = [reference(0), make_record("ours-2", 0, scores(30.0))]
    text = render_latex([only(records)])
    assert "$-$" in text
    assert "ours-2" in text


def test_markdown_escapes_what_would_break_a_table():
    records = [make_record("a|b*_<i>", seed) for seed in range(2)]
    text = render_markdown([only(records)])
    (line,) = [line for line in text.splitlines() if "n=2" in line and "63.00" in line]
    assert line.startswith(r"| a\|b\*\_\<i\> |")
    assert line.replace(r"\|", "").count("|") == 8


def test_terminal_does_not_read_labels_as_markup():
    assert "m[bold]x" in render_terminal([only([make_record("m[bold]x", 0)])])


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_terminal_lines_fit_and_lose_no_number(width):
    records = [make_record("method_of_a_long_name", seed, scores(40.0 + seed)) for seed in range(3)]
    text = render_terminal([only(records)], width=width)
    assert max(map(len, text.splitlines())) <= width
    for number in ("41.00 ± 1.00", "63.00 ± 0.00", "0.2300 ± 0.0000", "0.31 M", "1.81 G", "12.5"):
        assert number in text


def test_no_records_no_table():
    assert aggregate([]) == []


def test_many_records_are_aggregated_before_anything_is_drawn():
    records = [make_record(f"m{method}", seed, params={"k": method}) for method in range(50) for seed in range(20)]
    table = only(records)
    assert len(table.rows) == 50
    assert all(row.n == 20 for row in table.rows)
    assert len(render_markdown([table])) < 100_000


def test_the_head_says_which_share_of_the_samples_is_labelled():
    record = make_record(values=scores(40.0))
    assert "labelled" not in only([record]).head
    half = {name: {**entry, "n_units": 88} for name, entry in record.metrics["depth"].items()}
    partly = dataclasses.replace(record, metrics={**record.metrics, "depth": half})
    table = only([partly])
    assert table.head["labelled"] == "depth 88 %"
    for render in RENDERERS:
        assert "depth 88" in render([table])
