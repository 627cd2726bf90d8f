"""RTSTRUCT as labels: the contours of each structure, filled on the scan's own slices.

A voxel is inside when its centre is, even-odd over all contours of the structure on that slice. Only pydicom is needed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medseg.errors import GeometryError, ScanError, UnsupportedScanError
from medseg.imaging.contours import Points, fill
from medseg.imaging.dicom_headers import read_file_header
from medseg.imaging.dicom_tags import Tags
from medseg.imaging.geometry import spacing_xyz_mm
from medseg.imaging.limits import Limits
from medseg.imaging.opening import display_name
from medseg.imaging.structures import Naming, OnGrid, Painter, Place, inverse
from medseg.imaging.volume import Header, LabelMap

SOP_CLASS = "1.2.840.10008.5.1.4.1.1.481.3"
_KEYWORDS = ("StructureSetROISequence", "ROIContourSequence")
_FILLED = ("CLOSED_PLANAR", "CLOSED_PLANAR_XOR", "CLOSEDPLANAR_XOR")
# How far from a slice's plane a contour may lie, in slices: positions are rounded, and slices lie a little uneven.
_OFF_PLANE = 0.2


@dataclass(frozen=True, kw_only=True)
class Structure:
    """One structure of an RTSTRUCT.

    Attributes:
        number: DICOM's ROI number.
        name: its name, which is header text: for matching, never for a message.
        contours: each (N, 3) LPS mm.
    """

    number: int
    name: str
    contours: tuple[Points, ...]


def read_rtstruct(path: Path, *, naming: Naming, like: OnGrid | None, limits: Limits) -> LabelMap:
    """The structures as a label map on the grid of ``like``; see ``medseg.imaging.structures`` for which is which class.

    Args:
        path: the file.
        naming: classes, or the ROI numbers as values.
        like: the scan that the contours were drawn on.
        limits: bounds on the grid.

    Raises:
        GeometryError: there is no scan, or a contour lies between its slices or outside it.
        LabelError: no structure is of a class.
        ScanError: the file is damaged.
    """
    name = display_name(path)
    if like is None:
        raise GeometryError(
            f"{name}: holds contours without voxels, expected its scan beside it; give the case's image"
        )
    limits.check_voxels(name, like.shape)
    structures = read_structures(path)
    matched, passed_over = naming.match({one.number: one.name for one in structures}, name)
    painter = Painter(like.shape, naming, name)
    of_number = {one.number: one for one in structures}
    for class_name, numbers in matched.items():
        for number in numbers:
            for place, polygons in _by_slice(of_number[number], like, name):
                shape = [size for size, part in zip(like.shape, place, strict=True) if part == slice(None)]
                mask = fill(polygons, (shape[0], shape[1]))
                axis = next(axis for axis, part in enumerate(place) if part != slice(None))
                painter.paint(class_name, place, np.expand_dims(mask, axis))
    header = Header(shape=like.shape, affine=like.affine, format="dicom", dtype="uint16", modality="RTSTRUCT")
    return painter.label_map(np.array(like.affine, np.float64), header, passed_over=passed_over)


def read_structures(path: Path) -> tuple[Structure, ...]:
    """All structures, in the file's order; those that enclose nothing (points, open lines, empty ones) have no contours.

    Raises:
        ScanError: not readable or damaged.
        UnsupportedScanError: another kind of DICOM.
    """
    name = display_name(path)
    header = read_file_header(path, name, also=_KEYWORDS)
    if header is None or header.sop_class != SOP_CLASS:
        raise UnsupportedScanError(f"{name}: is no RTSTRUCT; give a file of contours")
    names: dict[int, str] = {}
    for item in header.tags.items("StructureSetROISequence"):
        if (number := item.integer("ROINumber")) is not None:
            names[number] = item.text("ROIName")
    drawn: dict[int, list[Points]] = {number: [] for number in names}
    for item in header.tags.items("ROIContourSequence"):
        number = item.integer("ReferencedROINumber")
        if number is None or number not in names:
            raise ScanError(f"{name}: a structure's contours have no name; export the file again")
        drawn[number] += _contours(item, name)
    return tuple(Structure(number=number, name=names[number], contours=tuple(drawn[number])) for number in names)


def _contours(item: Tags, name: str) -> Iterator[Points]:
    for contour in item.items("ContourSequence"):
        if contour.text("ContourGeometricType") not in _FILLED:
            continue
        try:
            values = np.array(contour.texts("ContourData"), np.float64)
        except ValueError:
            values = np.full(1, np.nan)
        if values.size % 3 or not np.isfinite(values).all():
            raise ScanError(f"{name}: a contour's points are malformed, expected triples of numbers; export it again")
        if values.size:
            yield values.reshape(-1, 3)


def _by_slice(structure: Structure, like: OnGrid, name: str) -> Iterator[tuple[Place, list[Points]]]:
    """(where, polygons in pixel indices) per slice that the structure is on."""
    if not structure.contours:
        return
    to_voxels = inverse(like.affine) @ np.diag([-1.0, -1.0, 1.0, 1.0])
    contours = [points @ to_voxels[:3, :3].T + to_voxels[:3, 3] for points in structure.contours]
    axis = _normal_axis(contours, like)
    slices: dict[int, list[Points]] = defaultdict(list)
    others = [other for other in range(3) if other != axis]
    for points in contours:
        places = points[:, axis]
        index = round(float(np.median(places)))
        off = float(np.abs(places - index).max())
        if off > _OFF_PLANE:
            spacing = float(spacing_xyz_mm(like.affine)[axis])
            raise GeometryError(
                f"{name}: a contour lies {off * spacing:.3g} mm from the nearest slice of the scan, expected at most "
                f"{_OFF_PLANE * spacing:.3g} mm; give the scan that it was drawn on"
            )
        if not 0 <= index < like.shape[axis]:
            raise GeometryError(f"{name}: a contour lies outside the scan; give the scan that it was drawn on")
        slices[index].append(points[:, others])
    for index, polygons in sorted(slices.items()):
        place = [slice(None)] * 3
        place[axis] = slice(index, index + 1)
        yield (place[0], place[1], place[2]), polygons


def _normal_axis(contours: list[Points], like: OnGrid) -> int:
    """The array axis that all contours stand upright on: the one along which each of them extends least."""
    spacing = spacing_xyz_mm(like.affine)
    spread = np.max([np.ptp(points, axis=0) for points in contours], axis=0) * spacing
    return int(np.argmin(spread))
