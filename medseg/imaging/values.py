"""What voxel values may be, whatever file they came from."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.errors import LabelError, ScanError

EXACT_IN_FLOAT32 = 2**24
_ROUNDING = 1e-2


class Extremes:
    """Gathers the smallest and largest value chunk by chunk, and what they tell about an image."""

    def __init__(self) -> None:
        self.low, self.high, self.bad = np.inf, -np.inf, 0

    def add(self, values: npt.NDArray[np.float32]) -> None:
        """Takes one chunk; NaN and infinities show in its extremes, so that sound chunks are not searched for them."""
        least, most = float(values.min()), float(values.max())
        if np.isfinite(least) and np.isfinite(most):
            self.low, self.high = min(self.low, least), max(self.high, most)
        else:
            self.bad += int(values.size - np.isfinite(values).sum())

    def judge(self, name: str, *, whole_numbers: bool) -> tuple[str, ...]:
        """Warnings about a constant image and about ``whole_numbers`` that float32 had to round.

        Raises:
            ScanError: some values were not finite.
        """
        if self.bad:
            raise ScanError(
                f"{name}: {self.bad:,} voxel{'s are' if self.bad > 1 else ' is'} not finite in float32 (NaN, infinite or "
                "too large), expected finite numbers; replace them by the value they stand for"
            )
        told = []
        if self.low == self.high:
            told.append(f"image is constant: every voxel is {self.low:g}")
        largest = max(-self.low, self.high)
        if whole_numbers and largest > EXACT_IN_FLOAT32:
            told.append(f"values reach {largest:.3g}; above {EXACT_IN_FLOAT32:,} float32 rounds whole numbers")
        return tuple(told)


def judged(array: npt.NDArray[np.float32], name: str, *, whole_numbers: bool) -> tuple[str, ...]:
    """``Extremes`` of a whole image at once."""
    extremes = Extremes()
    extremes.add(array)
    return extremes.judge(name, whole_numbers=whole_numbers)


def rounded(values: npt.NDArray[Any], name: str) -> npt.NDArray[np.int32]:
    """Whole numbers of label values that a file holds as real ones.

    Raises:
        LabelError: a value is further than 1e-2 from a whole number, not finite, or beyond 32 bits.
    """
    nearest: npt.NDArray[Any] = np.rint(values)
    with np.errstate(invalid="ignore"):
        bad = ~(np.abs(np.subtract(values, nearest)) <= _ROUNDING) | (np.abs(nearest) >= 2**31)
    if bad.any():
        example = values[bad].flat[0]
        raise LabelError(
            f"{name}: {int(bad.sum()):,} label voxels are no whole number (such as {example:.4g}), "
            "expected whole numbers; is this an image, or a label map that was interpolated?"
        )
    return np.asarray(nearest, np.int32)
