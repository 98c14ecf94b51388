"""`normals`: a unit vector per pixel; labels float [B, 3, H, W], the zero vector ignored. Loss: 1 - cosine.

A protocol may take the L1 loss instead. It may compare the colours of the files (`encoded`): vectors of 0 to 255
that were not decoded. Angles between those are compressed and out of order, so neither form of labels is ever measured
as the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from datasets.errors import ProtocolError, UsageError
from datasets.kinds.base import Kind, check_floating, dense_prediction, mean_of_valid
from datasets.kinds.constants import Constants, MeanDirection
from datasets.kinds.metrics import Evaluator, MetricResult, histogram, ratio, share
from datasets.kinds.registry import register_kind
from datasets.protocols import STANDARD, ProtocolFlags

if TYPE_CHECKING:
    from torch import Tensor
    from torchvision import tv_tensors

    from datasets.contracts import TaskSpec

BOUNDS = {"within_11_25": 11.25, "within_22_5": 22.5, "within_30": 30.0}  # degrees
SHORTEST, LONGEST = 0.9, 1.1  # of a unit vector that was stored in 8 bits (measurement 1.2)
SHORTEST_COLOUR = 60.0  # the sphere of radius 127.5 around grey comes no nearer to black than 93
WHITE = 255.0
_TINY = 1e-12  # a prediction is divided by at least this: the zero vector gets cosine 0
_BINS_PER_DEGREE = 100  # of the median: right to 0.005 degrees
_N_BINS = 180 * _BINS_PER_DEGREE


@register_kind
class NormalsKind(Kind):
    """Predictions float [B, 3, h, w] of any length, labels float [B, 3, H, W]."""

    name = "normals"
    dense = True
    ignore = "the zero vector"
    floating = True
    fill = 0.0

    def valid(self, target: Tensor) -> Tensor:
        """bool [..., H, W]: vectors other than zero."""
        return (target != 0).any(dim=-3)

    def legal(self, target: Tensor, task: TaskSpec) -> Tensor:
        """bool [..., H, W]: zero, and lengths in [0.9, 1.1]; encoded: zero, and colours that are not white."""
        length = target.norm(dim=-3)
        if task.frame == "encoded":
            colour = (target >= 0).all(dim=-3) & (target.amax(dim=-3) < WHITE) & (length >= SHORTEST_COLOUR)
            return ~self.valid(target) | colour
        return ~self.valid(target) | ((length >= SHORTEST) & (length <= LONGEST))

    def magnitude(self, target: Tensor) -> Tensor:
        """Length of each vector."""
        return target.norm(dim=-3)

    def check_task(self, task: TaskSpec) -> None:
        """Raise UsageError for a task without exactly three channels."""
        super().check_task(task)
        if task.channels != 3:
            raise UsageError(f"Task {task.name!r} of kind 'normals' has channels = {task.channels}; expected 3.")

    def legal_values(self, task: TaskSpec) -> str:
        """Lengths or colours by frame, and what is ignored."""
        legal = "colours from 0 to 255" if task.frame == "encoded" else f"vectors of length {SHORTEST} to {LONGEST}"
        return f"{legal}, or {self.ignore}"

    def loss(self, prediction: Tensor, target: Tensor, task: TaskSpec, flags: ProtocolFlags = STANDARD) -> Tensor:
        """1 - cosine, mean over labelled pixels; under the flag, absolute differences from the prediction at length 1.

        Raises ProtocolError if labels and protocol differ in encoding.
        """
        from torch.nn import functional

        _check_encoding(task, flags)
        vectors, label = _pair(prediction, target, flags)
        if flags.normals_loss == "cosine":
            return mean_of_valid(1 - _cosine(vectors, label), self.valid(target))
        differences = (functional.normalize(vectors, dim=1, eps=_TINY) - label).abs().sum(dim=1)
        loss = mean_of_valid(differences, self.valid(target))
        return loss if flags.normals_loss == "l1_pixels" else loss / 3

    def evaluator(self, task: TaskSpec, flags: ProtocolFlags = STANDARD) -> Evaluator:
        """mean_angle, median_angle, within_11_25, within_22_5, within_30, cosine_similarity.

        Raises ProtocolError where labels and protocol differ in encoding.
        """
        _check_encoding(task, flags)
        return NormalsEvaluator(self, task, flags)

    def constants(self, task: TaskSpec) -> Constants:
        """The mean direction."""
        return MeanDirection(task.channels, self.counted(task))

    def target_shape(self, task: TaskSpec, size: tuple[int, int]) -> tuple[int, ...]:
        """[3, H, W]."""
        return (3, *size)

    def wrapper(self, task: TaskSpec) -> type[tv_tensors.TVTensor]:
        """By frame: only where the axes are known can vectors be turned."""
        from datasets.images.transforms import EncodedNormals, Normals, NormalsOfUnknownFrame

        if task.frame == "encoded":
            return EncodedNormals
        return NormalsOfUnknownFrame if task.frame == "unknown" else Normals


class NormalsEvaluator(Evaluator):
    """Angles in degrees, float64; flags normals, angle_bound, upsample."""

    def __init__(self, kind: NormalsKind, task: TaskSpec, flags: ProtocolFlags) -> None:
        super().__init__(task, counts={"n": 1, "hits": len(BOUNDS), "bins": _N_BINS}, sums={"angle": 1, "cosine": 1})
        self.kind, self.flags = kind, flags

    def _update(self, prediction: Tensor, label: Tensor) -> None:
        import torch

        vectors, truth = _pair(prediction, label, self.flags)
        legal = self.kind.legal(label, self.task)
        valid = self.kind.valid(label) & legal
        cosine = torch.where(valid, _cosine(vectors.double(), truth.double()), 1.0)
        angle = torch.rad2deg(torch.acos(cosine.clamp(-1.0, 1.0)))
        self._add("illegal", (~legal).sum())
        self._add("nonfinite", (valid & ~vectors.isfinite().all(dim=1)).sum())
        self._add("n", valid.sum())
        self._add("cosine", torch.where(valid, cosine, 0.0).sum())
        self._add("angle", torch.where(valid, angle, 0.0).sum())
        if self._wants(*BOUNDS):
            within = torch.le if self.flags.angle_bound == "<=" else torch.lt
            self._add("hits", torch.stack([(valid & within(angle, bound)).sum() for bound in BOUNDS.values()]))
        if self._wants("median_angle"):
            index = (angle * _BINS_PER_DEGREE).nan_to_num(0.0).long().clamp(max=_N_BINS - 1)
            self._add("bins", histogram(index, valid, _N_BINS))

    def _measure(self, name: str) -> MetricResult:
        n_pixels = self._integer("n")
        if name in BOUNDS:
            return share(int(self._state["hits"][list(BOUNDS).index(name)]), n_pixels)
        if name == "median_angle":
            return self._median(n_pixels)
        return ratio(self._number("angle" if name == "mean_angle" else "cosine"), n_pixels)

    def _median(self, n_pixels: int) -> MetricResult:
        """Centre of the bin in which the cumulative count reaches half of the pixels, rounded up."""
        if not n_pixels:
            return MetricResult(None, 0)
        cumulative = self._state["bins"].cpu().cumsum(0)
        half = (n_pixels + 1) // 2
        reached = int((cumulative >= half).nonzero()[0]) if int(cumulative[-1]) >= half else _N_BINS - 1
        return MetricResult((reached + 0.5) / _BINS_PER_DEGREE, n_pixels)


def _check_encoding(task: TaskSpec, flags: ProtocolFlags) -> None:
    if (task.frame == "encoded") != (flags.normals == "encoded"):
        raise ProtocolError(
            f"Task {task.name!r} has {'encoded' if task.frame == 'encoded' else 'decoded'} normals and the protocol "
            f"compares {flags.normals} ones; load the data set under the protocol that it is judged by."
        )


def _pair(prediction: Tensor, target: Tensor, flags: ProtocolFlags) -> tuple[Tensor, Tensor]:
    check_floating(target)
    return dense_prediction(prediction, target, 3, flags, per_channel=True), target


def _cosine(vectors: Tensor, label: Tensor) -> Tensor:
    """[B, H, W]: cosine of the angle between each pair of vectors; 0 where either is the zero vector."""
    from torch.nn import functional

    return (functional.normalize(vectors, dim=1, eps=_TINY) * functional.normalize(label, dim=1, eps=_TINY)).sum(dim=1)
