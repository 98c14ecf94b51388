"""Small synthetic copies of data sets on disk: real names, encodings, dtypes and ignore values, a handful of images.

Content is drawn, not noise: a floor, a back wall and a box seen by a pinhole camera, so that depth and normals are
exact and agree. Everything is a function of the arguments; nothing is random.
"""

from __future__ import annotations

import atexit
import bz2
import contextlib
import dataclasses
import functools
import gzip
import importlib.metadata
import io
import json
import pickle
import shutil
import struct
import sys
import tarfile
import tempfile
import types
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image
from scipy.io import savemat

from datasets.celeba import ATTRIBUTES
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


# PASCAL-Context: the room with a person or a sofa as its box, and a street where no normals are known

PASCAL_IDS = {
    "train": ("2008_000002", "2008_000003", "2008_000007", "2009_000010", "2010_000015"),
    "val": ("2008_000008", "2010_000020"),
}
PASCAL_NUMBERS = {name: number for number, name in enumerate([*PASCAL_IDS["train"], *PASCAL_IDS["val"]])}
_PASCAL_SIZES = ((375, 500), (500, 334), (281, 500), (375, 500), (500, 376), (333, 500), (500, 500))
STREET = 3  # the image of a train, outdoors
# Wall, grass, sky, window, and the box: a person in even images, a sofa in odd ones.
_PASCAL_CONTEXT = np.array([440, 187, 360, 454, 0, 0])
_PASCAL_STREET = np.array([44, 187, 360, 420, 0, 0])  # building, grass, sky, tree
PARTS_OF_PERSON = ("hair", "head", "torso", "neck", "luarm", "llarm", "rhand", "ruleg", "llleg", "rfoot")


@dataclasses.dataclass(frozen=True)
class Pascal:
    """What the files of a twin say of one image. image: uint8 [h, w, 3], before JPEG; context: uint16 [h, w], LabelMap;
    semseg: uint8 [h, w]; parts: {part: bool [h, w]}, in the order of the file; saliency: uint8 [h, w]; normals: uint8
    [h, w, 3], y down; room: what it was drawn from.
    """

    image: np.ndarray
    context: np.ndarray
    semseg: np.ndarray
    parts: dict[str, np.ndarray]
    saliency: np.ndarray
    normals: np.ndarray
    room: Room


def pascal(number: int) -> Pascal:
    size = _PASCAL_SIZES[number]
    seen = room(size, number, focal_widths=0.5)
    box = seen.surface >= 4
    of_context, of_voc = (416, 19) if number == STREET else (368, 18) if number % 2 else (284, 15)
    context = (_PASCAL_STREET if number == STREET else _PASCAL_CONTEXT)[seen.surface]
    context[box] = of_context
    semseg = np.where(box, of_voc, 0).astype(np.uint8)
    semseg[box & ~np.roll(box, 3, axis=1)] = 255  # the border of an object
    parts = {}
    if of_voc == 15 and number != 4:  # and in image 4 a person without parts
        rows = np.linspace(*np.flatnonzero(box.any(axis=1))[[0, -1]], len(PARTS_OF_PERSON) + 1).astype(int)
        for name, top, below in zip(PARTS_OF_PERSON, rows[:-1], rows[1:], strict=True):
            parts[name] = np.zeros(size, dtype=bool)
            parts[name][top : below + 2] = box[top : below + 2]  # each is drawn over the one before
    saliency = np.where(box, 255, (127 * np.linspace(0, 1, size[1])).astype(np.uint8)[None]).astype(np.uint8)
    saliency[0, :2] = 127, 128
    x, up, towards = seen.normals
    normals = np.round((np.stack([x, -up, towards], axis=-1) + 1) * 127.5).astype(np.uint8)
    place = np.unravel_index(np.isin(context, (440, 454, 284, 368)).argmax(), size)
    normals[place] = 127  # a colour without a direction, on what has normals
    return Pascal(seen.image, context.astype(np.uint16), semseg, parts, saliency, normals, seen)


def _matlab_structs(names: tuple[str, ...], rows: list[tuple[object, ...]]) -> np.ndarray:
    """A row of MATLAB structs; no structs are an empty matrix."""
    structs = np.zeros((1, len(rows)), dtype=[(name, object) for name in names])
    for column, row in enumerate(rows):
        structs[0, column] = row
    return structs if rows else np.zeros((0, 0))


def pascal_parts(drawn: Pascal, number: int) -> np.ndarray:
    """`anno` of PASCAL-Part: an object with its class, its mask and its parts."""
    mask = (drawn.room.surface >= 4).astype(np.uint8)
    kind, index = ("person", 15) if (drawn.semseg == 15).any() else ("sofa", 18)
    parts = [(name, part.astype(np.uint8)) for name, part in drawn.parts.items()]
    listed = _matlab_structs(("part_name", "mask"), parts)
    objects = [(kind, index, mask, listed)] if number != STREET else []
    if number == 0:  # another object, whose parts are those of a horse
        objects.append(("horse", 13, mask, _matlab_structs(("part_name", "mask"), [("lfho", mask)])))
    return _matlab_structs(
        ("imname", "objects"), [("", _matlab_structs(("class", "class_ind", "mask", "parts"), objects))]
    )


def pascal_mt(folder: Path) -> None:
    """The tree of the release; labels of even images under VOC12, of odd ones under pascal-context, with a palette."""
    places = ("JPEGImages", "ImageSets/Context", "semseg/VOC12", "semseg/pascal-context", "human_parts", "sal_distill")
    for place in (*places, "normals_distill", "pascal-context/trainval"):
        (folder / place).mkdir(parents=True)
    for part, ids in PASCAL_IDS.items():
        (folder / "ImageSets/Context" / f"{part}.txt").write_text("".join(f"{name}\n" for name in ids))
    for name, number in PASCAL_NUMBERS.items():
        drawn = pascal(number)
        Image.fromarray(drawn.image).save(folder / "JPEGImages" / f"{name}.jpg", quality=95, subsampling=0)
        labels = Image.fromarray(drawn.semseg)
        if number % 2:
            labels.putpalette([value for index in range(256) for value in (index, 255 - index, 128)])
        labels.save(folder / ("semseg/pascal-context" if number % 2 else "semseg/VOC12") / f"{name}.png")
        Image.fromarray(drawn.saliency).save(folder / "sal_distill" / f"{name}.png")
        Image.fromarray(drawn.normals).save(folder / "normals_distill" / f"{name}.png")
        savemat(folder / "human_parts" / f"{name}.mat", {"anno": pascal_parts(drawn, number)}, do_compression=True)
        savemat(folder / "pascal-context/trainval" / f"{name}.mat", {"LabelMap": drawn.context}, do_compression=True)


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


# Photographs of many sizes and modes


def photo(picture: np.ndarray, mode: str = "RGB", form: str = "JPEG") -> bytes:
    """A picture uint8 [H, W, 3] encoded as people leave them: gray, with a palette, with transparency, for print."""
    buffer = io.BytesIO()
    Image.fromarray(picture).convert(mode).save(buffer, format=form, **({"quality": 95} if form == "JPEG" else {}))
    return buffer.getvalue()


def bars(hue: int, label: int, number: int, size: tuple[int, int]) -> np.ndarray:
    """uint8 [H, W, 3]: upper left dark; a bar whose height tells the label; a strip whose shade tells the number."""
    height, width = size
    image = np.full((height, width, 3), (200, 90 + 20 * (hue % 8), 255 - 25 * (hue % 10)), dtype=np.uint8)
    image[: height // 4, : width // 4] = 10
    image[height * (60 - 7 * (label % 8)) // 80 :, width // 2 : width * 3 // 4] = (30, 30, 160)
    image[:, width * 7 // 8 :] = 30 * (number % 8)
    return image


def write_files(base: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        path = base / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


# DomainNet

# Classes whose folders sort otherwise than their labels, and one that is called as a split.
DOMAINNET_CLASSES = {"ant": 6, "t-shirt": 327, "The_Eiffel_Tower": 308, "train": 321}
DOMAINNET_PER_CLASS = {"train": 5, "test": 2}
_MODES = (("RGB", "JPEG"), ("L", "JPEG"), ("CMYK", "JPEG"), ("RGB", "JPEG"), ("RGB", "JPEG"), ("RGB", "JPEG"))


def domainnet_image(domain: int, label: int, number: int) -> np.ndarray:
    """The picture before it is encoded; of quickdraw all are of one size, of the others no two."""
    return bars(domain, label, number, (100, 100) if domain == 2 else (60 + 8 * number, 110 - 7 * number + domain))


def domainnet_files() -> dict[str, dict[str, tuple[int, bytes]]]:
    """{split: {path: (label, content)}}; names with blanks and letters beyond ASCII."""
    from datasets.domainnet import DOMAINS

    files: dict[str, dict[str, tuple[int, bytes]]] = {"train": {}, "test": {}}
    for number, domain in enumerate(DOMAINS):
        for name, label in DOMAINNET_CLASSES.items():
            for count in range(sum(DOMAINNET_PER_CLASS.values())):
                split = "train" if count < DOMAINNET_PER_CLASS["train"] else "test"
                mode, form = ("P" if count % 2 else "RGBA", "PNG") if domain == "quickdraw" else _MODES[count % 6]
                stem = f"{domain}_{label + 1:03d}_{count:06d}" + (" caf\u00e9" if count % 3 == 0 else "")
                path = f"{domain}/{name}/{stem}.{'png' if form == 'PNG' else 'jpg'}"
                files[split][path] = (label, photo(domainnet_image(number, label, count), mode, form))
    return files


def domainnet_official(folder: Path) -> None:
    for split, files in domainnet_files().items():
        write_files(folder, {name: content for name, (_, content) in files.items()})
        for domain in {name.split("/")[0] for name in files}:
            lines = [f"{name} {label}\n" for name, (label, _) in files.items() if name.startswith(f"{domain}/")]
            (folder / f"{domain}_{split}.txt").write_text("".join(lines), encoding="utf-8")


def domainnet_adashare(folder: Path) -> None:
    """The domains mixed in one list."""
    for split, files in domainnet_files().items():
        write_files(folder, {name: content for name, (_, content) in files.items()})
        lines = [f"{name} {label}\n" for name, (label, _) in files.items()]
        (folder / f"{split}.txt").write_text("".join(lines[::2] + lines[1::2]), encoding="utf-8")


def domainnet_folders(folder: Path) -> None:
    """With what Mac OS leaves in folders."""
    for split, files in domainnet_files().items():
        for name, (_, content) in files.items():
            domain, rest = name.split("/", 1)
            write_files(folder, {f"{domain}/{split}/{rest}": content})
    write_files(folder, {"real/train/.DS_Store": b"x", "real/train/ant/._real_007_000001.jpg": b"x"})


# Visual Decathlon

DECATHLON_PER_CLASS = {"train": 5, "val": 2}
DECATHLON_CLASSES = {"dped": 2}  # of the others three


def decathlon_image(task: int, label: int, number: int) -> np.ndarray:
    """The shorter side is 72 pixels, as in the release; the longer one is upright or lies."""
    long = 72 + 6 * number
    return bars(task, label, number, (72, long) if number % 2 else (long, 72))


def decathlon_files() -> tuple[dict[str, bytes], dict[str, bytes]]:
    """({path of a list: content}, {path of an image: content}), below the folders of lists and of images.

    Categories stand in another order than their folders, and labels in another order than their images.
    """
    from datasets.decathlon import FILE_NAMES

    lists: dict[str, bytes] = {}
    images: dict[str, bytes] = {}
    for number, (task, name) in enumerate(FILE_NAMES.items()):
        n = DECATHLON_CLASSES.get(task, 3)
        ids = [10_000_000 + 10_000 * number + label for label in range(n)]
        categories = [{"id": ids[label], "name": f"class {label}", "supercategory": task} for label in range(n)]
        for part, each in DECATHLON_PER_CLASS.items():
            document: dict[str, list[dict[str, object]]] = {"images": [], "annotations": [], "categories": []}
            document["categories"] = [*categories]
            for label in range(n):
                for count in range(each):
                    row = len(document["images"]) + 1
                    path = f"{name}/{part}/{n - label:04d}/{row:06d}.jpg"  # the first category has the last folder
                    images[path] = photo(decathlon_image(number, label, count + (part == "val") * 5))
                    document["images"].append({"id": 1000 * number + row, "file_name": f"data/{path}"})
                    document["annotations"].insert(0, {"image_id": 1000 * number + row, "category_id": ids[label]})
            lists[f"{name}_{part}.json"] = json.dumps(document).encode()
        stripped = {"images": [{"id": 9, "file_name": f"data/{name}/test/000001.jpg"}], "categories": categories}
        lists[f"{name}_test_stripped.json"] = json.dumps({**stripped, "annotations": []}).encode()
        images[f"{name}/test/000001.jpg"] = photo(decathlon_image(number, 0, 9))
    return lists, images


def decathlon_extracted(folder: Path) -> None:
    lists, images = decathlon_files()
    write_files(folder / "decathlon-1.0" / "annotations", lists)
    write_files(folder / "decathlon-1.0-data", images)


def decathlon_tars(folder: Path) -> None:
    """An archive a collection, ImageNet's under its own name; one with what Mac OS leaves."""
    lists, images = decathlon_files()
    write_files(folder / "decathlon-1.0" / "annotations", lists)
    base = folder / "decathlon-1.0-data"
    base.mkdir()
    names = {path.split("/")[0] for path in images}
    for name in names:
        own = {path: content for path, content in images.items() if path.startswith(f"{name}/")}
        if name == "aircraft":
            own["./aircraft/train/0001/._000001.jpg"] = b"x"
        with tarfile.open(
            base / ("decathlon-1.0-data-imagenet.tar" if name == "imagenet12" else f"{name}.tar"), "w"
        ) as t:
            for path, content in own.items():
                entry = tarfile.TarInfo(path)
                entry.size = len(content)
                t.addfile(entry, io.BytesIO(content))


def decathlon_folders(folder: Path) -> None:
    write_files(folder / "decathlon-1.0-data", decathlon_files()[1])
    write_files(folder / "decathlon-1.0-data", {"svhn/val/0001/._000001.jpg": b"x"})


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


# Oxford-IIIT Pet

PET_BREEDS = {"Abyssinian": (1, 1, 1), "american_bulldog": (2, 2, 1), "Bengal": (6, 1, 2)}
PETS_IN_PART = {"trainval": range(1, 6), "test": range(6, 9)}  # numbers of the images of each breed


def pet_size(number: int) -> tuple[int, int]:
    """(height, width): upright, lying and square."""
    return ((90, 120), (160, 100), (64, 64), (50, 150))[number % 4]


def pet_trimap(number: int) -> np.ndarray:
    """uint8 [H, W]: an ellipse, larger with each number, inside of a border."""
    height, width = pet_size(number)
    row, column = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    radius = np.hypot(row, column) / (0.4 + 0.04 * number)
    return np.where(radius < 0.8, 1, np.where(radius < 1, 3, 2)).astype(np.uint8)


def pet_image(breed: str, number: int) -> np.ndarray:
    """uint8 [H, W, 3]: the pet in the colour of its breed before grey, the border between."""
    colour = {"Abyssinian": (200, 120, 40), "american_bulldog": (240, 240, 240), "Bengal": (30, 30, 90)}[breed]
    shades = np.array([(0, 0, 0), colour, (110, 130, 110), (60, 60, 60)], dtype=np.uint8)
    return shades[pet_trimap(number)]


def pet_files(part: str) -> dict[str, bytes]:
    """{path in the tree: content} of a part. Among the images are a PNG with transparency under the name of a JPEG, as
    in the genuine set, and a grey one; beside them what is in no list, and files of macOS.
    """
    files, lines = {}, []
    for breed in PET_BREEDS:
        for number in PETS_IN_PART[part]:
            name, image = f"{breed}_{number}", Image.fromarray(pet_image(breed, number))
            buffer = io.BytesIO()
            if (breed, number) in (("Abyssinian", 5), ("Bengal", 6)):
                image.convert("RGBA" if number == 5 else "L").save(buffer, format="PNG" if number == 5 else "JPEG")
            else:
                image.save(buffer, format="JPEG", quality=95)
            files[f"images/{name}.jpg"] = buffer.getvalue()
            files[f"annotations/trimaps/{name}.png"] = png(Image.fromarray(pet_trimap(number)))
            files[f"annotations/trimaps/._{name}.png"] = b"\x00\x05\x16\x07 of macOS"
            lines.append(f"{name} {' '.join(map(str, PET_BREEDS[breed]))}\n")
    files[f"annotations/{part}.txt"] = "".join(lines).encode()
    files["annotations/list.txt"] = b"#Image CLASS-ID SPECIES BREED ID\n"
    if part == "trainval":
        files["images/Bengal_100.jpg"] = files["images/Bengal_1.jpg"]
        files["images/Bengal_101.mat"] = b"MATLAB"
    return files


def oxford_pets_official(folder: Path) -> None:
    """What both archives unpack to."""
    for part in PETS_IN_PART:
        for name, content in pet_files(part).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)


def oxford_pets_torchvision(folder: Path) -> None:
    """The same tree one folder deeper."""
    oxford_pets_official(folder / "oxford-iiit-pet")


def oxford_pets_tars(folder: Path) -> None:
    """A tar file a part, with names as `tar cf FILE .` writes them."""
    for part in PETS_IN_PART:
        with tarfile.open(folder / f"{part}.tar", "w") as archive:
            for name, content in pet_files(part).items():
                entry = tarfile.TarInfo(f"./{name}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))


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


# Taskonomy: the room, an image a view

TASKONOMY_VIEWS = {  # {split: {building: views, as (point, view)}}
    "train": {"hanson": [(9, 0), (10, 0)], "merom": [(0, 0)], "onaga": [(2, 1)], "tolstoy": [(3, 0)]},
    "val": {"corozal": [(1, 0)], "darden": [(0, 0)]},
    "test": {"ihlen": [(4, 0)], "uvalda": [(0, 3)]},
}
TASKONOMY_LABELS = np.array([1, 1, 1, 0, 4, 7], dtype=np.uint8)  # walls and floor background, one side uncertain
TASKONOMY_PRIORS = (
    *(0.5421, 9.1668, 7.3311, 7.1624, 8.7229, 7.6131, 8.2371, 9.1489, 8.8221, 9.0859, 8.9141, 9.1772, 9.0351),
    *(8.6038, 9.1699, 9.1471, 9.1369),
)


def taskonomy_room(side: int, number: int) -> Room:
    """Seen at a wide angle; a little narrower where the box is at the same place again."""
    return room((side, side), number, focal_widths=0.5 + 0.05 * (number // 8))


def taskonomy_stored(side: int, number: int) -> dict[str, np.ndarray]:
    """What the files of one view hold, each as it is stored; special values in the first rows."""
    seen = taskonomy_room(side, number)
    depth = np.round(seen.depth * 512).astype(np.uint16)
    depth[0:2, :8] = 0, 0, 512, 512, 64500, 64500, 65535, 65535  # twice: of two pixels one is kept at half the size
    if number == 0:
        depth[2:4, :4] = 1, 1, 64499, 64499
    labels = TASKONOMY_LABELS[seen.surface]
    labels[2:4, :72] = np.arange(18).repeat(4)
    x, up, towards = seen.normals
    normals = np.round((np.stack([x, -up, towards], axis=-1) + 1) * 127.5).astype(np.uint8)
    normals[4:6, :8], normals[4:6, 8:16] = 127, 128
    rise = np.abs(np.diff(seen.surface, axis=1, append=seen.surface[:, -1:])) > 0
    edge = np.where(rise, 9000, 0).astype(np.uint16)  # above the clip of 5,243
    keypoint = np.where(rise, 300, 20).astype(np.uint16)  # the clip is at 328
    for stored in (edge, keypoint):
        stored[6:8, :8] = np.repeat([0, 164, 2621, 65535], 2)
    return {
        "rgb": seen.image,
        "segment_semantic": labels,
        "normal": normals,
        "depth_zbuffer": depth,
        "keypoints2d": keypoint,
        "edge_texture": edge,
    }


def taskonomy_numbers(split: str) -> dict[str, int]:
    """{building/point_P_view_V: number of its drawing}, in the order of samples."""
    names = [f"{name}/point_{p}_view_{v}" for name, views in TASKONOMY_VIEWS[split].items() for p, v in views]
    first = {"train": 0, "val": 5, "test": 7}[split]
    return {name: first + number for number, name in enumerate(names)}


def _taskonomy_views(folder: Path, side: int, between: str) -> dict[str, list[list[str]]]:
    """Writes all images; {split: paths of each view}."""
    rows: dict[str, list[list[str]]] = {}
    for split in TASKONOMY_VIEWS:
        for view, number in taskonomy_numbers(split).items():
            row = []
            for place, stored in taskonomy_stored(side, number).items():
                path = f"{place}/{between}{view}_domain_{place.replace('segment_semantic', 'segmentsemantic')}.png"
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(stored).save(folder / path)
                row.append(path)
            rows.setdefault(split, []).append(row)
    return rows


def taskonomy_official(folder: Path) -> None:
    """As omnidata-tools leaves it: a folder of the component between labels and buildings; a file of macOS."""
    _taskonomy_views(folder, 512, "taskonomy/")
    (folder / "rgb/taskonomy/hanson/._point_9_view_0_domain_rgb.png").write_bytes(b"x")


def taskonomy_adashare(folder: Path) -> None:
    """Images of 256 pixels, the list of splits and the weights of classes."""
    rows = _taskonomy_views(folder, 256, "")
    train = rows["train"]
    document = {
        **{"train": train, "train1": train[:2], "train2": train[2:]},
        **{"test_small": rows["test"][:1], "test": rows["test"]},
    }
    (folder / "taskonomy.json").write_text(json.dumps(document), encoding="utf-8")
    np.save(folder / "semseg_prior_factor.npy", np.array(TASKONOMY_PRIORS))


# CelebA

FACES = {"train": 10, "val": 2, "test": 4}
_SHADES = (((20, 20, 20), (230, 200, 90)), ((200, 150, 120), (110, 70, 50)), ((30, 90, 40), (90, 120, 200)))


def face_names() -> dict[str, list[str]]:
    """{split: files}, one split after the other."""
    start = {"train": 1, "val": 11, "test": 13}
    return {split: [f"{start[split] + k:06d}.jpg" for k in range(n)] for split, n in FACES.items()}


def face_labels(name: str) -> np.ndarray:
    """bool [40]: neighbours have opposite attributes, so that every split has both values of each."""
    number = int(name[:6]) - 1
    return (np.arange(40) * (number // 2 + 3) // 5 + number) % 2 == 1


def face(name: str) -> Image.Image:
    """Hair, skin and background whose colours tell three of the attributes."""
    labels, image = face_labels(name), np.zeros((218, 178, 3), dtype=np.uint8)
    row, column = np.mgrid[:218, :178]
    image[:] = _SHADES[2][int(labels[20])]
    image[(row - 90) ** 2 / 1.4 + (column - 89) ** 2 < 62**2] = _SHADES[0][int(labels[9])]
    image[(row - 115) ** 2 / 1.5 + (column - 89) ** 2 < (46 + int(name[:6]) % 5) ** 2] = _SHADES[1][int(labels[39])]
    return Image.fromarray(image)


def _celeba(folder: Path, images: str, labels: str, partition: str, shuffled: bool) -> None:
    names = [name for part in face_names().values() for name in part]
    for path in (folder / images, (folder / labels).parent, (folder / partition).parent):
        path.mkdir(parents=True, exist_ok=True)
    for name in names:
        face(name).save(folder / images / name, quality=90)
    (folder / images / "._000001.jpg").write_bytes(b"x")
    rows = [f"{name} {' '.join(f'{1 if value else -1:2d}' for value in face_labels(name))}" for name in names]
    parts = [f"{name} {number}" for number, part in enumerate(face_names().values()) for name in part]
    rows = rows[::-1] if shuffled else rows
    (folder / labels).write_text("\n".join([str(len(rows)), " ".join(ATTRIBUTES) + " ", *rows, ""]), encoding="utf-8")
    (folder / partition).write_text("\n".join([*parts, ""]), encoding="utf-8")


def celeba_torchvision(folder: Path) -> None:
    """As torchvision unpacks it."""
    _celeba(folder, "img_align_celeba", "list_attr_celeba.txt", "list_eval_partition.txt", shuffled=False)


def celeba_archive(folder: Path) -> None:
    """The authors' folders; the rows of one list the other way round."""
    places = ("Img/img_align_celeba", "Anno/list_attr_celeba.txt", "Eval/list_eval_partition.txt")
    _celeba(folder, *places, shuffled=True)


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
    """A JPEG; the second and the third product have the same pixels in different files."""
    comment = b"once more" if position == 2 else b""
    position = 1 if position == 2 else position
    colour = list(FASHION_COLOURS.values())[position % 11 % 4]
    width = list(FASHION_ARTICLES.values())[position % 9 % 4][2]
    size = {FASHION_SQUARE: (60, 60), FASHION_NARROW: (60, 54)}.get(position, (80, 60))
    image = np.full((*size, 3), 255, dtype=np.uint8)
    image[10 : 30 + position % 30, 25 - width : 25 + width] = colour
    drawn = Image.fromarray(image)
    buffer = io.BytesIO()
    (drawn.convert("L") if position == FASHION_GRAY else drawn).save(buffer, format="JPEG", quality=90, comment=comment)
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
    ("decathlon", "extracted"): decathlon_extracted,
    ("decathlon", "tars"): decathlon_tars,
    ("decathlon", "folders"): decathlon_folders,
    ("domainnet", "official"): domainnet_official,
    ("domainnet", "adashare"): domainnet_adashare,
    ("domainnet", "folders"): domainnet_folders,
    ("cityscapes", "official"): cityscapes_official,
    ("cityscapes", "mtan_npy"): cityscapes_mtan_npy,
    ("cityscapes", "adashare"): cityscapes_adashare,
    ("fashion_products", "kaggle"): fashion_kaggle,
    ("fashion_products", "subset"): fashion_subset,
    ("nyuv2", "adashare"): nyuv2_adashare,
    ("nyuv2", "mat"): nyuv2_mat,
    ("nyuv2", "mtan_npy"): nyuv2_mtan_npy,
    ("oxford_pets", "official"): oxford_pets_official,
    ("oxford_pets", "torchvision"): oxford_pets_torchvision,
    ("oxford_pets", "tars"): oxford_pets_tars,
    ("pascal_context", "pascal_mt"): pascal_mt,
    ("taskonomy", "official"): taskonomy_official,
    ("taskonomy", "adashare"): taskonomy_adashare,
    ("celeba", "torchvision"): celeba_torchvision,
    ("celeba", "archive"): celeba_archive,
}


def write_twin(root: Path, name: str, layout: str) -> Path:
    """The data root in which that one twin lies: `root/<layout>/<name>`. A copy, for tests that spoil it."""
    base = root / f"{name}-{layout}"
    folder = base / name
    if not any(folder.glob("*")):
        shutil.copytree(_drawn(name, layout), folder, dirs_exist_ok=True)
    return base


@functools.cache
def _drawn(name: str, layout: str) -> Path:
    """Drawn and compressed once a process: most tests want the same few."""
    folder = tempfile.TemporaryDirectory(prefix="sharebench-twin-")
    atexit.register(folder.cleanup)
    TWINS[name, layout](Path(folder.name))
    return Path(folder.name)
