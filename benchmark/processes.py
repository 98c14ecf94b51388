"""What the suite's own processes share: they start fresh, and they do not import the script that started them."""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Iterator


@contextlib.contextmanager
def without_main() -> Iterator[None]:
    """Within the block a spawned process starts without the caller's script.

    `spawn` imports the main module again in every new process, so a script that runs a suite at its top level would run
    it again in each worker, unless it is written below `if __name__ == "__main__"`. Nothing that our processes are sent
    is defined there.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
