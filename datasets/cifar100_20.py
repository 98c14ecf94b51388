"""`cifar100_20`: CIFAR-100 as twenty tasks. A task is one superclass and tells its five classes apart. Multi-domain.

Source: Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html; the split into tasks is that of auto-lambda
(github.com/lorenmt/auto-lambda) and others. The pickles of the Python version are read as torchvision leaves them. Each
class has 500 / 100 images; a tenth of each is held out of train. All twenty tasks together are not CIFAR-100, since the
choice of a task gives the superclass away. The layout was read on twins only; real files must have the published
checksums.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from datasets.contracts import DatasetSpec, IndexArray, Split, TaskSpec
from datasets.errors import ProtocolError
from datasets.on_disk.files import Array, FileError, read_bytes
from datasets.on_disk.loader import FileLoader, FileOptions
from datasets.on_disk.pickles import read_pickle
from datasets.on_disk.sources import Fault, Field, Source, number_label, scale_uint8
from datasets.registry import DatasetOptions, ExpectedFiles, register_dataset

# Classes by superclass, in the order of their ids: superclasses and classes alike are alphabetical. Names are for
# people; which class belongs to which superclass is read from the data.
SUPERCLASSES: Mapping[str, tuple[str, ...]] = {
    "aquatic_mammals": ("beaver", "dolphin", "otter", "seal", "whale"),
    "fish": ("aquarium_fish", "flatfish", "ray", "shark", "trout"),
    "flowers": ("orchid", "poppy", "rose", "sunflower", "tulip"),
    "food_containers": ("bottle", "bowl", "can", "cup", "plate"),
    "fruit_and_vegetables": ("apple", "mushroom", "orange", "pear", "sweet_pepper"),
    "household_electrical_devices": ("clock", "keyboard", "lamp", "telephone", "television"),
    "household_furniture": ("bed", "chair", "couch", "table", "wardrobe"),
    "insects": ("bee", "beetle", "butterfly", "caterpillar", "cockroach"),
    "large_carnivores": ("bear", "leopard", "lion", "tiger", "wolf"),
    "large_man-made_outdoor_things": ("bridge", "castle", "house", "road", "skyscraper"),
    "large_natural_outdoor_scenes": ("cloud", "forest", "mountain", "plain", "sea"),
    "large_omnivores_and_herbivores": ("camel", "cattle", "chimpanzee", "elephant", "kangaroo"),
    "medium_mammals": ("fox", "porcupine", "possum", "raccoon", "skunk"),
    "non-insect_invertebrates": ("crab", "lobster", "snail", "spider", "worm"),
    "people": ("baby", "boy", "girl", "man", "woman"),
    "reptiles": ("crocodile", "dinosaur", "lizard", "snake", "turtle"),
    "small_mammals": ("hamster", "mouse", "rabbit", "shrew", "squirrel"),
    "trees": ("maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"),
    "vehicles_1": ("bicycle", "bus", "motorcycle", "pickup_truck", "train"),
    "vehicles_2": ("lawn_mower", "rocket", "streetcar", "tank", "tractor"),
}
CLASSES = tuple(sorted(name for names in SUPERCLASSES.values() for name in names))  # position = id

SIZE = 32
PER_CLASS: Mapping[str, int] = {"train": 500, "test": 100}
CLASSES_PER_TASK = 5
FOLDER = "cifar-100-python"
MD5 = {"train": "16019d7e3df5f24257cddd939b257f8d", "test": "f0ef6b0ae62326f3e7ffdfab6717acfc"}


def task_name(superclass: str) -> str:
    """The superclass with underscores only."""
    return superclass.replace("-", "_")


@dataclasses.dataclass(frozen=True)
class _Part:
    """The content of one file. images: uint8 [N, 32, 32, 3]; fine, coarse: int64 [N], ids from 0."""

    images: Array
    fine: IndexArray
    coarse: IndexArray


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Images uint8 [32, 32, 3] of one task by position."""

    images: Array

    def __call__(self, index: int) -> Array:
        return np.asarray(self.images[index])


def read_part(path: Path) -> _Part:
    """The images and both ids of a file. Raises FileError where it does not hold them."""
    document = read_pickle(path)
    try:
        data, fine, coarse = (np.asarray(document[key]) for key in ("data", "fine_labels", "coarse_labels"))
    except (KeyError, TypeError, ValueError) as error:
        raise FileError(f"{path}: expected data, fine_labels and coarse_labels ({error!r}).") from error
    if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3 * SIZE * SIZE:
        raise FileError(f"{path}: expected data uint8 [N, {3 * SIZE * SIZE}], found {data.dtype} {data.shape}.")
    for name, ids, n_ids in (("fine_labels", fine, len(CLASSES)), ("coarse_labels", coarse, len(SUPERCLASSES))):
        if ids.shape != (len(data),) or ids.dtype.kind not in "iu":
            raise FileError(f"{path}: expected {len(data)} {name}, found {ids.dtype} {ids.shape}.")
        wrong = ids[(ids < 0) | (ids >= n_ids)]
        if wrong.size:
            raise FileError(f"{path}: expected {name} 0 to {n_ids - 1}, found {wrong[0]}.")
    images = data.reshape(-1, 3, SIZE, SIZE).transpose(0, 2, 3, 1)  # stored plane by plane
    return _Part(images, fine.astype(np.int64), coarse.astype(np.int64))


@register_dataset("cifar100_20")
class Cifar100In20Tasks(FileLoader):
    """2,500 / 500 images of 32 x 32 pixels in each of twenty tasks."""

    layouts: ClassVar[Mapping[str, ExpectedFiles]] = {
        "torchvision": ExpectedFiles(
            f"{FOLDER}/{{train,test}} (cifar-100-python.tar.gz, unpacked)",
            "169 MB",
            tuple(f"{FOLDER}/{split}" for split in PER_CLASS),
        )
    }

    def spec(self, protocol: str, options: DatasetOptions, layout: str | None = None) -> DatasetSpec:
        """One task a superclass, in the order of their ids."""
        if protocol != "standard":
            raise ProtocolError(f"cifar100_20 has no labels for protocol {protocol!r}; it offers 'standard'.")
        tasks = tuple(
            TaskSpec(task_name(superclass), "class", CLASSES_PER_TASK, ("accuracy",), classes)
            for superclass, classes in SUPERCLASSES.items()
        )
        counts = {split: {task.name: CLASSES_PER_TASK * count for task in tasks} for split, count in PER_CLASS.items()}
        return DatasetSpec(
            name="cifar100_20",
            layout="torchvision",
            version="v1",
            protocol=protocol,
            domains="multi",
            tasks=tasks,
            splits={split: sum(by_task.values()) for split, by_task in counts.items()},
            native_size=(SIZE, SIZE),
            mean=(0.5071, 0.4865, 0.4409),
            std=(0.2673, 0.2564, 0.2762),
            licence="none stated",
            home="https://www.cs.toronto.edu/~kriz/cifar.html",
            tier="verified on twins",
            counts=counts,
        )

    def sources(self, folder: Path, split: Split, spec: DatasetSpec, options: FileOptions) -> Mapping[str, Source]:
        """One source a superclass. Raises FileError where the file is not the published one (profile `real`)."""
        path = folder / FOLDER / split
        md5 = hashlib.md5(read_bytes(path)).hexdigest()
        if options.profile == "real" and md5 != MD5[split]:
            raise FileError(f"{path}: expected the published file (md5 {MD5[split]}), found md5 {md5}.")
        part = read_part(path)
        return {
            task_name(superclass): _source(path, split, task_name(superclass), number, part, md5)
            for number, superclass in enumerate(SUPERCLASSES)
        }


def _source(path: Path, split: str, task: str, number: int, part: _Part, md5: str) -> Source:
    """The images of one superclass in the order of the file. number: its id."""
    rows = np.flatnonzero(part.coarse == number)
    fine = part.fine[rows]
    classes = np.unique(fine)
    ranks = np.searchsorted(classes, fine)  # of the id among those of the superclass
    where = [path] * len(rows)
    return Source(
        ids=[f"{split}/{row:05d}" for row in rows.tolist()],
        units=[f"{split}/{row:05d}" for row in rows.tolist()],
        strata=[CLASSES[label] for label in fine.tolist()],
        image=Field(_Rows(part.images[rows]), scale_uint8, where.__getitem__),
        targets={task: Field(ranks.__getitem__, number_label, where.__getitem__)},
        faults=list(_faults(path, task, classes, part)),
        in_memory=True,
        meta={"domain": task},
        digest=md5,
    )


def _faults(path: Path, task: str, classes: Array, part: _Part) -> Iterator[Fault]:
    """A superclass without exactly five classes, and a class with images in two superclasses."""
    name = f"{path.parent.name}/{path.name}"
    if len(classes) != CLASSES_PER_TASK:
        yield Fault(name, "", f"classes of {task}", str(CLASSES_PER_TASK), str(len(classes)))
    for label in classes.tolist():
        homes: Any = np.unique(part.coarse[part.fine == label])
        if len(homes) > 1:
            yield Fault(name, "", f"superclasses of {CLASSES[label]}", "1", str(len(homes)))
