import numpy as np
import pytest

from medseg.preparation.normalisation import normalise
from medseg.preparation.plan import ChannelPlan


def run(values, mask=None, **channel):
    image = np.array(values, np.float32).reshape(1, -1, 1, 1)
    normalise(image, [ChannelPlan(name="x", **channel)], None if mask is None else np.array(mask).reshape(-1, 1, 1))
    return image.ravel()


def test_ct_clips_then_takes_the_data_sets_mean_and_sd():
    got = run([-2000, 0, 50, 3000], scheme="ct", low=-100, high=100, mean=50, std=25)
    assert got.tolist() == [-6, -2, 0, 2]


def test_zscore():
    assert run([1, 2, 3, 4], scheme="zscore") == pytest.approx((np.arange(4) - 1.5) / np.sqrt(1.25))


def test_zscore_inside_the_mask_leaves_the_rest():
    got = run([0, 2, 4, 0], [False, True, True, False], scheme="zscore", use_mask=True)
    assert got.tolist() == [0, -1, 1, 0]
    assert run([0, 0], [False, False], scheme="zscore", use_mask=True).tolist() == [0, 0]


def test_zscore_of_millions_keeps_its_digits():
    values = np.random.default_rng(0).normal(1.7e6, 10, 200_000)
    got = run(values, scheme="zscore")
    assert abs(float(got.mean(dtype=np.float64))) < 0.01
    assert float(got.std(dtype=np.float64)) == pytest.approx(1, abs=0.01)


def test_a_constant_scan_becomes_zero():
    assert run([7, 7, 7], scheme="zscore").tolist() == [0, 0, 0]


def test_percentile_clips_to_the_scans_own_range():
    values = [*range(1000), 10**6]
    got = run(values, scheme="percentile")
    low, high = np.percentile(np.array(values, np.float32), (0.5, 99.5))
    clipped = np.clip(values, low, high)
    assert got == pytest.approx((clipped - clipped.mean()) / clipped.std(), abs=1e-5)


def test_rgb_and_none():
    assert run([0, 51, 255], scheme="rgb") == pytest.approx([0, 0.2, 1])
    assert run([0, 51, 255], scheme="none").tolist() == [0, 51, 255]
