"""Metrics: a wrong number here is a wrong table. Hand-worked cases are those of measurement 10, in percent."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn import metrics as sklearn_metrics
from torch import Tensor

from datasets.contracts import TaskSpec
from datasets.errors import UnknownNameError, UsageError
from datasets.kinds import get_kind, kind_names
from datasets.kinds.binary_map import F_THRESHOLDS, IOU_THRESHOLDS, dilate, levels, tolerance_squared
from datasets.kinds.metrics import METRICS, Evaluator, LabelError, computed_metrics, get_metric
from datasets.protocols import STANDARD, ProtocolFlags, get_protocol
from methods.backbones.mmseg import load

DEPTH_METRICS = tuple(computed_metrics("depth"))
SEMSEG = TaskSpec("semseg", "semantic", 5, ("miou", "pixel_acc"))
DEPTH = TaskSpec("depth", "depth", 1, DEPTH_METRICS, unit="metre")
SALIENCY = TaskSpec("saliency", "binary_map", 1, ("max_iou", "iou_at_50"))
EDGE = TaskSpec("edge", "binary_map", 1, ("f_dilated", "best_f1"))
ALL_MAPS = dataclasses.replace(EDGE, metrics=("max_iou", "iou_at_50", "f_dilated", "best_f1"))
DIGIT = TaskSpec("digit", "class", 3, ("accuracy", "balanced_accuracy"))
NORMALS = TaskSpec("normals", "normals", 3, ("mean_angle", "median_angle", "within_11_25", "within_22_5", "within_30"))
ENCODED = dataclasses.replace(NORMALS, name="colours", frame="encoded")
RAW = get_protocol("adashare", "nyuv2")
KEYPOINT = TaskSpec("keypoint", "dense", 2, ("abs_err", "mse", "rmse"))
SMILING = TaskSpec("smiling", "attribute", 1, ("accuracy", "balanced_accuracy", "auroc"))
AGE = TaskSpec("age", "scalar", 1, ("abs_err", "mse", "rmse"), unit="year")
FACE = TaskSpec("face", "multilabel", 3, ("mean_average_precision", "f1"))
PAIR = TaskSpec("pair", "class", 2, ("accuracy", "balanced_accuracy", "auroc"))


def evaluate(task: TaskSpec, *batches: tuple[Tensor, Tensor], flags: ProtocolFlags = STANDARD) -> Evaluator:
    evaluator = get_kind(task.kind).evaluator(task, flags)
    for prediction, label in batches:
        evaluator.update(prediction, label)
    return evaluator


def values(task: TaskSpec, *batches: tuple[Tensor, Tensor], flags: ProtocolFlags = STANDARD) -> dict[str, float | None]:
    return {name: result.value for name, result in evaluate(task, *batches, flags=flags).result().items()}


def one_hot(classes: Tensor, n_classes: int) -> Tensor:
    """Logits [B, C, ...] whose argmax is `classes` [B, ...]."""
    return torch.nn.functional.one_hot(classes, n_classes).movedim(-1, 1).float()


def logit(probability: list[float]) -> Tensor:
    return torch.tensor(probability, dtype=torch.float64).logit()


# The registry


def test_every_metric_has_a_unit_and_a_registered_kind() -> None:
    for name in METRICS:
        metric = get_metric(name)
        assert metric.kinds, name
        assert set(metric.kinds) <= set(kind_names()), name
    assert get_metric("miou").higher_is_better
    assert not get_metric("rmse").higher_is_better
    assert get_metric("accuracy").unit == "percent"
    assert get_metric("abs_err").unit == "label_units"


def test_published_only_metrics_are_never_computed() -> None:
    assert get_metric("ods_f").status == "published only"
    assert "ods_f" not in computed_metrics("binary_map")
    with pytest.raises(UnknownNameError, match="Unknown metric of kind 'binary_map' 'ods_f'"):
        evaluate(dataclasses.replace(EDGE, metrics=("ods_f",)))


def test_a_misspelt_metric_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="'miou'"):
        get_metric("mIoUs")
    with pytest.raises(UnknownNameError, match="Nearest: 'accuracy'"):
        evaluate(dataclasses.replace(DIGIT, metrics=("acuracy",)))


# S1


def s1() -> tuple[Tensor, Tensor]:
    label = torch.tensor([[[0, 0, 1, 1, 2, 255]]])
    return one_hot(torch.tensor([[[0, 1, 1, 1, 3, 2]]]), 5), label


def test_s1_miou_over_classes_in_label_or_prediction() -> None:
    results = evaluate(SEMSEG, s1()).result()
    assert results["miou"].value == pytest.approx(100 * (1 / 2 + 2 / 3 + 0 + 0) / 4)  # 29.17
    assert results["miou"].detail == {"classes": [0, 1, 2, 3]}
    assert results["miou"].n_units == results["pixel_acc"].n_units == 5
    assert results["pixel_acc"].value == pytest.approx(60.0)


def test_s1_the_compatible_variants() -> None:
    assert values(SEMSEG, s1(), flags=ProtocolFlags(miou="tp_only"))["miou"] == pytest.approx(58.3333, abs=1e-4)
    assert values(SEMSEG, s1(), flags=ProtocolFlags(miou="all_classes"))["miou"] == pytest.approx(23.3333, abs=1e-4)
    assert values(SEMSEG, s1(), flags=ProtocolFlags(void_as_error=True))["pixel_acc"] == pytest.approx(50.0)
    cityscapes = get_protocol("adashare", "cityscapes")
    assert values(SEMSEG, s1(), flags=cityscapes)["pixel_acc"] == pytest.approx(50.0)
    assert values(SEMSEG, s1(), flags=get_protocol("adashare", "nyuv2"))["pixel_acc"] == pytest.approx(60.0)


def test_pixel_accuracy_per_image_is_not_the_pooled_one() -> None:
    label = torch.tensor([[[0, 255, 255, 255]], [[1, 1, 1, 0]], [[255, 255, 255, 255]]])
    prediction = one_hot(torch.tensor([[[1, 0, 0, 0]], [[1, 1, 1, 0]], [[0, 0, 0, 0]]]), 5)
    assert values(SEMSEG, (prediction, label))["pixel_acc"] == pytest.approx(80.0)
    result = evaluate(SEMSEG, (prediction, label), flags=ProtocolFlags(pixel_acc="image_mean")).result()["pixel_acc"]
    assert result.value == pytest.approx(50.0)
    assert (result.n_units, result.detail) == (2, {"images_skipped": 1})


def test_weighted_cross_entropy_by_hand() -> None:
    """Per image sum(w l) / sum(w) over labelled pixels; then the mean over images. Pooling would give another value."""
    task = TaskSpec("semseg", "semantic", 2, ("weighted_ce_err",), class_weights=(1.0, 3.0))
    logits = torch.zeros(3, 2, 1, 3)
    logits[:, 0] = 1.0
    label = torch.tensor([[[0, 1, 255]], [[0, 0, 0]], [[255, 255, 255]]])
    likely, unlikely = math.log(1 + math.exp(-1)), math.log(1 + math.exp(1))
    first, second = (likely + 3 * unlikely) / 4, likely
    result = evaluate(task, (logits, label)).result()["weighted_ce_err"]
    assert result.value == pytest.approx((first + second) / 2)
    assert (result.n_units, result.detail) == (2, {"images_skipped": 1})
    assert values(task, (logits[:1], label[:1]), (logits[1:], label[1:]))["weighted_ce_err"] == pytest.approx(
        result.value
    )
    kind = get_kind("semantic")
    pooled = (likely + 3 * unlikely + 3 * likely) / (4 + 3)
    assert float(kind.loss(logits, label, task)) == pytest.approx(pooled)
    equal = dataclasses.replace(task, class_weights=(2.0, 2.0))
    assert float(kind.loss(logits, label, equal)) == pytest.approx((4 * likely + unlikely) / 5)
    nothing = torch.full_like(label, 255)
    assert evaluate(task, (logits, nothing)).result()["weighted_ce_err"].value is None
    learnt = logits.clone().requires_grad_()
    kind.loss(learnt, nothing, task).backward()
    assert torch.equal(learnt.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 0.0), (1.0, -1.0), (1.0, math.inf), (1.0, math.nan)])
def test_weights_of_classes_are_one_positive_number_each(weights: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match="Task 'semseg': class_weights must be 2 positive numbers"):
        TaskSpec("semseg", "semantic", 2, ("miou",), class_weights=weights)


def test_miou_is_null_and_not_zero_without_a_valid_pixel() -> None:
    nothing = one_hot(torch.zeros(1, 2, 2, dtype=torch.int64), 5), torch.full((1, 2, 2), 255)
    for flags in (STANDARD, get_protocol("adashare"), ProtocolFlags(miou="all_classes")):
        results = evaluate(SEMSEG, nothing, flags=flags).result()
        assert [result.value for result in results.values()] == [None, None]
    assert evaluate(SEMSEG).result()["miou"].value is None  # no batch at all
    wrong = one_hot(torch.ones(1, 1, 1, dtype=torch.int64), 5), torch.zeros(1, 1, 1, dtype=torch.int64)
    assert values(SEMSEG, wrong, flags=ProtocolFlags(miou="tp_only"))["miou"] is None
    assert values(SEMSEG, wrong)["miou"] == 0.0


def test_predictions_are_resized_before_argmax() -> None:
    # Upsampled logits cross in the middle of the second pixel; upsampled classes would cross at its border.
    logits = torch.tensor([[[[3.0, 0.0]], [[0.0, 1.0]]]])  # [1, 2, 1, 2]
    task = dataclasses.replace(SEMSEG, channels=2)
    label = torch.tensor([[[0, 0, 0, 0, 0, 1, 1, 1]]])
    assert values(task, (logits, label))["pixel_acc"] == pytest.approx(100.0)
    assert values(task, (logits, label), flags=ProtocolFlags(upsample="nearest"))["pixel_acc"] == pytest.approx(87.5)


# D1, D2


def d1() -> tuple[Tensor, Tensor]:
    return torch.tensor([[[[1.2, -2.0, 2.0, 3.0]]]]), torch.tensor([[[1.0, 2.0, 4.0, math.nan]]])


def test_d1_depth_errors() -> None:
    results = evaluate(DEPTH, d1()).result()
    expected = {"abs_err": 2.0667, "rel_err": 0.9, "rmse": 2.5846} | dict.fromkeys(DEPTH_METRICS[3:], 100 / 3)
    assert {name: result.value for name, result in results.items()} == pytest.approx(expected, abs=1e-4)
    assert {result.n_units for result in results.values()} == {3}
    assert results["delta_1_25"].detail["nonpositive"] == pytest.approx(100 / 3)


def test_d1_a_negative_ratio_counts_as_correct_only_under_its_flag() -> None:
    found = values(DEPTH, d1(), flags=get_protocol("adashare"))
    assert [found[name] for name in DEPTH_METRICS[3:]] == pytest.approx([200 / 3] * 3)
    zero = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1)
    assert values(DEPTH, zero)["delta_1_25_3"] == 0.0


def test_delta_bounds_are_strict() -> None:
    exact = torch.tensor([[[[1.25, 1.5625, 1.953125]]]]), torch.ones(1, 1, 3)
    assert [values(DEPTH, exact)[name] for name in DEPTH_METRICS[3:]] == pytest.approx([0.0, 100 / 3, 200 / 3])


def test_d2_errors_are_pooled_over_pixels() -> None:
    label = torch.tensor([[[1.0, math.nan, math.nan]], [[1.0, 1.0, 1.0]], [[math.nan] * 3]])
    prediction = torch.tensor([[[[2.0, 9.0, 9.0]]], [[[1.0, 1.0, 1.0]]], [[[5.0] * 3]]])
    assert values(DEPTH, (prediction, label))["abs_err"] == pytest.approx(0.25)
    compatible = evaluate(DEPTH, (prediction, label), flags=get_protocol("adashare")).result()
    assert compatible["abs_err"].value == compatible["rmse"].value == pytest.approx(0.5)
    assert compatible["abs_err"].detail == {"images_skipped": 1}
    assert compatible["abs_err"].n_units == 2


def test_ratios_leave_out_labels_near_zero() -> None:
    task = dataclasses.replace(DEPTH, unit="inverse_depth")
    results = evaluate(task, (torch.tensor([[[[0.5, 1.0]]]]), torch.tensor([[[0.0, 1.0]]]))).result()
    assert (results["abs_err"].value, results["abs_err"].n_units) == (0.25, 2)
    assert (results["rel_err"].value, results["rel_err"].n_units) == (0.0, 1)


# A1, E1


def test_a1_one_threshold_for_the_split() -> None:
    prediction = torch.stack([logit([0.9, 0.8]), logit([0.5, 0.1])]).view(2, 1, 1, 2)
    label = torch.tensor([[[1, 0]], [[1, 0]]])
    results = evaluate(SALIENCY, (prediction, label)).result()
    assert results["max_iou"].value == pytest.approx(75.0)  # a threshold for each image would give 100
    assert results["max_iou"].detail["threshold"] == 0.2  # the smallest of the best
    assert results["iou_at_50"].value == pytest.approx(25.0)  # 0.5 > 0.5 does not hold
    assert results["max_iou"].n_units == 2


def test_iou_of_an_empty_image_is_one_and_of_an_ignored_image_nothing() -> None:
    empty = torch.full((1, 1, 1, 2), -9.0), torch.zeros(1, 1, 2, dtype=torch.int64)
    assert values(SALIENCY, empty) == {"max_iou": 100.0, "iou_at_50": 100.0}
    ignored = torch.full((1, 1, 1, 2), -9.0), torch.full((1, 1, 2), 255)
    result = evaluate(SALIENCY, ignored).result()["max_iou"]
    assert (result.value, result.n_units) == (None, 0)


def test_e1_the_tolerance_counts() -> None:
    width = 134  # diagonal 134.004, so the tolerance is 1.005 pixels
    assert tolerance_squared(1, width) == 1
    label = torch.zeros(1, 1, width, dtype=torch.int64)
    label[0, 0, 3] = 1
    prediction = torch.full((1, 1, 1, width), -20.0)
    prediction[0, 0, 0, [4, 8]] = 20.0
    assert values(EDGE, (prediction, label)) == pytest.approx({"f_dilated": 200 / 3, "best_f1": 0.0})


def test_ignored_pixels_are_neither_predicted_nor_matched() -> None:
    width = 134
    label = torch.zeros(1, 1, width, dtype=torch.int64)
    label[0, 0, 3], label[0, 0, 4], label[0, 0, 60] = 1, 255, 255
    prediction = torch.full((1, 1, 1, width), -20.0)
    prediction[0, 0, 0, [4, 60]] = 20.0  # beside the true edge, but ignored
    assert values(EDGE, (prediction, label)) == {"f_dilated": 0.0, "best_f1": 0.0}


def f_by_distance_transform(probability: np.ndarray, label: np.ndarray, distance: float) -> float:
    """The definition of measurement 1.2, threshold by threshold, with scipy's exact distance transform."""
    best = 0.0
    true = label == 1
    for threshold in F_THRESHOLDS:
        counts = np.zeros(4)
        for image in range(len(label)):
            predicted = (probability[image] > threshold) & (label[image] != 255)
            far = np.full(true[image].shape, np.inf)
            to_true = ndimage.distance_transform_edt(~true[image]) if true[image].any() else far
            to_predicted = ndimage.distance_transform_edt(~predicted) if predicted.any() else far
            counts += [
                (predicted & (to_true <= distance)).sum(),
                predicted.sum(),
                (true[image] & (to_predicted <= distance)).sum(),
                true[image].sum(),
            ]
        precision = counts[0] / counts[1] if counts[1] else 0.0
        recall = counts[2] / counts[3] if counts[3] else 0.0
        best = max(best, 2 * precision * recall / (precision + recall) if precision + recall else 0.0)
    return 100 * best


@pytest.mark.parametrize(("height", "width"), [(20, 30), (160, 220), (400, 3)])
def test_f_scores_equal_a_distance_transform(height: int, width: int) -> None:
    generator = torch.Generator().manual_seed(height)
    prediction = torch.randn(2, 1, height, width, generator=generator, dtype=torch.float64) * 2 - 2
    label = (torch.rand(2, height, width, generator=generator) > 0.98).long()
    label[torch.rand(2, height, width, generator=generator) > 0.9] = 255
    probability = prediction[:, 0].sigmoid().numpy()
    found = values(EDGE, (prediction, label))
    distance = 0.0075 * math.hypot(height, width)
    assert found["f_dilated"] == pytest.approx(f_by_distance_transform(probability, label.numpy(), distance))
    assert found["best_f1"] == pytest.approx(f_by_distance_transform(probability, label.numpy(), 0.0))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 40), st.integers(1, 9), st.integers(1, 9), st.integers(0, 10**6))
def test_dilation_is_a_maximum_over_the_disk(radius_squared: int, height: int, width: int, seed: int) -> None:
    image = torch.randint(0, 100, (1, height, width), generator=torch.Generator().manual_seed(seed))
    expected = torch.zeros_like(image)
    for y, x in np.ndindex(height, width):
        near = [
            int(image[0, v, u]) for v, u in np.ndindex(height, width) if (v - y) ** 2 + (u - x) ** 2 <= radius_squared
        ]
        expected[0, y, x] = max(near)
    assert torch.equal(dilate(image, radius_squared), expected)


def test_tolerance_of_known_image_sizes() -> None:
    assert [tolerance_squared(*size) for size in ((36, 36), (480, 640), (512, 512))] == [0, 36, 29]
    assert pytest.approx(36) == 0.0075**2 * (480**2 + 640**2)


def test_levels_at_the_thresholds_themselves() -> None:
    probability = torch.tensor(F_THRESHOLDS, dtype=torch.float64)
    assert levels(probability, F_THRESHOLDS).tolist() == list(range(99))  # strictly above the thresholds before it only
    above = torch.nextafter(probability, torch.ones(()).double())
    assert levels(above, F_THRESHOLDS).tolist() == list(range(1, 100))
    assert math.floor(0.29 * 100) == 28  # what a floor would make of threshold 29 / 100


@pytest.mark.parametrize("thresholds", [F_THRESHOLDS, IOU_THRESHOLDS])
@given(data=st.data())
def test_levels_equal_a_search_in_the_thresholds(thresholds: tuple[float, ...], data: st.DataObject) -> None:
    near = [math.nextafter(value, to) for value in thresholds for to in (0.0, 1.0)]
    numbers = st.floats(0.0, 1.0) | st.sampled_from([*thresholds, *near])
    probability = torch.tensor(data.draw(st.lists(numbers, min_size=1)), dtype=torch.float64)
    assert levels(probability, thresholds).tolist() == np.searchsorted(thresholds, probability.numpy()).tolist()


def test_a_probability_that_is_no_number_has_no_level() -> None:
    assert levels(torch.tensor([[math.nan, 0.5]]).double(), F_THRESHOLDS).tolist() == [[0, 49]]


# Classes: C1, C2 and the others


def test_c1_c2_every_sample_counts_once() -> None:
    right = torch.tensor([1, 1, 1, 1, 0])
    task = dataclasses.replace(PAIR, metrics=("accuracy",))
    batches = [(one_hot(right[i : i + 2], 2), torch.ones(len(right[i : i + 2])).long()) for i in (0, 2, 4)]
    assert values(task, *batches)["accuracy"] == pytest.approx(80.0)  # mean of batch means: 66.7; last one dropped: 100
    label = torch.randint(0, 2, (654,), generator=torch.Generator().manual_seed(0))
    batches = [(one_hot(part, 2), part) for part in label.split(16)]
    assert evaluate(task, *batches).result()["accuracy"].n_units == 654


def test_ties_go_to_the_lowest_class_and_minus_one_is_ignored() -> None:
    results = evaluate(DIGIT, (torch.zeros(4, 3), torch.tensor([0, 1, -1, 0]))).result()
    assert results["accuracy"].value == pytest.approx(100 * 2 / 3)
    assert results["balanced_accuracy"].value == pytest.approx(50.0)
    assert results["balanced_accuracy"].detail == {"classes": [0, 1]}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(-3, 3)), min_size=2, max_size=30))
def test_auroc_counts_pairs(samples: list[tuple[int, int]]) -> None:
    label = torch.tensor([label for label, _ in samples])
    score = torch.tensor([float(score) for _, score in samples])
    found = values(PAIR, (torch.stack([-score / 2, score / 2], dim=1), label))["auroc"]
    positive, negative = score[label == 1], score[label == 0]
    if not len(positive) or not len(negative):
        assert found is None
        return
    pairs = [(p > n) + 0.5 * (p == n) for p in positive.tolist() for n in negative.tolist()]
    assert found == pytest.approx(100 * sum(pairs) / len(pairs))


def test_class_metrics_equal_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(1)
    logits, label = torch.randn(200, 2, generator=generator), torch.randint(0, 2, (200,), generator=generator)
    found = values(PAIR, (logits, label))
    chosen, score = logits.argmax(dim=1).numpy(), (logits[:, 1] - logits[:, 0]).numpy()
    assert found["accuracy"] == pytest.approx(100 * sklearn_metrics.accuracy_score(label, chosen))
    assert found["balanced_accuracy"] == pytest.approx(100 * sklearn_metrics.balanced_accuracy_score(label, chosen))
    assert found["auroc"] == pytest.approx(100 * sklearn_metrics.roc_auc_score(label, score))


def test_auroc_of_more_than_two_classes_is_refused_when_planning() -> None:
    with pytest.raises(UsageError, match="3 classes; auroc is defined for 2"):
        evaluate(dataclasses.replace(DIGIT, metrics=("auroc",)))


@pytest.mark.numerical
def test_semantic_metrics_equal_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(2)
    label = torch.randint(0, 5, (3, 20, 20), generator=generator)
    chosen = torch.where(torch.rand(3, 20, 20, generator=generator) < 0.5, label, label.flip(0))
    label[torch.rand(3, 20, 20, generator=generator) < 0.2] = 255
    mask = (label != 255).numpy()
    expected = sklearn_metrics.jaccard_score(label.numpy()[mask], chosen.numpy()[mask], average="macro")
    assert values(SEMSEG, (one_hot(chosen, 5), label))["miou"] == pytest.approx(100 * expected)


# N1 to N3: normals


def n1(prediction: tuple[float, float, float], label: tuple[float, float, float]) -> tuple[Tensor, Tensor]:
    return torch.tensor(prediction).view(1, 3, 1, 1), torch.tensor(label).view(1, 3, 1, 1)


def colours(vectors: Tensor) -> Tensor:
    return (vectors + 1) * 127.5


@pytest.mark.numerical
def test_n1_n2_angles_and_what_undecoded_colours_make_of_them() -> None:
    left = (-1.0, 0.0, 0.0)
    for prediction, angle, compatible in (((0.0, 0.0, -1.0), 90.0, 60.0), ((1.0, 0.0, 0.0), 180.0, 54.73561)):
        batch = n1(prediction, left)
        assert values(NORMALS, batch)["mean_angle"] == pytest.approx(angle)
        encoded = colours(batch[0]), colours(batch[1])
        assert values(ENCODED, encoded, flags=RAW)["mean_angle"] == pytest.approx(compatible, abs=1e-5)


@pytest.mark.usefixtures("float64")
def test_n3_a_zero_prediction_and_the_length_of_one() -> None:
    batch = n1((0.0, 0.0, 0.0), (0.0, 0.6, 0.8))
    assert values(NORMALS, batch)["mean_angle"] == pytest.approx(90.0)
    prediction, label = random_batch(NORMALS, 4, seed=11)
    scaled = values(NORMALS, (7 * prediction, label))
    assert scaled == pytest.approx(values(NORMALS, (prediction, label)), rel=1e-6)


@pytest.mark.parametrize(
    ("angle", "strict", "inclusive"), [(11.25, 0.0, 100.0), (11.2, 100.0, 100.0), (11.3, 0.0, 0.0)]
)
def test_bounds_are_strict_but_for_their_flag(
    angle: float, strict: float, inclusive: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The angle itself is planted: no float32 vector has exactly 11.25 degrees.
    monkeypatch.setattr(torch, "rad2deg", lambda radians: torch.full_like(radians, angle))
    batch = n1((0.0, 0.0, 1.0), (0.0, 0.0, 1.0))
    assert values(NORMALS, batch)["within_11_25"] == strict
    assert values(NORMALS, batch, flags=ProtocolFlags(angle_bound="<="))["within_11_25"] == inclusive


@pytest.mark.usefixtures("float64")
def test_normals_equal_numpy_and_the_median_is_within_half_a_bin() -> None:
    prediction, label = random_batch(NORMALS, 6, seed=12)
    task = dataclasses.replace(NORMALS, metrics=(*NORMALS.metrics, "cosine_similarity"))
    found = values(task, (prediction, label))
    resized = torch.nn.functional.interpolate(prediction, size=(8, 10), mode="bilinear", align_corners=False)
    valid = (label != 0).any(dim=1).numpy()
    p, g = (vectors.double().movedim(1, -1).numpy()[valid] for vectors in (resized, label))
    cosine = (p * g).sum(-1) / np.linalg.norm(p, axis=-1) / np.linalg.norm(g, axis=-1)
    angle = np.degrees(np.arccos(cosine))
    assert found["mean_angle"] == pytest.approx(angle.mean())
    assert found["median_angle"] == pytest.approx(np.sort(angle)[(len(angle) - 1) // 2], abs=0.00501)
    assert found["within_22_5"] == pytest.approx(100 * (angle < 22.5).mean())
    assert found["cosine_similarity"] == pytest.approx(cosine.mean())


def test_undecoded_labels_are_refused() -> None:
    prediction, label = random_batch(NORMALS, 2, seed=13)
    with pytest.raises(LabelError, match="neither legal nor ignored"):
        evaluate(NORMALS, (prediction, colours(label))).result()
    with pytest.raises(LabelError):
        evaluate(ENCODED, (prediction, label), flags=RAW).result()


# Regressions and attributes


@pytest.mark.usefixtures("float64")
def test_regressions_equal_scikit_learn() -> None:
    prediction, label = random_batch(KEYPOINT, 3, seed=14)
    found = values(KEYPOINT, (prediction, label))
    resized = torch.nn.functional.interpolate(prediction, size=(8, 10), mode="bilinear", align_corners=False)
    known = label.isfinite()
    p, g = resized[known].numpy(), label[known].numpy()
    assert found["abs_err"] == pytest.approx(sklearn_metrics.mean_absolute_error(g, p), rel=1e-6)
    assert found["mse"] == pytest.approx(sklearn_metrics.mean_squared_error(g, p), rel=1e-6)
    assert found["rmse"] == pytest.approx(sklearn_metrics.root_mean_squared_error(g, p), rel=1e-6)
    hand = torch.tensor([[1.0], [5.0], [2.0]]), torch.tensor([2.0, 3.0, math.nan])
    assert values(AGE, hand) == pytest.approx({"abs_err": 1.5, "mse": 2.5, "rmse": math.sqrt(2.5)})


def test_an_attribute_is_predicted_where_its_logit_is_positive() -> None:
    logits = torch.tensor([[0.0], [1e-9], [-2.0], [3.0], [5.0]])
    results = evaluate(SMILING, (logits, torch.tensor([0.0, 1.0, 1.0, 1.0, math.nan]))).result()
    assert results["accuracy"].value == pytest.approx(75.0)
    assert results["accuracy"].n_units == 4
    assert results["balanced_accuracy"].value == pytest.approx(100 * (1 + 2 / 3) / 2)
    assert results["auroc"].value == pytest.approx(100 * 2 / 3)  # pairs with the one negative, logit 0
    with pytest.raises(LabelError):
        evaluate(SMILING, (logits[:1], torch.tensor([0.5]))).result()


@pytest.mark.usefixtures("float64")
def test_several_labels_by_hand_and_by_scikit_learn() -> None:
    # Label 0 in the order of the logits: yes, no, yes: AP 1/2 * 1 + 1/2 * 2/3. Label 1 has no yes and one that is said.
    # Label 2 is known once, yes, and found.
    logits = torch.tensor([[3.0, -1.0, 1.0], [2.0, -1.0, 1.0], [-1.0, 1.0, 1.0]])
    label = torch.tensor([[1.0, 0.0, math.nan], [0.0, 0.0, math.nan], [1.0, 0.0, 1.0]])
    results = evaluate(FACE, (logits, label)).result()
    assert results["mean_average_precision"].value == pytest.approx(100 * (5 / 6 + 1) / 2)
    assert results["mean_average_precision"].detail == {"labels": [0, 2]}
    assert results["f1"].value == pytest.approx(100 * (1 / 2 + 0 + 1) / 3)
    assert results["f1"].n_units == 7
    logits, label = random_batch(FACE, 40, seed=17)
    known = [label[:, number].isfinite() for number in range(3)]
    columns = [(label[keep, number], logits[keep, number]) for number, keep in enumerate(known)]
    precision = [sklearn_metrics.average_precision_score(*column) for column in columns]
    f1 = [sklearn_metrics.f1_score(truth, shown > 0) for truth, shown in columns]
    found = values(FACE, (logits, label))
    assert found == pytest.approx({"mean_average_precision": 100 * np.mean(precision), "f1": 100 * np.mean(f1)})
    with pytest.raises(LabelError):
        evaluate(FACE, (logits[:1], torch.tensor([[0.0, 0.5, 1.0]]))).result()


# Independent implementations: torchmetrics and mmsegmentation


@pytest.mark.numerical
def test_metrics_equal_torchmetrics() -> None:
    prediction, label = random_batch(SEMSEG, 4, seed=15)
    logits = torch.nn.functional.interpolate(prediction, size=(8, 10), mode="bilinear", align_corners=False)
    iou = torchmetrics.classification.MulticlassJaccardIndex(5, average="macro", ignore_index=255)
    accuracy = torchmetrics.classification.MulticlassAccuracy(5, average="micro", ignore_index=255)
    found = values(SEMSEG, (prediction, label))
    assert found["miou"] == pytest.approx(100 * float(iou(logits.argmax(1), label)), rel=1e-6)
    assert found["pixel_acc"] == pytest.approx(100 * float(accuracy(logits.argmax(1), label)), rel=1e-6)
    logit, truth = random_batch(SMILING, 9, seed=16)
    known = truth.isfinite()
    auroc = torchmetrics.classification.BinaryAUROC()(logit[known, 0].sigmoid(), truth[known].long())
    assert values(SMILING, (logit, truth))["auroc"] == pytest.approx(100 * float(auroc), rel=1e-6)
    logits, truth = random_batch(FACE, 40, seed=18)
    coded = truth.nan_to_num(nan=-1).long()  # torchmetrics ignores a number, not NaN
    options: dict[str, Any] = {"num_labels": 3, "average": "macro", "ignore_index": -1}
    precision = torchmetrics.classification.MultilabelAveragePrecision(**options)(logits.sigmoid(), coded)
    f1 = torchmetrics.classification.MultilabelF1Score(**options)(logits, coded)
    found = values(FACE, (logits, truth))
    assert found == pytest.approx({"mean_average_precision": 100 * float(precision), "f1": 100 * float(f1)}, rel=1e-6)


def mmseg_metric(name: str, **options: Any) -> Any:
    metric = getattr(load("mmseg.evaluation.metrics"), name)(**options)
    metric.dataset_meta = {"classes": [str(number) for number in range(SEMSEG.channels)]}
    return metric


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_miou_equals_mmsegmentation_s(seed: int) -> None:
    """Over images of one split together; percent that mmsegmentation rounds to two decimals. Trap 18."""
    prediction, label = random_batch(SEMSEG, 4, seed=seed)
    label[label == seed] = 255  # a class that no label has, while predictions do
    metric = mmseg_metric("IoUMetric", iou_metrics=["mIoU"])
    logits = torch.nn.functional.interpolate(prediction, size=(8, 10), mode="bilinear", align_corners=False)
    for shown, truth in zip(logits.argmax(1), label, strict=True):
        metric.process({}, [{"pred_sem_seg": {"data": shown[None]}, "gt_sem_seg": {"data": truth[None]}}])
    expected = metric.compute_metrics(metric.results)
    found = values(SEMSEG, (prediction, label))
    assert found["miou"] == pytest.approx(expected["mIoU"], abs=0.0051)
    assert found["pixel_acc"] == pytest.approx(expected["aAcc"], abs=0.0051)


def test_depth_errors_equal_mmsegmentation_s_on_one_image() -> None:
    """Over several images it averages per image, which is the protocol `adashare` and not the standard one."""
    generator = torch.Generator().manual_seed(3)
    batch = []
    metric = mmseg_metric("DepthMetric")
    for _ in range(3):
        truth = 0.5 + 4 * torch.rand(1, 8, 10, generator=generator)
        shown = truth * (0.6 + 0.9 * torch.rand(1, 8, 10, generator=generator))
        truth[0, :2] = math.nan
        batch.append((shown[None], truth))
        metric.process({}, [{"pred_depth_map": {"data": shown}, "gt_depth_map": {"data": truth.nan_to_num(nan=0.0)}}])
    names = {"rel_err": "abs_rel", "rmse": "rmse", "delta_1_25": "d1", "delta_1_25_2": "d2", "delta_1_25_3": "d3"}

    def compared(found: dict[str, Any], expected: dict[str, float], chosen: dict[str, str]) -> None:
        for ours, theirs in chosen.items():
            scale = 100 if theirs.startswith("d") else 1
            assert found[ours] == pytest.approx(scale * expected[theirs], rel=1e-5), ours

    one = metric.compute_metrics(metric.results[:1])
    compared(values(DEPTH, batch[0]), one, names)
    whole = metric.compute_metrics(metric.results)
    per_image = values(DEPTH, *batch, flags=get_protocol("adashare"))
    compared(per_image, whole, {"rel_err": "abs_rel"})
    assert values(DEPTH, *batch)["rel_err"] == pytest.approx(per_image["rel_err"], rel=1e-5)  # equally many pixels


# What holds for all of them


def random_batch(task: TaskSpec, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Predictions at half the label's resolution, labels with ignored ones among them."""
    generator = torch.Generator().manual_seed(seed)
    kind = get_kind(task.kind)
    shape = (n, *kind.target_shape(task, (8, 10)))
    size = (4, 5) if kind.dense else ()
    prediction = torch.randn(n, task.channels, *size, generator=generator)
    ignored = torch.rand((n, 1, 8, 10) if task.kind == "normals" else shape, generator=generator) < 0.2
    if task.kind in ("depth", "dense"):
        return prediction + 2, (0.5 + 2 * torch.rand(shape, generator=generator)).masked_fill(ignored, math.nan)
    if task.kind == "normals":
        vectors = torch.nn.functional.normalize(torch.randn(shape, generator=generator), dim=1)
        if task.frame == "encoded":
            return colours(prediction.tanh()), colours(vectors).masked_fill(ignored, 0)
        return prediction, vectors.masked_fill(ignored, 0)
    if task.kind in ("scalar", "attribute"):  # as for classes
        return prediction, torch.tensor([0.0, math.nan, *[i % 2 for i in range(1, n - 1)]])
    if task.kind == "multilabel":
        label = torch.randint(0, 2, shape, generator=generator).float()
        return prediction, label.masked_fill(ignored, math.nan)
    if task.kind == "class":  # so few that chance might leave out a class
        return prediction, torch.tensor([0, -1, *[i % task.channels for i in range(1, n - 1)]])
    n_classes = 2 if task.kind == "binary_map" else task.channels
    label = torch.randint(0, n_classes, shape, generator=generator)
    return prediction, label.masked_fill(ignored, 255)


TASKS = [SEMSEG, DEPTH, ALL_MAPS, NORMALS, KEYPOINT, DIGIT, PAIR, SMILING, AGE, FACE]
CASES = [(task, tag) for task in TASKS for tag in ("standard", "adashare") if (task, tag) != (NORMALS, "adashare")]
CASES.append((ENCODED, "adashare"))
IDS = [f"{task.name}-{tag}" for task, tag in CASES]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("task", "tag"), CASES, ids=IDS)
def test_batches_order_and_processes_do_not_matter(task: TaskSpec, tag: str) -> None:
    prediction, label = random_batch(task, 7, seed=3)
    flags = get_protocol(tag)
    whole = values(task, (prediction, label), flags=flags)
    assert all(value is not None for value in whole.values())
    for size in (1, 3):
        batches = list(zip(prediction.split(size), label.split(size), strict=True))
        assert values(task, *batches, flags=flags) == pytest.approx(whole, rel=1e-9)
        assert values(task, *reversed(batches), flags=flags) == pytest.approx(whole, rel=1e-9)
        first, second = evaluate(task, *batches[:1], flags=flags), evaluate(task, *batches[1:], flags=flags)
        first.merge(second)
        merged = first.result()
        assert {name: result.value for name, result in merged.items()} == pytest.approx(whole, rel=1e-9)
        assert {name: result.n_units for name, result in merged.items()} == {
            name: result.n_units for name, result in evaluate(task, (prediction, label), flags=flags).result().items()
        }


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_predictions_at_ignored_labels_do_not_matter(task: TaskSpec) -> None:
    prediction, label = random_batch(task, 5, seed=4)
    if get_kind(task.kind).dense:  # at the label's resolution, so that resizing does not spread what is changed
        prediction = torch.randn(5, task.channels, 8, 10, generator=torch.Generator().manual_seed(5)) + 2
    ignored = ~get_kind(task.kind).valid(label)
    if ignored.ndim < prediction.ndim:
        ignored = ignored.unsqueeze(1)
    changed = prediction.masked_fill(ignored, math.nan)
    assert not torch.equal(changed, prediction)
    assert values(task, (changed, label)) == values(task, (prediction, label))


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_prediction_that_is_not_finite_gives_null_and_is_counted(task: TaskSpec, bad: float) -> None:
    prediction, label = random_batch(task, 5, seed=6)
    prediction[0] = bad
    n_valid = int(get_kind(task.kind).valid(label)[0].sum())
    for result in evaluate(task, (prediction, label)).result().values():
        assert result.value is None
        assert result.n_nonfinite == n_valid > 0


@pytest.mark.parametrize(
    ("task", "illegal"),
    [(SEMSEG, 5), (SEMSEG, -1), (DIGIT, 3), (DIGIT, -2), (DIGIT, 255), (EDGE, 2), (DEPTH, 0.0), (DEPTH, math.inf)],
    ids=lambda value: getattr(value, "name", value),
)
def test_an_illegal_label_is_an_error(task: TaskSpec, illegal: float) -> None:
    prediction, label = random_batch(task, 5, seed=7)
    label[0] = illegal
    evaluator = evaluate(task, (prediction, label))
    with pytest.raises(LabelError, match=f"Task '{task.name}'"):
        evaluator.result()
    with pytest.raises(LabelError, match="illegal labels, the first is"):
        get_kind(task.kind).check(label, task)


def test_states_of_different_tasks_are_not_merged() -> None:
    with pytest.raises(ValueError, match="cannot be merged"):
        evaluate(EDGE).merge(evaluate(SALIENCY))


def test_half_precision_predictions_are_summed_in_float64() -> None:
    prediction, label = torch.full((1, 1, 300, 300), 1.5, dtype=torch.bfloat16), torch.ones(1, 300, 300)
    assert values(DEPTH, (prediction, label))["abs_err"] == 0.5
