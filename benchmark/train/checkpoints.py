"""Checkpoints of stages: one file at the end of each, one while it runs, written atomically and read without unpickling
code.

A file holds tensors and plain values only (`weights_only=True`). It belongs to one cell and one version of the code:
what another version wrote is set aside and the stage starts anew, since replaying it would mix two programs.
"""

from __future__ import annotations

import io
import pickle
import time
from pathlib import Path
from typing import Any

import torch

from benchmark.records.store import remove_torn, write_atomic

FORMAT = 1


class Checkpoints:
    """Numbered stages of one cell in one folder. version: of the code; part of every file."""

    def __init__(self, folder: Path, version: str) -> None:
        self.folder, self.version = folder, version
        self._saved = time.monotonic()

    @property
    def age_s(self) -> float:
        """Seconds since the last file was written, or since the cell began."""
        return time.monotonic() - self._saved

    def _path(self, number: int, kind: str) -> Path:
        return self.folder / f"stage-{number:03d}.{kind}.pt"

    def save(self, number: int, payload: dict[str, Any], *, finished: bool) -> None:
        """Write the state of a stage; a finished one replaces its intermediate file."""
        buffer = io.BytesIO()
        torch.save({"format": FORMAT, "version": self.version, "payload": payload}, buffer)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self._path(number, "end" if finished else "partial"), buffer.getvalue())
        if finished:
            self._path(number, "partial").unlink(missing_ok=True)
        self._saved = time.monotonic()

    def load(self, number: int, signature: list[Any]) -> tuple[dict[str, Any], bool] | None:
        """(payload, finished) of a stage, or None where there is nothing that this code, asked for this
        stage, wrote.
        """
        for kind in ("end", "partial"):
            path = self._path(number, kind)
            if not path.exists():
                continue
            try:
                stored = torch.load(path, map_location="cpu", weights_only=True)
            except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError):
                continue  # not a file that we finished writing: train the stage again
            usable = (
                isinstance(stored, dict) and stored.get("format") == FORMAT and stored.get("version") == self.version
            )
            if usable and stored["payload"]["signature"] == signature:
                return stored["payload"], kind == "end"
        return None

    def clear(self) -> None:
        """Remove the files, once the record stands."""
        for path in self.folder.glob("stage-*.pt"):
            path.unlink()
        remove_torn(self.folder)
        if self.folder.exists() and not any(self.folder.iterdir()):
            self.folder.rmdir()
