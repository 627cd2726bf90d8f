"""The paired bootstrap against answers from paper."""

import math

import numpy as np
import pytest

from medseg.evaluation.bootstrap import paired_effect


def effect(values, patients=None, *, level=0.95, seed=1):
    return paired_effect(values, patients or [str(n) for n in range(len(values))], level=level, seed=seed)


def test_no_difference_is_never_certain():
    found = effect([0.0] * 20)
    assert (found.mean, found.low, found.high, found.better, found.worse) == (0.0, 0.0, 0.0, 0, 0)
    assert not found.certain


def test_the_same_gain_everywhere_is_certain():
    found = effect([0.01] * 20)
    assert (found.mean, found.low, found.high) == pytest.approx((0.01, 0.01, 0.01))
    assert found.certain
    assert not effect([-0.01] * 20).certain


@pytest.mark.parametrize(("changed", "certain"), [(1, False), (3, False), (6, True)])
def test_a_gain_in_a_few_patients_of_many_may_be_chance(changed, certain):
    # None of the changed patients is drawn with a chance of about exp(-changed): 0.05 for 3, 0.0025 for 6.
    assert effect([0.5] * changed + [0.0] * (200 - changed)).certain is certain


def test_the_interval_is_the_means():
    values = np.random.default_rng(0).normal(0.02, 0.1, 400)
    found = effect(values)
    half = 1.96 * values.std() / math.sqrt(400)
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)
    wider = effect(values, level=0.99)
    assert wider.low < found.low < found.high < wider.high


def test_patients_are_drawn_not_cases():
    # Ten alike cases of one patient tell what one case tells.
    values = [0.1, -0.1, 0.2, -0.1]
    alone = effect(values)
    repeated = effect([value for value in values for _ in range(10)], [str(n // 10) for n in range(40)])
    assert (repeated.low, repeated.high) == pytest.approx((alone.low, alone.high))
    assert (repeated.cases, repeated.patients) == (40, 4)


def test_the_result_is_a_function_of_the_arguments():
    values = [0.1, 0.2, -0.1, 0.0, 0.05]
    assert effect(values) == effect(values)
    assert effect(values).low != effect(values, seed=2).low
    assert str(effect([0.0, 0.1])).startswith("+0.0500 (95 % interval")
