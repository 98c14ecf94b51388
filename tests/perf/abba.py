"""Speed of one callable relative to another, by the pairs of `benchmark.speed.timing`, for bounds that outlast
noise.
"""

from __future__ import annotations

import dataclasses
import statistics

from benchmark.records.measurements import PAIRS
from benchmark.speed.timing import Call, Contest, Failure, PairTimes, WarmUpRule, abba_pairs, warm_up

WARM_UP = WarmUpRule(limit_s=10.0, shared=True)


@dataclasses.dataclass(frozen=True)
class PairedRatio:
    """r: time of the candidate over time of the reference, median over pairs; aa: the same of a second reference.

    passes: r is not above bound + 2 |aa - 1|: the machine's own noise is no failure.
    """

    r: float
    aa: float
    bound: float

    @property
    def passes(self) -> bool:
        return self.r <= self.bound + 2 * abs(self.aa - 1)

    def __str__(self) -> str:
        verdict = "within" if self.passes else "ABOVE"
        return f"time ratio {self.r:.3f}, A/A {self.aa:.3f}: {verdict} {self.bound:g} + {2 * abs(self.aa - 1):.3f}"


def ratio(
    candidate: Call,
    reference: Call,
    *,
    bound: float,
    pairs: int = PAIRS,
    copy: Call | None = None,
    rule: WarmUpRule = WARM_UP,
) -> PairedRatio:
    """Warm up, measure, print with the A/A ratio. copy: a second copy of the reference, None for the reference itself.

    Raises RuntimeError where one of the two cannot be called.
    """
    calls = {"reference": reference, "candidate": candidate, "copy": copy or reference}
    for name, result in warm_up(calls, rule).items():
        if isinstance(result, Failure):
            raise RuntimeError(f"The {name} failed: {result.message}")
    run = abba_pairs(Contest(reference, copy or reference, {"candidate": candidate}), pairs)
    if run.failures:
        raise RuntimeError(f"The candidate failed: {run.failures['candidate'].message}")
    found = PairedRatio(_time_ratio(run.networks["candidate"]), _time_ratio(run.copy), bound)
    print(found)
    return found


def _time_ratio(times: PairTimes) -> float:
    """Median of t_candidate / t_reference."""
    return statistics.median(1 / value for value in times.time_ratios())
