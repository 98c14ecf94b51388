"""`python -m benchmark.check DIR --against FILE`: has anything become worse? Reads records, trains nothing.

Whether a record is stale is judged by `run`, which knows code and data; the check reads what the latest run has noted.

Exit codes: 0 same, 1 regression, 2 usage, 3 inconclusive (noise), 4 missing, failed, invalid, stale or unpaired.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from benchmark.cli import start
from datasets.errors import UsageError

if TYPE_CHECKING:
    from benchmark.compare.gate import Finding
    from benchmark.records.measurements import MeasurementFile
    from benchmark.records.record import Record

EXIT_USAGE = 2

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def read_run(directory: Path) -> tuple[list[Record], list[MeasurementFile], list[str]]:
    """(records, speed measurements, a line for each speed file that cannot be read). Raises UsageError."""
    from benchmark.records.measurements import FOLDER, read_measurement
    from benchmark.records.store import Store

    if not directory.is_dir():
        state = "is not a folder" if directory.exists() else "does not exist"
        raise UsageError(f"{directory} {state}; expected the --out of a run.")
    measurements, unread = [], []
    for path in sorted((directory / FOLDER).glob("*/*.json")):
        try:
            measurements.append(read_measurement(path))
        except UsageError as error:
            unread.append(f"{path.relative_to(directory).as_posix()}: {error}")
    return Store(directory).load_all(), measurements, unread


def stale_cells(directory: Path, records: Sequence[Record]) -> dict[str, str]:
    """{key: why} of the records that the latest run on the folder has called stale and kept."""
    from benchmark.records.store import Store

    store = Store(directory)
    found = {record.key: store.stale_reason(record) for record in records if record.cell}
    return {
        key: f"stale: {reason}; run it again with --refresh-stale"
        for key, reason in found.items()
        if reason is not None
    }


def check(directory: Path, against: Path, *, strict: bool = False) -> tuple[int, str]:
    """(exit code, what to print). Raises UsageError for a folder or a baseline that cannot be read."""
    from benchmark.compare.baseline import read_baseline
    from benchmark.compare.gate import compare, exit_code

    baseline = read_baseline(against)
    records, measurements, unread = read_run(directory)
    findings = compare(records, baseline, measurements, unread, stale_cells(directory, records))
    code = exit_code(findings, strict)
    return int(code), "\n".join([*lines(findings), _summary(findings, int(code), strict)])


def accept(directory: Path, against: Path, reason: str) -> tuple[int, str]:
    """Write a run as the new baseline; (exit code, what to print). Where a cell is not done nothing is written.

    Raises UsageError for an empty reason, and for a file that is there and is no baseline.
    """
    from benchmark.compare.baseline import accepted, baseline_bytes, read_baseline, unfit
    from benchmark.compare.gate import Exit, compare, superseded
    from benchmark.records.store import write_atomic

    if not reason.strip():
        raise UsageError("--accept needs a reason: what changed, and why that is right.")
    before = read_baseline(against) if against.exists() else None
    records, measurements, unread = read_run(directory)
    bad = [
        f"{'invalid record' if not record.cell else record.key}: {record.error['message'] if record.error else ''}"
        for record in records
        if record.status != "done"
    ]
    bad += [f"{key}: {why}" for key, why in stale_cells(directory, records).items()]
    if bad or unread or not records:
        why = [*bad, *unread] or [f"{directory} holds no records"]
        return int(Exit.MISSING), "\n".join([*why, f"nothing accepted; {against} is as it was"])
    findings = compare(records, before, measurements) if before is not None else []
    document = accepted(records, measurements, reason.strip(), before, superseded(findings))
    write_atomic(against, baseline_bytes(document))
    left_out = sum(unfit(measurement) is not None or measurement.is_noisy for measurement in measurements)
    said = [*lines(findings)]
    said += [f"{left_out} speed measurements are noisy or too short and were left out"] if left_out else []
    platforms = {key for cell in document.cells.values() for key in cell.golden}
    said.append(
        f"accepted: {len(document.cells)} cells, golden values of {len(platforms)} platforms, "
        f"{len(document.speed)} speed measurements -> {against} ({document.reason})"
    )
    return int(Exit.SAME), "\n".join(said)


def lines(findings: Sequence[Finding]) -> list[str]:
    """Cell by cell: what is equal in one line, what differs in full."""
    from benchmark.compare.gate import Verdict

    cells: dict[str, list[Finding]] = {}
    for finding in findings:
        cells.setdefault(finding.cell, []).append(finding)
    text: list[str] = []
    for cell, found in cells.items():
        text.append(cell or "the run as a whole")
        same = [finding for finding in found if finding.verdict is Verdict.SAME]
        if equal := [f"{finding.kind} {finding.name}" for finding in same if not finding.new]:
            text.append(f"  same: {'; '.join(equal)}")
        text += [f"  same: {near.kind} {near.name}: {near.old} -> {near.new}" for near in same if near.new]
        for finding in found:
            if finding.verdict is not Verdict.SAME:
                change = f": {finding.old} -> {finding.new}" if finding.old or finding.new else ""
                text.append(f"  {finding.verdict.value}: {finding.kind} {finding.name}{change} (rule: {finding.rule})")
                text += [f"      {detail}" for detail in finding.details]
    return text


def _summary(findings: Sequence[Finding], code: int, strict: bool) -> str:
    from benchmark.compare.gate import Exit, Verdict

    counts = Counter(finding.verdict for finding in findings)
    parts = [f"{counts[verdict]} {verdict.value}" for verdict in Verdict if verdict is not Verdict.SAME]
    return f"{Exit(code).name.lower()}{' (strict)' if strict else ''}: {', '.join(parts)}; exit code {code}"


@app.command()
def command(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The folder that a run wrote to (its --out).")],
    against: Annotated[Path, typer.Option(metavar="FILE", help="Baseline, for example results/baselines/gate.json.")],
    accept_reason: Annotated[
        str | None, typer.Option("--accept", metavar="REASON", help="Write DIR as the new baseline, with its reason.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Noise is a failure too: exit 1 in place of 3.")] = False,
) -> None:
    """Compare the run in DIR with a baseline: counts and graphs exactly, golden values bit by bit on the same platform,
    accuracy and relative speed beyond their noise.

    Exit codes: 0 same, 1 regression, 2 usage, 3 inconclusive (noise), 4 missing, failed, invalid, stale or unpaired.

    Example: python -m benchmark.check results/runs/gate --against results/baselines/gate.json
    """
    try:
        if accept_reason is not None:
            code, text = accept(directory, against, accept_reason)
        else:
            code, text = check(directory, against, strict=strict)
    except UsageError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(EXIT_USAGE) from error
    typer.echo(text)
    raise typer.Exit(code)


def main() -> None:
    """Entry point of `python -m benchmark.check`."""
    start(app)


if __name__ == "__main__":
    main()
