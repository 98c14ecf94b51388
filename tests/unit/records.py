"""Builders of synthetic records for tests of the store, the tables and the reports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmark.record import ErrorEntry, MetricEntry, Record

HIGHER = {"miou", "pixel_acc", "accuracy", "delta_1_25"}
UNITS = {"miou": "percent", "pixel_acc": "percent", "accuracy": "percent", "delta_1_25": "percent"}
UNITS |= {"abs_err": "metre", "rmse": "metre", "rel_err": "ratio", "mean_angle": "degree"}
SINGLE_TASK = {"semseg": {"miou": 40.0, "pixel_acc": 60.0}, "depth": {"abs_err": 0.5, "rel_err": 0.2}}
SHARED = {"semseg": {"miou": 44.0, "pixel_acc": 63.0}, "depth": {"abs_err": 0.45, "rel_err": 0.23}}


def entry(name: str, value: float | None) -> MetricEntry:
    """A stored metric with the unit and direction of the registry."""
    return MetricEntry(
        value=value,
        unit=UNITS.get(name, "ratio"),
        higher_is_better=name in HIGHER,
        n_units=100,
        n_nonfinite=0,
        detail={},
    )


def metrics(values: Mapping[str, Mapping[str, float | None]]) -> dict[str, dict[str, MetricEntry]]:
    """{task: {metric: value}} as stored metrics."""
    return {task: {name: entry(name, value) for name, value in scores.items()} for task, scores in values.items()}


def make_cell(
    method: str = "hard_sharing",
    seed: int = 0,
    params: Mapping[str, object] | None = None,
    tasks: tuple[str, ...] = ("semseg", "depth"),
    **sections: Mapping[str, object],
) -> dict[str, Any]:
    """A cell with all sections; `sections` adds or replaces fields of one, as in data={"protocol": "adashare"}."""
    cell: dict[str, Any] = {
        "method": {"name": method, "params": dict(params or {})},
        "data": {
            "dataset": "toy",
            "layout": "default",
            "version": "1",
            "protocol": "standard",
            "options": {},
            "tasks": list(tasks),
            "task_weights": dict.fromkeys(tasks, 1.0),
        },
        "backbone": {"name": "resnet18", "weights": "none", "in_chans": 3, "output_stride": 32},
        "head": {},
        "recipe": {"name": "suite"},
        "selection": {"rule": "last"},
        "budget": {"steps": 100, "cycles": 20},
        "seed": seed,
    }
    for name, fields in sections.items():
        cell[name] = {**cell[name], **fields}
    return cell


def make_record(
    method: str = "hard_sharing",
    seed: int = 0,
    values: Mapping[str, Mapping[str, float | None]] | None = None,
    *,
    reference: bool = False,
    audit: Mapping[str, object] | None = None,
    size: Mapping[str, object] | None = None,
    compute: Mapping[str, object] | None = None,
    params: Mapping[str, object] | None = None,
    **sections: Mapping[str, object],
) -> Record:
    """A done record; values default to SHARED, for the reference to SINGLE_TASK."""
    values = values if values is not None else (SINGLE_TASK if reference else SHARED)
    spending = {"forward_passes": 100, "images": 6400, "train_macs": 10**12}
    return Record(
        cell=make_cell(method, seed, params, tuple(values), **sections),
        status="done",
        started="2030-01-01T00:00:00Z",
        finished="2030-01-01T00:01:00Z",
        versions={"suite": "0.1.0", "weights_hash": "f" * 64},
        roles={"fit": "a", "arch": "b", "select": "c", "report": "d"},
        n_evaluated=dict.fromkeys(values, 100),
        metrics=metrics(values),
        size=size
        or {"total": 312_345, "x_backbone": 1.0, "active": {**dict.fromkeys(values, 200_000), "all": 312_345}},
        compute=compute or {"macs_joint": 1_814_073_344, "macs_sum": 3_628_146_688, "uncounted_ops": {}},
        cost={
            "weight_steps": 100,
            "search": {"optimizer_steps": 20, "seconds": 3.25, **spending},
            "final": {"optimizer_steps": 100, "seconds": 12.5, **spending},
        },
        audit={"reference": "single_task" if reference else None, "tier": "verified on twins", **(audit or {})},
        graph={"hash": "g" * 64, "file": "graph.json"},
    )


def make_failure(
    method: str,
    seed: int,
    status: str = "oom",
    message: str = "out of memory",
    params: Mapping[str, object] | None = None,
) -> Record:
    """A record of a cell that is not done."""
    error = ErrorEntry(kind="Error", message=message, stage="search", step=120, task=None)
    return Record(cell=make_cell(method, seed, params), status=status, error=error)
