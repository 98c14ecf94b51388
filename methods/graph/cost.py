"""Size and compute of a task graph: parameters by origin and by use, multiply-accumulates per task and jointly.

Spec: measurement 2. Counted in eval mode on `meta` tensors at batch size 1; each (operation, input shapes) is counted
once and kept, so the cost of a graph is a sum over its nodes. Normalisation, activation, pooling, resizing, elementwise
work and softmax are not counted; they are listed by name in `uncounted_ops`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from datasets.errors import UsageError
from methods.graph.copies import copied
from methods.graph.operations import Operation, Origin, canonical_config
from methods.graph.task_graph import TaskGraph

# Contractions without a formula here or in PyTorch. Meeting one is an error: it would be counted as free.
_CONTRACTIONS = {
    "aten.cdist",
    "aten._cdist_forward",
    "aten._trilinear",
    "aten.addr",
    "aten._native_multi_head_attention",
    "aten._transformer_encoder_layer_fwd",
    "aten.lstm",
    "aten.gru",
    "aten.rnn_tanh",
    "aten.rnn_relu",
    "aten._thnn_fused_lstm_cell",
    "aten._thnn_fused_gru_cell",
    "aten.mkldnn_rnn_layer",
}


def _fused_cpu_attention(query: Tensor, key: Tensor, value: Tensor, *_: object, **__: object) -> int:
    return int(sdpa_flop_count(query.shape, key.shape, value.shape))


def _fused_cpu_attention_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: object, **__: object
) -> int:
    return int(sdpa_backward_flop_count(grad.shape, query.shape, key.shape, value.shape))


def _dot(first: Tensor, second: Tensor) -> int:
    return 2 * first.numel()


def _matrix_vector(matrix: Tensor, vector: Tensor) -> int:
    return 2 * matrix.numel()


def _add_matrix_vector(added: Tensor, matrix: Tensor, vector: Tensor, **_: object) -> int:
    return 2 * matrix.numel()


# PyTorch counts these as 0; measurement 2 names the trap (ViT-Tiny would lose 14 % of its MACs).
_EXTRA_FORMULAS: Mapping[str, Callable[..., int]] = {
    "aten.dot": _dot,
    "aten.vdot": _dot,
    "aten.mv": _matrix_vector,
    "aten.addmv": _add_matrix_vector,
    "aten._scaled_dot_product_flash_attention_for_cpu": _fused_cpu_attention,
    "aten._scaled_dot_product_flash_attention_for_cpu_backward": _fused_cpu_attention_backward,
}


_REGISTERED = cast("Mapping[object, Callable[..., int]]", flop_registry)  # torch declares no type for its formulas


@functools.cache
def _is_composite(operator: Any) -> bool:
    """Whether an operator (linear, matmul) falls apart into others, which then have formulas."""
    if operator is torch.ops.prim.device.default:
        return False
    return bool(operator.has_kernel_for_dispatch_key(torch.DispatchKey.CompositeImplicitAutograd))


class MacCounter(TorchDispatchMode):
    """Counts multiply-accumulates of everything that runs inside it, forward and backward.

    macs: the sum; uncounted: {operator: (calls, output elements)}. Raises UsageError at a contraction without a
    formula.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        self.calls: Counter[str] = Counter()
        self.elements: Counter[str] = Counter()

    @property
    def macs(self) -> int:
        """Multiply-accumulates so far: half of the floating point operations."""
        return self.flops // 2

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        packet = func._overloadpacket
        name = str(packet)
        if packet not in flop_registry and name not in _EXTRA_FORMULAS and _is_composite(func):
            with self:
                return func.decompose(*args, **kwargs)
        result = func(*args, **kwargs)
        if name in _EXTRA_FORMULAS:
            self.flops += _EXTRA_FORMULAS[name](*args, **kwargs)
        elif packet in flop_registry:
            self.flops += int(_REGISTERED[packet](*args, **kwargs, out_val=result))
        elif name in _CONTRACTIONS:
            raise UsageError(
                f"Operator {name} has no formula for its multiply-accumulates; register one in methods/graph/cost.py."
            )
        else:
            self.calls[name] += 1
            outputs = result if isinstance(result, (tuple, list)) else (result,)
            self.elements[name] += sum(value.numel() for value in outputs if isinstance(value, Tensor))
        return result


Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class NodeCost:
    """Cost of one evaluation at batch size 1. uncounted: {operator: (calls, output elements)}."""

    macs: int
    output: Shape
    uncounted: Mapping[str, tuple[int, int]]


_KNOWN: dict[tuple[object, ...], NodeCost] = {}


def operation_cost(operation: Operation, shapes: Sequence[Shape]) -> NodeCost:
    """Cost of an operation on inputs of these shapes, counted once a process: a thousand drawn architectures cost a
    thousand sums.
    """
    key = (operation.factory, canonical_config(operation.config), tuple(shapes))
    if key not in _KNOWN:
        _KNOWN[key] = count(operation.module, shapes)
    return _KNOWN[key]


def node_costs(graph: TaskGraph, inputs: Mapping[str, Shape]) -> dict[str, NodeCost]:
    """{node: cost} for the live nodes. inputs: {input: shape with batch size 1}."""
    shapes: dict[str, Shape] = dict(inputs)
    costs: dict[str, NodeCost] = {}
    for node in graph.reachable():
        costs[node.name] = operation_cost(node.operation, [shapes[value.name] for value in node.inputs])
        shapes[node.name] = costs[node.name].output
    return costs


@torch.no_grad()
def count(module: nn.Module, shapes: Sequence[Shape]) -> NodeCost:
    """Cost of a module on float inputs of these shapes, by running a copy of it on `meta` tensors in eval mode."""
    skeleton = copied(module).to("meta").eval()
    inputs = [torch.empty(shape, device="meta") for shape in shapes]
    with MacCounter() as counter:
        result = skeleton(*inputs)
    uncounted = {name: (calls, counter.elements[name]) for name, calls in sorted(counter.calls.items())}
    return NodeCost(counter.macs, tuple(result.shape), uncounted)


@dataclasses.dataclass(frozen=True)
class Size:
    """Parameters, each stored tensor once (tied tensors once). Where an operation declares masks, a weight counts for
    the tasks whose masks keep it, and not at all where none does.

    by origin: backbone + added + heads = total; by use: shared (read by >= 2 tasks) + task_specific + dead = total.
    active: {task or "all": parameters read when only that task is asked for}. x_backbone: (backbone + added) / P_ref.
    dense: elements that are stored, whatever the masks; nonzero: elements that count and are not 0 (unstructured zeros
    save no time). trainable: of dense. buffers: elements of buffers. weight_sharing: 1 - total / sum of active[t].
    """

    total: int
    backbone: int
    added: int
    heads: int
    shared: int
    task_specific: int
    dead: int
    active: Mapping[str, int]
    x_backbone: float
    trainable: int
    buffers: int
    dense: int
    nonzero: int
    weight_sharing: float


@dataclasses.dataclass
class _Use:
    """A stored parameter, and what of it is read: by node, the mask (None: all of it) and the tasks."""

    parameter: nn.Parameter
    origin: Origin
    reads: list[tuple[Tensor | None, tuple[str, ...]]] = dataclasses.field(default_factory=list)

    def kept(self) -> Tensor:
        """bool, of the parameter's shape: what any node reads. One bool for all elements where nothing is masked."""
        return _any([mask for mask, _ in self.reads])

    def read_by(self, task: str) -> Tensor:
        """As `kept`, by the nodes that the task needs."""
        return _any([mask for mask, tasks in self.reads if task in tasks])

    def count(self, which: Tensor) -> int:
        """Elements of the parameter where `which` is true."""
        return int(torch.count_nonzero(which)) * (self.parameter.numel() // max(1, which.numel()))


def _any(masks: Sequence[Tensor | None]) -> Tensor:
    if any(mask is None for mask in masks):
        return torch.ones(1, dtype=torch.bool)
    kept = [mask != 0 for mask in masks if mask is not None]
    return torch.stack([one.cpu() for one in kept]).any(0) if kept else torch.zeros(1, dtype=torch.bool)


def _uses(graph: TaskGraph) -> list[_Use]:
    """Every parameter once, with the nodes that read it."""
    found: dict[int, _Use] = {}
    users = graph.users()
    for node in graph.nodes.values():
        masks = node.operation.kept(node.module)
        for name, parameter in node.module.named_parameters():
            use = found.setdefault(id(parameter), _Use(parameter, node.operation.origin_of(name)))
            use.reads.append((masks.get(id(parameter)), users[node.name]))
    return list(found.values())


@torch.no_grad()
def size(graph: TaskGraph, reference_parameters: int) -> Size:
    """Parameter counts of a graph as it is. reference_parameters: P_ref = stem + blocks + tail of the plain
    backbone.
    """
    by_origin = dict.fromkeys(("backbone", "added", "heads"), 0)
    active = dict.fromkeys(graph.tasks, 0)
    shared = task_specific = dead = trainable = dense = nonzero = 0
    for use in _uses(graph):
        kept = use.kept()
        readers = torch.zeros(1, dtype=torch.int64)
        for task in graph.tasks:
            read = use.read_by(task)
            active[task] += use.count(read)
            readers = readers + read
        by_origin[use.origin] += use.count(kept)
        shared += use.count(readers >= 2)
        task_specific += use.count(readers == 1)
        dead += use.count(kept & (readers == 0))
        dense += use.parameter.numel()
        trainable += use.parameter.numel() if use.parameter.requires_grad else 0
        nonzero += int(torch.count_nonzero((use.parameter != 0).cpu() & kept))
    total = sum(by_origin.values())
    buffers = {id(buffer): buffer.numel() for node in graph.nodes.values() for buffer in node.module.buffers()}
    return Size(
        total=total,
        backbone=by_origin["backbone"],
        added=by_origin["added"],
        heads=by_origin["heads"],
        shared=shared,
        task_specific=task_specific,
        dead=dead,
        active={**active, "all": total},
        x_backbone=(by_origin["backbone"] + by_origin["added"]) / reference_parameters,
        trainable=trainable,
        buffers=sum(buffers.values()),
        dense=dense,
        nonzero=nonzero,
        weight_sharing=1 - total / sum(active.values()) if total else 0.0,
    )


@dataclasses.dataclass(frozen=True)
class Compute:
    """Multiply-accumulates for one input. macs_joint: all tasks for one image, None on multi-domain data.

    backbone and heads partition macs_joint (macs_sum on multi-domain data); added operations count as backbone there.
    """

    macs_task: Mapping[str, int]
    macs_joint: int | None
    macs_sum: int
    macs_backbone: int
    macs_heads: int
    activation_sharing: float | None
    uncounted_ops: Mapping[str, tuple[int, int]]


def compute(graph: TaskGraph, inputs: Mapping[str, Shape]) -> Compute:
    """Compute of a graph at batch size 1. inputs: {input: shape}, e.g. {"image": (1, 3, 36, 36)}."""
    costs = node_costs(graph, inputs)
    macs_task = {task: sum(costs[node.name].macs for node in graph.reachable([task])) for task in graph.tasks}
    joint = sum(cost.macs for cost in costs.values())
    heads = sum(costs[node.name].macs for node in graph.reachable() if node.operation.origin == "heads")
    calls: Counter[str] = Counter()
    elements: Counter[str] = Counter()
    for cost in costs.values():
        for name, (n_calls, n_elements) in cost.uncounted.items():
            calls[name] += n_calls
            elements[name] += n_elements
    single = len(graph.inputs) == 1
    macs_sum = sum(macs_task.values())
    return Compute(
        macs_task=macs_task,
        macs_joint=joint if single else None,
        macs_sum=macs_sum,
        macs_backbone=joint - heads,
        macs_heads=heads,
        activation_sharing=1 - joint / macs_sum if single and macs_sum else None,
        uncounted_ops={name: (calls[name], elements[name]) for name in sorted(calls)},
    )
