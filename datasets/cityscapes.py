"""`cityscapes`: street scenes with segmentation and disparity (or inverse depth). Spec: datasets 6.

Source: Cordts et al. 2016, https://www.cityscapes-dataset.com. Read here are the official files and two public releases
of .npy arrays that were made of them: MTAN's (7 classes by default) and AdaShare's, which adds a list of splits. 2,975
images of 18 cities to train on. Labels of the official test part are withheld, so the official val part, 500 images, is
our test, and validation images are held out from train: whole cities, or in the numbered releases blocks of 20 images.

The task `depth` is disparity in pixels in the official files and a normalised inverse depth in the releases; neither is
a distance. All layouts were read on twins only. Of AdaShare's release it is known from public code that reads it that
the list names `[image, depth, label_2, label_7, label_19]` files such as `train/image/7.npy`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

from datasets.cityscapes_files import FOLDERS, PARTS, official_source
from datasets.cityscapes_labels import CLASS_NAMES
from datasets.contracts import SINGLE_INPUT, DatasetSpec, Split, TaskSpec
from datasets.errors import ProtocolError, UsageError
from datasets.on_disk.dense import (
    decode_depth,
    decode_labels,
    decode_unit_image,
    read_float_map,
    read_labels_array,
    read_unit_image,
)
from datasets.on_disk.files import FileError
from datasets.on_disk.loader import FileLoader, FileOptions
from datasets.on_disk.releases import FieldForm, block_of, listed_rows, number_of, numbered_files, source_of_files
from datasets.on_disk.sources import Source
from datasets.registry import DatasetOptions, ExpectedFiles, register_dataset

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
_NAMED = re.compile(r"(?P<city>.+)_\d{6}_\d{6}(_.*)?")


def _numbered_marks() -> tuple[str, ...]:
    labels = [name for names in LABEL_FOLDERS.values() for name in names]
    return tuple(
        mark
        for part in PARTS.values()
        for mark in (f"{part}/image", f"{part}/depth", "|".join(f"{part}/{name}" for name in labels))
    )


class CityscapesOptions(FileOptions):
    """classes: 19, the 7 categories, or 2 (background, foreground); null takes the layout's usual ones.

    height: of the images, in pixels; null takes the layout's usual one. Official files are reduced to 512, or left at
    1024; the releases exist at 128 and at 256.
    """

    classes: Literal[2, 7, 19] | None = None
    height: Literal[128, 256, 512, 1024] | None = None


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
            source="Dropbox sh/gaw6vh6qusoyms6/AADwWi0Tp3E3M4B2xzeGlsEna at 128 x 256, "
            "sh/vj349qgg57nthi9/AACdZmIuK-Qb_gP6w1HrA43ta at 256 x 512; linked by github.com/lorenmt/mtan",
        ),
        "adashare": ExpectedFiles(
            f"{ADASHARE_LIST} and the .npy files it lists",
            "size not published",
            (ADASHARE_LIST,),
            source="Google Drive 1WrVMA_UZpoj7voajf60yIVaS_Ggl0jrH, linked by github.com/sunxm2357/AdaShare",
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
