"""Statistics over seeds: mean, s.d., paired tests, Holm, minimum detectable effect, rank groups. Spec: measurement 5.

The test is the paired t test at every number of seeds. It assumes normal differences. A permutation test of the signs
does not, but its smallest p is 2^(1 - n): with six seeds and two rows, or seven and four, no difference could ever be
significant, so an added seed could undo a finding of five. Here we depart from the specification.

Pure functions of numbers; `benchmark.tables.table` chooses the rows, `benchmark.show.render` the words. Differences are
always of two rows at the same seed, d_s = a_s - b_s, because at equal seed both had the same initial weights and data
order. numpy and scipy are imported only for a test: a table of one seed must not wait for them.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

LEVEL = 0.05  # of all tests, after Holm
POWER = 0.8  # with which the minimum detectable effect is found
MIN_SEEDS = 3  # below it, no row is tested, ranked or marked
_ROUNDING = 1e-12  # differences below this share of the values are rounding, not effects

Flag = Literal["identical", "constant"]


@dataclasses.dataclass(frozen=True)
class Summary:
    """The values of one quantity in one row by seed; seeds without a value (null) are left out."""

    seeds: tuple[int, ...]
    values: tuple[float, ...]

    @property
    def n(self) -> int:
        """Number of values."""
        return len(self.values)

    @property
    def mean(self) -> float | None:
        """Arithmetic mean over seeds; None without a value."""
        return math.fsum(self.values) / self.n if self.values else None

    @property
    def sd(self) -> float | None:
        """Sample standard deviation over seeds, divisor n - 1; None for n < 2."""
        return None if self.n < 2 else sample_sd(self.values)


def half_interval(values: Sequence[float]) -> float | None:
    """Half of the 95 % interval of the mean (t, n - 1 degrees of freedom); None for fewer than three values."""
    if len(values) < MIN_SEEDS:
        return None
    from scipy.special import stdtrit

    return float(stdtrit(len(values) - 1, 1 - LEVEL / 2)) * sample_sd(values) / math.sqrt(len(values))


def sample_sd(values: Sequence[float]) -> float:
    """Sample standard deviation of at least two values, divisor n - 1."""
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A row against the reference row on one quantity: row minus reference, paired by seed.

    mean, sd: of the differences, in the quantity's unit, sd with divisor n - 1. p: two-sided; adjusted: after Holm over
    the comparisons of the table; both None if `flag` is set: then the differences have no spread to test against.
    """

    n: int
    mean: float
    sd: float
    p: float | None
    adjusted: float | None
    flag: Flag | None

    @property
    def is_significant(self) -> bool:
        """Whether the adjusted p is below 0.05."""
        return self.adjusted is not None and self.adjusted < LEVEL


@dataclasses.dataclass(frozen=True)
class ColumnStatistics:
    """The tests of one quantity. Rows are given by their position in the table, and only rows that may be ranked
    appear.

    comparisons: {row: against the reference}, empty without one. ranks: {row: rank}, 1 for the first group.
    median_sd: of the differences from the reference, without one from the leader. detectable: the smallest |mean
    difference| that one of `m` tests would find with power 0.8; None if no test could be made.
    """

    n: int
    m: int
    comparisons: Mapping[int, Comparison]
    ranks: Mapping[int, int]
    median_sd: float | None
    detectable: float | None


def analyse(
    values: Mapping[int, Sequence[float]], reference: int | None, higher_is_better: bool
) -> ColumnStatistics | None:
    """The tests of one quantity; None for fewer than two rows or three seeds.

    values: {row: value at each seed}, the same seeds in the same order for every row. reference: a row, or None.
    """
    import numpy as np

    rows = list(values)
    n = len(values[rows[0]]) if rows else 0
    if len(rows) < 2 or n < MIN_SEEDS:
        return None
    array = np.array([values[row] for row in rows], dtype=np.float64)
    means = [math.fsum(line) / n for line in array.tolist()]

    def leader_against(leader: int, others: Sequence[int]) -> Floats:
        return p_values(array[list(others)], array[leader])

    groups = rank_groups(means, leader_against, higher_is_better)
    ranks = {rows[position]: rank for position, rank in _ranks(groups).items()}
    base = groups[0][0] if reference is None or reference not in values else rows.index(reference)
    others = [position for position in range(len(rows)) if position != base]
    found = compare(array[others], array[base])
    spread = [one.sd for one in found if one.p is not None]
    median_sd = float(np.median(spread)) if spread else None
    return ColumnStatistics(
        n=n,
        m=len(spread),
        comparisons={rows[position]: one for position, one in zip(others, found, strict=True)}
        if reference in values
        else {},
        ranks=ranks,
        median_sd=median_sd,
        detectable=None if median_sd is None else median_sd * detectable_shift(n, len(spread)),
    )


def compare(rows: Floats, base: Floats) -> list[Comparison]:
    """Each row against `base`, Holm over all of them. rows: [K, n], base: [n], values by seed, n >= 3."""
    import numpy as np

    p = p_values(rows, base)
    adjusted = np.full_like(p, np.nan)
    adjusted[~np.isnan(p)] = holm(p[~np.isnan(p)])
    results = []
    for row, one, corrected in zip(rows, p.tolist(), adjusted.tolist(), strict=True):
        differences = (row - base).tolist()
        flag: Flag | None = None
        if math.isnan(one):
            flag = "constant" if _largest(row - base) > _ROUNDING * _largest(row, base) else "identical"
        results.append(
            Comparison(
                n=len(differences),
                mean=math.fsum(differences) / len(differences),
                sd=sample_sd(differences),
                p=None if flag else one,
                adjusted=None if flag else corrected,
                flag=flag,
            )
        )
    return results


def _largest(*values: Floats) -> float:
    import numpy as np

    return max(float(np.abs(array).max()) for array in values)


def p_values(rows: Floats, base: Floats) -> Floats:
    """Two-sided p of each row against `base`, paired by seed; NaN if all differences of a row are the same.

    rows: [K, n], base: [n], n >= 3. The paired t test, n - 1 degrees of freedom.
    """
    import numpy as np

    differences = rows - base
    n = differences.shape[1]
    if n < MIN_SEEDS:
        raise ValueError(f"Paired tests need {MIN_SEEDS} seeds; got {n}.")
    size = np.maximum(np.abs(rows).max(axis=1), np.abs(base).max())
    varied = np.ptp(differences, axis=1) > _ROUNDING * size
    p = np.full(len(rows), np.nan)
    if varied.any():
        p[varied] = _paired_t(differences[varied])
    return p


def _paired_t(differences: Floats) -> Floats:
    """Two-sided p. differences: [K, n], not all the same in a row."""
    import numpy as np
    from scipy.special import stdtr

    n = differences.shape[1]
    t = differences.mean(axis=1) / (differences.std(axis=1, ddof=1) / math.sqrt(n))
    p: Floats = 2.0 * stdtr(n - 1, -np.abs(t))
    return p


def holm(p: Sequence[float] | Floats) -> Floats:
    """Holm's adjusted p: the i-th smallest (i from 0) times m - i, running maximum, at most 1; in the order given."""
    import numpy as np

    given = np.asarray(p, dtype=np.float64)
    order = np.argsort(given, kind="stable")
    adjusted = np.empty_like(given)
    adjusted[order] = np.minimum(np.maximum.accumulate(given[order] * np.arange(len(given), 0, -1)), 1.0)
    return adjusted


@functools.lru_cache(maxsize=1024)
def detectable_shift(n: int, m: int) -> float:
    """The minimum detectable effect for s_d = 1: found with power 0.8 by a t test of n pairs at level 0.05 / m."""
    from scipy.optimize import brentq
    from scipy.stats import nct, t

    critical = float(t.isf(LEVEL / (2 * m), n - 1))

    def missing_power(shift: float) -> float:
        # The upper tail only: scipy's lower tail is NaN for large shifts, and finding an effect of the wrong sign is
        # not power.
        return float(nct.sf(critical, n - 1, shift)) - POWER

    upper = max(1.0, critical)
    while missing_power(upper) < 0:
        upper *= 2.0
    return float(brentq(missing_power, 0.0, upper, xtol=1e-9)) / math.sqrt(n)


def rank_groups(
    means: Sequence[float], p_against: Callable[[int, Sequence[int]], Sequence[float] | Floats], higher_is_better: bool
) -> list[list[int]]:
    """Positions in groups, best group first, in each the leader first.

    The best remaining position leads; its group are all remaining positions that do not differ significantly from it,
    Holm within the step. Groups are not chained: a position that ties with a follower but not with the leader belongs
    to a later group. p_against(leader, others): p of each, NaN for no test, which counts as a tie.
    """
    import numpy as np

    left = sorted(range(len(means)), key=lambda position: -means[position] if higher_is_better else means[position])
    groups = []
    while left:
        leader, others = left[0], left[1:]
        p = np.asarray(p_against(leader, others), dtype=np.float64) if others else np.empty(0)
        tested = ~np.isnan(p)
        differs = np.zeros(len(p), dtype=bool)
        differs[tested] = holm(p[tested]) < LEVEL
        groups.append([leader, *(other for other, away in zip(others, differs, strict=True) if not away)])
        left = [other for other, away in zip(others, differs, strict=True) if away]
    return groups


def _ranks(groups: Sequence[Sequence[int]]) -> dict[int, int]:
    """{position: rank}: a group shares the best rank in it, so a group of two at the top is followed by rank 3."""
    ranks: dict[int, int] = {}
    rank = 1
    for group in groups:
        ranks |= dict.fromkeys(group, rank)
        rank += len(group)
    return ranks
