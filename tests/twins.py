"""Small synthetic copies of data sets on disk: real names, encodings, dtypes and ignore values, a handful of images.

Content is drawn, not noise: a floor, a back wall and a box seen by a pinhole camera, so that depth and normals are
exact and agree. Everything is a function of the arguments; nothing is random.
"""

from __future__ import annotations

import bz2
import contextlib
import dataclasses
import gzip
import importlib.metadata
import io
import json
import pickle
import struct
import sys
import tarfile
import types
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image
from scipy.io import savemat

from datasets.cifar100_20 import CLASSES, SUPERCLASSES

# Omniglot


def drawing(alphabet: str, character: int, drawer: int, size: int = 105) -> Image.Image:
    """A 1-bit image, ink 0: as many strokes as the character's number, moved a little by each drawer."""
    paper = np.ones((size, size), dtype=bool)
    offset = (len(alphabet) + drawer) % 20
    for stroke in range(character):
        paper[10 + 8 * stroke : 13 + 8 * stroke, 10 + offset : 60 + offset] = False
    return Image.fromarray(paper)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def omniglot_files(alphabets: Mapping[str, int], drawers: int = 20) -> dict[str, bytes]:
    """{Alphabet/characterNN/DDDD_KK.png: content}."""
    files = {}
    for number, (alphabet, characters) in enumerate(alphabets.items()):
        for character in range(1, characters + 1):
            for drawer in range(1, drawers + 1):
                name = f"{alphabet}/character{character:02d}/{100 * number + character:04d}_{drawer:02d}.png"
                files[name] = png(drawing(alphabet, character, drawer))
    return files


SMALL1 = {"Balinese": 2, "Early_Aramaic": 2, "Greek": 3, "Korean": 2, "Latin": 2}
SMALL2 = {"Greek": 3, "Japanese_(katakana)": 2, "Latin": 2, "Sanskrit": 2, "Tagalog": 2}


def omniglot_small_zips(folder: Path) -> None:
    """Both zips, Greek and Latin the same in both."""
    union = omniglot_files({**SMALL1, **SMALL2})
    for number, alphabets in ((1, SMALL1), (2, SMALL2)):
        base = f"images_background_small{number}"
        with zipfile.ZipFile(folder / f"{base}.zip", "w") as archive:
            archive.writestr(f"{base}/", b"")
            for name, content in union.items():
                if name.split("/")[0] in alphabets:
                    archive.writestr(f"{base}/{name}", content)


def omniglot_torchvision(folder: Path) -> None:
    """Two alphabets a set would leave the other tasks without images: all fifty, one or two characters each."""
    from datasets.omniglot import BACKGROUND, EVALUATION

    for base, alphabets in (("images_background", BACKGROUND), ("images_evaluation", EVALUATION)):
        counts = {name: 1 + (name in SMALL1) for name in alphabets}
        for name, content in omniglot_files(counts).items():
            path = folder / "omniglot-py" / base / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


# A room


@dataclasses.dataclass(frozen=True)
class Room:
    """What a camera sees. depth: float64 [H, W], metres; normals: float64 [3, H, W], x right, y up, z to the camera;
    surface: int [H, W], an index into `SURFACES`; image: uint8 [H, W, 3].
    """

    depth: np.ndarray
    normals: np.ndarray
    surface: np.ndarray
    image: np.ndarray


SURFACES = ("back wall", "floor", "ceiling", "side wall", "box front", "box top")
_NORMALS = np.array([[0, 0, 1], [0, 1, 0], [0, -1, 0], [1, 0, 0], [0, 0, 1], [0, 1, 0]], dtype=np.float64)
_COLOURS = np.array(
    [[200, 190, 170], [120, 80, 40], [240, 240, 235], [90, 130, 160], [200, 30, 30], [230, 90, 60]], dtype=np.float64
)


def room(size: tuple[int, int], number: int, focal_widths: float = 0.8) -> Room:
    """A box on the floor of a room, further to the right with each number. size: (height, width)."""
    height, width = size
    focal = focal_widths * width
    row, column = np.meshgrid(np.arange(height) + 0.5, np.arange(width) + 0.5, indexing="ij")
    x, y = (column - width / 2) / focal, (height / 2 - row) / focal  # of the point at depth 1 on each ray
    left = -0.7 + 0.15 * (number % 8)

    def plane(slope: np.ndarray, at: float) -> np.ndarray:
        return np.where(slope * at > 0, at / np.where(slope == 0, 1, slope), np.inf)

    distances = np.stack([np.full(size, 4.0), plane(y, -1.2), plane(y, 1.3), plane(x, -2.0)])
    front, top = np.full(size, 2.5), plane(y, -0.5)
    inside = (front * x > left) & (front * x < left + 0.8) & (front * y < -0.5) & (front * y > -1.2)
    on_top = (top * x > left) & (top * x < left + 0.8) & (top > 2.5) & (top < 3.2)
    everything = np.concatenate([distances, np.where(inside, front, np.inf)[None], np.where(on_top, top, np.inf)[None]])
    surface = everything.argmin(axis=0)
    depth = everything.min(axis=0)
    shade = (0.55 + 0.45 / depth)[..., None]
    return Room(depth, _NORMALS[surface].transpose(2, 0, 1), surface, (_COLOURS[surface] * shade).astype(np.uint8))


# NYU-v2

TRAIN_IDS, TEST_IDS = (0, 25, 45, 66, 86), (1, 61)
_NYU_40 = np.array([0, 1, 21, 0, 28, 28], dtype=np.uint8)  # wall, floor, ceiling, wall, box, box; counted from 0
_NYU_13 = np.array([11, 4, 2, 11, 6, 6], dtype=np.int64)
_BORDER = 12  # pixels without labels around the image


def _without_border(size: tuple[int, int]) -> np.ndarray:
    known = np.zeros(size, dtype=bool)
    known[_BORDER:-_BORDER, _BORDER:-_BORDER] = True
    return known


def nyuv2_adashare(folder: Path) -> None:
    """The list, and 8-bit normals in the release's axes, truncated; white and grey ones are unknown."""
    size = (480, 640)
    for name in ("img", "seg", "normal_mask", "depth"):
        (folder / name).mkdir(parents=True)
    for number in (*TRAIN_IDS, *TEST_IDS):
        seen, known = room(size, number), _without_border(size)
        x, up, towards = seen.normals
        colours = ((np.stack([x, -towards, up], axis=-1) + 1) * 127.5).astype(np.uint8)
        colours[~known] = 255
        colours[200:204, 300:310] = 127
        labels = np.where(known, _NYU_40[seen.surface], 255).astype(np.uint8)
        labels[100, 100:200] = 39
        Image.fromarray(seen.image).save(folder / "img" / f"{number:04d}.png")
        Image.fromarray(labels).save(folder / "seg" / f"{number:04d}.png")
        Image.fromarray(colours).save(folder / "normal_mask" / f"{number:04d}.png")
        np.save(folder / "depth" / f"{number:04d}.npy", seen.depth.astype(np.float32))
    rows = {
        number: [*(f"{name}/{number:04d}.png" for name in ("img", "seg", "normal_mask")), f"depth/{number:04d}.npy"]
        for number in (*TRAIN_IDS, *TEST_IDS)
    }
    parts = {"train": TRAIN_IDS, "train1": TRAIN_IDS[:2], "train2": TRAIN_IDS[2:], "test": TEST_IDS}
    document = {part: [rows[number] for number in numbers] for part, numbers in parts.items()}
    (folder / "nyu_v2_3task.json").write_text(json.dumps(document), encoding="utf-8")


MAT_CLASSES = np.array([21, 11, 4, 21, 26, 0], dtype=np.uint16)  # raw: wall, floor, ceiling, wall, box, unlabelled


def nyuv2_mat(folder: Path) -> None:
    """HDF5 in MATLAB's order of axes; the top left pixel of each image is white, of each depth map unknown.

    Its map from 894 to 40 classes is a made-up one: the official one is no part of the project.
    """
    import h5py
    import scipy.io

    n_images = max(*TRAIN_IDS, *TEST_IDS) + 1
    with h5py.File(folder / "nyu_depth_v2_labeled.mat", "w") as file:
        stored = {
            name: file.create_dataset(name, (n_images, *shape), dtype, chunks=(1, *shape))  # rows not written: no space
            for name, shape, dtype in (
                ("images", (3, 640, 480), "uint8"),
                ("depths", (640, 480), "float32"),
                ("labels", (640, 480), "uint16"),
            )
        }
        for number in (*TRAIN_IDS, *TEST_IDS):
            seen = room((480, 640), number)
            image, depth = seen.image.copy(), seen.depth.astype(np.float32)
            image[0, 0], depth[0, 0] = 255, 0
            stored["images"][number] = image.transpose(2, 1, 0)
            stored["depths"][number] = depth.T
            stored["labels"][number] = MAT_CLASSES[seen.surface].T
    lists = {
        f"{split}Ndxs": np.array([[number + 1] for number in numbers], dtype=np.uint16)
        for split, numbers in (("train", TRAIN_IDS), ("test", TEST_IDS))
    }
    scipy.io.savemat(folder / "splits.mat", lists)
    to_40 = (np.arange(894) * 7 % 40 + 1).astype(np.uint8)
    scipy.io.savemat(folder / "classMapping40.mat", {"mapClass": to_40[None]})


def nyuv2_mtan_npy(folder: Path) -> None:
    """Arrays by number, not by name; labels -1, depth 0 and normals zero where unknown."""
    size = (288, 384)
    for part, numbers in (("train", (0, 21, 42, 63, 84)), ("val", (9, 10))):
        for name in ("image", "label", "depth", "normal"):
            (folder / part / name).mkdir(parents=True)
        for number in numbers:
            seen, known = room(size, number), _without_border(size)
            arrays = {
                "image": (seen.image / 255).astype(np.float32),
                "label": np.where(known, _NYU_13[seen.surface], -1).astype(np.float32),
                "depth": np.where(known, seen.depth, 0).astype(np.float32)[..., None],
                "normal": (seen.normals * known).transpose(1, 2, 0).astype(np.float32),
            }
            for name, array in arrays.items():
                np.save(folder / part / name / f"{number}.npy", array)


# Cityscapes: the room as a street, its box as a car

STREET_CITIES = {"train": {"aachen": 2, "bremen": 1, "ulm": 1, "weimar": 1}, "val": {"frankfurt": 1, "lindau": 1}}
_STREET_IDS = np.array([11, 7, 23, 12, 26, 26], dtype=np.uint8)  # building, road, sky, wall, car, car; as labelIds
_STREET_19 = np.array([2, 0, 10, 3, 13, 13], dtype=np.int64)
_STREET_7 = np.array([1, 0, 4, 1, 6, 6], dtype=np.int64)
_STREET_2 = np.array([0, 0, 0, 0, 1, 1], dtype=np.int64)
_BLOCK = 8  # pixels of the full size that show one pixel of the drawing
UNKNOWN, ZERO, ONE = (0, 0), (0, 1), (0, 2)  # pixels of the drawing whose disparity is stored as 0, 1 and 257


@dataclasses.dataclass(frozen=True)
class Street:
    """What the files of a twin say of one image, at 128 x 256. image: uint8 [H, W, 3]; ids: uint8 [H, W], every id from
    0 to 33 in the second row; disparity: uint16 [H, W] as stored, of the full size.
    """

    image: np.ndarray
    ids: np.ndarray
    disparity: np.ndarray


def street_room(size: tuple[int, int], number: int) -> Room:
    """Seen at a wide angle, so that the road is not only at the lower edge."""
    return room(size, number, focal_widths=0.4)


def street(number: int) -> Street:
    seen = street_room((128, 256), number)
    ids = _STREET_IDS[seen.surface]
    ids[1, :34] = np.arange(34)
    disparity = (np.round(120 / seen.depth * 256) + 1).astype(np.uint16)
    disparity[0, :3] = 0, 1, 257
    return Street(seen.image, ids, disparity)


def street_names() -> dict[str, list[tuple[str, str]]]:
    """{part: [(city, stem) of each image]}."""
    return {
        part: [(city, f"{city}_{frame:06d}_000019") for city, n in cities.items() for frame in range(n)]
        for part, cities in STREET_CITIES.items()
    }


def _enlarged(array: np.ndarray) -> Image.Image:
    return Image.fromarray(array.repeat(_BLOCK, axis=0).repeat(_BLOCK, axis=1))


def cityscapes_official(folder: Path) -> None:
    """The three downloads at their true size; labels as ids, as in the download."""
    for part, names in street_names().items():
        for number, (city, stem) in enumerate(names):
            drawn = street(number)
            for base, kind, array in (
                ("leftImg8bit", "leftImg8bit", drawn.image),
                ("gtFine", "gtFine_labelIds", drawn.ids),
                ("disparity", "disparity", drawn.disparity),
            ):
                path = folder / base / part / city / f"{stem}_{kind}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                _enlarged(array).save(path, compress_level=1)


def _street_arrays(size: tuple[int, int], number: int) -> dict[str, np.ndarray]:
    seen, known = street_room(size, number), _without_border(size)
    inverse = np.where(known, 1 / seen.depth, 0)
    return {
        "image": (seen.image / 255).astype(np.float32),
        "depth": (inverse / inverse.max()).astype(np.float32)[..., None],
        "label_2": np.where(known, _STREET_2[seen.surface], -1).astype(np.float32),
        "label_7": np.where(known, _STREET_7[seen.surface], -1).astype(np.float64),
        "label_19": np.where(known, _STREET_19[seen.surface], -1),
    }


STREET_NUMBERS = {"train": (0, 21, 42, 63, 84), "val": (9, 10)}


def cityscapes_mtan_npy(folder: Path, size: tuple[int, int] = (128, 256)) -> None:
    """Arrays by number; labels -1 and inverse depth 0 where unknown."""
    for part, numbers in STREET_NUMBERS.items():
        for number in numbers:
            for name, array in _street_arrays(size, number).items():
                (folder / part / name).mkdir(parents=True, exist_ok=True)
                np.save(folder / part / name / f"{number}.npy", array)


def cityscapes_adashare(folder: Path) -> None:
    """The same arrays at 256 x 512, and the list of splits."""
    cityscapes_mtan_npy(folder, (256, 512))

    def rows(part: str) -> list[list[str]]:
        columns = ("image", "depth", "label_2", "label_7", "label_19")
        return [[f"{part}/{name}/{number}.npy" for name in columns] for number in STREET_NUMBERS[part]]

    train = rows("train")
    document = {"train": train, "train1": train[:2], "train2": train[2:], "test": rows("val")}
    (folder / "cityscape.json").write_text(json.dumps(document), encoding="utf-8")


# CIFAR-100


class _OldPickler(pickle._Pickler):
    """Writes text and bytes as Python 2 did, which made the genuine files: byte strings, not told apart."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def _save_old(self, value: bytes | str) -> None:
        content = value if isinstance(value, bytes) else value.encode("latin1")
        self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)

    dispatch[bytes] = dispatch[str] = _save_old

    def save_global(self, obj: object, name: str | None = None) -> None:
        module = "numpy.core.multiarray" if obj.__name__ == "_reconstruct" else "numpy"
        self.write(pickle.GLOBAL + f"{module}\n{obj.__name__}\n".encode())

    dispatch[type] = dispatch[types.FunctionType] = dispatch[types.BuiltinFunctionType] = save_global


def old_pickle(document: object) -> bytes:
    buffer = io.BytesIO()
    _OldPickler(buffer, protocol=2).dump(document)
    return buffer.getvalue()


CIFAR_PER_CLASS = {"train": 5, "test": 2}


def cifar_image(fine: int, number: int) -> np.ndarray:
    """uint8 [32, 32, 3]: a colour for each class, stripes for each image, the first row brighter in red."""
    image = np.zeros((32, 32, 3), dtype=np.uint8)
    image[:] = 2 * fine, 255 - 2 * fine, 37 * fine % 256
    image[:, number::7] //= 2
    image[0, :, 0] = 255
    return image


def cifar100(folder: Path) -> None:
    """Pickles in the manner of Python 2; the classes in turn, so that no task has neighbouring rows."""
    base = folder / "cifar-100-python"
    base.mkdir()
    homes = {name: number for number, names in enumerate(SUPERCLASSES.values()) for name in names}
    for split, n in CIFAR_PER_CLASS.items():
        fine = [label for _ in range(n) for label in range(100)]
        images = np.stack([cifar_image(label, number // 100) for number, label in enumerate(fine)])
        document = {
            "filenames": [f"{CLASSES[label]}_s_{number:06d}.png" for number, label in enumerate(fine)],
            "batch_label": f"{split}ing batch 1 of 1",
            "fine_labels": fine,
            "coarse_labels": [homes[CLASSES[label]] for label in fine],
            "data": images.transpose(0, 3, 1, 2).reshape(len(fine), -1),
        }
        (base / split).write_bytes(old_pickle(document))
    names = {"fine_label_names": list(CLASSES), "coarse_label_names": list(SUPERCLASSES)}
    (base / "meta").write_bytes(old_pickle(names))


# Class sets


CLASS_SET_PER_CLASS = {"train": 5, "test": 2}


def class_set_labels(split: str) -> np.ndarray:
    """The classes in turn."""
    return np.tile(np.arange(10), CLASS_SET_PER_CLASS[split])


def class_set_image(name: str, label: int, number: int, side: int) -> np.ndarray:
    """uint8 [side, side, 3]: upper left dark, a bar whose height tells the class; values that USPS can hold exactly."""
    image = np.full((side, side, 3), 204, dtype=np.uint8)
    image[: side // 4, : side // 4] = 0
    image[side - 1 - label :, side // 2 :] = 51 * (1 + (len(name) + number) % 3), 51, 153
    return image


def _class_set(name: str, split: str, side: int) -> np.ndarray:
    """uint8 [N, side, side, 3]."""
    labels = class_set_labels(split).tolist()
    return np.stack([class_set_image(name, label, number // 10, side) for number, label in enumerate(labels)])


def _idx_file(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def class_sets(folder: Path) -> None:
    """All six, each with its own encoding; MNIST decompressed, Fashion-MNIST as .gz."""
    for base in ("cifar-10-batches-py", "stl10_binary", "MNIST/raw", "FashionMNIST/raw"):
        (folder / base).mkdir(parents=True)
    for split, short in (("train", "train"), ("test", "t10k")):
        labels = class_set_labels(split)
        planes = _class_set("cifar10", split, 32).transpose(0, 3, 1, 2).reshape(len(labels), -1)
        batches = [f"data_batch_{k}" for k in range(1, 6)] if split == "train" else ["test_batch"]
        each = len(labels) // len(batches)
        for number, batch in enumerate(batches):
            rows = slice(number * each, (number + 1) * each)
            document = {"data": planes[rows], "labels": labels[rows].tolist()}
            (folder / "cifar-10-batches-py" / batch).write_bytes(old_pickle(document))
        stl = _class_set("stl10", split, 96).transpose(0, 3, 2, 1)  # planes, column by column
        (folder / "stl10_binary" / f"{split}_X.bin").write_bytes(stl.tobytes())
        (folder / "stl10_binary" / f"{split}_y.bin").write_bytes((labels + 1).astype(np.uint8).tobytes())
        lines = []
        for label, image in zip(labels.tolist(), _class_set("usps", split, 16)[..., 0], strict=True):
            values = " ".join(
                f"{cell}:{value:.6f}" for cell, value in enumerate((image.flatten() + 0.5) / 127.5 - 1, 1)
            )
            lines.append(f"{label + 1} {values}\n")
        (folder / ("usps.bz2" if split == "train" else "usps.t.bz2")).write_bytes(bz2.compress("".join(lines).encode()))
        for base, name in (("MNIST", "mnist"), ("FashionMNIST", "fashion_mnist")):
            for kind, array in (
                ("images-idx3", _class_set(name, split, 28)[..., 0]),
                ("labels-idx1", labels.astype(np.uint8)),
            ):
                path, content = folder / base / "raw" / f"{short}-{kind}-ubyte", _idx_file(array)
                if base == "MNIST":
                    path.write_bytes(content)
                else:
                    path.with_name(path.name + ".gz").write_bytes(gzip.compress(content, mtime=0))
        numbers = np.where(labels == 0, 10, labels).astype(np.uint8)[:, None]
        savemat(folder / f"{split}_32x32.mat", {"X": _class_set("svhn", split, 32).transpose(1, 2, 3, 0), "y": numbers})


# ELPV: a package, not a folder below the data root


def solar_cell(kind: str, probability: int, number: int) -> np.ndarray:
    """uint8 [300, 300]: bright, darker at the edges; round corners if mono, grains if poly; a dark bar if defective."""
    row, column = np.meshgrid(np.linspace(-1, 1, 300), np.linspace(-1, 1, 300), indexing="ij")
    cell = 200 - 60 * np.maximum(abs(row), abs(column)) ** 4
    if kind == "mono":
        cell[abs(row) + abs(column) > 1.8] = 0
    else:
        cell -= 15 * (np.floor(6 * row + number) + np.floor(6 * column)) % 2
    width = 0.1 * probability
    cell[(abs(row - 0.1 * (number % 5)) < width) & (column > 0)] = 40
    return cell.astype(np.uint8)


def elpv_package(folder: Path) -> None:
    """An installed distribution: its metadata, the list and the images; ten cells of each group, the types in turns."""
    data = folder / "elpv_dataset" / "data"
    (data / "images").mkdir(parents=True)
    info = folder / "elpv_dataset-1.0.0.post1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: elpv-dataset\nVersion: 1.0.0.post1\n")
    lines = []
    for half in range(2):
        for kind in ("mono", "poly"):
            for number in range(20):
                probability = number % 4
                name = f"images/cell{len(lines) + 1:04d}.png"
                Image.fromarray(solar_cell(kind, probability, number + 20 * half)).save(data / name)
                lines.append(f"{name}  {(0.0, 1 / 3, 2 / 3, 1.0)[probability]!r:<20}{kind}\n")
    (data / "labels.csv").write_text("".join(lines))


# data set -> (distribution that brings it, who writes its twin into a folder of packages).
PACKAGES: Mapping[str, tuple[str, Callable[[Path], None]]] = {"elpv": ("elpv-dataset", elpv_package)}


@contextlib.contextmanager
def twin_package(root: Path, name: str) -> Iterator[bool]:
    """True while the twin of a data set's package can be found, False where the package itself is installed."""
    if name not in PACKAGES or any(importlib.metadata.distributions(name=PACKAGES[name][0])):
        yield False
        return
    folder = root / f"{name}-package"
    if not folder.exists():
        folder.mkdir(parents=True)
        PACKAGES[name][1](folder)
    sys.path.append(str(folder))
    try:
        yield True
    finally:
        sys.path.remove(str(folder))


# Fashion products: the table, and thumbnails of products in the colour and the size that their labels say

FASHION_COLOURS = {"Black": (20, 20, 20), "Red": (210, 30, 40), "Blue": (40, 70, 200), "Peach": (250, 200, 160)}
FASHION_ARTICLES = {
    "Tshirts": ("Apparel", "Topwear", 20),
    "Watches": ("Accessories", "Watches", 8),
    "Heels": ("Footwear", "Shoes", 14),
    "Clutches": ("Accessories", "Bags", 11),  # in no list of classes, as Peach
}
FASHION_GRAY, FASHION_SQUARE, FASHION_NARROW = 4, 7, 9  # positions with another form
FASHION_OUTSIDE = (3, 5)  # no products of v1: a row without picture, a picture without row
FASHION_HEAD = "id,gender,masterCategory,subCategory,articleType,baseColour,season,year,usage,productDisplayName"


def fashion_products_of_twin(n: int = 80) -> list[int]:
    from datasets.fashion_products import products_v1

    return list(products_v1()[:n])


def fashion_row(product: int, position: int) -> str:
    """A line of the table: now and then a cell is empty, and titles hold commas without quotes."""
    articles, colours = list(FASHION_ARTICLES), list(FASHION_COLOURS)
    article, colour = articles[position % 9 % 4], colours[position % 11 % 4]
    category, subcategory, _ = FASHION_ARTICLES[article]
    gender = ("Men", "Women", "Unisex", "Boys", "Girls")[position % 5]
    season = "" if position % 20 == 19 else ("Fall", "Summer", "Winter", "Spring")[position % 4]
    usage = "Party" if position % 16 == 15 else ("Casual", "Sports", "Formal")[position % 3]
    title = "Kit, red, with laces" if position % 6 == 5 else "Émile & Söhne plain"
    year = "" if position % 7 == 3 else "2012.0"
    cells = [str(product), gender, category, subcategory, article, colour, season, year, usage, title]
    return ",".join(cells)


def fashion_picture(position: int) -> bytes:
    """A JPEG; the second and the third product have the same picture."""
    position = 1 if position == 2 else position
    colour = list(FASHION_COLOURS.values())[position % 11 % 4]
    width = list(FASHION_ARTICLES.values())[position % 9 % 4][2]
    size = {FASHION_SQUARE: (60, 60), FASHION_NARROW: (60, 54)}.get(position, (80, 60))
    image = np.full((*size, 3), 255, dtype=np.uint8)
    image[10 : 30 + position % 30, 25 - width : 25 + width] = colour
    drawn = Image.fromarray(image)
    buffer = io.BytesIO()
    (drawn.convert("L") if position == FASHION_GRAY else drawn).save(buffer, format="JPEG", quality=90)
    return buffer.getvalue()


def fashion_table(products: list[int]) -> bytes:
    return "\n".join([FASHION_HEAD, *map(fashion_row, products, range(len(products))), ""]).encode()


def fashion_kaggle(folder: Path) -> None:
    """The folder that Kaggle's archive becomes, with what a Mac leaves behind."""
    products = fashion_products_of_twin()
    (folder / "images").mkdir()
    without_picture, without_row = FASHION_OUTSIDE
    (folder / "styles.csv").write_bytes(fashion_table(products) + f"{fashion_row(without_picture, 0)}\n".encode())
    for position, product in enumerate(products):
        (folder / "images" / f"{product}.jpg").write_bytes(fashion_picture(position))
    (folder / "images" / f"{without_row}.jpg").write_bytes(fashion_picture(50))
    (folder / "images" / f"._{products[0]}.jpg").write_bytes(b"\0\5\x16\7")


def fashion_archive(path: Path, members: Mapping[str, bytes]) -> None:
    with tarfile.open(path, "w:xz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def fashion_subset(folder: Path) -> None:
    products = fashion_products_of_twin()
    (folder / "styles.csv").write_bytes(fashion_table(products))
    pictures = {f"images/{product}.jpg": fashion_picture(position) for position, product in enumerate(products)}
    fashion_archive(folder / "images.tar.xz", pictures)


Writer = Callable[[Path], None]
# (data set, layout) -> who writes the twin into the data set's folder.
TWINS: Mapping[tuple[str, str], Writer] = {
    ("omniglot", "small_zips"): omniglot_small_zips,
    ("omniglot", "torchvision"): omniglot_torchvision,
    ("class_sets", "torchvision"): class_sets,
    ("cifar100_20", "torchvision"): cifar100,
    ("cityscapes", "official"): cityscapes_official,
    ("cityscapes", "mtan_npy"): cityscapes_mtan_npy,
    ("cityscapes", "adashare"): cityscapes_adashare,
    ("fashion_products", "kaggle"): fashion_kaggle,
    ("fashion_products", "subset"): fashion_subset,
    ("nyuv2", "adashare"): nyuv2_adashare,
    ("nyuv2", "mat"): nyuv2_mat,
    ("nyuv2", "mtan_npy"): nyuv2_mtan_npy,
}


def write_twin(root: Path, name: str, layout: str) -> Path:
    """The data root in which that one twin lies: `root/<layout>/<name>`."""
    base = root / f"{name}-{layout}"
    folder = base / name
    if not any(folder.glob("*")):
        folder.mkdir(parents=True, exist_ok=True)
        TWINS[name, layout](folder)
    return base
