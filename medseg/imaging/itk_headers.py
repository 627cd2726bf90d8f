"""NRRD and MetaImage headers, read here before SimpleITK sees the file.

SimpleITK fills a truncated file with zeros and follows a data file's name anywhere, both without a word, so what the
header promises is compared with what is there first.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from medseg.errors import ScanError, UnsupportedScanError
from medseg.imaging.limits import Limits
from medseg.imaging.opening import describe_content, display_name, open_regular
from medseg.imaging.streams import GzipStream

_NRRD_BYTES = {
    "int8": 1, "int8_t": 1, "signed char": 1, "uint8": 1, "uint8_t": 1, "uchar": 1, "unsigned char": 1,
    "short": 2, "short int": 2, "signed short": 2, "signed short int": 2, "int16": 2, "int16_t": 2,
    "ushort": 2, "unsigned short": 2, "unsigned short int": 2, "uint16": 2, "uint16_t": 2,
    "int": 4, "signed int": 4, "int32": 4, "int32_t": 4, "uint": 4, "unsigned int": 4, "uint32": 4, "uint32_t": 4,
    "longlong": 8, "long long": 8, "long long int": 8, "signed long long": 8, "int64": 8, "int64_t": 8,
    "ulonglong": 8, "unsigned long long": 8, "unsigned long long int": 8, "uint64": 8, "uint64_t": 8,
    "float": 4, "double": 8,
}  # fmt: skip
_META_BYTES = {
    "MET_CHAR": 1, "MET_UCHAR": 1, "MET_SHORT": 2, "MET_USHORT": 2, "MET_INT": 4, "MET_UINT": 4,
    "MET_LONG_LONG": 8, "MET_ULONG_LONG": 8, "MET_FLOAT": 4, "MET_DOUBLE": 8,
}  # fmt: skip
_SPACES = {
    "left-posterior-superior", "lps", "right-anterior-superior", "ras", "left-anterior-superior", "las",
}  # fmt: skip
_MAX_HEADER_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a header says of its data.

    Attributes:
        sizes: in file order, fastest first, the channel axis too.
        value_bytes: of one value.
        compressed: zlib's window bits of the data (31 gzip, 15 zlib), or None where it is raw.
        data: file that holds the data, and the byte where it begins.
        warnings: sentences for the user.
    """

    sizes: tuple[int, ...]
    value_bytes: int
    compressed: int | None
    data: tuple[Path, int]
    warnings: tuple[str, ...] = ()


def nrrd_claim(path: Path) -> Claim:
    """The claim of a NRRD header; kinds of NRRD that are not read are refused by name."""
    name = display_name(path)
    text, end = _head(path, b"NRRD000", "NRRD", re.compile(rb"\r?\n\r?\n"))
    fields = _fields(text, ":", name)
    kind = fields.get("type", "").lower()
    if kind not in _NRRD_BYTES:
        raise UnsupportedScanError(
            f"{name}: type is {_shown(kind)}, expected whole or real numbers; convert it to .nii.gz"
        )
    encoding = fields.get("encoding", "").lower()
    if encoding not in ("raw", "gzip", "gz"):
        raise UnsupportedScanError(
            f"{name}: encoding is {_shown(encoding)}, expected raw or gzip; convert it to .nii.gz"
        )
    for skip in ("line skip", "lineskip", "byte skip", "byteskip"):
        if fields.get(skip, "0") != "0":
            raise UnsupportedScanError(f"{name}: has a {skip}, expected none; convert it to .nii.gz")
    units = set(re.findall(r'"([^"]*)"', fields.get("space units", ""))) - {"mm", "", "???"}
    if units:
        raise UnsupportedScanError(f"{name}: space units are not all mm, expected mm; convert it to .nii.gz")
    data_file = fields.get("data file", fields.get("datafile"))
    return Claim(
        sizes=_whole_numbers(fields.get("sizes", ""), fields.get("dimension", ""), name),
        value_bytes=_NRRD_BYTES[kind],
        compressed=None if encoding == "raw" else 31,
        data=(path, end) if data_file is None else (_beside(path, data_file), 0),
        warnings=_space_warnings(fields, name),
    )


def nrrd_head(path: Path) -> str:
    """The text of a NRRD header, key-value pairs (``key:=value``) included.

    Raises:
        ScanError: the file is no NRRD.
    """
    return _head(path, b"NRRD000", "NRRD", re.compile(rb"\r?\n\r?\n"))[0]


def _space_warnings(fields: Mapping[str, str], name: str) -> tuple[str, ...]:
    space = fields.get("space", "").lower()
    if space and space not in _SPACES:
        raise UnsupportedScanError(
            f"{name}: space is {_shown(space)}, expected one of the patient's (left-posterior-superior, ...); correct it"
        )
    if not space and "space dimension" not in fields:
        return ("orientation is unknown (no space): taken from the voxel sizes alone",)
    return ()


def meta_claim(path: Path) -> Claim:
    """The claim of a MetaImage header (.mha, .mhd); kinds that are not read are refused by name."""
    name = display_name(path)
    text, end = _head(path, b"", "MetaImage", re.compile(rb"ElementDataFile[ \t]*=[^\n]*(\n|\Z)"))
    fields = _fields(text, "=", name)
    kind = fields.get("elementtype", "").upper()
    if kind not in _META_BYTES:
        raise UnsupportedScanError(
            f"{name}: ElementType is {_shown(kind)}, expected whole or real numbers; convert it to .nii.gz"
        )
    if fields.get("binarydata", "True").lower() != "true":
        raise UnsupportedScanError(f"{name}: holds its voxels as text, expected binary data; convert it to .nii.gz")
    if fields.get("headersize", "0") not in ("0", "-1"):
        raise UnsupportedScanError(f"{name}: has a HeaderSize, expected none; convert it to .nii.gz")
    if fields.get("distanceunits", "mm").lower() not in ("mm", "?"):
        raise UnsupportedScanError(f"{name}: DistanceUnits is not mm, expected mm; convert it to .nii.gz")
    sizes = _whole_numbers(fields.get("dimsize", ""), fields.get("ndims", ""), name)
    channels = fields.get("elementnumberofchannels", "1")
    sizes = (*_whole_numbers(channels, "1", name), *sizes) if channels != "1" else sizes
    data_file = fields.get("elementdatafile", "")
    return Claim(
        sizes=sizes,
        value_bytes=_META_BYTES[kind],
        compressed=15 if fields.get("compresseddata", "False").lower() == "true" else None,
        data=(path, end) if data_file.upper() == "LOCAL" else (_beside(path, data_file), 0),
    )


def _head(path: Path, magic: bytes, kind: str, end: re.Pattern[bytes]) -> tuple[str, int]:
    """(the header's text, the byte after it)."""
    name = display_name(path)
    with open_regular(path) as file:
        first = _read(file, _MAX_HEADER_BYTES)
    found = end.search(first)
    # A detached header may end with the file instead of an empty line.
    stop = found.end() if found is not None else len(first) if len(first) < 65536 else 0
    if not first.startswith(magic) or stop == 0 or (found is None and not magic):
        raise ScanError(
            f"{name}: content is {describe_content(first[:512])}, expected a {kind} header; "
            "give it its right suffix or fetch it again"
        )
    try:
        return first[:stop].decode("latin-1"), stop
    except UnicodeDecodeError as error:  # pragma: no cover  (latin-1 takes every byte)
        raise ScanError(f"{name}: header is no text") from error


def _read(file: BinaryIO, count: int) -> bytes:
    parts: list[bytes] = []
    while count > 0 and (part := file.read(count)):
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _fields(text: str, separator: str, name: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith("#") or separator not in line or (separator == ":" and ":=" in line):
            continue
        key, value = (part.strip() for part in line.split(separator, 1))
        if key.lower() in fields:
            raise ScanError(f"{name}: header gives {_shown(key)} twice, expected once; correct it")
        fields[key.lower()] = value
    return fields


def _whole_numbers(text: str, count: str, name: str) -> tuple[int, ...]:
    words = text.split()
    if not all(re.fullmatch(r"-?\d{1,18}", word) for word in (*words, count)) or len(words) != int(count):
        raise ScanError(
            f"{name}: sizes are {_shown(text)} for {_shown(count)} dimensions, expected a number each; correct it"
        )
    return tuple(int(word) for word in words)


def _shown(text: str) -> str:
    """A header's technical word for a message; anything long is not technical and stays out."""
    return repr(text) if text and len(text) <= 40 else "missing" if not text else "something long"


def _beside(path: Path, data_file: str) -> Path:
    name = display_name(path)
    if re.search(r"[/\\%\0]", data_file) or data_file.split(" ", 1)[0].upper() in ("", ".", "..", "LIST"):
        raise ScanError(
            f"{name}: points to voxels in another folder or in many files, expected one file beside it; convert it to .nii.gz"
        )
    data = path.parent / data_file
    if data.resolve().parent != path.parent.resolve():
        raise ScanError(
            f"{name}: points to a link that leads to another folder, expected one file beside it; convert it to .nii.gz"
        )
    return data


def check_payload(claim: Claim, name: str, limits: Limits) -> None:
    """Compares the promised bytes with those that are there; compressed ones are read through to their checksum.

    Raises:
        ScanError: too many voxels promised, too few there, or a checksum is wrong.
    """
    promised = limits.check_voxels(name, claim.sizes) * claim.value_bytes
    path, start = claim.data
    try:
        opened = open_regular(path)
    except ScanError as error:
        reason = str(error).split(": ", 1)[-1].split(";", 1)[0]
        raise ScanError(
            f"{name}: of the data file that its header names, {reason}; put both into one folder"
        ) from error
    with opened as file:
        if claim.compressed is None:
            held = os.fstat(file.fileno()).st_size - start
        else:
            file.seek(start)
            stream = GzipStream(file, name, window_bits=claim.compressed)
            held = stream.finish(promised + limits.max_trailing_bytes)
    if held < promised:
        raise ScanError(
            f"{name}: header promises {'x'.join(map(str, claim.sizes))} values = {promised:,} bytes of voxels, "
            f"the file has {max(held, 0):,}; copy or download it again"
        )
    assert math.prod(claim.sizes) > 0
