"""Suites of published settings: what they ask for is what their papers did, and their presets accept it."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import pytest

from benchmark.plan.cells import PlannedCell, plan
from benchmark.plan.suite_file import find_suite, read_suite
from datasets.celeba import NINE
from datasets.images.augmentation import augmented_size
from datasets.registry import dataset_names
from tests.twins import TWINS, write_twin

SUITES = {
    "nyuv2_3task_adashare": ("nyuv2", "adashare"),
    "nyuv2_2task_adashare": ("nyuv2", "adashare"),
    "nyuv2_13class_libmtl": ("nyuv2", "mtan_npy"),
    "nyuv2_standard": ("nyuv2", "adashare"),
    "nyuv2_13class_standard": ("nyuv2", "mtan_npy"),
    "cityscapes_2task_adashare": ("cityscapes", "adashare"),
    "cityscapes_standard": ("cityscapes", "official"),
    "dmo_four_tasks": ("class_sets", "torchvision"),
    "taskonomy_5task_adashare": ("taskonomy", "adashare"),
    "taskonomy_standard": ("taskonomy", "official"),
    "celeba_9task_standard": ("celeba", "torchvision"),
    "celeba_40task_standard": ("celeba", "archive"),
}
DENSE = ("nyuv2", "cityscapes", "taskonomy")  # their labels differ by protocol
PUBLISHED = [name for name in SUITES if not name.endswith("standard")]


@functools.cache
def cells(name: str) -> list[PlannedCell]:
    """The cells of a shipped suite on a small copy of its data."""
    suite = read_suite(find_suite(name))
    data = tuple(part.model_copy(update={"options": {**part.options, "profile": "twin"}}) for part in suite.data)
    with tempfile.TemporaryDirectory() as folder:
        twin = write_twin(Path(folder), *SUITES[name])
        return plan(suite.model_copy(update={"data": data, "seeds": suite.seeds[:1]}), twin)


@pytest.mark.parametrize("name", SUITES)
def test_a_suite_of_data_on_disk_plans(name: str) -> None:
    assert SUITES[name] in TWINS
    assert SUITES[name][0] in dataset_names()
    for cell in cells(name):
        published = name in PUBLISHED
        assert (cell.document["selection"].get("select_on") == "test") == published
        if SUITES[name][0] in DENSE:
            assert (cell.document["data"]["protocol"] == "standard") != published
            assert cell.document["backbone"]["output_stride"] == 8


@pytest.mark.parametrize(
    ("name", "backbone", "weights", "crop"),
    [
        ("nyuv2_3task_adashare", "resnet34", {"semseg": 1, "normals": 20, "depth": 3}, (321, 321)),
        ("nyuv2_2task_adashare", "resnet18", {"semseg": 1, "normals": 20}, (321, 321)),
        ("cityscapes_2task_adashare", "resnet34", {"semseg": 1, "depth": 20}, (224, 224)),
    ],
)
def test_adashare_s_settings(name: str, backbone: str, weights: dict[str, float], crop: tuple[int, int]) -> None:
    """adashare.md 3, and 23 M a head; the baselines get the optimizer of the release's final training."""
    for cell in cells(name):
        document = cell.document
        assert document["backbone"]["name"] == backbone
        assert document["data"]["task_weights"] == weights
        assert document["head"] == {"pooled": "pool + linear", "dense": "adashare_aspp", "hidden": 1024}
        assert augmented_size(document["recipe"]["augmentation"], (480, 640)) == crop
        assert document["recipe"]["batch_size"] == 16
        assert document["recipe"]["schedule"]["milestones"] == [0.2, 0.4, 0.6, 0.8]  # every 4,000 of 20,000 steps
    method = next(cell for cell in cells(name) if cell.document["method"]["name"] == "adashare")
    assert method.document["method"]["params"]["n_policies"] == 8
    assert any("4000 warm-up" in note for note in method.notes)


def test_adashare_s_setting_on_taskonomy() -> None:
    """Section 3: 30,000 steps of final training at 1e-4, times 0.3 every 12,000; weights 1, 3, 2, 7, 7."""
    planned = cells("taskonomy_5task_adashare")
    for cell in planned:
        document = cell.document
        assert document["budget"]["steps"] == 30_000
        assert document["recipe"]["optimizer"]["lr"] == 1e-4
        assert (
            document["recipe"]["schedule"] | {"milestones": [0.4, 0.8], "gamma": 0.3} == document["recipe"]["schedule"]
        )
        assert list(document["data"]["task_weights"].values()) == [1, 3, 2, 7, 7]
        assert augmented_size(document["recipe"]["augmentation"], (256, 256)) == (224, 224)
    method = next(cell for cell in planned if cell.document["method"]["name"] == "adashare")
    assert any("20000 warm-up" in note for note in method.notes)
    assert not any("differ" in note for note in method.notes)


def test_celeba_s_suites_take_all_attributes_and_nine() -> None:
    assert cells("celeba_9task_standard")[0].document["data"]["tasks"] == list(NINE)
    assert len(cells("celeba_40task_standard")[0].document["data"]["tasks"]) == 40


def test_libmtl_s_setting() -> None:
    """200 epochs of 795 images in batches of 8 are 19,900 steps; StepLR halves the rate at half of them."""
    document = cells("nyuv2_13class_libmtl")[0].document
    assert document["budget"]["steps"] == 19_900 == 200 * 796 // 8
    assert document["backbone"]["weights"] == "pretrained"
    assert document["recipe"]["schedule"] | {"milestones": [0.5], "gamma": 0.5} == document["recipe"]["schedule"]
    assert document["recipe"]["augmentation"] == []
    assert document["data"]["task_weights"] == {"semseg": 1.0, "normals": 1.0, "depth": 1.0}


def test_dmo_s_four_tasks() -> None:
    """The re-run's recipe (board dmo_four_tasks_rerun): 25 epochs of MNIST in batches of 64, and DMO's own settings."""
    planned = cells("dmo_four_tasks")
    document = planned[0].document
    assert document["budget"]["steps"] == 23_450 == 25 * 938
    assert document["data"]["tasks"] == ["cifar10", "stl10", "usps", "mnist"]
    assert document["backbone"]["name"] == "resnet18"
    assert document["recipe"]["augmentation"] == [{"name": "shift", "pixels": 8}, "horizontal_flip"]
    (params,) = (cell.document["method"]["params"] for cell in planned if cell.document["method"]["name"] == "dmo")
    expected = {"alpha": 0.5, "tau_sim": 0.45, "keep_floor": 0.0, "layer_floor": 0, "batch_norm": "shared"}
    assert params | expected == params
    assert params["published"]["epochs"] == 25
    assert params["init"] == "independent"
