"""What public releases of dense data have in common: a JSON list of paths, or folders of numbered files.

Files of samples are listed here, not opened; what is absent becomes a fault that names the file.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from datasets.contracts import Split
from datasets.on_disk.files import Array, FileError, read_bytes
from datasets.on_disk.sources import IMAGE, Fault, Field, Source, field_of_files

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 20  # consecutive numbers show the same room or street (datasets 2.5)
# How a file is read, and how that is decoded.
FieldForm: TypeAlias = "tuple[Callable[[Path], Array], Callable[[Array], Tensor]]"


def number_of(path: str) -> int:
    """The image number in a file's name. Raises FileError where there is none."""
    match = re.search(r"(\d+)$", Path(path).stem)
    if match is None:
        raise FileError(f"{path}: expected a file named by its image number, such as 0061.png.")
    return int(match[1])


def block_of(number: int) -> str:
    """The unit that a hold-out keeps together: neighbours by number."""
    return f"block{number // BLOCK:03d}"


def numbered_files(base: Path, folders: Mapping[str, str]) -> tuple[list[int], dict[str, list[Path]]]:
    """(numbers, {field: `base/<folder>/<number>.npy` of each}) for the numbers that any of the folders holds.

    In the order of numbers, not of names: 10.npy comes after 9.npy. folders: {field: folder}.
    """
    numbers = sorted({number_of(path.name) for folder in folders.values() for path in (base / folder).glob("*.npy")})
    return numbers, {name: [base / folder / f"{number}.npy" for number in numbers] for name, folder in folders.items()}


def listed_rows(path: Path, split: Split, columns: Sequence[str]) -> list[list[str]]:
    """The rows of a split in a JSON list {split: [[path of each column], ...]}; paths lie below the list's folder.

    train may be given as its halves train1 and train2, AdaShare's for weights and policy. Raises FileError where the
    list cannot be read, leads out of its folder, or names an image in train and test together.
    """
    try:
        document = json.loads(read_bytes(path))
        train = ["train"] if "train" in document else ["train1", "train2"]
        both = {
            "train": [row for part in train for row in document[part]],
            "test": list(document["test"]),
        }
    except (ValueError, KeyError, TypeError) as error:
        raise FileError(f"{path}: expected lists of paths under train (or train1, train2) and test.") from error
    rows = both["train"] + both["test"]
    for row in rows:
        if not (isinstance(row, list) and len(row) == len(columns) and all(isinstance(item, str) for item in row)):
            raise FileError(f"{path}: expected [{', '.join(columns)}] for each, found {row!r:.120}.")
        if any(Path(item).is_absolute() or ".." in Path(item).parts for item in row):
            raise FileError(f"{path}: the path {row!r:.120} leaves the folder of the data set.")
    twice = [image for image, count in Counter(row[0] for row in rows).items() if count > 1]
    if twice:
        raise FileError(f"{path}: {twice[0]!r} is listed more than once in train and test together.")
    return both[split]


def source_of_files(
    folder: Path,
    ids: Sequence[str],
    units: Sequence[str],
    files: Mapping[str, Sequence[Path]],
    fields: Mapping[str, FieldForm],
    meta: Mapping[str, object],
) -> Source:
    """Samples that have a file for each field. files: {field: path of each sample}, with `image` among the fields.

    folder: of the data set, which faults name files below.
    """

    def field(name: str) -> Field:
        read, decode = fields[name]
        return field_of_files(files[name], read, decode)

    faults = [
        Fault(path.relative_to(folder).as_posix(), ids[index], "existence", f"a file ({name})", "none")
        for name, paths in files.items()
        for index, path in enumerate(paths)
        if not path.is_file()
    ]
    return Source(
        ids=ids,
        units=units,
        image=field(IMAGE),
        targets={name: field(name) for name in fields if name != IMAGE},
        faults=faults,
        meta=meta,
    )
