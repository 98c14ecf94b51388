"""The same rows without tuning: what tuning alone is worth, where a folder holds a table of each kind.

Tables of equal recipe and of equal tuning never mix. A row of the tuned one only says its Delta_m in the other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from benchmark.records.delta import Variant, delta_m
from benchmark.records.keys import canonical_json, table_key
from benchmark.records.record import Record
from benchmark.tables.rows import Row
from benchmark.tables.statistics import Summary


@dataclasses.dataclass(frozen=True)
class Untuned:
    """key: of the table of equal recipe. deltas: {row: Delta_m of the same row there}, over its single-task row.

    single_task: Delta_m of the tuned single-task networks over those, at each seed that both tables have.
    """

    key: str
    deltas: Mapping[int, Summary]
    single_task: Summary


def untuned_key(record: Record) -> str | None:
    """The key of the table of equal recipe that a tuned record would be in; None for other records, and for trials."""
    if "tuned" not in record.cell or record.is_trial:
        return None
    return table_key({name: value for name, value in record.cell.items() if name != "tuned"})


def default_rows(tuned: Sequence[Sequence[Record]], plain: Sequence[Sequence[Record]]) -> dict[int, int]:
    """{row of the tuned table: the same row without tuning}. tuned, plain: the records of the rows of both."""
    found = {}
    for number, group in enumerate(tuned):
        chosen = set(group[0].audit.get("tuning", {}).get("chosen", {}))
        same = [n for n, other in enumerate(plain) if _kept(other[0], chosen) == _kept(group[0], chosen)]
        # A suite may hold a row that gives what another row had tuned.
        usual = [n for n in same if not chosen & set(plain[n][0].audit.get("non_default_params", {}))]
        if len(usual) == 1:
            found[number] = usual[0]
    return found


def _kept(record: Record, chosen: set[str]) -> bytes:
    """What of a row a tuning does not choose."""
    kept = {name: value for name, value in record.params.items() if name not in chosen}
    return canonical_json([record.method, kept, record.balancing])


def beside(
    key: str,
    groups: tuple[Sequence[Sequence[Record]], Sequence[Sequence[Record]]],
    rows: Sequence[Row],
    delta: int,
    baselines: tuple[Mapping[int, Record], Mapping[int, Record]],
    variant: Variant,
) -> Untuned:
    """What a tuned table says of the one without tuning.

    key: of the latter. groups, baselines: the records of the rows, and the single-task record of each seed, of the
    tuned table and of the other. rows: of the other. delta: its column of Delta_m.
    """
    tuned, plain = baselines
    gains = {
        seed: delta_m(tuned[seed].metrics, plain[seed].metrics, plain[seed].tasks, variant).value
        for seed in sorted(set(tuned) & set(plain))
    }
    known = {seed: value for seed, value in gains.items() if value is not None}
    return Untuned(
        key=key,
        deltas={number: rows[other].cells[delta] for number, other in default_rows(*groups).items()},
        single_task=Summary(tuple(known), tuple(known.values())),
    )
