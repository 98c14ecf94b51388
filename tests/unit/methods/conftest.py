"""Methods are tested here without the count of what their training takes, which is a fifth of the time of short ones.

That count is tested in tests/unit/train, and with every method and family of backbones in tests/conformance.
"""

from __future__ import annotations

import contextlib

import pytest

from benchmark.train import alternation


class Uncounted(contextlib.nullcontext[None]):
    macs = 0


@pytest.fixture(autouse=True)
def _uncounted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alternation, "MacCounter", Uncounted)
