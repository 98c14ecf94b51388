"""The network of every method can be written to files that others run, with the same predictions."""

from __future__ import annotations

import copy

import pytest

from benchmark.deploy.export import Form, export_network
from benchmark.deploy.network import (
    DeployedNetwork,
    InputDescription,
    NetworkDescription,
    Normalisation,
    OutputDescription,
)
from tests.conformance.test_methods import CASES, trained

CASES_IN_TURN = [
    pytest.param(name, domains, marks=() if domains == "single" else pytest.mark.slow) for name, domains in CASES
]


def deployed(name: str, domains: str) -> DeployedNetwork:
    trainer, graph, _ = trained(name, domains)
    graph = copy.deepcopy(graph)
    height, width = trainer.data.native_size
    inputs = {
        source: InputDescription(
            (3, height, width), tuple(task for task in graph.tasks if trainer.data.input_of(task) == source)
        )
        for source in trainer.data.inputs
    }
    tasks = {
        task: OutputDescription("class", (trainer.data.task(task).channels,), (), "", None) for task in graph.tasks
    }
    normalisation = Normalisation("RGB", trainer.data.mean, trainer.data.std)
    description = NetworkDescription(
        "0" * 32, {"name": name, "params": {}}, 0, {}, {}, graph.hash(), "", inputs, normalisation, tasks
    )
    return DeployedNetwork(graph, description).eval()


@pytest.mark.parametrize(("name", "domains"), CASES_IN_TURN)
def test_pt2_gives_the_same_at_every_batch(name: str, domains: str) -> None:
    _, difference, _ = export_network(deployed(name, domains), Form.pt2)
    assert difference is not None
    assert difference <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(("name", "domains"), CASES)
def test_onnx_gives_the_same_at_every_batch(name: str, domains: str) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install 'sharebench[onnx]'")
    _, difference, _ = export_network(deployed(name, domains), Form.onnx)
    assert difference is not None
    assert difference <= 1e-4
