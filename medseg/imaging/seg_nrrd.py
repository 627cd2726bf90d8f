"""``.seg.nrrd``, 3D Slicer's segmentations: a NRRD whose header names each segment, its colour and its value.

Segments that overlap lie in layers, a first axis of the file. Slicer crops a segmentation to what it holds, so the voxels
are put where the file's own geometry says that they lie on the scan's grid.
"""

from __future__ import annotations

import gzip
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.errors import ScanError
from medseg.imaging import itk_formats
from medseg.imaging.itk_headers import nrrd_head
from medseg.imaging.label_table import Colour, LabelTable
from medseg.imaging.limits import Limits
from medseg.imaging.opening import display_name
from medseg.imaging.structures import Naming, OnGrid, Painter, Way
from medseg.imaging.volume import Affine, LabelMap

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_KEY = re.compile(r"Segment(\d+)_(Name|LabelValue|Layer|Color)")
read_itk_header = itk_formats.read_itk_header
read_itk = itk_formats.read_itk


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One segment of a file: ``name`` is for matching, never for a message; ``value`` is what its voxels have in ``layer``."""

    name: str
    value: int
    layer: int
    colour: Colour


def read_segments(path: Path) -> dict[int, Segment]:
    """The segments of a ``.seg.nrrd`` by their values, or by number from 1 where layers use one value twice; {} for none.

    Raises:
        ScanError: no NRRD, or a segment's value or layer is no whole number.
    """
    fields: dict[int, dict[str, str]] = {}
    for line in nrrd_head(path).splitlines():
        key, _, text = line.partition(":=")
        if match := _KEY.fullmatch(key.strip()):
            fields.setdefault(int(match[1]), {})[match[2]] = text.strip()
    found = []
    try:
        for number, own in sorted(fields.items()):
            value = int(own.get("LabelValue", number + 1))
            red, green, blue = (float(part) for part in own.get("Color", "1 1 1").split())
            colour = (round(255 * red), round(255 * green), round(255 * blue))
            name = own.get("Name", "")
            found.append(Segment(name=name, value=value, layer=int(own.get("Layer", 0)), colour=colour))
    except ValueError as error:
        raise ScanError(
            f"{display_name(path)}: a segment's value, layer or colour is malformed; save it again"
        ) from error
    by_value = {one.value: one for one in found}
    return by_value if len(by_value) == len(found) else dict(enumerate(found, start=1))


def read_seg_nrrd(path: Path, *, naming: Naming, like: OnGrid | None, limits: Limits) -> LabelMap:
    """The segments as a label map; without a segment in the header, the voxels as they are.

    Args:
        path: the file.
        naming: classes; without, ``read_segments``'s numbers are the values.
        like: the scan; None is the file's own grid.
        limits: bounds on what the header may claim.

    Raises:
        GeometryError: a segment has voxels that are none of the scan's.
        LabelError: no segment is of a class.
        ScanError: the file is damaged.
    """
    name = display_name(path)
    segments = read_segments(path)
    if not segments:
        return itk_formats.read_itk_labels(path, limits=limits)
    layers, header = itk_formats.read_layers(path, limits)
    if layers.dtype.kind not in "iu" or any(not 0 <= one.layer < len(layers) for one in segments.values()):
        raise ScanError(
            f"{name}: is not made of whole numbers in {len(layers)} layers as its header says; save it again"
        )
    grid = like or header
    matched, passed_over = naming.match({number: one.name for number, one in segments.items()}, name)
    painter = Painter(grid.shape, naming, name)
    way = Way(header.affine, grid.shape, grid.affine, name)
    for class_name, numbers in matched.items():
        for segment in (segments[number] for number in numbers):
            mask = layers[segment.layer] == segment.value
            for index in np.flatnonzero(mask.any(axis=(0, 1))):
                plane = np.array(header.affine)
                plane[:3, 3] += index * plane[:3, 2]
                painter.paint(class_name, *way.onto(plane, mask[:, :, index], f"slice {index + 1}"))
    return painter.label_map(np.array(grid.affine, np.float64), header, passed_over=passed_over)


def seg_nrrd_bytes(array: npt.NDArray[np.integer], affine: Affine, label_table: LabelTable) -> bytes:
    """A ``.seg.nrrd`` of a label map: one layer where no value is in two structures, else one a structure.

    Args:
        array: label values (X, Y, Z).
        affine: RAS+ mm.
        label_table: the structures; all are named in the header, also those without a voxel.

    Returns:
        The file; equal masks give equal bytes.
    """
    values = [value for entry in label_table.values() for value in entry.values]
    overlapping = len(set(values)) < len(values)
    layers: npt.NDArray[Any]
    kind = np.uint8 if overlapping or max(values, default=0) < 256 else np.uint16
    if overlapping:
        layers = np.stack([np.isin(array, entry.values) for entry in label_table.values()]).astype(kind)
    else:
        layers = np.zeros((1, *array.shape), kind)
        for entry in label_table.values():
            layers[0][np.isin(array, entry.values)] = entry.values[0]
    header = _head(layers, affine, overlapping) + _segment_lines(layers, label_table, overlapping)
    payload = io.BytesIO()
    with gzip.GzipFile(fileobj=payload, mode="wb", mtime=0, compresslevel=6) as stream:
        stream.write(np.ascontiguousarray(layers.transpose(3, 2, 1, 0)).data)
    return "\n".join([*header, "", ""]).encode() + payload.getvalue()


def _head(layers: npt.NDArray[Any], affine: Affine, layered: bool) -> list[str]:
    lps = _LPS_TO_RAS @ np.asarray(affine, np.float64)
    vectors = [_vector(lps[:3, axis]) for axis in range(3)]
    sizes = [str(size) for size in layers.shape[0 if layered else 1 :]]
    return [
        "NRRD0004",
        f"type: {'unsigned char' if layers.dtype == np.uint8 else 'unsigned short'}",
        f"dimension: {4 if layered else 3}",
        "space: left-posterior-superior",
        f"sizes: {' '.join(sizes)}",
        f"space directions: {'none ' * layered}{' '.join(vectors)}",
        f"kinds: {'list ' * layered}domain domain domain",
        "endian: little",
        "encoding: gzip",
        f"space origin: {_vector(lps[:3, 3])}",
    ]


def _vector(values: Sequence[float] | npt.NDArray[np.float64]) -> str:
    return "(" + ",".join(repr(float(value)) for value in values) + ")"


def _segment_lines(layers: npt.NDArray[Any], label_table: LabelTable, layered: bool) -> list[str]:
    lines = []
    for number, (name, entry) in enumerate(label_table.items()):
        own: Mapping[str, str] = {
            "Color": " ".join(f"{value / 255:.6g}" for value in entry.colour),
            "ColorAutoGenerated": "0",
            "Extent": _extent(layers[number] if layered else layers[0], 1 if layered else entry.values[0]),
            "ID": f"Segment_{number + 1}",
            "LabelValue": "1" if layered else str(entry.values[0]),
            "Layer": str(number if layered else 0),
            "Name": name,
            "NameAutoGenerated": "0",
            "Tags": f"TerminologyEntry:{_terminology(entry.category, entry.type)}|",
        }
        lines += [f"Segment{number}_{key}:={value}" for key, value in own.items()]
    return [
        *lines,
        "Segmentation_ContainedRepresentationNames:=Binary labelmap|",
        "Segmentation_MasterRepresentation:=Binary labelmap",
        "Segmentation_ReferenceImageExtentOffset:=0 0 0",
    ]


def _terminology(category: Sequence[str], kind: Sequence[str]) -> str:
    """3D Slicer's words for the two coded terms: value^scheme^meaning of each is scheme^value^meaning there."""
    parts = [f"{scheme}^{value}^{meaning}" for value, scheme, meaning in (category, kind)]
    return "~".join(
        [
            "Segmentation category and type - DICOM master list",
            *parts,
            "^^",
            "Anatomic codes - DICOM master list",
            "^^",
            "^^",
        ]
    )


def _extent(layer: npt.NDArray[Any], value: int) -> str:
    mask = layer == value
    if not mask.any():
        return "0 -1 0 -1 0 -1"
    found = [np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis))) for axis in range(3)]
    return " ".join(f"{places[0]} {places[-1]}" for places in found)
