"""`attribute`: yes or no per image; labels float [B], 0.0 or 1.0, NaN ignored. Loss: binary cross-entropy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from datasets.kinds.base import FloatingKind, check_floating, mean_of_valid, single_prediction
from datasets.kinds.class_kind import IGNORE, ClassEvaluator
from datasets.kinds.constants import Constants, YesShare
from datasets.kinds.metrics import Evaluator
from datasets.kinds.registry import register_kind
from datasets.protocols import STANDARD, ProtocolFlags

if TYPE_CHECKING:
    from torch import Tensor

    from datasets.contracts import TaskSpec


@register_kind
class AttributeKind(FloatingKind):
    """Predictions float [B, 1] (logits), labels float [B]."""

    name = "attribute"
    dense = False
    fill = None

    def legal(self, target: Tensor, task: TaskSpec) -> Tensor:
        """0, 1 and NaN."""
        return (target == 0) | (target == 1) | target.isnan()

    def legal_values(self, task: TaskSpec) -> str:
        """0, 1 and what is ignored."""
        return f"0 or 1, or {self.ignore}"

    def loss(self, prediction: Tensor, target: Tensor, task: TaskSpec, flags: ProtocolFlags = STANDARD) -> Tensor:
        """Binary cross-entropy, mean over labelled samples."""
        from torch.nn import functional

        check_floating(target)
        logit = single_prediction(prediction, target)
        losses = functional.binary_cross_entropy_with_logits(logit, (target == 1).to(logit.dtype), reduction="none")
        return mean_of_valid(losses, self.valid(target))

    def evaluator(self, task: TaskSpec, flags: ProtocolFlags = STANDARD) -> Evaluator:
        """accuracy, balanced_accuracy, auroc."""
        return AttributeEvaluator(task, n_classes=2)

    def constants(self, task: TaskSpec) -> Constants:
        """The prior, whose sign is the majority."""
        return YesShare(self.counted(task), extremes=False)

    def head_channels(self, task: TaskSpec) -> int:
        """One."""
        return 1


class AttributeEvaluator(ClassEvaluator):
    """Two classes with the logits 0 and z, so the prediction is 1 if and only if z > 0."""

    def _update(self, prediction: Tensor, label: Tensor) -> None:
        import torch

        check_floating(label)
        logit = single_prediction(prediction, label)
        illegal = self.n_classes  # a class that does not exist, for values between and beyond 0 and 1
        classes = torch.where(label == 1, 1, torch.where(label == 0, 0, illegal))
        classes = torch.where(label.isnan(), IGNORE, classes)
        self._add_classes(torch.stack([torch.zeros_like(logit), logit], dim=1), classes)
