"""Scores of one case: two label maps in, one row per class out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.errors import GeometryError, ScanError
from medseg.evaluation.confusion import count_confusion
from medseg.evaluation.instances import as_plain
from medseg.evaluation.masks import ClassMask
from medseg.evaluation.overlap import BoolArray
from medseg.evaluation.pair import MaskPair, Situation, image_diagonal_mm
from medseg.evaluation.probabilities import read_probabilities
from medseg.evaluation.protocol import Protocol
from medseg.evaluation.reading import read_pair
from medseg.evaluation.registry import CALIBRATION, CASE_METRICS, INSTANCES, choose_metrics, known_metrics, metric_names
from medseg.evaluation.reliability import ProbabilityArray, ProbabilityMap
from medseg.imaging import LabelMap, Regions, grid_difference, regions_of, spacing_xyz_mm, to_classes
from medseg.imaging.labels import IGNORE
from medseg.imaging.volume import Affine

ClassArray = npt.NDArray[np.uint8]

_RIGHT_ANGLE = 1e-3
_OF_LESIONS = frozenset(metric.name for metric in INSTANCES)
_OF_PROBABILITIES = frozenset(metric.name for metric in (*CALIBRATION, *INSTANCES))


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
        probabilities: the map of the classes' probabilities, where there is one and the protocol needs it.
        two_references: whether the prediction is a reference too, whose ignored voxels then count for nothing either.
    """

    case_id: str
    prediction: FileState
    reference: FileState
    protocol: Protocol
    labelled: tuple[str, ...] | None = None
    probabilities: FileState | None = None
    two_references: bool = False


@dataclass(frozen=True, kw_only=True)
class ClassScores:
    """One row: one class of one case.

    Attributes:
        class_name: as in the labels.
        situation: which masks are empty.
        true_positive, false_positive, false_negative: voxels.
        diagonal_mm: what an undefined distance is imputed with.
        values: metric name to its value, None where it is undefined.
        lesions: lesion by lesion (:func:`~medseg.evaluation.instances.as_plain`), where metrics of lesions were chosen.
    """

    class_name: str
    situation: Situation
    true_positive: int
    false_positive: int
    false_negative: int
    diagonal_mm: float
    values: Mapping[str, float | None]
    lesions: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class CaseScores:
    """What was found out about one case.

    Attributes:
        rows: one per class, in the order of the labels.
        values: of all classes together: name of a case metric to its value, None where it is undefined.
    """

    rows: tuple[ClassScores, ...]
    values: Mapping[str, float | None]


def score_case(task: CaseTask) -> CaseScores:
    """Reads both label maps and scores every class but the background that was looked for, in the order of the labels.

    Where not all classes were looked for, nothing is said of all classes together.

    Raises:
        GeometryError: the two grids differ, or their axes are not at right angles.
        LabelError: a voxel has a value that is neither a label nor, in a reference, the ignored one.
        ScanError: a file can't be read, or changed since it was hashed.
    """
    prediction, reference = read_pair(task.prediction.path, task.reference.path, naming=task.protocol.naming)
    probabilities = None
    if task.probabilities is not None:
        names = task.protocol.class_names
        probabilities = read_probabilities(
            task.probabilities.path,
            class_names=names,
            affine=reference.affine,
            shape=reference.shape,
            name=task.case_id,
        )
    states = {"prediction": task.prediction, "reference": task.reference, "probability map": task.probabilities}
    for name, state in states.items():
        if state is not None and file_stamp(state.path) != state.stamp:
            raise ScanError(f"{task.case_id}: {name} changed while it was read, expected it to stay; run again")
    found = _scored_maps(
        prediction,
        reference,
        protocol=task.protocol,
        name=task.case_id,
        probabilities=probabilities,
        two_references=task.two_references,
    )
    if task.labelled is None:
        return found
    rows = tuple(row for row in found.rows if row.class_name in task.labelled)
    return found if len(rows) == len(found.rows) else CaseScores(rows=rows, values=dict.fromkeys(found.values))


def needs_probabilities(metrics: Sequence[str]) -> bool:
    """Whether any of these metrics uses a probability map where there is one."""
    return not _OF_PROBABILITIES.isdisjoint(metrics)


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
    return _scored_maps(prediction, reference, protocol=protocol, name=name).rows


def _scored_maps(
    prediction: LabelMap,
    reference: LabelMap,
    *,
    protocol: Protocol,
    name: str,
    probabilities: ProbabilityArray | None = None,
    two_references: bool = False,
) -> CaseScores:
    difference = grid_difference(prediction.shape, prediction.affine, reference.shape, reference.affine)
    if difference is not None:
        raise GeometryError(
            f"{name}: prediction and reference lie on different grids ({difference}), expected one grid; "
            "resample the prediction to its scan"
        )
    spacing = _right_angled_spacing(reference.affine, name)
    ignore = protocol.ignore if two_references else None
    predicted = to_classes(prediction, protocol.labels, ignore=ignore, name=f"{name}: prediction")
    wanted = to_classes(reference, protocol.labels, ignore=protocol.ignore, name=f"{name}: reference")
    ignored = None
    if protocol.ignore is not None:
        ignored = wanted == IGNORE
        if two_references:
            ignored |= predicted == IGNORE
        predicted[ignored], wanted[ignored] = 0, 0
    return score_case_arrays(
        predicted,
        wanted,
        spacing_xyz_mm=spacing,
        class_names=tuple(protocol.labels),
        tolerance_mm=protocol.tolerance_mm,
        regions=regions_of(protocol.labels),
        metrics=protocol.metrics,
        ignored=ignored,
        probabilities=probabilities,
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
    """The rows of :func:`score_case_arrays` with the default metrics."""
    return score_case_arrays(
        prediction,
        reference,
        spacing_xyz_mm=spacing_xyz_mm,
        class_names=class_names,
        tolerance_mm=tolerance_mm,
        regions=regions,
    ).rows


def score_case_arrays(
    prediction: ClassArray,
    reference: ClassArray,
    *,
    spacing_xyz_mm: tuple[float, float, float],
    class_names: tuple[str, ...],
    tolerance_mm: Mapping[str, float],
    regions: Regions | None = None,
    metrics: Sequence[str] = metric_names(),
    ignored: BoolArray | None = None,
    probabilities: ProbabilityArray | None = None,
) -> CaseScores:
    """Scores two arrays on one grid; what every other entry ends in.

    Args:
        prediction: (X, Y, Z) uint8 class indices.
        reference: the same.
        spacing_xyz_mm: voxel size.
        class_names: K names, background first.
        tolerance_mm: NSD's tolerance per class name.
        regions: where classes overlap; indices are combinations of them then, each region is scored as a whole, and nothing is
            said of all classes together.
        metrics: names of what to compute for each class.
        ignored: (X, Y, Z) voxels that count for nothing; both arrays hold background there.
        probabilities: (K - 1, X, Y, Z) of the classes without background.
    """
    voxel_volume_mm3 = math.prod(spacing_xyz_mm)
    arrays = [prediction, reference, *([] if ignored is None else [ignored])]
    squeezed, spacing = _squeezed(arrays, spacing_xyz_mm)
    prediction, reference = squeezed[0], squeezed[1]
    without = None if ignored is None else squeezed[2]
    diagonal_mm = image_diagonal_mm(reference.shape, spacing)
    members = {
        name: (index,) if regions is None else regions.indices_of(name)
        for index, name in enumerate(class_names[1:], start=1)
    }
    confusion = count_confusion(
        prediction,
        reference,
        classes=1 + max(max(indices) for indices in members.values()),
        ignored=0 if without is None else int(np.count_nonzero(without)),
    )
    rows = []
    for number, (name, indices) in enumerate(members.items()):
        box = confusion.box(indices)
        probability = None
        if probabilities is not None:
            own = _squeezed([probabilities[number], arrays[1]], spacing_xyz_mm)[0][0]
            probability = ProbabilityMap(own, box, without)
        pair = MaskPair(
            ClassMask(prediction[box], indices),
            ClassMask(reference[box], indices),
            spacing_mm=spacing,
            tolerance_mm=tolerance_mm[name],
            voxel_volume_mm3=voxel_volume_mm3,
            diagonal_mm=diagonal_mm,
            counts=confusion.counts(indices),
            probability=probability,
        )
        rows.append(_row(name, pair, metrics))
    together = {metric.name: math.nan if regions else metric.compute(confusion) for metric in CASE_METRICS}
    return CaseScores(rows=tuple(rows), values=_without_nan(together))


def _squeezed(arrays: Sequence[Any], spacing_xyz_mm: tuple[float, float, float]) -> tuple[list[Any], tuple[float, ...]]:
    """The arrays without axes of one voxel, across which there is no inside, and turned so that scans go fastest.

    That is the order in which they lie in memory, of the second one, the reference.
    """
    kept, flat = _long_axes(arrays[1].shape)
    spacing = tuple(spacing_xyz_mm[axis] for axis in kept)
    found = [array[flat] for array in arrays]
    if found[1].flags.f_contiguous and found[1].ndim > 1:
        found, spacing = [array.T for array in found], spacing[::-1]
    return found, spacing


def _long_axes(shape: tuple[int, ...]) -> tuple[list[int], tuple[slice | int, ...]]:
    """The axes of more than one voxel (the first, if there is none), and the index that drops the others."""
    kept = [axis for axis, size in enumerate(shape) if size != 1] or [0]
    return kept, tuple(slice(None) if axis in kept else 0 for axis in range(len(shape)))


def _row(class_name: str, pair: MaskPair, metrics: Sequence[str]) -> ClassScores:
    values = {metric.name: metric.compute(pair) for metric in known_metrics(metrics)}
    return ClassScores(
        class_name=class_name,
        situation=pair.situation,
        true_positive=pair.counts.true_positive,
        false_positive=pair.counts.false_positive,
        false_negative=pair.counts.false_negative,
        diagonal_mm=pair.diagonal_mm,
        values=_without_nan(values),
        lesions={} if _OF_LESIONS.isdisjoint(metrics) else as_plain(pair.instances),
    )


def _without_nan(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else float(value) for name, value in values.items()}


def score_masks(
    prediction: BoolArray,
    reference: BoolArray,
    *,
    spacing_mm: tuple[float, ...],
    tolerance_mm: float = 1.0,
    metrics: Sequence[str] = (),
) -> dict[str, float]:
    """The metrics of two masks in memory.

    Args:
        prediction: bool mask of any rank; axes of one voxel are squeezed.
        reference: one of the same shape.
        spacing_mm: voxel size per axis.
        tolerance_mm: NSD's.
        metrics: what to compute besides the default ones: groups, metrics, or ``all`` (docs/metrics.md).

    Returns:
        Metric name to value; NaN where it is undefined (docs/metrics.md says when).

    Raises:
        ValueError: the shapes differ, or there is not one spacing per axis.
        UsageError: there is no such metric.
    """
    chosen = choose_metrics(metrics)
    if prediction.shape != reference.shape or len(spacing_mm) != prediction.ndim:
        raise ValueError(
            f"masks of shapes {prediction.shape} and {reference.shape} with {len(spacing_mm)} spacings, "
            "expected one shape and a spacing per axis"
        )
    kept, flat = _long_axes(reference.shape)
    spacing = [spacing_mm[axis] for axis in kept]
    classes = [np.asarray(mask[flat], np.bool_).view(np.uint8) for mask in (prediction, reference)]
    confusion = count_confusion(*classes, classes=2)
    box = confusion.box((1,))
    pair = MaskPair(
        ClassMask(classes[0][box]),
        ClassMask(classes[1][box]),
        spacing_mm=spacing,
        tolerance_mm=tolerance_mm,
        voxel_volume_mm3=math.prod(spacing_mm),
        diagonal_mm=image_diagonal_mm(classes[1].shape, spacing),
        counts=confusion.counts((1,)),
    )
    return {metric.name: float(metric.compute(pair)) for metric in known_metrics(chosen)}
