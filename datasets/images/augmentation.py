"""Augmentation of whole samples: labels follow the image, and values that depend on its geometry change by rule.

A suite's recipe names the steps with their options, in the order in which they apply, equal for every row of a table.
Where a published protocol deviates from the geometry, a flag of the protocol says so.
Spec: datasets 2.6.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, cast

import torch
from pydantic import ConfigDict, Field, ValidationError, model_validator
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from datasets.errors import UsageError, first_fault, unknown
from datasets.images.transforms import Depth, InverseDepth, Normals, fill_values, nearest_centre, negate
from datasets.protocols import ProtocolFlags, get_protocol
from datasets.settings import Checked

if TYPE_CHECKING:
    from datasets.contracts import DatasetSpec, Sample

Size = tuple[int, int]
StepConfig = str | Mapping[str, Any]
Positive = Annotated[float, Field(gt=0)]
Pixels = Annotated[int, Field(ge=1)]


class Step(Checked):
    """One kind of step. Its fields are its options. step: its name in suites. mirrors: whether it flips images."""

    model_config = ConfigDict(allow_inf_nan=False)
    step: ClassVar[str]
    mirrors: ClassVar[bool] = False

    def out_size(self, size: Size) -> Size:
        """(height, width) of what comes out for samples of that size."""
        return size

    def transform(self, size: Size, flags: ProtocolFlags) -> v2.Transform:
        """The transform of samples of (height, width) `size`."""
        raise NotImplementedError


class FlipStep(Step):
    """Swaps left and right."""

    step: ClassVar[str] = "horizontal_flip"
    mirrors: ClassVar[bool] = True
    p: float = Field(default=0.5, ge=0, le=1, description="probability of a flip")

    def transform(self, size: Size, flags: ProtocolFlags) -> v2.Transform:
        """Labels with it; normals by the protocol's flag."""
        return HorizontalFlip(flags, self.p)


class ShiftStep(Step):
    """Pads the sample and takes a random crop of its own size."""

    step: ClassVar[str] = "shift"
    pixels: int = Field(default=4, ge=1, description="padding on each side; 4 as in common CIFAR recipes")

    def transform(self, size: Size, flags: ProtocolFlags) -> v2.Transform:
        """Padding is black, and ignored in labels."""
        return v2.RandomCrop(size, padding=self.pixels, fill=fill_values(flags))


class ZoomStep(Step):
    """Enlarges a random region of 1 / s of the size to the whole size."""

    step: ClassVar[str] = "zoom"
    largest: float = Field(
        default=1.5,
        ge=1,
        description="s is uniform from 1 to this; 1.5 is our choice, published releases zoom by up to 1.2 to 1.5",
    )
    scales: tuple[Annotated[float, Field(ge=1)], ...] = Field(default=(), description="or s is one of these")

    @model_validator(mode="after")
    def _one_of_two(self) -> ZoomStep:
        if self.scales and "largest" in self.model_fields_set:
            raise ValueError("give scales or largest, not both")
        return self

    def transform(self, size: Size, flags: ProtocolFlags) -> v2.Transform:
        """Distances by the protocol's flag."""
        return Zoom(size, flags, self.largest, self.scales)


class ScaleCropStep(Step):
    """Scales the sample by s, pads it about its centre where it is too small, and takes a random crop.

    AdaShare's release: scale 0.5 to 1.5, crops of 321 x 321.
    """

    step: ClassVar[str] = "scale_crop"
    scale: tuple[Positive, Positive] = Field(default=(0.5, 1.5), description="smallest and largest s, uniform")
    size: tuple[Pixels, Pixels] | None = Field(
        default=None, description="height and width of the crop in pixels; null takes those of the sample"
    )

    @model_validator(mode="after")
    def _in_order(self) -> ScaleCropStep:
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale runs from the smaller to the larger factor, not {self.scale}")
        return self

    def out_size(self, size: Size) -> Size:
        """The crop's."""
        return self.size or size

    def transform(self, size: Size, flags: ProtocolFlags) -> v2.Transform:
        """Distances by the protocol's flag."""
        return ScaleCrop(self.out_size(size), flags, self.scale)


class RotationStep(Step):
    """Turns the sample about its centre. The size stays, corners are padded."""

    step: ClassVar[str] = "rotation"
    degrees: float = Field(default=20.0, gt=0, le=180, description="largest angle, either way")

    def transform(self, size: Size, flags: ProtocolFlags) -> v2.Transform:
        """Normals turn in the image plane; where their frame is unknown that is an error."""
        return v2.RandomRotation(self.degrees, InterpolationMode.BILINEAR, fill=fill_values(flags))


class ColourStep(Step):
    """Changes the colours of the image; labels stay as they are."""

    step: ClassVar[str] = "colour"
    brightness: float = Field(default=0.2, ge=0, le=1, description="x: a factor from 1 - x to 1 + x")
    contrast: float = Field(default=0.2, ge=0, le=1, description="x: a factor from 1 - x to 1 + x")
    saturation: float = Field(default=0.2, ge=0, le=1, description="x: a factor from 1 - x to 1 + x")
    hue: float = Field(default=0.0, ge=0, le=0.5, description="x: a shift from -x to x, in turns of the colour wheel")

    def transform(self, size: Size, flags: ProtocolFlags) -> v2.Transform:
        """Of the image alone."""
        return v2.ColorJitter(self.brightness, self.contrast, self.saturation, self.hue)


STEPS: Mapping[str, type[Step]] = {
    kind.step: kind for kind in (FlipStep, ShiftStep, ZoomStep, ScaleCropStep, RotationStep, ColourStep)
}


def read_steps(configs: Sequence[StepConfig]) -> list[Step]:
    """The steps of a recipe. configs: names, or mappings with `name` and options. Raises UsageError."""
    return [_read(config) for config in configs]


def _read(config: StepConfig) -> Step:
    options = {"name": config} if isinstance(config, str) else dict(config)
    name = options.pop("name", None)
    if name is None:
        raise UsageError(f"An augmentation step needs a name: {dict(options)!r}; one of {', '.join(STEPS)}.")
    if name not in STEPS:
        raise unknown("augmentation", str(name), STEPS)
    kind = STEPS[name]
    try:
        return kind(**options)
    except ValidationError as error:
        fault = first_fault(error)
        if fault.kind == "extra_forbidden":
            raise unknown(f"option of augmentation {name!r}", fault.where, kind.model_fields) from error
        raise UsageError(f"Augmentation {name}{'.' if fault.where else ''}{fault}.") from error


def canonical_steps(configs: Sequence[StepConfig]) -> list[str | dict[str, Any]]:
    """The steps as a cell holds them: the name alone where all options are the defaults, else name and all options."""
    found: list[str | dict[str, Any]] = []
    for step in read_steps(configs):
        values = step.model_dump(mode="json")
        found.append(step.step if step == type(step)() else {"name": step.step, **values})
    return found


def augmented_size(configs: Sequence[StepConfig], size: Size) -> Size:
    """(height, width) of augmented samples."""
    for step in read_steps(configs):
        size = step.out_size(size)
    return size


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Transforms of whole samples, applied in order."""

    transforms: Sequence[v2.Transform]

    def __call__(self, sample: Sample) -> Sample:
        """The sample with its labels, changed by random numbers of torch's current stream."""
        for transform in self.transforms:
            sample = cast("Sample", transform(sample))
        return sample

    @property
    def flip(self) -> float | None:
        """Probability of a flip where nothing else is done, None otherwise: one draw of `torch.rand(1)` a sample, below
        it. So whole batches can be flipped, with the same images.
        """
        match self.transforms:
            case [HorizontalFlip() as flip]:
                return float(flip.p)
        return None


def augmentation(
    configs: Sequence[StepConfig], size: Size, flags: ProtocolFlags, mirrored: bool = True
) -> Augmentation:
    """A transform of whole samples of (height, width) `size` that applies the steps in order.

    mirrored: False leaves out flips. Random numbers come from torch's current stream, which the caller sets. Class
    labels do not change, so a flip is wrong where a class means a side. Raises UsageError as `read_steps`.
    """
    transforms = []
    for step in read_steps(configs):
        if step.mirrors and not mirrored:
            continue
        transforms.append(step.transform(size, flags))
        size = step.out_size(size)
    return Augmentation(transforms)


def augmentation_of(configs: Sequence[StepConfig], spec: DatasetSpec, input_name: str) -> Augmentation | None:
    """The transform of the samples of one input of a data set; None if there are no steps."""
    if not configs:
        return None
    flags = get_protocol(spec.protocol, spec.name)
    return augmentation(configs, spec.native_size, flags, mirrored=input_name not in spec.not_mirrored)


class HorizontalFlip(v2.RandomHorizontalFlip):
    """Flips the whole sample with probability p; under the flag, the vectors of normals keep their x."""

    def __init__(self, flags: ProtocolFlags, p: float = 0.5) -> None:
        super().__init__(p=p)
        self.flags = flags

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """One leaf of the sample."""
        output = super().transform(inpt, params)
        if isinstance(output, Normals) and not self.flags.flip_negates_normal_x:
            return negate(output, channel=0)
        return output


def image_size(leaves: Sequence[Any]) -> Size:
    """(height, width) of the image among the leaves of a sample."""
    height, width = functional.get_size(next(value for value in leaves if isinstance(value, tv_tensors.Image)))
    return height, width


def resized(value: Any, size: Size, zoom: float, flags: ProtocolFlags) -> Any:
    """An image or label map brought to `size`, which enlarges it by `zoom`; distances by the protocol's rule.

    Images are resized bilinearly with antialiasing, labels by the nearest pixel centre.
    """
    if isinstance(value, tv_tensors.Image):
        return functional.resize(value, list(size), antialias=True)
    moved = tv_tensors.wrap(nearest_centre(value.as_subclass(Tensor), size), like=value)
    if isinstance(value, Depth) and flags.zoom_depth == "divide":
        return tv_tensors.wrap(moved / zoom, like=value)
    if isinstance(value, InverseDepth) and flags.zoom_inverse_depth == "multiply":
        return tv_tensors.wrap(moved * zoom, like=value)
    return moved


class Zoom(v2.Transform):
    """Enlarges a random region of `size` / s to `size`, one s for the whole sample: uniform, or one of `scales`."""

    def __init__(
        self, size: Size, flags: ProtocolFlags, largest: float = ZoomStep().largest, scales: Sequence[float] = ()
    ) -> None:
        super().__init__()
        self.size, self.flags, self.largest, self.scales = size, flags, largest, tuple(scales)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """The region {top, left, height, width} and the zoom, a ratio of widths: what disparity scales with."""
        height, width = image_size(flat_inputs)
        if self.scales:
            scale = self.scales[int(torch.randint(len(self.scales), ()))]
        else:
            scale = 1.0 + (self.largest - 1.0) * float(torch.rand(()))
        region = (round(self.size[0] / scale), round(self.size[1] / scale))
        if region[0] > height or region[1] > width:
            raise UsageError(f"Zoom to {self.size} needs a region of {region}; the image has {(height, width)} pixels.")
        top = int(torch.randint(height - region[0] + 1, ()))
        left = int(torch.randint(width - region[1] + 1, ()))
        return {"top": top, "left": left, "height": region[0], "width": region[1], "zoom": self.size[1] / region[1]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """One leaf of the sample; other leaves than images and label maps pass unchanged."""
        if not isinstance(inpt, (tv_tensors.Image, tv_tensors.Mask)):
            return inpt
        region = functional.crop(inpt, params["top"], params["left"], params["height"], params["width"])
        return resized(region, self.size, params["zoom"], self.flags)


class ScaleCrop(v2.Transform):
    """Scales the sample by one s, pads it about its centre to at least `size`, and takes a random crop of `size`."""

    def __init__(self, size: Size, flags: ProtocolFlags, scale: tuple[float, float]) -> None:
        super().__init__()
        self.size, self.flags, self.scale = size, flags, scale
        self.fill = fill_values(flags)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """scaled: (height, width); padding: left, top, right, bottom; top, left: of the crop; zoom: by width."""
        height, width = image_size(flat_inputs)
        smallest, largest = self.scale
        s = smallest + (largest - smallest) * float(torch.rand(()))
        scaled = (max(1, round(s * height)), max(1, round(s * width)))
        lacking = [max(0, wanted - found) for wanted, found in zip(self.size, scaled, strict=True)]
        padding = [lacking[1] // 2, lacking[0] // 2, lacking[1] - lacking[1] // 2, lacking[0] - lacking[0] // 2]
        top, left = (
            int(torch.randint(found + missing - wanted + 1, ()))
            for found, missing, wanted in zip(scaled, lacking, self.size, strict=True)
        )
        return {"scaled": scaled, "padding": padding, "top": top, "left": left, "zoom": scaled[1] / width}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """One leaf of the sample; other leaves than images and label maps pass unchanged."""
        if not isinstance(inpt, (tv_tensors.Image, tv_tensors.Mask)):
            return inpt
        scaled = resized(inpt, params["scaled"], params["zoom"], self.flags)
        padded = functional.pad(scaled, params["padding"], fill=self.fill[type(scaled)])
        return functional.crop(padded, params["top"], params["left"], *self.size)
