"""`python -m benchmark.list`: everything that there is to know of a name, and good manners in a pipe."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

import benchmark
from benchmark.api import glossary
from benchmark.api.catalog import describe
from benchmark.plan.suite_file import suite_names
from datasets.images.augmentation import STEPS
from datasets.kinds import get_kind, kind_names
from datasets.kinds.metrics import METRICS
from datasets.registry import dataset_names, get_dataset
from methods.backbones.decoders import HIDDEN, Decoder
from methods.contracts import Reference
from methods.registry import get_method, method_names

ROOT = Path(benchmark.__file__).parent.parent


def test_bibtex_by_hand() -> None:
    reference = Reference("doe2020two", "article", ("J. Doe", "A. B. Roe"), "Two", "A Journal 1", 2020, "https://x.org")
    assert reference.bibtex() == (
        "@article{doe2020two,\n"
        "  author    = {J. Doe and A. B. Roe},\n"
        "  title     = {{Two}},\n"
        "  journal   = {A Journal 1},\n"
        "  year      = {2020},\n"
        "  url       = {https://x.org},\n"
        "}"
    )
    assert "booktitle = {C}" in Reference("k", "inproceedings", ("J. Doe",), "T", "C", 2020).bibtex()


@pytest.mark.parametrize("name", method_names())
def test_a_method_says_what_to_cite(name: str) -> None:
    references = get_method(name).fidelity.references
    assert references
    text = describe(name)
    for reference in references:
        for line in reference.bibtex().splitlines():
            assert line in text
        assert str(reference.year) in reference.key
        assert all(re.fullmatch(r"([A-Z]\.(-[A-Z]\.)? )+\S.*", author) for author in reference.authors)
    keys = [reference.key for reference in references]
    assert len(set(keys)) == len(keys)


def fields_of(params: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Dotted names of a method's parameters, those of optional settings too."""
    for key, field in params.model_fields.items():
        yield prefix + key, field
        for part in (field.annotation, *get_args(field.annotation)):
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from fields_of(part, f"{prefix}{key}.")


@pytest.mark.parametrize("name", method_names())
def test_every_parameter_of_a_method_is_explained(name: str) -> None:
    text = " ".join(describe(name).split())
    for key, field in fields_of(get_method(name).Params):
        assert field.description, key
        if not isinstance(field.default, BaseModel):
            line = text[text.index(f" {key} = ") :]
            assert line[: line.index(field.description)].endswith("): "), key


def test_types_and_defaults_are_told_as_yaml_writes_them() -> None:
    text = " ".join(describe("bmtas").split())
    assert "lut_size = null ([int, int], null): (height, width)" in text
    assert "fixed_tree = null ([[int, ..], ..], null): a row" in text
    assert "published.search_epochs = 160 (int): E" in text
    assert "published.preset = required (nyud_2task, pascal_5task): the setting" in " ".join(
        describe("branched").split()
    )


def test_one_paper_has_one_entry_wherever_it_is_cited() -> None:
    """Two methods of one paper must not give two entries of one key that differ."""
    entries: dict[str, str] = {}
    for name in method_names():
        for reference in get_method(name).fidelity.references:
            assert entries.setdefault(reference.key, reference.bibtex()) == reference.bibtex()


@pytest.mark.parametrize("name", dataset_names())
def test_a_data_set_shows_all_layouts_options_tasks_and_caveats(name: str) -> None:
    loader = get_dataset(name)
    text = " ".join(describe(name).split())
    for layout, files in loader.layouts.items():
        assert f"Layout {layout}" in text
        assert " ".join(files.tree.split()) in text
    for key, field in loader.Options.model_fields.items():
        value = field.get_default()
        shown = (
            {None: "null", True: "true", False: "false"}[value] if value is None or value in (True, False) else value
        )
        assert f"{key} = {value if type(value) is int else shown} (" in text
        assert field.description, f"options of {name}: {key} has no description"
        assert f"): {' '.join(field.description.split())}" in text
    for protocol in loader.protocols:
        assert protocol in text
    for layout in loader.layouts or (None,):
        for protocol in loader.protocols:
            try:
                spec = loader.spec(protocol, loader.Options(), *([layout] if layout else []))
            except ValueError:
                continue
            for task in spec.task_names:
                assert task in text
            for caveat in spec.caveats if protocol == loader.protocols[0] else ():
                assert " ".join(caveat.split()) in text
            break


def test_kinds_metrics_and_heads_are_listed_with_their_meaning() -> None:
    kinds = describe("kinds")
    assert "\nsemantic: one of C classes per pixel; labels int64 [B, H, W] in 0 .. C - 1, 255 ignored." in kinds
    assert "metrics: mean_average_precision, f1" in kinds
    for name in kind_names():
        assert f"\n{name}: " in kinds
        assert f"ignored: {get_kind(name).ignore}" in kinds
    metrics, heads = describe("metrics"), describe("heads")
    assert set(METRICS) == set(glossary.METRICS)
    for name, meaning in glossary.METRICS.items():
        assert f"\n{name}: {meaning[:40]}" in metrics
    assert set(get_args(Decoder)) == set(glossary.HEADS)
    for name, width in HIDDEN.items():
        assert f"\n{name}: {glossary.HEADS[name][:40]}" in heads
        assert f"hidden = {width} channels" in heads.split(f"\n{name}: ")[1].splitlines()[1]


def test_every_step_of_augmentation_is_listed_with_its_options() -> None:
    text = " ".join(describe("augmentation").split())
    for name, step in STEPS.items():
        assert f"{name}: " in text
        for key, field in step.model_fields.items():
            assert f"{key} = " in text
            assert field.description, f"{name}.{key} has no description"
            assert field.description in text


def test_a_reader_that_leaves_ends_the_command_quietly() -> None:
    """`| head`: no traceback, and the exit code that a shell knows from the signal."""
    for arguments in (["benchmark.list"], ["benchmark.report", "--help"]):
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
        )
        assert process.stdout is not None
        process.stdout.close()  # before the first byte: every write finds no reader
        errors = process.stderr.read().decode() if process.stderr is not None else ""
        assert process.wait(timeout=120) == 141
        assert errors == ""


def test_commands_keep_their_exit_codes() -> None:
    for arguments, code in (
        (["benchmark.list", "quick", "--plugin", "nowhere.py"], 2),
        (["benchmark.report", "--help"], 0),
    ):
        done = subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, cwd=ROOT, check=False)
        assert done.returncode == code
        assert "Traceback" not in done.stderr


def test_no_suite_hides_a_list_of_things() -> None:
    """`list balancing` once described a suite of that name, and not the ways to balance."""
    assert not {"balancing", "boards"} & set(suite_names())
    described = describe("balancing")
    assert "pcgrad" in described
    assert "scalarizer" in described
