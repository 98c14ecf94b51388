"""The stored network of a record: a task graph and its weights, as they were trained."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import safetensors.torch
from torch import Tensor

from benchmark.records.record import Record
from benchmark.records.store import Store
from datasets.errors import UnknownNameError, UsageError
from methods.graph.task_graph import TaskGraph


def load_graph(store: Store, record: Record) -> TaskGraph:
    """The stored network of a record. Raises StorageError if its files are missing or changed."""
    for name in ("graph", "weights"):
        if name not in record.artifacts:
            raise UsageError(f"Record {record.key} has no artifact {name!r}; run its cell again.")
    document = json.loads(store.read_artifact(record.artifacts["graph"]))
    tensors = safetensors.torch.load(store.read_artifact(record.artifacts["weights"]))
    return built_graph(document, tensors, f"The network of cell {record.key}")


def built_graph(document: Mapping[str, Any], tensors: Mapping[str, Tensor], what: str) -> TaskGraph:
    """The graph of its JSON form. Raises UsageError if other code wrote it in a form that this version cannot build."""
    try:
        return TaskGraph.from_json(document, tensors)
    except UnknownNameError as error:
        raise UnknownNameError(f"{error} {OF_A_PLUGIN}") from error
    except UsageError:
        raise
    except Exception as error:  # a factory met a configuration that it does not know
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UsageError(f"{what} was written by other code, which this version cannot read ({reason}).") from error


OF_A_PLUGIN = "What a plug-in brings needs its file: --plugin FILE, or plugins=[FILE] from Python."
