"""Slice atlases: all slices of a plane side by side in one PNG, one for the scan, one for both masks, one for the entropy.

The atlas of the masks has the truth's index in its red and the prediction's in its green channel, spread over 0 to 255, so
that a browser that changes a level by one (against fingerprinting) still gives back the index.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.report.masks import CaseMasks
from medseg.report.planes import (
    Plane,
    averaged,
    coarsening,
    picked,
    planes_of,
    shown_box,
    shown_indices,
    slices,
    telling_point,
)

ENTROPY_LEVELS = 32


@dataclass(frozen=True, kw_only=True, eq=False)
class ShownCase:
    """A case cut to what is shown of it; arrays are (X, Y, Z) in RAS order.

    Attributes:
        case_id: names it.
        spacing_xyz_mm: voxel size.
        planar: a picture.
        truth, prediction: stored indices; ``ignored`` in both where nobody labelled.
        scan: uint8 levels, (X, Y, Z) or (X, Y, Z, 3); None where scans may not be shown.
        entropy: uint8, 0 to 255 for 0 to 1, or None.
        point: voxel of the crop that the viewer starts with.
        levels: number of stored indices, 0 and the ignored one included.
        window: the intensities shown as black and white, or None.
    """

    case_id: str
    spacing_xyz_mm: tuple[float, float, float]
    planar: bool
    truth: npt.NDArray[np.uint8]
    prediction: npt.NDArray[np.uint8]
    scan: npt.NDArray[np.uint8] | None
    entropy: npt.NDArray[np.uint8] | None
    point: tuple[int, int, int]
    levels: int
    window: tuple[float, float] | None

    @property
    def planes(self) -> tuple[Plane, ...]:
        """The planes that are shown."""
        return planes_of(self.truth.shape, planar=self.planar)


def shown_case(
    masks: CaseMasks,
    *,
    indices: int,
    scan: npt.NDArray[np.float32] | None,
    entropy: npt.NDArray[np.float32] | None,
    hounsfield: bool,
) -> ShownCase:
    """Cuts a case to its structures and brings its scan to 256 levels.

    Args:
        masks: of the case.
        indices: how many stored indices there are besides 0.
        scan: (X, Y, Z) or (X, Y, Z, 3) in RAS order on the masks' grid, or None.
        entropy: likewise, (X, Y, Z).
        hounsfield: whether the scan's intensities are HU.
    """
    box = shown_box(masks)
    truth, prediction = masks.truth[box].copy(), masks.prediction[box].copy()
    wrong, either = truth != prediction, (truth > 0) | (prediction > 0)
    if masks.ignored is not None:
        truth[masks.ignored[box]] = prediction[masks.ignored[box]] = indices + 1
    window = None
    levels = None
    if scan is not None:
        cut = scan[box]
        window = display_window(cut, either, hounsfield=hounsfield)
        levels = to_levels(cut, window)
    return ShownCase(
        case_id=masks.case_id,
        spacing_xyz_mm=masks.spacing_xyz_mm,
        planar=masks.planar,
        truth=truth,
        prediction=prediction,
        scan=levels,
        entropy=None if entropy is None else to_levels(entropy[box], (0.0, 1.0)),
        point=telling_point(wrong, either),
        levels=indices + 2,
        window=window,
    )


def display_window(
    image: npt.NDArray[np.float32], structures: npt.NDArray[np.bool_], *, hounsfield: bool
) -> tuple[float, float]:
    """Intensities to show as black and white.

    Percentiles 0.5 and 99.5 of the crop, of all colours together so that hues stay. In HU the percentiles 1 and 99 of the
    structures, widened to 400 HU (the usual width for soft tissue) around their middle, so that lung, soft tissue and bone
    each get a window of their own.
    """
    values = image[structures] if hounsfield and structures.any() else image
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0
    low, high = (float(v) for v in np.percentile(finite, (1, 99) if hounsfield else (0.5, 99.5)))
    if hounsfield and high - low < 400.0:
        middle = (low + high) / 2
        low, high = middle - 200.0, middle + 200.0
    return (low, high) if high > low else (low, low + 1.0)


def to_levels(image: npt.NDArray[np.float32], window: tuple[float, float]) -> npt.NDArray[np.uint8]:
    """0 to 255 over the window."""
    low, high = window
    scaled = np.nan_to_num((image - low) / (high - low), nan=0.0, posinf=1.0, neginf=0.0)
    levels: npt.NDArray[np.uint8] = np.rint(np.clip(scaled, 0, 1) * 255).astype(np.uint8)
    return levels


def plane_json(shown: ShownCase, plane: Plane, *, most: int) -> dict[str, Any]:
    """One plane of a case for the viewer.

    Args:
        shown: the case.
        plane: which.
        most: slices at most.

    Returns:
        ``name``, ``letters``, ``columns`` and ``tile`` [w, h] of the atlases, ``pixel`` [w, h] mm, ``through``, ``across``,
        ``down`` (axis, and for the last two the flip and the voxels per pixel), ``slices`` (crop indices), ``gap`` mm between
        slices, and the data URLs ``scan``, ``masks`` and ``entropy`` (null where there is none).
    """
    shape, spacing = shown.truth.shape, shown.spacing_xyz_mm
    indices = shown_indices(shape[plane.through], shown.point[plane.through], most)
    steps = coarsening(shape, plane)
    truth = picked(slices(shown.truth, plane, indices), steps)
    prediction = picked(slices(shown.prediction, plane, indices), steps)
    height, width = truth.shape[1:]
    columns = atlas_columns(len(indices), height, width)
    scan = entropy = None
    if shown.scan is not None:
        grey = averaged(slices(shown.scan, plane, indices).astype(np.float32), steps)
        scan = _url(png(tiled(np.rint(grey).astype(np.uint8), columns)))
    if shown.entropy is not None:
        share = averaged(slices(shown.entropy, plane, indices).astype(np.float32), steps) / 255
        coarse = np.rint(share * (ENTROPY_LEVELS - 1)) * (255 / (ENTROPY_LEVELS - 1))
        entropy = _url(png(tiled(np.rint(coarse).astype(np.uint8), columns)))
    return {
        "name": plane.name,
        "letters": list(plane.letters),
        "columns": columns,
        "tile": [width, height],
        "pixel": [round(spacing[plane.across] * steps[1], 5), round(spacing[plane.down] * steps[0], 5)],
        "through": plane.through,
        "across": [plane.across, plane.flip_across, steps[1]],
        "down": [plane.down, plane.flip_down, steps[0]],
        "slices": indices,
        "gap": round(spacing[plane.through], 5),
        "scan": scan,
        "masks": _url(mask_png(tiled(truth, columns), tiled(prediction, columns), shown.levels)),
        "entropy": entropy,
    }


def case_json(shown: ShownCase, *, most: int) -> dict[str, Any]:
    """A case for the viewer, each plane with at most ``most`` slices."""
    return {
        "id": shown.case_id,
        "size": list(shown.truth.shape),
        "point": list(shown.point),
        "levels": shown.levels,
        "planar": shown.planar,
        "planes": [plane_json(shown, plane, most=most) for plane in shown.planes],
    }


def pixels_of(shown: ShownCase, *, most: int) -> int:
    """How many pixels the slices of all planes have, with at most ``most`` slices a plane."""
    total = 0
    for plane in shown.planes:
        count = len(shown_indices(shown.truth.shape[plane.through], shown.point[plane.through], most))
        down, across = coarsening(shown.truth.shape, plane)
        total += count * (shown.truth.shape[plane.down] // down) * (shown.truth.shape[plane.across] // across)
    return total


def atlas_columns(count: int, height: int, width: int) -> int:
    """Tiles side by side so that the atlas is about square: canvases have a longest side."""
    return max(1, min(count, round(math.sqrt(count * height / width))))


def tiled(stack: npt.NDArray[np.uint8], columns: int) -> npt.NDArray[np.uint8]:
    """(N, H, W, ...) slices row by row as one picture; what is left of the last row is 0."""
    count, height, width = stack.shape[:3]
    rows = -(-count // columns)
    sheet = np.zeros((rows * columns, *stack.shape[1:]), np.uint8)
    sheet[:count] = stack
    parts = sheet.reshape(rows, columns, height, width, *stack.shape[3:])
    return np.ascontiguousarray(np.swapaxes(parts, 1, 2).reshape(rows * height, columns * width, *stack.shape[3:]))


def level_step(levels: int) -> int:
    """How far apart two indices lie in the atlas of the masks."""
    return 255 // max(1, levels - 1)


def mask_png(truth: npt.NDArray[np.uint8], prediction: npt.NDArray[np.uint8], levels: int) -> bytes:
    """Both masks in one PNG, indexed where the pairs of indices are at most 256."""
    from PIL import Image

    step = level_step(levels)
    pairs, index = np.unique(truth.astype(np.uint16) * 256 + prediction, return_inverse=True)
    index = index.reshape(truth.shape)
    if len(pairs) > 256:
        colour = np.stack([truth * step, prediction * step, np.zeros_like(truth)], axis=-1)
        return png(colour.astype(np.uint8))
    picture = Image.fromarray(index.astype(np.uint8)).convert("P")
    picture.putpalette([level for pair in pairs for level in (int(pair >> 8) * step, int(pair & 255) * step, 0)])
    return _saved(picture)


def png(array: npt.NDArray[np.uint8]) -> bytes:
    """(H, W) or (H, W, 3) as a PNG without times or colour profiles."""
    from PIL import Image

    return _saved(Image.fromarray(array))


def _saved(picture: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, format="PNG", compress_level=6)
    return stream.getvalue()


def _url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode("ascii")


def still_png(shown: ShownCase, palette: Sequence[tuple[int, int, int]], *, height: int = 220) -> bytes:
    """The starting slices side by side with the prediction filled and the truth outlined, where no script runs.

    Args:
        shown: the case.
        palette: colour of the stored index k at k - 1, then again from the start.
        height: of the picture in pixels; widths follow from the physical shape, at most 420 a plane.
    """
    panels = []
    for plane in shown.planes:
        size = _panel_size(shown, plane, height)
        truth, prediction = (
            _nearest(slices(array, plane, [shown.point[plane.through]])[0], size)
            for array in (shown.truth, shown.prediction)
        )
        ground = np.zeros((*size, 3), np.float32)
        if shown.scan is not None:
            grey = _nearest(slices(shown.scan, plane, [shown.point[plane.through]])[0], size).astype(np.float32)
            ground = grey if grey.ndim == 3 else np.repeat(grey[..., None], 3, axis=2)
        colours = np.array([(0, 0, 0), *(palette[k % len(palette)] for k in range(shown.levels - 2)), (120, 120, 120)])
        ground = np.where((prediction > 0)[..., None], 0.6 * ground + 0.4 * colours[prediction], ground)
        edge = _inner_edge(truth) & (truth > 0)
        ground = np.where(edge[..., None], colours[truth], ground)
        panel = np.zeros((height, size[1], 3), np.float32)
        panel[(height - size[0]) // 2 :][: size[0]] = ground
        panels += [panel, np.zeros((height, 8, 3), np.float32)]
    return png(np.rint(np.concatenate(panels[:-1], axis=1)).astype(np.uint8))


def _panel_size(shown: ShownCase, plane: Plane, height: int) -> tuple[int, int]:
    mm = [shown.truth.shape[axis] * shown.spacing_xyz_mm[axis] for axis in (plane.down, plane.across)]
    scale = min(height / mm[0], 420 / mm[1])
    return max(1, round(mm[0] * scale)), max(1, round(mm[1] * scale))


def _nearest(picture: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    rows = ((np.arange(size[0]) + 0.5) * picture.shape[0] / size[0]).astype(int)
    columns = ((np.arange(size[1]) + 0.5) * picture.shape[1] / size[1]).astype(int)
    found: npt.NDArray[np.uint8] = picture[rows][:, columns]
    return found


def _inner_edge(labels: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Pixels with a neighbour of another label."""
    edge = np.zeros(labels.shape, np.bool_)
    along, down = labels[:, 1:] != labels[:, :-1], labels[1:] != labels[:-1]
    edge[:, 1:] |= along
    edge[:, :-1] |= along
    edge[1:] |= down
    edge[:-1] |= down
    return edge


def data_url(data: bytes) -> str:
    """A PNG as a ``data:`` URL."""
    return _url(data)


def bytes_of(case: Mapping[str, Any]) -> int:
    """What a case's atlases take in the file."""
    return sum(len(plane[name] or "") for plane in case["planes"] for name in ("scan", "masks", "entropy"))
