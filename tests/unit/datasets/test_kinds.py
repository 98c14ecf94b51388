"""Kinds: losses must be finite and teach nothing where nothing is labelled; labels out of range must be caught."""

from __future__ import annotations

import dataclasses
import math
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torchvision import tv_tensors

from datasets.contracts import NormalsFrame, TaskSpec
from datasets.errors import ProtocolError, UnknownNameError, UsageError
from datasets.images.transforms import Dense, Depth, EncodedNormals, InverseDepth, Normals, NormalsOfUnknownFrame
from datasets.kinds import Kind, get_kind, kind_names, register_kind
from datasets.kinds.base import resize_prediction
from datasets.kinds.class_kind import ClassKind
from datasets.kinds.metrics import LabelError
from datasets.protocols import PROTOCOLS, STANDARD, ProtocolFlags, get_protocol

DIGIT = TaskSpec("digit", "class", 3, ("accuracy",))
SEMSEG = TaskSpec("semseg", "semantic", 4, ("miou",))
DEPTH = TaskSpec("depth", "depth", 1, ("abs_err",), unit="metre")
EDGE = TaskSpec("edge", "binary_map", 1, ("best_f1",), positive_weight=0.9)
NORMALS = TaskSpec("normals", "normals", 3, ("mean_angle",))
ENCODED = dataclasses.replace(NORMALS, frame="encoded")
KEYPOINT = TaskSpec("keypoint", "dense", 2, ("abs_err",))
SMILING = TaskSpec("smiling", "attribute", 1, ("accuracy",))
AGE = TaskSpec("age", "scalar", 1, ("abs_err",), unit="year")
FACE = TaskSpec("face", "multilabel", 3, ("f1",))
DENSE_TASKS = [SEMSEG, DEPTH, EDGE, NORMALS, KEYPOINT]
TASKS = [DIGIT, SMILING, AGE, FACE, *DENSE_TASKS]


def batch(task: TaskSpec, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Predictions that need a gradient, and labels, at one resolution."""
    generator = torch.Generator().manual_seed(seed)
    kind = get_kind(task.kind)
    size = (6, 5) if kind.dense else ()
    prediction = torch.randn(3, task.channels, *size, generator=generator).requires_grad_()
    shape = (3, *kind.target_shape(task, (6, 5)))
    if task.kind == "normals":
        return prediction, functional.normalize(torch.randn(shape, generator=generator), dim=1)
    if task.kind in ("depth", "dense", "scalar"):
        return prediction, 1 + torch.rand(shape, generator=generator)
    if task.kind == "attribute":
        return prediction, torch.tensor([0.0, 1.0, 1.0])
    if task.kind == "multilabel":
        return prediction, torch.randint(0, 2, shape, generator=generator).float()
    return prediction, torch.randint(0, max(task.channels, 2), (3, *size), generator=generator)


def ignore_value(task: TaskSpec) -> float:
    fill = get_kind(task.kind).fill
    return fill if fill is not None else -1 if task.kind == "class" else math.nan


def test_the_kinds_and_the_nearest_name() -> None:
    kinds = {"attribute", "binary_map", "class", "dense", "depth", "multilabel", "normals", "scalar", "semantic"}
    assert kinds <= set(kind_names())
    with pytest.raises(UnknownNameError, match="Nearest: 'semantic'"):
        get_kind("semantics")


def test_a_name_taken_by_another_class_is_refused() -> None:
    other = type("Other", (ClassKind,), {"__module__": __name__})
    with pytest.raises(UsageError, match="'class' is registered twice"):
        register_kind(other)
    assert type(get_kind("class")) is ClassKind


# Losses by hand


@pytest.mark.numerical
def test_class_loss_is_the_mean_over_labelled_samples() -> None:
    logits = torch.tensor([[0.0, 0.0, math.log(2)], [5.0, 1.0, 1.0]])
    loss = get_kind("class").loss(logits, torch.tensor([2, -1]), DIGIT)
    assert loss.item() == pytest.approx(math.log(2))  # softmax 1/4, 1/4, 1/2


@pytest.mark.usefixtures("float64")
def test_semantic_loss_is_the_mean_over_labelled_pixels() -> None:
    prediction, label = batch(SEMSEG)
    label[:, :3] = 255
    expected = functional.cross_entropy(prediction, label, ignore_index=255)
    assert get_kind("semantic").loss(prediction, label, SEMSEG).item() == pytest.approx(expected.item())


def test_depth_loss_is_the_mean_absolute_difference() -> None:
    prediction, label = torch.tensor([[[[1.0, 2.0, 9.0]]]]), torch.tensor([[[2.0, 4.0, math.nan]]])
    assert get_kind("depth").loss(prediction, label, DEPTH).item() == pytest.approx(1.5)


@pytest.mark.numerical
@pytest.mark.parametrize(("weight", "expected"), [(0.9, 0.5 * math.log(2)), (None, math.log(2))])
def test_binary_loss_weighs_positives_and_negatives(weight: float | None, expected: float) -> None:
    # One positive, one negative, logit 0: log 2 each, weights 0.9 and 0.1; the ignored pixel counts in neither.
    task = dataclasses.replace(EDGE, positive_weight=weight)
    loss = get_kind("binary_map").loss(torch.zeros(1, 1, 1, 3), torch.tensor([[[1, 0, 255]]]), task)
    assert loss.item() == pytest.approx(expected)
    lopsided = get_kind("binary_map").loss(torch.zeros(1, 1, 1, 1), torch.tensor([[[1]]]), EDGE)
    assert lopsided.item() == pytest.approx(0.9 * math.log(2))


@pytest.mark.numerical
def test_a_balanced_binary_loss_gives_both_classes_one_weight() -> None:
    # One positive of weight 3/4, three negatives of weight 1/4 each, and an ignored pixel: log 2 times 1.5 / 4.
    task, kind = dataclasses.replace(EDGE, positive_weight="balanced"), get_kind("binary_map")
    loss = kind.loss(torch.zeros(1, 1, 1, 5), torch.tensor([[[1, 0, 0, 0, 255]]]), task)
    assert loss.item() == pytest.approx(1.5 / 4 * math.log(2))
    for label in (0, 255):  # no positive: a weight of 0.5, not a division by zero; no label at all: nothing
        logit = torch.ones(1, 1, 1, 4, requires_grad=True)
        loss = kind.loss(logit, torch.full((1, 1, 4), label), task)
        loss.backward()
        assert loss.item() == pytest.approx(0.5 * math.log(1 + math.e) if label == 0 else 0)
        assert logit.grad is not None
        assert logit.grad.isfinite().all()
        assert (logit.grad.sum() > 0) == (label == 0)


@pytest.mark.numerical
def test_normals_loss_by_pixel_is_three_times_that_by_component() -> None:
    # (3, 0, 4) / 5 from (0, 1, 0): 0.6 + 1 + 0.8 for the one known pixel of two.
    prediction = torch.tensor([[3.0, 0.0, 4.0], [1.0, 1.0, 1.0]]).T.view(1, 3, 1, 2).requires_grad_()
    label = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]).T.view(1, 3, 1, 2)
    for tag, expected in (("bmtas", 2.4), ("vandenhende", 0.8)):
        loss = get_kind("normals").loss(prediction, label, NORMALS, get_protocol(tag))
        assert loss.item() == pytest.approx(expected)
        loss.backward()
        assert prediction.grad is not None
        assert prediction.grad.isfinite().all()


@pytest.mark.numerical
def test_normals_loss_is_one_minus_the_cosine() -> None:
    # 60 degrees, and an unknown label; the length of a prediction does not matter.
    prediction = torch.tensor([[7.0, 0.0, 0.0], [1.0, 1.0, 1.0]]).T.view(1, 3, 1, 2)
    label = torch.tensor([[0.5, math.sqrt(0.75), 0.0], [0.0, 0.0, 0.0]]).T.view(1, 3, 1, 2)
    assert get_kind("normals").loss(prediction, label, NORMALS).item() == pytest.approx(0.5)


def test_dense_loss_is_the_mean_over_labelled_numbers() -> None:
    prediction = torch.tensor([[[[1.0, 2.0]], [[5.0, 9.0]]]])  # [1, 2, 1, 2]
    label = torch.tensor([[[[2.0, math.nan]], [[2.0, math.nan]]]])
    assert get_kind("dense").loss(prediction, label, KEYPOINT).item() == pytest.approx(2.0)
    label[0, 1, 0, 0] = math.nan  # known in one channel only
    assert get_kind("dense").loss(prediction, label, KEYPOINT).item() == pytest.approx(1.0)


@pytest.mark.numerical
def test_attribute_and_scalar_losses() -> None:
    logits, label = torch.tensor([[math.log(3)], [0.0], [9.0]]), torch.tensor([1.0, 0.0, math.nan])
    expected = (-math.log(3 / 4) - math.log(1 / 2)) / 2
    assert get_kind("attribute").loss(logits, label, SMILING).item() == pytest.approx(expected)
    assert get_kind("scalar").loss(torch.tensor([[3.0], [9.0]]), torch.tensor([1.0, math.nan]), AGE).item() == 2.0
    logits = torch.tensor([[math.log(3), 0.0, 9.0], [9.0, 9.0, 9.0]])  # known labels count alike, in whichever sample
    label = torch.tensor([[1.0, 0.0, math.nan], [math.nan, math.nan, math.nan]])
    assert get_kind("multilabel").loss(logits, label, FACE).item() == pytest.approx(expected)


# What holds for all of them


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_nothing_labelled_gives_zero_loss_and_zero_gradient(task: TaskSpec) -> None:
    prediction, label = batch(task)
    loss = get_kind(task.kind).loss(prediction, torch.full_like(label, ignore_value(task)), task)
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(prediction.grad, torch.zeros_like(prediction))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_ignored_labels_leave_loss_and_gradient_finite_and_get_none(task: TaskSpec) -> None:
    prediction, label = batch(task)
    label[0] = ignore_value(task)
    kind = get_kind(task.kind)
    loss = kind.loss(prediction, label, task)
    loss.backward()
    assert loss.item() == pytest.approx(kind.loss(prediction[1:], label[1:], task).item())
    assert prediction.grad.isfinite().all()
    assert prediction.grad[1:].abs().sum() > 0
    assert torch.equal(prediction.grad[0], torch.zeros_like(prediction[0]))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("task", DENSE_TASKS, ids=lambda task: task.name)
def test_padding_does_not_change_the_loss(task: TaskSpec) -> None:
    prediction, label = batch(task)
    kind = get_kind(task.kind)
    padded = functional.pad(label, (1, 2, 3, 0), value=kind.fill)
    loss = kind.loss(functional.pad(prediction, (1, 2, 3, 0)), padded, task)
    assert loss.item() == pytest.approx(kind.loss(prediction, label, task).item())


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_half_precision_predictions_give_a_float32_loss(task: TaskSpec) -> None:
    prediction, label = batch(task)
    kind = get_kind(task.kind)
    half = kind.loss(prediction.half(), label, task)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(kind.loss(prediction, label, task).item(), rel=5e-3)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("task", DENSE_TASKS, ids=lambda task: task.name)
def test_losses_compare_at_the_resolution_of_the_label(task: TaskSpec) -> None:
    prediction, label = batch(task)
    small = prediction[:, :, ::2, ::2]
    kind = get_kind(task.kind)
    full = functional.interpolate(small, size=(6, 5), mode="bilinear", align_corners=False)
    assert kind.loss(small, label, task).item() == pytest.approx(kind.loss(full, label, task).item())
    nearest = functional.interpolate(small, size=(6, 5), mode="nearest")
    flags = ProtocolFlags(upsample="nearest")
    assert kind.loss(small, label, task, flags).item() == pytest.approx(kind.loss(nearest, label, task).item())


@pytest.mark.numerical
def test_bilinear_resizing_does_not_align_corners() -> None:
    ramp = torch.tensor([[[[0.0, 1.0]]]])
    assert resize_prediction(ramp, (1, 4), STANDARD).flatten().tolist() == [0.0, 0.25, 0.75, 1.0]
    assert resize_prediction(ramp, (1, 4), ProtocolFlags(upsample="nearest")).flatten().tolist() == [0, 0, 1, 1]
    assert resize_prediction(ramp, (1, 2), STANDARD) is ramp


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_legal_labels_pass_the_check_and_head_channels_fit(task: TaskSpec) -> None:
    kind = get_kind(task.kind)
    prediction, label = batch(task)
    label[0] = ignore_value(task)
    kind.check(label, task)
    assert kind.valid(label).shape == (label[:, 0].shape if task.kind == "normals" else label.shape)
    assert not kind.valid(label)[0].any()
    assert kind.valid(label)[1:].all()
    assert kind.head_channels(task) == prediction.shape[1]


def test_only_inverse_depth_may_be_zero() -> None:
    kind, zero = get_kind("depth"), torch.zeros(1, 2, 2)
    for unit in ("inverse_depth", "disparity_px"):
        kind.check(zero, dataclasses.replace(DEPTH, unit=unit))
    with pytest.raises(UsageError, match=r"4 illegal labels, the first is 0\.0"):
        kind.check(zero, DEPTH)


@pytest.mark.parametrize(
    ("task", "label", "message"),
    [
        (NORMALS, torch.full((1, 3, 1, 2), 0.3), r"2 illegal labels, the first is 0\.519.*the zero vector"),
        (NORMALS, torch.full((1, 3, 1, 1), math.nan), "1 illegal labels, the first is nan"),
        (NORMALS, torch.full((1, 3, 1, 1), 100.0), "1 illegal labels, the first is 173"),
        (ENCODED, torch.full((1, 3, 1, 1), 255.0), "1 illegal labels, the first is 441"),
        (ENCODED, torch.tensor([0.0, 0.6, 0.8]).view(1, 3, 1, 1), "1 illegal labels, the first is 1"),
        (KEYPOINT, torch.tensor([[math.inf, math.nan, 1.0]]), "1 illegal labels, the first is inf"),
        (SMILING, torch.tensor([0.0, 0.5, math.nan, -1.0]), r"2 illegal labels, the first is 0\.5"),
        (AGE, torch.tensor([-3.0, -math.inf]), "1 illegal labels, the first is -inf"),
        (FACE, torch.tensor([[0.0, math.nan, 2.0]]), r"1 illegal labels, the first is 2\.0; expected 0 or 1, or NaN"),
    ],
    ids=lambda value: value.name if isinstance(value, TaskSpec) else "",
)
def test_illegal_labels_are_caught(task: TaskSpec, label: Tensor, message: str) -> None:
    with pytest.raises(LabelError, match=message):
        get_kind(task.kind).check(label, task)


def test_colours_are_never_compared_as_vectors_nor_vectors_as_colours() -> None:
    kind, adashare = get_kind("normals"), get_protocol("adashare", "nyuv2")
    prediction, label = batch(NORMALS)
    for task, flags in ((NORMALS, adashare), (ENCODED, STANDARD)):
        with pytest.raises(ProtocolError, match="load the data set under the protocol"):
            kind.loss(prediction, label, task, flags)
        with pytest.raises(ProtocolError, match="load the data set under the protocol"):
            kind.evaluator(task, flags)
    assert kind.loss(prediction, (label + 1) * 127.5, ENCODED, adashare).isfinite()
    with pytest.raises(UsageError, match="channels = 2; expected 3"):
        kind.check_task(dataclasses.replace(NORMALS, channels=2))


@pytest.mark.parametrize(
    ("task", "prediction", "label"),
    [
        (NORMALS, torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4)),
        (NORMALS, torch.zeros(1, 4, 4, 4), torch.zeros(1, 3, 4, 4)),
        (KEYPOINT, torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 4, 4)),
        (KEYPOINT, torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4, dtype=torch.int64)),
        (SMILING, torch.zeros(2), torch.zeros(2)),
        (SMILING, torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64)),
        (AGE, torch.zeros(3, 1), torch.zeros(2)),
        (FACE, torch.zeros(2, 2), torch.zeros(2, 2)),
        (FACE, torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int64)),
        (SEMSEG, torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.int64)),
        (SEMSEG, torch.zeros(1, 4, 4, 4), torch.zeros(1, 1, 4, 4, dtype=torch.int64)),
        (SEMSEG, torch.zeros(1, 4, 4, 4), torch.zeros(1, 4, 4)),
        (DEPTH, torch.zeros(2, 1, 4, 4), torch.ones(1, 4, 4)),
        (DEPTH, torch.zeros(1, 1, 4, 4), torch.ones(1, 4, 4, dtype=torch.int64)),
        (EDGE, torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4, dtype=torch.int64)),
        (DIGIT, torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64)),
        (DIGIT, torch.zeros(2, 3), torch.zeros(2)),
    ],
)
def test_shapes_and_types_that_do_not_fit_are_errors(task: TaskSpec, prediction: Tensor, label: Tensor) -> None:
    kind: Kind = get_kind(task.kind)
    with pytest.raises(ValueError, match="Expected"):
        kind.loss(prediction, label, task)
    with pytest.raises(ValueError, match="Expected"):
        kind.evaluator(task, STANDARD).update(prediction, label)


def test_tensor_types_by_unit() -> None:
    assert get_kind("depth").wrapper(DEPTH) is Depth
    assert get_kind("depth").wrapper(dataclasses.replace(DEPTH, unit="disparity_px")) is InverseDepth
    assert get_kind("semantic").wrapper(SEMSEG) is get_kind("binary_map").wrapper(EDGE) is tv_tensors.Mask
    assert get_kind("dense").wrapper(KEYPOINT) is Dense
    assert [
        get_kind("normals").wrapper(dataclasses.replace(NORMALS, frame=frame)) for frame in get_args(NormalsFrame)
    ] == [
        Normals,
        Normals,
        NormalsOfUnknownFrame,
        EncodedNormals,
    ]
    label = torch.zeros((), dtype=torch.int64)
    assert get_kind("class").wrap(label, DIGIT) is label
    assert type(get_kind("depth").wrap(torch.ones(2, 2), DEPTH)) is Depth


# Protocols


def test_the_table_of_protocols() -> None:
    assert list(PROTOCOLS) == ["standard", "adashare", "mtan", "vandenhende", "bmtas", "trimap"]
    assert get_protocol("standard") == ProtocolFlags() == STANDARD
    assert get_protocol("vandenhende").miou == "present"
    assert get_protocol("vandenhende", "nyuv2").miou == "all_classes"
    assert get_protocol("adashare", "cityscapes").void_as_error
    assert not get_protocol("adashare").void_as_error
    assert get_protocol("adashare").flip_negates_normal_x
    assert not get_protocol("adashare", "nyuv2").flip_negates_normal_x
    with pytest.raises(UnknownNameError, match="Nearest: 'adashare'"):
        get_protocol("adashar")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "klass"}, r"Task 'digit': Unknown kind 'klass'. Nearest: 'class'"),
        ({"metrics": ("acc",)}, r"Task 'digit': Unknown metric of kind 'class' 'acc'. Nearest: 'accuracy', 'auroc'"),
        ({"metrics": ("miou",)}, r"Task 'digit': Unknown metric of kind 'class' 'miou'"),
        ({"metrics": ("auroc",)}, r"Task 'digit' has 3 classes; auroc is defined for 2"),
        ({"channels": 1}, r"Task 'digit' of kind 'class' has channels = 1; expected at least 2"),
    ],
)
def test_a_task_that_cannot_be_judged_is_refused_when_it_is_made(change: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        dataclasses.replace(DIGIT, **change)
