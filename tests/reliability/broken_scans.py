"""Scan files that can't be used, one maker a kind: damaged, foreign, lying, no files, and such that bring a decoder down."""

from __future__ import annotations

import gzip
import os
import struct
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np

CRASHES, IS_KILLED, HANGS = "crash", "killed", "hang"
"""Beginnings of the names of files that ``HOOK`` treats as their names say."""

HOOK = f'''"""A decoder with bugs: opening certain files crashes, kills or stops a worker process."""
import os, signal, sys, time

def _hook(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes, os.PathLike)):
        name = os.path.basename(os.fsdecode(arguments[0]))
        if name.endswith(".mha") and name.startswith("{CRASHES}"):
            os.kill(os.getpid(), signal.SIGSEGV)
        elif name.endswith(".mha") and name.startswith("{IS_KILLED}"):
            os.kill(os.getpid(), signal.SIGKILL)
        elif name.endswith(".mha") and name.startswith("{HANGS}"):
            time.sleep(3600)

if "--multiprocessing-fork" in sys.orig_argv:
    sys.addaudithook(_hook)
'''
"""A ``sitecustomize.py``: worker processes of a command that finds it behave as if their decoder had bugs."""

SHAPE = (20, 18, 12)


def broken_scans(folder: Path, count: int, whole: bytes) -> list[str]:
    """Writes ``count`` unusable scans below ``folder``, the kinds in turn, and gives their cases' ids.

    Args:
        folder: made where it is missing.
        count: how many.
        whole: bytes of a sound .nii.gz, from which some are made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kinds = list(_KINDS.items())
    return [_made(folder, *kinds[number % len(kinds)], number, whole) for number in range(count)]


def _made(folder: Path, kind: str, entry: tuple[str, Callable[[Path, bytes], None]], number: int, whole: bytes) -> str:
    suffix, make = entry
    case_id = f"{kind}_{number:03d}"
    make(folder / f"{case_id}{suffix}", whole)
    return case_id


def _bytes(change: Callable[[bytes], bytes]) -> Callable[[Path, bytes], None]:
    return lambda path, whole: path.write_bytes(change(whole)) and None


def _header(change: Callable[[bytearray], None]) -> Callable[[Path, bytes], None]:
    """A sound file's header changed, its checksums right."""

    def make(path: Path, whole: bytes) -> None:
        data = bytearray(gzip.decompress(whole))
        change(data)
        path.write_bytes(gzip.compress(bytes(data), 1))

    return make


def _nifti(array: np.ndarray, affine: np.ndarray | None = None) -> Callable[[Path, bytes], None]:
    def make(path: Path, _whole: bytes) -> None:
        image = nib.Nifti1Image(array, None)
        image.header.set_sform(np.eye(4) if affine is None else affine, code=1)
        image.header.set_qform(np.eye(4), code=0)
        nib.save(image, path)

    return make


def _flipped(whole: bytes) -> bytes:
    data = bytearray(whole)
    data[len(data) // 2] ^= 16
    return bytes(data)


def _huge(data: bytearray) -> None:
    data[42:48] = struct.pack("<3h", 32767, 32767, 32767)


def _no_size(data: bytearray) -> None:
    data[42:44] = struct.pack("<h", 0)


def _no_spacing(data: bytearray) -> None:
    data[80:92] = struct.pack("<3f", 0.0, 0.0, 0.0)
    data[252:256] = struct.pack("<2h", 0, 0)


def _with_nan() -> np.ndarray:
    array = np.ones(SHAPE, np.float32)
    array[3, 4, 5] = np.nan
    return array


def _mha(data: bytes, *, where: str = "LOCAL") -> Callable[[Path, bytes], None]:
    lines = [
        "ObjectType = Image",
        "NDims = 3",
        "DimSize = 20 18 12",
        "ElementType = MET_SHORT",
        "ElementSpacing = 1 1 1",
    ]
    text = "\n".join([*lines, "BinaryData = True", "BinaryDataByteOrderMSB = False", f"ElementDataFile = {where}", ""])
    return lambda path, _whole: path.write_bytes(text.encode() + data) and None


def _whole_mha(path: Path, whole: bytes) -> None:
    _mha(bytes(20 * 18 * 12 * 2))(path, whole)


def _dicom_text(path: Path, _whole: bytes) -> None:
    path.mkdir()
    (path / "IM0001.dcm").write_text("no DICOM at all\n" * 40)


_COLOURS = np.zeros(SHAPE, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
_KINDS: dict[str, tuple[str, Callable[[Path, bytes], None]]] = {
    "cut": (".nii.gz", _bytes(lambda whole: whole[: len(whole) * 6 // 10])),
    "cut_at_end": (".nii.gz", _bytes(lambda whole: whole[:-3])),
    "flipped": (".nii.gz", _bytes(_flipped)),
    "empty": (".nii.gz", lambda path, _whole: path.touch()),
    "text": (".nii.gz", _bytes(lambda _: b"patient list, not a scan\n" * 30)),
    "html": (".nii.gz", _bytes(lambda _: b"<!DOCTYPE html><html><body>Not found</body></html>" * 20)),
    "pointer": (".nii.gz", _bytes(lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")),
    "zip": (".nii.gz", _bytes(lambda _: b"PK\x03\x04" + bytes(400))),
    "huge": (".nii.gz", _header(_huge)),
    "no_size": (".nii.gz", _header(_no_size)),
    "no_spacing": (".nii.gz", _header(_no_spacing)),
    "short": (".nii.gz", lambda path, whole: path.write_bytes(gzip.compress(gzip.decompress(whole)[:-2000])) and None),
    "nan": (".nii.gz", _nifti(_with_nan())),
    "five_volumes": (".nii.gz", _nifti(np.ones((*SHAPE, 5), np.float32))),
    "complex": (".nii.gz", _nifti(np.ones(SHAPE, np.complex64))),
    "colours": (".nii.gz", _nifti(_COLOURS)),
    "flat_affine": (".nii.gz", _nifti(np.ones(SHAPE, np.float32), np.diag([1.0, 1.0, 0.0, 1.0]))),
    "pipe": (".nii.gz", lambda path, _whole: os.mkfifo(path)),
    "dangling": (".nii.gz", lambda path, _whole: path.symlink_to(path.with_name("nowhere.nii.gz"))),
    "loop": (".nii.gz", lambda path, _whole: path.symlink_to(path.name)),
    "short_mha": (".mha", _mha(bytes(100))),
    "elsewhere": (".mha", _mha(b"", where="/etc/hostname")),
    "garbage": (".nrrd", _bytes(lambda _: b"NRRD0004\ntype: short\ndimension: 99\nsizes: x\n\n")),
    "picture": (".png", _bytes(lambda _: b"\x89PNG\r\n\x1a\n" + bytes(60))),
    "jpeg": (".jpg", _bytes(lambda _: b"\xff\xd8\xff\xe0" + bytes(60))),
    "dicom": ("", _dicom_text),
    CRASHES: (".mha", _whole_mha),
    IS_KILLED: (".mha", _whole_mha),
    HANGS: (".mha", _whole_mha),
    "two_bits": (".nii.gz", _bytes(lambda whole: _flipped(_flipped(whole)[:-8] + b"\x00" * 8))),
}
