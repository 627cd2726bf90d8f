"""Overlap and volume metrics, all from one count of voxels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class OverlapCounts:
    """Voxels of one class: in both masks, in the prediction alone, in the reference alone."""

    true_positive: int
    false_positive: int
    false_negative: int

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
    return OverlapCounts(
        true_positive=both,
        false_positive=int(np.count_nonzero(prediction)) - both,
        false_negative=int(np.count_nonzero(reference)) - both,
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
