"""What the networks of soft sharing cost in training beside a hand-written loop of the same operations.

Run as `pytest tests/perf/test_soft_sharing.py -o addopts= -s` on a quiet machine; each ratio is printed with its A/A.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmark.train.stage import StageRun
from methods.contracts import Stage
from methods.registry import get_method
from methods.soft_sharing.units import LayerMix, Nddr, Stitch
from tests.perf.abba import PairedRatio
from tests.perf.test_adashare import K, batch_of, setting, step_of

Assert = Callable[..., PairedRatio]
BOUND = 1.05


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def stage_of(name: str, trainer: Any) -> Stage:
    """The joint stage of a method, not run."""
    stages: list[Stage] = []
    trainer.fit = stages.append
    method = get_method(name)
    params = {} if name == "mtan" else {"reinit": True}
    if name == "sluice":
        params["orth_weight"] = 0.0  # the loop below has no penalty
    method(method.Params(**params)).run(trainer)
    return stages[0]


class ByHand:
    """Towers as lists of modules: a loop over stages and tasks, nothing in between."""

    def __init__(self, stage: Stage) -> None:
        graph = stage.network.graph
        self.outputs = [graph.outputs[task].name for task in graph.tasks]
        self.calls = [(node.name, node.module, [v.name for v in node.inputs]) for node in graph.nodes.values()]

    def __call__(self, image: Tensor) -> list[Tensor]:
        values = {"image": image}
        for name, module, inputs in self.calls:
            values[name] = module(*[values[each] for each in inputs])
        return [values[name] for name in self.outputs]


def by_hand(stage: Stage, trainer: Any, batch: Any) -> Callable[[], None]:
    """Forward, backward, clipping and step as one would write them, with the optimizer that the recipe makes."""
    network = ByHand(stage)
    run = StageRun(stage, trainer.context)
    run.begin_phase(0, fresh=True)
    optimizer, parameters = run.optimizers._optimizers[0], run.optimizers.recipe_parameters
    weights = [task.weight for task in trainer.data.tasks]
    targets = [batch.targets[task] for task in trainer.data.task_names]

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        predictions = network(batch.images["image"])
        total = sum(
            w * F.cross_entropy(prediction, target)
            for w, prediction, target in zip(weights, predictions, targets, strict=True)
        )
        total.backward()
        nn.utils.clip_grad_norm_(parameters, trainer.context.recipe.clip_norm)
        optimizer.step()

    return step


@pytest.mark.parametrize("name", ["cross_stitch", "nddr_cnn", "mtan", "sluice"])
def test_training_step_against_a_loop_of_the_same_operations(name: str, tmp_path: Path, assert_bounded: Assert) -> None:
    trainer, batch = setting(tmp_path / "ours", "test_resnet"), batch_of(16)
    other = setting(tmp_path / "by hand", "test_resnet")
    stage, reference = stage_of(name, trainer), stage_of(name, other)
    kinds = {type(node.module) for node in stage.network.graph.nodes.values()}
    assert name == "mtan" or kinds & {Stitch, Nddr, LayerMix}
    assert len(stage.tasks) == K
    assert_bounded(step_of(stage, trainer, batch), by_hand(reference, other, batch), bound=BOUND)
