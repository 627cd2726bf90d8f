"""One case: from its scan to the arrays a network sees, and from the network's scores back to the scan.

The order is nnU-Net's: turn the axes, crop to nonzero, normalise, resample. Images and labels go through different
functions, and every step of the geometry is in the `Grid`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from medseg.config.series import told_apart
from medseg.errors import GeometryError, ScanError
from medseg.imaging import (
    AxisChange,
    Regions,
    Volume,
    apply_axes,
    changed_affine,
    cropped_affine,
    grid_difference,
    ras_change,
    read_volume,
    resample_image,
    resample_labels,
    resample_to_grid,
    resampled_shape,
    resized_affine,
    scores_to_classes,
    scores_to_sets,
    separate_axis,
    spacing_xyz_mm,
    undo_axes,
)
from medseg.imaging.opening import display_name
from medseg.imaging.resampling import ScoreRows
from medseg.imaging.volume import Affine
from medseg.manifest.cases import Channel
from medseg.preparation.grid import Grid, Shape, rows_of
from medseg.preparation.normalisation import needs_mask, normalise
from medseg.preparation.plan import ChannelPlan, Plan

FloatArray = npt.NDArray[np.float32]
ClassArray = npt.NDArray[np.uint8]
Box = tuple[Shape, Shape]
Spacing = tuple[float, float, float]
_MOST_VALUES = 2**31
_RGB = ("red", "green", "blue")


def expand_channels(channels: Sequence[Channel]) -> tuple[Channel, ...]:
    """The manifest's channels as the network sees them: one that is named RGB is three, red, green and blue."""
    expanded: list[Channel] = []
    for channel in channels:
        rgb = channel.name.casefold() == "rgb"
        expanded += (
            [Channel(name=name, unit=channel.unit, series=channel.series) for name in _RGB] if rgb else [channel]
        )
    return tuple(expanded)


def channels_per_file(files: Sequence[Path], channels: Sequence[ChannelPlan | Channel]) -> tuple[int, ...]:
    """How many of ``channels`` (expanded) each file holds.

    Args:
        files: of one case, in the order of the channels.
        channels: one file may hold all of them, or each file one; red, green and blue are one file's then.

    Raises:
        ScanError: neither fits.
    """
    if len(files) == 1:
        return (len(channels),)
    counts, names = [], [channel.name for channel in channels]
    while names:
        counts.append(3 if tuple(names[:3]) == _RGB and len(files) < len(channels) else 1)
        del names[: counts[-1]]
    if len(counts) != len(files):
        raise ScanError(
            f"{display_name(files[0])}: comes with {len(files)} files, expected 1 or {len(counts)}, one per channel"
        )
    return tuple(counts)


def load_case(images: Sequence[Path], channels: Sequence[ChannelPlan | Channel]) -> Volume:
    """Reads the files of one case and joins their channels.

    Args:
        images: one file with all channels, one file (or DICOM folder) per channel, or one DICOM folder with a series for
            each channel, which have rules of their own then.
        channels: the plan's, or the manifest's expanded.

    Returns:
        A Volume (C, X, Y, Z) on the grid of the first file.

    Raises:
        ScanError: a file can't be used, the number of files does not fit the channels, or two channels are one series.
        GeometryError: a later channel does not overlap the first.
    """

    def read(path: Path, count: int, first: ChannelPlan | Channel) -> Volume:
        return read_volume(path, channels=count, unit=first.unit, series=first.series)

    return join_channels(images, channels, read)


def join_channels(
    images: Sequence[Path],
    channels: Sequence[ChannelPlan | Channel],
    read: Callable[[Path, int, ChannelPlan | Channel], Volume],
) -> Volume:
    """As `load_case`, each file read by ``read(path, how many channels, the first of them)``."""
    images = tuple(images)
    if len(images) == 1 < len(channels) and told_apart([c.series for c in channels]) and images[0].is_dir():
        images *= len(channels)
    with _headers_read_once(images):
        return _joined(images, channels, read)


def _headers_read_once(images: Sequence[Path]) -> AbstractContextManager[None]:
    if not any(image.is_dir() for image in images):
        return nullcontext()
    from medseg.imaging.dicom_series import headers_read_once  # late: most scans need no pydicom

    return headers_read_once()


def _joined(
    images: Sequence[Path],
    channels: Sequence[ChannelPlan | Channel],
    read: Callable[[Path, int, ChannelPlan | Channel], Volume],
) -> Volume:
    volumes: list[Volume] = []
    taken: dict[tuple[Path, str], str] = {}
    names: list[str] = []
    rest = list(channels)
    for path, count in zip(images, channels_per_file(images, channels), strict=True):
        volumes.append(_read_channel(read, path, count, rest[0], alone=len(images) == 1))
        names.append(rest[0].name)
        header = volumes[-1].header
        if rest[0].series is not None and header is not None:
            other = taken.setdefault((path, header.series), names[-1])
            if other != names[-1]:
                what = f"series {header.series}" if header.series else "the one series"
                raise ScanError(
                    f"channel {names[-1]}: its rule takes {what} of {path.name}, which is channel {other} already, "
                    "expected another; say more in the rules"
                )
        del rest[:count]
    return align_channels(volumes, names)


def _read_channel(
    read: Callable[[Path, int, ChannelPlan | Channel], Volume],
    path: Path,
    count: int,
    channel: ChannelPlan | Channel,
    *,
    alone: bool,
) -> Volume:
    try:
        return read(path, count, channel)
    except ScanError as error:
        if alone or channel.series is None:
            raise
        raise type(error)(f"channel {channel.name}: {error}") from error


def align_channels(volumes: Sequence[Volume], names: Sequence[str]) -> Volume:
    """Joins volumes along the channel axis; one on another grid is resampled (trilinear, 0 outside) to the first's.

    The header is the first's, with the warnings of all, each after its channel's name where there are several volumes.

    Raises:
        GeometryError: a volume lies wholly outside the first one.
    """
    first = volumes[0]
    if len(volumes) == 1:
        return first
    arrays = [first.array]
    for volume, name in zip(volumes[1:], names[1:], strict=True):
        if grid_difference(first.shape, first.affine, volume.shape, volume.affine) is None:
            arrays.append(volume.array)
            continue
        moved = resample_to_grid(volume, first.shape, first.affine)
        if volume.array.any() and not moved.array.any():
            raise GeometryError(
                f"channel {name}: does not overlap channel {names[0]} in space; check the files' geometry"
            )
        arrays.append(moved.array)
    header = first.header
    if header is not None:
        named = zip(names, (volume.header for volume in volumes), strict=True)
        header = replace(header, warnings=tuple(f"{name}: {w}" for name, h in named if h for w in h.warnings))
    return Volume(np.concatenate(arrays), first.affine, header)


def axis_change(affine: Affine, *, orientation: Literal["RAS", "native"], picture: bool) -> AxisChange:
    """How a scan's axes are turned: not at all for pictures and for ``native``."""
    return ras_change(affine) if orientation == "RAS" and not picture else AxisChange()


def nonzero_box(array: FloatArray) -> Box:
    """The smallest box with every voxel in which any channel is not 0, as (start, stop); all of it if there is none."""
    nonzero = array[0] != 0
    for channel in array[1:]:
        nonzero |= channel != 0
    start, stop = [0, 0, 0], list(array.shape[1:])
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        where = np.flatnonzero(nonzero.any(axis=others))
        if where.size:
            start[axis], stop[axis] = int(where[0]), int(where[-1]) + 1
    return (start[0], start[1], start[2]), (stop[0], stop[1], stop[2])


def prepared_grid(shape: Shape, affine: Affine, change: AxisChange, box: Box, plan: Plan) -> Grid:
    """Every step of one scan's geometry.

    Args:
        shape: of the scan as its file has it.
        affine: likewise.
        change: how its axes are turned.
        box: (start, stop) of the crop on the turned axes.
        plan: for the target spacing.

    Raises:
        ScanError: the prepared array would have more than 2^31 values.
    """
    start, stop = box
    turned_affine = changed_affine(affine, shape, change)
    spacing = _three(spacing_xyz_mm(turned_affine))
    cropped: Shape = (stop[0] - start[0], stop[1] - start[1], stop[2] - start[2])
    target = target_spacing_xyz_mm(spacing, plan)
    prepared = resampled_shape(cropped, spacing, target)
    if math.prod(prepared) * len(plan.channels) > _MOST_VALUES:
        raise ScanError(
            f"scan: would have {'x'.join(map(str, prepared))} voxels at {_by(target)} mm, expected at most {_MOST_VALUES:,} "
            "values; crop it, or set prepare.spacing_xyz_mm"
        )
    final = resized_affine(cropped_affine(turned_affine, start), cropped, prepared)
    return Grid(
        original_shape=shape,
        original_affine=rows_of(affine),
        permutation=change.permutation,
        flips=change.flips,
        crop_start=start,
        crop_stop=stop,
        spacing_xyz_mm=spacing,
        prepared_shape=prepared,
        prepared_affine=rows_of(final),
        prepared_spacing_xyz_mm=target,
        separate_axis=None if plan.of_pictures else separate_axis(spacing, target),
        separate_axis_back=None if plan.of_pictures else separate_axis(target, spacing),
    )


def full_grid(shape_xyz: Sequence[int], affine: Affine, plan: Plan) -> Grid:
    """The grid of a scan that is known by its header alone, as if nothing were cropped off.

    Args:
        shape_xyz: of the scan as its file has it.
        affine: likewise.
        plan: for orientation and target spacing.

    Raises:
        ScanError: the prepared array would have more than 2^31 values.
    """
    shape: Shape = (shape_xyz[0], shape_xyz[1], shape_xyz[2])
    change = axis_change(affine, orientation=plan.orientation, picture=plan.of_pictures)
    x, y, z = (shape[axis] for axis in change.permutation)
    return prepared_grid(shape, affine, change, ((0, 0, 0), (x, y, z)), plan)


def target_spacing_xyz_mm(spacing_xyz_mm: Spacing, plan: Plan) -> Spacing:
    """Voxel size that a case with voxels of ``spacing_xyz_mm`` is resampled to: the plan's, but its own between 2D slices."""
    x, y, z = (
        own if axis == plan.slice_axis else planned
        for axis, (own, planned) in enumerate(zip(spacing_xyz_mm, plan.spacing_xyz_mm, strict=True))
    )
    return x, y, z


def prepare_image(volume: Volume, plan: Plan) -> tuple[FloatArray, Grid]:
    """The array that a network sees.

    Args:
        volume: (C, X, Y, Z), as read; it is left as it is.
        plan: with one channel plan per channel.

    Returns:
        The array (C, X, Y, Z) float32 on the prepared grid, new and C-contiguous, and the grid.

    Raises:
        GeometryError: the plan is for pictures and the scan has several slices.
        ScanError: the scan has another number of channels than the plan.
    """
    if volume.array.shape[0] != len(plan.channels):
        raise ScanError(
            f"scan: has {volume.array.shape[0]} channels, expected {len(plan.channels)} "
            f"({', '.join(c.name for c in plan.channels)})"
        )
    if plan.of_pictures and volume.shape[2] != 1:
        raise GeometryError(f"scan: has {volume.shape[2]} slices, expected 1; this plan is for pictures")
    change = axis_change(volume.affine, orientation=plan.orientation, picture=plan.of_pictures)
    turned = apply_axes(volume.array, change)
    start, stop = nonzero_box(turned)
    grid = prepared_grid(volume.shape, volume.affine, change, (start, stop), plan)
    cropped = np.array(turned[(slice(None), *map(slice, start, stop))], np.float32, order="C")
    del turned
    normalise(cropped, plan.channels, _filled_mask(cropped) if needs_mask(plan.channels) else None)
    return resample_image(cropped, grid.prepared_shape, separate_axis=grid.separate_axis), grid


def _filled_mask(cropped: FloatArray) -> npt.NDArray[np.bool_]:
    from scipy import ndimage

    filled: npt.NDArray[np.bool_] = ndimage.binary_fill_holes((cropped != 0).any(axis=0))
    return filled


def prepare_labels(classes: ClassArray, grid: Grid) -> ClassArray:
    """A label map on the prepared grid.

    Args:
        classes: (X, Y, Z) uint8 class indices on the scan's own grid; 255 where nobody labelled.
        grid: from `prepare_image` of the same scan.

    Returns:
        (X, Y, Z) uint8, C-contiguous.

    Raises:
        GeometryError: the label map has another shape than the scan.
    """
    return resample_labels(cropped_labels(classes, grid), grid.prepared_shape, separate_axis=grid.separate_axis)


def cropped_labels(classes: ClassArray, grid: Grid) -> ClassArray:
    """A label map (X, Y, Z) of the scan's own grid, turned and cropped as the scan is, before resampling.

    Raises:
        GeometryError: the label map has another shape than the scan.
    """
    if classes.shape != grid.original_shape:
        raise GeometryError(
            f"label map: has shape {list(classes.shape)}, expected the scan's {list(grid.original_shape)}"
        )
    turned = apply_axes(classes, AxisChange(grid.permutation, grid.flips))
    return np.ascontiguousarray(turned[tuple(map(slice, grid.crop_start, grid.crop_stop))])


def restore_classes(scores: ScoreRows, grid: Grid, regions: Regions | None = None) -> ClassArray:
    """The class of every voxel of the scan's own grid.

    Args:
        scores: (K, X, Y, Z) on the prepared grid; logits or probabilities. (R, X, Y, Z) logits for regions.
        grid: of the case.
        regions: where labels overlap; the class is the index of a combination of them then.

    Returns:
        (X, Y, Z) uint8 class indices in the original axis order; background outside the crop. Scores are resampled slab
        by slab, so K volumes of the original size never exist.
    """
    if scores.shape[1:] != grid.prepared_shape:
        raise GeometryError(f"scores: have shape {list(scores.shape[1:])}, expected {list(grid.prepared_shape)}")
    separate = grid.separate_axis_back
    if regions is None:
        return restored(scores_to_classes(scores, grid.cropped_shape, separate_axis=separate), grid)
    return restored(regions.join(scores_to_sets(scores, grid.cropped_shape, separate_axis=separate)), grid)


def restored(cropped: ClassArray, grid: Grid) -> ClassArray:
    """Class indices of the turned, cropped grid on the scan's own: background outside the crop, axes turned back."""
    oriented = np.zeros(grid.oriented_shape, np.uint8)
    oriented[tuple(map(slice, grid.crop_start, grid.crop_stop))] = cropped
    return undo_axes(oriented, AxisChange(grid.permutation, grid.flips))


def _by(values: Sequence[float]) -> str:
    return " x ".join(f"{v:.4g}" for v in values)


def _three(values: npt.NDArray[np.float64]) -> Spacing:
    x, y, z = (float(v) for v in values)
    return x, y, z
