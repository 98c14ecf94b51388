"""Data of a plug-in: labels follow the image, and what is wrong is told in one line before the first step."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from benchmark.data import app as data_app
from benchmark.plan.cells import PlannedCell, cell_spec, plan
from benchmark.plan.role_data import Splits
from benchmark.plan.suite_file import read_suite
from benchmark.train import roles
from benchmark.train.roles import load_data
from datasets import registry
from datasets.array_input import ArrayInput
from datasets.contracts import DatasetSpec, InputData, MultiTaskDataset, Sample, Split, TaskSpec
from datasets.errors import UsageError
from datasets.images.augmentation import augmentation
from datasets.kinds import get_kind, kind_names
from datasets.kinds.metrics import computed_metrics
from datasets.on_disk.files import Array, FileError, read_image
from datasets.on_disk.sample_checks import faults, label_faults, require
from datasets.on_disk.sources import FileInput, Source, field_of_files, scale_uint8
from datasets.protocols import STANDARD
from datasets.registry import DatasetLoader, dataset_spec, get_dataset, register_dataset
from tests.unit.files import save_png
from tests.unit.harness import toy_spec
from tests.unit.samples import SIZE
from tests.unit.samples import sample as typed_sample

N = 8
KINDS = {"semseg": ("semantic", 5), "depth": ("depth", 1), "normals": ("normals", 3), "keypoint": ("dense", 1)}
KINDS |= {"edge": ("binary_map", 1), "digit": ("class", 10), "smile": ("attribute", 1), "score": ("scalar", 1)}


def spec_with(tasks: tuple[str, ...], **changes: Any) -> DatasetSpec:
    made = tuple(TaskSpec(name, *KINDS[name], tuple(computed_metrics(KINDS[name][0]))[:1]) for name in tasks)
    splits = {"train": N, "val": N, "test": N}
    return dataclasses.replace(toy_spec(), name="mine", tasks=made, splits=splits, native_size=SIZE, **changes)


def labels_of(tasks: tuple[str, ...]) -> dict[str, Tensor]:
    """Legal labels of N samples, ignored ones among them."""
    held = {name: value.as_subclass(Tensor) for name, value in typed_sample()["targets"].items()}
    held |= {"edge": held["semseg"].clamp(max=1), "smile": torch.tensor(1.0)}
    return {task: torch.stack([held[task]] * N) for task in tasks}


def array_input(spec: DatasetSpec, split: Split = "train", **changes: Any) -> ArrayInput:
    given: dict[str, Any] = {
        "images": torch.randint(0, 256, (N, 3, *SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
        "targets": labels_of(spec.task_names),
        "ids": [f"{split}-{row}" for row in range(N)],
    }
    given.update(changes)
    return ArrayInput(given.pop("images"), given.pop("targets"), split, spec, given.pop("ids"), **given)


class OneByOne(InputData):
    """The samples of another source, as an author hands them out who keeps nothing in memory."""

    def __init__(self, held: ArrayInput, scale: float = 1.0) -> None:
        self.held, self.scale = held, scale
        self.spec, self.ids, self.units = held.spec, held.ids, held.units

    def sample(self, row: int) -> Sample:
        sample = self.held.sample(row)
        sample["image"] = sample["image"] * self.scale
        return sample

    def content_hash(self) -> str:
        return self.held.content_hash()


def split_of(part: InputData) -> MultiTaskDataset:
    return MultiTaskDataset(part.spec, "train", {"image": part})


@pytest.mark.parametrize("one_by_one", [False, True])
def test_labels_in_memory_follow_a_flip(one_by_one: bool) -> None:
    held = array_input(spec_with(("semseg", "depth", "normals", "digit")))
    data = OneByOne(held) if one_by_one else held
    flip = augmentation([{"name": "horizontal_flip", "p": 1.0}], SIZE, STANDARD)
    before, after = held.sample(2), flip(data[2])
    assert torch.equal(after["image"], before["image"].flip(-1))
    for task in ("semseg", "depth", "normals"):
        expected = before["targets"][task].flip(-1)
        if task == "normals":
            expected[0] *= -1
        assert torch.equal(after["targets"][task].nan_to_num(-7), expected.nan_to_num(-7)), task
    assert torch.equal(after["targets"]["digit"], before["targets"]["digit"])
    assert data[-1]["meta"]["id"] == "train-7"
    with pytest.raises(IndexError):
        data[N]


# Before a run


class Mine(DatasetLoader):
    """A plug-in's data set whose splits are set by a test."""

    declared: DatasetSpec
    inputs: dict[str, InputData]

    def spec(self, protocol: str, options: registry.DatasetOptions, layout: str | None = None) -> DatasetSpec:
        return self.declared

    def load(
        self, root: Path | None, split: Split, spec: DatasetSpec, options: registry.DatasetOptions
    ) -> MultiTaskDataset:
        return MultiTaskDataset(spec, split, {"image": self.inputs[split]})


@pytest.fixture
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    registry.load_datasets()
    monkeypatch.setattr(registry, "_DATASETS", dict(registry._DATASETS))
    monkeypatch.setattr(roles, "_CHECKED", set())
    register_dataset("mine")(Mine)


def mine(spec: DatasetSpec, **splits: InputData) -> Mine:
    loader = get_dataset("mine")
    assert isinstance(loader, Mine)
    loader.declared = spec
    loader.inputs = {split: array_input(spec, split) for split in ("train", "val", "test")} | splits  # type: ignore[arg-type]
    return loader


def planned(tmp_path: Path, backbone: str = "test_resnet") -> PlannedCell:
    (tmp_path / "s.yaml").write_text(
        f"name: s\ndata: [{{dataset: mine}}]\nbackbones: [{backbone}]\nmethods: [hard_sharing]\nseeds: [0]\n"
        "budget: {steps: 1, cycles: 1}\nrecipe: {batch_size: 2}\n",
        encoding="utf-8",
    )
    return plan(read_suite(tmp_path / "s.yaml"))[0]


def changed(task: str, *values: float) -> dict[str, Tensor]:
    """Labels of a task, of which the first numbers of sample 3 have these values."""
    labels = labels_of((task,))[task].clone()
    labels[3].view(-1)[: len(values)] = torch.tensor(values, dtype=labels.dtype)
    return {task: labels}


ILLEGAL = {
    "depth 0": ("depth", (0.0, 0.0), r"finite numbers > 0, or NaN.*2 others in 1 of 8 samples, the first 0\."),
    "negative depth": ("depth", (-1.5,), r"found 1 others in 1 of 8 samples, the first -1\.5"),
    "attribute 255": ("smile", (255.0,), r"0 or 1, or NaN.* the first 255"),
    "class C": ("digit", (10,), r"0 to 9, or -1.* the first 10"),
    "class -2": ("digit", (-2,), r"the first -2"),
    "semantic C": ("semseg", (5,), r"0 to 4, or 255.* the first 5"),
    "edge 2": ("edge", (2,), r"0 or 1, or 255.* the first 2"),
    "long normal": ("normals", (9.0,), r"vectors of length 0.9 to 1.1, or the zero vector.* the first 9"),
    "infinite number": ("score", (math.inf,), r"finite numbers, or NaN.* the first inf"),
}


@pytest.mark.parametrize(("task", "values", "message"), ILLEGAL.values(), ids=ILLEGAL)
def test_an_illegal_label_is_one_line(task: str, values: tuple[float, ...], message: str) -> None:
    spec = spec_with((task,))
    held = array_input(spec, targets=changed(task, *values))
    message = rf"'mine': {task} \(sample train-3\): labels of '{task}'.*{message}"
    with pytest.raises(UsageError, match=message) as caught:
        require(split_of(held), faults)
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match=message):
        require(split_of(OneByOne(held)), label_faults)
    require(split_of(array_input(spec)), faults)
    require(split_of(OneByOne(array_input(spec))), label_faults)


@pytest.mark.usefixtures("_own_registry")
def test_an_illegal_label_of_test_is_found_before_the_first_step(tmp_path: Path) -> None:
    spec = spec_with(("depth",))
    held = array_input(spec, "test", targets=changed("depth", 0.0))
    mine(spec, test=OneByOne(held))  # not in memory: found when the cell reads its data
    cell = planned(tmp_path)
    with pytest.raises(UsageError, match=r"depth \(sample test-3\)"):
        load_data(cell_spec(cell.settings), cell, Splits(None))
    mine(spec, test=held)
    with pytest.raises(UsageError, match=r"depth \(sample test-3\)"):
        planned(tmp_path)


@pytest.mark.usefixtures("_own_registry")
def test_labels_are_read_once_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_with(("digit",))
    parts = {split: OneByOne(array_input(spec, split)) for split in ("train", "val", "test")}  # type: ignore[arg-type]
    mine(spec, **parts)
    cell, read = planned(tmp_path), []
    monkeypatch.setattr(OneByOne, "labels", lambda self, row: read.append(row) or self.held.sample(row)["targets"])
    for _ in range(2):
        load_data(cell_spec(cell.settings), cell, Splits(None))
    assert len(read) == 3 * N


def images(dtype: torch.dtype = torch.uint8, channels: int = 3, n: int = N, top: int = 256) -> Tensor:
    return torch.randint(0, top, (n, channels, *SIZE), generator=torch.Generator().manual_seed(0)).to(dtype)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "float images": (
        {"images": images().float() / 255},
        r"images: expected uint8 \[N, 1 or 3, 12, 16\], found float32",
    ),
    "16-bit images": ({"images": images(torch.int32, top=60000)}, r"expected uint8 .*found int32"),
    "two channels": ({"images": images(channels=2)}, r"expected uint8 .*found uint8 \[8, 2, 12, 16\]"),
    "another size": ({"images": images().transpose(2, 3)}, r"found uint8 \[8, 3, 16, 12\]"),
    "divided images": ({"images": images(top=2)}, r"values of the images: .* none above 1 of 255"),
    "more images": ({"images": images(n=N + 1)}, r"number of images: expected 8, as there are ids, found 9"),
    "fewer labels": (
        {"targets": {"digit": torch.zeros(N - 1, dtype=torch.int64)}},
        r"digit: number of labels.* found 7",
    ),
    "no labels": ({"targets": {}}, r"digit: number of labels: expected 8, .* found none"),
    "more ids": ({"ids": [str(row) for row in range(N + 1)]}, r"number of samples: expected 8, found 9"),
    "equal ids": ({"ids": ["a"] * N}, r"ids: expected 8 different ones, found 1"),
    "units": ({"units": ["a"]}, r"number of units: expected 8"),
    "floating classes": ({"targets": {"digit": torch.zeros(N)}}, r"integer \[\], found 8 others .*float32"),
    "maps for classes": (
        {"targets": {"digit": torch.zeros(N, 3, dtype=torch.int64)}},
        r"found 24 .*int64 \[8, 3\]",
    ),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG)
def test_arrays_that_are_not_as_promised_are_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        require(split_of(array_input(spec_with(("digit",)), **changes)), faults)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("scale", "message"), [(255.0, "range of the image"), (1 / 255, "none above 1 of 255")])
def test_images_of_another_range_are_one_line(scale: float, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        require(split_of(OneByOne(array_input(spec_with(("digit",))), scale)), faults)


@pytest.mark.usefixtures("_own_registry")
def test_colour_for_a_backbone_of_one_channel_is_refused_when_planning(tmp_path: Path) -> None:
    spec = spec_with(("digit",))
    mine(spec)
    with pytest.raises(UsageError, match="in_chans = 1; set in_chans: 3"):
        planned(tmp_path, "{name: test_resnet, in_chans: 1}")
    gray = {split: array_input(spec, split, images=images(channels=1)) for split in ("train", "val", "test")}  # type: ignore[arg-type]
    mine(spec, **gray)
    planned(tmp_path, "{name: test_resnet, in_chans: 1}")


@pytest.mark.usefixtures("_own_registry")
def test_declared_numbers_are_compared_with_what_is_loaded(tmp_path: Path) -> None:
    spec = spec_with(("digit",))
    mine(dataclasses.replace(spec, splits={**spec.splits, "train": 5}))
    with pytest.raises(UsageError, match=r"split 'train': number of samples: expected 5, found 8"):
        planned(tmp_path)
    found = CliRunner().invoke(data_app, ["verify", "mine"])
    assert found.exit_code == 1
    assert "bad: split 'train': number of samples: expected 5, found 8" in found.output


@pytest.mark.usefixtures("_own_registry")
def test_the_tier_of_a_plugin_is_by_its_author(tmp_path: Path) -> None:
    mine(spec_with(("digit",), tier="verified on genuine files"))
    cell = planned(tmp_path)
    assert cell_spec(cell.settings).tier == dataset_spec("mine").tier == "by its author"
    found = CliRunner().invoke(data_app, ["verify", "mine"])
    assert "tier of the layout: by its author" in found.output
    assert dataset_spec("multi_mnist").tier == "verified on genuine files"


# Files


def file_input(folder: Path, spec: DatasetSpec) -> FileInput:
    paths = [folder / f"{row}.png" for row in range(N)]
    for path in paths:
        save_png(path, np.full(SIZE, 90, dtype=np.uint8))

    def decode(array: Array) -> Tensor:
        if array.ndim != 2 or array.dtype != np.uint8:
            raise UsageError(f"expected 8-bit gray, found {array.dtype} {array.shape}")
        return scale_uint8(array)

    image = field_of_files(paths, read_image, decode)
    depth = field_of_files(paths, read_image, lambda array: decode(array)[0] - 0.1)
    ids = [path.stem for path in paths]
    return FileInput(Source(ids, ids, image, {"depth": depth}), spec, "train", "image", folder)


def test_an_illegal_label_in_a_middle_file_is_named(tmp_path: Path) -> None:
    spec = spec_with(("depth",))
    data = MultiTaskDataset(spec, "train", {"image": file_input(tmp_path, spec)})
    require(data, faults)
    require(data, label_faults)
    save_png(tmp_path / "4.png", np.full(SIZE, 20, dtype=np.uint8))
    require(data, faults)
    with pytest.raises(UsageError, match=r"4\.png \(sample 4\): labels of 'depth' .*192 others in 1 of 8.* -0\.02"):
        require(data, label_faults)


def test_another_mode_in_a_middle_image_is_found_without_decoding_the_others(tmp_path: Path) -> None:
    data = file_input(tmp_path, spec_with(("depth",)))
    data.check()
    for row in (3, 4):
        save_png(tmp_path / f"{row}.png", np.full((*SIZE, 3), 90, dtype=np.uint8))
    with pytest.raises(FileError, match=r"3\.png \(sample 3\): image file: .*found 8 bits, colour type 2: expected"):
        data.check()


@pytest.mark.parametrize("name", kind_names())
def test_every_kind_says_what_is_legal(name: str) -> None:
    kind = get_kind(name)
    task = TaskSpec("task", name, 3, ())
    assert kind.legal_values(task).endswith(f", or {kind.ignore}")
