"""The rules that keep the harness open: imports run one way, and it knows contracts, not names."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import benchmark
from datasets.registry import dataset_names
from methods.backbone import supported_backbones
from methods.registry import method_names

ROOT = Path(benchmark.__file__).parent.parent
ALLOWED = {
    "datasets": {"datasets"},
    "methods": {"datasets", "methods"},
    "benchmark": {"datasets", "methods", "benchmark"},
}
FILES = [path for package in ALLOWED for path in sorted((ROOT / package).rglob("*.py"))]


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add((node.module or "").split(".")[0])
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    assert imports(path) & set(ALLOWED) <= ALLOWED[package]


def strings_and_names(path: Path) -> set[str]:
    """Every word of the code that is not a comment or a docstring."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
        and isinstance(node.body[0].value, ast.Constant)
    }
    words = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            words.add(node.value)
        elif isinstance(node, ast.Name):
            words.add(node.id)
        elif isinstance(node, ast.Attribute):
            words.add(node.attr)
        elif isinstance(node, ast.ImportFrom):
            words.update((node.module or "").split("."))
    return words


# `single_task` is also what `Trainer.single_task` gives, by the contract.
CONTRACT_WORDS = {"single_task"}


@pytest.mark.parametrize("path", sorted((ROOT / "benchmark").rglob("*.py")), ids=lambda path: path.name)
def test_the_harness_names_no_method_data_set_or_backbone(path: Path) -> None:
    registered = {*method_names(), *dataset_names(), *supported_backbones()} - CONTRACT_WORDS
    assert not strings_and_names(path) & registered


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    return done.stdout.strip()


def test_commands_start_without_heavy_imports() -> None:
    code = (
        "import sys, benchmark.run, benchmark.report, benchmark.list, benchmark.__main__; print(*sorted(sys.modules))"
    )
    loaded = set(python(code).split())
    assert not loaded & {"torch", "timm", "torchvision", "pandas", "scipy", "sklearn", "mmseg", "matplotlib"}


def test_a_classification_suite_never_imports_mmsegmentation() -> None:
    code = "import sys, benchmark.cell; print('mmseg' in sys.modules, 'mmcv' in sys.modules, 'mmengine' in sys.modules)"
    assert python(code) == "False False False"
