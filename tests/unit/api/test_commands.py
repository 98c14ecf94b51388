"""What all commands owe their users alike: both ways to start them, whatever the output is, and no heavy imports."""

from __future__ import annotations

import importlib
import io
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load
from typer.main import get_command
from typer.testing import CliRunner

import benchmark
from benchmark import __main__ as sharebench
from benchmark.api.catalog import describe
from benchmark.cli import EXIT_OUTPUT, make_console, say
from benchmark.plan.suite_file import SuiteChoices, find_suite, select, suite_names
from benchmark.records.documents import ErrorEntry
from benchmark.records.networks import built_graph
from benchmark.records.record import Record
from benchmark.records.store import traceback_file
from benchmark.run import app as run_app
from benchmark.workers.executors import _told
from datasets import registry as data_registry
from datasets.contracts import TaskSpec
from datasets.errors import UsageError
from datasets.kinds import get_kind
from methods import registry
from methods.graph.task_graph import TaskGraph
from tests.unit.graphs import operation

ROOT = Path(benchmark.__file__).parent.parent


def modules_and_commands() -> Iterator[tuple[Any, Any]]:
    """(the command of `python -m benchmark.NAME`, the console script's), subcommands one by one."""
    script: Any = get_command(sharebench.app)
    for name, ours in script.commands.items():
        module: Any = get_command(importlib.import_module(f"benchmark.{name}").app)
        if hasattr(ours, "commands"):
            assert set(module.commands) == set(ours.commands)
            yield from ((module.commands[sub], command) for sub, command in ours.commands.items())
        else:
            yield module, ours


PAIRS = list(modules_and_commands())
VALUES = ("7", "page.html", "markdown", "one-metric", "red", "onnx")  # every type of option takes one of them


def parsed(command: Any, words: list[str]) -> object:
    """The values of all parameters, or the message of who cannot read the words."""
    try:
        return command.make_context("x", list(words)).params
    except Exception as error:
        return type(error).__name__, str(error)


@pytest.mark.parametrize(("module", "script"), PAIRS, ids=lambda command: command.name)
def test_the_console_script_reads_every_option_as_the_module_does(module: Any, script: Any) -> None:
    needed = [
        word
        for parameter in module.params
        if parameter.required
        for word in ([parameter.opts[0], "w"] if parameter.param_type_name == "option" else ["w"])
    ]
    assert [p.opts for p in module.params] == [p.opts for p in script.params]
    assert module.help == script.help
    for name in [name for p in module.params for name in (*p.opts, *p.secondary_opts) if name.startswith("-")]:
        for words in ([name], *([name, value] for value in VALUES), *([f"{name}={value}"] for value in VALUES)):
            assert parsed(module, [*needed, *words]) == parsed(script, [*needed, *words]), words


def test_an_interrupt_names_the_line_that_was_typed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("benchmark.api.running.execute", interrupted)
    words = ["run", "quick", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/sharebench", *words])
    result = CliRunner().invoke(sharebench.app, words, prog_name="sharebench")
    assert result.exit_code == 130
    assert result.stderr.strip().endswith(f"Resume with: sharebench {' '.join(words)}")


def test_a_folder_or_file_named_like_a_suite_hides_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = describe("quick")
    (tmp_path / "quick").mkdir()
    (tmp_path / "standard").write_text("name: another\n", encoding="utf-8")
    (tmp_path / "mine").write_text("name: mine\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert describe("quick") == before
    assert select("quick").name == "quick"
    assert select("standard").name == "standard"
    assert find_suite("./mine") == Path("mine")
    with pytest.raises(UsageError, match=r"Unknown suite 'mine'.*\./mine"):
        find_suite("mine")


# Output that cannot be written, or cannot show every character


def child(code: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, **{"text": True, **options})


SAYS = """
from benchmark.cli import make_console
from benchmark.cli import start
def says():
    print("Δm ↑")
    make_console().print("✗ Δm ↑ ±")
    raise SystemExit(3)
start(says)
"""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_what_an_output_cannot_show_is_replaced(encoding: str) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = child(SAYS, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding=encoding, env=environment)
    assert done.returncode == 3, done.stderr
    assert done.stdout.splitlines()[0] == "?m ?"


def test_a_script_of_ones_own_prints_on_any_output(monkeypatch: pytest.MonkeyPatch) -> None:
    held = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(held, encoding="ascii"))
    make_console().print("Δm ↑")
    sys.stdout.flush()
    assert held.getvalue() == b"?m ?\n"


def test_a_line_is_said_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    line = "[bold] :smile: 12 " + "x" * 200
    say(make_console(), line)
    assert capsys.readouterr().out == f"{line}\n"


def test_an_output_that_is_full_or_closed_is_no_traceback() -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        done = child(SAYS, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == EXIT_OUTPUT
    assert done.stderr == "error: the output cannot be written: No space left on device\n"
    line = f"exec {shlex.quote(sys.executable)} -c {shlex.quote(SAYS)} >&-"
    closed = subprocess.run(["sh", "-c", line], stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False)
    assert (closed.returncode, closed.stderr) == (3, "")


def test_a_run_without_any_record_ends_with_1(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As where every worker was killed: nothing to print is no mistake of the user."""
    monkeypatch.setattr("benchmark.workers.executors.LocalExecutor.run", lambda *_: iter(()))
    words = ["quick", "--methods", "hard_sharing", "--seeds", "0", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(run_app, words)
    assert result.exit_code == 1, result.output
    assert "No cell left a record" in result.stdout


@pytest.mark.parametrize("name", ["datasets", "methods"])
def test_a_project_with_a_package_of_our_name_is_told_in_one_line(name: str, tmp_path: Path) -> None:
    """`python -m` looks in the working directory first."""
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("", encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-m", "benchmark.run", "--help"]
    done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 2
    (message,) = done.stderr.splitlines()
    assert f"'{name}' at {tmp_path / name} hides ShareBench's" in message
    assert "sharebench run" in message
    line[1:] = ["-c", "import benchmark"]
    done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert f"ImportError: the package '{name}'" in done.stderr


HEAVY = (
    "torch",
    "torchvision",
    "timm",
    "h5py",
    "pandas",
    "scipy",
    "sklearn",
    "matplotlib",
    "seaborn",
    "torchjd",
    "mmseg",
)

LIGHT = """
import sys
from typer.testing import CliRunner
from benchmark.__main__ import app
from datasets.registry import dataset_names
from methods.registry import method_names
folder, heavy = sys.argv[1], set(sys.argv[2].split())
lines = [
    ("list", 0), ("list quick", 0), ("list boards", 0), ("list nyuv2_segnet_libmtl", 0), ("list --help", 0),
    ("list quick --plugin nowhere.py", 2),
    ("run quik", 2), ("run --methods hard_sharin", 2), ("run --datasets mnist", 2), ("run --set recipe.lr", 2),
    ("run --seeds x", 2), ("run --device gpu", 2), ("run --plugin nowhere.py", 2), ("run --plan --methods x", 2),
    (f"report {folder}", 2), ("report", 2), (f"report {folder} --board nyu", 2), ("report nowhere --html", 2),
    (f"check {folder} --against {folder}/x.json", 2), ("check nowhere", 2),
    ("data verify mnist", 2), ("data show mnist", 2), ("data prepare mnist", 2), ("data show", 2), ("data verif", 2),
    ("data show elpv --split tset", 2), ("data show elpv --samples 0", 2),
    (f"throughput {folder}", 2), ("throughput nowhere --batch x", 2), (f"throughput {folder} --execution x", 2),
    (f"export {folder}", 2), ("export nowhere --to x", 2), (f"export {folder} --batch 0", 2),
    *((f"list {name}", 0) for name in dataset_names()),
    *((f"list {method}", 0) for method in method_names()),
]
for line, code in lines:
    result = CliRunner().invoke(app, line.split())
    assert result.exit_code == code, (line, result.exit_code, result.output)
    assert result.exception is None or isinstance(result.exception, SystemExit), (line, result.exception)
    assert not heavy & set(sys.modules), (line, sorted(heavy & set(sys.modules)))
"""


def test_what_needs_no_network_imports_no_torch(tmp_path: Path) -> None:
    """The overview, suites, boards, methods, data sets and mistakes in names: one process for all of them."""
    line = [sys.executable, "-c", LIGHT, str(tmp_path), " ".join(HEAVY)]
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


def test_a_method_is_described_without_other_methods() -> None:
    code = (
        "import sys; from benchmark.api.catalog import describe; describe('hard_sharing'); "
        "print(*(name for name in sys.modules if name.startswith('methods.')))"
    )
    loaded = child(code, stdout=subprocess.PIPE).stdout.split()
    assert "methods.hard_sharing" in loaded
    assert not [name for name in loaded if name.startswith(("methods.adashare", "methods.branched", "methods.dmo"))]


def test_what_the_sources_declare_is_what_imports_register() -> None:
    registry.load_methods()
    data_registry.load_datasets()
    found = {name: (cls.__module__, cls.__qualname__) for name, cls in registry._METHODS.items()}
    assert {name: (entry.module, entry.attribute) for name, entry in registry.declared_methods().items()} == {
        name: place for name, place in found.items() if place[0].startswith("methods.")
    }
    placed = {
        name: (type(loader).__module__, type(loader).__qualname__) for name, loader in data_registry._DATASETS.items()
    }
    assert {name: (entry.module, entry.attribute) for name, entry in data_registry.declared_datasets().items()} == {
        name: place for name, place in placed.items() if place[0].startswith("datasets.")
    }
    for name, entry in registry.declared_methods().items():
        assert registry.get_method(name).__doc__.startswith(entry.about)


def test_the_overview_names_everything() -> None:
    text = describe(None)
    for name in (*registry.method_names(), *data_registry.dataset_names(), *suite_names()):
        assert f"  {name} " in text


# Plug-ins and messages


def test_every_command_that_reads_networks_or_names_takes_a_plugin_in_the_same_words(tmp_path: Path) -> None:
    script: Any = get_command(sharebench.app)
    commands = {**script.commands, **script.commands["data"].commands}
    options = {
        name: option for name, command in commands.items() for option in command.params if "--plugin" in option.opts
    }
    assert set(options) == {"run", "tune", "report", "list", "throughput", "export", "verify", "show", "prepare"}
    assert len({option.help for option in options.values()}) == 1
    for name in ("run", "report"):
        result = CliRunner().invoke(sharebench.app, [name, "quick", "--plugin", str(tmp_path / "nowhere.py")])
        assert result.exit_code == 2
        assert "nowhere.py does not exist" in result.stderr


def test_plugins_of_the_command_line_join_those_of_the_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = tmp_path / "suite" / "mine.yaml"
    suite.parent.mkdir()
    suite.write_text("name: q\ndata: [a]\nbackbones: [b]\nmethods: [c]\nplugins: [own.py]\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    chosen = select(str(suite), SuiteChoices(plugins=["more.py", suite.parent / "own.py"]))
    assert chosen.plugins == (str(suite.parent / "own.py"), str(tmp_path / "more.py"))


def test_a_network_of_a_plugin_names_the_option() -> None:
    graph = TaskGraph(["image"])
    graph.output("left", graph.add(operation("test.conv_norm", 0), graph.input("image")))
    document = json.loads(json.dumps(graph.to_json()).replace("test.conv_norm", "of_a_plugin"))
    with pytest.raises(UsageError, match=r"'of_a_plugin'.*--plugin FILE, or plugins="):
        built_graph(document, load(graph.to_bytes()), "The network")


def test_a_fault_in_code_is_told_with_its_kind_and_its_traceback(tmp_path: Path) -> None:
    error = ErrorEntry(kind="RuntimeError", message="oops", stage=None, step=None, task=None)
    record = Record(cell={"seed": 0}, status="failed", error=error)
    assert _told(record, tmp_path) == "oops"
    file = traceback_file(tmp_path, record.key)
    file.parent.mkdir(parents=True)
    file.write_text("Traceback", encoding="utf-8")
    assert _told(record, tmp_path) == f"RuntimeError: oops (traceback: {file})"


def test_missing_files_are_told_with_the_release_that_has_them(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        data_registry.find_layout("nyuv2", tmp_path)
    message = str(caught.value)
    for layout, files in data_registry.get_dataset("nyuv2").layouts.items():
        assert files.source
        assert message.index(f"layout {layout!r}") < message.index(f"from {files.source}")
    assert "silberman/datasets/nyu_depth_v2.html" not in message  # another release than two of them read


def test_illegal_labels_are_told_with_the_legal_ones() -> None:
    task = TaskSpec("left", "semantic", 11, ("miou",))
    with pytest.raises(UsageError, match="the first is 11; expected 0 to 10, or 255"):
        get_kind("semantic").check(torch.tensor([[[11, 255]]]), task)
