"""Which changes make a record stale, what a run and the check then say, and what is trained again."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import benchmark.train.cell
from benchmark.api.checking import accept, check
from benchmark.plan import program
from benchmark.plan.cells import PlannedCell, plan
from benchmark.plan.plugins import load_plugins
from benchmark.plan.program import source_files
from benchmark.plan.role_data import Splits
from benchmark.plan.staleness import Present
from benchmark.plan.suite_file import read_suite
from benchmark.records.record import Record
from benchmark.records.store import Store
from benchmark.run import app
from benchmark.train.cell import RunSettings, _CellRun, run_cell
from datasets import registry as data_registry
from datasets.array_input import ArrayInput
from datasets.errors import UsageError
from methods import registry as method_registry

ROOT = Path(benchmark.__file__).parent.parent
SUITE = """
name: mine
plugins: [squares.py]
data: [squares]
backbones: [test_resnet]
methods: [METHOD]
seeds: [0]
budget: {steps: 1, cycles: 1}
recipe: {batch_size: 4}
"""
# A data set and a method in files of their own, with a helper beside them.
PLUGIN = '''
from pathlib import Path

import numpy as np
import torch

from brightness import scaled
from datasets import ArrayInput, DatasetLoader, DatasetSpec, MultiTaskDataset, TaskSpec, register_dataset

FOLDER = Path(__file__).parent


@register_dataset("squares")
class Squares(DatasetLoader):
    """Noise."""

    def spec(self, protocol, options, layout=None):
        tasks = (TaskSpec("a", "class", 2, ("accuracy",)), TaskSpec("b", "class", 2, ("accuracy",)))
        return DatasetSpec("squares", "memory", "1", "standard", "single", tasks, {"train": 40, "val": 8, "test": 8},
                           (8, 8), (0.5,) * 3, (0.3,) * 3, "none", "tests", "report only")

    def load(self, root, split, spec, options):
        with np.load(FOLDER / "squares.npz") as file:
            images = torch.from_numpy(scaled(file["images"]))[: spec.splits[split]]
        labels = images[:, 0, 0, 0].long() % 2
        ids = [f"{split}-{index}" for index in range(len(images))]
        part = ArrayInput(images, {task.name: labels for task in spec.tasks}, split, spec, ids)
        return MultiTaskDataset(spec, split, {"image": part})
'''
HELPER = "def scaled(images):\n    return images // 1\n"


def forget() -> None:
    """As in a new process."""
    for name in [name for name in sys.modules if name.startswith("sharebench_plugin_") or name == "brightness"]:
        del sys.modules[name]
    data_registry._DATASETS.pop("squares", None)
    program._program.cache_clear()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a suite, a plug-in, its helper and its data, and the finished records of the suite in `out`."""
    method_registry.load_methods()
    folder = tmp_path_factory.mktemp("project")
    images = np.random.default_rng(0).integers(0, 255, (40, 3, 8, 8)).astype(np.uint8)
    np.savez(folder / "squares.npz", images=images)
    (folder / "squares.py").write_text(PLUGIN, encoding="utf-8")
    (folder / "brightness.py").write_text(HELPER, encoding="utf-8")
    (folder / "mine.yaml").write_text(SUITE.replace("METHOD", "hard_sharing"), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        assert trained(folder).status == "done"
        yield folder
    forget()


def planned(folder: Path) -> PlannedCell:
    forget()
    suite = read_suite(folder / "mine.yaml")
    load_plugins(suite.plugins)
    return plan(suite)[0]


def trained(folder: Path, **settings: bool) -> Record:
    record = run_cell(planned(folder), RunSettings(folder / "out", **settings))
    assert record.status == "done", record.error
    return record


def reason(folder: Path) -> str | None:
    cell = planned(folder)
    record = Store(folder / "out").read(cell.key)
    assert record is not None
    return Present(Splits(None)).stale_reason(record, cell)


@pytest.fixture
def edit() -> Iterator[Callable[[Path, str, str], None]]:
    """Replace a text in a file until the end of the test."""
    before: dict[Path, bytes] = {}

    def replace(file: Path, old: str, new: str) -> None:
        before.setdefault(file, file.read_bytes())
        text = file.read_text(encoding="utf-8")
        assert old in text
        file.write_text(text.replace(old, new), encoding="utf-8")

    yield replace
    for file, data in before.items():
        file.write_bytes(data)


def test_a_change_of_what_reads_the_data_is_said_and_trained_again(
    project: Path, edit: Callable[[Path, str, str], None], tmp_path: Path
) -> None:
    """The commonest case: a bug in one's own reader, mended; the table must not show the old numbers in silence."""
    before = Store(project / "out").load_all()
    assert accept(project / "out", tmp_path / "baseline.json", "made for this test")[0] == 0
    command = [str(project / "mine.yaml"), "--out", str(project / "out"), "--no-speed"]
    forget()
    fresh = CliRunner().invoke(app, command)
    assert "stale" not in fresh.stdout
    assert check(project / "out", tmp_path / "baseline.json")[0] == 0

    edit(project / "squares.py", "% 2", "% 2 * 0")
    forget()
    kept = CliRunner().invoke(app, command)
    assert "stale: hard_sharing" in kept.stdout
    assert "the code of data, networks or training" in kept.stdout
    assert "1 with a record, 0 to run" in kept.stdout
    assert Store(project / "out").load_all() == before
    code, text = check(project / "out", tmp_path / "baseline.json")
    assert code == 4
    assert "stale: made with another version of" in text
    assert "--refresh-stale" in text
    code, text = accept(project / "out", tmp_path / "baseline.json", "of old code")
    assert (code, "nothing accepted" in text) == (4, True)

    again = trained(project, refresh_stale=True)
    assert again.versions["training_hash"] != before[0].versions["training_hash"]
    assert again.versions["method_hash"] == before[0].versions["method_hash"]
    assert "stale" not in check(project / "out", tmp_path / "baseline.json")[1]
    assert reason(project) is None


def test_other_data_are_seen_and_their_times_are_not(project: Path, edit: Callable[[Path, str, str], None]) -> None:
    trained(project, refresh_stale=True)
    file = project / "squares.npz"
    file.touch()
    assert reason(project) is None
    data = file.read_bytes()
    np.savez(file, images=np.full((40, 3, 8, 8), 200, np.uint8))
    assert reason(project) == "made on other data: what the files hold has changed"
    file.write_bytes(data)
    assert reason(project) is None


def test_a_run_loads_and_hashes_a_data_set_once(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(project, refresh_stale=True)
    forget()
    seen: list[str] = []
    load, content_hash = np.load, ArrayInput.content_hash
    monkeypatch.setattr(np, "load", lambda file: seen.append("load") or load(file))
    monkeypatch.setattr(ArrayInput, "content_hash", lambda self: seen.append("hash") or content_hash(self))
    command = [str(project / "mine.yaml"), "--out", str(project / "out"), "--no-speed"]
    assert "1 with a record, 0 to run" in CliRunner().invoke(app, command).stdout
    assert sorted(seen) == ["hash"] * 3 + ["load"] * 3  # of train, val and test


def test_code_makes_a_record_stale_and_its_comments_do_not(
    project: Path, edit: Callable[[Path, str, str], None]
) -> None:
    trained(project, refresh_stale=True)
    edit(project / "squares.py", '"""Noise."""', '"""Squares of noise."""  # as measured')
    edit(project / "brightness.py", "\n", "\r\n")
    assert reason(project) is None
    edit(project / "brightness.py", "// 1", "// 2")  # beside the plug-in, which imports it
    assert "the code of data" in str(reason(project))


def test_a_record_that_does_not_say_its_code_is_stale(project: Path) -> None:
    cell = planned(project)
    record = Store(project / "out").read(cell.key)
    assert record is not None
    versions = {name: value for name, value in record.versions.items() if name != "training_hash"}
    old = dataclasses.replace(record, versions=versions)
    assert Present(Splits(None)).stale_reason(old, cell) == "made before records said which code trained them"
    other = dataclasses.replace(record, versions={**record.versions, "torch": "1.0", "method_hash": "f" * 64})
    assert Present(Splits(None)).stale_reason(other, cell) == "made with another version of the method's code and torch"


def test_a_note_is_about_the_record_it_was_made_for(project: Path) -> None:
    store = Store(project / "out")
    (record,) = store.load_all()
    store.mark_stale(record, "made for this test")
    assert store.stale_reason(record) == "made for this test"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmark.records.store.write_atomic", lambda *_: pytest.fail("an equal note is written again"))
        store.mark_stale(record, "made for this test")
    assert store.stale_reason(dataclasses.replace(record, record_hash="f" * 64)) is None
    store.unmark_stale(record)
    assert store.stale_reason(record) is None


def test_kept_networks_of_other_code_data_or_libraries_are_not_taken_over(
    project: Path, monkeypatch: pytest.MonkeyPatch, edit: Callable[[Path, str, str], None]
) -> None:
    def key() -> str:
        out = project / "out"
        run = _CellRun(planned(project), RunSettings(out), Store(out), Splits(None), lambda progress: None)
        return run.single_task.key("a")

    first = key()
    edit(project / "mine.yaml", "hard_sharing", "single_task")
    assert key() == first
    edit(project / "brightness.py", "// 1", "// 1 + 0")
    assert key() != first
    edit(project / "brightness.py", "// 1 + 0", "// 1")
    monkeypatch.setattr(benchmark.train.cell, "installed", lambda name: "another")
    assert key() != first


# The files of the suite itself


def test_training_reads_its_data_set_and_no_other_and_nothing_that_prints() -> None:
    modules = set(source_files(["benchmark.train.cell", "datasets.multi_mnist"]).values())
    assert {"datasets.kinds.metrics", "datasets.mnist_digits", "datasets.multi_mnist", "datasets.kinds.base"} <= modules
    assert {
        "benchmark.train.trainer",
        "benchmark.train.loaders",
        "benchmark.train.evaluate",
        "methods.backbones.backbone",
    } <= modules
    shown = (
        "benchmark.run",
        "benchmark.report",
        "benchmark.tables.table",
        "benchmark.tables.labels",
        "benchmark.show.wording",
    )
    other = (
        "benchmark.show.page",
        "benchmark.speed.timing",
        "benchmark.show.plots",
        "datasets.cityscapes",
        "methods.hard_sharing",
    )
    assert not [name for name in modules if name.startswith((*shown, *other))]


def test_a_name_that_a_package_exports_is_followed_to_its_file() -> None:
    assert "datasets.array_input" in source_files(["datasets.mnist_two_domains"]).values()


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("datasets/kinds/metrics.py", "the code of data, networks or training"),
        ("datasets/kinds/class_kind.py", "the code of data, networks or training"),
        ("methods/hard_sharing.py", "the method's code"),
        ("methods/single_task.py", None),
        ("datasets/multi_mnist.py", None),
        ("benchmark/tables/table.py", None),
    ],
)
def test_what_a_cell_does_not_run_makes_its_record_no_older(
    project: Path, monkeypatch: pytest.MonkeyPatch, file: str, said: str | None
) -> None:
    assert (ROOT / file).is_file()
    record = trained(project, refresh_stale=True)
    read = program._read

    def changed(path: Path) -> program._Source:
        source = read(path)
        return dataclasses.replace(source, digest="other") if path == ROOT / file else source

    monkeypatch.setattr(program, "_read", changed)
    program._program.cache_clear()
    present = plan(read_suite(project / "mine.yaml"))[0]
    program._program.cache_clear()
    expected = None if said is None else f"made with another version of {said}"
    assert Present(Splits(None)).stale_reason(record, present) == expected


def test_imports_are_followed_wherever_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "package_of_a_test"
    files = {
        "__init__.py": "",
        "search/__init__.py": "from .method import Search",
        "search/method.py": "from typing import TYPE_CHECKING\nfrom ..shared import x\nif TYPE_CHECKING:\n    import "
        "package_of_a_test.typed\nimport numpy\nSearch = 1\ndef f():\n    from package_of_a_test import lazy\n",
        "shared.py": "x = 1",
        "lazy.py": "",
        "typed.py": "",
        "other.py": "",
    }
    for name, text in files.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = {name.partition(".")[2] for name in source_files(["package_of_a_test.search.method"]).values()}
    assert found == {"", "search", "search.method", "shared", "lazy"}


def test_code_without_a_file_is_refused() -> None:
    with pytest.raises(UsageError, match="'typed_in' has no source file to hash"):
        source_files(["typed_in"])
