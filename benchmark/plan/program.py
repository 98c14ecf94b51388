"""The program that trains a cell: its source files, found by their imports, and their hash. Spec: measurement 9.

Import statements are read, also those inside functions; no module is imported or run. They are followed within our
three packages, the package of a registered method or data set, and the folder of a plug-in. Methods and data sets that
the cell does not use, and code that prints, draws or times, are not reached and change no hash.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from benchmark.records.provenance import PACKAGES, module_file
from datasets.contracts import DatasetSpec
from datasets.errors import UsageError
from datasets.kinds import get_kind
from datasets.registry import get_dataset
from methods.backbones.family import find_family
from methods.registry import AnyMethod

TRAINING = "benchmark.train.cell"  # what every cell runs, whatever its method and data
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@dataclasses.dataclass(frozen=True)
class Program:
    """Hashes (sha256, hex) of the code of a cell. training: the files that all methods share on its data set, its
    backbone and its kinds of tasks. method: further files of its method.
    """

    training: str
    method: str


def program_of(method: AnyMethod, spec: DatasetSpec, backbone: str) -> Program:
    """The program that trains a method on a data set. backbone: name of the timm model.

    Raises UsageError for a class without a source file, such as one that was typed into a console.
    """
    parts = [get_dataset(spec.name), find_family(backbone), *(get_kind(task.kind) for task in spec.tasks)]
    return _program((TRAINING, *(type(part).__module__ for part in parts)), method.__module__)


@functools.cache  # a process trains with the code that it has loaded, whatever becomes of the files
def _program(training: tuple[str, ...], method: str) -> Program:
    shared, own = source_files(training), source_files([method])
    return Program(_hash(shared), _hash({file: name for file, name in own.items() if file not in shared}))


def source_files(modules: Iterable[str]) -> dict[Path, str]:
    """{file: module} of these modules and of all that they import, directly or not. Raises UsageError."""
    found: dict[Path, str] = {}
    waiting = [source for module in modules for source in _roots(module)]
    while waiting:
        module = waiting.pop()
        if module.file not in found:
            found[module.file] = module.name
            waiting += (source for name in _imported(module) for source in _located(name, module.home, module.own))
    return found


@dataclasses.dataclass(frozen=True)
class _Module:
    """name: dotted; the file's name for a plug-in. home: the folder in which imports of its project are looked up. own:
    the one top-level package that is followed there; empty for a plug-in, for which everything beside it is followed.
    """

    name: str
    file: Path
    home: Path
    own: str


def _roots(name: str) -> Iterator[_Module]:
    file = module_file(name)
    parts, is_package = name.split("."), file.name == "__init__.py"
    if parts[-1] == (file.parent.name if is_package else file.stem):
        yield from _located(name, file.parents[len(parts) - (0 if is_package else 1)], parts[0])
    else:  # a plug-in is loaded under a name that we make
        yield _Module(file.stem, file, file.parent, "")


def _located(name: str, home: Path, own: str) -> Sequence[_Module]:
    """The files that an absolute import runs: those of the packages around it, then its own. None for libraries."""
    package = name.partition(".")[0]
    if package in PACKAGES:
        return _of_ours(name)
    return _files(name.split("."), home, own, 1) if own in ("", package) else ()


@functools.cache  # as for `_program`; a suite asks for a module a hundred times
def _of_ours(name: str) -> Sequence[_Module]:
    package = name.partition(".")[0]
    # The __init__ of our three packages holds versions and names only: a release does not change the program.
    return _files(_public_names(package).get(name, name).split("."), _home_of(package), package, 2)


def _files(parts: Sequence[str], home: Path, own: str, first: int) -> Sequence[_Module]:
    """Those of a dotted name, from its part number `first` on."""
    found = []
    for end in range(first, len(parts) + 1):
        path = home.joinpath(*parts[:end])
        file = next((one for one in (path / "__init__.py", path.with_name(f"{path.name}.py")) if one.is_file()), None)
        if file is not None:
            found.append(_Module(".".join(parts[:end]), file, home, own))
    return tuple(found)


@functools.cache
def _public_names(package: str) -> Mapping[str, str]:
    """{package.name: module} of the names that one of our packages exports lazily, read from its imports for types."""
    return {
        f"{package}.{alias.name}": node.module
        for node in ast.walk(ast.parse(module_file(package).read_bytes()))
        if isinstance(node, ast.ImportFrom) and node.module is not None and node.module.startswith(f"{package}.")
        for alias in node.names
    }


@functools.cache
def _home_of(package: str) -> Path:
    return module_file(package).parent.parent


def _imported(module: _Module) -> Iterator[str]:
    """Absolute names of the imports of a module."""
    package = module.name.split(".")
    if module.file.name != "__init__.py":
        package.pop()
    for level, name in _read(module.file).imports:
        parts = [*(package[: len(package) - level + 1] if level else ()), *filter(None, [name])]
        if parts:
            yield ".".join(parts)


@dataclasses.dataclass(frozen=True)
class _Source:
    """digest: sha256 of the code. imports: (dots in front, dotted name); `from a import b` may mean the module a.b, so
    both are named.
    """

    digest: str
    imports: tuple[tuple[int, str], ...]


def _read(file: Path) -> _Source:
    try:
        state = file.stat()
        return _parsed(file, state.st_mtime_ns, state.st_size)
    except (OSError, SyntaxError, ValueError) as error:
        raise UsageError(f"{file}: cannot be read as Python ({str(error).splitlines()[0]}).") from error


@functools.cache
def _parsed(file: Path, mtime_ns: int, size: int) -> _Source:
    """A file in one state; after a change it is another entry."""
    tree = ast.parse(file.read_bytes())
    imports = tuple(_imports([tree]))
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
    # Printed from the tree: without comments, docstrings, line ends and layout, which change no number.
    return _Source(hashlib.sha256(ast.unparse(tree).encode("utf-8", "surrogatepass")).hexdigest(), imports)


def _imports(nodes: Iterable[ast.AST]) -> Iterator[tuple[int, str]]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            yield node.level, module
            yield from ((node.level, f"{module}.{alias.name}".lstrip(".")) for alias in node.names)
        elif isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            yield from _imports(node.orelse)  # what only a type checker imports is never run
        else:
            yield from _imports(ast.iter_child_nodes(node))


def _hash(files: Mapping[Path, str]) -> str:
    """sha256 (hex) over names and code, whatever the order and the folder."""
    lines = sorted(f"{name}:{_read(file).digest}" for file, name in files.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
