"""Floors of every kind, worked by hand: which constants are candidates, and what the evaluator makes of them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from datasets.contracts import TaskSpec
from datasets.kinds import get_kind
from datasets.kinds.constants import PIXELS_FOR_MEDIAN, SURE

NAN = math.nan


def scored(task: TaskSpec, fit: Tensor, report: Tensor) -> dict[str, tuple[list[float], dict[str, float | None]]]:
    """{candidate: (constant, its scores on `report`)}, the labels of `fit` added in two batches."""
    kind = get_kind(task.kind)
    constants = kind.constants(task)
    for part in (fit[:1], fit[1:]):
        constants.update(part)
    found = {}
    for name, constant in constants.candidates().items():
        evaluator = kind.evaluator(task)
        evaluator.update(kind.repeated(constant, report), report)
        found[name] = (constant.tolist(), {metric: one.value for metric, one in evaluator.result().items()})
    return found


def test_classes_get_the_majority_and_every_class_is_as_good_for_balanced_accuracy() -> None:
    task = TaskSpec("digit", "class", 3, ("accuracy", "balanced_accuracy"))
    found = scored(task, torch.tensor([2, 1, 2, -1, -1, -1]), torch.tensor([2, 0, 1, 0, -1]))
    assert found == {"class 2": ([0.0, 0.0, 1.0], {"accuracy": 25.0, "balanced_accuracy": pytest.approx(100 / 3)})}


def test_two_classes_without_an_image_have_an_auroc_of_a_half() -> None:
    task = TaskSpec("digit", "class", 2, ("auroc",))
    assert scored(task, torch.tensor([0, 1, 1]), torch.tensor([0, 1, 1]))["class 1"][1] == {"auroc": 50.0}


def test_attributes_get_the_prior() -> None:
    task = TaskSpec("smiling", "attribute", 1, ("accuracy", "balanced_accuracy", "auroc"))
    found = scored(task, torch.tensor([1.0, 1.0, 1.0, 0.0, NAN]), torch.tensor([1.0, 0.0, 0.0, NAN]))
    scores = {"accuracy": pytest.approx(100 / 3), "balanced_accuracy": 50.0, "auroc": 50.0}
    assert found == {"the prior": ([pytest.approx(math.log(3))], scores)}
    assert scored(task, torch.ones(2), torch.ones(1))["the prior"][0] == [SURE]
    assert scored(task, torch.zeros(2), torch.ones(1))["the prior"][0] == [-SURE]


def test_several_labels_get_their_priors_and_yes_everywhere() -> None:
    task = TaskSpec("face", "multilabel", 3, ("mean_average_precision", "f1"))
    fit = torch.tensor([[1.0, 0.0, NAN], [1.0, 1.0, NAN], [1.0, 0.0, NAN], [0.0, 0.0, NAN]])
    report = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, NAN]])
    found = scored(task, fit, report)
    assert found["the priors"][0] == [pytest.approx(math.log(3)), pytest.approx(-math.log(3)), 0.0]
    # Ties: the precision of yes for all, 1/2 and 1/2. Label 0 is said of both: F1 2/3; label 1 of none: 0.
    assert found["the priors"][1] == pytest.approx({"mean_average_precision": 50.0, "f1": 100 / 3})
    # Of both labels and of label 2, which nobody has.
    expected = {"mean_average_precision": 50.0, "f1": 100 * (2 / 3 + 2 / 3 + 0) / 3}
    assert found["all on"] == ([SURE] * 3, pytest.approx(expected))


def test_semantic_gets_the_majority_everywhere() -> None:
    task = TaskSpec("semseg", "semantic", 3, ("miou", "pixel_acc"))
    fit = torch.tensor([[[1, 1], [0, 255]], [[1, 2], [255, 255]]])
    report = torch.tensor([[[1, 0], [0, 255]]])
    # Class 1 everywhere: IoU 1/3 of class 1 and 0 of class 0; class 2 is neither there nor predicted.
    assert scored(task, fit, report) == {
        "class 1": ([0.0, 1.0, 0.0], {"miou": pytest.approx(100 / 6), "pixel_acc": pytest.approx(100 / 3)})
    }


def test_binary_maps_get_the_prior_and_both_extremes() -> None:
    task = TaskSpec("edge", "binary_map", 1, ("max_iou", "iou_at_50", "best_f1"))
    fit, report = torch.tensor([[[1, 0], [0, 0]], [[0, 0], [255, 255]]]), torch.tensor([[[1, 1], [0, 255]]])
    found = scored(task, fit, report)
    assert found["the prior"][0] == [pytest.approx(math.log(1 / 5))]
    on = {"max_iou": pytest.approx(200 / 3), "iou_at_50": pytest.approx(200 / 3), "best_f1": pytest.approx(80.0)}
    assert found["all on"] == ([SURE], on)
    assert found["all off"] == ([-SURE], {"max_iou": 0.0, "iou_at_50": 0.0, "best_f1": 0.0})
    # One probability, 1/6, below all thresholds of IoU and above many of F: below it everything is on.
    assert found["the prior"][1] == {**on, "max_iou": 0.0, "iou_at_50": 0.0}


def test_depth_gets_median_and_mean() -> None:
    task = TaskSpec("depth", "depth", 1, ("abs_err", "rmse"), unit="metre")
    fit = torch.tensor([[[1.0, 2.0]], [[6.0, NAN]]])
    found = scored(task, fit, torch.tensor([[[2.0, 4.0]], [[NAN, NAN]]]))
    assert found["the median"] == ([2.0], {"abs_err": 1.0, "rmse": pytest.approx(math.sqrt(2))})
    assert found["the mean"] == ([3.0], {"abs_err": 1.0, "rmse": 1.0})


def test_numbers_get_median_and_mean_of_each_channel() -> None:
    age = TaskSpec("age", "scalar", 1, ("abs_err", "mse"), unit="year")
    found = scored(age, torch.tensor([0.0, 0.0, NAN, 9.0]), torch.tensor([0.0, 3.0]))
    assert found["the median"] == ([0.0], {"abs_err": 1.5, "mse": 4.5})
    assert found["the mean"] == ([3.0], {"abs_err": 1.5, "mse": 4.5})
    heat = TaskSpec("keypoint", "dense", 2, ("abs_err",))
    fit = torch.tensor([[[[1.0, 3.0]], [[NAN, NAN]]], [[[5.0, NAN]], [[NAN, NAN]]]])
    assert scored(heat, fit, torch.zeros(1, 2, 1, 2))["the mean"] == ([3.0, 0.0], {"abs_err": 1.5})


def test_normals_get_the_mean_direction() -> None:
    task = TaskSpec("normals", "normals", 3, ("mean_angle", "within_30"))
    fit = torch.tensor([[1.0, 0, 0], [0, 0, 1.0], [0, 0, 0]]).T.reshape(1, 3, 1, 3)
    report = torch.tensor([[0, 0, 1.0], [0, 0, 0]]).T.reshape(1, 3, 1, 2)
    ((constant, scores),) = scored(task, fit, report).values()
    assert constant == pytest.approx([math.sqrt(0.5), 0, math.sqrt(0.5)])
    assert scores == {"mean_angle": pytest.approx(45.0), "within_30": 0.0}


def test_a_median_of_large_maps_is_that_of_a_part_and_a_mean_that_of_all() -> None:
    task = TaskSpec("depth", "depth", 1, ("abs_err",), unit="metre")
    constants = get_kind("depth").constants(task)
    values = 1 + torch.arange(100.0 * 100).reshape(1, 100, 100)
    constants.update(values)
    found = constants.candidates()
    assert values.numel() > PIXELS_FOR_MEDIAN
    assert float(found["the mean"]) == 5000.5
    assert float(found["the median"]) == pytest.approx(5000.5, rel=0.05)
