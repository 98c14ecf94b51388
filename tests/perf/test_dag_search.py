"""Bounds of the DAG search: against the same operations by hand, and against the sum of the nodes' own times.

Not part of the test command. `pytest tests/perf/test_dag_search.py -o addopts= -s` prints each figure.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from methods.dag_search.supernet import Supernet
from methods.graph.operations import Operation
from methods.graph.task_graph import TaskGraph
from tests.perf.abba import PairedRatio
from tests.unit.supernets import backbone_of, images_of, random_sub_dags, space_of, spec_of, supernet_of

BATCH = 32
Assert = Callable[..., PairedRatio]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def loss_of(predictions: dict[str, Tensor]) -> Tensor:
    return torch.stack([prediction.square().mean() for prediction in predictions.values()]).sum()


def by_hand(net: Supernet, images: dict[str, Tensor], tasks: tuple[str, ...]) -> dict[str, Tensor]:
    """The search's forward pass as one would write it for this network: the equations, task after task."""
    v0 = net.space.stem.module(images["image"])
    reads = [operation.module(v0) for operation in net.space.read_in]
    predictions = {}
    for k, task in enumerate(tasks):
        with net.norms.each([k], [len(v0)]):
            predictions[task] = net.heads[task](task_by_hand(net, k, reads))
    return predictions


def task_by_hand(net: Supernet, k: int, reads: list[Tensor]) -> Tensor:
    space, gates = net.space, net.gates
    n = space.graph.n_states
    alpha, beta, gamma = (torch.sigmoid(logits[k]) for logits in (gates.alpha, gates.beta, gates.gamma))
    states: list[Tensor] = []
    for j in range(1, n + 1):
        total, weight = reads[j - 1] * alpha[j - 1], alpha[j - 1]
        for e, (i, target) in enumerate(space.graph.inner):
            if target == j:
                value = space.edges[e].block.module(space.edges[e].align.module(states[i - 1]))
                total = total + gamma[e] * value
                weight = weight + gamma[e]
        states.append(total / weight)
    out = sum(beta[i] * space.read_out[i].module(states[i]) for i in range(n))
    return space.tail.module(out / beta.sum())


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext"])
def test_search_step_against_the_equations_by_hand(name: str, assert_bounded: Assert) -> None:
    spec = spec_of(3)
    net = supernet_of(backbone_of(name), spec).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    images = images_of(spec, batch=BATCH)

    def step(forward: Callable[[], dict[str, Tensor]]) -> None:
        optimizer.zero_grad()
        loss_of(forward()).backward()
        optimizer.step()

    assert_bounded(
        lambda: step(lambda: net(images, spec.task_names)),
        lambda: step(lambda: by_hand(net, images, spec.task_names)),
        bound=1.10,
    )


DEPLOYED_BATCH = 8  # of the deployed networks, whose 60 pairs at 32 images take minutes for test_convnext


def deployed(name: str, n_tasks: int) -> tuple[TaskGraph, dict[str, Tensor]]:
    backbone, spec = backbone_of(name), spec_of(n_tasks)
    space = space_of(backbone)
    net = supernet_of(backbone, spec)
    kept = random_sub_dags(space, n_tasks)
    kept[1] = kept[0].copy()  # two tasks that share everything
    heads = dict(net.heads.items())

    graph = space.task_graph(spec, kept, lambda task: Operation(f"head of {task}", {}, heads[task], "heads"))
    return graph, images_of(spec, batch=DEPLOYED_BATCH)


def one_after_another(graph: TaskGraph, images: dict[str, Tensor]) -> Callable[[], None]:
    """Every node of the graph on inputs that lie ready: the sum of the nodes' own times."""
    values: dict[str, Tensor] = dict(images)
    calls: list[tuple[nn.Module, tuple[Tensor, ...]]] = []
    for node in graph.nodes.values():
        arguments = tuple(values[value.name] for value in node.inputs)
        values[node.name] = node.module(*arguments)
        calls.append((node.module, arguments))

    def run() -> None:
        for module, arguments in calls:
            module(*arguments)

    return run


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext"])
def test_joint_forward_against_the_sum_of_its_nodes(name: str, assert_bounded: Assert) -> None:
    graph, images = deployed(name, 3)
    module = graph.module().eval()
    with torch.inference_mode():
        assert_bounded(lambda: module(images), one_after_another(graph, images), bound=1.05)


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext"])
def test_joint_forward_against_separate_networks(name: str, assert_bounded: Assert) -> None:
    graph, images = deployed(name, 3)
    joint, parts = graph.module().eval(), [graph.module(task).eval() for task in graph.tasks]
    with torch.inference_mode():
        found = assert_bounded(lambda: joint(images), lambda: [part(images) for part in parts], bound=1.0)
    print(f"\n{name}: joint / separate {found.r:.3f}")


def test_bytes_per_task_at_forty_tasks() -> None:
    few, many = (supernet_of(backbone_of(), spec_of(n)) for n in (1, 40))

    def held(net: Supernet) -> int:
        tensors = {id(t): t for t in [*net.parameters(), *net.buffers()]}
        return sum(t.numel() * t.element_size() for t in tensors.values())

    per_task = (held(many) - held(few)) / 39
    theta = sum(p.numel() * 4 for op in few.space.operations() for p in op.module.parameters())
    print(f"\nbytes per task at 40 tasks: {per_task:.0f}; Theta, once: {theta}")
    assert per_task < 0.1 * theta


def test_recomputing_activations_saves_memory() -> None:
    """What autograd holds between forward and backward, in bytes of saved tensors."""
    spec = spec_of(3)
    images = images_of(spec, batch=8)
    held = {}
    for recompute in (False, True):
        net = supernet_of(backbone_of(), spec, m=4, recompute=recompute).train()
        storages: dict[int, int] = {}

        def pack(tensor: Tensor, storages: dict[int, int] = storages) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss_of(net(images, spec.task_names))
        held[recompute] = sum(storages.values())
    print(f"\nsaved for the backward pass: {held[False]} bytes, recomputing: {held[True]} bytes")
    assert held[True] < held[False]
