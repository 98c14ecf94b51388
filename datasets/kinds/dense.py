"""`dense`: C numbers per pixel (keypoint heat maps, curvature); labels float [B, C, H, W], NaN ignored. Loss: L1.

Every number is a label of its own: a pixel may be known in one channel only.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from datasets.kinds.base import dense_prediction
from datasets.kinds.registry import register_kind
from datasets.kinds.regression import RegressionKind
from datasets.protocols import STANDARD, ProtocolFlags

if TYPE_CHECKING:
    from torch import Tensor
    from torchvision import tv_tensors

    from datasets.contracts import TaskSpec


@register_kind
class DenseKind(RegressionKind):
    """Predictions float [B, C, h, w], labels float [B, C, H, W]."""

    name = "dense"
    dense = True
    fill = math.nan

    def fit(self, prediction: Tensor, target: Tensor, task: TaskSpec, flags: ProtocolFlags = STANDARD) -> Tensor:
        """[B, C, H, W]."""
        return dense_prediction(prediction, target, task.channels, flags, per_channel=True)

    def target_shape(self, task: TaskSpec, size: tuple[int, int]) -> tuple[int, ...]:
        """[C, H, W]."""
        return (task.channels, *size)

    def wrapper(self, task: TaskSpec) -> type[tv_tensors.TVTensor]:
        """Dense."""
        from datasets.images.transforms import Dense

        return Dense
