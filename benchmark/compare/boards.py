"""Boards: published tables as package data, each number with its source and how far it was verified.

A board is one published table: data set, tasks, label set and protocol; rows of different boards are never mixed. Rows
were `read` in the authors' own documents or code, are `secondary` (a third party prints them), or `recalled` (checked
against nothing): these carry a mark wherever they are shown and nothing is ever computed from them. torch is not
imported.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from benchmark.plan.yaml_text import parse_yaml
from datasets.errors import UsageError, first_fault, unknown
from datasets.settings import Checked

FOLDER = Path(__file__).parent.parent / "published"
Verification = Literal["read", "secondary", "recalled"]
MARKS: Mapping[Verification, str] = {"read": "", "secondary": "\N{DAGGER}", "recalled": "?"}
LEGEND = (
    f"{MARKS['secondary']} second-hand: a third party prints it; "
    f"{MARKS['recalled']} recalled: checked against no source, nothing is computed from it"
)
DASH = "\N{EN DASH}"
Text = Annotated[str, BeforeValidator(str)]  # YAML reads 1.0 and yes as other types


class BoardMetric(Checked):
    """A metric as the board prints it: name of the registry, unit, direction."""

    name: str
    unit: str
    higher_is_better: bool


class Protocol(Checked):
    """How the numbers came about, in words."""

    backbone: Text
    input_size: Text
    classes: Text
    selection_rule: Text
    seeds: Text
    notes: tuple[Text, ...] = ()
    optimiser: Text | None = None
    pretrained: Text | None = None
    split: Text | None = None


class Key(Checked):
    """The protocol in machine form; None: the source does not state it.

    eval_size: (height, width). backbone: timm name, with `:os8` if that output stride is stated; `per_row` if rows
    differ. selection: `last`, `last_10_mean`, or `test` (best on the test part).
    """

    protocol: str | None
    classes: Mapping[str, int] | None
    eval_size: tuple[int, int] | None
    backbone: str | None
    weights: Literal["none", "imagenet", "imagenet1k", "per_row"] | None
    selection: Literal["last", "last_10_mean", "test"] | None
    seeds: int | None


class Size(Checked):
    """A published size. scope: the parts that are counted, if the source states them."""

    value: float
    unit: str
    kind: Literal["absolute", "relative"]
    scope: Text | None = None


class Source(Checked):
    """The publication that prints a row."""

    paper: str
    table: Text
    url: str | None = None
    doi: str | None = None


class BoardRow(Checked):
    """A row. values: {`task.metric` or `aggregate.metric`: number, None where the source has none}."""

    method: str
    variant: Text | None
    values: Mapping[str, float | None]
    params: tuple[Size, ...]
    source: Source
    verification: Verification
    note: str = ""

    @property
    def label(self) -> str:
        """Method and variant as printed, with the mark of its verification."""
        title = f"{self.method} ({self.variant})" if self.variant else self.method
        return f"{MARKS[self.verification]} {title}".strip()


class Board(Checked):
    """A published table. tasks: {task: metrics}; aggregates: metrics over all tasks.

    reproducible: whether a suite can run one of its rows again; reproducible_reason: why, in a few words.
    """

    board: str
    dataset: str
    tasks: Mapping[str, tuple[BoardMetric, ...]]
    aggregates: tuple[BoardMetric, ...] = ()
    protocol: Protocol
    key: Key
    reproducible: Literal["suite", "report_only"]
    reproducible_reason: str
    rows: Annotated[tuple[BoardRow, ...], Field(min_length=1)]
    notes: tuple[str, ...] = ()

    @property
    def columns(self) -> dict[str, BoardMetric]:
        """{`task.metric` or `aggregate.metric`: metric} in the order of the board."""
        named = {f"{task}.{metric.name}": metric for task, metrics in self.tasks.items() for metric in metrics}
        return named | {f"aggregate.{metric.name}": metric for metric in self.aggregates}

    @model_validator(mode="after")
    def _rows_fit_the_columns(self) -> Board:
        columns = self.columns
        for row in self.rows:
            for name, value in row.values.items():
                if name not in columns:
                    raise ValueError(f"row {row.label!r} has a value {name!r} that is not a column of the board")
                if value is not None and not math.isfinite(value):
                    raise ValueError(f"row {row.label!r} has {value} as {name!r}")
        return self


def board_names(folder: Path = FOLDER) -> list[str]:
    """All boards of a folder, in alphabetical order."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


@functools.cache
def read_board(name: str, folder: Path = FOLDER) -> Board:
    """The board of that name. Raises UnknownNameError, and UsageError for a file that does not hold a board."""
    if name not in board_names(folder):
        raise unknown("board", name, board_names(folder))
    try:
        text = (folder / f"{name}.yaml").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{folder / f'{name}.yaml'}: cannot be read ({error}).") from error
    return parse_board(text, name)


def parse_board(text: str, name: str) -> Board:
    """A board from YAML. name: for messages, and what the board must call itself. Raises UsageError."""
    document, _ = parse_yaml(text, f"Board {name!r}")
    try:
        board = Board.model_validate(document)
    except ValidationError as error:
        fault = first_fault(error)
        raise UsageError(f"Board {name!r}{', ' if fault.where else ': '}{fault}.") from error
    if board.board != name:
        raise UsageError(f"Board {name!r} calls itself {board.board!r}; file and board must have one name.")
    return board


def overview() -> Iterator[str]:
    """A line for each board: data, rows by verification, and whether a suite can run it again."""
    for name in board_names():
        board = read_board(name)
        counts = [f"{sum(row.verification == kind for row in board.rows)} {kind}" for kind in MARKS]
        standing = ", ".join(count for count in counts if not count.startswith("0 "))
        yield f"  {name:<40} {board.dataset:<24} {standing}; {board.reproducible.replace('_', ' ')}"


def describe(board: Board) -> Iterator[str]:
    """A board for people: its protocol, its table with marks, sources and notes."""
    yield f"Board {board.board}: {board.dataset} ({board.reproducible.replace('_', ' ')}: {board.reproducible_reason})"
    for name, text in board.protocol.model_dump(exclude={"notes"}, exclude_none=True).items():
        yield f"  {name}: {text}"
    for note in board.protocol.notes:
        yield f"  - {note}"
    yield from _table(board)
    if any(row.verification != "read" for row in board.rows):
        yield f"  {LEGEND}"
    yield "Sources"
    for source in dict.fromkeys(row.source for row in board.rows):
        yield f"  {source.paper}, {source.table}{f', {source.url or source.doi}' if source.url or source.doi else ''}"
    if board.notes:
        yield "Notes"
        yield from (f"  - {note}" for note in board.notes)
    for row in board.rows:
        if row.note:
            yield f"  - {row.label}: {row.note}"


def _table(board: Board) -> Iterator[str]:
    heads = {
        name: f"{name.removeprefix('aggregate.')} [{metric.unit}] {'↑' if metric.higher_is_better else '↓'}"
        for name, metric in board.columns.items()
    }
    rows = [["method", *heads.values(), "size"]]
    for row in board.rows:
        sizes = "; ".join(f"{size.value:g} {size.unit}" for size in row.params)
        rows.append([row.label, *(_number(row.values.get(name)) for name in heads), sizes or DASH])
    widths = [max(len(line[column]) for line in rows) for column in range(len(rows[0]))]
    for line in rows:
        yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()


def _number(value: float | None) -> str:
    return DASH if value is None else f"{value:g}"
