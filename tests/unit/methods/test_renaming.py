"""Weights of other programs: names become timm's, shapes are checked, values stay."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor
from typer.testing import CliRunner

from benchmark.data import app
from datasets.errors import UsageError
from methods.backbones.backbone import BackboneConfig, create_backbone
from methods.backbones.renaming import timm_state

NAME = "tf_efficientnet_lite0"


def original_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A model of timm under the names of EfficientNet-PyTorch, written out by hand for both kinds of blocks."""
    first = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
    others = {
        "conv_pw": "_expand_conv",
        "bn1": "_bn0",
        "conv_dw": "_depthwise_conv",
        "bn2": "_bn1",
        "conv_pwl": "_project_conv",
        "bn3": "_bn2",
    }
    ends = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1", "classifier": "_fc"}
    numbers: dict[str, int] = {}
    found = {}
    for name, value in state.items():
        parts = name.split(".")
        if parts[0] == "blocks":
            number = numbers.setdefault(".".join(parts[1:3]), len(numbers))
            known = (others if number else first)[parts[3]]
            found[f"_blocks.{number}.{known}.{parts[4]}"] = value
        else:
            found[f"{ends[parts[0]]}.{parts[1]}"] = value
    return found


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {name: torch.rand_like(value.float()) for name, value in timm.create_model(NAME).state_dict().items()}


def test_the_command_writes_timm_s_names_and_says_what_it_did(state: dict[str, Tensor], tmp_path: Path) -> None:
    file, out = tmp_path / "lite0.pth", tmp_path / "weights" / "lite0.safetensors"
    torch.save(original_names(state), file)
    result = CliRunner().invoke(app, ["convert-weights", str(file), "--to", str(out), "--backbone", NAME])
    assert result.exit_code == 0, result.output
    assert "296 tensors, 296 of them renamed" in result.output
    assert "_conv_stem.weight -> conv_stem.weight [32, 3, 3, 3]" in result.output
    written = safetensors.torch.load_file(out)
    assert list(timm.create_model(NAME).state_dict()) == list(dict.fromkeys(state))
    assert written.keys() == state.keys()
    assert all(torch.equal(written[name], state[name]) for name in state)
    backbone = create_backbone(BackboneConfig(NAME, image_size=(80, 60), output_stride=16), weights=out, seed=0)
    assert torch.equal(backbone.blocks[0].module.get_parameter("conv_dw.weight"), state["blocks.0.0.conv_dw.weight"])


def test_timm_s_own_names_are_kept(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(state, tmp_path / "w.pth")
    found, names = timm_state(tmp_path / "w.pth", NAME)
    assert all(torch.equal(found[name], state[name]) for name in state)
    assert all(new == old for new, old in names.items())


@pytest.mark.parametrize(
    ("change", "backbone", "message"),
    [
        (lambda w: w.pop("_blocks.3._bn1.bias"), NAME, "'blocks.2.0.bn2.bias' is 144 in the model and absent"),
        (lambda w: w.update({"_fc.bias": torch.zeros(7)}), NAME, "'classifier.bias' is 1000 in the model and 7 in"),
        (
            lambda w: w.update({"_blocks.99._bn1.bias": torch.zeros(7)}),
            NAME,
            "'_blocks.99._bn1.bias' has no counterpart",
        ),
        (lambda w: w.update({"fc2": torch.zeros(7)}), NAME, "'fc2' has no counterpart in 'tf_efficientnet_lite0'"),
        (lambda w: None, "tf_efficientnet_lite1", "is not of 'tf_efficientnet_lite1'"),
        (lambda w: None, "resnet18", "has no counterpart in 'resnet18'"),
        (lambda w: None, "tf_efficientnet_light0", "Unknown backbone 'tf_efficientnet_light0'"),
    ],
)
def test_what_does_not_fit_is_one_line_and_nothing_is_written(
    change: Callable[[dict[str, Tensor]], object], backbone: str, message: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    weights, out = original_names(state), tmp_path / "out.safetensors"
    change(weights)
    torch.save(weights, tmp_path / "w.pth")
    with pytest.raises(UsageError) as caught:
        timm_state(tmp_path / "w.pth", backbone)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    asked = ["convert-weights", str(tmp_path / "w.pth"), "--to", str(out), "--backbone", backbone]
    assert CliRunner().invoke(app, asked).exit_code == 2
    assert not out.exists()


def test_pickles_of_objects_and_other_forms_of_output_are_refused(tmp_path: Path) -> None:
    torch.save({"model": Path("x")}, tmp_path / "objects.pth")
    out = tmp_path / "w.safetensors"
    for file, to, message in (
        (tmp_path / "objects.pth", out, "Python objects besides tensors"),
        (tmp_path / "none.pth", out, "No weights file"),
        (tmp_path / "objects.pth", tmp_path / "w.pth", "expected a path that ends in .safetensors"),
    ):
        result = CliRunner().invoke(app, ["convert-weights", str(file), "--to", str(to), "--backbone", NAME])
        assert result.exit_code == 2
        assert message in " ".join(result.output.split())
