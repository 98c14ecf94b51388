"""The light measurement at the end of a run: what is new, in one setting."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Sequence

from benchmark.records.measurements import JOINT, MIXED, TASK, failures_of, light_settings, read_speed
from benchmark.records.provenance import cpu_name, package_hash
from benchmark.records.store import Store
from benchmark.speed.jobs import SpeedJob, TableJob, is_measured, modes_of, networks_of, with_networks
from benchmark.speed.process import run_job
from benchmark.speed.timing import SpeedProtocol, WarmUpRule


@dataclasses.dataclass(frozen=True)
class LightResult:
    """What the light measurement did. absent: finished cells whose networks are not in the folder. seconds: all of it,
    with the start of its process.
    """

    measured: int
    kept: int
    absent: int
    seconds: float
    flags: tuple[str, ...]
    failures: tuple[str, ...]


LIGHT_MODES = (JOINT, MIXED, TASK.rstrip(":"))


LIGHT_PROTOCOL = SpeedProtocol(warm_up=WarmUpRule(limit_s=5.0, shared=True))


def measure_light(
    store: Store,
    *,
    keys: Collection[str] | None = None,
    device: str = "cpu",
    plugins: Sequence[str] = (),
    protocol: SpeedProtocol = LIGHT_PROTOCOL,
) -> LightResult:
    """Measure once what this code has not measured yet; to be called when no worker is busy.

    keys: only these cells. Raises UsageError where the measuring process cannot do its work.
    """
    start = time.monotonic()
    settings, results, package = light_settings(device), read_speed(store.root), package_hash()
    name = _device_name(device)
    tables, kept = [], 0
    here, absent = with_networks(store, store.load_all())
    for table, records in networks_of(here, keys).items():
        modes = {record.key: tuple(modes_of(record, LIGHT_MODES)) for record in records}
        missing = {
            record.key
            for record in records
            for mode in modes[record.key]
            if not is_measured(results, record, mode, settings, package, name)
        }
        # The single-task networks come along again: the others are compared with them in the same measurement.
        along = {record.key for record in records if missing and (record.key in missing or record.is_reference)}
        kept += len(records) - len(along)
        if along:
            tables.append(TableJob(table, {key: value for key, value in modes.items() if key in along}))
    if not tables:
        return LightResult(0, kept, absent, time.monotonic() - start, (), ())
    job = SpeedJob(store.root, tuple(tables), settings, protocol, device, tuple(plugins))
    files = list(run_job(job))
    return LightResult(
        measured=sum(len({entry.graph for entry in file.networks if entry.status == "done"}) for file in files),
        kept=kept,
        absent=absent,
        seconds=time.monotonic() - start,
        flags=tuple(sorted({flag for file in files for flag in file.flags})),
        failures=tuple(failure for file in files for failure in failures_of(file)),
    )


def _device_name(device: str) -> str:
    """As `speed_device.device_name`, without torch on a CPU: the command that asks has not loaded it."""
    if device == "cpu":
        return cpu_name()
    from benchmark.speed.device import device_name

    return device_name(device)
