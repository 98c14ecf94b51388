"""One row of a table: a method with its parameters over seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from benchmark.records.record import Record
from benchmark.tables.columns import Column, Measured
from benchmark.tables.statistics import Summary

NOT_RUN = "not run"  # a seed that other rows of the table have


@dataclasses.dataclass(frozen=True)
class Row:
    """A method with its parameters over seeds. statuses: {seed: status} for the seeds of the table, in order.

    key: of the row within its table. short: its label where room is scarce. cells: one for each column of the table,
    over the seeds that are done. failures: a line for each seed that is not done. untuned_params: the parameters
    without those that a tuning chose.
    """

    key: bytes
    label: str
    short: str
    method: str
    params: Mapping[str, object]
    untuned_params: Mapping[str, object]
    is_reference: bool
    statuses: Mapping[int, str]
    cells: tuple[Summary, ...]
    failures: tuple[str, ...]

    @property
    def n(self) -> int:
        """Number of seeds that are done."""
        return sum(status == "done" for status in self.statuses.values())

    @property
    def is_complete(self) -> bool:
        """Whether every seed of the table is done; other rows are not ranked."""
        return self.n == len(self.statuses)


def make_row(
    label: str,
    short: str,
    records: Sequence[Record],
    measured: Sequence[Measured],
    columns: Sequence[Column],
    seeds: Sequence[int],
) -> Row:
    """The row of these records. measured: of those that are done; seeds: of the table."""
    cells = []
    for column in columns:
        known = [(one.seed, value) for one in measured if (value := one.values.get(column)) is not None]
        cells.append(Summary(tuple(seed for seed, _ in known), tuple(value for _, value in known)))
    found = {record.seed: record.status for record in records}
    statuses = {seed: found.get(seed, NOT_RUN) for seed in seeds}
    failures = [_failure(record) for record in records if record.status != "done"]
    if missing := [str(seed) for seed, status in statuses.items() if status == NOT_RUN]:
        failures.append(f"seed {', '.join(missing)}: {NOT_RUN}")
    first = records[0]
    return Row(
        key=first.row_key,
        label=label,
        short=short,
        method=first.method,
        params=first.params,
        untuned_params=first.untuned_params,
        is_reference=any(record.is_reference for record in records),
        statuses=statuses,
        cells=tuple(cells),
        failures=tuple(failures),
    )


def _failure(record: Record) -> str:
    """One line: seed, status, reason and where."""
    line, error = f"seed {record.seed}: {record.status}", record.error
    if error is None:
        return line
    places = (("stage", error["stage"]), ("step", error["step"]), ("task", error["task"]))
    where = ", ".join(f"{name} {place}" for name, place in places if place is not None)
    reason = " ".join(error["message"].split()) or error["kind"]
    return f"{line}: {reason}" + (f" ({where})" if where else "")
