"""The files of torchvision's classification sets, read as torchvision does: images uint8 and labels from 0.

Facts of the formats and checksums: torchvision/datasets/{cifar,stl10,usps,mnist,svhn}.py. Nothing is downloaded.
"""

from __future__ import annotations

import bz2
import dataclasses
import gzip
import hashlib
import io
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from datasets.contracts import IndexArray
from datasets.on_disk.files import Array, FileError, read_bytes
from datasets.on_disk.pickles import read_pickle

N_CLASSES = 10


@dataclasses.dataclass(frozen=True)
class Labelled:
    """The content of a part. images: uint8 [N, H, W], or [N, H, W, 3] in colour; labels: int64 [N]."""

    images: Array
    labels: IndexArray


@dataclasses.dataclass(frozen=True)
class Part:
    """The files of one part of a set. files: {path below the folder: md5 as published, of what is decompressed}."""

    files: Mapping[str, str]
    n: int


@dataclasses.dataclass(frozen=True)
class ClassSet:
    """A set: its parts, how their files are read (in the order of `files`), what its classes are called, its home.

    mirrors: whether an image in a mirror is still one of its class, which no digit is.
    """

    parts: Mapping[str, Part]
    read: Callable[[list[Path]], Labelled]
    classes: tuple[str, ...]
    home: str
    licence: str
    mirrors: bool


def located(folder: Path, name: str) -> Path:
    """The file, or its copy as .gz. Raises FileError where neither is there."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise FileError(f"{folder / name}: is absent; see `python -m benchmark.list class_sets` for where to get it.")


def content_of(path: Path) -> bytes:
    """What a file holds, decompressed if it ends in .gz. Raises FileError."""
    data = read_bytes(path)
    try:
        return gzip.decompress(data) if path.suffix == ".gz" else data
    except (OSError, EOFError) as error:
        raise FileError(f"{path}: cannot be decompressed ({error}).") from error


def md5_of(path: Path) -> str:
    """md5 (hex) of the content, decompressed if the file ends in .gz. Raises FileError."""
    return hashlib.md5(content_of(path)).hexdigest()


def read_cifar10(paths: list[Path]) -> Labelled:
    """Pickles of rows of 3 x 32 x 32 bytes, plane by plane. Raises FileError."""
    images, labels = [], []
    for path in paths:
        document = read_pickle(path)
        try:
            data, ids = np.asarray(document["data"]), np.asarray(document["labels"])
        except (KeyError, TypeError, ValueError) as error:
            raise FileError(f"{path}: expected data and labels ({error!r}).") from error
        if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3 * 32 * 32:
            raise FileError(f"{path}: expected data uint8 [N, 3072], found {data.dtype} {data.shape}.")
        images.append(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        labels.append(_checked(ids, len(data), path))
    return Labelled(np.concatenate(images), np.concatenate(labels))


def read_stl10(paths: list[Path]) -> Labelled:
    """Raw bytes of 3 x 96 x 96 images, column by column, and of labels from 1. Raises FileError."""
    pictures, numbers = (content_of(path) for path in paths)
    if len(pictures) % (3 * 96 * 96):
        raise FileError(f"{paths[0]}: expected images of 27,648 bytes, found {len(pictures):,} bytes.")
    images = np.frombuffer(pictures, dtype=np.uint8).reshape(-1, 3, 96, 96).transpose(0, 3, 2, 1)
    labels = np.frombuffer(numbers, dtype=np.uint8).astype(np.int64) - 1
    return Labelled(images, _checked(labels, len(images), paths[1]))


def read_usps(paths: list[Path]) -> Labelled:
    """Lines `label 1:value ... 256:value` as bzip2, label from 1 (the digit 0), values from -1 to 1. Raises FileError.

    torchvision cuts off the fractions of 255 (value + 1) / 2.
    """
    (path,) = paths
    try:
        lines = bz2.decompress(read_bytes(path)).decode("ascii").splitlines()
        cells = [line.split() for line in lines]
        values = np.array([[cell.split(":")[1] for cell in row[1:]] for row in cells], dtype=np.float32)
        labels = np.array([int(float(row[0])) - 1 for row in cells], dtype=np.int64)
        images = ((values.reshape(-1, 16, 16) + 1) / 2 * 255).astype(np.uint8)
    except (OSError, EOFError, ValueError, IndexError) as error:
        raise FileError(f"{path}: cannot be read as lines of a label and 256 values ({error}).") from error
    if values.min() < -1 or values.max() > 1:
        raise FileError(f"{path}: expected values from -1 to 1, found {values.min():g} to {values.max():g}.")
    return Labelled(images, _checked(labels, len(images), path))


def read_idx(paths: list[Path]) -> Labelled:
    """Images and labels in the IDX form of MNIST. Raises FileError."""
    images, labels = (_idx(path) for path in paths)
    if images.ndim != 3:
        raise FileError(f"{paths[0]}: expected images [N, H, W], found {images.shape}.")
    return Labelled(images, _checked(labels.astype(np.int64), len(images), paths[1]))


def _idx(path: Path) -> Array:
    """An array of bytes: two zero bytes, type 8, number of axes, their lengths (big endian), values."""
    data = content_of(path)
    try:
        zeros, kind, n_axes = struct.unpack(">HBB", data[:4])
        shape = struct.unpack(f">{n_axes}I", data[4 : 4 + 4 * n_axes])
    except struct.error as error:
        raise FileError(f"{path}: is no IDX file ({error}).") from error
    values = np.frombuffer(data, dtype=np.uint8, offset=4 + 4 * n_axes)
    if zeros or kind != 8 or values.size != np.prod(shape):
        raise FileError(f"{path}: expected an IDX file of {shape} bytes, found {values.size:,} bytes of type {kind}.")
    return values.reshape(shape)


def read_svhn(paths: list[Path]) -> Labelled:
    """MATLAB arrays X [32, 32, 3, N] and y [N, 1], where 10 stands for the digit 0. Raises FileError."""
    from scipy.io import loadmat  # needed by this set alone

    (path,) = paths
    try:
        document = loadmat(io.BytesIO(read_bytes(path)), variable_names=("X", "y"))
        images, labels = document["X"].transpose(3, 0, 1, 2), document["y"].astype(np.int64).flatten()
    except FileError:
        raise
    # A damaged file can make scipy's reader raise nearly anything.
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise FileError(f"{path}: cannot be read as the arrays X and y ({reason}).") from error
    if images.dtype != np.uint8 or images.shape[1:] != (32, 32, 3):
        raise FileError(f"{path}: expected X uint8 [32, 32, 3, N], found {images.dtype} {document['X'].shape}.")
    return Labelled(images, _checked(labels % 10, len(images), path))


def _checked(labels: Array, n: int, path: Path) -> IndexArray:
    """The labels as int64. Raises FileError where they are not n ids of a class."""
    if labels.shape != (n,) or labels.dtype.kind not in "iu":
        raise FileError(f"{path}: expected {n} labels, found {labels.dtype} {labels.shape}.")
    wrong = labels[(labels < 0) | (labels >= N_CLASSES)]
    if wrong.size:
        raise FileError(f"{path}: expected labels of {N_CLASSES} classes, found {wrong[0]} counted from 0.")
    return labels.astype(np.int64)
