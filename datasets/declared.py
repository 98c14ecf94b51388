"""What the files of a package register with a decorator, read from their source.

So names can be listed, mistakes in names reported and one class found without importing all the others and what they
need (torch, torchvision, timm).
"""

from __future__ import annotations

import ast
import dataclasses
import functools
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Declared:
    """A class that is registered. module, attribute: where it is; about: first line of its docstring."""

    module: str
    attribute: str
    about: str


@functools.cache
def declared(package: str, decorator: str) -> Mapping[str, Declared]:
    """{name: class} of every `@decorator("name")` above a class in the package's files."""
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent
    found: dict[str, Declared] = {}
    for path in sorted(folder.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if f"\n@{decorator}(" not in text:
            continue
        module = ".".join((package, *path.relative_to(folder).with_suffix("").parts))
        for node in ast.parse(text).body:
            if isinstance(node, ast.ClassDef):
                about = (ast.get_docstring(node) or "").partition("\n")[0]
                found |= {name: Declared(module, node.name, about) for name in _names(node, decorator)}
    return found


def _names(node: ast.ClassDef, decorator: str) -> list[str]:
    """The constant names that a class is registered under."""
    calls = [call for call in node.decorator_list if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)]
    return [
        str(call.args[0].value)
        for call in calls
        if isinstance(call.func, ast.Name) and call.func.id == decorator and isinstance(call.args[0], ast.Constant)
    ]
