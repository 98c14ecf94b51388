"""Decoders of dense heads, and the door to mmsegmentation behind which three of them are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmark.plan.cells import plan
from benchmark.plan.suite_file import read_suite
from datasets.contracts import TaskSpec
from datasets.errors import UnknownNameError, UsageError
from methods.backbones.backbone import NATIVE_STRIDE, Backbone, BackboneConfig, create_backbone
from methods.backbones.decoders import ADASHARE_RATES, DenseForm, create_decoder
from methods.backbones.heads import create_head
from methods.backbones.mmseg import load
from methods.graph.operations import build_module
from methods.graph.task_graph import TaskGraph
from methods.plain import plain_graph
from tests.numbers import assert_same
from tests.unit.harness import toy_spec

NAMES = ("conv1x1", "subpixel", "fcn", "aspp", "upernet", "adashare_aspp")
SEMSEG = TaskSpec("semseg", "semantic", 7, ("miou",))
DEPTH = TaskSpec("depth", "depth", 1, ("rmse",))


def fresh(code: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(line, capture_output=True, text=True, timeout=300, check=False)


def backbone(name: str, decoder: str, hidden: int | None = 8) -> Backbone:
    form = DenseForm.of(decoder, None if decoder in ("conv1x1", "subpixel") else hidden)
    return create_backbone(BackboneConfig(name, image_size=(64, 96)), seed=0, dense=form)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
@pytest.mark.parametrize("decoder", NAMES)
def test_every_decoder_reads_every_family_and_comes_back_from_json(name: str, decoder: str) -> None:
    body = backbone(name, decoder)
    features = body.forward_features(torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))).detach()
    for task in (SEMSEG, DEPTH):
        head = create_head(task, body, seed=3)
        y = head.module(features)
        assert y.shape[:2] == (2, task.channels)
        assert y.shape[3] * 64 == y.shape[2] * 96  # the image's proportions, whatever the resolution
        y.sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in head.module.parameters())
        again = build_module(head.kind, json.loads(json.dumps(head.config)))
        again.load_state_dict(head.module.state_dict())
        assert torch.equal(again.eval()(features), head.module.eval()(features))
        twin = create_head(task, body, seed=3).module.state_dict()
        for key, value in create_head(task, body, seed=3).module.state_dict().items():
            assert torch.equal(value, twin[key])


@pytest.mark.parametrize(("name", "stride"), [("test_resnet", 8), ("test_resnet", 32), ("test_vit", 16)])
def test_subpixel_draws_at_the_image_s_resolution_each_place_its_own_patch(name: str, stride: int) -> None:
    config = BackboneConfig(name, image_size=(64, 96), output_stride=8 if stride == 8 else NATIVE_STRIDE)
    body = create_backbone(config, seed=0, dense=DenseForm.of("subpixel", None))
    features = body.forward_features(torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))).detach()
    head = create_head(SEMSEG, body, seed=3).module.eval()
    before = head(features)
    assert before.shape == (1, 7, 64, 96)
    changed = features.clone()
    if changed.ndim == 4:
        changed[:, :, 1, 0] += 1
    else:
        changed[:, body.prefix_tokens + 96 // stride] += 1
    moved = (head(changed) != before).any(dim=1)[0]
    expected = torch.zeros(64, 96, dtype=torch.bool)
    expected[stride : 2 * stride, :stride] = True
    assert torch.equal(moved, expected)


@pytest.mark.parametrize("decoder", NAMES)
def test_a_network_with_any_decoder_survives_a_file(decoder: str, tmp_path: Path) -> None:
    """Norms inside a head keep statistics: they belong to nodes and are stored with them."""
    spec = toy_spec(size=64)
    body = create_backbone(
        BackboneConfig("test_resnet", image_size=(64, 64)), seed=0, dense=backbone("test_resnet", decoder).dense
    )
    graph = plain_graph(spec, spec.task_names, body, lambda task: create_head(DEPTH, body, 0))
    images = {"image": torch.randn(4, 3, 64, 64)}
    graph.network().train()(images, spec.task_names)
    (tmp_path / "graph.json").write_text(json.dumps(graph.to_json()), encoding="utf-8")
    (tmp_path / "weights.safetensors").write_bytes(graph.to_bytes())
    loaded = TaskGraph.load(tmp_path / "graph.json", tmp_path / "weights.safetensors")
    assert loaded.hash() == graph.hash()
    before, after = (g.network().eval()(images, spec.task_names) for g in (graph, loaded))
    for task in spec.task_names:
        assert torch.equal(before[task], after[task])


@pytest.mark.parametrize(("channels", "expected"), [(40, 23_240_864), (3, 23_089_164)])
def test_adashare_s_head_has_the_official_size(channels: int, expected: int) -> None:
    """Four branches of 512 -> 1024 (3x3) -> 1024 -> C with biases: by hand, and the 23.24 M and 23.09 M measured."""
    by_hand = 4 * (512 * 1024 * 9 + 1024 + 1024 * 1024 + 1024 + 1024 * channels + channels)
    with torch.device("meta"):
        head = create_decoder(DenseForm.of("adashare_aspp", None), 512, channels, 0.0)
    assert sum(p.numel() for p in head.parameters()) == by_hand == expected
    rates = [m.dilation for m in head.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert rates == [(rate, rate) for rate in ADASHARE_RATES]


@pytest.mark.usefixtures("float64")
def test_adashare_s_head_sums_its_branches() -> None:
    head = create_decoder(DenseForm.of("adashare_aspp", 4), 3, 2, 0.0).eval()
    x = torch.randn(1, 3, 9, 9)
    total = torch.zeros(1, 2, 9, 9)
    for branch in head.branches:  # type: ignore[union-attr]
        total = total + branch(x)  # type: ignore[operator]
    assert_same(head(x), total)


def test_the_recipe_s_dropout_reaches_the_decoder() -> None:
    for name in ("conv1x1", "fcn", "aspp", "upernet"):
        for dropout in (0.0, 0.3):
            form = DenseForm.of(name, None if name == "conv1x1" else 8)
            active = {
                m.p for m in create_decoder(form, 6, 4, dropout).modules() if isinstance(m, (nn.Dropout, nn.Dropout2d))
            }
            assert active - {0.0} == ({dropout} if dropout else set())


def test_wrong_heads_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"'app'.*aspp"):
        DenseForm.of("app", None)
    with pytest.raises(UsageError, match="conv1x1 has nothing inside"):
        DenseForm.of("conv1x1", 64)
    suite = tmp_path / "s.yaml"
    suite.write_text(
        "{name: s, data: [multi_mnist], backbones: [test_resnet], methods: [hard_sharing], head: {dense: asp}}",
        encoding="utf-8",
    )
    with pytest.raises(UnknownNameError, match="aspp"):
        plan(read_suite(suite))


def test_the_head_is_part_of_a_cell_and_the_default_one_changes_no_key(tmp_path: Path) -> None:
    documents = {}
    for name, head in {
        "none": "",
        "default": ", head: {dense: conv1x1}",
        "aspp": ", head: {dense: aspp, hidden: 8}",
    }.items():
        suite = tmp_path / f"{name}.yaml"
        suite.write_text(
            "{name: s, data: [{dataset: multi_mnist, tasks: [left, semseg]}], backbones: [test_resnet], "
            f"methods: [hard_sharing], seeds: [0]{head}}}",
            encoding="utf-8",
        )
        (documents[name],) = plan(read_suite(suite))
    assert documents["none"].key == documents["default"].key != documents["aspp"].key
    assert documents["none"].document["head"] == {"pooled": "pool + linear", "dense": "conv1x1"}
    assert documents["aspp"].document["head"] == {"pooled": "pool + linear", "dense": "aspp", "hidden": 8}


# The door to mmsegmentation. Spec: datasets 17, trap 18.


@pytest.mark.skipif(not hasattr(os, "fork"), reason="copies a process, which this system cannot")
def test_nothing_imports_mmsegmentation_before_a_head_asks_for_it_and_a_real_extension_is_left_alone() -> None:
    """One process for both: a copy of it has mmcv with a compiled extension, the other one has none."""
    done = fresh("""
        import os, sys, types
        import benchmark.run, benchmark.train.cell, benchmark.report, benchmark.list, benchmark.show.plots
        import methods.registry, datasets.registry
        from methods.backbones.decoders import DenseForm, create_decoder
        from methods.backbones.mmseg import load
        create_decoder(DenseForm.of("adashare_aspp", 4), 3, 2, 0.0)
        heavy = {"mmseg", "mmcv", "mmengine"} & set(sys.modules)
        assert not heavy, heavy

        copy = os.fork()
        if copy == 0:
            import mmcv
            real = types.ModuleType("mmcv._ext")

            def operator(name):
                if name.startswith("__"):
                    raise AttributeError(name)
                return lambda *arguments, **options: "real"

            real.__getattr__ = operator
            sys.modules["mmcv._ext"] = real
            load("mmseg.models.decode_heads")
            os._exit(0 if sys.modules["mmcv._ext"] is real else 3)
        assert os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1]) == 0
        create_decoder(DenseForm.of("fcn", 4), 3, 2, 0.0)
        assert "mmseg" in sys.modules
    """)
    assert done.returncode == 0, done.stderr
    assert done.stdout == done.stderr == ""  # and building a head prints nothing


def test_a_placeholder_operator_names_itself() -> None:
    load("mmseg.models.decode_heads")
    extension = sys.modules["mmcv._ext"]
    with pytest.raises(RuntimeError, match="mmcv op deform_conv_forward needs full mmcv"):
        extension.deform_conv_forward(1)
    with pytest.raises(AttributeError):
        extension.__wrapped__  # noqa: B018


def test_an_absent_package_is_one_line() -> None:
    with pytest.raises(UsageError, match=r"mmseg\.no_such_module cannot be imported"):
        load("mmseg.no_such_module")
