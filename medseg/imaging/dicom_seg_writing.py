"""DICOM-SEG of a mask, written with highdicom (the ``dicom`` extra) and checked against the mask by our own reader."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from medseg.durable import atomic_path
from medseg.errors import EnvironmentFault, ScanError
from medseg.imaging.dicom_source import Source
from medseg.imaging.dicom_tags import quiet_pydicom
from medseg.imaging.label_table import Code, LabelEntry, LabelTable
from medseg.imaging.opening import display_name
from medseg.imaging.structure_check import check_structures
from medseg.imaging.volume import LabelMap

SegmentationType = Literal["BINARY", "LABELMAP"]
_LONGEST_TEXT = 64  # of DICOM's LO
_RLE = "1.2.840.10008.1.2.5"
_EXPLICIT = "1.2.840.10008.1.2.1"
_MANUFACTURER = "medseg"


def write_dicom_seg(
    label_map: LabelMap, path: Path, *, source: Source, label_table: LabelTable, kind: SegmentationType = "BINARY"
) -> None:
    """Writes a mask as a DICOM-SEG that refers to its scan; segment n is the n-th structure of the table.

    The file is read back before it gets its name: every voxel of every structure on the scan's grid, and each structure's
    centroid by the segmentation's own geometry.

    Args:
        label_map: values of the table (X, Y, Z) on the grid of ``source``.
        path: of the file.
        source: the series.
        label_table: the structures; BINARY holds overlapping ones.
        kind: LABELMAP is small and quick where there are many structures, but few programs read it yet.

    Raises:
        EnvironmentFault: highdicom is missing, or the file does not read back as it should.
        ScanError: structures overlap in a LABELMAP, or the series' headers lack what highdicom needs.
    """
    name = display_name(path)
    numbers = {structure: number for number, structure in enumerate(label_table, start=1)}
    pixels = _pixels(label_map, label_table, source, kind, name)
    with atomic_path(path) as temporary:
        with quiet_pydicom():
            dataset = _segmentation(pixels, source, label_table, kind, name)
            dataset.save_as(temporary, enforce_file_format=True)
        check_structures(temporary, label_map, label_table, numbers=numbers, like=source.header, name=name)


def _pixels(
    label_map: LabelMap, label_table: LabelTable, source: Source, kind: SegmentationType, name: str
) -> npt.NDArray[Any]:
    """(frames, rows, columns) segment numbers, or (frames, rows, columns, segments) where structures overlap.

    Frames are in the order of highdicom's source images: slices, or the frames of the one file.
    """
    frames = label_map.array.transpose(2, 1, 0)
    if len(source.datasets) == 1:
        frames = frames[np.argsort([index for _, index in source.frames])]
    values = [value for entry in label_table.values() for value in entry.values]
    if len(set(values)) == len(values):
        numbered = np.zeros(frames.shape, np.uint8 if len(label_table) < 256 else np.uint16)
        for number, entry in enumerate(label_table.values(), start=1):
            numbered[np.isin(frames, entry.values)] = number
        return numbered
    if kind == "LABELMAP":
        raise ScanError(f"{name}: structures overlap, which a LABELMAP can't hold; set segmentation_type to BINARY")
    return np.stack([np.isin(frames, entry.values) for entry in label_table.values()], axis=3).astype(np.uint8)


def _segmentation(
    pixels: npt.NDArray[Any], source: Source, label_table: LabelTable, kind: SegmentationType, name: str
) -> Any:
    try:
        from highdicom.seg import Segmentation
    except ImportError as error:
        raise EnvironmentFault(
            f"{name}: highdicom is not installed, expected for DICOM-SEG; pip install 'medseg[dicom]'"
        ) from error
    if not source.text("FrameOfReferenceUID"):
        raise ScanError(
            f"{source.label}: FrameOfReferenceUID is missing, which a DICOM-SEG of it needs; take rtstruct or nii.gz"
        )
    content = pixels.tobytes() + repr(label_table).encode()
    try:
        dataset = Segmentation(
            source_images=list(source.datasets),
            pixel_array=pixels,
            segmentation_type=kind,
            segment_descriptions=_descriptions(label_table, source),
            series_instance_uid=source.uid(f"SEG series {kind}", content),
            sop_instance_uid=source.uid(f"SEG {kind}", content),
            series_number=9000,
            instance_number=1,
            manufacturer=_MANUFACTURER,
            manufacturer_model_name=_MANUFACTURER,
            software_versions=version("medseg"),
            device_serial_number="0",
            series_description="medseg segmentation",
            content_label="SEGMENTATION",
            omit_empty_frames=bool(pixels.any()),
            transfer_syntax_uid=_RLE if kind == "LABELMAP" else _EXPLICIT,
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ScanError(
            f"{source.label}: its headers do not suffice for a DICOM-SEG ({type(error).__name__}); take nii.gz"
        ) from error
    dataset.ContentDate, dataset.ContentTime = source.date()
    organization = source.uid(f"SEG dimensions {kind}", content)
    for item in (*dataset.get("DimensionOrganizationSequence", ()), *dataset.get("DimensionIndexSequence", ())):
        item.DimensionOrganizationUID = organization
    for item in dataset.get("ContributingEquipmentSequence", ()):
        item.ContributionDateTime = dataset.ContentDate + dataset.ContentTime
    for keyword in ("InstanceCreationDate", "InstanceCreationTime", "SeriesDate", "SeriesTime"):
        if keyword in dataset:
            del dataset[keyword]
    return dataset


def _descriptions(label_table: LabelTable, source: Source) -> list[Any]:
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.seg import SegmentDescription

    algorithm = AlgorithmIdentificationSequence(
        name="medseg", family=_concept(Code("123110", "DCM", "Artificial Intelligence")), version=version("medseg")
    )
    return [
        SegmentDescription(
            segment_number=number,
            segment_label=structure[:_LONGEST_TEXT],
            segmented_property_category=_concept(entry.category),
            segmented_property_type=_concept(entry.type),
            algorithm_type="AUTOMATIC",
            algorithm_identification=algorithm,
            tracking_uid=source.uid("tracking", structure.encode()),
            tracking_id=structure[:_LONGEST_TEXT],
            display_color=_colour(entry),
        )
        for number, (structure, entry) in enumerate(label_table.items(), start=1)
    ]


def _concept(code: Sequence[str]) -> Any:
    from highdicom.sr import CodedConcept

    value, scheme, meaning = code
    return CodedConcept(value=value, scheme_designator=scheme, meaning=meaning[:_LONGEST_TEXT])


def _colour(entry: LabelEntry) -> Any:
    from highdicom.color import CIELabColor

    return CIELabColor.from_rgb(*entry.colour)
