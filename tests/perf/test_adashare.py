"""What AdaShare's search and its deployed network cost beside plain code of the same operators.

Run as `pytest tests/perf/test_adashare.py -o addopts= -s` on a quiet machine; each ratio is printed with its A/A.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmark.train.stage import StageRun
from datasets.contracts import Batch
from methods.adashare.deployment import deploy
from methods.adashare.method import AdaShare
from methods.adashare.network import SearchNetwork
from methods.adashare.parameters import AdaShareParams
from methods.adashare.schedule import schedule
from methods.adashare.search import search_network, search_stages, warm_up_stage
from methods.backbones.backbone import BackboneConfig, create_backbone
from methods.contracts import Role, Stage
from methods.plain import parameter_groups, plain_graph, task_losses
from tests.perf.abba import PairedRatio
from tests.perf.test_figures import tasks_of
from tests.unit.harness import toy_trainer

SIZE, K = 64, 3
Assert = Callable[..., PairedRatio]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def setting(folder: Path, name: str, size: int = SIZE) -> Any:
    """A trainer on one backbone with K tasks of ten classes."""
    spec = dataclasses.replace(tasks_of(K), native_size=(size, size))
    prototype = create_backbone(BackboneConfig(name, image_size=(size, size)), seed=0)
    return toy_trainer(folder, size=size, data=spec, steps=100_000, prototype=prototype)


def batch_of(n: int, size: int = SIZE) -> Batch:
    random = torch.Generator().manual_seed(0)
    targets = {f"t{k}": torch.randint(0, 10, (n,), generator=random) for k in range(K)}
    return Batch({"image": torch.randn(n, 3, size, size, generator=random)}, targets, {"image": torch.arange(n)})


def step_of(stage: Stage, trainer: Any, batch: Batch) -> Callable[[], None]:
    run = StageRun(stage, trainer.context)

    def endless() -> Iterator[Batch]:
        while True:
            yield batch

    run._batches = endless()
    run.begin_phase(0, fresh=True)

    def step() -> None:
        run.step(batch)

    return step


def search(trainer: Any, **values: Any) -> tuple[SearchNetwork, Stage, Stage]:
    """The network, the warm-up and the policy phase."""
    method = AdaShare(AdaShareParams(**values))
    plan = schedule(method.params, trainer.data, trainer.budget, len(trainer.backbone().blocks))
    network = search_network(method.params, trainer, plan)
    policy = dataclasses.replace(search_stages(method.params, trainer, network, plan)[1], before_cycle=None)
    return network, warm_up_stage(method.params, trainer, network, plan), policy


def test_warm_up_step_against_hard_sharing(tmp_path: Path, assert_bounded: Assert) -> None:
    """Features are computed once for all tasks."""
    trainer, batch = setting(tmp_path, "resnet18"), batch_of(16)
    _, warm_up, _ = search(trainer)
    graph = plain_graph(trainer.data, trainer.data.task_names, trainer.backbone(), trainer.head)
    losses = task_losses(trainer.data, graph.network())
    joint = Stage("joint", graph.network(), 100_000, Role.FIT_ARCH, parameter_groups(graph), losses, "final")
    assert_bounded(step_of(warm_up, trainer, batch), step_of(joint, trainer, batch), bound=1.05)


def allowed_ratio(n_forced: int, n_blocks: int = 16) -> float:
    """Block passes of one image for all tasks over those of K images, at equal cost a block.

    The first free block's branch is common too, only its mix differs. The weights are frozen, so the backward pass
    costs a forward pass and reaches the free blocks alone, in both cases K times.
    """
    backward = K * (n_blocks - n_forced)
    return (n_forced + 1 + K * (n_blocks - 1 - n_forced) + backward) / (K * n_blocks + backward)


@pytest.mark.parametrize("n_forced", [0, 8, 15])
def test_policy_step_against_a_pass_for_each_task(n_forced: int, tmp_path: Path, assert_bounded: Assert) -> None:
    trainer, batch = setting(tmp_path, "resnet34"), batch_of(4)
    steps = []
    for once in (True, False):
        network, _, policy = search(trainer)
        network.end_warm_up()
        network.policies.n = 16 - n_forced
        network.one_image = once  # False: the official code's K passes
        steps.append(step_of(policy, trainer, batch))
    found = assert_bounded(*steps, bound=1.1 * allowed_ratio(n_forced), pairs=24)
    print(f"{n_forced} of 16 blocks forced: {found.r:.3f} of K passes; operations allow {allowed_ratio(n_forced):.3f}")


def deployed(trainer: Any) -> Any:
    """Three tasks that part at unit 5 and at unit 8."""
    policy = tuple(tuple((k, unit) not in ((1, 4), (2, 7), (1, 6)) for unit in range(8)) for k in range(K))
    graph = deploy(trainer.data, policy, [trainer.backbone()] * K, trainer.head)
    for node in graph.nodes.values():
        node.module.eval()
    return graph


@pytest.mark.parametrize("batch_size", [1, 16])
def test_joint_forward_against_its_nodes(batch_size: int, tmp_path: Path, assert_bounded: Assert) -> None:
    """Every node once, on inputs that lie ready."""
    graph = deployed(setting(tmp_path, "resnet18"))
    joint = graph.module().eval()
    images = {"image": torch.randn(batch_size, 3, SIZE, SIZE)}
    values: dict[str, Any] = dict(images)
    with torch.inference_mode():
        for node in graph.reachable():
            values[node.name] = node.module(*(values[value.name] for value in node.inputs))
        calls = [(node.module, [values[value.name] for value in node.inputs]) for node in graph.reachable()]

        def apart() -> None:
            for module, inputs in calls:
                module(*inputs)

        assert_bounded(lambda: joint(images), apart, bound=1.05)


def test_joint_forward_against_a_pass_for_each_task(tmp_path: Path, assert_bounded: Assert) -> None:
    """Below 1 by what the tasks share before they part."""
    graph = deployed(setting(tmp_path, "resnet18"))
    joint, single = graph.module().eval(), [graph.module(task).eval() for task in graph.tasks]
    images = {"image": torch.randn(16, 3, SIZE, SIZE)}

    def passes() -> None:
        for module in single:
            module(images)

    with torch.inference_mode():
        assert_bounded(lambda: joint(images), passes, bound=0.9)
