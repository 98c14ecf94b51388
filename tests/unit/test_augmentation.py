"""Augmentation: what a recipe's steps do to a sample, and that labels and distances follow."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from datasets.errors import UnknownNameError, UsageError
from datasets.images.augmentation import (
    STEPS,
    ScaleCrop,
    Zoom,
    augmentation,
    augmented_size,
    canonical_steps,
)
from datasets.images.transforms import Depth, InverseDepth, NormalsOfUnknownFrame
from datasets.protocols import STANDARD, ProtocolFlags, get_protocol
from tests.unit.samples import HEIGHT, SIZE, WIDTH, apply, bits, coordinates, sample


@pytest.mark.parametrize("names", [["horizontal_flip"], ["shift"], ["zoom"], ["horizontal_flip", "zoom", "shift"]])
def test_labels_stay_where_the_image_is(names: list[str]) -> None:
    flags = ProtocolFlags(zoom_depth="unchanged", zoom_inverse_depth="unchanged")  # coordinates are not distances
    augment = augmentation(names, SIZE, flags)
    data = coordinates()
    moved_something = False
    for seed in range(20):
        out = apply(augment, data, seed)
        image = out["image"].as_subclass(Tensor)
        semseg, keypoint = (out["targets"][name].as_subclass(Tensor) for name in ("semseg", "keypoint"))
        known = semseg != 255
        assert image.shape == (3, *SIZE)
        assert torch.equal(known, ~keypoint[0].isnan())
        places = {
            "semseg": torch.stack([semseg % WIDTH, semseg // WIDTH]).float(),
            "keypoint": keypoint,
            "depth": torch.stack([out["targets"]["depth"].as_subclass(Tensor), image[1]]),
            "disparity": torch.stack([out["targets"]["disparity"].as_subclass(Tensor), image[1]]),
            "normals": torch.stack([out["targets"]["normals"].as_subclass(Tensor)[2], image[1]]),
        }
        inner = known.clone()
        if "zoom" in names and "shift" in names:  # bilinear zooms mix the border into padding
            inner = torch.nn.functional.max_pool2d((~known)[None].float(), 3, 1, 1)[0] == 0
        for task, place in places.items():
            distance = (place - image[:2]).abs().amax(dim=0)[inner]
            assert distance.max() <= 0.51, (task, seed)  # half a pixel: nearest against bilinear
        moved_something |= not torch.equal(image, data["image"].as_subclass(Tensor))
    assert moved_something


def test_nearest_of_torchvision_would_be_a_pixel_off() -> None:
    image = coordinates()["image"]
    region = functional.crop(image, 0, 0, HEIGHT, WIDTH - 1)
    bilinear = functional.resize(region, list(SIZE)).as_subclass(Tensor)[0]
    nearest = functional.resize(tv_tensors.Mask(region.as_subclass(Tensor)), list(SIZE)).as_subclass(Tensor)[0]
    assert (nearest - bilinear).abs().max() > 0.9


@pytest.mark.numerical
def test_a_zoom_scales_distances() -> None:
    wall = {
        "image": tv_tensors.Image(torch.rand(3, 40, 60)),
        "targets": {"depth": Depth(torch.full((40, 60), 6.0)), "disparity": InverseDepth(torch.full((40, 60), 3.0))},
        "meta": {"id": "wall"},
    }
    zoom = Zoom((40, 60), STANDARD)
    zooms = set()
    for seed in range(10):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            factor = zoom.make_params([wall["image"]])["zoom"]
        out = apply(zoom, wall, seed)["targets"]
        assert 1 <= factor <= 1.5
        zooms.add(factor)
        assert torch.allclose(out["depth"].as_subclass(Tensor), torch.tensor(6 / factor))
        assert torch.allclose(out["disparity"].as_subclass(Tensor), torch.tensor(3 * factor))
        assert type(out["depth"]) is Depth
        unchanged = apply(Zoom((40, 60), get_protocol("adashare")), wall, seed)["targets"]
        assert unchanged["depth"].unique().tolist() == [6.0]
        assert unchanged["disparity"].unique().tolist() == [3.0]
        mtan = apply(Zoom((40, 60), get_protocol("mtan")), wall, seed)["targets"]
        assert torch.equal(mtan["depth"].as_subclass(Tensor), out["depth"].as_subclass(Tensor))
        assert mtan["disparity"].unique().tolist() == [3.0]
    assert len(zooms) > 5


def test_a_shift_moves_by_at_most_four_pixels() -> None:
    augment = augmentation(["shift"], SIZE, STANDARD)
    shifts = set()
    for seed in range(60):
        semseg = apply(augment, coordinates(), seed)["targets"]["semseg"].as_subclass(Tensor)
        y, x = divmod(int(semseg[6, 8]), WIDTH)
        shifts.add((y - 6, x - 8))
    assert max(abs(value) for shift in shifts for value in shift) == 4
    assert len(shifts) > 20


def test_augmentation_follows_the_random_stream() -> None:
    augment = augmentation(list(STEPS), SIZE, STANDARD)
    first, again, other = (apply(augment, sample(), seed)["image"] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_no_augmentation_is_the_identity_and_a_misspelt_one_an_error() -> None:
    data = sample()
    assert augmentation([], SIZE, STANDARD)(data) is data
    with pytest.raises(UnknownNameError, match="Nearest: 'horizontal_flip'"):
        augmentation(["horizontal-flip"], SIZE, STANDARD)


def test_a_zoom_out_of_the_image_is_an_error() -> None:
    with pytest.raises(UsageError, match="needs a region"):
        Zoom((100, 100), STANDARD)(sample())


KEEP = ProtocolFlags(zoom_depth="unchanged", zoom_inverse_depth="unchanged")  # coordinates are not distances


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    scale=st.tuples(st.floats(0.4, 1.0), st.floats(1.0, 2.0)),
    size=st.tuples(st.integers(3, 30), st.integers(3, 30)),
)
def test_a_scaled_crop_keeps_labels_on_their_pixels(
    seed: int, scale: tuple[float, float], size: tuple[int, int]
) -> None:
    """Also where the scaled sample is smaller than the crop, in one side or in both."""
    out = apply(augmentation([{"name": "scale_crop", "scale": scale, "size": size}], SIZE, KEEP), coordinates(), seed)
    image, semseg = out["image"].as_subclass(Tensor), out["targets"]["semseg"].as_subclass(Tensor)
    assert image.shape == (3, *size)
    assert semseg.shape == size
    known = semseg != 255
    keypoint = out["targets"]["keypoint"].as_subclass(Tensor)
    assert torch.equal(known, ~keypoint[0].isnan())
    assert torch.equal(known, ~out["targets"]["depth"].as_subclass(Tensor).isnan())
    assert not image[:, ~known].any()  # padding is black, and nothing else is unknown
    place = torch.stack([semseg % WIDTH, semseg // WIDTH]).float()
    assert torch.equal(place[:, known], keypoint[:, known])
    inner = torch.nn.functional.max_pool2d((~known)[None].float(), 3, 1, 1)[0] == 0
    if inner.any():
        pixel = max(1.0, 1 / scale[0])  # of the original, under one of a shrunken sample
        assert (place - image[:2]).abs().amax(0)[inner].max() <= 0.75 * pixel


def test_a_small_sample_is_padded_about_its_centre() -> None:
    crop = ScaleCrop((HEIGHT + 5, WIDTH + 4), STANDARD, (1.0, 1.0))
    out = apply(crop, sample(), 0)
    known = ~out["targets"]["depth"].as_subclass(Tensor).isnan()
    known[2, 2] = True  # the sample's own unknown pixel
    rows, columns = known.any(1).nonzero().flatten(), known.any(0).nonzero().flatten()
    assert (int(rows[0]), int(rows[-1])) == (2, 2 + HEIGHT - 1)
    assert (int(columns[0]), int(columns[-1])) == (2, 2 + WIDTH - 1)


@pytest.mark.numerical
@pytest.mark.parametrize("s", [0.5, 1.0, 1.5])
def test_a_scaled_wall_is_as_much_nearer(s: float) -> None:
    """Depth / s and disparity * s; nothing of it under the protocol that leaves them."""
    wall: Any = {
        "image": tv_tensors.Image(torch.rand(3, 40, 60)),
        "targets": {"depth": Depth(torch.full((40, 60), 6.0)), "disparity": InverseDepth(torch.full((40, 60), 3.0))},
        "meta": {"id": "wall"},
    }
    for flags, depth, disparity in ((STANDARD, 6 / s, 3 * s), (get_protocol("adashare"), 6.0, 3.0)):
        targets = apply(ScaleCrop((20, 30), flags, (s, s)), wall, 0)["targets"]
        assert targets["depth"].unique().tolist() == pytest.approx([depth])
        assert targets["disparity"].unique().tolist() == pytest.approx([disparity])
        assert type(targets["depth"]) is Depth


def test_zooms_by_the_scales_of_a_release() -> None:
    step = Zoom((40, 60), STANDARD, scales=(1.0, 1.2, 1.5))
    image = tv_tensors.Image(torch.rand(3, 40, 60))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = {step.make_params([image])["width"] for _ in range(50)}
    assert found == {60, 50, 40}


def test_a_rotation_turns_places_and_vectors() -> None:
    """A quarter turn, exactly: x of a normal becomes y, corners are padded where a turn is not a right angle."""
    data = sample()
    augment = augmentation([{"name": "rotation", "degrees": 30}], SIZE, STANDARD)
    turned = apply(augment, data, 3)["targets"]
    length = turned["normals"].as_subclass(Tensor).norm(dim=0)
    assert torch.all((length < 1e-6) | ((length - 1).abs() < 1e-5))
    assert (turned["semseg"].as_subclass(Tensor) == 255).sum() > 1
    assert turned["keypoint"].as_subclass(Tensor).isnan().sum() > 1
    assert set(turned["semseg"].unique().tolist()) <= set(data["targets"]["semseg"].unique().tolist()) | {255}
    data["targets"]["normals"] = NormalsOfUnknownFrame(data["targets"]["normals"].as_subclass(Tensor))
    with pytest.raises(UsageError, match="verified or declared frame"):
        apply(augment, data, 3)


def test_colour_changes_the_image_alone() -> None:
    data = sample()
    out = apply(augmentation(["colour"], SIZE, STANDARD), data, 1)
    assert not torch.equal(out["image"], data["image"])
    assert out["image"].min() >= 0
    assert out["image"].max() <= 1
    for task, target in data["targets"].items():
        assert torch.equal(bits(out["targets"][task]), bits(target)), task


def test_a_crop_decides_the_size_of_what_follows() -> None:
    steps = [{"name": "scale_crop", "size": [7, 9]}, "horizontal_flip", "shift"]
    assert augmented_size(steps, SIZE) == (7, 9)
    assert apply(augmentation(steps, SIZE, STANDARD), sample(), 0)["image"].shape == (3, 7, 9)
    assert augmented_size(["zoom", "rotation"], SIZE) == SIZE


def test_a_step_has_one_form_in_a_cell() -> None:
    assert canonical_steps(["shift", {"name": "shift"}, {"name": "shift", "pixels": 4}]) == ["shift"] * 3
    assert canonical_steps([{"name": "shift", "pixels": 2}]) == [{"name": "shift", "pixels": 2}]


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"pixels": 3}, "needs a name"),
        ({"name": "shift", "pixel": 3}, "'pixel'.*pixels"),
        ({"name": "shift", "pixels": 0}, "shift.pixels: .*greater than or equal to 1"),
        ({"name": "scale_crop", "scale": [1.5, 0.5]}, "from the smaller to the larger"),
        ({"name": "zoom", "scales": [1.2], "largest": 2.0}, "scales or largest"),
        ({"name": "rotation", "degrees": math.nan}, "rotation.degrees"),
    ],
)
def test_a_wrong_step_is_one_line(step: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        augmentation([step], SIZE, STANDARD)
