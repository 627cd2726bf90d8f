"""What a trained model has to beat: a band of grey values, and a fixed place. Both are chosen on training cases alone.

Grey values and relative places go through one search: a place becomes values too, the share of training cases that have
the class there.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from medseg.evaluation.overlap import BoolArray
from medseg.imaging import Volume, resample_to_grid, resized_affine

FloatArray = npt.NDArray[np.float32]
Shape = tuple[int, int, int]
Sides = Literal["band", "threshold", "above"]


class Band(NamedTuple):
    """Values ``low <= v < high``; a plain threshold is a band that is open on one side."""

    low: float
    high: float

    def mask(self, values: FloatArray) -> BoolArray:
        """Which of ``values`` (any shape) lie in the band."""
        inside: BoolArray = (values >= np.float32(self.low)) & (values < np.float32(self.high))
        return inside


class FoundBand(NamedTuple):
    """A band and its mean Dice on the cases it was chosen on."""

    band: Band
    dice: float


def candidate_edges(values: FloatArray, labelled: FloatArray, *, count: int = 257) -> FloatArray:
    """Values worth trying as the edge of a band: ``count`` quantiles of all voxels, and as many of the class's.

    Quantiles of all voxels alone would leave a small bright structure between two neighbouring edges.

    Args:
        values: of all voxels of the training cases, or a sample of them; not empty.
        labelled: of the class's voxels; may be empty.
        count: quantiles of each.

    Returns:
        Up to twice ``count`` values, increasing.
    """
    at = np.linspace(0, 1, count)
    parts = [np.quantile(part, at) for part in (values, labelled) if part.size]
    edges: FloatArray = np.unique(np.concatenate(parts).astype(np.float32))
    return edges


class BandSearch:
    """Finds the band with the highest mean Dice over cases, exactly, among all pairs of given edges.

    A case is looked at once and not kept, so that any number of them can be searched.

    Args:
        edges: finite values to try; minus and plus infinity are added.
    """

    def __init__(self, edges: npt.NDArray[np.floating[Any]]) -> None:
        # As float32, which scans are, so that a voxel on an edge is counted here as `Band.mask` takes it.
        inner = np.unique(np.asarray(edges, np.float32).ravel())
        self._edges = np.concatenate([[-np.inf], inner[np.isfinite(inner)], [np.inf]]).astype(np.float32)
        size = len(self._edges)
        self._total = np.zeros((size, size))
        self._cases = np.zeros((size, size), np.int64)

    def add(self, values: FloatArray, mask: BoolArray) -> None:
        """Adds a case.

        Args:
            values: finite, of any shape.
            mask: of the same shape, the class's voxels. Where it is empty, a band with voxels scores 0 and one without is
                left out of its mean, as the scores of a model are.
        """
        # Voxels and labelled voxels below each edge: a band's are a difference of two entries.
        below = np.searchsorted(np.sort(values, axis=None), self._edges)
        labelled = np.searchsorted(np.sort(values[mask]), self._edges)
        found = below[None, :] - below[:, None]
        both = labelled[None, :] - labelled[:, None]
        size = found + labelled[-1]
        self._total += 2.0 * both / np.maximum(size, 1)
        self._cases += size > 0

    def best(self, sides: Sides = "band") -> FoundBand:
        """The best band; of several the lowest.

        Args:
            sides: ``band`` tries every pair of edges, ``threshold`` those open on one side, ``above`` those open upwards.

        Raises:
            ValueError: no case was added.
        """
        if not self._cases.any():
            raise ValueError("no case was added, expected at least one to choose a band on")
        mean = np.where(self._cases > 0, self._total / np.maximum(self._cases, 1), -1.0)
        allowed = np.triu(np.ones(mean.shape, np.bool_), 1)  # low edge below the high one
        if sides != "band":
            allowed[1:, :-1] = False
        if sides == "above":
            allowed[:, :-1] = False
        mean[~allowed] = -1.0
        low, high = np.unravel_index(mean.argmax(), mean.shape)
        return FoundBand(Band(float(self._edges[low]), float(self._edges[high])), float(mean[low, high]))


def to_relative(mask: npt.NDArray[np.generic], shape: Shape) -> FloatArray:
    """A mask in relative coordinates: the share of each of ``shape`` equal blocks of the scan that it covers.

    Args:
        mask: (X, Y, Z), of any size and type; nonzero counts as 1.
        shape: number of blocks along each axis, fewer or more than voxels.

    Returns:
        ``shape`` float32, 0 to 1.
    """
    result = (mask != 0).astype(np.float32)
    for axis, blocks in enumerate(shape):
        moved = np.tensordot(_block_shares(result.shape[axis], blocks), result, axes=(1, axis))
        result = np.moveaxis(moved, 0, axis)
    return np.ascontiguousarray(result, np.float32)


def _block_shares(voxels: int, blocks: int) -> FloatArray:
    """(blocks, voxels): how much of each block each voxel fills; rows sum to 1."""
    edges = np.linspace(0, voxels, blocks + 1)
    starts = np.arange(voxels)
    overlap = np.minimum(edges[1:, None], starts + 1) - np.maximum(edges[:-1, None], starts)
    shares: FloatArray = (np.clip(overlap, 0, None) * (blocks / voxels)).astype(np.float32)
    return shares


def from_relative(relative: FloatArray, shape: Shape) -> FloatArray:
    """A map in relative coordinates on the voxels of a scan of ``shape`` (X, Y, Z), trilinear; the inverse direction."""
    blocks: Shape = (relative.shape[0], relative.shape[1], relative.shape[2])
    volume = Volume(relative[None], np.eye(4))
    resampled: FloatArray = resample_to_grid(volume, shape, resized_affine(np.eye(4), blocks, shape)).array[0]
    return resampled


class LocationMap:
    """Where a class lies in relative coordinates: its masks' mean over cases.

    Args:
        shape: blocks along each axis.
    """

    def __init__(self, shape: Shape = (32, 32, 32)) -> None:
        self._total = np.zeros(shape, np.float64)
        self._cases = 0

    def add(self, mask: npt.NDArray[np.generic]) -> None:
        """Adds a case's mask (X, Y, Z), axes in the order and sense that all cases share."""
        self._total += to_relative(mask, self._shape)
        self._cases += 1

    @property
    def _shape(self) -> Shape:
        x, y, z = self._total.shape
        return x, y, z

    def on(self, shape: Shape) -> FloatArray:
        """The share of cases that have the class there, on the voxels of a scan of ``shape``; (X, Y, Z), 0 to 1.

        Raises:
            ValueError: no case was added.
        """
        return self._mean_on(self._total, self._cases, shape)

    def without(self, mask: npt.NDArray[np.generic]) -> FloatArray:
        """The same on the voxels of ``mask``, a case that was added, made from all other cases.

        A level that is chosen on maps which hold the case's own mask comes out too high.

        Raises:
            ValueError: no other case was added.
        """
        rest = np.maximum(self._total - to_relative(mask, self._shape), 0)
        return self._mean_on(rest, self._cases - 1, (mask.shape[0], mask.shape[1], mask.shape[2]))

    @staticmethod
    def _mean_on(total: npt.NDArray[np.float64], cases: int, shape: Shape) -> FloatArray:
        if cases < 1:
            raise ValueError(f"{cases} cases were added, expected at least one to take the mean of")
        return from_relative((total / cases).astype(np.float32), shape)
