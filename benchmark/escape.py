"""Text of others (names of methods, tasks and data sets, errors) in a form whose syntax it must not speak.

Everything that a report or a console shows passes one of these; `benchmark.show.render` adds what LaTeX needs.
"""

from __future__ import annotations

import csv
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TextIO

_FORMULA = tuple("=+-@")  # what a spreadsheet calculates, where a cell begins with it
_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # control, format (direction of writing), surrogates, line separators


def plain(text: str, keep: str = "") -> str:
    r"""One line without control characters: they are written as escapes (\n, \x1b). keep: those left as they are."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode("ascii")
        if unicodedata.category(character) in _HIDDEN and character not in keep
        else character
        for character in text
    )


def markdown_text(text: str) -> str:
    """Text whose special characters mean nothing in Markdown."""
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", plain(text))


def markdown_row(cells: Sequence[str]) -> str:
    """A line of a Markdown table, of cells that are escaped."""
    return f"| {' | '.join(cells)} |"


class CsvWriter:
    """Rows of a CSV file. A text that a spreadsheet would calculate gets an apostrophe before it; numbers do not."""

    def __init__(self, file: TextIO) -> None:
        self._writer = csv.writer(file, lineterminator="\n")

    def writerow(self, cells: Iterable[object]) -> None:
        """Write one row, a line of the file."""
        self._writer.writerow([_cell(cell) for cell in cells])

    def writerows(self, rows: Iterable[Iterable[object]]) -> None:
        """Write several rows."""
        for row in rows:
            self.writerow(row)


def _cell(cell: object) -> object:
    if not isinstance(cell, str):
        return cell
    text = plain(cell)
    return f"'{text}" if text.startswith(_FORMULA) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
