"""A network over an array larger than its patch: overlapping windows, their mirror copies, and one blended answer.

Windows are spread evenly as nnU-Net does it, weighted by a Gaussian and blended in float32. Windows stand on a product
of per-axis positions and the Gaussian is a product of per-axis curves, so the sum of all weights at a voxel is one too:
each axis' curves are divided by their sum beforehand, and no volume of weights nor a last division is needed. Beside
the image, the one big array is the result: ``class_count`` x voxels x 4 bytes. Where that is too much, windows go along one
axis and a buffer as deep as a window is enough: planes that no later window reaches are handed to a `Sink`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from medseg.networks.blending import Blend, RollingBlend, Sink

Network = Callable[[torch.Tensor], torch.Tensor]
Starts = tuple[int, int, int]
Curves = list[npt.NDArray[np.float64]]

_SIGMA_OF_PATCH = 0.125
# On CPU, activations of a batch should stay in cache: 2 hippocampus windows a pass were an eighth faster than 4, which were
# a third faster than 9. On CUDA the kernels want work, and four 128^3 windows fit the smallest cards in use.
_BATCH_VOXELS = {"cpu": 2 * 40 * 56 * 40, "cuda": 4 * 128**3}
_MOST_WINDOWS = {"cpu": 4, "cuda": 32}
# Resampling leaves a constant constant but for rounding: 1e-7 of it.
_AS_GOOD_AS_LOWEST = 1e-5


@dataclass
class Tally:
    """What a blend did.

    Attributes:
        windows: all of them.
        skipped: those that held nothing but the lowest value and got the answer of the first such window.
    """

    windows: int = 0
    skipped: int = 0


def window_starts(size: int, patch: int, overlap: float) -> tuple[int, ...]:
    """First voxels of windows along one axis: as many as the overlap asks for, spread evenly, the last at the end.

    Args:
        size: voxels of the axis, at least ``patch``.
        patch: voxels of a window.
        overlap: share of a window that the next one covers at least, in [0, 1).

    Returns:
        Rising starts without duplicates; the first is 0, the last ``size - patch``.

    Raises:
        ValueError: the axis is shorter than the window, or the overlap outside [0, 1).
    """
    if not 1 <= patch <= size:
        raise ValueError(f"a window of {patch} voxels does not fit an axis of {size}; pad the axis first")
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap is {overlap}, expected 0 <= overlap < 1")
    room = size - patch
    step = max(1.0, patch * (1 - overlap))
    # 1 - 0.9 is a hair under 0.1: without the allowance 10 whole steps would become 11 windows more.
    count = math.ceil(room / step - 1e-9) + 1
    if count == 1:
        return (0,)
    return tuple(round(room / (count - 1) * index) for index in range(count))


def window_count(shape_xyz: Sequence[int], patch_xyz: Sequence[int], overlap: float) -> int:
    """Windows that an image of this shape takes, padding included; with a patch of one slice every slice has its own."""
    sizes = zip(shape_xyz, patch_xyz, strict=True)
    return math.prod(len(window_starts(max(size, patch), patch, overlap)) for size, patch in sizes)


def importance_curve(patch: int) -> npt.NDArray[np.float64]:
    """One axis of the Gaussian weight, (patch,) and all > 0: SD ``patch / 8``, peak 1 at voxel ``patch // 2``."""
    distance = np.arange(patch) - patch // 2
    curve: npt.NDArray[np.float64] = np.exp(-0.5 * np.square(distance / (patch * _SIGMA_OF_PATCH)))
    return curve


def _shares(size: int, patch: int, starts: tuple[int, ...]) -> Curves:
    """Per window of one axis, its share (patch,) of each voxel it covers; the shares of a voxel add up to 1."""
    curve = importance_curve(patch)
    total = np.zeros(size)
    for start in starts:
        total[start : start + patch] += curve
    return [curve / total[start : start + patch] for start in starts]


def mirror_combinations(axes_xyz: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """All subsets of the axes, the empty one (no mirroring) first; 2**n of them."""
    axes = tuple(sorted(set(axes_xyz)))
    if any(axis not in (0, 1, 2) for axis in axes):
        raise ValueError(f"mirror axes are {tuple(axes_xyz)}, expected some of 0, 1, 2 (x, y, z)")
    return tuple(subset for n in range(len(axes) + 1) for subset in itertools.combinations(axes, n))


def default_batch_size(patch_size_xyz: Sequence[int], device: torch.device | str) -> int:
    """Windows (or their mirror copies) per forward pass, from the patch's voxels and the kind of device."""
    kind = torch.device(device).type
    kind = kind if kind in _BATCH_VOXELS else "cpu"
    return max(1, min(_MOST_WINDOWS[kind], _BATCH_VOXELS[kind] // math.prod(patch_size_xyz)))


def _batches(jobs: Iterator[tuple[int, tuple[int, ...]]], size: int) -> Iterator[list[tuple[int, tuple[int, ...]]]]:
    while batch := list(itertools.islice(jobs, size)):
        yield batch


class _Windows:
    """Where the windows of one scan are and how much each counts; the slices of a stack follow each other."""

    def __init__(
        self,
        shape_xyz: Sequence[int],
        patch_xyz: Sequence[int],
        overlap: float,
        slice_axis: int | None = None,
        first_axis: int | None = None,
    ) -> None:
        axes = [window_starts(size, patch, overlap) for size, patch in zip(shape_xyz, patch_xyz, strict=True)]
        self.shape = tuple(shape_xyz)
        self.patch = tuple(patch_xyz)
        self._shares = [_shares(*triple) for triple in zip(shape_xyz, patch_xyz, axes, strict=True)]
        self._alone = all(bool((share == 1).all()) for shares in self._shares for share in shares)
        places: Iterable[Starts] = itertools.product(*(range(len(starts)) for starts in axes))  # type: ignore[assignment]
        if slice_axis is not None:
            places = sorted(places, key=lambda place: place[:slice_axis] + place[slice_axis + 1 :])
        if first_axis is not None:  # a stable sort: what stood together along the other axes still does
            places = sorted(places, key=lambda place: place[first_axis])
        self._places = [(place, (axes[0][place[0]], axes[1][place[1]], axes[2][place[2]])) for place in places]
        self._slice_axis = slice_axis
        self._kept: tuple[Starts, torch.Tensor] | None = None

    def __len__(self) -> int:
        return len(self._places)

    def start(self, index: int, axis: int) -> int:
        """First voxel of window ``index`` along an axis."""
        return self._places[index][1][axis]

    def where(self, index: int) -> tuple[slice, ...]:
        """Slices of ``(channels, X, Y, Z)``."""
        return slice(None), *(slice(s, s + p) for s, p in zip(self._places[index][1], self.patch, strict=True))

    def weight(self, index: int, device: torch.device) -> torch.Tensor | None:
        """(X, Y, Z) float32 share of window ``index``; None where no windows overlap, i.e. it is 1 everywhere."""
        if self._alone:
            return None
        place = self._places[index][0]
        if self._slice_axis is not None:  # the same for every slice
            place = tuple(0 if axis == self._slice_axis else n for axis, n in enumerate(place))  # type: ignore[assignment]
        if self._kept is None or self._kept[0] != place:
            x, y, z = (shares[n] for shares, n in zip(self._shares, place, strict=True))
            product = x[:, None, None] * y[None, :, None] * z[None, None, :]
            self._kept = place, torch.from_numpy(product.astype(np.float32)).to(device)
        return self._kept[1]


def _padding(shape_xyz: Sequence[int], patch_xyz: Sequence[int]) -> list[tuple[int, int]]:
    """(before, after) voxels per axis that bring the scan to the patch, centred, the odd voxel after."""
    lack = [max(0, patch - size) for size, patch in zip(shape_xyz, patch_xyz, strict=True)]
    return [(n // 2, n - n // 2) for n in lack]


def _forward(
    batch: torch.Tensor, network: Network, slice_axis: int | None, precision: torch.dtype | None
) -> torch.Tensor:
    """Network's scores for (B, C, X, Y, Z) windows as (B, K, X, Y, Z), in the type the network computes in."""
    with torch.autocast(batch.device.type, dtype=precision, enabled=precision is not None):
        scores = network(batch if slice_axis is None else batch.squeeze(2 + slice_axis))
    return scores if slice_axis is None else scores.unsqueeze(2 + slice_axis)


def _check_scores(scores: torch.Tensor, batch: torch.Tensor, class_count: int | None) -> None:
    expected = (batch.shape[0], class_count or scores.shape[1], *batch.shape[2:])
    if tuple(scores.shape) != expected:
        raise ValueError(
            f"network's output has shape {tuple(scores.shape)}, expected {expected} (batch, classes, window)"
        )


def _is_lowest(padded: torch.Tensor) -> torch.Tensor:
    """(X, Y, Z) bool on the CPU: whether a voxel has the lowest value of every channel."""
    channels = padded.reshape(len(padded), -1)
    low, high = channels.amin(dim=1), channels.amax(dim=1)
    bound = low + _AS_GOOD_AS_LOWEST * (high - low)
    lowest = padded[0] <= bound[0]
    for channel, own in zip(padded[1:], bound[1:], strict=True):
        lowest &= channel <= own
    return lowest.cpu()


@torch.inference_mode()
def blend_windows(  # noqa: PLR0913 - plain values, one meaning each
    image: torch.Tensor,
    network: Network,
    *,
    patch_size_xyz: Sequence[int],
    class_count: int | None = None,
    overlap: float = 0.5,
    mirror_axes_xyz: Sequence[int] = (),
    batch_size: int | None = None,
    slice_axis: int | None = None,
    device: torch.device | str | None = None,
    precision: torch.dtype | None = None,
    skip_background: bool = False,
    sink: Sink | None = None,
    tally: Tally | None = None,
) -> torch.Tensor:
    """Scores of a whole image, blended from overlapping windows in float32.

    An image smaller than the patch is padded with 0, centred, and the padding is cut off again.

    Args:
        image: (C, X, Y, Z).
        network: (B, C, X, Y, Z) -> (B, K, X, Y, Z) in eval mode; a 2D one (B, C, X, Y) -> (B, K, X, Y), or the two axes
            that are left without ``slice_axis``, in their order.
        patch_size_xyz: window in voxels; 1 along ``slice_axis``, so that each slice has windows of its own.
        class_count: K, to be checked; None takes what the network gives.
        overlap: share of a window that the next one covers at least, in [0, 1).
        mirror_axes_xyz: axes of which all mirror combinations are averaged (8 passes for three); ``slice_axis`` is left out.
        batch_size: windows or mirror copies per forward pass; None chooses by device and patch.
        slice_axis: the axis (0 = x) that a 2D network does not see, along which slices are stacked; None for a 3D network.
        device: where the network computes, None where the image lies. With the image on the CPU and the network on CUDA,
            the big arrays stay in host memory and only windows travel.
        precision: autocast type such as ``torch.bfloat16``; None changes nothing.
        skip_background: answer windows in which every voxel of every channel is the image's lowest (within 1e-5 of the range
            of the channel) with the answer to the first of them. They are one window, many times over.
        sink: takes the planes as they are finished; the result is empty then, and memory holds a window's depth of it.
        tally: is told what was done.

    Returns:
        (K, X, Y, Z) float32 on the image's device. May be a view of a padded array.

    Raises:
        ValueError: the network is in training mode or answers with another shape; a size or the overlap makes no sense.
    """
    if slice_axis is not None and patch_size_xyz[slice_axis] != 1:
        raise ValueError(f"patch is {tuple(patch_size_xyz)} for a 2D network, expected {'xyz'[slice_axis]} = 1")
    if getattr(network, "training", False):
        raise ValueError("network is in training mode, expected eval mode; call network.eval() first")
    patch = tuple(patch_size_xyz)
    target = image.device if device is None else torch.device(device)
    shape = tuple(image.shape[1:])
    padding = _padding(shape, patch)
    padded = image.float()
    if any(after for _, after in padding):
        padded = torch.nn.functional.pad(padded, [n for pair in reversed(padding) for n in pair])
    windows = _Windows(padded.shape[1:], patch, overlap, slice_axis, None if sink is None else sink.axis)
    mirrors = mirror_combinations([axis for axis in mirror_axes_xyz if axis != slice_axis])
    cut = tuple(slice(low, low + n) for (low, _), n in zip(padding, shape, strict=True))
    kind = Blend if sink is None else RollingBlend
    blend = kind(windows, len(mirrors), image.device, cut, sink)
    jobs = _jobs(windows, mirrors, blend, _is_lowest(padded) if skip_background else None)
    for batch_jobs in _batches(jobs, batch_size or default_batch_size(patch, target)):
        copies = [padded[windows.where(window)].flip([1 + a for a in axes]) for window, axes in batch_jobs]
        batch = torch.stack(copies).to(target)
        scores = _forward(batch, network, slice_axis, precision)
        _check_scores(scores, batch, class_count)
        for (window, axes), score in zip(batch_jobs, scores, strict=True):
            blend.add(window, score.flip([1 + a for a in axes]).float() if axes else score.float())
        del scores, score  # before the next pass takes as much
    if tally is not None:
        tally.windows, tally.skipped = len(windows), blend.repeated
    return blend.finish()


def _jobs(
    windows: _Windows, mirrors: Sequence[tuple[int, ...]], blend: Blend, lowest: torch.Tensor | None
) -> Iterator[tuple[int, tuple[int, ...]]]:
    """(window, mirrored axes) that have to be computed; a window's mirror copies come one after the other."""
    for window in range(len(windows)):
        if lowest is not None and bool(lowest[windows.where(window)[1:]].all()):
            if blend.background_window is not None:
                blend.repeat(window)
                continue
            blend.background_window = window
        for axes in mirrors:
            yield window, axes
