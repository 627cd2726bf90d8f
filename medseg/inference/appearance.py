"""What the scan looks like where a structure was drawn: brightness, spread, texture and edge, in the network's input values.

How well a mask fits its truth goes by the scan as much as by the network's doubt: on another scanner, or with less contrast, a
network can be sure and wrong. Everything is summed slab by slab, beside the sums of `medseg.inference.uncertainty`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
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
        stop = self._start + len(given)
        self._voxels += self._sums(given)
        for channel, plane in enumerate(self._image[:, self._start : stop].astype(np.float32)):
            self._total[channel] += self._sums(given, plane)
            self._squares[channel] += self._sums(given, np.square(plane))
        for axis, own, first in self._with_neighbours(given):
            size = own.shape[axis]
            before, after = own.take(range(size - 1), axis), own.take(range(1, size), axis)
            same, out, into = before == after, (before > 0) & (after == 0), (before == 0) & (after > 0)
            self._inner += self._sums(before[same])
            self._rim += self._sums(before[out]) + self._sums(after[into])
            for channel, values in enumerate(self._image[:, first:stop].astype(np.float32)):
                step = np.diff(values, axis=axis)
                self._steps[channel] += self._sums(before[same], np.square(step[same]))
                self._drops[channel] += self._sums(after[into], step[into]) - self._sums(before[out], step[out])
        self._last, self._start = given[-1:].copy(), stop

    def _with_neighbours(self, given: Indices) -> Iterator[tuple[int, Indices, int]]:
        """(axis, planes whose neighbours along it are to be compared, x of the first of them)."""
        for axis in range(3):
            if axis == 0 and self._last is not None:
                yield axis, np.concatenate([self._last, given]), self._start - 1
            else:
                yield axis, given, self._start

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
