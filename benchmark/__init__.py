"""How it is judged: suites, the training loop, measures, records, tables and the commands.

From Python: `run_suite`, `Results` and `load_network` (see `benchmark.api` and `benchmark.networks`). They are imported
when they are first asked for: a command must start before torch is loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmark.api import Results, run_suite
    from benchmark.networks import load_network

__version__ = "0.1.0"
__all__ = ["Results", "load_network", "run_suite"]


def __getattr__(name: str) -> object:
    import importlib

    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "benchmark.networks" if name == "load_network" else "benchmark.api"
    return getattr(importlib.import_module(module), name)
