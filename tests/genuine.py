"""The small genuine files beside the checkout, where they are: `../shared/data`. Never part of the project."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

SHARED = Path(__file__).parent.parent.parent / "shared" / "data"


def genuine(path: str, sha256: str) -> Path:
    """A genuine file, checked; skips the test with the reason where it is absent, fails where it is another file."""
    file = SHARED / path
    if not file.is_file():
        pytest.skip(f"genuine sample {path} is not at ../shared/data")
    assert hashlib.sha256(file.read_bytes()).hexdigest() == sha256, f"{file} is not the file it should be"
    return file
