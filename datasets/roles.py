"""Which samples play which role: fit, arch, select, report. Spec: datasets 2.5, measurement 1.4.

Roles depend on names and units only: not on a seed, a machine, a random generator or the order of files.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Literal

import numpy as np

from datasets.contracts import IndexArray, InputData, MultiTaskDataset, Split
from datasets.errors import UsageError

HOLD_OUT_PREFIX = "holdout-v1/"
ARCH_PREFIX = "arch-v1/"
HOLD_OUT_FRACTION = 0.10
ARCH_FRACTION = 0.20

RoleName = Literal["fit", "arch", "select", "report"]
SelectOn = Literal["select", "test"]


@dataclasses.dataclass(frozen=True)
class RoleIndices:
    """Samples with a role: ascending positions in one split of one input."""

    split: Split
    indices: IndexArray


def hold_out(
    dataset: str, units: Sequence[str], fraction: float, prefix: str, strata: Sequence[str] | None = None
) -> IndexArray:
    """Ascending positions of the samples held out: whole units in the order of sha256(prefix + dataset + "/" + unit),
    until they hold at least `fraction` of all samples. units: the unit of each sample. strata: its group;
    if given, the fraction is held out of every group.

    Raises UsageError if no sample would be left.
    """
    if strata is not None:
        groups = {name: [index for index, group in enumerate(strata) if group == name] for name in sorted(set(strata))}
        held_out = [
            np.array(members)[hold_out(dataset, [units[index] for index in members], fraction, prefix)]
            for members in groups.values()
        ]
        return np.sort(np.concatenate(held_out))
    sizes = Counter(units)
    needed = Fraction(repr(fraction)) * len(units)  # 0.07 * 100 is 7.000000000000001 in floats: one unit too many
    held: set[str] = set()
    count = 0
    for unit in sorted(sizes, key=lambda unit: hashlib.sha256(f"{prefix}{dataset}/{unit}".encode()).digest()):
        if count >= needed:
            break
        held.add(unit)
        count += sizes[unit]
    if count == len(units):
        raise UsageError(
            f"Holding out {fraction:.0%} of {dataset}, {len(units)} samples in {len(sizes)} units, leaves none."
        )
    return np.array([index for index, unit in enumerate(units) if unit in held], dtype=np.int64)


def role_indices(
    train: MultiTaskDataset,
    val: MultiTaskDataset | None,
    test: MultiTaskDataset,
    *,
    arch_fraction: float = ARCH_FRACTION,
    hold_out_fraction: float = HOLD_OUT_FRACTION,
    select_on: SelectOn = "select",
) -> dict[str, dict[RoleName, RoleIndices]]:
    """{input: {role: samples}}. report = test; select = val, or a hold-out of train if there is no val; arch = a
    fraction of the remaining train samples, fit = the rest. Composed data bring their own fit and arch parts.

    select_on: `test` re-enacts papers that chose on their test images: select = test, and nothing of train is held out.
    Raises UsageError if composed data lack a val split, or their arch part is not the requested fraction.
    """
    roles: dict[str, dict[RoleName, RoleIndices]] = {}
    judge = test if select_on == "test" else val
    of_split: Split = "test" if select_on == "test" else "val"
    for name, data in train.inputs.items():
        if data.parts is not None:
            if val is None:
                raise UsageError(f"{train.spec.name} is composed; a val split must come with it, cut by source image.")
            fit, arch = _own_parts(train.spec.name, data, arch_fraction)
        else:
            rest = np.arange(len(data), dtype=np.int64)
            if judge is None:
                selected = hold_out(train.spec.name, data.units, hold_out_fraction, HOLD_OUT_PREFIX, data.strata)
                rest = np.setdiff1d(rest, selected)
            units = [data.units[index] for index in rest.tolist()]
            strata = None if data.strata is None else [data.strata[index] for index in rest.tolist()]
            arch = rest[hold_out(train.spec.name, units, arch_fraction, ARCH_PREFIX, strata)]
            fit = np.setdiff1d(rest, arch)
        select = RoleIndices("train", selected) if judge is None else _whole(of_split, judge.inputs[name])
        roles[name] = {
            "fit": RoleIndices("train", fit),
            "arch": RoleIndices("train", arch),
            "select": select,
            "report": _whole("test", test.inputs[name]),
        }
    return roles


def _whole(split: Split, data: InputData) -> RoleIndices:
    return RoleIndices(split, np.arange(len(data), dtype=np.int64))


def _own_parts(dataset: str, data: InputData, arch_fraction: float) -> tuple[IndexArray, IndexArray]:
    parts: Mapping[str, IndexArray] = data.parts or {}
    fit, arch = parts["fit"], parts["arch"]
    actual = Fraction(len(arch), len(fit) + len(arch))
    if Fraction(repr(arch_fraction)) != actual:
        raise UsageError(
            f"The parts of {dataset} are cut by source image and fixed; arch_fraction must be {float(actual)}, "
            f"got {arch_fraction}."
        )
    return fit, arch


def role_hash(ids: Sequence[str]) -> str:
    """sha256 (hex) of the set of sample ids: sorted, one per line, so that the order of files does not matter.

    Raises UsageError if an id occurs twice.
    """
    repeated = [sample_id for sample_id, count in Counter(ids).items() if count > 1]
    if repeated:
        raise UsageError(f"Sample ids must be unique; {len(repeated)} are not, the first is {repeated[0]!r}.")
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()
