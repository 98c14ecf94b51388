"""Every method on every family of backbones, on shared images and on images of their own; a new one joins by existing.

The default run meets every pair of method, family and domain kind at least once: each method with each family, on the
domain kinds in turn. The whole product is marked slow. What cannot be combined says so when it is planned, and is
listed here, so that nothing that worked is refused one day in silence.
"""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch

from datasets.errors import UsageError
from methods.backbones.backbone import Backbone, BackboneConfig, create_backbone
from methods.backbones.family import Family, find_family
from methods.contracts import Role
from methods.registry import get_method, method_names
from tests.unit.harness import toy_trainer

STEPS = {"dmo": 3, "adashare": 2}  # dmo correlates courses of losses, adashare has two phases; 1 of the others
FAMILIES = {  # a small model of each; image size
    "test_resnet": 32,
    "test_efficientnet": 32,
    "mobilenetv3_small_075": 32,
    "test_vit": 32,
    "regnetx_004_tv": 32,
    "test_convnext": 32,
}
# timm has no small member of these families, and a method costs as much as there are blocks; all four stages are left,
# and stages of several blocks. No other test builds models of these names, whose shapes are kept once they are known.
SHALLOW: dict[str, dict[str, object]] = {
    "mobilenetv3_small_075": {"depth_multiplier": 0.34},
    "regnetx_004_tv": {"w0": 24, "wa": 60.0, "wm": 2.5, "group_size": 8, "depth": 6},
}
LARGE = {"swin_tiny_patch4_window7_224": 64, "swinv2_tiny_window8_256": 64}  # the families' smallest models
KINDS = ("single", "multi")
PARAMS = {"dmo": {"tau_sim": 0.0}}  # two tasks have no default threshold
NO_SHORTCUT, NOT_MAPS = "Stage 1 of .* has no shortcut", "has no form on backbone .* it needs nchw"
REFUSED = {  # (method, backbone): the reason
    ("adashare", "test_efficientnet"): "has no block that can be skipped",
    ("mtan", "test_efficientnet"): NO_SHORTCUT,
    ("mtan", "mobilenetv3_small_075"): NO_SHORTCUT,
    ("mtan", "test_vit"): NOT_MAPS,
    ("mtan", "swin_tiny_patch4_window7_224"): NOT_MAPS,
    ("mtan", "swinv2_tiny_window8_256"): NOT_MAPS,
    ("task_switching", "test_vit"): NOT_MAPS,
    ("task_switching", "swin_tiny_patch4_window7_224"): NOT_MAPS,
    ("task_switching", "swinv2_tiny_window8_256"): NOT_MAPS,
}
PAIRS = [
    (method, family, KINDS[(row + column) % 2])
    for row, method in enumerate(method_names())
    for column, family in enumerate(FAMILIES)
]
PRODUCT = [(method, family, kind) for method in method_names() for family in (*FAMILIES, *LARGE) for kind in KINDS]
CASES = [
    *PAIRS,
    *(pytest.param(*case, marks=pytest.mark.slow) for case in PRODUCT if case not in PAIRS),
]


@pytest.fixture(autouse=True)
def _shallow(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, changes in SHALLOW.items():
        member = find_family(name)

        def arguments(config: BackboneConfig, member: Family = member, **changes: object) -> dict[str, object]:
            return {**type(member).arguments(member, config), **changes}

        monkeypatch.setattr(member, "arguments", functools.partial(arguments, **changes))


@functools.cache
def prototype(family: str, size: int) -> Backbone:
    """The trainer gives copies of it."""
    return create_backbone(BackboneConfig(family, image_size=(size, size)), seed=0)


@pytest.mark.parametrize(("name", "family", "kind"), CASES)
def test_a_method_on_a_family(name: str, family: str, kind: str, tmp_path: Path) -> None:
    """It is planned, trains, and deploys a network of finite outputs whose parts are counted; or it is refused."""
    method = get_method(name)
    if kind == "multi" and method.needs_all_labels:
        pytest.skip(f"{name} needs every label on one image")
    size = {**FAMILIES, **LARGE}[family]
    backbone = prototype(family, size)
    steps = STEPS.get(name, 1)
    trainer = toy_trainer(tmp_path, domains=kind, steps=steps, cycles=steps, size=size, prototype=backbone)
    made = method(method.Params(**PARAMS.get(name, {})))
    if (name, family) in REFUSED:
        with pytest.raises(UsageError, match=REFUSED[name, family]):
            made.check(trainer.data, backbone, trainer.budget)
        return
    made.check(trainer.data, backbone, trainer.budget)
    graph = made.run(trainer)
    graph.require_deployable()
    batch = next(iter(trainer.context.loaders[Role.FIT].training(("a", "b"), 0, 1, "x")))
    with torch.inference_mode():
        outputs = graph.network().eval()(batch.images, ("a", "b"))
    for task, output in outputs.items():
        assert output.shape[:2] == (8, trainer.data.task(task).channels)
        assert torch.isfinite(output).all()
    assert trainer.weight_steps(graph) >= steps
