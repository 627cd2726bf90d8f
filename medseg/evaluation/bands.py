"""Boundary IoU: overlap of the two masks' rims alone, so that a large inside can't hide a bad contour."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from medseg.evaluation.overlap import BoolArray
from medseg.evaluation.surface import boundary

DIAGONAL_SHARE = 0.02


def boundary_iou(
    prediction: BoolArray, reference: BoolArray, *, spacing_mm: Sequence[float], distance_mm: float
) -> float:
    """IoU of the two masks' rims, 0 to 1, 1 is best.

    A rim is the voxels of a mask whose centre is at most ``distance_mm`` from the centre of one outside it, but at least the
    boundary voxels; beyond the array is outside. Cheng et al. take pixels by the square they erode with, here it is a ball in
    mm. Both masks empty: NaN (undefined). One empty: 0. Source: Cheng et al. 2021, https://arxiv.org/abs/2103.16562.

    Args:
        prediction: mask of any rank.
        reference: one of the same shape.
        spacing_mm: voxel size per axis.
        distance_mm: width of the rim. Theirs is 2 % of the image's diagonal.
    """
    rim_p, rim_r = _rim(prediction, spacing_mm, distance_mm), _rim(reference, spacing_mm, distance_mm)
    union = int(np.count_nonzero(rim_p | rim_r))
    return int(np.count_nonzero(rim_p & rim_r)) / union if union else math.nan


def _rim(mask: BoolArray, spacing_mm: Sequence[float], distance_mm: float) -> BoolArray:
    """Piece by piece, in its box: from no voxel of a piece is the nearest outside further than where the piece ends."""
    from scipy import ndimage

    rim = np.zeros_like(mask)
    if not mask.any():
        return rim  # nor can scipy look for pieces in an array without a voxel, as the box of two empty masks is
    numbers = np.empty(mask.shape, np.int32)
    ndimage.label(mask, structure=np.ones((3,) * mask.ndim), output=numbers)
    for number, box in enumerate(ndimage.find_objects(numbers), start=1):
        own = numbers[box] == number
        # Pieces that do not even share a corner have outside between them, so others may be taken for outside.
        depth = ndimage.distance_transform_edt(np.pad(own, 1), sampling=spacing_mm)[(slice(1, -1),) * mask.ndim]
        # Across thick slices the outside may be further than the rim is wide; what touches it is rim all the same.
        rim[box] |= own & ((depth <= distance_mm + 1e-9) | boundary(own))
    return rim
