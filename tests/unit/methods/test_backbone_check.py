"""`list backbones --check`: a wrong cut trains another network than the one whose name the table shows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import benchmark
from benchmark.list import app
from methods.backbones import check, family
from methods.backbones.backbone import Block
from methods.backbones.families import ResNets

ROOT = Path(benchmark.__file__).parent.parent
NAME = "test_resnet"


@pytest.mark.parametrize("name", [NAME, "test_efficientnet", "test_convnext", "test_vit"])
def test_shipped_families_are_right(name: str) -> None:
    assert list(check.faults(name)) == []


def test_a_part_that_is_left_out_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ResNets._cut

    def without_last(self: ResNets, model: nn.Module) -> object:
        cut = whole(self, model)
        return type(cut)(**{**vars(cut), "tail": nn.Identity(), "blocks": [*cut.blocks[:-1]]})

    monkeypatch.setattr(ResNets, "_cut", without_last)
    assert any("forward_features" in fault or "cannot" in fault for fault in check.summary(NAME)[0])
    assert not check.summary(NAME)[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda execute, self, x, s: execute(self, x, s) + 1,
            r"block 0 \(BasicBlock\): execute\(x, skip\(x\)\) differs",
        ),
        (lambda execute, self, x, s: execute(self, x, s) + x.add_(1).mul(0).sum(), "execute changes its input"),
        (
            lambda execute, self, x, s: execute(self, x, s) * (2 if self.training else 1),
            r"a training pass differs from execute\(x, skip\(x\)\)",
        ),
    ],
)
def test_an_execute_that_is_not_the_block_is_found(
    change: object, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute = Block.execute

    def other(self: Block, x: Tensor, s: Tensor) -> Tensor:
        with torch.no_grad():
            return change(execute, self, x, s)  # type: ignore[operator]

    monkeypatch.setattr(Block, "execute", other)
    lines, right = check.summary(NAME)
    assert not right
    assert any(re.search(message, line) for line in lines)


def test_a_part_that_comes_back_as_another_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    build = check.build_module

    def doubled(kind: str, config: dict) -> nn.Module:
        module = build(kind, config)
        module.register_forward_hook(lambda module, given, output: output * 2)
        return module

    monkeypatch.setattr(check, "build_module", doubled)
    assert "  stem comes back from its configuration as another module" in check.summary(NAME)[0]


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (lambda cut: cut[:1], "block 0 (Block): its sub-layers hold other parameters"),
        (lambda cut: [cut[0], type(cut[1])(cut[1].chain, 0.5), cut[1]], "its sub-layers give another output"),
    ],
)
def test_sub_layers_that_are_not_the_block_are_found(
    keep: object, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sublayers = Block.sublayers
    monkeypatch.setattr(Block, "sublayers", lambda self: keep(sublayers(self)))  # type: ignore[operator]
    assert any(message in line for line in check.summary("test_vit")[0])


def _forget() -> None:
    for name in [name for name in family._FAMILIES if name.endswith(".GENets")]:
        del family._FAMILIES[name]
    family._members.cache_clear()


@pytest.fixture
def _no_family_stays() -> Iterator[None]:
    yield
    _forget()


@pytest.mark.usefixtures("_no_family_stays")
def test_the_readme_s_family_is_right_and_a_broken_one_ends_with_1(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code = text.split("## Add a backbone family")[1].split("```python\n")[1].split("```")[0]
    wrong = code.replace("gernet_*", "gernet_m").replace('"conv2_kxk", "attn_last"', '"attn_last"')
    code = code.replace("gernet_*", "gernet_s")  # a model that is built once is kept
    (tmp_path / "wrong.py").write_text(wrong, encoding="utf-8")
    result = CliRunner().invoke(app, ["backbones", "--check", str(tmp_path / "wrong.py")])
    assert result.exit_code == 1
    assert result.stdout.startswith(
        "gernet_m: wrong\n  block 0 (BasicBlock): execute(x, skip(x)) differs from the block"
    )
    (tmp_path / "right.py").write_text(code, encoding="utf-8")
    again = CliRunner().invoke(app, ["backbones", "--check", "gernet_s", "--plugin", str(tmp_path / "right.py")])
    assert (again.exit_code, again.stdout.count("gernet_s: right")) == (0, 1), again.output


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["backbones", "--check", "resnet19"], "Unknown backbone 'resnet19'. Nearest: 'resnet18'"),
        (["quick", "--check", "resnet18"], "--check is of backbones"),
        (["backbones", "--check", "{empty}"], "registers no family of backbones"),
    ],
)
def test_wrong_questions_are_one_line(given: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "empty.py").write_text("", encoding="utf-8")
    result = CliRunner().invoke(app, [word.replace("{empty}", str(tmp_path / "empty.py")) for word in given])
    assert result.exit_code == 2
    assert message in result.output
    assert len(result.output.strip().splitlines()) == 1
