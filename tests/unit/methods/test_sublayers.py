"""Blocks as residual sub-layers: a method that shares some layers of a block and not others trusts that they are it."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from timm.models.convnext import ConvNeXtBlock
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.swin_transformer_v2 import SwinTransformerV2Block
from timm.models.vision_transformer import Block, ResPostBlock
from torch import Tensor, nn

from methods.backbones.backbone import BackboneConfig, create_backbone
from methods.backbones.sublayers import (
    Cutter,
    cut_convnext_block,
    cut_post_norm_block,
    cut_swin_block,
    cut_vit_block,
    is_dense,
)
from methods.graph.operations import build_module
from tests.numbers import assert_same
from tests.unit.towers import backbone_of

TOKENS, MAP, NCHW = (2, 17, 16), (2, 6, 6, 16), (2, 16, 6, 6)
SWIN = {"dim": 16, "input_resolution": (6, 6), "num_heads": 2, "window_size": 4}  # 6 = 4 + 2: windows are padded
CASES: dict[str, tuple[Any, Cutter, tuple[int, ...]]] = {
    "vit": (lambda: Block(16, 2, init_values=0.5, qk_norm=True, scale_mlp_norm=True), cut_vit_block, TOKENS),
    "post-norm": (lambda: ResPostBlock(16, 2, init_values=0.5), cut_post_norm_block, TOKENS),
    "swin": (lambda: SwinTransformerBlock(**SWIN), cut_swin_block, MAP),
    "swin, shifted": (lambda: SwinTransformerBlock(**SWIN, shift_size=2), cut_swin_block, MAP),
    "swin v2": (lambda: SwinTransformerV2Block(**SWIN, shift_size=2), cut_swin_block, MAP),
    "convnext": (lambda: ConvNeXtBlock(16, ls_init_value=0.5), cut_convnext_block, NCHW),
    "convnext, maps": (lambda: ConvNeXtBlock(16, conv_mlp=True), cut_convnext_block, NCHW),
    "convnext v2": (lambda: ConvNeXtBlock(16, use_grn=True, ls_init_value=None), cut_convnext_block, NCHW),
}


def block_of(make: Any) -> nn.Module:
    torch.manual_seed(0)
    block = make().eval()
    for parameter in block.parameters():  # off the neutral values, so that a part which is left out shows
        parameter.data += 0.3 * torch.randn(parameter.shape)
    return block


def run(sublayers: Any, x: Tensor) -> Tensor:
    for sublayer in sublayers:
        f = x
        for part in sublayer.chain:
            f = part(f)
        x = x + f
    return x


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("case", CASES)
def test_sublayers_are_the_block(case: str) -> None:
    make, cutter, shape = CASES[case]
    with torch.random.fork_rng():
        block = block_of(make)
        x = torch.randn(shape)
    assert_same(run(cutter(block), x), block(x))
    assert not torch.allclose(block(x), x)


@pytest.mark.parametrize("case", CASES)
def test_every_parameter_is_in_one_part_and_dense_layers_are_alone(case: str) -> None:
    """Else an update of a dense layer would miss it, or two nodes would hold one weight."""
    make, cutter, _ = CASES[case]
    with torch.random.fork_rng():
        block = block_of(make)
    parts = [part for sublayer in cutter(block) for part in sublayer.chain]
    held = [id(p) for part in parts for p in part.parameters()]
    assert sorted(held) == sorted(map(id, block.parameters()))
    dense = [part for part in parts if is_dense(part)]
    named = {"proj", "fc1", "fc2"} if "convnext" not in case else {"fc1", "fc2"}
    assert {name.rsplit(".", 1)[-1] for name, m in block.named_modules() if any(m is d for d in dense)} == named
    assert block.state_dict().keys() == block_of(make).state_dict().keys()  # the block itself is as it was


def test_stochastic_depth_is_a_rate_and_no_part() -> None:
    """A mask in a part would be drawn anew for each stream."""
    cut = cut_vit_block(Block(16, 2, drop_path=0.25))
    assert [sublayer.drop for sublayer in cut] == [0.25, 0.25]
    assert not any("DropPath" in type(m).__name__ for s in cut for part in s.chain for m in part.modules())
    assert [s.drop for s in cut_vit_block(Block(16, 2))] == [0.0, 0.0]


def test_what_is_no_chain_stays_whole() -> None:
    """A cut that leaves out a gate, a projection on the skip path or wider heads would be another block."""
    from timm.layers import SwiGLU

    assert cut_vit_block(Block(16, 2, mlp_layer=SwiGLU)) == ()
    assert cut_convnext_block(ConvNeXtBlock(16, 32)) == ()
    assert cut_swin_block(SwinTransformerBlock(**SWIN, head_dim=4)) == ()
    assert backbone_of("test_resnet").sublayer_operations(0) == []


@pytest.mark.numerical
@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "swin_tiny_patch4_window7_224"])
def test_parts_come_back_from_their_configuration(name: str) -> None:
    """A deployed network holds them as nodes."""
    backbone = create_backbone(BackboneConfig(name, image_size=(32, 32)), seed=0)
    index = 2  # of Swin, the first block of a stage
    x = backbone.blocks[1](backbone.blocks[0](backbone.stem(torch.randn(1, 3, 32, 32)))).detach()
    skip = backbone.skip_operation(index)
    assert skip is not None
    x = skip.module(x)
    for chain in backbone.sublayer_operations(index):
        f = x
        for operation in chain[: 2 if name.startswith("swin") else None]:  # each builds a whole Swin
            again = build_module(operation.kind, json.loads(json.dumps(operation.config)))
            again.load_state_dict(operation.module.state_dict())
            assert torch.equal(again.eval()(f), operation.module.eval()(f))
            f = operation.module(f)
        if name.startswith("swin"):
            break
        x = x + f
