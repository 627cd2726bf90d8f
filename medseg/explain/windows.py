"""The sliding window's windows that see a region, and the score of that region which they add up to.

The blended logit of a voxel is a sum over windows, each with its share of the voxel. The mean logit of a region is therefore
exactly the sum of what its windows contribute, and whatever is linear in it can be computed window by window.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from medseg.errors import ScanError
from medseg.networks.windows import importance_curve, window_starts

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
Box = tuple[slice, slice, slice]


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """One window.

    Attributes:
        where: its voxels on the padded grid.
        share: (x, y, z) float32 of the window, its share of the blended logit of each voxel.
        region: (x, y, z) bool of the window.
    """

    where: Box
    share: FloatArray
    region: BoolArray


@dataclass(frozen=True, kw_only=True, eq=False)
class Views:
    """The windows that hold a part of a region.

    Attributes:
        image: (C, X, Y, Z) float32, padded with 0 to the window where the scan is smaller, on the network's device.
        cut: the scan within it.
        views: at least one.
        voxels: of the region.
        slice_axis: that a 2D network does not see; None in 3D.
    """

    image: Tensor
    cut: Box
    views: tuple[View, ...]
    voxels: int
    slice_axis: int | None

    def inputs(self, windows: Iterable[Tensor]) -> Tensor:
        """(B, C, x, y, z) of windows (C, x, y, z) as the network takes them: in 2D without ``slice_axis``."""
        batch = torch.stack(list(windows))
        return batch if self.slice_axis is None else batch.squeeze(2 + self.slice_axis)

    def outputs(self, answer: Tensor) -> Tensor:
        """The inverse for what a network answers: (B, K, x, y, z)."""
        return answer if self.slice_axis is None else answer.unsqueeze(2 + self.slice_axis)

    def blended(self, maps: Iterable[FloatArray]) -> FloatArray:
        """(X, Y, Z) of the scan from one map (x, y, z) per view, blended as the network's answers are; 0 where no view is."""
        total = np.zeros(self.image.shape[1:], np.float32)
        for view, own in zip(self.views, maps, strict=True):
            total[view.where] += view.share * own
        return total[self.cut]


def views_of(
    array: FloatArray,
    region: BoolArray,
    *,
    patch_size_xyz: Sequence[int],
    overlap: float,
    slice_axis: int | None = None,
    device: torch.device | str = "cpu",
) -> Views:
    """The windows of a prepared scan, placed as `medseg.networks.windows.blend_windows` places them, that see a region.

    Args:
        array: (C, X, Y, Z) float32.
        region: (X, Y, Z) bool.
        patch_size_xyz: the window, 1 along ``slice_axis``.
        overlap: of the windows.
        slice_axis: of a 2D network.
        device: where the image goes.

    Raises:
        ScanError: the region has no voxel.
    """
    if not region.any():
        raise ScanError("region: has no voxel on the network's grid, expected at least one; name a larger one")
    lack = [max(0, patch - size) for size, patch in zip(region.shape, patch_size_xyz, strict=True)]
    padding = [(n // 2, n - n // 2) for n in lack]
    padded = np.pad(region, padding)
    shares = [_shares(size, patch, overlap) for size, patch in zip(padded.shape, patch_size_xyz, strict=True)]
    found = []
    for place in itertools.product(*shares):
        x, y, z = (slice(start, start + len(share)) for start, share in place)
        if (own := padded[x, y, z]).any():
            a, b, c = (share for _, share in place)
            product = a[:, None, None] * b[None, :, None] * c[None, None, :]
            found.append(View(where=(x, y, z), share=product.astype(np.float32), region=own))
    image = np.pad(np.asarray(array, np.float32), [(0, 0), *padding])
    cut_x, cut_y, cut_z = (slice(low, low + size) for (low, _), size in zip(padding, region.shape, strict=True))
    return Views(
        image=torch.from_numpy(image).to(device),
        cut=(cut_x, cut_y, cut_z),
        views=tuple(found),
        voxels=int(np.count_nonzero(region)),
        slice_axis=slice_axis,
    )


def _shares(size: int, patch: int, overlap: float) -> list[tuple[int, npt.NDArray[np.float64]]]:
    """Per window of an axis its first voxel, and its share of each voxel it covers."""
    starts, curve = window_starts(size, patch, overlap), importance_curve(patch)
    total = np.zeros(size)
    for start in starts:
        total[start : start + patch] += curve
    return [(start, curve / total[start : start + patch]) for start in starts]


class RegionScore(nn.Module):
    """A network with dense answers behind the face of a classifier, which is what MONAI's visualisers take.

    ``forward`` maps (B, C, ...) to (B, K): each class' logits, weighted by ``look_at``'s view and summed. Over all views of a
    region that is its mean logit.

    Args:
        network: in eval mode.
        views: whose views it will look at.
    """

    def __init__(self, network: nn.Module, views: Views) -> None:
        super().__init__()
        self.network, self._views = network, views
        self._weight = torch.zeros(())
        self.answer = torch.zeros(())

    def look_at(self, view: View) -> Tensor:
        """The network's input of a view, (1, C, ...); the next ``forward`` is of that view."""
        weight = torch.from_numpy(view.share * view.region / np.float32(self._views.voxels))
        self._weight = weight.to(self._views.image.device)
        return self._views.inputs([self._views.image[(slice(None), *view.where)]])

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        logits = self._views.outputs(self.network(x))
        scores: Tensor = (logits.float() * self._weight).flatten(2).sum(2)
        self.answer = scores.detach()
        return scores


def voxels_of(size_mm: float, spacing_xyz_mm: Sequence[float], slice_axis: int | None = None) -> tuple[int, ...]:
    """Whole voxels per axis, at least 1, of a cube with sides of ``size_mm``; 1 along ``slice_axis``: slices stay apart."""
    return tuple(
        1 if axis == slice_axis else max(1, math.floor(size_mm / own + 0.5)) for axis, own in enumerate(spacing_xyz_mm)
    )
