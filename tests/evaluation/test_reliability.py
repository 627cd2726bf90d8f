import math

import numpy as np
import pytest

from medseg.evaluation.reliability import (
    ProbabilityMap,
    brier_score,
    expected_calibration_error,
    whole_image,
    within_masks,
)


def test_values_on_paper():
    # Ten pixels at .95 of which nine are true, ten at .1 of which none is: bins are off by .05 and by .1.
    values = np.array([0.95] * 10 + [0.1] * 10)
    truth = np.array([True] * 9 + [False] * 11)
    sums = whole_image(ProbabilityMap(values, (slice(None),)), truth)
    assert expected_calibration_error(sums) == pytest.approx((10 * 0.05 + 10 * 0.1) / 20)
    assert brier_score(sums) == pytest.approx((9 * 0.05**2 + 0.95**2 + 10 * 0.1**2) / 20)
    near = within_masks(ProbabilityMap(values, (slice(None),)), values > 0.5, truth)
    assert expected_calibration_error(near) == pytest.approx(0.05)
    assert brier_score(near) == pytest.approx((9 * 0.05**2 + 0.95**2) / 10)


def test_equal_to_the_definition_bin_by_bin():
    rng = np.random.default_rng(0)
    values, truth, ignored = rng.random((8, 9)), rng.random((8, 9)) < 0.4, rng.random((8, 9)) < 0.2
    values[:3] = 0
    truth[0, :2], ignored[0, :2] = True, False  # true where the network is sure of background
    truth &= ~ignored
    sums = whole_image(ProbabilityMap(values, (slice(None), slice(None)), ignored), truth)
    p, y = values[~ignored], truth[~ignored]
    wanted = 0.0
    for low in range(15):
        own = (p >= low / 15) & (p < (low + 1) / 15)
        if own.any():
            wanted += own.mean() * abs(y[own].mean() - p[own].mean())
    assert expected_calibration_error(sums) == pytest.approx(wanted)
    assert brier_score(sums) == pytest.approx(((p - y) ** 2).mean())


def test_cropped_masks_and_the_ends_of_the_scale():
    values = np.zeros((5, 6))
    values[2:4, 1:3] = 1.0
    truth = np.ones((2, 2), bool)
    sums = whole_image(ProbabilityMap(values, (slice(2, 4), slice(1, 3))), truth)
    assert (sums.voxels, expected_calibration_error(sums), brier_score(sums)) == (30, 0.0, 0.0)
    assert sums.kept[-1] == 4


def test_no_voxel_is_undefined():
    nothing = np.zeros((2, 2), bool)
    sums = within_masks(ProbabilityMap(np.full((2, 2), 0.3), (slice(None), slice(None))), nothing, nothing)
    assert math.isnan(expected_calibration_error(sums))
    assert math.isnan(brier_score(sums))
