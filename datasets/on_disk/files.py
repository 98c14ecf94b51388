"""Reading files of data sets: images, arrays, zip members. A file that cannot be read is one line with its path.

Nothing here unpickles: arrays are read with `allow_pickle=False`.
"""

from __future__ import annotations

import functools
import io
import lzma
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from datasets.errors import UsageError

Array = npt.NDArray[Any]
_BLOCK = 512  # bytes, of a tar file
LARGEST_MEMBER = 2**26  # bytes of a file in a tar archive


class FileError(UsageError):
    """A file that is absent, cannot be read, or does not hold what its layout promises."""


def image_array(data: bytes, path: object, mode: str | None = None) -> Array:
    """uint8 [H, W] or [H, W, 3], or uint16 [H, W]: the pixels of an encoded image as they are stored.

    path: for the message. mode: Pillow's name of the form to which the image is converted, such as RGB.
    Raises FileError if the data are truncated or not an image.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            if mode is not None:
                return np.array(image.convert(mode))
            if image.mode == "P":  # a palette colours label maps for people; the indices are the labels
                return np.array(image, dtype=np.uint8)
            if image.mode == "1":
                return np.array(image).astype(np.uint8) * 255
            array = np.array(image)
    except (OSError, SyntaxError, ValueError, zlib.error, Image.DecompressionBombError) as error:
        raise FileError(f"{path}: cannot be read as an image ({error}).") from error
    if array.dtype == np.int32 and array.min() >= 0 and array.max() <= 65535:
        return array.astype(np.uint16)  # Pillow gives 16-bit PNGs as int32 in its mode "I"
    return array


def read_image(path: Path) -> Array:
    """The pixels of an image file, see `image_array`. Raises FileError."""
    return image_array(read_bytes(path), path)


def read_bytes(path: Path) -> bytes:
    """The content of a file. Raises FileError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror or error}).") from error


def read_array(path: Path) -> Array:
    """The array of an .npy file. Raises FileError, also for a file that only unpickling could open."""
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise FileError(f"{path}: cannot be read as an array ({_first_line(error)}).") from error
    if not isinstance(array, np.ndarray):
        raise FileError(f"{path}: expected one array (.npy), found an archive of several.")
    return array


def expect(array: Array, shape: tuple[int, ...], dtypes: Iterable[str], path: object) -> Array:
    """The array itself. Raises FileError where shape or dtype differ from what the layout promises."""
    names = tuple(dtypes)
    if array.shape != shape or array.dtype.name not in names:
        raise FileError(f"{path}: expected {' or '.join(names)} {shape}, found {array.dtype.name} {array.shape}.")
    return array


def reduced(image: Array, size: int) -> Array:
    """uint8 [size, size] of a square uint8 image whose side is a multiple of it: means of squares, halves up.

    Exact in integers, which Pillow's reduction is not.
    """
    by = len(image) // size
    sums = image.reshape(size, by, size, by).sum(axis=(1, 3), dtype=np.uint32)
    means: Array = ((2 * sums + by * by) // (2 * by * by)).astype(np.uint8)
    return means


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def streamed_members(path: Path) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the files in a .tar.xz, in its order; `TarArchive` reads plain ones at any place.

    Raises FileError for a damaged archive, and for a member that leads out of it, is neither a file nor a folder, or is
    too large.
    """
    try:
        with tarfile.open(path, "r|xz") as archive:
            for entry in archive:
                _require_plain(path, entry)
                if not entry.isfile():
                    continue
                if entry.size > LARGEST_MEMBER:
                    raise FileError(
                        f"{path}: member {entry.name!r} has {entry.size:,} bytes, more than {LARGEST_MEMBER:,}."
                    )
                content = archive.extractfile(entry)
                assert content is not None
                yield PurePosixPath(entry.name).as_posix(), content.read()
    except (tarfile.TarError, lzma.LZMAError, EOFError, OSError) as error:
        raise FileError(f"{path}: cannot be read as a tar.xz archive ({_first_line(error)}).") from error


class Archive:
    """A zip file read member by member, without extracting. Safe to use from threads and to send to processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._zip: zipfile.ZipFile | None = None

    def __reduce__(self) -> tuple[type[Archive], tuple[Path]]:
        return type(self), (self.path,)  # a lock and an open file cannot be sent to a process

    def members(self) -> dict[str, int]:
        """{name of a file in it: CRC-32}. Raises FileError if it is not a zip, or a name leaves the archive."""
        found = {}
        for entry in self._opened().infolist():
            _require_inside(self.path, entry.filename)
            if not entry.is_dir():
                found[entry.filename] = entry.CRC
        return found

    def read(self, member: str) -> bytes:
        """Content of a member. Raises FileError where it is damaged or absent."""
        try:
            with self._lock:
                return self._opened().read(member)
        except (KeyError, zipfile.BadZipFile, OSError, zlib.error, EOFError, RuntimeError) as error:
            raise FileError(f"{self.path}: member {member!r} cannot be read ({_first_line(error)}).") from error

    def _opened(self) -> zipfile.ZipFile:
        if self._zip is None:
            try:
                self._zip = zipfile.ZipFile(self.path)
            except (OSError, zipfile.BadZipFile) as error:
                raise FileError(f"{self.path}: cannot be read as a zip archive ({_first_line(error)}).") from error
        return self._zip


class TarArchive:
    """A tar file that is not compressed, read member by member, without extracting. Can be sent to processes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def members(self) -> set[str]:
        """Names of the files in it. Raises FileError if it is not such a tar, is cut short, or a name leaves it."""
        return set(self._places)

    def read(self, member: str) -> bytes:
        """Content of a member. Raises FileError where it is absent."""
        if member not in self._places:
            raise FileError(f"{self.path}: has no member {member!r}.")
        start, size = self._places[member]
        try:
            with self.path.open("rb") as file:
                file.seek(start)
                return file.read(size)
        except OSError as error:
            raise FileError(f"{self.path}: cannot be read ({error.strerror or error}).") from error

    @functools.cached_property
    def _places(self) -> dict[str, tuple[int, int]]:
        """{name: (first byte, length)}."""
        try:
            with tarfile.open(self.path, "r:") as archive:
                entries = archive.getmembers()
        except (OSError, tarfile.TarError, EOFError) as error:
            raise FileError(f"{self.path}: cannot be read as a tar archive ({_first_line(error)}).") from error
        self._require_end(entries)
        found = {}
        for entry in entries:
            _require_plain(self.path, entry)
            if entry.isfile():
                found[PurePosixPath(entry.name).as_posix()] = (entry.offset_data, entry.size)
        return found

    def _require_end(self, entries: Sequence[tarfile.TarInfo]) -> None:
        """Raise FileError where no block of zeros follows the last member: tarfile takes a torn header for the end."""
        end = max((entry.offset_data + -(-entry.size // _BLOCK) * _BLOCK for entry in entries), default=0)
        with self.path.open("rb") as file:
            file.seek(end)
            if file.read(_BLOCK) != bytes(_BLOCK):
                raise FileError(f"{self.path}: is cut short after {len(entries)} members; get it again.")


def _require_plain(archive: Path, entry: tarfile.TarInfo) -> None:
    """Raise FileError for a path that leads out of the archive, a link or a device."""
    _require_inside(archive, entry.name)
    if entry.issparse() or not (entry.isfile() or entry.isdir()):
        raise FileError(f"{archive}: member {entry.name!r} is neither a file nor a folder; get it again.")


def _require_inside(archive: Path, member: str) -> None:
    parts = PurePosixPath(member.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or ":" in "".join(parts.parts[:1]):
        raise FileError(f"{archive}: member {member!r} leaves the archive; get it again.")
