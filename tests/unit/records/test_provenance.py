"""Provenance: hashes move when code moves, git tells the truth or nothing, and no heavy package is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmark.records.keys import canonical_json
from benchmark.records.provenance import (
    cpu_name,
    environment,
    git_state,
    hash_files,
    module_file,
    package_hash,
    versions,
)
from datasets.errors import UsageError


def test_hash_covers_names_and_contents_and_ignores_order_and_line_endings(tmp_path):
    first, second = tmp_path / "a.py", tmp_path / "b.py"
    first.write_bytes(b"x = 1\n")
    second.write_bytes(b"y = 2\n")
    before = hash_files(tmp_path, [first, second])
    assert hash_files(tmp_path, [second, first]) == before
    first.write_bytes(b"x = 1\r\n")
    assert hash_files(tmp_path, [first, second]) == before
    first.write_bytes(b"x = 2\n")
    assert hash_files(tmp_path, [first, second]) != before
    # moving text from one file to the next is another program
    first.write_bytes(b"")
    second.write_bytes(b"x = 1\ny = 2\n")
    assert hash_files(tmp_path, [first, second]) != before


def test_renamed_file_is_another_program(tmp_path):
    (tmp_path / "a.py").write_bytes(b"x = 1\n")
    before = hash_files(tmp_path, [tmp_path / "a.py"])
    (tmp_path / "a.py").rename(tmp_path / "c.py")
    assert hash_files(tmp_path, [tmp_path / "c.py"]) != before


def test_package_hash_is_stable_and_covers_suites(monkeypatch):
    assert package_hash() == package_hash()
    assert len(package_hash()) == 64
    before = package_hash()
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path) + (b"#" if path.suffix == ".py" else b""))
    assert package_hash() != before


@pytest.mark.parametrize("name", ["no_such_module", "no_such_module.inner", "sys"])
def test_module_without_source_is_a_clear_error(name):
    with pytest.raises(UsageError, match=name):
        module_file(name)


def test_versions_have_the_fields_of_a_record():
    block = versions(training_hash="t", method_hash="m", data_hash=None, weights_hash="w")
    assert {
        "suite",
        "package_hash",
        "training_hash",
        "method_hash",
        "data_hash",
        "weights_hash",
        "python",
        "torch",
        "timm",
    } <= set(block)
    assert block["cuda"] is None
    assert block["cudnn"] is None
    assert block["torch"]
    assert json.loads(canonical_json(block)) == block


def test_asking_for_versions_imports_nothing_heavy():
    code = (
        "import sys\n"
        "from benchmark.records.provenance import versions, environment\n"
        "versions(training_hash='', method_hash='', data_hash=None, weights_hash=None)\n"
        "environment('cpu', {'intra_op': 1}, {})\n"
        "assert not {'torch', 'timm', 'numpy'} & set(sys.modules), 'imported'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_environment_is_json_and_holds_no_paths(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HOME_OF_SECRETS", "/secret/place")
    block = environment("cpu", {"intra_op": 1, "inter_op": 1}, {"algorithms": True})
    assert block["env"]["OMP_NUM_THREADS"] == "1"
    assert block["driver"] is None
    assert block["cpu"] == cpu_name() != ""
    text = canonical_json(block).decode()
    assert "/secret/place" not in text
    assert str(Path.home()) not in text or str(Path.home()) == "/"


def _git(folder: Path, *arguments: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, env=environment)


def test_git_state_of_a_checkout(tmp_path, monkeypatch):
    _git(tmp_path, "init")
    assert git_state(tmp_path) == {"commit": None, "dirty": None}  # no commit yet
    (tmp_path / "__init__.py").write_text("")
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "-m", "one")
    clean = git_state(tmp_path)
    assert len(clean["commit"]) == 40
    assert clean["dirty"] is False
    (tmp_path / "new.py").write_text("")
    assert git_state(tmp_path) == {"commit": clean["commit"], "dirty": True}
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))  # as inside a hook
    assert git_state(tmp_path)["commit"] == clean["commit"]


def test_installed_copy_does_not_report_the_repository_around_it(tmp_path):
    _git(tmp_path, "init")
    (tmp_path / "theirs.txt").write_text("")
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "-m", "theirs")
    installed = tmp_path / "site-packages" / "benchmark"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    assert git_state(installed) == {"commit": None, "dirty": None}


def test_no_git_no_commit(tmp_path, monkeypatch):
    def missing(*arguments: object, **keywords: object) -> None:
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", missing)
    assert git_state(tmp_path) == {"commit": None, "dirty": None}
