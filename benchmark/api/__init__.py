"""What the commands do, as functions: each takes values and a console, and raises UsageError for a user's mistake.

A command parses its options and calls one function of this room. From Python:

    from benchmark import run_suite
    results = run_suite("quick", seeds=[0, 1, 2], jobs=4)
    frame = results.frame()

The cells and records are those of the command, and nothing is trained twice. A script needs no
`if __name__ == "__main__"`: workers do not import it. A method or data set of your own therefore belongs in a file of
its own, which the suite names in `plugins:`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmark.api.results import FRAME_COLUMNS, Results
    from benchmark.api.running import run_suite

__all__ = ["FRAME_COLUMNS", "Results", "run_suite"]


def __getattr__(name: str) -> object:
    """The public names, imported when they are first asked for: one command does not load what others need."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "running" if name == "run_suite" else "results"
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)
