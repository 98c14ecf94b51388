"""Methods, data sets and backbone families from a user's own files, named by a suite's `plugins:` or by `--plugin`.

A plug-in is a Python file that uses `@register_method`, `@register_dataset` or `@family`, as our own files do.
It is the user's code and runs with the user's rights: read a suite from another person before running it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path

from datasets.errors import UsageError


def load_plugins(files: Iterable[str | Path]) -> None:
    """Import each file once in this process. Raises UsageError in one line for a file that is missing or raises."""
    for file in files:
        path = Path(file)
        if not path.is_file():
            raise UsageError(
                f"Plug-in {file} does not exist; `plugins:` names files relative to the suite's file, `--plugin` to "
                "the working directory."
            )
        # Named by its place, so that two plug-ins of one file name do not replace each other; a dot means a package.
        stem = re.sub(r"\W", "_", path.stem)
        name = f"sharebench_plugin_{stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
        if name not in sys.modules:
            _load(name, path)


def _load(name: str, path: Path) -> None:
    spec = importlib.util.spec_from_file_location(name, path) if path.suffix == ".py" else None
    if spec is None or spec.loader is None:
        raise UsageError(f"Plug-in {path} is not a Python file; expected the suffix .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except UsageError:
        del sys.modules[name]
        raise
    except Exception as error:  # whatever a user's file does wrong is one line to the user
        del sys.modules[name]
        reason = (str(error) or "without a message").splitlines()[0]
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
        where = f", line {lines[-1]}," if lines else ""
        raise UsageError(f"Plug-in {path}{where} raised {type(error).__name__}: {reason}.") from error
