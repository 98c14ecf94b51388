"""The official settings by data set, as data. Source: yamls/adashare of the official repository, `master`, and
`domainnet` for the last one (adashare.md 3).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

PresetName = Literal["nyu_v2_2task", "nyu_v2_3task", "cityscapes_2task", "taskonomy_5task", "domainnet"]
Phase = int | Literal["epoch"]


@dataclasses.dataclass(frozen=True)
class Preset:
    """One official setting.

    task_weights: {task: lambda}; channels: of each task's head. lr_step, lr_gamma: the rate is multiplied by lr_gamma
    every lr_step steps (StepLR). warmup_steps: part of search_steps. w_steps, a_steps: of a cycle; `epoch` is one pass
    over the images of that phase in batches of `batch_size`. crop: side in pixels. output_stride, batch_norm,
    search_weight_optimizer, pretrained: what the branch's code does. Backbone, weights, batch, crop and task weights
    belong to the cell, equal for all rows: a plan names what differs.
    """

    backbone: str
    task_weights: Mapping[str, float]
    channels: Mapping[str, int]
    sparsity_weight: float
    sharing_weight: float
    lr_head: float
    lr_backbone: float
    lr_step: int
    lr_gamma: float
    warmup_steps: int
    search_steps: int
    retrain_steps: int
    batch_size: int
    crop: int
    curriculum_speed: float
    w_steps: Phase
    a_steps: Phase
    output_stride: int = 8
    batch_norm: Literal["shared", "per_task"] = "shared"
    search_weight_optimizer: Literal["sgd", "adam"] = "sgd"
    pretrained: bool = False
    domains: Literal["single", "multi"] = "single"


_DOMAINS = ("real", "painting", "quickdraw", "clipart", "infograph", "sketch")

_NYU_V2 = Preset(
    backbone="resnet34",
    task_weights={"semseg": 1.0, "normals": 20.0, "depth": 3.0},
    channels={"semseg": 40, "normals": 3, "depth": 1},
    sparsity_weight=0.001,
    sharing_weight=0.05,
    lr_head=1e-3,
    lr_backbone=1e-3,
    lr_step=4000,
    lr_gamma=0.5,
    warmup_steps=4000,
    search_steps=20000,
    retrain_steps=20000,
    batch_size=16,
    crop=321,
    curriculum_speed=3,
    w_steps="epoch",
    a_steps="epoch",
)

PRESETS: Mapping[str, Preset] = {
    "nyu_v2_2task": dataclasses.replace(
        _NYU_V2,
        backbone="resnet18",
        task_weights={"semseg": 1.0, "normals": 20.0},
        channels={"semseg": 40, "normals": 3},
        sparsity_weight=0.05,
    ),
    "nyu_v2_3task": _NYU_V2,
    "cityscapes_2task": dataclasses.replace(
        _NYU_V2,
        task_weights={"semseg": 1.0, "depth": 20.0},
        channels={"semseg": 19, "depth": 1},
        sparsity_weight=0.01,
        sharing_weight=0.1,
        lr_head=1e-4,
        crop=224,
    ),
    "taskonomy_5task": dataclasses.replace(
        _NYU_V2,
        task_weights={"semseg": 1.0, "normals": 3.0, "depth": 2.0, "keypoint": 7.0, "edge": 7.0},
        channels={"semseg": 17, "normals": 3, "depth": 1, "keypoint": 1, "edge": 1},
        sharing_weight=0.005,
        lr_head=1e-4,
        lr_backbone=1e-4,
        lr_step=12000,
        lr_gamma=0.3,
        warmup_steps=20000,
        search_steps=100000,
        retrain_steps=30000,
        crop=224,
        curriculum_speed=1,
        w_steps=400,
        a_steps=100,
    ),
    "domainnet": dataclasses.replace(
        _NYU_V2,
        task_weights=dict.fromkeys(_DOMAINS, 1.0),
        channels=dict.fromkeys(_DOMAINS, 345),
        sparsity_weight=0.01,
        sharing_weight=0.1,
        lr_backbone=1e-5,
        lr_step=2000,
        lr_gamma=0.3,
        batch_size=32,
        crop=224,
        curriculum_speed=1,
        w_steps=400,
        a_steps=100,
        output_stride=32,
        batch_norm="per_task",
        search_weight_optimizer="adam",
        pretrained=True,
        domains="multi",
    ),
}
