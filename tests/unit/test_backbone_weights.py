"""Initial weights of a backbone: everything of a file is used, or one line says what does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from datasets.errors import UsageError
from methods.backbone import BackboneConfig, create_backbone


def state_of(name: str, **options: object) -> dict[str, Tensor]:
    torch.manual_seed(99)
    return timm.create_model(name, **options).state_dict()


@pytest.mark.parametrize("form", ["safetensors", "torch", "checkpoint"])
def test_weights_come_from_a_file_with_its_classifier_dropped(form: str, tmp_path: Path) -> None:
    state = state_of("test_resnet")
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    if form == "safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state if form == "torch" else {"epoch": 3, "state_dict": state}, path)
    backbone = create_backbone(BackboneConfig("test_resnet"), weights=path, seed=0)
    assert torch.equal(backbone.stem[0][0].weight, state["conv1.0.weight"])  # type: ignore[index]
    assert torch.equal(backbone.blocks[2].module.get_parameter("bn1.bias"), state["layer3.0.bn1.bias"])
    again = create_backbone(BackboneConfig("test_resnet"), weights=str(path), seed=7).module().state_dict()
    assert all(torch.equal(value, again[key]) for key, value in backbone.module().state_dict().items())


def test_what_belongs_to_the_model_s_own_head_may_be_there_or_not(tmp_path: Path) -> None:
    """MobileNetV3's conv_head, attention pooling and the second classifier of distilled DeiT."""
    for name, options in (
        ("mobilenetv3_small_050", {}),
        ("test_vit3", {"img_size": (32, 32)}),
        ("deit_tiny_distilled_patch16_224", {"img_size": (32, 32)}),
    ):
        config = BackboneConfig(name, image_size=(32, 32))
        state = state_of(name, **options)
        headless = {
            key: value for key, value in state.items() if not key.startswith(("conv_head", "head", "attn_pool"))
        }
        assert len(headless) < len(state)
        loaded = []
        for content in (state, headless):
            safetensors.torch.save_file(content, tmp_path / "w.safetensors")
            loaded.append(create_backbone(config, weights=tmp_path / "w.safetensors", seed=0).module().state_dict())
        assert all(torch.equal(loaded[0][key], loaded[1][key]) for key in loaded[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"layer1.0.conv1.weight": torch.zeros(3, 3)},
            "'layer1.0.conv1.weight' is 32x32x3x3 in the model and 3x3 in the file",
        ),
        ({"layer1.0.conv1.weight": None}, "'layer1.0.conv1.weight' is 32x32x3x3 in the model and absent in the file"),
        ({"layer9.weight": torch.zeros(5)}, "'layer9.weight' is absent in the model and 5 in the file"),
        ({"layer9.a": torch.zeros(5), "layer9.b": torch.zeros(())}, r"\(1 more keys do not fit\)"),
    ],
)
def test_weights_that_do_not_fit_name_the_key_both_shapes_and_the_file(
    change: Mapping[str, Tensor | None], message: str, tmp_path: Path
) -> None:
    state = {**state_of("test_resnet"), **change}
    path = tmp_path / "odd.safetensors"
    safetensors.torch.save_file({key: value for key, value in state.items() if value is not None}, path)
    with pytest.raises(UsageError, match=message) as error:
        create_backbone(BackboneConfig("test_resnet"), weights=path, seed=0)
    assert "odd.safetensors" in str(error.value)
    assert "\n" not in str(error.value)


class _Anything:
    pass


def test_weights_that_cannot_be_read_are_one_line(tmp_path: Path) -> None:
    """A pickle that holds objects is refused, not executed."""
    config = BackboneConfig("test_resnet")
    torch.save({"model": _Anything()}, tmp_path / "objects.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "text.safetensors").write_text("not a tensor")
    (tmp_path / "empty.pth").write_text("")
    for file, message in (
        ("objects.pth", "no weights-only torch file"),
        ("list.pth", "holds no state dict"),
        ("text.safetensors", "is no .safetensors file"),
        ("empty.pth", "no weights-only torch file"),
        ("absent.pth", "No weights file"),
    ):
        with pytest.raises(UsageError, match=message) as error:
            create_backbone(config, weights=tmp_path / file, seed=0)
        assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match=r"No weights file 'pretraind'.*nearest: 'pretrained'"):
        create_backbone(config, weights="pretraind", seed=0)


def test_pretrained_weights_that_cannot_be_had_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="timm has no pretrained weights of 'ecaresnet200d'"):
        create_backbone(BackboneConfig("ecaresnet200d"), weights="pretrained", seed=0)
    create_model = timm.create_model

    def offline(name: str, pretrained: bool = False, **options: object) -> nn.Module:
        if pretrained:
            raise ConnectionError("No route to host\nmore")
        return create_model(name, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(UsageError, match=r"'test_resnet' cannot be had: No route to host.*path of a file") as error:
        create_backbone(BackboneConfig("test_resnet"), weights="pretrained", seed=0)
    assert "\n" not in str(error.value)


def test_pretrained_asks_timm_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, bool]] = []
    create_model = timm.create_model

    def recorded(name: str, pretrained: bool = False, **options: object) -> nn.Module:
        asked.append((name, pretrained))
        return create_model(name, **options)

    monkeypatch.setattr(timm, "create_model", recorded)
    create_backbone(BackboneConfig("test_resnet.r160_in1k"), weights="pretrained", seed=0)
    assert ("test_resnet.r160_in1k", True) in asked
