"""Wrong counts make a table lie about what sharing saves. Identifiers P1 ... are those of the measurement
specification.
"""

from __future__ import annotations

import dataclasses
import json

import pytest
import timm
import torch
from hypothesis import given, settings
from torch import nn

from datasets.errors import UsageError
from methods.graph.cost import MacCounter, Size, compute, count, size
from methods.graph.operations import Operation, register_operation
from methods.graph.task_graph import TaskGraph
from tests.unit.graphs import Program, build, operation, operations, programs


def test_p1_convolution_counts_macs_not_flops() -> None:
    assert count(nn.Conv2d(3, 8, 3, padding=1, bias=False), [(1, 3, 16, 16)]).macs == 55_296


def test_p2_resnet18() -> None:
    model = timm.create_model("resnet18")
    assert sum(p.numel() for p in model.parameters()) == 11_689_512
    assert count(model, [(1, 3, 224, 224)]).macs == 1_814_073_344
    assert sum(p.numel() for p in timm.create_model("resnet18", num_classes=0).parameters()) == 11_176_512


def test_p3_attention_is_counted_on_meta_and_in_training_on_cpu() -> None:
    model = timm.create_model("vit_tiny_patch16_224").eval()
    assert count(model, [(1, 3, 224, 224)]).macs == 1_253_683_200
    with torch.no_grad(), MacCounter() as counter:  # on CPU the fused kernel runs, which PyTorch counts as nothing
        model(torch.zeros(1, 3, 224, 224))
    assert counter.macs == 1_253_683_200


@pytest.mark.numerical
def test_counting_changes_no_bits() -> None:
    model = timm.create_model("test_vit", num_classes=3).train()
    image = torch.randn(2, 3, 160, 160)
    expected = model(image)
    with MacCounter():
        assert torch.equal(model(image), expected)


class _Ten(nn.Module):
    """10 parameters; 100 MACs on ten places with ten channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(10, 1, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).expand_as(x)


@register_operation("test.ten")
def _ten(config: dict) -> nn.Module:
    return _Ten()


def _ten_operation() -> Operation:
    return Operation("test.ten", {}, _Ten(), "backbone")


SHAPE = {"image": (1, 10, 10, 1)}


def _paths(*paths: list[Operation]) -> TaskGraph:
    graph = TaskGraph(["image"])
    for task, path in enumerate(paths):
        value = graph.input("image")
        for step in path:
            value = graph.add(step, value)
        graph.output(f"task{task}", value)
    return graph


def test_p4_weight_sharing_is_not_compute_sharing() -> None:
    b = [_ten_operation() for _ in range(4)]
    copies = [_ten_operation() for _ in range(4)]
    cases = {
        "hard sharing": (_paths(b, b), 40, 400, 800, 0.5, 0.5),
        "task B skips block 2": (_paths(b, [b[0], b[2], b[3]]), 40, 600, 700, 0.4286, 0.1429),
        "split after block 2": (_paths(b, [*b[:2], *copies[2:]]), 60, 600, 800, 0.25, 0.25),
        "single task": (_paths(b, copies), 80, 800, 800, 0.0, 0.0),
    }
    for name, (graph, total, joint, summed, weight_sharing, activation_sharing) in cases.items():
        parameters, macs = size(graph, 40), compute(graph, SHAPE)
        assert parameters.total == total, name
        assert (macs.macs_joint, macs.macs_sum) == (joint, summed), name
        assert parameters.weight_sharing == pytest.approx(weight_sharing, abs=1e-4), name
        assert macs.activation_sharing == pytest.approx(activation_sharing, abs=1e-4), name


def test_p5_tied_tensors_count_once_and_unused_blocks_are_dead() -> None:
    shared = _ten_operation()
    head = Operation("test.ten", {"head": 1}, shared.module, "heads")
    graph = TaskGraph(["image"])
    value = graph.add(shared, graph.input("image"))
    graph.output("a", value)
    graph.output("b", graph.add(head, value))
    assert size(graph, 10).total == 10
    graph.add(_ten_operation(), graph.input("image"))
    assert size(graph, 10).dead == 10
    with pytest.raises(UsageError, match="dead = 10"):
        graph.require_deployable()


@settings(max_examples=30, deadline=None)
@given(program=programs())
def test_partitions_add_up_and_joint_macs_lie_between_their_bounds(program: Program) -> None:
    graph = build(program, operations()).pruned()
    shape = {"image": (1, 3, 5, 5)}
    macs, parameters = compute(graph, shape), size(graph, 100)
    assert parameters.backbone + parameters.added + parameters.heads == parameters.total
    assert parameters.shared + parameters.task_specific + parameters.dead == parameters.total
    assert parameters.dead == 0
    assert max(macs.macs_task.values()) <= macs.macs_joint <= macs.macs_sum
    direct = count(_OnImages(graph), [shape["image"]])  # the cost table's sum against one count of the whole network
    assert direct.macs == macs.macs_joint


class _OnImages(nn.Module):
    def __init__(self, graph: TaskGraph) -> None:
        super().__init__()
        self.inner = graph.module()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return next(iter(self.inner({"image": image}).values()))


def test_each_operation_and_shape_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    from methods.graph import cost
    from methods.graph import operations as kinds

    monkeypatch.setattr(cost, "_KNOWN", {})
    monkeypatch.setattr(cost, "count", lambda module, shapes: calls.append(1) or count(module, shapes))
    shared = operation("test.linear_map", 0)
    graph = TaskGraph(["image"])
    graph.output("t", graph.add(shared, graph.add(shared, graph.input("image"))))
    for _ in range(3):
        compute(graph, {"image": (1, 3, 5, 5)})
    assert len(calls) == 1
    compute(graph, {"image": (1, 3, 6, 6)})
    assert len(calls) == 2
    # Who defines the operation anew, in a notebook, has another one of the same name.
    monkeypatch.setitem(kinds._FACTORIES, shared.kind, lambda config: shared.module)
    compute(graph, {"image": (1, 3, 5, 5)})
    assert len(calls) == 3


def test_joint_macs_are_null_where_tasks_have_their_own_images() -> None:
    shared = operation("test.linear_map", 0)
    graph = TaskGraph(["left", "right"])
    for task in graph.inputs:
        graph.output(task, graph.add(shared, graph.input(task)))
    macs = compute(graph, {"left": (1, 3, 5, 5), "right": (1, 3, 5, 5)})
    assert macs.macs_joint is None
    assert macs.macs_sum == 2 * macs.macs_task["left"]


def test_a_contraction_without_a_formula_is_an_error() -> None:
    class Distance(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cdist(x, x)

    with pytest.raises(UsageError, match=r"cdist.*no formula"):
        count(Distance(), [(1, 5, 4)])


def test_uncounted_operators_are_listed() -> None:
    uncounted = count(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), [(1, 3, 5, 5)]).uncounted
    assert uncounted["aten.relu"] == (1, 100)


def test_dot_and_matrix_vector_products_are_counted() -> None:
    with MacCounter() as counter:
        torch.dot(torch.ones(7), torch.ones(7))
        torch.mv(torch.ones(3, 5), torch.ones(5))
        torch.addmv(torch.ones(3), torch.ones(3, 5), torch.ones(5))
    assert counter.macs == 7 + 15 + 15


class _MaskedTen(_Ten):
    """Ten parameters under a mask of a task."""

    def __init__(self, conv: nn.Conv2d, kept: slice) -> None:
        super().__init__()
        self.conv = conv
        self.register_buffer("mask", torch.zeros(1, 10, 1, 1, dtype=torch.bool))
        self.mask[:, kept] = True


def test_masked_weights_count_for_the_tasks_whose_masks_keep_them() -> None:
    conv = nn.Conv2d(10, 1, 1, bias=False)

    def under(kept: slice, masks: dict[str, str]) -> Operation:
        return Operation("test.ten", {}, _MaskedTen(conv, kept), "backbone", masks)

    def measured(masks: dict[str, str]) -> Size:
        # the tasks keep 0 to 5 and 3 to 7, the second one also through a node that the first one does not need
        return size(_paths([under(slice(0, 6), masks)], [under(slice(3, 7), masks), under(slice(7, 8), masks)]), 10)

    found = measured({"conv.weight": "mask"})
    assert found.active == {"task0": 6, "task1": 5, "all": 8}
    assert (found.total, found.backbone, found.shared, found.task_specific, found.dead) == (8, 8, 3, 5, 0)
    assert (found.dense, found.trainable, found.nonzero, found.x_backbone) == (10, 10, 8, 0.8)
    assert found.weight_sharing == pytest.approx(1 - 8 / 11)
    blind = measured({})  # without the declaration a tensor that two tasks read is shared as a whole
    assert (blind.total, blind.shared, blind.weight_sharing) == (10, 10, 0.5)


def test_a_parameter_may_be_its_own_mask() -> None:
    operation = _ten_operation()
    with torch.no_grad():
        operation.module.conv.weight[:, :4] = 0
    found = size(_paths([dataclasses.replace(operation, masks={"conv.weight": "conv.weight"})]), 10)
    assert (found.total, found.dense, found.nonzero) == (6, 10, 6)


class _Adapted(_Ten):
    """Ten parameters of a backbone, and four of an adapter beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.adapter = nn.Linear(2, 2, bias=False)


@register_operation("test.adapted")
def _adapted(config: dict) -> nn.Module:
    return _Adapted()


def test_an_adapter_inside_a_block_is_counted_apart_from_it_also_after_a_file() -> None:
    operation = Operation("test.adapted", {}, _Adapted(), "backbone", origins={"adapter.weight": "added"})
    graph = _paths([operation], [_ten_operation()])
    for one in (graph, TaskGraph.from_json(json.loads(json.dumps(graph.to_json())), graph.tensors())):
        found = size(one, 10)
        assert (found.backbone, found.added, found.heads, found.total) == (20, 4, 0, 24)
        assert [p.numel() for p in one.parameters("added")] == [4]
        assert sum(p.numel() for p in one.parameters("backbone")) == 20
        assert one.hash() == graph.hash()
    plain = _paths([dataclasses.replace(operation, origins={})], [_ten_operation()])
    assert (size(plain, 10).backbone, size(plain, 10).added) == (24, 0)
    assert plain.hash() != graph.hash()


@pytest.mark.parametrize(
    ("origins", "message"),
    [
        ({"adaptor.weight": "added"}, "'adaptor.weight'.*'adapter.weight'"),
        ({"adapter.weight": "adde"}, "'adde'.*'added'"),
    ],
)
def test_origins_of_what_the_module_does_not_hold_are_refused(origins: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Operation("test.adapted", {}, _Adapted(), "backbone", origins=origins)
