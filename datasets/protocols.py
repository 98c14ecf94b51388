"""Protocols: one table of flags. Loaders, transforms, losses and metrics branch on flags, never on a tag or a data set.

Spec: datasets 2.4 and 2.6, measurement 1.3. A row says what differs from `standard`. Only flags that code reads stand
here; a quirk of a kind or transform that does not exist yet arrives together with it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

from datasets.errors import unknown


@dataclasses.dataclass(frozen=True)
class ProtocolFlags:
    """What one protocol does; the defaults are `standard`.

    upsample: how predictions reach the label's resolution, in losses and before argmax.
    miou: classes averaged: in label or prediction; with true positives only; all (absent ones count 0).
    pixel_acc: over all pixels of the split, or mean over images. void_as_error: ignored pixels count as errors in it.
    normals: labels are unit vectors, or the colours 0 to 255 of the files, compared as vectors without decoding.
    angle_bound: an angle is within a bound if it is < it, or <= it.
    depth_mean: absolute, relative and squared errors over all pixels, or means per image averaged over images.
    ratio_nonpositive: the ratio of a prediction <= 0 is infinite, or left signed (so a negative one counts as right).
    normalisation: mean and std of the backbone (untrained: of the data set); none; ImageNet's; 2x - 1; 0-255 BGR minus
        a mean.
    flip_negates_normal_x: a horizontal flip mirrors the vectors and not only their places.
    zoom_depth, zoom_inverse_depth: what a zoom by s does to distances (correct: / s) and to disparity (correct: * s).
    padded_label: what padding puts into masks: the ignore value, or 0, which is the background class.
    """

    upsample: Literal["bilinear", "nearest"] = "bilinear"
    miou: Literal["present", "tp_only", "all_classes"] = "present"
    pixel_acc: Literal["pooled", "image_mean"] = "pooled"
    void_as_error: bool = False
    normals: Literal["decoded", "encoded"] = "decoded"
    angle_bound: Literal["<", "<="] = "<"
    depth_mean: Literal["pooled", "per_image"] = "pooled"
    ratio_nonpositive: Literal["infinite", "signed"] = "infinite"
    normalisation: Literal["backbone", "unit", "imagenet", "symmetric", "bgr_minus_mean"] = "backbone"
    flip_negates_normal_x: bool = True
    zoom_depth: Literal["divide", "unchanged"] = "divide"
    zoom_inverse_depth: Literal["multiply", "unchanged"] = "multiply"
    padded_label: Literal["ignore", "background"] = "ignore"


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
    "vandenhende": ProtocolFlags(normalisation="imagenet", padded_label="background"),
    "bmtas": ProtocolFlags(normalisation="symmetric"),
}
# Where a protocol treats one data set in its own way: (tag, data set) -> the row of that pair.
_REFINEMENTS: Mapping[tuple[str, str], ProtocolFlags] = {
    ("adashare", "cityscapes"): dataclasses.replace(PROTOCOLS["adashare"], void_as_error=True),
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
