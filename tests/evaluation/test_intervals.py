"""Intervals against answers from paper, and their coverage by simulation."""

import math

import numpy as np
import pytest

from medseg.evaluation.intervals import FADE_PATIENTS, mean_interval, median_interval


def test_without_skewness_it_is_students():
    values = [0.7, 0.8, 0.9]
    # Student's t at 97.5 % with 2 degrees of freedom, from a printed table: 4.303; SD 0.1.
    half = 4.303 * 0.1 / math.sqrt(3)
    found = mean_interval(values)
    assert (found.low, found.high) == pytest.approx((0.8 - half, 0.8 + half), rel=1e-3)
    assert (found.method, found.patients) == ("hall", 3)


def test_skewness_reaches_to_the_long_side():
    values = [0.9, 0.91, 0.92, 0.93, 0.5]
    found = mean_interval(values)
    assert np.mean(values) - found.low > found.high - np.mean(values)


def test_halls_transform_is_undone():
    # t + a t^2 / 3 + a^2 t^3 / 27 + a / 6 of either end is Student's quantile, with a = skewness / sqrt(n); Hall 1992.
    values = np.array([1.0, 2.0, 2.5, 3.0, 9.0])
    found, n, mean = mean_interval(values), len(values), values.mean()
    a = ((values - mean) ** 3).mean() / ((values - mean) ** 2).mean() ** 1.5 / math.sqrt(n)
    for end, quantile in ((found.low, 2.776), (found.high, -2.776)):  # 4 degrees of freedom
        t = (mean - end) / (values.std(ddof=1) / math.sqrt(n))
        assert t + a * t**2 / 3 + a**2 * t**3 / 27 + a / 6 == pytest.approx(quantile, abs=1e-3)


def test_failures_that_were_not_seen_are_allowed_for():
    values = [0.85, 0.9, 0.95, 0.9] * 5
    without = mean_interval(values)
    found = mean_interval(values, failed=[False] * 20, worst=0.0)
    # 1 - 0.05^(1/20) = 0.1391 of the patients might fail, each costing 0.9; margins add as squares.
    assert found.low == pytest.approx(0.9 - math.hypot(0.9 - without.low, 0.1391 * 0.9), abs=1e-4)
    assert found.high == without.high
    assert found.note == "nothing failed in 20 patients, which does not rule out a failure in 14 % of them"
    assert found.if_none_fails == (without.low, without.high)


def test_the_allowance_is_gone_where_failures_would_have_shown():
    values = [0.85, 0.95] * (FADE_PATIENTS[1] // 2)
    without = mean_interval(values)
    found = mean_interval(values, failed=[False] * len(values), worst=0.0)
    assert (found.low, found.high, found.note) == (without.low, without.high, "")


def test_failures_that_were_seen_get_jeffreys_interval():
    # Two of ten fail and the others are alike, so all that is unknown is the share: Jeffreys' interval of 2/10 is
    # 0.044 to 0.503 (Brown, Cai and DasGupta 2001, table 5).
    found = mean_interval([1.0] * 8 + [0.0] * 2, failed=[False] * 8 + [True] * 2, worst=0.0)
    assert (1 - found.low, 1 - found.high) == pytest.approx((0.503, 0.044), abs=1e-3)


def test_a_distance_fails_upwards():
    values, failed = [2.0] * 8 + [100.0] * 2, [False] * 8 + [True] * 2
    found = mean_interval(values, failed=failed, worst=100.0, bounds=(0.0, math.inf))
    assert (found.low, found.high) == pytest.approx((2 + 98 * 0.044, 2 + 98 * 0.503), abs=0.1)


def test_bounds_cut():
    assert mean_interval([0.0, 0.9, 1.0], bounds=(0.0, 1.0)).low == 0.0
    assert mean_interval([0.0, 0.9, 1.0], bounds=(0.0, 1.0)).high == 1.0


def test_too_few_have_none_and_say_why():
    assert (mean_interval([0.5]).low, mean_interval([0.5]).note) == (None, "fewer than two patients with a value")
    found = mean_interval([0.5, 0.0], failed=[False, True], worst=0.0)
    assert (found.high, found.note) == (None, "fewer than two patients where nothing failed")
    assert median_interval([0.5]).high is None
    assert "coverage" in mean_interval([0.5, 0.6]).note


def test_patients_not_cases_are_counted():
    values, failed = [0.5, 0.7, 0.8, 0.9, 0.95, 0.0], [False] * 5 + [True]
    alone = mean_interval(values, failed=failed, worst=0.0)
    names = [str(k) for k in range(6) for _ in range(3)]
    repeated = mean_interval(
        [v for v in values for _ in range(3)], names, failed=[f for f in failed for _ in range(3)], worst=0.0
    )
    assert (repeated.low, repeated.high) == pytest.approx((alone.low, alone.high), rel=1e-6)
    assert repeated.patients == 6
    median = median_interval([v for v in values for _ in range(3)], names)
    assert (median.low, median.high) == pytest.approx((0.0, 0.95), abs=0.08)


def test_order_does_not_show():
    values = np.random.default_rng(0).beta(9, 1, 31)
    names, failed = [str(k // 2) for k in range(31)], values < 0.7
    there = mean_interval(values, names, failed=failed, worst=0.0)
    back = mean_interval(values[::-1], names[::-1], failed=failed[::-1], worst=0.0)
    assert (there.low, there.high) == (back.low, back.high)
    assert median_interval(values, names) == median_interval(values[::-1], names[::-1])


def test_medians_ranks():
    # Of ten the second and the ninth hold the median with 97.85 %, the third and the eighth with 89.06 %: 95 % lies between.
    found = median_interval(range(1, 11))
    assert 2 < found.low < 3
    assert found.low + found.high == pytest.approx(11)
    # Hettmansperger and Sheather's lambda is not the share of the way in coverage, but (n - k) I / (k + (n - 2k) I).
    share = (0.978516 - 0.95) / (0.978516 - 0.890625)
    assert found.low == pytest.approx(2 + 8 * share / (2 + 6 * share), abs=1e-4)
    few = median_interval([3.0, 1.0, 2.0, 5.0, 4.0])
    assert (few.low, few.high) == (1.0, 5.0)
    large = median_interval(range(1, 101))
    # 50.5 -+ 1.96 sqrt(100) / 2, by the normal limit of the binomial.
    assert (large.low, large.high) == pytest.approx((40.7, 60.3), abs=0.1)


@pytest.mark.parametrize("missed", [0.0, 0.05])
def test_it_covers(missed):
    generator = np.random.default_rng(5)
    truth, held, repeats = 0.9 * (1 - missed), 0, 300
    for _ in range(repeats):
        failed = generator.random(20) < missed
        values = np.where(failed, 0.0, generator.beta(9, 1, 20))
        found = mean_interval(values, failed=failed, worst=0.0)
        held += found.low <= truth <= found.high
    assert held / repeats > 0.92
