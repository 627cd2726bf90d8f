"""Polygons and masks of one plane: which voxel centres a polygon encloses, and which polygons enclose a mask.

The rule of filling is even-odd, as DICOM's CLOSED_PLANAR_XOR has it and as keyholes need it: a centre is inside when a
ray from it crosses the polygons an odd number of times, so a polygon inside another one is a hole.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


def fill(polygons: Sequence[Points], shape: tuple[int, int]) -> Mask:
    """The pixels whose centres lie inside.

    Args:
        polygons: each (N, 2) in pixel indices, closed by itself; pixel (i, j) has its centre at (i, j).
        shape: of the mask.

    Returns:
        ``shape`` bool. A centre on an edge counts where the edge's inside is at larger coordinates (half-open), so
        polygons that share an edge share no pixel. No polygon gives an empty mask.
    """
    crossings = np.zeros((shape[0] + 1, shape[1]), np.uint8)
    for polygon in polygons:
        _mark(crossings, polygon)
    return np.bitwise_xor.accumulate(crossings[:-1], axis=0).astype(bool)


def _mark(crossings: npt.NDArray[np.uint8], polygon: Points) -> None:
    """Flips, in every row j that an edge passes, the first pixel i at or beyond it."""
    here, there = polygon, np.roll(polygon, -1, axis=0)
    low, high = np.minimum(here[:, 1], there[:, 1]), np.maximum(here[:, 1], there[:, 1])
    columns = crossings.shape[1]
    first = np.clip(np.ceil(low), 0, columns).astype(np.int64)
    last = np.clip(np.ceil(high), 0, columns).astype(np.int64)  # half-open: the row at the upper end is the next edge's
    counts = last - first
    edge = np.repeat(np.arange(len(polygon)), counts)
    row = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]
    rise = there[edge, 1] - here[edge, 1]
    x = here[edge, 0] + (row - here[edge, 1]) * (there[edge, 0] - here[edge, 0]) / rise
    start = np.clip(np.ceil(x), 0, crossings.shape[0] - 1).astype(np.int64)
    np.bitwise_xor.at(crossings, (start, row), np.uint8(1))


def trace(mask: Mask) -> list[Points]:
    """Polygons that enclose exactly the centres of ``mask``: through the midpoints between a pixel and its outer neighbours.

    Each connected part (over edges; parts that touch at a corner stay apart) is one polygon. Holes are joined to it by a
    keyhole, a line that is walked there and back, as DICOM advises for CLOSED_PLANAR: programs that fill every polygon
    get them right too.

    Args:
        mask: (X, Y) bool.

    Returns:
        Polygons (N, 2) float64 in pixel indices; [] for an empty mask. ``fill`` of them is ``mask``.
    """
    loops = [_simplified(loop) for loop in _loops(np.pad(mask, 1))]
    outer = [loop for loop in loops if _area(loop) > 0]
    for hole in (loop for loop in loops if _area(loop) < 0):
        around = min(
            (index for index, loop in enumerate(outer) if _holds(loop, hole[0])),
            key=lambda index: abs(_area(outer[index])),
        )
        outer[around] = _keyholed(outer[around], hole)
    return [loop - 1.0 for loop in outer]


# Marching squares on the pixel centres. Corners of a cell: 1 (i, j), 2 (i+1, j), 4 (i+1, j+1), 8 (i, j+1). Sides: 0 between
# corners 1 and 2, 1 between 2 and 4, 2 between 4 and 8, 3 between 8 and 1. A step (from, to) has the inside on its left.
_STEPS: dict[int, tuple[tuple[int, int], ...]] = {
    1: ((0, 3),),
    2: ((1, 0),),
    3: ((1, 3),),
    4: ((2, 1),),
    5: ((0, 3), (2, 1)),
    6: ((2, 0),),
    7: ((2, 3),),
    8: ((3, 2),),
    9: ((0, 2),),
    10: ((1, 0), (3, 2)),
    11: ((1, 2),),
    12: ((3, 1),),
    13: ((0, 1),),
    14: ((3, 0),),
}
# Twice the place of a side's midpoint relative to the cell.
_SIDES = ((1, 0), (2, 1), (1, 2), (0, 1))


def _loops(padded: Mask) -> list[Points]:
    corners = padded.astype(np.uint8)
    cells = corners[:-1, :-1] + 2 * corners[1:, :-1] + 4 * corners[1:, 1:] + 8 * corners[:-1, 1:]
    follow: dict[tuple[int, int], tuple[int, int]] = {}
    for i, j in zip(*(axis.tolist() for axis in np.nonzero((cells > 0) & (cells < 15))), strict=True):
        for one, other in _STEPS[int(cells[i, j])]:
            (a, b), (c, d) = _SIDES[one], _SIDES[other]
            follow[2 * i + a, 2 * j + b] = (2 * i + c, 2 * j + d)
    loops = []
    while follow:
        start, point = follow.popitem()
        loop = [start]
        while point != start:
            loop.append(point)
            point = follow.pop(point)
        loops.append(np.array(loop, np.float64) / 2)
    return loops


def _simplified(loop: Points) -> Points:
    """Without points in the middle of a straight run."""
    before, after = loop - np.roll(loop, 1, axis=0), np.roll(loop, -1, axis=0) - loop
    turns = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    return np.asarray(loop[np.abs(turns) > 1e-9])


def _area(loop: Points) -> float:
    """Signed: positive where the loop has its inside on the left."""
    x, y = loop[:, 0], loop[:, 1]
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


def _holds(loop: Points, point: Points) -> bool:
    x, y = loop[:, 0], loop[:, 1]
    next_x, next_y = np.roll(x, -1), np.roll(y, -1)
    crosses = (y > point[1]) != (next_y > point[1])
    rise = np.where(crosses, next_y - y, 1.0)
    at = x + (point[1] - y) * (next_x - x) / rise
    return bool((crosses & (at > point[0])).sum() % 2)


def _keyholed(outer: Points, hole: Points) -> Points:
    """One polygon: around the outside to its point nearest to the hole, around the hole, and back."""
    from scipy.spatial import KDTree

    apart, nearest = KDTree(outer).query(hole)
    to = int(np.argmin(apart))
    at = int(np.asarray(nearest)[to])
    inner = np.roll(hole, -to, axis=0)
    return np.concatenate([outer[: at + 1], inner, inner[:1], outer[at:]])
