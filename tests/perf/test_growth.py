"""What a step costs as tasks grow in number: time per multiply-accumulate at ten tasks or more, over hard sharing's.

Run as `pytest tests/perf/test_growth.py -o addopts= -s` on a quiet machine; each ratio is printed with its A/A.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from datasets.contracts import Batch
from methods.contracts import Role, Stage
from methods.graph.cost import MacCounter
from methods.plain import parameter_groups, plain_graph, task_losses
from methods.registry import get_method
from tests.perf import test_adashare
from tests.perf.abba import PairedRatio
from tests.perf.test_adashare import search, setting, step_of
from tests.perf.test_soft_sharing import stage_of

SIZE, BATCH = 36, 32
Assert = Callable[..., PairedRatio]
Step = Callable[[], None]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


class _FoundError(Exception):
    """The stage that was looked for is known."""


def stage_named(name: str, trainer: Any, method: str) -> Stage:
    """The stage of that name, before it runs."""
    stages: list[Stage] = []

    def fit(stage: Stage) -> None:
        if stage.name == name:
            stages.append(stage)
            raise _FoundError

    trainer.fit = fit
    kind = get_method(method)
    with pytest.raises(_FoundError):
        kind(kind.Params()).run(trainer)
    return dataclasses.replace(stages[0], before_cycle=None)


def policy_stage(trainer: Any) -> Stage:
    """AdaShare's, with every unit free."""
    network, _, policy = search(trainer)
    network.end_warm_up()
    network.policies.n = len(network.units)
    return policy


def hard_sharing(trainer: Any) -> Stage:
    graph = plain_graph(trainer.data, trainer.data.task_names, trainer.backbone(), trainer.head)
    network = graph.network()
    losses = task_losses(trainer.data, network)
    return Stage("joint", network, 100_000, Role.FIT_ARCH, parameter_groups(graph), losses, "final")


def step_and_macs(stage: Stage, trainer: Any) -> tuple[Step, int]:
    """A step in the recipe's memory format, and what it computes, forward and backward."""
    stage.network.to(memory_format=torch.channels_last)
    batch: Batch = test_adashare.batch_of(BATCH, SIZE)
    image = batch.images["image"].contiguous(memory_format=torch.channels_last)
    step = step_of(stage, trainer, dataclasses.replace(batch, images={"image": image}))
    with MacCounter() as counter:
        step()
    return step, counter.macs


# Bounds are what was measured (docs/speed.md) and a margin. MTAN: 1x1 layers of few channels, two norms and a sigmoid a
# task and stage reach a smaller part of the machine's arithmetic than the 3x3 layers of the reference. cross_stitch:
# row by row its units add .06 at ten tasks, which is noise, and .2 at forty.
@pytest.mark.parametrize(
    ("name", "stage", "n_tasks", "bound"),
    [
        ("cross_stitch", lambda trainer: stage_of("cross_stitch", trainer), 40, 0.9),
        ("adashare", policy_stage, 10, 1.15),
        ("dag_search", lambda trainer: stage_named("search", trainer, "dag_search"), 10, 1.0),  # task by task 1.08
        ("mtan", lambda trainer: stage_of("mtan", trainer), 10, 1.7),
    ],
)
def test_step_per_operation(
    name: str,
    stage: Callable[[Any], Stage],
    n_tasks: int,
    bound: float,
    tmp_path: Path,
    assert_bounded: Assert,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(test_adashare, "K", n_tasks)
    trainer, other = (setting(tmp_path / part, "test_resnet", SIZE) for part in (name, "hard_sharing"))
    candidate, macs = step_and_macs(stage(trainer), trainer)
    reference, least = step_and_macs(hard_sharing(other), other)
    found = assert_bounded(candidate, reference, bound=bound * macs / least, pairs=16)
    print(f"{name}: {found.r * least / macs:.2f} per operation, {macs / least:.1f} times the operations")
