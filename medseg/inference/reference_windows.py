"""nnU-Net's sliding window, operation for operation: one window at a time, mirror copies after each other, fp16 sums."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np
import torch
from scipy import ndimage

from medseg.errors import ScanError
from medseg.inference.model import Model
from medseg.inference.reference_scan import Order, shape_in
from medseg.networks.windows import mirror_combinations, window_starts
from medseg.preparation.grid import Shape

_PEAK = 10


class WindowNetwork:
    """One window through the network with its mirror copies, in nnU-Net's layout.

    Args:
        model: its network is made ready.
        order: of axes in that layout.
        device: where the network is.
        mirrors: axes of the layout to mirror.
    """

    def __init__(self, model: Model, order: Order, device: torch.device, mirrors: Sequence[int]) -> None:
        self.network, self.device = model.ready(), device
        self.patch = shape_in(model.plan.patch_size_xyz, order)
        self.flat = model.plan.slice_axis is not None
        axes = order[1:] if self.flat else order
        ranks = sorted(axes)
        seen = [ranks.index(axis) for axis in axes]
        self._ours = [0, 1, *(2 + seen.index(n) for n in range(len(seen)))]
        self._theirs = [0, 1, *(2 + n for n in seen)]
        self._mirrors = [
            tuple(2 + axis - self.flat for axis in axes)
            for axes in mirror_combinations(_without_slices(mirrors, self.flat))
        ]

    def answer(self, x: torch.Tensor) -> torch.Tensor:
        """(1, C, window) to the mean (1, K, window) of all mirror copies; in 2D a window has two axes."""
        total = self._through(x)
        for axes in self._mirrors[1:]:
            total += torch.flip(self._through(torch.flip(x, axes)), axes)
        if len(self._mirrors) > 1:
            total /= len(self._mirrors)
        return total

    def _through(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cuda", enabled=self.device.type == "cuda"):
            return cast(torch.Tensor, self.network(x.permute(self._ours))).permute(self._theirs)


def _without_slices(mirrors: Sequence[int], flat: bool) -> list[int]:
    return [axis for axis in mirrors if not (flat and axis == 0)]


@torch.inference_mode()
def blended(data: torch.Tensor, window: WindowNetwork, overlap: float, place: torch.device) -> torch.Tensor:
    """(K, ...) float16 on the CPU: scores of the whole array (C, ...) in nnU-Net's layout, summed where ``place`` says."""
    padded, inner = _padded(data.to(place), window.patch)
    gaussian = _gaussian(window.patch[1:] if window.flat else window.patch).to(place)
    total: torch.Tensor | None = None
    weights = torch.zeros(padded.shape[1:], dtype=torch.half, device=place)
    for where in _places(padded.shape[1:], window.patch, overlap, flat=window.flat):
        x = torch.clone(padded[(slice(None), *where)][None], memory_format=torch.contiguous_format)
        answer = window.answer(x.to(window.device))[0].to(place)
        if total is None:
            total = torch.zeros((answer.shape[0], *padded.shape[1:]), dtype=torch.half, device=place)
        answer *= gaussian
        total[(slice(None), *where)] += answer
        weights[where] += gaussian
    assert total is not None
    torch.div(total, weights, out=total)
    if torch.any(torch.isinf(total)):
        raise ScanError("scan: its scores exceed fp16's range, as they would in nnU-Net; set infer.accumulate=fp32")
    return total[(slice(None), *inner)].cpu()


def _padded(data: torch.Tensor, patch: Shape) -> tuple[torch.Tensor, tuple[slice, ...]]:
    """The array with zeros around it up to the patch, centred, the odd voxel behind; and where it lies therein."""
    lacks = [max(0, wanted - size) for wanted, size in zip(patch, data.shape[1:], strict=True)]
    sides = [n for lack in reversed(lacks) for n in (lack // 2, lack - lack // 2)]
    inner = tuple(slice(lack // 2, lack // 2 + size) for lack, size in zip(lacks, data.shape[1:], strict=True))
    return torch.nn.functional.pad(data, sides), inner


def _places(shape: Sequence[int], patch: Shape, overlap: float, *, flat: bool) -> Iterator[tuple[slice | int, ...]]:
    starts = [window_starts(size, own, overlap) for size, own in zip(shape, patch, strict=True)]
    for first, *rest in itertools.product(*starts):
        windows = [slice(start, start + size) for start, size in zip(rest, patch[1:], strict=True)]
        yield (first if flat else slice(first, first + patch[0]), *windows)


def _gaussian(patch: Sequence[int]) -> torch.Tensor:
    """The weight of each voxel of a window, float16: SD an eighth of the window, peak 10, no zeros."""
    weights = np.zeros(tuple(patch))
    weights[tuple(size // 2 for size in patch)] = 1
    weights = ndimage.gaussian_filter(weights, [size / 8 for size in patch], 0, mode="constant", cval=0)
    weights /= weights.max() / _PEAK
    half = torch.from_numpy(weights).to(torch.float16)
    half[half == 0] = half[half != 0].min()
    return half
