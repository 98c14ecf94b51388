"""Shared by all tests: real sample files are optional, networks are small, nothing is downloaded."""

from __future__ import annotations

import os
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; child processes inherit it

import pytest
import torch

THREADS = torch.get_num_threads()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What compares in float64 depends on kernels: it is part of `tests/any_machine.sh`."""
    for item in items:
        if "float64" in getattr(item, "fixturenames", ()):
            item.add_marker("numerical")


@pytest.fixture(autouse=True)
def _threads() -> None:
    """As many as OMP_NUM_THREADS says, whatever a cell of the test before has set: bits depend on their number."""
    torch.set_num_threads(THREADS)


@pytest.fixture
def float64() -> Iterator[None]:
    """Networks and images that the test makes are float64.

    For tests that compare two ways to one number. Kernels add in an order that follows from shapes, threads and
    instruction set, so in float32 two right ways differ by 1e-6 to 1e-3, as much as some faults; see `tests.numbers`.
    """
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
