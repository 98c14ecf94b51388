"""What a dense head does with a feature map. Source: measurement 2, datasets 15, adashare 3.

`conv1x1` is the default. `subpixel` gives every place of the map a patch of pixels of its own (Shi et al. 2016, CVPR,
"Real-time single image and video super-resolution using an efficient sub-pixel convolutional neural network"), so that
a coarse map can draw fine labels; a linear layer, as the default. `fcn`, `aspp` and `upernet` are mmsegmentation's.
`adashare_aspp` is the head of AdaShare's released code. Which one is used belongs to the cell, equal for every row of a
table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal, cast, get_args

from torch import Tensor, nn

from datasets.errors import UsageError, unknown
from methods.backbones.mmseg import MmsegHead, decode_head

Decoder = Literal["conv1x1", "subpixel", "fcn", "aspp", "upernet", "adashare_aspp"]
HIDDEN: Mapping[Decoder, int] = {"fcn": 512, "aspp": 512, "upernet": 512, "adashare_aspp": 1024}
ADASHARE_RATES = (6, 12, 18, 24)
_ADASHARE_DROPOUT = 0.5  # part of that head, whatever the recipe says
_ADASHARE_STD = 0.01


@dataclasses.dataclass(frozen=True)
class DenseForm:
    """Which decoder, and how wide it is inside; None takes the decoder's published width."""

    decoder: Decoder = "conv1x1"
    hidden: int | None = None

    @classmethod
    def of(cls, name: str, hidden: int | None) -> DenseForm:
        """The form with that decoder. Raises UsageError for an unknown name, or a width where there is no inside."""
        if name not in get_args(Decoder):
            raise unknown("decoder of dense heads", name, get_args(Decoder))
        if hidden is not None and name not in HIDDEN:
            raise UsageError(f"head.hidden is {hidden}; {name} has nothing inside. Leave it out or choose a decoder.")
        return cls(cast(Decoder, name), hidden)

    @property
    def width(self) -> int | None:
        """Channels inside; None for a decoder that has no inside."""
        return HIDDEN.get(self.decoder) if self.hidden is None else self.hidden


CONV1X1 = DenseForm()


class AdaShareHead(nn.Module):
    """Sum of four branches: a dilated 3x3 convolution, two 1x1, with ReLU and dropout between.

    Source: adashare 3, Classification_Module of sunxm2357/AdaShare. 23,240,864 parameters for 512 features and 40
    channels. Weights from N(0, 0.01), biases as torch has them.
    """

    def __init__(self, features: int, channels: int, hidden: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(features, hidden, 3, padding=rate, dilation=rate),
                nn.ReLU(),
                nn.Dropout(_ADASHARE_DROPOUT),
                nn.Conv2d(hidden, hidden, 1),
                nn.ReLU(),
                nn.Dropout(_ADASHARE_DROPOUT),
                nn.Conv2d(hidden, channels, 1),
            )
            for rate in ADASHARE_RATES
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=_ADASHARE_STD)

    def forward(self, x: Tensor) -> Tensor:
        """x: float [B, C, h, w]; returns float [B, channels, h, w]."""
        first, *others = (branch(x) for branch in self.branches)
        for other in others:
            first = first + other
        return cast(Tensor, first)


def create_decoder(form: DenseForm, features: int, channels: int, dropout: float, reduction: int = 1) -> nn.Module:
    """A module from float [B, features, h, w] to float [B, channels, h', w'], initialised from torch's global stream.

    dropout: where the decoder has a place for it. reduction: of the map against the image, which `subpixel` undoes.
    """
    layers = [nn.Dropout(dropout)] if dropout else []
    if form.decoder == "conv1x1":
        return nn.Sequential(*layers, nn.Conv2d(features, channels, kernel_size=1))
    if form.decoder == "subpixel":
        patches = nn.Conv2d(features, channels * reduction**2, kernel_size=1)
        return nn.Sequential(*layers, patches, nn.PixelShuffle(reduction))
    hidden = form.width
    assert hidden is not None
    if form.decoder == "adashare_aspp":
        return AdaShareHead(features, channels, hidden)
    assert form.decoder in get_args(MmsegHead)
    return decode_head(form.decoder, features, channels, hidden, dropout)
