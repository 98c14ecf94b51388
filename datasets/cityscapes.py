"""`cityscapes`: street scenes with segmentation and disparity (or inverse depth). Spec: datasets 6.

Source: Cordts et al. 2016, https://www.cityscapes-dataset.com. Three layouts are read: the official files, and two
public releases of .npy arrays made from them, MTAN's (7 classes by default) and AdaShare's, which adds a list of
splits. 2,975 images of 18 cities are for training. Labels of the official test part are withheld. So the official val
part, 500 images, is our test; validation images are held out from train by whole cities, in the numbered releases by
blocks of 20 images.

Official files are `{leftImg8bit,gtFine,disparity}/SPLIT/CITY/CITY_SEQUENCE_FRAME_TYPE.png`. Labels are read from
`_labelTrainIds.png` where a split has them (the official scripts make them), else from `_labelIds.png`. Disparity is
uint16: 0 unknown, else 256 times the pixels plus 1.

The task `depth` is disparity in pixels in the official files and a normalised inverse depth in the releases; neither is
a distance. All layouts were read on twins only. Public code that reads AdaShare's release says that its list names
`[image, depth, label_2, label_7, label_19]` files such as `train/image/7.npy`.

Ids, training ids and categories are those of cityscapesscripts 2.3.0 (`helpers/labels.py`). The seven classes are its
categories without void, counted from 0. Recalled: the two classes, background and foreground (human, vehicle), from the
table of the MTAN paper; and that the released `label_7` files have the order of the categories.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from PIL import Image
from pydantic import Field

from datasets.contracts import SINGLE_INPUT, DatasetSpec, Split, TaskSpec
from datasets.errors import ProtocolError, UsageError
from datasets.on_disk.dense import (
    IGNORE,
    decode_depth,
    decode_labels,
    decode_unit_image,
    read_colours,
    read_float_map,
    read_labels,
    read_labels_array,
    read_unit_image,
)
from datasets.on_disk.files import Array, FileError, expect, read_image
from datasets.on_disk.loader import FileLoader, FileOptions
from datasets.on_disk.releases import FieldForm, block_of, listed_rows, number_of, numbered_files, source_of_files
from datasets.on_disk.sources import Source, scale_uint8
from datasets.registry import DatasetOptions, ExpectedFiles, register_dataset

if TYPE_CHECKING:
    from torch import Tensor

LARGEST_ID = 33
CLASSES_19 = (
    *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation"),
    *("terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"),
)
CLASSES_7 = ("flat", "construction", "object", "nature", "sky", "human", "vehicle")
CLASSES_2 = ("background", "foreground")
CLASS_NAMES: Mapping[int, tuple[str, ...]] = {19: CLASSES_19, 7: CLASSES_7, 2: CLASSES_2}

_IDS_OF_19 = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
_IDS_OF_7 = ((7, 10), (11, 16), (17, 20), (21, 22), (23, 23), (24, 25), (26, 33))  # first and last id
_TO_2 = (0, 0, 0, 0, 0, 1, 1)


FULL_SIZE = (1024, 2048)
FOLDERS = ("leftImg8bit", "gtFine", "disparity")
PARTS: Mapping[str, str] = {"train": "train", "test": "val"}  # labels of the official test part are withheld
SPLITS: Mapping[str, int] = {"train": 2975, "test": 500}
ADASHARE_LIST = "cityscape.json"
LABEL_FOLDERS: Mapping[int, tuple[str, ...]] = {  # the explicit name first; a plain `label` holds 7 classes
    7: ("label_7", "label"),
    19: ("label_19",),
    2: ("label_2",),
}
_COLUMNS = ("image", "depth", "label_2", "label_7", "label_19")
_HEIGHTS = {"official": (512, 1024), "mtan_npy": (128, 256), "adashare": (256, 128)}  # the usual one first
_CLASSES = {"official": 19, "mtan_npy": 7, "adashare": 19}
_PROTOCOLS = {"official": ("standard",), "mtan_npy": ("standard", "mtan"), "adashare": ("standard", "adashare")}
_DEPTH_METRICS = ("abs_err", "rel_err", "rmse", "delta_1_25", "delta_1_25_2", "delta_1_25_3")
_WEIGHTS = {"standard": (1.0, 1.0), "mtan": (1.0, 1.0), "adashare": (1.0, 20.0)}  # datasets 14
_DISPARITY_DIVISOR = 128.0  # of the L1 loss in pixels, so that it is of the order of a cross-entropy (datasets 14)
_STEM = re.compile(r"(?P<city>.+)_\d{6}_\d{6}")
_NAMED = re.compile(r"(?P<city>.+)_\d{6}_\d{6}(_.*)?")


def _numbered_marks() -> tuple[str, ...]:
    labels = [name for names in LABEL_FOLDERS.values() for name in names]
    return tuple(
        mark
        for part in PARTS.values()
        for mark in (f"{part}/image", f"{part}/depth", "|".join(f"{part}/{name}" for name in labels))
    )


class CityscapesOptions(FileOptions):
    """Which classes and which size."""

    classes: Literal[2, 7, 19] | None = Field(
        default=None,
        description="19, the 7 categories, or 2 (background, foreground); null takes the layout's usual ones",
    )
    height: Literal[128, 256, 512, 1024] | None = Field(
        default=None,
        description="of the images, in pixels; null takes the layout's usual one. Official files are reduced to 512 or "
        "left at 1024; the releases exist at 128 and at 256",
    )


@register_dataset("cityscapes")
class Cityscapes(FileLoader):
    """Segmentation and disparity on 3,475 images."""

    Options = CityscapesOptions
    protocols = ("standard", "adashare", "mtan")
    layouts: ClassVar[Mapping[str, ExpectedFiles]] = {
        "official": ExpectedFiles(
            "{leftImg8bit,gtFine,disparity}/{train,val}/CITY/CITY_SEQUENCE_FRAME_TYPE.png "
            "(leftImg8bit_trainvaltest.zip, gtFine_trainvaltest.zip, disparity_trainvaltest.zip)",
            "about 15 GB",
            tuple(f"{name}/{part}" for part in PARTS.values() for name in FOLDERS),
        ),
        "mtan_npy": ExpectedFiles(
            "{train,val}/{image,depth,label_7 or label}/N.npy",
            "0.65 or 2.4 GB",
            _numbered_marks(),
            unless=(ADASHARE_LIST,),
            source="https://www.dropbox.com/sh/gaw6vh6qusoyms6/AADwWi0Tp3E3M4B2xzeGlsEna at 128 x 256, "
            "https://www.dropbox.com/sh/vj349qgg57nthi9/AACdZmIuK-Qb_gP6w1HrA43ta at 256 x 512 (linked by "
            "github.com/lorenmt/mtan)",
        ),
        "adashare": ExpectedFiles(
            f"{ADASHARE_LIST} and the .npy files it lists",
            "size not published",
            (ADASHARE_LIST,),
            source="https://drive.google.com/open?id=1WrVMA_UZpoj7voajf60yIVaS_Ggl0jrH (linked by "
            "github.com/sunxm2357/AdaShare)",
        ),
    }

    def spec(self, protocol: str, options: DatasetOptions, layout: str | None = None) -> DatasetSpec:
        """Two tasks; the protocol decides their weights. Raises UsageError for a height the layout does not have."""
        assert isinstance(options, CityscapesOptions)
        layout = layout or "official"
        if protocol not in _PROTOCOLS[layout]:
            offered = ", ".join(_PROTOCOLS[layout])
            raise ProtocolError(
                f"cityscapes in layout {layout!r} has no labels for protocol {protocol!r}; it has: {offered}."
            )
        n_classes, (height, width) = options.classes or _CLASSES[layout], size_of(layout, options)
        semseg, depth = _WEIGHTS[protocol]
        pixels = layout == "official"
        return DatasetSpec(
            name="cityscapes",
            layout=layout,
            version=f"v1+{n_classes}+{height}",
            protocol=protocol,
            domains="single",
            tasks=(
                TaskSpec("semseg", "semantic", n_classes, ("miou", "pixel_acc"), CLASS_NAMES[n_classes], semseg),
                TaskSpec(
                    "depth",
                    "depth",
                    1,
                    _DEPTH_METRICS,
                    weight=depth,
                    unit="disparity_px" if pixels else "inverse_depth",
                    loss_divisor=_DISPARITY_DIVISOR if pixels else 1.0,
                ),
            ),
            splits=SPLITS,
            native_size=(height, width),
            # Of ImageNet: statistics of the whole set have not been measured here.
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            licence="non-commercial research after registration, not redistributed",
            home="https://www.cityscapes-dataset.com",
            tier="verified on twins",
        )

    def sources(self, folder: Path, split: Split, spec: DatasetSpec, options: FileOptions) -> Mapping[str, Source]:
        """The images of the folders, or of the release's list. Raises FileError for what does not belong there."""
        assert isinstance(options, CityscapesOptions)
        n_classes = options.classes or _CLASSES[spec.layout]
        if spec.layout == "official":
            source = official_source(folder, split, n_classes, spec.native_size)
        elif spec.layout == "mtan_npy":
            source = _numbered_source(folder, split, n_classes, spec.native_size)
        else:
            source = _listed_source(folder, split, n_classes, spec.native_size)
        return {SINGLE_INPUT: source}


def size_of(layout: str, options: CityscapesOptions) -> tuple[int, int]:
    """(height, width) of the images. Raises UsageError for a height that the layout does not have."""
    height = options.height or _HEIGHTS[layout][0]
    if height not in _HEIGHTS[layout]:
        offered = " and ".join(str(value) for value in sorted(_HEIGHTS[layout]))
        raise UsageError(f"cityscapes in layout {layout!r} has the heights {offered}, not {height}.")
    return height, 2 * height


def _numbered_source(folder: Path, split: Split, n_classes: int, size: tuple[int, int]) -> Source:
    base = folder / PARTS[split]
    labels = next((name for name in LABEL_FOLDERS[n_classes] if (base / name).is_dir()), None)
    if labels is None:
        found = ", ".join(sorted(path.name for path in base.glob("label*"))) or "no labels"
        raise FileError(f"{base}: {n_classes} classes need {' or '.join(LABEL_FOLDERS[n_classes])}, found {found}.")
    numbers, files = numbered_files(base, {"image": "image", "semseg": labels, "depth": "depth"})
    ids, units = [f"{split}/{number}" for number in numbers], [block_of(number) for number in numbers]
    meta = {"domain": None, "label_files": labels}
    return source_of_files(folder, ids, units, files, _array_fields(n_classes, size), meta)


def _listed_source(folder: Path, split: Split, n_classes: int, size: tuple[int, int]) -> Source:
    labels = f"label_{n_classes}"
    columns = {"image": 0, "semseg": _COLUMNS.index(labels), "depth": 1}
    rows = sorted(listed_rows(folder / ADASHARE_LIST, split, _COLUMNS), key=_order)
    files = {name: [folder / row[column] for row in rows] for name, column in columns.items()}
    ids = [str(Path(row[0]).with_suffix("").as_posix()) for row in rows]
    meta = {"domain": None, "label_files": labels}
    units = [_unit(row[0]) for row in rows]
    return source_of_files(folder, ids, units, files, _array_fields(n_classes, size), meta)


def _unit(image: str) -> str:
    """The city where a file is named by it, else the block of its number. Raises FileError where it has neither."""
    named = _NAMED.fullmatch(Path(image).stem)
    return named["city"] if named else block_of(number_of(image))


def _order(row: Sequence[str]) -> tuple[str, int]:
    """By folder and number; files named by their city by the whole name."""
    path = Path(row[0])
    named = _NAMED.fullmatch(path.stem)
    return (row[0], 0) if named else (path.parent.as_posix(), number_of(row[0]))


def _array_fields(n_classes: int, size: tuple[int, int]) -> dict[str, FieldForm]:
    return {
        "image": (functools.partial(read_unit_image, size=size), decode_unit_image),
        "semseg": (functools.partial(read_labels_array, size=size, n_classes=n_classes), decode_labels),
        "depth": (functools.partial(read_float_map, shapes=[(*size, 1), size]), decode_depth),
    }


def class_table(n_classes: int) -> Array:
    """uint8 [256]: id as in `_labelIds.png` -> one of 19, 7 or 2 classes; all other ids 255."""
    table = np.full(256, IGNORE, dtype=np.uint8)
    if n_classes == 19:
        table[list(_IDS_OF_19)] = np.arange(19)
        return table
    for category, (first, last) in enumerate(_IDS_OF_7):
        table[first : last + 1] = category if n_classes == 7 else _TO_2[category]
    return table


def official_source(folder: Path, split: Split, n_classes: int, size: tuple[int, int]) -> Source:
    """All images of a split, by name. size: of what is given, at most that of the files. Raises FileError.

    A file that one of the three folders lacks is a fault, not a sample less.
    """
    part = PARTS[split]
    train_ids = n_classes == 19 and any((folder / "gtFine" / part).glob("*/*_gtFine_labelTrainIds.png"))
    labels = "labelTrainIds" if train_ids else "labelIds"
    types = {"image": "leftImg8bit", "semseg": f"gtFine_{labels}", "depth": "disparity"}
    places = {name: folder / base / part for name, base in zip(types, FOLDERS, strict=True)}
    cities = {
        path.name[: -len(f"_{types[name]}.png")]: path
        for name, base in places.items()
        for path in base.glob(f"*/*_{types[name]}.png")
    }
    units = {stem: _city(stem, path) for stem, path in sorted(cities.items())}
    files = {
        name: [base / city / f"{stem}_{types[name]}.png" for stem, city in units.items()]
        for name, base in places.items()
    }
    fields: dict[str, FieldForm] = {
        "image": (functools.partial(_read_image, size=size), scale_uint8),
        "semseg": (functools.partial(_read_labels, size=size, n_classes=n_classes, train_ids=train_ids), decode_labels),
        "depth": (
            functools.partial(_read_disparity, size=size),
            functools.partial(decode_disparity, scale=size[1] / FULL_SIZE[1]),
        ),
    }
    meta = {"domain": None, "label_files": labels}
    return source_of_files(folder, list(units), list(units.values()), files, fields, meta)


def _city(stem: str, path: Path) -> str:
    """The city in a name. Raises FileError where it is not the folder's."""
    match = _STEM.fullmatch(stem)
    if match is None or match["city"] != path.parent.name:
        raise FileError(f"{path}: unexpected file; expected CITY/CITY_000000_000000_TYPE.png, CITY as its folder.")
    return match["city"]


def _read_image(path: Path, size: tuple[int, int]) -> Array:
    """uint8 [*size, 3], reduced bilinearly with antialiasing. Raises FileError."""
    image = read_colours(path, FULL_SIZE)
    if size == FULL_SIZE:
        return image
    return np.array(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def _read_labels(path: Path, size: tuple[int, int], n_classes: int, train_ids: bool) -> Array:
    """uint8 [*size]: classes counted from 0, and 255. Raises FileError naming an id that does not exist."""
    if train_ids:
        return _reduced_labels(read_labels(path, FULL_SIZE, n_classes), size)
    return _reduced_labels(class_table(n_classes)[read_labels(path, FULL_SIZE, LARGEST_ID + 1)], size)


def _read_disparity(path: Path, size: tuple[int, int]) -> Array:
    """uint16 [*size] as stored. Raises FileError."""
    stored = expect(read_image(path), FULL_SIZE, ["uint16"], path)
    return _reduced_labels(stored.astype(np.int32), size).astype(np.uint16)  # torch cannot index uint16


def _reduced_labels(labels: Array, size: tuple[int, int]) -> Array:
    """[H, W] -> [*size]: the label at each pixel's centre."""
    import torch

    from datasets.images.transforms import nearest_centre

    return nearest_centre(torch.from_numpy(labels), size).numpy()


def decode_disparity(stored: Array, scale: float) -> Tensor:
    """uint16 [H, W] -> float32 [H, W], pixels of an image `scale` times as wide; 0 -> NaN, 1 -> 0.0, 257 -> scale."""
    import torch

    values = torch.from_numpy(stored.astype(np.float32))
    return torch.where(values == 0, math.nan, (values - 1) / 256 * scale)
