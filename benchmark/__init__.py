"""How it is judged: suites, the training loop, measures, records, tables and the commands.

From Python: `run_suite`, `Results` and `load_network` (see `benchmark.api` and `benchmark.deploy.network`). They are
imported when they are first asked for: a command must start before torch is loaded.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.version import __version__

if TYPE_CHECKING:
    from benchmark.api import Results, run_suite
    from benchmark.deploy.network import load_network

__all__ = ["Results", "__version__", "load_network", "run_suite"]


def _assert_own_packages() -> None:
    """Our packages beside this one are those that Python finds. `python -m` looks in the working directory first, where
    a project may have packages of its own: one line for a command, ImportError for a script.
    """
    folder = Path(__file__).parent.parent
    for name in ("datasets", "methods"):
        spec = importlib.util.find_spec(name)
        origin = Path(spec.origin).parent if spec is not None and spec.origin is not None else None
        if origin is not None and origin.resolve() != (folder / name).resolve():
            message = (
                f"the package {name!r} at {origin} hides ShareBench's at {folder / name}. In a project with a package "
                "of that name use the console script (`sharebench run` for `python -m benchmark.run`); Hugging Face's "
                "datasets needs an environment of its own."
            )
            if Path(sys.argv[0]).name in ("-m", "sharebench"):  # "-m": Python is still looking for the module
                print(f"error: {message}", file=sys.stderr)
                raise SystemExit(2)
            raise ImportError(message)


_assert_own_packages()


def __getattr__(name: str) -> object:
    import importlib

    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "benchmark.deploy.network" if name == "load_network" else "benchmark.api"
    return getattr(importlib.import_module(module), name)
