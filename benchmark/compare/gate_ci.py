"""The findings of the regression gate for the machines that run it: GitHub's annotations and summary, JUnit's XML.

Sources: "Workflow commands for GitHub Actions" (annotations, their escapes, `GITHUB_STEP_SUMMARY`); the JUnit schema
that Jenkins and GitLab read: a suite a cell, a case a value.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from xml.etree import ElementTree

from benchmark.compare.gate import Exit, Finding, Verdict
from benchmark.compare.gate_text import by_cell, change_of, named, summary, told
from benchmark.escape import markdown_row, markdown_text, plain

_LEVEL: Mapping[Verdict, str] = {
    Verdict.REGRESSION: "error",
    Verdict.MISSING: "error",
    Verdict.INCONCLUSIVE: "warning",
    Verdict.NOT_JUDGED: "notice",
}
_CASE: Mapping[Verdict, str] = {
    Verdict.REGRESSION: "failure",
    Verdict.MISSING: "error",
    Verdict.INCONCLUSIVE: "skipped",
    Verdict.NOT_JUDGED: "skipped",
}
_HEAD = ("cell", "value", "verdict", "baseline", "now", "rule")


def annotation_lines(findings: Sequence[Finding], strict: bool = False) -> Iterator[str]:
    """A workflow command for each finding that is not equal."""
    for finding in findings:
        level = _LEVEL.get(_counted(finding, strict))
        if level is not None:
            title = f"{named(finding.cell)}: {finding.verdict.value}"
            yield f"::{level} title={_escaped(title, ':,')}::{_escaped(' '.join([told(finding), *finding.details]))}"


def step_summary(findings: Sequence[Finding], code: Exit, strict: bool = False) -> str:
    """Markdown for the page of a run: the verdict, and a table of what is not equal."""
    lines = [f"### ShareBench: {markdown_text(summary(findings, code, strict))}", ""]
    found = [finding for finding in findings if finding.verdict is not Verdict.SAME]
    if found:
        lines += [markdown_row(_HEAD), markdown_row(["---"] * len(_HEAD))]
    for finding in found:
        name, verdict = f"{finding.kind} {finding.name}", finding.verdict.value
        cells = (named(finding.cell), name, verdict, finding.old, finding.new, finding.rule)
        lines.append(markdown_row([markdown_text(cell) for cell in cells]))
    return "\n".join([*lines, ""])


def junit(findings: Sequence[Finding], strict: bool = False) -> bytes:
    """JUnit XML: a regression is a failure, what is missing an error, what noise or another platform forbids to judge
    is skipped. strict: an inconclusive finding is a failure.
    """
    root = ElementTree.Element("testsuites", name="sharebench")
    for found in by_cell(findings).values():
        suite = ElementTree.SubElement(root, "testsuite", name=plain(named(found[0].cell)))
        counts = dict.fromkeys(("failure", "error", "skipped"), 0)
        for finding in found:
            name = plain(f"{finding.kind} {finding.name}")
            case = ElementTree.SubElement(suite, "testcase", classname=plain(named(finding.cell)), name=name)
            kind = _CASE.get(_counted(finding, strict))
            if kind is None:
                continue
            counts[kind] += 1
            message = plain(f"{finding.verdict.value}{change_of(finding)} (rule: {finding.rule})")
            ElementTree.SubElement(case, kind, message=message).text = "\n".join(map(plain, finding.details))
        numbers = {"tests": len(found), "failures": counts["failure"], "errors": counts["error"]}
        suite.attrib |= {key: str(n) for key, n in {**numbers, "skipped": counts["skipped"]}.items()}
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n"


def _counted(finding: Finding, strict: bool) -> Verdict:
    """The verdict; under strict noise counts as a regression."""
    return Verdict.REGRESSION if strict and finding.verdict is Verdict.INCONCLUSIVE else finding.verdict


def _escaped(text: str, more: str = "") -> str:
    """Text of a workflow command; more: characters that its properties may not hold."""
    for character in f"%\r\n{more}":
        text = text.replace(character, f"%{ord(character):02X}")
    return text
