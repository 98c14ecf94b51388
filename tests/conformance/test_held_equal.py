"""What a comparison holds equal, counted for every registered method: nobody gets more steps, samples or luck."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmark.trainer import CellTrainer
from datasets.contracts import Batch
from methods.contracts import Purpose, Role
from methods.registry import get_method, method_names
from tests.unit.harness import toy_trainer

STEPS, BATCH = 6, 8


class Watched:
    """A trainer with a count of what its stages draw. Nested single-task trainings are watched too."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.drawn: dict[tuple[str, Purpose], list[tuple[int, ...]]] = {}
        self.initial: list[str] = []
        self.augmentations: set[object] = set()
        self.trainer = toy_trainer(folder, steps=STEPS)
        original = CellTrainer._train

        def train(trainer: CellTrainer, stages: list, cycles: int) -> object:
            for stage in stages:
                self._watch(trainer, stage.role, stage.purpose, stage.name)
            return original(trainer, stages, cycles)

        monkeypatch.setattr(CellTrainer, "_train", train)

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


def final_batches(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[tuple[int, ...]]]:
    with monkeypatch.context() as patch:
        watched = Watched(folder, patch)
        method = get_method(name)
        method(method.Params()).run(watched.trainer)
        assert watched.augmentations == {None}
        return {stage: drawn for (stage, purpose), drawn in watched.drawn.items() if purpose == "final"}


@pytest.mark.parametrize("name", method_names())
def test_every_network_gets_the_budget_in_steps_and_samples(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stage, drawn in final_batches(name, tmp_path, monkeypatch).items():
        assert len(drawn) == STEPS, stage
        assert {len(batch) for batch in drawn} == {BATCH}
        assert stage.startswith("fit+arch"), "final trainings use fit and arch together, for every method"


def test_all_methods_see_the_same_batches_in_the_same_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    orders = {
        tuple(drawn) for name in method_names() for drawn in final_batches(name, tmp_path / name, monkeypatch).values()
    }
    assert len(orders) == 1


@pytest.mark.parametrize("name", method_names())
def test_all_methods_start_from_the_same_weights(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {
        key: value.clone() for key, value in toy_trainer(tmp_path / "x").backbone().module().state_dict().items()
    }
    given = []
    backbone = CellTrainer.backbone

    def watched(trainer: CellTrainer) -> object:
        made = backbone(trainer)
        given.append({key: value.clone() for key, value in made.module().state_dict().items()})
        return made

    monkeypatch.setattr(CellTrainer, "backbone", watched)
    method = get_method(name)
    method(method.Params()).run(toy_trainer(tmp_path / "y", steps=2))
    assert given
    for state in given:
        assert all(torch.equal(state[key], value) for key, value in expected.items())


def test_steps_factor_trains_longer_and_is_counted(tmp_path: Path) -> None:
    method = get_method("hard_sharing")
    trainer = toy_trainer(tmp_path, steps=STEPS)
    graph = method(method.Params(steps_factor=2.5)).run(trainer)
    assert trainer.ledger.final.optimizer_steps == 15
    assert trainer.weight_steps(graph) == 15
