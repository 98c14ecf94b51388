"""Heads: what they read, what they start from, and how they come back."""

from __future__ import annotations

import json

import pytest
import timm
import torch
from torch import Tensor, nn

from datasets.contracts import TaskSpec
from datasets.errors import UnknownNameError, UsageError
from methods.backbones.backbone import Backbone, BackboneConfig, create_backbone
from methods.backbones.heads import create_head
from methods.graph.operations import Operation, build_module
from methods.streams import seeded
from tests.numbers import assert_same

DIGIT = TaskSpec("digit", "class", 10, ("accuracy",))
SEMSEG = TaskSpec("semseg", "semantic", 7, ("miou",))
DEPTH = TaskSpec("depth", "depth", 1, ("rmse",))
SIZES = {
    "test_vit": (32, 48),
    "test_vit2": (32, 48),
    "deit_tiny_distilled_patch16_224": (32, 48),
    "test_convnext": None,
}


def backbone_of(name: str, **options: object) -> Backbone:
    options.setdefault("image_size", SIZES.get(name, (32, 48)))
    backbone = create_backbone(BackboneConfig(name, **options), seed=0)  # type: ignore[arg-type]
    backbone.module().eval()
    return backbone


def images(batch: int = 2, height: int = 32, width: int = 48) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "name",
    ["test_resnet", "test_efficientnet", "test_vit", "test_vit2", "deit_tiny_distilled_patch16_224", "test_convnext"],
)
@pytest.mark.usefixtures("float64")
@torch.no_grad()
def test_a_pooled_head_reads_what_timm_s_classifier_reads(name: str) -> None:
    """Class token, mean without prefix, mean of both tokens, mean of a map, and the norm that follows pooling."""
    backbone = backbone_of(name)
    if backbone.pool_norm is not None:
        for parameter in backbone.pool_norm.parameters():
            parameter.copy_(torch.rand(parameter.shape))
    head = create_head(DIGIT, backbone, seed=0).module.eval()
    head.linear = nn.Identity()  # type: ignore[assignment]
    size = {"img_size": (32, 48)} if backbone.layout == "tokens" else {}
    model = timm.create_model(name, num_classes=0, **size).eval()
    if backbone.pool_norm is not None:
        norm = model.head.norm if hasattr(model.head, "norm") else model.fc_norm
        norm.load_state_dict(backbone.pool_norm.state_dict())
    features = backbone.forward_features(images())
    assert_same(head(features), model.forward_head(features, pre_logits=True))


def test_pooling_of_nhwc_maps_is_over_height_and_width() -> None:
    """Axis 1 is height in Swin."""
    backbone = backbone_of("swin_tiny_patch4_window7_224", image_size=(64, 64))
    head = create_head(DIGIT, backbone, seed=0)
    head.module.linear = nn.Identity()  # type: ignore[assignment]
    x = torch.arange(2 * 2 * 3 * 4, dtype=torch.float32).reshape(2, 2, 3, 4)
    expected = torch.stack([x[b].reshape(6, 4).mean(0) for b in range(2)])
    torch.testing.assert_close(head.module(x), expected)


def test_a_pooled_head_s_norm_starts_from_the_backbone_s_weights_and_is_its_own() -> None:
    backbone = backbone_of("test_vit2")
    assert backbone.pool_norm is not None
    with torch.no_grad():
        for parameter in backbone.pool_norm.parameters():
            parameter.fill_(0.25)
    heads = [create_head(DIGIT, backbone, seed=0).module for _ in range(2)]
    for head in heads:
        assert all(bool((parameter == 0.25).all()) for parameter in head.norm.parameters())  # type: ignore[union-attr]
        assert not {id(p) for p in head.parameters()} & {id(p) for p in backbone.pool_norm.parameters()}
    assert sum(p.numel() for p in heads[0].parameters()) == 64 * 10 + 10 + 2 * 64
    assert sum(p.numel() for p in create_head(DIGIT, backbone_of("test_vit"), 0).module.parameters()) == 64 * 10 + 10


@torch.no_grad()
def test_a_dense_head_puts_each_token_in_its_place() -> None:
    """A 2x3 grid behind two prefix tokens; channels first, rows before columns."""
    backbone = backbone_of("deit_tiny_distilled_patch16_224")
    head = create_head(SEMSEG, backbone, seed=0).module
    tokens = torch.zeros(1, 2 + 6, 192)
    tokens[0, 0] = tokens[0, 1] = 9.0  # prefix tokens have no place in the image
    tokens[0, 2 + 4] = 1.0  # row 1, column 1
    y = head(tokens) - head.decoder[-1].bias[:, None, None]  # type: ignore[union-attr, index]
    assert y.shape == (1, 7, 2, 3)
    assert y[0].abs().sum(0).nonzero().tolist() == [[1, 1]]
    with pytest.raises(ValueError, match=r"7 tokens fit no grid of this backbone \(2x3\)"):
        head(torch.zeros(1, 9, 192))


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "size", "feature"),
    [
        ("test_resnet", (64, 96), (2, 3)),
        ("swin_tiny_patch4_window7_224", (64, 96), (2, 3)),
        ("test_vit", (32, 48), (2, 3)),
    ],
)
def test_dense_predictions_have_the_resolution_of_the_features(
    name: str, size: tuple[int, int], feature: tuple[int, int]
) -> None:
    backbone = backbone_of(name, image_size=size)
    features = backbone.forward_features(images(2, *size))
    assert create_head(SEMSEG, backbone, seed=0).module(features).shape == (2, 7, *feature)
    assert create_head(DEPTH, backbone, seed=0).module(features).shape == (2, 1, *feature)
    assert create_head(DIGIT, backbone, seed=0).module(features).shape == (2, 10)


@torch.no_grad()
def test_a_dense_head_knows_the_grid_of_the_evaluation_size() -> None:
    backbone = backbone_of("test_vit", image_size=(32, 32), evaluation_size=(32, 64))
    head = create_head(SEMSEG, backbone, seed=0).module
    assert head(backbone.forward_features(images(1, 32, 32))).shape == (1, 7, 2, 2)
    assert head(backbone.forward_features(images(1, 32, 64))).shape == (1, 7, 2, 4)
    twisted = backbone_of("test_vit", image_size=(32, 64), evaluation_size=(64, 32))
    with pytest.raises(UsageError, match="cannot be told apart by a dense head; choose another evaluation size"):
        create_head(SEMSEG, twisted, seed=0)
    create_head(DIGIT, twisted, seed=0)  # a pooled head does not care


def heads() -> list[tuple[Operation, Backbone]]:
    names = ("test_resnet", "test_vit", "test_vit2", "test_convnext")
    backbones = [backbone_of(name) for name in names]
    return [(create_head(task, backbone, seed=3), backbone) for backbone in backbones for task in (DIGIT, SEMSEG)]


@torch.no_grad()
def test_heads_come_back_from_json() -> None:
    for head, backbone in heads():
        assert head.origin == "heads"
        fresh = build_module(head.kind, json.loads(json.dumps(head.config)))
        fresh.load_state_dict(head.module.state_dict())
        features = backbone.forward_features(images())
        assert torch.equal(fresh(features), head.module(features))


def test_equal_seeds_give_equal_heads_and_tasks_have_their_own_streams() -> None:
    """Initialised from `head-init/<task>`: by the seed and the task's name, whatever else was drawn before."""
    backbone = backbone_of("test_vit2")
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = create_head(DIGIT, backbone, seed=3).module.linear.weight  # type: ignore[union-attr]
    assert torch.equal(state, torch.get_rng_state())
    with seeded(3, "head-init/digit"):
        assert torch.equal(first, nn.Linear(64, 10).weight)  # type: ignore[arg-type]
    other_task = create_head(TaskSpec("other", "class", 10, ("accuracy",)), backbone, seed=3)
    other_seed = create_head(DIGIT, backbone, seed=4)
    for other in (other_task, other_seed):
        assert not torch.equal(first, other.module.linear.weight)  # type: ignore[union-attr, arg-type]


def test_dropout_of_the_recipe_stands_in_front_of_the_last_layer() -> None:
    for task in (DIGIT, SEMSEG):
        plain = create_head(task, backbone_of("test_resnet"), seed=0).module
        dropped = create_head(task, backbone_of("test_resnet", dropout=0.5), seed=0).module
        assert not any(isinstance(module, nn.Dropout) for module in plain.modules())
        assert [module.p for module in dropped.modules() if isinstance(module, nn.Dropout)] == [0.5]


def test_the_kind_says_how_many_channels_a_head_has() -> None:
    backbone = backbone_of("test_resnet")
    edge = TaskSpec("edge", "binary_map", 1, ("best_f1",))
    assert create_head(edge, backbone, seed=0).config["channels"] == 1
    assert create_head(SEMSEG, backbone, seed=0).config["channels"] == 7
    with pytest.raises(UnknownNameError, match="kind 'klass'"):
        create_head(TaskSpec("digit", "klass", 10, ("accuracy",)), backbone, seed=0)
