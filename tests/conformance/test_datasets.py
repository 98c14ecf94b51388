"""Every registered data set and kind keeps its promises; a new one is tested by existing.

Data sets on disk are tested on a twin of each layout (tests/twins.py); one without a twin fails. Those that come with
an optional package are tested on that package where it is installed, else on a twin of it.
"""

from __future__ import annotations

import atexit
import functools
import importlib.metadata
import pathlib
import pickle
import sys
import tempfile
import types
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors

import datasets
from datasets import registry
from datasets.contracts import DatasetSpec, InputData, MultiTaskDataset, TaskSpec
from datasets.errors import DatasetMissingError, UnknownNameError, UsageError
from datasets.images.augmentation import HorizontalFlip, augmentation
from datasets.images.transforms import collate
from datasets.kinds import get_kind, kind_names
from datasets.kinds.metrics import computed_metrics
from datasets.on_disk.sample_checks import faults as sample_faults
from datasets.on_disk.sample_checks import label_faults
from datasets.on_disk.sources import FileInput
from datasets.protocols import STANDARD, get_protocol
from datasets.registry import (
    DatasetLoader,
    DatasetOptions,
    ExpectedFiles,
    assert_own_package,
    dataset_names,
    dataset_spec,
    get_dataset,
    register_dataset,
)
from datasets.roles import role_hash, role_indices
from tests.twins import twin_package, write_twin
from tests.unit.samples import apply

NAMES = dataset_names()
SPLITS = ("train", "val", "test")
# Embedded sets of which some tasks are read from files of another set; those are tested there.
WITHOUT_FILES = {"digit_domains": ("plain", "inverted", "optical")}
Form = tuple[str, "str | None"]
FORMS: list[Form] = [(name, layout) for name in NAMES for layout in get_dataset(name).layouts or (None,)]
FORM_IDS = ["-".join(filter(None, form)) for form in FORMS]
ON_DISK = [pytest.param(form, id=label) for form, label in zip(FORMS, FORM_IDS, strict=True) if form[1] is not None]
CASES = [
    pytest.param(form, split, id=f"{label}-{split}")
    for form, label in zip(FORMS, FORM_IDS, strict=True)
    for split in dataset_spec(form[0], layout=form[1]).splits
]


@functools.lru_cache(maxsize=1)
def twin_root() -> pathlib.Path:
    folder = tempfile.TemporaryDirectory(prefix="sharebench-twins-")
    atexit.register(folder.cleanup)
    return pathlib.Path(folder.name)


def place(form: Form) -> dict[str, object]:
    """Arguments of `load` that find the data: a twin, or what the package brings."""
    name, layout = form
    if layout is None:
        return {"root": None}
    try:
        root = write_twin(twin_root(), name, layout)
    except ImportError as error:  # the format itself needs an optional package
        pytest.skip(str(error))
    return {"root": root, "layout": layout, "options": {"profile": "twin"}}


def load_form(form: Form, split: str, tasks: tuple[str, ...]) -> MultiTaskDataset:
    """A split of a data set; one whose package is not installed is read from a twin of that package."""
    with twin_package(twin_root(), form[0]) as is_twin:
        options = {"options": {"profile": "twin"}} if is_twin else {}
        return registry.load(form[0], split=split, tasks=tasks, **place(form), **options)


@functools.cache
def loaded(form: Form, split: str) -> MultiTaskDataset:
    """Read once for all tests of this file, which meet every form in turn."""
    tasks = full_spec(form).task_names
    return load_form(form, split, WITHOUT_FILES.get(form[0], tasks))


def is_twin(form: Form) -> bool:
    with twin_package(twin_root(), form[0]) as package:
        return package or form[1] is not None


def full_spec(form: Form) -> DatasetSpec:
    """With every task, the ones that are off by default among them."""
    name, layout = form
    options = registry.read_options(name, None)
    return get_dataset(name).spec("standard", options, *([layout] if layout else []))


def few(data: InputData) -> list[int]:
    return sorted({0, 1, len(data) // 3, len(data) // 2, len(data) - 1})


# Specs


@pytest.mark.parametrize("form", FORMS, ids=FORM_IDS)
def test_the_spec_is_complete(form: Form) -> None:
    name, layout = form
    spec = full_spec(form)
    assert spec.name == name
    assert layout in (None, spec.layout)
    for split in spec.counts:
        assert sum(spec.counts[split].values()) == spec.splits[split]
        assert set(spec.counts[split]) == set(spec.inputs)
    assert {"train", "test"} <= set(spec.splits) <= set(SPLITS)
    assert all(count > 0 for count in spec.splits.values())
    assert len(set(spec.task_names)) == len(spec.task_names) > 1
    assert spec.licence
    assert spec.home.startswith("https://")
    assert all(0 < value < 1 for value in (*spec.mean, *spec.std))
    get_protocol(spec.protocol, name)
    for task in spec.tasks:
        kind = get_kind(task.kind)
        assert task.metrics
        assert set(task.metrics) <= set(computed_metrics(task.kind))
        assert kind.head_channels(task) >= 1
        assert len(task.class_names) in (0, task.channels)
        kind.evaluator(task, STANDARD)
    assert set(dataset_spec(name, layout=layout).task_names) <= set(spec.task_names)


@pytest.mark.parametrize("name", NAMES)
def test_unknown_choices_are_named(name: str) -> None:
    for arguments in ({"tasks": ["nonsense"]}, {"layout": "nonsense"}, {"options": {"nonsense": 1}}):
        with pytest.raises(UnknownNameError, match=r"Unknown .* 'nonsense'"):
            dataset_spec(name, **arguments)  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match=f"Unknown split of {name} 'training'"):
        registry.load(name, None, "training")
    with pytest.raises(UsageError, match="non-empty list of different names"):
        dataset_spec(name, tasks=[])
    with pytest.raises(UsageError):
        dataset_spec(name, protocol="nonsense")


# Samples


@pytest.mark.parametrize(("form", "split"), CASES)
def test_lengths_equal_the_spec_and_ids_are_unique(form: Form, split: str) -> None:
    data = loaded(form, split)
    assert tuple(data.inputs) == data.spec.inputs
    for name, part in data.inputs.items():
        assert len(part) == len(part.units) > 0
        assert is_twin(form) or len(part) == data.spec.count(split, name)
        assert len(set(part.ids)) == len(part)
        assert part.content_hash() == part.content_hash()
        assert part.sources is None or len(part.sources) == len(part)


@pytest.mark.parametrize(("form", "split"), CASES)
def test_the_check_before_a_run_passes(form: Form, split: str) -> None:
    data = loaded(form, split)
    found = list(sample_faults(data))
    if is_twin(form):  # which has fewer samples than the spec declares, and some sets count them whatever the loader
        found = [fault for fault in found if fault.check != "number of samples"]
    assert not found
    if any(isinstance(part, FileInput) for part in data.inputs.values()):  # else all labels have been looked at
        assert not list(label_faults(data))


@pytest.mark.parametrize(("form", "split"), CASES)
def test_samples_are_canonical(form: Form, split: str) -> None:
    data = loaded(form, split)
    for input_name, part in data.inputs.items():
        tasks = [task for task in data.spec.tasks if data.spec.input_of(task.name) == input_name]
        labelled = set()  # a sample may lack a label, not all of them
        for index in few(part):
            sample = part[index]
            image = sample["image"]
            assert image.dtype == torch.float32
            assert image.shape == (3, *data.spec.native_size)
            assert 0 <= image.min() < image.max() <= 1
            assert sample["meta"]["id"] == part.ids[index]
            assert list(sample["targets"]) == [task.name for task in tasks]
            for task in tasks:
                kind, target = get_kind(task.kind), sample["targets"][task.name]
                assert target.shape == kind.target_shape(task, data.spec.native_size)
                assert isinstance(target, kind.wrapper(task) or Tensor)
                kind.check(target.as_subclass(Tensor), task)
                labelled |= {task.name} if kind.valid(target.as_subclass(Tensor)).any() or task.partial else set()
        assert labelled == {task.name for task in tasks}


@pytest.mark.parametrize(("form", "split"), CASES)
def test_cached_samples_equal_single_ones(form: Form, split: str) -> None:
    for part in loaded(form, split).inputs.values():
        cached = part.cached()
        if cached is None:
            continue
        indices = few(part)
        images, targets = collate([part[index] for index in indices])
        assert cached.images.dtype == torch.uint8
        assert torch.equal(cached.images[indices].float().div(255).expand_as(images), images)
        assert set(cached.targets) == set(targets)
        for task, target in targets.items():
            whole = cached.targets[task]
            assert len(whole) == len(part)
            assert whole.dtype == target.dtype
            assert torch.equal(whole[indices].nan_to_num(-7), target.nan_to_num(-7)), task


@pytest.mark.parametrize("form", FORMS, ids=FORM_IDS)
def test_samples_survive_the_way_to_a_worker(form: Form) -> None:
    for name, part in list(loaded(form, "test").inputs.items())[:3]:
        there = pickle.loads(pickle.dumps(part))[0]
        assert torch.equal(there["image"], part[0]["image"]), name
        for task, target in part[0]["targets"].items():
            assert torch.equal(there["targets"][task].nan_to_num(-7), target.nan_to_num(-7))


@pytest.mark.parametrize(("form", "split"), [case for case in CASES if case.values[1] == "test"])
def test_losses_and_metrics_take_what_the_loader_gives(form: Form, split: str) -> None:
    data = loaded(form, split)
    for input_name, part in data.inputs.items():
        _, targets = collate([part[index] for index in few(part)])
        for task in data.spec.tasks:
            if data.spec.input_of(task.name) != input_name:
                continue
            kind, target = get_kind(task.kind), targets[task.name]
            size = (9, 9) if kind.dense else ()
            prediction = torch.ones(len(target), kind.head_channels(task), *size).requires_grad_()
            kind.loss(prediction, target, task).backward()  # type: ignore[no-untyped-call]
            assert prediction.grad is not None
            assert prediction.grad.isfinite().all()
            assert prediction.grad.abs().sum() > 0
            evaluator = kind.evaluator(task, STANDARD)
            evaluator.update(prediction.detach(), target)
            results = evaluator.result()
            assert list(results) == list(task.metrics)
            assert all(result.value is not None and result.n_units > 0 for result in results.values())


@pytest.mark.parametrize("form", FORMS, ids=FORM_IDS)
def test_a_flip_twice_gives_the_sample_back(form: Form) -> None:
    flip = HorizontalFlip(STANDARD, p=1.0)
    for part in loaded(form, "test").inputs.values():
        sample = part[0]
        once = flip(sample)
        twice = flip(once)
        assert torch.equal(once["image"].as_subclass(Tensor), sample["image"].as_subclass(Tensor).flip(-1))
        assert torch.equal(twice["image"], sample["image"])
        for task, target in sample["targets"].items():
            assert type(twice["targets"][task]) is type(target)
            assert torch.equal(twice["targets"][task].nan_to_num(-7), target.nan_to_num(-7))


@pytest.mark.parametrize("form", FORMS, ids=FORM_IDS)
def test_labels_follow_the_image(form: Form) -> None:
    """Into one sample of every input a mark is put, at one place of image and labels; then it is moved about."""
    data = loaded(form, "test")
    height, width = data.spec.native_size
    top, left = height // 3, width // 4
    for input_name, part in data.inputs.items():
        sample = part[0]
        flipped = augmentation([{"name": "horizontal_flip", "p": 1.0}], (height, width), STANDARD)(part[0])
        image = torch.zeros(3, height, width)
        image[:, top, left] = 1.0
        sample["image"] = tv_tensors.Image(image)
        dense = [task for task in data.spec.tasks if data.spec.input_of(task.name) == input_name]
        dense = [task for task in dense if get_kind(task.kind).dense]
        for task in dense:
            label = sample["targets"][task.name].as_subclass(Tensor)
            mirrored = label.flip(-1) * (torch.tensor([-1.0, 1, 1]).view(3, 1, 1) if task.kind == "normals" else 1)
            assert torch.equal(flipped["targets"][task.name].nan_to_num(-7), mirrored.nan_to_num(-7)), task.name
            fill = get_kind(task.kind).fill
            assert fill is not None
            label.fill_(fill)
            label[..., top, left] = torch.tensor([0.0, 0.0, 1.0]) if task.kind == "normals" else 1
        move = augmentation([{"name": "horizontal_flip", "p": 1.0}, "shift"], (height, width), STANDARD)
        for seed in range(3):
            moved = apply(move, sample, seed)
            mark = moved["image"].as_subclass(Tensor)[0] > 0.5
            for task in dense:
                target = moved["targets"][task.name].as_subclass(Tensor)
                valid = get_kind(task.kind).valid(target)
                assert target.shape[-2:] == moved["image"].shape[-2:]
                assert torch.equal(valid.reshape(-1, height, width).any(dim=0), mark), task.name


@pytest.mark.parametrize("form", FORMS, ids=FORM_IDS)
def test_roles_are_disjoint_and_complete(form: Form) -> None:
    splits = {split: loaded(form, split) for split in full_spec(form).splits}
    roles = role_indices(splits["train"], splits.get("val"), splits["test"])
    assert tuple(roles) == splits["train"].spec.inputs
    for input_name, parts in roles.items():
        ids = {
            role: [splits[part.split].inputs[input_name].ids[index] for index in part.indices]
            for role, part in parts.items()
        }
        assert list(ids) == ["fit", "arch", "select", "report"]
        assert all(ids.values())
        total = sum(len(split.inputs[input_name]) for split in splits.values())
        assert len(set().union(*ids.values())) == sum(len(part) for part in ids.values()) == total
        assert len({role_hash(part) for part in ids.values()}) == 4
        share = len(ids["arch"]) / (len(ids["arch"]) + len(ids["fit"]))
        assert share == pytest.approx(0.2, abs=0.05) or is_twin(form)  # twins have few units


@pytest.mark.parametrize("form", FORMS, ids=FORM_IDS)
def test_tasks_do_not_change_ids_or_content(form: Form) -> None:
    whole = loaded(form, "test")
    names = whole.spec.task_names
    for task in names[:: max(1, len(names) // 6)]:  # of fifty alphabets, some
        alone = load_form(form, "test", (task,))
        assert alone.spec.task_names == (task,)
        part = alone.inputs[alone.spec.input_of(task)]
        reference = whole.inputs[whole.spec.input_of(task)]
        assert part.ids == reference.ids
        assert part.content_hash() == reference.content_hash()
        assert list(part[0]["targets"]) == [task]
        assert torch.equal(part[0]["image"], reference[0]["image"])


@pytest.mark.parametrize("name", [name for name in NAMES if not get_dataset(name).layouts])
def test_mean_and_std_are_those_of_the_train_images(name: str) -> None:
    if is_twin((name, None)):
        pytest.skip(f"the package of {name} is not installed, and a twin has other images")
    data = loaded((name, None), "train")
    caches = [part.cached() for part in data.inputs.values()]
    images = torch.cat([cached.images for cached in caches if cached is not None]).double() / 255
    assert data.spec.mean[0] == pytest.approx(float(images.mean()), abs=6e-4)
    assert data.spec.std[0] == pytest.approx(float(images.std(correction=0)), abs=6e-4)


# Kinds


@pytest.mark.parametrize("name", kind_names())
def test_kinds_say_what_they_ignore(name: str) -> None:
    kind = get_kind(name)
    assert kind.name == name
    assert kind.ignore
    assert computed_metrics(name)
    channels = 3 if name == "normals" else 2
    task = TaskSpec("task", name, channels, tuple(computed_metrics(name)))
    kind.check_task(task)
    assert kind.head_channels(task) in (1, channels)
    assert (kind.wrapper(task) is not None) == kind.dense == (kind.fill is not None)
    if kind.fill is not None:
        filled = torch.full((1, *kind.target_shape(task, (2, 2))), kind.fill)
        assert not kind.valid(filled).any()
        assert isinstance(kind.fill, float) == filled.is_floating_point()
        kind.check(filled, task)
    results = kind.evaluator(task, STANDARD).result()
    assert set(results) == set(task.metrics)
    assert all(result.value is None and result.n_units == 0 for result in results.values())


# Registry


@pytest.fixture
def _registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_DATASETS", dict(registry._DATASETS))


def on_disk() -> type[DatasetLoader]:
    class OnDisk(DatasetLoader):
        layouts: ClassVar[dict[str, ExpectedFiles]] = {
            "png": ExpectedFiles("{train,test}/*.png", "2.8 GB", ("train", "test")),
            "npy": ExpectedFiles("images.npy", "1 GB", ("images.npy",)),
        }

        def spec(self, protocol: str, options: DatasetOptions, layout: str | None = None) -> DatasetSpec:
            embedded = full_spec(("multi_mnist", None))
            return embedded.__class__(**{**vars(embedded), "name": "on_disk", "layout": layout or "png"})

        def load(
            self, root: pathlib.Path | None, split: str, spec: DatasetSpec, options: DatasetOptions
        ) -> MultiTaskDataset:
            raise LookupError(str(root))

    return OnDisk


@pytest.mark.usefixtures("_registry")
def test_missing_files_are_described(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    register_dataset("on_disk")(on_disk())
    monkeypatch.delenv("SHAREBENCH_DATA", raising=False)
    with pytest.raises(DatasetMissingError) as caught:
        registry.load("on_disk", None, "train")
    message = str(caught.value)
    spec = dataset_spec("on_disk")
    for part in ("--data-root", "SHAREBENCH_DATA", "'png'", "on_disk/{train,test}/*.png", "2.8 GB", spec.home):
        assert part in message
    assert spec.licence in message
    assert "\n" not in message
    monkeypatch.setenv("SHAREBENCH_DATA", str(tmp_path))
    with pytest.raises(DatasetMissingError, match=r"no folder .*on_disk"):
        registry.load("on_disk", None, "train")
    (tmp_path / "on_disk" / "train").mkdir(parents=True)
    with pytest.raises(DatasetMissingError, match=r"no test for layout 'png', no images.npy for layout 'npy'"):
        registry.load("on_disk", None, "train")
    with pytest.raises(DatasetMissingError, match=r"Expected layout 'npy': on_disk/images.npy"):
        registry.load("on_disk", None, "train", layout="npy")
    (tmp_path / "on_disk" / "test").mkdir()
    with pytest.raises(LookupError, match="on_disk"):  # found: the loader is called with its own folder
        registry.load("on_disk", None, "train")
    assert registry.find_layout("on_disk", None) == (tmp_path / "on_disk", "png")
    (tmp_path / "on_disk" / "images.npy").touch()
    with pytest.raises(UsageError, match="looks like each of the layouts png, npy; name one"):
        registry.load("on_disk", None, "train")
    with pytest.raises(LookupError):
        registry.load("on_disk", None, "train", layout="npy")
    with pytest.raises(DatasetMissingError):  # what is given goes before the variable
        registry.load("on_disk", tmp_path / "elsewhere", "train")


@pytest.mark.parametrize("form", ON_DISK)
def test_who_lacks_a_layout_is_told_how_to_get_it(form: Form, tmp_path: pathlib.Path) -> None:
    name, layout = form
    (tmp_path / name).mkdir()
    with pytest.raises(DatasetMissingError) as caught:
        registry.load(name, tmp_path, "train", layout=layout)
    spec, expected = full_spec(form), get_dataset(name).layouts[str(layout)]
    first = expected.marks[0].replace("|", " or ")
    source = expected.source or spec.home
    for part in (str(tmp_path / name), f"no {first}", expected.tree, expected.size, source, spec.licence):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("_registry")
def test_a_name_is_registered_once() -> None:
    loader = on_disk()
    register_dataset("on_disk")(loader)
    register_dataset("on_disk")(loader)  # the same class again, as after a reload
    other = type("Other", (loader,), {"__module__": "elsewhere"})
    with pytest.raises(UsageError, match="'on_disk' is registered twice"):
        register_dataset("on_disk")(other)


@pytest.mark.usefixtures("_registry")
def test_third_parties_register_through_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("third_party_digits")
    monkeypatch.setitem(sys.modules, "third_party_digits", module)

    class Point(importlib.metadata.EntryPoint):
        def load(self) -> object:
            return register_dataset("third_party")(on_disk())

    points = [Point("third_party", "third_party_digits", "sharebench.datasets")]
    monkeypatch.setattr(registry, "entry_points", lambda group: points if group == "sharebench.datasets" else [])
    registry.load_datasets.cache_clear()
    registry._load_entry_points.cache_clear()
    assert "third_party" in dataset_names()


def test_an_unknown_data_set_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Nearest: 'multi_mnist'"):
        get_dataset("multimnist")


def test_the_library_of_the_same_name_fails_loudly(tmp_path: pathlib.Path) -> None:
    assert_own_package()
    planted = types.ModuleType("datasets")
    planted.__file__ = str(tmp_path / "datasets" / "__init__.py")
    with pytest.raises(UsageError, match="Hugging Face's"):
        assert_own_package(planted)
    mixed = types.ModuleType("datasets")
    mixed.__file__ = datasets.__file__
    mixed.load_dataset = print  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="install ShareBench in an environment of its own"):
        assert_own_package(mixed)


def test_embedded_pixels_are_shared_between_loads() -> None:
    first, second = (registry.load("multi_mnist", None, "test").inputs["image"] for _ in range(2))
    cached, again = first.cached(), second.cached()
    assert cached is not None
    assert again is not None
    assert np.shares_memory(cached.images.numpy(), again.images.numpy())


def test_the_readme_says_how_sure_we_are_of_every_reader() -> None:
    """Each layout stands in one row of its table with the tier that its spec prints."""
    text = (pathlib.Path(__file__).parent.parent.parent / "README.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("  | `") and " verified on " in line]
    for name in NAMES:
        loader = get_dataset(name)
        for layout in loader.layouts or [None]:
            spec = dataset_spec(name, layout=layout) if layout else dataset_spec(name)
            fitting = [
                row
                for row in rows
                if f"`{name}`" in row.split("|")[1] and (len(loader.layouts) < 2 or f"`{layout}`" in row.split("|")[1])
            ]
            assert len(fitting) == 1, (name, layout)
            assert spec.tier in fitting[0], (name, layout)
