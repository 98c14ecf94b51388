"""Every family of backbones: what a method may rely on, whatever the name. Compared with timm, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

import methods.backbones.backbone
from datasets.errors import UsageError
from methods.backbones.backbone import Backbone, BackboneConfig, create_backbone, supported_backbones
from methods.backbones.family import find_family
from methods.graph.operations import Operation, build_module

SIZES = {  # (height, width); the others take any size
    "test_vit": (32, 48),
    "test_vit2": (32, 32),
    "test_vit3": (32, 32),
    "vit_tiny_patch16_224": (48, 32),
    "vit_small_patch14_reg4_dinov2": (28, 28),
    "deit_tiny_patch16_224": (32, 32),
    "deit_tiny_distilled_patch16_224": (32, 32),
    "swin_tiny_patch4_window7_224": (64, 96),
    "swinv2_tiny_window8_256": (64, 96),
}
UNITS = {  # name: (blocks that can be skipped, blocks); adashare 2.2
    "test_resnet": (4, 4),
    "resnet10t": (4, 4),
    "resnet18": (8, 8),
    "resnet50d": (16, 16),
    "resnext50_32x4d": (16, 16),
    "seresnet18": (8, 8),
    "resnetblur18": (8, 8),
    "wide_resnet50_2": (16, 16),
    "mobilenetv2_100": (10, 17),
    "mobilenetv3_small_100": (6, 12),
    "mobilenetv3_large_100": (10, 16),
    "mobilenetv4_conv_small": (10, 17),
    "efficientnet_b0": (9, 16),
    "tf_efficientnet_lite0": (9, 16),
    "tf_efficientnetv2_b0": (15, 21),
    "test_efficientnet": (0, 5),
    "regnetx_002": (13, 13),
    "regnetz_005": (17, 21),
    "test_convnext": (9, 9),
    "convnext_tiny_hnf": (18, 18),
    "test_vit": (6, 6),
    "test_vit2": (8, 8),
    "test_vit3": (9, 9),
    "vit_tiny_patch16_224": (12, 12),
    "vit_small_patch14_reg4_dinov2": (12, 12),
    "deit_tiny_patch16_224": (12, 12),
    "deit_tiny_distilled_patch16_224": (12, 12),
    "swin_tiny_patch4_window7_224": (12, 12),
    "swinv2_tiny_window8_256": (12, 12),
}
SMALL = ("test_resnet", "mobilenetv2_100", "regnetx_002", "test_convnext", "test_vit")


def config_of(name: str, **changes: object) -> BackboneConfig:
    return BackboneConfig(name, image_size=SIZES.get(name), **changes)  # type: ignore[arg-type]


def images_for(name: str, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, *SIZES.get(name, (64, 64)), generator=torch.Generator().manual_seed(7))


def timm_model(name: str) -> nn.Module:
    """timm's own model with weights and norm statistics that leave nothing at its neutral start value."""
    size = {"img_size": SIZES[name]} if name in SIZES else {}
    model = timm.create_model(name, **size)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                noise = torch.rand(tensor.shape, generator=generator)
                tensor.mul_(0.8 + 0.4 * noise).add_(0.02 * (noise - 0.5))
    return model.eval()


def loaded(name: str, model: nn.Module, folder: Path) -> Backbone:
    file = folder / "weights.safetensors"
    safetensors.torch.save_file({key: value.contiguous() for key, value in model.state_dict().items()}, file)
    backbone = create_backbone(config_of(name), weights=file, seed=0)
    file.unlink()
    backbone.module().eval()
    return backbone


def assert_shape(feature: Tensor, backbone: Backbone, channels: int, reduction: int, size: tuple[int, int]) -> None:
    if backbone.layout == "tokens":
        grid = size[0] // reduction, size[1] // reduction
        assert feature.shape[1:] == (backbone.prefix_tokens + grid[0] * grid[1], channels)
    elif backbone.layout == "nhwc":
        assert feature.shape[1:] == (size[0] // reduction, size[1] // reduction, channels)
    else:
        assert feature.shape[1:] == (channels, size[0] // reduction, size[1] // reduction)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.numerical)
        if name in SMALL
        # 66 million parameters; resnet50d and resnext50 are cut and executed by the same code
        else pytest.param(name, marks=pytest.mark.slow if name.startswith("wide_") else ())
        for name in UNITS
    ],
)
@torch.no_grad()
def test_parts_in_order_equal_timm_and_each_block_equals_execute_of_its_skip(name: str, tmp_path: Path) -> None:
    model = timm_model(name)
    backbone = loaded(name, model, tmp_path)
    images = images_for(name)
    size = (images.shape[2], images.shape[3])
    expected = model.forward_features(images)
    assert torch.isfinite(expected).all()

    x = backbone.stem(images)
    assert_shape(x, backbone, *backbone.blocks[0].in_shape, size)
    n_units = 0
    for i, block in enumerate(backbone.blocks):
        output = block(x)
        if block.skip is None:
            with pytest.raises(ValueError, match="no skip"):
                block.execute(x, x)
        else:
            n_units += 1
            before, s = x.clone(), block.skip(x)
            s_before = s.clone()
            assert torch.equal(block.execute(x, s), output)
            assert torch.equal(backbone.execute_operation(i).module(x, s), output)
            assert torch.equal(x, before)
            assert torch.equal(s, s_before)
        assert_shape(output, backbone, *block.out_shape, size)
        assert (block.layout, block.prefix_tokens) == (backbone.layout, backbone.prefix_tokens)
        x = output
    features = backbone.tail(x)
    assert torch.equal(features, expected)
    assert torch.equal(backbone.forward_features(images), expected)
    assert torch.equal(backbone.module()(images), expected)
    channel_axis = 1 if backbone.layout == "nchw" else -1
    assert features.shape[channel_axis] == backbone.num_features
    assert (n_units, len(backbone.blocks)) == UNITS[name]
    assert [i for stage in backbone.stages for i in stage] == list(range(len(backbone.blocks)))
    assert len(backbone.stages) == 4


def statistics(module: nn.Module) -> list[Tensor]:
    return [buffer.clone() for buffer in module.buffers()]


@pytest.mark.numerical
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", SMALL)
def test_training_pass_of_a_block_equals_execute_of_its_skip(name: str, precision: str) -> None:
    """Outputs, gradients, norm statistics and random stream: a search must not train another network than timm's."""
    backbone = create_backbone(config_of(name, drop_path=0.5), seed=1)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        x = backbone.stem(images_for(name, batch=4)).detach()
        for block in backbone.blocks[:6]:
            if block.skip is not None:
                plain, split = block.clone(), block.clone()
                inputs = [x.clone().requires_grad_() for _ in range(2)]
                torch.manual_seed(5)
                y = plain(inputs[0])
                torch.manual_seed(5)
                z = split.execute(inputs[1], split.skip(inputs[1]))
                assert y.dtype == z.dtype
                assert torch.equal(y, z)
                for output in (y, z):
                    output.float().square().sum().backward()
                assert torch.equal(inputs[0].grad, inputs[1].grad)
                for a, b in zip(statistics(plain), statistics(split), strict=True):
                    assert torch.equal(a, b)
            x = block(x).detach()


def operations_of(backbone: Backbone, images: Tensor) -> list[tuple[Operation, tuple[Tensor, ...]]]:
    """The first operation of each part, with inputs that occur in a forward pass."""
    x = backbone.stem(images)
    found = [(backbone.stem_operation(), (images,))]
    parts: set[str] = set()
    for i, block in enumerate(backbone.blocks):
        candidates = {"block": (backbone.block_operation(i), (x,))}
        skip = backbone.skip_operation(i)
        assert (skip is None) == (block.skip is None)
        if skip is None:
            with pytest.raises(UsageError, match=f"Block {i} of .* cannot be skipped"):
                backbone.execute_operation(i)
        else:
            candidates["execute"] = (backbone.execute_operation(i), (x, skip.module(x)))
            candidates["skip" if any(True for _ in skip.module.parameters()) else "identity"] = (skip, (x,))
        found += [candidates[part] for part in candidates if part not in parts]
        parts |= set(candidates)
        x = block(x)
    return [*found, (backbone.tail_operation(), (x,))]


@pytest.mark.parametrize("name", [*SMALL, "resnetblur18", "test_vit2", "deit_tiny_distilled_patch16_224"])
@torch.no_grad()
def test_operations_share_the_parameters_and_come_back_from_json(name: str) -> None:
    backbone = create_backbone(config_of(name), seed=2)
    backbone.module().eval()
    owned = {id(parameter) for parameter in backbone.module().parameters()}
    state = torch.get_rng_state()
    for operation, inputs in operations_of(backbone, images_for(name)):
        assert operation.origin == "backbone"
        assert {id(parameter) for parameter in operation.module.parameters()} <= owned
        fresh = build_module(operation.kind, json.loads(json.dumps(operation.config)))
        assert all(bool(parameter.isnan().all()) for parameter in fresh.parameters()), (
            "unloaded weights look like weights"
        )
        fresh.load_state_dict(operation.module.state_dict())
        assert torch.equal(fresh.eval()(*inputs), operation.module(*inputs))
        assert not {id(parameter) for parameter in fresh.parameters()} & owned
    assert torch.equal(state, torch.get_rng_state()), "rebuilding an operation moved the global random state"


@torch.no_grad()
def test_operations_are_equal_exactly_where_weights_and_part_are() -> None:
    backbone = create_backbone(config_of("test_resnet"), seed=2)
    assert backbone.block_operation(1).identity() == backbone.block_operation(1).identity()
    assert backbone.block_operation(1).identity() != backbone.clone().block_operation(1).identity()
    identities = {backbone.skip_operation(0).identity(), backbone.tail_operation().identity()}
    assert len(identities) == 1, "identities are equal whatever they stand for"
    assert backbone.execute_operation(1).identity() != backbone.block_operation(1).identity()


@pytest.mark.parametrize("name", SMALL)
def test_execute_and_skip_split_the_parameters_of_a_block(name: str) -> None:
    backbone = create_backbone(config_of(name), seed=2)
    for i, block in enumerate(backbone.blocks):
        skip = backbone.skip_operation(i)
        if skip is not None:
            branch = {id(parameter) for parameter in backbone.execute_operation(i).module.parameters()}
            shortcut = {id(parameter) for parameter in skip.module.parameters()}
            assert not branch & shortcut
            assert branch | shortcut == {id(parameter) for parameter in block.parameters()}


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_a_copy_has_equal_bits_and_its_own_tensors(name: str) -> None:
    backbone = create_backbone(config_of(name), seed=3)
    for copy, original in (
        (backbone.clone().module(), backbone.module()),
        (backbone.blocks[0].clone(), backbone.blocks[0]),
    ):
        pairs = list(zip(copy.state_dict().items(), original.state_dict().items(), strict=True))
        for (key, tensor), (original_key, original_tensor) in pairs:
            assert key == original_key
            assert torch.equal(tensor, original_tensor)
        for tensor in copy.parameters():
            tensor.zero_()
        assert any(bool(tensor.any()) for tensor in original.parameters())


@pytest.mark.parametrize("name", SMALL)
def test_equal_seeds_give_equal_bits_and_leave_the_global_stream_alone(name: str) -> None:
    torch.manual_seed(11)
    state = torch.get_rng_state()
    first = create_backbone(config_of(name), seed=4).module().state_dict()
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(12)
    second = create_backbone(config_of(name), seed=4).module().state_dict()
    other = create_backbone(config_of(name), seed=5).module().state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_names_are_listed_without_building_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a model was built")

    monkeypatch.setattr(timm, "create_model", refuse)
    names = supported_backbones()
    assert set(UNITS) <= set(names)
    assert len(names) == len(set(names)) > 400
    assert names == sorted(names)


@pytest.mark.slow
def test_every_listed_name_can_be_cut(request: pytest.FixtureRequest) -> None:
    """On the meta device: shapes and stages of all names, at the family's smallest and native output stride."""
    if "slow" not in request.config.getoption("markexpr"):
        pytest.skip("builds some 450 models on the meta device, for minutes; run with -m slow")
    for name in supported_backbones():
        member = find_family(name)
        native = timm.models.get_pretrained_cfg(name).input_size[1:]
        size = tuple(side // 14 * 14 if "patch14" in name else side for side in native)
        for stride in {member.output_strides[0], member.output_strides[-1]}:
            config = BackboneConfig(name, image_size=size if member.fixed_size else None, output_stride=stride)
            geometry = methods.backbones.backbone._measure(config)
            assert len(geometry.stages) == 4, name
            assert member.layout == "tokens" or geometry.shapes[-1].reduction == stride, name
