"""Alignments between places of a backbone, in every layout of features (dag_search 3)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from datasets.errors import UsageError
from methods.backbones.alignment import Align, Aligner, feature_grids, norm_config
from methods.backbones.backbone import BackboneConfig, create_backbone
from methods.graph.operations import build_module
from methods.graph.task_graph import TaskGraph

NAMES = {"test_resnet": (36, 36), "test_convnext": (36, 36), "swin_tiny_patch4_window7_224": (64, 96),
         "mobilenetv2_100": (64, 64), "test_vit": (32, 32)}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_an_alignment_has_the_shape_of_its_target_at_every_place(name: str) -> None:
    backbone = create_backbone(BackboneConfig(name, image_size=NAMES[name]), seed=0)
    places = [backbone.stem(torch.randn(2, 3, *NAMES[name]))]
    for block in backbone.blocks:
        places.append(block(places[-1]))
    aligner = Aligner(backbone)
    for source in {0, len(places) // 2}:
        for target in range(source, len(places)):
            operation = aligner.operation(source, target, seed=0)
            aligned = operation.module(places[source])
            assert aligned.shape == places[target].shape
            same = places[source].shape == places[target].shape
            assert isinstance(operation.module, nn.Identity) == same
            if not same:
                assert operation.origin == "added"
                assert {type(m) for m in build_module(operation.kind, operation.config).modules()} == {
                    type(m) for m in operation.module.modules()
                }


def test_norms_are_of_the_backbones_own_kind() -> None:
    kinds = {
        name: norm_config(create_backbone(BackboneConfig(name, image_size=(64, 64)), seed=0))
        for name in ("test_resnet", "test_convnext", "test_efficientnet_gn", "swin_tiny_patch4_window7_224")
    }
    assert kinds["test_resnet"]["kind"] == "batch"
    assert kinds["test_convnext"]["kind"] == kinds["swin_tiny_patch4_window7_224"]["kind"] == "layer"
    assert kinds["test_efficientnet_gn"]["kind"] == "group"
    with pytest.raises(UsageError, match="no batch, group or layer norm"):
        norm_config(create_backbone(BackboneConfig("test_efficientnet_evos"), seed=0))


@pytest.mark.numerical
@torch.no_grad()
def test_prefix_tokens_pass_the_pooling_unchanged() -> None:
    align = Align("tokens", 2, {(4, 6): (2, 3)}, nn.Identity(), nn.Identity())
    x = torch.randn(3, 2 + 24, 5)
    out = align(x)
    assert out.shape == (3, 2 + 6, 5)
    assert torch.equal(out[:, :2], x[:, :2])
    grid = x[:, 2:].reshape(3, 4, 6, 5)
    torch.testing.assert_close(out[:, 2], grid[:, :2, :2].mean((1, 2)))
    torch.testing.assert_close(out[:, 7], grid[:, 2:, 4:].mean((1, 2)))


@pytest.mark.numerical
@torch.no_grad()
def test_channels_last_features_are_pooled_over_space() -> None:
    """Axis 1 is height there."""
    align = Align("nhwc", 0, {(4, 2): (2, 1)}, nn.Identity(), nn.Identity())
    x = torch.randn(3, 4, 2, 5)
    torch.testing.assert_close(align(x)[:, 0, 0], x[:, :2].mean((1, 2)))


def test_a_size_that_was_not_planned_is_an_error_with_the_known_ones() -> None:
    align = Align("nchw", 0, {(4, 4): (2, 2)}, nn.Identity(), nn.Identity())
    with pytest.raises(ValueError, match=r"6x6 fits no image size.*4x4"):
        align(torch.zeros(1, 3, 6, 6))


def test_grids_are_measured_for_training_and_evaluation_size() -> None:
    config = BackboneConfig("test_resnet", image_size=(36, 36), evaluation_size=(64, 40))
    grids = feature_grids(create_backbone(config, seed=0))
    assert grids == {
        (36, 36): [(9, 9), (9, 9), (5, 5), (3, 3), (2, 2)],
        (64, 40): [(16, 10), (16, 10), (8, 5), (4, 3), (2, 2)],
    }


def test_two_image_sizes_that_cannot_be_told_apart_are_refused() -> None:
    """One grid before, two after: nothing says which is meant."""
    backbone = create_backbone(BackboneConfig("test_resnet", image_size=(36, 36), evaluation_size=(36, 36)), seed=0)
    aligner = Aligner(backbone)
    aligner.grids = {(36, 36): [(9, 9), (5, 5)], (35, 35): [(9, 9), (4, 4)]}
    with pytest.raises(UsageError, match="Two image sizes of 'test_resnet' have one grid at place 0"):
        aligner.operation(0, 1, seed=0)


def test_an_alignment_comes_back_from_its_json_form() -> None:
    backbone = create_backbone(BackboneConfig("test_resnet", image_size=(36, 36)), seed=0)
    graph = TaskGraph(["image"])
    stem = graph.add(backbone.stem_operation(), graph.input("image"))
    graph.output("t", graph.add(Aligner(backbone).operation(0, 3, seed=0), stem))
    again = TaskGraph.from_json(graph.to_json(), graph.tensors())
    images = {"image": torch.randn(2, 3, 36, 36)}
    assert torch.equal(graph.module().eval()(images)["t"], again.module().eval()(images)["t"])
