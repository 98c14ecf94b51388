"""Batches decide what a comparison compares: same order for all methods, every sample, the cached path equal to the
slow one.
"""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmark.plan.suite import RecipeSettings
from benchmark.train.evaluate import CoverageError, check_coverage, evaluate
from benchmark.train.loaders import InputFormat, InputLoader, RoleLoader, RoleSamples, SampleOrder
from datasets.contracts import CachedSamples, DatasetSpec, InputData, TaskSpec
from datasets.errors import UsageError
from datasets.images.augmentation import augmentation
from datasets.images.transforms import Normalise
from datasets.protocols import STANDARD
from methods.contracts import Role
from tests.unit.harness import ToyInput, toy_loaders, toy_spec

RECIPE = RecipeSettings(batch_size=8)


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 40), batch=st.integers(1, 40), epochs=st.integers(1, 3))
def test_every_sample_comes_once_an_epoch_in_full_batches(n: int, batch: int, epochs: int) -> None:
    batch = min(n, batch)
    order = SampleOrder(n, batch, seed=0, stream="data-order")
    steps = -(-n * epochs // batch)
    drawn = torch.cat([order.batch(step)[0] for step in range(steps)])
    assert len(drawn) == steps * batch
    assert Counter(drawn[: n * epochs].tolist()) == dict.fromkeys(range(n), epochs)


@settings(max_examples=30, deadline=None)
@given(step=st.integers(0, 60))
def test_a_resumed_order_continues_where_it_was(step: int) -> None:
    straight = SampleOrder(13, 5, seed=3, stream="data-order")
    for earlier in range(step):
        straight.batch(earlier)
    assert torch.equal(SampleOrder(13, 5, seed=3, stream="data-order").batch(step)[0], straight.batch(step)[0])


def test_seeds_and_streams_give_other_orders() -> None:
    orders = {
        tuple(SampleOrder(20, 20, seed, stream).batch(0)[0].tolist())
        for seed in (0, 1)
        for stream in ("data-order", "data-order/left")
    }
    assert len(orders) == 4


@pytest.fixture(params=[True, False], ids=["normalised_once", "normalised_each_time"])
def _either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images in memory are kept normalised where that takes little of it."""
    if not request.param:
        monkeypatch.setattr("benchmark.train.loaders.NORMALISED_VALUES", 0)


@pytest.mark.numerical
@pytest.mark.usefixtures("_either_way")
@pytest.mark.parametrize("domains", ["single", "multi"])
def test_cached_and_uncached_sets_give_the_same_batches(domains: str) -> None:
    spec = toy_spec(domains)
    fast, slow = (toy_loaders(spec, RECIPE, cached=cached)[Role.FIT] for cached in (True, False))
    pairs = list(zip(fast.training(("a", "b"), 0, 9, "s"), slow.training(("a", "b"), 0, 9, "s"), strict=True))
    pairs += list(zip(fast.ordered(("a", "b")), slow.ordered(("a", "b")), strict=True))
    for one, two in pairs:
        assert one.index.keys() == two.index.keys()
        for name, image in one.images.items():
            assert torch.equal(one.index[name], two.index[name])
            assert torch.equal(image, two.images[name])
            assert image.is_contiguous(memory_format=torch.channels_last)
        for task, target in one.targets.items():
            assert torch.equal(target, two.targets[task])


@pytest.mark.numerical
@pytest.mark.usefixtures("_either_way")
def test_images_are_normalised_once() -> None:
    spec = toy_spec()
    loader = toy_loaders(spec, RECIPE)[Role.FIT]
    batch = next(loader.ordered(("a",), batch_size=4))
    raw = ToyInput(60, seed=0).images[:4].float().div(255).expand(-1, 3, -1, -1)
    assert torch.allclose(batch.images["image"], (raw - 0.4) / 0.3, atol=1e-6)
    assert batch.images["image"].is_contiguous(memory_format=torch.channels_last)


def test_augmentation_depends_on_sample_and_epoch_not_on_the_batch() -> None:
    from benchmark.train.loaders import InputLoader, RoleLoader
    from datasets.images.augmentation import augmentation
    from datasets.protocols import get_protocol

    spec = toy_spec()
    form = toy_loaders(spec, RECIPE)[Role.FIT].inputs["image"].form
    samples = toy_loaders(spec, RECIPE)[Role.FIT].inputs["image"].samples
    augment = augmentation(["shift"], (8, 8), get_protocol("standard"))

    def images(batch_size: int, workers: int) -> dict[int, torch.Tensor]:
        inputs = {"image": InputLoader(samples, ["a"], form, augment=augment, seed=0, workers=workers)}
        loader = RoleLoader(Role.FIT, spec, inputs, batch_size, seed=0)
        found = {}
        for batch in loader.training(["a"], 0, 48 // batch_size, "data-order"):
            found.update(zip(batch.index["image"].tolist(), batch.images["image"], strict=True))
        return found

    reference = images(8, 0)
    assert len(reference) == 48
    for other in (images(12, 0), images(8, 1)):
        assert all(torch.equal(other[position], image) for position, image in reference.items())
    plain = next(toy_loaders(spec, RECIPE)[Role.FIT].ordered(["a"]))
    assert any(not torch.equal(plain.images["image"][position], image) for position, image in reference.items())


def test_a_role_smaller_than_a_batch_is_one_line() -> None:
    loaders = toy_loaders(toy_spec(), RecipeSettings(batch_size=49))
    with pytest.raises(UsageError, match=r"Role fit of toy has 48 samples .* batch of 49; .* at most 48"):
        next(iter(loaders[Role.FIT].training(("a",), 0, 1, "s")))


class Fixed(torch.nn.Module):
    """Predicts class 1 of 2 for everybody."""

    def forward(self, images: dict[str, torch.Tensor], tasks: list[str]) -> dict[str, torch.Tensor]:
        image = next(iter(images.values()))
        return {task: torch.tensor([0.0, 1.0]).expand(len(image), 2) for task in tasks}


@pytest.mark.parametrize("batch_size", [1, 3, 20])
def test_c1_every_sample_is_evaluated_whatever_the_batch(batch_size: int) -> None:
    loader = toy_loaders(toy_spec(), RECIPE)[Role.REPORT]
    metrics, n_evaluated = evaluate(Fixed(), loader, ["b"], batch_size=batch_size)
    odd = (ToyInput(20, seed=2).targets["b"] == 1).double().mean()
    assert n_evaluated == {"b": 20}
    assert metrics["b"]["accuracy"].n_units == 20
    assert metrics["b"]["accuracy"].value == pytest.approx(100 * float(odd), rel=1e-12)


def test_evaluation_puts_the_mode_back_and_leaves_statistics_alone() -> None:
    loader = toy_loaders(toy_spec(), RECIPE)[Role.SELECT]
    network = Fixed().train()
    evaluate(network, loader, ["b"])
    assert network.training


@pytest.mark.parametrize(
    ("seen", "message"),
    [
        ([[0, 1, 3]], r"missing \[2\], repeated \[\]"),
        ([[0, 1], [1, 2, 3]], r"missing \[\], repeated \[1\]"),
        ([[0, 1, 2, 3, 4]], r"beyond the end \[4\]"),
        ([], r"missing \[0, 1, 2, 3\]"),
    ],
)
def test_coverage_names_missing_and_repeated_samples(seen: list[list[int]], message: str) -> None:
    with pytest.raises(CoverageError, match=message):
        check_coverage([np.array(part) for part in seen], 4, "report of toy")


def test_a_dropped_batch_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    loader = toy_loaders(toy_spec(), RECIPE)[Role.REPORT]
    ordered = loader.ordered
    monkeypatch.setattr(loader, "ordered", lambda *a, **k: list(ordered(*a, **k))[:-1])
    with pytest.raises(CoverageError, match=r"report of toy.*missing \[16, 17, 18, 19\]"):
        evaluate(Fixed(), loader, ["b"], batch_size=8)


def input_loader(data: InputData, in_chans: int = 3, augment: tuple[str, ...] = (), seed: int = 0) -> InputLoader:
    form = InputFormat(in_chans, Normalise((0.4,) * 3, (0.3,) * 3), torch.device("cpu"))
    samples = RoleSamples(data, np.arange(len(data)))
    transform = augmentation(augment, (8, 8), STANDARD) if augment else None
    return InputLoader(samples, ["a"], form, augment=transform, seed=seed, workers=0)


def test_an_epoch_is_that_of_the_sample_not_of_its_batch() -> None:
    """A batch that reaches into the next epoch draws anew for what it has of it."""

    def drawn(batch_size: int) -> torch.Tensor:
        order = SampleOrder(10, batch_size, seed=0, stream="s")
        loader = input_loader(ToyInput(10, seed=0), augment=("shift",))
        return torch.cat([images for images, *_ in loader.training(order, 0, 20 // batch_size)])

    assert torch.equal(drawn(4), drawn(1))
    assert SampleOrder(10, 4, seed=0, stream="s").batch(2)[1].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("augment", [(), ("shift", "horizontal_flip", "colour")])
def test_gray_images_stay_gray_where_the_backbone_takes_one_channel(augment: tuple[str, ...], cached: bool) -> None:
    data = ToyInput(10, seed=0, cached=cached)
    order = SampleOrder(10, 4, seed=0, stream="s")
    (images, *_), *_ = input_loader(data, in_chans=1, augment=augment).training(order, 0, 1)
    assert images.shape == (4, 1, 8, 8)
    if not augment:
        expected = (data.images[order.batch(0)[0]].float() / 255 - 0.4) / 0.3
        assert torch.allclose(images, expected, atol=1e-6)


@pytest.mark.usefixtures("_either_way")
@pytest.mark.parametrize("in_chans", [1, 3])
def test_batches_that_are_only_flipped_equal_samples_flipped_one_by_one(in_chans: int) -> None:
    """Across the end of an epoch; the short cut is taken, and labels with pixels do not take it."""
    order = SampleOrder(10, 4, seed=0, stream="s")
    both = [
        list(input_loader(data, in_chans, ("horizontal_flip",), seed=3).training(order, 0, 6))
        for data in (ToyInput(10, seed=0), ToyInput(10, seed=0, cached=False))
    ]
    for (images, targets, *_), (expected, labels, *_) in zip(*both, strict=True):
        assert torch.equal(images, expected)
        assert torch.equal(targets["a"], labels["a"])
    plain = list(input_loader(ToyInput(10, seed=0), in_chans).training(order, 0, 6))
    flipped = [
        not torch.equal(image, whole)
        for (images, *_), (wholes, *_) in zip(both[0], plain, strict=True)
        for image, whole in zip(images, wholes, strict=True)
    ]
    assert 0 < sum(flipped) < len(flipped)
    assert input_loader(ToyInput(10, seed=0), augment=("horizontal_flip",))._flip_of_batches() == 0.5
    assert input_loader(ToyInput(10, seed=0), augment=("horizontal_flip", "shift"))._flip_of_batches() is None
    assert augmentation(["horizontal_flip"], (8, 8), STANDARD, mirrored=False).flip is None


@pytest.mark.parametrize("cached", [True, False])
def test_colour_images_do_not_enter_one_channel(cached: bool) -> None:
    data = ToyInput(10, seed=0, cached=cached)
    data.images = data.images.repeat(1, 3, 1, 1)
    order = SampleOrder(10, 4, seed=0, stream="s")
    (images, *_), *_ = input_loader(data, in_chans=1).training(order, 0, 1)  # three equal channels are gray
    assert images.shape == (4, 1, 8, 8)
    data.images[:, 2] += 1
    with pytest.raises(UsageError, match="in_chans = 1"):
        next(iter(input_loader(data, in_chans=1).training(order, 0, 1)))


class Narrow(Fixed):
    """Has memory for three images at once, and wants more the first time it is asked."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error, self.seen = error, []

    def forward(self, images: dict[str, torch.Tensor], tasks: list[str]) -> dict[str, torch.Tensor]:
        self.seen.append(len(next(iter(images.values()))))
        if self.seen[-1] > 3:
            raise self.error
        return super().forward(images, tasks)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 37 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_an_evaluation_out_of_memory_is_repeated_in_halves(error: Exception) -> None:
    """Everything again: what an interrupted pass has counted would count twice."""
    loader = toy_loaders(toy_spec(), RECIPE)[Role.REPORT]
    network = Narrow(error)
    assert evaluate(network, loader, ["b"], batch_size=20) == evaluate(Fixed(), loader, ["b"], batch_size=2)
    assert network.seen[:4] == [20, 10, 5, 2]
    assert len(network.seen) == 3 + 10


@pytest.mark.parametrize(("error", "tries"), [(RuntimeError("shapes do not fit"), 1), (MemoryError("no"), 2)])
def test_other_errors_and_one_image_that_does_not_fit_end_an_evaluation(error: Exception, tries: int) -> None:
    loader = toy_loaders(toy_spec(), RECIPE)[Role.REPORT]
    network = Narrow(error)
    network.forward = lambda images, tasks: Narrow.forward(network, {"image": torch.zeros(4)}, tasks)
    with pytest.raises(type(error), match=str(error)):
        evaluate(network, loader, ["b"], batch_size=2)
    assert len(network.seen) == tries


def test_how_many_images_are_evaluated_at_once_goes_by_pixels_and_channels() -> None:
    """480 x 640 with 44 channels of dense predictions, as indoor scenes have; small and pooled sets keep 256."""
    dense = (TaskSpec("a", "semantic", 40, ("miou",)), TaskSpec("b", "depth", 1, ("rmse",)))
    spec = dataclasses.replace(toy_spec(), tasks=(*dense, TaskSpec("c", "normals", 3, ("mean_angle",))))

    def at_once(spec: DatasetSpec, height: int, width: int, *tasks: str) -> int:
        sized = dataclasses.replace(spec, native_size=(height, width))
        return RoleLoader(Role.REPORT, sized, {}, 8, 0).evaluation_batch(tasks or spec.task_names)

    assert at_once(spec, 480, 640) == 2**27 // (480 * 640 * 47) == 9
    assert at_once(spec, 480, 640, "b") == 2**27 // (480 * 640 * 4)
    assert at_once(spec, 8192, 8192) == 1
    assert at_once(spec, 36, 36) == at_once(toy_spec(), 300, 300) == at_once(toy_spec("multi"), 300, 300) == 256
    assert at_once(dataclasses.replace(spec, domains="multi"), 480, 640) == 2**27 // (480 * 640 * 43)


def test_probes_of_methods_are_cut_by_the_same_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmark.train.loaders.EVALUATION_VALUES", 5 * 3 * 8 * 8)
    loader = toy_loaders(toy_spec(), RECIPE)[Role.REPORT]
    assert [len(batch.index["image"]) for batch in loader.ordered(["a", "b"])] == [5] * 4


@pytest.mark.parametrize("channels", [2, 4])
def test_images_in_memory_with_neither_one_nor_three_channels_are_one_line(
    channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = ToyInput.cached

    def odd(self: ToyInput) -> CachedSamples | None:
        samples = cached(self)
        return samples and dataclasses.replace(samples, images=samples.images.expand(-1, channels, -1, -1))

    monkeypatch.setattr(ToyInput, "cached", odd)
    with pytest.raises(
        UsageError, match=rf"have {channels} channels, '0-0' first; expected \[N, C, H, W\] .* 3 \(RGB\)"
    ):
        toy_loaders(toy_spec(), RECIPE)
