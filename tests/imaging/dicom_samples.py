"""Small synthetic DICOM series, written with pydicom, into which every fault of a real one can be put.

Every text field holds ``SECRET``, so that a test can prove that no header text reaches a message.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

SECRET = "ZZSECRETZZ"
SECRET_UID = "1.2.826.0.1.3680043.8.498.7777777"
SERIES = f"{SECRET_UID}.1"
CLASSES = {
    "CT": "1.2.840.10008.5.1.4.1.1.2",
    "MR": "1.2.840.10008.5.1.4.1.1.4",
    "PT": "1.2.840.10008.5.1.4.1.1.128",
    "ENHANCED CT": "1.2.840.10008.5.1.4.1.1.2.1",
    "ENHANCED MR": "1.2.840.10008.5.1.4.1.1.4.1",
    "ENHANCED PT": "1.2.840.10008.5.1.4.1.1.130",
    "SEG": "1.2.840.10008.5.1.4.1.1.66.4",
    "RTSTRUCT": "1.2.840.10008.5.1.4.1.1.481.3",
}
COLUMNS, ROWS = 7, 5
# Row spacing, column spacing and slice spacing all differ, so that no two can be swapped unnoticed.
ROW_MM, COLUMN_MM, SLICE_MM = 0.75, 0.5, 2.5
ORIGIN = (10.0, -20.0, 15.0)
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)

Change = Callable[[Dataset, int], None]


def stored(count: int, *, dtype: str = "int16", seed: int = 1) -> np.ndarray:
    """(count, ROWS, COLUMNS) stored values of a CT, some negative where the type allows."""
    low = -1000 if np.dtype(dtype).kind == "i" else 0
    return np.random.default_rng(seed).integers(low, 1500, (count, ROWS, COLUMNS)).astype(dtype)


def _basic(modality: str, sop_class: str) -> Dataset:
    ds = Dataset()
    ds.SOPClassUID = sop_class
    ds.SOPInstanceUID = f"{SECRET_UID}.2"
    ds.StudyDate, ds.SeriesDate, ds.AcquisitionDate = "19990101", "19990101", "19990101"
    ds.StudyTime, ds.SeriesTime, ds.AcquisitionTime = "100000", "100000", "100000"
    ds.Modality = modality
    ds.InstitutionName = SECRET
    ds.StudyDescription = SECRET
    ds.SeriesDescription = SECRET
    ds.PatientName = SECRET
    ds.PatientID = SECRET
    ds.ImageType = ["ORIGINAL", "PRIMARY", SECRET]
    ds.StudyInstanceUID = f"{SECRET_UID}.3"
    ds.SeriesInstanceUID = SERIES
    ds.FrameOfReferenceUID = f"{SECRET_UID}.4"
    ds.PatientComments = SECRET
    return ds


def _put_pixels(ds: Dataset, planes: np.ndarray) -> None:
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.Rows, ds.Columns = planes.shape[-2:]
    bits = planes.dtype.itemsize * 8
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = bits, bits, bits - 1
    if planes.dtype.kind == "f":
        keyword = "FloatPixelData" if bits == 32 else "DoubleFloatPixelData"
        setattr(ds, keyword, planes.tobytes())
        return
    ds.PixelRepresentation = int(planes.dtype.kind == "i")
    ds.PixelData = planes.tobytes() + b"\0" * (planes.nbytes % 2)
    ds["PixelData"].VR = "OW" if bits > 8 else "OB"


def slice_dataset(index: int, plane: np.ndarray, *, modality: str = "CT", orientation: Any = AXIAL) -> Dataset:
    """One classic slice, ``index`` steps of SLICE_MM along the normal from ORIGIN."""
    ds = _basic(modality, CLASSES[modality])
    normal = np.cross(orientation[:3], orientation[3:])
    ds.InstanceNumber = index + 1
    ds.ImagePositionPatient = [round(float(value), 6) for value in np.array(ORIGIN) + index * SLICE_MM * normal]
    ds.ImageOrientationPatient = [float(value) for value in orientation]
    ds.PixelSpacing = [ROW_MM, COLUMN_MM]
    ds.SliceThickness = 4.0
    ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = 1, -1024, "HU"
    if modality == "PT":
        _put_pet(ds)
    _put_pixels(ds, plane)
    return ds


def _put_pet(ds: Dataset) -> None:
    ds.RescaleIntercept = 0
    del ds.RescaleType
    ds.Units = "BQML"
    ds.DecayCorrection = "START"
    ds.CorrectedImage = ["DECY", "ATTN", "SCAT"]
    ds.PatientWeight = 70
    tracer = Dataset()
    tracer.Radiopharmaceutical = SECRET
    tracer.RadiopharmaceuticalStartTime = "090000"
    tracer.RadionuclideTotalDose = 3.5e8
    tracer.RadionuclideHalfLife = 6586.2
    ds.RadiopharmaceuticalInformationSequence = Sequence([tracer])


def save(ds: Dataset, path: Path, *, syntax: str = ExplicitVRLittleEndian, preamble: bool = True) -> Path:
    """Write a data set as a DICOM file; with ``preamble=False`` as the bare data set of old archives."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not preamble:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ds.save_as(path, implicit_vr=True, little_endian=True, enforce_file_format=False)
        return path
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = ds.SOPClassUID
    meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    meta.TransferSyntaxUID = syntax
    implicit, little = syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
    file = FileDataset(path, ds, file_meta=meta, preamble=b"\0" * 128, is_implicit_VR=implicit, is_little_endian=little)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file.save_as(path, enforce_file_format=True)
    return path


def write_series(
    folder: Path,
    planes: np.ndarray | None = None,
    *,
    count: int = 5,
    modality: str = "CT",
    orientation: Any = AXIAL,
    change: Change | None = None,
    names: str = "IM{:04d}.dcm",
    syntax: str = ExplicitVRLittleEndian,
    preamble: bool = True,
) -> Path:
    """A series, one file a slice, written in reverse so that neither name nor number gives the order.

    Args:
        folder: where; made if absent.
        planes: (count, rows, columns) stored values; random ones when None.
        count: slices, when ``planes`` is None.
        modality: CT, MR or PT.
        orientation: six direction cosines.
        change: called with each data set and its index before writing; the place to put a fault in.
        names: of the files, with the place of a number.
        syntax: transfer syntax UID.
        preamble: see ``save``.
    """
    planes = stored(count) if planes is None else planes
    for index, plane in enumerate(planes):
        ds = slice_dataset(index, plane, modality=modality, orientation=orientation)
        if change is not None:
            change(ds, index)
        save(ds, folder / names.format(len(planes) - index), syntax=syntax, preamble=preamble)
    return folder


def at(index: int, **values: Any) -> Change:
    """A change that sets tags of one slice; None deletes the tag."""

    def change(ds: Dataset, current: int) -> None:
        if current == index or index < 0:
            for keyword, value in values.items():
                if value is None:
                    del ds[keyword]
                else:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        setattr(ds, keyword, value)

    return change


def everywhere(**values: Any) -> Change:
    """A change that sets tags of every slice; None deletes the tag."""
    return at(-1, **values)


def enhanced_dataset(
    planes: np.ndarray, *, modality: str = "CT", order: Any = None, shared: bool = True, change: Change | None = None
) -> Dataset:
    """An enhanced multi-frame data set.

    Args:
        planes: (count, rows, columns) stored values in order along the normal.
        modality: CT, MR or PT.
        order: the planes' order in the file; the last one first when None.
        shared: spacing and orientation in the shared functional groups, else in every frame's.
        change: called with each frame's item and the index of its plane.
    """
    order = range(len(planes))[::-1] if order is None else order
    ds = _basic(modality, CLASSES[f"ENHANCED {modality}"])
    measures, orientation = Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [ROW_MM, COLUMN_MM], 4.0
    orientation.ImageOrientationPatient = list(AXIAL)
    common = Dataset()
    if shared:
        common.PixelMeasuresSequence, common.PlaneOrientationSequence = Sequence([measures]), Sequence([orientation])
    ds.SharedFunctionalGroupsSequence = Sequence([common])
    frames = []
    for index in order:
        frame, position, values, content = Dataset(), Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [ORIGIN[0], ORIGIN[1], ORIGIN[2] + index * SLICE_MM]
        values.RescaleSlope, values.RescaleIntercept, values.RescaleType = 1 + 0.5 * index, -7, "US"
        content.StackID, content.TemporalPositionIndex = "1", 1
        content.FrameComments = SECRET
        frame.PlanePositionSequence = Sequence([position])
        frame.PixelValueTransformationSequence = Sequence([values])
        frame.FrameContentSequence = Sequence([content])
        if not shared:
            frame.PixelMeasuresSequence, frame.PlaneOrientationSequence = Sequence([measures]), Sequence([orientation])
        if change is not None:
            change(frame, index)
        frames.append(frame)
    ds.PerFrameFunctionalGroupsSequence = Sequence(frames)
    ds.NumberOfFrames = len(planes)
    _put_pixels(ds, planes[list(order)])
    return ds


def patch(path: Path, old: bytes, new: bytes) -> None:
    """Replace bytes in a file, once."""
    data = path.read_bytes()
    assert data.count(old) >= 1, "bytes to be replaced are not there"
    path.write_bytes(data.replace(old, new, 1))
