"""What a comparison holds equal, counted for every registered method: nobody gets more steps, samples or luck."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import pytest
import torch

from benchmark.train.trainer import CellTrainer
from datasets.contracts import Batch
from methods.backbones.backbone import Backbone
from methods.contracts import Purpose, Role
from methods.registry import get_method, method_names
from tests.unit.harness import toy_trainer

STEPS, BATCH = 4, 8


class Watched:
    """A trainer with a count of what its stages draw, and the backbones that it gave.

    Nested single-task trainings are watched too.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.drawn: dict[tuple[str, Purpose], list[tuple[int, ...]]] = {}
        self.initial: list[str] = []
        self.augmentations: set[object] = set()
        self.given: list[dict[str, torch.Tensor]] = []
        self.trainer = toy_trainer(folder, steps=STEPS)
        original, backbone = CellTrainer._train, CellTrainer.backbone

        def train(trainer: CellTrainer, stages: list, cycles: int) -> object:
            for stage in stages:
                self._watch(trainer, stage.role, stage.purpose, stage.name)
            return original(trainer, stages, cycles)

        def given(trainer: CellTrainer) -> Backbone:
            made = backbone(trainer)
            self.given.append({key: value.clone() for key, value in made.module().state_dict().items()})
            return made

        monkeypatch.setattr(CellTrainer, "_train", train)
        monkeypatch.setattr(CellTrainer, "backbone", given)

    def _watch(self, trainer: CellTrainer, role: Role, purpose: Purpose, name: str) -> None:
        loader = trainer.context.loaders[role]
        self.augmentations.update(part.augment for part in loader.inputs.values())
        original = type(loader).training
        place = self.drawn.setdefault((f"{role.value}: {name}", purpose), [])

        def training(*args: object) -> object:
            for batch in original(loader, *args):
                assert isinstance(batch, Batch)
                place.append(tuple(batch.index["image"].tolist()))
                yield batch

        loader.training = training


@functools.cache
def watched(name: str) -> Watched:
    """A finished run of the method."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        found = Watched(Path(folder), patch)
        method = get_method(name)
        method(method.Params()).run(found.trainer)
        return found


def final_batches(name: str) -> dict[str, list[tuple[int, ...]]]:
    found = watched(name)
    assert found.augmentations == {None}
    return {stage: drawn for (stage, purpose), drawn in found.drawn.items() if purpose == "final"}


@pytest.mark.parametrize("name", method_names())
def test_every_network_gets_the_budget_in_steps_and_samples(name: str) -> None:
    for stage, drawn in final_batches(name).items():
        assert len(drawn) == STEPS, stage
        assert {len(batch) for batch in drawn} == {BATCH}
        assert stage.startswith("fit+arch"), "final trainings use fit and arch together, for every method"


def test_all_methods_see_the_same_batches_in_the_same_order() -> None:
    orders = {tuple(drawn) for name in method_names() for drawn in final_batches(name).values()}
    assert len(orders) == 1


@pytest.mark.parametrize("name", method_names())
def test_all_methods_start_from_the_same_weights(name: str, tmp_path: Path) -> None:
    expected = toy_trainer(tmp_path).backbone().module().state_dict()
    given = watched(name).given
    assert given
    for state in given:
        assert all(torch.equal(state[key], value) for key, value in expected.items())


def test_steps_factor_trains_longer_and_is_counted(tmp_path: Path) -> None:
    method = get_method("hard_sharing")
    trainer = toy_trainer(tmp_path, steps=STEPS)
    graph = method(method.Params(steps_factor=2.5)).run(trainer)
    assert trainer.ledger.final.optimizer_steps == 2.5 * STEPS
    assert trainer.weight_steps(graph) == 2.5 * STEPS
