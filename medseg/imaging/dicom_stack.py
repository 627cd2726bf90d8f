"""Planes to one even, upright stack, sorted along the normal; every way in which they are none is refused.

The normal is row direction x column direction, so that (column, row, plane) is right-handed in LPS. The third column of
the affine is the mean step between the planes' own positions; the tolerances below bound how far any plane may lie from
where the affine puts it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.errors import ScanError
from medseg.imaging.dicom_headers import FileHeader
from medseg.imaging.dicom_pixels import read_planes
from medseg.imaging.dicom_planes import Plane, planes_of
from medseg.imaging.limits import Limits
from medseg.imaging.volume import Affine

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# Direction cosines written with three digits differ this much; it is 0.06 degrees.
_DIRECTION_TOLERANCE = 1e-3
# Slices further apart than this many times what they are thick leave out as much as they show, as a series does of which
# every second slice is lost.
_SPARSE = 1.9
_HARDLY_MIXED = ("ConvolutionKernel", "EchoTime")
# What two planes at one position may differ in, named in the refusal so that the user knows what to part.
_TELLING = (
    "ImageType",
    "AcquisitionNumber",
    "TemporalPositionIdentifier",
    "EchoTime",
    "DiffusionBValue",
    "TriggerTime",
    "ConvolutionKernel",
    "AcquisitionTime",
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Stack:
    """Planes in order along the normal, and the grid they make.

    Attributes:
        planes: at least one.
        shape: (X, Y, Z) = (columns, rows, planes).
        affine: (4, 4) float64, RAS+ mm.
        warnings: sentences for the user.
    """

    planes: tuple[Plane, ...]
    shape: tuple[int, int, int]
    affine: Affine
    warnings: tuple[str, ...]


def build_stack(files: Sequence[FileHeader], label: str, limits: Limits) -> Stack:
    """Order the planes of ``files`` and check that they are one volume.

    Args:
        files: of one series, at least one.
        label: the series' name for messages.
        limits: bounds, checked before any pixel is read.

    Raises:
        ScanError: any of the faults of a series; the message names the first file concerned.
        UnsupportedScanError: a sound file of a kind that is not read.
    """
    planes = [plane for header in files for plane in planes_of(header, limits)]
    first = planes[0]
    limits.check_voxels(label, (first.pixels.columns, first.pixels.rows, len(planes)))
    _check_alike(planes)
    normal = np.cross(first.row_direction, first.column_direction)
    normal /= np.linalg.norm(normal)
    order = sorted(range(len(planes)), key=lambda index: (float(planes[index].position_mm @ normal), index))
    planes = [planes[index] for index in order]
    planes, warnings = _without_duplicates(planes, normal, label)
    _check_phases(planes)
    step, uneven = _step(planes, normal, label, limits)
    affine = np.eye(4)
    affine[:3, 0] = first.row_direction * first.column_spacing_mm
    affine[:3, 1] = first.column_direction * first.row_spacing_mm
    affine[:3, 2] = step
    affine[:3, 3] = planes[0].position_mm
    return Stack(
        planes=tuple(planes),
        shape=(first.pixels.columns, first.pixels.rows, len(planes)),
        affine=_LPS_TO_RAS @ affine,
        warnings=(*warnings, *uneven, *_content_warnings(planes)),
    )


def _check_alike(planes: Sequence[Plane]) -> None:
    first = _usual(planes)
    checks: tuple[tuple[str, Callable[[Plane], str]], ...] = (
        ("Modality", lambda plane: plane.file.modality),
        ("size", lambda plane: f"{plane.pixels.columns}x{plane.pixels.rows}"),
        ("rescaling", lambda plane: "given" if plane.has_rescale else "absent"),
        ("RescaleType", lambda plane: plane.rescale_type or "none"),
        ("MONOCHROME1", lambda plane: "set" if plane.pixels.inverted else "not set"),
    )
    for what, value in checks:
        _same(planes, what, value)
    for plane in planes:
        turn = max(
            float(np.abs(plane.row_direction - first.row_direction).max()),
            float(np.abs(plane.column_direction - first.column_direction).max()),
        )
        if turn > _DIRECTION_TOLERANCE:
            raise ScanError(
                f"{plane.label}: ImageOrientationPatient differs by {turn:.3g} from {first.file.path.name}'s, expected "
                "the same in every slice; take scouts and other orientations out of the series"
            )
        ours = np.array([plane.row_spacing_mm, plane.column_spacing_mm])
        theirs = np.array([first.row_spacing_mm, first.column_spacing_mm])
        if not np.allclose(ours, theirs, rtol=1e-4, atol=0):
            raise ScanError(
                f"{plane.label}: PixelSpacing is {ours[0]:g} x {ours[1]:g} mm, expected {theirs[0]:g} x {theirs[1]:g} mm "
                f"as in {first.file.path.name}; take other images out of the series"
            )
    patients = {plane.file.tags.text("PatientID") for plane in planes}
    if len(patients) > 1:
        raise ScanError(
            f"{first.label}: PatientID has {len(patients)} values in one series, expected 1; part the patients' files"
        )
    frames = {plane.file.tags.text("FrameOfReferenceUID") for plane in planes}
    if len(frames) > 1:
        raise ScanError(
            f"{first.label}: FrameOfReferenceUID has {len(frames)} values in one series, expected 1; "
            "positions of different frames can't be compared, part the series"
        )


def _usual(planes: Sequence[Plane]) -> Plane:
    """A plane with the orientation and spacing that most have, so that a scout is named and not the scan."""

    def looks(plane: Plane) -> tuple[float, ...]:
        directions = np.concatenate([plane.row_direction, plane.column_direction]).round(2)
        return (*directions.tolist(), round(plane.row_spacing_mm, 3), round(plane.column_spacing_mm, 3))

    usual = Counter(looks(plane) for plane in planes).most_common(1)[0][0]
    return next(plane for plane in planes if looks(plane) == usual)


def _same(planes: Sequence[Plane], what: str, value: Callable[[Plane], str]) -> None:
    counts = Counter(value(plane) for plane in planes)
    if len(counts) == 1:
        return
    usual = counts.most_common(1)[0][0]
    odd = next(plane for plane in planes if value(plane) != usual)
    like = next(plane for plane in planes if value(plane) == usual)
    shown = what != "RescaleType"  # free text in the header
    got, wanted = (value(odd), value(like)) if shown else ("different", "the same in every slice")
    raise ScanError(
        f"{odd.label}: {what} is {got}, expected {wanted} as in {counts[usual]} of {len(planes)} planes of its series; "
        "take it out of the series or export it again"
    )


def _without_duplicates(
    planes: list[Plane], normal: npt.NDArray[np.float64], label: str
) -> tuple[list[Plane], tuple[str, ...]]:
    """Drop planes that repeat another one voxel by voxel; refuse different ones at one position."""
    places = [float(plane.position_mm @ normal) for plane in planes]
    tolerance = 0.01 * min(planes[0].row_spacing_mm, planes[0].column_spacing_mm)
    groups: list[list[Plane]] = []
    last = None
    for plane, place in zip(planes, places, strict=True):
        if last is None or place - last > tolerance:
            groups.append([])
        groups[-1].append(plane)
        last = place
    crowded = [group for group in groups if len(group) > 1]
    if not crowded:
        return planes, ()
    for group in crowded:
        if not all(_identical(group[0], other) for other in group[1:]):
            raise ScanError(_crowd_message(group, crowded, normal, label))
    dropped = sum(len(group) - 1 for group in crowded)
    name = crowded[0][1].label.rpartition("/")[2]
    planes_repeat = "1 plane dropped that repeats" if dropped == 1 else f"{dropped} planes dropped that repeat"
    return [group[0] for group in groups], (f"{planes_repeat} another one exactly (first: {name})",)


def _crowd_message(
    group: Sequence[Plane], crowded: Sequence[Sequence[Plane]], normal: npt.NDArray[np.float64], label: str
) -> str:
    sizes = sorted({len(one) for one in crowded})
    images = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    tags = [keyword for keyword in _TELLING if len({plane.file.tags.text(keyword) for plane in group}) > 1]
    tags += [key for key, _ in group[0].phase if len({dict(plane.phase).get(key) for plane in group}) > 1]
    differ = f"; they differ in {', '.join(dict.fromkeys(tags))}" if tags else ""
    names = " and ".join(plane.label.rpartition("/")[2] for plane in group[:2])
    return (
        f"{label}: has {images} images at {len(crowded)} position{'s' * (len(crowded) > 1)}, expected 1 at each "
        f"(first: {names} at {float(group[0].position_mm @ normal):g} mm{differ}); "
        "keep one phase, echo or reconstruction in the folder"
    )


def _identical(one: Plane, other: Plane) -> bool:
    if not np.allclose(one.position_mm, other.position_mm, rtol=0, atol=1e-4):
        return False
    if (one.slope, one.intercept) != (other.slope, other.intercept):
        return False
    return bool(np.array_equal(_stored(one), _stored(other)))


def _stored(plane: Plane) -> npt.NDArray[Any]:
    return next(values for _, values in read_planes(plane.file, plane.pixels, frozenset({plane.index})))


def _check_phases(planes: Sequence[Plane]) -> None:
    keywords = {key for plane in planes for key, _ in plane.phase}
    for keyword in sorted(keywords):
        values: set[Hashable] = {dict(plane.phase).get(keyword) for plane in planes}
        if len(values) > 1:
            raise ScanError(
                f"{planes[0].label}: {keyword} has {len(values)} values within one series, expected 1; "
                "keep one stack, phase or echo in the folder"
            )


def _step(
    planes: Sequence[Plane], normal: npt.NDArray[np.float64], label: str, limits: Limits
) -> tuple[npt.NDArray[np.float64], tuple[str, ...]]:
    """The vector from one plane to the next, LPS mm, after checking that it is the same all along."""
    if len(planes) == 1:
        return _single_step(planes[0], normal, limits)
    positions = np.array([plane.position_mm for plane in planes])
    places = positions @ normal
    gaps = np.diff(places)
    usual = float(np.sort(gaps)[(len(gaps) - 1) // 2])
    if not limits.min_spacing_mm <= usual <= limits.max_spacing_mm:
        raise ScanError(
            f"{label}: distance between slices is {usual:g} mm, expected {limits.min_spacing_mm:g} to "
            f"{limits.max_spacing_mm:g}; export the series again"
        )
    # Positions rounded to a tenth of a millimetre pass (0.05 mm off); for thin slices a twentieth of the spacing counts.
    tolerance = max(0.01 * usual, min(0.06, 0.05 * usual))
    odd = np.flatnonzero(np.abs(gaps - usual) > 2 * tolerance)
    if odd.size:
        index = int(odd[0])
        raise ScanError(
            f"{label}: gap of {gaps[index]:.4g} mm after {planes[index].label.rpartition('/')[2]} at {places[index]:g} mm "
            f"({usual:.4g} expected){f', and {odd.size - 1} more such gaps' * (odd.size > 1)}; "
            "slices are missing or unevenly spaced, export the series again"
        )
    step = (positions[-1] - positions[0]) / (len(planes) - 1)
    _check_upright(planes, positions, step, normal, label, tolerance)
    off = positions - (positions[0] + np.outer(np.arange(len(planes)), step))
    furthest = np.linalg.norm(off, axis=1)
    worst = int(furthest.argmax())
    if furthest[worst] > tolerance:
        raise ScanError(
            f"{planes[worst].label}: lies {furthest[worst]:.3g} mm off its even place, expected at most {tolerance:.3g} mm "
            "(slices unevenly spaced or shifted sideways); export the series again"
        )
    told = []
    if furthest[worst] > 0.01:
        told.append(f"slices lie up to {furthest[worst]:.3g} mm off an even spacing of {usual:.4g} mm")
    reach = planes[0].reach_mm
    if reach is not None and usual > _SPARSE * reach:
        told.append(f"slices lie {usual:.4g} mm apart and are {reach:g} mm thick; look whether some are missing")
    return step, tuple(told)


def _check_upright(
    planes: Sequence[Plane],
    positions: npt.NDArray[np.float64],
    step: npt.NDArray[np.float64],
    normal: npt.NDArray[np.float64],
    label: str,
    tolerance: float,
) -> None:
    sideways = step - (step @ normal) * normal
    tilt = float(np.arctan2(np.linalg.norm(sideways), step @ normal))
    if tilt <= _DIRECTION_TOLERANCE:
        return
    off = positions - (positions[0] + np.outer(np.arange(len(planes)), step))
    if float(np.linalg.norm(off, axis=1).max()) > tolerance:
        return  # not a tilt: single slices are shifted, and the caller says which
    raise ScanError(
        f"{label}: slices step sideways by {np.degrees(tilt):.3g} degrees (gantry tilt), expected a stack along its "
        "normal; correct the tilt when exporting (dcm2niix does), or resample the series"
    )


def _single_step(
    plane: Plane, normal: npt.NDArray[np.float64], limits: Limits
) -> tuple[npt.NDArray[np.float64], tuple[str, ...]]:
    thickness = plane.thickness_mm
    if thickness is None or not limits.min_spacing_mm <= thickness <= limits.max_spacing_mm:
        raise ScanError(
            f"{plane.label}: is the only slice and has no usable SliceThickness, so its voxels have no height; "
            "add the rest of the series"
        )
    return normal * thickness, (f"only one slice; its thickness of {thickness:g} mm is taken as the spacing",)


def _mixtures(planes: Sequence[Plane]) -> list[str]:
    """What may well differ between two scans and hardly within one, where each position has one image all the same."""
    files = {plane.file.path: plane.file.tags for plane in planes}.values()
    counts = {keyword: len({tags.text(keyword) for tags in files}) for keyword in _HARDLY_MIXED}
    return [
        f"{keyword} has {count} values within the series; look whether it is one scan"
        for keyword, count in counts.items()
        if count > 1
    ]


def _content_warnings(planes: Sequence[Plane]) -> tuple[str, ...]:
    first, tags = planes[0], planes[0].file.tags
    warnings = _mixtures(planes)
    if first.pixels.inverted:
        warnings.append("MONOCHROME1: low values are shown bright; values are left unchanged")
    if first.file.modality in ("CT", "PT") and not first.has_rescale:
        warnings.append("no RescaleSlope: stored values are taken as they are")
    if tags.text("LossyImageCompression") == "01":
        warnings.append("pixels were compressed with loss")
    return tuple(warnings)
