"""A record -> its numbers by column: metrics, Delta_m, size, compute and cost. Spec: measurement 1.2, 1.5, 2, 4."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from benchmark.records.delta import Delta, Variant, delta_m
from benchmark.records.documents import LARGEST
from benchmark.records.record import Record

if TYPE_CHECKING:
    from benchmark.records.measurements import NetworkSpeed

Part = Literal["accuracy", "size and compute", "cost", "convergence", "found", "speed"]
Form = Literal["value", "signed", "count", "ratio", "share", "steps", "seconds", "plain"]


# Order of the metrics of a task in a table: that of the registry (measurement 1.2); unknown ones follow by name.
_METRIC_ORDER = (
    *("accuracy", "accuracy_mean", "balanced_accuracy", "auroc", "miou", "pixel_acc", "weighted_ce_err"),
    *("mean_angle", "median_angle", "within_11_25", "within_22_5", "within_30", "cosine_similarity"),
    *("abs_err", "rel_err", "mse", "rmse", "delta_1_25", "delta_1_25_2", "delta_1_25_3"),
    *("max_iou", "iou_at_50", "f_dilated", "best_f1"),
)


@dataclasses.dataclass(frozen=True)
class Column:
    """A quantity. group: the task, or "" for the whole network; higher_is_better: None for neither, then without arrow.

    ranked: whether the best mean may be marked; sizes and costs are prices, not results.
    """

    group: str
    name: str
    unit: str
    higher_is_better: bool | None
    part: Part
    form: Form
    ranked: bool = False


SIZE_COLUMNS = (
    Column("", "total parameters", "", False, "size and compute", "count"),
    Column("", "x_backbone", "", False, "size and compute", "ratio"),
    Column("", "macs_joint", "", False, "size and compute", "count"),
    Column("", "macs_sum", "", False, "size and compute", "count"),
    Column("", "weight sharing", "", None, "size and compute", "share"),
    Column("", "activation sharing", "", None, "size and compute", "share"),
)
COST_COLUMNS = (
    Column("", "search cost", "optimizer steps", False, "cost", "steps"),
    Column("", "search cost", "s", False, "cost", "seconds"),
    Column("", "final cost", "optimizer steps", False, "cost", "steps"),
    Column("", "final cost", "s", False, "cost", "seconds"),
    Column("", "weight_steps", "", None, "cost", "steps"),
)
TUNING_COLUMN = Column("", "tuning cost", "optimizer steps", False, "cost", "steps")  # of tuned tables alone
# All tasks for one batch: `joint`, or `mixed` if each task has its own images. r: relative to the plain backbone.
SPEED_COLUMNS = (
    Column("", "throughput", "images/s", True, "speed", "steps"),
    Column("", "throughput, r", "", True, "speed", "ratio"),
    Column("", "throughput, r_stl", "", True, "speed", "ratio"),
)
SpeedOf = Callable[[Record], "NetworkSpeed | None"]


@dataclasses.dataclass(frozen=True)
class Measured:
    """A record's numbers. values: every column that applies, None for null; reason: why Delta_m is null."""

    seed: int
    values: Mapping[Column, float | None]
    reason: str | None


def delta_column(variant: Variant) -> Column:
    """The column of Delta_m; its name contains the variant."""
    return Column("", f"Delta_m ({variant})", "percent", True, "accuracy", "signed", ranked=True)


def loss_change_column(task: str) -> Column:
    """How much a task's training loss changed in the end: last fifth of the final training against the one before."""
    return Column("", f"loss change, {task}", "percent", None, "convergence", "signed")


def measure(
    record: Record,
    baselines: Mapping[int, Record],
    tasks: Sequence[str],
    variant: Variant,
    speed_of: SpeedOf | None = None,
) -> Measured:
    """The numbers of a done record. baselines: the single-task record of each seed; tasks: those of the table;
    speed_of: the measurement of a record's network.
    """
    values: dict[Column, float | None] = {}
    for task, scores in record.metrics.items():
        for name, entry in scores.items():
            better = entry["higher_is_better"]
            column = Column(task, name, entry["unit"], better, "accuracy", "value", ranked=True)
            values[column] = entry["value"]
    baseline = baselines.get(record.seed)
    if baseline is None:
        relative = Delta(None, "no single-task run of this seed")
    else:
        relative = delta_m(record.metrics, baseline.metrics, tasks, variant)
    values[delta_column(variant)] = relative.value
    values.update(zip(SIZE_COLUMNS, _sizes(record, tasks), strict=True))
    values.update(zip(COST_COLUMNS, _costs(record), strict=True))
    if (tuning := record.cost.get("tuning")) is not None:
        values[TUNING_COLUMN] = tuning.get("optimizer_steps")
    values.update(_loss_changes(record, tasks))
    values.update(_facts(record))
    speed = speed_of(record) if speed_of is not None else None
    if speed is not None and speed.entry.images_per_s is not None:
        values.update(
            zip(SPEED_COLUMNS, (speed.entry.images_per_s.median, speed.entry.r, speed.entry.r_stl), strict=True)
        )
    held = {column: None if value is None or abs(value) > LARGEST else float(value) for column, value in values.items()}
    return Measured(record.seed, held, relative.reason)


def _share(part: float | None, whole: float | None) -> float | None:
    """1 - part / whole; None if either is unknown."""
    return None if part is None or not whole else 1.0 - part / whole


def _sizes(record: Record, tasks: Sequence[str]) -> tuple[float | None, ...]:
    """Values of SIZE_COLUMNS. Sharing of weights = 1 - total / sum of active[t], of activations = 1 - joint / sum."""
    total, joint, macs_sum = record.size.get("total"), record.compute.get("macs_joint"), record.compute.get("macs_sum")
    active = [record.size.get("active", {}).get(task) for task in tasks]
    known = [value for value in active if value is not None]
    weights = _share(total, math.fsum(known)) if len(known) == len(active) else None
    return total, record.size.get("x_backbone"), joint, macs_sum, weights, _share(joint, macs_sum)


def _costs(record: Record) -> tuple[float | None, ...]:
    """Values of COST_COLUMNS."""
    search, final = record.cost.get("search", {}), record.cost.get("final", {})
    spent = [value for part in (search, final) for value in (part.get("optimizer_steps"), part.get("seconds"))]
    return (*spent, record.cost.get("weight_steps"))


def _loss_changes(record: Record, tasks: Sequence[str]) -> dict[Column, float | None]:
    """Percent of the earlier mean; nothing for tasks whose losses the record does not hold."""
    changes: dict[Column, float | None] = {}
    for task in tasks:
        losses = record.audit.get("last_fifths", {}).get(task, ())
        if len(losses) == 2:
            before, after = losses
            change = None if not before or after is None else 100 * (after - before) / abs(before)
            changes[loss_change_column(task)] = change
    return changes


def _facts(record: Record) -> dict[Column, float | None]:
    """What the method reports about its result: neither ranked nor given an arrow."""
    facts = record.audit.get("facts", {})
    return {Column("", name, fact["unit"], None, "found", "plain"): fact["value"] for name, fact in facts.items()}


def ordered_columns(found: Collection[Column], tasks: Sequence[str], variant: Variant) -> tuple[Column, ...]:
    """Metrics in the order of tasks and registry; then Delta_m, sizes and costs, which every table has; then how losses
    ended, in the order of tasks, the facts that methods report, in their order, and speed.
    """
    facts = dict.fromkeys(column for column in found if column.part == "found")
    speed = [column for column in SPEED_COLUMNS if column in set(found)]
    tuning = [TUNING_COLUMN] if TUNING_COLUMN in set(found) else []
    changes = [column for task in tasks if (column := loss_change_column(task)) in set(found)]
    fixed = (delta_column(variant), *SIZE_COLUMNS, *COST_COLUMNS, *tuning, *changes, *facts, *speed)
    task_rank = {task: position for position, task in enumerate(tasks)}
    metric_rank = {name: position for position, name in enumerate(_METRIC_ORDER)}

    def order(column: Column) -> tuple[int, str, int, str, str]:
        task, metric = task_rank.get(column.group, len(tasks)), metric_rank.get(column.name, len(metric_rank))
        return task, column.group, metric, column.name, column.unit

    return (*sorted(set(found) - set(fixed), key=order), *fixed)
