"""From records to callables: stored networks in the modes of measurement 3, and the reference beside them.

joint: all outputs for a batch; mixed (each task has images of its own): one batch per task in turn; task:NAME: one
output; train-step: a whole step of the final training. The first three run in eval and inference mode on fixed random
images. A training step needs labels that mean something, so it takes the first training batch of the data set: our
choice. Images and labels lie on the device before the first call.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from benchmark.deploy.folded import folded
from benchmark.plan.cells import dense_form
from benchmark.plan.suite import BalancingSettings, RecipeSettings
from benchmark.records.measurements import JOINT, MIXED, TASK, SpeedSettings
from benchmark.records.record import Record
from benchmark.speed.timing import Call, Failure, Network, failure_of
from benchmark.train.balancer import Balancer
from benchmark.train.loaders import InputFormat, InputLoader, RoleLoader, RoleSamples
from benchmark.train.memory import is_out_of_memory
from benchmark.train.optimizers import StageOptimizers
from datasets.contracts import SINGLE_INPUT, Batch, DatasetSpec
from datasets.images.augmentation import augmentation_of
from datasets.images.transforms import Normalise
from datasets.registry import DataChoice
from methods.backbones.backbone import Backbone, BackboneConfig, create_backbone
from methods.backbones.heads import create_head
from methods.contracts import Role
from methods.graph.task_graph import TaskGraph
from methods.plain import parameter_groups, plain_graph, task_losses
from methods.streams import generator

CALLS_AFTER_COMPILING = 3  # graphs are captured on a later call than the first


class TableNetworks:
    """Everything that the networks of one table share at one setting. record: any record of the table.

    device: where they run. Modules are built on the CPU; on CUDA `load` brings them over.
    """

    def __init__(self, record: Record, settings: SpeedSettings, device: torch.device) -> None:
        self.record, self.settings, self.device = record, settings, device
        height, width = record.audit["input_size"]
        self.input_size = (height, width)
        block: dict[str, Any] = dict(record.cell["backbone"])
        block.pop("weights")  # other values in the same tensors take the same time
        self.config = BackboneConfig(**block, image_size=self.input_size)
        self._images: dict[str, Tensor] = {}

    # Inference

    def images(self, name: str) -> Tensor:
        """The fixed batch of one input: float [B, C, H, W], standard normal, on the device."""
        if name not in self._images:
            shape = (self.settings.batch, self.config.in_chans, *self.input_size)
            values = torch.randn(shape, generator=generator(0, f"speed/{name}"))
            self._images[name] = self._placed(values)
        return self._images[name]

    def _placed(self, images: Tensor) -> Tensor:
        dtype = torch.bfloat16 if self.settings.dtype == "bf16" else torch.float32
        return images.to(self.device, dtype, memory_format=self._format())

    def _format(self) -> torch.memory_format:
        last = self.settings.memory_format == "channels_last"
        return torch.channels_last if last else torch.contiguous_format

    def _prepared(self, module: nn.Module) -> nn.Module:
        """The module in the settings' dtype and memory format."""
        if self.settings.dtype == "bf16":
            module.to(torch.bfloat16)
        return module.to(memory_format=self._format())

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.dtype == "amp-bf16")

    def _runnable(self, module: nn.Module, images: Tensor | Mapping[str, Tensor] | None = None) -> nn.Module:
        """The module in the settings' form of execution. images: its input, which folding needs."""
        match self.settings.execution:
            case "compiled":
                return cast(nn.Module, torch.compile(module))
            case "folded":
                on_host = (
                    images.cpu() if isinstance(images, Tensor) else {k: v.cpu() for k, v in (images or {}).items()}
                )
                return folded(module, on_host).to(memory_format=self._format())
        return module

    def reference(self) -> Network:
        """The plain timm backbone without heads; each call builds another copy."""
        module = self._prepared(create_backbone(self.config, seed=0).module().eval())
        images = self.images(SINGLE_INPUT)
        return self._network(module, [(self._runnable(module, images), images)], 1, f"ref {id(module)}")

    def inference(self, graph: TaskGraph, mode: str, owner: str) -> Network:
        """A stored network in the mode joint, mixed or task:NAME."""
        whole = self._prepared(graph.module().eval())
        groups: list[tuple[str, ...]]
        if mode == MIXED:
            groups, outputs = [(task,) for task in graph.tasks], 1
        elif mode == JOINT:
            groups, outputs = [graph.tasks], len(graph.tasks)
        else:
            groups, outputs = [(mode.removeprefix(TASK),)], 1
        calls = []
        for tasks in groups:
            part = graph.module(*tasks).eval()
            read = {value.name for node in graph.reachable(tasks) for value in node.inputs}
            images = {name: self.images(name) for name in graph.inputs if name in read}
            calls.append((self._runnable(part, images), images))
        return self._network(whole, calls, outputs, owner)

    def _network(
        self, module: nn.Module, calls: Sequence[tuple[nn.Module, object]], outputs: int, owner: str
    ) -> Network:
        """One step is all the calls, each on one batch. module: what is moved; folded graphs own their weights."""
        if self.settings.execution == "folded":
            module = nn.ModuleList(run for run, _ in calls)

        def step() -> None:
            with torch.inference_mode(), self._autocast():
                for run, images in calls:
                    run(images)

        images = self.settings.batch * len(calls)
        return Network(
            step=guarded(step),
            images=images,
            predictions=images * outputs,
            load=guarded(lambda: _move(module, self.device)),
            unload=lambda: _move(module, torch.device("cpu")) if self.device.type != "cpu" else None,
            owner=owner,
            weights_bytes=_bytes_of(module),
        )

    # Training

    def data(self) -> DatasetSpec:
        """The data set of the table, with its tasks and weights."""
        stored = self.record.cell["data"]
        return DataChoice.of(stored).spec().with_weights(stored.get("task_weights", {}))

    def recipe(self) -> RecipeSettings:
        """What the table's networks were trained with."""
        return RecipeSettings.model_validate(self.record.cell["recipe"])

    def training_batch(self, root: Path | None) -> Batch:
        """The first training batch, augmented as in training, on the device. Raises DatasetMissingError."""
        spec, recipe = self.data(), self.recipe()
        split = DataChoice.of(self.record.cell["data"]).split("train", root)
        stored = self.record.audit["normalisation"]
        mean, std = ((red, green, blue) for red, green, blue in (stored["mean"], stored["std"]))
        normalise = Normalise(mean, std, stored["bgr"])
        form = InputFormat(self.config.in_chans, normalise, self.device, self.settings.memory_format == "channels_last")
        inputs = {}
        for name, samples in split.inputs.items():
            tasks = [task for task in spec.task_names if spec.input_of(task) == name]
            part = RoleSamples(samples, np.arange(len(samples)))
            augment = augmentation_of(recipe.augmentation, spec, name)
            inputs[name] = InputLoader(part, tasks, form, augment=augment, seed=0, workers=0)
        loader = RoleLoader(Role.FIT, spec, inputs, self.settings.batch, 0)
        batch = next(iter(loader.training(spec.task_names, 0, 1, "speed")))
        return Batch({name: self._placed(images) for name, images in batch.images.items()}, batch.targets, batch.index)

    def training_reference(self, batch: Batch) -> Network:
        """One plain backbone with a head for every task: a step needs losses, so the reference has heads here."""
        data = self.data()
        backbone: Backbone = create_backbone(self.config, seed=0, dense=dense_form(self.record.cell))
        graph = plain_graph(data, data.task_names, backbone, lambda task: create_head(data.task(task), backbone, 0))
        return self.training(graph, batch, f"ref {id(graph)}")

    def training(self, graph: TaskGraph, batch: Batch, owner: str) -> Network:
        """zero_grad, forward, all losses, backward of their sum and optimizer step of the final training. Rows that
        differ only in loss balancing are one network here.
        """
        data, recipe = self.data(), self.recipe()
        network = self._prepared(graph.network()).train()
        losses = task_losses(data, self._runnable(network))
        balancer = Balancer(BalancingSettings(), graph.tasks, self.device)
        optimizers = StageOptimizers(parameter_groups(graph), recipe)
        weights = {task: data.task(task).weight for task in graph.tasks}
        unscaled = torch.amp.GradScaler(self.device.type, enabled=False)

        def step() -> None:
            optimizers.zero_grad()
            with self._autocast():
                found = losses(batch, graph.tasks)
            balancer.backward([found[task] * weights[task] for task in graph.tasks if task in found], None, (), 1.0)
            optimizers.step(unscaled)

        def move(device: torch.device) -> None:
            state = optimizers.state_dict()
            optimizers.zero_grad()
            _move(network, device)
            optimizers.load_state_dict(state)  # brings the moments to where the parameters are

        images = self.settings.batch * len(batch.images)
        on_host = self.device.type == "cpu"
        return Network(
            step=guarded(step),
            images=images,
            predictions=sum(len(batch.targets[task]) for task in graph.tasks),
            load=guarded(lambda: None if on_host else move(self.device)),
            unload=lambda: None if on_host else move(torch.device("cpu")),
            owner=owner,
            weights_bytes=_bytes_of(network),
        )


def _move(module: nn.Module, device: torch.device) -> None:
    module.to(device)


def _bytes_of(module: nn.Module) -> int:
    """Of all weights and buffers, tied ones once."""
    return sum(tensor.numel() * tensor.element_size() for tensor in (*module.parameters(), *module.buffers()))


def guarded(call: Call) -> Callable[[], None]:
    """The call, with every form of running out of memory as MemoryError."""

    def run() -> None:
        try:
            call()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            message = str(error) or "out of memory"
        else:
            return
        # Outside of the handler: the first error's traceback, which holds the tensors, is gone by now.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        raise MemoryError(message)

    return run


def compile_now(network: Network, synchronize: Call) -> dict[str, Any] | Failure:
    """Compile by calling: seconds to the first complete output, and how many graphs and graph breaks it took."""
    from torch._dynamo.utils import counters

    def counted() -> tuple[int, int]:
        return int(counters["stats"]["unique_graphs"]), sum(counters["graph_break"].values())

    graphs, breaks = counted()
    try:
        network.load()
        start = time.perf_counter()
        network.step()
        synchronize()
        seconds = time.perf_counter() - start
        for _ in range(CALLS_AFTER_COMPILING):
            network.step()
        synchronize()
    except Exception as error:  # a network that does not compile ends its own measurement, not that of the others
        return failure_of(error)
    finally:
        network.unload()
    after = counted()
    return {"seconds": seconds, "graphs": after[0] - graphs, "graph_breaks": after[1] - breaks}
