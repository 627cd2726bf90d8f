"""RTSTRUCT of a mask: contours on the scan's slices, written with pydicom alone and checked by filling them again."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medseg.durable import atomic_path
from medseg.imaging.contours import trace
from medseg.imaging.dicom_source import Source
from medseg.imaging.dicom_tags import quiet_pydicom
from medseg.imaging.label_table import Code, LabelEntry, LabelTable
from medseg.imaging.opening import display_name
from medseg.imaging.rtstruct import SOP_CLASS
from medseg.imaging.structure_check import check_structures
from medseg.imaging.volume import LabelMap

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_RAS_TO_LPS = np.array([-1.0, -1.0, 1.0])
_COPIED = (
    "SpecificCharacterSet", "PatientName", "PatientID", "PatientBirthDate", "PatientSex",
    "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName",
    "FrameOfReferenceUID",
)  # fmt: skip
_LONGEST_TEXT = 64  # of DICOM's LO


def write_rtstruct(label_map: LabelMap, path: Path, *, source: Source, label_table: LabelTable) -> None:
    """Writes a mask as an RTSTRUCT that refers to its scan; ROI n is the n-th structure of the table.

    The contours run through the midpoints between voxel centres inside and outside, so that they enclose exactly the
    centres of the mask; the file is read back and every voxel compared before it gets its name. A hole is joined to its
    contour by a keyhole.

    Args:
        label_map: values of the table (X, Y, Z) on the grid of ``source``.
        path: of the file.
        source: the series; its slices are the contours' planes.
        label_table: the structures; they may overlap.

    Raises:
        EnvironmentFault: the file does not read back as it should, or the disk did not keep it.
    """
    numbers = {structure: number for number, structure in enumerate(label_table, start=1)}
    with atomic_path(path) as temporary:
        with quiet_pydicom():
            dataset = _dataset(label_map, source, label_table)
            dataset.save_as(temporary, enforce_file_format=True)
        check_structures(
            temporary,
            label_map,
            label_table,
            numbers=numbers,
            like=source.header,
            name=display_name(path),
            own_grid=False,
        )


def _dataset(label_map: LabelMap, source: Source, label_table: LabelTable) -> Any:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    content = label_map.array.tobytes() + repr(label_table).encode()
    dataset = Dataset()
    for keyword in _COPIED:
        setattr(dataset, keyword, source.datasets[0].get(keyword, None))
    if not dataset.FrameOfReferenceUID:
        dataset.FrameOfReferenceUID = source.uid("frame of reference", b"")
    dataset.SOPClassUID, dataset.SOPInstanceUID = SOP_CLASS, source.uid("RTSTRUCT", content)
    dataset.SeriesInstanceUID = source.uid("RTSTRUCT series", content)
    dataset.Modality, dataset.SeriesNumber, dataset.InstanceNumber = "RTSTRUCT", 9001, 1
    dataset.SeriesDescription = dataset.StructureSetName = "medseg segmentation"
    dataset.StructureSetLabel = "medseg"
    dataset.StructureSetDate, dataset.StructureSetTime = source.date()
    dataset.Manufacturer = dataset.ManufacturerModelName = "medseg"
    dataset.SoftwareVersions = version("medseg")
    dataset.OperatorsName = dataset.PositionReferenceIndicator = ""
    dataset.ApprovalStatus = "UNAPPROVED"
    dataset.ReferencedFrameOfReferenceSequence = [_referenced_frame(source, dataset.FrameOfReferenceUID)]
    dataset.StructureSetROISequence, dataset.ROIContourSequence, dataset.RTROIObservationsSequence = [], [], []
    for number, (structure, entry) in enumerate(label_table.items(), start=1):
        dataset.StructureSetROISequence.append(
            _item(
                ROINumber=number,
                ReferencedFrameOfReferenceUID=dataset.FrameOfReferenceUID,
                ROIName=structure[:_LONGEST_TEXT],
                ROIGenerationAlgorithm="AUTOMATIC",
            )
        )
        contours = list(_contours(label_map, entry, source))
        drawn = {"ContourSequence": contours} if contours else {}
        dataset.ROIContourSequence.append(
            _item(ROIDisplayColor=list(entry.colour), ReferencedROINumber=number, **drawn)
        )
        dataset.RTROIObservationsSequence.append(_observation(number, entry))
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = SOP_CLASS
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return dataset


def _item(**values: Any) -> Dataset:
    from pydicom.dataset import Dataset

    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item


def _code(code: Code) -> Dataset:
    return _item(CodeValue=code.value, CodingSchemeDesignator=code.scheme, CodeMeaning=code.meaning[:_LONGEST_TEXT])


def _observation(number: int, entry: LabelEntry) -> Dataset:
    return _item(
        ObservationNumber=number,
        ReferencedROINumber=number,
        RTROIIdentificationCodeSequence=[_code(entry.type)],
        RTROIInterpretedType="",
        ROIInterpreter="",
    )


def _referenced_frame(source: Source, frame_of_reference: str) -> Dataset:
    images = [_image_reference(source, plane) for plane in range(len(source.frames))]
    series = _item(SeriesInstanceUID=source.text("SeriesInstanceUID"), ContourImageSequence=images)
    study = _item(
        ReferencedSOPClassUID="1.2.840.10008.3.1.2.3.1",
        ReferencedSOPInstanceUID=source.text("StudyInstanceUID"),
        RTReferencedSeriesSequence=[series],
    )
    return _item(FrameOfReferenceUID=frame_of_reference, RTReferencedStudySequence=[study])


def _image_reference(source: Source, plane: int) -> Dataset:
    file, frame = source.frames[plane]
    dataset = source.datasets[file]
    values = {"ReferencedSOPClassUID": dataset.SOPClassUID, "ReferencedSOPInstanceUID": dataset.SOPInstanceUID}
    if len(source.datasets) < len(source.frames):
        values["ReferencedFrameNumber"] = frame + 1
    return _item(**values)


def _contours(label_map: LabelMap, entry: LabelEntry, source: Source) -> Iterator[Dataset]:
    mask = np.isin(label_map.array, entry.values)
    for plane in np.flatnonzero(mask.any(axis=(0, 1))):
        for polygon in trace(mask[:, :, plane]):
            indices = np.column_stack([polygon, np.full(len(polygon), plane)])
            points = (indices @ source.affine[:3, :3].T + source.affine[:3, 3]) * _RAS_TO_LPS
            yield _item(
                ContourImageSequence=[_image_reference(source, int(plane))],
                ContourGeometricType="CLOSED_PLANAR",
                NumberOfContourPoints=len(points),
                # A tenth of a micrometre, well within the 16 characters of a DICOM number.
                ContourData=[f"{value:.4f}" for value in points.ravel()],
            )
