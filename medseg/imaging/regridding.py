"""Reading one scan at the voxel centres of another's grid, in world space."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.imaging.geometry import Shape
from medseg.imaging.volume import Affine, LabelMap, Volume

# How far (in voxels) rounding may carry a voxel that lies exactly on the border.
_BORDER = 1e-6
# Grids whose axes drift apart by less than this many voxels over their whole length are sampled axis by axis.
_PARALLEL = 1e-3


def resample_to_grid(volume: Volume, shape: Shape, affine: Affine) -> Volume:
    """``volume`` read at the voxel centres of another grid: trilinear in world space, 0 outside its extent.

    Within the outermost half voxel the border value holds. For a channel whose file has a grid of its own.

    Returns:
        A Volume (C, *shape) float32 on ``affine`` (its header is the old one's).
    """
    array = np.stack([_sampled(channel, volume.affine, shape, affine, linear=True) for channel in volume.array])
    return Volume(array, np.array(affine, np.float64), volume.header)


def resample_labels_to_grid(labels: LabelMap, shape: Shape, affine: Affine) -> LabelMap:
    """``labels`` read at the voxel centres of another grid: the nearest voxel's value, 0 outside their extent."""
    array = _sampled(labels.array, labels.affine, shape, affine, linear=False)
    return LabelMap(array, np.array(affine, np.float64), labels.header)


def _sampled(
    array: npt.NDArray[Any], affine: Affine, shape: Shape, target: Affine, *, linear: bool
) -> npt.NDArray[Any]:
    to_index = np.linalg.solve(np.asarray(affine, np.float64), np.asarray(target, np.float64))
    axes = _parallel_axes(to_index, shape)
    if axes is not None:
        return _sampled_by_axis(array, to_index, shape, axes, linear=linear)
    from scipy import ndimage

    result = np.empty(shape, array.dtype)
    ndimage.affine_transform(
        array,
        to_index[:3, :3],
        to_index[:3, 3],
        output_shape=shape,
        output=result,
        order=1 if linear else 0,
        mode="nearest",
    )
    _clear_outside(result, to_index, array.shape)
    return result


def _clear_outside(result: npt.NDArray[Any], to_index: Affine, source_shape: tuple[int, ...]) -> None:
    steps = [to_index[:3, axis, None] * np.arange(result.shape[axis]) for axis in range(3)]
    for x in range(result.shape[0]):
        outside = np.zeros(result.shape[1:], bool)
        for axis, size in enumerate(source_shape):
            place = (to_index[axis, 3] + steps[0][axis, x]) + steps[1][axis][:, None] + steps[2][axis][None, :]
            outside |= _is_outside(place, size)
        result[x][outside] = 0


def _is_outside(place: npt.NDArray[np.float64], size: int) -> npt.NDArray[np.bool_]:
    return np.asarray((place < -0.5 - _BORDER) | (place > size - 0.5 + _BORDER))


def _parallel_axes(to_index: Affine, shape: Shape) -> tuple[int, int, int] | None:
    """For each target axis the source axis that runs along it, or None where axes cross."""
    travel = np.abs(to_index[:3, :3]) * np.asarray(shape, np.float64)
    along = np.argmax(travel, axis=0)
    rest = travel.copy()
    rest[along, range(3)] = 0.0
    if sorted(along.tolist()) != [0, 1, 2] or rest.max() > _PARALLEL:
        return None
    return int(along[0]), int(along[1]), int(along[2])


def _sampled_by_axis(
    array: npt.NDArray[Any], to_index: Affine, shape: Shape, axes: tuple[int, int, int], *, linear: bool
) -> npt.NDArray[Any]:
    """Two neighbours an axis, one axis after the other: some 10 times faster than eight at once."""
    result = array.transpose(axes)
    for axis, source in enumerate(axes):
        size = array.shape[source]
        place = to_index[source, axis] * np.arange(shape[axis]) + to_index[source, 3]
        inside = np.clip(place, 0, size - 1)
        if linear:
            low = np.minimum(inside.astype(np.intp), max(size - 2, 0))
            share = (inside - low).astype(np.float32).reshape([-1 if other == axis else 1 for other in range(3)])
            upper = np.take(result, np.minimum(low + 1, size - 1), axis)
            result = np.take(result, low, axis)
            upper -= result
            upper *= share
            result += upper
        else:
            result = np.take(result, np.floor(inside + 0.5).astype(np.intp), axis)
        np.moveaxis(result, axis, 0)[_is_outside(place, size)] = 0
    return np.ascontiguousarray(result)
