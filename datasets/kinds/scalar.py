"""`scalar`: one number per image (regression, ordinals); labels float [B], NaN ignored. Loss: L1, our choice."""

from __future__ import annotations

from typing import TYPE_CHECKING

from datasets.kinds.base import single_prediction
from datasets.kinds.registry import register_kind
from datasets.kinds.regression import RegressionKind
from datasets.protocols import STANDARD, ProtocolFlags

if TYPE_CHECKING:
    from torch import Tensor

    from datasets.contracts import TaskSpec


@register_kind
class ScalarKind(RegressionKind):
    """Predictions float [B, 1], labels float [B]."""

    name = "scalar"
    dense = False
    fill = None

    def fit(self, prediction: Tensor, target: Tensor, task: TaskSpec, flags: ProtocolFlags = STANDARD) -> Tensor:
        """[B]."""
        return single_prediction(prediction, target)

    def head_channels(self, task: TaskSpec) -> int:
        """One."""
        return 1
