"""Geometry: labels that do not follow the image teach a network the wrong place, and no error says so."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from datasets.contracts import Sample
from datasets.errors import UnknownNameError, UsageError
from datasets.protocols import STANDARD, ProtocolFlags, get_protocol
from datasets.transforms import (
    Dense,
    Depth,
    EncodedNormals,
    HorizontalFlip,
    InverseDepth,
    Normalise,
    Normals,
    NormalsOfUnknownFrame,
    Zoom,
    augmentation,
    augmentation_names,
    collate,
    fill_values,
)

HEIGHT, WIDTH = 12, 16
SIZE = (HEIGHT, WIDTH)


def bits(values: Tensor) -> Tensor:
    """Comparable bit for bit, NaN and signs of zero included."""
    plain = values.as_subclass(Tensor)
    return plain.view(torch.int32) if plain.dtype == torch.float32 else plain


def sample(seed: int = 0) -> Sample:
    """One label of every type, with ignored places, and two labels without pixels."""
    generator = torch.Generator().manual_seed(seed)
    depth = 1 + torch.rand(SIZE, generator=generator)
    depth[0, 0] = math.nan
    vectors = torch.nn.functional.normalize(torch.randn(3, *SIZE, generator=generator), dim=0)
    vectors[:, 1, 1] = 0
    semseg = torch.randint(0, 5, SIZE, generator=generator)
    semseg[2, 2] = 255
    return {
        "image": tv_tensors.Image(torch.rand(3, *SIZE, generator=generator)),
        "targets": {
            "semseg": tv_tensors.Mask(semseg),
            "depth": Depth(depth),
            "disparity": InverseDepth(1 / depth),
            "keypoint": Dense(depth[None].clone()),
            "normals": Normals(vectors),
            "digit": torch.tensor(7),
            "score": torch.tensor(0.25),
        },
        "meta": {"id": "a", "size": SIZE},
    }


def coordinates() -> Sample:
    """Every pixel holds its own place: image channels (x, y, 0), label maps x + WIDTH * y or (x, y)."""
    y, x = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    place = torch.stack([x, y]).float()
    return {
        "image": tv_tensors.Image(torch.cat([place, torch.zeros(1, *SIZE)])),
        "targets": {
            "semseg": tv_tensors.Mask(x + WIDTH * y),
            "depth": Depth(place[0]),
            "disparity": InverseDepth(place[0]),
            "keypoint": Dense(place),
            "normals": Normals(torch.cat([torch.zeros(2, *SIZE), place[:1]])),
        },
        "meta": {"id": "coordinates"},
    }


def apply(transform: Callable[[Sample], Sample], data: Sample, seed: int) -> Sample:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return transform(data)


# Flips


def test_a_flip_twice_is_the_identity_bit_for_bit() -> None:
    data = sample()
    flip = HorizontalFlip(STANDARD, p=1.0)
    twice = flip(flip(data))
    assert torch.equal(twice["image"], data["image"])
    for task, target in data["targets"].items():
        assert type(twice["targets"][task]) is type(target)
        assert torch.equal(bits(twice["targets"][task]), bits(target)), task


def test_a_flip_once_negates_normal_x_and_mirrors_the_rest() -> None:
    data = sample()
    once = HorizontalFlip(STANDARD, p=1.0)(data)
    mirrored = data["targets"]["normals"].as_subclass(Tensor).flip(-1)
    sign = torch.tensor([-1.0, 1.0, 1.0]).view(3, 1, 1)
    assert torch.equal(once["targets"]["normals"].as_subclass(Tensor), mirrored * sign)
    for task in ("semseg", "depth", "disparity", "keypoint"):
        assert torch.equal(bits(once["targets"][task]), bits(data["targets"][task]).flip(-1)), task
    assert once["targets"]["digit"].item() == 7
    assert once["targets"]["score"].item() == 0.25
    assert once["meta"]["id"] == "a"
    assert not torch.equal(data["targets"]["normals"], once["targets"]["normals"])  # the original is left alone


def test_normals_keep_their_x_under_the_flag_of_adashare_on_nyuv2() -> None:
    data = sample()
    once = HorizontalFlip(get_protocol("adashare", "nyuv2"), p=1.0)(data)
    assert torch.equal(once["targets"]["normals"].as_subclass(Tensor), data["targets"]["normals"].flip(-1))


# Normals and geometry agree: normals of a moved depth map are the moved normals of the depth map


def normals_of(depth: Tensor) -> Tensor:
    """Unit normals of a depth map in parallel projection. x right, y up, z towards the camera.

    The surface is z = -depth(x, y), so its normal is (d depth / dx, d depth / dy, 1) up to length, and y = -row.
    """
    d_row, d_column = torch.gradient(depth.as_subclass(Tensor))
    return torch.nn.functional.normalize(torch.stack([d_column, -d_row, torch.ones_like(d_row)]), dim=0)


def hill() -> Tensor:
    row, column = torch.meshgrid(torch.linspace(-1, 2, 15), torch.linspace(-2, 1, 15), indexing="ij")
    return 5 + row.sin() + 0.5 * column * row + column**2


MOVES: list[Callable[[Tensor], Tensor]] = [
    functional.horizontal_flip,
    functional.vertical_flip,
    lambda values: functional.rotate(values, 90),
    lambda values: functional.rotate(values, -90),
    lambda values: functional.rotate(values, 180),
]


@pytest.mark.parametrize("move", MOVES, ids=["horizontal", "vertical", "90", "-90", "180"])
def test_moved_normals_are_the_normals_of_the_moved_depth(move: Callable[[Tensor], Tensor]) -> None:
    depth = hill()
    expected = normals_of(move(Depth(depth)))
    moved = move(Normals(normals_of(depth)))
    assert type(moved) is Normals
    assert torch.allclose(moved.as_subclass(Tensor), expected, atol=1e-5)
    naive = move(tv_tensors.Mask(normals_of(depth)))  # places only
    assert not torch.allclose(naive.as_subclass(Tensor), expected, atol=0.1)


def test_rotation_leaves_unknown_normals_unknown() -> None:
    turned = functional.rotate(Normals(normals_of(hill())), 30, fill=9.0)
    length = turned.as_subclass(Tensor).norm(dim=0)
    assert length[0, 0] == 0  # a corner that was outside
    assert torch.allclose(length[length > 0], torch.ones(()))


@pytest.mark.parametrize(
    "transform",
    [v2.RandomPerspective(p=1.0), v2.ElasticTransform(), v2.RandomAffine(degrees=20, shear=10)],
    ids=["perspective", "elastic", "affine"],
)
def test_transforms_without_a_rule_for_normals_raise(transform: v2.Transform) -> None:
    with pytest.raises(UsageError, match="has no rule here"):
        transform(Normals(torch.zeros(3, 64, 64)))


def test_colours_move_with_the_image_and_keep_their_values() -> None:
    colours = EncodedNormals(torch.rand(3, *SIZE) * 255)
    for flags in (STANDARD, get_protocol("adashare", "nyuv2")):
        flipped = HorizontalFlip(flags, p=1.0)(colours)
        assert type(flipped) is EncodedNormals
        assert torch.equal(flipped.as_subclass(Tensor), colours.as_subclass(Tensor).flip(-1))


@pytest.mark.parametrize("kind", [NormalsOfUnknownFrame, EncodedNormals])
def test_vectors_are_turned_only_in_a_known_frame(kind: type[tv_tensors.Mask]) -> None:
    for turn in (lambda vectors: functional.rotate(vectors, 90), functional.vertical_flip):
        with pytest.raises(UsageError, match="needs a verified or declared frame"):
            turn(kind(torch.zeros(3, *SIZE)))
    once = HorizontalFlip(STANDARD, p=1.0)(NormalsOfUnknownFrame(torch.ones(3, *SIZE)))
    assert type(once) is NormalsOfUnknownFrame
    assert once[:, 0, 0].tolist() == [-1.0, 1.0, 1.0]


# Types


class Bare(tv_tensors.TVTensor):
    """What happens to a type without kernels."""


def test_label_types_have_kernels_and_a_bare_type_passes_unchanged() -> None:
    resize = v2.Resize((6, 8))
    data = resize(sample())
    for task in ("semseg", "depth", "disparity", "keypoint", "normals"):
        assert data["targets"][task].shape[-2:] == (6, 8), task
        assert type(data["targets"][task]) is type(sample()["targets"][task])
    bare = torch.zeros(*SIZE).as_subclass(Bare)
    assert resize(bare).shape == SIZE  # the trap: no error


def test_labels_are_resized_by_the_nearest_neighbour() -> None:
    data = sample()
    resized = v2.Resize((24, 32))(data)["targets"]
    for task in ("semseg", "depth", "disparity", "keypoint", "normals"):
        values = data["targets"][task].as_subclass(Tensor)
        expected = values.repeat_interleave(2, -1).repeat_interleave(2, -2)
        assert torch.equal(bits(resized[task]), bits(expected)), task


def test_padding_is_ignored_for_every_type() -> None:
    padded = v2.Pad(3, fill=fill_values(STANDARD))(sample())
    targets = {task: target.as_subclass(Tensor)[..., 0, 0] for task, target in padded["targets"].items() if target.ndim}
    assert targets["semseg"] == 255
    assert targets["depth"].isnan()
    assert targets["disparity"].isnan()
    assert targets["keypoint"].isnan().all()
    assert torch.equal(targets["normals"], torch.zeros(3))
    assert padded["image"][0, 0, 0] == 0
    # The trap: an entry for Mask does not reach its subclasses.
    assert v2.Pad(3, fill={tv_tensors.Mask: 255, "others": 0})(sample())["targets"]["depth"][0, 0] == 0


def test_padded_masks_are_background_only_under_its_flag() -> None:
    assert fill_values(STANDARD)[tv_tensors.Mask] == 255
    assert fill_values(get_protocol("vandenhende"))[tv_tensors.Mask] == 0


# Augmentation


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
    augment = augmentation(augmentation_names(), SIZE, STANDARD)
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


# Normalisation and collation


def test_normalisation_by_protocol() -> None:
    image = torch.tensor([0.2, 0.4, 0.6]).view(3, 1, 1).expand(3, 2, 2)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.5, 0.5)

    def channels(tag: str) -> list[float]:
        return Normalise.for_protocol(get_protocol(tag), mean, std)(image)[:, 0, 0].tolist()

    assert channels("standard") == pytest.approx([0.2, 0.4, 0.6])
    assert channels("mtan") == pytest.approx([0.2, 0.4, 0.6])
    assert channels("bmtas") == pytest.approx([-0.6, -0.2, 0.2])
    assert channels("vandenhende") == pytest.approx(
        [(0.2 - 0.485) / 0.229, (0.4 - 0.456) / 0.224, (0.6 - 0.406) / 0.225]
    )
    assert channels("adashare") == pytest.approx([153 - 104.00698793, 102 - 116.66876762, 51 - 122.67891434], rel=1e-5)


def test_gray_images_fill_all_channels() -> None:
    gray = torch.rand(2, 1, 4, 4)
    normalise = Normalise((0.1, 0.2, 0.3), (1.0, 1.0, 1.0))
    assert torch.equal(normalise(gray), normalise(gray.expand(2, 3, 4, 4)))


def test_collation_gives_plain_tensors() -> None:
    images, targets = collate([sample(0), sample(1)])
    assert type(images) is Tensor
    assert images.shape == (2, 3, *SIZE)
    assert all(type(target) is Tensor for target in targets.values())
    assert targets["normals"].shape == (2, 3, *SIZE)
    assert targets["digit"].tolist() == [7, 7]
    assert torch.equal(bits(targets["depth"][1]), bits(sample(1)["targets"]["depth"]))


def test_samples_of_different_sizes_are_named() -> None:
    small = v2.Resize((6, 8))(sample())
    with pytest.raises(UsageError, match=r"image of 'a' has shape \(3, 12, 16\), of 'a' \(3, 6, 8\)"):
        collate([sample(), small])
