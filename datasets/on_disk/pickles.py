"""Pickles of numbers and names, the only ones that are opened here: numpy arrays inside lists and dictionaries.

A pickle may name any function to call. This unpickler knows those that rebuild an array and refuses all others.
"""

from __future__ import annotations

import codecs
import io
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from datasets.on_disk.files import FileError, read_bytes


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    """How Python 3 writes bytes into old pickles."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in the encoding {encoding!r}")
    return codecs.encode(text, "latin1")


_RECONSTRUCT: Callable[..., Any] = np.empty(0).__reduce__()[0]  # type: ignore[assignment]  # numpy's own, private by name
_ALLOWED: Mapping[tuple[str, str], Callable[..., Any]] = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,  # numpy 1, and files written with it
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _latin1,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no data need")
        return _ALLOWED[module, name]


def read_pickle(path: Path) -> Any:
    """What the pickle holds; strings of Python 2 are read as latin-1.

    Raises FileError where it cannot be read, is damaged, or asks for anything but arrays.
    """
    try:
        return _Unpickler(io.BytesIO(read_bytes(path)), encoding="latin1").load()
    except FileError:
        raise
    # A damaged pickle can raise nearly anything: it is a program, cut off or garbled.
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise FileError(f"{path}: cannot be read as a pickle of arrays ({reason}).") from error
