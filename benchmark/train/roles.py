"""The data of a cell, cut into the roles of its samples; labels are checked before the first step."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmark.plan.cells import PlannedCell
from benchmark.plan.role_data import Splits
from benchmark.plan.suite import RecipeSettings
from benchmark.train.loaders import InputFormat, InputLoader, RoleLoader, RoleSamples
from datasets.contracts import DatasetSpec, MultiTaskDataset
from datasets.images.augmentation import augmentation_of
from datasets.kinds import get_kind
from datasets.on_disk.sample_checks import label_faults, require
from datasets.registry import get_dataset, is_core
from datasets.roles import role_hash
from methods.contracts import Role


@dataclasses.dataclass(frozen=True)
class LoadedData:
    """A data set cut into roles. content: hash of what its splits hold; roles: {role: hash of its sample ids}."""

    splits: Mapping[str, MultiTaskDataset]
    samples: Mapping[Role, Mapping[str, RoleSamples]]
    content: str
    roles: Mapping[str, str]


def load_data(spec: DatasetSpec, planned: PlannedCell, found: Splits) -> LoadedData:
    """The splits of a data set and the samples of each role (measurement 1.4). Raises DatasetMissingError."""
    splits, indices = found.of(planned.settings), found.roles(planned.settings)
    samples: dict[Role, dict[str, RoleSamples]] = {role: {} for role in Role}
    for name, parts in indices.items():
        for role in (Role.FIT, Role.ARCH, Role.SELECT, Role.REPORT):
            part = parts[role.value]
            samples[role][name] = RoleSamples(splits[part.split].inputs[name], part.indices)
        both = np.union1d(parts["fit"].indices, parts["arch"].indices)
        samples[Role.FIT_ARCH][name] = RoleSamples(splits["train"].inputs[name], both)
    content = found.content(planned.settings)
    _check_labels(spec, splits, content)
    roles = {
        role.value: role_hash(
            [f"{name}/{identifier}" for name, part in samples[role].items() for identifier in part.ids]
        )
        for role in (Role.FIT, Role.ARCH, Role.SELECT, Role.REPORT)
    }
    return LoadedData(splits, samples, content, roles)


class ClosedRoleError(RuntimeError):
    """A trial of a tuning that opens the report role."""


class ClosedLoader(RoleLoader):
    """In place of the report role's loader, in a trial of a tuning: it has no samples, and whatever asks is stopped."""

    def __init__(self) -> None:
        """Nothing is taken: nothing can be given."""

    def __getattr__(self, name: str) -> Any:
        raise ClosedRoleError(f"A trial of a tuning is judged on select; the report role is closed to it ({name}).")


def role_loaders(
    data: LoadedData, spec: DatasetSpec, recipe: RecipeSettings, form: InputFormat, seed: int
) -> dict[Role, RoleLoader]:
    """The batches of each role. form: of the images that networks are fed."""
    loaders = {}
    for role, samples in data.samples.items():
        inputs = {}
        for name, part in samples.items():
            tasks = [task for task in spec.task_names if spec.input_of(task) == name]
            augment = augmentation_of(recipe.augmentation, spec, name)
            valid = {task: get_kind(spec.task(task).kind).valid for task in tasks}
            inputs[name] = InputLoader(
                part, tasks, form, augment=augment, seed=seed, workers=recipe.workers, valid=valid
            )
        loaders[role] = RoleLoader(role, spec, inputs, recipe.batch_size, seed)
    return loaders


_CHECKED: set[tuple[str, str]] = set()  # (content, spec) of the data whose labels this process has read


def _check_labels(spec: DatasetSpec, splits: Mapping[str, MultiTaskDataset], content: str) -> None:
    """Read every label of all splits, once a process. Raises UsageError in one line where some are illegal.

    Cells of the same data share it. It costs less than the first epoch, and the evaluation of test would find an
    illegal label only when all training is done.
    """
    known = (content, repr(spec))
    if known in _CHECKED or is_core(get_dataset(spec.name)):
        return
    for data in splits.values():
        require(data, label_faults)
    _CHECKED.add(known)
