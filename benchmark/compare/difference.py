"""What changed between two runs: settings, code, versions, results, cell by cell. Reads records, trains nothing.

Cells pair by their key, which covers everything that a result depends on except code, versions and machine. An unpaired
cell is shown beside the nearest one of the other run, with the settings in which they differ.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator, Mapping, Sequence

from benchmark.escape import CsvWriter, markdown_text, plain
from benchmark.records.record import INVALID, Record
from benchmark.tables.labels import DASH

VERSIONS = (
    *(f"versions.{name}" for name in ("package_hash", "python", "torch", "torchvision", "timm", "numpy", "cuda")),
    *(f"environment.{name}" for name in ("device", "cpu", "platform", "git.commit")),
)
OF_CODE = ("package_hash", "training_hash", "method_hash", "torch", "timm")  # versions
OF_RESULT = ("size", "compute", "graph", "n_evaluated")
SHOWN_DIGITS = 12  # of hashes
CSV_HEADS = ("cell", "state", "what", "old", "new", "difference")


@dataclasses.dataclass(frozen=True)
class Change:
    """One value that differs. difference: new - old, for numbers."""

    what: str
    old: object
    new: object

    @property
    def difference(self) -> float | None:
        """None if one of the two is not a number."""
        if isinstance(self.old, (int, float)) and isinstance(self.new, (int, float)):
            return float(self.new) - float(self.old)
        return None

    def __str__(self) -> str:
        by = "" if self.difference is None else f" ({self.difference:+.4g})"
        return f"{self.what}: {_said(self.old)} -> {_said(self.new)}{by}"


@dataclasses.dataclass(frozen=True)
class CellDifference:
    """A pair of cells. unexplained: another result of the same code, versions and settings."""

    title: str
    changes: tuple[Change, ...]
    unexplained: bool


@dataclasses.dataclass(frozen=True)
class Unpaired:
    """A cell that only one of the runs has. only_in: `old` or `new`. nearest: the changes to the nearest cell of the
    other run, which is called `beside`; empty if that run has no cell of the method.
    """

    title: str
    only_in: str
    beside: str
    nearest: tuple[Change, ...]


@dataclasses.dataclass(frozen=True)
class RunDifference:
    """versions: of code, libraries and machine, over all records. invalid: files that cannot be trusted."""

    versions: tuple[Change, ...]
    cells: tuple[CellDifference, ...]
    unpaired: tuple[Unpaired, ...]
    invalid: tuple[str, ...]

    @property
    def summary(self) -> str:
        """One line of counts."""
        changed = sum(bool(cell.changes) for cell in self.cells)
        unexplained = sum(cell.unexplained for cell in self.cells)
        said = f"{len(self.cells) - changed} cells identical, {changed} changed, {len(self.unpaired)} unpaired"
        return said + (f"; {unexplained} without a reason in code, versions or settings" if unexplained else "")


def difference(old: Sequence[Record], new: Sequence[Record]) -> RunDifference:
    """What changed from one run to another."""
    invalid = [record.error["message"] for record in (*old, *new) if record.status == INVALID and record.error]
    before = {record.key: record for record in old if record.status != INVALID}
    after = {record.key: record for record in new if record.status != INVALID}
    pairs = [(before[key], after[key]) for key in before if key in after]
    lost = [record for key, record in before.items() if key not in after]
    gained = [record for key, record in after.items() if key not in before]
    unpaired = [
        *(_unpaired(record, "old", [*gained, *after.values()]) for record in lost),
        *(_unpaired(record, "new", [*lost, *before.values()]) for record in gained),
    ]
    return RunDifference(
        versions=tuple(_versions(list(before.values()), list(after.values()))),
        cells=tuple(sorted((_pair(*pair) for pair in pairs), key=lambda cell: cell.title)),
        unpaired=tuple(sorted(unpaired, key=lambda one: (one.title, one.only_in))),
        invalid=tuple(invalid),
    )


def _versions(old: Sequence[Record], new: Sequence[Record]) -> Iterator[Change]:
    """Versions that not all records of both runs share; methods' own code by method."""
    for path in VERSIONS:
        was, now = (sorted({_short(record.value_at(path)) for record in run}) for run in (old, new))
        if was != now and was and now:
            yield Change(" ".join(path.split(".")[1:]), ", ".join(was), ", ".join(now))
    before, after = _code_of_methods(old), _code_of_methods(new)
    for method in sorted(before.keys() & after.keys()):
        if before[method] != after[method]:
            yield Change(f"code of {method}", before[method], after[method])


def _code_of_methods(records: Sequence[Record]) -> dict[str, str]:
    return {record.method: _short(record.versions.get("method_hash")) for record in records}


def _short(value: object) -> str:
    text = "none" if value is None else str(value)
    return text[:SHOWN_DIGITS] if len(text) >= 32 else text


def _pair(old: Record, new: Record) -> CellDifference:
    changes = list(_results(old, new))
    same_code = all(old.versions.get(name) == new.versions.get(name) for name in OF_CODE)
    unexplained = same_code and bool(old.result_hash) and old.result_hash != new.result_hash
    if old.result_hash != new.result_hash and not changes:  # weights alone differ
        changes.append(Change("result_hash", _short(old.result_hash), _short(new.result_hash)))
    return CellDifference(title_of(new), tuple(changes), unexplained and old.status == new.status == "done")


def _results(old: Record, new: Record) -> Iterator[Change]:
    """Status, metrics, sizes, compute, graph."""
    if old.status != new.status:
        yield Change("status", old.status, new.status)
    yield from _changes(
        {f"{task} {name}": entry["value"] for task, scores in old.metrics.items() for name, entry in scores.items()},
        {f"{task} {name}": entry["value"] for task, scores in new.metrics.items() for name, entry in scores.items()},
    )
    for section in OF_RESULT:
        yield from _changes(flat(getattr(old, section), section), flat(getattr(new, section), section))


def _changes(old: Mapping[str, object], new: Mapping[str, object]) -> Iterator[Change]:
    for name in dict.fromkeys([*old, *new]):
        if old.get(name) != new.get(name):
            yield Change(name, old.get(name), new.get(name))


def flat(value: object, prefix: str = "") -> dict[str, object]:
    """The leaves of nested mappings by dotted name; lists are leaves."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    found: dict[str, object] = {}
    for name, item in value.items():
        found |= flat(item, f"{prefix}.{name}" if prefix else str(name))
    return found


def _unpaired(record: Record, only_in: str, others: Sequence[Record]) -> Unpaired:
    """The cell beside the one of its method in the other run that differs in the fewest settings; of several the first.

    others: first those that are unpaired too, since this cell has probably become one of them.
    """
    mine = flat(record.cell)
    candidates = [other for other in others if other.method == record.method]
    if not candidates:
        return Unpaired(title_of(record), only_in, "", ())
    near = min(candidates, key=lambda other: len(list(_changes(mine, flat(other.cell)))))
    theirs = flat(near.cell)
    old, new = (mine, theirs) if only_in == "old" else (theirs, mine)
    return Unpaired(title_of(record), only_in, title_of(near), tuple(_changes(old, new)))


def title_of(record: Record) -> str:
    """Method, data, backbone and seed, as cells are called while they run."""
    return f"{record.title} [{record.key[:8]}]"


def _said(value: object) -> str:
    if value is None:
        return DASH
    if isinstance(value, float):
        return f"{value:.6g}"
    return _short(value)


def lines(found: RunDifference) -> Iterator[str]:
    """The difference for people, line by line; identical cells are counted, not listed."""
    yield found.summary
    for change in found.versions:
        yield f"version {change}"
    for cell in found.cells:
        if cell.changes:
            mark = "! same code, versions and settings, other result: " if cell.unexplained else ""
            yield f"{mark}{cell.title}"
            yield from (f"    {change}" for change in cell.changes)
    for one in found.unpaired:
        reason = f"nearest in the other run: {one.beside}" if one.beside else "the other run has no cell of its method"
        yield f"only in the {one.only_in} run: {one.title}; {reason}"
        yield from (f"    {change}" for change in one.nearest)
    yield from (f"not read: {line}" for line in found.invalid)


def render_difference(found: RunDifference, form: str) -> str:
    """The difference in a form: terminal, markdown or csv."""
    if form == "csv":
        return _csv(found)
    if form == "markdown":
        text = [f"{'  - ' if line.startswith('    ') else '- '}{markdown_text(line.strip())}" for line in lines(found)]
    else:
        text = [plain(line) for line in lines(found)]
    return "\n".join(text) + "\n"


def _csv(found: RunDifference) -> str:
    out = io.StringIO()
    writer = CsvWriter(out)
    writer.writerow(CSV_HEADS)
    for change in found.versions:
        writer.writerow(["", "version", *_fields(change)])
    for cell in found.cells:
        state = "unexplained" if cell.unexplained else "changed" if cell.changes else "identical"
        rows = [_fields(change) for change in cell.changes] or [["", "", "", ""]]
        writer.writerows([cell.title, state, *row] for row in rows)
    for one in found.unpaired:
        rows = [_fields(change) for change in one.nearest] or [["", "", "", ""]]
        writer.writerows([one.title, f"only in the {one.only_in} run", *row] for row in rows)
    return out.getvalue()


def _fields(change: Change) -> list[str]:
    by = change.difference
    return [change.what, _exact(change.old), _exact(change.new), "" if by is None else repr(by)]


def _exact(value: object) -> str:
    return "" if value is None else str(value)
