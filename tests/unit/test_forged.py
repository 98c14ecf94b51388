"""Records and speed files that are consistent in themselves and yet of no run: reports list them and go on."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmark.compare.difference import difference, render_difference
from benchmark.records.keys import canonical_json
from benchmark.records.measurements import SCHEMA, read_speed
from benchmark.records.record import Record, parse_record, record_bytes
from benchmark.records.store import Store
from benchmark.show.page import render_page
from benchmark.show.render import render_csv, render_latex, render_markdown, render_terminal
from benchmark.tables.table import aggregate
from datasets.errors import UsageError
from tests.unit.records import make_record

# One of each JSON type, and a number that overflows when it is added or squared.
WRONG: tuple[Any, ...] = (None, -1, 1e308, "x", [1], {"x": 0.5})
AUDIT: dict[str, Any] = {
    "facts": {"density": {"value": 0.5, "unit": ""}},
    "chosen": ["a", "b"],
    "flags": ["odd"],
    "non_default_params": {"k": 2},
    "recipe": "suite",
    "search_roles": ["fit"],
    "channels": {"semseg": 3, "depth": 1},
    "weights_tag": "",
    "units": {"semseg": ""},
}


def genuine() -> list[Record]:
    size = {"total": 90, "dense": 100, "nonzero": 80, "x_backbone": 0.9, "active": {"semseg": 50, "depth": 60}}
    more: dict[str, Any] = {
        "audit": AUDIT,
        "size": size,
        "recipe": {"balancing": {"name": "pcgrad", "params": {"a": 1}}},
    }
    rows = [make_record(seed=seed, shared=True, search_steps=7, **more) for seed in range(3)]
    return [*rows, *(make_record("single_task", seed, reference=True) for seed in range(3))]


def document_of(record: Record) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(record_bytes(record))
    document["curves"] = {"loss": [1.0, 0.5, None]}
    document["artifacts"] = {"policy": {"kind": "figure", "file": "a.json", "sha256": "0" * 64}}
    return document


def forged(document: dict[str, Any]) -> bytes:
    """Bytes whose record_hash is right, whatever they say."""
    digest = hashlib.sha256(canonical_json({**document, "record_hash": "0" * 64})).hexdigest()
    return canonical_json({**document, "record_hash": digest})


def places(value: object, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a document, of one entry of each list."""
    if path:
        yield path
    items: Any = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for name, inner in items:
        yield from places(inner, (*path, name))


def changed(document: dict[str, Any], path: tuple[Any, ...], value: object) -> dict[str, Any]:
    result = copy.deepcopy(document)
    inner: Any = result
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    return result


def read(data: bytes) -> Record | None:
    """The record; None where it is listed as invalid."""
    try:
        return parse_record(data)
    except UsageError as error:
        assert len(str(error).splitlines()) == 1
        return None


ORIGINAL = document_of(genuine()[0])
PLACES = [path for path in places(ORIGINAL) if path != ("record_hash",)]


@pytest.mark.parametrize("wrong", WRONG)
def test_no_record_stops_a_report(wrong: object, tmp_path: Path) -> None:
    """Every value of a record replaced: it is refused, or tables are made of it."""
    others, valid = genuine(), []
    for path in PLACES:
        record = read(forged(changed(ORIGINAL, path, wrong)))
        if record is not None:
            aggregate([record, others[1], others[3]])  # two seeds, the forged one first in its row
            valid.append(record)
    assert 0 < len(valid) < len(PLACES)
    together = [dataclasses.replace(one, cell={**one.cell, "seed": -n}) for n, one in enumerate(valid, 1)]
    records = [*together, *others]
    tables = aggregate(records)
    render_page(tables, records, [], Store(tmp_path), command="x", sections=[])
    for render in (render_terminal, render_markdown, render_csv, render_latex):
        render(tables)
    render_difference(difference(others, records), "markdown")


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("audit", "facts"), {"density": 0.5}, "audit.facts.density"),
        (("audit", "chosen"), [1], "audit.chosen.0"),
        (("audit", "flags"), "odd", "audit.flags"),
        (("cell", "recipe", "balancing"), {"params": {}}, "cell.recipe.balancing.name"),
        (("cell", "data", "tasks"), [1], "cell.data.tasks.0"),
        (("audit", "input_size"), [32, "x"], "audit.input_size.1"),
        (("audit", "reference"), "mine", "audit.reference"),
        (("cost", "final", "images"), "x", "cost.final.images"),
        (("compute", "macs_joint"), 1e200, "compute.macs_joint"),
        (("environment", "determinism"), [True], "environment.determinism"),
        (("versions", "torch"), 2, "versions.torch"),
        (("size", "total"), 10**400, "integer"),
        (("metrics", "semseg", "miou", "value"), 1e200, "metrics.semseg.miou.value"),
    ],
)
def test_the_reason_names_the_field(path: tuple[str, ...], value: object, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_record(forged(changed(ORIGINAL, path, value)))


def test_numbers_that_no_float_holds_and_deep_nesting_are_refused() -> None:
    data = forged(ORIGINAL)
    for text, words in ((b"1e999", "too large"), (b"NaN", "not JSON"), (b"[" * 60 + b"]" * 60, "nested deeper")):
        with pytest.raises(UsageError, match=words):
            parse_record(data.replace(b'"samples":{}', b'"samples":{"x":' + text + b"}"))


@pytest.mark.parametrize("text", ["NaN", "Infinity", "1e999", "1" * 400])
def test_a_speed_file_with_a_number_that_is_none_is_listed(text: str, tmp_path: Path) -> None:
    (tmp_path / "speed" / "cpu").mkdir(parents=True)
    (tmp_path / "speed" / "cpu" / "x.json").write_text(f'{{"schema": {SCHEMA}, "aa": {text}}}', encoding="utf-8")
    (problem,) = read_speed(tmp_path).problems
    assert problem.startswith("speed/cpu/x.json: not JSON")
