"""From a suite to a record on real digits: what is trained, kept, reused, and what a failure leaves behind."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import benchmark.train.single_task
from benchmark.plan.cells import _checked, resolve
from benchmark.plan.role_data import Splits, require_batches
from benchmark.plan.suite import RecipeSettings
from benchmark.records.store import Store
from benchmark.train.cell import RunSettings, run_cell
from benchmark.train.stage import StageRun
from datasets.contracts import MultiTaskDataset
from datasets.errors import UsageError
from methods import Fidelity, Method, MethodParams, Statement, TaskGraph, fit_plain, register_method
from methods.registry import get_method
from tests.unit.cells import cells, toy_cells
from tests.unit.harness import ToyInput, toy_spec


def test_a_cell_ends_in_a_record_that_says_everything(tmp_path: Path) -> None:
    reference, shared = cells()
    assert reference.is_reference  # baselines first, so that others find their networks
    first = run_cell(reference, RunSettings(tmp_path))
    record = run_cell(shared, RunSettings(tmp_path))
    assert (first.status, record.status) == ("done", "done")
    assert record.n_evaluated == {"left": 5000, "right": 5000}
    assert set(record.metrics) == {"left", "right"}
    assert record.metrics["left"]["accuracy"]["unit"] == "percent"
    assert record.cost["final"]["optimizer_steps"] == 3
    assert record.cost["search"]["optimizer_steps"] == 0
    assert first.cost["final"]["optimizer_steps"] == 6  # two networks with the whole budget each
    assert (record.cost["weight_steps"], first.cost["weight_steps"]) == (3, 3)
    assert len(first.reused_from) == 2
    assert record.cost["peak_bytes"] >= record.cost["evaluation_peak_bytes"] > 0
    assert record.size["x_backbone"] == 1.0
    assert first.size["x_backbone"] == 2.0
    assert first.compute["activation_sharing"] == 0
    assert record.roles == first.roles
    assert len(set(record.roles.values())) == 4
    assert len(record.curves["loss/left"]) == 3
    assert record.versions["weights_hash"] == first.versions["weights_hash"]
    store = Store(tmp_path)
    graph = json.loads(store.read_artifact(record.artifacts["graph"]))
    weights = tmp_path / record.artifacts["weights"]["file"]
    assert TaskGraph.load(tmp_path / record.artifacts["graph"]["file"], weights).hash() == record.graph["hash"]
    assert set(graph["outputs"]) == {"left", "right"}
    assert not list((tmp_path / "work").rglob("*.pt"))


@pytest.mark.usefixtures("toy_data")
def test_the_same_cell_gives_the_same_result_elsewhere(tmp_path: Path) -> None:
    shared = toy_cells()[1]
    one, two = (run_cell(shared, RunSettings(tmp_path / name)) for name in "ab")
    assert one.result_hash == two.result_hash
    other = run_cell(toy_cells(seeds=[1])[1], RunSettings(tmp_path / "a"))
    assert other.result_hash != one.result_hash


@pytest.mark.usefixtures("toy_data")
def test_single_task_networks_are_trained_once_for_all_who_need_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []
    fit = benchmark.train.single_task.fit_plain
    monkeypatch.setattr(
        benchmark.train.single_task,
        "fit_plain",
        lambda trainer, name, steps: trained.append(name) or fit(trainer, name, steps),
    )
    both, swapped = (
        cells(data=[{"dataset": "toy", "tasks": tasks}])[0] for tasks in (["left", "right"], ["right", "left"])
    )
    first = run_cell(both, RunSettings(tmp_path))
    second = run_cell(swapped, RunSettings(tmp_path))
    assert trained == ["single task left", "single task right"]
    assert (
        second.cost["final"]["optimizer_steps"] == first.cost["final"]["optimizer_steps"] == 6
    )  # charged all the same
    assert second.metrics["left"] == first.metrics["left"]
    run_cell(toy_cells(budget={"steps": 2})[0], RunSettings(tmp_path))
    assert len(trained) == 4  # another budget, other networks


@pytest.mark.usefixtures("toy_data")
def test_divergence_is_a_result_with_its_place(tmp_path: Path) -> None:
    recipe = {
        "batch_size": 16,
        "optimizer": {"lr": 1e9},
        "clip_norm": None,
        "schedule": {"name": "constant", "warmup": 0.0},
    }
    record = run_cell(toy_cells(recipe=recipe)[1], RunSettings(tmp_path))
    assert record.status == "diverged"
    assert record.error is not None
    assert (record.error["stage"], record.error["task"]) == ("joint", "left")
    assert record.error["step"] in (1, 2)
    assert not Store(tmp_path).is_done(record.key)


class BrokenParams(MethodParams):
    """What to break."""

    how: str = "raise"


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    from methods import registry

    registry.load_methods()  # else what is imported in the test registers in the copy, and is gone after it
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))

    @register_method("broken")
    class Broken(Method[BrokenParams]):
        """Fails on purpose."""

        Params = BrokenParams
        fidelity = Fidelity("none", "none", (Statement("default", "fails"),))

        def run(self, trainer: Any) -> TaskGraph:
            if self.params.how == "raise":
                raise KeyError("a fault of the method")
            if self.params.how == "oom":
                raise torch.OutOfMemoryError("tried 9 GiB")
            if self.params.how == "oom on a CPU":
                torch.empty(1 << 60)
            if self.params.how == "oom in numpy":
                np.empty(1 << 60, dtype=np.uint8)
            if self.params.how != "empty":
                trainer.fact("ratio", float("nan"))
                graph = fit_plain(trainer, "joint", trainer.budget.steps)[0]
                if self.params.how == "slips through":  # as if `fact` had not looked
                    trainer.facts["ratio"] = {"value": float("nan"), "unit": ""}
                return graph
            return TaskGraph(["image"])


@pytest.mark.usefixtures("toy_data", "broken")
@pytest.mark.parametrize(
    ("how", "status", "message"),
    [
        ("raise", "failed", "a fault of the method"),
        ("oom", "oom", "9 GiB"),
        ("oom on a CPU", "oom", "can't allocate memory"),
        ("oom in numpy", "oom", "Unable to allocate"),
        ("empty", "failed", "the cell has the tasks"),
    ],
)
def test_a_failing_method_ends_its_cell_only(tmp_path: Path, how: str, status: str, message: str) -> None:
    broken_cell = toy_cells(methods=[{"name": "broken", "params": {"how": how}}])[0]
    record = run_cell(broken_cell, RunSettings(tmp_path))
    assert record.status == status
    assert message in record.error["message"]
    again = run_cell(broken_cell, RunSettings(tmp_path))
    assert again.attempts == 2
    assert list((tmp_path / "history").rglob("*.json"))


@pytest.mark.usefixtures("toy_data")
def test_multi_domain_cells_have_no_joint_macs(tmp_path: Path) -> None:
    shared = toy_cells(multi=True)[1]
    record = run_cell(shared, RunSettings(tmp_path))
    assert record.status == "done"
    assert record.compute["macs_joint"] is None
    assert record.size["weight_sharing"] > 0.4
    assert record.cost["final"]["forward_passes"] == 6


@pytest.mark.usefixtures("toy_data")
def test_weights_from_a_file_and_pretrained_statistics(tmp_path: Path) -> None:
    import timm

    model = timm.create_model("test_resnet", num_classes=0)
    file = tmp_path / "weights.pth"
    torch.save({"state_dict": {}, "state_dict_ema": model.state_dict()}, file)
    planned = toy_cells(backbones=[{"name": "test_resnet", "weights": str(file)}])[1]
    assert planned.document["backbone"]["weights"].startswith("file-")
    assert str(tmp_path) not in json.dumps(planned.document)
    assert f"weights are 'state_dict_ema' of {file}" in planned.notes
    record = run_cell(planned, RunSettings(tmp_path / "out"))
    assert record.status == "done"
    assert record.audit["normalisation"]["mean"] == list(model.pretrained_cfg["mean"])
    assert record.audit["weights_entry"] == "state_dict_ema"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ["hard_shring"]}, "Unknown method 'hard_shring'. Nearest: 'hard_sharing'"),
        (
            {"methods": [{"name": "hard_sharing", "params": {"steps_facto": 2}}]},
            "'steps_facto'. Nearest: 'steps_factor'",
        ),
        (
            {"methods": [{"name": "hard_sharing", "params": {"steps_factor": -1}}]},
            r"hard_sharing.steps_factor: .*\(given: -1\)",
        ),
        ({"data": ["multi_mnits"]}, "Unknown data set 'multi_mnits'. Nearest: 'multi_mnist'"),
        ({"data": [{"dataset": "multi_mnist", "tasks": ["lft"]}]}, "'lft'. Nearest: 'left'"),
        ({"data": [{"dataset": "multi_mnist", "options": {"jiter": 1}}]}, "'jiter'. Nearest: 'jitter'"),
        ({"data": [{"dataset": "multi_mnist", "task_weights": {"up": 1.0}}]}, "'up'"),
        ({"data": [{"dataset": "multi_mnist", "protocol": "mtan"}]}, "no labels for protocol 'mtan'"),
        ({"backbones": ["resnet-18"]}, "Unknown backbone 'resnet-18'. Nearest: 'resnet18'"),
        ({"backbones": [{"name": "test_resnet", "weights": "nowhere.pt"}]}, "'nowhere.pt'"),
        ({"recipe": {"batch_size": 20000}}, "multi_mnist' has 17500 training samples"),
        (
            {"backbones": ["vit_tiny_patch16_224"]},
            "36x36 is not a multiple of the 16x16 patches.*nearest: 32x32 and 48x48",
        ),
        ({"backbones": [{"name": "test_vit", "output_stride": 8}]}, "output_stride"),
        ({"recipe": {"augmentation": ["flip"]}}, "Unknown augmentation 'flip'"),
        ({"recipe": {"balancing": {"name": "dwaa"}}}, "Unknown loss balancing 'dwaa'. Nearest: 'dwa'"),
        (
            {"methods": ["adashare"], "recipe": {"batch_size": 3600}, "seeds": [0]},
            "batch_size is 3600; .* 'multi_mnist' .* 3500 have the role arch; adashare trains on .* apart. Set .* 3500",
        ),
        (
            {"recipe": {"batch_size": 1, "augmentation": [{"name": "scale_crop", "size": [32, 32]}]}},
            "batch_size is 1, and images of 32x32 become a map of 1x1 in 'test_resnet' .* at least 2",
        ),
        ({"methods": ["hard_sharing", "hard_sharing"]}, "asks twice for the cell hard_sharing"),
    ],
)
def test_faults_are_found_before_the_first_step(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        cells(**changes)
    assert "\n" not in str(caught.value)


def test_more_tasks_than_trees_are_counted_for_name_method_and_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("methods.branched.counting.MOST_TASKS", 1)
    with pytest.raises(
        UsageError, match=r"Method 'random_tree' .* up to 1 tasks, .* has 2. Ask for fewer .* leave this"
    ):
        cells(methods=["random_tree"])


@pytest.mark.parametrize(
    ("batch_size", "alternates", "role"),
    [(18, False, None), (19, False, "18 have the role fit and arch together"), (18, True, "4 have the role arch")],
)
def test_a_batch_must_fit_into_what_is_left_for_training(
    batch_size: int, alternates: bool, role: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 20 images 2 are held out to select, and 4 of the others are arch."""
    spec = dataclasses.replace(toy_spec(), splits={"train": 20, "test": 5})
    made = {split: MultiTaskDataset(spec, split, {"image": ToyInput(n, 0)}) for split, n in spec.splits.items()}
    cell = cells(recipe={"batch_size": batch_size})[0].settings
    splits = Splits(None)
    monkeypatch.setattr(splits, "of", lambda cell: made)
    if role is None:
        require_batches(cell, spec, alternates, splits)
        return
    with pytest.raises(UsageError, match=f"batch_size is {batch_size}; .* {role}.* at most {role.split()[0]}"):
        require_batches(cell, spec, alternates, splits)


def test_a_backbone_is_looked_at_in_every_size_that_it_is_trained_on() -> None:
    """Whole images leave maps of 2x2, crops maps of 1x1, and both are one backbone on one data set."""
    whole = cells(recipe={"batch_size": 1})[0]
    crop = {"augmentation": [{"name": "scale_crop", "size": [32, 32]}]}
    cropped = resolve(whole.settings.model_copy(update={"recipe": RecipeSettings(batch_size=1, **crop)}))
    with pytest.raises(UsageError, match="images of 32x32 become a map of 1x1"):
        _checked([whole, cropped], Splits(None))


def test_a_batch_of_one_is_fine_where_maps_are_larger() -> None:
    assert cells(recipe={"batch_size": 1})


def test_weights_that_do_not_fit_are_found_before_the_first_step(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = {"conv1.0.weight": torch.zeros(2, 2), "bn1.weight": torch.zeros(32)}
    save_file(state, tmp_path / "weights.safetensors")
    with pytest.raises(UsageError, match=r"weights\.safetensors") as caught:
        cells(backbones=[{"name": "test_resnet", "weights": str(tmp_path / "weights.safetensors")}])
    assert "\n" not in str(caught.value)
    (tmp_path / "weights.pt").write_bytes(b"not a file of torch")
    with pytest.raises(UsageError, match=r"weights\.pt"):
        cells(backbones=[{"name": "test_resnet", "weights": str(tmp_path / "weights.pt")}])


def test_keys_do_not_depend_on_what_changes_no_result() -> None:
    plain = cells()[1]
    spelled = cells(recipe={"batch_size": 16, "workers": 2, "clip_norm": 5.0})[1]
    assert spelled.key == plain.key
    assert cells(recipe={"batch_size": 17})[1].key != plain.key
    assert dataclasses.replace(plain, weights="elsewhere").key == plain.key


@pytest.mark.usefixtures("broken", "toy_data")
def test_a_fact_that_is_not_finite_loses_no_work(tmp_path: Path) -> None:
    record = run_cell(toy_cells(methods=[{"name": "broken", "params": {"how": "fact"}}])[0], RunSettings(tmp_path))
    assert record.status == "done", record.error
    assert record.audit["facts"] == {"ratio": {"value": None, "unit": ""}}


@pytest.mark.usefixtures("broken", "toy_data")
def test_checkpoints_stay_until_the_record_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = toy_cells(methods=[{"name": "broken", "params": {"how": "slips through"}}])[0]
    record = run_cell(cell, RunSettings(tmp_path))
    assert record.status == "failed"
    assert "audit.facts.ratio.value is nan" in record.error["message"]
    (kept,) = (tmp_path / "work" / cell.key).glob("stage-*.end.pt")
    monkeypatch.setattr(StageRun, "step", lambda *arguments: pytest.fail("trained again"))
    assert run_cell(cell, RunSettings(tmp_path)).status == "failed"
    assert kept.exists()


@pytest.mark.usefixtures("broken")
def test_what_a_record_cannot_hold_of_a_method_is_found_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = cells(methods=[{"name": "broken", "params": {"how": "fact"}}])[0]
    monkeypatch.setattr(get_method("broken"), "draws", float("nan"), raising=False)
    monkeypatch.setattr(StageRun, "step", lambda *arguments: pytest.fail("a step was made"))
    record = run_cell(cell, RunSettings(tmp_path))
    assert "draws is nan" in record.error["message"]
