"""Exact distances between two sets of points of one lattice, such as the voxels of two surfaces.

Three ways, all exact, each where it costs least:

1. Near neighbours: the offsets of the lattice in order of their length; a point's distance is the length of the first offset
   that leads to one of the others. Most points of two surfaces that agree are done after a few dozen offsets, those of dense
   noise after a few. A sample of the points tells beforehand how many offsets pay.
2. A k-d tree for what is left.
3. A distance transform for what is left, where that is so much that looking at each voxel of the box costs less.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
IndexArray = npt.NDArray[np.intp]
Method = Literal["auto", "near", "tree", "transform"]

# Measured CPU costs in microseconds: an offset tried for a point; a point looked up in a tree, put into one; a distance
# transform per voxel of the box, and a point looked up in it; and an offset by itself, however few points it is tried for.
_OFFSET_US, _QUERY_US, _BUILD_US, _TRANSFORM_US, _LOOKUP_US = 0.0015, 1.2, 0.3, 0.12, 0.05
_STEP_US = 12.0
# Points of the ball of offsets, by rank: beyond it trees cost less.
_MOST_OFFSETS = {1: 32, 2: 128, 3: 512}
# So many points, spread over all, tell how far the near neighbours pay; and so many are looked at together, which a core's
# cache holds.
_SAMPLE, _CHUNK = 2048, 2**15


def nearest_distances(
    points: IndexArray,
    others: IndexArray,
    *,
    shape: Sequence[int],
    spacing_mm: Sequence[float],
    method: Method = "auto",
) -> FloatArray:
    """For each of ``points`` the distance to the nearest of ``others``, in mm.

    Args:
        points: (n,) linear indices, in C order, into a box of ``shape``.
        others: (m,) the same.
        shape: of the box, any rank.
        spacing_mm: step of the lattice per axis.
        method: "tree" or "transform" does without the near neighbours, "near" goes as far as they reach; "auto" takes what
            costs least. All are exact.

    Returns:
        (n,) float64, in the order of ``points``; infinite where ``others`` is empty.
    """
    if not others.size or not points.size:
        return np.full(points.size, math.inf)
    box, spacing = tuple(shape), tuple(float(size) for size in spacing_mm)
    distances = np.zeros(points.size)
    left: IndexArray | slice = slice(None)
    if method in ("auto", "near"):
        search = _NearSearch(others, box, spacing)
        tries = len(search.lengths) if method == "near" else _worthwhile(search, points, others.size, math.prod(box))
        distances, left = search.run(points, tries)
        if not left.size:
            return distances
        tree_us, transform_us = _rest_us(np.array(left.size), others.size, math.prod(box))
        method = "tree" if tree_us < transform_us else "transform"
    nearest = _by_tree if method == "tree" else _by_transform
    distances[left] = nearest(points[left], others, box, np.array(spacing))
    return distances


def _rest_us(points: FloatArray, others: int, voxels: int) -> tuple[FloatArray, FloatArray]:
    """What so many points cost by a tree, and by a distance transform; none costs nothing."""
    tree = np.where(points > 0, _QUERY_US * points + _BUILD_US * others, 0.0)
    return tree, np.where(points > 0, _TRANSFORM_US * voxels + _LOOKUP_US * points, 0.0)


def _worthwhile(search: _NearSearch, points: IndexArray, others: int, voxels: int) -> int:
    """How many offsets to try so that all together costs least, as a sample of the points has it."""
    sample = points[:: max(1, points.size // _SAMPLE)]
    # Finding it out must cost little beside looking all of them up in a tree.
    most = min(len(search.lengths), int(0.05 * _QUERY_US * points.size / _STEP_US))
    found = np.bincount(search.steps(sample, most) + 1, minlength=most + 1)[1:]
    share_left = 1.0 - np.concatenate([[0], np.cumsum(found)]) / sample.size  # after 0, 1, 2, ... offsets
    tried_us = _OFFSET_US * points.size * np.concatenate([[0], np.cumsum(share_left[:-1])])
    tried_us += _STEP_US * math.ceil(points.size / _CHUNK) * np.arange(most + 1)
    return int(np.argmin(tried_us + np.minimum(*_rest_us(points.size * share_left, others, voxels))))


class _NearSearch:
    """Tries the offsets of the lattice, by length, until one leads from a point to one of the others."""

    def __init__(self, others: IndexArray, shape: tuple[int, ...], spacing_mm: tuple[float, ...]) -> None:
        steps, self.lengths = _offsets(spacing_mm)
        self._shape, self._margin = shape, tuple(int(pad) for pad in steps.max(axis=0))
        # A margin, so that no offset leads out of the box.
        self._padded = tuple(size + 2 * pad for size, pad in zip(shape, self._margin, strict=True))
        strides = [math.prod(self._padded[axis + 1 :]) for axis in range(len(shape))]
        self._shifts = (steps @ np.array(strides, np.intp)).tolist()
        self._table = np.zeros(math.prod(self._padded), np.bool_)  # pages that nobody writes cost nothing
        self._table[self._places(others)] = True

    def _places(self, indices: IndexArray) -> IndexArray:
        axes = zip(np.unravel_index(indices, self._shape), self._margin, strict=True)
        return np.ravel_multi_index(tuple(own + pad for own, pad in axes), self._padded)

    def run(self, points: IndexArray, tries: int) -> tuple[FloatArray, IndexArray]:
        """(distance of each point, 0 where it was not found; places of those) after the first ``tries`` offsets."""
        distances, left = np.zeros(points.size), [np.zeros(0, np.intp)]
        if not tries:
            return distances, np.arange(points.size)
        for start in range(0, points.size, _CHUNK):
            steps = self.steps(points[start : start + _CHUNK], tries)
            # Step -1, not found, takes the last length, and is overwritten.
            distances[start : start + _CHUNK] = self.lengths[steps]
            left.append(np.flatnonzero(steps < 0) + start)
        return distances, np.concatenate(left)

    def steps(self, points: IndexArray, tries: int) -> npt.NDArray[np.intp]:
        """For each point which offset led to one of the others, -1 for none of the first ``tries``."""
        found = np.full(points.size, -1, np.intp)
        where, left = self._places(points), np.arange(points.size)
        for step in range(tries):
            hit = self._table[where + self._shifts[step]]
            if hit.any():
                found[left[hit]] = step
                miss = ~hit
                where, left = where[miss], left[miss]
                if not left.size:
                    break
        return found


@lru_cache(maxsize=8)
def _offsets(spacing_mm: tuple[float, ...]) -> tuple[npt.NDArray[np.intp], FloatArray]:
    """All steps of the lattice within a ball around 0, by length: (k, rank) and their lengths (k,) in mm."""
    rank, most = len(spacing_mm), _MOST_OFFSETS[min(len(spacing_mm), 3)]
    unit_ball = math.pi ** (rank / 2) / math.gamma(rank / 2 + 1)
    radius = (most * math.prod(spacing_mm) / unit_ball) ** (1 / rank)
    reach = [int(radius / size) for size in spacing_mm]
    steps = np.array(list(itertools.product(*(range(-far, far + 1) for far in reach))), np.intp)
    lengths = np.sqrt(((steps * spacing_mm) ** 2).sum(axis=1))
    # Complete up to the radius, and only so far: a longer offset may lie beyond one that is not here.
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] <= radius]
    return steps[order], lengths[order]


def _by_tree(points: IndexArray, others: IndexArray, shape: tuple[int, ...], spacing: FloatArray) -> FloatArray:
    from scipy.spatial import cKDTree

    tree = cKDTree(_coordinates(others, shape, spacing), leafsize=24, balanced_tree=False, compact_nodes=False)
    return np.asarray(tree.query(_coordinates(points, shape, spacing))[0], dtype=np.float64)


def _coordinates(indices: IndexArray, shape: tuple[int, ...], spacing: FloatArray) -> FloatArray:
    return np.stack(np.unravel_index(indices, shape), axis=1) * spacing


def _by_transform(points: IndexArray, others: IndexArray, shape: tuple[int, ...], spacing: FloatArray) -> FloatArray:
    from scipy.ndimage import distance_transform_edt

    outside = np.ones(shape, np.bool_)
    outside.ravel()[others] = False
    # Only the nearest voxel's index is asked for: a quarter of the memory that the full distance image takes.
    nearest = distance_transform_edt(outside, sampling=spacing, return_distances=False, return_indices=True)
    squares = np.zeros(points.size)
    for axis, own in enumerate(np.unravel_index(points, shape)):
        squares += ((own - nearest[axis].reshape(-1)[points]) * spacing[axis]) ** 2
    return np.sqrt(squares)
