"""Kinds by name. Every module of this package is searched for kinds."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TypeVar

from datasets.errors import UsageError, unknown
from datasets.kinds.base import Kind

_KINDS: dict[str, Kind] = {}
_K = TypeVar("_K", bound=type[Kind])


def register_kind(cls: _K) -> _K:
    """Class decorator that registers a kind under its `name`. Raises UsageError where the name is taken."""
    taken = _KINDS.get(cls.name)
    if taken is not None and (type(taken).__module__, type(taken).__qualname__) != (cls.__module__, cls.__qualname__):
        raise UsageError(f"Kind {cls.name!r} is registered twice: {type(taken).__module__} and {cls.__module__}.")
    _KINDS[cls.name] = cls()
    return cls


def load_kinds() -> None:
    """Import every module of this package."""
    import datasets.kinds

    for module in pkgutil.iter_modules(datasets.kinds.__path__, prefix="datasets.kinds."):
        importlib.import_module(module.name)


def kind_names() -> list[str]:
    """Registered names in alphabetical order."""
    load_kinds()
    return sorted(_KINDS)


def get_kind(name: str) -> Kind:
    """The kind of that name. Raises UnknownNameError with the nearest names."""
    if name not in _KINDS:  # losses ask at every step; the scan is for the first time
        load_kinds()
    if name not in _KINDS:
        raise unknown("kind", name, _KINDS)
    return _KINDS[name]
