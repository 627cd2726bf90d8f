"""A mask that is cut out of a label map only as far as somebody looks at it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

BoolArray = npt.NDArray[np.bool_]
ClassArray = npt.NDArray[np.uint8]
IndexArray = npt.NDArray[np.intp]

# Voxels made at once: what is computed from them stays in a core's cache.
_CHUNK_VOXELS = 2**19


class ClassMask:
    """The voxels of one class, or of several seen as one.

    Args:
        classes: class indices or a bool mask, of any rank; a view is enough.
        indices: the classes; (1,) of a bool mask.
    """

    def __init__(self, classes: ClassArray | BoolArray, indices: Sequence[int] = (1,)) -> None:
        self._classes = classes.view(np.uint8) if classes.dtype == np.bool_ else classes
        self._indices = tuple(indices)
        self.shape = classes.shape

    @property
    def ndim(self) -> int:
        """The rank."""
        return len(self.shape)

    @cached_property
    def array(self) -> BoolArray:
        """The whole mask, in C order; made once."""
        return self.planes(0, self.shape[0])

    def planes(self, start: int, stop: int) -> BoolArray:
        """Its planes ``start`` to ``stop`` along the first axis, in C order."""
        part = self._classes[start:stop]
        mask = np.equal(part, self._indices[0], order="C")
        for index in self._indices[1:]:
            mask |= part == index
        return mask

    def chunks(self, *, margin: int) -> Iterator[tuple[int, int, BoolArray]]:
        """Stretches of planes that hold any voxel, one after another.

        Args:
            margin: planes before and after a stretch that come with it, as far as there are any.

        Yields:
            The stretch's first plane, the one after its last, and its planes with their margins.
        """
        rows = max(1, _CHUNK_VOXELS // max(1, math.prod(self.shape[1:])))
        for start in range(0, self.shape[0], rows):
            stop = min(start + rows, self.shape[0])
            planes = self.planes(max(0, start - margin), min(stop + margin, self.shape[0]))
            if planes.any():
                yield start, stop, planes


def boundary_indices(mask: ClassMask) -> IndexArray:
    """Linear indices, sorted, of the foreground voxels with a face neighbour outside the mask.

    Beyond the array is outside. A mask without a voxel gives none.
    """
    plane = math.prod(mask.shape[1:])
    found = [np.zeros(0, np.intp)]
    for start, stop, planes in mask.chunks(margin=1):
        before = min(start, 1)
        own, inner = planes[before : before + stop - start], _inner(planes)[before : before + stop - start]
        found.append(np.flatnonzero(own & ~inner) + start * plane)
    return np.concatenate(found)


def _inner(mask: BoolArray) -> BoolArray:
    """Voxels whose face neighbours are all in the mask; of a C-ordered array, whose border counts as outside."""
    inner = mask.copy()
    flat, source = inner.reshape(-1), mask.reshape(-1)
    for axis, size in enumerate(mask.shape):
        # Neighbours along an axis lie a fixed number of voxels apart; what that joins across the border is cleared below.
        stride = math.prod(mask.shape[axis + 1 :])
        if size > 1:
            flat[stride:] &= source[:-stride]
            flat[:-stride] &= source[stride:]
        border = np.moveaxis(inner, axis, 0)
        border[0] = border[-1] = False
    return inner
