"""Distances between the surfaces of two masks, computed once for all surface metrics.

The surface is the set of boundary voxels: foreground voxels with at least one of their face neighbours (6 in 3D, 4 in 2D)
outside the mask; beyond the image is outside. Distances run from voxel centre to voxel centre, in mm. This is the definition
of MONAI (without subvoxels), MetricsReloaded and medpy; DeepMind's surface-distance weighs surface elements instead and gives
other values. docs/metrics.md compares them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]

# On a voxel lattice many distances equal the tolerance exactly, but for rounding: without this slack NSD of one organ at a
# tolerance of one voxel was .39 or .50, depending on the order of the float operations.
TOLERANCE_SLACK_MM = 1e-4

# Measured CPU costs: k-d tree per voxel looked up and per voxel in the trees, both distance transforms per voxel of the box.
_TREE_QUERY_US, _TREE_BUILD_US, _TRANSFORMS_US = 0.8, 0.3, 0.25


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """For every boundary voxel of one mask the distance to the nearest boundary voxel of the other, in mm.

    Attributes:
        to_reference: (n,) float64, of the prediction's boundary voxels, in no particular order; empty if that mask is.
        to_prediction: (m,) float64, of the reference's.
        If one mask is empty, the other's distances are infinite.
    """

    to_reference: FloatArray
    to_prediction: FloatArray

    @property
    def defined(self) -> bool:
        """Whether both surfaces exist."""
        return bool(self.to_reference.size and self.to_prediction.size)


def surface_distances(
    prediction: BoolArray, reference: BoolArray, *, spacing_mm: Sequence[float], method: str = "auto"
) -> SurfaceDistances:
    """Both directions of surface distances between two masks.

    Args:
        prediction: mask of any rank. Squeeze axes of one voxel first: in a volume of one slice every voxel touches the
            outside, so all of them are surface.
        reference: one of the same shape.
        spacing_mm: voxel size per axis of the arrays.
        method: "tree" (k-d tree), "transform" (distance transform) or "auto", the one that costs less. All are exact.

    Returns:
        float64 distances; infinite where the other mask is empty.
    """
    box = _union_box(prediction | reference)
    if box is None:
        return SurfaceDistances(np.zeros(0), np.zeros(0))
    edge_p, edge_r = boundary(prediction[box]), boundary(reference[box])
    count_p, count_r = int(np.count_nonzero(edge_p)), int(np.count_nonzero(edge_r))
    if not count_p or not count_r:
        return SurfaceDistances(np.full(count_p, math.inf), np.full(count_r, math.inf))
    # Voxels on both surfaces have distance 0: nothing to look up.
    only_p, only_r = edge_p & ~edge_r, edge_r & ~edge_p
    queries = int(np.count_nonzero(only_p)) + int(np.count_nonzero(only_r))
    if method == "auto":
        tree_us = _TREE_QUERY_US * queries + _TREE_BUILD_US * (count_p + count_r)
        method = "tree" if tree_us < _TRANSFORMS_US * edge_p.size else "transform"
    nearest = _nearest_by_tree if method == "tree" else _nearest_by_transform
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    return SurfaceDistances(
        _with_zeros(nearest(only_p, edge_r, spacing), count_p), _with_zeros(nearest(only_r, edge_p, spacing), count_r)
    )


def boundary(mask: BoolArray) -> BoolArray:
    """Foreground voxels with a face neighbour outside the mask; the array's border counts as outside. Empty stays empty."""
    inner = mask.copy()
    for axis in range(mask.ndim):
        moved, base = np.moveaxis(inner, axis, 0), np.moveaxis(mask, axis, 0)
        moved[1:] &= base[:-1]
        moved[:-1] &= base[1:]
        moved[:1] = False
        moved[-1:] = False
    return mask ^ inner


def _union_box(union: BoolArray) -> tuple[slice, ...] | None:
    box = []
    for axis in range(union.ndim):
        others = tuple(other for other in range(union.ndim) if other != axis)
        hit = np.flatnonzero(union.any(axis=others))
        if not hit.size:
            return None
        box.append(slice(int(hit[0]), int(hit[-1]) + 1))
    return tuple(box)


def _with_zeros(distances: FloatArray, count: int) -> FloatArray:
    full = np.zeros(count)
    full[: distances.size] = distances
    return full


def _nearest_by_tree(queries: BoolArray, surface: BoolArray, spacing: FloatArray) -> FloatArray:
    from scipy.spatial import KDTree

    points = np.argwhere(queries) * spacing
    if not points.size:
        return np.zeros(0)
    tree = KDTree(np.argwhere(surface) * spacing, leafsize=32, balanced_tree=False, compact_nodes=False)
    return np.asarray(tree.query(points)[0], dtype=np.float64)


def _nearest_by_transform(queries: BoolArray, surface: BoolArray, spacing: FloatArray) -> FloatArray:
    from scipy.ndimage import distance_transform_edt

    points = np.nonzero(queries)
    # Only the nearest voxel's index is asked for: a quarter of the memory that the full distance image takes.
    nearest = distance_transform_edt(~surface, sampling=spacing, return_distances=False, return_indices=True)
    squares = np.zeros(points[0].size)
    for axis, coordinates in enumerate(points):
        squares += ((coordinates - nearest[axis][points]) * spacing[axis]) ** 2
    return np.sqrt(squares)


def hausdorff(distances: SurfaceDistances) -> float:
    """Hausdorff distance in mm, 0 is best: the largest distance in either direction.

    Any mask empty: NaN (undefined).
    """
    if not distances.defined:
        return math.nan
    return float(max(distances.to_reference.max(), distances.to_prediction.max()))


def hausdorff_percentile(distances: SurfaceDistances, *, percent: float = 95.0) -> float:
    """The larger of the two directed percentiles of the distances, in mm, 0 is best; HD95 at 95.

    Percentiles are interpolated linearly, not weighted; pooling both directions (medpy) gives another number.
    Any mask empty: NaN (undefined).
    """
    if not distances.defined:
        return math.nan
    directed = (np.percentile(d, percent) for d in (distances.to_reference, distances.to_prediction))
    return float(max(directed))


def average_symmetric(distances: SurfaceDistances) -> float:
    """Average symmetric surface distance (ASSD) in mm, 0 is best: the mean over the boundary voxels of both masks together.

    The mean of the two directed means is another metric (MASD). Any mask empty: NaN (undefined).
    """
    if not distances.defined:
        return math.nan
    total = distances.to_reference.sum() + distances.to_prediction.sum()
    return float(total / (distances.to_reference.size + distances.to_prediction.size))


def normalised_surface_dice(distances: SurfaceDistances, *, tolerance_mm: float) -> float:
    """Normalised surface Dice (NSD), 0 to 1, 1 is best: share of both masks' boundary voxels within the tolerance.

    Within means ``distance <= tolerance_mm + 1e-4``, so that a distance of exactly the tolerance counts whatever the
    rounding. Both masks empty: NaN (undefined). One empty: 0.
    """
    count = distances.to_reference.size + distances.to_prediction.size
    if not count:
        return math.nan
    limit = tolerance_mm + TOLERANCE_SLACK_MM
    near = np.count_nonzero(distances.to_reference <= limit) + np.count_nonzero(distances.to_prediction <= limit)
    return float(near / count)
