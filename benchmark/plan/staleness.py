"""Whether a record was made by other code, data or libraries than the present ones. Only `run` asks (DESIGN.md 5)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.plan.cells import cell_spec
from benchmark.plan.role_data import content_hash, load_splits
from benchmark.records.keys import canonical_json
from benchmark.records.provenance import installed

if TYPE_CHECKING:
    from benchmark.plan.cells import PlannedCell
    from benchmark.records.record import Record

_UNKNOWN = "made before records said which code trained them"


class Present:
    """The code, data and libraries that a record made now would state. data_root: folder of the data sets.

    Initial weights are not compared: their digest is in the cell, so other weights make another cell.
    """

    def __init__(self, data_root: Path | None) -> None:
        self._root = data_root
        self._contents: dict[bytes, str] = {}

    def stale_reason(self, record: Record, cell: PlannedCell) -> str | None:
        """The difference between a record and the present, in words; None if there is none.

        Data are listed and hashed only if nothing else differs, each data set once. Raises UsageError if they cannot be
        read.
        """
        made = record.versions
        if made.get("training_hash") is None:
            return _UNKNOWN
        now = {
            "the code of data, networks or training": ("training_hash", cell.program.training),
            "the method's code": ("method_hash", cell.program.method),
            "torch": ("torch", installed("torch")),
            "timm": ("timm", installed("timm")),
        }
        changed = [words for words, (name, value) in now.items() if made.get(name) != value]
        if not changed and made.get("data_hash") != self._content(cell):
            return "made on other data: what the files hold has changed"
        return f"made with another version of {' and '.join(changed)}" if changed else None

    def _content(self, cell: PlannedCell) -> str:
        data = canonical_json(cell.document["data"])
        if data not in self._contents:
            spec = cell_spec(cell.settings)
            self._contents[data] = content_hash(load_splits(cell.settings, spec, self._root))
        return self._contents[data]
