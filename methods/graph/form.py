"""The forms of a task graph: its structure, which is hashed, and its JSON document with a table of tensors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from datasets.errors import UsageError
from methods.graph.operations import Config, Operation, build_module, canonical_config, statistics_names

if TYPE_CHECKING:
    from methods.graph.task_graph import TaskGraph, Value

FORMAT = 1  # of the JSON form


def structure_of(graph: TaskGraph) -> dict[str, object]:
    """The nodes that tasks need, numbered by a depth-first walk from the outputs, tasks in alphabetical order."""
    order: dict[str, int] = {}
    for task in sorted(graph.outputs):
        _number(graph, graph.outputs[task], order)
    users = graph.users()
    labels: dict[int, int] = {}
    nodes = []
    for name in order:
        node = graph.nodes[name]
        weights = {
            local: labels.setdefault(id(parameter), len(labels))
            for local, parameter in sorted(node.module.named_parameters(remove_duplicate=False))
        }
        nodes.append(
            {
                "kind": node.operation.kind,
                "config": json.loads(canonical_config(node.operation.config)),
                "origin": node.operation.origin,
                **_own_origins(node.operation),
                "weights": weights,
                "inputs": [order.get(value.name, value.name) for value in node.inputs],
                "tasks": sorted(users[name]),
            }
        )
    outputs = {task: order.get(value.name, value.name) for task, value in sorted(graph.outputs.items())}
    return {"nodes": nodes, "outputs": outputs}


def _own_origins(operation: Operation) -> dict[str, object]:
    """The entry of a node for parameters of another origin; none where there are none, so that hashes stay."""
    return {"origins": dict(sorted(operation.origins.items()))} if operation.origins else {}


def _number(graph: TaskGraph, value: Value, order: dict[str, int]) -> None:
    """Post-order numbering without recursion (deep graphs)."""
    stack: list[tuple[Value, bool]] = [(value, False)]
    while stack:
        current, expanded = stack.pop()
        if current.name not in graph.nodes or current.name in order:
            continue
        if expanded:
            order[current.name] = len(order)
        else:
            stack.append((current, True))
            stack.extend((parent, False) for parent in reversed(graph.nodes[current.name].inputs))


def tensor_table(graph: TaskGraph) -> tuple[dict[str, dict[str, str]], dict[str, Tensor]]:
    """({node: {local name: tensor name}}, {tensor name: tensor}); a tied weight has one name, its first."""
    names: dict[int, str] = {}
    tensors: dict[str, Tensor] = {}
    table: dict[str, dict[str, str]] = {}
    for node in graph.nodes.values():
        table[node.name] = {}
        for local, tensor in node.module.state_dict(keep_vars=True).items():
            name = names.setdefault(id(tensor), f"{node.name}.{local}")
            tensors[name] = tensor
            table[node.name][local] = name
    return table, tensors


def document_of(graph: TaskGraph) -> dict[str, object]:
    """The JSON document of a graph, without its tensors."""
    table, _ = tensor_table(graph)
    nodes = [
        {
            "name": node.name,
            "kind": node.operation.kind,
            "config": json.loads(canonical_config(node.operation.config)),
            "origin": node.operation.origin,
            **_own_origins(node.operation),
            "inputs": [value.name for value in node.inputs],
            "tensors": table[node.name],
            **({"masks": dict(node.operation.masks)} if node.operation.masks else {}),
        }
        for node in graph.nodes.values()
    ]
    outputs = {task: value.name for task, value in graph.outputs.items()}
    return {"format": FORMAT, "inputs": list(graph.inputs), "nodes": nodes, "outputs": outputs}


def stored_operations(
    document: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> Iterator[tuple[str, Operation, Sequence[str]]]:
    """(name, operation, names of its inputs) of every node of a document, in order.

    Each tensor name is one Parameter in the whole graph. Raises UsageError for another format, a missing or
    mis-shaped tensor.
    """
    if document.get("format") != FORMAT:
        raise UsageError(f"Task graph has format {document.get('format')!r}; this version reads {FORMAT}.")
    parameters: dict[str, nn.Parameter] = {}
    for entry in document["nodes"]:
        module = build_module(entry["kind"], cast(Config, entry["config"]))
        _fill(module, entry, tensors, parameters)
        further = (entry.get("masks", {}), entry.get("origins", {}))
        operation = Operation(entry["kind"], entry["config"], module, entry["origin"], *further)
        yield entry["name"], operation, entry["inputs"]


def _fill(
    module: nn.Module, entry: Mapping[str, Any], tensors: Mapping[str, Tensor], parameters: dict[str, nn.Parameter]
) -> None:
    """Give a fresh module the stored tensors; a weight under one name is one Parameter in the whole graph."""
    state = module.state_dict(keep_vars=True)
    if set(state) != set(entry["tensors"]):
        differing = sorted(set(state) ^ set(entry["tensors"]))
        raise UsageError(f"Node {entry['name']!r}: stored and built module differ in {', '.join(differing[:3])}.")
    for local, name in entry["tensors"].items():
        stored = tensors.get(name)
        if stored is None or stored.shape != state[local].shape:
            found = "is missing" if stored is None else f"has shape {tuple(stored.shape)}"
            raise UsageError(f"Tensor {name!r} {found}; node {entry['name']!r} needs {tuple(state[local].shape)}.")
        prefix, _, attribute = local.rpartition(".")
        owner = module.get_submodule(prefix)
        if local in statistics_names(module) or not isinstance(state[local], nn.Parameter):
            owner._buffers[attribute] = stored.clone()
        else:
            owner._parameters[attribute] = parameters.setdefault(name, nn.Parameter(stored.clone()))
