"""The report of `data verify`, as people read it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets.on_disk.verify import FieldSummary, Report

MAX_FIELDS = 10  # tasks that are described one by one
MAX_SHOWN = 50  # bad files that are printed; --json writes all


def verify_lines(report: Report) -> Iterator[str]:
    """Counts, labels, warnings and bad files, a line each; the last says whether all is well."""
    spec = report.spec
    yield f"{spec.name}, layout {spec.layout}, protocol {spec.protocol} (tier of the layout: {spec.tier})"
    for split, inputs in report.counts.items():
        yield f"  {split}: {sum(inputs.values())} samples{_by_input(inputs)}"
    yield f"  decoded: {report.decoded} samples ({report.level})"
    for task in spec.tasks[:MAX_FIELDS]:
        yield f"  {task.name}: {_summary(report.fields[task.name], task.kind)}"
    if len(spec.tasks) > MAX_FIELDS:
        yield f"  and {len(spec.tasks) - MAX_FIELDS} more tasks"
    warnings = [*spec.caveats, *report.warnings]
    for warning in warnings[:MAX_SHOWN]:
        yield f"warning: {warning}"
    if len(warnings) > MAX_SHOWN:
        yield f"warning: {len(warnings) - MAX_SHOWN} more; --json FILE writes all"
    for fault in report.bad[:MAX_SHOWN]:
        yield f"bad: {fault}"
    if len(report.bad) > MAX_SHOWN:
        yield f"bad: {len(report.bad) - MAX_SHOWN} more; --json FILE writes all"
    yield "ok" if report.ok else f"{len(report.bad)} bad"


def _by_input(inputs: Mapping[str, int]) -> str:
    if len(inputs) == 1:
        return ""
    if len(inputs) <= MAX_FIELDS:
        return f" ({', '.join(f'{name} {n}' for name, n in inputs.items())})"
    return f" (of {len(inputs)} tasks, {min(inputs.values())} to {max(inputs.values())} each)"


def _summary(summary: FieldSummary, kind: str) -> str:
    if not summary.n_valid:
        return "no label that counts"
    text = f"{kind}, values {summary.low:g} to {summary.high:g}"
    ignored = 100 * (1 - summary.n_valid / summary.n_labels)
    text += f", {ignored:.1f} % ignored" + (f", {len(summary.classes)} classes" if summary.classes else "")
    return text + (f", no label in {summary.n_void} of {summary.n_samples} samples" if summary.n_void else "")
