"""The random control must match the size it stands beside, or it proves nothing about the search."""

from __future__ import annotations

import pytest
import torch

from datasets.errors import UsageError
from methods.control import ArchitectureSize, random_architecture
from methods.streams import generator


class Trees:
    """Where two tasks part, of ten places: the later, the smaller."""

    def __init__(self) -> None:
        self.drawn = 0

    def draw(self, rng: torch.Generator) -> int:
        self.drawn += 1
        return int(torch.randint(0, 11, (), generator=rng))

    def size(self, split: int) -> ArchitectureSize:
        return ArchitectureSize(parameters=100 + 10 * (10 - split), macs=1000 + 100 * (10 - split))


@pytest.mark.parametrize("split", range(11))
def test_the_nearest_of_a_thousand_draws_has_the_size_asked_for(split: int) -> None:
    space = Trees()
    found = random_architecture(space, space.size(split), generator(0, "control"))
    assert found.architecture == split
    assert found.deviation == 0
    assert space.drawn == 1000


def test_both_sizes_count_and_the_deviation_is_the_larger_one() -> None:
    found = random_architecture(Trees(), ArchitectureSize(150, 3000), generator(0, "control"))
    assert found.architecture == 0  # 2000 MACs come nearest to 3000, whatever the parameters say
    assert found.deviation == pytest.approx(1 / 3)


def test_equal_seeds_draw_equally_and_bad_targets_are_refused() -> None:
    target = ArchitectureSize(155, 1555)
    one, two = (random_architecture(Trees(), target, generator(3, "control"), n_draws=5) for _ in range(2))
    assert one == two
    with pytest.raises(UsageError, match="needs a size"):
        random_architecture(Trees(), ArchitectureSize(0, 1), generator(0, "x"))
    with pytest.raises(UsageError, match="at least 1"):
        random_architecture(Trees(), target, generator(0, "x"), n_draws=0)
