"""Rotation, scaling and mirroring of an image and its labels in one resampling each.

Every voxel of a patch gathers its neighbours from the box of the scan that the turned patch covers: 8 of them, 4 where one
axis only keeps its place. Positions are reckoned from whole voxel indices, so a sample does not depend on what else lies in
its batch. On a CPU a slab of the patch at a time stays in the cache, which makes it twice as fast as PyTorch's
``grid_sample`` in 3D; on a GPU all samples of a batch are gathered at once, from boxes that lie one after the other in memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Triple = tuple[int, int, int]
_SLAB_VOXELS = 1 << 16  # 256 KiB per float32 array: a slab's arrays stay in a core's cache


@dataclass(frozen=True)
class Box:
    """The part of a scan that a turned patch is sampled from.

    Attributes:
        start_xyz: its first voxel in the scan, may be negative.
        shape_xyz: voxels per axis.
        matrix: (3, 3) takes offsets from the patch's centre to offsets from ``centre_xyz``, in voxels.
        centre_xyz: where the patch's centre lies in the box, in voxels.
        moved: axes along which voxels land between voxels; along the others every voxel meets one exactly.
    """

    start_xyz: Triple
    shape_xyz: Triple
    matrix: npt.NDArray[np.float64]
    centre_xyz: tuple[float, float, float]
    moved: tuple[int, ...]

    @property
    def voxels(self) -> int:
        """How many there are."""
        return math.prod(self.shape_xyz)

    @property
    def strides(self) -> Triple:
        """Distance in memory of neighbours along each axis, in C order."""
        return self.shape_xyz[1] * self.shape_xyz[2], self.shape_xyz[2], 1


def box_around(matrix: npt.NDArray[np.float64], start_xyz: Triple, size_xyz: Triple) -> Box:
    """The box that the patch at ``start_xyz`` of ``size_xyz`` voxels covers when ``matrix`` turns it about its centre.

    Args:
        matrix: (3, 3) from patch offsets to scan offsets, in voxels.
        start_xyz: the patch's first voxel, may be negative.
        size_xyz: the patch's voxels per axis.
    """
    unit = np.eye(3)
    moved = tuple(
        axis
        for axis in range(3)
        if not (np.array_equal(abs(matrix[axis]), unit[axis]) and np.array_equal(abs(matrix[:, axis]), unit[axis]))
    )
    half = (np.asarray(size_xyz) - 1) / 2
    reach = np.abs(matrix) @ half
    centre = np.asarray(start_xyz) + half
    # One voxel more before and two behind: rounding may carry a voxel over a border, and each asks for its next neighbour.
    room = np.array([int(axis in moved) for axis in range(3)])
    first = np.floor(centre - reach + 1e-6 * (1 - room)).astype(int) - room
    last = np.ceil(centre + reach - 1e-6 * (1 - room)).astype(int) + 2 * room
    return Box(_triple(first), _triple(last - first + 1), matrix, _floats(centre - first), moved)


def _triple(values: npt.NDArray[np.integer]) -> Triple:
    return int(values[0]), int(values[1]), int(values[2])


def _floats(values: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    return float(values[0]), float(values[1]), float(values[2])


def resample_box(box: Box, image: Tensor, labels: Tensor, *, out_image: Tensor, out_labels: Tensor) -> None:
    """Samples one patch on a CPU: the image trilinearly, the labels by the largest trilinear share of the 8 neighbours.

    Of labels with the same share the lowest index wins. 255 (unlabelled) takes part like a class.

    Args:
        box: where the patch lies.
        image: (C, *box.shape_xyz) float32, C-contiguous.
        labels: (*box.shape_xyz) uint8, C-contiguous.
        out_image: (C, X, Y, Z) float32, written.
        out_labels: (X, Y, Z) uint8, written; both C-contiguous.
    """
    size = _triple_of(out_labels)
    flat_labels = labels.reshape(-1)
    lowest, highest = _cell_range(flat_labels, [box.strides[axis] for axis in box.moved])
    for first, last in _slabs(size):
        points = _points(box, size, first, last)
        for channel, target in zip(image, out_image, strict=True):
            target[first:last].view(-1).copy_(interpolated(channel.reshape(-1), points))
        result = out_labels[first:last].view(-1)
        torch.index_select(lowest, 0, points.base, out=result)
        # Only voxels whose neighbours differ need their shares; they are few.
        where = (result != highest.index_select(0, points.base)).nonzero().view(-1)
        if len(where):
            result[where] = _shared(flat_labels, points.at(where), result[where])


def _cell_range(flat: Tensor, steps: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The lowest and the highest label of the 8 (4, 2) neighbours that begin at each voxel."""
    lowest = highest = flat
    for step in reversed(steps):
        lowest = torch.minimum(lowest[:-step], lowest[step:])
        highest = torch.maximum(highest[:-step], highest[step:])
    return lowest, highest


def _shared(flat: Tensor, points: Points, lowest: Tensor) -> Tensor:
    """As `vote`, faster where a voxel's neighbours have two labels only; ``lowest`` is the lowest of them."""
    corners = _corners(flat, points)
    is_low = corners == lowest
    share = is_low.float()
    for weight in points.shares:
        near, far = share.chunk(2)
        share = torch.lerp(near, far, weight)
    highest = corners.amax(dim=0)
    result = torch.where(share[0] >= 0.5, lowest, highest)
    several = (~(is_low | (corners == highest)).all(dim=0)).nonzero().view(-1)
    if len(several):
        result[several] = vote(flat, points.at(several))
    return result


def _corners(flat: Tensor, points: Points) -> Tensor:
    """(2^d, N) labels of the neighbours; the first half lies lower along the first moved axis, and so on."""
    offsets: list[int | Tensor] = [0]
    for step in points.steps:
        offsets = [offset + further for offset in offsets for further in (0, step)]
    return torch.stack([_gathered(flat, points.base, offset) for offset in offsets])


def _triple_of(labels: Tensor) -> Triple:
    x, y, z = labels.shape
    return x, y, z


def _slabs(size: Triple) -> Iterator[tuple[int, int]]:
    thickness = max(1, _SLAB_VOXELS // (size[1] * size[2]))
    return ((first, min(first + thickness, size[0])) for first in range(0, size[0], thickness))


class Points(NamedTuple):
    """Where voxels of a patch lie in their box.

    Attributes:
        base: int64 index in memory of the lowest of a voxel's neighbours.
        shares: one per moved axis: how far the voxel lies towards the next neighbour, in [0, 1).
        steps: one per moved axis: distance to that neighbour in memory; tensors where boxes differ.
    """

    base: Tensor
    shares: tuple[Tensor, ...]
    steps: tuple[int | Tensor, ...]

    def at(self, where: Tensor | slice) -> Points:
        """Some of them."""
        return Points(self.base[where], tuple(share[where] for share in self.shares), self.steps)


def _points(box: Box, size: Triple, first: int, last: int) -> Points:
    offsets = [torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in size]
    offsets[0] = offsets[0][first:last]
    base = torch.zeros((last - first, *size[1:]), dtype=torch.int32)
    shares = []
    for axis, (row, centre, stride) in enumerate(zip(box.matrix.tolist(), box.centre_xyz, box.strides, strict=True)):
        if axis not in box.moved:  # each voxel of the patch meets one of the box, whatever its other coordinates
            whole = (offsets[axis] * row[axis] + centre).round().to(torch.int32).mul_(stride)
            base += whole.view([-1 if other == axis else 1 for other in range(3)])
            continue
        x, y, z = (o * m for o, m in zip(offsets, row, strict=True))
        position = (x + centre)[:, None, None] + (y[:, None] + z)
        floor = position.floor()
        shares.append(position.sub_(floor).view(-1))
        base.add_(floor.to(torch.int32), alpha=stride)
    steps = tuple(box.strides[axis] for axis in box.moved)
    return Points(base.view(-1).long(), tuple(shares), steps)


def interpolated(values: Tensor, points: Points) -> Tensor:
    """The trilinear mean of each point's neighbours in ``values``, which is flat."""
    return _interpolated(values, points, 0, 0)


def _interpolated(values: Tensor, points: Points, axis: int, offset: int | Tensor) -> Tensor:
    if axis == len(points.steps):
        return _gathered(values, points.base, offset)
    near = _interpolated(values, points, axis + 1, offset)
    far = _interpolated(values, points, axis + 1, offset + points.steps[axis])
    return torch.lerp(near, far, points.shares[axis], out=near)


def _gathered(values: Tensor, base: Tensor, offset: int | Tensor) -> Tensor:
    if isinstance(offset, int):  # shifting the view costs nothing
        return values[offset:].index_select(0, base)
    return values.index_select(0, base + offset)


def vote(flat: Tensor, points: Points) -> Tensor:
    """The label with the largest share in each point; the lowest of equals."""
    labels = _corners(flat, points)
    weights = torch.ones_like(points.shares[0])[None]
    for share in points.shares:
        weights = torch.stack((weights * (1 - share), weights * share), dim=1).flatten(0, 1)
    scores = torch.zeros_like(weights)
    for label, weight in zip(labels, weights, strict=True):
        scores += (labels == label) * weight
    return labels.masked_fill_(scores < scores.amax(dim=0), 255).amin(dim=0)
