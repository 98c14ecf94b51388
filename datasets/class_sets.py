"""`class_sets`: classification sets side by side, each a task with images of its own. Spec: datasets 11.1.

Files are those that torchvision leaves, below one folder; they are read as torchvision does, and nothing is downloaded.
Facts of the formats and checksums: torchvision/datasets/{cifar,stl10,usps,mnist,svhn}.py. Images are resized to one
side (bilinear), gray ones repeated. Train and test parts are the official ones; a tenth of each class is held out of
train. The default tasks are the four of DMO (Choi, Jin, Kim 2023). Read on twins only; real files must have the
published checksums.
"""

from __future__ import annotations

import bz2
import dataclasses
import functools
import gzip
import hashlib
import io
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pydantic

from datasets.contracts import DatasetSpec, IndexArray, Split, TaskSpec
from datasets.errors import ProtocolError
from datasets.on_disk.files import Array, FileError, read_bytes
from datasets.on_disk.loader import FileLoader, FileOptions
from datasets.on_disk.pickles import read_pickle
from datasets.on_disk.sources import Field, Source, number_label
from datasets.registry import DatasetOptions, ExpectedFiles, register_dataset

if TYPE_CHECKING:
    from torch import Tensor

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
    """A set. read: reads the files of a part, in their order. mirrors: whether mirrored images keep their class, which
    digits do not.
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
        raise FileError(f"{path}: is not an IDX file ({error}).") from error
    values = np.frombuffer(data, dtype=np.uint8, offset=4 + 4 * n_axes)
    if zeros or kind != 8 or values.size != np.prod(shape):
        raise FileError(f"{path}: expected an IDX file of {shape} bytes, found {values.size:,} bytes of type {kind}.")
    return values.reshape(shape)


def read_svhn(paths: list[Path]) -> Labelled:
    """MATLAB arrays X [32, 32, 3, N] and y [N, 1], where 10 is the digit 0. Raises FileError."""
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


DIGITS = tuple(str(digit) for digit in range(10))
_BATCHES = ("c99cafc152244af753f735de768cd75f", "d4bba439e000b95fd0a9bffe97cbabec", "54ebc095f3ab1f0389bbae665268c751",
            "634d18415352ddfa80567beed471001a", "482c414d41f54cd18b22e5b47cb7c3cb")  # fmt: skip


def _idx_set(
    folder: str, sums: tuple[str, str, str, str], classes: tuple[str, ...], home: str, licence: str, mirrors: bool
) -> ClassSet:
    """A set in MNIST's form. sums: md5 of train images, train labels, test images, test labels, decompressed."""
    names = [
        f"{folder}/raw/{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
    ]
    files = list(zip(names, sums, strict=True))
    parts = {"train": Part(dict(files[:2]), 60_000), "test": Part(dict(files[2:]), 10_000)}
    return ClassSet(parts, read_idx, classes, home, licence, mirrors)


SETS: Mapping[str, ClassSet] = {
    "cifar10": ClassSet(
        {
            "train": Part({f"cifar-10-batches-py/data_batch_{k}": md5 for k, md5 in enumerate(_BATCHES, 1)}, 50_000),
            "test": Part({"cifar-10-batches-py/test_batch": "40351d587109b95175f43aff81a1287e"}, 10_000),
        },
        read_cifar10,
        ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        "none stated",
        mirrors=True,
    ),
    "stl10": ClassSet(
        {
            "train": Part(
                {
                    "stl10_binary/train_X.bin": "918c2871b30a85fa023e0c44e0bee87f",
                    "stl10_binary/train_y.bin": "5a34089d4802c674881badbb80307741",
                },
                5_000,
            ),
            "test": Part(
                {
                    "stl10_binary/test_X.bin": "7f263ba9f9e0b06b93213547f721ac82",
                    "stl10_binary/test_y.bin": "36f9794fa4beb8a2c72628de14fa638e",
                },
                8_000,
            ),
        },
        read_stl10,
        ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"),
        "https://cs.stanford.edu/~acoates/stl10",
        "none stated",
        mirrors=True,
    ),
    "usps": ClassSet(
        {
            "train": Part({"usps.bz2": "ec16c51db3855ca6c91edd34d0e9b197"}, 7_291),
            "test": Part({"usps.t.bz2": "8ea070ee2aca1ac39742fdd1ef5ed118"}, 2_007),
        },
        read_usps,
        DIGITS,
        "https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/multiclass.html#usps",
        "none stated",
        mirrors=False,
    ),
    "mnist": _idx_set(
        "MNIST",
        (
            "6bbc9ace898e44ae57da46a324031adb",
            "a25bea736e30d166cdddb491f175f624",
            "2646ac647ad5339dbf082846283269ea",
            "27ae3e4e09519cfbb04c329615203637",
        ),
        DIGITS,
        "http://yann.lecun.com/exdb/mnist",
        "CC BY-SA 3.0 as far as is known",
        mirrors=False,
    ),
    "fashion_mnist": _idx_set(
        "FashionMNIST",
        (
            "f4a8712d7a061bf5bd6d2ca38dc4d50a",
            "9018921c3c673c538a1fc5bad174d6f9",
            "8181f5470baa50b63fa0f6fddb340f0a",
            "15d484375f8d13e6eb1aabb0c3f46965",
        ),
        ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"),
        "https://github.com/zalandoresearch/fashion-mnist",
        "MIT",
        mirrors=True,
    ),
    "svhn": ClassSet(
        {
            "train": Part({"train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373"}, 73_257),
            "test": Part({"test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3"}, 26_032),
        },
        read_svhn,
        DIGITS,
        "http://ufldl.stanford.edu/housenumbers",
        "non-commercial use",
        mirrors=False,
    ),
}
FOUR_TASKS = ("cifar10", "stl10", "usps", "mnist")
_MARKS = "|".join(["cifar-10-batches-py", "stl10_binary", "usps.bz2", "MNIST", "FashionMNIST", "train_32x32.mat"])


class ClassSetOptions(FileOptions):
    """How large the images are."""

    size: int = pydantic.Field(
        default=72, ge=16, le=512, description="side of the square to which every image is resized, in pixels"
    )


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Stored images by position."""

    images: Array

    def __call__(self, index: int) -> Array:
        return np.asarray(self.images[index])


def resized(stored: Array, size: int) -> Tensor:
    """uint8 [H, W] or [H, W, 3] -> float32 [3, size, size] in [0, 1]: bilinear, smoothed when reduced, in 8 bits."""
    import torch

    from datasets.images.transforms import squared

    planes = torch.from_numpy(np.array(stored))  # a copy, since the bytes of a file cannot be written to
    planes = planes.unsqueeze(0) if planes.ndim == 2 else planes.permute(2, 0, 1)
    return squared(planes, size).to(torch.float32).div_(255).expand(3, -1, -1).contiguous()


@register_dataset("class_sets")
class ClassSets(FileLoader):
    """CIFAR-10, STL-10, USPS, MNIST, Fashion-MNIST, SVHN: those that a suite names, ten classes each."""

    Options = ClassSetOptions
    layouts: ClassVar[Mapping[str, ExpectedFiles]] = {
        "torchvision": ExpectedFiles(
            "{cifar-10-batches-py, stl10_binary, usps.bz2 and usps.t.bz2, MNIST/raw, FashionMNIST/raw, "
            "{train,test}_32x32.mat}, of the sets that are asked for, unpacked",
            "163 MB, 2.5 GB, 8 MB, 11 MB, 30 MB, 246 MB to download",
            (_MARKS,),
        )
    }

    def spec(self, protocol: str, options: DatasetOptions, layout: str | None = None) -> DatasetSpec:
        """A task a set."""
        assert isinstance(options, ClassSetOptions)
        if protocol != "standard":
            raise ProtocolError(f"class_sets has no labels for protocol {protocol!r}; it offers 'standard'.")
        tasks = tuple(TaskSpec(name, "class", N_CLASSES, ("accuracy",), found.classes) for name, found in SETS.items())
        counts = {split: {name: found.parts[split].n for name, found in SETS.items()} for split in ("train", "test")}
        return DatasetSpec(
            name="class_sets",
            layout="torchvision",
            version=f"v1+{options.size}",
            protocol=protocol,
            domains="multi",
            tasks=tasks,
            splits={split: sum(by_task.values()) for split, by_task in counts.items()},
            native_size=(options.size, options.size),
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            licence="; ".join(f"{name}: {found.licence}" for name, found in SETS.items()),
            home=", ".join(found.home for found in SETS.values()),
            tier="verified on twins",
            counts=counts,
            caveats=("random flips leave the digits of usps, mnist and svhn as they are",),
            not_mirrored=tuple(name for name, found in SETS.items() if not found.mirrors),
        )

    def default_tasks(self, spec: DatasetSpec) -> tuple[str, ...]:
        """The four of DMO."""
        return FOUR_TASKS

    def sources(self, folder: Path, split: Split, spec: DatasetSpec, options: FileOptions) -> Mapping[str, Source]:
        """The sets that are asked for; no file of another one is opened. Raises FileError."""
        assert isinstance(options, ClassSetOptions)
        return {name: _source(folder, split, name, options) for name in spec.inputs}


def _source(folder: Path, split: Split, name: str, options: ClassSetOptions) -> Source:
    """One set in the order of its files. Raises FileError where one is not the published one (profile `real`)."""
    part = SETS[name].parts[split]
    paths = [located(folder, file) for file in part.files]
    sums = [md5_of(path) for path in paths]
    for path, found, published in zip(paths, sums, part.files.values(), strict=True):
        if options.profile == "real" and found != published:
            raise FileError(f"{path}: expected the published file (md5 {published}), found md5 {found}.")
    content = SETS[name].read(paths)
    where = ([paths[0]] * len(content.labels)).__getitem__
    ids = [f"{name}/{split}/{row:05d}" for row in range(len(content.labels))]
    return Source(
        ids=ids,
        units=ids,
        strata=[SETS[name].classes[label] for label in content.labels.tolist()],
        image=Field(_Rows(content.images), functools.partial(resized, size=options.size), where),
        targets={name: Field(content.labels.__getitem__, number_label, where)},
        meta={"domain": name},
        digest=hashlib.sha256("".join(sums).encode()).hexdigest(),
    )
