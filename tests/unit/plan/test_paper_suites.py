"""Suites of published settings: what they ask for is what their papers did, and their presets accept it."""

from __future__ import annotations

import pytest

from benchmark.compare.boards import read_board
from datasets.celeba import NINE
from datasets.images.augmentation import augmented_size
from datasets.registry import dataset_names
from tests.twins import TWINS
from tests.unit.paper_suites import SUITES, cells

DENSE = ("nyuv2", "cityscapes", "pascal_context", "taskonomy")  # their labels differ by protocol
OTHER_STRIDES = {"pascal_5task_bmtas": 16, "pascal_4task_mtlora": 32}
PUBLISHED = [name for name in SUITES if not name.endswith("standard")]


@pytest.mark.parametrize("name", SUITES)
def test_a_suite_of_data_on_disk_plans(name: str) -> None:
    assert SUITES[name] in TWINS
    assert SUITES[name][0] in dataset_names()
    for cell in cells(name):
        published = name in PUBLISHED
        assert (cell.document["selection"].get("select_on") == "test") == published
        if SUITES[name][0] in DENSE:
            assert (cell.document["data"]["protocol"] == "standard") != published
            assert cell.document["backbone"]["output_stride"] == OTHER_STRIDES.get(name, 8)


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


def test_dmo_s_decathlon() -> None:
    """What its board states: 25 epochs of the largest of nine collections in batches of 128, SGD at 0.01."""
    for cell in cells("decathlon_dmo"):
        document = cell.document
        assert document["budget"]["steps"] == 9_225 == 25 * -(-47_217 // 128)
        assert set(document["data"]["tasks"]) == set(read_board("decathlon_dmo").tasks)
        assert (document["backbone"]["name"], document["backbone"]["weights"]) == ("resnet18", "pretrained")
        assert (
            document["recipe"]["optimizer"] | {"name": "sgd", "lr": 0.01, "momentum": 0.9}
            == (document["recipe"]["optimizer"])
        )


def test_adashare_s_domainnet() -> None:
    """adashare.md 3, the row domainnet: the preset accepts the data, and its rates are the baselines' too."""
    planned = cells("domainnet_adashare")
    for cell in planned:
        document = cell.document
        assert document["data"]["tasks"] == ["real", "painting", "quickdraw", "clipart", "infograph", "sketch"]
        assert (document["backbone"]["name"], document["backbone"]["output_stride"]) == ("resnet34", 32)
        optimizer = document["recipe"]["optimizer"]
        assert (optimizer["lr"], optimizer["head_lr"], optimizer["betas"]) == (1e-5, 1e-3, [0.5, 0.999])
        assert document["recipe"]["batch_size"] == 32
    (params,) = (cell.document["method"]["params"] for cell in planned if cell.document["method"]["name"] == "adashare")
    assert params["batch_norm"] == "per_task"
    assert (params["sparsity_weight"], params["sharing_weight"]) == (0.01, 0.1)


@pytest.mark.parametrize(
    ("name", "backbone", "weights", "epochs", "batch_size", "size"),
    [
        ("pascal_5task_bmtas", "mobilenetv2_100", (1, 2, 5, 10, 50), 130, 16, 512),
        ("pascal_5task_tsn", "resnet18", (1, 2, 5, 50, 10), 100, 6, 512),
        ("pascal_4task_mtlora", "swin_tiny_patch4_window7_224", (1, 2, 5, 10), 300, 32, 448),
    ],
)
def test_settings_on_pascal_context(
    name: str, backbone: str, weights: tuple[float, ...], epochs: int, batch_size: int, size: int
) -> None:
    """Epochs of the 4,998 images of train without the incomplete batch, as all three loaders drop it."""
    for cell in cells(name):
        document = cell.document
        assert (document["backbone"]["name"], document["backbone"]["weights"]) == (backbone, "pretrained")
        assert tuple(document["data"]["task_weights"].values()) == weights
        assert document["recipe"]["batch_size"] == batch_size
        assert document["budget"]["steps"] == epochs * (4998 // batch_size)
        assert augmented_size(document["recipe"]["augmentation"], (size, size)) == (size, size)


def test_bmtas_searches_and_trains_as_its_code_does() -> None:
    (params,) = (
        cell.document["method"]["params"]
        for cell in cells("pascal_5task_bmtas")
        if cell.document["method"]["name"] == "bmtas"
    )
    assert params["recipe"] == "published"
    assert (params["published"]["search_epochs"], params["published"]["retrain_epochs"]) == (160, 130)
    assert params["search_scale"] == 0.5
