"""The splits of a cell's data, and which samples of them have which role (measurement 1.4)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from benchmark.plan.suite import Cell
from benchmark.records.keys import canonical_json, cell_key
from datasets.contracts import DatasetSpec, MultiTaskDataset
from datasets.errors import UsageError
from datasets.roles import RoleIndices, RoleName, role_indices

Roles = Mapping[str, Mapping[RoleName, RoleIndices]]  # {input: {role: samples}}


class Splits:
    """The splits of cells' data, each choice of data loaded once and hashed once, as long as this object lives.

    root: folder of the data sets.
    """

    def __init__(self, root: Path | None) -> None:
        self.root = root
        self._loaded: dict[bytes, dict[str, MultiTaskDataset]] = {}
        self._contents: dict[bytes, str] = {}

    def of(self, cell: Cell) -> dict[str, MultiTaskDataset]:
        """{name: split with the cell's tasks}. Raises DatasetMissingError."""
        choice, key = cell.data.choice, _key(cell)
        if key not in self._loaded:
            self._loaded[key] = {name: choice.split(name, self.root) for name in choice.spec().splits}
        return self._loaded[key]

    def content(self, cell: Cell) -> str:
        """What the samples of all splits hold, 32 hex digits: the data hash of a record."""
        key = _key(cell)
        if key not in self._contents:
            parts = {
                f"{name}/{part}": data.content_hash()
                for name, split in self.of(cell).items()
                for part, data in split.inputs.items()
            }
            self._contents[key] = cell_key(parts)
        return self._contents[key]

    def roles(self, cell: Cell) -> Roles:
        """Which samples have which role."""
        splits, selection = self.of(cell), cell.selection
        return role_indices(
            splits["train"],
            splits.get("val"),
            splits["test"],
            arch_fraction=selection.arch_fraction,
            hold_out_fraction=selection.holdout_fraction,
            select_on=selection.select_on,
        )


def _key(cell: Cell) -> bytes:
    return canonical_json(dataclasses.asdict(cell.data.choice))


def require_batches(cell: Cell, spec: DatasetSpec, alternates: bool, splits: Splits) -> None:
    """Raise UsageError if a role that is trained on has fewer samples than a batch.

    alternates: whether fit and arch are trained on separately. Data are loaded only if the number of samples does not
    settle it: whole scenes may be held out, so a role may get as few as half of its fraction.
    """
    selection, batch = cell.selection, cell.recipe.batch_size
    held_out = 0.0 if "val" in spec.splits or selection.select_on == "test" else selection.holdout_fraction
    share = min(selection.arch_fraction, 1 - selection.arch_fraction) if alternates else 1.0
    if 2 * batch <= share * (1 - held_out) * min(spec.count("train", name) for name in spec.inputs):
        return
    for name, roles in splits.roles(cell).items():
        fit, arch = len(roles["fit"].indices), len(roles["arch"].indices)
        fewest, role = min((fit, "fit"), (arch, "arch")) if alternates else (fit + arch, "fit and arch together")
        if batch > fewest:
            why = f"; {cell.method.name} trains on fit and arch apart" if alternates else ""
            raise UsageError(
                f"recipe.batch_size is {batch}; of the training samples of {spec.name!r} (input {name!r}) {fewest} "
                f"have the role {role}{why}. Set recipe.batch_size to at most {fewest}."
            )
