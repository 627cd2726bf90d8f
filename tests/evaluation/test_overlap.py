import math

import numpy as np
import pytest

from medseg.evaluation import overlap
from medseg.evaluation.overlap import OverlapCounts, count_overlap

COUNTS = OverlapCounts(true_positive=6, false_positive=2, false_negative=4)


def test_counts():
    prediction = np.array([[1, 1, 0], [0, 1, 0]], bool)
    reference = np.array([[1, 0, 0], [1, 1, 1]], bool)
    assert count_overlap(prediction, reference) == OverlapCounts(true_positive=2, false_positive=1, false_negative=2)
    assert count_overlap(prediction[:0], reference[:0]) == OverlapCounts(
        true_positive=0, false_positive=0, false_negative=0
    )


def test_values_on_paper():
    assert overlap.dice(COUNTS) == 12 / 18
    assert overlap.iou(COUNTS) == 6 / 12
    assert overlap.precision(COUNTS) == 6 / 8
    assert overlap.recall(COUNTS) == 6 / 10
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
