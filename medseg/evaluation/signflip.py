"""The sign-flip permutation test of paired differences, and the interval it implies.

If two models are alike, a patient's difference is as likely to be above 0 as below it by as much, so its sign may be flipped
(Fisher 1935). The p-value is the share of flipped samples whose mean lies as far out as the one found. Flipping the signs of
a subset F takes its sum to the other side, so "the flipped mean is no smaller" is "the sum over F is at most 0", and the
differences that the test does not refuse lie between quantiles of the means of subsets (Hartigan 1969, typical values).
Test and interval are one calculation and can't contradict each other. docs/statistics.md has its measured size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

EXACT_PATIENTS = 13
"""Up to this many patients all subsets are looked at: 8192."""
SUBSETS = 10_000
"""Subsets, the empty one among them, that are drawn where there are more patients."""
_SEED = 1935
_ROUNDING = 1e-12


@dataclass(frozen=True, kw_only=True)
class FlipResult:
    """Of K means of differences, each tested on its own; all arrays (K,).

    Attributes:
        mean: over cases.
        p_value: two-sided; 1 where nothing differs, NaN without a case.
        low, high: what the test at 1 - level does not refuse; infinite where the patients are too few for that level (five
            or fewer at 95 %), NaN without a case.
        patients: with at least one case that counts.
    """

    mean: FloatArray
    p_value: FloatArray
    low: FloatArray
    high: FloatArray
    patients: npt.NDArray[np.int64]


def sign_flip(sums: FloatArray, counts: FloatArray, *, level: float = 0.95) -> FlipResult:
    """Tests whether the mean of paired differences is 0, patients being flipped with all their cases.

    Args:
        sums: (P, K) sum of the differences of each patient's cases, 0 where it has none.
        counts: (P, K) number of these cases.
        level: of the interval, in (0, 1).

    Returns:
        A function of the arguments alone: subsets are drawn by the number of patients.
    """
    subsets = _subsets(len(sums))
    scale = _ROUNDING * np.abs(sums).sum(axis=0)
    above = np.empty(sums.shape[1])
    below, low, high, patients = above.copy(), above.copy(), above.copy(), (counts > 0).sum(axis=0)
    flipped, cases = sums.T @ subsets.T, counts.T @ subsets.T  # (K, subsets): a column's lie together
    rank = int(np.floor((1 - level) / 2 * len(subsets) + 1e-9))
    for k in range(sums.shape[1]):
        none = cases[k] == 0
        above[k] = (flipped[k] <= scale[k]).mean()
        below[k] = (flipped[k] >= -scale[k]).mean()
        means = flipped[k] / np.where(none, 1, cases[k])
        low[k] = np.partition(np.where(none, -np.inf, means), rank)[rank]
        high[k] = -np.partition(np.where(none, -np.inf, -means), rank)[rank]
    empty = patients == 0
    with np.errstate(invalid="ignore"):
        mean = sums.sum(axis=0) / counts.sum(axis=0)
    p_value = np.minimum(1.0, 2 * np.minimum(above, below))
    return FlipResult(
        mean=mean,
        p_value=np.where(empty, np.nan, p_value),
        low=np.where(empty, np.nan, low),
        high=np.where(empty, np.nan, high),
        patients=patients,
    )


@lru_cache(maxsize=1)
def _subsets(patients: int) -> FloatArray:
    """(subsets, patients) of 0 and 1, the empty one first; all of them, or as many drawn at random."""
    if patients <= EXACT_PATIENTS:
        numbers = np.arange(1 << patients)
        return ((numbers[:, None] >> np.arange(patients)) & 1).astype(np.float64)
    drawn = np.random.default_rng([_SEED, patients]).integers(0, 2, (SUBSETS, patients)).astype(np.float64)
    drawn[0] = 0
    return drawn
