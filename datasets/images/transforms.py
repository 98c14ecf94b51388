"""Tensor types of labels, how they follow the image, normalisation and collation of samples. Spec: datasets 2.1, 2.6.

Built on torchvision.transforms.v2, with its traps in mind: a type without kernels passes through geometric transforms
unchanged and without an error, so the types here are masks; `fill` dictionaries match exact types, so each type has its
own entry; a bare tensor is only left alone beside an image, so transforms get whole samples, before collation.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from datasets.errors import UsageError
from datasets.protocols import ProtocolFlags

if TYPE_CHECKING:
    from datasets.contracts import Sample

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ADASHARE_BGR_MEAN = (104.00698793, 116.66876762, 122.67891434)  # datasets 2.6, sunxm2357/AdaShare


class Depth(tv_tensors.Mask):
    """Distances, float [H, W], NaN = unknown. A zoom by s divides them by s."""


class InverseDepth(tv_tensors.Mask):
    """Inverse depth or disparity, float [H, W], NaN = unknown. A zoom by s multiplies it by s."""


class Dense(tv_tensors.Mask):
    """Any other regression map, float [C, H, W], NaN = unknown."""


class Normals(tv_tensors.Mask):
    """Unit vectors, float [3, H, W], x right, y up, z towards the camera; the zero vector = unknown."""


class NormalsOfUnknownFrame(Normals):
    """Unit vectors whose axes are not verified: channel 0 is taken as x, and transforms that turn them are refused."""


class EncodedNormals(tv_tensors.Mask):
    """Normals as the colours of their file, float [3, H, W] in 0 .. 255, not decoded; black = unknown.

    Places follow the image, colours stay: the axes are not known before decoding.
    """


def negate(normals: Normals, channel: int) -> Normals:
    """The vectors with one component turned round."""
    vectors = normals.as_subclass(Tensor).clone()
    vectors[..., channel, :, :] *= -1
    return cast(Normals, tv_tensors.wrap(vectors, like=normals))


@v2.functional.register_kernel(functional.horizontal_flip, Normals)
def _flip_normals_horizontally(normals: Normals) -> Normals:
    return negate(tv_tensors.wrap(normals.as_subclass(Tensor).flip(-1), like=normals), channel=0)


@v2.functional.register_kernel(functional.vertical_flip, Normals)
def _flip_normals_vertically(normals: Normals) -> Normals:
    return negate(tv_tensors.wrap(normals.as_subclass(Tensor).flip(-2), like=normals), channel=1)


@v2.functional.register_kernel(functional.rotate, Normals)
def _rotate_normals(
    normals: Normals,
    angle: float,
    interpolation: object = None,  # a mask is always resampled by nearest neighbour
    expand: bool = False,
    center: list[float] | None = None,
    fill: object = None,  # unknown normals are always the zero vector
) -> Normals:
    """Counter-clockwise by `angle` degrees: places as a mask, then vectors in the image plane."""
    moved = functional.rotate_mask(normals.as_subclass(Tensor), angle=angle, expand=expand, center=center, fill=0.0)
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    x, y, z = moved.unbind(dim=-3)
    vectors = torch.stack([cosine * x - sine * y, sine * x + cosine * y, z], dim=-3)
    return cast(Normals, tv_tensors.wrap(vectors, like=normals))


def _refuse(name: str, kind: type[tv_tensors.Mask], reason: str) -> None:
    @v2.functional.register_kernel(name, kind)
    def refuse(normals: tv_tensors.Mask, *args: object, **kwargs: object) -> tv_tensors.Mask:
        raise UsageError(f"Transform {name!r} of surface normals {reason}.")


for _type in (Normals, EncodedNormals):
    for _name in ("affine", "perspective", "elastic"):  # a shear would change the angle between normals and surface
        _refuse(_name, _type, "has no rule here; use flips, rotations and crops")
for _type in (NormalsOfUnknownFrame, EncodedNormals):
    for _name in ("rotate", "vertical_flip"):
        _refuse(_name, _type, "needs a verified or declared frame; this data set's normals are not in one")


def fill_values(flags: ProtocolFlags) -> dict[type | str, float]:
    """What padding puts into each type, by default black and ignored. A new dictionary, since v2 writes into it."""
    label = 255 if flags.padded_label == "ignore" else 0
    normals = dict.fromkeys((Normals, NormalsOfUnknownFrame, EncodedNormals), 0.0)
    unknown_value = {Depth: math.nan, InverseDepth: math.nan, Dense: math.nan, **normals}
    return {tv_tensors.Image: flags.padded_image, tv_tensors.Mask: label, **unknown_value}


def nearest_centre(values: Tensor, size: tuple[int, int]) -> Tensor:
    """[..., h, w] -> [..., *size], any dtype: the pixel that holds each output pixel's centre; exact, in integers.

    torchvision's `nearest` takes the upper left neighbour instead, which at small zooms shifts labels against the image
    by up to a pixel.
    """
    rows, columns = (
        (2 * torch.arange(new) + 1) * old // (2 * new) for new, old in zip(size, values.shape[-2:], strict=True)
    )
    return values[..., rows[:, None], columns]


def squared(images: Tensor, side: int) -> Tensor:
    """uint8 [..., h, w] -> uint8 [..., side, side]: bilinear, smoothed when reduced, in 8 bits."""
    resized: Tensor = functional.resize(images, [side, side], InterpolationMode.BILINEAR, antialias=True)
    return resized


@dataclasses.dataclass(frozen=True)
class Normalise:
    """RGB images in [0, 1] -> (x - mean) / std per channel, what a network expects; reversed first if `bgr`."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    bgr: bool = False

    @classmethod
    def for_protocol(
        cls, flags: ProtocolFlags, mean: tuple[float, float, float], std: tuple[float, float, float]
    ) -> Normalise:
        """The protocol's normalisation. mean, std: of the pretrained backbone, else of the data set."""
        match flags.normalisation:
            case "backbone":
                return cls(mean, std)
            case "unit":
                return cls((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
            case "imagenet":
                return cls(IMAGENET_MEAN, IMAGENET_STD)
            case "symmetric":
                return cls((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
            case "bgr_minus_mean":  # 255 x - mean
                blue, green, red = (value / 255 for value in ADASHARE_BGR_MEAN)
                return cls((blue, green, red), (1 / 255, 1 / 255, 1 / 255), bgr=True)

    def __call__(self, images: Tensor) -> Tensor:
        """float [..., 3, H, W], or [..., 1, H, W] for gray, which fills all three channels -> float [..., 3, H, W]."""
        if self.bgr:
            images = images.flip(-3)
        mean, std = (images.new_tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        return (images - mean) / std


def collate(samples: Sequence[Sample]) -> tuple[Tensor, dict[str, Tensor]]:
    """(images float [B, 3, H, W], {task: targets [B, ...]}), plain tensors: geometry ends here.

    Raises UsageError where samples differ in size.
    """
    images = _stack("image", [sample["image"] for sample in samples], samples)
    tasks = samples[0]["targets"]
    return images, {task: _stack(task, [sample["targets"][task] for sample in samples], samples) for task in tasks}


def _stack(name: str, values: Sequence[Tensor], samples: Sequence[Sample]) -> Tensor:
    for value, sample in zip(values, samples, strict=True):
        if value.shape != values[0].shape:
            raise UsageError(
                f"Samples of one batch differ in size: {name} of {samples[0]['meta'].get('id')!r} has shape "
                f"{tuple(values[0].shape)}, of {sample['meta'].get('id')!r} {tuple(value.shape)}; add a crop."
            )
    return torch.stack([value.as_subclass(Tensor) for value in values])


def one_channel(images: Tensor) -> Tensor:
    """Gray images [..., C, H, W] as [..., 1, H, W], of the same type. Raises UsageError where they have colours."""
    plain = images.as_subclass(Tensor)
    first = plain[..., :1, :, :]
    if not torch.equal(first.expand_as(plain), plain):
        raise UsageError("Colour images cannot enter a backbone with in_chans = 1; set in_chans: 3.")
    return cast(Tensor, tv_tensors.wrap(first, like=images))
