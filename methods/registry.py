"""Methods by name. Methods of this package are found in its files; third parties register through entry points or
plug-ins. A method is imported when it is asked for.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

from datasets.declared import Declared, declared
from datasets.errors import UsageError, unknown

if TYPE_CHECKING:
    from methods.contracts import Method

AnyMethod: TypeAlias = "type[Method[Any]]"
_METHODS: dict[str, AnyMethod] = {}
_M = TypeVar("_M", bound="AnyMethod")


def register_method(name: str) -> Callable[[_M], _M]:
    """Class decorator that registers a method. Raises UsageError if the name is taken."""

    def register(cls: _M) -> _M:
        place = (cls.__module__, cls.__qualname__)
        taken, ours = _METHODS.get(name), declared_methods().get(name)
        others = {(ours.module, ours.attribute)} if ours is not None else set()
        others |= {(taken.__module__, taken.__qualname__)} if taken is not None else set()
        for module, _ in others - {place}:
            raise UsageError(f"Method {name!r} is registered twice: {module} and {cls.__module__}.")
        _METHODS[name] = cls
        return cls

    return register


def declared_methods() -> Mapping[str, Declared]:
    """The methods of this package, without importing them."""
    return declared("methods", "register_method")


@functools.cache
def load_methods() -> None:
    """Import every module of this package, for the operations that it registers, and every entry point of the group
    `sharebench.methods`, once a process.
    """
    import methods

    for module in pkgutil.walk_packages(methods.__path__, prefix="methods."):
        importlib.import_module(module.name)
    _load_entry_points()


@functools.cache
def _load_entry_points() -> None:
    for point in entry_points(group="sharebench.methods"):
        point.load()


def method_names() -> list[str]:
    """Names of this package's methods and of all registered ones, in alphabetical order."""
    _load_entry_points()
    return sorted({*declared_methods(), *_METHODS})


def require_method(name: str) -> None:
    """Raise UnknownNameError with the nearest names for an unknown name. Imports no method of this package."""
    if name not in (names := method_names()):
        raise unknown("method", name, names)


def get_method(name: str) -> AnyMethod:
    """The method's class. Raises UnknownNameError with the nearest names."""
    ours = declared_methods().get(name)
    if ours is not None:
        return cast("AnyMethod", getattr(importlib.import_module(ours.module), ours.attribute))
    if name not in _METHODS:
        require_method(name)  # loads entry points
    return _METHODS[name]
