"""Stored DICOM pixels: what the header promises, what the file holds, and decoding plane by plane.

Uncompressed pixels are read here from the file itself, byte for byte; compressed ones go through pydicom's decoders
(RLE comes with pydicom, the JPEG family needs the ``dicom`` extra).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from medseg.errors import ScanError, UnsupportedScanError
from medseg.imaging.dicom_compressed import check_fragments, decoder_for
from medseg.imaging.dicom_headers import UNDEFINED_LENGTH, FileHeader
from medseg.imaging.dicom_tags import parsing
from medseg.imaging.limits import Limits
from medseg.imaging.volume import FloatArray

_NATIVE_SYNTAXES = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")
_BITS = {"PixelData": (8, 16, 32), "FloatPixelData": (32,), "DoubleFloatPixelData": (64,)}


@dataclass(frozen=True, kw_only=True)
class PixelFormat:
    """How one file stores its pixels; every plane of it alike.

    Attributes:
        rows, columns: of one plane.
        frames: planes in the file.
        bits_allocated, bits_stored, high_bit: DICOM's own; the value's bits end at ``high_bit``.
        signed: two's complement.
        floating: FloatPixelData or DoubleFloatPixelData.
        inverted: MONOCHROME1, the display convention in which low values are bright.
        compressed: encapsulated in a compressed transfer syntax.
    """

    rows: int
    columns: int
    frames: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    floating: bool
    inverted: bool
    compressed: bool

    @property
    def plane_bytes(self) -> int:
        """Bytes of one uncompressed plane."""
        return self.rows * self.columns * self.bits_allocated // 8

    @property
    def dtype(self) -> str:
        """The stored type's numpy name, e.g. "int16"."""
        return f"{'float' if self.floating else 'int' if self.signed else 'uint'}{self.bits_allocated}"


def pixel_format(header: FileHeader, limits: Limits, *, labels: bool = False) -> PixelFormat:
    """Read how ``header`` stores its pixels and check that the file really holds them.

    Args:
        header: of the file.
        limits: bounds on what it may claim.
        labels: it is a segmentation, whose values are unsigned, may point into a palette, and need not say either.

    Raises:
        ScanError: a tag is missing or makes no sense, or the pixel data is shorter or longer than the tags promise.
        UnsupportedScanError: colour, packed bits, or a compression that can't be decoded here.
    """
    label, tags = header.label, header.tags
    floating = header.pixel_keyword != "PixelData"
    frames = tags.integer("NumberOfFrames") or 1
    rows, columns = _required(header, "Rows"), _required(header, "Columns")
    limits.check_voxels(label, (columns, rows, frames))
    if not labels:
        _check_grey(header)
    allocated = _required(header, "BitsAllocated")
    if allocated not in _BITS[header.pixel_keyword]:
        allowed = " or ".join(str(bits) for bits in _BITS[header.pixel_keyword])
        raise UnsupportedScanError(f"{label}: BitsAllocated is {allocated}, expected {allowed}; convert the file")
    stored = allocated if floating else _required(header, "BitsStored")
    high_bit = tags.integer("HighBit")
    found = PixelFormat(
        rows=rows,
        columns=columns,
        frames=frames,
        bits_allocated=allocated,
        bits_stored=stored,
        high_bit=stored - 1 if high_bit is None or floating else high_bit,
        signed=not floating and not labels and _required(header, "PixelRepresentation") == 1,
        floating=floating,
        inverted=tags.text("PhotometricInterpretation") == "MONOCHROME1",
        compressed=header.transfer_syntax not in ("", *_NATIVE_SYNTAXES),
    )
    _check_bits(header, found, labels=labels)
    _check_length(header, found)
    return found


def _required(header: FileHeader, keyword: str) -> int:
    value = header.tags.integer(keyword)
    if value is None:
        raise ScanError(f"{header.label}: {keyword} is missing; export the file again")
    return value


def _check_grey(header: FileHeader) -> None:
    samples = header.tags.integer("SamplesPerPixel") or 1
    if samples != 1:
        raise UnsupportedScanError(
            f"{header.label}: SamplesPerPixel is {samples}, expected 1 (grey); colour DICOM is not read"
        )
    kind = header.tags.text("PhotometricInterpretation")
    if kind not in ("MONOCHROME1", "MONOCHROME2", ""):
        known = kind in ("PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422")
        raise UnsupportedScanError(
            f"{header.label}: PhotometricInterpretation is {kind if known else 'of another kind'}, "
            "expected MONOCHROME2; colour DICOM is not read"
        )


def _check_bits(header: FileHeader, found: PixelFormat, *, labels: bool) -> None:
    representation = header.tags.integer("PixelRepresentation")
    if not (found.floating or labels) and representation not in (0, 1):
        raise ScanError(f"{header.label}: PixelRepresentation is {representation}, expected 0 or 1; repair the file")
    low_bit = found.high_bit - found.bits_stored + 1
    if not (1 <= found.bits_stored <= found.bits_allocated and low_bit >= 0 and found.high_bit < found.bits_allocated):
        raise ScanError(
            f"{header.label}: BitsStored {found.bits_stored} with HighBit {found.high_bit} does not fit into "
            f"BitsAllocated {found.bits_allocated}; repair the file"
        )
    if found.compressed and low_bit != 0:
        raise UnsupportedScanError(
            f"{header.label}: HighBit is {found.high_bit} in compressed pixels, expected {found.bits_stored - 1}"
        )


def _check_length(header: FileHeader, found: PixelFormat) -> None:
    if found.compressed:
        decoder_for(header)
        check_fragments(header, found.frames)
        return
    expected = found.plane_bytes * found.frames
    declared = header.pixel_length
    present = max(header.size_bytes - header.pixel_offset, 0)
    label, keyword = header.label, header.pixel_keyword
    if declared == UNDEFINED_LENGTH:
        raise ScanError(f"{label}: {keyword} has no length although it is not compressed; export the file again")
    if declared not in (expected, expected + expected % 2):
        got = (
            f"{declared:,} of {expected:,} bytes"
            if declared < expected
            else f"{declared:,} bytes, expected {expected:,}"
        )
        raise ScanError(
            f"{label}: {keyword} has {got} ({found.columns}x{found.rows}x{found.frames} {found.dtype}); copy the file again"
        )
    if present < expected:
        raise ScanError(f"{label}: file ends after {present:,} of {expected:,} bytes of {keyword}; copy it again")


def read_planes(header: FileHeader, found: PixelFormat, wanted: frozenset[int]) -> Iterator[tuple[int, Any]]:
    """Stored values of the ``wanted`` planes of one file, in file order, one at a time.

    Yields:
        (index in the file, (rows, columns) array of a native whole-number or floating type).

    Raises:
        ScanError: the file has changed since its header was read, or can't be decoded.
    """
    with header.open_pixels() as stream:
        if found.compressed:
            yield from _decode_compressed(stream, header, found, wanted)
            return
        for index in sorted(wanted):
            with parsing(header.label):
                stream.seek(header.pixel_offset + index * found.plane_bytes)
                data = stream.read(found.plane_bytes)
            if len(data) != found.plane_bytes:
                raise ScanError(f"{header.label}: file ends within its pixels; copy it again")
            yield index, _native(data, header, found)


def _native(data: bytes, header: FileHeader, found: PixelFormat) -> npt.NDArray[Any]:
    order = ">" if header.big_endian else "<"
    kind = "f" if found.floating else "u"
    stored = np.frombuffer(data, dtype=f"{order}{kind}{found.bits_allocated // 8}").reshape(found.rows, found.columns)
    if header.big_endian and found.bits_allocated == 8 and header.pixel_vr == "OW":
        # Bytes in big-endian 16-bit words lie the wrong way round (PS3.5, 8.1.1).
        swapped = np.frombuffer(data, dtype=np.uint8)[: len(data) // 2 * 2].reshape(-1, 2)[:, ::-1].reshape(-1)
        if swapped.size == found.rows * found.columns:
            stored = swapped.reshape(found.rows, found.columns)
    native = stored.astype(stored.dtype.newbyteorder("="))
    return native if found.floating else only_stored_bits(native, found)


def only_stored_bits(stored: npt.NDArray[Any], found: PixelFormat) -> npt.NDArray[Any]:
    """Drop what lies beside the value's bits (overlays, padding) and extend the sign.

    Shifting left and back does both: the bits above ``high_bit`` fall off, and a signed shift right copies the sign.
    """
    bits = found.bits_allocated
    values = np.ascontiguousarray(stored).view(f"uint{bits}")
    above, unused = bits - 1 - found.high_bit, bits - found.bits_stored
    if above:
        values = values << np.asarray(above, dtype=values.dtype)
    if found.signed:
        values = values.view(f"int{bits}")
    return values >> np.asarray(unused, dtype=values.dtype) if unused else values


def _decode_compressed(
    stream: BinaryIO, header: FileHeader, found: PixelFormat, wanted: frozenset[int]
) -> Iterator[tuple[int, Any]]:
    planes = decoder_for(header).iter_array(
        stream,
        indices=sorted(wanted),
        raw=True,
        rows=found.rows,
        columns=found.columns,
        number_of_frames=found.frames,
        samples_per_pixel=1,
        photometric_interpretation="MONOCHROME2",
        bits_allocated=found.bits_allocated,
        bits_stored=found.bits_stored,
        pixel_representation=int(found.signed),
        pixel_keyword="PixelData",
    )
    for index in sorted(wanted):
        with parsing(header.label, "compressed pixels can't be decoded"):
            plane, _ = next(planes)
        if plane.shape != (found.rows, found.columns) or plane.dtype.itemsize * 8 != found.bits_allocated:
            raise ScanError(f"{header.label}: decoded plane differs from Rows, Columns or BitsAllocated")
        yield index, only_stored_bits(plane, found)


def rescaled(stored: npt.NDArray[Any], slope: float, intercept: float) -> FloatArray:
    """``stored * slope + intercept`` with every step rounded to float32, as (rows, columns) float32.

    Slope and intercept are rounded to float32 first; then one float32 product and one float32 sum. This is the
    arithmetic that gives the voxels other tools write as float32, to the last bit. Whole numbers of more than
    24 bits would be rounded before the product, so they take one float64 product and sum and are rounded once.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        if stored.dtype.itemsize > 2:
            return (stored.astype(np.float64) * slope + intercept).astype(np.float32)
        values = stored.astype(np.float32)
        values *= np.float32(slope)
        values += np.float32(intercept)
        return values
