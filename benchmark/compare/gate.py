"""The rules of the regression gate: records and speed files against a baseline -> findings -> exit code.

Exact values must be equal everywhere, golden values bit by bit on the same platform; means of three or more seeds and
relative speed may drop as far as noise explains. Relative speed is relative to the plain backbone, so it cannot see a
change that slows both by the same factor. Spec: measurement 8. Pure functions; torch is not imported.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

from benchmark.compare.baseline import (
    Baseline,
    Bits,
    CellBaseline,
    Golden,
    SpeedKey,
    as_list,
    device_class,
    exact_values,
    golden_key,
    golden_platform,
    golden_values,
    is_number,
    old_ratios,
    title,
    unfit,
)
from benchmark.records.keys import canonical_json
from benchmark.records.measurements import MeasurementFile, NetworkEntry
from benchmark.records.record import Record

MIN_SEEDS = 3  # below it, a mean is not evidence
MIN_MEASUREMENTS = 3  # separate ones of a device class; with fewer, a median is not evidence
SPEED_FLOOR = 0.05  # a smaller loss of relative speed is not a finding

Kind = Literal["cell", "exact", "golden", "accuracy", "speed"]


class Verdict(enum.Enum):
    """The result of a comparison."""

    SAME = "same"
    REGRESSION = "regression"
    INCONCLUSIVE = "inconclusive"
    MISSING = "missing"
    NOT_JUDGED = "not judged"


class Exit(enum.IntEnum):
    """Exit codes of the check (DESIGN.md 5)."""

    SAME = 0
    REGRESSION = 1
    USAGE = 2
    INCONCLUSIVE = 3
    MISSING = 4


@dataclasses.dataclass(frozen=True)
class Finding:
    """One comparison. cell: title of the cell, empty for the run as a whole; name: of the value; rule: in words.

    details: further lines. moved: the network, if its speed differs from the baseline's, up or down.
    """

    cell: str
    kind: Kind
    name: str
    old: str
    new: str
    rule: str
    verdict: Verdict
    details: tuple[str, ...] = ()
    moved: SpeedKey | None = None


@dataclasses.dataclass(frozen=True)
class _Compared:
    """A value that is compared. Each method is a verdict and makes the finding, with the rule in words and further
    lines.
    """

    cell: str
    kind: Kind
    name: str
    old: str = ""
    new: str = ""

    def same(self, rule: str, *details: str, moved: SpeedKey | None = None) -> Finding:
        return self._finding(Verdict.SAME, rule, details, moved)

    def regression(self, rule: str, *details: str, moved: SpeedKey | None = None) -> Finding:
        return self._finding(Verdict.REGRESSION, rule, details, moved)

    def inconclusive(self, rule: str) -> Finding:
        return self._finding(Verdict.INCONCLUSIVE, rule)

    def missing(self, rule: str) -> Finding:
        return self._finding(Verdict.MISSING, rule)

    def not_judged(self, rule: str, *details: str) -> Finding:
        return self._finding(Verdict.NOT_JUDGED, rule, details)

    def _finding(
        self, verdict: Verdict, rule: str, details: tuple[str, ...] = (), moved: SpeedKey | None = None
    ) -> Finding:
        return Finding(self.cell, self.kind, self.name, self.old, self.new, rule, verdict, details, moved)


def exit_code(findings: Sequence[Finding], strict: bool = False) -> Exit:
    """1 outranks 4, 4 outranks 3. strict: an inconclusive finding counts as a regression."""
    found = {finding.verdict for finding in findings}
    if Verdict.REGRESSION in found or (strict and Verdict.INCONCLUSIVE in found):
        return Exit.REGRESSION
    if Verdict.MISSING in found:
        return Exit.MISSING
    return Exit.INCONCLUSIVE if Verdict.INCONCLUSIVE in found else Exit.SAME


def compare(
    records: Sequence[Record],
    baseline: Baseline,
    measurements: Sequence[MeasurementFile] = (),
    unread: Sequence[str] = (),
    stale: Mapping[str, str] | None = None,
) -> list[Finding]:
    """Every finding, cell by cell, including equal values.

    records: all of a run, including those that are invalid or not done. measurements: of its folder; unread: a line for
    each speed file that could not be read. stale: {key: why} of records that a run has kept though other code, data or
    libraries made them; they are no evidence about the present code.
    """
    by_key = {record.key: record for record in records if record.cell}
    pairs: list[tuple[Record, CellBaseline]] = []
    findings = [
        _missing("", "record", "a valid record", record.error["message"] if record.error else "invalid")
        for record in records
        if not record.cell
    ]
    for key, old in baseline.cells.items():
        record = by_key.get(key)
        if record is None:
            findings.append(_missing(old.title, "cell", "done", f"missing{_sibling(old.cell, by_key.values())}"))
        elif record.status != "done":
            findings.append(_missing(old.title, "cell", "done", _failure(record)))
        else:
            pairs.append((record, old))
    for key in sorted(by_key.keys() - baseline.cells.keys()):
        findings.append(_unpaired(by_key[key], baseline))
    for key, reason in (stale or {}).items():
        findings.append(_missing(title(by_key[key]), "cell", "made by the present code, data and libraries", reason))
    for record, old in pairs:
        findings += _exact(record, old)
        findings += _golden(record, old)
    findings += _accuracy(pairs, baseline.accuracy_floor)
    findings += _speed(pairs, baseline, measurements)
    findings += [_missing("", "speed file", "a measurement", line) for line in unread]
    return findings


# Cells


def _missing(cell: str, name: str, old: str, new: str) -> Finding:
    return _Compared(cell, "cell", name, old, new).missing("every cell has a partner and is done")


def _failure(record: Record) -> str:
    return f"{record.status}: {record.error['kind']}: {record.error['message']}" if record.error else record.status


def _unpaired(record: Record, baseline: Baseline) -> Finding:
    if record.status != "done":
        return _missing(title(record), "cell", "not in the baseline", _failure(record))
    seeds = _other_seeds(record.cell, (old.cell for old in baseline.cells.values()))
    other = f" has this cell with seed {seeds}," if seeds else ""
    return _missing(title(record), "cell", f"the baseline{other} not this one", "unpaired; --accept REASON adds it")


def _sibling(cell: Mapping[str, object], records: Iterable[Record]) -> str:
    seeds = _other_seeds(cell, (record.cell for record in records))
    return f"; unpaired: the same cell is there with seed {seeds}" if seeds else ""


def _other_seeds(cell: Mapping[str, object], others: Iterable[Mapping[str, object]]) -> str:
    """The seeds of the cells that differ from this one in their seed alone."""
    wanted = _without_seed(cell)
    return ", ".join(sorted(str(other.get("seed")) for other in others if _without_seed(other) == wanted))


def _without_seed(cell: Mapping[str, object]) -> bytes:
    return canonical_json({name: value for name, value in cell.items() if name != "seed"})


# Exact


def _exact(record: Record, old: CellBaseline) -> Iterator[Finding]:
    before, now = old.exact, exact_values(record)
    equal = 0
    for name in sorted(before.keys() | now.keys()):
        texts = [canonical_json(values[name]).decode() if name in values else "absent" for values in (before, now)]
        if texts[0] == texts[1]:
            equal += 1
        else:
            yield _Compared(old.title, "exact", name, *texts).regression("equal")
    yield _Compared(old.title, "exact", f"{equal} values").same("equal")


# Golden


def _golden(record: Record, old: CellBaseline) -> Iterator[Finding]:
    platform, now = golden_platform(record), golden_values(record)
    bits = old.golden.get(golden_key(platform)) if platform is not None else None
    if bits is None:
        yield _other_platform(record, old, platform)
        return
    rule, equal = "equal bit by bit on this platform", 0
    here = f"{record.environment.get('cpu')}, timm {record.versions.get('timm')}"
    where: tuple[str, ...] = (f"baseline: {bits.cpu}, timm {bits.versions.get('timm')}; here: {here}",)
    for name in sorted(bits.values.keys() | now.keys()):
        known = name in bits.values and name in now
        if known and bits.values[name] == now[name]:
            equal += 1
            continue
        before, after = (
            _shown(name, values.get(name)) if name in values else "absent" for values in (bits.values, now)
        )
        details = (_first_difference(bits.values[name], now[name]),) if known and isinstance(now[name], list) else ()
        yield _Compared(old.title, "golden", name, before, after).regression(rule, *details, *where)
        where = ()  # once a cell is enough
    yield _Compared(old.title, "golden", f"{equal} values").same(rule)


def _floats(value: Bits) -> list[float | None]:
    return [None if text is None else float.fromhex(text) for text in as_list(value)]


def _shown(name: str, value: Bits) -> str:
    """A golden value for people; the shortest text that reads back as the same float."""
    if not is_number(name):
        return str(value)
    texts = ["null" if number is None else repr(number) for number in _floats(value)]
    if not isinstance(value, list):
        return texts[0]
    return f"{len(texts)} values, last {texts[-1]}" if texts else "no values"


def _first_difference(old: Bits, new: Bits) -> str:
    before, after = _floats(old), _floats(new)
    differing = [i for i, pair in enumerate(zip(before, after, strict=False)) if pair[0] != pair[1]]
    if not differing:
        return f"{len(before)} values before, {len(after)} now; equal as far as both go"
    first = differing[0]
    return f"{len(differing)} values differ, first number {first + 1}: {before[first]!r} -> {after[first]!r}"


def _other_platform(record: Record, old: CellBaseline, platform: Mapping[str, object] | None) -> Finding:
    """Golden values of another platform are only shown: how far this record is from them is not a verdict."""
    now = golden_values(record)
    nearest = _nearest(old, record)
    if platform is None:
        reason = "golden values are defined for a CPU of known capability, one thread, deterministic algorithms"
    elif nearest is None:
        reason = "the baseline holds no golden values of this cell"
    else:
        reason = f"no golden values for {golden_key(platform)}"  # type: ignore[arg-type]
    details = [reason]
    if nearest is not None:
        details.append(f"nearest in the baseline: {golden_key(nearest.platform)}")
        worst: dict[str, tuple[float, str]] = {}
        for name in sorted(nearest.values.keys() & now.keys()):
            if is_number(name):
                kind = name.partition(".")[0]
                worst[kind] = max(worst.get(kind, (0.0, "")), (_distance(nearest.values[name], now[name]), name))
        details += [
            f"largest relative difference of {kind}: {value:.3g}{f' ({name})' if name else ''}"
            for kind, (value, name) in sorted(worst.items())
        ]
    return _Compared(old.title, "golden", "bits").not_judged("judged on equal platforms", *details)


def _distance(old: Bits, new: Bits) -> float:
    """Largest relative difference; infinite if only one of the two has a value."""
    before, after = _floats(old), _floats(new)
    if len(before) != len(after):
        return math.inf
    return max((_relative(a, b) for a, b in zip(before, after, strict=True)), default=0.0)


def _relative(old: float | None, new: float | None) -> float:
    if old == new:
        return 0.0
    if old is None or new is None or old == 0.0:
        return math.inf
    return abs(new - old) / abs(old)


def _nearest(old: CellBaseline, record: Record) -> Golden | None:
    """The golden values of the platform that is most similar to the record's; of several the first by key."""
    platform = golden_platform(record) or {"torch": str(record.versions.get("torch"))}
    candidates = [old.golden[key] for key in sorted(old.golden)]
    return max(
        candidates,
        key=lambda bits: sum(bits.platform.get(name) == value for name, value in platform.items()),
        default=None,
    )


# Accuracy


def _accuracy(pairs: Sequence[tuple[Record, CellBaseline]], floor: float) -> Iterator[Finding]:
    rows: dict[bytes, list[tuple[Record, CellBaseline]]] = defaultdict(list)
    for record, old in pairs:
        rows[_without_seed(record.cell)].append((record, old))
    for row in rows.values():
        values: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
        for record, old in row:
            bits = _nearest(old, record)
            for task, scores in record.metrics.items():
                for name, entry in scores.items():
                    before = bits.values.get(f"metrics.{task}.{name}") if bits is not None else None
                    if isinstance(before, str) and entry["value"] is not None:
                        values[task, name].append((float.fromhex(before), entry["value"]))
        first = row[0][0]
        name = row[0][1].title if len(row) == 1 else f"{row[0][1].title} and {len(row) - 1} more seeds"
        few = sum(1 for both in values.values() if len(both) < MIN_SEEDS and all(a == b for a, b in both))
        if few:
            yield _Compared(name, "accuracy", f"{few} equal metrics").not_judged(f"judged from {MIN_SEEDS} seeds")
        for (task, metric), both in values.items():
            higher = first.metrics[task][metric]["higher_is_better"]
            if len(both) >= MIN_SEEDS or any(a != b for a, b in both):
                yield _mean_drop(name, f"{task} {metric}", both, higher, floor)


def _mean_drop(cell: str, name: str, both: Sequence[tuple[float, float]], higher: bool, floor: float) -> Finding:
    """The mean over seeds may drop by at most max(floor, smallest effect detectable with this number of seeds)."""
    old, new = (statistics.fmean(side) for side in zip(*both, strict=True))
    n = len(both)
    compared = _Compared(cell, "accuracy", name, f"{old:.6g}", f"{new:.6g} (n={n})")
    if n < MIN_SEEDS:
        return compared.not_judged(f"judged from {MIN_SEEDS} seeds")
    import numpy as np

    from benchmark.tables.statistics import detectable_shift, p_values

    losses = [(a - b) if higher else (b - a) for a, b in both]
    spread = statistics.stdev(losses)
    effect = spread * detectable_shift(n, 1) if spread else 0.0
    bound = max(floor * abs(old), effect)
    p = float(p_values(np.array([[b for _, b in both]]), np.array([a for a, _ in both]))[0])
    drop = statistics.fmean(losses)
    rule = f"loses at most max({100 * floor:g} % of the old mean, detectable effect {effect:.3g}) = {bound:.3g}"
    test = "no test: all differences are the same" if math.isnan(p) else f"p {p:.3g}"
    judge = compared.regression if drop > bound else compared.same
    return judge(rule, f"loses {drop:.3g}; {test}")


# Speed


def _speed(
    pairs: Sequence[tuple[Record, CellBaseline]], baseline: Baseline, measurements: Sequence[MeasurementFile]
) -> Iterator[Finding]:
    names: dict[str, str] = {}  # each network once, even if several cells ended in it
    for record, old in pairs:
        names.setdefault(record.graph_hash, old.title)
    if not measurements:
        yield _Compared("", "speed", "no measurement").not_judged("judged where the run has measured speed")
        return
    latest: dict[SpeedKey, tuple[MeasurementFile, NetworkEntry]] = {}
    for measurement in sorted(measurements, key=lambda measurement: measurement.started):
        for entry in measurement.networks:
            latest[device_class(measurement), measurement.settings.name, entry.graph, entry.mode] = (measurement, entry)
    waiting: Counter[tuple[str, str, str, int]] = Counter()
    for key, (measurement, entry) in sorted(latest.items(), key=lambda item: item[0]):
        if entry.graph not in names:
            continue
        old_r = old_ratios(baseline, key)
        if len(old_r) >= MIN_MEASUREMENTS:
            yield _relative_speed(names[entry.graph], key, measurement, entry, old_r)
        else:
            waiting[names[entry.graph], key[0], key[1], len(old_r)] += 1
    here = {key[:2] for key in latest}
    for key in sorted({key for entry in baseline.speed for key in entry.networks} - latest.keys()):
        if key[:2] in here and key[2] in names and len(old_ratios(baseline, key)) >= MIN_MEASUREMENTS:
            rule = "measured in the baseline, not in this run"
            yield _Compared(names[key[2]], "speed", f"r {key[3]} at {key[1]}").not_judged(rule)
    for (name, device, settings, n_old), n_modes in waiting.items():
        rule = f"judged from {MIN_MEASUREMENTS} measurements of a device class; {device} at {settings} has {n_old}"
        yield _Compared(name, "speed", f"{n_modes} modes").not_judged(rule)


def speed_bound(aa: float) -> float:
    """Share of relative speed that may be lost: 5 %, or twice what two copies of the reference differed by."""
    return max(SPEED_FLOOR, 2.0 * abs(aa - 1.0))


def _relative_speed(
    cell: str, key: SpeedKey, measurement: MeasurementFile, entry: NetworkEntry, old_r: Sequence[float]
) -> Finding:
    device, settings, _, mode = key
    name, median = f"r {mode} at {settings} on {device}", statistics.median(old_r)
    old = f"{median:.3f} [{min(old_r):.3f}, {max(old_r):.3f}] of {len(old_r)}"
    if measurement.aa is None or entry.r is None:
        new = f"{entry.status}: {entry.message or measurement.message or entry.status}"
        return _Compared(cell, "speed", name, old, new).missing("measured")
    compared = _Compared(cell, "speed", name, old, f"{entry.r:.3f}, A/A {measurement.aa:.3f}")
    bound = speed_bound(measurement.aa)
    if (reason := unfit(measurement)) is not None:
        return compared.not_judged(reason)
    if measurement.is_noisy:
        return compared.inconclusive("A/A within 3 % of 1: measure again on a quiet machine")
    rule = f"at least {100 * (1 - bound):.1f} % of the old median"
    rank = 1 + sum(r < entry.r for r in old_r)
    test = f"rank {rank} of {len(old_r) + 1}: p {rank / (len(old_r) + 1):.2g}, one-sided"
    change = entry.r / median - 1.0
    moved = key if abs(change) > bound else None
    if change >= -bound:
        return compared.same(rule, test, moved=moved)
    return compared.regression(rule, test, f"old r: {', '.join(f'{r:.4f}' for r in old_r)}", *_raw(entry), moved=moved)


def superseded(findings: Sequence[Finding]) -> set[SpeedKey]:
    """Networks whose speed differs from the baseline's: accepting the run drops their old measurements."""
    return {finding.moved for finding in findings if finding.moved is not None}


def _raw(entry: NetworkEntry) -> Iterator[str]:
    """The samples behind a bad ratio, which show whether a network switched between two speeds."""
    for name, values in sorted(entry.raw.items()):
        if isinstance(values, (list, tuple)) and values:
            yield f"{name}: {', '.join(map(str, values))}"
