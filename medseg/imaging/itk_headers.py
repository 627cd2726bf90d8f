"""NRRD and MetaImage headers and voxels, read here; SimpleITK only says where the voxels lie in the patient.

SimpleITK fills a truncated file with zeros, hands out memory as it finds it where compressed data is not as the header says,
and follows a data file's name anywhere, all without an error.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from medseg.errors import ScanError, UnsupportedScanError
from medseg.imaging.limits import Limits
from medseg.imaging.opening import describe_content, display_name, open_regular
from medseg.imaging.streams import GzipStream, PlainStream, Stream, chunks

_NRRD_TYPES = {
    name: kind
    for kind, names in {
        "i1": ("int8", "int8_t", "signed char"),
        "u1": ("uint8", "uint8_t", "uchar", "unsigned char"),
        "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
        "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
        "i4": ("int", "signed int", "int32", "int32_t"),
        "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
        "i8": ("longlong", "long long", "long long int", "signed long long", "int64", "int64_t"),
        "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
        "f4": ("float",),
        "f8": ("double",),
    }.items()
    for name in names
}
_META_TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip
_SPACES = {
    "left-posterior-superior", "lps", "right-anterior-superior", "ras", "left-anterior-superior", "las",
}  # fmt: skip
_MAX_HEADER_BYTES = 1 << 20
_META_AXES = frozenset({"transformmatrix", "rotation", "orientation"})
_NO_SIZE = "voxel size is unknown"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a header says of its data.

    Attributes:
        sizes: in file order, fastest first, the channel axis too.
        dtype: of one value as stored, byte order included.
        channel_axis: which of ``sizes`` is no direction in space; None where there is none, or it comes after three others.
        compressed: zlib's window bits of the data (31 gzip, 47 zlib or gzip), or None where it is raw.
        data: file that holds the data, and the byte where it begins; -1 where it ends with the file.
        oriented: whether the header says where the axes run.
        warnings: sentences for the user.
    """

    sizes: tuple[int, ...]
    dtype: np.dtype[np.generic]
    channel_axis: int | None
    compressed: int | None
    data: tuple[Path, int]
    oriented: bool = True
    warnings: tuple[str, ...] = ()

    @property
    def spatial_sizes(self) -> tuple[int, ...]:
        """``sizes`` without the channel axis."""
        return tuple(size for axis, size in enumerate(self.sizes) if axis != self.channel_axis)


def nrrd_claim(path: Path) -> Claim:
    """The claim of a NRRD header; kinds of NRRD that are not read are refused by name."""
    name = display_name(path)
    text, end = _head(path, b"NRRD000", "NRRD", re.compile(rb"\r?\n\r?\n"))
    fields = _fields(text, ":", name)
    kind = fields.get("type", "").lower()
    if kind not in _NRRD_TYPES:
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
    sizes = _whole_numbers(fields.get("sizes", ""), fields.get("dimension", ""), name)
    data_file = fields.get("data file", fields.get("datafile"))
    return Claim(
        sizes=sizes,
        dtype=_nrrd_dtype(_NRRD_TYPES[kind], fields.get("endian", "").lower(), name),
        channel_axis=_nrrd_channel_axis(fields, sizes, name),
        compressed=None if encoding == "raw" else 31,
        data=(path, end) if data_file is None else (_beside(path, data_file), 0),
        oriented="space directions" in fields and bool({"space", "space dimension"} & fields.keys()),
        warnings=_space_warnings(fields, name),
    )


def _nrrd_dtype(kind: str, endian: str, name: str) -> np.dtype[np.generic]:
    dtype = np.dtype(kind)
    if dtype.itemsize > 1 and endian not in ("little", "big"):
        raise ScanError(f"{name}: endian is {_shown(endian)}, expected little or big; add it to the header")
    return dtype.newbyteorder(">" if endian == "big" else "<")


def _nrrd_channel_axis(fields: Mapping[str, str], sizes: Sequence[int], name: str) -> int | None:
    """The axis that has no direction in space, by its kind or by a direction of ``none``."""
    directions = re.findall(r"\([^()]*\)|none", fields.get("space directions", ""), re.IGNORECASE)
    kinds = fields.get("kinds", "").lower().split()
    if len(directions) == len(sizes):
        _check_lengths([word.strip("()").split(",") for word in directions if word.lower() != "none"], name)
        axes = [axis for axis, word in enumerate(directions) if word.lower() == "none"]
    elif len(kinds) == len(sizes):
        axes = [axis for axis, word in enumerate(kinds) if word not in ("domain", "space", "time", "???", "none")]
    else:
        axes = []
    if "spacings" in fields:
        _check_lengths([[word] for axis, word in enumerate(fields["spacings"].split()) if axis not in axes], name)
    if len(axes) > 1:
        raise UnsupportedScanError(f"{name}: has {len(axes)} axes without direction, expected at most 1; convert it")
    return axes[0] if axes else None


def _check_lengths(vectors: Sequence[Sequence[str]], name: str) -> None:
    """Refuses a voxel side (the length of a vector in text) that is 0 or no finite number."""
    for vector in vectors:
        try:
            length = math.hypot(*map(float, vector))
        except ValueError:
            length = math.nan
        if not math.isfinite(length) or length == 0:
            raise ScanError(
                f"{name}: voxel size is {length:g} along an axis, expected a positive number; correct the header"
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
    told = []
    if not space and "space dimension" not in fields:
        told.append("orientation is unknown (no space): taken from the voxel sizes alone")
    elif "space directions" not in fields:
        told.append("orientation is unknown (no space directions): taken from the voxel sizes alone")
    elif "space origin" not in fields:
        told.append("place is unknown (no space origin): the first voxel is taken to lie at 0, 0, 0")
    if not {"space directions", "spacings"} & fields.keys():
        told.append(f"{_NO_SIZE} (no space directions, no spacings): 1 mm is taken")
    return tuple(told)


def meta_claim(path: Path) -> Claim:
    """The claim of a MetaImage header (.mha, .mhd); kinds that are not read are refused by name."""
    name = display_name(path)
    text, end = _head(path, b"", "MetaImage", re.compile(rb"ElementDataFile[ \t]*=[^\n]*(\n|\Z)"))
    fields = _fields(text, "=", name)
    kind = fields.get("elementtype", "").upper()
    if kind not in _META_TYPES:
        raise UnsupportedScanError(
            f"{name}: ElementType is {_shown(kind)}, expected whole or real numbers; convert it to .nii.gz"
        )
    if not _is_true(fields.get("binarydata", "True")):
        raise UnsupportedScanError(f"{name}: holds its voxels as text, expected binary data; convert it to .nii.gz")
    compressed, header_size = _is_true(fields.get("compresseddata", "False")), fields.get("headersize", "0")
    if header_size not in (("0",) if compressed else ("0", "-1")):
        raise UnsupportedScanError(f"{name}: has a HeaderSize, expected none; convert it to .nii.gz")
    if fields.get("distanceunits", "mm").lower() not in ("mm", "?"):
        raise UnsupportedScanError(f"{name}: DistanceUnits is not mm, expected mm; convert it to .nii.gz")
    sizes = _whole_numbers(fields.get("dimsize", ""), fields.get("ndims", ""), name)
    channels = fields.get("elementnumberofchannels", "1")
    sizes = (*_whole_numbers(channels, "1", name), *sizes) if channels != "1" else sizes
    data_file = fields.get("elementdatafile", "")
    data, start = (path, end) if data_file.upper() == "LOCAL" else (_beside(path, data_file), 0)
    return Claim(
        sizes=sizes,
        dtype=np.dtype(_META_TYPES[kind]).newbyteorder(_meta_order(fields, name)),
        channel_axis=0 if channels != "1" else None,
        compressed=47 if compressed else None,
        data=(data, -1 if header_size == "-1" else start),
        oriented=bool(_META_AXES & fields.keys()),
        warnings=_meta_warnings(fields, name),
    )


def _is_true(text: str) -> bool:
    return text[:1].lower() in ("t", "y", "1")


def _meta_order(fields: Mapping[str, str], name: str) -> Literal["<", ">"]:
    said = {_is_true(fields[key]) for key in ("binarydatabyteordermsb", "elementbyteordermsb") if key in fields}
    if len(said) > 1:
        raise ScanError(
            f"{name}: BinaryDataByteOrderMSB and ElementByteOrderMSB disagree, expected one order; correct it"
        )
    return ">" if said == {True} else "<"


def _meta_warnings(fields: Mapping[str, str], name: str) -> tuple[str, ...]:
    size = fields.get("elementspacing", fields.get("elementsize"))
    told = []
    if size is None:
        told.append(f"{_NO_SIZE} (no ElementSpacing): 1 mm is taken")
    else:
        _check_lengths([[word] for word in size.split()], name)
    if not _META_AXES & fields.keys():
        told.append("orientation is unknown (no TransformMatrix): taken from the voxel sizes alone")
    elif not {"offset", "position", "origin"} & fields.keys():
        told.append("place is unknown (no Offset): the first voxel is taken to lie at 0, 0, 0")
    return tuple(told)


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


def read_voxels(claim: Claim, name: str, limits: Limits) -> tuple[npt.NDArray[Any], tuple[str, ...]]:
    """The values as ``claim`` says they lie, (sizes) in native byte order and fastest axis first in memory; and warnings.

    Raises:
        ScanError: too many voxels promised, too few there, or a checksum is wrong.
    """
    count = limits.check_voxels(name, claim.sizes)
    with _opened(claim, name) as file:
        stream = _positioned(claim, file, name)
        flat = np.empty(count, claim.dtype.newbyteorder("="))
        for place, part in chunks(stream, claim.dtype, count, what=_promise(claim)):
            flat[place] = part
        trailing = stream.finish(limits.max_trailing_bytes)
    told = (f"{trailing:,} bytes after the voxels were ignored",) if trailing else ()
    return flat.reshape(claim.sizes, order="F"), told


def check_length(claim: Claim, name: str, limits: Limits) -> None:
    """Compares the promised bytes with those that are there, without reading them; not of compressed ones.

    Raises:
        ScanError: too many voxels promised, or too few there.
    """
    promised = limits.check_voxels(name, claim.sizes) * claim.dtype.itemsize
    with _opened(claim, name) as file:
        held = os.fstat(file.fileno()).st_size - max(claim.data[1], 0)
    if claim.compressed is None and held < promised:
        raise ScanError(
            f"{name}: header promises {_promise(claim)} = {promised:,} bytes of voxels, "
            f"the file has {max(held, 0):,}; copy or download it again"
        )


def _promise(claim: Claim) -> str:
    return f"{'x'.join(map(str, claim.sizes))} values"


def _opened(claim: Claim, name: str) -> BinaryIO:
    try:
        return open_regular(claim.data[0])
    except ScanError as error:
        reason = str(error).split(": ", 1)[-1].split(";", 1)[0]
        raise ScanError(
            f"{name}: of the data file that its header names, {reason}; put both into one folder"
        ) from error


def _positioned(claim: Claim, file: BinaryIO, name: str) -> Stream:
    start = claim.data[1]
    if start < 0:
        start = max(0, os.fstat(file.fileno()).st_size - math.prod(claim.sizes) * claim.dtype.itemsize)
    file.seek(start)
    return PlainStream(file, name) if claim.compressed is None else GzipStream(file, name, window_bits=claim.compressed)
