"""Which classes always lie on the same side of each other: there a mirrored patch shows what no scan shows.

A network tells the left kidney from the right, or the front of a structure from its back, by where they lie. Mirrored along
that axis, patches take the cue away, and where labels have sides they teach the wrong one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Centre = tuple[float, float, float]
_FEWEST_CASES = 6  # that have both classes; fewer lie in one order by chance too easily (1 of 32 for five)
_SHARE = 0.95
_LEAST_VOXELS = 0.5


@dataclass(frozen=True)
class FixedOrder:
    """Along one axis class ``first`` lies before (at lower coordinates than) ``second`` in ``agreeing`` of ``cases``."""

    first: int
    second: int
    agreeing: int
    cases: int


def class_centres(classes: npt.NDArray[np.uint8]) -> dict[int, Centre]:
    """Mean voxel coordinate of every class that occurs.

    Args:
        classes: (X, Y, Z) class indices; 0 (background) and 255 (nobody labelled it) are left out.

    Returns:
        Class index to (x, y, z) in voxels; empty where there is no foreground.
    """
    where = np.flatnonzero((classes > 0) & (classes < 255))
    if where.size == 0:
        return {}
    found = classes.reshape(-1)[where]
    counts = np.bincount(found)
    sums = [np.bincount(found, weights=axis) for axis in np.unravel_index(where, classes.shape)]
    return {
        int(k): (float(sums[0][k] / counts[k]), float(sums[1][k] / counts[k]), float(sums[2][k] / counts[k]))
        for k in np.flatnonzero(counts)
    }


def fixed_orders(
    centres: Sequence[Mapping[int, Centre]],
) -> tuple[FixedOrder | None, FixedOrder | None, FixedOrder | None]:
    """Per axis the pair of classes whose order is seen most often, where one order is as good as fixed.

    An order is fixed where both classes are in at least 6 cases and their centres lie in it, at least half a voxel apart, in
    95 % of these. Of several pairs the one with most cases, then most agreeing, then the lowest indices is given.

    Args:
        centres: per case, of `class_centres`.
    """
    highest = max((k for case in centres for k in case), default=0)
    both = np.zeros((highest + 1, highest + 1), np.int64)
    before = np.zeros((3, highest + 1, highest + 1), np.int64)
    for case in centres:
        present = sorted(case)
        at = np.array([case[k] for k in present], np.float64).reshape(-1, 3)
        pairs = np.ix_(present, present)
        both[pairs] += 1
        for axis in range(3):
            before[axis][pairs] += at[None, :, axis] - at[:, None, axis] >= _LEAST_VOXELS
    np.fill_diagonal(both, 0)
    first, second, third = (_clearest(before[axis], both) for axis in range(3))
    return first, second, third


def _clearest(before: npt.NDArray[np.int64], both: npt.NDArray[np.int64]) -> FixedOrder | None:
    fixed = (both >= _FEWEST_CASES) & (before >= _SHARE * both)
    if not fixed.any():
        return None
    rows, columns = np.nonzero(fixed)
    best = max(range(len(rows)), key=lambda i: (both[rows[i], columns[i]], before[rows[i], columns[i]], -i))
    pair = rows[best], columns[best]
    return FixedOrder(int(pair[0]), int(pair[1]), int(before[pair]), int(both[pair]))
