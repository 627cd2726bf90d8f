"""Maps from the network's grid to the scan's own, their files, and a picture to look at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from medseg.durable import atomic_path
from medseg.explain.windows import BoolArray, FloatArray
from medseg.imaging import AxisChange, undo_axes
from medseg.imaging.nifti import write_nifti
from medseg.imaging.resampling import resampled_scores
from medseg.imaging.volume import Affine
from medseg.preparation.grid import Grid

STEPS = {"gradcam": 255, "occlusion": 32767}
"""Stored numbers per 1: a relative map goes from 0 to 1 in uint8, a fall of probability from -1 to 1 in int16."""
_SMALLEST_SIDE = 256
_GAP = 4


def onto_scan(values: FloatArray, grid: Grid) -> FloatArray:
    """A map (X, Y, Z) of the prepared grid on the scan's own: linear between voxels, 0 outside the crop."""
    slabs = resampled_scores(values[None], grid.cropped_shape, separate_axis=grid.separate_axis_back)
    oriented = np.zeros(grid.oriented_shape, np.float32)
    oriented[tuple(map(slice, grid.crop_start, grid.crop_stop))] = np.concatenate([slab[0] for slab in slabs])
    return np.asarray(undo_axes(oriented, AxisChange(grid.permutation, grid.flips)), np.float32)


def write_map(values: FloatArray, affine: Affine, path: Path, *, method: str) -> None:
    """Writes a map (X, Y, Z) as NIfTI, atomically; see `STEPS`."""
    steps = STEPS[method]
    stored = np.rint(values * steps).astype(np.uint8 if method == "gradcam" else np.int16)
    with atomic_path(path) as temporary:
        write_nifti(stored, affine, temporary, like=None, slope=1 / steps)


def write_overview(image: FloatArray, values: FloatArray, region: BoolArray, path: Path, *, planar: bool) -> None:
    """Writes a PNG: the slices through the middle of the region, side by side, the map in colour over the scan.

    It shows the scan, which may be a face: only for who asks for it.

    Args:
        image: (X, Y, Z) of one channel.
        values: (X, Y, Z) of the map.
        region: (X, Y, Z), outlined in white.
        path: of the file.
        planar: whether the scan is a picture: one slice, x to the right and y down.
    """
    from matplotlib import colormaps
    from PIL import Image

    middle = [round(float(places.mean())) for places in np.nonzero(region)] if region.any() else [0, 0, 0]
    finite = image[np.isfinite(image)]
    low, high = np.percentile(finite, (0.5, 99.5)) if finite.size else (0.0, 1.0)
    grey = np.clip((np.nan_to_num(image) - low) / max(float(high - low), 1e-6), 0, 1)
    heat = np.clip(values / max(float(np.abs(values).max()), 1e-12), 0, 1)
    panels = []
    for axis in (2,) if planar else (2, 1, 0):
        slices = tuple(middle[axis] if own == axis else slice(None) for own in range(3))
        shown, strength = grey[slices][..., None], heat[slices][..., None]
        colour = colormaps["inferno"](heat[slices])[..., :3]
        picture = (1 - 0.7 * strength) * shown + 0.7 * strength * colour
        picture[_outline(region[slices])] = 1
        panels.append(_upright(picture, planar=planar))
    height = max(panel.shape[0] for panel in panels)
    rows = [np.pad(panel, ((0, height - len(panel)), (0, _GAP), (0, 0))) for panel in panels]
    joined = np.concatenate(rows, axis=1)[:, :-_GAP]
    factor = max(1, -(-_SMALLEST_SIDE // min(joined.shape[:2])))
    large = joined.repeat(factor, axis=0).repeat(factor, axis=1)
    with atomic_path(path) as temporary:
        Image.fromarray(np.rint(large * 255).astype(np.uint8)).save(temporary, format="PNG")


def _upright(picture: npt.NDArray[np.floating], *, planar: bool) -> npt.NDArray[np.floating]:
    """(first, second, 3) as (rows, columns, 3): the second axis downwards in pictures, upwards in scans."""
    turned = np.swapaxes(picture, 0, 1)
    return turned if planar else turned[::-1]


def _outline(mask: BoolArray) -> BoolArray:
    """The mask's pixels with a neighbour outside it."""
    inside = np.pad(mask, 1)
    core = inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    return np.asarray(mask & ~core, bool)
