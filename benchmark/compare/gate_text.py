"""The findings of the regression gate, as people read them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from benchmark.compare.gate import Exit, Finding, Verdict


def lines(findings: Sequence[Finding]) -> list[str]:
    """The findings cell by cell: equal values in one line, differences in full."""
    text: list[str] = []
    for cell, found in by_cell(findings).items():
        text.append(named(cell))
        same = [finding for finding in found if finding.verdict is Verdict.SAME]
        if equal := [f"{finding.kind} {finding.name}" for finding in same if not finding.new]:
            text.append(f"  same: {'; '.join(equal)}")
        text += [f"  same: {near.kind} {near.name}: {near.old} -> {near.new}" for near in same if near.new]
        for finding in found:
            if finding.verdict is not Verdict.SAME:
                text.append(f"  {finding.verdict.value}: {told(finding)}")
                text += [f"      {detail}" for detail in finding.details]
    return text


def by_cell(findings: Sequence[Finding]) -> dict[str, list[Finding]]:
    """{title of the cell: its findings}, in the order in which cells appear."""
    cells: dict[str, list[Finding]] = {}
    for finding in findings:
        cells.setdefault(finding.cell, []).append(finding)
    return cells


def named(cell: str) -> str:
    """The title of a finding's cell, for people."""
    return cell or "the run as a whole"


def told(finding: Finding) -> str:
    """What was compared, both values and the rule."""
    return f"{finding.kind} {finding.name}{change_of(finding)} (rule: {finding.rule})"


def change_of(finding: Finding) -> str:
    """What follows the name of a value: both values, where there are any."""
    return f": {finding.old} -> {finding.new}" if finding.old or finding.new else ""


def summary(findings: Sequence[Finding], code: Exit, strict: bool) -> str:
    """One line: the verdict of the whole, how often each verdict was given, and the exit code."""
    counts = Counter(finding.verdict for finding in findings)
    parts = [f"{counts[verdict]} {verdict.value}" for verdict in Verdict if verdict is not Verdict.SAME]
    return f"{code.name.lower()}{' (strict)' if strict else ''}: {', '.join(parts)}; exit code {int(code)}"
