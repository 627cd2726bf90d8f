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

from medseg.evaluation.lattice import Method, nearest_distances
from medseg.evaluation.masks import ClassMask, boundary_indices
from medseg.evaluation.postprocessing import bounding_box

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]

# On a voxel lattice many distances equal the tolerance exactly, but for rounding: without this slack NSD of one organ at a
# tolerance of one voxel was .39 or .50, depending on the order of the float operations.
TOLERANCE_SLACK_MM = 1e-4


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
    prediction: BoolArray, reference: BoolArray, *, spacing_mm: Sequence[float], method: Method = "auto"
) -> SurfaceDistances:
    """Both directions of surface distances between two masks.

    Args:
        prediction: mask of any rank. Squeeze axes of one voxel first: in a volume of one slice every voxel touches the
            outside, so all of them are surface.
        reference: one of the same shape.
        spacing_mm: voxel size per axis of the arrays.
        method: see :func:`~medseg.evaluation.lattice.nearest_distances`. All are exact.

    Returns:
        float64 distances; infinite where the other mask is empty.
    """
    box = bounding_box(prediction | reference)
    if box is None:
        return SurfaceDistances(np.zeros(0), np.zeros(0))
    return mask_distances(ClassMask(prediction[box]), ClassMask(reference[box]), spacing_mm=spacing_mm, method=method)


def mask_distances(
    prediction: ClassMask, reference: ClassMask, *, spacing_mm: Sequence[float], method: Method = "auto"
) -> SurfaceDistances:
    """As :func:`surface_distances`, of masks that are cropped already."""
    edge_p, edge_r = boundary_indices(prediction), boundary_indices(reference)
    return SurfaceDistances(
        nearest_distances(edge_p, edge_r, shape=prediction.shape, spacing_mm=spacing_mm, method=method),
        nearest_distances(edge_r, edge_p, shape=prediction.shape, spacing_mm=spacing_mm, method=method),
    )


def boundary(mask: BoolArray) -> BoolArray:
    """Foreground voxels with a face neighbour outside the mask; the array's border counts as outside. Empty stays empty."""
    found = np.zeros(mask.shape, np.bool_)
    found.reshape(-1)[boundary_indices(ClassMask(mask))] = True
    return found


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


def hausdorff_percentile_pooled(distances: SurfaceDistances, *, percent: float = 95.0) -> float:
    """The percentile of the distances of both directions in one list, in mm, 0 is best; what medpy calls HD95 at 95.

    Any mask empty: NaN (undefined).
    """
    if not distances.defined:
        return math.nan
    return float(np.percentile(np.concatenate([distances.to_reference, distances.to_prediction]), percent))


def mean_average(distances: SurfaceDistances) -> float:
    """Mean average surface distance (MASD) in mm, 0 is best: the mean of the two directed mean distances.

    Unlike ASSD both masks weigh the same, however large their surfaces. Any mask empty: NaN (undefined).
    """
    if not distances.defined:
        return math.nan
    return float((distances.to_reference.mean() + distances.to_prediction.mean()) / 2)


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
