"""Task graphs: the result of every method, and the only thing that is measured.

A graph is built from operations. Equal operations on equal inputs become one node, so computation that tasks share is
done once and sharing can be read off the graph. Operations whose masks are different tensors are not equal. *Weights
belong to operations, norm statistics belong to nodes*: an operation fed with two inputs keeps one set of weights and
two sets of statistics, so it is right for each of them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import operator
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase

from datasets.contracts import Batch
from datasets.errors import UsageError, unknown
from methods.graph.form import document_of, stored_operations, structure_of, tensor_table
from methods.graph.operations import Operation, Origin, SideBySide, Together, view_with_own_statistics

FEWEST_TOGETHER = 3  # fewer run as fast or faster one by one


@dataclasses.dataclass(frozen=True)
class Value:
    """A tensor in a graph: an input, or the output of a node. Only meaningful in the graph that made it."""

    name: str


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
    """One evaluation of an operation. module: shares the operation's weights, owns this node's norm statistics."""

    name: str
    operation: Operation
    inputs: tuple[Value, ...]
    module: nn.Module


def _norms(module: nn.Module) -> list[_NormBase]:
    """The norms whose statistics belong to the node that runs the module."""
    return [part for part in module.modules() if isinstance(part, _NormBase)]


def _side_by_side(nodes: Sequence[Node]) -> tuple[list[Node], dict[str, list[Node]]]:
    """The nodes in an order in which they can run, and {node: those that it runs together with, itself included}, where
    that pays. Equally deep nodes do not need each other, so with groups the order is by depth.
    """
    depth: dict[str, int] = {}
    groups: dict[tuple[object, ...], list[Node]] = {}
    for node in nodes:
        depth[node.name] = 1 + max((depth.get(value.name, 0) for value in node.inputs), default=0)
        if isinstance(node.module, SideBySide):
            key = (type(node.module), depth[node.name], node.module.alike(node.inputs))
            groups.setdefault(key, []).append(node)
    found = {node.name: group for group in groups.values() if len(group) >= FEWEST_TOGETHER for node in group}
    return (sorted(nodes, key=lambda node: depth[node.name]) if found else list(nodes)), found


class TaskGraph:
    """A directed acyclic graph of operations with one output per task.

    Built with `input`, `add` and `output`; `add` returns an existing node's value where operation and inputs are equal
    to it, and its input where the operation is an identity.
    """

    def __init__(self, inputs: Sequence[str]) -> None:
        self.inputs: tuple[str, ...] = tuple(inputs)
        self.nodes: dict[str, Node] = {}  # in topological order: a node is added after its inputs
        self.outputs: dict[str, Value] = {}
        self._merged: dict[tuple[object, ...], Value] = {}
        self._owned_norms: set[int] = set()

    # Building

    def input(self, name: str) -> Value:
        """The value of an input. Raises UnknownNameError."""
        if name not in self.inputs:
            raise unknown("graph input", name, self.inputs)
        return Value(name)

    def add(self, operation: Operation, *inputs: Value) -> Value:
        """The value of this operation on these inputs: a new node, or the equal one that exists."""
        if isinstance(operation.module, nn.Identity):
            return inputs[0]
        key = (operation.identity(), inputs)
        if key in self._merged:
            return self._merged[key]
        for value in inputs:
            if value.name not in self.nodes and value.name not in self.inputs:
                raise unknown("graph value", value.name, [*self.inputs, *self.nodes])
        # The first node that uses a norm runs the operation's own module; every further one gets its own statistics.
        taken = not self._owned_norms.isdisjoint(map(id, _norms(operation.module)))
        module = view_with_own_statistics(operation.module) if taken else operation.module
        return self._insert(Node(self._free_name(operation), operation, inputs, module))

    def output(self, task: str, value: Value) -> None:
        """Make a value the prediction of a task. Raises UsageError where the task has one already."""
        if task in self.outputs:
            raise UsageError(f"Task {task!r} has an output already.")
        self.outputs[task] = value

    def _free_name(self, operation: Operation) -> str:
        return f"{operation.kind.replace('.', '_')}_{len(self.nodes)}"

    def _insert(self, node: Node) -> Value:
        self.nodes[node.name] = node
        self._owned_norms.update(map(id, _norms(node.module)))
        self._merged[(node.operation.identity(), node.inputs)] = Value(node.name)
        return Value(node.name)

    # Structure

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks in the order in which their outputs were set."""
        return tuple(self.outputs)

    def reachable(self, tasks: Iterable[str] | None = None) -> list[Node]:
        """The nodes that these tasks need (all tasks by default), in topological order."""
        wanted = {self.outputs[task].name for task in (self.tasks if tasks is None else tasks)}
        needed: list[Node] = []
        for node in reversed(self.nodes.values()):
            if node.name in wanted:
                needed.append(node)
                wanted.update(value.name for value in node.inputs)
        return needed[::-1]

    def users(self) -> dict[str, tuple[str, ...]]:
        """{node: tasks that need it}; an empty tuple marks a dead node."""
        users: dict[str, list[str]] = {name: [] for name in self.nodes}
        for task in self.tasks:
            for node in self.reachable([task]):
                users[node.name].append(task)
        return {name: tuple(tasks) for name, tasks in users.items()}

    def subgraph(self, *tasks: str) -> TaskGraph:
        """The part that these tasks need. Nodes, weights and statistics are the same objects."""
        for task in tasks:
            if task not in self.outputs:
                raise unknown("task of the graph", task, self.outputs)
        part = TaskGraph(self.inputs)
        for node in self.reachable(tasks):
            part._insert(node)
        part.outputs = {task: self.outputs[task] for task in tasks}
        return part

    def pruned(self) -> TaskGraph:
        """The graph without the nodes that no task needs."""
        return self.subgraph(*self.tasks)

    @classmethod
    def merged(cls, graphs: Sequence[TaskGraph]) -> TaskGraph:
        """One graph that holds several, their tasks in order. Inputs of the same name become one input.

        Modules, weights and statistics are the same objects. Raises UsageError if two graphs have a task in common.
        """
        whole = cls(list(dict.fromkeys(name for graph in graphs for name in graph.inputs)))
        for graph in graphs:
            values = {name: Value(name) for name in graph.inputs}
            for node in graph.nodes.values():
                arguments = tuple(values[value.name] for value in node.inputs)
                known = whole._merged.get((node.operation.identity(), arguments))
                # Not `add`: the node keeps its own module, and with it the statistics that it has gathered.
                values[node.name] = known or whole._insert(
                    Node(whole._free_name(node.operation), node.operation, arguments, node.module)
                )
            for task, value in graph.outputs.items():
                whole.output(task, values[value.name])
        return whole

    def with_shared_statistics(self) -> TaskGraph:
        """The graph under the norm rule `shared`: all nodes of an operation move and read its one set of statistics.

        Weights and structure are those of this graph; the statistics are those that its operations hold.
        """
        shared = TaskGraph(self.inputs)
        for node in self.nodes.values():
            shared._insert(dataclasses.replace(node, module=node.operation.module))
        shared.outputs = dict(self.outputs)
        return shared

    def require_deployable(self) -> None:
        """Raise UsageError where a node is dead: leftovers of a search must not be counted or stored as the product."""
        dead = [self.nodes[name] for name, tasks in self.users().items() if not tasks]
        if dead:
            alive = {id(p) for node in self.reachable() for p in node.module.parameters()}
            left = {id(p): p.numel() for node in dead for p in node.module.parameters() if id(p) not in alive}
            names = ", ".join(node.name for node in dead[:5])
            raise UsageError(
                f"The graph has {len(dead)} dead nodes ({names}) with dead = {sum(left.values())} parameters; "
                "call pruned() before it is deployed."
            )

    def parameters(self, origin: Origin | None = None) -> list[nn.Parameter]:
        """Every parameter once, tied ones too; of one origin, or of all."""
        found: dict[int, nn.Parameter] = {}
        for node in self.nodes.values():
            for name, parameter in node.module.named_parameters():
                if origin is None or node.operation.origin_of(name) == origin:
                    found[id(parameter)] = parameter
        return list(found.values())

    # Running

    def module(self, *tasks: str, together: bool = False) -> fx.GraphModule:
        """A module from {input: [B, 3, H, W]} to {task: prediction} (of all tasks by default).

        It runs the graph's own nodes: training it trains the graph. together: nodes that can run side by side do
        (`operations.SideBySide`); their results differ by rounding.
        """
        graph = fx.Graph()
        images = graph.placeholder("images")
        nodes = self.reachable(tasks or None)
        wanted = {value.name for node in nodes for value in node.inputs}
        wanted |= {self.outputs[task].name for task in tasks or self.tasks}
        values: dict[str, fx.Node] = {}
        for name in self.inputs:
            if name in wanted:
                values[name] = graph.call_function(operator.getitem, (images, name))
        root: dict[str, Any] = {}
        nodes, groups = _side_by_side(nodes) if together else (nodes, {})
        for node in nodes:
            if node.name in values:
                continue
            group = groups.get(node.name)
            inputs = tuple(values[value.name] for member in group or [node] for value in member.inputs)
            if group is None:
                root[node.name] = node.module
                values[node.name] = graph.call_module(node.name, inputs)
                continue
            name = f"together_{node.name}"
            root[name] = Together([cast(SideBySide, member.module) for member in group])
            outputs = graph.call_module(name, inputs)
            for number, member in enumerate(group):
                values[member.name] = graph.call_function(operator.getitem, (outputs, number))
        graph.output({task: values[self.outputs[task].name] for task in tasks or self.tasks})
        module = fx.GraphModule(root, graph, class_name="TaskGraphModule")
        # fx wraps every call to annotate errors with its source; at batch size 1 the wrapper costs a percent or two.
        type(module).__call__ = nn.Module.__call__  # type: ignore[method-assign]
        return module

    def network(self) -> GraphNetwork:
        """The graph as a network that is called with images and the tasks wanted."""
        return GraphNetwork(self)

    # JSON and safetensors

    def structure(self) -> dict[str, object]:
        """Merged nodes in a topological order that ignores names and the order in which the graph was built.

        Nodes are numbered by a depth-first walk from the outputs, tasks in alphabetical order; weights by first visit.
        """
        return structure_of(self)

    def hash(self) -> str:
        """sha256 of the structure: equal for equal networks, whatever the values of their weights. Spec:
        measurement 8.
        """
        text = json.dumps(self.structure(), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def weights_hash(self) -> str:
        """sha256 of every weight and statistic, in the order of the JSON form: equal for bit-equal networks."""
        digest = hashlib.sha256()
        for name, tensor in tensor_table(self)[1].items():
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def to_json(self) -> dict[str, object]:
        """The graph without its tensors, which `tensors()` gives. Raises UsageError where a node is dead."""
        self.require_deployable()
        return document_of(self)

    def tensors(self) -> dict[str, Tensor]:
        """Weights and statistics by the names that the JSON form uses, detached; tied tensors once."""
        # contiguous: safetensors stores no channels_last strides
        return {name: tensor.detach().contiguous() for name, tensor in tensor_table(self)[1].items()}

    def to_bytes(self) -> bytes:
        """The tensors as a safetensors file."""
        return save({name: tensor.cpu() for name, tensor in self.tensors().items()})

    @classmethod
    def from_json(cls, document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> TaskGraph:
        """The graph of `to_json` and `tensors`. Raises UsageError for another format, a missing or mis-shaped
        tensor.
        """
        graph = cls(document["inputs"])
        for name, operation, inputs in stored_operations(document, tensors):
            graph._insert(Node(name, operation, tuple(map(Value, inputs)), operation.module))
        graph.outputs = {task: Value(name) for task, name in document["outputs"].items()}
        return graph

    @classmethod
    def load(cls, json_file: Path, tensor_file: Path) -> TaskGraph:
        """The graph stored as a JSON file and a safetensors file."""
        return cls.from_json(json.loads(json_file.read_text(encoding="utf-8")), load_file(tensor_file))


class GraphNetwork(nn.Module):
    """A graph as a trainable network: `network(images, tasks)` runs only what those tasks need."""

    def __init__(self, graph: TaskGraph) -> None:
        super().__init__()
        self.graph = graph
        self.whole = graph.module(together=True)
        # Parts share the whole's nodes; a plain dictionary keeps them out of state_dict and parameters.
        self._parts: dict[tuple[str, ...], fx.GraphModule] = {graph.tasks: self.whole}

    def forward(self, images: Mapping[str, Tensor], tasks: Sequence[str]) -> dict[str, Tensor]:
        """images: {input: float [B, C, H, W]} for the inputs that the tasks read; gives {task: prediction}."""
        key = tuple(tasks)
        if key not in self._parts:
            self._parts[key] = self.graph.module(*key, together=True)
        predictions: dict[str, Tensor] = self._parts[key](images)
        return predictions


@torch.no_grad()
def estimate_statistics(network: nn.Module, batches: Iterable[Batch]) -> None:
    """Replace the norm statistics of every node by the plain mean over these batches (of fit).

    For a graph whose structure was just fixed; train/eval mode and the norms' momentum are put back. Everything but the
    norms is in eval mode: dropout would draw from the global stream, which a resumed run cannot repeat between stages.
    """
    norms = [norm for norm in _norms(network) if norm.track_running_stats]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    mode = network.training
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
    network.eval()
    for norm in norms:
        norm.train()
    try:
        for batch in batches:
            network(batch.images, tuple(batch.targets))
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        network.train(mode)
