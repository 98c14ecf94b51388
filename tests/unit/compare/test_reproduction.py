"""Published rows beside ours: verdicts by rule, differences from keys, recalled rows always marked. Measurement 7."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmark.api.reporting import compare_with_boards
from benchmark.compare.boards import Board, board_names, parse_board, read_board
from benchmark.compare.reproduction import (
    fitting_boards,
    judge,
    prediction_half_width,
    published_delta,
    published_names,
    reproduction,
    value_of,
)
from benchmark.compare.reproduction_text import RECALLED, render_reproduction
from benchmark.plan.cells import cell_spec
from benchmark.records.record import Record
from benchmark.records.store import Store
from datasets.errors import UsageError
from methods.registry import method_names
from tests.unit.made_records import make_record, metrics
from tests.unit.paper_suites import cells

BOARD = """
board: toy
dataset: NYUv2
tasks:
  semseg: [{name: miou, unit: percent, higher_is_better: true}]
  depth: [{name: abs_err, unit: metre, higher_is_better: false}]
aggregates: [{name: delta_m, unit: percent, higher_is_better: true}]
protocol: {backbone: b, input_size: i, classes: c, selection_rule: s, seeds: n}
key:
  {protocol: standard, classes: {semseg: 13}, eval_size: [288, 384], backbone: "resnet18:os32", weights: none,
   selection: last, seeds: null}
reproducible: suite
reproducible_reason: a toy
rows:
- {method: Single-Task, variant: null, values: {semseg.miou: 40.0, depth.abs_err: 0.50}, params: [],
   source: {paper: P, table: "1"}, verification: read}
- {method: HPS, variant: null, values: {semseg.miou: 44.0, depth.abs_err: 0.55, aggregate.delta_m: 0.0}, params: [],
   source: {paper: P, table: "1"}, verification: read}
- {method: HPS, variant: PCGrad weighting, values: {semseg.miou: 45.0, depth.abs_err: 0.55}, params: [],
   source: {paper: P, table: "1"}, verification: read}
- {method: AdaShare, variant: listing, values: {semseg.miou: 41.0}, params: [],
   source: {paper: third.party.org, table: a listing}, verification: secondary}
- {method: MTAN, variant: null, values: {semseg.miou: 77.7, depth.abs_err: 0.40}, params: [],
   source: {paper: P, table: not checked}, verification: recalled}
- {method: DEN, variant: null, values: {semseg.miou: 30.0}, params: [],
   source: {paper: P, table: "1"}, verification: read}
"""


def board(**key: Any) -> Board:
    made = parse_board(BOARD, "toy")
    return made.model_copy(update={"key": made.key.model_copy(update=key)})


def record(method: str, seed: int, miou: float, abs_err: float = 0.55, **more: Any) -> Record:
    audit = {"channels": {"semseg": 13, "depth": 1}, "input_size": [288, 384], "tier": "verified on genuine files"}
    data = {"dataset": "nyuv2", "layout": "mtan_npy", "protocol": "standard"}
    values = {"semseg": {"miou": miou}, "depth": {"abs_err": abs_err}}
    reference = method == "single_task"
    return make_record(
        method, seed, values, reference=reference, audit={**audit, **more.pop("audit", {})}, data=data, **more
    )


def records(hard_sharing: Sequence[float] = (43.8, 44.0, 44.3)) -> list[Record]:
    found = [record("single_task", seed, 40 + seed / 10, 0.5) for seed in range(len(hard_sharing))]
    return found + [record("hard_sharing", seed, miou) for seed, miou in enumerate(hard_sharing)]


def test_the_interval_is_that_of_one_more_run() -> None:
    """B1: 27.3, 27.5, 27.7 give h = 4.3027 * 0.2 * sqrt(4/3) = 0.994; a standard error would be 0.115."""
    assert prediction_half_width([27.3, 27.5, 27.7]) == pytest.approx(0.9936, abs=5e-4)
    assert prediction_half_width([27.1, 27.5, 27.9]) == pytest.approx(1.987, abs=5e-4)
    assert prediction_half_width([27.3]) is None


@pytest.mark.parametrize(
    ("published", "ours", "verdict"),
    [
        (27.8, [27.3, 27.5, 27.7], "reproduced"),
        (29.6, [27.3, 27.5, 27.7], "worse"),
        (25.0, [27.3, 27.5, 27.7], "better"),
        (27.8, [27.1, 27.5, 27.9], "inconclusive"),
        (27.8, [27.5, 27.5], "no verdict"),
        (None, [27.3, 27.5, 27.7], "not comparable"),
        (27.8, [], "not comparable"),
    ],
)
def test_verdicts_of_the_specification(published: float | None, ours: list[float], verdict: str) -> None:
    assert judge(False, False, False, published, ours, True) == verdict


def test_the_first_rule_that_matches_counts() -> None:
    ours = [27.3, 27.5, 27.7]
    assert judge(True, True, True, 27.8, ours, True) == "unverified"
    assert judge(False, True, True, 27.8, ours[:1], True) == "not comparable"
    assert judge(False, False, True, 27.8, ours, True) == "consistent"
    assert judge(False, False, True, 29.6, ours, False) == "better"  # lower is better, and ours is lower


def test_rows_pair_by_method_and_balancing() -> None:
    (report,) = reproduction(records(), [board()])
    rows = {row.row.label: row for row in report.rows}
    assert rows["HPS"].ours == "hard_sharing"
    assert rows["HPS (PCGrad weighting)"].ours is None
    assert rows["DEN"].reason == "is not a method here"
    recipe = {"balancing": {"name": "pcgrad", "params": {}}}
    projected = [record("hard_sharing", seed, 44.0, recipe=recipe) for seed in range(3)]
    (other,) = reproduction(projected, [board()])
    assert {row.row.label for row in other.rows if row.ours == "hard_sharing + pcgrad"} == {"HPS (PCGrad weighting)"}


def verdict_of(report: Any, label: str, column: str = "semseg.miou") -> str:
    (row,) = (row for row in report.rows if row.row.label == label)
    (found,) = (one for one in row.comparisons if one.column == column)
    return str(found.verdict)


def test_unknown_seeds_are_amber_and_exclude_nothing() -> None:
    (report,) = reproduction(records(), [board()])
    assert verdict_of(report, "HPS") == "consistent"
    (known,) = reproduction(records(), [board(seeds=3)])
    assert verdict_of(known, "HPS") == "reproduced"
    (unknown_selection,) = reproduction(records(), [board(seeds=3, selection=None)])
    assert verdict_of(unknown_selection, "HPS") == "consistent"


@pytest.mark.parametrize(
    ("key", "field"),
    [
        ({"protocol": "adashare"}, "protocol: adashare published, standard ours"),
        ({"protocol": None}, "protocol: not stated published, standard ours"),
        ({"classes": {"semseg": 40}}, "classes of semseg: 40 published, 13 ours"),
        ({"classes": None}, "classes: not stated published, known ours"),
        ({"eval_size": (480, 640)}, "evaluated size: 480 x 640 published, 288 x 384 ours"),
        ({"backbone": "resnet18:os8"}, "backbone: resnet18:os8 published, resnet18:os32 ours"),
        ({"backbone": "resnet34"}, "backbone: resnet34 published, resnet18:os32 ours"),
        ({"backbone": "per_row"}, "backbone: not stated for the row published, resnet18:os32 ours"),
        ({"weights": "imagenet"}, "weights: imagenet published, none ours"),
    ],
)
def test_what_excludes_a_comparison(key: dict[str, Any], field: str) -> None:
    (report,) = reproduction(records(), [board(**key)])
    assert verdict_of(report, "HPS") == "not comparable"
    (row,) = (row for row in report.rows if row.row.label == "HPS")
    assert field in [str(one) for one in row.differences if one.level == "excludes"]


def test_a_backbone_without_a_stated_stride_is_compared_by_name() -> None:
    (report,) = reproduction(records(), [board(backbone="resnet18", seeds=3)])
    assert verdict_of(report, "HPS") == "reproduced"


@pytest.mark.parametrize(
    ("tag", "verdict"), [("tv_in1k", "reproduced"), ("fb_swsl_ig1b_ft_in1k", "not comparable"), ("", "not comparable")]
)
def test_pretrained_weights_are_told_by_their_tag(tag: str, verdict: str) -> None:
    pretrained = [
        record("hard_sharing", seed, miou, backbone={"weights": "pretrained"}, audit={"weights_tag": tag})
        for seed, miou in enumerate((43.8, 44.0, 44.3))
    ]
    (report,) = reproduction(pretrained, [board(weights="imagenet", seeds=3)])
    assert verdict_of(report, "HPS") == verdict


def test_a_value_in_another_unit_is_no_value() -> None:
    metric = board().tasks["semseg"][0]
    one = record("hard_sharing", 0, 44.0)
    assert value_of(one, "semseg.miou", metric) == 44.0
    assert value_of(one, "semseg.miou", metric.model_copy(update={"unit": "ratio"})) is None
    assert value_of(one, "aggregate.miou_mean", metric) is None  # depth has no mIoU


def test_deltas_of_published_rows_by_hand() -> None:
    """(+10 % - 10 %) / 2 = 0 by either formula; the board prints 0. Recalled rows have none, nor is one their base."""
    made = board()
    rows = {row.label: row for row in made.rows}
    assert published_delta(made, rows["HPS"], "mean-metrics") == pytest.approx(0)
    assert published_delta(made, rows["HPS (PCGrad weighting)"], "one-metric") == pytest.approx((12.5 - 10) / 2)
    assert published_delta(made, rows["? MTAN"], "mean-metrics") is None
    (report,) = reproduction(records(), [made])
    assert any("mean-metrics and one-metric gives it" in note for note in report.notes)
    unread = made.rows[0].model_copy(update={"verification": "recalled"})
    only_recalled = made.model_copy(update={"rows": (unread, *made.rows[1:])})
    assert published_delta(only_recalled, made.rows[1], "mean-metrics") is None


@pytest.mark.parametrize("form", ["terminal", "markdown", "csv"])
def test_recalled_rows_are_hidden_or_marked_in_every_form(form: str) -> None:
    mtan = [record("mtan", seed, 77.7) for seed in range(3)]
    hidden = render_reproduction(reproduction([*records(), *mtan], [board()]), form, 300)
    assert "77.7" not in hidden
    shown = render_reproduction(reproduction([*records(), *mtan], [board()], show_recalled=True), form, 300)
    lines = [line for line in shown.splitlines() if "77.7" in line]
    assert lines
    assert all(RECALLED in line and "unverified" in line for line in lines)
    if form == "csv":
        rows = list(csv.DictReader(io.StringIO(shown)))
        (row,) = (row for row in rows if row["metric"] == "semseg.miou" and "MTAN" in row["published_row"])
        assert (row["difference"], row["standing"]) == ("", RECALLED)


@given(st.lists(st.floats(1, 99), min_size=3, max_size=6))
def test_a_recalled_row_never_gets_a_verdict(values: list[float]) -> None:
    mtan = [record("mtan", seed, value) for seed, value in enumerate(values)]
    (report,) = reproduction(mtan, [board()], show_recalled=True)
    (row,) = (row for row in report.rows if row.row.verification == "recalled")
    assert {one.verdict for one in row.comparisons} == {"unverified"}
    assert all(published is None for published, _ in row.delta.values())


def test_second_hand_rows_name_who_prints_them() -> None:
    text = render_reproduction(reproduction(records(), [board()]), "markdown")
    (line,) = (line for line in text.splitlines() if "AdaShare" in line and "miou" in line)
    assert "third.party.org" in line


def test_a_board_that_is_only_shown_is_never_paired() -> None:
    shown = board().model_copy(update={"reproducible": "report_only"})
    (report,) = reproduction(records(), [shown])
    assert not [row for row in report.rows if row.ours]
    assert fitting_boards(records(), [shown]) == []


def test_names_of_published_tables_lead_to_what_exists() -> None:
    names = published_names()
    assert set(names["methods"].values()) <= set(method_names())
    known = {read_board(name).dataset for name in board_names()}
    assert set(names["datasets"]) <= known
    printed = {row.method for name in board_names() for row in read_board(name).rows}
    assert set(names["methods"]) <= printed


def test_every_shipped_board_is_rendered_in_every_form() -> None:
    boards = [read_board(name) for name in board_names()]
    for form in ("terminal", "markdown", "csv"):
        text = render_reproduction(reproduction([], boards, show_recalled=True), form)
        assert all(name in text.replace("\\_", "_") for name in board_names())


def test_the_command_reads_a_folder_of_boards(tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    for one in records():
        store.write(one)
    (tmp_path / "boards").mkdir()
    (tmp_path / "boards" / "toy.yaml").write_text(BOARD, encoding="utf-8")
    text = compare_with_boards(tmp_path / "run", published=tmp_path / "boards", width=250)
    assert "Board toy: NYUv2" in text
    assert "consistent" in text
    with pytest.raises(UsageError, match=r"Unknown board 'nyuv2_3task'\. Nearest: 'nyuv2_3task_"):
        compare_with_boards(tmp_path / "run", "nyuv2_3task")
    with pytest.raises(UsageError, match="holds no boards"):
        compare_with_boards(tmp_path / "run", published=tmp_path)
    with pytest.raises(UsageError, match="holds no records"):
        compare_with_boards(tmp_path / "boards")


@pytest.mark.parametrize(
    ("suite", "verdict"), [("nyuv2_3task_adashare", "consistent"), ("nyuv2_standard", "not comparable")]
)
def test_shipped_suites_stand_beside_their_board(suite: str, verdict: str, tmp_path: Path) -> None:
    """What re-enacts a paper is judged; what holds a part out and decodes normals is not the paper's measurement."""
    planned = cells(suite, "adashare")[0]
    spec = cell_spec(planned.settings)
    audit = {"channels": {task.name: task.channels for task in spec.tasks}, "input_size": list(spec.native_size)}
    scores = {"semseg": {"miou": 30.2}, "normals": {"mean_angle": 16.6}, "depth": {"abs_err": 0.6}}
    made = [make_record("adashare", seed, scores, audit=audit) for seed in range(3)]
    ours = [
        dataclasses.replace(one, cell={**planned.document, "seed": seed}, metrics=metrics_of(seed, scores))
        for seed, one in enumerate(made)
    ]
    (report,) = reproduction(ours, [read_board("nyuv2_3task_adashare")])
    assert verdict_of(report, "† AdaShare (aggregator listing)") == verdict
    (row,) = (row for row in report.rows if row.ours)
    fields = {difference.field for difference in row.differences}
    assert {"selection", "seeds", "reader of the data"} <= fields
    assert ("protocol" in fields) == (verdict == "not comparable")


def metrics_of(seed: int, scores: dict[str, dict[str, float]]) -> Any:
    return metrics(
        {task: {name: value * (1 + seed / 1000) for name, value in each.items()} for task, each in scores.items()}
    )
