"""Named random streams: every source of randomness is a function of the cell's seed and of a component's name.

At equal seed all methods see the same initial backbone, the same heads and the same order of data, which is what makes
their results pair. Nothing here touches the global generators, except inside `seeded`, which puts them back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def seed_of(seed: int, component: str) -> int:
    """First 8 bytes, big-endian, of sha256("seed:component"), modulo 2^63. Spec: measurement 5 and test K3."""
    digest = hashlib.sha256(f"{seed}:{component}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % 2**63


def generator(seed: int, component: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator of its own for one component of one cell."""
    return torch.Generator(device=device).manual_seed(seed_of(seed, component))


@contextmanager
def seeded(seed: int, component: str) -> Iterator[None]:
    """Within the block the global CPU generator is this stream (libraries initialise weights from it); after it, as
    before.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, component))
        yield
