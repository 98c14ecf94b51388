"""Small files for tests of readers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

NOISE = np.random.RandomState(0).randint(0, 256, (300, 400, 3)).astype(np.uint8)  # does not compress


def save_png(path: Path, array: np.ndarray = NOISE) -> Path:
    Image.fromarray(array).save(path)
    return path


def save_npy(path: Path, array: np.ndarray = NOISE) -> Path:
    np.save(path, array)
    return path


def save_jpg(path: Path, array: np.ndarray = NOISE) -> Path:
    Image.fromarray(array).save(path)
    return path
