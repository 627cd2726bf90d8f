"""A scan before nnU-Net's network, in its arithmetic and layout: normalised, resampled; and label maps likewise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medseg.errors import GeometryError, ScanError
from medseg.imaging import AxisChange, Volume, apply_axes
from medseg.inference.sliding_window import FloatArray
from medseg.preparation.case import axis_change, nonzero_box, prepared_grid
from medseg.preparation.grid import Grid, Shape
from medseg.preparation.normalisation import normalise
from medseg.preparation.plan import ChannelPlan, Plan

DoubleArray = npt.NDArray[np.float64]
ClassArray = npt.NDArray[np.uint8]
Order = tuple[int, int, int]
"""Which of our axes (0 = x) is the first, second and third of nnU-Net's arrays."""

_SMALLEST_STD = 1e-8


def to_nnunet(array: npt.NDArray[Any], order: Order) -> npt.NDArray[Any]:
    """(C, x, y, z) to nnU-Net's layout, contiguous; no copy where it is a view of that."""
    return np.ascontiguousarray(array.transpose(0, *(1 + axis for axis in order)))


def from_nnunet(array: npt.NDArray[Any], order: Order) -> npt.NDArray[Any]:
    """nnU-Net's layout (C, ...) as a view (C, X, Y, Z)."""
    return array.transpose(0, *(1 + order.index(axis) for axis in range(3)))


def turned_back(classes: ClassArray, order: Order) -> ClassArray:
    """Class indices in nnU-Net's layout as a view (X, Y, Z)."""
    return classes.transpose(*(order.index(axis) for axis in range(3)))


def shape_in(shape_xyz: Sequence[int], order: Order) -> Shape:
    """An (x, y, z) size in nnU-Net's order."""
    first, second, third = (shape_xyz[axis] for axis in order)
    return first, second, third


def separate_in(axis: int | None, order: Order) -> int | None:
    """The axis that is resampled apart, of ours, as one of nnU-Net's."""
    return None if axis is None else order.index(axis)


def prepare_as_nnunet(volume: Volume, plan: Plan, order: Order) -> tuple[FloatArray, Grid]:
    """`prepare_image` in nnU-Net's arithmetic.

    Args:
        volume: (C, X, Y, Z), as read; it is left as it is.
        plan: with one channel plan per channel.
        order: which of our axes is the first, second and third of nnU-Net's arrays.

    Returns:
        (C, X, Y, Z) float32 on the prepared grid, a view of nnU-Net's layout, and the grid.

    Raises:
        ScanError: the scan has another number of channels than the plan.
        GeometryError: the plan is for pictures and the scan has several slices.
    """
    if volume.array.shape[0] != len(plan.channels):
        raise ScanError(f"scan: has {volume.array.shape[0]} channels, expected {len(plan.channels)}")
    if plan.of_pictures and volume.shape[2] != 1:
        raise GeometryError(f"scan: has {volume.shape[2]} slices, expected 1; this plan is for pictures")
    change = axis_change(volume.affine, orientation=plan.orientation, picture=plan.of_pictures)
    turned = apply_axes(volume.array, change)
    start, stop = nonzero_box(turned)
    grid = prepared_grid(volume.shape, volume.affine, change, (start, stop), plan)
    # Sums in float32 depend on the layout: (c, z, y, x) in memory, then transposed and cropped without a copy.
    data = np.array(turned.transpose(0, 3, 2, 1), np.float32, order="C")
    data = data.transpose(0, *(3 - axis for axis in order))
    data = data[(slice(None), *(slice(start[axis], stop[axis]) for axis in order))]
    _normalise(data, plan.channels)
    shape = shape_in(grid.prepared_shape, order)
    if data.shape[1:] != shape:
        separate = separate_in(grid.separate_axis, order)
        data = np.stack([resized(channel, shape, 3, separate).astype(np.float32) for channel in data])
    return from_nnunet(np.ascontiguousarray(data), order), grid


def nonzero_mask(volume: Volume, grid: Grid, order: Order) -> npt.NDArray[np.bool_]:
    """Where the scan's crop is not 0 in any channel, holes filled: bool in nnU-Net's layout."""
    turned = apply_axes(volume.array, AxisChange(grid.permutation, grid.flips))
    cropped = turned[(slice(None), *map(slice, grid.crop_start, grid.crop_stop))]
    filled: npt.NDArray[np.bool_] = ndimage.binary_fill_holes((to_nnunet(cropped, order) != 0).any(axis=0))
    return filled


def _normalise(data: FloatArray, channels: Sequence[ChannelPlan]) -> None:
    masked = any(channel.use_mask for channel in channels)
    mask = ndimage.binary_fill_holes((data != 0).any(axis=0)) if masked else None
    for values, channel in zip(data, channels, strict=True):
        if channel.scheme == "zscore":
            _standardise(values, mask if channel.use_mask else None)
        else:
            normalise(values[None], (channel,), mask)


def _standardise(values: FloatArray, mask: npt.NDArray[np.bool_] | None) -> None:
    if mask is None:
        mean, std = values.mean(), values.std()
        values -= mean
        values /= max(std, _SMALLEST_STD)
    else:
        chosen = values[mask]
        values[mask] = (chosen - chosen.mean()) / max(chosen.std(), _SMALLEST_STD)


def resized(channel: npt.NDArray[Any], shape: Shape, order: Literal[1, 3], separate: int | None) -> DoubleArray:
    """skimage.transform.resize(mode="edge", anti_aliasing=False) in float64; slice by slice where an axis is apart."""
    values = channel.astype(np.float64)
    if separate is None:
        return _zoomed(values, shape, order)
    plane = [size for axis, size in enumerate(shape) if axis != separate]
    slices = np.stack([_zoomed(one, plane, order) for one in np.moveaxis(values, separate, 0)])
    return np.moveaxis(_picked(slices, shape[separate]), 0, separate)


def _picked(slices: npt.NDArray[Any], new: int) -> npt.NDArray[Any]:
    """The nearest of the slices along the first axis, as map_coordinates of order 0 finds it: floor(coordinate + 1/2)."""
    old = len(slices)
    if old == new:
        return slices
    nearest = np.floor((old / new * (np.arange(new) + 0.5) - 0.5) + 0.5).astype(np.intp)
    picked: npt.NDArray[Any] = np.take(slices, np.clip(nearest, 0, old - 1), axis=0)
    return picked


def resized_labels(labels: npt.NDArray[np.int16], shape: Shape, separate: int | None) -> npt.NDArray[np.int16]:
    """As resize_segmentation of batchgenerators 0.25.5, order 1; slice by slice where an axis is apart."""
    if separate is None:
        return _zoomed_labels(labels, shape)
    plane = [size for axis, size in enumerate(shape) if axis != separate]
    slices = np.stack([_zoomed_labels(one, plane) for one in np.moveaxis(labels, separate, 0)])
    return np.moveaxis(_picked(slices, shape[separate]), 0, separate)


def _zoomed_labels(labels: npt.NDArray[np.int16], shape: Sequence[int]) -> npt.NDArray[np.int16]:
    """The label with most of a voxel; of several with as much the nearest voxel's if it is one of them, else the lowest."""
    values = np.unique(labels)
    nearest = np.round(_zoomed(labels.astype(np.float64), shape, 0)).astype(np.int16)
    best = np.full(tuple(shape), -np.inf)
    winner = np.zeros(tuple(shape), np.int16)
    nearest_leads = np.zeros(tuple(shape), bool)
    for value in values:
        share = _zoomed((labels == value).astype(np.float64), shape, 1)
        here = nearest == value
        nearest_leads |= (share == best) & here & (share > 0)
        better = share > best
        nearest_leads[better] = (here & (share > 0))[better]
        winner[better] = value
        np.maximum(best, share, out=best)
    return np.where(nearest_leads, nearest, winner)


def _zoomed(values: DoubleArray, shape: Sequence[int], order: Literal[0, 1, 3]) -> DoubleArray:
    factors = [1 / float(factor) for factor in np.divide(values.shape, tuple(shape))]
    result: DoubleArray = ndimage.zoom(values, factors, order=order, mode="nearest", cval=0, grid_mode=True)
    np.clip(result, values.min(), values.max(), out=result)
    return result
