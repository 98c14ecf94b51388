"""`decathlon`: Visual Decathlon, ten image collections side by side, a task each. Multi-domain. Spec: datasets 12.

Source: https://www.robots.ox.ac.uk/~vgg/decathlon (Rebuffi, Bilen, Vedaldi 2017): images with a shorter side of 72
pixels, and COCO-style lists of categories and labels. The test labels are hidden at a server, so the official
validation part is `test` here, and a tenth of each class is held out of train to choose on. A label is the position of
its category in the train list, or without lists (layout `folders`) that of its folder by name; these orders differ, and
the layout is part of a cell's key. Each image is cut to its central square, in training too: where MTAN's release cuts
at random, take the augmentation `shift`. Read on twins only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import pydantic

from datasets.contracts import DatasetSpec, Split, TaskSpec
from datasets.errors import ProtocolError
from datasets.on_disk.files import FileError, TarArchive, read_bytes
from datasets.on_disk.loader import FileLoader, FileOptions
from datasets.on_disk.photographs import (
    LabelledPhotos,
    Member,
    Photo,
    class_folders,
    compared,
    is_hidden,
    photo_source,
)
from datasets.on_disk.sources import Fault, Source
from datasets.registry import DatasetOptions, ExpectedFiles, register_dataset

# {task: name of its files}; boards use the short names.
FILE_NAMES: Mapping[str, str] = {
    "aircraft": "aircraft",
    "cifar100": "cifar100",
    "dped": "daimlerpedcls",
    "dtd": "dtd",
    "gtsrb": "gtsrb",
    "imagenet": "imagenet12",
    "omniglot": "omniglot",
    "svhn": "svhn",
    "ucf101": "ucf101",
    "flowers": "vgg-flowers",
}
CLASSES: Mapping[str, int] = dict(zip(FILE_NAMES, (100, 100, 2, 47, 43, 1000, 1623, 10, 101, 102), strict=True))
PARTS: Mapping[str, str] = {"train": "train", "test": "val"}  # our split -> the official part
COUNTS: Mapping[str, Mapping[str, int]] = {  # recalled
    "train": dict(
        zip(FILE_NAMES, (3_334, 40_000, 23_520, 1_880, 31_367, 1_232_167, 17_853, 47_217, 7_629, 1_020), strict=True)
    ),
    "test": dict(
        zip(FILE_NAMES, (3_333, 10_000, 5_880, 1_880, 7_842, 49_000, 6_492, 26_040, 1_908, 1_020), strict=True)
    ),
}
NOT_MIRRORED = ("gtsrb", "omniglot", "svhn")  # as in MTAN's release: signs, characters and digits
LISTS, IMAGES = "decathlon-1.0/annotations", "decathlon-1.0-data"
IMAGENET_TAR = "decathlon-1.0-data-imagenet.tar"  # ImageNet's part comes on its own
_BASE = "https://www.robots.ox.ac.uk/~vgg/share"
_FETCH = (
    f"mkdir -p {{folder}}/{IMAGES}",
    "cd {folder}",
    f"B={_BASE}/decathlon-1.0",
    "wget -c $B-devkit.tar.gz $B-data.tar.gz",
    "tar -xzf decathlon-1.0-devkit.tar.gz",
    f"tar -xzf decathlon-1.0-data.tar.gz -C {IMAGES}",
    f"for t in {IMAGES}/*.tar; do tar -xf $t -C {IMAGES} && rm $t; done",
    f"wget -c https://image-net.org/data/{IMAGENET_TAR}",  # for the task imagenet alone
    f"tar -xf {IMAGENET_TAR} -C {IMAGES}",
)
_SIZE = "0.43 GB, and 6.5 GB of ImageNet"
_CHECKSUMS = {  # published sha256 of the archives, where they are kept
    "decathlon-1.0-data.tar.gz": "8eca928bda025d855c91a78db45b3b18bc322efd7b1462a041e62c27b3c83c25",
    "decathlon-1.0-devkit.tar.gz": "f86d9e128678434ff2a3a374f00eb3e2ec2267e15e53ddae5f19ff19378b5ff7",
}
_TARS = (*(f"{name}.tar" for name in FILE_NAMES.values()), IMAGENET_TAR)
_FOLDERS = tuple(f"{IMAGES}/{name}" for name in FILE_NAMES.values())


class DecathlonOptions(FileOptions):
    """How large the images are."""

    size: int = pydantic.Field(
        default=72,
        ge=16,
        le=512,
        description="shorter side of the images, and side of the square cut from their middle",
    )


@register_dataset("decathlon")
class Decathlon(FileLoader):
    """Aircraft, pedestrians, textures, signs, characters, digits, actions, flowers and more: a task each."""

    Options = DecathlonOptions
    layouts: ClassVar[Mapping[str, ExpectedFiles]] = {
        "extracted": ExpectedFiles(
            f"{{{LISTS}/NAME_{{train,val}}.json, {IMAGES}/NAME/{{train,val}}/CLASS/*}}",
            _SIZE,
            (LISTS, "|".join(_FOLDERS)),
            checksums=_CHECKSUMS,
            source=_BASE,
            commands=_FETCH,
        ),
        "tars": ExpectedFiles(
            f"{{{LISTS}/NAME_{{train,val}}.json, {IMAGES}/NAME.tar}}, of ImageNet {IMAGES}/{IMAGENET_TAR}",
            _SIZE,
            (LISTS, "|".join(f"{IMAGES}/{name}" for name in _TARS)),
            unless=_FOLDERS,
            checksums=_CHECKSUMS,
            source=_BASE,
        ),
        "folders": ExpectedFiles(
            f"{IMAGES}/NAME/{{train,val}}/CLASS/*, without {LISTS}", _SIZE, ("|".join(_FOLDERS),), unless=(LISTS,)
        ),
    }

    def spec(self, protocol: str, options: DatasetOptions, layout: str | None = None) -> DatasetSpec:
        """A task a collection."""
        assert isinstance(options, DecathlonOptions)
        if protocol != "standard":
            raise ProtocolError(f"decathlon has no labels for protocol {protocol!r}; it offers 'standard'.")
        return DatasetSpec(
            name="decathlon",
            layout=layout or "extracted",
            version=f"v1+{options.size}",
            protocol=protocol,
            domains="multi",
            tasks=tuple(TaskSpec(task, "class", n, ("accuracy",)) for task, n in CLASSES.items()),
            splits={split: sum(by_task.values()) for split, by_task in COUNTS.items()},
            native_size=(options.size, options.size),
            mean=(0.485, 0.456, 0.406),  # ImageNet's, for all tasks
            std=(0.229, 0.224, 0.225),
            licence="those of the ten collections, mostly for research only",
            home="https://www.robots.ox.ac.uk/~vgg/decathlon/",
            tier="verified on twins",
            counts=COUNTS,
            caveats=(
                "the official test labels are hidden: test is the official validation part",
                "random flips leave gtsrb, omniglot and svhn as they are",
            ),
            not_mirrored=NOT_MIRRORED,
        )

    def default_tasks(self, spec: DatasetSpec) -> tuple[str, ...]:
        """All but ImageNet, whose images come on their own."""
        return tuple(task for task in spec.task_names if task != "imagenet")

    def sources(self, folder: Path, split: Split, spec: DatasetSpec, options: FileOptions) -> Mapping[str, Source]:
        """The collections that are asked for; nothing of another one is opened. Raises FileError."""
        assert isinstance(options, DecathlonOptions)
        found = {}
        for task in spec.inputs:
            meta: dict[str, object] = {}
            if spec.layout == "folders":
                photos = _by_folder(folder, task, split, options)
            else:
                photos, ids = _by_list(folder, task, split, spec.layout, options)
                meta["category_ids"] = ids  # by label, as the server wants them
            found[task] = photo_source(task, photos, options.size, "crop", meta)
        return found


def category_ids(document: Mapping[str, Any]) -> list[int]:
    """The ids of a list's categories, in their order: the position is the label."""
    return [category["id"] for category in document["categories"]]


def read_list(path: Path) -> Mapping[str, Any]:
    """A COCO-style document. Raises FileError where it has no labels, as that of the official test part."""
    try:
        document = json.loads(read_bytes(path))
        parts = [document[key] for key in ("categories", "images")]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FileError(f"{path}: expected a JSON document with categories, images and annotations.") from error
    if not document.get("annotations"):
        raise FileError(f"{path}: has no labels; those of the official test part are hidden, take the validation part.")
    if not all(isinstance(part, list) for part in (*parts, document["annotations"])):
        raise FileError(f"{path}: expected lists of categories, images and annotations.")
    return dict(document)


def listed(path: Path, document: Mapping[str, Any], categories: list[int]) -> dict[str, int]:
    """{image below the data's folder: label} in the order of the list's images. categories: ids by label.

    Raises FileError for an image without exactly one label, and for names and ids that do not fit.
    """
    labels = {category: label for label, category in enumerate(categories)}
    try:
        of_image: dict[object, object] = {}
        for annotation in document["annotations"]:
            if annotation["image_id"] in of_image:
                raise FileError(f"{path}: image {annotation['image_id']!r} has two labels.")
            of_image[annotation["image_id"]] = annotation["category_id"]
        rows: dict[str, int] = {}
        for image in document["images"]:
            name, category = image["file_name"], of_image.pop(image["id"], None)
            if category not in labels:
                raise FileError(f"{path}: image {name!r} has no label of the {len(labels)} categories: {category!r}.")
            parts = PurePosixPath(name).parts
            if parts[:1] != ("data",) or ".." in parts or len(parts) < 3:
                raise FileError(f"{path}: expected an image below data/, found {name!r:.80}.")
            if name.removeprefix("data/") in rows:
                raise FileError(f"{path}: {name!r} is listed twice.")
            rows[name.removeprefix("data/")] = labels[category]
    except (KeyError, TypeError, AttributeError) as error:
        raise FileError(f"{path}: an image or label has no {error}.") from error
    if of_image:
        raise FileError(f"{path}: {len(of_image)} labels belong to no image, the first to {next(iter(of_image))!r}.")
    return rows


def _by_list(
    folder: Path, task: str, split: Split, layout: str, options: FileOptions
) -> tuple[LabelledPhotos, tuple[int, ...]]:
    """The images of a collection, and the ids of its categories by label."""
    name = FILE_NAMES[task]
    paths = {part: folder / LISTS / f"{name}_{part}.json" for part in dict.fromkeys(("train", PARTS[split]))}
    documents = {part: read_list(path) for part, path in paths.items()}
    path = paths[PARTS[split]]
    try:
        categories = category_ids(documents["train"])
        others = category_ids(documents[PARTS[split]])
    except (KeyError, TypeError) as error:
        raise FileError(f"{path}: a category has no id.") from error
    faults = _count_fault(f"{LISTS}/{name}_train.json", task, len(set(categories)), options)
    if set(others) != set(categories):
        faults.append(Fault(f"{LISTS}/{path.name}", "", "categories", "those of the train list", "others"))
    rows = listed(path, documents[PARTS[split]], categories)
    photos, missing, n_unlisted = _photos(folder, name, PARTS[split], list(rows), layout)
    notes = [f"{name}/{PARTS[split]}: {n_unlisted} images are in no list and left out"] if n_unlisted else []
    content = list(paths.values())
    return LabelledPhotos(list(rows), photos, list(rows.values()), [*faults, *missing], notes, content), tuple(
        categories
    )


def _photos(
    folder: Path, name: str, part: str, rows: Sequence[str], layout: str
) -> tuple[list[Photo], list[Fault], int]:
    """(listed images, a fault for each that is not there, number of images of the part that are not listed)."""
    if layout == "extracted":
        files = [folder / IMAGES / row for row in rows]
        return [*files], *compared(files, folder)
    names = [f"{name}.tar", IMAGENET_TAR] if name == "imagenet12" else [f"{name}.tar"]
    path = next(
        (folder / IMAGES / tar for tar in names if (folder / IMAGES / tar).is_file()), folder / IMAGES / names[0]
    )
    archive = TarArchive(path)
    members = archive.members()
    place, what = f"{IMAGES}/{path.name}", "an image that the list names"
    faults = [Fault(place, row, "existence", what, "none") for row in rows if row not in members]
    n_found = sum(member.startswith(f"{name}/{part}/") and not is_hidden(member) for member in members)
    n_unlisted = max(0, n_found - (len(rows) - len(faults)))
    return [Member(archive, row) for row in rows], faults, n_unlisted


def _by_folder(folder: Path, task: str, split: Split, options: FileOptions) -> LabelledPhotos:
    base = folder / IMAGES / FILE_NAMES[task]
    train, n_hidden = class_folders(base / "train")
    found = train
    if split != "train":
        found, n_hidden = class_folders(base / PARTS[split])
    labels = {name: label for label, name in enumerate(train)}
    faults = _count_fault(f"{IMAGES}/{base.name}/train", task, len(labels), options)
    for name in found:
        if name not in labels:
            where = (base / PARTS[split] / name).relative_to(folder).as_posix()
            faults.append(Fault(where, "", "class", "one of train", repr(name)))
    rows = [(path, labels[name]) for name, paths in found.items() if name in labels for path in paths]
    notes = [f"{base.name}/{PARTS[split]}: {n_hidden} hidden files are left out"] if n_hidden else []
    ids = [path.relative_to(folder / IMAGES).as_posix() for path, _ in rows]
    return LabelledPhotos(ids, [path for path, _ in rows], [label for _, label in rows], faults, notes)


def _count_fault(where: str, task: str, n: int, options: FileOptions) -> list[Fault]:
    """Categories that are missing or too many."""
    if n > CLASSES[task] or (options.profile == "real" and n != CLASSES[task]):
        return [Fault(where, "", "number of classes", str(CLASSES[task]), str(n))]
    return []
