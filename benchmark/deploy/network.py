"""Trained networks of records as modules again, with a description of inputs, outputs and origin.

A record keeps its network as two artifacts, a task graph as JSON and its tensors as safetensors. A safetensors file
that `export` wrote holds both. Neither is unpickled, and neither needs the training code, which this module does not
import.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from benchmark.deploy.find import find_record
from benchmark.plan.plugins import load_plugins
from benchmark.records.networks import OF_A_PLUGIN, built_graph, load_graph
from benchmark.records.record import Record
from benchmark.records.store import StorageError, Store
from datasets.errors import UnknownNameError, UsageError, first_fault, unknown
from datasets.registry import dataset_spec, require_dataset
from methods.graph.task_graph import TaskGraph
from methods.registry import load_methods

GRAPH_FIELD, DESCRIPTION_FIELD = "sharebench.graph", "sharebench.network"  # metadata of an exported safetensors file
PREDICTIONS = (
    "class: logits, argmax is the class; attribute: one logit, positive means yes; semantic: logits per pixel; "
    "binary_map: a logit per pixel; others: values in the unit. Maps have the head's resolution: resize them "
    "(bilinear, align_corners=False) before argmax."
)


@dataclasses.dataclass(frozen=True)
class InputDescription:
    """One input. shape: channels, height, width of an image. tasks: those that read it."""

    shape: tuple[int, int, int]
    tasks: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Normalisation:
    """Images in [0, 1] -> (x - mean) / std per channel, in this order of `channels`: RGB, BGR or gray."""

    channels: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Tensor) -> Tensor:
        """float [B, C, H, W], RGB or gray in [0, 1] -> input of a network with this normalisation."""
        if self.channels == "BGR":
            images = images.flip(1)
        mean, std = (images.new_tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.std))
        return (images - mean) / std


@dataclasses.dataclass(frozen=True)
class OutputDescription:
    """One prediction: its shape for one image, and its label. unit: of the label, empty if it has none.

    frame: meaning of the channels of normals, see `datasets.contracts.NormalsFrame`; None for other kinds.
    """

    kind: str
    shape: tuple[int, ...]
    class_names: tuple[str, ...]
    unit: str
    frame: str | None


@dataclasses.dataclass(frozen=True)
class NetworkDescription:
    """All that is needed to deploy a network; stored in every exported file.

    cell, seed, result_hash: of the record; graph: hash of the network. data: data set, layout, version, protocol, home
    and licence. predictions: how to read the outputs of each kind.
    """

    cell: str
    method: Mapping[str, Any]
    seed: int
    data: Mapping[str, Any]
    backbone: Mapping[str, Any]
    graph: str
    result_hash: str
    inputs: Mapping[str, InputDescription]
    normalisation: Normalisation
    tasks: Mapping[str, OutputDescription]
    predictions: str = PREDICTIONS
    format: int = 1

    def to_json(self) -> str:
        """The description as JSON text."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> NetworkDescription:
        """The description in a text of `to_json`. Raises UsageError for any other text."""
        try:
            return _DESCRIPTIONS.validate_json(text)
        except ValidationError as error:
            fault = first_fault(error)
            raise UsageError(f"not a description of a network ({fault.where or 'its text'}: {fault.text})") from error


_DESCRIPTIONS = TypeAdapter(NetworkDescription)


class DeployedNetwork(nn.Module):
    """A trained network: normalised images -> {task: prediction}. `load_network` returns it in eval mode.

    description: inputs, normalisation, tasks and origin. graph: the task graph whose nodes it runs.
    """

    def __init__(self, graph: TaskGraph, description: NetworkDescription) -> None:
        super().__init__()
        self.graph, self.description = graph, description
        self.network = graph.module()

    def forward(self, images: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
        """images: float32 [B, C, H, W], normalised, if all tasks read one input; else {input: such images}.

        Raises UsageError for a tensor if there are several inputs, and for a missing input.
        """
        inputs = self.description.inputs
        if isinstance(images, Tensor):
            if len(inputs) > 1:
                raise UsageError(f"This network has the inputs {', '.join(inputs)}; give a dictionary of images.")
            images = dict.fromkeys(inputs, images)
        for name in inputs:
            if name not in images:
                raise UsageError(f"Images of input {name!r} are missing; got {', '.join(images) or 'none'}.")
        predictions: dict[str, Tensor] = self.network(dict(images))
        return predictions

    def normalise(self, images: Tensor) -> Tensor:
        """float [B, C, H, W], RGB (or gray) in [0, 1] -> input of `forward`."""
        return self.description.normalisation(images)

    def example(self, batch: int) -> dict[str, Tensor]:
        """Standard normal images of every input, float32 [batch, C, H, W], always the same."""
        random = torch.Generator().manual_seed(0)
        return {
            name: torch.randn(batch, *described.shape, generator=random)
            for name, described in self.description.inputs.items()
        }


def load_network(
    source: str | os.PathLike[str] | Record,
    row: str | None = None,
    *,
    seed: int | None = None,
    tasks: Sequence[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    plugins: Sequence[str] = (),
) -> DeployedNetwork:
    """The trained network of a record, on the CPU, in eval mode.

    source: the JSON file of a record; the folder of a run, with `row`: a row's label, a method, or the start of a
    cell's key; a safetensors file that `export` wrote; or a Record, with `out`: the folder of its run.
    seed: of several, None takes the lowest that is done. tasks: only these, with what they need of the network.
    plugins: files of plug-ins whose operations or data set the network uses.
    Raises UsageError for a record that is absent or not done, an unknown row or task, and missing weights.
    """
    load_methods()  # a method's module registers the operations of its graphs
    load_plugins(plugins)
    if isinstance(source, Record):
        if out is None:
            raise UsageError("load_network of a Record needs out=, the folder of its run, where its weights lie.")
        return _restricted(*_stored(Store(Path(out)), source), tasks)
    path = Path(source)
    if path.suffix == ".safetensors":
        return _restricted(*read_exported(path), tasks)
    return _restricted(*_stored(*find_record(path, row, seed)), tasks)


def _stored(store: Store, record: Record) -> tuple[TaskGraph, NetworkDescription]:
    if record.status != "done":
        raise UsageError(f"Cell {record.key} is {record.status}; only a cell that is done has a network.")
    try:
        graph = load_graph(store, record)
    except StorageError as error:
        hint = "artifacts/ belongs beside records/: copy it there, or delete the record and run its cell again."
        raise StorageError(f"{error} {hint}") from error
    return graph, describe(record, graph)


def _restricted(graph: TaskGraph, description: NetworkDescription, tasks: Sequence[str] | None) -> DeployedNetwork:
    """The network of these tasks (None: of all), in eval mode, with the inputs that they read."""
    if tasks is not None:
        if not tasks:
            raise UsageError(f"No task is named; the network has {', '.join(description.tasks)}.")
        for task in tasks:
            if task not in description.tasks:
                raise unknown("task of the network", task, description.tasks)
        graph = graph.subgraph(*tasks)
        kept = {name: part for name, part in description.inputs.items() if set(part.tasks) & set(tasks)}
        description = dataclasses.replace(
            description,
            graph=graph.hash(),
            tasks={task: description.tasks[task] for task in tasks},
            inputs={
                name: dataclasses.replace(part, tasks=tuple(task for task in part.tasks if task in tasks))
                for name, part in kept.items()
            },
        )
    return DeployedNetwork(graph, description).eval()


def describe(record: Record, graph: TaskGraph) -> NetworkDescription:
    """The description of a record's network. Raises UsageError if its data set needs a plug-in that is not loaded."""
    data, channels = record.cell["data"], record.cell["backbone"]["in_chans"]
    said: Mapping[str, object] = data
    try:
        require_dataset(data["dataset"])
    except UnknownNameError as error:
        raise UnknownNameError(f"{error} {OF_A_PLUGIN}") from error
    spec = dataset_spec(
        data["dataset"],
        protocol=data["protocol"],
        layout=data.get("layout"),
        tasks=data["tasks"],
        options=data.get("options"),
    )
    size, stored = record.audit.get("input_size"), record.audit.get("normalisation")
    if size is None or stored is None:
        raise UsageError(f"Record {record.key} does not say what its network was fed; run its cell again.")
    height, width = size
    read = {name: tuple(task for task in graph.tasks if spec.input_of(task) == name) for name in spec.inputs}
    inputs = {name: InputDescription((channels, height, width), tasks) for name, tasks in read.items() if tasks}
    shapes = _shapes(graph, inputs)
    tasks = {
        name: OutputDescription(
            task.kind, shapes[name], task.class_names, task.unit, task.frame if task.kind == "normals" else None
        )
        for name, task in ((name, spec.task(name)) for name in graph.tasks)
    }
    order = "gray" if channels == 1 else "BGR" if stored["bgr"] else "RGB"
    known = ("dataset", "layout", "version", "protocol", "options")
    return NetworkDescription(
        cell=record.key,
        method=record.cell["method"],
        seed=record.seed,
        data={name: said[name] for name in known if name in said} | {"home": spec.home, "licence": spec.licence},
        backbone=record.cell["backbone"],
        graph=graph.hash(),
        result_hash=record.result_hash,
        inputs=inputs,
        normalisation=Normalisation(order, tuple(stored["mean"][:channels]), tuple(stored["std"][:channels])),
        tasks=tasks,
    )


def _shapes(graph: TaskGraph, inputs: Mapping[str, InputDescription]) -> dict[str, tuple[int, ...]]:
    """{task: shape of its prediction for one image}: by running the network once, on zeros."""
    module = graph.module().eval()
    with torch.inference_mode():
        found = module({name: torch.zeros(1, *part.shape) for name, part in inputs.items()})
    return {task: tuple(value.shape[1:]) for task, value in found.items()}


# Exported safetensors


def exported_bytes(network: DeployedNetwork) -> bytes:
    """The network as one safetensors file: its tensors, with graph and description in the metadata."""
    tensors = {name: tensor.cpu() for name, tensor in network.graph.tensors().items()}
    metadata = {
        "format": "pt",
        GRAPH_FIELD: json.dumps(network.graph.to_json(), sort_keys=True),
        DESCRIPTION_FIELD: network.description.to_json(),
    }
    return safetensors.torch.save(tensors, metadata)


def read_exported(path: Path) -> tuple[TaskGraph, NetworkDescription]:
    """Network and description of a file that `export --to safetensors` wrote. Raises UsageError."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise UsageError(f"{path} cannot be read as safetensors: {str(error).splitlines()[0]}.") from error
    if not {GRAPH_FIELD, DESCRIPTION_FIELD} <= metadata.keys():
        raise UsageError(f"{path} holds weights without their network; expected what `export --to safetensors` writes.")
    try:
        description = NetworkDescription.from_json(metadata[DESCRIPTION_FIELD])
    except UsageError as error:
        raise UsageError(f"{path}: {error}.") from error
    return built_graph(json.loads(metadata[GRAPH_FIELD]), tensors, str(path)), description
