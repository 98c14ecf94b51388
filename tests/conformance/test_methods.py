"""What every registered method must keep, whatever it does: a method is tested by lying in its folder."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch

from benchmark.show.plots import draw
from methods.contracts import Fidelity, Role
from methods.figures import Figure
from methods.graph.task_graph import TaskGraph
from methods.plain import task_losses
from methods.registry import get_method, method_names
from tests.conformance.trained import CASES, STEPS, build, trained
from tests.unit.harness import toy_trainer
from tests.unit.kills import Killed, kill_after, outcome


@pytest.mark.parametrize(("name", "domains"), CASES)
def test_the_deployed_network_serves_all_tasks_and_holds_nothing_else(name: str, domains: str) -> None:
    trainer, graph, _ = trained(name, domains)
    graph = copy.deepcopy(graph)
    assert set(graph.tasks) == {"a", "b"}
    assert build(name).alternates == bool(trainer.search_roles & {Role.FIT, Role.ARCH})
    graph.require_deployable()
    network = graph.network().train()
    batch = next(iter(trainer.context.loaders[Role.FIT].training(("a", "b"), 0, 1, "x")))
    for parameter in graph.parameters():
        parameter.requires_grad_(True)
        parameter.grad = None
    sum(task_losses(trainer.data, network)(batch, ("a", "b")).values()).backward()
    dead = [tuple(p.shape) for p in graph.parameters() if p.grad is None]
    assert not dead, f"parameters that no task reads: {dead}"


@pytest.mark.parametrize(("name", "domains"), CASES)
def test_the_exported_network_is_deterministic_and_comes_back(name: str, domains: str) -> None:
    trainer, graph, _ = trained(name, domains)
    batch = next(iter(trainer.context.loaders[Role.FIT].training(("a", "b"), 0, 1, "x")))
    again = TaskGraph.from_json(graph.to_json(), graph.tensors())
    # A file holds no memory format; in that of the training the same kernels run.
    networks = graph.network(), graph.network(), again.network().to(memory_format=torch.channels_last)
    with torch.inference_mode():
        first, second, third = (network.eval()(batch.images, ("a", "b")) for network in networks)
    for task, value in first.items():
        assert torch.equal(value, second[task])
        assert torch.equal(value, third[task])


@pytest.mark.parametrize(("name", "domains"), CASES)
def test_same_seed_same_bits_and_a_killed_run_ends_there_too(name: str, domains: str, tmp_path: Path) -> None:
    expected = outcome(*trained(name, domains)[:2])
    killed = toy_trainer(tmp_path, domains=domains, steps=STEPS, checkpoint_steps=2)
    kill_after(killed, 4)
    with pytest.raises(Killed):
        build(name).run(killed)
    resumed = toy_trainer(tmp_path, domains=domains, steps=STEPS)
    assert outcome(resumed, build(name).run(resumed)) == expected
    assert trained(name, domains, seed=1)[1].weights_hash() != expected["weights"]


@pytest.mark.parametrize(("name", "domains"), CASES)
def test_training_reads_neither_select_nor_report(name: str, domains: str) -> None:
    asked = trained(name, domains)[2]
    assert asked
    assert not {Role.SELECT, Role.REPORT} & set(asked)


@pytest.mark.parametrize(("name", "domains"), CASES)
def test_the_final_training_has_the_steps_of_the_budget(name: str, domains: str) -> None:
    trainer, graph, _ = trained(name, domains)
    final, search = trainer.ledger.final, trainer.ledger.search
    assert final.optimizer_steps >= STEPS
    assert final.optimizer_steps % STEPS == 0  # several networks, each with the whole budget
    assert final.images >= final.optimizer_steps * 8
    assert trainer.weight_steps(graph) >= STEPS
    if search.optimizer_steps == 0:
        assert trainer.weight_steps(graph) == STEPS


@pytest.mark.parametrize("name", method_names())
def test_what_methods_store_can_be_drawn(name: str) -> None:
    """From JSON and back. Figures of both kinds of data that differ in their numbers alone are drawn once."""
    texts = {
        re.sub(r"-?\d+\.\d+(e-?\d+)?", "0", text): text
        for domains in ("single", "multi")
        if (name, domains) in CASES
        for text in (figure.model_dump_json() for figure in trained(name, domains)[0].figures.values())
    }
    for text in texts.values():
        plt.close(draw(Figure.model_validate_json(text)))


def test_no_two_methods_are_one_network() -> None:
    """Methods that choose an architecture may choose the same one, and equal networks then train to equal bits; but not
    at every seed.
    """
    alike = [method_names()]
    for seed in range(3):
        found: list[list[str]] = []
        for names in alike:
            by_weights: dict[str, list[str]] = {}
            for name in names:
                weights = trained(name, "single", seed)[1].weights_hash()
                by_weights.setdefault(weights, []).append(name)
            found += [group for group in by_weights.values() if len(group) > 1]
        alike = found
    assert not alike


@pytest.mark.parametrize("name", method_names())
def test_a_method_says_where_it_comes_from(name: str) -> None:
    method = get_method(name)
    assert isinstance(method.fidelity, Fidelity)
    assert method.fidelity.statements
    assert method.__doc__
    assert method.Params.__doc__
