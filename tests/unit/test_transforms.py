"""Geometry: labels that do not follow the image teach a network the wrong place, and no error says so."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torchvision import tv_tensors

from datasets.contracts import Sample
from datasets.protocols import STANDARD, get_protocol
from datasets.transforms import (
    Dense,
    Depth,
    HorizontalFlip,
    InverseDepth,
    Normals,
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


def slanted_plane() -> tuple[Depth, Normals]:
    """A wall that recedes to the right, seen in parallel projection: depth grows with x, its normal points to the left."""
    slope = 0.5
    depth = 2 + slope * torch.arange(WIDTH).float().expand(SIZE)
    normal = torch.tensor([slope, 0.0, 1.0]) / math.hypot(
        slope, 1
    )  # z towards the camera, so a receding wall faces +x?
    facing = torch.tensor([-1.0, 1.0, 1.0]) * normal
    return Depth(depth.clone()), Normals(facing.view(3, 1, 1).expand(3, *SIZE).clone())


def normals_of(depth: Tensor) -> Tensor:
    """Unit normals towards the camera of a depth map in parallel projection; x right, y up, so d/dy is minus d/drow."""
    d_row, d_column = torch.gradient(depth.as_subclass(Tensor))
    # Points (x, y, -depth): the surface's normal is (d depth / dx, d depth / dy, 1) up to length.
    return torch.nn.functional.normalize(torch.stack([d_column, -d_row, torch.ones_like(d_row)]), dim=0)
