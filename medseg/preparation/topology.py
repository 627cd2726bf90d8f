"""How deep a U-Net goes on a given patch and what it costs: nnU-Net's rules as plain arithmetic.

All functions are generic in the number of axes and take them in any order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_SHORTEST_EDGE = 4
"""Voxels per axis that the deepest feature map keeps at least."""


@dataclass(frozen=True)
class Topology:
    """Strides and kernels per stage and axis (the first stage has stride 1), and the patch they fit."""

    strides: tuple[tuple[int, ...], ...]
    kernel_sizes: tuple[tuple[int, ...], ...]
    patch_size: tuple[int, ...]

    @property
    def divisors(self) -> tuple[int, ...]:
        """Per axis, the number that a patch must be a multiple of."""
        return tuple(math.prod(stage[axis] for stage in self.strides) for axis in range(len(self.patch_size)))


def plan_topology(*, spacing_mm: Sequence[float], patch_size: Sequence[float], keep_patch: bool = False) -> Topology:
    """Halves axes as long as they are long and fine enough.

    In each stage the axes with at least 8 voxels left and a voxel size under twice the smallest of theirs are halved; an axis
    that is alone needs 12 voxels. A kernel is 1 along an axis until its voxels are under twice the finest axis' and 3 from
    then on; the deepest stage has 3 everywhere.

    Args:
        spacing_mm: voxel size per axis.
        patch_size: wished voxels per axis; may be fractions (a median).
        keep_patch: halve an axis only while it divides evenly, so that the patch stays what it is; otherwise the patch is
            rounded up to the next size that divides.

    Returns:
        The topology with its patch.
    """
    axes = range(len(spacing_mm))
    spacing, size = [float(v) for v in spacing_mm], [float(v) for v in patch_size]
    kernel = [1 for _ in axes]
    strides: list[tuple[int, ...]] = [tuple(1 for _ in axes)]
    kernels: list[tuple[int, ...]] = []
    while halved := _axes_to_halve(spacing, size, keep_patch):
        kernel = [3 if k == 3 or spacing[a] / min(spacing) < 2 else 1 for a, k in enumerate(kernel)]
        kernels.append(tuple(kernel))
        strides.append(tuple(2 if a in halved else 1 for a in axes))
        for a in halved:
            spacing[a] *= 2
            size[a] = math.ceil(size[a] / 2)
    kernels.append(tuple(3 for _ in axes))
    divisors = [math.prod(stage[a] for stage in strides) for a in axes]
    fitted = tuple(int(math.ceil(p / d) * d) for p, d in zip(patch_size, divisors, strict=True))
    return Topology(tuple(strides), tuple(kernels), fitted)


def _axes_to_halve(spacing: Sequence[float], size: Sequence[float], keep_patch: bool) -> list[int]:
    long_enough = [a for a, n in enumerate(size) if n >= 2 * _SHORTEST_EDGE and not (keep_patch and n % 2)]
    if not long_enough:
        return []
    finest = min(spacing[a] for a in long_enough)
    halved = [a for a in long_enough if spacing[a] / finest < 2]
    if len(halved) == 1 and size[halved[0]] < 3 * _SHORTEST_EDGE:
        return []
    return halved


def feature_map_values(
    *,
    topology: Topology,
    features: Sequence[int],
    classes: int,
    convolutions: Sequence[int],
    decoder_convolutions: Sequence[int],
    residual: bool = False,
) -> int:
    """Values that one forward pass of a U-Net keeps for one patch: nnU-Net's measure of memory.

    Counts the output of every convolution and transposed convolution and the scores at full size
    (``compute_conv_feature_map_size`` of dynamic-network-architectures 0.4).

    Args:
        topology: strides and patch.
        features: channels per stage.
        classes: scores per voxel.
        convolutions: per encoder stage, or residual blocks where ``residual``.
        decoder_convolutions: per decoder stage, the deepest first.
        residual: a stem at full size, two convolutions per block, and a third on the skip path where a block changes
            channels or size.
    """
    voxels, size = [], list(topology.patch_size)
    total = features[0] * math.prod(size) if residual else 0
    before = features[0]
    for stride, width, count in zip(topology.strides, features, convolutions, strict=True):
        skip = width != before or any(s > 1 for s in stride)
        size = [n // s for n, s in zip(size, stride, strict=True)]
        voxels.append(math.prod(size))
        total += width * voxels[-1] * (2 * count + skip if residual else count)
        before = width
    for width, space, count in zip(features[:-1], voxels[:-1], decoder_convolutions[::-1], strict=True):
        total += (count + 1) * width * space
    return total + classes * voxels[0]
