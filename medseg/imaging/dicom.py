"""DICOM series and enhanced multi-frame files: headers of every file first, then the pixels plane by plane.

A series is refused by name rather than averaged; ``dicom_series`` finds it, ``dicom_planes`` reads what each plane says,
``dicom_stack`` proves that they are one volume, ``dicom_pixels`` reads the voxels and ``dicom_suv`` turns PET into SUV.
No message or warning holds header text: files go by their names, series by a short code.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.errors import LabelError, MedsegError, ScanError
from medseg.imaging.dicom_choice import SeriesRule, choose_by_rule
from medseg.imaging.dicom_headers import read_file_header
from medseg.imaging.dicom_pixels import read_planes, rescaled
from medseg.imaging.dicom_planes import Plane
from medseg.imaging.dicom_series import Found, choose_series, find_series, series_code
from medseg.imaging.dicom_stack import Stack, build_stack
from medseg.imaging.dicom_suv import suv_scale
from medseg.imaging.limits import Limits
from medseg.imaging.opening import display_name
from medseg.imaging.structures import Naming, OnGrid
from medseg.imaging.volume import FloatArray, Header, LabelMap, Volume


@dataclass(frozen=True, kw_only=True)
class SeriesInfo:
    """One series of a folder, sound or not.

    Attributes:
        code: 8 hex digits that name the series in messages and choose it (``series_uid=code``).
        series_uid: the real one; never to be shown or stored.
        patient_id: for keeping one patient's series together in memory; never to be shown or stored.
        modality: "CT", "MR", "PT", ... or "".
        shape: (X, Y, Z) voxels; None where the series is refused.
        spacing_xyz_mm: None where the series is refused.
        slice_count: planes, or files where the series is refused.
        files: names inside the folder, sorted.
        fault: why the series is refused, "" where it is sound.
    """

    code: str
    series_uid: str = field(repr=False)
    patient_id: str = field(repr=False)
    modality: str
    shape: tuple[int, int, int] | None
    spacing_xyz_mm: tuple[float, float, float] | None
    slice_count: int
    files: tuple[str, ...]
    fault: str


class DicomSeries:
    """A checked series: its header is there, its pixels are read on demand without parsing a header again.

    Attributes:
        header: the grid, as ``read_dicom_header`` gives it.
    """

    def __init__(self, found: Found, stack: Stack, *, told: str = "") -> None:
        first = stack.planes[0]
        self._label = found.label
        self._stack = stack
        self.header = Header(
            shape=stack.shape,
            affine=stack.affine,
            format="dicom",
            dtype=first.pixels.dtype,
            modality=first.file.modality,
            series=series_code(first.file.series_uid) if len(found.series) > 1 else "",
            warnings=(*([told] if told else []), *found.warnings, *stack.warnings),
        )

    @property
    def planes(self) -> tuple[tuple[Path, int], ...]:
        """(file, index in it) of every plane, in the order of Z."""
        return tuple((plane.file.path, plane.index) for plane in self._stack.planes)

    def read(self, *, unit: str | None = None) -> Volume:
        """The voxels, (1, X, Y, Z) float32, X fastest in memory.

        Args:
            unit: "SUV" turns PET into SUVbw in g/ml; None leaves the rescaled values.

        Raises:
            ScanError: a file can't be read or has changed, values are not finite, or SUV can't be worked out.
        """
        factor, warnings = suv_scale(self._label, self._stack.planes) if _wants_suv(self._label, unit) else (None, ())
        columns, rows, count = self._stack.shape
        voxels = np.empty((count, rows, columns), dtype=np.float32)
        by_file: dict[Path, dict[int, int]] = defaultdict(dict)
        for place, plane in enumerate(self._stack.planes):
            by_file[plane.file.path][plane.index] = place
        for places in by_file.values():
            first = self._stack.planes[next(iter(places.values()))]
            for index, stored in read_planes(first.file, first.pixels, frozenset(places)):
                plane = self._stack.planes[places[index]]
                voxels[places[index]] = _values(stored, plane, factor)
        header = replace(self.header, warnings=(*self.header.warnings, *warnings))
        return Volume(array=voxels.transpose(2, 1, 0)[np.newaxis], affine=self._stack.affine.copy(), header=header)


def _values(stored: npt.NDArray[Any], plane: Plane, factor: float | None) -> FloatArray:
    """One plane rescaled, and times ``factor`` as one more float32 product where there is one."""
    values = rescaled(stored, plane.slope, plane.intercept)
    with np.errstate(over="ignore"):
        if factor is not None and factor != 1:
            values *= np.float32(factor)
    finite = int(np.isfinite(values).sum())
    if finite != values.size:
        raise ScanError(
            f"{plane.label}: {values.size - finite} values are not finite after rescaling; repair or export the file again"
        )
    return values


def _wants_suv(label: str, unit: str | None) -> bool:
    if unit not in (None, "SUV"):
        raise ScanError(f"{label}: unit asked for is not known to DICOM, expected SUV or none; correct the manifest")
    return unit == "SUV"


def open_series(
    path: Path, *, series_uid: str | None = None, rule: SeriesRule | None = None, limits: Limits | None = None
) -> DicomSeries:
    """Read and check all headers of a series; the pixels can follow without a second look at them.

    Args:
        path: a folder with the files of a series (subfolders are not looked into), or one file.
        series_uid: which series, by its UID or its short code, where the folder has several.
        rule: the one that it means is taken, and the header's warnings say so; a folder with one series must fit it too.
        limits: bounds; the default ones when None.

    Raises:
        ScanError: no DICOM image there, several series and none chosen, or any fault of the series.
        UnsupportedScanError: a kind of DICOM or a compression that is not read.
    """
    limits = limits or Limits()
    found = find_series(path, limits)
    files, told = choose_by_rule(found, rule) if rule is not None else (choose_series(found, series_uid), "")
    return DicomSeries(found, build_stack(files, found.label, limits), told=told)


def read_dicom_header(
    folder: Path, *, series_uid: str | None = None, rule: SeriesRule | None = None, limits: Limits | None = None
) -> Header:
    """The grid of a DICOM series or multi-frame file, all headers checked, no voxel decoded; see ``open_series``."""
    return open_series(folder, series_uid=series_uid, rule=rule, limits=limits).header


def read_dicom_volume(
    folder: Path,
    *,
    series_uid: str | None = None,
    rule: SeriesRule | None = None,
    unit: str | None = None,
    limits: Limits | None = None,
) -> Volume:
    """A DICOM series or multi-frame file as (1, X, Y, Z) float32; see ``open_series`` and ``DicomSeries.read``.

    X runs along a row (columns), Y down a column (rows), Z along row direction x column direction; the affine is RAS+ mm.
    """
    return open_series(folder, series_uid=series_uid, rule=rule, limits=limits).read(unit=unit)


def read_dicom_labels(path: Path, *, naming: Naming, like: OnGrid | None, limits: Limits) -> LabelMap:
    """The structures of a DICOM-SEG or RTSTRUCT, or of the one such file of a folder; see their modules.

    Raises:
        LabelError: the file is an image.
        ScanError: a folder holds another number of files than one; a file can't be read.
    """
    from medseg.imaging import dicom_seg, rtstruct

    name = display_name(path)
    if path.is_dir():
        files = [file for file in sorted(path.iterdir()) if file.is_file() and not file.name.startswith(".")]
        if len(files) != 1:
            raise ScanError(f"{name}: holds {len(files)} files, expected one DICOM-SEG or RTSTRUCT; name the file")
        path = files[0]
    header = read_file_header(path, name)
    sop_class = "" if header is None else header.sop_class
    if sop_class == rtstruct.SOP_CLASS:
        return rtstruct.read_rtstruct(path, naming=naming, like=like, limits=limits)
    if sop_class in (dicom_seg.SEGMENTATION, dicom_seg.LABEL_MAP):
        return dicom_seg.read_dicom_seg(path, naming=naming, like=like, limits=limits)
    raise LabelError(
        f"{name}: is a DICOM image, expected labels: a DICOM-SEG, an RTSTRUCT, or another file; correct it"
    )


def holds_structures(path: Path) -> bool:
    """Whether a file is a DICOM-SEG or RTSTRUCT, by its header; False of one that can't be read as DICOM."""
    from medseg.imaging import dicom_seg, rtstruct

    try:
        header = read_file_header(path, display_name(path))
    except (MedsegError, OSError):
        return False
    return header is not None and header.sop_class in (dicom_seg.SEGMENTATION, dicom_seg.LABEL_MAP, rtstruct.SOP_CLASS)


def list_series(folder: Path, *, limits: Limits | None = None) -> tuple[SeriesInfo, ...]:
    """All image series of a folder, sorted by code; () where it holds DICOM or other files but no image.

    Raises:
        ScanError: a file can't be read or parsed, so that it is unknown which series it belongs to.
    """
    limits = limits or Limits()
    found = find_series(folder, limits, allow_none=True)
    infos = [_info(found, uid, limits) for uid in found.series]
    return tuple(sorted(infos, key=lambda info: info.code))


def _info(found: Found, uid: str, limits: Limits) -> SeriesInfo:
    files = found.series[uid]
    stack, fault = None, ""
    try:
        stack = build_stack(files, found.label, limits)
    except MedsegError as error:
        fault = str(error)
    spacing = None
    if stack is not None:
        x, y, z = (float(value) for value in np.linalg.norm(stack.affine[:3, :3], axis=0))
        spacing = (x, y, z)
    return SeriesInfo(
        code=series_code(uid),
        series_uid=uid,
        patient_id=files[0].tags.text("PatientID"),
        modality=files[0].modality,
        shape=None if stack is None else stack.shape,
        spacing_xyz_mm=spacing,
        slice_count=len(files) if stack is None else stack.shape[2],
        files=tuple(header.path.name for header in files),
        fault=fault,
    )
