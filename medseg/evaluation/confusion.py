"""One pass over two label maps: how many voxels of which class were called what, and where each class lies.

Label maps are piecewise constant, so the pass goes over runs: stretches of a row along which both maps keep their values.
Everything that counts voxels comes from the one matrix, whether of one class or of all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medseg.evaluation.overlap import OverlapCounts

ClassArray = npt.NDArray[np.uint8]
CountArray = npt.NDArray[np.int64]
Box = tuple[slice, ...]

# Voxels looked at together: two maps of them and what is made of them stay in a core's cache.
_CHUNK_VOXELS = 2**19


@dataclass(frozen=True, eq=False)
class Confusion:
    """Voxels by predicted and true class.

    Attributes:
        matrix: (K, K) int64; row p, column r counts the voxels that were predicted p and are r. Ignored ones are left out.
        boxes: per class the smallest box with all its voxels of either map, None where it has none and for the background.
        rank: of the maps.
    """

    matrix: CountArray
    boxes: tuple[Box | None, ...]
    rank: int

    def counts(self, indices: Sequence[int]) -> OverlapCounts:
        """The overlap of one class, or of several seen as one region."""
        own = list(indices)
        both = int(self.matrix[np.ix_(own, own)].sum())
        predicted, wanted = int(self.matrix[own].sum()), int(self.matrix[:, own].sum())
        return OverlapCounts(
            true_positive=both,
            false_positive=predicted - both,
            false_negative=wanted - both,
            true_negative=int(self.matrix.sum()) - predicted - wanted + both,
        )

    def box(self, indices: Sequence[int]) -> Box:
        """The smallest box with all voxels of these classes in either map; without any voxel where there is none."""
        found = [box for index in indices if (box := self.boxes[index]) is not None]
        if not found:
            return (slice(0, 0),) * self.rank
        return tuple(slice(min(b[a].start for b in found), max(b[a].stop for b in found)) for a in range(self.rank))


def count_confusion(prediction: ClassArray, reference: ClassArray, *, classes: int, ignored: int = 0) -> Confusion:
    """Counts two maps of class indices.

    Args:
        prediction: class indices below ``classes``, of any rank; fastest in C order.
        reference: the same, of the same shape.
        classes: how many there are, with background, which is 0.
        ignored: voxels that count for nothing; both maps hold background there.
    """
    shape = reference.shape
    matrix = np.zeros(classes * classes, np.int64)
    low = np.full((classes * classes, len(shape)), np.iinfo(np.int64).max)
    high = np.zeros_like(low)
    plane = math.prod(shape[1:])
    step = max(1, _CHUNK_VOXELS // max(plane, 1)) * plane
    flat_p, flat_r = np.ascontiguousarray(prediction).reshape(-1), np.ascontiguousarray(reference).reshape(-1)
    for first in range(0, flat_p.size, step):
        part_p, part_r = flat_p[first : first + step], flat_r[first : first + step]
        starts = _run_starts(part_p, part_r, shape[-1])
        lengths = np.diff(starts, append=part_p.size)
        codes = part_p[starts].astype(np.intp) * classes + part_r[starts]
        # Weights are summed as float64, which is exact up to 2**53 voxels.
        matrix += np.bincount(codes, weights=lengths, minlength=matrix.size).astype(np.int64)
        foreground = np.flatnonzero(codes)
        _extend(low, high, codes[foreground], starts[foreground] + first, lengths[foreground], shape)
    matrix[0] -= ignored
    return Confusion(matrix.reshape(classes, classes), _boxes(low, high, classes), len(shape))


def _run_starts(prediction: ClassArray, reference: ClassArray, row: int) -> npt.NDArray[np.intp]:
    """Where one of two flat maps changes its value, or a row of ``row`` voxels begins."""
    changes = np.empty(prediction.size, np.bool_)
    np.not_equal(prediction[1:], prediction[:-1], out=changes[1:])
    changes[1:] |= reference[1:] != reference[:-1]
    changes[::row] = True
    return np.flatnonzero(changes)


def _extend(
    low: CountArray,
    high: CountArray,
    codes: npt.NDArray[np.intp],
    starts: npt.NDArray[np.intp],
    lengths: npt.NDArray[np.intp],
    shape: tuple[int, ...],
) -> None:
    """Widens the extents (lowest and highest place plus one per code and axis) by some runs."""
    if not codes.size:
        return
    order = np.argsort(codes, kind="stable")
    codes = codes[order]
    heads = np.flatnonzero(np.diff(codes, prepend=-1))
    own = codes[heads]
    for axis, places in enumerate(np.unravel_index(starts[order], shape)):
        ends = places + (lengths[order] if axis == len(shape) - 1 else 1)
        low[own, axis] = np.minimum(low[own, axis], np.minimum.reduceat(places, heads))
        high[own, axis] = np.maximum(high[own, axis], np.maximum.reduceat(ends, heads))


def _boxes(low: CountArray, high: CountArray, classes: int) -> tuple[Box | None, ...]:
    rank = low.shape[1]
    # A class lies where a code has it as its row (predicted) or its column (true).
    low, high = low.reshape(classes, classes, rank), high.reshape(classes, classes, rank)
    lowest = np.minimum(low.min(axis=0), low.min(axis=1))
    highest = np.maximum(high.max(axis=0), high.max(axis=1))
    found = [k > 0 and bool(highest[k].any()) for k in range(classes)]
    return tuple(
        tuple(slice(int(a), int(b)) for a, b in zip(lowest[k], highest[k], strict=True)) if found[k] else None
        for k in range(classes)
    )


def pixel_accuracy(confusion: Confusion) -> float:
    """Share of all voxels whose class is right, background included, 0 to 1, 1 is best.

    No voxel at all: NaN (undefined). Source: Long et al. 2015, "pixel accuracy".
    """
    return _ratio(int(confusion.matrix.trace()), int(confusion.matrix.sum()))


def mean_iou(confusion: Confusion) -> float:
    """Unweighted mean over classes, background included, of TP / (TP + FP + FN), 0 to 1, 1 is best.

    Classes with no voxel in either map are left out of the mean. No voxel at all: NaN. Source: Long et al. 2015, "mean IU".
    """
    values, _ = _ious(confusion)
    return float(values.mean()) if values.size else math.nan


def frequency_weighted_iou(confusion: Confusion) -> float:
    """Mean of the classes' IoU, background included, each weighted by its share of the reference's voxels, 0 to 1, 1 is best.

    No voxel at all: NaN (undefined). Source: Long et al. 2015, "frequency weighted IU".
    """
    values, frequencies = _ious(confusion)
    return float((values * frequencies).sum() / frequencies.sum()) if values.size else math.nan


def _ious(confusion: Confusion) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """IoU and the reference's voxels of each class that is in either map."""
    wanted = confusion.matrix.sum(axis=0).astype(np.float64)
    union = wanted + confusion.matrix.sum(axis=1) - confusion.matrix.diagonal()
    present = union > 0
    return confusion.matrix.diagonal()[present] / union[present], wanted[present]


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
