"""Whether a record was made by other code, data or versions than the present ones. Only `run` asks (DESIGN.md 5)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmark.provenance import module_hash, versions
from methods.registry import get_method

if TYPE_CHECKING:
    from benchmark.planning import PlannedCell
    from benchmark.record import Record

# Data and initial weights are part of a record's versions too, but to compare them they would have to be loaded: their
# identity is in the cell (data version, weights digest), and another one is another cell.
_COMPARED = {"method_hash": "the method's code", "torch": "torch", "timm": "timm"}


def stale_reason(record: Record, cell: PlannedCell) -> str | None:
    """What differs between a record and the present, in words; None where nothing does."""
    method = get_method(cell.settings.method.name)
    now = versions(method_hash=module_hash(method.__module__), data_hash=None, weights_hash=None)
    changed = [words for name, words in _COMPARED.items() if record.versions.get(name) != now[name]]
    return f"made with another version of {' and '.join(changed)}" if changed else None
