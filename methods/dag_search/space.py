"""The DAG over a backbone: its states, the operations of its edges and its three sets of alignments. Section 3.

Symbols. N: hidden states, one more than the backbone has blocks; v_1 has the shape of the stem's output v_0, v_{i+1}
that of block i's. M: flow constant. E: edges (i, j) with 1 <= j - i <= M. o_ij = Block_j' o X_ij: an own copy of the
block that produces v_j behind the alignment of v_i to its input. R_i: read-in alignments v_0 -> v_i. W_i: read-out
alignments v_i -> v_N. Theta: all weights but gates and heads.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np
from torch import nn

from datasets.contracts import DatasetSpec
from methods.backbones.alignment import Aligner
from methods.backbones.backbone import Backbone, create_backbone
from methods.control import ArchitectureSize
from methods.dag_search.flow import BoolArray, Edge, FlowGraph, flow_edges
from methods.graph.cost import Shape, node_costs
from methods.graph.operations import Operation, parameterless
from methods.graph.task_graph import TaskGraph, Value


class OwnOperation(Protocol):
    """A task's version of an operation, where tasks do not share all of its weights."""

    def __call__(self, operation: Operation, task: int) -> Operation:
        """The same operation where the task shares it."""


class Adds(Protocol):
    """What takes the operations of a network, as `TaskGraph` does."""

    def add(self, operation: Operation, *inputs: Value) -> Value:
        """The value of this operation on these inputs."""


@dataclasses.dataclass(frozen=True)
class EdgeOperation:
    """o_ij: `align` (X_ij), then `block`."""

    align: Operation
    block: Operation


@dataclasses.dataclass(frozen=True)
class DagSpace:
    """Everything that tasks share. read_in, read_out: by state 1..N (position 0 is state 1); edges: as `graph.inner`.

    exists: which of the edges of `graph` there are at all.
    """

    graph: FlowGraph
    stem: Operation
    read_in: Sequence[Operation]
    edges: Sequence[EdgeOperation]
    read_out: Sequence[Operation]
    tail: Operation
    exists: BoolArray
    aggregate: str

    def operations(self) -> list[Operation]:
        """Every operation once, in the order stem, read-ins, edges, read-outs, tail."""
        inner = [part for edge in self.edges for part in (edge.align, edge.block)]
        return [self.stem, *self.read_in, *inner, *self.read_out, self.tail]

    def n_parameters(self, kept: Sequence[BoolArray]) -> int:
        """Backbone and added parameters of the union of all tasks' edges."""
        return self._parameters_of(self._parts(kept))

    def _parameters_of(self, parts: Iterable[Operation]) -> int:
        weights = {id(p): p.numel() for part in parts for p in part.module.parameters()}
        return sum(weights.values())

    def _parts(self, kept: Sequence[BoolArray]) -> list[Operation]:
        """The operations of the union of all tasks' edges."""
        union = np.logical_or.reduce(kept).tolist()
        n, inner = self.graph.n_states, len(self.graph.inner)
        parts = [self.stem, self.tail]
        parts += itertools.compress(self.read_in, union[:n])
        for edge in itertools.compress(self.edges, union[n : n + inner]):
            parts += [edge.align, edge.block]
        parts += itertools.compress(self.read_out, union[n + inner :])
        return parts

    def task_graph(
        self,
        data: DatasetSpec,
        kept: Sequence[BoolArray],
        head: Callable[[str], Operation],
        own: OwnOperation = lambda operation, task: operation,
    ) -> TaskGraph:
        """The network of these edges, a row of `kept` for each task. own: a task's version of an operation."""
        graph = TaskGraph(data.inputs)
        for task, (name, edges) in enumerate(zip(data.task_names, kept, strict=True)):
            feature = self._task(graph, graph.input(data.input_of(name)), edges, functools.partial(own, task=task))
            graph.output(name, graph.add(head(name), feature))
        return graph

    def sizes(
        self, data: DatasetSpec, backbone: Backbone, heads: Mapping[str, Operation]
    ) -> Callable[[Sequence[BoolArray]], ArchitectureSize]:
        """A function from the edges of all tasks to the size of their network: parameters and MACs, joint or the sum
        where tasks have their own images. To be asked for before a supernet puts norms of its own into the operations.
        """
        shape: Shape = (1, backbone.config.in_chans, *data.native_size)
        whole = self.task_graph(data, [self.exists] * len(heads), heads.__getitem__)
        costs = node_costs(whole, dict.fromkeys(data.inputs, shape))
        macs = {id(node.operation.module): costs[node.name].macs for node in whole.reachable()}
        n_heads = sum(p.numel() for head in heads.values() for p in head.module.parameters())
        n_of = {id(part.module): self._parameters_of([part]) for part in self.operations()}
        apart = sum(n_of.values()) == self._parameters_of(self.operations())  # no weight belongs to two operations
        images = [whole.input(data.input_of(task)) for task in data.task_names]

        def size_of(kept: Sequence[BoolArray]) -> ArchitectureSize:
            network = _Counted(macs)
            for image, edges in zip(images, kept, strict=True):
                self._task(network, image, edges, lambda operation: operation)
            n_macs = network.macs + sum(macs[id(head.module)] for head in heads.values())
            n = sum(n_of[id(part.module)] for part in self._parts(kept)) if apart else self.n_parameters(kept)
            return ArchitectureSize(n + n_heads, n_macs)

        return size_of

    def _task(self, graph: Adds, image: Value, kept: BoolArray, own: Callable[[Operation], Operation]) -> Value:
        """One task's feature after the tail."""
        n = self.graph.n_states
        v0 = graph.add(own(self.stem), image)
        entering: list[list[Value]] = [[] for _ in range(n + 1)]
        states: dict[int, Value] = {}
        for j in range(1, n + 1):
            if kept[j - 1]:
                entering[j].append(graph.add(own(self.read_in[j - 1]), v0))
            for e, (i, target) in enumerate(self.graph.inner):
                if target == j and kept[n + e]:
                    aligned = graph.add(own(self.edges[e].align), states[i])
                    entering[j].append(graph.add(own(self.edges[e].block), aligned))
            if entering[j]:
                states[j] = self._combined(graph, entering[j])
        read = [graph.add(own(self.read_out[i - 1]), states[i]) for i in range(1, n + 1) if kept[len(kept) - n + i - 1]]
        return graph.add(own(self.tail), self._combined(graph, read))

    def _combined(self, graph: Adds, values: Sequence[Value]) -> Value:
        """Their mean, or their sum under `aggregate: sum`."""
        return values[0] if len(values) == 1 else graph.add(self._aggregation, *values)

    @functools.cached_property
    def _aggregation(self) -> Operation:
        return parameterless("add" if self.aggregate == "sum" else "mean")


class _Counted:
    """Counts the multiply-accumulates of a network in place of building it: each operation on equal inputs once, as in
    a task graph.

    cost: of an operation by the id of its module.
    """

    def __init__(self, cost: Mapping[int, int]) -> None:
        self.cost, self.macs = cost, 0
        self._known: dict[tuple[object, ...], Value] = {}  # {(operation, its inputs): the value}

    def add(self, operation: Operation, *inputs: Value) -> Value:
        """As of `TaskGraph`."""
        if isinstance(operation.module, nn.Identity):
            return inputs[0]
        key = (id(operation.module), *inputs)
        if key not in self._known:
            self._known[key] = Value(str(len(self._known)))
            self.macs += self.cost[id(operation.module)]
        return self._known[key]


def build_space(
    make_backbone: Callable[[], Backbone],
    seed_of: Callable[[str], int],
    flow_constant: int,
    *,
    read_in: bool,
    read_out: bool,
    aggregate: str,
) -> DagSpace:
    """The DAG over a backbone.

    make_backbone: a fresh copy with the cell's initial weights. seed_of: seed of a named stream. Weights that are not
    random: every copy of a block starts from it. From scratch: chain edges keep the backbone's draw, edges of each
    longer span draw a backbone of their own (stream named after the span, so that M = 3 has what M = 5 has of it).
    """
    chain = make_backbone()
    n = len(chain.blocks) + 1
    graph = FlowGraph(n, flow_edges(n, flow_constant))
    device = next(chain.module().parameters()).device
    sources = {1: chain}
    for span in range(2, flow_constant + 1):
        if chain.from_scratch:
            sources[span] = create_backbone(chain.config, seed=seed_of(f"edges-of-span-{span}"))
            sources[span].module().to(device)
        else:
            sources[span] = make_backbone()
    aligner = Aligner(chain)

    def align(name: str, source: int, target: int) -> Operation:
        return aligner.operation(source, target, seed_of(f"alignment/{name}"))

    edges = [
        # The block that produces v_j has position j - 2 and takes what stands at place j - 2; v_i is at place i - 1.
        EdgeOperation(align(f"X/{i}-{j}", i - 1, j - 2), sources[j - i].block_operation(j - 2))
        for i, j in graph.inner
    ]
    exists = np.ones(len(graph.edges), dtype=np.bool_)
    exists[1:n] = read_in
    exists[len(exists) - n : -1] = read_out
    return DagSpace(
        graph=graph,
        stem=chain.stem_operation(),
        read_in=[align(f"R/{i}", 0, i - 1) for i in range(1, n + 1)],
        edges=edges,
        read_out=[align(f"W/{i}", i - 1, n - 1) for i in range(1, n + 1)],
        tail=chain.tail_operation(),
        exists=exists,
        aggregate=aggregate,
    )


def edge_name(edge: Edge, n_states: int) -> str:
    """An edge for people: `in 3`, `3-5`, `out 5`."""
    source, target = edge
    if source == 0:
        return f"in {target}"
    return f"out {source}" if target == n_states + 1 else f"{source}-{target}"
