"""Methods by name. A method is found by lying in this package; third parties register through entry points or
plug-ins.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any, TypeVar

from datasets.errors import UsageError, unknown
from methods.contracts import Method

AnyMethod = type[Method[Any]]
_METHODS: dict[str, AnyMethod] = {}
_M = TypeVar("_M", bound=AnyMethod)


def register_method(name: str) -> Callable[[_M], _M]:
    """Class decorator that registers a method. Raises UsageError where the name is taken."""

    def register(cls: _M) -> _M:
        taken = _METHODS.get(name)
        if taken is not None and (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
            raise UsageError(f"Method {name!r} is registered twice: {taken.__module__} and {cls.__module__}.")
        _METHODS[name] = cls
        return cls

    return register


@functools.cache
def load_methods() -> None:
    """Import every module of this package and every entry point of the group `sharebench.methods`, once a process."""
    import methods

    for module in pkgutil.iter_modules(methods.__path__, prefix="methods."):
        importlib.import_module(module.name)
    for point in entry_points(group="sharebench.methods"):
        point.load()


def method_names() -> list[str]:
    """Registered names in alphabetical order."""
    load_methods()
    return sorted(_METHODS)


def get_method(name: str) -> AnyMethod:
    """The method's class. Raises UnknownNameError with the nearest names."""
    load_methods()
    if name not in _METHODS:
        raise unknown("method", name, _METHODS)
    return _METHODS[name]
