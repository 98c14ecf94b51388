"""A copy that shares what it should not, or has other bits, makes two columns one network in silence."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from methods.backbones.backbone import BackboneConfig, create_backbone
from methods.graph.copies import copied

MODELS = ["test_resnet", "test_efficientnet", "test_vit", "test_convnext", "test_nfnet", "swin_tiny_patch4_window7_224"]


def parts(module: nn.Module) -> dict[str, Any]:
    """What deepcopy would make of a module, in a form that can be compared."""
    found: dict[str, Any] = {}
    for name, one in module.named_modules():
        for key, value in vars(one).items():
            if key not in ("_modules", "_parameters", "_buffers"):
                found[f"{name}.{key}"] = (type(value), value if isinstance(value, (int, float, str)) else None)
    return found


def mutable(module: nn.Module) -> set[int]:
    return {
        id(value) for one in module.modules() for value in vars(one).values() if isinstance(value, (dict, set, list))
    }


@pytest.mark.parametrize("name", MODELS)
def test_a_copy_is_that_of_deepcopy(name: str) -> None:
    model = timm.create_model(name).requires_grad_(False)
    next(model.parameters()).requires_grad_(True)
    one, other = copied(model), copy.deepcopy(model)
    assert parts(one) == parts(other)
    assert list(one.state_dict()) == list(other.state_dict())
    tensors, expectations = (model.state_dict(keep_vars=True) for model in (one, other))
    for (name, tensor), expected in zip(tensors.items(), expectations.values(), strict=True):
        assert torch.equal(tensor, expected), name
        assert (type(tensor), tensor.requires_grad) == (type(expected), expected.requires_grad), name
        assert tensor.stride() == expected.stride(), name
    storages = {tensor.data_ptr() for tensor in model.state_dict().values()}
    assert not storages & {tensor.data_ptr() for tensor in one.state_dict().values()}
    assert not mutable(model) & mutable(one)


def test_what_is_shared_within_stays_shared_and_what_is_kept_is_the_same() -> None:
    layer, twice = nn.Linear(3, 3), nn.Linear(3, 3)
    model = nn.Sequential(layer, twice, layer)
    model.also = [twice, twice.forward]  # type: ignore[assignment]  # beside the modules, as some models hold them
    one = copied(model, kept=[layer.weight])
    assert one[0] is one[2]
    assert one[0].weight is layer.weight
    assert one[0].bias is not layer.bias
    assert one.also[0] is one[1]
    assert one.also[1].__self__ is one[1]


def test_hooks_go_with_the_copy() -> None:
    calls: list[nn.Module] = []

    def note(module: nn.Module, given: Any, output: Tensor) -> None:
        calls.append(module)

    model = nn.Sequential(nn.Linear(2, 2))
    model[0].register_forward_hook(note)
    one = copied(model)
    one(torch.zeros(1, 2))
    assert calls == [one[0]]
    one[0].register_forward_hook(note)
    model(torch.zeros(1, 2))
    assert calls == [one[0], model[0]]


class Own(nn.Module):
    """Says itself how it is copied."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Own:
        return self


def test_a_module_that_says_how_it_is_copied_is_asked() -> None:
    model = nn.Sequential(Own(), nn.LSTM(2, 3))
    one = copied(model)
    assert one[0] is model[0]
    assert one[1].weight_ih_l0 is not model[1].weight_ih_l0
    assert one[1]._flat_weights[0] is one[1].weight_ih_l0


def test_a_backbone_is_copied_whole() -> None:
    backbone = create_backbone(BackboneConfig("test_resnet", image_size=(32, 32)), seed=0)
    twin = backbone.clone()
    image = torch.rand(2, 3, 32, 32)
    assert torch.equal(twin.forward_features(image), backbone.forward_features(image))
    assert not mutable(backbone.module()) & mutable(twin.module())
    with torch.no_grad():
        for parameter in twin.module().parameters():
            parameter.zero_()
    assert all(bool(parameter.any()) for parameter in backbone.stem.parameters() if parameter.ndim > 1)
