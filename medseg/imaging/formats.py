"""Every file kind that is read or written, in one table: adding a format adds its module and one line here."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from medseg.errors import UnsupportedScanError
from medseg.imaging.opening import describe_content, display_name, open_regular


@dataclass(frozen=True)
class Format:
    """A file kind. Functions are named, not imported, so that a library comes in only with the first file that needs it.

    Attributes:
        name: as in ``Header.format`` (the picture formats share one entry).
        suffixes: lower case, with the dot; the longest fitting one decides.
        module: of ``medseg.imaging``.
        read_header: its function ``(path, *, limits) -> Header``.
        read: ``(path, *, channels, limits) -> Volume``; DICOM's takes ``unit`` in place of ``channels``.
        read_labels: ``(path, *, limits) -> LabelMap``, or None where the format holds no label maps.
        write: ``(array, affine, path, *, like) -> None`` for an array (X, Y, Z) or (X, Y, Z, C) of the type to store, or
            None where the format is not written.
        named: ``read_labels`` takes ``naming`` and ``like`` as well, as its structures have names.
    """

    name: str
    suffixes: tuple[str, ...]
    module: str
    read_header: str
    read: str
    read_labels: str | None = None
    write: str | None = None
    named: bool = False

    def function(self, name: str) -> Callable[..., Any]:
        """The function ``name`` of this format's module, imported now."""
        found: Callable[..., Any] = getattr(importlib.import_module(f"medseg.imaging.{self.module}"), name)
        return found


_PICTURE = ("pictures", "read_picture_header", "read_picture", "read_picture_labels")
_ITK = ("itk_formats", "read_itk_header", "read_itk", "read_itk_labels")

FORMATS = (
    Format(
        "nifti", (".nii", ".nii.gz"), "nifti", "read_nifti_header", "read_nifti", "read_nifti_labels", "write_nifti"
    ),
    Format("nrrd", (".nrrd", ".nhdr"), *_ITK, "write_itk"),
    Format("seg.nrrd", (".seg.nrrd",), "seg_nrrd", "read_itk_header", "read_itk", "read_seg_nrrd", named=True),
    Format("metaimage", (".mha", ".mhd"), *_ITK, "write_itk"),
    Format("picture", (".png", ".tif", ".tiff"), *_PICTURE, "write_picture"),
    Format("jpeg", (".jpg", ".jpeg"), *_PICTURE),
    Format(
        "dicom",
        (".dcm", ".dicom", ".ima", ".seg.dcm", ".rtstruct.dcm"),
        "dicom",
        "read_dicom_header",
        "read_dicom_volume",
        "read_dicom_labels",
        named=True,
    ),
)
DICOM = FORMATS[-1]


def suffix_of(path: PurePath) -> str | None:
    """The known suffix that ``path`` ends with, lower case (``.nii.gz`` rather than ``.gz``), or None."""
    name = path.name.lower()
    fitting = [suffix for entry in FORMATS for suffix in entry.suffixes if name.endswith(suffix)]
    return max(fitting, key=len, default=None)


def format_of(path: Path) -> Format:
    """The format of an existing file or folder: a folder is a DICOM series, of a file the suffix decides.

    A file without a known suffix is read where it begins like DICOM, whose files often have none. A folder that is named
    like a scan file is a series if there is DICOM in it.

    Raises:
        ScanError: there is no such file, or it can't be opened.
        UnsupportedScanError: its suffix is none of ``FORMATS``.
    """
    suffix, is_folder = suffix_of(path), os.path.isdir(path)  # noqa: PTH112  (False where it can't be told)
    if is_folder and (suffix in (None, *DICOM.suffixes) or _holds_dicom(path)):
        return DICOM
    if suffix is not None:
        return next(entry for entry in FORMATS if suffix in entry.suffixes)
    with open_regular(path) as file:
        content = describe_content(file.read(512))
    if content == "DICOM" or _is_dicom(path):
        return DICOM
    known = ", ".join(suffix for entry in FORMATS for suffix in entry.suffixes)
    raise UnsupportedScanError(
        f"{display_name(path)}: suffix is {path.suffix or 'missing'} (content is {content}), expected one of {known}, "
        "or a folder with a DICOM series; convert it"
    )


def _is_dicom(path: Path) -> bool:
    from medseg.imaging.dicom_headers import begins_like_dicom

    return begins_like_dicom(path)


def _holds_dicom(folder: Path) -> bool:
    try:
        return any(path.is_file() and _is_dicom(path) for path in sorted(folder.iterdir()))
    except OSError:
        return False


def writing_format(path: Path) -> Format:
    """The format that a new file's suffix asks for.

    Raises:
        UnsupportedScanError: no format of that suffix is written.
    """
    suffix = suffix_of(path)
    for entry in FORMATS:
        if suffix in entry.suffixes and entry.write is not None and suffix not in (".nhdr", ".mhd"):
            return entry
    raise UnsupportedScanError(
        f"{display_name(path)}: label maps are not written as {path.suffix or 'a file without suffix'}, "
        "expected .nii.gz, .nii, .nrrd, .mha, .png or .tif; choose one of these"
    )


def is_scan(path: Path) -> bool:
    """True where ``path`` is a folder or has a known suffix; the content is not looked at."""
    return suffix_of(path) is not None or path.is_dir()
