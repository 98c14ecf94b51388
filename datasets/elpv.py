"""`elpv`: photographs of solar cells by electroluminescence; which are defective, and of which type. Spec: datasets 4.

Source: Buerhop-Lutz et al. 2018 and Deitsch et al. 2019, https://github.com/zae-bayern/elpv-dataset; 2,624 gray images
of 300 x 300 pixels, which the package elpv-dataset (an extra of ours) brings. Probability of a defect as judged by
experts: 0, 1/3, 2/3 or 1.

Ours, since no official split exists: 65 / 10 / 25 %, drawn in each of the eight groups (type, probability); and
`blocked`, which keeps runs of 60 neighbouring files on one side. Neighbours come from one of 44 modules and look alike.
The data do not say which cell is of which module: see the caveats of the spec.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

import numpy as np
import pydantic

from datasets import (
    SINGLE_INPUT,
    DatasetMissingError,
    DatasetOptions,
    DatasetSpec,
    Fault,
    Field,
    FileError,
    FileLoader,
    FileOptions,
    MultiTaskDataset,
    ProtocolError,
    Source,
    Split,
    TaskSpec,
    field_of_files,
    register_dataset,
)
from datasets.on_disk.files import Array, expect, read_bytes, read_image, reduced
from datasets.on_disk.sources import number_label, scale_uint8

VERSION = "v1"
SIZE = 300
PACKAGE, RELEASE = "elpv-dataset", "1.0.0.post1"
HOME = "https://github.com/zae-bayern/elpv-dataset"
LICENCE = "CC BY-NC-SA 4.0"
LABELS_SHA256 = "0abe6fe7700aea571717d7d7dfec005a47c6207b4cde26a4556b6807a115483d"
TYPES = ("mono", "poly")
PROBABILITIES = (0.0, 1 / 3, 2 / 3, 1.0)
TEST_SHARE, VAL_SHARE = 0.25, 0.10
RUN = 60  # neighbouring files that `blocked` keeps together
SPLITS: Mapping[str, Mapping[str, int]] = {
    "stratified": {"train": 1707, "val": 263, "test": 654},
    "blocked": {"train": 1616, "val": 300, "test": 708},
}
_CAVEATS = {
    "stratified": "cells of one module look alike and this random split puts them on all sides, since the data do not "
    "tell modules apart: accuracies are for modules that were seen in training (the option split: blocked leaks less)",
    "blocked": f"runs of {RUN} neighbouring cells stay on one side, but the borders of modules are not known: some "
    "modules are on two sides",
}
_DEFECT = {
    "binary": TaskSpec("defect", "class", 2, ("balanced_accuracy", "auroc"), ("functional", "defective")),
    "ordinal4": TaskSpec("defect", "class", 4, ("balanced_accuracy", "accuracy"), ("0", "1/3", "2/3", "1")),
    "regression": TaskSpec("defect", "scalar", 1, ("abs_err", "rmse")),
}
_MODULE = TaskSpec("module", "class", 2, ("accuracy",), TYPES)
_MEAN, _STD = 0.596, 0.160  # measured on the train split, 300 x 300


class ElpvOptions(FileOptions):
    """What the defect task asks, how cells are split, and how large the images are."""

    defect: Literal["binary", "ordinal4", "regression"] = pydantic.Field(
        default="binary",
        description="whether the probability of a defect is at least 1/2, which of the four it is, or its value",
    )
    split: Literal["stratified", "blocked"] = pydantic.Field(
        default="stratified",
        description="`stratified` draws single cells in each group (type, probability); `blocked` keeps runs of "
        f"{RUN} neighbouring files on one side",
    )
    size: Literal[300, 150, 100, 75] = pydantic.Field(
        default=300,
        description="side of the images in pixels: as in the files (300), or reduced by averaging squares, which loses "
        "fine cracks",
    )


class Cell(NamedTuple):
    """A row of the list. path: of the image, below the data folder; probability: rank among the four."""

    path: str
    probability: int
    type: str


def read_cells(path: Path) -> list[Cell]:
    """The rows of `labels.csv`: `images/cellNNNN.png probability type`, by white space.

    Raises FileError naming a line that is anything else, and an image that is listed twice.
    """
    cells: dict[str, Cell] = {}
    for number, line in enumerate(read_bytes(path).decode("utf-8", errors="replace").splitlines(), start=1):
        try:
            image, probability, kind = line.split()
            rank = next(rank for rank, value in enumerate(PROBABILITIES) if abs(float(probability) - value) < 1e-3)
        except (ValueError, StopIteration) as error:
            raise FileError(
                f"{path}: line {number} is {line!r:.80}; expected an image, 0, 1/3, 2/3 or 1 as decimals, and a type."
            ) from error
        if kind not in TYPES:
            raise FileError(f"{path}: line {number} has the type {kind!r}; expected {' or '.join(TYPES)}.")
        if PurePosixPath(image).is_absolute() or ".." in PurePosixPath(image).parts:
            raise FileError(f"{path}: line {number} has the path {image!r}, which leaves the folder of the data set.")
        if image in cells:
            raise FileError(f"{path}: {image!r} is listed twice.")
        cells[image] = Cell(image, rank, kind)
    return list(cells.values())


def stratified_sides(cells: Sequence[Cell]) -> list[Split]:
    """The side of each cell, drawn in each group (type, probability) by itself: no group moves another's cells."""
    sides: list[Split] = ["train"] * len(cells)
    groups: dict[tuple[str, int], list[int]] = {}
    for position, cell in enumerate(cells):
        groups.setdefault((cell.type, cell.probability), []).append(position)
    for members in groups.values():
        order = np.random.RandomState(0).permutation(len(members))  # a constant of the data version
        n_test, n_val = round(TEST_SHARE * len(members)), round(VAL_SHARE * len(members))
        for rank, member in enumerate(order.tolist()):
            sides[members[member]] = "test" if rank < n_test else "val" if rank < n_test + n_val else "train"
    return sides


def runs_of(cells: Sequence[Cell]) -> list[str]:
    """Names of the runs of up to 60 consecutive cells of one type, one name a cell: `mono00120`, its first position."""
    names: list[str] = []
    first = 0
    for position, cell in enumerate(cells):
        if position and (cell.type != cells[position - 1].type or position - first == RUN):
            first = position
        names.append(f"{cell.type}{first:05d}")
    return names


def blocked_sides(cells: Sequence[Cell]) -> list[Split]:
    """The side of each cell, whole runs: of each type in the order of sha256(`blocked-v1/elpv/RUN`), runs go to test
    until it has a quarter of the type's cells, then to val until it has a tenth, then to train.
    """
    names = runs_of(cells)
    side_of: dict[str, Split] = {}
    for kind in TYPES:
        members = [name for name, cell in zip(names, cells, strict=True) if cell.type == kind]
        runs = sorted(set(members), key=lambda name: hashlib.sha256(f"blocked-v1/elpv/{name}".encode()).digest())
        counts: dict[Split, int] = {"test": 0, "val": 0, "train": 0}
        for name in runs:
            if counts["test"] < TEST_SHARE * len(members):
                side_of[name] = "test"
            else:
                side_of[name] = "val" if counts["val"] < VAL_SHARE * len(members) else "train"
            counts[side_of[name]] += members.count(name)
    return [side_of[name] for name in names]


def data_folder() -> Path:
    """Where the package has its data. It is found, not imported. Raises DatasetMissingError."""
    try:
        package = distribution(PACKAGE)
    except PackageNotFoundError as error:
        raise DatasetMissingError(
            f"Data set 'elpv' comes with the package {PACKAGE} (91 MB), which is not installed: "
            f"pip install 'sharebench[elpv]'. Home: {HOME}; licence: {LICENCE}."
        ) from error
    folder = Path(str(package.locate_file("elpv_dataset/data")))
    if not (folder / "labels.csv").is_file():
        raise DatasetMissingError(
            f"{PACKAGE} {package.version} has no file {folder / 'labels.csv'}; expected elpv_dataset/data/labels.csv "
            f"and images/cellNNNN.png (91 MB): install {PACKAGE} {RELEASE} again. Home: {HOME}; licence: {LICENCE}."
        )
    return folder


@register_dataset("elpv")
class Elpv(FileLoader):
    """2,624 solar cells with two labels each. Needs no data root but an optional package."""

    Options = ElpvOptions
    package = PACKAGE

    def spec(self, protocol: str, options: DatasetOptions, layout: str | None = None) -> DatasetSpec:
        """Two tasks, of unequal difficulty: the type of a cell is visible at a glance."""
        assert isinstance(options, ElpvOptions)
        if protocol != "standard":
            raise ProtocolError(f"elpv has no labels for protocol {protocol!r}; it offers 'standard'.")
        return DatasetSpec(
            name="elpv",
            layout="package",
            version=f"{VERSION}+{options.split}+{options.defect}+{options.size}",
            protocol=protocol,
            domains="single",
            tasks=(_DEFECT[options.defect], _MODULE),
            splits=SPLITS[options.split],
            native_size=(options.size, options.size),
            mean=(_MEAN, _MEAN, _MEAN),
            std=(_STD, _STD, _STD),
            licence=LICENCE,
            home=HOME,
            tier="verified on genuine files",
            caveats=(_CAVEATS[options.split],),
        )

    def load(self, root: Path | None, split: Split, spec: DatasetSpec, options: DatasetOptions) -> MultiTaskDataset:
        """The cells of a split. Raises DatasetMissingError without the package, FileError for the first fault."""
        return super().load(data_folder(), split, spec, options)

    def sources(self, folder: Path, split: Split, spec: DatasetSpec, options: FileOptions) -> Mapping[str, Source]:
        """The cells of a split in the order of the list. Raises FileError where the list is another one."""
        assert isinstance(options, ElpvOptions)
        path = folder / "labels.csv"
        found = hashlib.sha256(read_bytes(path)).hexdigest()
        if options.profile == "real" and found != LABELS_SHA256:
            raise FileError(
                f"{path}: expected the list of {PACKAGE} {RELEASE} (sha256 {LABELS_SHA256}), found {found}."
            )
        cells = read_cells(path)
        blocked = options.split == "blocked"
        sides = blocked_sides(cells) if blocked else stratified_sides(cells)
        chosen = [index for index, side in enumerate(sides) if side == split]
        runs = runs_of(cells)
        units = [runs[index] if blocked else Path(cells[index].path).stem for index in chosen]
        return {SINGLE_INPUT: _source(folder, [cells[index] for index in chosen], units, options)}


def _source(folder: Path, cells: Sequence[Cell], units: Sequence[str], options: ElpvOptions) -> Source:
    ids = [Path(cell.path).stem for cell in cells]
    paths = [folder / cell.path for cell in cells]
    ranks = np.array([cell.probability for cell in cells], dtype=np.int64)
    defect: Mapping[str, Array] = {
        "binary": (ranks >= 2).astype(np.int64),
        "ordinal4": ranks,
        "regression": np.array(PROBABILITIES, dtype=np.float32)[ranks],
    }
    types = np.array([TYPES.index(cell.type) for cell in cells], dtype=np.int64)
    faults = [
        Fault(cell.path, name, "existence", "a file (image)", "none")
        for cell, name, path in zip(cells, ids, paths, strict=True)
        if not path.is_file()
    ]
    return Source(
        ids=ids,
        units=units,
        # Whole runs cannot be shared out by group.
        strata=None if options.split == "blocked" else [f"{cell.type}/{cell.probability}" for cell in cells],
        image=field_of_files(paths, functools.partial(_read, size=options.size), scale_uint8),
        targets={
            "defect": Field(defect[options.defect].__getitem__, number_label, paths.__getitem__),
            "module": Field(types.__getitem__, number_label, paths.__getitem__),
        },
        faults=faults,
        in_memory=True,
        meta={"domain": None},
        content=[folder / "labels.csv"],
    )


def _read(path: Path, size: int) -> Array:
    """uint8 [size, size]. Raises FileError."""
    return reduced(expect(read_image(path), (SIZE, SIZE), ["uint8"], path), size)
