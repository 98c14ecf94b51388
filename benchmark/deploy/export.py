"""A trained network as the bytes of a file to deploy: pt2 (torch.export), ONNX, or safetensors with the graph.

Every form is checked: read back, it must give the network's own predictions. torch is imported when a file is made.
"""

from __future__ import annotations

import dataclasses
import io
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any

from benchmark.records.store import safe_name
from datasets.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from benchmark.deploy.network import DeployedNetwork

DESCRIPTION_FILE = "sharebench.json"  # inside a pt2 file; in ONNX and safetensors it is metadata
TOLERANCE = 1e-4  # relative to max(1, |prediction|): ONNX Runtime's kernels round in other places than ours
CHECKED_BATCHES = (1, 5)  # of a network with a dynamic batch

Run = Callable[[Mapping[str, "Tensor"]], Mapping[str, "Tensor"]]


class Form(str, Enum):
    """Forms of the file."""

    pt2 = "pt2"
    onnx = "onnx"
    safetensors = "safetensors"


class ExportError(Exception):
    """A network that cannot be written in a form, or comes back from it with other predictions."""


@dataclasses.dataclass(frozen=True)
class Exported:
    """A network as a file. run: calls the bytes, read back; None, with a reason, where no package here can do that."""

    data: bytes
    run: Run | None
    reason: str = ""


def export_network(network: DeployedNetwork, form: Form, batch: int | None = None) -> tuple[bytes, float | None, str]:
    """(bytes of the file, largest difference from the network's predictions, "") or (bytes, None, why not checked).

    batch: the one batch size of the file, None leaves it open. The difference is absolute, over all predictions at the
    checked batch sizes. Raises UsageError where packages are missing, and ExportError where the network cannot be
    written in the form or gives other predictions when it is read back.
    """
    writers = {Form.pt2: _pt2, Form.onnx: _onnx, Form.safetensors: _safetensors}
    try:
        exported = writers[form](network, batch)
    except (UsageError, ExportError):
        raise
    except Exception as error:  # whatever an exporter meets is its user's one line
        line = (str(error).strip() or "no message").splitlines()[0].rstrip(".")
        of_torch = type(error).__module__.startswith("torch")
        hint = " A fixed batch may work: --batch 1." if batch is None and of_torch else ""
        raise ExportError(f"no {form.value} of this network: {type(error).__name__}: {line}.{hint}") from error
    if exported.run is None:
        return exported.data, None, exported.reason
    return exported.data, _difference(network, exported.run, CHECKED_BATCHES if batch is None else (batch,)), ""


def _difference(network: DeployedNetwork, run: Run, batches: Sequence[int]) -> float:
    import torch

    largest = 0.0
    for batch in batches:
        images = network.example(batch)
        with torch.inference_mode():
            expected, found = network(images), run(images)
        if list(found) != list(expected):
            raise ExportError(f"the file gives {', '.join(found)}; the network gives {', '.join(expected)}.")
        for task, value in expected.items():
            if found[task].shape != value.shape:
                raise ExportError(f"{task} at batch {batch} has shape {tuple(found[task].shape)}, not {value.shape}.")
            difference = (found[task] - value).abs()
            if not bool((difference <= TOLERANCE * value.abs().clamp(min=1)).all()):
                raise ExportError(f"{task} at batch {batch} differs from the network by {float(difference.max()):.3g}.")
            largest = max(largest, float(difference.max()))
    return largest


def _arguments(network: DeployedNetwork, batch: int | None) -> tuple[dict[str, Tensor], dict[str, dict[int, Any]]]:
    """(example images, {input: its dynamic axes}). Two images where the batch is open: one would be a constant."""
    from torch.export import Dim

    images = network.example(2 if batch is None else batch)
    if batch is not None:
        return images, {name: {} for name in images}
    # Inputs of different domains come in batches of their own sizes.
    names = ["batch"] if len(images) == 1 else [f"batch_{number}" for number in range(len(images))]
    return images, {name: {0: Dim(axis, min=1)} for name, axis in zip(images, names, strict=True)}


def _pt2(network: DeployedNetwork, batch: int | None) -> Exported:
    import torch

    images, axes = _arguments(network, batch)
    single = len(images) == 1
    name = next(iter(images))
    program = torch.export.export(
        network,
        (images[name] if single else images,),
        dynamic_shapes=(axes[name] if single else axes,) if batch is None else None,
        strict=False,
    )
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={DESCRIPTION_FILE: network.description.to_json()})
    again = torch.export.load(io.BytesIO(buffer.getvalue())).module()
    return Exported(buffer.getvalue(), lambda images: again(images[name] if single else dict(images)))


def _safetensors(network: DeployedNetwork, batch: int | None) -> Exported:
    import safetensors.torch

    from benchmark.deploy.network import exported_bytes
    from methods.graph.task_graph import TaskGraph

    if batch is not None:
        raise UsageError("--batch goes with pt2 and onnx; safetensors holds weights and graph, which take any batch.")
    data = exported_bytes(network)
    module = TaskGraph.from_json(network.graph.to_json(), safetensors.torch.load(data)).module().eval()
    return Exported(data, lambda images: module(dict(images)))


def _onnx(network: DeployedNetwork, batch: int | None) -> Exported:
    import torch

    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"--to onnx needs a package that is not here ({error.name}): pip install 'sharebench[onnx]'."
        ) from error
    images, axes = _arguments(network, batch)
    positional = _positional(network, tuple(images))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about its own operators
        program = torch.onnx.export(
            positional,
            tuple(images.values()),
            dynamo=True,
            verbose=False,
            input_names=list(onnx_inputs(images).values()),
            output_names=list(network.description.tasks),
            dynamic_shapes={"images": tuple(axes.values())} if batch is None else None,
        )
    if program is None:
        raise ExportError("torch.onnx.export returned nothing.")
    program.model.metadata_props[DESCRIPTION_FILE] = network.description.to_json()
    data = program.model_proto.SerializeToString()
    return _with_onnxruntime(data, onnx_inputs(images), tuple(network.description.tasks))


def onnx_inputs(names: Iterable[str]) -> dict[str, str]:
    """{input: its name in ONNX}. The input of a domain has the name of its task, and ONNX allows a name only once."""
    found = list(names)
    return {name: "image" if len(found) == 1 else f"image_{name}" for name in found}


def _positional(network: DeployedNetwork, names: tuple[str, ...]) -> Any:
    """The network with its inputs one by one and its predictions as a tuple: ONNX knows no dictionaries."""
    from torch import nn

    class Positional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, *images: Tensor) -> tuple[Tensor, ...]:
            return tuple(self.network(dict(zip(names, images, strict=True))).values())

    return Positional().eval()


def _with_onnxruntime(data: bytes, names: Mapping[str, str], tasks: Sequence[str]) -> Exported:
    try:
        import onnxruntime
    except ImportError:
        return Exported(data, None, "onnxruntime is not installed")
    import torch

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])

    def run(images: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = session.run(list(tasks), {names[name]: value.numpy() for name, value in images.items()})
        return {task: torch.from_numpy(value) for task, value in zip(tasks, found, strict=True)}

    return Exported(data, run)


def file_name(network: DeployedNetwork, form: Form, tasks: Sequence[str] | None = None) -> str:
    """Name of the file where the user gives none: method, start of the cell's key, seed, and tasks if not all."""
    description = network.description
    parts = [description.method["name"], description.cell[:8], f"seed{description.seed}", *(tasks or ())]
    return f"{safe_name('-'.join(parts))}.{form.value}"


def feed_lines(network: DeployedNetwork, form: Form) -> list[str]:
    """Lines that say what the network takes and returns, with the names that the form has for them."""
    description = network.description
    normalisation = description.normalisation
    mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (normalisation.mean, normalisation.std))
    names = onnx_inputs(description.inputs) if form is Form.onnx else {name: name for name in description.inputs}
    lines = []
    for name, part in description.inputs.items():
        shape = ", ".join(map(str, ("batch", *part.shape)))
        steps = f"{normalisation.channels} in [0, 1], minus ({mean}), divided by ({std})"
        lines.append(f"feed {names[name]}: float32 [{shape}], {steps}")
    for name, task in description.tasks.items():
        shape = ", ".join(map(str, ("batch", *task.shape)))
        lines.append(f"get {name}: float32 [{shape}], {task.kind}{f', {task.unit}' if task.unit else ''}")
    return lines
