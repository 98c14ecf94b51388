"""Running suites from Python, and their results as data frames, tables and networks.

    from benchmark import run_suite
    results = run_suite("quick", seeds=[0, 1, 2], jobs=4)
    frame = results.frame()

It is the code of the command: the same cells, the same records, nothing trained twice. A script needs no
`if __name__ == "__main__"`: workers do not import it. A method or data set of your own therefore belongs into a file of
its own, which the suite names in `plugins:`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.quantities import seed_of_record
from benchmark.record import INVALID, Record, canonical_json, row_key, table_key
from benchmark.store import Store
from benchmark.suite import Suite
from datasets.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

    from benchmark.delta import Variant
    from benchmark.networks import DeployedNetwork
    from benchmark.report import Format
    from benchmark.tables import Table

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
    """The results in a run's folder, read anew at every call. keys: only these cells, None for all of the folder."""

    def __init__(self, out: str | os.PathLike[str], keys: Sequence[str] | None = None) -> None:
        self.out = Path(out)
        self.keys = None if keys is None else tuple(keys)

    @property
    def records(self) -> list[Record]:
        """The records, in the order of the cells where they were named; with status `invalid` for untrusted files."""
        store = Store(self.out)
        if self.keys is None:
            return store.load_all()
        return [record for key in self.keys if (record := store.read(key)) is not None]

    @property
    def all_done(self) -> bool:
        """Whether there are cells, and each has a record with status `done`."""
        found = self.records
        return bool(found) and len(found) >= len(self.keys or ()) and all(r.status == "done" for r in found)

    def table(
        self,
        format: Format = "terminal",
        *,
        variant: Variant = "mean-metrics",
        reference: str | None = None,
        allow_red: bool = False,
    ) -> str:
        """The tables as text, as `report` prints them: terminal, markdown, csv or latex. Raises UsageError."""
        from benchmark.report import report

        return report(
            self.out, format=format, variant=variant, keys=self.keys, reference=reference, allow_red=allow_red
        )

    def frame(self, variant: Variant = "mean-metrics") -> pd.DataFrame:
        """One line a cell and quantity: metrics, Delta_m, sizes, compute, cost, what was found, and speed.

        table: its key; data, protocol, backbone, budget: what its rows share. label: the row's name in tables; params:
        of its method, as JSON. cell: key. part: accuracy, size and compute, cost, found or speed; task: empty for the
        whole network. higher_is_better: True, False or None. value: float, NaN where it is null. ranked: whether the
        row may be ranked. A cell that is not done has one line, without part and value; a record that cannot be trusted
        has none. Raises UsageError where the folder holds no records.
        """
        import pandas as pd

        from benchmark.report import tables_of

        tables, _ = tables_of(self.out, variant=variant, keys=self.keys)
        keys = {
            (table_key(record.cell), row_key(record.cell), seed_of_record(record)): record.key
            for record in self.records
            if record.status != INVALID
        }
        lines = [line for table in tables for n in range(len(table.rows)) for line in _lines(table, n, keys)]
        return pd.DataFrame(lines, columns=list(FRAME_COLUMNS)).astype({"value": float})

    def network(
        self, row: str | None = None, *, seed: int | None = None, tasks: Sequence[str] | None = None
    ) -> DeployedNetwork:
        """The trained network of a row: see `load_network`, whose `row`, `seed` and `tasks` these are."""
        from benchmark.networks import load_network

        return load_network(self.out, row, seed=seed, tasks=tasks)

    def __repr__(self) -> str:
        cells = "all cells" if self.keys is None else f"{len(self.keys)} cells"
        return f"Results({str(self.out)!r}, {cells})"


def run_suite(
    suite: str | os.PathLike[str] | Suite = "quick",
    out: str | os.PathLike[str] | None = None,
    *,
    methods: Sequence[str] | None = None,
    datasets: Sequence[str] | None = None,
    tasks: Sequence[str] | None = None,
    backbones: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    settings: Sequence[str] = (),
    device: str = "auto",
    jobs: int | None = None,
    data_root: str | os.PathLike[str] | None = None,
    refresh_stale: bool = False,
    speed: bool = True,
    show: bool = True,
) -> Results:
    """Run what has no record yet, as `python -m benchmark.run` does, and give the results of the suite's cells.

    suite: name of a shipped suite, path of a YAML file, or a Suite. out: folder of the results, by default
    results/runs/SUITE. methods, datasets, tasks, backbones, seeds, settings: as the options of the command; settings
    are texts as `recipe.batch_size=32`. data_root: None takes SHAREBENCH_DATA. jobs: worker processes, None for one a
    core, or one on CUDA. speed: measure throughput at the end. show: print progress.
    Raises UsageError before the first step for what cannot be run; a cell that fails later says so in its record.
    """
    from benchmark.console import make_console
    from benchmark.run import data_root_of_environment, execute, select

    narrowed = (methods, datasets, tasks, backbones, seeds)
    if isinstance(suite, Suite):
        if any(choice is not None for choice in narrowed) or settings:
            raise UsageError("A Suite is run as it is; methods=, seeds= and the like go with a name or a file.")
        chosen = suite
    else:
        texts = [None if choice is None else ",".join(map(str, choice)) for choice in narrowed]
        names = ("methods", "datasets", "tasks", "backbones", "seeds")
        chosen = select(os.fspath(suite), settings=settings, plugins=(), **dict(zip(names, texts, strict=True)))
    folder = Path(out) if out is not None else Path("results") / "runs" / chosen.name
    root = Path(data_root) if data_root is not None else data_root_of_environment()
    console = make_console()
    console.quiet = not show
    keys = execute(
        chosen,
        folder,
        device=device,
        jobs=jobs,
        data_root=root,
        refresh_stale=refresh_stale,
        speed=speed,
        console=console,
        print_tables=False,
    )
    return Results(folder, keys)
