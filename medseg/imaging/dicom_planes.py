"""The planes of DICOM files: where each lies, how its values are rescaled, and what it must share with its neighbours.

A classic file is one plane; an enhanced multi-frame file (CT, MR, PET) is many, described by functional groups that are
either shared or given per frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medseg.errors import ScanError, UnsupportedScanError
from medseg.imaging.dicom_headers import FileHeader
from medseg.imaging.dicom_pixels import PixelFormat, pixel_format
from medseg.imaging.dicom_tags import Tags
from medseg.imaging.limits import Limits

# Tags that must not change within one volume, even if no position occurs twice.
_CLASSIC_PHASES = ("TemporalPositionIdentifier", "EchoNumbers")
_FRAME_PHASES = (
    ("FrameContentSequence", "StackID"),
    ("FrameContentSequence", "TemporalPositionIndex"),
    ("MRImageFrameTypeSequence", "FrameType"),
    ("CTImageFrameTypeSequence", "FrameType"),
    ("PETFrameTypeSequence", "FrameType"),
    ("MREchoSequence", "EffectiveEchoTime"),
    ("MRDiffusionSequence", "DiffusionBValue"),
)
# Pictures that lie nowhere in the patient: projections, endoscopy, photographs, ultrasound.
_PICTURES = frozenset(
    {"CR", "DX", "MG", "IO", "PX", "RG", "RF", "XA", "DMS", "US", "IVUS", "ES", "XC", "GM", "SM", "OP", "OPT", "TG"}
)
_NUMBER_PHASES = frozenset({"TemporalPositionIndex", "EffectiveEchoTime", "DiffusionBValue"})


@dataclass(frozen=True, kw_only=True, eq=False)
class Plane:
    """One plane of voxels.

    Attributes:
        file: where its pixels are.
        pixels: how they are stored.
        index: which plane of the file it is.
        label: name for messages.
        position_mm: (3,) LPS mm of the centre of its first voxel.
        row_direction, column_direction: (3,) unit vectors, LPS: along a row (X) and down a column (Y).
        row_spacing_mm, column_spacing_mm: between rows (Y) and between columns (X), as PixelSpacing orders them.
        thickness_mm: distance between planes where the header gives one, else None; used for a single plane only.
        reach_mm: the larger of SliceThickness and SpacingBetweenSlices, some writers' distance between slices and others'
            gap; None where neither is given.
        slope, intercept: of the rescaling, 1 and 0 where there is none.
        has_rescale: whether the header gives them.
        rescale_type: what the values are in, e.g. "HU".
        units: UCUM code of the rescaled values in an enhanced file whose real-world mapping is that rescaling, else "".
        phase: keyword and value of what may not change within a volume.
    """

    file: FileHeader
    pixels: PixelFormat
    index: int
    label: str
    position_mm: npt.NDArray[np.float64]
    row_direction: npt.NDArray[np.float64]
    column_direction: npt.NDArray[np.float64]
    row_spacing_mm: float
    column_spacing_mm: float
    thickness_mm: float | None
    reach_mm: float | None
    slope: float
    intercept: float
    has_rescale: bool
    rescale_type: str
    units: str
    phase: tuple[tuple[str, str], ...]


def planes_of(header: FileHeader, limits: Limits) -> list[Plane]:
    """All planes of one file, in file order, each checked.

    Raises:
        ScanError: a tag is missing or malformed, or the pixel data is not what the header promises.
        UnsupportedScanError: a kind of DICOM that is not read.
    """
    if header.pixel_offset > limits.max_header_bytes:
        raise ScanError(
            f"{header.label}: header has {header.pixel_offset:,} bytes, expected at most {limits.max_header_bytes:,}"
        )
    pixels = pixel_format(header, limits)
    tags = header.tags
    if "ModalityLUTSequence" in tags:
        raise UnsupportedScanError(f"{header.label}: values go through a ModalityLUTSequence, which is not read")
    if "PerFrameFunctionalGroupsSequence" in tags:
        return _enhanced_planes(header, pixels, limits)
    if header.modality in _PICTURES and "ImagePositionPatient" not in tags:
        raise UnsupportedScanError(
            f"{header.label}: Modality is {header.modality}, a picture without a place in the patient, expected slices of a "
            "volume; convert it to PNG or TIFF for a model of pictures"
        )
    if pixels.frames > 1:
        raise UnsupportedScanError(
            f"{header.label}: NumberOfFrames is {pixels.frames} without functional groups, expected an enhanced CT, "
            "MR or PET object; convert it to one file a slice"
        )
    phase = tuple((keyword, tags.text(keyword)) for keyword in _CLASSIC_PHASES)
    return [_plane(header, pixels, 0, header.label, Groups((tags,), flat=True), phase, limits)]


class Groups:
    """Looks a value up in the functional groups of one frame, then in the shared ones; or flat in a classic header."""

    def __init__(self, levels: tuple[Tags, ...], *, flat: bool = False) -> None:
        self._levels = levels
        self._flat = flat

    def find(self, sequence: str) -> Tags | None:
        """The item that holds the ``sequence``'s values."""
        if self._flat:
            return self._levels[0]
        for level in self._levels:
            items = level.items(sequence)
            if items:
                return items[0]
        return None


def _enhanced_planes(header: FileHeader, pixels: PixelFormat, limits: Limits) -> list[Plane]:
    frames = header.tags.items("PerFrameFunctionalGroupsSequence")
    shared = header.tags.items("SharedFunctionalGroupsSequence")[:1]
    if len(frames) != pixels.frames:
        raise ScanError(
            f"{header.label}: PerFrameFunctionalGroupsSequence has {len(frames)} items, expected {pixels.frames} "
            "as NumberOfFrames says; export the file again"
        )
    shared_phase = _frame_phase(Groups(shared)) if shared else {}
    planes = []
    for index, frame in enumerate(frames):
        label = f"{header.label} frame {index + 1}"
        phase = tuple({**shared_phase, **_frame_phase(Groups((frame,)))}.items())
        planes.append(_plane(header, pixels, index, label, Groups((frame, *shared)), phase, limits))
    return planes


def _frame_phase(groups: Groups) -> dict[str, str]:
    phase = {}
    for sequence, keyword in _FRAME_PHASES:
        item = groups.find(sequence)
        if item is not None and keyword in item:
            number = item.number(keyword) if keyword in _NUMBER_PHASES else None
            phase[keyword] = item.text(keyword) if number is None else repr(number)
    return phase


def _plane(
    header: FileHeader,
    pixels: PixelFormat,
    index: int,
    label: str,
    groups: Groups,
    phase: tuple[tuple[str, str], ...],
    limits: Limits,
) -> Plane:
    row, column = plane_directions(label, groups)
    between_rows, between_columns = pixel_spacing(label, groups, limits)
    slope, intercept, has_rescale, rescale_type = _rescale(label, groups)
    thickness, reach = _thickness(groups)
    return Plane(
        file=header,
        pixels=pixels,
        index=index,
        label=label,
        position_mm=np.array(needed_numbers(label, groups, "PlanePositionSequence", "ImagePositionPatient", 3)),
        row_direction=row,
        column_direction=column,
        row_spacing_mm=between_rows,
        column_spacing_mm=between_columns,
        thickness_mm=thickness,
        reach_mm=reach,
        slope=slope,
        intercept=intercept,
        has_rescale=has_rescale,
        rescale_type=rescale_type,
        units=_units(groups, slope, intercept),
        phase=phase,
    )


def needed_numbers(label: str, groups: Groups, sequence: str, keyword: str, count: int) -> tuple[float, ...]:
    """``count`` numbers of a frame's functional group; a ScanError where they are missing."""
    item = groups.find(sequence)
    values = None if item is None else item.numbers(keyword, count)
    if values is None:
        raise ScanError(f"{label}: {keyword} is missing, so its place is unknown; export the series again")
    return values


def plane_directions(label: str, groups: Groups) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Unit vectors (LPS) along a row and down a column; a ScanError where they are not at right angles."""
    values = np.array(needed_numbers(label, groups, "PlaneOrientationSequence", "ImageOrientationPatient", 6))
    row, column = values[:3], values[3:]
    lengths = float(np.linalg.norm(row)), float(np.linalg.norm(column))
    # 1e-3 is what cosines written with three digits need.
    if max(abs(length - 1) for length in lengths) > 1e-3 or abs(float(row @ column)) > 1e-3:
        raise ScanError(
            f"{label}: ImageOrientationPatient has lengths {lengths[0]:.4g} and {lengths[1]:.4g} and product "
            f"{float(row @ column):.4g}, expected 1, 1 and 0; export the series again"
        )
    return row / lengths[0], column / lengths[1]


def pixel_spacing(label: str, groups: Groups, limits: Limits) -> tuple[float, float]:
    """Millimetres between rows, and between columns."""
    values = needed_numbers(label, groups, "PixelMeasuresSequence", "PixelSpacing", 2)
    low, high = limits.min_spacing_mm, limits.max_spacing_mm
    if not all(low <= value <= high for value in values):
        raise ScanError(
            f"{label}: PixelSpacing is {values[0]:g} x {values[1]:g} mm, expected {low:g} to {high:g}; "
            "export the series again"
        )
    return values[0], values[1]


def _thickness(groups: Groups) -> tuple[float | None, float | None]:
    """(distance to the next plane as the header has it, the larger of both numbers that it may have)."""
    item = groups.find("PixelMeasuresSequence")
    if item is None:
        return None, None
    between, thickness = item.number("SpacingBetweenSlices"), item.number("SliceThickness")
    return between or thickness, max(between or 0, thickness or 0) or None


def _rescale(label: str, groups: Groups) -> tuple[float, float, bool, str]:
    item = groups.find("PixelValueTransformationSequence")
    slope = None if item is None else item.number("RescaleSlope")
    intercept = None if item is None else item.number("RescaleIntercept")
    if item is None or (slope is None and intercept is None):
        return 1.0, 0.0, False, ""
    if slope is None or intercept is None:
        missing = "RescaleSlope" if slope is None else "RescaleIntercept"
        raise ScanError(f"{label}: {missing} is missing beside its twin; export the series again")
    if np.float32(slope) == 0:
        raise ScanError(f"{label}: RescaleSlope is {slope:g}, expected another number than 0; export the series again")
    return slope, intercept, True, item.text("RescaleType")


def _units(groups: Groups, slope: float, intercept: float) -> str:
    mapping = groups.find("RealWorldValueMappingSequence")
    if mapping is None:
        return ""
    real = mapping.number("RealWorldValueSlope"), mapping.number("RealWorldValueIntercept")
    codes = mapping.items("MeasurementUnitsCodeSequence")
    if None in real or not codes or not np.allclose(np.array(real, dtype=float), (slope, intercept), rtol=1e-6, atol=0):
        return ""
    return codes[0].text("CodeValue")
