"""Recipes that are not the suite's: BMTAS's own, what its README says of the paper, and a borrowed one for branched.

Source: branching search 2.3, 3, 4, T14, T16, T18, T24; branched 3.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from benchmark.plan.cells import plan
from benchmark.plan.suite import RecipeSettings, Suite
from benchmark.train.optimizers import StageOptimizers
from benchmark.train.stage import StageRun
from datasets.contracts import DatasetSpec, TaskSpec
from datasets.errors import UsageError
from methods.branched import published
from methods.branched.bmtas import Bmtas, BmtasParams
from methods.branched.branched import Branched, BranchedParams
from methods.branched.published import BORROWED, PASCAL_CHANNELS, PASCAL_WEIGHTS
from methods.contracts import Budget, Stage
from tests.unit.harness import toy_backbone, toy_spec, toy_trainer
from tests.unit.kills import Killed, kill_after, outcome

SHARED = ((0, 0),) * 4
OWN_WEIGHTS = {"task_weights": {"a": 1.0, "b": 0.5}}  # of the toy


def official(**more: object) -> BmtasParams:
    return BmtasParams(recipe="published", published={**OWN_WEIGHTS, **more.pop("published", {})}, **more)


def pascal(weights: dict[str, float] = PASCAL_WEIGHTS) -> DatasetSpec:
    """PASCAL-Context as BMTAS has it: 4,998 training images."""
    tasks = tuple(TaskSpec(name, "scalar", n, (), weight=weights[name]) for name, n in PASCAL_CHANNELS.items())
    return dataclasses.replace(toy_spec(), name="pascal", tasks=tasks, splits={"train": 4998, "val": 10, "test": 10})


def final_stage(method: Bmtas | Branched, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """The final training that a method asks for, which is then not made."""
    trainer = toy_trainer(folder, steps=7)
    seen: list[Stage] = []
    monkeypatch.setattr(trainer, "fit", seen.append)
    method.run(trainer)
    (stage,) = seen
    return stage


def rates(stage: Stage, steps: list[int]) -> list[float]:
    """The learning rate of everything in the stage at these steps; all groups have one."""
    optimizers = StageOptimizers(stage.train, RecipeSettings())
    found = []
    for step in steps:
        optimizers.set_rates(step, stage.steps)
        (rate,) = {group["lr"] for optimizer in optimizers._optimizers for group in optimizer.param_groups}
        found.append(rate)
    return found


# BMTAS


def test_the_rate_of_the_retraining_falls_per_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """T18."""
    stage = final_stage(Bmtas(official(fixed_tree=SHARED)), tmp_path, monkeypatch)
    epoch = 60 // 16  # the toy's images
    assert stage.steps == 130 * epoch
    first = [(e - 1) * epoch for e in (1, 66, 130)]
    middle, end = pytest.approx(0.002679, abs=5e-7), pytest.approx(6.26e-5, abs=5e-8)
    assert rates(stage, first) == [0.005, middle, end]
    last = [step + epoch - 1 for step in first]
    assert rates(stage, last) == rates(stage, first)
    assert rates(stage, [first[1] - 1])[0] > rates(stage, [first[1]])[0]
    for optimizer in StageOptimizers(stage.train, RecipeSettings())._optimizers:
        assert isinstance(optimizer, torch.optim.SGD)
        (group,) = optimizer.param_groups
        assert (group["momentum"], group["weight_decay"]) == (0.9, 1e-4)


def test_the_published_baseline_divides_the_encoders_rate_by_the_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T24: uniform rates are not the shared baseline of the paper; 0.005 / T for stem and encoder is."""
    method = Bmtas(official(fixed_tree=SHARED, lr_share_scaling="inverse"))
    stage = final_stage(method, tmp_path / "scaled", monkeypatch)
    found = {group.name: group.optimizer.lr for group in stage.train}
    assert found == {"backbone": pytest.approx(0.005 / 2), "heads": 0.005}
    uniform = final_stage(Bmtas(official(fixed_tree=SHARED)), tmp_path / "uniform", monkeypatch)
    assert {group.optimizer.lr for group in uniform.train} == {0.005}


def test_epochs_become_the_steps_of_the_published_run() -> None:
    """About 40,000 batches for the weights, 49,000 in the whole search, 40,000 in the retraining."""
    method, spec = Bmtas(BmtasParams(recipe="published")), pascal()
    plan = method.schedule(spec, Budget(7))
    assert (plan.weight_steps, plan.arch_steps) == (160 * 249, 152 * 62)
    assert (plan.cycles, plan.warmup) == (160, 8)
    assert [plan.tau(e) for e in (9, 160)] == pytest.approx([5, 0.1])
    assert method.final_recipe(spec).steps == 130 * 312
    notes = method.check(spec, toy_backbone(), Budget(7))
    assert notes[0].startswith("official recipe: 40560 final steps, whatever the budget; it used MobileNetV2 (pretr")
    assert notes[1] == "search of 39840 weight and 9424 architecture batches in 160 cycles, 8 of them warm-up"
    assert method.recipe == "published"
    assert Bmtas(BmtasParams()).recipe == "suite"


def test_published_implies_what_the_code_does_and_single_values_override_it() -> None:
    made = BmtasParams(recipe="published")
    assert (made.batch_norm, made.resource_norm, made.search_scale) == ("shared", "gflops", 0.5)
    assert (made.lr_share_scaling, made.lr_arch, made.wd_arch) == ("none", 1e-2, 5e-5)
    p = made.published
    assert (p.search_epochs, p.lr_weights, p.wd_weights) == (160, 1e-3, 1e-4)
    assert (p.retrain_epochs, p.retrain_lr, p.retrain_poly) == (130, 0.005, 0.9)
    assert p.task_weights == {"semseg": 1, "human_parts": 2, "saliency": 5, "normals": 10, "edge": 50}
    other = BmtasParams(recipe="published", published={"search_epochs": 20}, batch_norm="per_task", search_scale=1.0)
    assert (other.batch_norm, other.search_scale, other.published.search_epochs) == ("per_task", 1.0, 20)
    assert BmtasParams(**made.model_dump()) == made


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"published": {"search_epochs": 20}}, "under recipe: published only"),
        ({"recipe": "published", "published": None}, "under recipe: published only"),
        ({"recipe": "published", "n_cycles": 10, "arch_share": 0.5}, "does not read n_cycles, arch_share"),
        ({"recipe": "published", "published": {"search_epochs": 2}}, "greater than or equal to 3"),
        ({"recipe": "published", "published": {"epochs": 2}}, "Extra inputs"),
        ({"variant": "paper_readme"}, r"searches with SGD, whose rate no source gives; set .*published\.lr_weights"),
        ({"variant": "paper_readme", "recipe": "published"}, "whose rate no source gives"),
        ({"variant": "paper_readme", "recipe": "published", "published": {"search_epochs": 9}}, "whose rate no source"),
        ({"variant": "paper_readme", "published": {"lr_weights": 0.1}}, "under recipe: published only"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(params: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        BmtasParams(**params)


def test_a_plan_of_the_readmes_variant_fails_without_a_rate() -> None:
    def suite(params: dict[str, object]) -> Suite:
        data = {"dataset": "multi_mnist", "tasks": ["left", "right"]}
        methods = [{"name": "bmtas", "params": params}]
        return Suite(name="q", data=[data], backbones=["test_resnet"], methods=methods, seeds=[0])

    with pytest.raises(UsageError, match=r"^Parameters of bmtas: variant: paper_readme searches with SGD.*lr_weights"):
        plan(suite({"variant": "paper_readme", "recipe": "published"}))
    rate = {"lr_weights": 0.05, "task_weights": {"left": 1.0, "right": 1.0}}
    (cell,) = plan(suite({"variant": "paper_readme", "recipe": "published", "published": rate}))
    assert cell.notes[0].startswith("official recipe")
    with pytest.raises(UsageError, match=r"weighs tasks semseg 1, .*; the cell has left 1, right 1"):
        plan(suite({"recipe": "published"}))


def test_weights_and_domains_must_be_those_of_the_recipe() -> None:
    method = Bmtas(BmtasParams(recipe="published"))
    with pytest.raises(UsageError, match=r"the cell has .*edge 5\. Weights are the cell's: set task_weights"):
        method.check(pascal({**PASCAL_WEIGHTS, "edge": 5.0}), toy_backbone(), Budget(7))
    some = pascal().with_tasks(["semseg", "edge"])
    assert method.check(some, toy_backbone(), Budget(7))
    with pytest.raises(UsageError, match="every task of 'toy' has its own"):
        Bmtas(official()).check(toy_spec("multi"), toy_backbone(), Budget(7))


class Optimizers:
    """The optimizers of every stage by name, and how many steps Adam had counted after each of its batches."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.of: dict[str, list[torch.optim.Optimizer]] = {}
        self.counted: dict[str, list[int]] = {}
        step = StageRun.step

        def watched(run: StageRun, batch: object) -> int:
            made = step(run, batch)
            self.of[run.stage.name] = run.optimizers._optimizers
            state = next(iter(run.optimizers._optimizers[0].state.values()), {})
            self.counted.setdefault(run.stage.name, []).append(int(state.get("step", -1)))
            return made

        monkeypatch.setattr(StageRun, "step", watched)


@pytest.mark.parametrize("variant", ["official", "paper_readme"])
def test_a_published_run_from_search_to_tree(variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = official(variant=variant, published={"search_epochs": 4, "retrain_epochs": 2, "lr_weights": 0.003})
    assert params.lr_share_scaling == ("none" if variant == "official" else "inverse")
    seen = Optimizers(monkeypatch)
    trainer = toy_trainer(tmp_path, steps=5, size=32)
    graph = Bmtas(params).run(trainer)
    n_fit, n_arch, n_both = 48 // 16, 1, 60 // 16  # an architecture epoch of 12 images is one batch all the same
    assert trainer.ledger.search.optimizer_steps == 4 * n_fit * 2 + 3 * n_arch  # a weight step for each task
    assert trainer.ledger.final.optimizer_steps == trainer.weight_steps(graph) == 2 * n_both
    expected = torch.optim.Adam if variant == "official" else torch.optim.SGD
    for optimizer in seen.of["weights"]:
        (group,) = optimizer.param_groups
        assert isinstance(optimizer, expected)
        assert (group["lr"], group["weight_decay"]) == (0.003, 1e-4)
        assert group.get("momentum", 0.9) == 0.9
    (arch,) = seen.of["architecture"]
    assert (type(arch), arch.param_groups[0]["lr"]) == (torch.optim.Adam, 1e-2)
    assert seen.counted["architecture"] == [1, 1, 1]  # the state is cleared each epoch (T14)
    if variant == "official":  # per task: T steps a batch, and a cleared state in every epoch (T14, T16)
        assert seen.counted["weights"] == [2, 4, 6] * 4


def test_a_published_run_resumes(tmp_path: Path) -> None:
    params = official(published={"search_epochs": 3, "retrain_epochs": 2}, search_scale=1.0)
    expected = toy_trainer(tmp_path / "whole", steps=5)
    wanted = outcome(expected, Bmtas(params).run(expected))
    for stop in (6, 14):  # in the search and in the retraining
        killed = toy_trainer(tmp_path / f"killed-{stop}", steps=5, checkpoint_steps=1)
        kill_after(killed, stop)
        with pytest.raises(Killed):
            Bmtas(params).run(killed)
        again = toy_trainer(tmp_path / f"killed-{stop}", steps=5)
        assert outcome(again, Bmtas(params).run(again)) == wanted


# Branched


def nyud(weights: dict[str, float] | None = None) -> DatasetSpec:
    tasks = (TaskSpec("semseg", "semantic", 40, ("miou",)), TaskSpec("depth", "depth", 1, ("rmse",)))
    spec = dataclasses.replace(toy_spec(), tasks=tasks, splits={"train": 795, "val": 10, "test": 654})
    return spec.with_weights(weights or {})


def test_the_borrowed_recipe_is_a_row_of_the_survey_repository() -> None:
    method = Branched(BranchedParams(recipe="published", published={"preset": "nyud_2task"}))
    assert method.recipe == "published"
    recipe = method.final_recipe(nyud())
    assert recipe.steps == 100 * (795 // 8)
    adam = recipe.optimizer
    assert (adam.name, adam.lr, adam.weight_decay, adam.decay_every, adam.poly) == ("adam", 1e-4, 1e-4, 99, 0.9)
    five = Branched(BranchedParams(recipe="published", published={"preset": "pascal_5task", "epochs": 10}))
    assert five.final_recipe(pascal()).steps == 10 * (4998 // 6)
    assert BORROWED["pascal_5task"].task_weights == {
        "semseg": 1,
        "human_parts": 2,
        "saliency": 5,
        "normals": 10,
        "edge": 50,
    }
    (note, *_) = method.check(nyud(), toy_backbone(), Budget(7))
    assert note.startswith("borrowed recipe, not the paper's: 9900 final steps, whatever the budget")
    assert "single-task networks" in note
    assert [s.tag for s in Branched.fidelity.statements if "borrowed" in s.text] == ["third party"]


def test_a_borrowed_recipe_is_about_its_data() -> None:
    method = Branched(BranchedParams(recipe="published", published={"preset": "nyud_2task"}, fixed_tree=SHARED))
    with pytest.raises(UsageError, match=r"is about the tasks \(channels\) semseg 40, depth 1; 'toy' has a 4, b 2"):
        method.check(toy_spec(), toy_backbone(), Budget(7))
    with pytest.raises(UsageError, match=r"weighs tasks semseg 1, depth 1; the cell has semseg 1, depth 3"):
        method.check(nyud({"depth": 3.0}), toy_backbone(), Budget(7))
    for wrong in ({"recipe": "published"}, {"published": {"preset": "nyud_2task"}}):
        with pytest.raises(ValidationError, match="belong together"):
            BranchedParams(**wrong)
    with pytest.raises(ValidationError, match="nyud_2task"):
        BranchedParams(recipe="published", published={"preset": "nyu"})


def test_a_tree_is_trained_by_the_borrowed_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = dataclasses.replace(
        BORROWED["nyud_2task"], channels={"a": 4, "b": 2}, task_weights=OWN_WEIGHTS["task_weights"], batch_size=20
    )
    monkeypatch.setitem(published.BORROWED, "nyud_2task", toy)
    params = BranchedParams(
        recipe="published", published={"preset": "nyud_2task", "epochs": 2}, fixed_tree=(*SHARED[:3], (0, 1))
    )
    stage = final_stage(Branched(params), tmp_path / "stage", monkeypatch)
    assert stage.steps == 6
    assert rates(stage, list(range(6))) == pytest.approx([1e-4] * 3 + [1e-4 * 0.5**0.9] * 3)
    trainer = toy_trainer(tmp_path / "run", steps=5)
    graph = Branched(params).run(trainer)
    assert trainer.weight_steps(graph) == 6
