"""Supernets of DAG search on small backbones."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from datasets.contracts import DatasetSpec, TaskSpec
from methods.backbones.backbone import Backbone, BackboneConfig, create_backbone
from methods.backbones.heads import create_head
from methods.control import ArchitectureSize
from methods.dag_search.params import DagSearchParams
from methods.dag_search.reduction import reduce
from methods.dag_search.space import DagSpace, build_space
from methods.dag_search.supernet import Gates, Supernet
from methods.streams import seed_of
from tests.unit.harness import toy_spec

FAMILIES = {  # one model of every family, with its image size
    "test_resnet": (36, 36),
    "mobilenetv2_100": (64, 64),
    "mobilenetv3_small_050": (64, 64),
    "regnetx_002": (64, 64),
    "test_convnext": (36, 36),
    "test_vit": (32, 32),
    "swin_tiny_patch4_window7_224": (64, 64),
    "swinv2_tiny_window8_256": (64, 64),
}


def spec_of(n_tasks: int, domains: str = "single", image: tuple[int, int] = (36, 36)) -> DatasetSpec:
    tasks = tuple(TaskSpec(f"t{i}", "class", 3, ("accuracy",)) for i in range(n_tasks))
    return dataclasses.replace(toy_spec(domains), tasks=tasks, native_size=image)


def backbone_of(name: str = "test_resnet", seed: int = 0) -> Backbone:
    return _built(name, seed, torch.get_default_dtype()).clone()


@functools.cache
def _built(name: str, seed: int, dtype: torch.dtype) -> Backbone:
    return create_backbone(BackboneConfig(name, image_size=FAMILIES[name]), seed=seed)


def beginning_of(name: str) -> Backbone:
    """The first blocks of a family that timm has no small member of, as wide as they are; else the whole backbone."""
    backbone = backbone_of(name)
    if name.startswith("test_"):
        return backbone
    n = 4 if name.startswith("swin") else 6  # of which some keep the shape, and some change it
    backbone.blocks, backbone.tail = backbone.blocks[:n], nn.Identity()
    backbone.stages = [range(s.start, min(s.stop, n)) for s in backbone.stages if s.start < n]
    backbone.num_features = backbone.blocks[-1].out_shape.channels
    return backbone


def space_of(backbone: Backbone, m: int = 3, aggregate: str = "weighted_mean", **reads: bool) -> DagSpace:
    settings = {"read_in": True, "read_out": True, **reads}
    return build_space(backbone.clone, lambda name: seed_of(0, name), m, aggregate=aggregate, **settings)


def supernet_of(backbone: Backbone, spec: DatasetSpec, m: int = 3, init: str = "zero", **options: Any) -> Supernet:
    space = space_of(backbone, m, options.pop("aggregate", "weighted_mean"))
    heads = {task.name: create_head(task, backbone, 0) for task in spec.tasks}
    gates = Gates(space.graph, len(spec.tasks), 4, init)
    options = {"batch_norm": "per_task_stats", "recompute": False, **options}
    return Supernet(space, spec, heads, gates, **options)


def images_of(spec: DatasetSpec, batch: int = 4, seed: int = 0) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {name: torch.randn(batch, 3, *spec.native_size, generator=random) for name in spec.inputs}


def random_sub_dags(space: DagSpace, n_tasks: int, seed: int = 0, kappa: int | None = None) -> list[np.ndarray]:
    gates = np.random.RandomState(seed).rand(n_tasks, len(space.graph.edges))
    params = DagSearchParams().reduction
    kappa = kappa or space.graph.n_states - 1
    return reduce(space, gates, params, kappa, None, torch.Generator(), lambda cut: ArchitectureSize(1, 1)).kept
