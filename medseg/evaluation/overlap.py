"""Overlap and volume metrics, all from one count of voxels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class OverlapCounts:
    """Voxels of one class: in both masks, in the prediction alone, in the reference alone, in neither of the image's."""

    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int = 0

    @property
    def prediction(self) -> int:
        """Voxels of the prediction."""
        return self.true_positive + self.false_positive

    @property
    def reference(self) -> int:
        """Voxels of the reference."""
        return self.true_positive + self.false_negative


def count_overlap(prediction: BoolArray, reference: BoolArray) -> OverlapCounts:
    """Counts the voxels of two masks of the same shape; any rank, also without any voxel."""
    both = int(np.count_nonzero(prediction & reference))
    predicted, wanted = int(np.count_nonzero(prediction)), int(np.count_nonzero(reference))
    return OverlapCounts(
        true_positive=both,
        false_positive=predicted - both,
        false_negative=wanted - both,
        true_negative=reference.size - predicted - wanted + both,
    )


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def dice(counts: OverlapCounts) -> float:
    """Dice similarity coefficient 2TP / (2TP + FP + FN), 0 to 1, 1 is best; the F1 score of the voxels.

    Both masks empty: NaN (undefined). One empty: 0. Source: Dice 1945.
    """
    return _ratio(2 * counts.true_positive, counts.prediction + counts.reference)


def iou(counts: OverlapCounts) -> float:
    """Intersection over union TP / (TP + FP + FN), 0 to 1, 1 is best; Dice / (2 - Dice).

    Both masks empty: NaN (undefined). One empty: 0. Source: Jaccard 1912.
    """
    return _ratio(counts.true_positive, counts.true_positive + counts.false_positive + counts.false_negative)


def precision(counts: OverlapCounts) -> float:
    """Share of the predicted voxels that are right, TP / (TP + FP), 0 to 1, 1 is best; positive predictive value.

    Prediction empty: NaN (undefined). Reference alone empty: 0.
    """
    return _ratio(counts.true_positive, counts.prediction)


def recall(counts: OverlapCounts) -> float:
    """Share of the reference's voxels that were found, TP / (TP + FN), 0 to 1, 1 is best; sensitivity.

    Reference empty: NaN (undefined). Prediction alone empty: 0.
    """
    return _ratio(counts.true_positive, counts.reference)


def specificity(counts: OverlapCounts) -> float:
    """Share of the voxels outside the reference that were left alone, TN / (TN + FP), 0 to 1, 1 is best.

    It counts the whole image (without ignored voxels), so it is close to 1 for anything small. Reference fills the image: NaN
    (undefined).
    """
    return _ratio(counts.true_negative, counts.true_negative + counts.false_positive)


def f_beta(counts: OverlapCounts, *, beta: float) -> float:
    """F-measure (1 + b²)TP / ((1 + b²)TP + b² FN + FP), 0 to 1, 1 is best; recall counts b times as much as precision.

    With b = 1 it is Dice. Both masks empty: NaN (undefined). One empty: 0. Source: van Rijsbergen 1979.
    """
    square = beta * beta
    hits = (1 + square) * counts.true_positive
    return _ratio(hits, hits + square * counts.false_negative + counts.false_positive)


def volume_similarity(counts: OverlapCounts) -> float:
    """1 - |P - R| / (P + R) of the two masks' voxels, 0 to 1, 1 is best; wherever they lie.

    Both masks empty: NaN (undefined). One empty: 0. Source: Taha and Hanbury 2015.
    """
    both = counts.prediction + counts.reference
    return _ratio(both - abs(counts.prediction - counts.reference), both)


def matthews(counts: OverlapCounts) -> float:
    """Matthews correlation coefficient, -1 to 1, 1 is best, 0 no better than chance.

    (TP TN - FP FN) / sqrt((TP + FP)(TP + FN)(TN + FP)(TN + FN)), over the whole image without ignored voxels. A mask that is
    empty or fills the image: NaN (undefined). Source: Matthews 1975.
    """
    tp, fp, fn, tn = counts.true_positive, counts.false_positive, counts.false_negative, counts.true_negative
    # Whole numbers of any size: the product of four counts does not fit into 64 bits.
    square = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return (tp * tn - fp * fn) / math.sqrt(square) if square else math.nan


def volume_ml(voxels: int, voxel_volume_mm3: float) -> float:
    """Volume of ``voxels`` voxels in millilitres (1000 mm3). Empty: 0."""
    return voxels * voxel_volume_mm3 / 1000.0


def volume_difference_ml(counts: OverlapCounts, voxel_volume_mm3: float) -> float:
    """Predicted minus reference volume in ml; above 0 is too much. Always defined."""
    return (counts.prediction - counts.reference) * voxel_volume_mm3 / 1000.0


def volume_difference_percent(counts: OverlapCounts) -> float:
    """Predicted minus reference volume in percent of the reference's; from -100, above 0 is too much.

    Reference empty: NaN (undefined).
    """
    return _ratio(100.0 * (counts.prediction - counts.reference), counts.reference)
