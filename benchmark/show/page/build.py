"""Tables and records -> the page. Numbers and words are those of `benchmark.tables.table` and
`benchmark.show.wording`; nothing is computed here. Every text goes through the template's escaping: labels and notes
come from users' files.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources

import jinja2
from markupsafe import Markup

from benchmark.records.record import INVALID, Record
from benchmark.records.store import Store
from benchmark.show.glance import Glance, glance_of, subject_of
from benchmark.show.marks import DARK, LIGHT, N_STYLES
from benchmark.show.names import column_key, in_words
from benchmark.show.page.graphics import NAMES, Block, curve_charts, dot_charts, scatters
from benchmark.show.page.pictures import MAX_BYTES, MAX_PICTURES, Budget, Picture, n_figures, pictures_of
from benchmark.show.render import PARTS
from benchmark.show.wording import (
    cell_text,
    fact_lines,
    finding_text,
    floor_texts,
    head_line,
    legend,
    note_lines,
    row_title,
    seeds_text,
)
from benchmark.tables.columns import Part
from benchmark.tables.rows import Row
from benchmark.tables.table import Table
from benchmark.version import __version__

MAX_TABLES_WITH_CHARTS = 40  # more tables than these have their numbers, without charts
MAX_HASHES = 500  # records that are listed one by one
MAX_VALUES = 6  # of one version field
VERSIONS = ("suite", "package_hash", "python", "torch", "torchvision", "timm", "cuda", "cudnn", "numpy")


MAIN_VERSIONS = ("suite", "torch", "timm")


@dataclasses.dataclass(frozen=True)
class Section:
    """A further table of the page. header and the lines of rows have equal lengths; notes stand beneath."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class _Cell:
    text: str
    value: str  # full precision, what sorting goes by; "" for a null
    best: bool


@dataclasses.dataclass(frozen=True)
class _TableView:
    """A table as the template takes it. groups: (title, part, number of columns) above the columns. columns: (heading,
    key, part, lower is better).
    """

    number: int
    subject: str
    setting: str
    glance: Glance
    shown_in: str | None
    head_line: str
    banners: Sequence[str]
    groups: Sequence[tuple[str, Part, int]]
    columns: Sequence[tuple[str, str, Part, bool]]
    parts: Sequence[tuple[Part, str]]
    rows: Sequence[tuple[str, bool, str, int, Sequence[_Cell]]]
    floors: Sequence[str]
    notes: Sequence[str]
    facts: Sequence[str]
    audit_equal: str
    findings: Sequence[tuple[str, str]]
    blocks: Sequence[Block]
    found: Sequence[tuple[str, Sequence[Picture]]]
    limits: Sequence[str]


def render_page(
    tables: Sequence[Table],
    records: Sequence[Record],
    invalid: Sequence[str],
    store: Store,
    *,
    command: str,
    sections: Sequence[Section] = (),
) -> str:
    """The page as text. command: how to print it again; sections: further tables, the reproduction report for one.

    Curves and pictures are those of each row's first done seed, within limits that the page states.
    """
    by_row = _records_of_rows(records)
    budget = Budget()
    views = [_view(number, table, by_row, store, budget) for number, table in enumerate(tables)]
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_file), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("template.html").render(
        name=store.root.resolve().name,
        css=Markup(style_sheet()),
        js=Markup(_file("page.js")),
        facts=_facts(records, tables),
        views=views,
        sections=sections,
        versions=_versions(records),
        hashes=_hashes(records),
        n_hashes=MAX_HASHES,
        digest=_digest(records),
        n_records=sum(record.status != INVALID for record in records),
        invalid=invalid,
        left_out=budget.left_out,
        absent=budget.absent,
        limits=(MAX_PICTURES, MAX_BYTES // 1_000_000),
        command=command,
        version=__version__,
    )


def style_sheet() -> str:
    """The page's CSS, with the colours of rows in both themes."""
    text = _file("page.css")
    for theme, colors in (("light", LIGHT), ("dark", DARK)):
        named = ";".join(f"--c{number}:{color}" for number, color in enumerate(colors))
        text = text.replace(f"/*colours of rows, {theme}*/", named)
    return text


def _file(name: str) -> str:
    return resources.files("benchmark.show.page").joinpath(name).read_text(encoding="utf-8")


def _records_of_rows(records: Sequence[Record]) -> dict[tuple[str, bytes], list[Record]]:
    """{(table, row): records in the order of their seeds}."""
    groups: dict[tuple[str, bytes], list[Record]] = defaultdict(list)
    for record in records:
        if record.status != INVALID:
            groups[record.table_key, record.row_key].append(record)
    return {row: sorted(group, key=lambda record: record.seed) for row, group in groups.items()}


def _view(
    number: int,
    table: Table,
    by_row: Mapping[tuple[str, bytes], Sequence[Record]],
    store: Store,
    budget: Budget,
) -> _TableView:
    firsts = [_first_done(table, row, by_row) for row in table.rows]
    blocks: list[Block] = []
    found: list[tuple[str, Sequence[Picture]]] = []
    limits: list[str] = []
    if number < MAX_TABLES_WITH_CHARTS:
        blocks, limits = _blocks(table, firsts)
        found = [
            (f"{table.rows[position].label}, seed {record.seed}", pictures)
            for position, record in enumerate(firsts)
            if record is not None and (pictures := list(pictures_of(record, store, budget)))
        ]
    else:
        limits.append(f"Charts and pictures are drawn for the first {MAX_TABLES_WITH_CHARTS} tables.")
        budget.left_out += n_figures([record for record in firsts if record is not None])
    positions = _ordered(table)
    glance, subject = glance_of(table), subject_of(table)
    equal = f"{table.audit.n_equal} fields are equal for all rows: {', '.join(table.audit.equal)}"
    return _TableView(
        number=number + 1,
        subject=subject,
        setting=glance.head.removeprefix(f"{subject}, "),
        glance=dataclasses.replace(
            glance,
            titles=tuple(tuple(map(in_words, title)) for title in glance.titles),
            legend=in_words(glance.legend),
        ),
        shown_in=table.shown_in,
        head_line=head_line(table),
        banners=table.banners,
        groups=_groups(table, positions),
        columns=[
            (NAMES.column(column), column_key(column), column.part, column.higher_is_better is False)
            for column in (table.columns[n] for n in positions)
        ],
        parts=[(part, in_words(legend(table, part))) for part in PARTS if any(c.part == part for c in table.columns)],
        rows=[
            (row_title(table, n), n in table.audit.red, seeds_text(row), row.n, _cells(table, n, positions))
            for n, row in enumerate(table.rows)
        ],
        floors=_floors(table, positions),
        notes=note_lines(table),
        facts=list(fact_lines(table)),
        audit_equal=equal if table.audit.equal else "",
        findings=[(finding.rule, finding_text(finding)) for finding in table.audit.findings],
        blocks=blocks,
        found=found,
        limits=limits,
    )


def _first_done(table: Table, row: Row, by_row: Mapping[tuple[str, bytes], Sequence[Record]]) -> Record | None:
    group = by_row.get((table.key, row.key), ())
    return next((record for record in group if record.status == "done"), None)


def _blocks(table: Table, firsts: Sequence[Record | None]) -> tuple[list[Block], list[str]]:
    """The charts of a table, and what of it they leave out."""
    made = [scatters(table), dot_charts(table), curve_charts(table, firsts)]
    blocks = [block for found, _ in made for block in found]
    limits = [limit for _, limit in made if limit]
    if len(table.rows) > N_STYLES:
        limits.append(f"Marks repeat after {N_STYLES} rows; a mark says its row under the pointer or the focus.")
    return blocks, limits


def _ordered(table: Table) -> list[int]:
    """Positions of the columns, part after part; what methods found is a line a method."""
    shown = [n for n, column in enumerate(table.columns) if column.part in PARTS]
    return sorted(shown, key=lambda n: PARTS.index(table.columns[n].part))


def _groups(table: Table, positions: Sequence[int]) -> list[tuple[str, Part, int]]:
    groups: list[tuple[str, Part, int]] = []
    for position in positions:
        column = table.columns[position]
        title = column.group or ("All tasks" if column.part == "accuracy" else column.part.capitalize())
        if groups and groups[-1][:2] == (title, column.part):
            groups[-1] = (title, column.part, groups[-1][2] + 1)
        else:
            groups.append((title, column.part, 1))
    return groups


def _cells(table: Table, number: int, positions: Sequence[int]) -> list[_Cell]:
    row, cells = table.rows[number], []
    for position in positions:
        summary, column = row.cells[position], table.columns[position]
        value = "" if summary.mean is None else repr(summary.mean)
        cells.append(_Cell(cell_text(summary, column, row.n), value, (number, position) in table.best))
    return cells


def _floors(table: Table, positions: Sequence[int]) -> list[str]:
    """The cells of the constant prediction, empty in columns that are no accuracy; none where no floor is known."""
    texts = floor_texts(table, positions)
    if texts is None:
        return []
    return [text if table.columns[n].part == "accuracy" else "" for n, text in zip(positions, texts, strict=True)]


def _facts(records: Sequence[Record], tables: Sequence[Table]) -> list[tuple[str, str]]:
    valid = [record for record in records if record.status != INVALID]
    statuses = Counter(record.status for record in records)
    newest = max((record.finished or record.started for record in valid), default="")
    devices = Counter(record.environment.get("device") or "not recorded" for record in valid)
    n_rows = sum(len(table.rows) for table in tables)
    facts = [
        ("records", f"{len(records)} ({', '.join(f'{n} {status}' for status, n in statuses.most_common())})"),
        ("tables", f"{len(tables)}, with {n_rows} rows"),
        ("data sets", _listed(record.cell["data"]["dataset"] for record in valid)),
        ("backbones", _listed(record.cell["backbone"]["name"] for record in valid)),
        ("device", ", ".join(device for device, _ in devices.most_common(MAX_VALUES))),
        ("software", "; ".join(f"{name} {text}" for name, text in _versions(records) if name in MAIN_VERSIONS)),
        ("newest record", newest),
    ]  # fmt: skip
    return [(name, text) for name, text in facts if text]


def _listed(names: Iterable[str]) -> str:
    found = sorted(set(names))
    more = f" and {len(found) - 12} more" if len(found) > 12 else ""
    return ", ".join(found[:12]) + more


def _versions(records: Sequence[Record]) -> list[tuple[str, str]]:
    """Field and its values, with the number of records where there are several."""
    valid = [record for record in records if record.status != INVALID and record.versions]
    lines = []
    for name in VERSIONS:
        counted = Counter(str(record.versions[name]) for record in valid if record.versions.get(name) is not None)
        values = [text if len(counted) == 1 else f"{text} ({n} records)" for text, n in counted.most_common(MAX_VALUES)]
        more = [f"{len(counted) - MAX_VALUES} more"] if len(counted) > MAX_VALUES else []
        if values:
            lines.append((name, ", ".join([*values, *more])))
    return lines


def _hashes(records: Sequence[Record]) -> list[tuple[str, str, str, str]]:
    valid = [record for record in records if record.status != INVALID]
    return [
        (record.key, f"{record.method}, seed {record.seed}", record.status, record.record_hash)
        for record in valid[:MAX_HASHES]
    ]


def _digest(records: Sequence[Record]) -> str:
    """sha256 over the sorted record hashes, a line each: two pages of the same records show the same digest."""
    hashes = sorted(record.record_hash for record in records if record.status != INVALID)
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()
