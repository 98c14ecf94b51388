"""Operating points: every search can leave its start at any budget, and one that does not is told. Spec: evidence 3
and trap 3 of 7.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from benchmark.train.cell import RunSettings, run_cell
from datasets.errors import UsageError
from methods.contracts import Budget, Method
from methods.operating import MOVEMENT, rate_of, reach_notes
from methods.registry import get_method
from tests.unit.cells import toy_cells
from tests.unit.harness import toy_backbone, toy_spec, toy_trainer

# {method: (parameter of the rate, what it chooses by, parameters of its random control)}
SEARCHES: dict[str, tuple[str, str, dict[str, Any] | None]] = {
    "adashare": ("lr_logits", "execute probabilities", {"random_policy": True}),
    "bmtas": ("lr_arch", "choices of copies", {"random_tree": True, "size_tolerance": 0.9}),
    "dag_search": ("gate_lr", "gates", {"reduction": {"score": "random"}}),
    "learning_to_branch": ("lr_arch", "choices of parents", {"random_tree": True, "size_tolerance": 0.9}),
    "taps": ("lr_scores", "scores", None),
}
CONTROLLED = [name for name, (_, _, control) in SEARCHES.items() if control is not None]


def method_of(name: str, **params: Any) -> Method[Any]:
    cls = get_method(name)
    return cls(cls.Params(**params))


def test_a_rate_that_is_not_given_adds_up_to_the_same_movement_at_any_budget() -> None:
    assert [n * rate_of(None, n) for n in (1, 16, 3000)] == pytest.approx([MOVEMENT] * 3)
    assert rate_of(0.01, 16) == 0.01


def test_the_note_names_rate_updates_and_what_is_needed() -> None:
    assert reach_notes("lr", 0.01, 32) == ["lr 0.01 x 32 updates = 0.32 < 4: the search cannot leave its start"]
    assert reach_notes("lr", 0.01, 400) == []
    assert all(reach_notes("lr", rate_of(None, n, 4.0), n) == [] for n in range(1, 200))  # whatever floats make of it


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("steps", [20, pytest.param(40, marks=pytest.mark.slow)])
def test_by_default_a_search_leaves_its_start_at_any_budget(name: str, steps: int, tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, steps=steps)
    method_of(name).run(trainer)
    (change,) = trainer.search_moved.values()
    assert list(trainer.search_moved) == [SEARCHES[name][1]]
    assert 0.1 < change["largest"] <= 1
    assert 0 < change["mean"] <= change["largest"]


@pytest.mark.parametrize("name", SEARCHES)
def test_the_plan_warns_of_a_rate_that_is_too_low_for_the_budget(name: str) -> None:
    def notes(**params: Any) -> list[str]:
        found = method_of(name, **params).check(toy_spec(), toy_backbone(), Budget(30))
        return [note for note in found if "the search cannot leave its start" in note]

    (note,) = notes(**{SEARCHES[name][0]: 1e-4})
    assert note.startswith(f"{SEARCHES[name][0]} 0.0001 x ")
    assert notes() == []


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.usefixtures("toy_data")
def test_a_record_whose_search_stayed_is_flagged(name: str, tmp_path: Path) -> None:
    rate, what, _ = SEARCHES[name]
    (cell,) = toy_cells(methods=[{"name": name, "params": {rate: 1e-30}}])
    record = run_cell(cell, RunSettings(tmp_path))
    assert record.status == "done", record.error
    assert record.audit["search_moved"][what]["largest"] < 1e-6
    (flag,) = [text for text in record.audit["flags"] if text.startswith("the search did not leave its start: ")]
    assert what in flag


@pytest.mark.parametrize("name", CONTROLLED)
@pytest.mark.usefixtures("toy_data")
def test_a_random_control_does_not_search(name: str, tmp_path: Path) -> None:
    (cell,) = toy_cells(methods=[{"name": name, "params": {SEARCHES[name][0]: 1e-30, **SEARCHES[name][2]}}])
    record = run_cell(cell, RunSettings(tmp_path))
    assert record.status == "done", record.error
    assert "search_moved" not in record.audit
    assert not any("did not leave its start" in text for text in record.audit["flags"])


def test_published_recipes_keep_their_rates() -> None:
    adashare = get_method("adashare").Params
    assert adashare(recipe="published", published={"preset": "nyu_v2_3task"}).lr_logits == 0.01
    assert get_method("bmtas").Params(recipe="published").lr_arch == 0.01
    taps = get_method("taps").Params
    assert taps(recipe="published").lr_scores is None
    with pytest.raises(ValidationError, match="lr_scores is read under recipe: suite only"):
        taps(recipe="published", lr_scores=0.1)
    with pytest.raises(ValidationError, match=r"score_init is the threshold, 0.1"):
        taps(score_init=0.1)


def test_what_moved_is_stored_as_numbers(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path)
    trainer.moved("choices", np.array([0.5, 0.5, 0.5]), np.array([0.5, 0.75, 0.0]))
    trainer.moved("broken", np.array([0.5]), np.array([np.nan]))
    assert trainer.search_moved == {
        "choices": {"largest": 0.5, "mean": 0.25},
        "broken": {"largest": None, "mean": None},
    }
    with pytest.raises(UsageError, match=r"Movement of 'choices': \(3,\) at the start, \(2,\) at the end"):
        trainer.moved("choices", np.zeros(3), np.zeros(2))
