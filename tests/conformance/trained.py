"""Every method trained once on toy data, under the eyes of whoever wants to know what it asked for."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from pathlib import Path

import pytest
import torch

from benchmark.train.trainer import CellTrainer
from datasets.contracts import Batch
from methods.backbones.backbone import Backbone
from methods.contracts import Method, Purpose, Role
from methods.graph.task_graph import TaskGraph
from methods.registry import get_method, method_names
from tests.unit.harness import toy_trainer

STEPS, BATCH = 6, 8


CASES = [
    (name, domains)
    for name in method_names()
    for domains in ("single", "multi")
    if domains == "single" or not get_method(name).needs_all_labels
]


def build(name: str) -> Method:
    method = get_method(name)
    return method(method.Params())


@dataclasses.dataclass
class Trained:
    """A finished run, and what it asked its trainer for; nested single-task trainings included.

    asked: roles whose batches were read. drawn: {(role: stage, purpose): indices of each batch}. given: states of the
    backbones that the trainer gave. augmentations: of all that was read.
    """

    trainer: CellTrainer
    asked: set[Role] = dataclasses.field(default_factory=set)
    drawn: dict[tuple[str, Purpose], list[tuple[int, ...]]] = dataclasses.field(default_factory=dict)
    given: list[dict[str, torch.Tensor]] = dataclasses.field(default_factory=list)
    augmentations: set[object] = dataclasses.field(default_factory=set)

    def watch(self, patch: pytest.MonkeyPatch) -> None:
        train, backbone = CellTrainer._train, CellTrainer.backbone
        self._read = {role: self._asking(role) for role in self.trainer.context.loaders}

        def trained(trainer: CellTrainer, stages: list, cycles: int) -> object:
            for stage in stages:
                self._watch_stage(stage.role, stage.purpose, stage.name)
            return train(trainer, stages, cycles)

        def given(trainer: CellTrainer) -> Backbone:
            made = backbone(trainer)
            self.given.append({key: value.clone() for key, value in made.module().state_dict().items()})
            return made

        patch.setattr(CellTrainer, "_train", trained)
        patch.setattr(CellTrainer, "backbone", given)

    def _asking(self, role: Role) -> object:
        loader = self.trainer.context.loaders[role]
        original = loader.training

        def training(*args: object) -> object:
            self.asked.add(role)
            return original(*args)

        loader.training = training
        return training

    def _watch_stage(self, role: Role, purpose: Purpose, name: str) -> None:
        loader = self.trainer.context.loaders[role]
        self.augmentations.update(part.augment for part in loader.inputs.values())
        place = self.drawn.setdefault((f"{role.value}: {name}", purpose), [])

        def training(*args: object) -> object:
            for batch in self._read[role](*args):
                assert isinstance(batch, Batch)
                place.append(tuple(next(iter(batch.index.values())).tolist()))
                yield batch

        loader.training = training

    def final_batches(self) -> dict[str, list[tuple[int, ...]]]:
        """{stage: batches} of the final trainings."""
        return {stage: drawn for (stage, purpose), drawn in self.drawn.items() if purpose == "final"}


def trained(name: str, domains: str, seed: int = 0) -> tuple[CellTrainer, TaskGraph]:
    """A finished run, for all tests that read one."""
    run, graph = watched(name, domains, seed)
    return run.trainer, graph


def watched(name: str, domains: str = "single", seed: int = 0) -> tuple[Trained, TaskGraph]:
    """The same run, with what it asked for."""
    return _watched(name, domains, seed)


@functools.cache
def _watched(name: str, domains: str, seed: int) -> tuple[Trained, TaskGraph]:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        run = Trained(toy_trainer(Path(folder), domains=domains, steps=STEPS, seed=seed))
        run.watch(patch)
        return run, build(name).run(run.trainer)
