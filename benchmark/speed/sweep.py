"""The settings of a throughput sweep: every combination of the values that are asked for."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets.errors import UsageError, unknown

if TYPE_CHECKING:
    from benchmark.records.measurements import SpeedSettings
    from benchmark.records.record import Record
    from benchmark.speed.jobs import SpeedJob, TableJob
    from benchmark.speed.timing import SpeedProtocol


INFERENCE = ("joint", "mixed", "task")


@dataclasses.dataclass(frozen=True)
class Choices:
    """The values of a sweep; None takes those of the full protocol."""

    devices: Sequence[str] = ("auto",)
    batches: Sequence[int] | None = None
    threads: Sequence[int] | None = None
    dtypes: Sequence[str] | None = None
    memory_formats: Sequence[str] | None = None
    modes: Sequence[str] | None = None
    executions: Sequence[str] = ("eager",)
    memory: bool = True
    plugins: Sequence[str] = ()
    data_root: Path | None = None


def settings_of(choices: Choices, device: str, cores: int) -> list[SpeedSettings]:
    """Every setting that is asked for: the product of the choices. device: cpu, cuda or cuda:N; cores: physical ones.
    Raises UsageError.

    Full protocol: CUDA batch 1, 8, 32, 128, amp-bf16 in channels_last and fp32 contiguous; CPU batch 1, 8, fp32
    contiguous, one thread and a thread a core. Folded networks are measured in channels_last.
    """
    from benchmark.records.measurements import SpeedSettings

    kind = device.partition(":")[0]
    on_cpu = kind == "cpu"
    batches = choices.batches or ((1, 8) if on_cpu else (1, 8, 32, 128))
    threads = choices.threads or (tuple(dict.fromkeys((1, cores))) if on_cpu else (1,))
    dtypes = choices.dtypes or (("fp32",) if on_cpu else ("amp-bf16", "fp32"))
    found = []
    for execution, n_threads, dtype in itertools.product(choices.executions, threads, dtypes):
        last = execution == "folded" or (dtype in ("amp-bf16", "bf16") and not on_cpu)
        usual = "channels_last" if last else "contiguous"
        for form, batch in itertools.product(choices.memory_formats or (usual,), batches):
            values: dict[str, Any] = {"device": kind, "dtype": dtype, "memory_format": form, "execution": execution}
            found.append(SpeedSettings(batch=batch, threads=n_threads, **values))
    return list(dict.fromkeys(found))


def jobs_of(
    root: Path,
    tables: Mapping[str, Sequence[Record]],
    choices: Choices,
    device: str,
    settings: Sequence[SpeedSettings],
    protocol: SpeedProtocol,
) -> list[SpeedJob]:
    """One job a setting; train-step at the training batch of each table, apart. Raises UsageError for unknown modes."""
    from benchmark.records.measurements import TRAIN
    from benchmark.speed.jobs import SpeedJob, TableJob

    wanted = tuple(choices.modes or INFERENCE)
    _check_modes(wanted, tables)
    tried: dict[SpeedSettings, list[TableJob]] = {}
    for table, records in tables.items():
        modes = _modes(records, [mode for mode in wanted if mode != TRAIN])
        if modes:
            for setting in settings:
                tried.setdefault(setting, []).append(TableJob(table, modes))
        if TRAIN in wanted:
            if any(setting.execution == "folded" for setting in settings):
                raise UsageError("--mode train-step: a folded network cannot be trained; take eager or compiled.")
            batch = training_batch_size(records[0])
            for setting in dict.fromkeys(dataclasses.replace(setting, batch=batch) for setting in settings):
                tried.setdefault(setting, []).append(TableJob(table, _modes(records, [TRAIN])))
    return [
        SpeedJob(
            root=root,
            tables=tuple(tables),
            settings=setting,
            protocol=protocol,
            device=device,
            plugins=tuple(choices.plugins),
            data_root=choices.data_root,
            memory=choices.memory,
        )
        for setting, tables in tried.items()
    ]


def training_batch_size(record: Record) -> int:
    """Batch size of the final training."""
    size = record.cell["recipe"].get("batch_size")
    if size is None:
        raise UsageError(f"Record {record.key} names no batch size; train-step needs one.")
    return size


def _modes(records: Sequence[Record], wanted: Sequence[str]) -> dict[str, tuple[str, ...]]:
    from benchmark.speed.jobs import modes_of

    found = {record.key: tuple(modes_of(record, wanted)) for record in records}
    return {key: modes for key, modes in found.items() if modes}


def _check_modes(wanted: Sequence[str], tables: Mapping[str, Sequence[Record]]) -> None:
    """Every mode asked for is one, and some network has it."""
    from benchmark.records.measurements import JOINT, MIXED, TRAIN
    from benchmark.speed.jobs import modes_of

    records = [record for group in tables.values() for record in group]
    for mode in wanted:
        if mode in INFERENCE and wanted == INFERENCE:
            continue  # the default names both joint and mixed; a table has one of them
        if not any(modes_of(record, [mode]) for record in records):
            if mode in (JOINT, MIXED):
                other = MIXED if mode == JOINT else JOINT
                raise UsageError(f"--mode {mode}: no table here has it; tasks that do not share images have {other!r}.")
            known = {found for record in records for found in modes_of(record, (*INFERENCE, TRAIN))}
            raise unknown("mode", mode, {"task", *known})
