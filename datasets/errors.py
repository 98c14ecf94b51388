"""Errors that a user can cause. The commands print them as one line, without a traceback, and exit with status 2."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pydantic import ValidationError


class UsageError(ValueError):
    """What was asked for cannot be done; the message names it, what was expected and the nearest valid choice."""


class UnknownNameError(UsageError):
    """A name that no registry, task list or configuration key knows."""


class DatasetMissingError(UsageError):
    """The files of a data set are absent; the message says where it looked and how to get them."""


class ProtocolError(UsageError):
    """An evaluation that the protocol forbids, such as reading the report role before the end."""


def edit_distance(a: str, b: str) -> int:
    """Levenshtein distance between two strings."""
    previous = list(range(len(b) + 1))
    for i, char_a in enumerate(a, start=1):
        current = [i]
        for j, char_b in enumerate(b, start=1):
            current.append(min(previous[j] + 1, current[j - 1] + 1, previous[j - 1] + (char_a != char_b)))
        previous = current
    return previous[-1]


def nearest(name: str, known: Iterable[str], n: int = 3) -> list[str]:
    """The `n` known names with the smallest edit distance to `name`, nearest first; ties in alphabetical order."""
    return sorted(known, key=lambda candidate: (edit_distance(name.lower(), candidate.lower()), candidate))[:n]


def unknown(what: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """The error for an unknown name: one line with the nearest choices, and the whole list where it is short."""
    names = sorted(known)
    if not names:
        return UnknownNameError(f"Unknown {what} {name!r}: none is registered.")
    hint = ", ".join(repr(candidate) for candidate in nearest(name, names))
    listing = f" Known: {', '.join(names)}." if len(names) <= 24 else f" {len(names)} are known."
    return UnknownNameError(f"Unknown {what} {name!r}. Nearest: {hint}.{listing}")


class Fault(NamedTuple):
    """What pydantic found wrong with a value. where: dotted path, empty for the value as a whole; text: what is wrong;
    kind: pydantic's name for it, such as `missing` or `extra_forbidden`; given: the value at that place.
    """

    where: str
    text: str
    kind: str
    given: object

    def __str__(self) -> str:
        return f"{self.where}: {self.text}" if self.where else self.text


def first_fault(error: ValidationError) -> Fault:
    """The first fault of a validation, for a message of one line."""
    fault = error.errors()[0]
    where = ".".join(str(part) for part in fault["loc"])
    return Fault(where, fault["msg"].removeprefix("Value error, "), fault["type"], fault["input"])
