"""Errors that a user can cause. The commands print them as one line, without a traceback, and exit with status 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pydantic import ValidationError


class UsageError(ValueError):
    """A request that cannot be met. The message names it, what was expected and the nearest valid choice."""


class UnknownNameError(UsageError):
    """A name that no registry, task list or configuration key knows."""


class DatasetMissingError(UsageError):
    """The files of a data set are absent. The message says where we looked and how to get them."""


class ProtocolError(UsageError):
    """An evaluation that the protocol forbids, such as reading the report role before the end."""


def nearest(name: str, known: Iterable[str], n: int = 3) -> list[str]:
    """The `n` known names that are most like `name` (difflib), whatever their case, the nearest first."""
    spelt = {candidate.lower(): candidate for candidate in known}
    return [spelt[match] for match in difflib.get_close_matches(name.lower(), spelt, n, cutoff=0.0)]


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
