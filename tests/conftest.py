"""Shared by all tests: real sample files are optional, networks are small, nothing is downloaded."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; child processes inherit it

import hypothesis
import pytest
import torch

# How long an example takes says something of the machine only, which other tests share.
hypothesis.settings.register_profile("any_machine", deadline=None)
hypothesis.settings.load_profile("any_machine")

THREADS = torch.get_num_threads()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What compares in float64 depends on kernels: it is part of `tests/any_machine.sh`."""
    for item in items:
        if "float64" in getattr(item, "fixturenames", ()):
            item.add_marker("numerical")


@pytest.fixture(autouse=True, scope="session")
def _no_wait_for_the_disk() -> Iterator[None]:
    """A killed process loses nothing that it has written; a power cut would, and no test makes one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


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


def pytest_collection_finish() -> None:
    """What is imported by now lives to the end: no garbage collection needs to look at it again, and some tests ask
    for many.
    """
    gc.collect()
    gc.freeze()


TOY_DATA = Path(__file__).parent / "unit" / "toy_data.py"


@contextlib.contextmanager
def toy_registered() -> Iterator[Path]:
    """The data set `toy` in the registry within the block; gives its file, for `plugins:`."""
    from benchmark.plan import plugins
    from datasets import registry

    registry.load_datasets()  # else what is imported in the block registers in the copy, and is gone after it
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_DATASETS", dict(registry._DATASETS))
        for name in [name for name in sys.modules if name.startswith("sharebench_plugin_toy_data")]:
            patch.delitem(sys.modules, name)
        plugins.load_plugins([TOY_DATA])
        yield TOY_DATA


@pytest.fixture
def toy_data() -> Iterator[Path]:
    """`toy_registered` until the test is over."""
    with toy_registered() as file:
        yield file


@pytest.fixture
def quick_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that measure are copies too of one that has imported everything, as workers of cells are."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmark.train.cell", "benchmark.plan.cells", "benchmark.speed.session"])
    monkeypatch.setattr(multiprocessing, "get_context", lambda method=None: context)
