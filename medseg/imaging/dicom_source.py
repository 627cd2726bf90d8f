"""The DICOM series that a mask belongs to, as DICOM objects that are made from it need it: headers in the order of slices.

Objects that are written carry the scan's patient and study, as they must to be filed beside it; nothing of that reaches a
message. Their UIDs and dates follow from the scan and the mask, so a mask that is made again is the same object.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medseg.durable import sha256_bytes
from medseg.errors import GeometryError, ScanError
from medseg.imaging.dicom import DicomSeries, open_series
from medseg.imaging.dicom_tags import parsing, quiet_pydicom
from medseg.imaging.geometry import grid_difference
from medseg.imaging.limits import Limits
from medseg.imaging.opening import display_name
from medseg.imaging.volume import Affine, Header

# May be empty by the standard, and absent after some anonymisation; what reads them asks for them none the less.
_MAY_BE_EMPTY = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
    "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
_NEEDED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A series, sorted along its normal.

    Attributes:
        label: for messages.
        header: its grid.
        datasets: pydicom's, without pixels: one a file, in order; of a multi-frame file the one.
        frames: per plane of the stack, (place in ``datasets``, frame in the file from 0).
    """

    label: str
    header: Header
    datasets: tuple[Any, ...] = field(repr=False)
    frames: tuple[tuple[int, int], ...]

    @property
    def affine(self) -> Affine:
        """(4, 4) RAS+ mm."""
        return self.header.affine

    def text(self, keyword: str) -> str:
        """A value of the first header, "" where it is absent; never for a message."""
        with quiet_pydicom():
            return str(self.datasets[0].get(keyword) or "")

    def date(self) -> tuple[str, str]:
        """(date, time) of the scan: of its series, content, acquisition or study, the first that is there."""
        kinds = ("Series", "Content", "Acquisition", "Study")
        found = next((kind for kind in kinds if self.text(f"{kind}Date")), "Study")
        return self.text(f"{found}Date") or "19000101", self.text(f"{found}Time") or "000000"

    def uid(self, kind: str, content: bytes) -> str:
        """A UID of its own for every series, kind of object and mask."""
        from pydicom.uid import generate_uid

        return str(generate_uid(entropy_srcs=[self.text("SeriesInstanceUID"), kind, sha256_bytes(content)]))


def open_source(images: Sequence[Path], *, series_uid: str | None, like: Header | None) -> Source:
    """The series that the first of ``images`` holds.

    Args:
        images: of the case.
        series_uid: UID or code of the series, where the folder holds several.
        like: the header that the scan was read with: the series must have its grid.

    Raises:
        ScanError: no DICOM series, or its headers lack what an object made from it needs.
        GeometryError: the series has another grid.
    """
    path = images[0]
    label = display_name(path)
    series = open_series(path, series_uid=series_uid, limits=Limits())
    if like is not None and (
        difference := grid_difference(series.header.shape, series.header.affine, like.shape, like.affine)
    ):
        raise GeometryError(f"{label}: the series' {difference} of the mask, expected one grid; name the scan itself")
    return _source(series, label)


def _source(series: DicomSeries, label: str) -> Source:
    datasets: list[Any] = []
    place_of: dict[Path, int] = {}
    frames = []
    for path, index in series.planes:
        if path not in place_of:
            place_of[path] = len(datasets)
            datasets.append(_dataset(path, label))
        frames.append((place_of[path], index))
    if len({str(dataset.SOPInstanceUID) for dataset in datasets}) < len(datasets):
        raise ScanError(
            f"{label}: SOPInstanceUID is the same in several slices, expected one each, by which a DICOM object refers to "
            "them; take nii.gz, or export the series again"
        )
    return Source(label=label, header=series.header, datasets=tuple(datasets), frames=tuple(frames))


def _dataset(path: Path, label: str) -> Any:
    """One file's header, also of a file without preamble, with its texts in UTF-8: some writers know few other sets."""
    from pydicom import dcmread

    with parsing(label):
        dataset = dcmread(path, stop_before_pixels=True, force=True)
        dataset.decode()
        dataset.SpecificCharacterSet = "ISO_IR 192"
        missing = [keyword for keyword in _NEEDED if not dataset.get(keyword)]
        for keyword in _MAY_BE_EMPTY:
            if keyword not in dataset:
                setattr(dataset, keyword, None)
    if missing:
        raise ScanError(f"{label}: {missing[0]} is missing, which a DICOM object made from it needs; take nii.gz")
    return dataset
