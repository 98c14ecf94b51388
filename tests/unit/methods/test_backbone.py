"""Backbones: names, sizes, weights, and the numbers that the specifications print for them."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from datasets.errors import UnknownNameError, UsageError
from methods.backbones.backbone import Backbone, BackboneConfig, create_backbone, group_stages, supported_backbones
from methods.graph.operations import build_module, statistics_names, view_with_own_statistics


def backbone_of(name: str, seed: int = 0, **options: object) -> Backbone:
    return create_backbone(BackboneConfig(name, **options), seed=seed)  # type: ignore[arg-type]


def count(module: nn.Module | None) -> int:
    return 0 if module is None else sum(parameter.numel() for parameter in module.parameters())


# Numbers of the specifications ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "stem", "skips", "total", "units", "segments"),
    [
        (
            "resnet18",
            *(9_536, 173_824, 11_176_512),
            [73_984] * 2 + [221_696, 295_424, 885_760, 1_180_672, 3_540_992, 4_720_640],
            [147_968, 525_568, 2_099_712, 8_393_728],
        ),
        (
            "resnet34",
            *(9_536, 173_824, 21_284_672),
            [73_984] * 3 + [221_696] + [295_424] * 3 + [885_760] + [1_180_672] * 5 + [3_540_992] + [4_720_640] * 2,
            [221_952, 1_116_416, 6_822_400, 13_114_368],
        ),
        (
            "resnet50",
            *(9_536, 2_776_576, 23_508_032),
            [58_112]
            + [70_400] * 2
            + [247_296]
            + [280_064] * 3
            + [986_112]
            + [1_117_184] * 5
            + [3_938_304]
            + [4_462_592] * 2,
            [215_808, 1_219_584, 7_098_368, 14_964_736],
        ),
    ],
)
def test_parameters_of_stem_skips_units_and_segments(
    name: str, stem: int, skips: int, total: int, units: list[int], segments: list[int]
) -> None:
    """Tables of adashare 2.2 and branched 6."""
    backbone = backbone_of(name)
    assert count(backbone.stem_operation().module) == stem
    assert sum(count(block.skip) for block in backbone.blocks) == skips
    assert [count(backbone.execute_operation(i).module) for i in range(len(backbone.blocks))] == units
    assert [sum(count(backbone.blocks[i]) for i in stage) for stage in backbone.stages] == segments
    assert backbone.n_parameters() == total == stem + sum(segments)


def test_tails_count_and_conv_head_of_mobilenetv3_does_not() -> None:
    """timm's num_classes=0 keeps 1.23 M parameters of MobileNetV3-large that nothing uses (measurement 2)."""
    backbone = backbone_of("mobilenetv3_large_100")
    timm_parameters = count(timm.create_model("mobilenetv3_large_100", num_classes=0, device="meta"))
    assert timm_parameters - backbone.n_parameters() == 960 * 1280 + 1280
    assert type(backbone.tail) is nn.Identity
    assert count(backbone_of("efficientnet_b0").tail) == 320 * 1280 + 2 * 1280
    assert count(backbone_of("test_vit", image_size=(32, 32)).tail) == 2 * 64


@pytest.mark.parametrize(
    ("size", "feature"),
    [((321, 321), (41, 41)), ((224, 224), (28, 28)), ((480, 640), (60, 80)), ((256, 512), (32, 64))],
)
def test_maps_at_output_stride_8(size: tuple[int, int], feature: tuple[int, int]) -> None:
    """timm's maps, without ceil_mode; dilation moves no stage border and changes no parameter (adashare 2.2)."""
    backbone = backbone_of("resnet18", output_stride=8)
    with torch.no_grad():
        y = backbone.module().to("meta").eval()(torch.empty(1, 3, *size, device="meta"))
    assert tuple(y.shape) == (1, 512, *feature)
    assert backbone.stages == [range(0, 2), range(2, 4), range(4, 6), range(6, 8)]
    assert [block.out_shape.reduction for block in backbone.blocks] == [4, 4, 8, 8, 8, 8, 8, 8]
    assert backbone.n_parameters() == 11_176_512


@given(st.lists(st.sampled_from([2, 4, 8, 16, 32]), min_size=2, max_size=30).map(sorted))
def test_stages_are_consecutive_and_hold_one_reduction_each(reductions: list[int]) -> None:
    stages = group_stages(reductions)
    assert [i for stage in stages for i in stage] == list(range(len(reductions)))
    if len(set(reductions)) > 1:
        levels = [{max(reductions[i], 4) for i in stage} for stage in stages]
        assert levels == [{level} for level in sorted({max(reduction, 4) for reduction in reductions})]


@pytest.mark.parametrize(
    ("n", "sizes"), [(12, [3, 3, 3, 3]), (6, [1, 1, 1, 3]), (9, [2, 2, 2, 3]), (4, [1] * 4), (3, [1] * 3), (1, [1])]
)
def test_constant_reduction_gives_four_equal_groups_with_the_remainder_last(n: int, sizes: list[int]) -> None:
    assert [len(stage) for stage in group_stages([16] * n)] == sizes


def test_a_stage_starts_with_its_reducing_block() -> None:
    assert group_stages([2, 2, 4, 4, 8, 16, 16, 32]) == [range(0, 4), range(4, 5), range(5, 7), range(7, 8)]


# Skipping: traps T1 to T4 and T30 of adashare ---------------------------------------------------------------------


@torch.no_grad()
def test_skipping_all_blocks_leaves_the_projections_without_activation() -> None:
    """T2: a ReLU on the skip path, or a dropped projection, is caught here."""
    backbone = backbone_of("resnet18")
    backbone.module().eval()
    s = backbone.stem(torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    for i in range(8):
        skip = backbone.skip_operation(i)
        assert skip is not None
        s = skip.module(s)
    assert s.shape == (2, 512, 2, 2)
    assert float(s.min()) < 0


class _Value(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        return torch.full_like(x, self.value)


@pytest.mark.parametrize(("s", "branch", "expected"), [(2.0, -5.0, 0.0), (2.0, 1.0, 3.0), (-4.0, 1.0, 0.0)])
def test_execute_is_the_activation_of_the_sum(s: float, branch: float, expected: float) -> None:
    """Execute is ReLU(S + F), so that p execute + (1 - p) s gives T5's 1.5 and 2.25 at p = .25."""
    block = backbone_of("test_resnet").blocks[0]
    block.module.bn2 = _Value(branch)
    x = torch.zeros(1, 32, 4, 4)
    assert torch.equal(block.execute(x, torch.full_like(x, s)), torch.full_like(x, expected))


@pytest.mark.parametrize(("zero", "n_dead"), [(True, 2), (False, 0)])
def test_zero_initialised_last_norms_make_execute_equal_skip(zero: bool, n_dead: int) -> None:
    """T4: with timm's default units 1 and 2 cannot be told from their skips, so no gradient reaches their logits."""
    backbone = backbone_of("resnet18", zero_init_last=zero)
    x = backbone.stem(torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    dead = 0
    for block in backbone.blocks[:2]:
        s = block.skip(x)  # type: ignore[misc]
        y = block.execute(x, s)
        dead += torch.equal(y, s)
        x = y
    assert dead == n_dead
    weights = [block.module.get_parameter("bn2.weight") for block in backbone.blocks]
    assert all(bool((weight == 0).all()) == zero for weight in weights)


@pytest.mark.parametrize("name", ["test_convnext", "swin_tiny_patch4_window7_224"])
@torch.no_grad()
def test_a_skipped_stage_entry_still_downsamples(name: str) -> None:
    """T30: the downsampling is the skip path of the stage's first block; the inner part alone is executed."""
    backbone = backbone_of(name, image_size=(64, 64))
    backbone.module().eval()
    x = backbone.stem(torch.randn(1, 3, 64, 64))
    for i, block in enumerate(backbone.blocks):
        skip = backbone.skip_operation(i)
        assert skip is not None
        x = skip.module(x)
        axis = 1 if backbone.layout == "nchw" else 3
        assert x.shape[axis] == block.out_shape.channels
    assert x.shape[2] == 2


def test_norm_statistics_of_an_execute_operation_can_be_its_own() -> None:
    """Statistics belong to nodes: two views of one operation share weights and keep their own running means."""
    operation = backbone_of("test_resnet").execute_operation(1)
    view = view_with_own_statistics(operation.module)
    names = statistics_names(operation.module)
    assert names
    original, copied = operation.module.state_dict(keep_vars=True), view.state_dict(keep_vars=True)
    assert all((original[key] is copied[key]) == (key not in names) for key in original)


# Configuration and names ------------------------------------------------------------------------------------------


def test_a_configuration_comes_back_from_json() -> None:
    config = BackboneConfig("test_vit", in_chans=1, image_size=(32, 48), evaluation_size=(64, 96), drop_path=0.1)
    assert BackboneConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    assert BackboneConfig.from_json({"name": "resnet18"}) == BackboneConfig("resnet18")
    with pytest.raises(UnknownNameError, match=r"'outputstride'.*Nearest: 'output_stride'"):
        BackboneConfig.from_json({"name": "resnet18", "outputstride": 8})
    with pytest.raises(UsageError, match="needs a name"):
        BackboneConfig.from_json({"in_chans": 3})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_chans": 0}, "in_chans of resnet18 is 0"),
        ({"output_stride": 4}, "output_stride of resnet18 is 4; expected 8, 16 or 32"),
        ({"drop_path": 1.0}, "drop_path of resnet18 is 1.0"),
        ({"dropout": -0.1}, "dropout of resnet18 is -0.1"),
        ({"image_size": (224,)}, "image_size of resnet18"),
        ({"evaluation_size": (0, 224)}, "evaluation_size of resnet18"),
    ],
)
def test_an_illegal_configuration_says_what_it_expected(options: Mapping[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        BackboneConfig("resnet18", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (BackboneConfig("resnet-18"), "Unknown backbone 'resnet-18'. Nearest: 'resnet18'"),
        (
            BackboneConfig("swinv2_cr_tiny_224"),
            "known to timm, but not supported: no adapter.*Nearest supported: '",
        ),
        (
            BackboneConfig("regnetv_040"),
            "normalise what they would skip. Nearest supported: 'regnetz_040', 'regnety_040'",
        ),
        (BackboneConfig("mobilenetv4_hybrid_medium"), "not supported: its attention blocks"),
        (BackboneConfig("efficientnet_cc_b0_4e"), "not supported: its convolutions"),
        (BackboneConfig("tv_resnet50"), "'tv_resnet50' is a name that timm has given up; it is 'resnet50.tv_in1k' now"),
        (BackboneConfig("resnet50.a1_in1"), "pretrained tag of resnet50 'a1_in1'. Nearest: 'a1_in1k'"),
        (BackboneConfig("mobilenetv3_small_100", output_stride=8), "no output_stride 8; its family supports 32"),
        (BackboneConfig("test_vit", image_size=(32, 32), output_stride=16), "no output_stride 16"),
        (BackboneConfig("efficientnet_b0", zero_init_last=True), "no norm of 'efficientnet_b0' can start at zero"),
        (BackboneConfig("regnetz_005", zero_init_last=True), "never sets it for 'regnetz_005'"),
        (BackboneConfig("test_vit"), "needs image_size"),
        (BackboneConfig("test_vit", image_size=(40, 64)), "40x64 is not a multiple of the 16x16 .*: 32x64 and 48x64"),
        (BackboneConfig("test_vit", image_size=(32, 32), evaluation_size=(8, 32)), "8x32 is not a multiple.*16x32"),
        (BackboneConfig("swin_tiny_patch4_window7_224", image_size=(30, 32)), "28x32 and 32x32"),
    ],
)
def test_what_cannot_be_built_is_one_line_with_the_nearest_choice(config: BackboneConfig, message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        create_backbone(config, seed=0)
    assert "\n" not in str(error.value)


def test_norms_that_end_a_branch_start_at_one_unless_asked_otherwise() -> None:
    """Branches that start at zero give a policy or a gate no gradient (adashare T4)."""
    for zero in (False, True):
        config = BackboneConfig("swinv2_tiny_window8_256", image_size=(32, 32), zero_init_last=zero)
        block = create_backbone(config, seed=0).blocks[0].module
        for norm in (block.norm1, block.norm2):
            assert torch.equal(norm.weight, torch.full_like(norm.weight, 0.0 if zero else 1.0))


def test_a_name_may_carry_a_pretrained_tag() -> None:
    tagged = backbone_of("resnet10t.c3_in1k").module().state_dict()
    plain = backbone_of("resnet10t").module().state_dict()
    assert all(torch.equal(tagged[key], plain[key]) for key in plain)
    assert "resnet10t" in supported_backbones()


def test_what_a_method_can_read_off_a_backbone() -> None:
    cnn = backbone_of("resnet18")
    assert (cnn.layout, cnn.prefix_tokens, cnn.num_features, cnn.grid, cnn.input_size) == (
        "nchw",
        0,
        512,
        None,
        (224, 224),
    )
    assert cnn.mean == (0.485, 0.456, 0.406)
    assert cnn.std == (0.229, 0.224, 0.225)
    vit = backbone_of("deit_tiny_distilled_patch16_224", image_size=(32, 48))
    assert (vit.layout, vit.prefix_tokens, vit.grid, vit.pool) == ("tokens", 2, (2, 3), "prefix_mean")
    assert vit.blocks[0].in_shape == vit.blocks[0].out_shape == (192, 16)
    assert backbone_of("test_vit2", image_size=(32, 32)).pool == "mean"


def test_gray_images() -> None:
    backbone = backbone_of("test_resnet", in_chans=1)
    assert backbone.forward_features(torch.randn(1, 1, 64, 64)).shape == (1, 96, 2, 2)


def test_nothing_is_dropped_unless_asked_for() -> None:
    """Swin's own default is drop_path 0.1."""
    for name in ("swin_tiny_patch4_window7_224", "test_vit", "efficientnet_b0", "resnet18"):
        names = {type(module).__name__ for module in backbone_of(name, image_size=(32, 32)).module().modules()}
        assert "DropPath" not in names
    asked = backbone_of("test_resnet", drop_path=0.2).module()
    assert "DropPath" in {type(module).__name__ for module in asked.modules()}


@torch.no_grad()
def test_other_evaluation_sizes_are_taken_only_where_asked_for() -> None:
    """Measurement 2: built with dynamic_img_size, and equal to a fixed-size network at the training size."""
    fixed = backbone_of("test_vit", image_size=(32, 32))
    both = backbone_of("test_vit", image_size=(32, 32), evaluation_size=(32, 64))
    for backbone in (fixed, both):
        backbone.module().eval()
    small, wide = torch.randn(1, 3, 32, 32), torch.randn(1, 3, 32, 64)
    assert torch.equal(fixed.forward_features(small), both.forward_features(small))
    assert both.forward_features(wide).shape == (1, both.prefix_tokens + 8, 64)
    assert both.grids == ((2, 2), (2, 4))
    with pytest.raises(AssertionError, match="Input width"):
        fixed.forward_features(wide)


def test_an_operation_of_an_unknown_backbone_says_so() -> None:
    with pytest.raises(UnknownNameError, match="Unknown backbone"):
        build_module("backbone", {"backbone": {"name": "resnet_18"}, "part": "stem"})


@pytest.mark.parametrize(("name", "conv"), [("resnet18", "conv1"), ("resnet34", "conv1"), ("resnet50", "conv2")])
def test_deeplab_s_dilation_is_the_stage_s_own(name: str, conv: str) -> None:
    """AdaShare 2.2: dilations 1, 1, 2, 4 of all 3x3 convolutions; timm's first ones have 1, 1, 1, 2. Sizes agree."""
    found = {}
    for dilation in ("timm", "deeplab"):
        config = BackboneConfig(name, image_size=(64, 64), output_stride=8, dilation=dilation)
        backbone = create_backbone(config, seed=0)
        first = [getattr(backbone.blocks[stage[0]].module, conv).dilation[0] for stage in backbone.stages]
        rest = [getattr(backbone.blocks[stage[-1]].module, conv).dilation[0] for stage in backbone.stages]
        assert rest == [1, 1, 2, 4]
        assert first == ([1, 1, 1, 2] if dilation == "timm" else [1, 1, 2, 4])
        found[dilation] = backbone
        x = torch.randn(1, 3, 65, 97, generator=torch.Generator().manual_seed(0))
        assert backbone.forward_features(x).shape[-2:] == (9, 13)
        last_stage = backbone.stages[-1][0]
        operation = backbone.block_operation(last_stage)
        again = build_module(operation.kind, operation.config)
        assert getattr(again, conv).dilation == getattr(operation.module, conv).dilation
    assert found["timm"].n_parameters() == found["deeplab"].n_parameters()
    assert "dilation" not in found["timm"].config.to_json()
    assert BackboneConfig.from_json(found["deeplab"].config.to_json()) == found["deeplab"].config


def test_dilation_is_refused_where_there_is_none_to_choose() -> None:
    with pytest.raises(UsageError, match="no stage that it could change"):
        create_backbone(BackboneConfig("test_vit", image_size=(32, 32), dilation="deeplab"), seed=0)
    with pytest.raises(UsageError, match=r"'deplab'.*deeplab"):
        BackboneConfig("resnet18", dilation="deplab")  # type: ignore[arg-type]


def test_a_rebuilt_part_has_the_default_dtype_of_the_moment(float64: None) -> None:
    """What is built once for all is built for one dtype: another default is another skeleton."""
    operation = create_backbone(BackboneConfig("test_resnet"), seed=0).stem_operation()
    for dtype in (torch.float32, torch.float64):
        torch.set_default_dtype(dtype)
        rebuilt = build_module(operation.kind, operation.config)
        assert {parameter.dtype for parameter in rebuilt.parameters()} == {dtype}


@pytest.mark.parametrize(("name", "size"), [("test_vit", (36, 48)), ("swin_tiny_patch4_window7_224", (24, 24))])
def test_patches_can_be_made_for_small_images(name: str, size: tuple[int, int]) -> None:
    """The grid, its reduction and the multiples that an image must have follow the patch; so does a stored graph."""
    config = BackboneConfig(name, image_size=size, patch=6)
    backbone = create_backbone(config, seed=0)
    assert backbone.blocks[0].in_shape.reduction == 6
    n_tokens = (size[0] // 6) * (size[1] // 6)
    first = backbone.stem(torch.zeros(1, 3, *size))
    assert first[..., 0].numel() == n_tokens + backbone.prefix_tokens
    assert BackboneConfig.from_json(config.to_json()) == config
    assert "patch" not in BackboneConfig(name, image_size=size).to_json()
    operation = backbone.block_operation(0)
    assert build_module(operation.kind, operation.config).state_dict().keys() == operation.module.state_dict().keys()
    with pytest.raises(UsageError, match=r"Image size 32x32 is not a multiple of the 6x6 patches"):
        create_backbone(BackboneConfig(name, image_size=(32, 32), patch=6), seed=0)


def test_patches_are_refused_where_there_are_none() -> None:
    with pytest.raises(UsageError, match=r"patch is 4; 'resnet18' has no patches, which transformers have"):
        create_backbone(BackboneConfig("resnet18", patch=4), seed=0)
    with pytest.raises(UsageError, match="patch of test_vit is 0; expected the side in pixels"):
        BackboneConfig("test_vit", image_size=(32, 32), patch=0)
