"""The norm rules of a network whose graph is fixed: whose statistics a batch norm has, and whose weights.

A `TaskGraph` is `per_task_stats` by itself: weights belong to operations, statistics to nodes, so an operation that
tasks feed with different inputs keeps a set for each. These are the two other rules (soft_sharing 0, dmo 4).
"""

from __future__ import annotations

import copy
import dataclasses

from methods.graph.norms import has_statistics
from methods.graph.operations import Operation
from methods.graph.task_graph import TaskGraph


def with_shared_statistics(graph: TaskGraph) -> TaskGraph:
    """`shared`: one set of statistics for all nodes of an operation, which each of them moves. Weights and structure
    are those of `graph`, and the statistics are those that its operations hold.
    """
    shared = TaskGraph(graph.inputs)
    for node in graph.nodes.values():
        shared._insert(dataclasses.replace(node, module=node.operation.module))
    shared.outputs = dict(graph.outputs)
    return shared


def with_own_norms(operation: Operation) -> Operation:
    """`per_task`: a copy whose batch norms have weights and statistics of their own, with the same values; every other
    weight stays shared. What has no such norm is returned as it is.

    Its parameters count as `added`; those that are shared count where they came from.
    """
    own = {id(p) for norm in operation.module.modules() if has_statistics(norm) for p in norm.parameters(recurse=False)}
    if not own:
        return operation
    memo: dict[int, object] = {id(p): p for p in operation.module.parameters() if id(p) not in own}
    return dataclasses.replace(operation, module=copy.deepcopy(operation.module, memo), origin="added")
