"""Towers for a number of tasks on small backbones of every layout."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmark.train.trainer import CellTrainer
from datasets.contracts import Batch, DatasetSpec, TaskSpec
from methods.backbones.backbone import Backbone, BackboneConfig, create_backbone
from tests.unit.harness import toy_spec, toy_trainer


def tasks_of(n: int, domains: str = "single", size: int = 8) -> DatasetSpec:
    """Tasks a, b, ..; the first two are those of the toy data, so networks of two tasks can be trained."""
    channels = (4, 2, *(3 for _ in range(n)))
    tasks = tuple(TaskSpec(chr(ord("a") + k), "class", channels[k], ("accuracy",)) for k in range(n))
    return dataclasses.replace(toy_spec(domains, size), tasks=tasks)


def small_swin(size: int) -> Backbone:
    """The first four blocks of Swin, whose parts are as wide as they are in timm: one more layout, little time."""
    backbone = create_backbone(BackboneConfig("swin_tiny_patch4_window7_224", image_size=(size, size)), seed=0)
    backbone.blocks, backbone.stages = backbone.blocks[:4], backbone.stages[:2]
    backbone.tail, backbone.num_features = nn.Identity(), 192
    return backbone


def backbone_of(name: str, size: int = 32) -> Backbone:
    """Built once: tests clone what they change."""
    return _backbone_of(name, size, torch.get_default_dtype())


@functools.cache
def _backbone_of(name: str, size: int, dtype: torch.dtype) -> Backbone:
    if name.startswith("swin"):
        return small_swin(size)
    return create_backbone(BackboneConfig(name, image_size=(size, size)), seed=0)


def trainer_of(folder: Path, n_tasks: int, name: str = "test_resnet", size: int = 8, **options: Any) -> CellTrainer:
    spec = tasks_of(n_tasks, options.get("domains", "single"), size)
    return toy_trainer(folder, size=size, data=spec, prototype=backbone_of(name, size), **options)


def images_of(trainer: CellTrainer, n: int = 4) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(1)
    side = trainer.data.native_size[0]
    return {name: torch.randn(n, 3, side, side, generator=random) for name in trainer.data.inputs}


def batch_of(trainer: CellTrainer) -> Batch:
    images = images_of(trainer)
    targets = {task: torch.arange(4) % 2 for task in trainer.data.task_names}
    return Batch(images, targets, {name: torch.arange(4) for name in images})
