"""What people read about the project agrees with the project."""

from __future__ import annotations

from pathlib import Path

import yaml

import benchmark
from methods.registry import method_names

ROOT = Path(__file__).parents[2]


def test_the_citation_names_this_version_and_licence() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == benchmark.__version__
    assert citation["license"] == "Apache-2.0"
    assert {"cff-version", "title", "authors", "message", "type"} <= set(citation)


def test_the_changelog_names_this_version_and_every_method() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## {benchmark.__version__}" in text
    assert not [name for name in method_names() if f"`{name}`" not in text]
