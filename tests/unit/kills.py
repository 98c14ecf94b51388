"""Trainings that are killed, and what two trainings must have in common."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmark.train.trainer import CellTrainer
from methods.graph.task_graph import TaskGraph


class Killed(BaseException):
    """Stands for a kill: nothing in the harness may catch it."""


def kill_after(trainer: CellTrainer, batches: int) -> None:
    """Let the trainer see so many training batches and no more."""
    seen = 0
    for loader in trainer.context.loaders.values():
        original = loader.training

        def counted(*args: object, original: Callable = original) -> object:
            nonlocal seen
            for batch in original(*args):
                if seen == batches:
                    raise Killed
                seen += 1
                yield batch

        loader.training = counted


def outcome(trainer: CellTrainer, graph: TaskGraph) -> dict[str, object]:
    ledger = trainer.ledger.to_json()
    for account in ("search", "final"):
        ledger[account].pop("seconds")
    return {
        "weights": graph.weights_hash(),
        "curves": {name: np.array(values).tobytes() for name, values in trainer.curves.items()},
        "ledger": {name: ledger[name] for name in ("search", "final")},
        "artifacts": {name: array.tobytes() for name, array in trainer.artifacts.items()},
        "weight_steps": trainer.weight_steps(graph),
    }
