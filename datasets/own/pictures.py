"""Images and label images of any size, brought to one: the same part of both, at the same places."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from datasets.kinds import get_kind
from datasets.on_disk.files import Array, FileError, read_array, read_bytes, read_image
from datasets.on_disk.photographs import Fit, rgb_array
from datasets.own.labels import Labels, classes_of, numbers_of

if TYPE_CHECKING:
    from torch import Tensor

Size = tuple[int, int]
IGNORED_PIXEL = 255  # of label images, unless `Labels.ignore` says another


def window(given: Size, wanted: Size, fit: Fit) -> tuple[float, float, float, float]:
    """(top, left, height, width) of the part of an image that is kept, in its pixels. fit: see `Fit`."""
    if fit == "stretch":
        return 0.0, 0.0, float(given[0]), float(given[1])
    scale = max(wanted[0] / given[0], wanted[1] / given[1])
    height, width = wanted[0] / scale, wanted[1] / scale
    return (given[0] - height) / 2, (given[1] - width) / 2, height, width


def resized(image: Array, size: Size, fit: Fit) -> Array:
    """uint8 [*size, 3] of uint8 [H, W, 3]: bilinear, smoothed when reduced."""
    given = (image.shape[0], image.shape[1])
    if given == size:
        return image
    top, left, height, width = window(given, size, fit)
    box = (left, top, min(left + width, given[1]), min(top + height, given[0]))
    return np.array(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR, box=box))


def nearest(labels: Array, size: Size, fit: Fit) -> Array:
    """[*size] of [H, W]: the label at the middle of each new pixel."""
    given = (labels.shape[0], labels.shape[1])
    if given == size:
        return labels
    top, left, height, width = window(given, size, fit)
    rows = np.floor(top + (np.arange(size[0]) + 0.5) * height / size[0]).astype(np.int64).clip(0, given[0] - 1)
    columns = np.floor(left + (np.arange(size[1]) + 0.5) * width / size[1]).astype(np.int64).clip(0, given[1] - 1)
    return np.ascontiguousarray(labels[rows[:, None], columns])


@dataclasses.dataclass(frozen=True)
class ReadImage:
    """Reads an image at one size."""

    size: Size
    fit: Fit

    def __call__(self, path: Path) -> Array:
        """uint8 [*size, 3]. Raises FileError."""
        return resized(rgb_array(read_bytes(path), path), self.size, self.fit)


@dataclasses.dataclass(frozen=True)
class ReadLabels:
    """Reads a label image at one size."""

    size: Size
    fit: Fit
    labels: Labels

    def __call__(self, path: Path) -> Array:
        """int32 [*size] of classes, or float32 [*size]. Raises FileError."""
        return nearest(stored_labels(path, self.labels), self.size, self.fit)


def stored_labels(path: Path, labels: Labels) -> Array:
    """int32 [H, W] of classes, or float32 [H, W], of a label image or an .npy file. Raises FileError."""
    stored = read_array(path) if path.suffix == ".npy" else read_image(path)
    if stored.ndim != 2:
        raise FileError(
            f"{path}: expected one number a pixel, found {stored.dtype} {list(stored.shape)}: labels are class ids, "
            "not colours."
        )
    kind = get_kind(labels.kind)
    if kind.floating:
        return numbers_of(stored, labels, path)
    return classes_of(stored, labels, kind, path, default_ignore=IGNORED_PIXEL).astype(np.int32)


def decode_classes(stored: Array) -> Tensor:
    """int32 [H, W] -> int64 [H, W]."""
    import torch

    return torch.from_numpy(stored).to(torch.int64)


def decode_numbers(stored: Array) -> Tensor:
    """float32 [...] -> the same."""
    import torch

    return torch.from_numpy(np.array(stored))
