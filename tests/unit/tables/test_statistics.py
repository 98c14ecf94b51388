"""Paired tests, Holm, minimum detectable effect and rank groups: worked examples, scipy as the oracle, properties."""

from __future__ import annotations

import itertools
import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from benchmark.tables.statistics import (
    LEVEL,
    POWER,
    Summary,
    analyse,
    compare,
    detectable_shift,
    holm,
    p_values,
    rank_groups,
)

VALUES = st.integers(-1000, 1000).map(lambda value: value / 8)  # binary fractions: sums are exact in every order
P = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def rows(*lines):
    return np.array(lines, dtype=np.float64)


def pairs(n_min, n_max):
    """Two rows of values at the same seeds whose differences are not all the same."""
    line = st.integers(n_min, n_max).flatmap(lambda n: st.lists(st.tuples(VALUES, VALUES), min_size=n, max_size=n))
    return line.filter(lambda found: len({a - b for a, b in found}) > 1)


# mean and s.d.


def test_the_spread_is_that_of_a_sample():
    summary = Summary((0, 1, 2), (27.1, 27.5, 27.9))
    assert summary.mean == pytest.approx(27.5)
    assert summary.sd == pytest.approx(0.4)  # with divisor n it would be 0.327, a standard error 0.231
    assert Summary((0,), (1.0,)).sd is None
    assert Summary((), ()).mean is None


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=8))
def test_the_spread_equals_that_of_the_standard_library(values):
    summary = Summary(tuple(range(len(values))), tuple(values))
    assert summary.sd == pytest.approx(statistics.stdev(values), rel=1e-6, abs=1e-6)


# paired tests


def test_q1_a_two_sided_paired_t_test():
    p = p_values(rows([1, 2, 3]), np.zeros(3))[0]
    assert p == pytest.approx(0.0742, abs=5e-5)  # one-sided it would be 0.0371
    assert p == pytest.approx(2 * stats.t.sf(3.464, 2), abs=5e-5)
    values = rows([11, 22, 33])
    assert p_values(values, rows([10, 20, 30])[0])[0] == pytest.approx(p)  # unpaired it would be 0.83
    assert stats.ttest_ind([11, 22, 33], [10, 20, 30]).pvalue == pytest.approx(0.83, abs=0.01)


@given(pairs(3, 9))
def test_any_number_of_seeds_equals_scipys_paired_t_test(found):
    a, b = map(list, zip(*found, strict=True))
    expected = stats.ttest_rel(a, b).pvalue
    assert p_values(rows(a), rows(b)[0])[0] == pytest.approx(expected, rel=1e-9)


@given(pairs(3, 9))
def test_the_order_of_the_two_rows_does_not_matter(found):
    a, b = (rows(line) for line in zip(*found, strict=True))
    assert p_values(a, b[0])[0] == p_values(b, a[0])[0]


@given(pairs(3, 9), st.randoms(use_true_random=False))
def test_the_order_of_seeds_does_not_matter(found, random):
    shuffled = random.sample(found, len(found))
    p, again = (p_values(rows([a for a, _ in pair]), rows([b for _, b in pair])[0])[0] for pair in (found, shuffled))
    assert again == pytest.approx(p, rel=1e-12)


@given(st.lists(pairs(6, 6), min_size=2, max_size=4))
def test_rows_are_tested_one_by_one(found):
    base = rows([b for _, b in found[0]])[0]
    lines = rows(*[[a for a, _ in one] for one in found])
    together = p_values(lines, base)
    alone = [p_values(lines[n : n + 1], base)[0] for n in range(len(lines))]
    np.testing.assert_array_equal(together, alone)


def test_two_seeds_are_refused():
    with pytest.raises(ValueError, match="3 seeds; got 2"):
        p_values(rows([1, 2]), rows([0, 0])[0])


@pytest.mark.parametrize(
    ("values", "base", "flag"),
    [
        ([1, 2, 3], [1, 2, 3], "identical"),
        ([1.5, 2.5, 3.5], [1, 2, 3], "constant"),
        ([1.4, 2.7, 4.3], [1.3, 2.6, 4.2], "constant"),  # 0.1 up to the last bits; a t test would give p = 2e-30
        ([0.3, 0.3, 0.3], [0.1 + 0.2] * 3, "identical"),
        ([1, 2, 3], [1, 2, 3.001], None),
    ],
)
def test_differences_without_spread_have_a_flag_and_no_p(values, base, flag):
    (one,) = compare(rows(values), rows(base)[0])
    assert one.flag == flag
    assert (one.p is None) == (flag is not None)
    assert (one.adjusted is None) == (flag is not None)
    assert not one.is_significant


def test_the_last_bits_really_differ():
    assert len({1.4 - 1.3, 2.7 - 2.6, 4.3 - 4.2}) > 1


def test_rows_without_spread_are_no_part_of_holms_family():
    base = [10.0, 11.0, 12.5]
    found = compare(rows([11, 12.1, 13.4], base, [12, 12.5, 15.5]), rows(base)[0])
    p = [one.p for one in found]
    assert p[1] is None
    assert found[0].adjusted == pytest.approx(min(1, 2 * p[0]))
    assert (found[0].mean, found[0].sd) == (pytest.approx(1.0), pytest.approx(0.1))


# Holm


def test_q2_holm_with_its_running_maximum():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])  # without it the second is 0.04


@given(P)
def test_holm_is_monotone_bounded_and_between_raw_and_bonferroni(p):
    adjusted = holm(p)
    for i, j in itertools.combinations(range(len(p)), 2):
        if p[i] < p[j]:
            assert adjusted[i] <= adjusted[j]
    assert np.all(adjusted >= p)
    assert np.all(adjusted <= np.minimum(1, np.array(p) * len(p)) + 1e-15)


@given(P, st.randoms(use_true_random=False))
def test_holm_does_not_depend_on_the_order(p, random):
    order = random.sample(range(len(p)), len(p))
    np.testing.assert_array_equal(holm([p[n] for n in order]), holm(p)[order])


@given(P)
def test_holm_rejects_what_the_step_down_procedure_rejects(p):
    rejected = 0
    for i, value in enumerate(sorted(p)):
        if value * (len(p) - i) >= LEVEL:
            break
        rejected += 1
    assert (holm(p) < LEVEL).sum() == rejected


# minimum detectable effect


@pytest.mark.parametrize(
    ("n", "m", "effect"),
    [(3, 1, 3.26), (5, 1, 1.68), (10, 1, 1.00)],  # Q3; the sum of central t quantiles would be 3.10 at n = 3
)
def test_q3_detectable_effects(n, m, effect):
    assert detectable_shift(n, m) == pytest.approx(effect, abs=0.01)


def test_many_comparisons_hide_everything_but_huge_effects():
    assert detectable_shift(3, 55) == pytest.approx(24, abs=0.5)  # measurement 5: 24 s_d at m = 55


@pytest.mark.parametrize(("n", "m"), [(3, 1), (3, 10), (5, 4), (10, 1), (20, 3)])
def test_an_effect_of_that_size_is_found_with_that_power(n, m):
    """Simulation with numpy alone, so that a wrong non-centrality cannot hide."""
    random = np.random.default_rng(11)
    samples = random.normal(detectable_shift(n, m), 1.0, size=(20_000, n))
    t = samples.mean(1) / (samples.std(1, ddof=1) / math.sqrt(n))
    found = (t > stats.t.isf(LEVEL / (2 * m), n - 1)).mean()
    assert found == pytest.approx(POWER, abs=0.012)


@given(st.integers(3, 12), st.integers(1, 3))
def test_more_seeds_find_smaller_effects_and_more_rows_hide_them(n, m):
    assert detectable_shift(n + 1, m) < detectable_shift(n, m) < detectable_shift(n, m + 1)


# rank groups


def test_q4_groups_are_not_chained():
    p = {(0, 1): 0.4, (0, 2): 0.01, (1, 2): 0.2}
    groups = rank_groups([30, 29.5, 27], lambda leader, others: [p[leader, other] for other in others], True)
    assert groups == [[0, 1], [2]]  # B and C do not differ, but C does differ from the leader A


def test_holm_acts_within_the_step():
    raw = {1: 0.03, 2: 0.04}
    groups = rank_groups([3, 2, 1], lambda leader, others: [raw[other] for other in others], True)
    assert groups == [[0, 1, 2]]  # 0.03 is below 0.05, 2 * 0.03 is not
    groups = rank_groups([3, 2], lambda leader, others: [0.03], True)
    assert groups == [[0], [1]]


def test_lower_can_be_better_and_no_p_is_a_tie():
    assert rank_groups([1, 2, 3], lambda leader, others: [0.0] * len(others), False) == [[0], [1], [2]]
    assert rank_groups([1, 2, 3], lambda leader, others: [math.nan] * len(others), True) == [[2, 1, 0]]
    assert rank_groups([], lambda leader, others: [], True) == []


@given(st.lists(st.lists(VALUES, min_size=4, max_size=4), min_size=2, max_size=6), st.booleans())
def test_every_row_has_a_rank_and_better_means_never_rank_worse(lines, higher_is_better):
    found = analyse(dict(enumerate(lines)), None, higher_is_better)
    assert sorted(found.ranks) == list(range(len(lines)))
    assert min(found.ranks.values()) == 1
    means = [sum(line) / 4 for line in lines]
    best = means.index(max(means) if higher_is_better else min(means))
    assert found.ranks[best] == 1
    for rank in found.ranks.values():  # a group shares the best rank in it
        assert rank == 1 + sum(other < rank for other in found.ranks.values())


def test_ranks_share_the_best_of_their_group():
    values = {
        4: [30.0, 30.4, 30.2, 29.9, 30.1],
        7: [29.9, 30.5, 30.1, 30.0, 29.9],
        9: [20.0, 20.3, 20.2, 20.1, 20.0],
    }
    found = analyse(values, 9, True)
    assert found.ranks == {4: 1, 7: 1, 9: 3}
    assert sorted(found.comparisons) == [4, 7]
    assert found.m == 2
    sds = [stats.tstd(np.subtract(values[row], values[9])) for row in (4, 7)]
    assert found.median_sd == pytest.approx(np.median(sds))
    assert found.detectable == pytest.approx(found.median_sd * detectable_shift(5, 2))


def test_without_a_reference_the_leader_gives_the_spread():
    values = {0: [30.0, 30.4, 30.2], 1: [29.0, 29.6, 29.0]}
    found = analyse(values, None, True)
    assert found.comparisons == {}
    assert found.median_sd == pytest.approx(stats.tstd([1.0, 0.8, 1.2]))
    assert analyse(values, 5, True).comparisons == {}


def test_too_little_for_a_test():
    assert analyse({}, None, True) is None
    assert analyse({0: [1.0, 2.0, 3.0]}, 0, True) is None
    assert analyse({0: [1.0, 2.0], 1: [2.0, 3.0]}, 0, True) is None
    constant = analyse({0: [1.0, 2.0, 3.0], 1: [2.0, 3.0, 4.0]}, 0, True)
    assert (constant.m, constant.detectable, constant.ranks) == (0, None, {0: 1, 1: 1})


# more seeds


@pytest.mark.parametrize("m", [1, 3, 10])
def test_more_seeds_never_lose_power(m):
    """For one effect and m rows: a sign-flip test of six seeds, whose smallest p is 1/32, finds nothing at m = 2."""
    random = np.random.default_rng(5)
    samples = random.normal(2.0, 1.0, size=(4000, 9))
    zero = np.zeros(9)
    found = [(p_values(samples[:, :n], zero[:n]) < LEVEL / m).mean() for n in range(3, 10)]
    assert found == sorted(found)
    assert found[3] > 0.5 or m > 3  # six seeds


@pytest.mark.parametrize("n", [3, 5, 6, 8])
def test_without_a_difference_the_level_is_kept(n):
    """Also after Holm over four rows that have the reference in common."""
    random = np.random.default_rng(n)
    p = p_values(random.normal(size=(4000, n)), np.zeros(n))
    assert (p < LEVEL).mean() == pytest.approx(LEVEL, abs=0.014)  # four standard errors
    tables = random.normal(size=(1000, 5, n))
    false = [min(holm(p_values(table[1:], table[0]))) < LEVEL for table in tables]
    assert np.mean(false) < LEVEL + 0.028
