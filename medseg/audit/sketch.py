"""One case as the audit sees it: read once at full size for what needs every voxel, then kept small.

A sketch is a case on a coarse grid that all cases of a set share in spacing, together with checksums of its voxels and
measurements of its label at full size. A set of thousands of scans then fits into memory and is compared in seconds.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medseg.audit.shapes import Shape, measure_shapes
from medseg.durable import sha256_json, write_bytes
from medseg.imaging import (
    IGNORE,
    Volume,
    apply_axes,
    changed_affine,
    grid_difference,
    ras_change,
    read_label_map,
    resample_image,
    resample_labels,
    resampled_shape,
    spacing_xyz_mm,
    to_classes,
)
from medseg.imaging.regions import index_labels
from medseg.imaging.structures import Naming
from medseg.manifest.cases import Channel
from medseg.preparation.case import load_case

SKETCH_FORMAT = 1
_WORKING_VOXELS = 48**3
"""Voxels of the median case on the coarse grid: enough to see a label that is off by a few millimetres, and quick."""
_MOST_CHANNELS = 4
FloatArray = npt.NDArray[np.float32]
ClassArray = npt.NDArray[np.uint8]
Spacing = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class SketchTask:
    """What it takes to sketch one case.

    Attributes:
        id: the manifest's case id.
        images: its files.
        label: its first label map, None where it has none.
        channels: the manifest's, expanded.
        labels: class name to file values, background first.
        aliases: class name to other names that structures of label files have.
        ignore: file value that nobody labelled, or None.
        spacing_xyz_mm: voxel size of the coarse grid (RAS order; a picture's own order).
        cache: file the sketch is kept in.
        key: checksum of everything above and of the files' content; a cache with another key is made anew.
    """

    id: str
    images: tuple[Path, ...]
    label: Path | None
    channels: tuple[Channel, ...]
    labels: Mapping[str, tuple[int, ...]]
    ignore: int | None
    spacing_xyz_mm: Spacing
    cache: Path
    key: str
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False, kw_only=True)
class Sketch:
    """A case on the coarse grid.

    Attributes:
        id: the case.
        image: (C, X, Y, Z) float32, each channel with mean 0 and standard deviation 1 after cutting off 0.5 % at both ends.
        classes: (X, Y, Z) uint8 class indices (255: nobody labelled the voxel), None without a label.
        spacing_xyz_mm: voxel size of these arrays.
        image_sha256: of all voxels at full size in RAS order, so that axis order, file format and compression don't matter.
        label_sha256: likewise, None without a label.
        shapes: class index to its measurements at full size.
        grid_fault: how the label's grid differs from the scan's, None where they are one.
        planar: a 2D picture.
    """

    id: str
    image: FloatArray
    classes: ClassArray | None
    spacing_xyz_mm: Spacing
    image_sha256: str
    label_sha256: str | None
    shapes: Mapping[int, Shape]
    grid_fault: str | None = None
    planar: bool = False

    @property
    def shape_xyz(self) -> tuple[int, int, int]:
        """(X, Y, Z) voxels of the coarse grid."""
        return self.image.shape[1], self.image.shape[2], self.image.shape[3]


def working_spacing_xyz_mm(shapes: Sequence[Sequence[int]], spacings: Sequence[Sequence[float]]) -> Spacing:
    """The coarse grid's voxel size: the set's median, made coarser (finest axes first) until the median case is small.

    Args:
        shapes: (X, Y, Z) of each case in RAS order.
        spacings: voxel size of each case in mm, in the same order; at least one.
    """
    spacing = np.median(np.asarray(spacings, np.float64), axis=0)
    extent = np.median(np.asarray(shapes, np.float64) * np.asarray(spacings, np.float64), axis=0)
    thin = np.median(np.asarray(shapes), axis=0) <= 1
    while np.prod(np.where(thin, 1, extent / spacing)) > _WORKING_VOXELS:
        finest = np.where(thin, np.inf, spacing).min()
        spacing = np.where(~thin & (spacing <= finest * 1.05), spacing * 1.05, spacing)
    return float(spacing[0]), float(spacing[1]), float(spacing[2])


def sketch_case(task: SketchTask) -> Sketch:
    """The sketch of a case, from its cache where that is still good.

    Raises:
        ScanError, LabelError, GeometryError: a file can't be used.
    """
    kept = _read(task)
    if kept is None:
        kept = _make(task)
        _write(task, kept)
    return kept


def _make(task: SketchTask) -> Sketch:
    volume = load_case(task.images, task.channels)
    planar = volume.header is not None and volume.header.planar
    image, spacing = _turned(volume, planar=planar)
    classes, grid_fault, label_digest = None, None, None
    if task.label is not None:
        classes, grid_fault = _label(task, volume, planar=planar)
        label_digest = _digest(classes)
    working = task.spacing_xyz_mm if not planar else (task.spacing_xyz_mm[0], task.spacing_xyz_mm[1], spacing[2])
    shape = resampled_shape((image.shape[1], image.shape[2], image.shape[3]), spacing, working)
    same_grid = classes is not None and classes.shape == image.shape[1:]
    return Sketch(
        id=task.id,
        image=_coarse(image[:_MOST_CHANNELS], shape),
        classes=resample_labels(classes, shape) if classes is not None and same_grid else None,
        spacing_xyz_mm=working,
        image_sha256=_digest(image),
        label_sha256=label_digest,
        shapes=measure_shapes(classes, len(index_labels(task.labels)), spacing_xyz_mm=spacing)
        if classes is not None
        else {},
        grid_fault=grid_fault,
        planar=planar,
    )


def _turned(volume: Volume, *, planar: bool) -> tuple[FloatArray, Spacing]:
    affine, array = volume.affine, volume.array
    if not planar:
        change = ras_change(affine)
        array = apply_axes(array, change)
        affine = changed_affine(affine, volume.shape, change)
    x, y, z = spacing_xyz_mm(affine)
    return np.ascontiguousarray(array), (float(x), float(y), float(z))


def _label(task: SketchTask, volume: Volume, *, planar: bool) -> tuple[ClassArray, str | None]:
    assert task.label is not None
    label_map = read_label_map(task.label, naming=Naming(task.labels, task.aliases), like=volume)
    fault = grid_difference(label_map.shape, label_map.affine, volume.shape, volume.affine, tolerance_mm=0.05)
    classes = to_classes(label_map, task.labels, ignore=task.ignore, name=task.id)
    if not planar:
        classes = apply_axes(classes, ras_change(label_map.affine))
    return np.ascontiguousarray(classes), fault


def _digest(array: npt.NDArray[Any]) -> str:
    content = hashlib.sha256(repr((array.shape, str(array.dtype))).encode())
    content.update(np.ascontiguousarray(array).data)
    return content.hexdigest()


def _coarse(image: FloatArray, shape: tuple[int, int, int]) -> FloatArray:
    """``image`` on the coarse grid: smoothed first where voxels are merged, then brought to mean 0 and deviation 1."""
    factors = [old / new for old, new in zip(image.shape[1:], shape, strict=True)]
    sigmas = [0.5 * np.sqrt(max(factor**2 - 1, 0)) for factor in factors]
    smooth = np.stack([ndimage.gaussian_filter(c, sigmas, mode="nearest") for c in image]) if any(sigmas) else image
    result = resample_image(np.asarray(smooth, np.float32), shape)
    for channel in result:
        low, high = np.percentile(channel, (0.5, 99.5))
        np.clip(channel, low, high, out=channel)
        deviation = float(channel.std())
        np.subtract(channel, channel.mean(), out=channel)
        np.divide(channel, deviation if deviation > 0 else 1.0, out=channel)
    return result


def _write(task: SketchTask, sketch: Sketch) -> None:
    about = {
        "format": SKETCH_FORMAT,
        "key": task.key,
        "spacing_xyz_mm": sketch.spacing_xyz_mm,
        "image_sha256": sketch.image_sha256,
        "label_sha256": sketch.label_sha256,
        "shapes": {str(index): shape.plain() for index, shape in sketch.shapes.items()},
        "grid_fault": sketch.grid_fault,
        "planar": sketch.planar,
    }
    # The check covers the description, numpy's own (zip) CRC the arrays.
    stream = io.BytesIO()
    arrays: dict[str, npt.NDArray[Any]] = {"image": sketch.image}
    if sketch.classes is not None:
        arrays["classes"] = sketch.classes
    text = json.dumps({"about": about, "sha256": sha256_json(about)})
    np.savez(stream, about=np.frombuffer(text.encode(), np.uint8), **arrays)  # type: ignore[arg-type]
    write_bytes(task.cache, stream.getvalue())


def _read(task: SketchTask) -> Sketch | None:
    try:
        with np.load(task.cache, allow_pickle=False) as held:
            content = json.loads(held["about"].tobytes())
            about = content["about"]
            if sha256_json(about) != content["sha256"] or (about["format"], about["key"]) != (SKETCH_FORMAT, task.key):
                return None
            image = held["image"]
            classes = held.get("classes")
    except Exception:  # noqa: BLE001 - a cache that can't be read, for whatever reason, is made anew
        return None
    x, y, z = about["spacing_xyz_mm"]
    return Sketch(
        id=task.id,
        image=image,
        classes=classes,
        spacing_xyz_mm=(x, y, z),
        image_sha256=about["image_sha256"],
        label_sha256=about["label_sha256"],
        shapes={int(index): Shape(**plain) for index, plain in about["shapes"].items()},
        grid_fault=about["grid_fault"],
        planar=about["planar"],
    )


def foreground(classes: ClassArray) -> npt.NDArray[np.bool_]:
    """(X, Y, Z) bool: voxels of any class but background and ignore."""
    inside: npt.NDArray[np.bool_] = (classes > 0) & (classes != IGNORE)
    return inside
