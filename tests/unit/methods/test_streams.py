"""Streams that shift with call order would unpair the methods of a table."""

from __future__ import annotations

import torch

from methods.streams import generator, seed_of, seeded


def test_k3_seed_of_a_component() -> None:
    assert seed_of(0, "data-order") == 3642388013803596964


def test_streams_differ_by_seed_and_name_and_repeat() -> None:
    draws = {torch.randn(1, generator=generator(s, name)).item() for s in (0, 1) for name in ("a", "b")}
    assert len(draws) == 4
    assert torch.equal(torch.randn(3, generator=generator(0, "a")), torch.randn(3, generator=generator(0, "a")))


def test_seeded_leaves_the_global_stream_alone() -> None:
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    with seeded(0, "x"):
        torch.randn(100)
    assert torch.equal(torch.randn(3), expected)
