"""How files store dense labels, and how they are decoded: the parts that several data sets have in common.

Stored forms are small: label maps uint8 with 255 for ignored pixels, colours uint8, floating values float32. The
decoders here give the canonical tensors of datasets 2.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from datasets.errors import UsageError
from datasets.on_disk.files import Array, FileError, expect, read_array, read_image

if TYPE_CHECKING:
    from torch import Tensor

IGNORE = 255
_FLOATS = ("float32", "float64", "float16")
_NUMBERS = (*_FLOATS, "int8", "int16", "int32", "int64", "uint8")
_OVERSHOOT = 1e-4  # tolerance for rounding when the image was scaled to [0, 1]; larger overshoot is an error
ORDER_OF_AXES = ((0, 1), (1, 1), (2, 1))  # (channel of the file, sign) for x, y and z, where files are in our frame
SHORTEST, LONGEST = 0.9, 1.1  # of a unit vector that was stored in 8 bits


def read_colours(path: Path, size: tuple[int, int]) -> Array:
    """uint8 [H, W, 3] of an RGB image file. Raises FileError."""
    return expect(read_image(path), (*size, 3), ["uint8"], path)


def read_labels(path: Path, size: tuple[int, int], n_classes: int) -> Array:
    """uint8 [H, W] of an 8-bit label image: 0 .. n_classes - 1, and 255. Raises FileError naming the first other id."""
    return _checked(expect(read_image(path), size, ["uint8"], path), n_classes, path)


def read_labels_array(path: Path, size: tuple[int, int], n_classes: int) -> Array:
    """uint8 [H, W] of an .npy label map of any number type, -1 and 255 ignored. Raises FileError for other values."""
    values = expect(read_array(path), size, _NUMBERS, path)
    whole = values.astype(np.int64)
    if not np.array_equal(whole, values):
        raise FileError(f"{path}: expected whole numbers as class ids, found {values[whole != values][0]}.")
    return _checked(np.where(whole == -1, IGNORE, whole), n_classes, path)


def _checked(ids: Array, n_classes: int, path: Path) -> Array:
    wrong = ids[((ids < 0) | (ids >= n_classes)) & (ids != IGNORE)]
    if wrong.size:
        raise FileError(f"{path}: expected ids 0 to {n_classes - 1} and {IGNORE}, found {wrong[0]}.")
    return ids.astype(np.uint8)


def read_unit_image(path: Path, size: tuple[int, int]) -> Array:
    """float32 [H, W, 3] of an .npy image in [0, 1]. Raises FileError."""
    image = expect(read_array(path), (*size, 3), _FLOATS, path)
    if not (image.min() >= -_OVERSHOOT and image.max() <= 1 + _OVERSHOOT):
        raise FileError(f"{path}: expected an image in [0, 1], found {image.min():g} to {image.max():g}.")
    return image.clip(0, 1).astype(np.float32)


def read_float_map(path: Path, shapes: Sequence[tuple[int, ...]]) -> Array:
    """float32 of an .npy map in one of these shapes, an axis of length 1 at the end removed. Raises FileError."""
    values = read_array(path)
    shape = next((shape for shape in shapes if shape == values.shape), shapes[0])
    values = expect(values, shape, _FLOATS, path).astype(np.float32)
    return values[..., 0] if values.shape[-1] == 1 else values


def decode_unit_image(stored: Array) -> Tensor:
    """float32 [H, W, 3] -> float32 [3, H, W]."""
    import torch

    return torch.from_numpy(stored).permute(2, 0, 1).contiguous()


def decode_labels(stored: Array) -> Tensor:
    """uint8 [H, W] -> int64 [H, W]."""
    import torch

    return torch.from_numpy(stored).to(torch.int64)


def decode_depth(stored: Array) -> Tensor:
    """float32 [H, W], 0 where unknown -> the same with NaN there."""
    import torch

    values = torch.from_numpy(stored)
    return torch.where(values == 0, math.nan, values)


def decode_vectors(stored: Array, order: Sequence[tuple[int, int]] = ORDER_OF_AXES) -> Tensor:
    """float32 [H, W, 3], zero where unknown -> unit vectors float32 [3, H, W].

    order: (channel of the file, sign) for x, y and z. Raises UsageError for a vector whose length is not about 1.
    """
    import torch

    # A copy of our own, in whole planes: arithmetic on strided ones takes three times longer.
    channels = torch.from_numpy(stored).permute(2, 0, 1).clone(memory_format=torch.contiguous_format)
    x, y, z = channels
    length = (x * x).addcmul_(y, y).addcmul_(z, z).sqrt_()
    length.masked_fill_(length == 0, 1.0)
    wrong = ~((length >= SHORTEST) & (length <= LONGEST))
    if wrong.any():
        raise UsageError(f"expected normals of length 1, or 0 where unknown; {int(wrong.sum())} have another length.")
    channels /= length
    return channels if tuple(order) == ORDER_OF_AXES else torch.stack([sign * channels[c] for c, sign in order])


def decode_normal_colours(stored: Array, order: Sequence[tuple[int, int]]) -> Tensor:
    """uint8 [H, W, 3] -> unit vectors float32 [3, H, W]: v / 127.5 - 1; white and (127, 127, 127) are unknown.

    Grey is the code of the zero vector. order: as for `decode_vectors`.
    """
    unknown = (stored == 255).all(axis=-1) | (stored == 127).all(axis=-1)
    vectors = stored.astype(np.float32) / 127.5 - 1
    vectors[unknown] = 0
    return decode_vectors(vectors, order)


def keep_normal_colours(stored: Array) -> Tensor:
    """uint8 [H, W, 3] -> float32 [3, H, W] in 0 .. 255, not decoded; 0 where the largest channel is 255 (white)."""
    import torch

    colours = torch.from_numpy(stored).permute(2, 0, 1).to(torch.float32)
    return torch.where(colours.amax(dim=0) < 255, colours, 0.0)
