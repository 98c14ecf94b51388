"""`celeba`: photographs of faces with forty yes-or-no attributes, each a task, or all of them one. Spec: datasets 9.

Source: Liu et al. 2015, https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html. The aligned images (178 x 218) and two lists
are read, as torchvision leaves them or in the folders of the authors' archive. 162,770 / 19,867 / 19,962 images by the
official partition, 0 train, 1 validation, 2 test. Rows of the two lists belong together by name, not by line.

The first row of the attributes' list is a count, the second holds the forty names, every other one a file name and
forty times -1 or 1. The lists must have the published checksums (profile `real`); images were read on twins only.

Public releases use two forms, both at 64 x 64, which changes the shape of faces: FAMO takes all forty attributes
(github.com/Cranial-XIX/FAMO), DMTG nine (`NINE`, github.com/ethanygao/DMTG). The option `size` and a suite's `tasks`
give both; their resizing is torchvision's and TensorFlow's, ours is Pillow's, bilinear and smoothed.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from PIL import Image
from pydantic import Field as Option

from datasets.contracts import SINGLE_INPUT, DatasetSpec, Split, TaskSpec
from datasets.errors import ProtocolError, unknown
from datasets.on_disk.dense import read_colours
from datasets.on_disk.files import Array, FileError, read_bytes
from datasets.on_disk.loader import FileLoader, FileOptions
from datasets.on_disk.photographs import is_hidden
from datasets.on_disk.sources import Fault, Field, Source, field_of_files, scale_uint8
from datasets.registry import DatasetOptions, ExpectedFiles, register_dataset

if TYPE_CHECKING:
    from torch import Tensor

ATTRIBUTES = (  # in the order of the list
    *("5_o_Clock_Shadow", "Arched_Eyebrows", "Attractive", "Bags_Under_Eyes", "Bald", "Bangs", "Big_Lips", "Big_Nose"),
    *("Black_Hair", "Blond_Hair", "Blurry", "Brown_Hair", "Bushy_Eyebrows", "Chubby", "Double_Chin", "Eyeglasses"),
    *("Goatee", "Gray_Hair", "Heavy_Makeup", "High_Cheekbones", "Male", "Mouth_Slightly_Open", "Mustache"),
    *("Narrow_Eyes", "No_Beard", "Oval_Face", "Pale_Skin", "Pointy_Nose", "Receding_Hairline", "Rosy_Cheeks"),
    *("Sideburns", "Smiling", "Straight_Hair", "Wavy_Hair", "Wearing_Earrings", "Wearing_Hat", "Wearing_Lipstick"),
    *("Wearing_Necklace", "Wearing_Necktie", "Young"),
)
NINE = (  # of DMTG, as tasks
    *("5_o_clock_shadow", "black_hair", "blond_hair", "brown_hair", "goatee", "mustache", "no_beard"),
    *("rosy_cheeks", "wearing_hat"),
)
SIZE = (218, 178)
SPLITS: Mapping[str, int] = {"train": 162770, "val": 19867, "test": 19962}
PARTS: Mapping[str, str] = {"0": "train", "1": "val", "2": "test"}
IMAGES, LABELS, PARTITION = "img_align_celeba", "list_attr_celeba.txt", "list_eval_partition.txt"
MD5: Mapping[str, str] = {LABELS: "75e246fa4810816ffd6ee81facbd244c", PARTITION: "d32c9cbf5e040fd4025c592c306e6668"}
_PLACES: Mapping[str, Mapping[str, str]] = {  # layout -> where images and lists lie
    "torchvision": {IMAGES: IMAGES, LABELS: LABELS, PARTITION: PARTITION},
    "archive": {IMAGES: f"Img/{IMAGES}", LABELS: f"Anno/{LABELS}", PARTITION: f"Eval/{PARTITION}"},
}
_METRICS = ("accuracy", "balanced_accuracy")  # several attributes are true of one face in twenty, or fewer
TOGETHER = TaskSpec("attributes", "multilabel", len(ATTRIBUTES), ("mean_average_precision", "f1"), ATTRIBUTES)
_MAX_LINE = 80  # characters of a bad line that a message shows


class CelebaOptions(FileOptions):
    """How large the images are."""

    size: Literal[64] | None = Option(
        default=None,
        description="side of the images in pixels; null leaves them at 218 x 178, 64 squeezes them to a square as "
        "published settings do",
    )


@register_dataset("celeba")
class CelebA(FileLoader):
    """Forty attributes of 202,599 faces."""

    Options = CelebaOptions
    layouts: ClassVar[Mapping[str, ExpectedFiles]] = {
        "torchvision": ExpectedFiles(
            f"{{{IMAGES}/*.jpg, {LABELS}, {PARTITION}}} ({IMAGES}.zip, unpacked; md5 00d2c5bc6d35e252742224ab0c1e8fcb)",
            "1.4 GB",
            tuple(_PLACES["torchvision"].values()),
            source="https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html (its Google Drive)",
            commands=(
                "pip install gdown",
                'python -c "import os; from torchvision.datasets import CelebA; '
                "CelebA(os.environ['SHAREBENCH_DATA'], download=True)\"",
            ),
        ),
        "archive": ExpectedFiles(
            f"{{Img/{IMAGES}/*.jpg, Anno/{LABELS}, Eval/{PARTITION}}} (the authors' folders, {IMAGES}.zip unpacked)",
            "1.4 GB",
            tuple(_PLACES["archive"].values()),
        ),
    }

    def spec(self, protocol: str, options: DatasetOptions, layout: str | None = None) -> DatasetSpec:
        """One task an attribute, in the order of the list, and `attributes`, which is all of them."""
        assert isinstance(options, CelebaOptions)
        if protocol != "standard":
            raise ProtocolError(f"celeba has no labels for protocol {protocol!r}; it offers 'standard'.")
        size = size_of(options)
        return DatasetSpec(
            name="celeba",
            layout=layout or "torchvision",
            version="v1" if options.size is None else f"v1+{options.size}",
            protocol=protocol,
            domains="single",
            tasks=(*(TaskSpec(task_name(name), "attribute", 1, _METRICS) for name in ATTRIBUTES), TOGETHER),
            splits=SPLITS,
            native_size=size,
            # Of ImageNet: statistics of the whole set have not been measured here.
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            licence="non-commercial research, not redistributed",
            home="https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
            tier="verified on twins",
        )

    def default_tasks(self, spec: DatasetSpec) -> tuple[str, ...]:
        """The forty."""
        return tuple(task_name(name) for name in ATTRIBUTES)

    def sources(self, folder: Path, split: Split, spec: DatasetSpec, options: FileOptions) -> Mapping[str, Source]:
        """The images of a split by name. Raises FileError for lists that cannot be read or are not the published ones
        (profile `real`).
        """
        assert isinstance(options, CelebaOptions)
        places = {name: folder / place for name, place in _PLACES[spec.layout].items()}
        content = {name: _text(places[name], MD5[name] if options.profile == "real" else None) for name in MD5}
        table = read_attributes(content[LABELS], places[LABELS])
        parts = read_partition(content[PARTITION], places[PARTITION])
        found = _files_in(places[IMAGES])
        hidden = {name for name in found if is_hidden(name)}
        present = found - hidden
        rows = {name: row for row, name in enumerate(table.names)}
        chosen = sorted(name for name in rows if parts.get(name) == split)
        labels = table.values[[rows[name] for name in chosen]]
        files = [places[IMAGES] / name for name in chosen]
        where = ([places[LABELS]] * len(chosen)).__getitem__
        faults = [
            Fault(_below(places[IMAGES] / name, folder), Path(name).stem, "existence", "an image", "none")
            for name in chosen
            if name not in present
        ]
        if split == "train":  # of all splits, and named once
            faults += _without_partner(folder, places, rows, parts, present)
        read = functools.partial(read_face, size=size_of(options))
        targets = {
            task_name(name): Field(_Column(labels, number), decode_attribute, where)
            for number, name in enumerate(ATTRIBUTES)
        }
        if TOGETHER.name in spec.task_names:  # prepared copies of the forty have no such field
            targets[TOGETHER.name] = Field(labels.__getitem__, decode_attribute, where)
        return {
            SINGLE_INPUT: Source(
                ids=[Path(name).stem for name in chosen],
                units=[Path(name).stem for name in chosen],  # the lists do not say who it is
                image=field_of_files(files, read, scale_uint8),
                targets=targets,
                faults=faults,
                meta={"domain": None},
                content=[places[LABELS], places[PARTITION]],
                notes=[f"{IMAGES}: {len(hidden)} hidden files are left out"] if hidden else [],
            )
        }


def task_name(attribute: str) -> str:
    """The attribute in lower case."""
    return attribute.lower()


def size_of(options: CelebaOptions) -> tuple[int, int]:
    """(height, width) of the images."""
    return SIZE if options.size is None else (options.size, options.size)


def read_face(path: Path, size: tuple[int, int]) -> Array:
    """uint8 [*size, 3] of an image of 218 x 178 pixels, reduced bilinearly with antialiasing. Raises FileError."""
    image = read_colours(path, SIZE)
    if size == SIZE:
        return image
    return np.array(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def decode_attribute(stored: Array) -> Tensor:
    """uint8 [] or [40], 0 or 1 -> float32 of that shape."""
    import torch

    return torch.tensor(stored.astype(np.float32))


@dataclasses.dataclass(frozen=True)
class _Column:
    """Reads one attribute. labels: uint8 [N, 40]."""

    labels: Array
    number: int

    def __call__(self, index: int) -> Array:
        return np.asarray(self.labels[index, self.number])


@dataclasses.dataclass(frozen=True)
class Attributes:
    """The list of labels. names: files, in the order of the list. values: uint8 [N, 40], 0 or 1, in the order of
    `ATTRIBUTES`.
    """

    names: Sequence[str]
    values: Array


def read_attributes(text: str, path: Path) -> Attributes:
    """The content of `list_attr_celeba.txt`. path: for messages. Raises FileError naming the first line at fault."""
    count, header, *lines = text.splitlines() if text.count("\n") > 1 else ("", "", "")
    columns = header.split()
    for name in columns:
        if name not in ATTRIBUTES:
            raise FileError(f"{path}, line 2: {unknown('attribute', name, ATTRIBUTES)}")
    if len(set(columns)) != len(columns):
        raise FileError(f"{path}, line 2: the attribute {_twice(columns)!r} is named more than once.")
    if len(columns) != len(ATTRIBUTES):
        raise FileError(f"{path}, line 2: expected the {len(ATTRIBUTES)} names of attributes, found {len(columns)}.")
    names: list[str] = []
    digits: list[str] = []
    for number, line in enumerate(lines, start=3):
        if not line.strip():
            continue
        name, *rest = line.split(maxsplit=1)
        values = "".join(rest).split()
        wrong = len(values) != len(ATTRIBUTES) or not {"-1", "1"}.issuperset(values)
        if wrong or "/" in name or "\\" in name:  # a name that is a path would leave the folder
            shown = line[:_MAX_LINE]
            raise FileError(f"{path}, line {number}: expected a file name and {len(ATTRIBUTES)} x -1 or 1: {shown!r}.")
        names.append(name)
        digits.append("".join(values).replace("-1", "0"))  # one each, so that 8 million are cut at once below
    if len(set(names)) != len(names):
        raise FileError(f"{path}: {_twice(names)!r} has more than one row.")
    if count.strip() != str(len(names)):
        raise FileError(f"{path}, line 1: expected the number of rows, {len(names)}, found {count[:_MAX_LINE]!r}.")
    table = np.frombuffer("".join(digits).encode(), dtype=np.uint8).reshape(len(names), len(ATTRIBUTES)) == ord("1")
    return Attributes(names, table[:, [columns.index(name) for name in ATTRIBUTES]].astype(np.uint8))


def read_partition(text: str, path: Path) -> dict[str, str]:
    """{file name: split} of `list_eval_partition.txt`. path: for messages. Raises FileError as `read_attributes`."""
    rows = [(number, line.split()) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    for number, row in rows:
        if len(row) != 2 or row[1] not in PARTS:
            shown = " ".join(row)[:_MAX_LINE]
            raise FileError(f"{path}, line {number}: expected a file name and 0, 1 or 2: {shown!r}.")
    names = [row[0] for _, row in rows]
    if len(set(names)) != len(names):
        raise FileError(f"{path}: {_twice(names)!r} has more than one row.")
    return {name: PARTS[part] for _, (name, part) in rows}


def _text(path: Path, md5: str | None) -> str:
    """A list, of the published content if an md5 is given. Raises FileError."""
    data = read_bytes(path)
    found = hashlib.md5(data).hexdigest()
    if md5 not in (None, found):
        raise FileError(f"{path}: expected the published file (md5 {md5}), found md5 {found}.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileError(f"{path}: expected text in UTF-8 ({error.reason} at byte {error.start}).") from error


def _files_in(folder: Path) -> set[str]:
    """Names of the files in a folder. Raises FileError."""
    try:
        with os.scandir(folder) as entries:  # 200,000 names, no path of each
            return {entry.name for entry in entries}
    except OSError as error:
        raise FileError(f"{folder}: cannot be read ({error.strerror or error}).") from error


def _twice(names: Sequence[str]) -> str:
    seen: set[str] = set()
    return next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]


def _without_partner(
    folder: Path, places: Mapping[str, Path], rows: Mapping[str, int], parts: Mapping[str, str], present: set[str]
) -> Iterator[Fault]:
    """Rows of one list that the other lacks, and images that no list names."""
    for name in sorted(rows.keys() - parts.keys()):
        yield Fault(_below(places[PARTITION], folder), Path(name).stem, "row", "one, as in the attributes", "none")
    for name in sorted(parts.keys() - rows.keys()):
        yield Fault(_below(places[LABELS], folder), Path(name).stem, "row", "one, as in the partition", "none")
    for name in sorted(present - rows.keys() - parts.keys()):
        yield Fault(_below(places[IMAGES] / name, folder), "", "row", "one in the attributes and the partition", "none")


def _below(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()
