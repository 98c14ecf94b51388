"""Boards: numbers of papers keep their source and standing, and none is shown without the mark that it needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from benchmark.compare.boards import FOLDER, LEGEND, MARKS, board_names, describe, parse_board, read_board
from benchmark.list import app
from benchmark.plan.suite_file import suite_names
from datasets.errors import UnknownNameError, UsageError
from datasets.kinds.metrics import METRICS, get_metric
from datasets.protocols import PROTOCOLS

PUBLISHED_ONLY = {"decathlon_score", "average_drop", "relative_performance", "compute", "rmse_as_labelled", "error"}
PERCENT = {"miou", "pixel_acc", "accuracy", "accuracy_mean", "within_11_25", "within_22_5", "within_30", "delta_1_25"}


def test_all_boards_are_there() -> None:
    assert len(board_names()) == 37
    assert sum(len(read_board(name).rows) for name in board_names()) == 363
    standing = [row.verification for name in board_names() for row in read_board(name).rows]
    assert [standing.count(kind) for kind in ("read", "secondary", "recalled")] == [288, 43, 32]


@pytest.mark.parametrize("name", board_names())
def test_columns_are_metrics_of_the_registry_or_known_as_published_only(name: str) -> None:
    board = read_board(name)
    for column, metric in board.columns.items():
        if metric.name in PUBLISHED_ONLY:
            continue
        assert metric.name in METRICS, column
        assert metric.higher_is_better == get_metric(metric.name).higher_is_better, column
        if metric.name in PERCENT:
            values = [row.values.get(column) for row in board.rows]
            assert all(value is None or 0 <= value <= 100 for value in values), column


@pytest.mark.parametrize("name", board_names())
def test_keys_speak_the_language_of_the_suite(name: str) -> None:
    board = read_board(name)
    assert board.key.protocol is None or board.key.protocol in PROTOCOLS
    if board.tasks:  # some sources print no value of a task
        assert set(board.key.classes or {}) <= set(board.tasks)
    if board.key.backbone not in (None, "per_row"):
        assert " " not in str(board.key.backbone)


@pytest.mark.parametrize("name", board_names())
def test_recalled_rows_are_marked_and_have_no_locator(name: str) -> None:
    board = read_board(name)
    text = "\n".join(describe(board))
    for row in board.rows:
        if row.verification == "recalled":
            assert row.source.url is None
            assert row.source.doi is None
            assert row.label.startswith(f"{MARKS['recalled']} ")
        assert row.label in text
    assert (LEGEND in text) == any(row.verification != "read" for row in board.rows)


def test_shipped_suites_of_published_settings_have_their_board() -> None:
    for suite in (
        "nyuv2_3task_adashare",
        "nyuv2_2task_adashare",
        "cityscapes_2task_adashare",
        "nyuv2_13class_libmtl",
        "taskonomy_5task_adashare",
    ):
        assert suite in suite_names()
        assert read_board(suite).reproducible == "suite"
        assert read_board(suite).key.selection in ("test", None)


def broken(**changes: object) -> str:
    document = yaml.safe_load((FOLDER / "nyuv2_3task_adashare.yaml").read_text(encoding="utf-8"))
    document.update(changes)
    return yaml.safe_dump(document)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (broken(reproducible="maybe"), "reproducible: .*'suite' or 'report_only'"),
        (broken(rows=[]), "rows: .*at least 1 item"),
        (broken(tasks={}), "not a column of the board"),
        (broken(board="other"), "calls itself 'other'"),
        ("a: [", "line 1: not valid YAML"),
    ],
)
def test_a_broken_board_is_one_line(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_board(text, "nyuv2_3task_adashare")


def test_boards_are_listed_and_described() -> None:
    listed = CliRunner().invoke(app, ["boards"])
    assert listed.exit_code == 0
    assert all(name in listed.output for name in board_names())
    board = CliRunner().invoke(app, ["nyuv2_2task_adashare"])
    assert "Suite nyuv2_2task_adashare" in board.output
    assert "Board nyuv2_2task_adashare" in board.output  # a suite and its board have one name
    with pytest.raises(UnknownNameError, match="nyuv2_3task_adashare"):
        read_board("nyuv2_3tasks_adashare")


def test_boards_are_read_without_torch() -> None:
    code = (
        "import sys; from benchmark.compare.boards import overview; list(overview()); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_boards_are_package_data() -> None:
    project = (Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8")
    assert '"published/*.yaml"' in project
