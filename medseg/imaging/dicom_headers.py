"""One DICOM file's header: which tags it has, where its pixels lie, and how many bytes of them are promised."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from medseg.errors import ScanError, UnsupportedScanError
from medseg.imaging.dicom_tags import Tags, parsing, wanted_tags
from medseg.imaging.opening import display_name

PIXEL_KEYWORDS = {0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData", 0x7FE00010: "PixelData"}
UNDEFINED_LENGTH = 0xFFFFFFFF


@dataclass(frozen=True, kw_only=True)
class FileHeader:
    """One DICOM image file: its tags and where its pixels lie.

    Attributes:
        path: the file.
        label: its name for messages (inside the folder the user gave).
        size_bytes, modified_ns: of the file when the header was read; pixels are read from that same file only.
        tags: the header's values.
        sop_class: UID of the kind of object, "" where the file names none.
        transfer_syntax: UID, "" where the file names none.
        big_endian: byte order of the pixels.
        complete: the file ends where its pixels begin or its last element ends, so the header was not cut.
        pixel_keyword: "PixelData", "FloatPixelData", "DoubleFloatPixelData" or "" where the file has no pixels.
        pixel_vr: "OB", "OW", ... or "".
        pixel_offset: of the first byte of the pixels' value in the file.
        pixel_length: the declared length in bytes; ``UNDEFINED_LENGTH`` for compressed pixels.
    """

    path: Path
    label: str
    size_bytes: int
    modified_ns: int
    tags: Tags = field(repr=False)
    sop_class: str
    transfer_syntax: str
    big_endian: bool
    complete: bool
    pixel_keyword: str
    pixel_vr: str
    pixel_offset: int
    pixel_length: int

    @property
    def series_uid(self) -> str:
        """SeriesInstanceUID; never for a message."""
        return self.tags.text("SeriesInstanceUID")

    @property
    def modality(self) -> str:
        """Modality where it is one of DICOM's short codes, else ""."""
        text = self.tags.text("Modality")
        return text if re.fullmatch(r"[A-Z]{2,16}", text) else ""

    def open_pixels(self) -> BinaryIO:
        """The file, open and positioned at its pixels; the caller closes it.

        Raises:
            ScanError: the file can't be opened, or is not the one whose header was read.
        """
        with parsing(self.label), contextlib.ExitStack() as undo:
            stream = undo.enter_context(self.path.open("rb"))
            status = os.fstat(stream.fileno())
            if (status.st_size, status.st_mtime_ns) != (self.size_bytes, self.modified_ns):
                raise ScanError(f"{self.label}: file changed while it was being read; start again once it is settled")
            stream.seek(self.pixel_offset)
            undo.pop_all()
            return stream


class _BoundedStream:
    """A file whose reads never ask for more than the file holds: a length that lies allocates nothing."""

    def __init__(self, stream: BinaryIO, size_bytes: int) -> None:
        self._stream = stream
        self._size_bytes = size_bytes
        self.seek = stream.seek
        self.tell = stream.tell

    def read(self, count: int = -1) -> bytes:
        if count < 0:
            # pydicom reads "the rest" for the deflated syntax alone, and inflates it without a bound.
            raise UnsupportedScanError("Deflated Explicit VR Little Endian")
        if count > 4096:
            count = min(count, max(self._size_bytes - self._stream.tell(), 0))
        return self._stream.read(count)


def read_file_header(path: Path, label: str, *, also: tuple[str, ...] = ()) -> FileHeader | None:
    """Read one file's header; no pixels.

    Args:
        path: the file.
        label: its name for messages.
        also: keywords to read beside those of images.

    Returns:
        None when the file is not DICOM.

    Raises:
        ScanError: not a regular file, not readable, or DICOM that can't be parsed.
        UnsupportedScanError: the deflated transfer syntax.
    """
    with parsing(label):
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ScanError(f"{label}: is not a regular file; take it out of the folder")
        with path.open("rb") as stream:
            start = stream.read(132)
            stream.seek(0)
            if start[128:] != b"DICM" and not _starts_with_an_element(start):
                return None
            return _parse(stream, path, label, status, also)


def begins_like_dicom(path: Path) -> bool:
    """Whether a regular file is DICOM by its first bytes, with the preamble or, its header proving it, without.

    Raises:
        OSError: it can't be read.
    """
    with path.open("rb") as stream:
        start = stream.read(132)
    if start[128:] == b"DICM":
        return True
    try:
        return _starts_with_an_element(start) and read_file_header(path, display_name(path)) is not None
    except ScanError:
        return False


def _starts_with_an_element(start: bytes) -> bool:
    """Whether a file without the preamble begins like a DICOM data set: group 2 or 8, then a plausible element."""
    if len(start) < 16 or start[:2] not in (b"\x02\x00", b"\x08\x00", b"\x00\x08"):
        return False
    explicit = re.fullmatch(rb"[A-Z]{2}", start[4:6]) is not None
    return explicit or int.from_bytes(start[4:8], "little") <= 1024


def _parse(
    stream: BinaryIO, path: Path, label: str, status: os.stat_result, also: tuple[str, ...]
) -> FileHeader | None:
    from pydicom.dataset import Dataset
    from pydicom.filereader import read_partial

    pixels: list[tuple[str, str, int, int]] = []  # keyword, VR, offset, length
    end_of_last = [-1]

    def at_pixels(tag: int, vr: str | None, length: int) -> bool:
        end_of_last[0] = status.st_size if length == UNDEFINED_LENGTH else stream.tell() + length
        if int(tag) in PIXEL_KEYWORDS:
            pixels[:] = [(PIXEL_KEYWORDS[int(tag)], str(vr or ""), stream.tell(), length)]
        return int(tag) > 0x7FE00000

    bounded = _BoundedStream(stream, status.st_size)
    try:
        dataset = read_partial(bounded, stop_when=at_pixels, force=True, specific_tags=wanted_tags(also))
    except UnsupportedScanError as error:
        raise UnsupportedScanError(
            f"{label}: transfer syntax is {error}, which is not read; convert it to Explicit VR Little Endian"
        ) from None
    little_endian = dataset.original_encoding[1]
    meta = Tags(dataset.file_meta, label)
    tags = Tags(Dataset(dataset), label)
    if not dataset.preamble and not tags.text("SOPClassUID"):
        return None
    keyword, vr, offset, length = pixels[0] if pixels else ("", "", 0, 0)
    return FileHeader(
        path=path,
        label=label,
        size_bytes=status.st_size,
        modified_ns=status.st_mtime_ns,
        tags=tags,
        sop_class=tags.text("SOPClassUID") or meta.text("MediaStorageSOPClassUID"),
        transfer_syntax=meta.text("TransferSyntaxUID"),
        big_endian=not little_endian,
        complete=bool(pixels) or end_of_last[0] == status.st_size,
        pixel_keyword=keyword,
        pixel_vr=vr,
        pixel_offset=offset,
        pixel_length=length,
    )
