"""The machine while speed is measured: switches of the process, events of CUDA, clocks, heat. Spec: measurement 3."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from benchmark.records.measurements import SpeedSettings
from benchmark.records.provenance import cpu_name
from benchmark.speed.timing import Mark

_CPU_CLOCK = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq")  # kHz
_CPU_TEMPERATURE = Path("/sys/class/thermal/thermal_zone0/temp")  # thousandths of a degree


def configure_for_speed(settings: SpeedSettings) -> None:
    """Switches of a process that measures; for a fresh process, since inter-op threads can be set only once."""
    torch.set_num_interop_threads(1)
    torch.set_num_threads(settings.threads)
    tf32 = settings.dtype == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = settings.cudnn_benchmark


def device_name(device: str) -> str:
    """Name of the processor, or of the GPU."""
    return torch.cuda.get_device_name(device) if device != "cpu" else cpu_name()


class CudaDevice:
    """A CUDA device as `benchmark.speed.timing.Device`."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.total_bytes: int = torch.cuda.get_device_properties(device).total_memory

    def synchronize(self) -> None:
        """Wait until everything enqueued is done."""
        torch.cuda.synchronize(self.device)

    def marks(self, n: int) -> Sequence[Mark]:
        """This number of events with timing."""
        return [cast(Mark, torch.cuda.Event(enable_timing=True)) for _ in range(n)]

    def reset_peak(self) -> None:
        """Forget the peak of allocated memory."""
        torch.cuda.reset_peak_memory_stats(self.device)

    def peak_bytes(self) -> int:
        """Peak of allocated memory since then."""
        return int(torch.cuda.max_memory_allocated(self.device))


def device_state(device: torch.device) -> dict[str, float | list[str] | None]:
    """Clocks (MHz), temperature (degree Celsius), power (watt) and what slows the device down; None without a counter.

    load_1m: the system's load average, what else the machine was doing.
    """
    state: dict[str, float | list[str] | None] = dict.fromkeys(
        ("clock_mhz", "memory_clock_mhz", "temperature_c", "power_w", "throttle_reasons")
    )
    state["load_1m"] = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    if device.type == "cuda":
        state.update(_gpu_state(device))
    else:
        clock, temperature = _number_in(_CPU_CLOCK), _number_in(_CPU_TEMPERATURE)
        state["clock_mhz"] = None if clock is None else clock / 1e3
        state["temperature_c"] = None if temperature is None else temperature / 1e3
    return state


def _number_in(file: Path) -> float | None:
    try:
        return float(file.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _gpu_state(device: torch.device) -> dict[str, float | list[str] | None]:
    """What NVML reports; empty without NVML or the extra `gpu`."""
    try:
        import pynvml
    except ImportError:
        return {}
    try:
        pynvml.nvmlInit()
        # By identity: CUDA_VISIBLE_DEVICES renumbers what torch sees, not what NVML sees.
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    except pynvml.NVMLError:
        return {}

    def read(counter: Callable[..., Any], *arguments: object) -> Any:
        try:
            return counter(handle, *arguments)
        except pynvml.NVMLError:
            return None

    power = read(pynvml.nvmlDeviceGetPowerUsage)
    reasons = read(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons)
    try:
        return {
            "clock_mhz": read(pynvml.nvmlDeviceGetClockInfo, pynvml.NVML_CLOCK_SM),
            "memory_clock_mhz": read(pynvml.nvmlDeviceGetClockInfo, pynvml.NVML_CLOCK_MEM),
            "temperature_c": read(pynvml.nvmlDeviceGetTemperature, pynvml.NVML_TEMPERATURE_GPU),
            "power_w": None if power is None else power / 1e3,
            "throttle_reasons": None if reasons is None else _reasons(pynvml, reasons),
        }
    finally:
        pynvml.nvmlShutdown()


def _reasons(pynvml: Any, bits: int) -> list[str]:
    """Names of the bits that are set."""
    prefix = "nvmlClocksThrottleReason"
    known: Mapping[str, int] = {
        name.removeprefix(prefix): value
        for name, value in vars(pynvml).items()
        if name.startswith(prefix) and isinstance(value, int) and value.bit_count() == 1
    }
    return sorted(name for name, value in known.items() if bits & value)


def physical_cores() -> int:
    """Cores that this process may use, two hardware threads of one core counted once if the system reports them."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = set()
    for number in allowed:
        topology = Path(f"/sys/devices/system/cpu/cpu{number}/topology")
        package, core = _number_in(topology / "physical_package_id"), _number_in(topology / "core_id")
        cores.add((package, core) if core is not None else number)
    return max(1, len(cores))
