"""A suite from its YAML file, with a user's choices. Errors name file, line and key."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from benchmark.plan.suite import BALANCING, Suite, make_absolute, section_of
from benchmark.plan.yaml_text import Location, parse_yaml
from datasets.errors import UnknownNameError, UsageError, first_fault, nearest, unknown

SUITES = Path(__file__).parent.parent / "suites"


MAX_SUITE_BYTES = 100_000  # a suite is a page of text; a larger file is a mistake or an attack


def suite_names() -> list[str]:
    """Suites that ship with the package."""
    return sorted(path.stem for path in SUITES.glob("*.yaml"))


def find_suite(name: str) -> Path:
    """The file of a suite: a name that ends in .yaml or .yml, or has a separator, is a path; a bare name is a shipped
    suite, even if the working directory has a file of that name. Raises UsageError.
    """
    path = Path(name)
    if path.suffix in {".yaml", ".yml"} or any(mark in name for mark in (os.sep, os.altsep) if mark):
        if not path.is_file():
            raise UsageError(f"Suite file {name!r} does not exist. Shipped suites: {', '.join(suite_names())}.")
        return path
    if name not in suite_names():
        hint = f" A file is given as a path: ./{name}." if path.is_file() else ""
        raise UnknownNameError(f"{unknown('suite', name, suite_names())}{hint}")
    return SUITES / f"{name}.yaml"


def read_suite(path: Path, changes: Mapping[str, Any] | None = None, settings: Sequence[str] = ()) -> Suite:
    """The suite in a file. changes: top-level keys to replace; settings: `a.b=c` assignments.

    Raises UsageError that names file, line and key for anything that is not a valid suite.
    """
    try:
        size = path.stat().st_size
        if size > MAX_SUITE_BYTES:
            raise UsageError(f"{path}: {size} bytes; a suite has at most {MAX_SUITE_BYTES}.")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is not UTF-8 text (byte {error.start}).") from error
    document, lines = parse_yaml(text, str(path))
    if not isinstance(document, dict):
        raise UsageError(f"{path}: a suite is a mapping of keys, not {type(document).__name__}.")
    document.update(changes or {})
    for assignment in settings:
        _assign(document, assignment)
    make_absolute(document, path.parent)
    try:
        return Suite.model_validate(document)
    except ValidationError as error:
        raise UsageError(_explain(error, path, lines)) from error


def _assign(document: dict[str, Any], assignment: str) -> None:
    """Apply `a.b=c`: a top-level section of the suite, or `method.key` for the parameters of all entries of a method.
    `balancing=c` and `method.balancing=c` set the loss balancing of all methods, or of one.
    """
    path, separator, text = assignment.partition("=")
    keys = path.strip().split(".")
    if not separator or (len(keys) < 2 and keys != [BALANCING]):
        raise UsageError(f"--set {assignment!r}: expected section.key=value, for example recipe.batch_size=32.")
    value, _ = parse_yaml(text, f"--set {assignment!r}")
    targets: list[dict[str, Any]]
    entries: list[dict[str, Any]] = []
    if keys[0] == BALANCING:
        targets, keys = [document], ["", *keys]
    elif keys[0] in {"recipe", "budget", "selection"}:
        targets = [document.setdefault(keys[0], {})]
    else:
        entries = _method_entries(document, keys[0])
        own = keys[1:] == [BALANCING]
        targets = entries if own else [entry.setdefault("params", {}) for entry in entries]
    for target in targets:
        try:
            section, key = section_of(target, keys[1:])
        except ValueError as error:
            raise UsageError(f"--set {assignment!r}: {error}.") from error
        section[key] = value
    if entries:  # rows that differed in this alone are one row now
        methods = document["methods"]
        methods[:] = [entry for position, entry in enumerate(methods) if entry not in methods[:position]]


def _method_entries(document: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """All entries of a method, in place: a row and its control are to be changed alike."""
    methods = document["methods"] if isinstance(document.get("methods"), list) else []
    methods[:] = [{"name": entry} if entry == name else entry for entry in methods]
    found = [entry for entry in methods if isinstance(entry, dict) and entry.get("name") == name]
    if not found:
        names = [entry if isinstance(entry, str) else str(entry.get("name")) for entry in methods]
        raise unknown("section of --set", name, ["recipe", "budget", "selection", BALANCING, *names])
    return found


def _explain(error: ValidationError, path: Path, lines: Mapping[Location, int]) -> str:
    """One line for the first fault: file, line, key path, fault, nearest valid key."""
    fault = first_fault(error)
    # A union adds the name of the branch that was tried; the lines only know the document's own keys.
    location = error.errors()[0]["loc"]
    known = next((location[:n] for n in range(len(location), -1, -1) if location[:n] in lines), ())
    where = f"{path}, line {lines[known]}" if known else str(path)
    if fault.kind == "extra_forbidden":
        allowed = _fields_at(location[:-1])
        hint = f" Nearest: {', '.join(nearest(str(location[-1]), allowed))}. Known: {', '.join(allowed)}."
        hint = hint if allowed else ""
        return f"{where}: unknown key {fault.where!r}.{hint}"
    given = "" if fault.kind == "missing" else f" (given: {fault.given!r})"
    return f"{where}: {fault}{given}."[:500]


def _fields_at(location: Location) -> list[str]:
    """Names of the settings that are valid at a place of a suite."""
    model: type[BaseModel] = Suite
    for part in location:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part)
        inner = _model_in(field.annotation) if field else None
        if inner is None:
            return []
        model = inner
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _model_in(argument)
        if found is not None:
            return found
    return None


def changes_to(suite: dict[str, Any], option: str, key: str, names: Sequence[str]) -> list[Any]:
    """All of the suite's entries of these names, with their settings; a bare one for a name that the suite lacks."""
    known: dict[str, list[Any]] = {}
    for entry in suite.get(option) or []:
        known.setdefault(entry if isinstance(entry, str) else entry.get(key), []).append(entry)
    return [entry for name in names for entry in known.get(name, [{key: name}])]


@dataclasses.dataclass(frozen=True)
class SuiteChoices:
    """What a user changes in a suite; None leaves a part as it is.

    methods, datasets, backbones: only these entries, in this order; tasks: of every data set. settings: `a.b=c`
    assignments. plugins: files besides the suite's own, relative to the working directory. tuned: page in place of the
    suite's own, relative to the working directory.
    """

    methods: Sequence[str] | None = None
    datasets: Sequence[str] | None = None
    tasks: Sequence[str] | None = None
    backbones: Sequence[str] | None = None
    seeds: Sequence[int] | None = None
    settings: Sequence[str] = ()
    plugins: Sequence[str | Path] = ()
    tuned: str | Path | None = None


def select(name: str, choices: SuiteChoices = SuiteChoices()) -> Suite:
    """A suite with a user's choices. name: of a shipped suite, or the path of a YAML file. Raises UsageError."""
    for field, value in vars(choices).items():
        if isinstance(value, str) and field != "tuned":  # a sequence too, of letters
            raise UsageError(f"{field}={value!r}: expected a list, for example [{value!r}].")
    path = find_suite(name)
    # Validated first, so that what is changed below is known to have the right form.
    read_suite(path)
    document, _ = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    changes: dict[str, Any] = {}
    for option, key, names in (
        ("methods", "name", choices.methods),
        ("data", "dataset", choices.datasets),
        ("backbones", "name", choices.backbones),
    ):
        if names is not None:
            changes[option] = changes_to(document, option, key, names)
    if choices.tasks is not None:
        entries = changes.get("data", document["data"])
        changes["data"] = [
            {**({"dataset": entry} if isinstance(entry, str) else entry), "tasks": list(choices.tasks)}
            for entry in entries
        ]
    if choices.seeds is not None:
        changes["seeds"] = list(choices.seeds)
    if choices.tuned is not None:
        changes["tuned"] = str(Path(choices.tuned).resolve())
    suite = read_suite(path, changes, choices.settings)
    # Absolute: workers do not know where the command was started.
    named = tuple(str(Path(file).resolve()) for file in choices.plugins)
    return suite.model_copy(update={"plugins": tuple(dict.fromkeys((*suite.plugins, *named)))})
