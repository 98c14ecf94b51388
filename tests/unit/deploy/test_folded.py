"""Networks with folded norms: they compute the same, and a norm is folded only where that is right."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from benchmark.deploy.folded import folded
from methods.backbones.backbone import BackboneConfig, create_backbone
from methods.graph.operations import view_with_own_statistics
from tests.numbers import assert_same

pytestmark = pytest.mark.usefixtures("float64")


def norms_left(module: torch.fx.GraphModule) -> int:
    return sum(node.target is torch.ops.aten.batch_norm.default for node in module.graph.nodes)


def seen(module: nn.Module, size: int = 32) -> nn.Module:
    """The module with statistics of some images, in eval mode."""
    module.train()
    for _ in range(3):
        module(1 + torch.randn(4, 3, size, size))
    return module.eval()


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_vit", "test_convnext"])
def test_outputs_and_the_module_itself_stay_as_they_are(name: str) -> None:
    module = seen(create_backbone(BackboneConfig(name, image_size=(32, 32)), seed=0).module())
    before = copy.deepcopy(module.state_dict())
    images = torch.randn(2, 3, 32, 32)
    flat = folded(module, images)
    assert norms_left(flat) == 0
    assert_same(flat(images), module(images))
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert not any(p.requires_grad for p in flat.parameters())


class Branching(nn.Module):
    """A convolution that two readers have, and one that a norm alone reads, with and without bias and affine."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1, bias=False)
        self.norm, self.last = nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False)

    def forward(self, images: Tensor) -> Tensor:
        x = self.one(images)
        return self.last(self.two(x)) + self.norm(x) + x


def test_a_norm_stays_where_something_else_reads_its_convolution() -> None:
    module = seen(Branching())
    images = torch.randn(2, 3, 8, 8)
    flat = folded(module, images)
    assert norms_left(flat) == 1
    assert_same(flat(images), module(images))


def test_one_weight_under_two_norms_is_folded_twice() -> None:
    first = seen(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    second = view_with_own_statistics(first).train()
    second(5 * torch.randn(4, 3, 8, 8))

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = first, second

        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            return self.first(images), self.second(images)

    module, images = Both().eval(), torch.randn(2, 3, 8, 8)
    flat = folded(module, images)
    assert norms_left(flat) == 0
    for found, expected in zip(flat(images), module(images), strict=True):
        assert_same(found, expected)


def test_a_norm_of_batch_statistics_is_left() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    images = torch.randn(2, 3, 8, 8)
    flat = folded(module, images)
    assert norms_left(flat) == 1
    assert_same(flat(images), module(images))
