"""Estimates of the time, memory and disk of a suite, from records of similar cells or from a short probe.

An estimate from a record of another length scales with the steps of the final training: under the suite's recipe, a
method's stages are multiples of it. A probe is the cell itself with every stage cut short, and each stage scaled to its
full length. Evaluation does not scale. Single-task networks that several cells share are counted once.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from benchmark.plan.cells import PlannedCell
from benchmark.records.keys import canonical_json, unbalanced
from benchmark.records.record import Record

PROBE_STEPS = 10  # of every stage: enough that the first step, which is slower, does not decide


@dataclasses.dataclass(frozen=True)
class Estimate:
    """seconds: training and evaluation of this cell alone. shared: {single-task network: seconds} that it needs.

    memory_bytes: peak; evaluation_bytes: of the evaluation alone. disk_bytes: records, artifacts and networks that
    stay. None: not known.
    """

    seconds: float
    shared: Mapping[str, float]
    memory_bytes: int | None
    disk_bytes: int
    source: Literal["record", "probe"]
    evaluation_bytes: int | None = None


def kind_of(cell: PlannedCell) -> bytes:
    """The cell without seed and budget: cells that share it take equally long per step."""
    return canonical_json({key: value for key, value in cell.document.items() if key not in ("seed", "budget")})


def from_record(
    record: Record, root: Path, steps: int, step_limit: int | None = None, evaluation_factor: float = 1.0
) -> Estimate:
    """The estimate for `steps` final steps from a finished record of the same kind. root: folder of that
    record's run. step_limit: of a probe. evaluation_factor: samples to evaluate per sample that the record evaluated.
    """
    budget, cost = record.cell["budget"]["steps"], record.cost
    factor = steps / budget
    networks = {key: _network_seconds(root, key) for key in record.reused_from}
    trained = sum(part.get("seconds") or 0.0 for part in (cost.get("search", {}), cost.get("final", {})))
    own = max(0.0, trained - sum(networks.values()))
    own += (cost.get("io_seconds") or 0.0) + (cost.get("unrun_seconds") or 0.0)
    ran = budget if step_limit is None else min(budget, step_limit)
    return Estimate(
        seconds=own * factor + (cost.get("evaluation_seconds") or 0.0) * evaluation_factor,
        shared={key: seconds * steps / ran for key, seconds in networks.items()},
        memory_bytes=cost.get("peak_bytes"),
        disk_bytes=_disk(record, root),
        source="record" if step_limit is None else "probe",
        evaluation_bytes=cost.get("evaluation_peak_bytes"),
    )


def _network_seconds(root: Path, key: str) -> float:
    """Seconds that a kept single-task network took to train; 0 if it is gone."""
    try:
        summary = json.loads((root / "single_task" / key[:2] / key / "summary.json").read_text(encoding="utf-8"))
        return float(summary["spending"]["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0


def _disk(record: Record, root: Path) -> int:
    """Bytes of a cell's files and of the networks that it needs."""
    key = record.key
    folders = [root / "artifacts" / key[:2] / key, *(root / "single_task" / k[:2] / k for k in record.reused_from)]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return sum(path.stat().st_size for path in files) + len(canonical_json(dataclasses.asdict(record)))


def estimates_from(records: Iterable[Record], cells: Sequence[PlannedCell], root: Path) -> dict[bytes, Estimate]:
    """{kind: estimate} for the kinds of cells of which a finished record exists."""
    wanted = {kind_of(cell): cell for cell in cells}
    found: dict[bytes, Estimate] = {}
    for record in records:
        if record.status != "done":
            continue
        kind = canonical_json({key: value for key, value in record.cell.items() if key not in ("seed", "budget")})
        if kind in wanted and kind not in found:
            found[kind] = from_record(record, root, wanted[kind].settings.budget.steps)
    return found


@dataclasses.dataclass(frozen=True)
class Total:
    """The estimate for all cells still to run. seconds: on `jobs` workers. unknown: cells without an estimate."""

    seconds: float
    memory_bytes: int | None
    disk_bytes: int
    n_networks: int
    unknown: int


def total(pending: Sequence[PlannedCell], estimates: Mapping[bytes, Estimate], jobs: int) -> Total:
    """Sum over cells; a single-task network that several cells of one seed share is trained once."""
    seconds, disk, unknown = 0.0, 0, 0
    memories: list[int] = []
    networks: dict[tuple[Any, ...], float] = {}
    for cell in pending:
        estimate = estimates.get(kind_of(cell))
        if estimate is None:
            unknown += 1
            continue
        seconds += estimate.seconds
        disk += estimate.disk_bytes
        if estimate.memory_bytes is not None:
            memories.append(estimate.memory_bytes)
        document = unbalanced(cell.document)
        shared = {key: document[key] for key in ("data", "backbone", "recipe", "selection", "budget", "seed")}
        for number, (_, cost) in enumerate(sorted(estimate.shared.items())):
            networks[(canonical_json(shared), number)] = cost
    seconds += sum(networks.values())
    memory = max(memories) * jobs if memories else None
    return Total(seconds / max(1, min(jobs, len(pending))), memory, disk, len(networks), unknown)
