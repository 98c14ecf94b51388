"""Bounds on what the harness adds: ratios within one run, against code written by hand with the same operators.

Not part of the test command. `pytest tests/perf -o addopts= -s` prints each ratio with its A/A; run it on a quiet
machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from benchmark.train.cell import RunSettings, run_cell
from benchmark.train.stage import StageRun
from datasets.contracts import Batch, DatasetSpec, TaskSpec
from methods.backbones.backbone import BackboneConfig, create_backbone
from methods.contracts import Role, Stage
from methods.plain import parameter_groups, plain_graph, task_losses
from tests.perf.abba import ratio
from tests.unit.cells import cells
from tests.unit.harness import toy_spec, toy_trainer

SIZE = 36
BATCH = 64


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def tasks_of(n: int) -> DatasetSpec:
    """A single-domain set with n tasks of ten classes."""
    import dataclasses

    spec = toy_spec(size=SIZE)
    return dataclasses.replace(spec, tasks=tuple(TaskSpec(f"t{i}", "class", 10, ("accuracy",)) for i in range(n)))


def batch_of(spec: DatasetSpec) -> Batch:
    random = torch.Generator().manual_seed(0)
    targets = {task: torch.randint(0, 10, (BATCH,), generator=random) for task in spec.task_names}
    images = torch.randn(BATCH, 3, SIZE, SIZE, generator=random)
    return Batch({"image": images}, targets, {"image": torch.arange(BATCH)})


def test_training_step_against_a_loop_by_hand(tmp_path: Path) -> None:
    spec, steps = tasks_of(2), 100_000
    batch = batch_of(spec)
    trainer = toy_trainer(tmp_path, size=SIZE, data=spec, recipe={"batch_size": BATCH})
    graph = plain_graph(spec, spec.task_names, trainer.backbone(), trainer.head)
    network = graph.network()
    losses = task_losses(spec, network)
    stage = Stage("joint", network, steps, Role.FIT_ARCH, parameter_groups(graph), losses, "final")
    run = StageRun(stage, trainer.context)

    def endless() -> Iterator[Batch]:
        while True:
            yield batch

    run._batches = endless()
    run.begin_phase(0, fresh=True)

    by_hand = create_backbone(BackboneConfig("test_resnet", image_size=(SIZE, SIZE)), seed=0)
    heads = [trainer.head(task).module for task in spec.task_names]
    model = nn.ModuleList([by_hand.module(), *heads]).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)

    def hand_step() -> None:
        optimizer.zero_grad(set_to_none=True)
        feature = by_hand.forward_features(batch.images["image"])
        total = sum(
            nn.functional.cross_entropy(head(feature), batch.targets[task])
            for head, task in zip(heads, spec.task_names, strict=True)
        )
        total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()

    def trainer_step() -> None:
        trainer._run_phase(0, [run], run, run.done + 1, [], None)

    trainer_step()  # the first step counts multiply-accumulates
    assert ratio(trainer_step, hand_step, bound=1.05).passes


@pytest.mark.parametrize("batch_size", [1, 64])
def test_graph_forward_against_timm_and_a_head_by_hand(batch_size: int, tmp_path: Path) -> None:
    spec = tasks_of(1)
    trainer = toy_trainer(tmp_path, size=SIZE, data=spec)
    backbone, head_operation = trainer.backbone(), trainer.head("t0")
    module = plain_graph(spec, spec.task_names, backbone, lambda task: head_operation).module().eval()
    with torch.random.fork_rng():
        model = timm.create_model("test_resnet", num_classes=0).eval()
    # The same weights in memory: two copies would evict each other from the cache, and that would be measured.
    ours = backbone.module()
    for mine, yours in zip(model.parameters(), ours.parameters(), strict=True):
        mine.data = yours.data
    for mine, yours in zip(model.buffers(), ours.buffers(), strict=True):
        mine.data = yours.data
    head = head_operation.module.eval()
    image = torch.randn(batch_size, 3, SIZE, SIZE)
    images = {"image": image}
    with torch.inference_mode():
        found = ratio(
            lambda: module(images),
            lambda: head(model.forward_features(image)),
            bound=1.03,
            pairs=300 if batch_size == 1 else 60,  # a call of a millisecond needs more of them
        )
    assert found.passes


@pytest.mark.parametrize("batch_size", [1, 64])
def test_joint_forward_of_three_heads_against_one_task(batch_size: int, tmp_path: Path) -> None:
    spec = tasks_of(3)
    trainer = toy_trainer(tmp_path, size=SIZE, data=spec)
    graph = plain_graph(spec, spec.task_names, trainer.backbone(), trainer.head)
    joint, single = graph.module().eval(), graph.module("t0").eval()
    images = {"image": torch.randn(batch_size, 3, SIZE, SIZE)}
    with torch.inference_mode():
        found = ratio(
            lambda: joint(images),
            lambda: single(images),
            bound=1.08,
        )
    assert found.passes


def test_share_of_time_spent_waiting_for_data(tmp_path: Path) -> None:
    planned = cells(budget={"steps": 60}, recipe={"batch_size": BATCH})[1]
    record = run_cell(planned, RunSettings(tmp_path))
    training, waiting = record.cost["final"]["seconds"], record.cost["io_seconds"]
    share = waiting / (training + waiting)
    print(f"\nwaiting for data: {100 * share:.2f} % of {training + waiting:.1f} s")
    assert share <= 0.03
