"""The sign-flip test against enumeration and against its own interval."""

from itertools import product

import numpy as np
import pytest

from medseg.evaluation.signflip import EXACT_PATIENTS, sign_flip


def flip(values, counts=None):
    sums = np.asarray(values, float)[:, None]
    return sign_flip(sums, np.ones_like(sums) if counts is None else np.asarray(counts, float)[:, None])


def enumerated(values):
    """The definition: the share of sign patterns whose absolute sum is no smaller."""
    found = abs(sum(values))
    sums = [
        abs(sum(s * v for s, v in zip(signs, values, strict=True))) for signs in product((1, -1), repeat=len(values))
    ]
    return sum(one >= found - 1e-12 for one in sums) / len(sums)


@pytest.mark.parametrize("values", [[0.1, 0.2, -0.05, 0.3, 0.02, 0.15, -0.1], [1, 2, 3, 4, 5, 6], [1, 1, -1, 1, 1, 1]])
def test_p_is_the_share_of_sign_patterns(values):
    assert flip(values).p_value[0] == pytest.approx(enumerated(values))


def test_no_difference_is_no_evidence():
    found = flip([0.0] * 9)
    assert (found.p_value[0], found.low[0], found.high[0]) == (1.0, 0.0, 0.0)


def test_five_patients_can_not_be_enough():
    found = flip([1, 2, 3, 4, 5])
    assert (found.p_value[0], found.low[0], found.high[0]) == (2 / 32, -np.inf, np.inf)
    found = flip([1, 2, 3, 4, 5, 6])
    # 64 subsets, of which rank 1 is the first that is not the empty one: the smallest value alone.
    assert (found.p_value[0], found.low[0], found.high[0]) == (2 / 64, 1.0, 6.0)


@pytest.mark.parametrize("patients", [8, EXACT_PATIENTS, 40])
def test_the_interval_is_what_the_test_does_not_refuse(patients):
    values = np.random.default_rng(patients).normal(0.3, 1, patients)
    found = flip(values)
    low, high = found.low[0], found.high[0]
    assert low < found.mean[0] < high
    for shift, refused in ((low - 1e-6, True), (low + 1e-6, False), (high - 1e-6, False), (high + 1e-6, True)):
        assert (flip(values - shift).p_value[0] <= 0.05) is np.bool_(refused)


def test_a_patient_flips_with_all_cases():
    found = flip([0.2 * 3, 0.1, -0.1 * 2, 0.3, 0.1, 0.2, 0.4], [3, 1, 2, 1, 1, 1, 1])
    assert found.mean[0] == pytest.approx(1.5 / 10)
    assert found.patients[0] == 7


def test_columns_are_tested_on_their_own():
    sums = np.array([[1.0, 0], [2, 0], [3, 0], [-1, 0], [2, 0], [2, 0]])
    found = sign_flip(sums, (sums != 0).astype(float))
    assert found.p_value[0] == flip(sums[:, 0]).p_value[0]
    assert np.isnan([found.mean[1], found.p_value[1], found.low[1]]).all()
    assert found.patients.tolist() == [6, 0]


def test_size_under_the_null():
    values = np.random.default_rng(1).normal(0, 1, (10, 2000))
    refused = (sign_flip(values, np.ones_like(values)).p_value <= 0.05).mean()
    assert refused == pytest.approx(0.05, abs=0.015)
