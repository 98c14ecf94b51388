"""What a plan says beside its cells: notes of methods and data, what is left out, and what a suite lacks."""

from __future__ import annotations

from collections.abc import Sequence

from benchmark.plan.cells import PlannedCell, method_params
from benchmark.plan.misfits import Misfit
from benchmark.records.evidence import does_not_apply
from benchmark.records.keys import row_key
from methods.registry import get_method


def left_out(misfits: Sequence[Misfit]) -> list[str]:
    """A line for each row that is left out."""
    return [does_not_apply(misfit.title, misfit.why) for misfit in misfits]


def notes_of(cells: Sequence[PlannedCell]) -> list[str]:
    """The notes of the cells, each once, with the method and backbone that it is about."""
    lines = {f"{cell.settings.data.dataset}: {note}": None for cell in cells for note in cell.data_notes}
    lines |= {
        f"{cell.settings.method.name} on {cell.settings.backbone.name}, {cell.settings.data.dataset}: {note}": None
        for cell in cells
        for note in cell.notes
    }
    return list(lines)


def missing_reference(cells: Sequence[PlannedCell]) -> bool:
    """Whether some cell has no single-task baseline beside it, so that its Delta_m will be a dash."""

    def group(cell: PlannedCell) -> tuple[str, int]:
        return cell.table_key, cell.settings.seed

    with_reference = {group(cell) for cell in cells if cell.is_reference}
    return any(group(cell) not in with_reference for cell in cells)


def missing_evidence(cells: Sequence[PlannedCell]) -> list[str]:
    """The rows that a suite lacks to show whether its budget suffices, a line for each reference method.

    A table with its comparison reference needs the same at twice the steps (evidence 2), at one of its seeds at least.
    """
    rows: dict[str, set[bytes]] = {}
    for cell in cells:
        rows.setdefault(cell.table_key, set()).add(row_key(cell.document))
    lines = {}
    for cell in cells:
        name, given = cell.settings.method.name, cell.settings.method.params
        longer = get_method(name).twice_as_long
        if not longer or given:
            continue
        method = get_method(name)
        params = method_params(method, name, dict(longer)).document()
        wanted = row_key({**cell.document, "method": {"name": name, "params": params}})
        if wanted not in rows[cell.table_key]:
            text = ", ".join(f"{key}: {value}" for key, value in longer.items())
            lines[name] = (
                f"To see whether {cell.settings.budget.steps} steps suffice, the suite needs a row with twice as many: "
                f"add {{name: {name}, params: {{{text}}}}}."
            )
    return list(lines.values())
