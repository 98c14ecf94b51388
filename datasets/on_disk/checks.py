"""What a file shows without being decoded: whether it is whole, how large its picture is, and what it holds.

Opening every file of a data set takes a second for ten thousand files, decoding them takes minutes. So these checks
come before every run; `verify --full` decodes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from datasets.on_disk.files import FileError, read_bytes

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"IEND\xaeB`\x82"
_JPEG, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
# Markers of a JPEG frame, which holds the size; those between them (tables) do not.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_BLOCK = 4096
_N_BLOCKS = 16
WHOLE = _N_BLOCKS * _BLOCK  # files up to this size are hashed whole


@dataclasses.dataclass(frozen=True)
class Header:
    """The header of a file. shape: (height, width) of a .png or .jpg, the shape of an .npy. stored: bits and colour
    type of a .png, bits and channels of a .jpg, dtype of an .npy.
    """

    shape: tuple[int, ...]
    stored: str


def picture_shape(path: Path) -> tuple[int, ...] | None:
    """The shape in the header of a file, None for other kinds of files. Raises FileError as `header_of`."""
    header = header_of(path)
    return None if header is None else header.shape


def header_of(path: Path) -> Header | None:
    """The header of a .png, .jpg or .npy, None for other files.

    Raises FileError if the file cannot be read, is not of its kind, or is truncated.
    """
    readers = {".png": _png_header, ".jpg": _jpeg_header, ".npy": _npy_header}
    if path.suffix not in readers:
        return None
    try:
        with path.open("rb") as file:
            return readers[path.suffix](file, path.stat().st_size)
    except (OSError, ValueError, struct.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
        raise FileError(f"{path}: {reason}.") from error


def _png_header(file: BinaryIO, size: int) -> Header:
    head = file.read(26)
    if head[:8] != _PNG or head[12:16] != b"IHDR":
        raise ValueError("is not a PNG image")
    file.seek(max(0, size - _BLOCK))
    if _PNG_END not in file.read():
        raise ValueError("is truncated: the end mark of the PNG image is missing")
    width, height = struct.unpack(">II", head[16:24])
    return Header((height, width), f"{head[24]} bits, colour type {head[25]}")


def _jpeg_header(file: BinaryIO, size: int) -> Header:
    if file.read(3) != _JPEG:
        raise ValueError("is not a JPEG image")
    file.seek(2)
    while True:  # segments before the compressed data, each a marker and its length
        start = file.read(2)
        while start == b"\xff\xff":  # fill bytes
            start = start[:1] + file.read(1)
        if len(start) < 2 or start[0] != 0xFF:
            raise ValueError("is truncated or damaged: a marker of the JPEG image is missing")
        if start[1] in _JPEG_FRAMES:
            break
        length = file.read(2)
        file.seek(int.from_bytes(length, "big") - len(length), io.SEEK_CUR)
    bits, height, width, channels = struct.unpack(">xxBHHB", file.read(8))
    frame = file.tell()
    file.seek(max(frame, size - _BLOCK))
    if _JPEG_END not in file.read():  # or before a long remark of a camera
        file.seek(frame)
        if _JPEG_END not in file.read():
            raise ValueError("is truncated: the end mark of the JPEG image is missing")
    return Header((height, width), f"{bits} bits, {channels} channels")


def _npy_header(file: BinaryIO, size: int) -> Header:
    version = np.lib.format.read_magic(file)
    read_header: Any = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read_header is None:
        raise ValueError(f"is an .npy file of the unknown version {version}")
    shape, _, dtype = read_header(file)
    expected = file.tell() + dtype.itemsize * int(np.prod(shape, dtype=np.int64))
    if not dtype.hasobject and size != expected:
        raise ValueError(f"is {'truncated' if size < expected else 'too long'}: {size} bytes, expected {expected}")
    return Header(tuple(shape), str(dtype))


def fingerprint(path: Path) -> bytes:
    """Bytes that represent the content of a file: all bytes of a small file, else blocks of 4 KiB.

    Of a .png, the first and the last block: the last one holds a checksum of all pixels, so other content is always
    noticed. Of other files, sixteen blocks at equal distances: a change of a sixteenth of the file in one piece is
    noticed (another class map, another size of the objects), a single repaired pixel may not be.
    """
    n_blocks = 2 if path.suffix == ".png" else _N_BLOCKS
    with path.open("rb", buffering=0) as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        if size <= WHOLE:
            return file.read()
        blocks = []
        for number in range(n_blocks):
            file.seek((size - _BLOCK) * number // (n_blocks - 1))
            blocks.append(file.read(_BLOCK))
        return b"".join(blocks)


def files_hash(paths: list[Path], whole: list[Path], folder: Path) -> str:
    """sha256 (hex) over names (below folder), sizes and fingerprints of `paths`, and all bytes of `whole`.

    Raises FileError for a file that cannot be read.
    """
    digest = hashlib.sha256()
    for path in paths:
        try:
            size, block = path.stat().st_size, fingerprint(path)
        except OSError as error:
            raise FileError(f"{path}: cannot be read ({error.strerror or error}).") from error
        digest.update(f"{path.relative_to(folder).as_posix()}\t{size}\n".encode())
        digest.update(hashlib.sha256(block).digest())
    for path in whole:
        digest.update(read_bytes(path))
    return digest.hexdigest()
