"""What the gate says to GitHub and to readers of JUnit: nothing that failed may look as if it had passed."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest
import yaml
from typer.testing import CliRunner

from benchmark.api import checking
from benchmark.check import app
from benchmark.compare.gate import Exit, Finding, Verdict
from benchmark.compare.gate_ci import annotation_lines, junit, step_summary

ROOT = Path(checking.__file__).parent.parent.parent
NASTY = "a row: 50 %0A, ::error::b\r\nc <d> | `e` & f"
FINDINGS = [
    Finding("one", "exact", "total", "", "", "equal", Verdict.SAME),
    Finding(NASTY, "golden", NASTY, "1 | 2", "2\n3", "bit by bit", Verdict.REGRESSION, ("more,", "and more")),
    Finding("one", "speed", "r", "0.9", "0.8", "beyond noise", Verdict.INCONCLUSIVE),
    Finding("", "cell", "two", "", "", "in the run", Verdict.MISSING),
    Finding("one", "golden", "loss", "", "", "same platform", Verdict.NOT_JUDGED),
]
COMMAND = re.compile(r"::(error|warning|notice) title=([^:,\r\n]*)::([^\r\n]*)")


def test_every_finding_that_is_not_equal_is_one_annotation_and_its_text_commands_nothing() -> None:
    found = [COMMAND.fullmatch(line) for line in annotation_lines(FINDINGS)]
    assert all(found)
    parts = [tuple(map(unquote, match.groups())) for match in found if match is not None]
    assert [level for level, _, _ in parts] == ["error", "warning", "error", "notice"]
    assert parts[0][1:] == (
        f"{NASTY}: regression",
        f"golden {NASTY}: 1 | 2 -> 2\n3 (rule: bit by bit) more, and more",
    )
    assert [title for _, title, _ in parts[1:]] == [
        "one: inconclusive",
        "the run as a whole: missing",
        "one: not judged",
    ]
    assert [line.split(" ")[0] for line in annotation_lines(FINDINGS, strict=True)] == [
        "::error",
        "::error",
        "::error",
        "::notice",
    ]


def test_the_summary_is_a_table_whose_rows_no_text_can_break() -> None:
    head, *lines = step_summary(FINDINGS, Exit.REGRESSION).splitlines()
    assert head.startswith("### ShareBench: regression: 1 regression, 1 inconclusive, 1 missing")
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 2 + 4
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {7}
    assert not any(line.startswith("|") for line in step_summary(FINDINGS[:1], Exit.SAME).splitlines())


@pytest.mark.parametrize(
    ("strict", "expected"),
    [(False, {"failure": 1, "error": 1, "skipped": 2}), (True, {"failure": 2, "error": 1, "skipped": 1})],
)
def test_junit_counts_what_failed_and_is_well_formed(strict: bool, expected: dict[str, int]) -> None:
    root = ElementTree.fromstring(junit(FINDINGS, strict))
    suites = root.findall("testsuite")
    names = ["one", NASTY.encode("unicode_escape").decode(), "the run as a whole"]
    assert [suite.get("name") for suite in suites] == names
    assert Counter(part.tag for case in root.iter("testcase") for part in case) == expected
    for suite in suites:
        cases = suite.findall("testcase")
        for tag, key in {"failure": "failures", "error": "errors", "skipped": "skipped"}.items():
            assert suite.get(key) == str(sum(case.find(tag) is not None for case in cases))
        assert suite.get("tests") == str(len(cases))
    (failure,) = (case.find("failure") for case in suites[1])
    assert failure is not None
    assert failure.text == "more,\nand more"


def test_the_command_writes_both_and_keeps_what_a_step_has_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "summary.md"
    page.write_text("before\n", encoding="utf-8")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(page))
    baseline = ROOT / "results" / "baselines" / "gate.json"
    (tmp_path / "run").mkdir()
    given = [str(tmp_path / "run"), "--against", str(baseline), "--junit", str(tmp_path / "gate.xml")]
    result = CliRunner().invoke(app, [*given, "--format", "github"])
    assert result.exit_code == 4
    n_missing = result.output.count("::error title=")
    assert n_missing > 0
    assert page.read_text(encoding="utf-8").startswith("before\n### ShareBench: missing")
    assert len(list(ElementTree.parse(tmp_path / "gate.xml").iter("error"))) == n_missing
    page.unlink()
    assert "::error" not in CliRunner().invoke(app, given).output
    assert not page.exists()


def test_the_workflow_runs_commands_that_exist_and_lets_no_input_become_code() -> None:
    document = yaml.safe_load((ROOT / ".github" / "workflows" / "gate.yml").read_text(encoding="utf-8"))
    (job,) = document["jobs"].values()
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert not any("${{" in command for command in commands)
    named = {name for command in commands for name in re.findall(r"\$\{?([A-Z_]+)", command)}
    assert named <= set(job["env"])
    triggers = document[True]  # `on` is a boolean of YAML 1.1
    for trigger in triggers.values():
        used = set(re.findall(r"inputs\.(\w+)", " ".join(map(str, job["env"].values()))))
        assert used == set(trigger["inputs"])
    (check,) = (command for command in commands if "sharebench check" in command)
    options = set(re.findall(r"--[a-z]+", check))
    assert options <= {option for parameter in _parameters() for option in parameter}


def _parameters() -> list[list[str]]:
    import typer.main

    return [list(parameter.opts) for parameter in typer.main.get_command(app).params]
