"""Builders of synthetic records for tests of the store, the tables and the reports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmark.records.documents import ErrorEntry, MetricEntry
from benchmark.records.record import Record

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
        "backbone": {
            "name": "resnet18",
            "weights": "none",
            "in_chans": 3,
            "output_stride": 32,
            "zero_init_last": False,
            "drop_path": 0.0,
            "dropout": 0.0,
        },
        "head": {},
        "recipe": {
            "name": "suite",
            "optimizer": {"name": "sgd", "lr": 0.05},
            "schedule": {"name": "cosine"},
            "batch_size": 64,
            "clip_norm": 5.0,
            "precision": "fp32",
            "memory_format": "contiguous",
            "balancing": {"name": "equal", "params": {}},
            "augmentation": [],
        },
        "selection": {"rule": "last", "evaluations": 5, "arch_fraction": 0.2, "holdout_fraction": 0.1},
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
    shared: bool = False,
    audit: Mapping[str, object] | None = None,
    size: Mapping[str, object] | None = None,
    compute: Mapping[str, object] | None = None,
    params: Mapping[str, object] | None = None,
    search_steps: int = 0,
    weight_steps: int = 100,
    **sections: Mapping[str, object],
) -> Record:
    """A done record; values default to SHARED, for the single-task reference to SINGLE_TASK.

    shared: the row that others are tested against. search_steps and weight_steps: of 64 images each.
    """
    values = values if values is not None else (SINGLE_TASK if reference else SHARED)
    return Record(
        cell=make_cell(method, seed, params, tuple(values), **sections),
        status="done",
        started="2030-01-01T00:00:00Z",
        finished="2030-01-01T00:01:00Z",
        versions={
            "suite": "0.1.0",
            "package_hash": "p" * 64,
            "training_hash": "t" * 64,
            "method_hash": f"{method:x<64}",
            "data_hash": "d" * 32,
            "weights_hash": f"{seed:064x}",
            "torch": "2.6.0",
            "timm": "1.0.31",
        },
        environment={
            "device": "cpu",
            "cpu": "a processor",
            "cpu_capability": "AVX2",
            "determinism": {"algorithms": True},
        },
        roles={"fit": "a", "arch": "b", "select": "c", "report": "d"},
        n_evaluated=dict.fromkeys(values, 100),
        metrics=metrics(values),
        size=size
        or {"total": 312_345, "x_backbone": 1.0, "active": {**dict.fromkeys(values, 200_000), "all": 312_345}},
        compute=compute or {"macs_joint": 1_814_073_344, "macs_sum": 3_628_146_688, "uncounted_ops": {}},
        cost={
            "weight_steps": weight_steps,
            "search": spending(search_steps, 3.25),
            "final": spending(weight_steps, 12.5),
        },
        audit={
            "reference": "single_task" if reference else "shared" if shared else None,
            "random_architecture": False,
            "tuning_trials": 1,
            "draws": 1,
            "developed_here": False,
            "extra_data": "none",
            "loaders": "joint",
            "tier": "verified on twins",
            "fidelity": ["paper"],
            "normalisation": {"mean": [0.5], "std": [0.5], "bgr": False},
            "batch_norm": "per_sub_expression",
            "input_size": [32, 32],
            **(audit or {}),
        },
        graph={"hash": "g" * 64, "file": "graph.json"},
    )


def spending(steps: int, seconds: float) -> dict[str, object]:
    """An account of that many steps of 64 images."""
    return {
        "optimizer_steps": steps,
        "seconds": seconds if steps else 0.0,
        "forward_passes": steps,
        "images": 64 * steps,
        "train_macs": 10**9 * steps,
    }


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
