"""Classification sets in torchvision's layouts: each form decoded, compared with torchvision's own readers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor

from datasets import registry
from datasets.class_sets import FOUR_TASKS, SETS, resized
from datasets.contracts import MultiTaskDataset
from datasets.images.augmentation import augmentation_of
from datasets.on_disk.files import FileError
from datasets.registry import dataset_spec
from datasets.roles import role_indices
from tests.twins import CLASS_SET_PER_CLASS, class_set_image, write_twin

TWIN = {"profile": "twin", "size": 32}
GRAY = ("usps", "mnist", "fashion_mnist")
SIDES = {"cifar10": 32, "stl10": 96, "usps": 16, "mnist": 28, "fashion_mnist": 28, "svhn": 32}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_twin(tmp_path_factory.mktemp("sets"), "class_sets", "torchvision")


@pytest.fixture(scope="module")
def splits(root: Path) -> dict[str, MultiTaskDataset]:
    return {
        split: registry.load("class_sets", root, split, tasks=list(SETS), options=TWIN) for split in ("train", "test")
    }


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("split", ["train", "test"])
def test_images_are_upright_and_labels_their_own(name: str, split: str, splits: dict[str, MultiTaskDataset]) -> None:
    part = splits[split].inputs[name]
    assert len(part) == 10 * CLASS_SET_PER_CLASS[split]
    for index in range(len(part)):
        image = class_set_image(name, index % 10, index // 10, SIDES[name])
        stored = image[..., 0] if name in GRAY else image
        assert torch.equal(part[index]["image"].as_subclass(Tensor), resized(stored, 32))
        assert int(part[index]["targets"][name]) == index % 10


def reader(name: str, folder: Path, train: bool) -> torchvision.datasets.VisionDataset:
    """torchvision's data set, which checks no content once its files are there."""
    if name == "stl10":
        return torchvision.datasets.STL10(str(folder), split="train" if train else "test")
    if name == "svhn":
        return torchvision.datasets.SVHN(str(folder), split="train" if train else "test")
    classes = {"cifar10": torchvision.datasets.CIFAR10, "usps": torchvision.datasets.USPS}
    classes |= {"mnist": torchvision.datasets.MNIST, "fashion_mnist": torchvision.datasets.FashionMNIST}
    return classes[name](str(folder), train=train)


@pytest.mark.parametrize("name", ["usps", "mnist"])
def test_torchvision_reads_the_same(name: str, root: Path, splits: dict[str, MultiTaskDataset]) -> None:
    """Those of its readers that do not insist on the published checksums; pictures through Pillow, resized by it."""
    for split in ("train", "test"):
        judge, part = reader(name, root / "class_sets", split == "train"), splits[split].inputs[name]
        assert len(judge) == len(part)
        for index in range(len(part)):
            picture, label = judge[index]
            assert int(part[index]["targets"][name]) == label
            expected = np.asarray(picture.resize((32, 32), resample=2), dtype=np.int16)
            ours = part[index]["image"][0].mul(255).round().numpy().astype(np.int16)
            assert abs(ours - expected).max() <= 1  # Pillow rounds between its two passes


def test_counts_and_checksums_are_the_published_ones() -> None:
    spec = dataset_spec("class_sets")
    assert spec.task_names == FOUR_TASKS
    assert spec.native_size == (72, 72)
    assert spec.counts["train"] == {
        "cifar10": 50_000, "stl10": 5_000, "usps": 7_291, "mnist": 60_000, "fashion_mnist": 60_000, "svhn": 73_257,
    }  # fmt: skip
    batches = dict(torchvision.datasets.CIFAR10.train_list)
    ours = {Path(file).name: md5 for file, md5 in SETS["cifar10"].parts["train"].files.items()}
    assert ours == batches
    for split in ("train", "test"):
        (file,) = SETS["usps"].parts[split].files.items()
        assert file == tuple(torchvision.datasets.USPS.split_list[split][1:])
        (file,) = SETS["svhn"].parts[split].files.items()
        assert file == tuple(torchvision.datasets.SVHN.split_list[split][1:3])
    stl = {Path(file).name: md5 for part in SETS["stl10"].parts.values() for file, md5 in part.files.items()}
    published = [*torchvision.datasets.STL10.train_list[:2], *torchvision.datasets.STL10.test_list]
    assert stl == dict(published)


def test_only_the_sets_that_are_asked_for_are_opened(root: Path, tmp_path: Path) -> None:
    (tmp_path / "class_sets").mkdir()
    for name in ("usps.bz2", "usps.t.bz2"):
        (tmp_path / "class_sets" / name).write_bytes((root / "class_sets" / name).read_bytes())
    assert registry.load("class_sets", tmp_path, "train", tasks=["usps"], options=TWIN).inputs.keys() == {"usps"}
    with pytest.raises(FileError, match=r"MNIST/raw/train-images-idx3-ubyte: is absent; see `python -m benchmark.list"):
        registry.load("class_sets", tmp_path, "train", tasks=["usps", "mnist"], options=TWIN)


def test_another_release_is_refused(root: Path) -> None:
    with pytest.raises(FileError, match=r"usps\.bz2: expected the published file \(md5 ec16c51d"):
        registry.load("class_sets", root, "train", tasks=["usps"])


@pytest.mark.parametrize(
    ("name", "file", "cut", "message"),
    [
        ("cifar10", "cifar-10-batches-py/data_batch_3", 100, "cannot be read as a pickle"),
        ("stl10", "stl10_binary/train_X.bin", 1, "expected images of 27,648 bytes"),
        ("usps", "usps.bz2", 10, "cannot be read as lines"),
        ("mnist", "MNIST/raw/train-images-idx3-ubyte", 5, "expected an IDX file"),
        ("fashion_mnist", "FashionMNIST/raw/train-labels-idx1-ubyte.gz", 9, "cannot be decompressed"),
        ("svhn", "train_32x32.mat", 900, "cannot be read as the arrays X and y"),
    ],
)
def test_a_truncated_file_is_one_line(name: str, file: str, cut: int, message: str, tmp_path: Path) -> None:
    path = write_twin(tmp_path, "class_sets", "torchvision") / "class_sets" / file
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(FileError, match=message) as caught:
        registry.load("class_sets", path.parents[len(Path(file).parts)], "train", tasks=[name], options=TWIN)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_label_beyond_the_classes_is_one_line(tmp_path: Path) -> None:
    path = write_twin(tmp_path, "class_sets", "torchvision") / "class_sets" / "stl10_binary" / "train_y.bin"
    path.write_bytes(b"\x0b" + path.read_bytes()[1:])
    with pytest.raises(FileError, match="expected labels of 10 classes, found 10 counted from 0"):
        registry.load("class_sets", path.parents[2], "train", tasks=["stl10"], options=TWIN)


def test_the_hold_out_takes_its_share_of_every_class(splits: dict[str, MultiTaskDataset]) -> None:
    roles = role_indices(splits["train"], None, splits["test"])
    for name in SETS:
        for role, each in (("select", 1), ("arch", 1), ("fit", 3)):
            classes = np.bincount(roles[name][role].indices % 10, minlength=10)
            assert classes.tolist() == [each] * 10


def test_digits_are_never_mirrored() -> None:
    """A flip that always flips changes pictures of things and leaves digits alone."""
    spec = dataset_spec("class_sets", options={"size": 32})
    sample = {
        "image": torchvision.tv_tensors.Image(torch.arange(32.0).expand(3, 32, 32) / 32),
        "targets": {},
        "meta": {},
    }
    flip = [{"name": "horizontal_flip", "p": 1.0}]
    for name in FOUR_TASKS:
        augment = augmentation_of(flip, spec, name)
        assert augment is not None
        mirrored = not torch.equal(augment(sample)["image"], sample["image"])  # type: ignore[typeddict-item, arg-type]
        assert mirrored == (name in ("cifar10", "stl10"))
    assert augmentation_of([], spec, "mnist") is None
