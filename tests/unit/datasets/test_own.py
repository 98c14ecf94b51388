"""Data of one's own: what a user would type is enough, what is wrong is one line that says what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datasets import ArrayFiles, ImageFolders, Labels, registry
from datasets.contracts import InputData
from datasets.errors import UsageError
from datasets.on_disk.prepare import prepare
from datasets.on_disk.sample_checks import faults, label_faults, require
from datasets.on_disk.verify import verify
from datasets.own import folders
from datasets.own.pictures import nearest, resized, window


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_DATASETS", dict(registry._DATASETS))


def made(base: type[Any], folder: Path, **attributes: Any) -> None:
    """Registers `mine`, a subclass of `base` with these attributes."""
    registry.register_dataset("mine")(type("Mine", (base,), {"folder": folder, **attributes}))


def look_at_all() -> None:
    """What happens before a run."""
    for split in ("train", "test"):
        for look in (faults, label_faults):
            require(registry.load("mine", None, split), look)


def read(split: str = "train") -> InputData:
    return registry.load("mine", None, split).inputs["image"]


def photo(path: Path, size: tuple[int, int] = (8, 12), seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)


def mask(path: Path, ids: list[list[int]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(ids, dtype=np.uint8)).save(path)


def pairs(folder: Path, n: int = 10, ids: tuple[int, int] = (0, 1)) -> None:
    """n photographs of 8 x 12 pixels; their masks are `ids`, the one above, the other below."""
    for number in range(n):
        photo(folder / "photos" / f"{number}.png", seed=number)
        mask(folder / "masks" / f"{number}.png", [[ids[0]] * 12] * 4 + [[ids[1]] * 12] * 4)


SEMSEG = {"semseg": Labels("semantic", folder="masks")}


# Images and label images


def test_a_folder_of_pairs_needs_no_more_than_its_names(tmp_path: Path) -> None:
    pairs(tmp_path, ids=(0, 2))
    made(ImageFolders, tmp_path, images="photos", tasks=SEMSEG)
    spec = registry.dataset_spec("mine")
    assert (spec.native_size, dict(spec.splits)) == ((8, 12), {"train": 8, "test": 2})
    assert (spec.tasks[0].channels, spec.tasks[0].metrics) == (3, ("miou", "pixel_acc"))
    data = read()
    for row, name in enumerate(data.ids):
        sample = data[row]
        with Image.open(tmp_path / "photos" / f"{name}.png") as image:
            assert torch.equal(
                sample["image"].mul(255).round().byte(), torch.from_numpy(np.array(image)).permute(2, 0, 1)
            )
        assert sample["targets"]["semseg"].tolist() == [[0] * 12] * 4 + [[2] * 12] * 4
    pixels = torch.stack([data[row]["image"] for row in range(8)]).double()
    assert spec.mean == pytest.approx(pixels.mean(dim=(0, 2, 3)).tolist(), abs=6e-4)
    assert spec.std == pytest.approx(pixels.std(dim=(0, 2, 3), correction=0).tolist(), abs=6e-4)
    assert verify("mine", None, level="full").ok


def test_ids_are_mapped_and_ignored(tmp_path: Path) -> None:
    pairs(tmp_path, ids=(7, 3))
    tasks = {
        "kept": Labels("semantic", folder="masks", ids=(3, 7), classes=("low", "high")),
        "void": Labels("semantic", folder="masks", ids={3: 1}, classes=2, ignore=7),
        "edge": Labels("binary_map", folder="masks", ids=(7, 3)),
    }
    made(ImageFolders, tmp_path, images="photos", tasks=tasks)
    targets = read()[0]["targets"]
    assert {task: (int(found[0, 0]), int(found[7, 0])) for task, found in targets.items()} == {
        "kept": (1, 0),
        "void": (255, 1),
        "edge": (0, 1),
    }


def test_images_and_labels_of_many_sizes_are_cut_alike(tmp_path: Path) -> None:
    for number, size in enumerate([(8, 12), (20, 10), (16, 16), (9, 31), (5, 5)]):
        # The upper right quarter is white and class 1.
        label = np.zeros(size, dtype=np.uint8)
        label[: (size[0] + 1) // 2, size[1] // 2 :] = 1
        mask(tmp_path / "masks" / f"{number}.png", label.tolist())
        mask(tmp_path / "photos" / f"{number}.png", (label * 255).tolist())
    for fit in ("stretch", "crop"):
        made(ImageFolders, tmp_path, images="photos", size=(8, 8), fit=fit, tasks=SEMSEG)
        for split in ("train", "test"):
            for sample in (read(split)[row] for row in range(len(read(split)))):
                light = (sample["image"][0] > 0.5).long()
                assert sample["image"].shape == (3, 8, 8)
                assert (light == sample["targets"]["semseg"]).float().mean() > 0.85
                assert bool(sample["targets"]["semseg"][1, 6])
    assert window((10, 20), (8, 8), "crop") == (0.0, 5.0, 10.0, 10.0)
    assert window((10, 20), (8, 8), "stretch") == (0.0, 0.0, 10.0, 20.0)
    rows = np.arange(40, dtype=np.uint8).reshape(10, 4)
    assert nearest(rows, (5, 2), "stretch").tolist() == rows[1::2, 1::2].tolist()
    assert nearest(rows, (4, 4), "crop").tolist() == rows[3:7].tolist()
    assert np.array_equal(resized(np.stack([rows] * 3, axis=-1), (4, 4), "crop")[..., 0], rows[3:7])


def test_splits_are_folders_on_either_side(tmp_path: Path) -> None:
    for split, n in (("train", 4), ("val", 2), ("test", 3)):
        for number in range(n):
            photo(tmp_path / "a" / split / "photos" / f"{number}.png", seed=number)
            mask(tmp_path / "a" / split / "masks" / f"{number}.png", [[0, 1] * 6] * 8)
            photo(tmp_path / "b" / "photos" / split / f"{number}.png", seed=number)
            mask(tmp_path / "b" / "masks" / split / f"{number}_mask.png", [[0, 1] * 6] * 8)
    for folder, suffix in (("a", ""), ("b", "_mask")):
        tasks = {"semseg": Labels("semantic", folder="masks", suffix=suffix)}
        made(ImageFolders, tmp_path / folder, images="photos", tasks=tasks)
        assert dict(registry.dataset_spec("mine").splits) == {"train": 4, "val": 2, "test": 3}
        assert read("test")[2]["targets"]["semseg"].tolist() == [[0, 1] * 6] * 8


def test_label_images_beside_their_images_and_distances(tmp_path: Path) -> None:
    for number in range(5):
        photo(tmp_path / f"{number}.png", seed=number)
        mask(tmp_path / f"{number}_mask.png", [[0, 1] * 6] * 8)
        np.save(tmp_path / f"{number}_depth.npy", np.full((8, 12), 500, dtype=np.uint16) * (np.arange(12) > 0))
    tasks = {
        "semseg": Labels("semantic", suffix="_mask"),
        "depth": Labels("depth", suffix="_depth", scale=0.001, ignore=0, unit="metre"),
    }
    made(ImageFolders, tmp_path, tasks=tasks)
    assert registry.dataset_spec("mine").splits == {"train": 4, "test": 1}
    depth = read()[0]["targets"]["depth"]
    assert depth[:, 0].isnan().all()
    assert depth[:, 1:].unique().tolist() == pytest.approx([0.5])


def test_the_drawn_test_images_stay_where_they_are(tmp_path: Path) -> None:
    """Other names and a copy of an image change no side, so that nothing that was trained on becomes a test image."""
    pairs(tmp_path, 20)
    made(ImageFolders, tmp_path, images="photos", tasks=SEMSEG)
    before = {hash(read("test")[row]["image"].numpy().tobytes()) for row in range(4)}
    version = registry.dataset_spec("mine").version
    for number in range(20):
        for name in ("photos", "masks"):
            (tmp_path / name / f"{number}.png").rename(tmp_path / name / f"renamed_{19 - number:02d}.png")
    after = {hash(read("test")[row]["image"].numpy().tobytes()) for row in range(4)}
    assert before == after
    assert registry.dataset_spec("mine").version != version
    first = read("train").ids[0]
    for name in ("photos", "masks"):
        for copy in range(9):
            path = tmp_path / name / f"{first}.png"
            (tmp_path / name / f"copy{copy}.png").write_bytes(path.read_bytes())
    test = {hash(read("test")[row]["image"].numpy().tobytes()) for row in range(len(read("test")))}
    train = {hash(read("train")[row]["image"].numpy().tobytes()) for row in range(len(read("train")))}
    assert not test & train


def test_large_sets_are_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs(tmp_path / "mine")
    made(ImageFolders, tmp_path / "mine", images="photos", size=(4, 4), tasks=SEMSEG)
    with pytest.raises(UsageError, match="small and kept in memory"):
        prepare("mine", None)
    monkeypatch.setattr(folders, "IN_MEMORY", 0)
    samples = [read()[row] for row in range(8)]
    assert read().cached() is None
    assert prepare("mine", None).parent == tmp_path / ".prepared"
    for row, sample in enumerate(samples):
        assert torch.equal(read()[row]["image"], sample["image"])
        assert torch.equal(read()[row]["targets"]["semseg"], sample["targets"]["semseg"])
    photo(tmp_path / "mine" / "photos" / "0.png", seed=99)
    with pytest.raises(UsageError, match="prepare the data set again"):
        [read(split) for split in ("train", "test")]


# Class folders and tables


def test_class_folders(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            for number in range(3):
                photo(tmp_path / split / name / f"{number}.jpg", seed=number)
    made(ImageFolders, tmp_path, tasks={"animal": Labels("class")})
    (task,) = registry.dataset_spec("mine").tasks
    assert (task.channels, task.class_names, task.metrics) == (2, ("cat", "dog"), ("accuracy",))
    data = read("test")
    assert {data.ids[row]: int(data[row]["targets"]["animal"]) for row in range(6)} == {
        f"{name}/{number}": label for label, name in enumerate(("cat", "dog")) for number in range(3)
    }


def test_a_table_of_labels(tmp_path: Path) -> None:
    for number in range(6):
        photo(tmp_path / "photos" / f"{number}.jpg", seed=number)
    lines = ["file;defect;age;rain;night;grade;split"]
    lines += ["0.jpg;crack;3.5;1;0;2;train", "1;sound;;yes;;0;train", "2;;7;no;true;1;train", "3.jpg;dent;1;0;1;;train"]
    lines += ["4.jpg;sound;2;1;1;0;test", "5.jpg;crack;2;0;0;1;test"]
    (tmp_path / "labels.csv").write_text("\n".join(lines), encoding="utf-8-sig")
    tasks = {
        "defect": Labels("class"),
        "age": Labels("scalar", unit="year"),
        "weather": Labels("multilabel", column=("rain", "night")),
        "wet": Labels("attribute", column="rain"),
        "grade": Labels("class"),
    }
    made(ImageFolders, tmp_path, images="photos", table="labels.csv", tasks=tasks)
    spec = registry.dataset_spec("mine")
    assert dict(spec.splits) == {"train": 4, "test": 2}
    assert spec.task("defect").class_names == ("crack", "dent", "sound")
    assert spec.task("weather").class_names == ("rain", "night")
    assert [task.name for task in spec.tasks if task.partial] == ["defect", "age", "weather", "grade"]
    assert spec.task("grade").channels == 3
    targets = [read()[row]["targets"] for row in range(4)]
    assert [int(target["defect"]) for target in targets] == [0, 2, -1, 1]
    assert [int(target["grade"]) for target in targets] == [2, 0, 1, -1]
    for task, expected in (("age", [3.5, np.nan, 7, 1]), ("wet", [1, 1, 0, 0])):
        assert np.array_equal([float(target[task]) for target in targets], expected, equal_nan=True)
    weather = torch.stack([target["weather"] for target in targets]).numpy()
    assert np.array_equal(weather, [[1, 0], [1, np.nan], [0, 1], [0, 1]], equal_nan=True)
    assert verify("mine", None, level="full").ok


# Arrays


def arrays(n: int = 10) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "images": random.integers(0, 256, (n, 6, 5, 3), dtype=np.uint8),
        "digit": np.arange(n, dtype=np.uint8) % 3,
        "map": np.full((n, 6, 5), 1, dtype=np.int32),
        "age": np.arange(n),
        "face": np.eye(n, 4) > 0,
    }


TASKS = {
    "digit": Labels("class"),
    "map": Labels("semantic", classes=2),
    "age": Labels("scalar"),
    "face": Labels("multilabel"),
}


@pytest.mark.parametrize("form", ["npz", "npy", "one", "folder"])
def test_arrays_in_every_form(form: str, tmp_path: Path) -> None:
    held = arrays()
    for split in ("train", "test") if form in ("npz", "npy") else ("",):
        if form in ("npz", "one"):
            np.savez(tmp_path / f"{split or 'all'}.npz", **held)
        else:
            (tmp_path / split).mkdir(exist_ok=True)
            for name, values in held.items():
                np.save(tmp_path / split / f"{name}.npy", values)
    made(ArrayFiles, tmp_path, tasks=TASKS)
    spec = registry.dataset_spec("mine")
    assert [(task.kind, task.channels) for task in spec.tasks] == [
        ("class", 3),
        ("semantic", 2),
        ("scalar", 1),
        ("multilabel", 4),
    ]
    assert dict(spec.splits) == ({"train": 10, "test": 10} if form in ("npz", "npy") else {"train": 8, "test": 2})
    assert verify("mine", None, level="full").ok
    data = read()
    for row, name in enumerate(data.ids):
        stored, sample = int(name.rpartition("/")[2]), data[row]
        assert np.array_equal(sample["image"].mul(255).round().permute(1, 2, 0), held["images"][stored])
        assert {task: sample["targets"][task].tolist() for task in TASKS} == {
            "digit": stored % 3,
            "map": [[1] * 5] * 6,
            "age": stored,
            "face": np.eye(10, 4)[stored].tolist(),
        }


# Mistakes


def without_masks(folder: Path) -> None:
    pairs(folder)
    (folder / "masks" / "3.png").rename(folder / "masks" / "3_L.png")


def black_and_white(folder: Path) -> None:
    pairs(folder, ids=(0, 255))


def odd_sizes(folder: Path) -> None:
    pairs(folder)
    photo(folder / "photos" / "7.png", (9, 12))


def other_size_of_a_label(folder: Path) -> None:
    pairs(folder)
    mask(folder / "masks" / "7.png", [[0, 1]])


def colours(folder: Path) -> None:
    pairs(folder)
    photo(folder / "masks" / "7.png")


def an_id_too_many(folder: Path) -> None:
    pairs(folder)
    mask(folder / "masks" / "7.png", [[0, 5] * 6] * 8)


def no_test(folder: Path) -> None:
    photo(folder / "train" / "a" / "0.png")
    photo(folder / "val" / "a" / "0.png")


def loose(folder: Path) -> None:
    photo(folder / "0.png")


def a_table(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for number in range(3):
            photo(folder / "photos" / f"{number}.jpg", seed=number)
        (folder / "labels.csv").write_text(text, encoding="utf-8")

    return write


def an_npz(**changes: np.ndarray) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for split in ("train", "test"):
            np.savez(folder / f"{split}.npz", **{**arrays(), **changes})

    return write


PAIRS: dict[str, Any] = {"images": "photos", "tasks": SEMSEG}
SAID: dict[str, Any] = {"images": "photos", "tasks": {"semseg": Labels("semantic", folder="masks", ids=(0, 1))}}
CSV: dict[str, Any] = {"images": "photos", "table": "labels.csv", "tasks": {"defect": Labels("class")}}
YES: dict[str, Any] = {**CSV, "tasks": {"defect": Labels("attribute")}}


@pytest.mark.parametrize(
    ("base", "make", "attributes", "message"),
    [
        (ImageFolders, pairs, {**PAIRS, "images": "photo"}, r"photo: no such folder of images; nearest: photos, masks"),
        (ImageFolders, pairs, {"images": "photos", "tasks": {"semseg": Labels("semantic", folder="mask")}}, "'masks'"),
        (ImageFolders, pairs, {"images": "photos", "tasks": {"x": Labels("semantik", folder="masks")}}, "'semantic'"),
        (ImageFolders, pairs, {"images": "photos", "tasks": {"x": Labels("normals", folder="masks")}}, "semantic, bin"),
        (ImageFolders, pairs, {"images": "photos", "tasks": {"x": Labels("semantic")}}, "say where its labels are"),
        (ImageFolders, pairs, {"images": "photos"}, r"tasks is empty; expected \{name: Labels\(kind\)\}"),
        (ImageFolders, without_masks, SAID, r"masks/3\.png .*expected labels of 'semseg', found none; .*'3_L\.png'"),
        (ImageFolders, black_and_white, PAIRS, r"hold 0 and 255 alone.*say ids=\(0, 255\)"),
        (ImageFolders, odd_sizes, PAIRS, r"7\.png: expected 8 x 12 pixels as \d.png, found 9 x 12: state the size"),
        (ImageFolders, other_size_of_a_label, PAIRS, r"7\.png.*size of semseg: expected \(8, 12\) as its image"),
        (ImageFolders, colours, PAIRS, r"7\.png: expected one number a pixel, found uint8 \[8, 12, 3\]"),
        (ImageFolders, an_id_too_many, SAID, r"7\.png: holds the id 5; expected 0, 1, or 255: name it in ids"),
        (ImageFolders, no_test, {"tasks": {"x": Labels("class")}}, r"shows train and val and no test; expected train"),
        (ImageFolders, loose, {"tasks": {"x": Labels("class")}}, r"in a folder a class, found '0' in none"),
        (ImageFolders, a_table("f,defekt\n0.jpg,1\n"), CSV, r"column of .*labels\.csv 'defect'. Nearest: 'defekt'"),
        (ImageFolders, a_table("f,defect\n0.jpg,1\n9.jpg,1\n"), CSV, r"csv, line 3: '9\.jpg': no such image; nearest"),
        (ImageFolders, a_table("f,defect\n0.jpg,1,2\n"), CSV, r"csv, line 2: expected 2 cells, found 3"),
        (ImageFolders, a_table("f,defect\n0.jpg,1\n1.jpg,maybe\n"), YES, r"line 3, defect: expected 1 or 0.*'maybe'"),
        (ImageFolders, a_table("f,defect,split\n0.jpg,1,train\n1.jpg,0,tset\n"), CSV, r"line 3, split: expected train"),
        (ArrayFiles, lambda folder: None, {"tasks": TASKS}, r"expected train\.npz and test\.npz.*found no \.npz file"),
        (
            ArrayFiles,
            an_npz(),
            {"tasks": {"digits": Labels("class")}},
            r"array of .*train\.npz 'digits'. Nearest: 'digit'",
        ),
        (
            ArrayFiles,
            an_npz(images=np.zeros((10, 6, 5, 3))),
            {"tasks": TASKS},
            r"images: expected uint8.*float64.*\* 255",
        ),
        (ArrayFiles, an_npz(digit=np.arange(9)), {"tasks": TASKS}, r"train\.npz, digit: expected 10 labels.*found 9"),
        (ArrayFiles, an_npz(digit=np.linspace(0, 1, 10)), {"tasks": TASKS}, r"digit: expected whole numbers.*float64"),
        (
            ArrayFiles,
            an_npz(map=np.full((10, 6, 5), 9)),
            {"tasks": TASKS},
            r"npz, map.*expected 0 to 1, or 255.*first 9",
        ),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_do(
    base: type[Any], make: Callable[[Path], None], attributes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    make(tmp_path)
    made(base, tmp_path, **attributes)
    with pytest.raises(UsageError, match=message) as caught:
        look_at_all()
    assert "\n" not in str(caught.value)
