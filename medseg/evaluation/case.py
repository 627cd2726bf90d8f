"""Scores of one case: two label maps in, one row per class out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medseg.errors import GeometryError, ScanError
from medseg.evaluation.overlap import BoolArray
from medseg.evaluation.pair import MaskPair, Situation, image_diagonal_mm
from medseg.evaluation.protocol import Protocol
from medseg.evaluation.registry import METRICS
from medseg.imaging import LabelMap, Regions, grid_difference, read_label_map, regions_of, spacing_xyz_mm, to_classes
from medseg.imaging.formats import format_of
from medseg.imaging.labels import IGNORE
from medseg.imaging.structures import Naming
from medseg.imaging.volume import Affine

ClassArray = npt.NDArray[np.uint8]

_RIGHT_ANGLE = 1e-3


@dataclass(frozen=True, kw_only=True)
class FileState:
    """A file as it was when it was hashed; ``stamp`` (size and time of change) tells whether it still is."""

    path: Path
    sha256: str
    stamp: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class CaseTask:
    """All that scoring one case takes.

    Attributes:
        case_id: names the case in messages and rows.
        prediction, reference: the two label maps.
        protocol: how to score them.
        labelled: names of the classes that the reference was labelled for; None for all of them.
    """

    case_id: str
    prediction: FileState
    reference: FileState
    protocol: Protocol
    labelled: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class ClassScores:
    """One row: one class of one case.

    Attributes:
        class_name: as in the labels.
        situation: which masks are empty.
        true_positive, false_positive, false_negative: voxels.
        diagonal_mm: what an undefined distance is imputed with.
        values: metric name to its value, None where it is undefined.
    """

    class_name: str
    situation: Situation
    true_positive: int
    false_positive: int
    false_negative: int
    diagonal_mm: float
    values: Mapping[str, float | None]


def score_case(task: CaseTask) -> tuple[ClassScores, ...]:
    """Reads both label maps and scores every class but the background that was looked for, in the order of the labels.

    Raises:
        GeometryError: the two grids differ, or their axes are not at right angles.
        LabelError: a voxel has a value that is neither a label nor, in the reference, the ignored one.
        ScanError: a file can't be read, or changed since it was hashed.
    """
    prediction, reference = read_pair(task.prediction.path, task.reference.path, naming=task.protocol.naming)
    for name, state in (("prediction", task.prediction), ("reference", task.reference)):
        if file_stamp(state.path) != state.stamp:
            raise ScanError(f"{task.case_id}: {name} changed while it was read, expected it to stay; run again")
    rows = score_label_maps(prediction, reference, protocol=task.protocol, name=task.case_id)
    return rows if task.labelled is None else tuple(row for row in rows if row.class_name in task.labelled)


def read_pair(prediction: Path, reference: Path, *, naming: Naming) -> tuple[LabelMap, LabelMap]:
    """Both label maps of a case. Contours have no grid and segmentations may be cut, so such a file is put on the other's."""
    if format_of(prediction).named and not format_of(reference).named:
        wanted = read_label_map(reference)
        return read_label_map(prediction, naming=naming, like=wanted), wanted
    found = read_label_map(prediction, naming=naming) if format_of(prediction).named else read_label_map(prediction)
    if format_of(reference).named:
        return found, read_label_map(reference, naming=naming, like=found)
    return found, read_label_map(reference)


def file_stamp(path: Path) -> tuple[int, int]:
    """Size in bytes and time of the last change in ns."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def score_label_maps(
    prediction: LabelMap, reference: LabelMap, *, protocol: Protocol, name: str
) -> tuple[ClassScores, ...]:
    """Scores every class but the background, in the order of the protocol's labels.

    Args:
        prediction: file values (X, Y, Z).
        reference: the same, on the same grid.
        protocol: how to score them.
        name: what messages call the case.

    Raises:
        GeometryError: the grids differ or are skewed.
        LabelError: unknown values.
    """
    difference = grid_difference(prediction.shape, prediction.affine, reference.shape, reference.affine)
    if difference is not None:
        raise GeometryError(
            f"{name}: prediction and reference lie on different grids ({difference}), expected one grid; "
            "resample the prediction to its scan"
        )
    spacing = _right_angled_spacing(reference.affine, name)
    predicted = to_classes(prediction, protocol.labels, ignore=None, name=f"{name}: prediction")
    wanted = to_classes(reference, protocol.labels, ignore=protocol.ignore, name=f"{name}: reference")
    if protocol.ignore is not None:
        ignored = wanted == IGNORE
        predicted[ignored], wanted[ignored] = 0, 0
    return score_classes(
        predicted,
        wanted,
        spacing_xyz_mm=spacing,
        class_names=tuple(protocol.labels),
        tolerance_mm=protocol.tolerance_mm,
        regions=regions_of(protocol.labels),
    )


def _right_angled_spacing(affine: Affine, name: str) -> tuple[float, float, float]:
    spacing = spacing_xyz_mm(affine)
    axes = affine[:3, :3] / spacing
    skew = float(np.abs(axes.T @ axes - np.eye(3)).max())
    if skew > _RIGHT_ANGLE:
        raise GeometryError(
            f"{name}: axes are {math.degrees(math.asin(min(1.0, skew))):.2g} degrees off right angles, expected none, "
            "for distances in mm need a rectangular grid; resample both masks to one"
        )
    return float(spacing[0]), float(spacing[1]), float(spacing[2])


def score_classes(
    prediction: ClassArray,
    reference: ClassArray,
    *,
    spacing_xyz_mm: tuple[float, float, float],
    class_names: tuple[str, ...],
    tolerance_mm: Mapping[str, float],
    regions: Regions | None = None,
) -> tuple[ClassScores, ...]:
    """Scores class indices 1 to K-1 of two arrays on one grid; what every other entry ends in.

    Args:
        prediction: (X, Y, Z) uint8 class indices.
        reference: the same.
        spacing_xyz_mm: voxel size.
        class_names: K names, background first.
        tolerance_mm: NSD's tolerance per class name.
        regions: where classes overlap; indices are combinations of them then, and each region is scored as a whole.
    """
    voxel_volume_mm3 = math.prod(spacing_xyz_mm)
    prediction, reference, spacing = _squeezed(prediction, reference, spacing_xyz_mm)
    diagonal_mm = image_diagonal_mm(reference.shape, spacing)
    members = {
        name: (index,) if regions is None else regions.indices_of(name)
        for index, name in enumerate(class_names[1:], start=1)
    }
    highest = max(max(indices) for indices in members.values())
    boxes = [_boxes(array, highest) for array in (prediction, reference)]
    rows = []
    for name, indices in members.items():
        box = _union([found[index - 1] for found in boxes for index in indices], prediction.ndim)
        pair = MaskPair(
            _mask(prediction[box], indices),
            _mask(reference[box], indices),
            spacing_mm=spacing,
            tolerance_mm=tolerance_mm[name],
            voxel_volume_mm3=voxel_volume_mm3,
            diagonal_mm=diagonal_mm,
        )
        rows.append(_row(name, pair))
    return tuple(rows)


def _squeezed(
    prediction: ClassArray, reference: ClassArray, spacing_xyz_mm: tuple[float, float, float]
) -> tuple[ClassArray, ClassArray, tuple[float, ...]]:
    """Both arrays without axes of one voxel, across which there is no inside, and in C order, in which scans go fastest."""
    kept, flat = _long_axes(reference.shape)
    spacing = tuple(spacing_xyz_mm[axis] for axis in kept)
    prediction, reference = prediction[flat], reference[flat]
    if reference.flags.f_contiguous and reference.ndim > 1:
        prediction, reference, spacing = prediction.T, reference.T, spacing[::-1]
    return np.ascontiguousarray(prediction), np.ascontiguousarray(reference), spacing


def _long_axes(shape: tuple[int, ...]) -> tuple[list[int], tuple[slice | int, ...]]:
    """The axes of more than one voxel (the first, if there is none), and the index that drops the others."""
    kept = [axis for axis, size in enumerate(shape) if size != 1] or [0]
    return kept, tuple(slice(None) if axis in kept else 0 for axis in range(len(shape)))


def _boxes(classes: ClassArray, highest: int) -> list[tuple[slice, ...] | None]:
    """The bounding box of each class from 1 on, None where it has no voxel; one pass over the array."""
    from scipy.ndimage import find_objects

    return list(find_objects(classes, max_label=highest))


def _union(boxes: Sequence[tuple[slice, ...] | None], rank: int) -> tuple[slice, ...]:
    found = [box for box in boxes if box is not None]
    if not found:
        return (slice(0, 0),) * rank
    return tuple(slice(min(box[a].start for box in found), max(box[a].stop for box in found)) for a in range(rank))


def _mask(classes: ClassArray, indices: Sequence[int]) -> BoolArray:
    mask: BoolArray = classes == indices[0]
    for index in indices[1:]:
        mask |= classes == index
    return mask


def _row(class_name: str, pair: MaskPair) -> ClassScores:
    values = {metric.name: metric.compute(pair) for metric in METRICS}
    return ClassScores(
        class_name=class_name,
        situation=pair.situation,
        true_positive=pair.counts.true_positive,
        false_positive=pair.counts.false_positive,
        false_negative=pair.counts.false_negative,
        diagonal_mm=pair.diagonal_mm,
        values={name: None if math.isnan(value) else float(value) for name, value in values.items()},
    )


def score_masks(
    prediction: BoolArray, reference: BoolArray, *, spacing_mm: tuple[float, ...], tolerance_mm: float = 1.0
) -> dict[str, float]:
    """Every metric of two masks in memory.

    Args:
        prediction: bool mask of any rank; axes of one voxel are squeezed.
        reference: one of the same shape.
        spacing_mm: voxel size per axis.
        tolerance_mm: NSD's.

    Returns:
        Metric name to value; NaN where it is undefined (docs/metrics.md says when).
    """
    kept, flat = _long_axes(reference.shape)
    pair = MaskPair(
        prediction[flat],
        reference[flat],
        spacing_mm=[spacing_mm[axis] for axis in kept],
        tolerance_mm=tolerance_mm,
        voxel_volume_mm3=math.prod(spacing_mm),
    )
    return {metric.name: metric.compute(pair) for metric in METRICS}
