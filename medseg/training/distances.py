"""Exact Euclidean distances to the surface of masks, as tensors on the training device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def signed_distances(masks: Tensor, spacing: Sequence[float]) -> Tensor:
    """Distance of each voxel to the nearest one across the mask's surface: positive outside, negative inside.

    As Kervadec et al.'s: outside d, inside -(d - s) with s the smallest voxel side, so that the innermost layer is 0.

    Args:
        masks: (B, R, ...) bool.
        spacing: voxel size per spatial axis.

    Returns:
        (B, R, ...) float32 in the unit of ``spacing``; 0 everywhere for a mask that is empty or full.
    """
    axes = tuple(range(2, masks.ndim))
    outside, inside = _distances(masks, spacing), _distances(~masks, spacing)
    signed = torch.where(masks, -(inside - min(spacing)), outside)
    has_surface = masks.any(dim=axes, keepdim=True) if not axes else _any(masks, axes) & _any(~masks, axes)
    return torch.where(has_surface, signed, 0)


def _any(masks: Tensor, axes: Sequence[int]) -> Tensor:
    return masks.sum(dim=tuple(axes), keepdim=True) > 0


def _distances(masks: Tensor, spacing: Sequence[float]) -> Tensor:
    """To the nearest voxel of the mask; separable: the least of f(j) + (i - j)^2 along one axis after the other."""
    # Larger than any distance in the array, small enough that squares stay exact to 1e-7.
    far = float(sum((size * step) ** 2 for size, step in zip(masks.shape[2:], spacing, strict=True)) * 4)
    squares = torch.where(masks, 0.0, far)
    for axis, step in enumerate(spacing, start=2):
        size = squares.shape[axis]
        nearest = squares.clone()
        for shift in range(1, size):
            add = (shift * step) ** 2
            low, high = squares.narrow(axis, 0, size - shift), squares.narrow(axis, shift, size - shift)
            upper, lower = nearest.narrow(axis, shift, size - shift), nearest.narrow(axis, 0, size - shift)
            torch.minimum(upper, low + add, out=upper)
            torch.minimum(lower, high + add, out=lower)
        squares = nearest
    return squares.sqrt()
