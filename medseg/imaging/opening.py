"""Opening a scan file, and nothing else: regular files only, each way to fail with its own words."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from medseg.errors import ScanError

_REASONS = {
    errno.ENOENT: "there is no such file",
    errno.ENOTDIR: "there is no such file (a part of its path is no folder)",
    errno.ELOOP: "is a symbolic link that leads back to itself",
    errno.EACCES: "can't be read (permission denied)",
    errno.EPERM: "can't be read (permission denied)",
    errno.ENAMETOOLONG: "has a name too long for this file system",
    errno.ENXIO: "is no regular file",
}
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)
_MAGICS = (
    (b"\x1f\x8b", "gzip"),
    (b"PK\x03\x04", "a zip archive"),
    (b"version https://git-lfs", "a Git LFS pointer (its content was not fetched)"),
    (b"/annex/objects/", "a git-annex pointer (its content was not fetched)"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"II+\x00", "BigTIFF"),
    (b"MM\x00+", "BigTIFF"),
    (b"GIF8", "GIF"),
    (b"BM", "a bitmap or text"),
    (b"NRRD000", "NRRD"),
    (b"\x93NUMPY", "a numpy file"),
    (b"\x89HDF", "HDF5"),
    (b"%PDF", "PDF"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ", "xz"),
)


def display_name(path: Path) -> str:
    """The last part of ``path`` for messages, control characters escaped."""
    return printable(path.name or ".")


def printable(text: str) -> str:
    """``text`` with control characters, and bytes of file names that are no UTF-8, escaped: it can be written anywhere."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def open_regular(path: Path) -> BinaryIO:
    """Opens a regular file for reading, unbuffered; never waits on a pipe or device.

    Raises:
        ScanError: missing, dangling link, link loop, folder, pipe, device, no permission or empty; each named.
    """
    name = display_name(path)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except (OSError, ValueError) as error:
        raise ScanError(f"{name}: {_reason(path, error)}; check the path and its permissions") from error
    mode = os.fstat(descriptor)
    if not stat.S_ISREG(mode.st_mode):
        os.close(descriptor)
        kind = next((words for is_kind, words in _KINDS if is_kind(mode.st_mode)), "something else")
        raise ScanError(f"{name}: is {kind}, expected a regular file; give the scan file itself")
    if mode.st_size == 0:
        os.close(descriptor)
        raise ScanError(f"{name}: is empty (0 bytes), expected a scan; copy or download it again")
    return open(descriptor, "rb", buffering=0)  # noqa: PTH123  (a descriptor, so that nobody can swap the file meanwhile)


def _reason(path: Path, error: OSError | ValueError) -> str:
    if isinstance(error, ValueError):
        return "has a name that no file can have"
    if error.errno == errno.ENOENT and path.is_symlink():
        return "is a symbolic link to a file that is not there"
    return _REASONS.get(error.errno or 0, f"can't be opened ({error.strerror or type(error).__name__})")


def describe_content(first: bytes) -> str:
    """What the first bytes of a file look like, in a word or two for messages; at least 352 bytes tell most."""
    for magic, words in _MAGICS:
        if first.startswith(magic):
            return words
    if first[128:132] == b"DICM":
        return "DICOM"
    if _is_nifti(first):
        return "NIfTI"
    start = first.lstrip()[:200].lower()
    if start.startswith((b"<!doctype html", b"<html")) or b"<html" in start:
        return "HTML (did a download fail?)"
    if start.startswith((b"objecttype", b"ndims", b"comment")) and b"=" in start:
        return "MetaImage"
    if not first.strip(b"\0"):
        return "zero bytes only"
    if all(byte in b"\t\n\r\f" or byte >= 32 for byte in first) and first.isascii():
        return "text"
    return "of unknown content"


def _is_nifti(first: bytes) -> bool:
    return first[344:348] in (b"n+1\0", b"ni1\0") or first[4:8] in (b"n+2\0", b"ni2\0")
