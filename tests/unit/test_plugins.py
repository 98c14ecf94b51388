"""Somebody adds a method or a data set in one file, as the README says, and never edits the package."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import benchmark
from benchmark.cell import RunSettings, run_cell
from benchmark.planning import plan
from benchmark.plugins import load_plugins
from benchmark.suite import read_suite
from datasets import registry as data_registry
from datasets.errors import UsageError
from methods import registry as method_registry

README = Path(benchmark.__file__).parent.parent / "README.md"


@pytest.fixture(autouse=True)
def _own_registries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    method_registry.load_methods()
    data_registry.load_datasets()
    monkeypatch.setattr(method_registry, "_METHODS", dict(method_registry._METHODS))
    monkeypatch.setattr(data_registry, "_DATASETS", dict(data_registry._DATASETS))
    yield
    for name in [name for name in sys.modules if name.startswith("sharebench_plugin_")]:
        del sys.modules[name]


def suite_with(tmp_path: Path, method: str, data: str = "{dataset: multi_mnist, tasks: [left, right]}") -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(
        f"name: mine\nplugins: [plugin.py]\ndata: [{data}]\nbackbones: [test_resnet]\nmethods: [{method}]\n"
        "seeds: [0]\nbudget: {steps: 2, cycles: 2}\nrecipe: {batch_size: 8}\n",
        encoding="utf-8",
    )
    return path


def test_the_method_of_the_readme_runs_and_shares_what_it_says(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (example,) = (block for block in blocks if "@register_method" in block)
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


DATA_PLUGIN = '''
"""multi_mnist under another name."""
import dataclasses
from datasets.contracts import MultiTaskDataset
from datasets.multi_mnist import MultiMnist
from datasets.registry import register_dataset


@register_dataset("digits_again")
class DigitsAgain(MultiMnist):
    """The same digits."""

    def spec(self, protocol, options):
        return dataclasses.replace(super().spec(protocol, options), name="digits_again")
'''


def test_a_data_set_comes_in_one_file_too(tmp_path: Path) -> None:
    (tmp_path / "plugin.py").write_text(DATA_PLUGIN, encoding="utf-8")
    suite = read_suite(suite_with(tmp_path, "hard_sharing", "{dataset: digits_again, tasks: [left]}"))
    load_plugins(suite.plugins)
    record = run_cell(plan(suite)[0], RunSettings(tmp_path / "out", plugins=suite.plugins))
    assert record.status == "done", record.error
    assert record.cell["data"]["dataset"] == "digits_again"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("raise KeyError('no such thing')", r"plugin.py raised KeyError: 'no such thing'"),
        ("def broken(:", r"plugin.py raised SyntaxError"),
        (
            "from methods.registry import register_method\n@register_method('hard_sharing')\nclass Mine: pass",
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
    (tmp_path / "plugin.py").write_text(DATA_PLUGIN, encoding="utf-8")
    load_plugins([str(tmp_path / "plugin.py")] * 2)
    load_plugins([str(tmp_path / "plugin.py")])
