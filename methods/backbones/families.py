"""The families of timm models that the suite can cut. A further family is a further class here.

Parts that timm calls in forward_head do not belong to the backbone: classifiers, the conv_head that MobileNetV3 runs
after pooling, and the attention pooling of SigLIP-like transformers are dropped (measurement 2). Source of the cuts:
timm 1.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, cast

from timm.models import _efficientnet_blocks as mobile
from timm.models import convnext, regnet, resnet, swin_transformer, swin_transformer_v2, vision_transformer
from timm.models.deit import VisionTransformerDistilled
from timm.models.efficientnet import EfficientNet
from timm.models.mobilenetv3 import MobileNetV3
from torch import Tensor, nn

from datasets.errors import UsageError
from methods.backbones.family import BackboneConfig, Cut, Family, Layout, Pool, family
from methods.backbones.forms import Form, Residual, forms_of, streams_of
from methods.backbones.sublayers import (
    Cutter,
    cut_convnext_block,
    cut_post_norm_block,
    cut_swin_block,
    cut_vit_block,
    not_cut,
)


def part(module: nn.Module, name: str) -> nn.Module:
    """The child of that name."""
    return cast(nn.Module, getattr(module, name))


def children(module: nn.Module, *names: str) -> list[nn.Module]:
    """The blocks in the named sequences, in order."""
    return [block for name in names for block in part(module, name).children()]


def sequence(*modules: nn.Module) -> nn.Module:
    """The modules one after another without those that do nothing; an nn.Identity where none is left."""
    kept = [module for module in modules if type(module) is not nn.Identity]
    return nn.Sequential(*kept) if kept else nn.Identity()


@family
class ResNets(Family):
    """ResNet, ResNeXt, SE-, ECA- and wide ResNets with their stem and downsampling variants (timm.models.resnet)."""

    modules: ClassVar[tuple[str, ...]] = ("resnet",)
    model_types: ClassVar[tuple[type[nn.Module], ...]] = (resnet.ResNet,)
    head_keys: ClassVar[tuple[str, ...]] = ("fc.",)
    output_strides: ClassVar[tuple[int, ...]] = (8, 16, 32)
    zero_init: ClassVar[bool] = True
    own_dilation: ClassVar[bool] = True
    forms: ClassVar[Mapping[type[nn.Module], Form]] = {
        resnet.BasicBlock: Residual(
            parts=("conv1", "bn1", "drop_block", "act1", "aa", "conv2", "bn2", "se", "drop_path"),
            activation="act2",
            shortcut="downsample",
            inplace=True,
        ),
        resnet.Bottleneck: Residual(
            parts=(
                *("conv1", "bn1", "act1", "conv2", "bn2", "drop_block", "act2", "aa"),
                *("conv3", "bn3", "se", "drop_path"),
            ),
            activation="act3",
            shortcut="downsample",
            inplace=True,
        ),
    }

    def arguments(self, config: BackboneConfig) -> dict[str, object]:
        """Adds the output stride and the start of each block's last norm."""
        own = {"output_stride": config.output_stride, "zero_init_last": config.zero_init_last}
        return {**super().arguments(config), **own}

    def adapt(self, model: nn.Module, config: BackboneConfig) -> None:
        """`deeplab`: all 3x3 convolutions of a stage dilate alike. Source: models/deeplab_resnet.py of AdaShare."""
        if config.dilation == "timm":
            return
        for block in children(model, "layer1", "layer2", "layer3", "layer4"):
            wide = part(block, "conv1" if isinstance(block, resnet.BasicBlock) else "conv2")
            assert isinstance(wide, nn.Conv2d)
            wide.dilation = wide.padding = (cast(int, block.dilation),) * 2

    def _cut(self, model: nn.Module) -> Cut:
        stem = nn.Sequential(*(part(model, name) for name in ("conv1", "bn1", "act1", "maxpool")))
        blocks = children(model, "layer1", "layer2", "layer3", "layer4")
        return Cut(stem, forms_of(blocks, self.forms), nn.Identity())


MOBILE_FORMS: Mapping[type[nn.Module], Form] = {
    cls: Residual(parts=(*parts, "drop_path"), guard="has_skip")
    for cls, parts in {
        mobile.ConvBnAct: ("conv", "bn1", "aa"),
        mobile.DepthwiseSeparableConv: ("conv_s2d", "bn_s2d", "conv_dw", "bn1", "aa", "se", "conv_pw", "bn2"),
        mobile.InvertedResidual: (
            *("conv_s2d", "bn_s2d", "conv_pw", "bn1", "conv_dw", "bn2", "aa", "se", "conv_pwl", "bn3"),
        ),
        mobile.EdgeResidual: ("conv_exp", "bn1", "aa", "se", "conv_pwl", "bn2"),
        mobile.UniversalInvertedResidual: ("dw_start", "pw_exp", "dw_mid", "se", "pw_proj", "dw_end", "layer_scale"),
    }.items()
}


def mobile_blocks(model: nn.Module) -> list[tuple[nn.Module, Form]]:
    """Blocks of all stages of an EfficientNet or MobileNetV3 with their forms."""
    return forms_of([block for stage in children(model, "blocks") for block in stage.children()], MOBILE_FORMS)


@family
class EfficientNets(Family):
    """EfficientNet, MobileNetV2 and their relatives (timm.models.efficientnet); conv_head and its norm are the tail."""

    modules: ClassVar[tuple[str, ...]] = ("efficientnet",)
    refused: ClassVar[Mapping[str, str]] = {"*_cc_*": "its convolutions are mixed anew for every image"}
    model_types: ClassVar[tuple[type[nn.Module], ...]] = (EfficientNet,)
    head_keys: ClassVar[tuple[str, ...]] = ("classifier.",)
    output_strides: ClassVar[tuple[int, ...]] = (8, 16, 32)

    def arguments(self, config: BackboneConfig) -> dict[str, object]:
        """Adds the output stride."""
        return {**super().arguments(config), "output_stride": config.output_stride}

    def _cut(self, model: nn.Module) -> Cut:
        stem = nn.Sequential(part(model, "conv_stem"), part(model, "bn1"))
        return Cut(stem, mobile_blocks(model), sequence(part(model, "conv_head"), part(model, "bn2")))


@family
class MobileNetV3s(Family):
    """MobileNetV3 and relatives (timm.models.mobilenetv3).

    Their conv_head runs after pooling and is dropped; no tail.
    """

    modules: ClassVar[tuple[str, ...]] = ("mobilenetv3",)
    refused: ClassVar[Mapping[str, str]] = {"mobilenetv4_hybrid*": "its attention blocks change what they would skip"}
    model_types: ClassVar[tuple[type[nn.Module], ...]] = (MobileNetV3,)
    head_keys: ClassVar[tuple[str, ...]] = ("conv_head.", "norm_head.", "classifier.")

    def _cut(self, model: nn.Module) -> Cut:
        stem = nn.Sequential(part(model, "conv_stem"), part(model, "bn1"))
        return Cut(stem, mobile_blocks(model), nn.Identity())


class TokenStem(nn.Module):
    """Patches, prefix tokens and position embedding: a vision transformer whose blocks, norm and head were taken out.

    What is left of timm's own forward_features is the stem, so nothing of it is repeated here.
    """

    def __init__(self, shell: nn.Module) -> None:
        super().__init__()
        self.shell = shell

    def forward(self, x: Tensor) -> Tensor:
        """x: float [B, C, H, W]; returns tokens float [B, prefix + grid, D]."""
        forward_features = cast("nn.Module", self.shell.forward_features)
        return cast(Tensor, forward_features(x))


def _patch(config: BackboneConfig) -> dict[str, object]:
    return {} if config.patch is None else {"patch_size": config.patch}


@family
class VisionTransformers(Family):
    """ViT and DeiT (timm.models.vision_transformer, timm.models.deit); the final norm is the tail.

    Blocks only add to a residual stream: the skip path is the identity and execute(x, s) is the block run on s.
    """

    modules: ClassVar[tuple[str, ...]] = ("vision_transformer", "deit")
    patterns: ClassVar[tuple[str, ...]] = ("vit_*", "deit*", "test_vit*")
    model_types: ClassVar[tuple[type[nn.Module], ...]] = (
        vision_transformer.VisionTransformer,
        VisionTransformerDistilled,
    )
    head_keys: ClassVar[tuple[str, ...]] = ("head.", "head_dist.", "attn_pool.")
    layout: ClassVar[Layout] = "tokens"
    fixed_size: ClassVar[bool] = True
    own_patch: ClassVar[bool] = True
    block_types: ClassVar[Mapping[type[nn.Module], Cutter]] = {
        vision_transformer.Block: cut_vit_block,
        vision_transformer.ResPostBlock: cut_post_norm_block,
        vision_transformer.ParallelScalingBlock: not_cut,
        vision_transformer.DiffParallelScalingBlock: not_cut,
        vision_transformer.ParallelThingsBlock: not_cut,
    }

    def arguments(self, config: BackboneConfig) -> dict[str, object]:
        """Adds the training size, and takes other sizes where evaluation needs it (measurement 2)."""
        own = {"img_size": config.image_size, "dynamic_img_size": len(config.sizes) > 1, **_patch(config)}
        return {**super().arguments(config), **own}

    def _cut(self, model: nn.Module) -> Cut:
        blocks = streams_of([(None, children(model, "blocks"))], self.block_types)
        tail, pool_norm = part(model, "norm"), part(model, "fc_norm")
        prefix_tokens = cast(int, model.num_prefix_tokens)
        patch = cast("tuple[int, int]", part(model, "patch_embed").patch_size)
        pool = self._pool(model)
        model.blocks = nn.Sequential()
        model.norm, model.fc_norm, model.head = nn.Identity(), nn.Identity(), nn.Identity()
        setattr(model, "attn_pool", None)  # noqa: B010  (an assignment would read as one of the wrong type)
        if isinstance(model, VisionTransformerDistilled):
            model.head_dist = nn.Identity()
        norm = None if type(pool_norm) is nn.Identity else pool_norm
        return Cut(TokenStem(model), blocks, tail, prefix_tokens, patch, pool, norm)

    @staticmethod
    def _pool(model: nn.Module) -> Pool:
        """The model's own pooling; attention pooling, which is dropped, becomes the class token where there is one."""
        if isinstance(model, VisionTransformerDistilled):
            return "prefix_mean"
        own = cast(str, model.global_pool)
        if own not in ("token", "map", "avg"):
            raise UsageError(f"A transformer that pools by {own!r} cannot be cut; known: token, map, avg.")
        return "mean" if own == "avg" or not bool(model.has_class_token) else "class_token"


@family
class RegNets(Family):
    """RegNetX, RegNetY and RegNetZ (timm.models.regnet); the tail is final_conv, or the activation in its place."""

    modules: ClassVar[tuple[str, ...]] = ("regnet",)
    refused: ClassVar[Mapping[str, str]] = {"regnetv_*": "its blocks normalise what they would skip"}
    model_types: ClassVar[tuple[type[nn.Module], ...]] = (regnet.RegNet,)
    head_keys: ClassVar[tuple[str, ...]] = ("head.",)
    output_strides: ClassVar[tuple[int, ...]] = (8, 16, 32)
    zero_init: ClassVar[bool] = True
    forms: ClassVar[Mapping[type[nn.Module], Form]] = {
        regnet.Bottleneck: Residual(
            parts=("conv1", "conv2", "se", "conv3", "drop_path"),
            activation="act3",
            shortcut="downsample",
            guard="downsample",
        )
    }

    def check(self, config: BackboneConfig) -> None:
        """RegNetZ never starts its last norms at zero: timm fixes the argument."""
        super().check(config)
        if config.zero_init_last and self._is_z(config):
            raise UsageError(f"zero_init_last is set, but timm never sets it for {config.name!r}; leave it off.")

    def arguments(self, config: BackboneConfig) -> dict[str, object]:
        """Adds the output stride and the start of each block's last norm."""
        arguments = {**super().arguments(config), "output_stride": config.output_stride}
        return arguments if self._is_z(config) else {**arguments, "zero_init_last": config.zero_init_last}

    @staticmethod
    def _is_z(config: BackboneConfig) -> bool:
        return config.name.startswith("regnetz_")

    def _cut(self, model: nn.Module) -> Cut:
        blocks = forms_of(children(model, "s1", "s2", "s3", "s4"), self.forms)
        return Cut(part(model, "stem"), blocks, part(model, "final_conv"))


@family
class ConvNeXts(Family):
    """ConvNeXt and ConvNeXt V2 (timm.models.convnext); norm_pre is the tail, a norm after pooling belongs to heads."""

    modules: ClassVar[tuple[str, ...]] = ("convnext",)
    model_types: ClassVar[tuple[type[nn.Module], ...]] = (convnext.ConvNeXt,)
    head_keys: ClassVar[tuple[str, ...]] = ("head.fc.", "head.pre_logits.")
    output_strides: ClassVar[tuple[int, ...]] = (8, 16, 32)

    def arguments(self, config: BackboneConfig) -> dict[str, object]:
        """Adds the output stride."""
        return {**super().arguments(config), "output_stride": config.output_stride}

    def _cut(self, model: nn.Module) -> Cut:
        stages = [(part(stage, "downsample"), children(stage, "blocks")) for stage in children(model, "stages")]
        blocks = streams_of(stages, {convnext.ConvNeXtBlock: cut_convnext_block})
        norm = getattr(part(model, "head"), "norm", None)
        return Cut(part(model, "stem"), blocks, part(model, "norm_pre"), pool_norm=norm)


@family
class SwinTransformers(Family):
    """Swin and its searched variants (timm.models.swin_transformer), features NHWC; the final norm is the tail.

    Windows follow the image size: small images shrink and unshift them.
    """

    modules: ClassVar[tuple[str, ...]] = ("swin_transformer",)
    model_types: ClassVar[tuple[type[nn.Module], ...]] = (swin_transformer.SwinTransformer,)
    head_keys: ClassVar[tuple[str, ...]] = ("head.",)
    layout: ClassVar[Layout] = "nhwc"
    fixed_size: ClassVar[bool] = True
    own_patch: ClassVar[bool] = True
    block_type: ClassVar[type[nn.Module]] = swin_transformer.SwinTransformerBlock
    position_bias: ClassVar[tuple[str, ...]] = ("relative_position_bias_table",)

    def arguments(self, config: BackboneConfig) -> dict[str, object]:
        """Adds the training size, and takes other sizes where evaluation needs it (measurement 2)."""
        own = {"img_size": config.image_size, "strict_img_size": len(config.sizes) == 1, **_patch(config)}
        return {**super().arguments(config), **own}

    def _cut(self, model: nn.Module) -> Cut:
        stages = [(part(stage, "downsample"), children(stage, "blocks")) for stage in children(model, "layers")]
        blocks = streams_of(stages, {self.block_type: cut_swin_block})
        patch = cast("tuple[int, int]", part(model, "patch_embed").patch_size)
        return Cut(part(model, "patch_embed"), blocks, part(model, "norm"), patch=patch)


@family
class SwinTransformersV2(SwinTransformers):
    """Swin V2 (timm.models.swin_transformer_v2): its branches end in norms, which timm starts at zero."""

    modules: ClassVar[tuple[str, ...]] = ("swin_transformer_v2",)
    model_types: ClassVar[tuple[type[nn.Module], ...]] = (swin_transformer_v2.SwinTransformerV2,)
    block_type: ClassVar[type[nn.Module]] = swin_transformer_v2.SwinTransformerV2Block
    position_bias: ClassVar[tuple[str, ...]] = ("cpb_mlp",)
    zero_init: ClassVar[bool] = True

    def initialise(self, model: nn.Module, config: BackboneConfig) -> None:
        """timm has no switch for the start of these norms."""
        if not config.zero_init_last:
            for block in model.modules():
                if isinstance(block, self.block_type):
                    nn.init.ones_(cast(nn.LayerNorm, block.norm1).weight)
                    nn.init.ones_(cast(nn.LayerNorm, block.norm2).weight)
