"""A table for a paper: what is asked for, under the names of a page, in a float that holds no notes."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmark.records.store import Store
from benchmark.report import app
from benchmark.show.latex import Paper, render_latex
from benchmark.show.names import Names, column_key, in_words, read_names
from benchmark.tables.table import Table, aggregate
from datasets.errors import UnknownNameError, UsageError
from tests.unit.made_records import SHARED, SINGLE_TASK, make_record

PDFLATEX = shutil.which("pdflatex")


def table(n_seeds: int = 3) -> Table:
    records = []
    for seed in range(n_seeds):
        moved = {task: {name: v * (1 + seed / 100) for name, v in scores.items()} for task, scores in SHARED.items()}
        records.append(make_record("single_task", seed, SINGLE_TASK, reference=True))
        records.append(make_record("hard_sharing", seed, moved, shared=True, params={"factor": 1}))
        records.append(make_record("hard_sharing", seed, moved, params={"factor": 2}))
    (found,) = aggregate(records)
    return found


def float_of(text: str) -> str:
    return text.split(r"\begin{table}")[1].split(r"\end{table}")[0]


def body_of(text: str) -> list[list[str]]:
    lines = text.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    return [line.removesuffix(r" \\").split(" & ") for line in lines]


def test_a_paper_has_the_columns_and_rows_that_are_asked_for_in_that_order() -> None:
    text = render_latex(
        [table()], paper=Paper(["delta_m", "depth", "semseg.miou"], ["hard_sharing (factor=2)", "single_task"])
    )
    rows = body_of(text)
    assert [row[0] for row in rows] == [r"hard\_sharing (factor=2)", r"single\_task"]
    assert [len(row) for row in rows] == [5, 5]
    assert rows[1][1:] == [
        r"0.00 $\pm$ 0.00", r"0.5000 $\pm$ 0.0000", r"\textbf{0.2000 $\pm$ 0.0000}", r"40.00 $\pm$ 0.00",
    ]  # fmt: skip
    assert "1 of 3 rows are left out" in text
    assert [row[0] for row in body_of(render_latex([table()], paper=Paper(rows=["hard_sharing"])))] == [
        r"hard\_sharing (factor=1)",
        r"hard\_sharing (factor=2)",
    ]


def test_the_float_has_a_short_caption_and_the_notes_stand_apart() -> None:
    text = render_latex([table(1)])
    caption = re.findall(r"\\caption{(.*)}", text)
    assert caption == ["toy on resnet18, 100 steps: n=1."]
    notes = text.split(r"\end{table}")[1]
    assert r"\item {}one seed: differences are not evidence" in notes
    assert "audit" in notes
    assert not re.search("evidence|audit|protocol", float_of(text))
    assert render_latex([table(3)]).count("bold: not told apart from the best") == 1


def test_of_two_seeds_a_paper_prints_the_mean() -> None:
    (row,) = body_of(render_latex([table(2)], paper=Paper(["semseg.miou"], ["hard_sharing (factor=1)"])))
    assert row[1] == "44.22"


def test_one_metric_stands_over_the_tasks_that_share_it() -> None:
    values = {"left": {"accuracy": 90.0}, "right": {"accuracy": 80.0}}
    text = render_latex(aggregate([make_record("a", 0, values), make_record("b", 0, values)]))
    assert r"\multicolumn{2}{c}{Accuracy (\%) $\uparrow$}" in text
    assert "Method & left & right & " in text
    assert "Method & Accuracy" not in text


@pytest.mark.parametrize(
    ("options", "nearest"),
    [
        (["--columns", "semseg.miu"], "'semseg.miou'"),
        (["--columns", "delta"], "'delta_m'"),
        (["--rows", "hard_sharin"], "'hard_sharing'"),
    ],
)
def test_an_unknown_name_is_one_line_with_the_nearest(tmp_path: Path, options: list[str], nearest: str) -> None:
    Store(tmp_path).write(make_record("hard_sharing", 0))
    result = CliRunner().invoke(app, [str(tmp_path), "--format", "latex", *options])
    assert result.exit_code == 2
    (line,) = result.output.strip().splitlines()
    assert f"Nearest: {nearest}" in line


def test_choices_without_latex_are_refused(tmp_path: Path) -> None:
    Store(tmp_path).write(make_record("hard_sharing", 0))
    result = CliRunner().invoke(app, [str(tmp_path), "--rows", "hard_sharing"])
    assert result.exit_code == 2
    assert "--format latex" in result.output


def test_names_of_a_page_are_printed_and_what_names_nothing_is_said(tmp_path: Path) -> None:
    file = tmp_path / "names.yaml"
    file.write_text(
        "rows: {hard_sharing: Hard sharing, 'hard_sharing (factor=2)': Longer, single_task: Alone}\n"
        "columns: {miou: IoU, x_backbone: Size}\ntasks: {semseg: Segmentation, dept: Depth}\n"
    )
    names = read_names(file)
    text = render_latex([table()], paper=Paper(names=names))
    assert [row[0] for row in body_of(text)] == ["Alone", "Hard sharing (factor=1)", "Longer"]
    assert r"\multicolumn{1}{c}{Segmentation}" in text
    assert r"& IoU (\%) $\uparrow$ &" in text
    assert r"Size $\downarrow$" in text
    assert "_sharing" not in text.split("% --columns")[0].replace(r"\_", "_")  # nor in a note
    assert list(names.unused([table()])) == ["no task 'dept' here; nearest: 'depth'"]


@pytest.mark.parametrize(
    ("text", "words"),
    [("rows: [a]", "rows"), ("row: {a: b}", "row: "), ("tasks: {a: [b]}", "tasks.a"), ("- a", "expected rows")],
)
def test_a_page_that_is_none_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "names.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=re.escape(words)) as error:
        read_names(file)
    assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match="cannot be read"):
        read_names(tmp_path / "absent.yaml")


def test_every_column_has_a_key_of_its_own_and_words_in_place_of_it() -> None:
    columns = table().columns
    assert len({column_key(column) for column in columns}) == len(columns)
    for column in columns:
        assert "_" not in Names().column(column).replace("Delta_m", "")
    assert in_words("x_backbone: size; delta_1_25_2, the_miou and miou") == (
        "Parameters, x backbone: size; δ < 1.25², the_miou and mIoU"
    )


def test_nothing_asked_for_in_another_table_is_missed() -> None:
    """A folder with two tables: a column of one is no error for the other, which is left out."""
    other = aggregate([make_record("hard_sharing", 0, {"left": {"accuracy": 90.0}})])
    text = render_latex([table(), *other], paper=Paper(["left"]))
    assert text.count(r"\begin{table}") == 1
    with pytest.raises(UnknownNameError):
        render_latex([table()], paper=Paper(["left"]))


def test_latex_compiles(tmp_path: Path) -> None:
    if PDFLATEX is None:
        pytest.skip("no pdflatex is installed")
    evil = "[a_b] & 50% #{x}~^\\ $<|> °±²δ"
    records = [make_record(evil, seed, {evil: {"miou": 40.0 + seed}}) for seed in range(3)]
    tables = [table(), *aggregate(records)]
    page = r"\documentclass{article}\usepackage{booktabs}\begin{document}" + "\n"
    page += render_latex(tables, [evil], Paper(["all"])) + r"\end{document}"
    (tmp_path / "page.tex").write_text(page, encoding="utf-8")
    done = subprocess.run(
        [PDFLATEX, "-interaction=nonstopmode", "-halt-on-error", "page.tex"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-1500:]
