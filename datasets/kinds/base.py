"""What a kind promises: which labels are valid and legal, loss, metrics, head channels and tensor type.

Dense kinds get predictions as float [B, C, h, w] at the resolution of the features; they are resized to the label's
resolution in the loss and in metrics. Labels are never resized.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, cast

from datasets.errors import UsageError
from datasets.kinds.constants import Constants
from datasets.kinds.metrics import Evaluator, LabelError, check_metrics
from datasets.protocols import STANDARD, ProtocolFlags

if TYPE_CHECKING:
    from torch import Tensor
    from torchvision import tv_tensors

    from datasets.contracts import TaskSpec


class Kind(abc.ABC):
    """One kind of task. Stateless.

    Torch is imported where tensors are made: `list` makes specs of tasks, which ask their kinds, and needs no torch.
    """

    name: ClassVar[str]  # as in `TaskSpec.kind`
    dense: ClassVar[bool]  # one label per pixel
    ignore: ClassVar[str]  # which labels are ignored, in words
    fill: ClassVar[float | int | None]  # the ignore value, which padding writes; None for labels without pixels
    fewest_channels: ClassVar[int] = 1  # 2 for classes: one class alone leaves nothing to decide
    floating: ClassVar[bool] = False  # labels are floating point, else integers

    @abc.abstractmethod
    def valid(self, target: Tensor) -> Tensor:
        """bool, one per label: which labels count. It follows from the label alone, also for illegal labels.

        The shape is that of the target, without the channels where a vector is one label.
        """

    @abc.abstractmethod
    def legal(self, target: Tensor, task: TaskSpec) -> Tensor:
        """bool, one per label as `valid`: which labels are ignored or inside the range of the task."""

    @abc.abstractmethod
    def legal_values(self, task: TaskSpec) -> str:
        """The legal and the ignored labels in words: `0 to 10, or 255`."""

    @abc.abstractmethod
    def loss(self, prediction: Tensor, target: Tensor, task: TaskSpec, flags: ProtocolFlags = STANDARD) -> Tensor:
        """Scalar float32, mean over valid labels; 0 with zero gradient if none is valid. No host synchronisation."""

    @abc.abstractmethod
    def evaluator(self, task: TaskSpec, flags: ProtocolFlags = STANDARD) -> Evaluator:
        """A fresh evaluator of the task's metrics. Raises UnknownNameError for a metric of another kind."""

    @abc.abstractmethod
    def constants(self, task: TaskSpec) -> Constants:
        """Fits the candidates for the best constant prediction: the floor below which nothing was learnt."""

    def counted(self, task: TaskSpec) -> Callable[[Tensor], Tensor]:
        """Labels -> bool, shape as `valid`: which are both valid and legal."""
        return lambda target: self.valid(target) & self.legal(target, task)

    def repeated(self, constant: Tensor, target: Tensor) -> Tensor:
        """The prediction that is `constant` [C] for every label of `target` [B, ...]: [B, C], or [B, C, H, W] for dense
        kinds. A view: nothing is copied.
        """
        size = target.shape[-2:] if self.dense else ()
        return constant.view(1, -1, *(1 for _ in size)).expand(len(target), -1, *size)

    def check_task(self, task: TaskSpec) -> None:
        """Raise UsageError for a task that this kind cannot judge. Every `TaskSpec` calls this when it is made."""
        check_metrics(task)
        if task.channels < self.fewest_channels:
            raise UsageError(
                f"Task {task.name!r} of kind {self.name!r} has channels = {task.channels}; "
                f"expected at least {self.fewest_channels}."
            )

    def head_channels(self, task: TaskSpec) -> int:
        """Outputs that the head of such a task has."""
        return task.channels

    def target_shape(self, task: TaskSpec, size: tuple[int, int]) -> tuple[int, ...]:
        """Shape of one target for an image of that size (height, width)."""
        return size if self.dense else ()

    def magnitude(self, target: Tensor) -> Tensor:
        """One number per label, for messages: the label itself, or the length of a vector."""
        return target

    def wrapper(self, task: TaskSpec) -> type[tv_tensors.TVTensor] | None:
        """The type by which geometric transforms recognise the labels; None for labels without pixels."""
        return None

    def wrap(self, target: Tensor, task: TaskSpec) -> Tensor:
        """The target as a tensor of its type."""
        wrapper = self.wrapper(task)
        return target if wrapper is None else cast("Tensor", wrapper(target))

    def check(self, target: Tensor, task: TaskSpec) -> None:
        """Raise LabelError naming the first label that is neither ignored nor legal. Synchronises with the device."""
        legal = self.legal(target, task)
        if not bool(legal.all()):
            illegal = self.magnitude(target)[~legal]
            raise LabelError(
                f"Task {task.name!r} of kind {self.name!r} with {task.channels} channels: {illegal.numel()} illegal "
                f"labels, the first is {illegal.flatten()[0].item()}; expected {self.legal_values(task)}."
            )


class FloatingKind(Kind):
    """A kind whose labels are floating point; NaN is ignored."""

    ignore = "NaN"
    floating = True

    def valid(self, target: Tensor) -> Tensor:
        """Labels that are not NaN."""
        return ~target.isnan()


def resize_prediction(prediction: Tensor, size: tuple[int, int], flags: ProtocolFlags) -> Tensor:
    """float [B, C, h, w] -> float [B, C, *size]; bilinear with align_corners=False, or nearest under that flag."""
    from torch.nn import functional

    if tuple(prediction.shape[-2:]) == size:
        return prediction
    if flags.upsample == "nearest":
        return functional.interpolate(prediction, size=size, mode="nearest")
    return functional.interpolate(prediction, size=size, mode="bilinear", align_corners=False)


def dense_prediction(
    prediction: Tensor, target: Tensor, channels: int, flags: ProtocolFlags, *, per_channel: bool = False
) -> Tensor:
    """The prediction at the target's resolution, float32 or wider. prediction [B, channels, h, w], target [B, H, W],
    or [B, channels, H, W] for labels `per_channel`.

    Raises ValueError where the shapes do not fit.
    """
    wanted = f"[B, {channels}, H, W]" if per_channel else "[B, H, W]"
    fits = target.ndim == 3 + per_channel and (not per_channel or target.shape[1] == channels)
    if prediction.ndim != 4 or not fits or prediction.shape[0] != target.shape[0]:
        raise ValueError(f"Expected [B, {channels}, h, w] and {wanted}, got {shapes(prediction, target)}.")
    if prediction.shape[1] != channels:
        raise ValueError(f"Expected {channels} channels, got {shapes(prediction, target)}.")
    return resize_prediction(at_least_float32(prediction), (target.shape[-2], target.shape[-1]), flags)


def single_prediction(prediction: Tensor, target: Tensor) -> Tensor:
    """float [B, 1] -> float [B], float32 or wider. target: [B]. Raises ValueError where the shapes do not fit."""
    if target.ndim != 1 or prediction.shape != (len(target), 1):
        raise ValueError(f"Expected [B, 1] and [B], got {shapes(prediction, target)}.")
    return at_least_float32(prediction).squeeze(1)


def check_integer(target: Tensor) -> None:
    """Raise ValueError for labels that are not integers: a cast would round them silently."""
    import torch

    if target.is_floating_point() or target.dtype == torch.bool:
        raise ValueError(f"Expected integer labels, got {target.dtype}.")


def check_floating(target: Tensor) -> None:
    """Raise ValueError for labels that are not floating point: an integer cannot hold NaN, the ignore value."""
    if not target.is_floating_point():
        raise ValueError(f"Expected floating-point labels, got {target.dtype}.")


def shapes(prediction: Tensor, target: Tensor) -> str:
    """Both shapes, for messages."""
    return f"prediction {tuple(prediction.shape)} and label {tuple(target.shape)}"


def at_least_float32(values: Tensor) -> Tensor:
    """Half precision becomes float32: sums over a batch of pixels overflow or stall in it."""
    import torch

    return values if values.dtype == torch.float64 else values.float()


def mean_of_valid(losses: Tensor, valid: Tensor) -> Tensor:
    """Mean of `losses` where `valid`, 0 with zero gradient where nothing is; both [...]. No host synchronisation."""
    import torch

    return torch.where(valid, losses, 0.0).sum() / valid.sum().clamp(min=1)
