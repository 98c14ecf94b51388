"""Delta_m: hand-worked values (measurement R1), null rules, and what an average must not hide."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmark.records.delta import compared_metrics, delta_m, delta_metric, delta_task, primary_metric
from tests.unit.made_records import entry, metrics

STL = metrics(
    {
        "semseg": {"miou": 0.40, "pixel_acc": 0.60},
        "depth": {"abs_err": 0.50, "rel_err": 0.20, "delta_1_25": 0.60, "rmse": 1.0},
    }
)
METHOD = metrics(
    {
        "semseg": {"miou": 0.44, "pixel_acc": 0.63},
        "depth": {"abs_err": 0.45, "rel_err": 0.23, "delta_1_25": 0.66, "rmse": 0.9},
    }
)
TASKS = ("semseg", "depth")


def test_r1_mean_metrics_averages_metrics_within_tasks_first():
    assert delta_task(METHOD["semseg"], STL["semseg"]).value == pytest.approx(7.5)
    assert delta_task(METHOD["depth"], STL["depth"]).value == pytest.approx(5 / 3)
    result = delta_m(METHOD, STL, TASKS, "mean-metrics")
    # 6.25 when the sign of an error is ignored, 4.0 as a mean over all five metrics
    assert result.value == pytest.approx(4.58333, abs=1e-4)
    assert result.reason is None


def test_r1_one_metric_takes_miou_and_rmse():
    assert delta_m(METHOD, STL, TASKS, "one-metric").value == pytest.approx(10.0)


def test_a_network_equal_to_its_reference_has_zero_not_null():
    assert delta_m(STL, STL, TASKS).value == 0.0


@pytest.mark.parametrize("baseline", [0.0, 1e-9, -1e-9])
def test_a_vanishing_baseline_has_no_ratio(baseline):
    assert delta_metric(1.0, baseline, True) is None


def test_a_negative_baseline_keeps_the_direction():
    assert delta_metric(-0.4, -0.5, True) == pytest.approx(20.0)
    assert delta_metric(-0.4, -0.5, False) == pytest.approx(-20.0)


@pytest.mark.parametrize(
    ("ours", "baseline", "words"),
    [
        ({"miou": entry("miou", None)}, {"miou": entry("miou", 0.4)}, "miou is null in the row"),
        ({"miou": entry("miou", 0.4)}, {"miou": entry("miou", None)}, "miou is null in the single-task run"),
        ({"miou": entry("miou", 0.4)}, {"miou": entry("miou", 0.0)}, "miou is 0 in the single-task run"),
        ({"miou": entry("miou", 0.4)}, STL["semseg"], "pixel_acc is missing in the row"),
        (STL["semseg"], {"miou": entry("miou", 0.4)}, "pixel_acc is missing in the single-task run"),
        ({"unheard": entry("unheard", 1.0), "of": entry("of", 1.0)}, {}, "no primary metric among of, unheard"),
        ({"miou": entry("miou", 0.4)}, {"miou": {**entry("miou", 0.4), "unit": "ratio"}}, "another unit"),
        ({"miou": entry("miou", 0.4)}, {"miou": {**entry("miou", 0.4), "higher_is_better": False}}, "direction"),
    ],
)
def test_a_null_says_why_and_makes_the_whole_value_null(ours, baseline, words):
    result = delta_m({"semseg": ours, "depth": METHOD["depth"]}, {"semseg": baseline, "depth": STL["depth"]}, TASKS)
    assert result.value is None
    assert words in result.reason
    assert "semseg" in result.reason


def test_a_missing_task_is_null_not_an_average_over_the_rest():
    assert delta_m({"semseg": METHOD["semseg"]}, STL, TASKS).value is None
    assert delta_m(METHOD, {"semseg": STL["semseg"]}, TASKS).value is None
    assert delta_m(METHOD, STL, ()).value is None


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"miou", "pixel_acc"}, ("miou", "pixel_acc")),
        ({"miou"}, ("miou",)),
        (
            {"within_30", "within_22_5", "within_11_25", "median_angle", "mean_angle"},
            ("mean_angle", "median_angle", "within_11_25", "within_22_5", "within_30"),
        ),
        # rmse is stored and is no part of J for depth
        ({"rmse", "abs_err", "rel_err", "delta_1_25"}, ("abs_err", "rel_err", "delta_1_25")),
        ({"max_iou", "iou_at_50"}, ("max_iou",)),
        ({"f_dilated", "best_f1"}, ("f_dilated",)),
        ({"accuracy"}, ("accuracy",)),
        ({"balanced_accuracy", "auroc"}, ("balanced_accuracy",)),
        ({"abs_err", "mse", "rmse"}, ("abs_err",)),
        ({"weighted_ce_err"}, ("weighted_ce_err",)),
        ({"a_plug_ins_own"}, ("a_plug_ins_own",)),
    ],
)
def test_metrics_that_enter(names, expected):
    assert compared_metrics(names, "mean-metrics") == expected


@pytest.mark.parametrize(
    ("names", "primary"),
    [
        ({"miou", "pixel_acc"}, "miou"),
        ({"rmse", "abs_err", "rel_err"}, "rmse"),
        ({"mean_angle", "within_30"}, "mean_angle"),
        ({"iou_at_50", "max_iou"}, "max_iou"),
        ({"best_f1", "f_dilated"}, "f_dilated"),
        ({"accuracy", "balanced_accuracy"}, "accuracy"),
        ({"abs_err", "mse", "rmse"}, "abs_err"),
        ({"p", "q"}, None),
    ],
)
def test_primary_metrics(names, primary):
    assert primary_metric(names) == primary


@given(st.floats(0.01, 100), st.floats(0.01, 100), st.booleans(), st.floats(0.1, 1000))
def test_positive_is_better_and_the_unit_does_not_matter(value, baseline, higher, scale):
    delta = delta_metric(value, baseline, higher)
    better = value > baseline if higher else value < baseline
    assert delta is not None
    assert (delta > 0) == better
    assert delta_metric(value * scale, baseline * scale, higher) == pytest.approx(delta, rel=1e-6, abs=1e-6)
    assert delta_metric(value, baseline, not higher) == -delta
