"""Initial weights of a backbone: everything of a file is used, or one line says what does not fit."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from datasets.errors import UsageError
from methods.backbones.backbone import BackboneConfig, create_backbone


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
    torch.save(timm.create_model("test_resnet"), tmp_path / "module.pth")
    (tmp_path / "page.pth").write_text("\n<!DOCTYPE html><html>404</html>")
    (tmp_path / "page.safetensors").write_text("<html>404</html>")
    (tmp_path / "pointer.pth").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab")
    (tmp_path / "damaged.pth").write_bytes(b"PK\x03\x04 and no more")
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "text.safetensors").write_text("not a tensor")
    (tmp_path / "empty.pth").write_text("")
    for file, message in (
        ("objects.pth", "Python objects besides tensors .*_Anything.*expected a .safetensors file, or .* state dict"),
        ("module.pth", "Python objects besides tensors .*timm."),
        ("page.pth", "is a web page"),
        ("page.safetensors", "is a web page"),
        ("pointer.pth", "is a Git LFS pointer"),
        ("damaged.pth", "cannot be read: it is damaged"),
        ("list.pth", "holds no state dict"),
        ("text.safetensors", "cannot be read"),
        ("empty.pth", "is empty"),
        ("absent.pth", "No weights file"),
    ):
        with pytest.raises(UsageError, match=message) as error:
            create_backbone(config, weights=tmp_path / file, seed=0)
        assert str(error.value).isprintable()
        assert "weights_only" not in str(error.value)
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


def test_of_several_state_dicts_the_one_is_taken_that_timm_takes(tmp_path: Path) -> None:
    """Averaged weights before raw ones; a timm training also stores its arguments."""
    path, config = tmp_path / "w.pth", BackboneConfig("test_resnet")
    raw = state_of("test_resnet")
    averaged = {key: value + 1 for key, value in raw.items()}
    for content, entry in (
        ({"state_dict": raw, "state_dict_ema": averaged, "args": Namespace(lr=0.1)}, "state_dict_ema"),
        ({"model": raw, "model_ema": averaged}, "model_ema"),
        ({"model": raw, "state_dict": averaged, "state_dict_ema": None}, "state_dict"),
        (averaged, ""),
    ):
        torch.save(content, path)
        backbone = create_backbone(config, weights=path, seed=0)
        assert backbone.weights_entry == entry
        expected = timm.models.load_state_dict(str(path))
        assert torch.equal(backbone.stem[0][0].weight, expected["conv1.0.weight"])  # type: ignore[index]
        assert torch.equal(expected["conv1.0.weight"], averaged["conv1.0.weight"])


def test_prefixes_of_wrappers_are_taken_off_and_others_named(tmp_path: Path) -> None:
    path, config = tmp_path / "w.pth", BackboneConfig("test_resnet")
    state = state_of("test_resnet")
    for prefix in ("module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod."):
        torch.save({"state_dict": {prefix + key: value for key, value in state.items()}}, path)
        backbone = create_backbone(config, weights=path, seed=0)
        assert torch.equal(backbone.stem[0][0].weight, state["conv1.0.weight"])  # type: ignore[index]
    torch.save({"state_dict": {f"encoder.net.{key}": value for key, value in state.items()}}, path)
    with pytest.raises(
        UsageError, match=r"entry 'state_dict', does not fit: .*start with 'encoder.net.'; take that off"
    ):
        create_backbone(config, weights=path, seed=0)


def test_files_without_counters_of_batches_load(tmp_path: Path) -> None:
    state = state_of("test_resnet")
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file({k: v for k, v in state.items() if "num_batches_tracked" not in k}, path)
    backbone = create_backbone(BackboneConfig("test_resnet"), weights=path, seed=0)
    assert torch.equal(backbone.blocks[2].module.get_buffer("bn1.running_var"), state["layer3.0.bn1.running_var"])
