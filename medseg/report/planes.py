"""Slices of a case as the eye wants them: three planes, cropped to the structures, turned as radiologists look at them.

An array in RAS order is shown with the patient's right on the picture's left, the front or the head up; a sagittal slice looks
to the left. A picture is shown as it is. Slices keep their voxels, and the viewer gives them their physical shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.evaluation.overlap import BoolArray
from medseg.report.masks import Box, CaseMasks, bounding_box

MOST_PIXELS = 256
"""Of a slice's side; larger crops are shown coarser."""
MARGIN_MM = 12.0
_LEAST_MARGIN = 3

Letters = tuple[str, str, str, str]


@dataclass(frozen=True)
class Plane:
    """How slices of one direction are shown.

    Attributes:
        name: for headings.
        through, across, down: array axes that slices are stacked along, that the picture's columns and its rows follow.
        flip_across, flip_down: whether columns and rows run against their axes.
        letters: of the patient's sides: left, right, top and bottom of the picture; empty where unknown.
    """

    name: str
    through: int
    across: int
    down: int
    flip_across: bool
    flip_down: bool
    letters: Letters


AXIAL = Plane("axial", 2, 0, 1, flip_across=True, flip_down=True, letters=("R", "L", "A", "P"))
CORONAL = Plane("coronal", 1, 0, 2, flip_across=True, flip_down=True, letters=("R", "L", "S", "I"))
SAGITTAL = Plane("sagittal", 0, 1, 2, flip_across=True, flip_down=True, letters=("A", "P", "S", "I"))
PICTURE = Plane("picture", 2, 0, 1, flip_across=False, flip_down=False, letters=("", "", "", ""))


def planes_of(shape: tuple[int, ...], *, planar: bool) -> tuple[Plane, ...]:
    """The planes worth showing of an array: of a picture or a single slice only the one that it lies in."""
    if planar:
        return (PICTURE,)
    flat = [axis for axis in range(3) if shape[axis] == 1]
    planes = (AXIAL, CORONAL, SAGITTAL)
    return tuple(plane for plane in planes if plane.through in flat) if flat else planes


def shown_box(masks: CaseMasks) -> Box:
    """The box around all structures and a margin of 12 mm (at least 3 voxels); the whole scan where there are none."""
    box = bounding_box((masks.truth > 0) | (masks.prediction > 0))
    shape = masks.truth.shape
    if box is None:
        return slice(0, shape[0]), slice(0, shape[1]), slice(0, shape[2])
    sides = []
    for side, size, spacing in zip(box, shape, masks.spacing_xyz_mm, strict=True):
        margin = max(_LEAST_MARGIN, int(np.ceil(MARGIN_MM / spacing)))
        sides.append(slice(max(0, side.start - margin), min(size, side.stop + margin)))
    return sides[0], sides[1], sides[2]


def telling_point(wrong: BoolArray, either: BoolArray) -> tuple[int, int, int]:
    """Per axis the slice with most wrong voxels; where nothing is wrong, with most of the structures.

    Args:
        wrong: (X, Y, Z): where the masks differ.
        either: where one of them has a structure.
    """
    array = wrong if wrong.any() else either
    counts = [np.count_nonzero(array, axis=tuple(a for a in range(3) if a != axis)) for axis in range(3)]
    # Of equal slices the middle one: argmax would take the first.
    best = [np.flatnonzero(count == count.max()) for count in counts]
    return int(best[0][len(best[0]) // 2]), int(best[1][len(best[1]) // 2]), int(best[2][len(best[2]) // 2])


def shown_indices(count: int, start: int, most: int) -> list[int]:
    """At most ``most`` of ``count`` slices, evenly, the slice ``start`` among them."""
    step = max(1, -(-count // max(1, most)))
    return list(range(start % step, count, step))


def slices(array: npt.NDArray[Any], plane: Plane, indices: list[int]) -> npt.NDArray[Any]:
    """(N, H, W) or (N, H, W, 3): slices as they are shown.

    Args:
        array: (X, Y, Z) or (X, Y, Z, 3).
        plane: which direction.
        indices: along ``plane.through``.
    """
    turned = np.moveaxis(array, (plane.through, plane.down, plane.across), (0, 1, 2))[indices]
    turned = turned[:, ::-1] if plane.flip_down else turned
    return turned[:, :, ::-1] if plane.flip_across else turned


def coarsening(shape: tuple[int, ...], plane: Plane) -> tuple[int, int]:
    """Voxels per pixel down and across, 1 where the slice has at most 256 of them."""
    return tuple(-(-shape[axis] // MOST_PIXELS) for axis in (plane.down, plane.across))  # type: ignore[return-value]


def picked(stack: npt.NDArray[Any], steps: tuple[int, int]) -> npt.NDArray[Any]:
    """Every so-many-th voxel of (N, H, W) slices: for labels, which can't be averaged."""
    return stack[:, steps[0] // 2 :: steps[0], steps[1] // 2 :: steps[1]] if steps != (1, 1) else stack


def averaged(stack: npt.NDArray[np.float32], steps: tuple[int, int]) -> npt.NDArray[np.float32]:
    """(N, H, W) or (N, H, W, 3) slices averaged over blocks, as many of them as `picked` gives pixels."""
    if steps == (1, 1):
        return stack
    for axis, step in zip((1, 2), steps, strict=True):
        size = len(range(step // 2, stack.shape[axis], step))
        index = np.minimum(np.arange(size * step), stack.shape[axis] - 1)
        blocks = np.take(stack, index, axis=axis)
        shape = (*blocks.shape[:axis], size, step, *blocks.shape[axis + 1 :])
        stack = blocks.reshape(shape).mean(axis=axis + 1)
    return stack.astype(np.float32)
