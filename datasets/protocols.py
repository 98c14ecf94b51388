"""Protocols: one table of flags. Loaders, transforms, losses and metrics branch on flags, never on a tag or a data set.

Spec: datasets 2.4 and 2.6, measurement 1.3. A row says what differs from `standard`. Only flags that code
reads are listed; a quirk of a new kind or transform is added together with it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

from datasets.errors import unknown


@dataclasses.dataclass(frozen=True)
class ProtocolFlags:
    """What one protocol does; the defaults are `standard`."""

    # How predictions are resized to the label's resolution, in losses and before argmax.
    upsample: Literal["bilinear", "nearest"] = "bilinear"
    # Classes averaged: in label or prediction; with true positives only; all (absent ones count 0).
    miou: Literal["present", "tp_only", "all_classes"] = "present"
    # Over all pixels of the split, or mean over images.
    pixel_acc: Literal["pooled", "image_mean"] = "pooled"
    void_as_error: bool = False  # ignored pixels count as errors in pixel_acc
    # Labels are unit vectors, or the colours 0 to 255 of the files, compared as vectors without decoding.
    normals: Literal["decoded", "encoded"] = "decoded"
    angle_bound: Literal["<", "<="] = "<"  # an angle is within a bound if it is < it, or <= it
    # Absolute, relative and squared errors over all pixels, or means per image averaged over images.
    depth_mean: Literal["pooled", "per_image"] = "pooled"
    # The ratio of a prediction <= 0 is infinite, or left signed (so that a negative one counts as right).
    ratio_nonpositive: Literal["infinite", "signed"] = "infinite"
    # Mean and std of the backbone (untrained: of the data set); none; ImageNet's; 2x - 1; 0-255 BGR minus a mean.
    normalisation: Literal["backbone", "unit", "imagenet", "symmetric", "bgr_minus_mean"] = "backbone"
    flip_negates_normal_x: bool = True  # a horizontal flip mirrors the vectors, not only their places
    zoom_depth: Literal["divide", "unchanged"] = "divide"  # a zoom by s divides distances by s, which is correct
    zoom_inverse_depth: Literal["multiply", "unchanged"] = "multiply"  # and multiplies disparity by s
    padded_label: Literal["ignore", "background"] = "ignore"  # padding of masks: the ignore value, or 0 (background)
    padded_image: float = 0.0  # padding of images in [0, 1]: black, or grey
    # How images of many sizes get one size: padded about the centre, or stretched to it, whatever their shape.
    canvas: Literal["pad", "stretch"] = "pad"
    # Of unit vectors: 1 - cosine, or absolute differences divided by the number of components, or of pixels (3 x it).
    normals_loss: Literal["cosine", "l1_components", "l1_pixels"] = "cosine"


STANDARD = ProtocolFlags()

PROTOCOLS: Mapping[str, ProtocolFlags] = {
    "standard": STANDARD,
    "adashare": ProtocolFlags(
        upsample="nearest",
        miou="tp_only",
        pixel_acc="image_mean",
        normals="encoded",
        angle_bound="<=",
        depth_mean="per_image",
        ratio_nonpositive="signed",
        normalisation="bgr_minus_mean",
        zoom_depth="unchanged",
        zoom_inverse_depth="unchanged",
    ),
    "mtan": ProtocolFlags(normalisation="unit", zoom_inverse_depth="unchanged"),
    "vandenhende": ProtocolFlags(
        normalisation="imagenet", padded_label="background", canvas="stretch", normals_loss="l1_components"
    ),
    "bmtas": ProtocolFlags(normalisation="symmetric", padded_image=0.5, normals_loss="l1_pixels"),
    "trimap": STANDARD,  # another set of classes (oxford_pets); all else is as usual
}
# Where a protocol treats one data set in its own way: (tag, data set) -> the row of that pair.
_REFINEMENTS: Mapping[tuple[str, str], ProtocolFlags] = {
    ("adashare", "cityscapes"): dataclasses.replace(PROTOCOLS["adashare"], void_as_error=True),
    # There the released code decodes normals (2v / 255 - 1, all pixels), and compares every one.
    ("adashare", "taskonomy"): dataclasses.replace(PROTOCOLS["adashare"], normals="decoded"),
    ("adashare", "nyuv2"): dataclasses.replace(PROTOCOLS["adashare"], flip_negates_normal_x=False),
    ("vandenhende", "nyuv2"): dataclasses.replace(PROTOCOLS["vandenhende"], miou="all_classes"),
}


def get_protocol(tag: str, dataset: str = "") -> ProtocolFlags:
    """Flags of a protocol, refined for a data set where the protocol treats that one differently.

    Raises UnknownNameError with the nearest tags.
    """
    if tag not in PROTOCOLS:
        raise unknown("protocol", tag, PROTOCOLS)
    return _REFINEMENTS.get((tag, dataset), PROTOCOLS[tag])
