"""Samples with every type of label, to move about."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torchvision import tv_tensors

from datasets.contracts import Sample
from datasets.images.transforms import Dense, Depth, InverseDepth, Normals

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
