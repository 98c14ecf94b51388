"""What `check` does: is a run as good as a baseline, or its new baseline? Reads records, trains nothing.

`run` judges whether a record is stale, as it knows code and data; the check reads what the latest run has noted.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.records.store import Store, write_atomic
from datasets.errors import UsageError

if TYPE_CHECKING:
    from benchmark.records.measurements import MeasurementFile
    from benchmark.records.record import Record


def read_run(directory: Path) -> tuple[list[Record], list[MeasurementFile], list[str]]:
    """(records, speed measurements, a line for each speed file that cannot be read). Raises UsageError."""
    from benchmark.records.measurements import FOLDER, read_measurement

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
    store = Store(directory)
    found = {record.key: store.stale_reason(record) for record in records if record.cell}
    return {
        key: f"stale: {reason}; run it again with --refresh-stale"
        for key, reason in found.items()
        if reason is not None
    }


def check(
    directory: Path, against: Path, *, strict: bool = False, github: bool = False, junit: Path | None = None
) -> tuple[int, str]:
    """(exit code, what to print). github: print annotations too, and append a table to the file that GitHub names in
    `GITHUB_STEP_SUMMARY`. junit: where to write the findings as JUnit XML.

    Raises UsageError for a folder or a baseline that cannot be read.
    """
    from benchmark.compare.baseline import read_baseline
    from benchmark.compare.gate import compare, exit_code
    from benchmark.compare.gate_text import lines, summary

    baseline = read_baseline(against)
    records, measurements, unread = read_run(directory)
    findings = compare(records, baseline, measurements, unread, stale_cells(directory, records))
    code = exit_code(findings, strict)
    said = [*lines(findings), summary(findings, code, strict)]
    if github or junit is not None:
        from benchmark.compare import gate_ci

        if junit is not None:
            write_atomic(junit, gate_ci.junit(findings, strict))
        if github:
            said += gate_ci.annotation_lines(findings, strict)
            if page := os.environ.get("GITHUB_STEP_SUMMARY"):
                with Path(page).open("a", encoding="utf-8") as file:
                    file.write(gate_ci.step_summary(findings, code, strict))
    return int(code), "\n".join(said)


def accept(directory: Path, against: Path, reason: str) -> tuple[int, str]:
    """Write a run as the new baseline; (exit code, what to print). Where a cell is not done nothing is written.

    Raises UsageError for an empty reason, and for an existing file that is not a baseline.
    """
    from benchmark.compare.baseline import accepted, baseline_bytes, read_baseline, unfit
    from benchmark.compare.gate import Exit, compare, superseded
    from benchmark.compare.gate_text import lines

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
