"""A graph that merges too much gives wrong networks; one that merges too little reports sharing that is not there."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from datasets.contracts import Batch
from datasets.errors import UsageError
from methods.graph.cost import size
from methods.graph.operations import Operation, parameterless, register_operation
from methods.graph.task_graph import TaskGraph, Value, estimate_statistics
from tests.numbers import assert_same
from tests.unit.graphs import Program, build, naive, operation, operations, programs

IMAGE = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
QUICK = settings(max_examples=40, deadline=None)


@pytest.mark.numerical
@QUICK
@given(program=programs(), training=st.booleans())
def test_merged_graph_computes_what_each_task_computes_alone(program: Program, training: bool) -> None:
    pool = operations()
    expected = naive(program, pool, IMAGE, training=training)
    graph = build(program, pool)
    got = graph.module().train(training)({"image": IMAGE})
    assert got.keys() == expected.keys()
    for task, value in expected.items():
        assert torch.equal(got[task], value), task


@QUICK
@given(program=programs())
def test_no_two_nodes_are_equal_and_none_is_evaluated_for_nobody(program: Program) -> None:
    graph = build(program, operations()).pruned()
    keys = [(node.operation.identity(), node.inputs) for node in graph.nodes.values()]
    assert len(keys) == len(set(keys))
    assert all(graph.users().values())


@pytest.mark.numerical
@QUICK
@given(program=programs())
def test_subgraph_of_a_task_gives_the_same_bits(program: Program) -> None:
    graph = build(program, operations())
    whole = graph.module().eval()({"image": IMAGE})
    for task in graph.tasks:
        part = graph.subgraph(task)
        assert torch.equal(part.module().eval()({"image": IMAGE})[task], whole[task])
        assert len(part.nodes) <= len(graph.nodes)


@QUICK
@given(program=programs())
def test_json_and_tensors_give_the_network_back(program: Program) -> None:
    graph = build(program, operations()).pruned()
    graph.module().train()({"image": IMAGE})  # statistics of their own
    document = json.loads(json.dumps(graph.to_json()))
    again = TaskGraph.from_json(document, graph.tensors())
    assert again.hash() == graph.hash()
    assert again.weights_hash() == graph.weights_hash()
    assert len(again.parameters()) == len(graph.parameters())  # tied weights stay tied
    for task, value in graph.module().eval()({"image": IMAGE}).items():
        assert torch.equal(again.module().eval()({"image": IMAGE})[task], value)


@QUICK
@given(program=programs())
def test_hash_ignores_names_and_order_of_building(program: Program) -> None:
    graph = build(program, operations()).pruned()
    padded = TaskGraph(["image"])
    padded.add(operation("test.linear_map", 9), padded.input("image"))  # shifts every name
    values: list[Value] = [padded.input("image")]
    pool = operations()
    for kind, inputs in program.steps:
        values.append(padded.add(pool[kind], *(values[i] for i in inputs)))
    for task in reversed(list(program.outputs)):
        padded.output(task, values[program.outputs[task]])
    assert padded.pruned().hash() == graph.hash()


def test_hash_sees_which_weights_are_shared() -> None:
    def chain(second: Operation, first: Operation) -> TaskGraph:
        graph = TaskGraph(["image"])
        graph.output("t", graph.add(second, graph.add(first, graph.input("image"))))
        return graph

    one, other = operation("test.linear_map", 0), operation("test.linear_map", 1)
    assert chain(one, one).hash() != chain(one, other).hash()
    assert chain(one, other).hash() == chain(other, one).hash()  # values of weights are not structure


def test_weights_belong_to_operations_and_statistics_to_nodes() -> None:
    shared = operation("test.conv_norm", 0)
    graph = TaskGraph(["left", "right"])
    for task in ("left", "right"):
        graph.output(task, graph.add(shared, graph.input(task)))
    left, right = (node.module for node in graph.nodes.values())
    assert left[0].weight is right[0].weight
    assert left[1].running_mean is not right[1].running_mean
    network = graph.network().train()
    network({"left": IMAGE, "right": IMAGE * 5 + 3}, ("left", "right"))
    alone = operation("test.conv_norm", 0).module.train()
    alone(IMAGE)
    assert torch.equal(left[1].running_mean, alone[1].running_mean)  # never saw the other task's images
    assert not torch.equal(left[1].running_mean, right[1].running_mean)
    assert int(left[1].num_batches_tracked) == 1


def test_equal_inputs_share_one_node_and_one_set_of_statistics() -> None:
    shared = operation("test.conv_norm", 0)
    graph = TaskGraph(["image"])
    for task in ("left", "right"):
        graph.output(task, graph.add(shared, graph.input("image")))
    assert len(graph.nodes) == 1


def test_two_operations_over_one_norm_do_not_share_its_statistics() -> None:
    inner = operation("test.conv_norm", 0)
    wrapped = Operation("test.conv_norm", {"use": "second"}, inner.module, "backbone")
    graph = TaskGraph(["image"])
    first = graph.add(inner, graph.input("image"))
    second = graph.add(wrapped, first)
    assert graph.nodes[first.name].module[1] is not graph.nodes[second.name].module[1]


def test_tied_weights_are_stored_once() -> None:
    shared = operation("test.conv_norm", 0)
    graph = TaskGraph(["image"])
    graph.output("t", graph.add(shared, graph.add(shared, graph.input("image"))))
    names = set(graph.tensors())
    assert sum(name.endswith("0.weight") for name in names) == 1
    assert sum(name.endswith("running_mean") for name in names) == 2


def test_identity_is_no_node() -> None:
    graph = TaskGraph(["image"])
    value = graph.add(Operation("identity", {}, nn.Identity(), "backbone"), graph.input("image"))
    assert value == graph.input("image")
    assert not graph.nodes


def test_dead_nodes_are_refused_with_their_parameters() -> None:
    graph = TaskGraph(["image"])
    graph.add(operation("test.linear_map", 0), graph.input("image"))
    graph.output("t", graph.add(parameterless("add"), graph.input("image")))
    with pytest.raises(UsageError, match=r"1 dead nodes .* dead = 9 parameters"):
        graph.to_json()
    assert len(graph.pruned().nodes) == 1


def test_errors_name_what_is_wrong() -> None:
    graph = TaskGraph(["image"])
    with pytest.raises(UsageError, match="'imagee'"):
        graph.input("imagee")
    with pytest.raises(UsageError, match="graph value 'elsewhere'"):
        graph.add(parameterless("add"), Value("elsewhere"))
    graph.output("t", graph.input("image"))
    with pytest.raises(UsageError, match="has an output already"):
        graph.output("t", graph.input("image"))
    with pytest.raises(UsageError, match=r"'tt'.*'t'"):
        graph.subgraph("tt")


def test_foreign_tensors_are_refused() -> None:
    graph = TaskGraph(["image"])
    graph.output("t", graph.add(operation("test.linear_map", 0), graph.input("image")))
    document, tensors = graph.to_json(), graph.tensors()
    (name,) = tensors
    with pytest.raises(UsageError, match="is missing"):
        TaskGraph.from_json(document, {})
    with pytest.raises(UsageError, match=r"has shape \(2,\)"):
        TaskGraph.from_json(document, {name: torch.zeros(2)})
    with pytest.raises(UsageError, match="format 99"):
        TaskGraph.from_json({**document, "format": 99}, tensors)


def test_merged_graphs_keep_their_statistics() -> None:
    shared = operation("test.conv_norm", 0)
    graph = TaskGraph(["image"])
    first = graph.add(shared, graph.input("image"))
    graph.output("deep", graph.add(shared, first))
    graph.module().train()({"image": IMAGE})
    other = TaskGraph(["image"])
    other.output("flat", other.add(operation("test.linear_map", 3), other.input("image")))
    expected = graph.module().eval()({"image": IMAGE})["deep"]
    whole = TaskGraph.merged([graph, other])
    assert whole.tasks == ("deep", "flat")
    assert torch.equal(whole.module().eval()({"image": IMAGE})["deep"], expected)


@pytest.mark.usefixtures("float64")
def test_estimated_statistics_are_plain_means_over_batches() -> None:
    shared = operation("test.conv_norm", 0)
    graph = TaskGraph(["image"])
    graph.output("t", graph.add(shared, graph.input("image")))
    batches = [torch.randn(8, 3, 5, 5), torch.randn(8, 3, 5, 5) + 2]
    conv, norm, _ = shared.module
    with torch.no_grad():
        means = [conv(images).mean((0, 2, 3)) for images in batches]
    norm.running_mean.fill_(100.0)
    network = graph.network().eval()
    estimate_statistics(network, [Batch({"image": images}, {"t": torch.zeros(8)}, {}) for images in batches])
    assert_same(norm.running_mean, torch.stack(means).mean(0))
    assert norm.momentum == 0.1
    assert not network.training


@register_operation("test.dropped")
def _dropped(config: dict) -> nn.Module:
    return nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(3))


def test_estimated_statistics_draw_nothing() -> None:
    """Dropout would draw from the global stream between stages, where a resumed run cannot repeat it."""
    graph = TaskGraph(["image"])
    graph.output("t", graph.add(operation("test.dropped", 0), graph.input("image")))
    images = torch.ones(8, 3, 5, 5)
    before = torch.get_rng_state()
    estimate_statistics(graph.network(), [Batch({"image": images}, {"t": torch.zeros(8)}, {})])
    assert torch.equal(torch.get_rng_state(), before)
    norm = next(iter(graph.nodes.values())).module[1]
    assert norm.running_mean.tolist() == [1, 1, 1]
    assert norm.training


def test_operations_in_a_deep_chain_need_no_recursion() -> None:
    graph = TaskGraph(["image"])
    value = graph.input("image")
    for index in range(3000):
        value = graph.add(parameterless("weighted_sum", weights=[float(index)]), value)
    graph.output("t", value)
    assert len(graph.structure()["nodes"]) == 3000


@register_operation("test.masked")
def _masked(config: dict) -> nn.Module:
    return Masked(nn.Conv2d(3, 3, 1, bias=False), torch.ones(3, 3, 1, 1, dtype=torch.bool))


class Masked(nn.Module):
    """A convolution under a mask, which is a buffer."""

    def __init__(self, conv: nn.Conv2d, mask: torch.Tensor) -> None:
        super().__init__()
        self.conv = conv
        self.register_buffer("mask", mask)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(x, self.conv.weight * self.mask)


def masked(conv: nn.Conv2d, mask: torch.Tensor) -> Operation:
    return Operation("test.masked", {}, Masked(conv, mask), "backbone", masks={"conv.weight": "mask"})


def test_masks_of_what_the_module_does_not_hold_are_refused() -> None:
    module = Masked(nn.Conv2d(3, 3, 1, bias=False), torch.ones(3))
    for masks, message in (
        ({"weight": "mask"}, "'weight'.*'conv.weight'"),
        ({"conv.weight": "maks"}, "'maks'.*'mask'"),
        ({"conv.weight": "mask"}, r"'mask' .* has shape \(3,\); 'conv.weight' has \(3, 3, 1, 1\)"),
    ):
        with pytest.raises(UsageError, match=message):
            Operation("test.masked", {}, module, "backbone", masks=masks)


def half(first: bool) -> torch.Tensor:
    return (torch.arange(9).reshape(3, 3, 1, 1) < 5) == first


def test_masks_over_the_same_weights_stay_apart_and_each_task_runs_under_its_own() -> None:
    conv = nn.Conv2d(3, 3, 1, bias=False)
    graph = TaskGraph(["image"])
    for task, first in (("left", True), ("right", False)):
        graph.output(task, graph.add(masked(conv, half(first)), graph.input("image")))
    assert len(graph.nodes) == 2
    loaded = TaskGraph.from_json(json.loads(json.dumps(graph.to_json())), graph.tensors())
    assert size(loaded, 9) == size(graph, 9)
    for whole in (graph, loaded, TaskGraph.merged([graph.subgraph("left"), graph.subgraph("right")])):
        got = whole.module().eval()({"image": IMAGE})
        for task, first in (("left", True), ("right", False)):
            assert torch.equal(got[task], nn.functional.conv2d(IMAGE, conv.weight * half(first))), task


def test_masks_that_are_equal_today_may_differ_after_training_and_stay_apart() -> None:
    conv, ones = nn.Conv2d(3, 3, 1, bias=False), torch.ones(3, 3, 1, 1, dtype=torch.bool)
    graph = TaskGraph(["image"])
    left, right = (graph.add(masked(conv, ones.clone()), graph.input("image")) for _ in range(2))
    assert left != right
    assert graph.add(masked(conv, graph.nodes[left.name].module.mask), graph.input("image")) == left


def test_a_freed_mask_is_not_taken_for_a_new_one() -> None:
    """Moving a module to another device replaces its buffers; the id of the old one may then be another's."""
    graph, conv = TaskGraph(["image"]), nn.Conv2d(3, 3, 1, bias=False)
    for number in range(20):
        operation = masked(conv, torch.full((3, 3, 1, 1), number % 2 == 0))
        graph.add(operation, graph.input("image"))
        operation.module.mask = operation.module.mask.clone()
    assert len(graph.nodes) == 20
