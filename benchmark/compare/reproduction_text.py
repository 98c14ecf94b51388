"""The reproduction report as text: terminal, Markdown and CSV. A recalled row is marked in every form."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

from benchmark.compare.boards import LEGEND
from benchmark.compare.reproduction import VARIANTS, BoardReport, Comparison, RowReport
from benchmark.escape import CsvWriter, markdown_text, plain
from benchmark.show.page import Section
from benchmark.tables.labels import DASH

RECALLED = "recalled, unverified"
HEADS = (
    "published row",
    "ours",
    "metric",
    "published",
    "ours mean ± s.d.",
    "n",
    "difference",
    "h",
    "verdict",
)
CSV_HEADS = (
    "board", "table", "published_row", "standing", "third_party", "ours", "metric", "unit", "published", "ours_mean",
    "ours_sd", "n", "difference", "half_width", "verdict", "differences",
)  # fmt: skip


def render_reproduction(reports: Sequence[BoardReport], form: str, width: int = 120) -> str:
    """The reports in a form: terminal, markdown or csv."""
    if form == "csv":
        return _csv(reports)
    lines: list[str] = []
    for report in reports:
        lines += _markdown(report) if form == "markdown" else _terminal(report, width)
    return "\n".join(line.rstrip() for line in lines) + "\n"


def row_title(row: RowReport) -> str:
    """The published row as printed, with its mark; recalled rows are also named so in words."""
    said = f" [{RECALLED}]" if row.row.verification == "recalled" else ""
    by = f" [as printed by {row.third_party}]" if row.third_party else ""
    return f"{row.row.label}{said}{by}"


def head_line(report: BoardReport) -> str:
    """The board, and our table beside it."""
    beside = f"beside {report.table}" if report.table else f"shown alone ({report.board.reproducible_reason})"
    return f"Board {report.board.board}: {report.board.dataset}, {beside}"


def cells_of(row: RowReport, one: Comparison) -> tuple[str, ...]:
    """One number in the columns of HEADS."""
    arrow = "↑" if one.metric.higher_is_better else "↓"
    mean, sd = one.ours.mean, one.ours.sd
    ours = DASH if mean is None else f"{mean:.4g}" + ("" if sd is None else f" ± {sd:.2g}")
    return (
        row_title(row),
        row.ours or f"{DASH} ({row.reason})",
        f"{one.column} [{one.metric.unit}] {arrow}",
        DASH if one.published is None else f"{one.published:g}",
        ours,
        str(one.ours.n),
        DASH if one.difference is None or row.row.verification == "recalled" else f"{one.difference:+.3g}",
        DASH if one.half_width is None else f"{one.half_width:.2g}",
        one.verdict,
    )


def lines_beneath(report: BoardReport) -> Iterator[str]:
    """Differences once for all rows that share them, Deltas, notes and the legend."""
    said: dict[str, list[str]] = {}
    for row in report.rows:
        if row.ours is not None:
            for difference in row.differences:
                mark = "✗ not comparable" if difference.level == "excludes" else "~"
                said.setdefault(f"{mark} {difference}", []).append(row.ours)
    rows = {row.ours for row in report.rows if row.ours is not None}
    for text, labels in said.items():
        who = "all rows" if set(labels) == rows else ", ".join(dict.fromkeys(labels))
        yield f"{text} ({who})"
    for row in report.rows:
        for variant in VARIANTS:
            published, ours = row.delta[variant]
            if published is not None or ours is not None:
                yield f"Delta_m {variant}: {row.row.label}: published {_signed(published)}, ours {_signed(ours)}"
    yield from report.notes
    if any(row.row.verification != "read" for row in report.rows):
        yield LEGEND


def page_sections(reports: Sequence[BoardReport]) -> list[Section]:
    """The reports as further tables of the page."""
    return [
        Section(
            head_line(report),
            HEADS,
            [cells_of(row, one) for row, one in _shown(report)],
            list(lines_beneath(report)),
        )
        for report in reports
    ]


def _signed(value: float | None) -> str:
    return DASH if value is None else f"{value:+.2f}"


def _shown(report: BoardReport) -> Iterator[tuple[RowReport, Comparison]]:
    """Rows and numbers for which a published value or one of ours exists."""
    for row in report.rows:
        for one in row.comparisons:
            if one.published is not None or one.ours.n:
                yield row, one


def _markdown(report: BoardReport) -> Iterator[str]:
    yield f"**{markdown_text(head_line(report))}**"
    yield ""
    yield f"| {' | '.join(HEADS)} |"
    yield f"|{'---|' * len(HEADS)}"
    for row, one in _shown(report):
        yield f"| {' | '.join(markdown_text(cell) for cell in cells_of(row, one))} |"
    yield ""
    yield from (f"- {markdown_text(line)}" for line in lines_beneath(report))
    yield ""


def _terminal(report: BoardReport, width: int) -> Iterator[str]:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for number, head in enumerate(HEADS):
        table.add_column(head, overflow="fold", justify="right" if 3 <= number < 8 else "left")
    before = ""
    for row, one in _shown(report):
        cells = cells_of(row, one)
        first, before = cells[0] if cells[0] + cells[1] != before else "", cells[0] + cells[1]
        table.add_row(*(Text(plain(cell)) for cell in (first, cells[1] if first else "", *cells[2:])))
    out = io.StringIO()
    console = Console(file=out, width=width, highlight=False, legacy_windows=False)
    console.print(Text(plain(head_line(report)), style="bold"))
    console.print(table)
    for line in lines_beneath(report):
        console.print(Text(plain(line)))
    yield from out.getvalue().splitlines()
    yield ""


def _csv(reports: Sequence[BoardReport]) -> str:
    out = io.StringIO()
    writer = CsvWriter(out)
    writer.writerow(CSV_HEADS)
    for report in reports:
        for row, one in _shown(report):
            recalled = row.row.verification == "recalled"
            differences = "; ".join(map(str, row.differences))
            writer.writerow([
                report.board.board, report.table, row.row.label, RECALLED if recalled else row.row.verification,
                row.third_party, row.ours or row.reason, one.column, one.metric.unit, _exact(one.published),
                _exact(one.ours.mean), _exact(one.ours.sd), one.ours.n, "" if recalled else _exact(one.difference),
                _exact(one.half_width), one.verdict, differences,
            ])  # fmt: skip
    return out.getvalue()


def _exact(value: float | None) -> str:
    return "" if value is None else repr(value)
