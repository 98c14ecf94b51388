"""Shared by the speed cases: a bound that is checked by pairs of calls, and a summary that shows every A/A ratio."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmark.records.measurements import PAIRS
from benchmark.speed.timing import Call
from tests.perf.abba import PairedRatio, ratio

_RESULTS: pytest.StashKey[list[tuple[str, PairedRatio]]] = pytest.StashKey()


@pytest.fixture
def assert_bounded(request: pytest.FixtureRequest) -> Callable[..., PairedRatio]:
    """assert_bounded(candidate, reference, bound=1.05): fails only beyond bound + 2 |aa - 1|.

    A case that also uses the `benchmark` fixture of pytest-benchmark finds the ratios in its extra_info.
    """

    def check(
        candidate: Call, reference: Call, *, bound: float, pairs: int = PAIRS, copy: Call | None = None
    ) -> PairedRatio:
        found = ratio(candidate, reference, bound=bound, pairs=pairs, copy=copy)
        request.config.stash.setdefault(_RESULTS, []).append((request.node.name, found))
        if "benchmark" in request.fixturenames:
            extra = request.getfixturevalue("benchmark").extra_info
            extra.update(time_ratio=found.r, aa=found.aa, bound=bound)
        assert found.passes, str(found)
        return found

    return check


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    results = config.stash.get(_RESULTS, [])
    if results:
        terminalreporter.section("time ratios, each with the A/A ratio of its measurement")
        for name, found in results:
            terminalreporter.write_line(f"{name}: {found}")
