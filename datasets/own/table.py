"""A table of labels (CSV) beside a folder of images: its rows by image, its columns as labels."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from datasets.contracts import Split, TaskSpec
from datasets.errors import UsageError, nearest, unknown
from datasets.kinds import get_kind
from datasets.on_disk.files import Array, FileError, read_bytes
from datasets.own.base import SPLITS
from datasets.own.labels import IGNORED_CLASS, Labels

SPLIT = "split"  # the column that tells train, val and test, where there is one
YES_NO: Mapping[str, float] = {
    **dict.fromkeys(("1", "1.0", "yes", "true"), 1.0),
    **dict.fromkeys(("0", "0.0", "no", "false"), 0.0),
    "": math.nan,
}


@dataclasses.dataclass(frozen=True)
class Table:
    """rows: {image as its first column names it: (line, cells)}; columns: {name: position}."""

    path: Path
    columns: Mapping[str, int]
    rows: Mapping[str, tuple[int, Sequence[str]]]

    def cells(self, column: str, images: Sequence[str]) -> list[tuple[str, str]]:
        """(place for messages, cell) of a column. Raises UnknownNameError with the nearest columns."""
        if column not in self.columns:
            raise unknown(f"column of {self.path}", column, self.columns)
        at = self.columns[column]
        return [
            (f"{self.path}, line {line}, {column}", cells[at]) for line, cells in map(self.rows.__getitem__, images)
        ]

    def splits(self, images: Sequence[str]) -> dict[str, Split] | None:
        """{image: split} where a column says it. Raises FileError for another word than train, val or test."""
        if SPLIT not in self.columns:
            return None
        sides: dict[str, Split] = {}
        for image, (place, cell) in zip(images, self.cells(SPLIT, images), strict=True):
            if cell not in SPLITS:
                raise FileError(f"{place}: expected train, val or test, found {cell!r}.")
            sides[image] = next(split for split in SPLITS if split == cell)
        return sides


def read_table(path: Path) -> Table:
    """The rows of a CSV in UTF-8, cells parted by commas, semicolons or tabs. Raises FileError naming a line."""
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileError(f"{path}: expected text in UTF-8 ({error.reason} at byte {error.start}).") from error
    head = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=head.count))
    try:
        header = [cell.strip() for cell in next(reader, [])]
        if len(header) < 2 or len(set(header)) < len(header):
            raise FileError(
                f"{path}: expected a first line of different names, the image's and the labels', of columns."
            )
        rows: dict[str, tuple[int, list[str]]] = {}
        for cells in reader:
            if not any(cells):
                continue
            if len(cells) != len(header):
                raise FileError(f"{path}, line {reader.line_num}: expected {len(header)} cells, found {len(cells)}.")
            image = cells[0].strip().replace("\\", "/")
            if image in rows:
                raise FileError(f"{path}, line {reader.line_num}: {image!r} has a row already.")
            rows[image] = (reader.line_num, [cell.strip() for cell in cells])
    except csv.Error as error:
        raise FileError(f"{path}, line {reader.line_num}: {error}.") from error
    return Table(path, {name: position for position, name in enumerate(header)}, rows)


def matched(table: Table, images: Mapping[str, Path]) -> dict[str, Path]:
    """{image as the table names it: its file}, in the order of the table. images: {path below their folder: file}.

    A row names an image by that path, with or without the suffix, or by the file's name alone where only one has it.
    Raises FileError with the nearest names for a row without an image.
    """
    short: dict[str, list[Path]] = {}
    for below, path in images.items():
        for name in {below.rpartition(".")[0], path.name, path.stem} - {below}:
            short.setdefault(name, []).append(path)
    found = {}
    for name, (line, _) in table.rows.items():
        paths = [images[name]] if name in images else short.get(name, [])
        if len(paths) != 1:
            what = (
                f"{len(paths)} images have this name" if paths else f"no such image; nearest: {nearest(name, images)}"
            )
            raise FileError(f"{table.path}, line {line}: {name!r}: {what}.")
        found[name] = paths[0]
    return found


def column_labels(table: Table, images: Sequence[str], name: str, labels: Labels) -> tuple[TaskSpec, Array]:
    """(the task, labels [N] or [N, C]) of a table's column or columns. Raises FileError naming the line."""
    columns = [labels.column or name] if isinstance(labels.column, str) else list(labels.column)
    cells = [table.cells(column, images) for column in columns]
    if labels.kind == "class":
        ids, names = _classes(cells[0], name, labels)
        partial = bool((ids == IGNORED_CLASS).any())
        return labels.task(name, labels.n_classes(lambda: int(ids.max())) if not names else len(names), names,
                           partial=partial), ids  # fmt: skip
    kind = get_kind(labels.kind)
    if labels.kind not in ("attribute", "multilabel", "scalar"):
        raise UsageError(f"Task {name!r}: a table has no labels of kind {kind.name!r}; see `list kinds`.")
    read = _number if labels.kind == "scalar" else _yes_or_no
    values = np.array([[read(place, cell) for place, cell in column] for column in cells], dtype=np.float32).T
    if labels.kind == "scalar":
        values *= np.float32(labels.scale)
    several = labels.kind == "multilabel"
    channels, found = (len(columns), values) if several else (1, values[:, 0])
    task = labels.task(name, channels, columns if several else (), partial=bool(np.isnan(found).any()))
    return task, np.ascontiguousarray(found)


def _classes(cells: Sequence[tuple[str, str]], name: str, labels: Labels) -> tuple[Array, tuple[str, ...]]:
    """(int64 [N], names). Ids where all cells are numbers and no names are said; else names."""
    words = sorted({cell for _, cell in cells if cell})
    if not labels.names and all(word.isdecimal() for word in words):
        ids = [int(cell) if cell else IGNORED_CLASS for _, cell in cells]
        known = labels.class_of
        if known is not None:
            other = next((cell for _, cell in cells if cell and int(cell) not in known), None)
            if other is not None:
                raise UsageError(f"Task {name!r}: the id {other} is not among ids ({', '.join(map(str, known))}).")
            ids = [known.get(number, IGNORED_CLASS) for number in ids]
        return np.array(ids, dtype=np.int64), ()
    names = labels.names or tuple(words)
    for place, cell in cells:
        if cell and cell not in names:
            raise FileError(f"{place}: {unknown('class', cell, names)}")
    return np.array([names.index(cell) if cell else IGNORED_CLASS for _, cell in cells], dtype=np.int64), names


def _number(place: str, cell: str) -> float:
    try:
        return float(cell) if cell else math.nan
    except ValueError as error:
        raise FileError(f"{place}: expected a number or nothing, found {cell!r}.") from error


def _yes_or_no(place: str, cell: str) -> float:
    if cell.lower() not in YES_NO:
        raise FileError(f"{place}: expected 1 or 0, yes or no, true or false, or nothing; found {cell!r}.")
    return YES_NO[cell.lower()]
