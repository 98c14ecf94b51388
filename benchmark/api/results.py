"""The results of a run, for Python: records, tables, data frames and networks."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.records.keys import canonical_json
from benchmark.records.record import INVALID, Record
from benchmark.records.store import Store

if TYPE_CHECKING:
    import pandas as pd

    from benchmark.deploy.network import DeployedNetwork
    from benchmark.records.delta import Variant
    from benchmark.show.render import Format
    from benchmark.tables.table import Table

FRAME_COLUMNS = (
    *("table", "data", "protocol", "backbone", "budget", "method", "label", "params", "seed", "cell", "status"),
    *("part", "task", "metric", "unit", "higher_is_better", "value", "ranked"),
)


def _lines(table: Table, number: int, keys: Mapping[tuple[str, bytes, int], str]) -> Iterator[tuple[object, ...]]:
    """Lines of the frame of one row of a table, in the order of FRAME_COLUMNS."""
    row = table.rows[number]
    shared = [table.key, *(table.head.get(field, "") for field in ("data", "protocol", "backbone", "budget"))]
    shared += [row.method, row.label, canonical_json(row.params).decode()]
    values = [dict(zip(summary.seeds, summary.values, strict=True)) for summary in row.cells]
    for seed, status in row.statuses.items():
        key = keys.get((table.key, row.key, seed))  # None: a seed that only other rows have
        if key is not None and status != "done":
            yield *shared, seed, key, status, *[None] * 6, False
        elif key is not None:
            for column, found in zip(table.columns, values, strict=True):
                quantity = (column.part, column.group, column.name, column.unit, column.higher_is_better)
                yield *shared, seed, key, status, *quantity, found.get(seed), number in table.ranked


class Results:
    """The results in a run's folder; every call reads them anew. keys: only these cells, None for all."""

    def __init__(self, out: str | os.PathLike[str], keys: Sequence[str] | None = None) -> None:
        self.out = Path(out)
        self.keys = None if keys is None else tuple(keys)

    @property
    def records(self) -> list[Record]:
        """The records, in the order of `keys` where it is given. A file that cannot be trusted has status `invalid`."""
        store = Store(self.out)
        if self.keys is None:
            return store.load_all()
        return [record for key in self.keys if (record := store.read(key)) is not None]

    @property
    def all_done(self) -> bool:
        """Whether every cell has a record with status `done`; False where there are no cells."""
        found = self.records
        return bool(found) and len(found) >= len(self.keys or ()) and all(r.status == "done" for r in found)

    def table(
        self,
        format: Format = "terminal",
        *,
        variant: Variant = "mean-metrics",
        reference: str | None = None,
        allow_red: bool = False,
        glance: bool | None = None,
    ) -> str:
        """The tables as text, as `report` prints them: terminal, markdown, csv or latex. glance: only the answer of
        each table; None for a terminal alone. Raises UsageError.
        """
        from benchmark.api.reporting import report
        from benchmark.tables.folder import TableOptions

        return report(self.out, format, TableOptions(variant, reference, allow_red, self.keys), glance=glance)

    def frame(self, variant: Variant = "mean-metrics") -> pd.DataFrame:
        """One line per cell and quantity: metrics, Delta_m, sizes, compute, cost, what was found, and speed.

        table: key of the table; data, protocol, backbone, budget: what its rows share. label: name of the row in
        tables; params: of its method, as JSON. cell: key. part: accuracy, size and compute, cost, found or speed.
        task: empty for the whole network. higher_is_better: True, False or None. value: float, NaN where there is none.
        ranked: whether the row may be ranked. A cell that is not done has one line, without part and value. A record
        that cannot be trusted has none. Raises UsageError where the folder holds no records.
        """
        import pandas as pd

        from benchmark.tables.folder import TableOptions, tables_of

        tables, _ = tables_of(self.out, TableOptions(variant, keys=self.keys))
        keys = {
            (record.table_key, record.row_key, record.seed): record.key
            for record in self.records
            if record.status != INVALID
        }
        lines = [line for table in tables for n in range(len(table.rows)) for line in _lines(table, n, keys)]
        return pd.DataFrame(lines, columns=list(FRAME_COLUMNS)).astype({"value": float})

    def network(
        self, row: str | None = None, *, seed: int | None = None, tasks: Sequence[str] | None = None
    ) -> DeployedNetwork:
        """The trained network of a row: see `load_network`, whose `row`, `seed` and `tasks` these are."""
        from benchmark.deploy.network import load_network

        return load_network(self.out, row, seed=seed, tasks=tasks)

    def __repr__(self) -> str:
        cells = "all cells" if self.keys is None else f"{len(self.keys)} cells"
        return f"Results({str(self.out)!r}, {cells})"
