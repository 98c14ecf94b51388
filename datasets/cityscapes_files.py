"""The official files of Cityscapes: `{leftImg8bit,gtFine,disparity}/SPLIT/CITY/CITY_SEQUENCE_FRAME_TYPE.png`.

Spec: datasets 6. Labels are read from `_labelTrainIds.png` where a split has them: the official scripts make them, the
download has only `_labelIds.png`. Disparity is uint16: 0 unknown, else 256 times the pixels plus 1.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from datasets.cityscapes_labels import LARGEST_ID, class_table
from datasets.contracts import Split
from datasets.on_disk.dense import decode_labels, read_colours, read_labels
from datasets.on_disk.files import Array, FileError, expect, read_image
from datasets.on_disk.releases import FieldForm, source_of_files
from datasets.on_disk.sources import Source, scale_uint8

if TYPE_CHECKING:
    from torch import Tensor

FULL_SIZE = (1024, 2048)
FOLDERS = ("leftImg8bit", "gtFine", "disparity")
PARTS: Mapping[str, str] = {"train": "train", "test": "val"}  # labels of the official test part are withheld
_STEM = re.compile(r"(?P<city>.+)_\d{6}_\d{6}")


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
