"""The splits of a cell's data, and which samples of them have which role (measurement 1.4)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from benchmark.plan.suite import Cell
from benchmark.records.keys import cell_key
from datasets.contracts import DatasetSpec, MultiTaskDataset
from datasets.errors import UsageError
from datasets.registry import load
from datasets.roles import RoleIndices, RoleName, role_indices

Roles = Mapping[str, Mapping[RoleName, RoleIndices]]  # {input: {role: samples}}


def load_splits(cell: Cell, spec: DatasetSpec, data_root: Path | None) -> dict[str, MultiTaskDataset]:
    """The splits of a cell's data set with the tasks of `spec`. Raises DatasetMissingError."""
    data = cell.data
    return {
        split: load(
            data.dataset,
            data_root,
            split,
            protocol=data.protocol,
            layout=data.layout,
            tasks=spec.task_names,
            options=data.options,
        )
        for split in spec.splits
    }


def content_hash(splits: Mapping[str, MultiTaskDataset]) -> str:
    """Hash of the samples of all splits, 32 hex digits: the data hash of a record."""
    return cell_key(
        {f"{name}/{key}": part.content_hash() for name, split in splits.items() for key, part in split.inputs.items()}
    )


def load_roles(cell: Cell, spec: DatasetSpec, root: Path | None) -> tuple[dict[str, MultiTaskDataset], Roles]:
    """({split: data}, roles). Raises DatasetMissingError."""
    selection = cell.selection
    splits = load_splits(cell, spec, root)
    indices = role_indices(
        splits["train"],
        splits.get("val"),
        splits["test"],
        arch_fraction=selection.arch_fraction,
        hold_out_fraction=selection.holdout_fraction,
        select_on=selection.select_on,
    )
    return splits, indices


def require_batches(cell: Cell, spec: DatasetSpec, alternates: bool, root: Path | None) -> None:
    """Raise UsageError if a role that is trained on has fewer samples than a batch.

    alternates: whether fit and arch are trained on separately. Data are loaded only if the number of samples does not
    settle it: whole scenes may be held out, so a role may get as few as half of its fraction.
    """
    selection, batch = cell.selection, cell.recipe.batch_size
    held_out = 0.0 if "val" in spec.splits or selection.select_on == "test" else selection.holdout_fraction
    share = min(selection.arch_fraction, 1 - selection.arch_fraction) if alternates else 1.0
    if 2 * batch <= share * (1 - held_out) * min(spec.count("train", name) for name in spec.inputs):
        return
    for name, roles in load_roles(cell, spec, root)[1].items():
        fit, arch = len(roles["fit"].indices), len(roles["arch"].indices)
        fewest, role = min((fit, "fit"), (arch, "arch")) if alternates else (fit + arch, "fit and arch together")
        if batch > fewest:
            why = f"; {cell.method.name} trains on fit and arch apart" if alternates else ""
            raise UsageError(
                f"recipe.batch_size is {batch}; of the training samples of {spec.name!r} (input {name!r}) {fewest} "
                f"have the role {role}{why}. Set recipe.batch_size to at most {fewest}."
            )
