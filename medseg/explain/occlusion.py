"""Occlusion: how much a region's probability falls when a box somewhere in the scan shows nothing.

Zeiler and Fergus, ECCV 2014. MONAI's `OcclusionSensitivity` is the same for a classifier and one window (a test compares
them); here a box may lie in several windows whose answers are blended before the probability is taken, each channel has a
filling of its own, and the slices of a stack belong together.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from medseg.explain.windows import Box, FloatArray, View, Views
from medseg.networks.quick_norms import quick_norms

_Job = tuple[Box, int, bool]
"""A box, the number of a view that holds a part of it, and whether it is the last such view."""

_MOST_VOXELS = 1 << 15
"""Voxels of a region that its probability is taken at, spread evenly: of a liver's million, so many tell the mean."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Seen:
    """The voxels of the region in a view: their numbers among all, and where they are in the window."""

    view: View
    numbers: npt.NDArray[np.intp]
    places: tuple[Tensor, Tensor, Tensor]
    shares: Tensor


def box_starts(low: int, high: int, size: int, stride: int) -> range:
    """First voxels of boxes along an axis: every ``stride`` from ``low - (size - stride) // 2`` on, so that edges count too."""
    return range(low - (size - min(stride, size)) // 2, high, stride)


def occlusion(
    views: Views,
    network: nn.Module,
    *,
    channel: int,
    overlapping: bool,
    box_xyz: Sequence[int],
    stride_xyz: Sequence[int],
    fill: Sequence[float],
    batch_size: int,
) -> tuple[FloatArray, float]:
    """The occlusion map of a region.

    Args:
        views: of the region.
        network: in eval mode, on the device of the views.
        channel: the class' place in the network's answer.
        overlapping: whether classes overlap (sigmoid) or not (softmax).
        box_xyz: voxels of a box per axis.
        stride_xyz: voxels from one box to the next, per axis.
        fill: what a box shows, one value per channel.
        batch_size: windows per forward pass.

    Returns:
        (X, Y, Z) float32: by how much the region's mean probability falls, -1 to 1 (below 0 it rises), as the mean over the
        boxes that cover a voxel; 0 where no box is that the region's windows see. And the probability with nothing covered.
    """
    seen = _seen(views)
    run = _Run(views, network, seen, channel=channel, overlapping=overlapping)
    total, count = np.zeros((2, *views.image.shape[1:]), np.float32)
    filling = torch.tensor(list(fill), dtype=torch.float32, device=views.image.device)[:, None, None, None]
    with torch.inference_mode(), quick_norms(network):
        whole, plain = run.whole(batch_size)
        for box, logits in run.covered(_boxes(views, box_xyz, stride_xyz), plain, whole, filling, batch_size):
            total[box] += run.probability(whole) - run.probability(logits)
            count[box] += 1
    return (total / np.maximum(count, 1))[views.cut], run.probability(whole)


def box_count(views: Views, box_xyz: Sequence[int], stride_xyz: Sequence[int]) -> int:
    """How many boxes `occlusion` will cover; each takes a forward pass per window that holds it."""
    return sum(1 for _ in _boxes(views, box_xyz, stride_xyz))


def _boxes(views: Views, box_xyz: Sequence[int], stride_xyz: Sequence[int]) -> Iterator[Box]:
    """Boxes within the scan that a view holds a part of."""
    axes = []
    for axis in range(3):
        low = max(views.cut[axis].start, min(view.where[axis].start for view in views.views))
        high = min(views.cut[axis].stop, max(view.where[axis].stop for view in views.views))
        starts = box_starts(low, high, box_xyz[axis], stride_xyz[axis])
        axes.append([slice(max(start, low), min(start + box_xyz[axis], high)) for start in starts])
    for x, y, z in itertools.product(*axes):
        if any(_common(view.where, (x, y, z)) is not None for view in views.views):
            yield x, y, z


def _common(window: Box, box: Box) -> Box | None:
    """The box's part of a window, in the window's own voxels."""
    found = [
        slice(max(own.start, other.start) - own.start, min(own.stop, other.stop) - own.start)
        for own, other in zip(window, box, strict=True)
    ]
    return (found[0], found[1], found[2]) if all(part.start < part.stop for part in found) else None


def _seen(views: Views) -> list[_Seen]:
    where = np.zeros(views.image.shape[1:], bool)
    for view in views.views:
        where[view.where] |= view.region
    chosen = np.flatnonzero(where)[:: -(-views.voxels // _MOST_VOXELS)]
    numbers = np.full(where.size, -1, np.intp)
    numbers[chosen] = np.arange(len(chosen))
    numbers = numbers.reshape(where.shape)
    found = []
    for view in views.views:
        own = numbers[view.where]
        x, y, z = np.nonzero(own >= 0)
        device = views.image.device
        places = (torch.from_numpy(x).to(device), torch.from_numpy(y).to(device), torch.from_numpy(z).to(device))
        shares = torch.from_numpy(view.share[x, y, z]).to(device)
        found.append(_Seen(view=view, numbers=own[x, y, z], places=places, shares=shares))
    return found


class _Run:
    """The logits of a region's voxels, from windows."""

    def __init__(
        self, views: Views, network: nn.Module, seen: Sequence[_Seen], *, channel: int, overlapping: bool
    ) -> None:
        self._views, self._network, self._seen = views, network, seen
        self._channel = channel
        self._activate: Callable[[Tensor], Tensor] = torch.sigmoid if overlapping else lambda t: torch.softmax(t, 0)
        self._voxels = 1 + max(int(one.numbers.max(initial=-1)) for one in seen)

    def probability(self, logits: Tensor) -> float:
        """Mean over the voxels of the class' probability, of logits (K, voxels)."""
        return float(self._activate(logits)[self._channel].mean())

    def whole(self, batch_size: int) -> tuple[Tensor, list[Tensor]]:
        """(blended logits (K, voxels) with nothing covered, each view's own)."""
        nowhere = (slice(0), slice(0), slice(0))
        jobs = (((nowhere, number, True), self._window(one)) for number, one in enumerate(self._seen))
        plain = [logits for _, logits in self._answers(jobs, batch_size)]
        total = torch.zeros((len(plain[0]), self._voxels), device=plain[0].device)
        for one, logits in zip(self._seen, plain, strict=True):
            total[:, one.numbers] += logits
        return total, plain

    def covered(
        self, boxes: Iterator[Box], plain: Sequence[Tensor], whole: Tensor, filling: Tensor, batch_size: int
    ) -> Iterator[tuple[Box, Tensor]]:
        """Each box with the blended logits that are left when it is covered."""

        def jobs() -> Iterator[tuple[_Job, Tensor]]:
            for box in boxes:
                touched = [
                    (number, part)
                    for number, one in enumerate(self._seen)
                    if (part := _common(one.view.where, box)) is not None
                ]
                for number, part in touched:
                    window = self._window(self._seen[number]).clone()
                    window[(slice(None), *part)] = filling
                    yield (box, number, number == touched[-1][0]), window

        current = whole.clone()
        for (box, number, last), logits in self._answers(jobs(), batch_size):
            current[:, self._seen[number].numbers] += logits - plain[number]
            if last:
                yield box, current
                current = whole.clone()

    def _window(self, one: _Seen) -> Tensor:
        return self._views.image[(slice(None), *one.view.where)]

    def _answers(self, jobs: Iterator[tuple[_Job, Tensor]], size: int) -> Iterator[tuple[_Job, Tensor]]:
        """Each window's logits (K, voxels of the region in it), times their shares."""
        while batch := list(itertools.islice(jobs, size)):
            answer = self._views.outputs(self._network(self._views.inputs(window for _, window in batch))).float()
            for (job, _), logits in zip(batch, answer, strict=True):
                one = self._seen[job[1]]
                x, y, z = one.places
                yield job, logits[:, x, y, z] * one.shares
