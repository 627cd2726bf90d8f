"""Compressed DICOM pixels: is there a decoder, are the fragments whole, and does the code stream claim the right size.

A code stream carries its own width and height, which a decoder believes and allocates: they are compared with the
header before any decoder sees them.
"""

from __future__ import annotations

import struct
from typing import Any

from medseg.errors import ScanError, UnsupportedScanError
from medseg.imaging.dicom_headers import UNDEFINED_LENGTH, FileHeader
from medseg.imaging.dicom_tags import parsing, quiet_pydicom

_ITEM, _END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
# Start-of-frame markers of JPEG and JPEG-LS; DHT (C4), JPG (C8) and DAC (CC) lie between them.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}
_JPEG_PEEK_BYTES = 1 << 16


def syntax_name(uid: str) -> str:
    """The registered name of a transfer syntax; a UID that is not registered is not repeated."""
    from pydicom.uid import UID_dictionary

    entry = UID_dictionary.get(uid)
    return str(entry[0]) if entry else "not a registered one"


def decoder_for(header: FileHeader) -> Any:
    """The decoder that pydicom has of the file's transfer syntax.

    Raises:
        UnsupportedScanError: pydicom has none, or what it needs is not installed.
    """
    from pydicom.pixels import get_decoder

    name = syntax_name(header.transfer_syntax)
    try:
        with quiet_pydicom():
            decoder = get_decoder(header.transfer_syntax)
    except NotImplementedError:
        raise UnsupportedScanError(
            f"{header.label}: transfer syntax is {name}, which is not read; convert it to Explicit VR Little Endian"
        ) from None
    if not decoder.is_available:
        raise UnsupportedScanError(
            f"{header.label}: transfer syntax is {name} and no decoder of it is installed; "
            "pip install 'medseg[dicom]', or convert the file to Explicit VR Little Endian"
        )
    return decoder


def check_fragments(header: FileHeader, frames: int) -> None:
    """Walk the items of encapsulated pixels to their end, and look into each one that begins a code stream.

    Raises:
        ScanError: an item runs past the end of the file, the end mark is missing, there are fewer fragments than
            frames, or a code stream is of another size than the header says.
    """
    if header.pixel_length != UNDEFINED_LENGTH:
        raise ScanError(f"{header.label}: compressed PixelData has a fixed length; export the file again")
    with header.open_pixels() as stream:
        fragments = -1  # the first item is the table of offsets
        while (mark := stream.read(8))[:4] == _ITEM and len(mark) == 8:
            start, length = stream.tell(), int(struct.unpack("<I", mark[4:])[0])
            if start + length > header.size_bytes:
                break
            if fragments >= 0:
                _check_size(header, stream.read(min(length, _JPEG_PEEK_BYTES)))
            stream.seek(start + length)
            fragments += 1
    if mark[:4] != _END or len(mark) < 8:
        raise ScanError(f"{header.label}: compressed PixelData ends early; copy the file again")
    if fragments < frames:
        raise ScanError(f"{header.label}: compressed PixelData has {fragments} of {frames} planes; copy the file again")


def _check_size(header: FileHeader, start: bytes) -> None:
    with parsing(header.label, "compressed pixels can't be decoded"):
        size = code_stream_size(start)
    expected = header.tags.integer("Columns"), header.tags.integer("Rows")
    if size is not None and size != expected:
        raise ScanError(
            f"{header.label}: compressed plane is {size[0]}x{size[1]}, expected {expected[0]}x{expected[1]} "
            "as Columns and Rows say; export the file again"
        )


def code_stream_size(start: bytes) -> tuple[int, int] | None:
    """(columns, rows) that a JPEG, JPEG-LS or JPEG 2000 code stream claims; None for anything else (RLE, a later part).

    Args:
        start: the first bytes of a fragment.
    """
    if start[4:8] == b"jP  ":  # JPEG 2000 in its file format, which some writers embed
        start = start[max(start.find(b"\xff\x4f\xff\x51"), 0) :]
    if start[:4] == b"\xff\x4f\xff\x51" and len(start) >= 24:
        right, bottom, left, top = struct.unpack(">4I", start[8:24])
        return right - left, bottom - top
    if start[:2] != b"\xff\xd8":
        return None
    offset = 2
    while offset + 9 <= len(start) and start[offset] == 0xFF:
        marker, length = start[offset + 1], int.from_bytes(start[offset + 2 : offset + 4], "big")
        if marker in _JPEG_FRAMES:
            rows, columns = struct.unpack(">HH", start[offset + 5 : offset + 9])
            return columns, rows
        offset += 1 if marker == 0xFF else 2 + length
    return None
