"""What reading data and judging predictions cost: a prepared copy against files, metrics against the forward pass.

`pytest tests/perf/test_data.py -o addopts= -s` prints each figure.
"""

from __future__ import annotations

import gc
import resource
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmark.train.loaders import InputFormat, InputLoader, RoleSamples, SampleOrder
from datasets.contracts import InputData, TaskSpec
from datasets.images.augmentation import augmentation_of
from datasets.images.transforms import Normalise
from datasets.kinds import get_kind
from datasets.kinds.metrics import computed_metrics
from datasets.on_disk.prepare import prepare
from datasets.registry import dataset_spec, load
from methods.backbones.backbone import BackboneConfig, create_backbone
from methods.backbones.heads import create_head
from methods.plain import plain_graph
from tests.perf.abba import PairedRatio
from tests.twins import write_twin

SIZE = (288, 384)
N = 48
TWIN: Mapping[str, object] = {"profile": "twin"}
Assert = Callable[..., PairedRatio]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def release(root: Path) -> Path:
    """NYU-v2 in MTAN's layout, N images to train: the dtypes that its loaders cast from, float32 and float32 labels."""
    random = np.random.default_rng(0)
    for split, n in (("train", N), ("val", 1)):
        for number in range(n):
            arrays = {
                "image": random.random((*SIZE, 3), np.float32),
                "label": random.integers(-1, 13, SIZE).astype(np.float32),
                "depth": random.random((*SIZE, 1), np.float32) + 1,
                "normal": np.broadcast_to(np.float32([0, 0.6, 0.8]), (*SIZE, 3)),
            }
            for name, array in arrays.items():
                folder = root / "nyuv2" / split / name
                folder.mkdir(parents=True, exist_ok=True)
                np.save(folder / f"{number}.npy", array)
    return root


def read_all(data: InputData) -> None:
    for row in range(len(data)):
        data[row]


def test_a_prepared_copy_against_the_files(tmp_path: Path, assert_bounded: Assert) -> None:
    """At least 1.8 x the samples per second of the .npy release, both from the page cache, with all three labels."""
    root = release(tmp_path)
    (files,) = load("nyuv2", root, "train", options=TWIN).inputs.values()
    prepare("nyuv2", root, options=TWIN)
    (copy,) = load("nyuv2", root, "train", options=TWIN).inputs.values()
    found = assert_bounded(lambda: read_all(copy), lambda: read_all(files), bound=1 / 1.8, pairs=20)
    print(f"\nprepared copy: {1 / found.r:.2f} x the samples per second of {N} samples read file by file")


def test_memory_of_a_prepared_copy(tmp_path: Path) -> None:
    """Reading every sample holds no second copy: the map is the page cache's."""
    root = release(tmp_path)
    folder = prepare("nyuv2", root, options=TWIN)
    size = sum(path.stat().st_size for path in folder.rglob("*.npy"))
    (copy,) = load("nyuv2", root, "train", options=TWIN).inputs.values()
    gc.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    for _ in range(3):
        read_all(copy)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    print(
        f"\nresident memory grew by {grown / 1e6:.0f} MB for a copy of {size / 1e6:.0f} MB: {grown / size:.2f} copies"
    )
    assert grown <= 1.2 * size


def test_metric_updates_against_the_forward_pass(assert_bounded: Assert) -> None:
    """mIoU of 40 classes, normals and depth at most a quarter of a ResNet-34's forward pass at output stride 8.

    Predictions are at the labels' resolution already, as resizing is not part of the figure.
    """
    size, batch = (240, 320), 1
    spec = dataset_spec("nyuv2", layout="adashare")
    backbone = create_backbone(BackboneConfig("resnet34", image_size=size, output_stride=8), seed=0)
    graph = plain_graph(spec, spec.task_names, backbone, lambda task: create_head(spec.task(task), backbone, 0))
    module = graph.module().eval()
    images = {"image": torch.randn(batch, 3, *size)}
    judged = [(task, *labelled(task, batch, size)) for task in spec.tasks]
    evaluators = {task.name: get_kind(task.kind).evaluator(task) for task in spec.tasks}

    def update() -> None:
        for task, prediction, target in judged:
            evaluators[task.name].update(prediction, target)

    with torch.inference_mode():
        found = assert_bounded(update, lambda: module(images), bound=0.25, pairs=10)
    print(f"\nmetric updates: {100 * found.r:.1f} % of the forward pass")


def test_waiting_for_data_of_the_suite_fashion(tmp_path: Path, assert_bounded: Assert) -> None:
    """From a prepared copy, mirrored batches of 32 cost at most 3 % of a step of hard sharing."""
    options = {**TWIN, "size": "40x30"}
    root = write_twin(tmp_path, "fashion_products", "subset")
    prepare("fashion_products", root, options=options)
    data = load("fashion_products", root, "train", options=options)
    spec, part = data.spec, data.inputs["image"]
    loader = InputLoader(
        RoleSamples(part, np.arange(len(part))),
        spec.task_names,
        InputFormat(3, Normalise(spec.mean, spec.std), torch.device("cpu")),
        augment=augmentation_of(["horizontal_flip"], spec, "image"),
        seed=0,
        workers=0,
        valid={task.name: get_kind(task.kind).valid for task in spec.tasks},
    )
    batches = loader.training(SampleOrder(len(part), 32, 0, "data-order"), 0, 10**6)
    config = BackboneConfig("test_resnet", image_size=spec.native_size, output_stride=8)
    backbone = create_backbone(config, seed=0)
    graph = plain_graph(spec, spec.task_names, backbone, lambda task: create_head(spec.task(task), backbone, 0))
    network = graph.network().train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    images, targets, *_ = next(batches)

    def step() -> None:
        predictions = network({"image": images}, spec.task_names)
        losses = [get_kind(task.kind).loss(predictions[task.name], targets[task.name], task) for task in spec.tasks]
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    found = assert_bounded(lambda: next(batches), step, bound=0.03, pairs=20)
    print(f"\nwaiting for data: {100 * found.r:.1f} % of a step")


def labelled(task: TaskSpec, batch: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Predictions at the labels' resolution, and labels."""
    assert set(task.metrics) <= set(computed_metrics(task.kind))
    random = torch.Generator().manual_seed(0)
    prediction = torch.randn(batch, task.channels, *size, generator=random)
    if task.kind == "semantic":
        return prediction, torch.randint(0, task.channels, (batch, *size), generator=random)
    if task.kind == "normals":
        return prediction, torch.nn.functional.normalize(torch.randn(batch, 3, *size, generator=random), dim=1)
    return prediction.abs() + 0.1, torch.rand(batch, *size, generator=random) + 0.5
