"""Visual Decathlon: labels by list and by folder, archives read in place, hidden test labels that stay hidden."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from datasets import registry
from datasets.contracts import MultiTaskDataset
from datasets.decathlon import CLASSES, COUNTS, FILE_NAMES, IMAGES, LISTS
from datasets.errors import UnknownNameError
from datasets.images.augmentation import augmentation_of
from datasets.on_disk.files import FileError, TarArchive
from datasets.on_disk.prepare import prepare
from datasets.on_disk.verify import verify
from datasets.registry import dataset_spec, get_dataset
from tests.twins import write_twin

TWIN = {"profile": "twin"}
LAYOUTS = tuple(get_dataset("decathlon").layouts)


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {layout: write_twin(tmp_path_factory.mktemp("ten"), "decathlon", layout) for layout in LAYOUTS}


def load(root: Path, split: str = "train", tasks: tuple[str, ...] = tuple(FILE_NAMES)) -> MultiTaskDataset:
    return registry.load("decathlon", root, split, tasks=tasks, options=TWIN)


def changed(tmp_path: Path, layout: str = "extracted") -> Path:
    """The folder of a twin that a test may spoil."""
    return write_twin(tmp_path, "decathlon", layout) / "decathlon"


def test_ten_collections_of_which_imagenet_is_asked_for_by_name() -> None:
    spec = dataset_spec("decathlon")
    assert "imagenet" not in spec.task_names
    assert len(spec.tasks) == 9
    assert len(dataset_spec("decathlon", tasks=list(FILE_NAMES)).tasks) == 10
    assert CLASSES["omniglot"] == 1623
    assert {FILE_NAMES[task] for task in ("dped", "flowers", "imagenet")} == {
        "daimlerpedcls",
        "vgg-flowers",
        "imagenet12",
    }
    assert (COUNTS["train"]["svhn"], COUNTS["test"]["svhn"]) == (47_217, 26_040)
    assert set(spec.splits) == {"train", "test"}


@pytest.mark.parametrize("split", ["train", "test"])
def test_archives_give_what_the_extracted_files_give(split: str, roots: dict[str, Path]) -> None:
    files, archives = (load(roots[layout], split) for layout in ("extracted", "tars"))
    for task, part in files.inputs.items():
        other = archives.inputs[task]
        assert part.ids == other.ids
        for row in range(len(part)):
            assert torch.equal(part[row]["image"], other[row]["image"])
            assert torch.equal(part[row]["targets"][task], other[row]["targets"][task])


def test_a_label_is_the_place_in_the_list_and_without_lists_that_of_the_folder(roots: dict[str, Path]) -> None:
    """In the twin the first category has the last folder, so that the orders differ; the layout is in the key."""
    listed, folders = (load(roots[layout], "test").inputs["aircraft"] for layout in ("extracted", "folders"))
    for part, in_order in ((listed, False), (folders, True)):
        for row, name in enumerate(part.ids):
            folder = int(name.split("/")[2])
            assert int(part[row]["targets"]["aircraft"]) == (folder - 1 if in_order else 3 - folder)
    assert sorted(listed.ids) == sorted(folders.ids)
    assert dataset_spec("decathlon", layout="folders").layout != dataset_spec("decathlon", layout="extracted").layout
    assert listed[0]["meta"]["category_ids"] == (10_000_000, 10_000_001, 10_000_002)  # as the server wants them


def test_the_order_of_the_categories_is_not_that_of_their_ids(tmp_path: Path) -> None:
    folder = changed(tmp_path)
    before = load(folder.parent, "train", ("dtd",)).inputs["dtd"]
    labels = [int(before[row]["targets"]["dtd"]) for row in range(len(before))]
    path = folder / LISTS / "dtd_train.json"
    document = json.loads(path.read_bytes())
    document["categories"].reverse()
    path.write_text(json.dumps(document))
    after = load(folder.parent, "train", ("dtd",)).inputs["dtd"]
    assert [int(after[row]["targets"]["dtd"]) for row in range(len(after))] == [2 - label for label in labels]
    assert after[0]["meta"]["category_ids"] == before[0]["meta"]["category_ids"][::-1]  # type: ignore[index]


def test_val_follows_the_categories_of_train(tmp_path: Path) -> None:
    folder = changed(tmp_path)
    before = load(folder.parent, "test", ("dtd",)).inputs["dtd"]
    path = folder / LISTS / "dtd_val.json"
    document = json.loads(path.read_bytes())
    document["categories"].reverse()
    path.write_text(json.dumps(document))
    after = load(folder.parent, "test", ("dtd",)).inputs["dtd"]
    assert [int(after[row]["targets"]["dtd"]) for row in range(6)] == [
        int(before[row]["targets"]["dtd"]) for row in range(6)
    ]
    document["categories"].pop()
    path.write_text(json.dumps(document))
    with pytest.raises(FileError, match=r"dtd_val\.json: categories: expected those of the train list"):
        load(folder.parent, "test", ("dtd",))


def test_the_hidden_test_part_is_no_split_and_no_list(tmp_path: Path) -> None:
    folder = changed(tmp_path)
    with pytest.raises(UnknownNameError, match="Unknown split of decathlon 'hidden'"):
        load(folder.parent, "hidden")
    assert all("/val/" in name for name in load(folder.parent, "test").inputs["svhn"].ids)
    (folder / LISTS / "svhn_test_stripped.json").replace(folder / LISTS / "svhn_val.json")
    with pytest.raises(FileError, match=r"svhn_val\.json: has no labels; those of the official test part are hidden"):
        load(folder.parent, "test")
    assert "hidden" in dataset_spec("decathlon").caveats[0]


def test_images_keep_their_aspect_and_lose_their_ends(roots: dict[str, Path]) -> None:
    """72 x (72 + 6 n) pixels are cut to the middle 72 x 72; nothing is resized."""
    part = load(roots["folders"], "train", ("gtsrb",)).inputs["gtsrb"]
    strip = [
        float((part[row]["image"][:, 40] - part[row]["image"][:, 40, -1:]).abs().amax(0).lt(0.1).sum())
        for row in range(5)
    ]
    sample = part[1]["image"]  # lies, 78 wide: 3 columns are cut on each side, the strip of 10 keeps 7
    assert tuple(sample.shape) == (3, 72, 72)
    assert strip[1] == pytest.approx(7, abs=1)
    larger = registry.load("decathlon", roots["folders"], "train", tasks=["gtsrb"], options={**TWIN, "size": 36})
    assert tuple(larger.inputs["gtsrb"][1]["image"].shape) == (3, 36, 36)


@pytest.mark.parametrize("layout", ["extracted", "tars"])
def test_images_that_no_list_names_are_counted(layout: str, tmp_path: Path) -> None:
    folder = changed(tmp_path, layout)
    for kind in ("annotations", "images"):
        path = folder / LISTS / "gtsrb_val.json"
        document = json.loads(path.read_bytes())
        document[kind] = document[kind][1:] if kind == "images" else document[kind][:-1]  # both are of the first image
        path.write_text(json.dumps(document))
    report = verify("decathlon", folder.parent, layout=layout, profile="twin", tasks=["gtsrb"])
    assert report.ok
    assert "gtsrb/val: 1 images are in no list and left out" in report.warnings


def test_hidden_files_in_folders_are_counted(roots: dict[str, Path]) -> None:
    report = verify("decathlon", roots["folders"], profile="twin", tasks=["svhn"])
    assert report.ok
    assert report.warnings == ["svhn/val: 1 hidden files are left out"]


def test_archives_that_are_left_after_extracting_are_no_other_layout(tmp_path: Path, roots: dict[str, Path]) -> None:
    folder = changed(tmp_path)
    shutil.copy(roots["tars"] / "decathlon" / IMAGES / "dtd.tar", folder / IMAGES)
    assert registry.find_layout("decathlon", folder.parent) == (folder, "extracted")


def drop_label(document: dict[str, Any]) -> None:
    document["annotations"].pop()


def foreign_label(document: dict[str, Any]) -> None:
    document["annotations"][0]["category_id"] = 5


def two_labels(document: dict[str, Any]) -> None:
    document["annotations"].append(document["annotations"][0])


def label_of_nothing(document: dict[str, Any]) -> None:
    document["images"].pop()


def outside(document: dict[str, Any]) -> None:
    document["images"][0]["file_name"] = "data/../../a.jpg"


def elsewhere(document: dict[str, Any]) -> None:
    document["images"][0]["file_name"] = document["images"][0]["file_name"].removeprefix("data/")


def without_class(document: dict[str, Any]) -> None:
    document["images"][0]["file_name"] = "data/a.jpg"


def same_file(document: dict[str, Any]) -> None:
    document["images"][1]["file_name"] = document["images"][0]["file_name"]


def absent_image(document: dict[str, Any]) -> None:
    document["images"][0]["file_name"] = "data/ucf101/val/0001/gone.jpg"


def without_names(document: dict[str, Any]) -> None:
    del document["images"][0]["file_name"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (drop_label, "has no label of the 3 categories: None"),
        (foreign_label, "has no label of the 3 categories: 5"),
        (two_labels, "has two labels"),
        (label_of_nothing, "1 labels belong to no image"),
        (outside, "expected an image below data/"),
        (elsewhere, "expected an image below data/"),
        (without_class, "expected an image below data/"),
        (same_file, "is listed twice"),
        (absent_image, r"gone\.jpg.*: existence: expected an image that the list names, found none"),
        (without_names, "an image or label has no 'file_name'"),
    ],
)
@pytest.mark.parametrize("layout", ["extracted", "tars"])
def test_a_wrong_list_is_one_line(
    layout: str, spoil: Callable[[dict[str, Any]], None], message: str, tmp_path: Path
) -> None:
    folder = changed(tmp_path, layout)
    path = folder / LISTS / "ucf101_val.json"
    document = json.loads(path.read_bytes())
    spoil(document)
    path.write_text(json.dumps(document))
    with pytest.raises(FileError, match=message) as caught:
        load(folder.parent, "test")
    assert "\n" not in str(caught.value)
    load(folder.parent, "test", ("svhn",))  # nothing of a collection that is not asked for is opened


@pytest.mark.parametrize(
    "text",
    [
        *(b"{", b"[]", b"\xff", b'{"images": 1, "categories": [], "annotations": [1]}'),
        b'{"images": [], "categories": [{}], "annotations": [1]}',
    ],
)
def test_a_list_of_another_form_is_one_line(text: bytes, tmp_path: Path) -> None:
    folder = changed(tmp_path)
    (folder / LISTS / "aircraft_train.json").write_bytes(text)
    with pytest.raises(FileError, match=r"aircraft_train\.json: (expected|has no labels|a category has no id)"):
        load(folder.parent)


def test_archives_are_whole_plain_and_stay_in_their_folder(tmp_path: Path) -> None:
    folder = changed(tmp_path, "tars")
    path = folder / IMAGES / "dtd.tar"
    archive = pickle.loads(pickle.dumps(TarArchive(folder / IMAGES / "aircraft.tar")))
    assert archive.read("aircraft/train/0001/000011.jpg")[:2] == b"\xff\xd8"
    assert "aircraft/train/0001/._000001.jpg" in archive.members()
    report = verify("decathlon", folder.parent, layout="tars", profile="twin", tasks=["aircraft"])
    assert not [text for text in report.warnings if "in no list" in text]  # what Mac OS leaves is no image
    content = path.read_bytes()
    for cut in (
        len(content) // 2 // 512 * 512,
        len(content) // 2 // 512 * 512 + 10,
    ):  # in a header or content, after one
        path.write_bytes(content[:cut])
        with pytest.raises(FileError, match=r"dtd\.tar: (is cut short|cannot be read as a tar archive)"):
            load(folder.parent, tasks=("dtd",))
    for name in ("/etc/a.jpg", "../a.jpg"):
        with tarfile.open(path, "w") as archive:
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
        with pytest.raises(FileError, match=r"leaves the archive"):
            load(folder.parent, tasks=("dtd",))
    path.unlink()
    with pytest.raises(FileError, match=r"dtd\.tar: cannot be read"):
        load(folder.parent, tasks=("dtd",))


def test_a_class_that_train_lacks_and_a_wrong_number_of_classes_are_named(tmp_path: Path) -> None:
    folder = changed(tmp_path, "folders")
    (folder / IMAGES / "svhn" / "val" / "0003").rename(folder / IMAGES / "svhn" / "val" / "0004")
    with pytest.raises(FileError, match=r"svhn/val/0004: class: expected one of train, found '0004'"):
        load(folder.parent, "test")
    bad = [str(fault) for fault in verify("decathlon", folder.parent, tasks=["dtd"]).bad]
    assert f"{IMAGES}/dtd/train: number of classes: expected 47, found 3" in bad
    for number in range(10):
        (folder / IMAGES / "daimlerpedcls" / "train" / f"{number:04d}").mkdir(exist_ok=True)
    with pytest.raises(FileError, match=r"daimlerpedcls/train: number of classes: expected 2, found 10"):
        load(folder.parent, tasks=("dped",))


def test_a_category_that_is_listed_twice_is_one_class(tmp_path: Path) -> None:
    folder = changed(tmp_path)
    path = folder / LISTS / "dtd_train.json"
    document = json.loads(path.read_bytes())
    document["categories"].append(document["categories"][0])
    path.write_text(json.dumps(document))
    bad = [str(fault) for fault in verify("decathlon", folder.parent, tasks=["dtd"]).bad]
    assert f"{LISTS}/dtd_train.json: number of classes: expected 47, found 3" in bad


def test_the_prepared_copy_gives_equal_samples(tmp_path: Path) -> None:
    root = changed(tmp_path, "tars").parent
    before = load(root, tasks=("omniglot",)).inputs["omniglot"]
    expected = [before[row]["image"] for row in range(len(before))]
    prepare("decathlon", root, options=TWIN)
    after = load(root, tasks=("omniglot",)).inputs["omniglot"]
    assert after.source.image.read is not before.source.image.read  # type: ignore[attr-defined]
    assert all(torch.equal(after[row]["image"], image) for row, image in enumerate(expected))


def test_signs_characters_and_digits_are_never_mirrored(roots: dict[str, Path]) -> None:
    data = load(roots["extracted"])
    for task, part in data.inputs.items():
        augment = augmentation_of([{"name": "horizontal_flip", "p": 1.0}], data.spec, task)
        assert augment is not None
        mirrored = not torch.equal(augment(part[1])["image"], part[1]["image"])
        assert mirrored == (task not in ("gtsrb", "omniglot", "svhn"))
