"""The one JSON form of a value, and the keys that are hashes of it: cell, table, row. Spec: measurement 9."""

from __future__ import annotations

import hashlib
import json
import math
import unicodedata
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from datasets.errors import UsageError

if TYPE_CHECKING:
    from benchmark.records.documents import BalancingDocument

KEY_DIGITS = 32
TABLE_DIGITS = 12
EQUAL_BALANCING: BalancingDocument = {"name": "equal", "params": {}}  # the sum of the weighted losses


class CanonicalError(UsageError):
    """A value that canonical JSON cannot hold; the message names its key path."""


def canonical_json(value: object) -> bytes:
    """The one JSON form of a value: UTF-8, keys sorted by code point, no spaces, strings NFC, shortest floats.

    1.0 stays 1.0 and -0.0 becomes 0.0. Raises CanonicalError, naming the key path, for NaN, infinity, a key that is not
    a string, two keys that are equal after NFC, text that is not Unicode, and any type that JSON does not have.
    """
    plain = _plain(value, ())
    text = json.dumps(plain, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode("utf-8")


def _plain(value: object, path: tuple[str | int, ...]) -> object:
    # bool before int, and exact types in the result: subclasses (enums, numpy floats) must not choose their own text.
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _text(value, path)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise CanonicalError(f"{_where(path)} is {float(value)}; a record holds finite numbers or null.")
        return float(value) + 0.0  # -0.0 + 0.0 is 0.0
    if isinstance(value, Mapping):
        return _plain_mapping(value, path)
    if isinstance(value, (list, tuple)):
        return [_plain(item, (*path, position)) for position, item in enumerate(value)]
    raise CanonicalError(f"{_where(path)} is a {type(value).__name__}; a record holds JSON values only.")


def _plain_mapping(value: Mapping[object, object], path: tuple[str | int, ...]) -> dict[str, object]:
    result: dict[str, object] = {}
    for key, item in value.items():
        if not isinstance(key, str):
            raise CanonicalError(f"{_where(path)} has the key {key!r}; keys of a record are strings.")
        name = _text(key, path)
        if name in result:
            raise CanonicalError(f"{_where(path)} has the key {name!r} twice, in two Unicode forms.")
        result[name] = _plain(item, (*path, name))
    return result


def _text(value: str, path: tuple[str | int, ...]) -> str:
    plain = str.__str__(value)
    if not plain.isascii():
        plain = unicodedata.normalize("NFC", plain)
        try:
            plain.encode("utf-8")
        except UnicodeEncodeError as error:
            raise CanonicalError(f"{_where(path)}: {plain!a} is not valid Unicode text.") from error
    return plain


def _where(path: tuple[str | int, ...]) -> str:
    return ".".join(map(str, path)) or "The value"


def cell_key(cell: Mapping[str, object]) -> str:
    """The cell's key: the first 32 hex digits of sha256 over its canonical JSON."""
    return hashlib.sha256(canonical_json(cell)).hexdigest()[:KEY_DIGITS]


def table_key(cell: Mapping[str, object]) -> str:
    """The key of a cell's table, 12 hex digits: a hash of the cell without method, loss balancing and seed."""
    shared = {name: value for name, value in unbalanced(cell).items() if name not in ("method", "seed")}
    return hashlib.sha256(canonical_json(shared)).hexdigest()[:TABLE_DIGITS]


def row_key(cell: Mapping[str, object]) -> bytes:
    """The key of a cell's row within its table: method with parameters, and loss balancing if it is not equal."""
    balancing = balancing_of(cell)
    return canonical_json([cell["method"], *([] if balancing == EQUAL_BALANCING else [balancing])])


def balancing_of(cell: Mapping[str, object]) -> Mapping[str, object]:
    """The loss balancing of a cell: name and params; `equal` if the cell names none."""
    recipe = cell.get("recipe")
    found = recipe.get("balancing") if isinstance(recipe, Mapping) else None
    return found if isinstance(found, Mapping) else EQUAL_BALANCING


def unbalanced(cell: Mapping[str, object]) -> dict[str, object]:
    """The cell with `equal` loss balancing: rows that differ in their balancing alone share it, and their single-task
    networks.
    """
    recipe = cell.get("recipe")
    if balancing_of(cell) == EQUAL_BALANCING or not isinstance(recipe, Mapping):
        return dict(cell)
    return {**cell, "recipe": {**recipe, "balancing": dict(EQUAL_BALANCING)}}


def flat_params(params: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and texts of nested parameters."""
    for name, value in params.items():
        if isinstance(value, Mapping) and value:
            yield from flat_params(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value if isinstance(value, str) else canonical_json(value).decode()
