"""DICOM-SEG as labels: every frame put where its own header says that it lies. Only pydicom is needed.

BINARY, FRACTIONAL (half of the maximum and more is inside) and LABELMAP objects. Frames that are not there are empty, so a
SEG that covers some slices, or a smaller field, is put on the whole of its scan's grid.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.errors import ScanError, UnsupportedScanError
from medseg.imaging.dicom_headers import FileHeader, read_file_header
from medseg.imaging.dicom_pixels import PixelFormat, pixel_format, read_planes
from medseg.imaging.dicom_planes import Groups, needed_numbers, pixel_spacing, plane_directions
from medseg.imaging.dicom_tags import Tags, parsing
from medseg.imaging.limits import Limits
from medseg.imaging.opening import display_name
from medseg.imaging.structures import Naming, OnGrid, Painter, Shape, Way
from medseg.imaging.volume import Affine, Header, LabelMap

SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.7"
_KEYWORDS = ("SegmentSequence", "SegmentationType", "MaximumFractionalValue")
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, kw_only=True, eq=False)
class _Frame:
    """Where one frame lies: ``affine`` (4, 4) RAS+ mm of its (column, row, normal) axes; ``segment`` 0 is a label map's."""

    index: int
    segment: int
    affine: Affine
    spacing_mm: float | None


@dataclass(frozen=True)
class Segments:
    """A SEG's header: ``frames`` in file order, ``names`` by segment number (header text, never for a message)."""

    file: FileHeader
    kind: str
    names: Mapping[int, str]
    frames: tuple[_Frame, ...]


def read_dicom_seg(path: Path, *, naming: Naming, like: OnGrid | None, limits: Limits) -> LabelMap:
    """The segments as a label map.

    Args:
        path: the file.
        naming: classes, or the segment numbers as values.
        like: the scan; its axes may run otherwise than the SEG's. None makes a grid of the frames' own planes.
        limits: bounds.

    Returns:
        On the grid of ``like``, or on that of the frames: (columns, rows, planes along the normal).

    Raises:
        GeometryError: the frames do not lie on the scan's voxels, or a segment has voxels outside the scan.
        LabelError: no segment is of a class.
        ScanError, UnsupportedScanError: damaged, or of a kind that is not read.
    """
    name = display_name(path)
    found = read_segments(path, limits)
    first = found.frames[0]
    shape, affine = (like.shape, np.array(like.affine, np.float64)) if like is not None else _own_grid(found, name)
    limits.check_voxels(name, shape)
    matched, passed_over = naming.match(found.names, name)
    painter = Painter(shape, naming, name)
    way = Way(first.affine, shape, affine, name)
    for class_name, frame, mask in _masks(found, matched, limits):
        if mask.any():
            painter.paint(class_name, *way.onto(frame.affine, mask, f"frame {frame.index + 1}"))
    header = Header(shape=shape, affine=affine, format="dicom", dtype="uint16", modality="SEG")
    return painter.label_map(affine, header, passed_over=passed_over)


def read_segments(path: Path, limits: Limits) -> Segments:
    """The header of a SEG.

    Raises:
        ScanError: damaged, or without a segment or frame.
        UnsupportedScanError: another kind of DICOM, or a kind of segmentation that is not read.
    """
    name = display_name(path)
    header = read_file_header(path, name, also=_KEYWORDS)
    if header is None or header.sop_class not in (SEGMENTATION, LABEL_MAP):
        raise UnsupportedScanError(f"{name}: is no DICOM-SEG; give a segmentation")
    kind = header.tags.text("SegmentationType")
    if kind not in ("BINARY", "FRACTIONAL", "LABELMAP"):
        raise UnsupportedScanError(f"{name}: SegmentationType is of another kind, expected BINARY or LABELMAP")
    names = {}
    for item in header.tags.items("SegmentSequence"):
        number = item.integer("SegmentNumber")
        if number:  # 0 is a label map's background
            names[number] = item.text("SegmentLabel")
    frames = tuple(_frames(header, kind, limits))
    if not frames or not header.pixel_keyword:
        raise ScanError(f"{name}: holds no frames, expected a segmentation; export it again")
    return Segments(header, kind, names, frames)


def _frames(header: FileHeader, kind: str, limits: Limits) -> Iterator[_Frame]:
    shared = header.tags.items("SharedFunctionalGroupsSequence")[:1]
    for index, own in enumerate(header.tags.items("PerFrameFunctionalGroupsSequence")):
        label = f"{header.label} frame {index + 1}"
        groups = Groups((own, *shared))
        row, column = plane_directions(label, groups)
        between_rows, between_columns = pixel_spacing(label, groups, limits)
        affine = np.eye(4)
        affine[:3, 0], affine[:3, 1], affine[:3, 2] = (
            row * between_columns,
            column * between_rows,
            np.cross(row, column),
        )
        affine[:3, 3] = needed_numbers(label, groups, "PlanePositionSequence", "ImagePositionPatient", 3)
        measures = groups.find("PixelMeasuresSequence")
        spacing = None if measures is None else measures.number("SpacingBetweenSlices")
        spacing = spacing or (None if measures is None else measures.number("SliceThickness"))
        segment = 0 if kind == "LABELMAP" else _segment(label, groups)
        yield _Frame(index=index, segment=segment, affine=_LPS_TO_RAS @ affine, spacing_mm=spacing)


def _segment(label: str, groups: Groups) -> int:
    item: Tags | None = groups.find("SegmentIdentificationSequence")
    number = None if item is None else item.integer("ReferencedSegmentNumber")
    if number is None:
        raise ScanError(f"{label}: ReferencedSegmentNumber is missing; export the file again")
    return number


def _own_grid(found: Segments, name: str) -> tuple[Shape, Affine]:
    """The smallest grid of even planes that holds all frames."""
    first = found.frames[0]
    normal = first.affine[:3, 2]
    places = np.array([frame.affine[:3, 3] @ normal for frame in found.frames])
    # Frames of several segments share planes, to the last digits.
    planes = np.unique(np.round(places, 3))
    step = float(np.diff(planes).min()) if len(planes) > 1 else first.spacing_mm or 1.0
    lowest = found.frames[int(places.argmin())]
    affine = lowest.affine.copy()
    affine[:3, 2] *= step
    count = round(float(np.ptp(places)) / step) + 1
    rows, columns = found.file.tags.integer("Rows"), found.file.tags.integer("Columns")
    if not rows or not columns:
        raise ScanError(f"{name}: Rows or Columns is missing; export the file again")
    return (columns, rows, count), affine


def _masks(
    found: Segments, matched: Mapping[str, Sequence[int]], limits: Limits
) -> Iterator[tuple[str, _Frame, npt.NDArray[np.bool_]]]:
    """(class, frame, (columns, rows) bool): the classes in their order, but of a label map, whose never overlap, by frame."""
    if found.kind == "LABELMAP":
        for index, values in _planes(found, frozenset(range(len(found.frames))), limits):
            present = set(np.unique(values).tolist())
            for class_name, numbers in matched.items():
                if not present.isdisjoint(numbers):
                    yield class_name, found.frames[index], np.isin(values, numbers).T
        return
    fractional = found.kind == "FRACTIONAL"
    threshold = (found.file.tags.integer("MaximumFractionalValue") or 255) / 2 if fractional else 1
    for class_name, numbers in matched.items():
        wanted = frozenset(frame.index for frame in found.frames if frame.segment in numbers)
        for index, values in _planes(found, wanted, limits):
            yield class_name, found.frames[index], (values >= threshold).T


def _planes(found: Segments, wanted: frozenset[int], limits: Limits) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    if found.file.tags.integer("BitsAllocated") == 1:
        return _packed_planes(found, sorted(wanted), limits)
    pixels: PixelFormat = pixel_format(found.file, limits, labels=True)
    _check_count(found, pixels.frames)
    return read_planes(found.file, pixels, wanted)


def _packed_planes(
    found: Segments, wanted: Sequence[int], limits: Limits
) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
    """Frames of one bit a pixel, which follow each other without a gap, the lowest bit of a byte first (PS3.5, 8.1.1)."""
    header, tags = found.file, found.file.tags
    rows, columns, frames = tags.integer("Rows") or 0, tags.integer("Columns") or 0, tags.integer("NumberOfFrames") or 1
    limits.check_voxels(header.label, (columns, rows, frames))
    _check_count(found, frames)
    if header.transfer_syntax not in ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1"):
        raise UnsupportedScanError(
            f"{header.label}: packed bits are compressed; convert it to Explicit VR Little Endian"
        )
    size, expected = rows * columns, (rows * columns * frames + 7) // 8
    if header.pixel_length < expected or header.size_bytes - header.pixel_offset < expected:
        raise ScanError(
            f"{header.label}: PixelData has fewer than the promised {expected:,} bytes; copy the file again"
        )
    with header.open_pixels() as stream:
        for index in wanted:
            start, stop = index * size, (index + 1) * size
            with parsing(header.label):
                stream.seek(header.pixel_offset + start // 8)
                data = stream.read((stop + 7) // 8 - start // 8)
            bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
            yield index, bits[start % 8 : start % 8 + size].reshape(rows, columns)


def _check_count(found: Segments, frames: int) -> None:
    if frames != len(found.frames):
        raise ScanError(
            f"{found.file.label}: describes {len(found.frames)} frames, expected {frames} as NumberOfFrames says; "
            "export the file again"
        )
