"""CIFAR-100 as twenty tasks: twins in the manner of Python 2, and pickles that may not run anything."""

from __future__ import annotations

import os
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmark.train.loaders import InputFormat, InputLoader, RoleLoader, RoleSamples
from datasets import registry
from datasets.cifar100_20 import CLASSES, SUPERCLASSES, read_part, task_name
from datasets.contracts import MultiTaskDataset
from datasets.errors import DatasetMissingError
from datasets.images.transforms import Normalise
from datasets.on_disk.files import FileError
from datasets.on_disk.pickles import read_pickle
from datasets.registry import dataset_spec
from datasets.roles import role_indices
from methods.contracts import Role
from tests.twins import CIFAR_PER_CLASS, cifar_image, old_pickle, write_twin

TWIN = {"profile": "twin"}
TASKS = [task_name(superclass) for superclass in SUPERCLASSES]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_twin(tmp_path_factory.mktemp("cifar"), "cifar100_20", "torchvision")


@pytest.fixture(scope="module")
def splits(root: Path) -> dict[str, MultiTaskDataset]:
    return {split: registry.load("cifar100_20", root, split, options=TWIN) for split in CIFAR_PER_CLASS}


def test_twenty_tasks_of_five_classes() -> None:
    spec = dataset_spec("cifar100_20")
    assert len(spec.tasks) == 20
    assert {task.channels for task in spec.tasks} == {5}
    assert spec.task_names == tuple(TASKS)
    assert "large_man_made_outdoor_things" in spec.task_names
    assert spec.counts["train"] == dict.fromkeys(TASKS, 2500)
    assert spec.counts["test"] == dict.fromkeys(TASKS, 500)
    assert len(CLASSES) == len(set(CLASSES)) == 100
    assert list(SUPERCLASSES) == sorted(SUPERCLASSES)
    assert all(list(names) == sorted(names) for names in SUPERCLASSES.values())


def test_a_task_sees_its_own_images_upright_and_its_own_labels(splits: dict[str, MultiTaskDataset]) -> None:
    """The label is the rank of the class in its superclass, and both are read from the data, not from names."""
    for split, data in splits.items():
        seen: Counter[str] = Counter()
        for superclass, names in SUPERCLASSES.items():
            part = data.inputs[task_name(superclass)]
            for index in range(len(part)):
                sample, row = part[index], int(part.ids[index].split("/")[1])
                fine = row % 100  # classes take turns in the twin
                assert int(sample["targets"][task_name(superclass)]) == names.index(CLASSES[fine])
                image = torch.from_numpy(cifar_image(fine, row // 100)).permute(2, 0, 1)
                assert torch.equal(sample["image"].mul(255).round().byte(), image)
            seen.update(part.ids)
        assert len(seen) == 100 * CIFAR_PER_CLASS[split]  # every image belongs to one task
        assert set(seen.values()) == {1}


def test_the_hold_out_takes_its_share_of_every_class(splits: dict[str, MultiTaskDataset]) -> None:
    roles = role_indices(splits["train"], None, splits["test"])
    for task, parts in roles.items():
        part = splits["train"].inputs[task]
        cached = part.cached()
        assert cached is not None
        labels = cached.targets[task]
        for role, each in (("select", 1), ("arch", 1), ("fit", 3)):  # of five images a class
            assert Counter(labels[parts[role].indices].tolist()) == dict.fromkeys(range(5), each), role


def loader(data: MultiTaskDataset, batch_size: int) -> RoleLoader:
    form = InputFormat(3, Normalise((0.0,) * 3, (1.0,) * 3), torch.device("cpu"))
    inputs = {
        name: InputLoader(RoleSamples(part, np.arange(len(part))), [name], form, augment=None, seed=0, workers=0)
        for name, part in data.inputs.items()
    }
    return RoleLoader(Role.FIT, data.spec, inputs, batch_size, seed=0)


def test_a_batch_of_a_task_holds_only_its_images_in_an_order_of_its_own(splits: dict[str, MultiTaskDataset]) -> None:
    data = splits["train"]
    orders = {}
    for batch_size in (4, 8):
        batches = list(loader(data, batch_size).training(TASKS[:3], 0, 24 // batch_size, "data-order"))
        for number, task in enumerate(TASKS[:3]):
            images = torch.cat([batch.images[task] for batch in batches])
            fine = (images[:, 0, 1] * 255).amax(dim=-1).round().long() // 2
            assert {CLASSES[label] for label in fine.tolist()} <= set(list(SUPERCLASSES.values())[number])
            orders[batch_size, task] = torch.cat([batch.index[task] for batch in batches]).tolist()
    for task in TASKS[:3]:
        assert orders[4, task] == orders[8, task]
    assert orders[4, TASKS[0]] != orders[4, TASKS[1]]
    alone = list(loader(data, 4).training([TASKS[1]], 0, 6, "data-order"))  # without its neighbours
    assert torch.cat([batch.index[TASKS[1]] for batch in alone]).tolist() == orders[4, TASKS[1]]


# Wrong copies


def test_only_the_published_files_pass_for_the_real_set(root: Path, tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"test: expected the published file \(md5 f0ef6b0a.*\), found md5 "):
        registry.load("cifar100_20", root, "test")
    (tmp_path / "cifar100_20").mkdir()
    with pytest.raises(DatasetMissingError, match=r"no cifar-100-python/train for layout 'torchvision'.*169 MB"):
        registry.load("cifar100_20", tmp_path, "test")


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch /tmp/never",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps(Evil(), protocol=2), r"it asks for (posix|nt)\.system, which no data need"),
        (b"cbuiltins\neval\n(S'1+1'\ntR.", r"it asks for builtins\.eval"),
        (b"cnumpy\nload\n.", r"it asks for numpy\.load"),
        (b"c_codecs\nencode\n(S'x'\nS'rot13'\ntR.", "bytes in the encoding 'rot13'"),
        (b"", "Ran out of input"),
        (b"\x80\x02]q\x00(K\x01K\x02", "cannot be read as a pickle of arrays"),
    ],
)
def test_a_pickle_runs_nothing(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "test").write_bytes(content)
    with pytest.raises(FileError, match=f"test: cannot be read as a pickle of arrays.*{message}|test: {message}"):
        read_pickle(tmp_path / "test")


@pytest.mark.parametrize("protocol", range(5))
def test_pickles_of_every_age_are_read(tmp_path: Path, protocol: int) -> None:
    document = {"data": np.arange(6, dtype=np.uint8).reshape(2, 3), "fine_labels": [1, 2], "name": "x"}
    (tmp_path / "new").write_bytes(pickle.dumps(document, protocol=protocol))
    (tmp_path / "old").write_bytes(old_pickle(document))
    for name in ("new", "old"):
        found = read_pickle(tmp_path / name)
        assert np.array_equal(found["data"], document["data"])
        assert found["data"].dtype == np.uint8
        assert (found["fine_labels"], found["name"]) == ([1, 2], "x")


def changed(path: Path, **fields: Any) -> Path:
    document = {**read_pickle(path), **fields}
    path.write_bytes(old_pickle({key: value for key, value in document.items() if value is not None}))
    return path


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"coarse_labels": None}, r"expected data, fine_labels and coarse_labels \(KeyError"),
        ({"data": np.zeros((200, 100), dtype=np.uint8)}, r"expected data uint8 \[N, 3072\], found uint8 \(200, 100\)"),
        ({"data": 3}, r"expected data uint8 \[N, 3072\], found int64 \(\)"),
        ({"fine_labels": [0] * 199}, r"expected 200 fine_labels, found int64 \(199,\)"),
        ({"fine_labels": [100] * 200}, "expected fine_labels 0 to 99, found 100"),
        ({"coarse_labels": [-1] * 200}, "expected coarse_labels 0 to 19, found -1"),
    ],
)
def test_another_content_is_named(root: Path, tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    path = tmp_path / "test"
    path.write_bytes((root / "cifar100_20" / "cifar-100-python" / "test").read_bytes())
    with pytest.raises(FileError, match=f"test: {message}"):
        read_part(changed(path, **fields))


def test_a_class_in_two_superclasses_and_an_empty_task_are_named(tmp_path: Path) -> None:
    root = write_twin(tmp_path, "cifar100_20", "torchvision")
    path = root / "cifar100_20" / "cifar-100-python" / "test"
    coarse = list(read_pickle(path)["coarse_labels"])
    apple = CLASSES.index("apple")
    changed(path, coarse_labels=[*coarse[:apple], 0, *coarse[apple + 1 :]])
    with pytest.raises(FileError, match=r"classes of aquatic_mammals: expected 5, found 6 \(and 1 more fault\)"):
        registry.load("cifar100_20", root, "test", tasks=["aquatic_mammals"], options=TWIN)
    with pytest.raises(FileError, match="superclasses of apple: expected 1, found 2"):
        registry.load("cifar100_20", root, "test", tasks=["fruit_and_vegetables"], options=TWIN)
    changed(path, coarse_labels=[0 if label == 1 else label for label in coarse])
    with pytest.raises(FileError, match=r"classes of fish: expected 5, found 0 .*more fault"):
        registry.load("cifar100_20", root, "test", tasks=["fish"], options=TWIN)
