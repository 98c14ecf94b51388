"""Names and messages of others reach terminals, spreadsheets and typesetters as text, never as commands."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from rich.table import Table as RichTable

from benchmark.cli import make_console
from benchmark.compare.difference import difference, render_difference
from benchmark.escape import CsvWriter, plain
from benchmark.records.record import Record
from benchmark.records.store import Store
from benchmark.show.drawing import save_drawing
from benchmark.show.page import render_page
from benchmark.show.render import render_csv, render_latex, render_markdown, render_terminal
from benchmark.tables.table import aggregate
from tests.unit.made_records import make_failure, make_record

EVIL = '=HYPERLINK("http://x")|<b>&$_{}\\\x1b[31m\r\n\u202e\u2028\x9b'


def records(name: str) -> list[Record]:
    facts = {name: {"value": 0.5, "unit": name}}
    values = {name: {"miou": 40.0}, "depth": {"abs_err": 0.5}}
    data = {"dataset": name}
    rows = [
        make_record(name, seed, values, shared=True, audit={"facts": facts, "flags": [name]}, data=data)
        for seed in (0, 1)
    ]
    base = [make_record("single_task", seed, values, reference=True, data=data) for seed in (0, 1)]
    return [*rows, *base, make_failure(name, 2, message=name)]


@pytest.mark.parametrize("text", [EVIL, "\x1b]0;title\x07", "a\nb", "a\tb"])
def test_control_characters_are_written_out(text: str) -> None:
    assert plain(text).isprintable()
    assert plain("naïve ✗ ±") == "naïve ✗ ±"


def test_no_form_of_a_table_obeys_a_name(tmp_path: Path) -> None:
    found = records(EVIL)
    tables = aggregate(found)
    page = render_page(tables, found, [EVIL], Store(tmp_path), command="x", sections=[])
    difference_text = render_difference(difference(found[:1], found[1:2]), "terminal")
    texts = [render(tables, [EVIL]) for render in (render_terminal, render_markdown, render_csv, render_latex)]
    for text in (*texts, difference_text):
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\u2028]", text)
    assert "|<b>" not in page
    terminal, markdown, table_csv, latex = texts
    assert "\\x1b[31m" in terminal.replace("\n", "")
    for line in markdown.splitlines():
        assert not line or line[0] in "|*->"  # no line that a name began
        assert "<b>" not in line
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in rows}) <= 6  # one number of cells in each part
    assert len(list(csv.reader(io.StringIO(table_csv)))) == table_csv.count("\n")
    assert not re.search(r"(?<!\\)[&#]b", latex)


def test_no_cell_of_a_csv_is_a_formula_and_numbers_stay_numbers() -> None:
    out = io.StringIO()
    CsvWriter(out).writerows(
        [["=1+1", "+x", "-x", "@x", "\t=1"], ["-0.5", -0.5, "+1e-3", "", None], ["a=1", "-", "-inf", 3]]
    )
    texts, numbers, others = csv.reader(io.StringIO(out.getvalue()))
    assert texts == ["'=1+1", "'+x", "'-x", "'@x", "\\t=1"]
    assert numbers == ["-0.5", "-0.5", "+1e-3", "", ""]
    assert others == ["a=1", "'-", "-inf", "3"]


def test_every_cell_of_a_table_of_others_is_text() -> None:
    for line in csv.reader(io.StringIO(render_csv(aggregate(records("=evil")), ["=evil"]))):
        assert not any(cell.startswith(("=", "@")) for cell in line)


def test_a_console_shows_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    console, table = make_console(), RichTable("head")
    table.add_row("cell \x1b[31m")
    console.print(table)
    console.print("line \x1b]0;x\x07", markup=False)
    shown = capsys.readouterr().out
    assert "\\x1b[31m" in shown
    assert "line \\x1b]0;x\\x07" in shown
    assert "\x1b" not in shown


def test_a_dollar_in_a_name_is_no_formula(tmp_path: Path) -> None:
    def drawing() -> Figure:
        made = Figure(figsize=(1, 1))
        made.text(0, 0, r"$\frac{$")
        return made

    assert save_drawing(drawing, tmp_path / "x")
