"""The table of all methods: what it says is what methods declare, and README holds the same."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from typer.testing import CliRunner

import benchmark
from benchmark.api.method_table import budgets_text, method_table, paper_text
from benchmark.list import app
from datasets.errors import UnknownNameError
from methods import registry
from methods.contracts import Fidelity, Method, Reference, Statement, Trainer
from methods.graph.task_graph import TaskGraph
from methods.hard_sharing import HardSharing
from methods.parameters import MethodParams
from methods.registry import method_names
from methods.traits import Traits

ROOT = Path(benchmark.__file__).parent.parent
BLOCK = re.compile(r"<!-- methods -->\n(.*?)<!-- end -->", re.DOTALL)
COMMAND = "python -m benchmark.list methods --table --format markdown"


class Undeclared(Method[MethodParams]):
    """A plug-in that says nothing of itself."""

    Params = MethodParams
    needs_all_labels = True
    is_random_architecture = True
    fidelity: ClassVar[Fidelity] = Fidelity("none", "none", (Statement("default", "Ours."),))

    def run(self, trainer: Trainer) -> TaskGraph:
        raise NotImplementedError


@pytest.fixture(autouse=True)
def _no_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Methods that other tests of this process have registered."""
    monkeypatch.setattr(registry, "_METHODS", {})


def faults(readme: str) -> Iterator[str]:
    """Where a README and the table disagree."""
    blocks = BLOCK.findall(readme)
    if len(blocks) != 1:
        yield f"{len(blocks)} blocks; expected <!-- methods --> once"
    elif blocks[0].strip() != method_table("markdown").strip():
        yield f"not the output of {COMMAND}"


def test_the_readme_holds_the_table() -> None:
    assert list(faults((ROOT / "README.md").read_text(encoding="utf-8"))) == []


def test_a_readme_that_says_anything_else_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    readme = f"Text.\n\n<!-- methods -->\n{method_table('markdown')}\n<!-- end -->\n\nMore.\n"
    assert list(faults(readme)) == []
    assert list(faults(readme.replace("| all |", "| some |", 1))) == [f"not the output of {COMMAND}"]
    assert list(faults("Text.")) == ["0 blocks; expected <!-- methods --> once"]
    assert list(faults(readme + readme)) == ["2 blocks; expected <!-- methods --> once"]
    monkeypatch.setattr(HardSharing, "traits", Traits("none", "none", "T"))
    assert list(faults(readme)) == [f"not the output of {COMMAND}"]


@pytest.mark.parametrize("form", ["terminal", "markdown"])
def test_every_method_has_a_row_and_nothing_else_is_kept(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def names(text: str) -> list[str]:
        lines = text.splitlines()[2:]
        cells = (line.strip("|").strip().partition(" ")[0].replace("\\", "") for line in lines if line[:1] not in " *")
        return [cell for cell in cells if cell in method_names()]

    assert names(method_table(form)) == method_names()
    monkeypatch.setitem(registry._METHODS, "undeclared", Undeclared)
    assert "undeclared" in names(method_table(form))
    row = next(line for line in method_table(form).splitlines() if "undeclared" in line)
    assert row.count("–") == 8  # noqa: RUF001
    assert "single" in row
    assert "drawn" in row


def test_a_row_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        HardSharing,
        "traits",
        Traits("all", "some", "1 to T", 1.2, 1, size_parameter="steps_factor", backbones="maps", labels="one form"),
    )
    monkeypatch.setattr(HardSharing, "search_space", "trees")
    row = next(line for line in method_table("markdown").splitlines() if line.startswith("| hard\\_sharing |"))
    assert row == (
        "| hard\\_sharing | all | some | trees | steps\\_factor | 1 to T | 1.2 + T | maps | one form | both | "
        "[Caruana 1997](https://doi.org/10.1023/A:1007379606734) |"
    )


def test_budgets_and_papers_as_texts_write_them() -> None:
    assert [budgets_text(*pair) for pair in ((0, 0), (1, 0), (1.2, 0), (0, 1), (0, 2), (0.5, 1))] == [
        *("0", "1", "1.2", "T", "2 T", "0.5 + T"),
    ]

    def cited(*authors: str) -> str:
        return paper_text(Reference("k", "article", authors, "T", "J", 2020))

    assert cited("B. De Brabandere") == "De Brabandere 2020"
    assert cited("J.-P. Roe", "A. B. Doe") == "Roe and Doe 2020"
    assert cited('D. Br{\\"u}ggemann', "B. C", "D. E") == "Bruggemann et al. 2020"


def test_the_command_prints_it_and_says_what_it_is_of() -> None:
    runner = CliRunner()
    assert runner.invoke(app, ["methods", "--table"]).stdout.strip() == method_table().strip()
    assert runner.invoke(app, COMMAND.split()[3:]).stdout.strip() == method_table("markdown").strip()
    assert all(len(line) < 150 for line in method_table().splitlines())
    for wrong in (["hard_sharing", "--table"], ["--table"], ["methods", "--format", "markdown"]):
        result = runner.invoke(app, wrong)
        assert result.exit_code == 2, wrong
        assert "list methods --table --format markdown" in result.output
    with pytest.raises(UnknownNameError, match="Nearest: 'markdown'"):
        method_table("markdwn")
    listed = runner.invoke(app, ["methods"]).stdout
    assert all(f"  {name} " in listed for name in method_names())
