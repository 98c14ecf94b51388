"""`nyuv2`: indoor scenes with segmentation, depth and surface normals. Spec: datasets 5.

Source: Silberman et al. 2012, https://cs.nyu.edu/~silberman/datasets/nyu_depth_v2.html. Three layouts are read: the
official file and two public releases, AdaShare's (480 x 640, 40 classes, 8-bit normals) and MTAN's (288 x 384, 13
classes, .npy). 795 / 654 images. There is no official validation set, so one is held out from train, in blocks of 20
neighbouring images.

Four genuine images of AdaShare's release show (tests): their ids count from 0, label c is official class c + 1, and the
normals' channels are (x, depth axis, up). AdaShare's list of splits, the official file's images and all of MTAN's
release were read on twins only.

The official file is MATLAB 7.3, which is HDF5. MATLAB stores the first axis fastest, so HDF5 gives every array with its
axes reversed: an image is (3, width, height) and is turned upright here. 894 classes become 40 by the official map. The
file holds no normals.
"""

from __future__ import annotations

import functools
import importlib
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pydantic

from datasets.contracts import SINGLE_INPUT, DatasetSpec, IndexArray, NormalsFrame, Split, TaskSpec, Tier
from datasets.errors import ProtocolError, UsageError
from datasets.on_disk.dense import (
    IGNORE,
    decode_depth,
    decode_labels,
    decode_normal_colours,
    decode_unit_image,
    decode_vectors,
    keep_normal_colours,
    read_colours,
    read_float_map,
    read_labels,
    read_labels_array,
    read_unit_image,
)
from datasets.on_disk.files import Array, FileError, expect
from datasets.on_disk.loader import FileLoader, FileOptions
from datasets.on_disk.releases import FieldForm, block_of, listed_rows, number_of, numbered_files, source_of_files
from datasets.on_disk.sources import Field, Source, scale_uint8
from datasets.protocols import get_protocol
from datasets.registry import DatasetOptions, ExpectedFiles, register_dataset

SPLITS: Mapping[str, int] = {"train": 795, "test": 654}
CLASSES_40 = (
    *("wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture"),
    *("counter", "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "floor mat", "clothes"),
    *("ceiling", "books", "refridgerator", "television", "paper", "towel", "shower curtain", "box", "whiteboard"),
    *("person", "night stand", "toilet", "sink", "lamp", "bathtub", "bag", "otherstructure", "otherfurniture"),
    "otherprop",
)
CLASSES_13 = (
    *("bed", "books", "ceiling", "chair", "floor", "furniture", "objects", "picture", "sofa", "table", "tv"),
    *("wall", "window"),
)
# Official map from the 40 classes to the 13, both counted from 1 (class13Mapping.mat).
TO_13 = (
    *(12, 5, 6, 1, 4, 9, 10, 12, 13, 6, 8, 6, 13, 10, 6, 13, 6, 7, 7, 5),
    *(7, 3, 2, 6, 11, 7, 7, 7, 7, 7, 7, 6, 7, 7, 7, 7, 7, 7, 6, 7),
)
ADASHARE_AXES = ((0, 1), (2, 1), (1, -1))  # the file's channels are x right, depth axis away from the camera, up
ADASHARE_LIST = "nyu_v2_3task.json"
ADASHARE_FOLDERS = ("img", "seg", "normal_mask", "depth")
MTAN_FOLDERS = ("image", "label", "depth", "normal")
FILE, LISTS, MAP_40 = "nyu_depth_v2_labeled.mat", "splits.mat", "classMapping40.mat"
CHECKSUMS = {  # sha256 of the published lists; of the 2.8 GB file none is published
    LISTS: "6e081404491a8bfba2f066beaa9713ef6046f9007aa5f799f2a350506a580cee",
    MAP_40: "ff177194cce9a2163517f1e1e6f1c64c50987162f542dedddc04bbf6ebe6d851",
}
N_RAW_CLASSES = 894
_STORED: Mapping[str, tuple[str, tuple[int, ...]]] = {  # dataset -> type and shape of one sample as HDF5 gives it
    "images": ("uint8", (3, 640, 480)),
    "labels": ("uint16", (640, 480)),
    "depths": ("float32", (640, 480)),
}
_MTAN_SPLITS = {"train": "train", "test": "val"}  # what the release calls val is the official test set
_SIZES = {"adashare": (480, 640), "mat": (480, 640), "mtan_npy": (288, 384)}
_PROTOCOLS = {"adashare": ("standard", "adashare"), "mat": ("standard",), "mtan_npy": ("standard", "mtan")}
_TIERS: Mapping[str, Tier] = {
    "adashare": "verified on genuine files",
    "mat": "verified on twins",
    "mtan_npy": "verified on twins",
}
_DEPTH_METRICS = ("abs_err", "rel_err", "rmse", "delta_1_25", "delta_1_25_2", "delta_1_25_3")
_NORMAL_METRICS = ("mean_angle", "median_angle", "within_11_25", "within_22_5", "within_30")
_WEIGHTS = {"standard": (1.0, 1.0, 1.0), "adashare": (1.0, 20.0, 3.0), "mtan": (1.0, 1.0, 1.0)}  # datasets 14


class NyuOptions(FileOptions):
    """Which classes."""

    classes: Literal[13, 40] | None = pydantic.Field(
        default=None, description="13 merges the 40 by the official map; null takes those of the files (40 or 13)"
    )


@register_dataset("nyuv2")
class NyuV2(FileLoader):
    """Segmentation, normals and depth on 1,449 images."""

    Options = NyuOptions
    protocols = ("standard", "adashare", "mtan")
    layouts: ClassVar[Mapping[str, ExpectedFiles]] = {
        "adashare": ExpectedFiles(
            f"{ADASHARE_LIST} and the images it lists, {{img,seg,normal_mask}}/ID.png and depth/ID.npy",
            "size not published",
            (f"{ADASHARE_LIST}|normal_mask",),
            source="https://drive.google.com/open?id=11pWuQXMFBNMIIB4VYMzi9RPE-nMOBU8g (linked by "
            "github.com/sunxm2357/AdaShare)",
        ),
        "mat": ExpectedFiles(
            f"{FILE}, {LISTS} and {MAP_40}",
            "2.8 GB",
            (FILE, LISTS, MAP_40),
            checksums=CHECKSUMS,
            source=f"http://horatio.cs.nyu.edu/mit/silberman/nyu_depth_v2/{FILE} (the other two: "
            "https://github.com/ankurhanda/nyuv2-meta-data)",
        ),
        "mtan_npy": ExpectedFiles(
            "{train,val}/{image,label,depth,normal}/N.npy",
            "size not published",
            tuple(f"{part}/{name}" for part in ("train", "val") for name in MTAN_FOLDERS),
            source="https://www.dropbox.com/sh/86nssgwm6hm3vkb/AACrnUQ4GxpdrBbLjb6n-mWNa (linked by "
            "github.com/lorenmt/mtan)",
        ),
    }

    def spec(self, protocol: str, options: DatasetOptions, layout: str | None = None) -> DatasetSpec:
        """Three tasks; the protocol decides their weights and whether normals are decoded."""
        assert isinstance(options, NyuOptions)
        layout = layout or "adashare"
        if protocol not in _PROTOCOLS[layout]:
            offered = ", ".join(_PROTOCOLS[layout])
            raise ProtocolError(
                f"nyuv2 in layout {layout!r} has no labels for protocol {protocol!r}; it has: {offered}."
            )
        n_classes = classes_of(layout, options)
        semseg, normals, depth = _WEIGHTS[protocol]
        names = CLASSES_40 if n_classes == 40 else CLASSES_13
        tasks = (
            TaskSpec("semseg", "semantic", n_classes, ("miou", "pixel_acc"), names, semseg),
            TaskSpec("normals", "normals", 3, _NORMAL_METRICS, weight=normals, frame=frame_of(layout, protocol)),
            TaskSpec("depth", "depth", 1, _DEPTH_METRICS, weight=depth, unit="metre"),
        )
        return DatasetSpec(
            name="nyuv2",
            layout=layout,
            version=f"v1+{n_classes}",
            protocol=protocol,
            domains="single",
            tasks=tuple(task for task in tasks if task.name not in self.unavailable(options, layout)),
            splits=SPLITS,
            native_size=_SIZES[layout],
            # Of ImageNet: statistics of the whole set have not been measured here.
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            licence="none published: research use, not redistributed",
            home="https://cs.nyu.edu/~silberman/datasets/nyu_depth_v2.html",
            tier=_TIERS[layout],
        )

    def unavailable(self, options: DatasetOptions, layout: str | None = None) -> Mapping[str, str]:
        """The official file has no normals."""
        reason = "the official .mat holds none; the layouts adashare and mtan_npy do"
        return {"normals": reason} if layout == "mat" else {}

    def sources(self, folder: Path, split: Split, spec: DatasetSpec, options: FileOptions) -> Mapping[str, Source]:
        """The images of the release's list, or of its folders. Raises FileError for a list that cannot be read."""
        assert isinstance(options, NyuOptions)
        n_classes = classes_of(spec.layout, options)
        if spec.layout == "mtan_npy":
            return {SINGLE_INPUT: _mtan_source(folder, split)}
        if spec.layout == "mat":
            return mat_source(folder, split, merge_table() if n_classes == 13 else None)
        encoded = get_protocol(spec.protocol, "nyuv2").normals == "encoded"
        return {SINGLE_INPUT: _adashare_source(folder, split, n_classes, encoded, options)}


def classes_of(layout: str, options: NyuOptions) -> int:
    """Number of classes. Raises UsageError for 40 of files that hold 13."""
    own = 13 if layout == "mtan_npy" else 40
    if options.classes == 40 and own == 13:
        raise UsageError("nyuv2 in layout 'mtan_npy' holds 13 classes; 40 need the layout 'adashare'.")
    return options.classes or own


def frame_of(layout: str, protocol: str) -> NormalsFrame:
    """What is known of the normals' axes; colours are left as they are where the protocol compares them so."""
    if get_protocol(protocol, "nyuv2").normals == "encoded":
        return "encoded"
    return "verified" if layout == "adashare" else "unknown"


def merge_table() -> Array:
    """uint8 [256]: id of the 40 classes counted from 0 -> of the 13; everything else 255."""
    table = np.full(256, IGNORE, dtype=np.uint8)
    table[: len(TO_13)] = np.array(TO_13, dtype=np.uint8) - 1
    return table


def _adashare_source(folder: Path, split: Split, n_classes: int, encoded: bool, options: NyuOptions) -> Source:
    size = _SIZES["adashare"]
    rows = _adashare_rows(folder, split, options)
    files = {
        name: [folder / row[column] for row in rows]
        for column, name in enumerate(("image", "semseg", "normals", "depth"))
    }
    numbers = [number_of(row[0]) for row in rows]

    normals = keep_normal_colours if encoded else functools.partial(decode_normal_colours, order=ADASHARE_AXES)
    fields: dict[str, FieldForm] = {
        "image": (functools.partial(read_colours, size=size), scale_uint8),
        "semseg": (functools.partial(_read_40, size=size, n_classes=n_classes), decode_labels),
        "normals": (functools.partial(read_colours, size=size), normals),
        "depth": (functools.partial(read_float_map, shapes=[size]), decode_depth),
    }
    ids, units = [f"{number:04d}" for number in numbers], [block_of(number) for number in numbers]
    meta = {"domain": None, "normals_frame": "encoded" if encoded else "verified"}
    return source_of_files(folder, ids, units, files, fields, meta)


def _read_40(path: Path, size: tuple[int, int], n_classes: int) -> Array:
    ids = read_labels(path, size, 40)
    return np.asarray(merge_table()[ids]) if n_classes == 13 else ids


def _adashare_rows(folder: Path, split: Split, options: NyuOptions) -> list[list[str]]:
    """[image, segmentation, normals, depth] paths of each sample of a split, by image number.

    Without the list, the release takes all files of its folders as test; so does this, under the profile `twin`.
    """
    path = folder / ADASHARE_LIST
    if path.is_file():
        columns = ("image", "segmentation", "normals", "depth")
        return sorted(listed_rows(path, split, columns), key=lambda row: number_of(row[0]))
    if options.profile == "real":
        raise FileError(f"{path}: is absent; it says which image belongs to train and to test.")
    if split != "test":
        return []
    stems = sorted(image.stem for image in (folder / ADASHARE_FOLDERS[0]).glob("*.png"))
    return [[f"{name}/{stem}{'.npy' if name == 'depth' else '.png'}" for name in ADASHARE_FOLDERS] for stem in stems]


def _mtan_source(folder: Path, split: Split) -> Source:
    size = _SIZES["mtan_npy"]
    folders = dict(zip(("image", "semseg", "depth", "normals"), MTAN_FOLDERS, strict=True))
    numbers, files = numbered_files(folder / _MTAN_SPLITS[split], folders)
    fields: dict[str, FieldForm] = {
        "image": (functools.partial(read_unit_image, size=size), decode_unit_image),
        "semseg": (functools.partial(read_labels_array, size=size, n_classes=13), decode_labels),
        "normals": (functools.partial(read_float_map, shapes=[(*size, 3)]), decode_vectors),
        "depth": (functools.partial(read_float_map, shapes=[(*size, 1), size]), decode_depth),
    }
    ids, units = [f"{split}/{number}" for number in numbers], [block_of(number) for number in numbers]
    return source_of_files(folder, ids, units, files, fields, {"domain": None, "normals_frame": "unknown"})


class MatFile:
    """Reads samples of one dataset of the official file, upright. Each process opens the file at first use."""

    def __init__(self, path: Path, dataset: str, rows: IndexArray, table: Array | None = None) -> None:
        """rows: the file's row of each sample; table: raw class -> stored class."""
        self.path, self.dataset, self.rows, self.table = path, dataset, rows, table
        self._lock = threading.Lock()
        self._file: Any = None

    def __reduce__(self) -> tuple[type[MatFile], tuple[Path, str, IndexArray, Array | None]]:
        # A lock and an open file cannot be sent to a process.
        return type(self), (self.path, self.dataset, self.rows, self.table)

    def __call__(self, index: int) -> Array:
        """[H, W] or [H, W, 3] of a sample. Raises FileError."""
        dtype, shape = _STORED[self.dataset]
        try:
            with self._lock:
                if self._file is None:
                    self._file = open_hdf5(self.path)
                stored = np.asarray(self._file[self.dataset][int(self.rows[index])])
        except (OSError, KeyError, IndexError, ValueError) as error:
            raise FileError(f"{self.path}: {self.dataset} of sample {index} cannot be read ({error}).") from error
        upright = np.ascontiguousarray(expect(stored, shape, [dtype], self.path).transpose())
        if self.table is None:
            return upright
        if upright.max() > N_RAW_CLASSES:
            raise FileError(f"{self.path}: expected classes 0 to {N_RAW_CLASSES}, found {upright.max()}.")
        return np.asarray(self.table[upright])


def open_hdf5(path: Path) -> Any:
    """The open file. Raises UsageError where h5py is not installed, and FileError where the file cannot be opened."""
    try:
        h5py = importlib.import_module("h5py")
    except ImportError as error:
        raise UsageError(f"{path}: reading it needs the package h5py: pip install 'sharebench[hdf5]'.") from error
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise FileError(f"{path}: cannot be read as HDF5 ({error}).") from error


def read_lists(folder: Path) -> dict[str, list[int]]:
    """{train | test: rows of the file, counted from 0}. Raises FileError."""
    lists = _matlab(folder / LISTS, ("trainNdxs", "testNdxs"))
    return {split: sorted(int(number) - 1 for number in lists[f"{split}Ndxs"].flat) for split in ("train", "test")}


def class_table(folder: Path) -> Array:
    """uint8 [895]: raw class, 0 = unlabelled -> one of 40 counted from 0, or 255. Raises FileError."""
    to_40 = _matlab(folder / MAP_40, ("mapClass",))["mapClass"].flatten().astype(np.int64)
    if to_40.shape != (N_RAW_CLASSES,) or to_40.min() < 1 or to_40.max() > 40:
        raise FileError(f"{folder / MAP_40}: expected {N_RAW_CLASSES} numbers from 1 to 40 under mapClass.")
    return np.concatenate([[IGNORE], to_40 - 1]).astype(np.uint8)


def _matlab(path: Path, names: tuple[str, ...]) -> dict[str, Array]:
    from scipy.io import loadmat  # half a second, needed in this layout only

    try:
        document = loadmat(path)
        return {name: document[name] for name in names}
    except (OSError, ValueError, KeyError, TypeError, NotImplementedError) as error:
        raise FileError(f"{path}: expected a MATLAB file with {', '.join(names)} ({error}).") from error


def mat_source(folder: Path, split: Split, merge: Array | None) -> Mapping[str, Source]:
    """The images of a split. merge: table uint8 [256] from the 40 classes to fewer."""
    path = folder / FILE
    rows = np.array(read_lists(folder)[split], dtype=np.int64)
    table = class_table(folder)
    if merge is not None:
        table = np.asarray(merge[table])
    where = functools.partial(_same, path)
    return {
        SINGLE_INPUT: Source(
            ids=[f"{row:04d}" for row in rows.tolist()],
            units=[block_of(row) for row in rows.tolist()],
            image=Field(MatFile(path, "images", rows), scale_uint8, where),
            targets={
                "semseg": Field(MatFile(path, "labels", rows, table), decode_labels, where),
                "depth": Field(MatFile(path, "depths", rows), decode_depth, where),
            },
            meta={"domain": None},
            content=[folder / LISTS, folder / MAP_40],
        )
    }


def _same(path: Path, index: int) -> Path:
    return path
