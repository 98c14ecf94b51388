"""The classes of Cityscapes. Spec: datasets 6.

Ids, training ids and categories are those of cityscapesscripts 2.3.0 (`helpers/labels.py`). The seven classes are its
categories without void, counted from 0. The two classes, background and foreground (human, vehicle), are recalled from
the table of the MTAN paper; that the released `label_7` files have the order of the categories is recalled too.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from datasets.on_disk.dense import IGNORE
from datasets.on_disk.files import Array

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


def class_table(n_classes: int) -> Array:
    """uint8 [256]: id as in `_labelIds.png` -> one of 19, 7 or 2 classes; all other ids 255."""
    table = np.full(256, IGNORE, dtype=np.uint8)
    if n_classes == 19:
        table[list(_IDS_OF_19)] = np.arange(19)
        return table
    for category, (first, last) in enumerate(_IDS_OF_7):
        table[first : last + 1] = category if n_classes == 7 else _TO_2[category]
    return table
