"""Numbered pictures, `images/NUMBER.jpg` in a folder or an archive, whose pixels are known before the first step.

Sets that are split by their pixels, or must be the same in two layouts, decode all pictures when they are listed. A
prepared copy keeps what was found, so that later only the bytes of the files are looked at.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import hashlib
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from datasets.on_disk.files import Array, FileError, image_array, read_bytes, streamed_members
from datasets.on_disk.sources import Fault

IMAGES = "images"
_NAME = re.compile(r"([1-9]\d{0,8})\.jpg")
_UNPACKING = threading.Lock()  # threads that decode side by side wait for the first one, and do not all unpack
Found = tuple[str, str] | Fault  # (sha256 of the RGB pixels, form such as `80x60 gray`), or what is wrong with a file
# (number, bytes, time of change) of files: while these stay, a listing of this process holds.
Seen = tuple[tuple[int, int, int], ...]


@dataclasses.dataclass(frozen=True)
class Listing:
    """What is known once all pictures have been decoded. files: sha256 over the files that were read; pictures:
    {number: (sha256 of the RGB pixels, form such as `80x60`)}; other: names that are no picture's.
    """

    files: str
    pictures: Mapping[int, tuple[str, str]]
    other: Sequence[str] = ()
    faults: Sequence[Fault] = ()

    def kept(self) -> dict[str, object]:
        """As the manifest of a prepared copy keeps it; a set with faults is not prepared."""
        pictures = {str(number): list(found) for number, found in self.pictures.items()}
        return {"files": self.files, "pictures": pictures, "other": list(self.other)}


class Pictures(abc.ABC):
    """The pictures of a layout. Subclasses read them; all of them survive pickling."""

    @abc.abstractmethod
    def listing(self, kept: Mapping[str, Any] | None) -> Listing:
        """All pictures; from `kept`, a listing in a prepared copy's manifest, where that is of the same files.

        Raises FileError where they cannot be read as a whole; pictures that cannot be decoded are faults.
        """

    @abc.abstractmethod
    def where(self, number: int) -> Path:
        """The file that holds a picture."""

    @abc.abstractmethod
    def read(self, number: int) -> Array:
        """uint8 [H, W, 3]. Raises FileError."""


@dataclasses.dataclass(frozen=True)
class Folder(Pictures):
    """`images/NUMBER.jpg` below a path. asked: the numbers that are looked at, None for all."""

    path: Path
    asked: tuple[int, ...] | None = None

    def listing(self, kept: Mapping[str, Any] | None) -> Listing:
        """Reads every file that is asked for; decodes them all if nothing is kept."""
        folder = self.path / IMAGES
        try:
            names = sorted(path.name for path in folder.iterdir())
            numbers = sorted(int(match[1]) for name in names if (match := _NAME.fullmatch(name)))
            if self.asked is not None:
                numbers = sorted({*numbers}.intersection(self.asked))
            stats = [(number, self.where(number).stat()) for number in numbers]
        except OSError as error:
            raise FileError(f"{error.filename or folder}: cannot be read ({error.strerror or error}).") from error
        seen = tuple((number, stat.st_size, stat.st_mtime_ns) for number, stat in stats)
        digest, other = _digest_of_files(self, seen), [name for name in names if not _NAME.fullmatch(name)]
        return dataclasses.replace(_again(kept, digest) or _look_at_files(self, seen), files=digest, other=other)

    def where(self, number: int) -> Path:
        """The picture itself."""
        return self.path / IMAGES / f"{number}.jpg"

    def read(self, number: int) -> Array:
        """uint8 [H, W, 3]. Raises FileError."""
        return decoded(read_bytes(self.where(number)), self.where(number))[0]


@dataclasses.dataclass(frozen=True)
class Packed(Pictures):
    """A .tar.xz with members `images/NUMBER.jpg`: it cannot be read in any order, and is unpacked into memory once."""

    path: Path

    def listing(self, kept: Mapping[str, Any] | None) -> Listing:
        """Hashes the archive; unpacks it if nothing is kept."""
        return _again(kept, _digest_of_archive(self.path, self._seen)) or self._unpacked()[0]

    def where(self, number: int) -> Path:
        """The archive."""
        return self.path

    def read(self, number: int) -> Array:
        """uint8 [H, W, 3]. Raises FileError."""
        return self._unpacked()[1][number]

    def _unpacked(self) -> tuple[Listing, Mapping[int, Array]]:
        with _UNPACKING:
            return _unpacked(self.path, self._seen)

    @property
    def _seen(self) -> tuple[int, int]:
        try:
            stat = self.path.stat()
        except OSError as error:
            raise FileError(f"{self.path}: cannot be read ({error.strerror or error}).") from error
        return stat.st_size, stat.st_mtime_ns


def decoded(data: bytes, path: object) -> tuple[Array, str]:
    """(uint8 [H, W, 3], form such as `80x60 gray`) of an image. Raises FileError for one that is not gray or RGB."""
    array = image_array(data, path)
    form = f"{array.shape[0]}x{array.shape[1]}"
    if array.dtype != np.uint8 or array.shape[2:] not in ((), (3,)):
        raise FileError(f"{path}: expected a gray or an RGB image of 8 bits, found {array.dtype} {array.shape}.")
    if array.ndim == 2:
        return np.repeat(array[..., None], 3, axis=2), f"{form} gray"
    return array, form


def sha256_of(lines: Iterable[str]) -> str:
    """sha256 (hex) of lines of text."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@functools.lru_cache(maxsize=2)
def _digest_of_files(folder: Folder, seen: Seen) -> str:
    def digest(number: int) -> str:
        return f"{number} {hashlib.sha256(read_bytes(folder.where(number))).hexdigest()}"

    with ThreadPoolExecutor() as pool:
        return sha256_of(pool.map(digest, [number for number, *_ in seen]))


@functools.lru_cache(maxsize=2)
def _look_at_files(folder: Folder, seen: Seen) -> Listing:
    def look(number: int) -> Found:
        return _looked_at(number, read_bytes(folder.where(number)), f"{IMAGES}/{number}.jpg")[0]

    numbers = [number for number, *_ in seen]
    with ThreadPoolExecutor() as pool:
        return _listing_of(dict(zip(numbers, pool.map(look, numbers), strict=True)))


def _looked_at(number: int, data: bytes, name: str) -> tuple[Found, Array | None]:
    """What was found, and the picture where it can be decoded. name: of the file, below the data set's folder."""
    try:
        picture, form = decoded(data, name)
    except FileError as error:
        reason = str(error).removeprefix(f"{name}: ").rstrip(".")
        return Fault(name, str(number), "content", "a JPEG that can be read", reason), None
    return (hashlib.sha256(picture.tobytes()).hexdigest(), form), picture


def _listing_of(found: Mapping[int, Found]) -> Listing:
    faults = [one for one in found.values() if isinstance(one, Fault)]
    return Listing("", {number: one for number, one in found.items() if not isinstance(one, Fault)}, (), faults)


def _again(kept: Mapping[str, Any] | None, digest: str) -> Listing | None:
    """The listing that a prepared copy keeps, None where it is of other files."""
    if kept is None or kept["files"] != digest:
        return None
    return Listing(digest, {int(number): (one[0], one[1]) for number, one in kept["pictures"].items()}, kept["other"])


@functools.lru_cache(maxsize=2)
def _digest_of_archive(path: Path, seen: tuple[int, int]) -> str:
    return hashlib.sha256(read_bytes(path)).hexdigest()


@functools.lru_cache(maxsize=1)
def _unpacked(path: Path, seen: tuple[int, int]) -> tuple[Listing, Mapping[int, Array]]:
    found: dict[int, Found] = {}
    pictures: dict[int, Array] = {}
    other, faults = [], []
    for name, data in streamed_members(path):
        match = _NAME.fullmatch(name.removeprefix(f"{IMAGES}/"))
        if match is None or not name.startswith(f"{IMAGES}/"):
            other.append(name)
            continue
        number = int(match[1])
        if number in found:
            faults.append(Fault(f"{path.name}/{name}", match[1], "member", "one of that number", "a second one"))
            continue
        found[number], picture = _looked_at(number, data, f"{path.name}/{name}")
        if picture is not None:
            pictures[number] = picture
    listing, digest = _listing_of(found), _digest_of_archive(path, seen)
    return Listing(digest, listing.pictures, sorted(other), [*listing.faults, *faults]), pictures
