"""One case a method and operation, for `pytest-benchmark compare`: the deployed network of every registered method.

    pytest tests/perf/test_methods.py -o addopts= --benchmark-save=NAME      pytest-benchmark compare

joint: the forward pass of all tasks, eval and inference mode; training-step: zero_grad, forward, losses, backward and
step of plain SGD. Networks are those that a method deploys on the toy data after a few steps, so figures are for
comparing one version of the code with another, not methods with each other: that is `python -m benchmark.throughput`.
Names of cases are test_joint[METHOD] and test_training_step[METHOD]; keep them, stored results are compared by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from benchmark.train.trainer import CellTrainer
from datasets.contracts import Batch
from methods.contracts import Role
from methods.graph.task_graph import TaskGraph
from methods.plain import task_losses
from methods.registry import get_method, method_names
from tests.unit.harness import toy_trainer

STEPS, SIZE = 6, 32
Benchmark = Callable[[Callable[[], object]], object]
Deployed = tuple[CellTrainer, TaskGraph, Batch]


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Deployed]]:
    """Trainer, deployed network and a batch of a method, each made once."""
    made: dict[str, Deployed] = {}

    def deploy(name: str) -> Deployed:
        if name not in made:
            trainer = toy_trainer(tmp_path_factory.mktemp(name), steps=STEPS, size=SIZE)
            method = get_method(name)
            graph = method(method.Params()).run(trainer)
            batch = next(iter(trainer.context.loaders[Role.FIT].training(graph.tasks, 0, 1, "perf")))
            made[name] = (trainer, graph, batch)
        return made[name]

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield deploy
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", method_names())
def test_joint(name: str, deployed: Callable[[str], Deployed], benchmark: Benchmark) -> None:
    _, graph, batch = deployed(name)
    module, images = graph.module().eval(), dict(batch.images)

    def forward() -> dict[str, torch.Tensor]:
        with torch.inference_mode():
            return module(images)

    found = benchmark(forward)
    assert set(found) == set(graph.tasks)
    assert all(value.isfinite().all() for value in found.values())


@pytest.mark.parametrize("name", method_names())
def test_training_step(name: str, deployed: Callable[[str], Deployed], benchmark: Benchmark) -> None:
    trainer, graph, batch = deployed(name)
    losses = task_losses(trainer.data, graph.network().train())
    parameters = [parameter.requires_grad_(True) for parameter in graph.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=1e-6)  # small: hundreds of calls must not leave the finite

    def step() -> float:
        optimizer.zero_grad()
        loss = sum(losses(batch, graph.tasks).values())
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    before = [parameter.detach().clone() for parameter in parameters]
    assert torch.isfinite(torch.tensor(benchmark(step)))
    assert any(not torch.equal(old, new) for old, new in zip(before, parameters, strict=True))
