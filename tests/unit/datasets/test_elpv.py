"""Solar cells: the genuine package where it is installed, a twin of it, and what a wrong copy is told."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmark.plan.cells import plan
from benchmark.plan.remarks import notes_of
from benchmark.plan.suite_file import read_suite
from datasets import elpv, registry
from datasets.elpv import Cell, blocked_sides, data_folder, read_cells, runs_of, stratified_sides
from datasets.errors import DatasetMissingError, ProtocolError
from datasets.on_disk.files import FileError
from datasets.registry import dataset_spec
from datasets.roles import role_indices
from tests.twins import elpv_package, solar_cell

TWIN = {"profile": "twin"}


@pytest.fixture(scope="module")
def genuine_cells() -> list[Cell]:
    try:
        folder = data_folder()
    except DatasetMissingError as error:
        pytest.skip(str(error))
    return read_cells(folder / "labels.csv")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("elpv")
    elpv_package(folder)
    return folder / "elpv_dataset" / "data"


@pytest.fixture
def twin(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data folder of a copy, which stands for the installed package."""
    shutil.copytree(package, tmp_path / "data")
    monkeypatch.setattr(elpv, "data_folder", lambda: tmp_path / "data")
    return tmp_path / "data"


# The genuine package


def test_genuine_counts_and_splits(genuine_cells: list[Cell]) -> None:
    assert len(genuine_cells) == 2624
    groups = Counter((cell.type, cell.probability) for cell in genuine_cells)
    assert [groups["mono", rank] for rank in range(4)] == [588, 117, 56, 313]
    assert [groups["poly", rank] for rank in range(4)] == [920, 178, 50, 402]
    for sides, split in ((stratified_sides, "stratified"), (blocked_sides, "blocked")):
        assert Counter(sides(genuine_cells)) == dataset_spec("elpv", options={"split": split}).splits
    assert dataset_spec("elpv").splits == {"train": 1707, "val": 263, "test": 654}
    counts = Counter(zip(stratified_sides(genuine_cells), genuine_cells, strict=True))
    for group, total in groups.items():
        for side, share in (("test", 0.25), ("val", 0.10), ("train", 0.65)):
            found = sum(n for (s, cell), n in counts.items() if s == side and (cell.type, cell.probability) == group)
            assert abs(found - share * total) <= 1, (group, side)


def test_genuine_images(genuine_cells: list[Cell]) -> None:
    data = registry.load("elpv", None, "val").inputs["image"]
    data.check()
    by_id = {Path(cell.path).stem: cell for cell in genuine_cells}
    labels = [int(data[index]["targets"]["defect"]) for index in range(0, len(data), 20)]
    assert labels == [int(by_id[name].probability >= 2) for name in data.ids[::20]]
    digests = {hashlib.sha256((data_folder() / cell.path).read_bytes()).digest() for cell in genuine_cells}
    assert len(digests) == 2624  # no image twice, so none on two sides


# Splits


def cells(*runs: tuple[str, int]) -> list[Cell]:
    found: list[Cell] = []
    for kind, length in runs:
        found += [Cell(f"images/cell{len(found) + i:04d}.png", (len(found) + i) % 4, kind) for i in range(length)]
    return found


def test_a_group_does_not_move_the_cells_of_another() -> None:
    listed = cells(("mono", 120), ("poly", 80))
    whole = dict(zip([cell.path for cell in listed], stratified_sides(listed), strict=True))
    assert Counter(whole.values()) == {"train": 128, "val": 20, "test": 52}  # of 30 in a group 8 and 3, of 20 5 and 2
    without = [cell for cell in listed if (cell.type, cell.probability) != ("mono", 2)]
    for cell, side in zip(without, stratified_sides(without), strict=True):
        assert whole[cell.path] == side


def test_halves_round_to_even() -> None:
    """As Python does: 2.5 test cells of ten are 2, and 0.5 of five val cells none."""
    sides = Counter(stratified_sides([Cell(f"{i}", 0, "mono") for i in range(10)]))
    assert sides == {"train": 7, "val": 1, "test": 2}
    assert Counter(stratified_sides([Cell(f"{i}", 0, "mono") for i in range(5)])) == {"train": 4, "test": 1}


def test_runs_never_cross_a_change_of_type_or_sides() -> None:
    listed = cells(("mono", 150), ("poly", 61), ("mono", 59), ("poly", 300))
    names = runs_of(listed)
    lengths = [names.count(name) for name in dict.fromkeys(names)]
    assert lengths == [60, 60, 30, 60, 1, 59, 60, 60, 60, 60, 60]
    sides = blocked_sides(listed)
    for name in set(names):
        mine = [position for position, other in enumerate(names) if other == name]
        assert mine == list(range(mine[0], mine[-1] + 1))
        assert len({sides[position] for position in mine}) == 1
        assert len({listed[position].type for position in mine}) == 1
    for kind in ("mono", "poly"):
        of_kind = [side for side, cell in zip(sides, listed, strict=True) if cell.type == kind]
        assert of_kind.count("test") >= 0.25 * len(of_kind)
        assert of_kind.count("val") >= 0.10 * len(of_kind)
        assert of_kind.count("train") > 0.4 * len(of_kind)


def test_roles_are_stratified_or_whole_runs(twin: Path) -> None:
    splits = {split: registry.load("elpv", None, split, options=TWIN) for split in ("train", "val", "test")}
    train = splits["train"].inputs["image"]
    assert train.strata is not None
    roles = role_indices(splits["train"], splits["val"], splits["test"])["image"]
    assert Counter(train.strata[index] for index in roles["arch"].indices) == dict.fromkeys(set(train.strata), 2)
    blocked = registry.load("elpv", None, "test", options={**TWIN, "split": "blocked"}).inputs["image"]
    assert blocked.strata is None
    assert set(blocked.units) < {"mono00000", "poly00020", "mono00040", "poly00060"}
    assert [blocked.units.count(name) for name in dict.fromkeys(blocked.units)] == [20, 20]


# Samples


@pytest.mark.parametrize(
    ("defect", "kind", "expected"),
    [("binary", "class", [0, 0, 1, 1]), ("ordinal4", "class", [0, 1, 2, 3]), ("regression", "scalar", None)],
)
def test_a_twin_is_the_cell_it_shows(twin: Path, defect: str, kind: str, expected: list[int] | None) -> None:
    options = {**TWIN, "defect": defect}
    spec = dataset_spec("elpv", options=options)
    assert spec.task("defect").kind == kind
    for split in ("train", "val", "test"):
        data = registry.load("elpv", None, split, options=options).inputs["image"]
        data.check()
        for index, name in enumerate(data.ids):
            row = int(name.removeprefix("cell")) - 1
            half, type_of, number = row // 40, ("mono", "poly")[row // 20 % 2], row % 20
            sample, drawn = data[index], solar_cell(type_of, number % 4, number + 20 * half)
            image = torch.from_numpy(drawn).expand(3, -1, -1)
            assert torch.equal(sample["image"].mul(255).round().byte(), image)
            assert int(sample["targets"]["module"]) == ("mono", "poly").index(type_of)
            label = sample["targets"]["defect"].as_subclass(Tensor)
            if expected is None:
                assert label.dtype == torch.float32
                assert float(label) == pytest.approx(number % 4 / 3)
            else:
                assert int(label) == expected[number % 4]


@pytest.mark.parametrize("size", [150, 100, 75])
def test_a_reduced_image_is_the_mean_of_squares(twin: Path, size: int) -> None:
    whole, reduced = (
        registry.load("elpv", None, "test", options={**TWIN, "size": pixels}).inputs["image"] for pixels in (300, size)
    )
    assert reduced.ids == whole.ids
    assert dataset_spec("elpv", options={"size": size}).native_size == (size, size)
    means = torch.nn.functional.avg_pool2d(whole[0]["image"].as_subclass(Tensor), 300 // size)
    assert reduced[0]["image"].shape == means.shape
    assert (reduced[0]["image"] - means).abs().max() <= 0.5 / 255 + 1e-6  # rounded to whole grey levels


def test_the_caveat_is_told_with_the_plan_and_in_the_spec(twin: Path, tmp_path: Path) -> None:
    suite = tmp_path / "cells.yaml"
    suite.write_text(
        "name: cells\ndata: [{dataset: elpv, options: {profile: twin}}]\nbackbones: [test_resnet]\n"
        "methods: [hard_sharing]\nseeds: [0]\nbudget: {steps: 20}\nrecipe: {batch_size: 8}\n"
    )
    notes = notes_of(plan(read_suite(suite)))
    assert any("this random split puts them on all sides" in note for note in notes)
    (caveat,) = dataset_spec("elpv", options={"split": "blocked"}).caveats
    assert "runs of 60 neighbouring cells" in caveat


# Wrong copies


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def absent(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(elpv, "distribution", absent)
    with pytest.raises(DatasetMissingError) as caught:
        registry.load("elpv", None, "train")
    for part in ("pip install 'sharebench[elpv]'", "91 MB", elpv.HOME, "CC BY-NC-SA 4.0"):
        assert part in str(caught.value)
    suite = tmp_path / "cells.yaml"
    suite.write_text("name: cells\ndata: [elpv]\nbackbones: [test_resnet]\nmethods: [hard_sharing]\n")
    with pytest.raises(DatasetMissingError, match="which is not installed"):
        plan(read_suite(suite))  # before any step


def test_an_emptied_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Emptied:
        version = "0.9"

        def locate_file(self, path: str) -> Path:
            return tmp_path / path

    monkeypatch.setattr(elpv, "distribution", lambda name: Emptied())
    with pytest.raises(
        DatasetMissingError, match=r"elpv-dataset 0\.9 has no file .*labels\.csv.* install elpv-dataset 1"
    ):
        registry.load("elpv", None, "train")


def test_another_list_does_not_pass_for_the_published_one(twin: Path) -> None:
    with pytest.raises(
        FileError, match=r"labels\.csv: expected the list of elpv-dataset 1\.0\.0\.post1 \(sha256 0abe6"
    ):
        registry.load("elpv", None, "train")
    with pytest.raises(ProtocolError, match="it offers 'standard'"):
        dataset_spec("elpv", protocol="mtan")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("images/cell0001.png 0.5 mono", r"line 2 is 'images/cell0001\.png 0\.5 mono'; expected an image, 0, 1/3"),
        ("images/cell0001.png 1.0", "line 2 is .*; expected an image"),
        ("images/cell0001.png one mono", "line 2 is .*; expected an image"),
        ("images/cell0001.png 1.0 thin", "line 2 has the type 'thin'; expected mono or poly"),
        ("../cell0001.png 1.0 mono", "line 2 has the path '../cell0001.png', which leaves the folder"),
        ("/etc/cell0001.png 1.0 mono", "line 2 has the path '/etc/cell0001.png', which leaves the folder"),
        ("images/cell0000.png 1.0 mono", "'images/cell0000.png' is listed twice"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "labels.csv").write_text(f"images/cell0000.png 0.0 poly\n{line}\n")
    with pytest.raises(FileError, match=f"labels.csv: {message}"):
        read_cells(tmp_path / "labels.csv")


@pytest.fixture
def train_images(twin: Path) -> list[Path]:
    return [
        twin / "images" / f"{name}.png"
        for name in registry.load("elpv", None, "train", options=TWIN).inputs["image"].ids
    ]


def test_bad_images_are_named(twin: Path, train_images: list[Path]) -> None:
    from PIL import Image

    train_images[5].write_bytes(train_images[5].read_bytes()[:-9])
    Image.fromarray(np.zeros((200, 300), dtype=np.uint8)).save(train_images[7])
    with pytest.raises(FileError, match=rf"{train_images[5].name}.*is truncated.* \(and 1 more fault\)"):
        registry.load("elpv", None, "train", options=TWIN).inputs["image"].check()
    train_images[5].unlink()
    with pytest.raises(FileError, match=rf"images/{train_images[5].name} \(sample .*\): existence"):
        registry.load("elpv", None, "train", options=TWIN)
