"""Somebody adds a method, a data set or a backbone family in one file, as the README says, and edits no package."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from typer.testing import CliRunner

import benchmark
from benchmark.data import app as data_app
from benchmark.list import app as list_app
from benchmark.plan.cells import plan
from benchmark.plan.plugins import load_plugins
from benchmark.plan.suite_file import read_suite
from benchmark.train.cell import RunSettings, run_cell
from datasets import registry as data_registry
from datasets.errors import UsageError
from methods import registry as method_registry
from methods.backbones import family as backbone_family
from methods.backbones.backbone import BackboneConfig, create_backbone

README = Path(benchmark.__file__).parent.parent / "README.md"


@pytest.fixture(autouse=True)
def _own_registries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    method_registry.load_methods()
    data_registry.load_datasets()
    monkeypatch.setattr(method_registry, "_METHODS", dict(method_registry._METHODS))
    monkeypatch.setattr(data_registry, "_DATASETS", dict(data_registry._DATASETS))
    monkeypatch.setattr(backbone_family, "_FAMILIES", dict(backbone_family._FAMILIES))
    yield
    for name in [name for name in sys.modules if name.startswith("sharebench_plugin_")]:
        del sys.modules[name]


def suite_with(tmp_path: Path, method: str, data: str = "toy") -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(
        f"name: mine\nplugins: [plugin.py]\ndata: [{data}]\nbackbones: [test_resnet]\nmethods: [{method}]\n"
        "seeds: [0]\nbudget: {steps: 2, cycles: 2}\nrecipe: {batch_size: 8}\n",
        encoding="utf-8",
    )
    return path


def example_of_the_readme(with_text: str) -> str:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (example,) = (block for block in blocks if with_text in block)
    return str(example)


@pytest.mark.usefixtures("toy_data")
def test_the_method_of_the_readme_runs_and_shares_what_it_says(tmp_path: Path) -> None:
    example = example_of_the_readme("@register_method")
    assert len(example.splitlines()) <= 52
    (tmp_path / "plugin.py").write_text(example, encoding="utf-8")
    suite = read_suite(suite_with(tmp_path, "split_late"))
    load_plugins(suite.plugins)
    record = run_cell(plan(suite)[0], RunSettings(tmp_path / "out", plugins=suite.plugins))
    assert record.status == "done", record.error
    assert 1.0 < record.size["x_backbone"] < 2.0
    assert 0 < record.compute["activation_sharing"] < 0.5
    assert record.cost["weight_steps"] == 2
    assert record.versions["method_hash"]


def parts(folder: Path) -> None:
    """What `ArrayFiles` of the README reads: noise, the label of the one task in its brightness."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for split, n in (("train", 200), ("val", 30), ("test", 50)):
        labels = {"defect": random.integers(0, 2, n), "material": random.integers(0, 3, n)}
        images = random.integers(0, 100, (n, 64, 64, 3)) + 70 * labels["defect"][:, None, None, None]
        np.savez(folder / f"{split}.npz", images=images.astype(np.uint8), **labels)


def streets(folder: Path) -> None:
    """What `ImageFolders` of the README reads: photographs of many sizes, the label in the brightness."""
    random = np.random.default_rng(0)
    for name in ("photos", "masks"):
        (folder / name).mkdir(parents=True)
    for number in range(40):
        ids = np.kron(random.integers(0, 4, (5, 6)), np.ones((20 + number, 20), int)).astype(np.uint8)
        photo = np.stack([ids * 60 + random.integers(0, 20, ids.shape)] * 3, axis=-1).astype(np.uint8)
        Image.fromarray(photo).save(folder / "photos" / f"{number}.jpg")
        Image.fromarray(ids).save(folder / "masks" / f"{number}.png")


@pytest.mark.parametrize(
    ("made", "base", "name", "task", "counts"),
    [
        (parts, "ArrayFiles", "parts", "material", "train: 200 samples, val: 30 samples, test: 50 samples"),
        (streets, "ImageFolders", "streets", "semseg", "train: 32 samples, test: 8 samples"),
    ],
)
def test_the_data_sets_of_the_readme_are_verified_and_run(
    made: Callable[[Path], None], base: str, name: str, task: str, counts: str, tmp_path: Path
) -> None:
    example = example_of_the_readme(f"({base}):")
    assert len([line for line in example.splitlines() if line.strip()]) <= 10
    (tmp_path / "plugin.py").write_text(example, encoding="utf-8")
    made(tmp_path / name)
    suite = read_suite(suite_with(tmp_path, "hard_sharing", name))
    load_plugins(suite.plugins)
    record = run_cell(plan(suite)[0], RunSettings(tmp_path / "out", plugins=suite.plugins))
    assert record.status == "done", record.error
    assert task in record.metrics
    named = [name, "--plugin", str(tmp_path / "plugin.py")]
    verified = CliRunner().invoke(data_app, ["verify", *named, "--full"])
    assert verified.exit_code == 0, verified.output
    for count in counts.split(", "):
        assert count in verified.output
    shown = CliRunner().invoke(data_app, ["show", *named, "--out", str(tmp_path)])
    assert shown.exit_code == 0, shown.output
    assert f"Data set {name}" in CliRunner().invoke(list_app, named).output
    (tmp_path / name).rename(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match=rf"Data set '{name}': no folder .*{name}; `folder` of its class"):
        plan(suite)


@pytest.mark.usefixtures("toy_data")
def test_the_backbone_family_of_the_readme_equals_timm_and_runs(tmp_path: Path) -> None:
    (tmp_path / "plugin.py").write_text(example_of_the_readme("@family"), encoding="utf-8")
    suite_file = suite_with(tmp_path, "hard_sharing")
    suite_file.write_text(suite_file.read_text(encoding="utf-8").replace("test_resnet", "gernet_s"), encoding="utf-8")
    suite = read_suite(suite_file)
    load_plugins(suite.plugins)
    model = timm.create_model("gernet_s").eval()
    safetensors.torch.save_file(model.state_dict(), tmp_path / "weights.safetensors")
    backbone = create_backbone(BackboneConfig("gernet_s"), weights=tmp_path / "weights.safetensors", seed=0)
    backbone.module().eval()
    assert [block.skip is not None for block in backbone.blocks] == [True] * 14
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        x = backbone.stem(images)
        for block in backbone.blocks:
            x = block.execute(x, block.skip(x))
        assert torch.equal(backbone.tail(x), model.forward_features(images))
    record = run_cell(plan(suite)[0], RunSettings(tmp_path / "out", plugins=suite.plugins))
    assert record.status == "done", record.error


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("raise KeyError('no such thing')", r"plugin.py, line 1, raised KeyError: 'no such thing'"),
        ("def broken(:", r"plugin.py raised SyntaxError"),
        (
            "from methods import register_method\n@register_method('hard_sharing')\nclass Mine: pass",
            "'hard_sharing' is registered twice",
        ),
    ],
)
def test_a_faulty_plugin_is_one_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "plugin.py").write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match=message) as caught:
        load_plugins([str(tmp_path / "plugin.py")])
    assert "\n" not in str(caught.value)


def test_a_missing_plugin_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="relative to the suite's file"):
        load_plugins([str(tmp_path / "nowhere.py")])


def test_loading_twice_registers_once(tmp_path: Path) -> None:
    (tmp_path / "plugin.py").write_text(example_of_the_readme("(ArrayFiles):"), encoding="utf-8")
    load_plugins([str(tmp_path / "plugin.py")] * 2)
    load_plugins([str(tmp_path / "plugin.py")])


@pytest.mark.usefixtures("toy_data")
@pytest.mark.parametrize("name", ["split.v1.2.py", "split late.py", "Schicht-\u00fc.py", "2.py"])
def test_a_plugin_may_have_any_file_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(example_of_the_readme("@register_method"), encoding="utf-8")
    file = suite_with(tmp_path, "split_late")
    file.write_text(file.read_text(encoding="utf-8").replace("plugin.py", name), encoding="utf-8")
    suite = read_suite(file)
    load_plugins(suite.plugins)
    assert len(plan(suite)[0].program.method) == 64


@pytest.mark.parametrize("name", ["plugin.txt", "plugin.pyc", "plugin"])
def test_a_file_of_another_kind_is_no_plugin(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("", encoding="utf-8")
    with pytest.raises(UsageError, match=r"expected the suffix \.py"):
        load_plugins([str(tmp_path / name)])


SPARSE_SHARING = '''
"""Sparse sharing: one backbone, and in its first layer a mask of each task's own."""

import torch
from torch import nn

from methods import Fidelity, Method, MethodParams, Operation, Statement, TaskGraph
from methods import fit_graph, register_method, register_operation


class MaskedConv(nn.Module):
    def __init__(self, conv, kept):
        super().__init__()
        self.conv = conv
        mask = torch.zeros_like(conv.weight, dtype=torch.bool)
        mask[kept] = True
        self.register_buffer("mask", mask)

    def forward(self, x):
        return nn.functional.conv2d(x, self.conv.weight * self.mask)


@register_operation("sparse_sharing.conv")
def masked(config):
    return MaskedConv(nn.Conv2d(3, 3, 1, bias=False), slice(0, 3))


@register_method("sparse_sharing")
class SparseSharing(Method):
    """Masks over one backbone."""

    Params = MethodParams
    fidelity = Fidelity("a test", "https://github.com/", (Statement("default", "Ours."),))

    def run(self, trainer):
        graph, trunk, conv = TaskGraph(trainer.data.inputs), trainer.backbone(), nn.Conv2d(3, 3, 1, bias=False)
        for task, kept in zip(trainer.data.task_names, (slice(0, 2), slice(1, 3))):
            module, masks = MaskedConv(conv, kept), {"conv.weight": "mask"}
            value = graph.input(trainer.data.input_of(task))
            value = graph.add(Operation("sparse_sharing.conv", {}, module, "added", masks), value)
            value = graph.add(trunk.stem_operation(), value)
            for index in range(len(trunk.blocks)):
                value = graph.add(trunk.block_operation(index), value)
            value = graph.add(trunk.tail_operation(), value)
            graph.output(task, graph.add(trainer.head(task), value))
        fit_graph(trainer, "joint", graph, trainer.budget.steps)
        return graph
'''


@pytest.mark.usefixtures("toy_data")
def test_masks_of_a_plug_in_keep_tasks_apart_and_are_counted(tmp_path: Path) -> None:
    (tmp_path / "plugin.py").write_text(SPARSE_SHARING, encoding="utf-8")
    suite = read_suite(suite_with(tmp_path, "sparse_sharing"))
    load_plugins(suite.plugins)
    record = run_cell(plan(suite)[0], RunSettings(tmp_path / "out", plugins=suite.plugins))
    assert record.status == "done", record.error
    heads, plain = record.size["heads"], record.size["backbone"]
    assert record.compute["activation_sharing"] == 0.0  # the first layers differ, so nothing is computed once
    assert record.size["added"] == 9
    one = plain + 6  # and a head of 4 or of 2 classes
    assert record.size["active"] == {
        "left": one + heads * 4 / 6,
        "right": one + heads * 2 / 6,
        "all": plain + 9 + heads,
    }
    assert record.size["shared"] == plain + 3  # the output channel that both masks keep
