"""Photographs as they were collected: of many sizes, gray, with a palette or four channels; brought to RGB squares.

They lie in files, or in tar archives that are read where they are. What Mac OS and Windows add to folders is left out
and counted.
"""

from __future__ import annotations

import dataclasses
import io
import zlib
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from PIL import Image

from datasets.on_disk.files import Array, FileError, TarArchive, read_bytes
from datasets.on_disk.sources import Fault, Field, Source, number_label, scale_uint8

if TYPE_CHECKING:
    import torch

SUFFIXES = (".jpg", ".jpeg", ".png")
# stretch: the whole picture, its aspect changed. crop: the shorter side is resized, the middle of the longer one kept.
Fit = Literal["stretch", "crop"]


@dataclasses.dataclass(frozen=True)
class Member:
    """A file in a tar archive that is not compressed."""

    archive: TarArchive
    name: str


Photo: TypeAlias = "Path | Member"


def is_hidden(path: str) -> bool:
    """Whether a system put the file there, not the data's authors: `._name`, `.DS_Store`, `Thumbs.db`."""
    name = path.rsplit("/", 1)[-1]
    return name.startswith(".") or name in ("Thumbs.db", "desktop.ini")


def class_folders(base: Path) -> tuple[dict[str, list[Path]], int]:
    """({class: its images}, number of hidden files) of `base/CLASS/*.jpg`, both in the order of names.

    Raises FileError where `base` is absent, or for a file that is no image of a class.
    """
    if not base.is_dir():
        raise FileError(f"{base}: is absent; expected a folder with a folder a class.")
    found: dict[str, list[Path]] = {}
    n_hidden = 0
    for folder in sorted(base.iterdir()):
        if is_hidden(folder.name):
            n_hidden += 1
            continue
        if not folder.is_dir():
            raise FileError(f"{folder}: expected the folder of a class, found a file.")
        paths = sorted(folder.iterdir())
        found[folder.name] = [path for path in paths if not is_hidden(path.name)]
        n_hidden += len(paths) - len(found[folder.name])
        for path in found[folder.name]:
            if path.suffix.lower() not in SUFFIXES:
                raise FileError(f"{path}: expected an image ({', '.join(SUFFIXES)}).")
    return found, n_hidden


def compared(paths: Sequence[Path], folder: Path, known: Container[str] = ()) -> tuple[list[Fault], int]:
    """(a fault for every listed file that is not there, number of files beside them that no list names).

    Each folder is listed once. folder: of the data set. known: paths below it that other lists name.
    """
    listed: dict[Path, set[str]] = {}
    for path in paths:
        listed.setdefault(path.parent, set()).add(path.name)
    faults: list[Fault] = []
    n_unlisted = 0
    for base, names in listed.items():
        found = {path.name for path in base.iterdir()} if base.is_dir() else set()
        below = base.relative_to(folder).as_posix()
        for name in sorted(names - found):
            place = f"{below}/{name}"
            faults.append(Fault(place, place, "existence", "an image that the list names", "none"))
        n_unlisted += sum(not is_hidden(name) and f"{below}/{name}" not in known for name in found - names)
    return faults, n_unlisted


def rgb_array(data: bytes, path: object) -> Array:
    """uint8 [H, W, 3] of an encoded image, converted from gray, palette, CMYK or RGBA as Pillow does.

    path: for the message. Raises FileError if the data are truncated or not an image.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            # Pillow warns of palettes with transparency unless they become RGBA first; the colours are the same.
            return np.array((image.convert("RGBA") if image.mode == "P" else image).convert("RGB"))
    except (OSError, SyntaxError, ValueError, zlib.error, Image.DecompressionBombError) as error:
        reason = "not an image" if isinstance(error, Image.UnidentifiedImageError) else error
        raise FileError(f"{path}: cannot be read as an image ({reason}).") from error


def square(image: Array, side: int, fit: Fit) -> Array:
    """uint8 [side, side, 3] of uint8 [H, W, 3]: bilinear, smoothed when reduced."""
    import torch
    from torchvision.transforms.v2 import functional

    from datasets.images.transforms import squared

    planes: torch.Tensor = torch.from_numpy(image).permute(2, 0, 1)
    if fit == "crop":
        if min(planes.shape[1:]) != side:
            planes = functional.resize(planes, [side], antialias=True)
        planes = functional.center_crop(planes, [side, side])
    elif tuple(planes.shape[1:]) != (side, side):
        planes = squared(planes, side)
    return planes.permute(1, 2, 0).contiguous().numpy()


@dataclasses.dataclass(frozen=True)
class Squares:
    """Reads photographs by position."""

    photos: Sequence[Photo]
    side: int
    fit: Fit

    def __call__(self, index: int) -> Array:
        """uint8 [side, side, 3]. Raises FileError."""
        photo = self.photos[index]
        if isinstance(photo, Member):
            data = photo.archive.read(photo.name)
            return square(rgb_array(data, f"{photo.archive.path}/{photo.name}"), self.side, self.fit)
        return square(rgb_array(read_bytes(photo), photo), self.side, self.fit)


@dataclasses.dataclass(frozen=True)
class LabelledPhotos:
    """Photographs of one task, in their order. ids: below the data set's folder; labels: int64, from 0.

    faults, notes, content: as those of a `Source`.
    """

    ids: Sequence[str]
    photos: Sequence[Photo]
    labels: Sequence[int]
    faults: Sequence[Fault] = ()
    notes: Sequence[str] = ()
    content: Sequence[Path] = ()


def photo_source(
    task: str, found: LabelledPhotos, side: int, fit: Fit, meta: Mapping[str, object] | None = None
) -> Source:
    """The source of a task whose samples are photographs with a class each, held out by class."""
    where = [photo.archive.path if isinstance(photo, Member) else photo for photo in found.photos].__getitem__
    labels = np.array(found.labels, dtype=np.int64)
    return Source(
        ids=found.ids,
        units=found.ids,
        strata=[str(label) for label in found.labels],
        image=Field(Squares(found.photos, side, fit), scale_uint8, where),
        targets={task: Field(labels.__getitem__, number_label, where)},
        faults=found.faults,
        one_size=False,
        notes=found.notes,
        content=found.content,
        meta={"domain": task, **(meta or {})},
    )
