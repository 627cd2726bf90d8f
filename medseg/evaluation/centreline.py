"""Centre-line Dice, for vessels and other tubes: whether a mask is connected where it should be."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from medseg.evaluation.overlap import BoolArray
from medseg.evaluation.thinning import skeletonise


class CentrelineCounts(NamedTuple):
    """Voxels of each mask's skeleton, and how many of them lie in the other mask."""

    prediction: int
    prediction_inside: int
    reference: int
    reference_inside: int


def count_centrelines(prediction: BoolArray, reference: BoolArray) -> CentrelineCounts:
    """Thins both masks, of one shape and rank 1 to 3, and counts; any may be empty."""
    own_p, own_r = skeletonise(prediction), skeletonise(reference)
    return CentrelineCounts(
        int(np.count_nonzero(own_p)),
        int(np.count_nonzero(own_p & reference)),
        int(np.count_nonzero(own_r)),
        int(np.count_nonzero(own_r & prediction)),
    )


def centreline_dice(counts: CentrelineCounts) -> float:
    """clDice, 0 to 1, 1 is best: harmonic mean of topology precision and topology sensitivity.

    Precision is the share of the prediction's skeleton in the reference, sensitivity the share of the reference's in the
    prediction; skeletons are :func:`~medseg.evaluation.thinning.skeletonise`'s. Both masks empty: NaN (undefined). One
    empty: 0. Source: Shit et al. 2021, https://arxiv.org/abs/2003.07311.
    """
    if not counts.prediction and not counts.reference:
        return math.nan
    if not counts.prediction_inside or not counts.reference_inside:
        return 0.0
    precision, sensitivity = counts.prediction_inside / counts.prediction, counts.reference_inside / counts.reference
    return 2 * precision * sensitivity / (precision + sensitivity)
