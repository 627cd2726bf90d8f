"""Surface metrics by surface elements, as DeepMind's surface-distance defines them: weighed by area, in 2D by contour length.

The grid is shifted by half a voxel. Around each of its points lie 2 x 2 x 2 voxels (2 x 2 in 2D), a cell, whose pattern of
inside and outside says which piece of surface passes through it. Points whose cell is neither full nor empty are the surface;
distances run from point to point, in mm, and each counts as much as its piece's area. Beyond the image is outside.

The area of a pattern is that of marching cubes (Lorensen and Cline 1987): of inside and outside the rarer (inside, if equal)
is parted into pieces of corners joined by edges, and around each piece runs a closed line through the middles of the edges that
leave it. The line is filled with triangles; of the ways to do that, where it is not flat, the one of most area in a unit cube
counts. That gives all 256 areas of DeepMind's table, at every spacing. Source: Nikolov et al. 2021, https://arxiv.org/abs/1809.04430.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from medseg.evaluation.lattice import nearest_distances
from medseg.evaluation.masks import BoolArray, ClassMask
from medseg.evaluation.surface import TOLERANCE_SLACK_MM

FloatArray = npt.NDArray[np.float64]
IndexArray = npt.NDArray[np.intp]
Corner = tuple[int, ...]
Edge = tuple[Corner, Corner]

_CHUNK_POINTS = 2**18


@dataclass(frozen=True, eq=False)
class SurfelDistances:
    """For every surface element of one mask its distance to the other's, in mm, and its area (length in 2D).

    Attributes:
        to_reference, area_prediction: (n,) float64, of the prediction's elements.
        to_prediction, area_reference: (m,) float64, of the reference's.
        If one mask is empty, the other's distances are infinite.
    """

    to_reference: FloatArray
    area_prediction: FloatArray
    to_prediction: FloatArray
    area_reference: FloatArray

    @property
    def defined(self) -> bool:
        """Whether both surfaces exist."""
        return bool(self.to_reference.size and self.to_prediction.size)


def surfel_distances(prediction: ClassMask, reference: ClassMask, *, spacing_mm: Sequence[float]) -> SurfelDistances:
    """Both directions, of two masks of one shape and rank 1, 2 or 3 (in one dimension every end weighs 1).

    Raises:
        ValueError: the rank is higher.
    """
    if prediction.ndim > 3:
        raise ValueError(f"masks have {prediction.ndim} axes, expected at most 3 for surface elements")
    areas = element_areas(tuple(float(size) for size in spacing_mm))
    shape = tuple(size + 1 for size in prediction.shape)
    own_p, own_r = _elements(prediction), _elements(reference)
    return SurfelDistances(
        nearest_distances(own_p[0], own_r[0], shape=shape, spacing_mm=spacing_mm),
        areas[own_p[1]],
        nearest_distances(own_r[0], own_p[0], shape=shape, spacing_mm=spacing_mm),
        areas[own_r[1]],
    )


def _elements(mask: ClassMask) -> tuple[IndexArray, npt.NDArray[np.uint8]]:
    """Linear indices into the shifted grid (one more per axis), sorted, of the points on the surface; their patterns."""
    shape = tuple(size + 1 for size in mask.shape)
    plane = math.prod(shape[1:])
    rows = max(1, _CHUNK_POINTS // max(plane, 1))
    full = 2 ** (2**mask.ndim) - 1
    places, patterns = [np.zeros(0, np.intp)], [np.zeros(0, np.uint8)]
    for start in range(0, shape[0], rows):
        stop = min(start + rows, shape[0])
        codes = _codes(mask, start, stop)
        if codes is not None:
            found = np.flatnonzero((codes != 0) & (codes != full))
            places.append(found + start * plane)
            patterns.append(codes.reshape(-1)[found])
    return np.concatenate(places), np.concatenate(patterns)


def _codes(mask: ClassMask, start: int, stop: int) -> npt.NDArray[np.uint8] | None:
    """The patterns of the points in planes ``start`` to ``stop`` of the shifted grid; None if no voxel is near."""
    first, last = max(0, start - 1), min(stop, mask.shape[0])
    planes: BoolArray = mask.planes(first, last)
    if not planes.any():
        return None
    block = np.zeros((stop - start + 1, *(size + 2 for size in mask.shape[1:])), np.uint8)
    inner = (slice(first - start + 1, last - start + 1), *(slice(1, -1) for _ in mask.shape[1:]))
    block[inner] = planes
    codes = np.zeros(tuple(size - 1 for size in block.shape), np.uint8)
    for bit, corner in enumerate(_corners(mask.ndim)):
        window = tuple(slice(at, at + size) for at, size in zip(corner, codes.shape, strict=True))
        codes |= block[window] << np.uint8(bit)
    return codes


@cache
def element_areas(spacing_mm: tuple[float, ...]) -> FloatArray:
    """Area in mm² (3D), length in mm (2D) or 1 (1D) of the surface in each pattern of a cell, (2^(2^rank),)."""
    rank = len(spacing_mm)
    # A triangle's normal scales by the other two axes' spacing, a piece of a line by its own.
    scale = np.array([math.prod(spacing_mm) / size for size in spacing_mm] if rank == 3 else spacing_mm)
    return np.array(
        [
            sum(float(np.linalg.norm(normal * scale)) for normal in own) if rank > 1 else float(len(own))
            for own in _normals(rank)
        ]
    )


@cache
def _normals(rank: int) -> tuple[tuple[FloatArray, ...], ...]:
    """Per pattern the normals of its triangles, as long as these are large, in a unit cube; in 2D the lines themselves."""
    corners = _corners(rank)
    found = []
    for code in range(2 ** len(corners)):
        own = {corner for bit, corner in enumerate(corners) if code >> bit & 1}
        if 2 * len(own) > len(corners):
            own = set(corners) - own
        found.append(tuple(normal for piece in _pieces(own) for normal in _surface(piece)))
    return tuple(found)


def _corners(rank: int) -> tuple[Corner, ...]:
    return tuple(itertools.product((0, 1), repeat=rank))


def _beside(corner: Corner) -> list[Corner]:
    """The corners at the other ends of its edges."""
    return [(*corner[:axis], 1 - corner[axis], *corner[axis + 1 :]) for axis in range(len(corner))]


def _pieces(corners: set[Corner]) -> Iterator[set[Corner]]:
    """Parts of a set of corners that no edge joins."""
    left = set(corners)
    while left:
        piece, new = set(), [min(left)]
        while new:
            corner = new.pop()
            if corner in left:
                left.remove(corner)
                piece.add(corner)
                new += _beside(corner)
        yield piece


def _surface(piece: set[Corner]) -> list[FloatArray]:
    """The surface around one piece: normals of triangles in 3D, the line in 2D, a point in 1D."""
    line = [np.mean(edge, axis=0) for edge in _around(piece)]
    if len(line[0]) < 3:
        return [line[-1] - line[0]]
    ways = ([np.cross(b - a, c - a) / 2 for a, b, c in way] for way in _triangles(line))
    return max(ways, key=lambda normals: round(sum(float(np.linalg.norm(normal)) for normal in normals), 9))


def _around(piece: set[Corner]) -> list[Edge]:
    """The edges that leave a piece, each beside the next: on one face, where the line passes from one to the other."""
    edges = [(corner, other) for corner in sorted(piece) for other in _beside(corner) if other not in piece]
    path = [edges[0]]
    while len(path) < len(edges):
        path.append(next(edge for edge in edges if edge not in path and _joined(path[-1], edge)))
    return path


def _joined(one: Edge, other: Edge) -> bool:
    """Whether the line passes from one edge to the other: across a face where inside corners, or outside ones, are joined."""
    corners = {*one, *other}
    rank = len(one[0])
    on_one_face = rank == 2 or any(len({corner[axis] for corner in corners}) == 1 for axis in range(rank))
    return on_one_face and (one[0] == other[0] or one[1] == other[1] or one[0] in _beside(other[0]))


def _triangles(line: list[FloatArray]) -> Iterator[list[tuple[FloatArray, FloatArray, FloatArray]]]:
    """Every way to cut a closed line into triangles between its points."""
    if len(line) < 3:
        yield []
        return
    for k in range(1, len(line) - 1):
        for before, after in itertools.product(_triangles(line[: k + 1]), _triangles(line[k:])):
            yield [*before, (line[0], line[k], line[-1]), *after]


def surface_dice(distances: SurfelDistances, *, tolerance_mm: float) -> float:
    """NSD by surface elements, 0 to 1, 1 is best: share of both surfaces' area within the tolerance of the other.

    Within means ``distance <= tolerance_mm + 1e-4``. Both masks empty: NaN (undefined). One empty: 0. Source: Nikolov et al.
    2021.
    """
    whole = distances.area_prediction.sum() + distances.area_reference.sum()
    if not whole:
        return math.nan
    limit = tolerance_mm + TOLERANCE_SLACK_MM
    near_p = distances.area_prediction[distances.to_reference <= limit].sum()
    near_r = distances.area_reference[distances.to_prediction <= limit].sum()
    return float((near_p + near_r) / whole)


def hausdorff_percentile(distances: SurfelDistances, *, percent: float = 95.0) -> float:
    """The larger of the two directed percentiles by area, in mm, 0 is best: no interpolation.

    A directed one is the smallest distance within which ``percent`` of the area lie; at 100 it is the Hausdorff distance. Any
    mask empty: NaN (undefined). Source: ``compute_robust_hausdorff`` of surface-distance 0.1.
    """
    if not distances.defined:
        return math.nan
    return max(
        _percentile(distances.to_reference, distances.area_prediction, percent),
        _percentile(distances.to_prediction, distances.area_reference, percent),
    )


def _percentile(distances: FloatArray, areas: FloatArray, percent: float) -> float:
    order = np.lexsort((areas, distances))
    share = np.cumsum(areas[order]) / areas.sum()
    place = int(np.searchsorted(share, percent / 100.0))
    return float(distances[order[min(place, order.size - 1)]])


def average_symmetric(distances: SurfelDistances) -> float:
    """ASSD by surface elements in mm, 0 is best: mean distance over the area of both surfaces together.

    Any mask empty: NaN (undefined).
    """
    if not distances.defined:
        return math.nan
    total = distances.to_reference @ distances.area_prediction + distances.to_prediction @ distances.area_reference
    return float(total / (distances.area_prediction.sum() + distances.area_reference.sum()))


def mean_average(distances: SurfelDistances) -> float:
    """MASD by surface elements in mm, 0 is best: the mean of the two directed means, each by its own area.

    Any mask empty: NaN (undefined). Source: the two values of surface-distance's ``compute_average_surface_distance``.
    """
    if not distances.defined:
        return math.nan
    directed_p = distances.to_reference @ distances.area_prediction / distances.area_prediction.sum()
    directed_r = distances.to_prediction @ distances.area_reference / distances.area_reference.sum()
    return float((directed_p + directed_r) / 2)
