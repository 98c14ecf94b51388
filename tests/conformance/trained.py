"""Every method trained once on toy data."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from benchmark.train.trainer import CellTrainer
from methods.contracts import Method, Role
from methods.graph.task_graph import TaskGraph
from methods.registry import get_method, method_names
from tests.unit.harness import toy_trainer

STEPS = 6


CASES = [
    (name, domains)
    for name in method_names()
    for domains in ("single", "multi")
    if domains == "single" or not get_method(name).needs_all_labels
]


def build(name: str) -> Method:
    method = get_method(name)
    return method(method.Params())


def trained(name: str, domains: str, seed: int = 0) -> tuple[CellTrainer, TaskGraph, tuple[Role, ...]]:
    """A finished run, for all tests that read one, and the roles whose batches it asked for."""
    return _trained(name, domains, seed)


@functools.cache
def _trained(name: str, domains: str, seed: int) -> tuple[CellTrainer, TaskGraph, tuple[Role, ...]]:
    asked: list[Role] = []
    with tempfile.TemporaryDirectory() as folder:
        trainer = toy_trainer(Path(folder), domains=domains, steps=STEPS, seed=seed)
        for role, loader in trainer.context.loaders.items():
            original = loader.training
            loader.training = lambda *a, role=role, original=original: asked.append(role) or original(*a)
        graph = build(name).run(trainer)
    return trainer, graph, tuple(asked)
