"""The one door to mmsegmentation: its decode heads, and its metrics as independent judges of ours in tests.

`mmcv.ops` needs a compiled extension that mmcv-lite does not ship. Where importing it fails, a placeholder takes its
place whose operators raise when they are called; a real extension is never shadowed. Nothing is imported before it is
asked for, since that takes seconds. Spec: datasets 15.
"""

from __future__ import annotations

import importlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Literal, cast

from torch import Tensor, nn

from datasets.errors import UsageError

EXTENSION = "mmcv._ext"
MmsegHead = Literal["fcn", "aspp", "upernet"]
PYRAMID_SCALES = (4.0, 2.0, 1.0, 0.5)  # of the one feature, as mmsegmentation's neck makes a pyramid of a ViT's
_NORM = {"type": "BN", "requires_grad": True}


class _NoExtension(ModuleType):
    """Stands for mmcv's compiled operators: every one is there, none can be called."""

    def __getattr__(self, name: str) -> Callable[..., object]:
        if name.startswith("__"):
            raise AttributeError(name)

        def operator(*arguments: object, **options: object) -> object:
            raise RuntimeError(f"mmcv op {name} needs full mmcv")

        return operator


def load(name: str) -> Any:
    """A module of mmseg, mmcv or mmengine by its full name. Raises UsageError where the packages are not installed."""
    with _quiet():
        try:
            importlib.import_module("mmcv")
            _provide_extension()
            return importlib.import_module(name)
        except ImportError as error:
            raise UsageError(
                f"{name} cannot be imported ({error}); dense heads of mmsegmentation need mmsegmentation, mmengine and "
                "mmcv-lite, which are dependencies of this package."
            ) from error


def _provide_extension() -> None:
    try:
        importlib.import_module(EXTENSION)
    except ImportError:
        sys.modules[EXTENSION] = _NoExtension(EXTENSION)


@contextmanager
def _quiet() -> Iterator[None]:
    """mmsegmentation warns of its own deprecated imports; a user can do nothing about them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class DecodeHead(nn.Module):
    """A decode head of mmsegmentation on one feature, or on the pyramid that a neck makes of it."""

    def __init__(self, head: nn.Module, neck: nn.Module | None) -> None:
        super().__init__()
        self.neck = neck
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """x: float [B, C, h, w]; returns logits float [B, channels, h', w'], for `upernet` at four times h and w."""
        features = [x] if self.neck is None else self.neck([x])
        return cast(Tensor, self.head(features))


def decode_head(name: MmsegHead, features: int, channels: int, hidden: int, dropout: float) -> DecodeHead:
    """FCNHead (two convolutions), ASPPHead (rates 1, 12, 24, 36) or UPerHead of mmsegmentation 1.2, batch norm in each.

    features: channels of what it reads; channels: of its output; hidden: inside. Initialised by mmsegmentation's own
    rules from torch's global stream.
    """
    heads = load("mmseg.models.decode_heads")
    shared: dict[str, Any] = {
        "channels": hidden,
        "num_classes": channels,
        "out_channels": channels,
        "threshold": 0.3,  # read by mmsegmentation's own prediction alone; without it one channel makes it warn
        "dropout_ratio": dropout,
        "norm_cfg": dict(_NORM),
        "align_corners": False,
    }
    neck: nn.Module | None = None
    with _quiet(), _no_log():
        if name == "fcn":
            head = heads.FCNHead(in_channels=features, in_index=0, num_convs=2, **shared)
        elif name == "aspp":
            head = heads.ASPPHead(in_channels=features, in_index=0, dilations=(1, 12, 24, 36), **shared)
        else:
            n = len(PYRAMID_SCALES)
            necks = load("mmseg.models.necks")
            pyramid = necks.MultiLevelNeck([features], hidden, scales=list(PYRAMID_SCALES), norm_cfg=dict(_NORM))
            pyramid.init_weights()
            neck = pyramid
            head = heads.UPerHead(in_channels=[hidden] * n, in_index=list(range(n)), pool_scales=(1, 2, 3, 6), **shared)
        head.init_weights()
    del head.loss_decode  # losses are the suite's
    return DecodeHead(head, neck)


@contextmanager
def _no_log() -> Iterator[None]:
    """mmengine prints every weight that it initialises."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
