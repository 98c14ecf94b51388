"""Omniglot: the genuine zips where they are, and what a wrong copy is told."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pytest
import torch

from datasets import registry
from datasets.contracts import MultiTaskDataset
from datasets.errors import DatasetMissingError, UnknownNameError
from datasets.omniglot import BACKGROUND, EVALUATION, SIDES, SMALL, ZIPS, side_of, task_name
from datasets.on_disk.files import FileError
from datasets.registry import dataset_spec
from datasets.roles import role_indices
from tests.genuine import genuine
from tests.twins import write_twin

TWIN = {"profile": "twin"}


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, MultiTaskDataset]:
    root = tmp_path_factory.mktemp("genuine")
    (root / "omniglot").mkdir()
    for name, sha256 in ZIPS.items():
        (root / "omniglot" / name).symlink_to(genuine(f"omniglot/{name}", sha256).resolve())
    return {split: registry.load("omniglot", root, split) for split in SIDES}


def test_the_genuine_union(splits: dict[str, MultiTaskDataset]) -> None:
    """Eight alphabets, 242 characters, 4,840 images: Greek and Latin, which are in both zips, count once."""
    assert splits["train"].spec.layout == "small_zips"
    ids = [identifier for data in splits.values() for part in data.inputs.values() for identifier in part.ids]
    assert len(ids) == len(set(ids)) == 4840
    assert len({identifier.split("/")[0] for identifier in ids}) == 8
    assert len({identifier.rsplit("/", 1)[0] for identifier in ids}) == 242
    sizes = {split: sum(len(part) for part in data.inputs.values()) for split, data in splits.items()}
    assert sizes == {"train": 2420, "val": 968, "test": 1452}
    assert {task.name: task.channels for task in splits["train"].spec.tasks if task.name in ("korean", "sanskrit")} == {
        "korean": 40,
        "sanskrit": 42,
    }


def test_genuine_labels_are_ranks_and_drawers_stay_on_one_side(splits: dict[str, MultiTaskDataset]) -> None:
    for task in splits["train"].spec.tasks:
        drawers = []
        for data in splits.values():
            part = data.inputs[task.name]
            cached = part.cached()
            assert cached is not None
            labels = cached.targets[task.name]
            assert torch.equal(labels.unique(), torch.arange(task.channels))
            characters = [int(identifier.split("/")[1].removeprefix("character")) for identifier in part.ids]
            assert labels.tolist() == [number - 1 for number in characters]
            drawers.append({identifier[-2:] for identifier in part.ids})
        assert [len(side) for side in drawers] == [10, 4, 6]
        assert len(set.union(*drawers)) == 20


def test_genuine_ink_is_one_and_normalisation_is_that_of_train(splits: dict[str, MultiTaskDataset]) -> None:
    caches = [part.cached() for part in splits["train"].inputs.values()]
    images = torch.cat([cached.images for cached in caches if cached is not None])
    assert images.unique().tolist() == [0, 255]
    assert images.shape == (2420, 1, 105, 105)
    spec = splits["train"].spec
    values = images.double() / 255
    assert spec.mean[0] == pytest.approx(float(values.mean()), abs=6e-4)
    assert spec.std[0] == pytest.approx(float(values.std(correction=0)), abs=6e-4)


def test_roles_keep_a_drawer_together(splits: dict[str, MultiTaskDataset]) -> None:
    roles = role_indices(splits["train"], splits["val"], splits["test"])
    for name, parts in roles.items():
        units = splits["train"].inputs[name].units
        fit, arch = ({units[index] for index in parts[role].indices} for role in ("fit", "arch"))
        assert (len(fit), len(arch)) == (8, 2)
        assert not fit & arch


def test_sides_follow_from_names_alone() -> None:
    """A change of these would put other drawers into test: it needs a new version."""
    assert sorted(side_of("train", "Greek")) == GREEK_TRAIN
    sides = [side_of(split, "Greek") for split in SIDES]
    assert sorted(drawer for side in sides for drawer in side) == list(range(1, 21))
    assert side_of("test", "Greek/character01") != side_of("test", "Greek")


GREEK_TRAIN = [2, 3, 5, 6, 7, 9, 10, 14, 18, 19]


def test_per_character_has_the_same_sizes_and_other_sides(tmp_path: Path) -> None:
    root = write_twin(tmp_path, "omniglot", "small_zips")
    whole = registry.load("omniglot", root, "test", options=TWIN)
    each = registry.load("omniglot", root, "test", options={**TWIN, "split": "per_character"})
    assert whole.spec.version != each.spec.version
    for name, part in each.inputs.items():
        assert len(part) == len(whole.inputs[name]) == 6 * len({i.split("/")[1] for i in part.ids})
    assert any(part.ids != whole.inputs[name].ids for name, part in each.inputs.items())


def test_alphabets() -> None:
    assert (len(BACKGROUND), sum(BACKGROUND.values())) == (30, 964)
    assert (len(EVALUATION), sum(EVALUATION.values())) == (20, 659)
    assert sum(SMALL.values()) == 242
    assert task_name("Japanese_(katakana)") == "japanese_katakana"
    spec = dataset_spec("omniglot", layout="torchvision")
    assert len(set(spec.task_names)) == 50
    assert sum(spec.splits.values()) == 20 * 1623


# Wrong copies


@pytest.fixture
def twin(tmp_path: Path) -> Path:
    return write_twin(tmp_path, "omniglot", "small_zips")


def add(path: Path, name: str, content: bytes = b"x") -> None:
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, content)


def test_a_twin_does_not_pass_for_the_real_set(twin: Path) -> None:
    with pytest.raises(FileError, match=r"Balinese: number of characters: expected 24, found 2 \(and \d+ more fault"):
        registry.load("omniglot", twin, "train", tasks=["balinese"])


@pytest.mark.parametrize("name", ["../evil.png", "/etc/evil.png", "a/../../evil.png", "C:/evil.png", "..\\evil.png"])
def test_a_member_that_leaves_the_archive_is_refused(twin: Path, name: str) -> None:
    add(twin / "omniglot" / "images_background_small2.zip", name)
    with pytest.raises(FileError, match=r"images_background_small2\.zip: member .*evil.* leaves the archive"):
        registry.load("omniglot", twin, "train", options=TWIN)


def test_foreign_and_contradictory_members_are_named(twin: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(twin, other)
    add(other / "omniglot" / "images_background_small1.zip", "images_background_small1/readme.txt")
    with pytest.raises(FileError, match=r"unexpected file 'images_background_small1/readme.txt'"):
        registry.load("omniglot", other, "train", options=TWIN)
    shutil.rmtree(other)
    shutil.copytree(twin, other)
    add(other / "omniglot" / "images_background_small1.zip", "images_background_small1/Grek/character01/0001_01.png")
    with pytest.raises(UnknownNameError, match=r"'Grek'\. Nearest: 'Greek'"):
        registry.load("omniglot", other, "train", options=TWIN)
    second = twin / "omniglot" / "images_background_small2.zip"
    second.unlink()
    add(second, "images_background_small2/Greek/character01/0201_01.png")
    with pytest.raises(FileError, match="differs from the image of that name in the other zip"):
        registry.load("omniglot", twin, "train", options=TWIN)


def test_a_damaged_zip_and_a_damaged_image_are_named(twin: Path) -> None:
    first = twin / "omniglot" / "images_background_small1.zip"
    content = first.read_bytes()
    first.write_bytes(content[: len(content) // 2])
    with pytest.raises(FileError, match=r"images_background_small1\.zip: cannot be read as a zip archive"):
        registry.load("omniglot", twin, "train", options=TWIN)
    middle = len(content) // 2
    first.write_bytes(content[:middle] + bytes(200) + content[middle + 200 :])
    data = registry.load("omniglot", twin, "train", options=TWIN)
    with pytest.raises(FileError, match=r"images_background_small1\.zip.*cannot be read"):
        _ = [part.cached() for part in data.inputs.values()]


def test_missing_drawers_and_missing_layouts_are_named(tmp_path: Path) -> None:
    root = write_twin(tmp_path, "omniglot", "torchvision")
    gone = next((root / "omniglot" / "omniglot-py" / "images_background" / "Greek").glob("*/*_07.png"))
    gone.unlink()
    with pytest.raises(FileError, match=r"Greek/character0\d: drawers: .*missing or unknown: 07"):
        registry.load("omniglot", root, "train", options=TWIN)
    shutil.rmtree(root / "omniglot" / "omniglot-py" / "images_evaluation")
    with pytest.raises(DatasetMissingError) as caught:
        registry.load("omniglot", root, "train")
    message = str(caught.value)
    for part in (
        "no images_background_small1.zip for layout 'small_zips'",
        "no omniglot-py/images_evaluation for layout 'torchvision'",
        "2.9 MB",
        "https://github.com/brendenlake/omniglot",
        "Licence: MIT",
    ):
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize("size", [35, 21, 15])
def test_smaller_images_are_means_of_squares(size: int, tmp_path: Path) -> None:
    root = write_twin(tmp_path, "omniglot", "small_zips")
    full, small = (
        registry.load("omniglot", root, "train", options={"profile": "twin", **option}).inputs["greek"]
        for option in ({}, {"size": size})
    )
    by = 105 // size
    expected = torch.nn.functional.avg_pool2d(full[3]["image"].as_subclass(torch.Tensor)[None] * 255, by)[0]
    found = small[3]["image"].as_subclass(torch.Tensor) * 255
    assert found.shape == (3, size, size)
    assert (found - expected).abs().max() <= 0.5 + 1e-3
    assert dataset_spec("omniglot", options={"size": size}).native_size == (size, size)
    assert dataset_spec("omniglot", options={"size": size}).version != dataset_spec("omniglot").version
