"""Whether a record was made by other code, data or libraries than the present ones. Only `run` asks (DESIGN.md 5)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmark.plan.role_data import Splits
from benchmark.records.provenance import installed

if TYPE_CHECKING:
    from benchmark.plan.cells import PlannedCell
    from benchmark.records.record import Record

_UNKNOWN = "made before records said which code trained them"


class Present:
    """The code, data and libraries that a record made now would state.

    Initial weights are not compared: their digest is in the cell, so other weights make another cell.
    """

    def __init__(self, splits: Splits) -> None:
        self._splits = splits
        self._libraries = {name: installed(name) for name in ("torch", "timm")}  # each is a search through folders

    def stale_reason(self, record: Record, cell: PlannedCell) -> str | None:
        """The difference between a record and the present, in words; None if there is none.

        Data are listed and hashed only if nothing else differs. Raises UsageError if they cannot be read.
        """
        made = record.versions
        if made.get("training_hash") is None:
            return _UNKNOWN
        now = {
            "the code of data, networks or training": ("training_hash", cell.program.training),
            "the method's code": ("method_hash", cell.program.method),
            "torch": ("torch", self._libraries["torch"]),
            "timm": ("timm", self._libraries["timm"]),
        }
        changed = [words for words, (name, value) in now.items() if made.get(name) != value]
        if not changed and made.get("data_hash") != self._splits.content(cell.settings):
            return "made on other data: what the files hold has changed"
        return f"made with another version of {' and '.join(changed)}" if changed else None
