"""A made folder in the form of a leaderboard: 18 rows, five tasks, five seeds; of equal tuning too, if asked for."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmark.records.record import Record
from benchmark.records.store import Store
from tests.unit.made_records import make_record

TASKS = ("article", "colour", "gender", "season", "usage")
SEEDS = range(5)
SINGLE_TASK, SHARED = "single_task", "hard_sharing"
# What a suite sets, as rows of one method are told apart by it.
ROWS: tuple[tuple[str, dict[str, Any]], ...] = (
    (SINGLE_TASK, {}),
    (SHARED, {"steps_factor": 1.0}),
    (SHARED, {"steps_factor": 2.0}),
    ("dag_search", {"gate_lr": 0.05, "reduction": {"score": "trained"}}),
    ("dag_search", {"gate_lr": 0.05, "reduction": {"score": "random"}}),
    ("adashare", {"random_policy": False}),
    ("adashare", {"random_policy": True}),
    ("branched", {"budget": 2.0, "granularity": "block", "random_tree": False}),
    ("branched", {"budget": 2.0, "granularity": "block", "random_tree": True}),
    ("random_tree", {"budget": 2.0}),
    ("bmtas", {}),
    ("learning_to_branch", {}),
    ("dmo", {}),
    ("cross_stitch", {}),
    ("sluice", {}),
    ("nddr_cnn", {}),
    ("mtan", {}),
    ("task_switching", {}),
)
DEFAULTS = ({}, {"steps_factor": 1.0}, {"random_policy": False})


def row(method: str, params: Mapping[str, Any], number: int, tuned: bool = False, **changes: Any) -> Iterator[Record]:
    """A row at every seed. number: what its scores are drawn from; tuned: a row of a table of equal tuning."""
    given = {"gate_lr": params["gate_lr"], "reduction": params["reduction"]} if "gate_lr" in params else params
    audit: dict[str, Any] = {
        "non_default_params": {} if params in DEFAULTS else given,
        "tuning_trials": 5 if tuned else 1,
        "facts": {f"{method} kept": {"value": 3.0, "unit": "edges"}} if number > 2 else {},
    }
    cell: dict[str, Any] = {}
    if tuned:
        params = {**params, "own_rate": 0.3}
        audit["tuning"] = {"tried": 5, "chosen": {"lr_factor": 1.0, "own_rate": 0.3}, "edges": [], "scores": [0.0, 0.5]}
        cell["tuned"] = {"seed": 1000, "single_task": dict.fromkeys(TASKS, 3.0)}
    elif method != SINGLE_TASK:
        params = {**params, "own_rate": 0.1}
    for seed in SEEDS:
        drawn = random.Random(f"{number} {seed} {tuned}")
        level = 75.0 + (0.5 if tuned else 0.0) + 0.3 * (number % 7)
        values = {task: {"accuracy": level + drawn.gauss(0, 0.4)} for task in TASKS}
        record = make_record(
            method,
            seed,
            values,
            reference=method == SINGLE_TASK,
            shared=method == SHARED,
            params=params,
            audit=audit,
            search_steps=3000 if number > 9 else 0,
            weight_steps=6000 if params.get("steps_factor") == 2.0 else 3000,
            size={"total": 1_000_000 + number, "x_backbone": 1.0 + number / 10, "active": {}},
            compute={"macs_joint": 10_000_000 + 500_000 * number, "macs_sum": 30_000_000},
            budget={"steps": 3000},
            **changes,
        )
        yield dataclasses.replace(record, cell={**record.cell, **cell})


def write_leaderboard(folder: Path, tuned: bool = False) -> Path:
    """Write the records of one table, or of both kinds; returns the folder."""
    store = Store(folder)
    for number, (method, params) in enumerate(ROWS):
        for kind in (False, True) if tuned else (False,):
            for record in row(method, params, number, kind):
                store.write(record)
    return folder
