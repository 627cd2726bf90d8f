"""Calibration: whether a class's probabilities are as often right as they say."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medseg.evaluation.masks import BoolArray

BINS = 15

FloatArray = npt.NDArray[np.float64]
ProbabilityArray = npt.NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class ProbabilityMap:
    """A class's probability in every voxel of an image, and where the masks that go with it lie.

    Attributes:
        values: 0 to 1, on the whole image.
        box: where the cropped masks lie in it.
        ignored: voxels of the whole image that count for nothing; None if all count.
    """

    values: ProbabilityArray
    box: tuple[slice, ...]
    ignored: BoolArray | None = None

    @property
    def cropped(self) -> ProbabilityArray:
        """The probabilities where the masks are."""
        return self.values[self.box]


@dataclass(frozen=True, eq=False)
class Reliability:
    """Sums over voxels, by which of 15 equal bins of [0, 1] their probability lies in (the last one holds 1).

    Attributes:
        voxels: how many.
        promised: (15,) sums of the probabilities.
        kept: (15,) voxels that are of the class.
        squares: sum of (probability - truth)².
    """

    voxels: int
    promised: FloatArray
    kept: FloatArray
    squares: float


def whole_image(found: ProbabilityMap, reference: BoolArray) -> Reliability:
    """Over all voxels but the ignored ones.

    Args:
        found: the probabilities.
        reference: the class's true mask, cropped to ``found.box``.
    """
    truth = np.zeros(found.values.shape, np.bool_)
    truth[found.box] = reference
    counted = np.ones(truth.shape, np.bool_) if found.ignored is None else ~found.ignored
    # Most voxels are surely background: they are only counted.
    doubtful = counted & ((found.values > 0) | truth)
    sums = _sums(found.values[doubtful], truth[doubtful])
    return Reliability(int(np.count_nonzero(counted)), sums.promised, sums.kept, sums.squares)


def within_masks(found: ProbabilityMap, prediction: BoolArray, reference: BoolArray) -> Reliability:
    """Over the voxels of either mask, both cropped to ``found.box``; ignored voxels are in none of them."""
    union = prediction | reference
    return _sums(found.cropped[union], reference[union])


def _sums(probabilities: ProbabilityArray, truth: BoolArray) -> Reliability:
    values = probabilities.astype(np.float64)
    bins = np.minimum((values * BINS).astype(np.intp), BINS - 1)
    return Reliability(
        values.size,
        np.bincount(bins, weights=values, minlength=BINS).astype(np.float64),
        np.bincount(bins, weights=truth, minlength=BINS).astype(np.float64),
        float(((values - truth) ** 2).sum()),
    )


def expected_calibration_error(sums: Reliability) -> float:
    """ECE of one class against all others, 0 to 1, 0 is best: mean over voxels of their bin's |promised - kept| share.

    15 bins of equal width. No voxel: NaN (undefined). Source: Guo et al. 2017, https://arxiv.org/abs/1706.04599, here class
    by class.
    """
    if not sums.voxels:
        return math.nan
    return float(np.abs(sums.promised - sums.kept).sum() / sums.voxels)


def brier_score(sums: Reliability) -> float:
    """Mean over voxels of (probability - truth)², 0 to 1, 0 is best. No voxel: NaN (undefined). Source: Brier 1950."""
    return sums.squares / sums.voxels if sums.voxels else math.nan
