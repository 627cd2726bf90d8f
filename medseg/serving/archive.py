"""A zip archive of unknown origin: its files, unpacked under names of our own.

Nothing that the archive says is believed: names decide about the order only, sizes are counted while unpacking, and the
directory's size is looked at before it is parsed (a forged one of 1 GB would become 10 GB of objects).
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

from medseg.errors import ScanError

_END = b"PK\x05\x06"
_LONG_END = b"PK\x06\x07"
_END_BYTES = 22
_MOST_COMMENT = 65_535
_BYTES_PER_ENTRY = 400
"""Of the central directory: 46 bytes, the name and extra fields."""
_BLOCK_BYTES = 1 << 20
_ENCRYPTED = 0x1
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def unpack(archive: Path, folder: Path, *, max_bytes: int, max_files: int) -> list[Path]:
    """Unpacks every file of a zip archive into ``folder``, numbered in the order of the names inside.

    Folders, macOS's ``__MACOSX`` and hidden files are passed over.

    Args:
        archive: the file.
        folder: empty and the caller's to remove.
        max_bytes: of all unpacked files together, counted while unpacking.
        max_files: at most so many.

    Returns:
        Paths ``00000`` ..., in the order of the names in the archive; at least one.

    Raises:
        ScanError: no sound zip archive, an encrypted one, one with more than the limits, or an empty one.
        OSError: the disk.
    """
    _check_end(archive, max_files)
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = sorted((e for e in opened.infolist() if _is_wanted(e)), key=lambda entry: entry.filename)
            if not entries:
                raise ScanError("archive: holds no file, expected a DICOM series or one scan per channel")
            if len(entries) > max_files:
                raise ScanError(f"archive: holds {len(entries):,} files, expected at most {max_files:,}; send fewer")
            left, paths = max_bytes, []
            for number, entry in enumerate(entries):
                _refuse_unreadable(entry)
                paths.append(folder / f"{number:05d}")
                with opened.open(entry) as source, paths[-1].open("xb") as target:
                    left -= _copied(source, target, left, max_bytes)
            return paths
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        NotImplementedError,
        RuntimeError,
        UnicodeError,
        struct.error,
    ) as error:
        raise ScanError("archive: is no sound zip file; make it again") from error


def _is_wanted(entry: zipfile.ZipInfo) -> bool:
    parts = entry.filename.replace("\\", "/").split("/")
    return not entry.is_dir() and parts[0] != "__MACOSX" and not parts[-1].startswith(".")


def _refuse_unreadable(entry: zipfile.ZipInfo) -> None:
    if entry.flag_bits & _ENCRYPTED:
        raise ScanError("archive: is encrypted, expected none; send it without a password")
    if entry.compress_type not in _METHODS:
        raise ScanError("archive: is compressed in an uncommon way, expected deflate; make it again with zip")


def _copied(source: object, target: BinaryIO, left: int, most: int) -> int:
    size = 0
    while block := source.read(_BLOCK_BYTES):  # type: ignore[attr-defined]  # ZipExtFile
        size += len(block)
        if size > left:
            raise ScanError(f"archive: unpacks to more than {most / 2**20:,.0f} MiB, the most that is taken; send less")
        target.write(block)
    return size


def _check_end(archive: Path, max_files: int) -> None:
    """Refuses a directory that is too large to be parsed."""
    size = archive.stat().st_size
    with archive.open("rb") as file:
        file.seek(max(0, size - _END_BYTES - _MOST_COMMENT - _END_BYTES))
        tail = file.read()
    at = tail.rfind(_END)
    if at < 0 or len(tail) - at < _END_BYTES:
        raise ScanError("archive: is no whole zip file (its end is missing); send it again")
    if _LONG_END in tail:
        raise ScanError("archive: is of the zip64 kind, expected fewer than 65,535 files and 4 GB; send less")
    (directory_bytes,) = struct.unpack_from("<L", tail, at + 12)
    if directory_bytes > max_files * _BYTES_PER_ENTRY:
        raise ScanError(f"archive: has a directory of {directory_bytes:,} bytes, too much for {max_files:,} files")
