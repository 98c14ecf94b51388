"""Geometry: labels that do not follow the image teach a network the wrong place, and no error says so."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from datasets.errors import UsageError
from datasets.images.augmentation import HorizontalFlip
from datasets.images.transforms import (
    Depth,
    EncodedNormals,
    Normalise,
    Normals,
    NormalsOfUnknownFrame,
    collate,
    fill_values,
)
from datasets.protocols import STANDARD, get_protocol
from tests.unit.samples import SIZE, bits, sample

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


@pytest.mark.numerical
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


# Normalisation and collation


@pytest.mark.numerical
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
