"""`run --plan` before a download of gigabytes: a stand-in must have the shape of the data, and be none of a run's."""

from __future__ import annotations

import contextlib
import pathlib
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmark.plan.stand_in import EVALUATED, StandIn, evaluation_factor, missing, standing_in
from benchmark.plan.suite_file import SuiteChoices, select
from benchmark.run import app
from datasets.errors import ProtocolError
from datasets.kinds import get_kind
from datasets.registry import dataset_names, get_dataset, load

ON_DISK = [name for name in dataset_names() if get_dataset(name).layouts]
SUITE = """
name: board
data: [{dataset: omniglot, layout: small_zips, options: {size: 35}}]
backbones: [test_resnet]
methods: [hard_sharing]
seeds: [0]
budget: {steps: 4000}
recipe: {batch_size: 8, workers: 1}
"""


@pytest.fixture
def board(tmp_path: Path) -> Path:
    path = tmp_path / "board.yaml"
    path.write_text(SUITE, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ON_DISK)
def test_every_data_set_has_a_stand_in_of_its_shape_with_legal_labels(name: str, tmp_path: Path) -> None:
    real = get_dataset(name)
    for protocol in real.protocols:
        with contextlib.suppress(ProtocolError):  # the usual layout may lack its labels
            _compare(name, protocol)
    assert get_dataset(name) is real


def _compare(name: str, protocol: str) -> None:
    real = get_dataset(name)
    declared = real.spec(protocol, real.Options())
    with standing_in([name]):
        data = load(name, None, "test", protocol=protocol)
        assert data.spec.splits["train"] == declared.splits["train"]
        for given, part in data.inputs.items():
            assert len(part) == min(EVALUATED, declared.count("test", given))
            sample = part[len(part) - 1]
            assert sample["image"].shape == (3, *declared.native_size)
            assert set(sample["targets"]) == {t for t in data.spec.task_names if data.spec.input_of(t) == given}
            for task, target in sample["targets"].items():
                kind = get_kind(data.spec.task(task).kind)
                kind.check(target, data.spec.task(task))
                assert bool(kind.valid(target).any())


@pytest.mark.parametrize("name", ON_DISK)
def test_every_layout_names_a_link_that_can_be_clicked_first(name: str) -> None:
    real = get_dataset(name)
    spec = real.spec(real.protocols[0], real.Options())
    for files in real.layouts.values():
        assert re.match(r"https?://[^\s,;]+( |,|;|$)", files.source or spec.home)
        assert "mkdir" not in files.source
        assert "&&" not in files.source


@pytest.mark.usefixtures("quick_workers")
def test_a_plan_without_data_says_what_is_missing_and_what_it_would_take(board: Path, tmp_path: Path) -> None:
    given = [str(board), "--data-root", str(tmp_path / "none")]
    result = CliRunner().invoke(app, [*given, "--plan"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    text = " ".join(result.stdout.split())
    assert "https://github.com/brendenlake/omniglot" in text
    assert "those of random images and labels of the declared shape; reading the files comes on top" in text
    assert "1 cells to run" in text
    assert "of memory" in text
    assert "without an estimate" not in text
    assert not isinstance(get_dataset("omniglot"), StandIn)
    run = CliRunner().invoke(app, [*given, "--no-speed", "--out", str(tmp_path / "out")], catch_exceptions=False)
    assert run.exit_code == 2
    assert run.output.startswith("error: Data set 'omniglot': no folder")


def test_only_what_is_missing_is_stood_in_for(board: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = select(str(board), SuiteChoices())
    assert list(missing(suite, tmp_path)) == ["omniglot"]
    assert missing(select("quick", SuiteChoices()), None) == {}
    (tmp_path / "omniglot").mkdir()
    for mark in get_dataset("omniglot").layouts["small_zips"].marks:
        pathlib.Path(tmp_path / "omniglot" / mark).write_bytes(b"")
    assert missing(suite, tmp_path) == {}


def test_evaluation_is_scaled_to_the_declared_samples(board: Path) -> None:
    suite = select("celeba_9task_standard", SuiteChoices())
    cell = next(suite.cells())
    assert evaluation_factor(cell) == 1
    declared = cell.data.choice.spec().splits["test"]
    with standing_in(["celeba"]):
        assert evaluation_factor(cell) == declared / EVALUATED
