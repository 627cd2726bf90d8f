"""Resampling of a mask that a network drew, for another network to look at: as nnU-Net resamples label maps today.

nnU-Net's function for it is batchgenerators' ``resize_segmentation``, which from version 0.25.5 on takes the label with the
largest share of a voxel, and of several with as much the nearest voxel's. Labels that a network is trained on go through
`resample_labels`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medseg.imaging.geometry import Shape
from medseg.imaging.resampling import resampled_scores

LabelArray = npt.NDArray[np.uint8]
# How near two shares count as equal: float32 noise of one order-1 product per axis.
_TIE = 1e-6
_PLANES = 64  # of shares at a time, over all labels


def resample_mask(mask: LabelArray, shape: Shape, *, separate_axis: int | None = None) -> LabelArray:
    """Class indices (X, Y, Z) uint8 resampled over the same extent, each label's share of a voxel linearly.

    The label with the largest share gets the voxel; of several with as much the one of the nearest old voxel if it is among
    them, else the lowest. A slab at a time, so that a volume of shares per label never exists.

    Args:
        mask: (X, Y, Z) uint8.
        shape: wanted.
        separate_axis: axis along which the nearest slice is taken, as for the image.

    Returns:
        (X, Y, Z) uint8 of ``shape``, C-contiguous, new.
    """
    if mask.shape == tuple(shape):
        return np.array(mask, np.uint8, order="C")
    values = np.flatnonzero(np.bincount(mask.ravel(), minlength=256)).astype(np.uint8)
    place = np.zeros(256, np.intp)
    place[values] = np.arange(len(values))
    picked = (_nearest(old, new) for old, new in zip(mask.shape, shape, strict=True))
    result = np.ascontiguousarray(mask[np.ix_(*picked)])
    start, slab = 0, max(1, _PLANES // len(values))
    for shares in resampled_scores(_Indicators(mask, values), shape, separate_axis=separate_axis, slab=slab):
        planes = result[start : start + shares.shape[1]]
        leading = shares >= shares.max(axis=0) - _TIE
        nearest_leads = np.take_along_axis(leading, place[planes][np.newaxis], axis=0)[0]
        np.copyto(planes, values[leading.argmax(axis=0)], where=~nearest_leads)
        start += shares.shape[1]
    return result


def _nearest(old: int, new: int) -> npt.NDArray[np.intp]:
    # floor((i + 0.5) * old / new) in whole numbers, free of rounding
    return ((2 * np.arange(new) + 1) * old // (2 * new)).astype(np.intp)


@dataclass(frozen=True)
class _Indicator:
    """Where a mask has one value, worked out for the rows that are asked for."""

    mask: LabelArray
    value: int

    def __getitem__(self, rows: slice) -> npt.NDArray[np.bool_]:
        return np.asarray(self.mask[rows] == self.value)


@dataclass(frozen=True)
class _Indicators:
    """The indicators of ``values`` as class scores (K, X, Y, Z)."""

    mask: LabelArray
    values: LabelArray

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.values), *self.mask.shape

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[_Indicator]:
        return (_Indicator(self.mask, int(value)) for value in self.values)
