"""What was sent, as a scan: recognised by its content and read in a process of its own."""

from __future__ import annotations

import contextlib
import shutil
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medseg.errors import ScanError
from medseg.imaging import Volume, read_header
from medseg.imaging.dicom_headers import begins_like_dicom
from medseg.imaging.limits import Limits
from medseg.imaging.opening import describe_content
from medseg.preparation.case import load_case
from medseg.preparation.plan import ChannelPlan
from medseg.serving.archive import unpack

_SUFFIXES = {
    "NIfTI": ".nii",
    "NRRD": ".nrrd",
    "MetaImage": ".mha",
    "DICOM": ".dcm",
    "PNG": ".png",
    "JPEG": ".jpg",
    "TIFF": ".tif",
    "BigTIFF": ".tif",
}
_KNOWN = "NIfTI (.nii, .nii.gz), NRRD, MHA, PNG, TIFF, JPEG, a DICOM file, or a zip of a DICOM series or of one scan a channel"
_FIRST_BYTES = 4096


@dataclass(frozen=True, kw_only=True)
class Upload:
    """A body on the disk, and what is needed to read it.

    Attributes:
        body: the file as it was sent.
        folder: for what is made of it; empty, the caller's to remove.
        channels: of the model's plan.
        max_unpacked_bytes, max_files: of an archive.
        max_voxels: values of the scan.
    """

    body: Path
    folder: Path
    channels: tuple[ChannelPlan, ...]
    max_unpacked_bytes: int
    max_files: int
    max_voxels: int


def read_upload(upload: Upload) -> tuple[Volume, tuple[Path, ...]]:
    """The scan in a body, and the files or the DICOM folder it lies in.

    Raises:
        ScanError: it is no scan, damaged, too large, or has other channels than the model.
        GeometryError: its channels do not overlap.
    """
    images = find_images(upload)
    limits = Limits(max_voxels=upload.max_voxels)
    by_image = zip(images if len(images) > 1 else images * len(upload.channels), upload.channels, strict=False)
    for image, series in dict.fromkeys((image, channel.series) for image, channel in by_image):
        read_header(image, series=series, limits=limits)
    return load_case(images, upload.channels), images


def find_images(upload: Upload) -> tuple[Path, ...]:
    """The body under a name that says what it is, unpacked where it is an archive."""
    kind = content_of(upload.body)
    if kind != "a zip archive":
        return (_named(upload.body, kind),)
    unpacked = upload.folder / "unpacked"
    unpacked.mkdir()
    try:
        files = unpack(upload.body, unpacked, max_bytes=upload.max_unpacked_bytes, max_files=upload.max_files)
    finally:
        upload.body.unlink()
    kinds = [content_of(path) for path in files]
    if "DICOM" in kinds:
        return (_series(files, kinds, upload.folder / "series"),)
    if len(files) > len(upload.channels):
        raise ScanError(
            f"archive: holds {len(files)} files and no DICOM, expected a DICOM series or one scan for each of "
            f"{len(upload.channels)} channel(s); send one scan a request"
        )
    return tuple(_named(path, kind) for path, kind in zip(files, kinds, strict=True))


def content_of(path: Path) -> str:
    """What a file holds, by its first bytes: a key of the known suffixes, "a zip archive", "gzip NIfTI" or other words."""
    with path.open("rb") as file:
        first = file.read(_FIRST_BYTES)
    kind = describe_content(first)
    if kind == "gzip":
        return f"gzip {describe_content(_unzipped(first))}"
    if kind == "of unknown content" and begins_like_dicom(path):  # without the preamble
        return "DICOM"
    # The words for text come before those for a MetaImage without a known first field.
    return "MetaImage" if kind == "text" and b"ElementDataFile" in first else kind


def _unzipped(first: bytes) -> bytes:
    with contextlib.suppress(zlib.error, EOFError, OSError):
        return zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(first, _FIRST_BYTES)
    return b""


def _named(path: Path, kind: str) -> Path:
    suffix = ".nii.gz" if kind == "gzip NIfTI" else _SUFFIXES.get(kind)
    if suffix is None:
        raise ScanError(f"body: is {kind}, expected {_KNOWN}; send such a file")
    return path.rename(path.with_name(f"scan{suffix}" if path.name == "body" else f"{path.name}{suffix}"))


def _series(files: Sequence[Path], kinds: Sequence[str], folder: Path) -> Path:
    """The DICOM files alone in a folder; text files and the like that lie beside a series are left out."""
    folder.mkdir()
    for path, kind in zip(files, kinds, strict=True):
        if kind in ("DICOM", "of unknown content"):  # a damaged slice is for the reader to refuse
            path.rename(folder / f"{path.name}.dcm")
    shutil.rmtree(folder.parent / "unpacked")
    return folder
