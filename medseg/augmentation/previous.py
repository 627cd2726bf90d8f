"""Random faults for the first stage's mask in a sample of a cascade's second stage, so that the second learns to mend them.

nnU-Net's two (``get_training_transforms`` of nnunetv2 2.8.1, batchgeneratorsv2 0.3.6): classes are dilated, eroded, opened or
closed by a ball of 1 to 8 voxels, and connected components are taken out. Both keep one class a voxel: what a class gains
others lose, what it loses is background. nnU-Net's balls of a broken radius lie off the voxel grid; these hold every voxel
whose centre is within the radius.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medseg.config.train_sections import AugmentationSection

LabelArray = npt.NDArray[np.uint8]
BoolArray = npt.NDArray[np.bool_]
Operation = Literal["dilate", "erode", "close", "open"]
_OPERATIONS: tuple[Operation, ...] = ("dilate", "erode", "close", "open")
_RADIUS_VOXELS = (1.0, 8.0)
_PER_CLASS = 0.5
_LARGEST_REMOVED = 0.15  # of the patch's voxels


@dataclass(frozen=True)
class PreviousDraw:
    """What one sample's mask goes through, in this order; both empty where nothing.

    Attributes:
        reshapes: class index, operation, radius in voxels.
        removals: class index, and in [0, 1) which of its components goes.
    """

    reshapes: tuple[tuple[int, Operation, float], ...] = ()
    removals: tuple[tuple[int, float], ...] = ()


def draw_previous(rng: np.random.Generator, section: AugmentationSection, count: int) -> PreviousDraw:
    """Draws the faults of one sample. The same numbers are drawn whatever happens.

    Args:
        rng: for this alone.
        section: probabilities per sample; each class is then taken with probability one half.
        count: foreground classes.
    """
    reshape, remove = rng.random(2).tolist()
    orders = [rng.permutation(count) + 1 for _ in range(2)]
    taken = rng.random((2, count)) < _PER_CLASS
    operations, radii = rng.integers(len(_OPERATIONS), size=count), rng.uniform(*_RADIUS_VOXELS, size=count)
    which = rng.random(count)
    reshapes = tuple(
        (int(index), _OPERATIONS[operation], float(radius))
        for index, use, operation, radius in zip(orders[0], taken[0], operations, radii, strict=True)
        if use and reshape < section.previous_reshaped
    )
    removals = tuple(
        (int(index), float(share))
        for index, use, share in zip(orders[1], taken[1], which, strict=True)
        if use and remove < section.previous_removed
    )
    return PreviousDraw(reshapes, removals)


def change_previous(mask: LabelArray, draw: PreviousDraw) -> None:
    """Does to ``mask``, (X, Y, Z) uint8 class indices, in place what was drawn for it; classes it lacks are left out."""
    for index, operation, radius in draw.reshapes:
        own = mask == index
        if own.any():
            box = _box_around(own, math.ceil(radius) + 1)
            before, part = own[box], mask[box]
            after = reshaped(before, operation, radius)
            part[before & ~after] = 0
            part[after & ~before] = index
    for index, share in draw.removals:
        _remove_component(mask, index, share)


def reshaped(mask: BoolArray, operation: Operation, radius: float) -> BoolArray:
    """``mask`` (X, Y, Z) dilated, eroded, closed or opened by a ball of ``radius`` voxels.

    What lies beyond the array neither adds to the mask nor eats into it, as in nnU-Net.
    """
    first, then = _STEPS[operation]
    result = first(mask, radius)
    return result if then is None else then(result, radius)


def _dilated(mask: BoolArray, radius: float) -> BoolArray:
    if not mask.any():
        return mask
    return np.asarray(ndimage.distance_transform_edt(~mask) <= radius)


def _eroded(mask: BoolArray, radius: float) -> BoolArray:
    if mask.all():
        return mask
    return np.asarray(ndimage.distance_transform_edt(mask) > radius)


_Step = Callable[[BoolArray, float], BoolArray]
_STEPS: dict[Operation, tuple[_Step, _Step | None]] = {
    "dilate": (_dilated, None),
    "erode": (_eroded, None),
    "close": (_dilated, _eroded),
    "open": (_eroded, _dilated),
}


def _box_around(mask: BoolArray, margin: int) -> tuple[slice, slice, slice]:
    """The smallest box with all of ``mask``, ``margin`` voxels larger on each side where the array has them."""
    x, y, z = (np.flatnonzero(mask.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1)))
    return _grown(x, margin), _grown(y, margin), _grown(z, margin)


def _grown(where: npt.NDArray[np.intp], margin: int) -> slice:
    return slice(max(0, int(where[0]) - margin), int(where[-1]) + 1 + margin)


def _remove_component(mask: LabelArray, index: int, share: float) -> None:
    """Takes one component (joined over faces, edges and corners) of the class out, if one is small enough."""
    own = mask == index
    if not own.any():
        return
    box = _box_around(own, 0)
    components, count = ndimage.label(own[box], structure=np.ones((3, 3, 3)))
    sizes = np.bincount(components.ravel(), minlength=count + 1)[1:]
    small = np.flatnonzero(sizes < _LARGEST_REMOVED * mask.size) + 1
    if len(small):
        mask[box][components == small[int(share * len(small))]] = 0
