"""What the scan looks like where a structure was drawn: brightness, spread, texture and edge, in the network's input values.

How well a mask fits its truth goes by the scan as much as by the network's doubt: on another scanner, or with less contrast, a
network can be sure and wrong. Everything is summed slab by slab, beside the sums of `medseg.inference.uncertainty`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Sums = npt.NDArray[np.float64]
HalfArray = npt.NDArray[np.float16]
Indices = npt.NDArray[np.integer]

APPEARANCE = ("brightness", "spread", "texture", "edge")
_FLOOR = 1e-3
_LARGEST = float(np.finfo(np.float16).max)


def seen_image(array: Any) -> HalfArray | None:
    """The network's input (C, X, Y, Z) in half precision, which is kept until the mask is judged; None of several inputs."""
    if not isinstance(array, np.ndarray):
        return None
    return array if array.dtype == np.float16 else np.clip(array, -_LARGEST, _LARGEST).astype(np.float16)


def box_of(given: Indices, *, margin: int = 0) -> tuple[slice, slice, slice] | None:
    """The smallest box with every voxel of (X, Y, Z) that is not 0, widened within the array; None where all are."""
    found = []
    for axis in range(3):
        where = np.flatnonzero(given.any(axis=tuple(other for other in range(3) if other != axis)))
        if not where.size:
            return None
        low, high = int(where[0]) - margin, int(where[-1]) + 1 + margin
        found.append(slice(max(0, low), min(given.shape[axis], high)))
    return found[0], found[1], found[2]


def _but_last(axis: int) -> tuple[slice, ...]:
    return (*[slice(None)] * axis, slice(None, -1))


def _but_first(axis: int) -> tuple[slice, ...]:
    return (*[slice(None)] * axis, slice(1, None))


class Appearance:
    """Sums over the voxels of structures that do not overlap.

    Args:
        image: (C, X, Y, Z) as the network is given it, normalised.
        structures: K; index k + 1 of what is added is the k-th.
    """

    def __init__(self, image: HalfArray, structures: int) -> None:
        self._image, self._count = image, structures + 1
        self._start = 0
        self._last: Indices | None = None
        shape = (len(image), structures)
        self._voxels, self._total, self._squares = np.zeros(structures), np.zeros(shape), np.zeros(shape)
        self._inner, self._steps = np.zeros(structures), np.zeros(shape)
        self._rim, self._drops = np.zeros(structures), np.zeros(shape)

    def add(self, given: Indices) -> None:
        """The next planes along x, (n, Y, Z): the structure of each voxel, 0 for none."""
        start, stop = self._start, self._start + len(given)
        # With the plane before, for the faces to it.
        planes = given if self._last is None else np.concatenate([self._last, given])
        first = stop - len(planes)
        self._last, self._start = given[-1:].copy(), stop
        # A face counts if a structure lies on one side of it: all else is left out, which changes no sum.
        box = box_of(planes, margin=1)
        if box is None:
            return
        x, y, z = box
        low = max(x.start, start - first)
        inside = planes[low : x.stop, y, z]
        image = self._image[:, first + x.start : first + x.stop, y, z].astype(np.float32)
        self._add_voxels(inside, image[:, low - x.start :])
        self._add_faces(0, planes[box], image)
        for axis in (1, 2):
            self._add_faces(axis, inside, image[:, low - x.start :])

    def _add_voxels(self, given: Indices, image: npt.NDArray[np.float32]) -> None:
        self._voxels += self._sums(given)
        for channel, values in enumerate(image):
            self._total[channel] += self._sums(given, values)
            self._squares[channel] += self._sums(given, np.square(values))

    def _add_faces(self, axis: int, given: Indices, image: npt.NDArray[np.float32]) -> None:
        """Differences between neighbours along an axis: within structures, and between them and what is none."""
        forth, back = _but_last(axis), _but_first(axis)
        before, after = given[forth], given[back]
        same, out, into = (before == after) & (before > 0), (before > 0) & (after == 0), (before == 0) & (after > 0)
        inner, left, entered = before[same], before[out], after[into]
        self._inner += self._sums(inner)
        self._rim += self._sums(left) + self._sums(entered)
        for channel, values in enumerate(image):
            step = values[back] - values[forth]
            self._steps[channel] += self._sums(inner, np.square(step[same]))
            self._drops[channel] += self._sums(entered, step[into]) - self._sums(left, step[out])

    def _sums(self, where: Indices, weights: npt.NDArray[np.floating] | None = None) -> Sums:
        flat = None if weights is None else weights.ravel()
        return np.bincount(where.ravel(), flat, minlength=self._count)[1:].astype(np.float64)

    def features(self, k: int) -> dict[str, float]:
        """Of the k-th structure, the mean over the channels; {} where it has no voxel.

        Returns:
            ``brightness``: mean value; ``spread``: logarithm of the SD; ``texture``: logarithm of the root mean square
            difference between face neighbours inside; ``edge``: mean fall in value across faces to the background.
        """
        count = self._voxels[k]
        if count == 0:
            return {}
        mean = self._total[:, k] / count
        spread = np.sqrt(np.maximum(0, self._squares[:, k] / count - np.square(mean)))
        texture = np.sqrt(self._steps[:, k] / max(1.0, self._inner[k]))
        found = {
            "brightness": float(mean.mean()),
            "spread": math.fsum(np.log(spread + _FLOOR)) / len(mean),
            "texture": math.fsum(np.log(texture + _FLOOR)) / len(mean),
            "edge": float((self._drops[:, k] / max(1.0, self._rim[k])).mean()),
        }
        # Five digits: sums in another order (threads, slabs) give the same text.
        return {name: float(f"{value:.5g}") for name, value in found.items()}
