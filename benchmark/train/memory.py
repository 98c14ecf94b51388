"""Peak memory of a piece of work: resident memory of this process on a CPU, allocated device memory on CUDA."""

from __future__ import annotations

from pathlib import Path

import torch

_ALLOCATION_FAILED = ("can't allocate memory", "not enough memory", "out of memory")  # PyTorch's words on CPU and CUDA
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak(device: torch.device) -> None:
    """Start a new measurement. Where the system cannot forget a peak, the next reading is the process's peak so far."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        _CLEAR.write_text("5", encoding="ascii")  # Linux: forget the peak resident size
    except OSError:
        return


def peak_bytes(device: torch.device) -> int | None:
    """Bytes at the peak since `reset_peak`; None if the system does not report it."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return _peak_of_process()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(fields["VmHWM"].split()[0]) * 1024 if "VmHWM" in fields else _peak_of_process()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory could not be had, on the host or on a device."""
    text = str(error).lower()
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and any(words in text for words in _ALLOCATION_FAILED)
    )


def _peak_of_process() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    import sys

    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage if sys.platform == "darwin" else usage * 1024
