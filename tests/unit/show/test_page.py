"""The report page: one file, the numbers of the tables, inert texts, and what a browser makes of it."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from seaborn.utils import relative_luminance
from typer.testing import CliRunner

from benchmark.api.reporting import page
from benchmark.records.store import Store
from benchmark.report import app
from benchmark.show.glance import glance_of
from benchmark.show.marks import LIGHT
from benchmark.show.page.build import render_page, style_sheet
from benchmark.show.wording import cell_text, lines_beneath
from benchmark.tables.folder import read_tables, tables_of
from benchmark.tables.labels import DASH
from tests.unit.made_records import SHARED, SINGLE_TASK, make_record

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ATTACK = "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"


class Parsed(HTMLParser):
    """Tags with their attributes, and all text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    store = Store(tmp_path / "run")
    for seed in range(3):
        moved = {
            task: {name: value * (1 + seed / 100) for name, value in scores.items()} for task, scores in SHARED.items()
        }
        store.write(make_record("single_task", seed, SINGLE_TASK, reference=True))
        store.write(make_record("hard_sharing", seed, moved, shared=True))
        store.write(make_record("ours", seed, moved, params={"note": ATTACK}))
    return tmp_path / "run"


def test_the_page_needs_no_network_and_nothing_beside_it(folder: Path) -> None:
    """No address is loaded: no script, style, picture or font from elsewhere; links to read on are no loading."""
    text = page(folder)
    for tag, attributes in Parsed(text).tags:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        if tag != "a":
            assert not {"href", "src", "srcset", "data"} & {
                name for name, value in attributes.items() if not (value or "").startswith(("#", "data:"))
            }
    assert "@import" not in text
    assert not re.search(r"url\((?!\s*[\"']?(?:#|data:))", text)
    assert not re.search(r"\bfetch\(|XMLHttpRequest|import\(", text)


def test_the_page_begins_with_the_answer_and_says_each_warning_once(folder: Path) -> None:
    """Before it stand the name and a list of contents: no warning twice, no metadata before numbers."""
    records, (table,), _ = read_tables(folder)
    banners = tuple(f"banner {number}" for number in range(8))
    text = render_page([dataclasses.replace(table, banners=banners)], records, [], Store(folder), command="x")
    assert re.findall(r"banner \d", text) == list(banners)
    assert text.count('class="banner"') == 1
    assert "7 more warnings" in text
    glance = glance_of(table)
    order = (glance.verdict[0], 'class="banner"', 'class="glance"', "All numbers", "newest record")
    places = [text.index(words) for words in order]
    assert places == sorted(places)
    rows = re.findall(r"<tr><th[^>]*>(?:<strong>)?([^<]*)", text.split('class="glance"')[1].split("</table>")[0])
    assert rows[1:] == [line.title.replace('"', "&#34;") for line in glance.lines]


def test_every_number_and_every_line_of_the_tables_is_on_it(folder: Path) -> None:
    (table,), _ = tables_of(folder)
    words = " ".join(" ".join(Parsed(page(folder)).words).split())
    for row in table.rows:
        for cell, column in zip(row.cells, table.columns, strict=True):
            assert " ".join(cell_text(cell, column, row.n).split()) in words
    for line in lines_beneath(table):
        if not line.startswith("audit"):  # shown by colour and in other words
            assert " ".join(line.split()) in words


def test_headings_are_words_and_what_methods_report_is_closed_at_start(tmp_path: Path) -> None:
    """A column's key, by which other forms have it, is one pointer away."""
    facts = {"density of the graph": {"value": 0.5, "unit": ""}}
    Store(tmp_path).write(make_record("hard_sharing", 0, audit={"facts": facts}))
    text = page(tmp_path)
    head = text.split('class="all"')[1].split("</thead>")[0]
    headings = re.findall(r"<th[^>]*>([^<]*)</th>", head)
    assert "Absolute error (metre) ↓" in headings
    assert not [heading for heading in headings if "_" in heading.replace("Delta_m", "")]
    assert re.search(r'title="depth\.abs_err"[^>]*>Absolute error', head)
    (closed,) = re.findall(r"<details>(?:(?!</details>).)*density of the graph", text, re.DOTALL)
    assert "What the methods report" in closed
    assert text.count("density of the graph") == 1


def test_tasks_are_dots_on_a_cut_axis_with_their_names_beside_them(folder: Path) -> None:
    """Bars from zero make 93.2 and 91.1 look equal: the smallest dot stands in the first quarter of its axis."""
    text = page(folder)
    assert "<rect" not in text
    assert "they do not begin at zero" in text
    chart = text.split('data-chart="semseg: mIoU (%) ↑"')[1].split("</svg>")[0]
    marks = [
        re.search(r'<g transform="translate\(([\d.]+) [\d.]+\)"', mark)[1] for mark in chart.split('class="mark"')[1:]
    ]
    places = [float(place) for place in marks]
    left, right = re.search(r'class="grid" d="M([\d.]+) [\d.]+H([\d.]+)"', chart).groups()
    assert min(places) < float(left) + 0.25 * (float(right) - float(left))
    assert max(places) > float(left) + 0.75 * (float(right) - float(left))
    assert chart.count('class="line') == 2  # whiskers, but of the row that is equal at every seed
    assert ">hard_sharing</text>" in chart


def test_texts_from_records_are_inert(folder: Path) -> None:
    text = page(folder)
    assert ATTACK not in text
    parsed = Parsed(text)
    assert sum(tag == "script" for tag, _ in parsed.tags) == 1  # our own
    assert not [tag for tag, attributes in parsed.tags if any(name.startswith("on") for name in attributes)]


def test_published_rows_stand_on_the_page(tmp_path: Path) -> None:
    """A shipped board of the same data and tasks: published number, ours, difference and verdict in one line."""
    store = Store(tmp_path / "run")
    values = {"semseg": {"miou": 50.0}, "depth": {"abs_err": 0.4}, "normals": {"mean_angle": 24.0}}
    data = {"dataset": "nyuv2", "layout": "mtan_npy", "protocol": "libmtl"}
    for method in ("single_task", "hard_sharing"):
        store.write(make_record(method, 0, values, reference=method == "single_task", data=data))
    text = page(tmp_path / "run")
    assert "Board nyuv2_13class_libmtl" in text
    (row,) = re.findall(r"<tr><th[^>]*>HPS \(EW weighting\)</th><td>hard_sharing</td><td>semseg.miou.*?</tr>", text)
    assert re.findall(r"<td>([^<]*)</td>", row)[2:] == ["54.1", "50", "1", "-4.1", DASH, "not comparable"]


def contrast(one: str, other: str) -> float:
    low, high = sorted(relative_luminance(color) + 0.05 for color in (one, other))
    return float(high / low)


def test_both_themes_can_be_read() -> None:
    """WCAG 2.2, level AA: 4.5 to 1 for text, 3 to 1 for marks and what shows the focus."""
    assert contrast("#000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#fff") == pytest.approx(4.48, abs=0.005)
    css = style_sheet()
    themes = [dict(re.findall(r"--([\w-]+):(#\w+)", part)) for part in re.findall(r"\{(color-scheme[^}]*)\}", css)]
    assert len(themes) == 3  # light; dark by the system; dark by the button
    assert themes[1] == themes[2]
    for theme in themes:
        for ground in ("bg", "card"):
            for text in ("ink", "soft", "link", "red"):
                assert contrast(theme[text], theme[ground]) >= 4.5, (text, ground)
            for mark in ("focus", *(f"c{number}" for number in range(len(LIGHT)))):
                assert contrast(theme[mark], theme[ground]) >= 3, (mark, ground)
        assert contrast(theme["warn"], theme["warn-bg"]) >= 4.5


def test_the_command_writes_the_page_and_says_where(folder: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [str(folder), "--html"])
    assert result.exit_code == 0, result.output
    assert (folder / "report.html").is_file()
    named = CliRunner().invoke(app, [str(folder), "--html", str(tmp_path / "mine.html")])
    assert named.exit_code == 0, named.output
    assert (tmp_path / "mine.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    missing = CliRunner().invoke(app, [str(tmp_path / "nowhere"), "--html"])
    assert missing.exit_code == 2


def test_the_page_and_pictures_or_a_text_can_be_asked_for_at_once(folder: Path, tmp_path: Path) -> None:
    drawn = CliRunner().invoke(app, [str(folder), "--html", "--figures", str(tmp_path / "figures")])
    assert drawn.exit_code == 0, drawn.output
    assert list((tmp_path / "figures").glob("*.png"))
    table = CliRunner().invoke(app, [str(folder), "--html", "--out", str(tmp_path / "table.txt")])
    assert table.exit_code == 0, table.output
    assert "hard_sharing" in (tmp_path / "table.txt").read_text(encoding="utf-8")
    changed = CliRunner().invoke(app, [str(folder), "--html", "--against", str(folder)])
    assert changed.exit_code == 0, changed.output
    assert changed.stdout.strip()


def rendered(folder: Path, fragment: str = "", then: str = "") -> str:
    """The document after its script ran, and `then` after it, from a real browser."""
    if BROWSER is None:
        pytest.skip("no Chromium is installed")
    file = folder / "report.html"
    file.write_text(page(folder) + f"<script>{then}</script>", encoding="utf-8")
    command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'browser'}"]
    found = subprocess.run(
        [*command, "--dump-dom", f"{file.as_uri()}{fragment}"], capture_output=True, text=True, timeout=120, check=False
    )
    assert "</html>" in found.stdout, found.stderr[-500:]
    return found.stdout


def test_a_phone_shows_the_answer_and_numbers_first(folder: Path) -> None:
    """390 x 844: verdict and first row on the first screen, nothing wider than the screen, names within charts."""
    measure = """
        const frame = document.createElement("iframe");
        frame.style = "width: 390px; height: 844px; border: 0";
        frame.srcdoc = document.documentElement.outerHTML.replace(/<script>[^]*?<\\/script>/g, "");
        frame.onload = () => {
          const page = frame.contentDocument;
          const bottom = (query) => page.querySelector(query).getBoundingClientRect().bottom;
          const outside = [...page.querySelectorAll("svg.chart text")].filter((text) => {
            const box = text.getBoundingClientRect(), chart = text.closest("svg").getBoundingClientRect();
            return box.width && (box.left < chart.left - 1 || box.right > chart.right + 1);
          });
          document.title = [bottom(".verdict"), bottom(".glance tbody tr"), page.documentElement.scrollWidth,
                            outside.map((text) => text.textContent).join("; ")].join("|");
        };
        document.documentElement.append(frame);
    """
    verdict, row, width, outside = re.findall(r"<title>([^<]*)</title>", rendered(folder, then=measure))[0].split("|")
    assert float(verdict) < float(row) < 844
    assert float(width) <= 390
    assert outside == ""


def rows_of(document: str) -> list[str]:
    """Titles of the rows of the first table of all numbers, in order, those that are filtered away left out."""
    body = document.split('class="all"')[1].split("<tbody>")[1].split("</tbody>")[0]
    shown = re.findall(r"<tr([^>]*)>\s*<th[^>]*>([^<]*)", body)
    return [title for attributes, title in shown if "off" not in attributes]


def test_a_browser_sorts_filters_and_changes_the_theme(folder: Path) -> None:
    """Column 0 is the method: ascending at the first press of its button, descending at the second."""
    plain = rows_of(rendered(folder))
    assert plain[0] == "single_task"
    ascending = rows_of(rendered(folder, "#sort=1,0"))
    assert ascending == sorted(ascending)
    assert rows_of(rendered(folder, "#sort=1,0,2")) == ascending[::-1]
    document = rendered(folder, "#filter=1,hard&theme=dark")
    assert rows_of(document) == ["hard_sharing"]
    assert re.search(r"<html[^>]*data-theme=\"dark\"", document)
    assert "1 of 3 rows" in document


def test_the_keyboard_enters_a_chart_once_and_moves_between_its_marks(folder: Path) -> None:
    charts = rendered(folder).split('<svg class="chart"')[1:]
    assert charts
    assert all(chart.split("</svg>")[0].count('tabindex="0"') == 1 for chart in charts)
    press = """
        const marks = [...document.querySelector("svg.chart").querySelectorAll(".mark")];
        const said = [];
        marks[0].focus();
        for (const key of ["ArrowRight", "ArrowRight", "ArrowRight", "Home", "ArrowLeft", "End", "ArrowUp"]) {
          document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
          said.push(marks.indexOf(document.activeElement));
        }
        const stops = marks.filter((mark) => mark.getAttribute("tabindex") === "0").map((mark) => marks.indexOf(mark));
        document.title = `${said} of ${marks.length}, stop ${stops}, ${document.getElementById("tip").textContent}`;
    """
    title = re.findall(r"<title>([^<]*)</title>", rendered(folder, then=press))[0]
    assert title.startswith("1,2,2,0,0,2,1 of 3, stop 1, hard_sharing: ")  # the tip says what has the focus


def test_a_browser_runs_no_text_of_a_record(folder: Path) -> None:
    assert "<title>ShareBench: run</title>" in rendered(folder)
