"""`python -m benchmark.report`: the command as a user meets it."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from benchmark.api.reporting import report
from benchmark.records.store import Store
from benchmark.report import app
from benchmark.tables.folder import TableOptions
from datasets.errors import UsageError
from tests.unit.made_records import make_failure, make_record


@pytest.fixture
def folder(tmp_path):
    store = Store(tmp_path / "run")
    for record in (make_record("stl", 0, reference=True), make_record("ours", 0), make_failure("dmo", 0)):
        store.write(record)
    return tmp_path / "run"


def run(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize(
    ("form", "word"),
    [("terminal", "ours"), ("markdown", "| ours |"), ("csv", ",ours,"), ("latex", r"\toprule")],
)
def test_every_form(folder, form, word):
    result = run(folder, "--format", form)
    assert result.exit_code == 0
    assert word in result.stdout
    assert result.stdout == report(folder, format=form)


def test_variant_reaches_the_table(folder):
    assert "Delta\\_m (one-metric)" in run(folder, "--format", "markdown", "--metric-variant", "one-metric").stdout


def test_output_goes_to_a_file(folder, tmp_path):
    result = run(folder, "--format", "latex", "--out", tmp_path / "new" / "table.tex")
    assert result.exit_code == 0
    assert result.stdout == ""
    assert (tmp_path / "new" / "table.tex").read_text(encoding="utf-8") == report(folder, format="latex")


def test_unwritable_output_is_one_line(folder, tmp_path):
    (tmp_path / "file").write_text("")
    result = run(folder, "--out", tmp_path / "file" / "table.md")
    assert result.exit_code == 2
    assert len(result.output.strip().splitlines()) == 1


@pytest.mark.parametrize("arguments", [["--format", "html"], ["--metric-variant", "best"], ["--no-such-option"]])
def test_bad_options_exit_2(folder, arguments):
    assert run(folder, *arguments).exit_code == 2


def test_bad_folders_exit_2_with_one_line(folder, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for path, words in (
        (tmp_path / "absent", "does not exist"),
        (tmp_path / "file", "is not a folder"),
        (tmp_path / "empty", "holds no records"),
        (tmp_path, "Folders in it that do: run"),
    ):
        result = run(path)
        assert result.exit_code == 2
        assert len(result.output.strip().splitlines()) == 1
        assert words in result.output


def test_invalid_records_are_lines_beneath(folder):
    path = next((folder / "records").rglob("*.json"))
    path.write_bytes(path.read_bytes()[:-9])
    result = run(folder)
    assert result.exit_code == 0
    assert f"invalid record {path.relative_to(folder).as_posix()}: not JSON" in " ".join(result.stdout.split())


def test_only_the_asked_cells(folder):
    ours = make_record("ours", 0)
    text = report(folder, "markdown", TableOptions(keys={ours.key}))
    assert "| ours |" in text
    assert "dmo" not in text


def test_report_does_not_write_into_the_run(folder):
    before = sorted(folder.rglob("*"))
    report(folder)
    assert sorted(folder.rglob("*")) == before


def test_report_of_nothing_raises_for_callers(tmp_path):
    with pytest.raises(UsageError, match="no records"):
        report(tmp_path)


def test_as_a_module_on_a_console_that_has_no_arrows(folder):
    command = [sys.executable, "-m", "benchmark.report", str(folder)]
    environment = {"PYTHONIOENCODING": "cp1252", "PYTHONPATH": "."}
    done = subprocess.run(command, capture_output=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert b"miou" in done.stdout
