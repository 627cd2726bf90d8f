"""The same resampling as `affine.resample_box` for all turned patches of a batch at once, on a GPU.

The boxes differ in shape, so they lie one after the other in one stretch of memory and every voxel reckons its own index.
Nothing waits for the device: which voxels lie at a border of labels is not asked, all of them are voted on.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medseg.augmentation.affine import Box, Points, interpolated, vote

_CHUNK_VOXELS = 1 << 21  # per pass: the vote holds 8 labels, weights and scores for each of them


@dataclass(frozen=True)
class Turned:
    """Patch ``row`` of a batch, with the ``image`` (C, *box) and ``labels`` (*box) of the box it is sampled from."""

    row: int
    box: Box
    image: npt.NDArray[np.float32]
    labels: npt.NDArray[np.uint8]


def resample_boxes(turned: Sequence[Turned], images: Tensor, classes: Tensor) -> None:
    """Writes the turned patches into ``images`` (B, C, X, Y, Z) and ``classes`` (B, X, Y, Z), on their device."""
    count = max(1, _CHUNK_VOXELS // classes[0].numel())
    for first in range(0, len(turned), count):
        _resample_chunk(turned[first : first + count], images, classes)


def _resample_chunk(turned: Sequence[Turned], images: Tensor, classes: Tensor) -> None:
    device, size = images.device, classes.shape[1:]
    rows = _sent(torch.tensor([one.row for one in turned]), device)
    starts = [0, *itertools.accumulate(one.box.voxels for one in turned)]
    labels = _sent(_joined([one.labels.reshape(-1) for one in turned], torch.uint8), device)
    points = _points([one.box for one in turned], starts[:-1], (size[0], size[1], size[2]), device)
    classes.index_copy_(0, rows, vote(labels, points).view(len(turned), *size))
    for channel in range(images.shape[1]):
        values = _sent(_joined([one.image[channel].reshape(-1) for one in turned], torch.float32), device)
        result = interpolated(values, points).view(len(turned), *size)
        images[:, channel].index_copy_(0, rows, result)


def _joined(parts: Sequence[npt.NDArray[np.generic]], dtype: torch.dtype) -> Tensor:
    total = sum(part.size for part in parts)
    result = torch.empty(total, dtype=dtype, pin_memory=torch.cuda.is_available())
    np.concatenate(parts, out=result.numpy())
    return result


def _sent(values: Tensor, device: torch.device) -> Tensor:
    if device.type == "cpu":
        return values
    return (values if values.is_pinned() else values.pin_memory()).to(device, non_blocking=True)


def _points(boxes: Sequence[Box], starts: Sequence[int], size: tuple[int, int, int], device: torch.device) -> Points:
    numbers = torch.tensor([[*box.matrix.ravel().tolist(), *box.centre_xyz] for box in boxes], dtype=torch.float32)
    numbers = _sent(numbers, device)[:, :, None, None, None]
    whole = _sent(torch.tensor([[start, *box.strides] for box, start in zip(boxes, starts, strict=True)]), device)
    moved = sorted({axis for box in boxes for axis in box.moved})
    # A box has no room along an axis it keeps: there the neighbour is the voxel itself.
    steps = [[box.strides[axis] if axis in box.moved else 0 for axis in moved] for box in boxes]
    offsets = [torch.arange(n, dtype=torch.float32, device=device) - (n - 1) / 2 for n in size]
    x, y, z = offsets[0][:, None, None], offsets[1][:, None], offsets[2]
    base = whole[:, 0, None, None, None].expand(len(boxes), *size).clone()
    shares = []
    for axis in range(3):
        matrix = numbers[:, 3 * axis : 3 * axis + 3].unbind(1)
        position = (x * matrix[0] + numbers[:, 9 + axis]) + (y * matrix[1] + z * matrix[2])
        floor = position.floor()
        if axis in moved:
            shares.append(position.sub_(floor).view(-1))
        base += floor.long() * whole[:, 1 + axis, None, None, None]
    voxels = size[0] * size[1] * size[2]
    each = _sent(torch.tensor(steps), device).repeat_interleave(voxels, dim=0, output_size=len(boxes) * voxels)
    return Points(base.view(-1), tuple(shares), tuple(each.unbind(1)))
