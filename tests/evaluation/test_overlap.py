import math

import numpy as np
import pytest

from medseg.evaluation import overlap
from medseg.evaluation.overlap import OverlapCounts, count_overlap

COUNTS = OverlapCounts(true_positive=6, false_positive=2, false_negative=4, true_negative=8)


def test_counts():
    prediction = np.array([[1, 1, 0], [0, 1, 0]], bool)
    reference = np.array([[1, 0, 0], [1, 1, 1]], bool)
    assert count_overlap(prediction, reference) == OverlapCounts(
        true_positive=2, false_positive=1, false_negative=2, true_negative=1
    )
    assert count_overlap(prediction[:0], reference[:0]) == OverlapCounts(
        true_positive=0, false_positive=0, false_negative=0
    )


def test_values_on_paper():
    assert overlap.dice(COUNTS) == 12 / 18
    assert overlap.iou(COUNTS) == 6 / 12
    assert overlap.precision(COUNTS) == 6 / 8
    assert overlap.recall(COUNTS) == 6 / 10
    assert overlap.specificity(COUNTS) == 8 / 10
    assert overlap.f_beta(COUNTS, beta=1) == overlap.dice(COUNTS)
    assert overlap.f_beta(COUNTS, beta=2) == 5 * 6 / (5 * 6 + 4 * 4 + 2)
    assert overlap.volume_similarity(COUNTS) == 1 - 2 / 18
    assert overlap.matthews(COUNTS) == (6 * 8 - 2 * 4) / math.sqrt(8 * 10 * 10 * 12)
    assert overlap.volume_ml(COUNTS.reference, 500.0) == 5.0
    assert overlap.volume_difference_ml(COUNTS, 500.0) == -1.0
    assert overlap.volume_difference_percent(COUNTS) == -20.0


@pytest.mark.parametrize(
    ("counts", "dice", "iou", "precision", "recall", "percent"),
    [
        ((0, 0, 0), math.nan, math.nan, math.nan, math.nan, math.nan),
        ((0, 0, 3), 0.0, 0.0, math.nan, 0.0, -100.0),
        ((0, 3, 0), 0.0, 0.0, 0.0, math.nan, math.nan),
        ((3, 0, 0), 1.0, 1.0, 1.0, 1.0, 0.0),
        ((0, 2, 2), 0.0, 0.0, 0.0, 0.0, 0.0),
    ],
)
def test_empty_masks(counts, dice, iou, precision, recall, percent):
    counted = OverlapCounts(true_positive=counts[0], false_positive=counts[1], false_negative=counts[2])
    found = [
        f(counted)
        for f in (overlap.dice, overlap.iou, overlap.precision, overlap.recall, overlap.volume_difference_percent)
    ]
    assert found == pytest.approx([dice, iou, precision, recall, percent], nan_ok=True)


def test_matthews_is_the_correlation_of_the_voxels():
    rng = np.random.default_rng(0)
    prediction, reference = rng.random((2, 7, 9)) < 0.4
    wanted = np.corrcoef(prediction.ravel(), reference.ravel())[0, 1]
    assert overlap.matthews(count_overlap(prediction, reference)) == pytest.approx(wanted, rel=1e-12)
    assert overlap.matthews(count_overlap(~reference, reference)) == -1


def test_counts_of_a_large_scan_do_not_overflow():
    huge = OverlapCounts(true_positive=10**9, false_positive=10**9, false_negative=10**9, true_negative=10**9)
    assert overlap.matthews(huge) == 0.0


def test_measures_of_the_whole_image_where_a_mask_is_empty_or_full():
    for counts, specificity, matthews in (
        ((0, 0, 5), 1.0, math.nan),
        ((0, 3, 2), 0.4, math.nan),
        ((5, 0, 0), math.nan, math.nan),
    ):
        tp, fp, rest = counts
        found = OverlapCounts(true_positive=tp, false_positive=fp, false_negative=0, true_negative=rest)
        assert overlap.specificity(found) == pytest.approx(specificity, nan_ok=True)
        assert overlap.matthews(found) == pytest.approx(matthews, nan_ok=True)
