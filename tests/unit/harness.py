"""A toy data set and a trainer on it, for tests of the training loop that need neither a suite nor real digits."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmark.plan.suite import RecipeSettings, SelectionSettings
from benchmark.train.loaders import InputFormat, InputLoader, RoleLoader, RoleSamples
from benchmark.train.stage import KeptNetwork, TrainingContext
from benchmark.train.trainer import CellTrainer
from datasets.contracts import CachedSamples, DatasetSpec, InputData, Sample, TaskSpec
from datasets.images.transforms import Normalise
from datasets.kinds import get_kind
from methods.backbones.backbone import Backbone, BackboneConfig, create_backbone
from methods.contracts import Budget, Role
from methods.plain import fit_plain

SIZE = 8


class ToyInput(InputData):
    """Gray squares whose brightness tells the class of task `a`; task `b` is its parity."""

    def __init__(self, n_samples: int, seed: int, cached: bool = True, size: int = SIZE) -> None:
        random = np.random.RandomState(seed)
        self.labels = torch.from_numpy(random.randint(0, 4, n_samples))
        noise = torch.from_numpy(random.randint(0, 40, (n_samples, 1, size, size)))
        self.images = (noise + 50 * self.labels.view(-1, 1, 1, 1)).to(torch.uint8)
        self.targets = {"a": self.labels, "b": self.labels % 2}
        self.ids = [f"{seed}-{index}" for index in range(n_samples)]
        self.units = self.ids
        self._cached = cached
        self.spec = toy_spec(size=size)

    def sample(self, row: int) -> Sample:
        from torchvision import tv_tensors

        image = tv_tensors.Image(self.images[row].float().div(255).expand(3, -1, -1))
        targets = {task: values[row] for task, values in self.targets.items()}
        return {"image": image, "targets": targets, "meta": {"id": self.ids[row]}}

    def cached(self) -> CachedSamples | None:
        return CachedSamples(self.images, self.targets) if self._cached else None

    def content_hash(self) -> str:
        return "toy"


def toy_spec(domains: str = "single", size: int = SIZE) -> DatasetSpec:
    tasks = (TaskSpec("a", "class", 4, ("accuracy",)), TaskSpec("b", "class", 2, ("accuracy",), weight=0.5))
    return DatasetSpec(
        name="toy",
        layout="memory",
        version="v1",
        protocol="standard",
        domains=domains,
        tasks=tasks,
        splits={"train": 60, "val": 20, "test": 20},
        native_size=(size, size),
        mean=(0.4, 0.4, 0.4),
        std=(0.3, 0.3, 0.3),
        licence="none",
        home="tests",
        tier="verified on twins",
    )


def toy_loaders(
    spec: DatasetSpec, recipe: RecipeSettings, seed: int = 0, cached: bool = True
) -> dict[Role, RoleLoader]:
    form = InputFormat(3, Normalise(spec.mean, spec.std), torch.device("cpu"), recipe.memory_format == "channels_last")
    parts = {
        Role.FIT: (0, np.arange(0, 48)),
        Role.ARCH: (0, np.arange(48, 60)),
        Role.FIT_ARCH: (0, np.arange(0, 60)),
        Role.SELECT: (1, np.arange(20)),
        Role.REPORT: (2, np.arange(20)),
    }
    loaders = {}
    for role, (split, indices) in parts.items():
        inputs = {}
        for number, name in enumerate(spec.inputs):
            data = ToyInput(60 if split == 0 else 20, seed=10 * number + split, cached=cached, size=spec.native_size[0])
            tasks = [task for task in spec.task_names if spec.input_of(task) == name]
            inputs[name] = InputLoader(
                RoleSamples(data, indices),
                tasks,
                form,
                augment=None,
                seed=seed,
                workers=recipe.workers,
                valid={task: get_kind(spec.task(task).kind).valid for task in tasks},
            )
        loaders[role] = RoleLoader(role, spec, inputs, recipe.batch_size, seed)
    return loaders


def toy_backbone(seed: int = 0, size: int = SIZE) -> Backbone:
    return create_backbone(BackboneConfig("test_resnet", image_size=(size, size)), seed=seed)


def toy_trainer(
    folder: Path,
    *,
    domains: str = "single",
    steps: int = 12,
    cycles: int = 4,
    seed: int = 0,
    recipe: dict[str, Any] | None = None,
    selection: dict[str, Any] | None = None,
    cached: bool = True,
    size: int = SIZE,
    **context: Any,
) -> CellTrainer:
    settings = RecipeSettings(**{"batch_size": 8, **(recipe or {})})
    spec = toy_spec(domains, size)
    made = TrainingContext(
        data=spec,
        loaders=toy_loaders(spec, settings, seed, cached),
        prototype=toy_backbone(seed, size),
        budget=Budget(steps, cycles),
        recipe=settings,
        selection=SelectionSettings(**(selection or {})),
        seed=seed,
        device=torch.device("cpu"),
        version="test",
    )
    made = dataclasses.replace(made, **context)
    for loader in made.loaders.values():
        loader.spec = made.data

    def single_task(task: str) -> KeptNetwork:
        nested = dataclasses.replace(made, data=spec.with_tasks([task]), single_task=None)
        trainer = CellTrainer(nested, folder / f"single-{task}")
        graph, result = fit_plain(trainer, f"single task {task}", steps)
        return KeptNetwork(graph, result.loss[task], trainer.last_fifths[task], trainer.ledger.final, f"key of {task}")

    return CellTrainer(dataclasses.replace(made, single_task=single_task), folder)
