"""Cells of small suites, planned, and records of cells that nobody trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmark.plan.cells import PlannedCell, plan
from benchmark.plan.suite import Suite
from benchmark.records.record import Record
from benchmark.records.store import Store
from datasets.contracts import DatasetSpec
from methods.backbones.backbone import Backbone, BackboneConfig, create_backbone
from methods.backbones.heads import create_head
from methods.graph.task_graph import TaskGraph
from methods.plain import plain_graph


def cells(**changes: Any) -> list[PlannedCell]:
    document: dict[str, Any] = {
        "name": "tiny",
        "data": [{"dataset": "multi_mnist", "tasks": ["left", "right"]}],
        "backbones": ["test_resnet"],
        "methods": ["hard_sharing", "single_task"],
        "seeds": [0],
        "budget": {"steps": 3, "cycles": 3},
        "recipe": {"batch_size": 16},
    }
    return plan(Suite.model_validate({**document, **changes}))


def toy_cells(multi: bool = False, **changes: Any) -> list[PlannedCell]:
    """The same cells on the data set of the fixture `toy_data`, whose report has 20 images and not 5,000."""
    data = {"dataset": "toy", "tasks": ["left", "right"], "options": {"multi": multi}}
    return cells(**{"data": [data], **changes})


def planned(dataset: str = "multi_mnist", **changes: Any) -> list[PlannedCell]:
    data: dict[str, Any] = {"dataset": dataset}
    if dataset == "multi_mnist":
        data["tasks"] = ["left", "right"]
    document: dict[str, Any] = {
        "name": "tiny",
        "data": [data],
        "backbones": ["test_resnet"],
        "methods": ["single_task", "hard_sharing"],
        "seeds": [0],
        "budget": {"steps": 2, "cycles": 2},
        "recipe": {"batch_size": 4},
    }
    return plan(Suite.model_validate({**document, **changes}))


def untrained(cell: PlannedCell, spec: DatasetSpec) -> TaskGraph:
    """The cell's network with its initial weights."""

    def backbone() -> Backbone:
        return create_backbone(BackboneConfig(cell.settings.backbone.name, image_size=spec.native_size), seed=0)

    def graph(tasks: tuple[str, ...]) -> TaskGraph:
        shared = backbone()
        return plain_graph(spec, tasks, shared, lambda task: create_head(spec.task(task), shared, 0))

    return (
        TaskGraph.merged([graph((task,)) for task in spec.task_names]) if cell.is_reference else graph(spec.task_names)
    )


def store_cells(root: Path, cells: list[PlannedCell]) -> dict[str, Record]:
    """{method: record} of cells that are done without having been trained."""
    from benchmark.plan.cells import cell_spec

    store, records = Store(root), {}
    for cell in cells:
        spec = cell_spec(cell.settings)
        graph = untrained(cell, spec)
        document = json.dumps(graph.to_json()).encode()
        record = Record(
            cell=cell.document,
            status="done",
            compute={"macs_joint": 1 if spec.domains == "single" else None},
            audit={
                "reference": "single_task" if cell.is_reference else None,
                "input_size": list(spec.native_size),
                "normalisation": {"mean": [0.1] * 3, "std": [0.2] * 3, "bgr": False},
            },
            graph={"hash": graph.hash(), "file": "graph.json"},
            artifacts={
                "graph": store.write_artifact(cell.key, "graph", document, "json"),
                "weights": store.write_artifact(cell.key, "weights", graph.to_bytes(), "weights"),
            },
        )
        records[cell.settings.method.name] = store.write(record)
    return records
