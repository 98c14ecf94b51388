"""Whether a cell has room beside those that run, by the peak memory of cells like it that have a record."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmark.plan.cells import PlannedCell

_PROCESS = 600 * 2**20  # bytes that a process takes of a GPU before it holds a tensor, of our reckoning
_RESERVED = 1.25  # what PyTorch's allocator holds, over the peak of what tensors take, of our reckoning


class Room:
    """Memory of cells, as far as it is known. Cells of one method, data, backbone and recipe take the same, whatever
    their seed, so the first one to end tells of all. root: folder of the results.
    """

    def __init__(self, cells: Sequence[PlannedCell], root: Path) -> None:
        from benchmark.plan.estimate import estimates_from, kind_of
        from benchmark.records.store import Store

        self.cells, self.store = cells, Store(root)
        self.kinds = [kind_of(cell) for cell in cells]
        estimates = estimates_from(self.store.load_all(), cells, root)
        self.peaks = {kind: estimate.memory_bytes for kind, estimate in estimates.items()}

    def peak_bytes(self, number: int) -> int | None:
        """Peak memory of a cell; None if none of its kind has a record."""
        return self.peaks.get(self.kinds[number])

    def learn(self, number: int) -> None:
        """Take the peak memory of a cell that has ended."""
        record = self.store.read(self.cells[number].key)
        if record is not None and record.status == "done":
            self.peaks.setdefault(self.kinds[number], record.cost.get("peak_bytes"))

    def first_that_fits(self, waiting: Iterable[int], running: Collection[int], total_bytes: int) -> int | None:
        """The first waiting cell that has room on a GPU of `total_bytes` beside those that run there; any where none
        does. A cell of unknown size has room: should it not, it is tried again alone.
        """
        free = total_bytes - sum(map(self._taken, running))
        return next((number for number in waiting if not running or self._taken(number) <= free), None)

    def _taken(self, number: int) -> int:
        return _PROCESS + int(_RESERVED * (self.peak_bytes(number) or 0))
