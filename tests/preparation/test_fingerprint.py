import json

import numpy as np
import pytest

from medseg.errors import InputError
from medseg.preparation.fingerprint import (
    CaseGeometry,
    Fingerprint,
    Intensities,
    fingerprint_drift,
    foreground_extent,
    merge_sketches,
    sketch_intensities,
    structure_size,
)


def one(case="a", shape=(10, 10, 10), spacing=(1.0, 1.0, 1.0), share=1.0, mean=10.0):
    intensities = Intensities(mean=mean, std=2.0, median=mean, low=1.0, high=20.0, minimum=0.0, maximum=30.0)
    return Fingerprint({case: CaseGeometry(shape, spacing, share)}, False, (intensities,))


def test_a_sketch_is_of_the_foreground_only():
    image = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4)
    classes = np.zeros((2, 3, 4), np.uint8)
    classes[0, 0, 1], classes[0, 0, 3], classes[1, 2, 3] = 1, 2, 255  # values 1, 3 and 23, the last one unlabelled
    (sketch,) = sketch_intensities(image, classes, seed=0)
    assert (sketch.mean, sketch.std) == (2.0, 1.0)
    assert (sketch.quantiles[0], sketch.quantiles[500], sketch.quantiles[-1]) == (1.0, 2.0, 3.0)
    assert sketch_intensities(image, np.zeros_like(classes), seed=0) == (None,)


def test_merged_sketches_are_the_pooled_voxels_statistics_where_cases_are_of_one_size():
    rng = np.random.default_rng(2)
    parts = [rng.normal(m, s, (1, 40, 40, 40)).astype(np.float32) for m, s in ((0, 1), (5, 2), (-3, 0.5))]
    ones = np.ones((40, 40, 40), np.uint8)
    merged = merge_sketches([sketch_intensities(p, ones, seed=0)[0] for p in parts])
    pooled = np.concatenate([p.ravel() for p in parts]).astype(np.float64)
    assert merged.mean == pytest.approx(pooled.mean(), rel=1e-9)
    assert merged.std == pytest.approx(pooled.std(), rel=1e-9)
    for got, percentile in ((merged.low, 0.5), (merged.median, 50), (merged.high, 99.5)):
        assert got == pytest.approx(np.percentile(pooled, percentile), abs=0.03)
    assert (merged.minimum, merged.maximum) == (pooled.min(), pooled.max())
    assert merge_sketches([]) is None


def test_many_voxels_are_sampled_with_the_cases_seed():
    image = np.random.default_rng(0).random((1, 110, 110, 110), np.float32)
    ones = np.ones((110, 110, 110), np.uint8)
    first, again, other = (sketch_intensities(image, ones, seed=s)[0] for s in (1, 1, 2))
    assert np.array_equal(first.quantiles, again.quantiles)
    assert not np.array_equal(first.quantiles, other.quantiles)
    assert first.mean == other.mean == pytest.approx(image.mean(dtype=np.float64), rel=1e-9)


def test_a_fingerprint_is_plain_values_and_back():
    made = one()
    assert Fingerprint.from_plain(json.loads(json.dumps(made.plain()))) == made
    with pytest.raises(InputError, match=r"fingerprint\.json: has format 2, expected 1"):
        Fingerprint.from_plain(made.plain() | {"format": 2})
    with pytest.raises(InputError, match="is no fingerprint"):
        Fingerprint.from_plain({"format": 1})


def test_drift_is_said_with_numbers():
    assert fingerprint_drift(one(), one()) == []
    notes = fingerprint_drift(one(), one("b", (12, 10, 10), (1.0, 1.0, 1.5), 0.5, 10.5))
    assert notes == [
        "1 cases added, 1 removed since the plan was made from 1",
        "median spacing moved from 1 x 1 x 1 to 1 x 1 x 1.5",
        "median shape moved from 10 x 10 x 10 to 12 x 10 x 10",
        "channel 0: foreground mean and SD moved from 10, 2 to 10.5, 2",
        "the crop keeps 50% of the median scan, was 100%",
    ]


def test_foreground_extent_counts_from_the_first_to_the_last_plane_of_all_classes():
    classes = np.zeros((6, 7, 8), np.uint8)
    classes[1, 2, 3] = 1
    classes[4, 2, 7] = 2
    classes[0, 6, 0] = 255
    assert foreground_extent(classes) == (4, 1, 5)
    assert foreground_extent(np.zeros((2, 2, 2), np.uint8)) is None


def test_structure_size_is_what_nine_of_ten_cases_span():
    assert structure_size([[float(i), 10.0, 10.0 - i] for i in range(11)]) == (9.0, 10.0, 9.0)
    assert structure_size([]) is None
