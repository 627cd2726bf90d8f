"""The input files of one case: what they hold, and whether they stayed as they were while they were read."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from medseg.errors import ScanError
from medseg.imaging.opening import display_name
from medseg.imaging.parts import parts_of, sha256_of_parts, sha256_of_slices

_Stamp = tuple[str, int, int, int]


class InputFiles:
    """One file or DICOM folder per entry of ``images``, as they are now.

    Args:
        images: as a case has them; channels may share a folder.
        only: per image, names of the files of its folder that count, where others lie beside them; empty counts all.

    Raises:
        ScanError: one is missing, can't be read or is no regular file (opening a pipe would wait for ever).
    """

    def __init__(self, images: Sequence[Path], only: Sequence[Sequence[str]] = ()) -> None:
        self._images = tuple(images)
        self._only = tuple(frozenset(names) for names in only or [()] * len(self._images))
        self._stamps = self._look()

    def sha256s(self) -> dict[str, str]:
        """Checksum per image, by its place among the channels: a file's bytes, or those of all files of a folder or scan.

        A folder's checksum depends on its files' bytes, not on their names: slices are sorted by their headers.
        """
        parts = list(zip(self._images, self._only, strict=True))
        try:
            known = {part: _sha256(*part) for part in dict.fromkeys(parts)}
        except OSError as error:
            name = display_name(self._images[0])
            if error.filename and (inner := display_name(Path(error.filename))) != name:
                name = f"{name}/{inner}"  # a slice, or the data file of a header
            raise ScanError(f"{name}: can't be read ({error.strerror}); check the file") from error
        return {f"image_{number:04d}": known[part] for number, part in enumerate(parts)}

    def check_unchanged(self) -> None:
        """Raises ScanError if a file was changed, replaced, added or removed since this object was made."""
        if self._look() != self._stamps:
            raise ScanError(
                f"{display_name(self._images[0])}: was changed while it was read; run again when it is complete"
            )

    def _look(self) -> tuple[_Stamp, ...]:
        parts = dict.fromkeys(zip(self._images, self._only, strict=True))
        return tuple(_stamp(path) for image, only in parts for path in _files(image, only))


def _files(image: Path, only: frozenset[str]) -> list[Path]:
    if not os.path.isdir(image):  # noqa: PTH112  (False behind a closed folder)
        return list(parts_of(image))
    if only:
        return sorted(image / name for name in only)
    try:
        return sorted(path for path in image.iterdir() if not path.name.startswith(".") and not path.is_dir())
    except OSError as error:
        raise ScanError(f"{display_name(image)}: can't be listed ({error.strerror}); check its permissions") from error


def _stamp(path: Path) -> _Stamp:
    try:
        status = path.stat()
    except OSError as error:
        raise ScanError(
            f"{display_name(path)}: can't be read ({error.strerror}); check the path and its permissions"
        ) from error
    if not stat.S_ISREG(status.st_mode):
        raise ScanError(f"{display_name(path)}: is no regular file, expected one; copy it to a disk first")
    return path.name, status.st_size, status.st_mtime_ns, status.st_ino


def _sha256(image: Path, only: frozenset[str]) -> str:
    if os.path.isdir(image):  # noqa: PTH112
        return sha256_of_slices(_files(image, only))
    return sha256_of_parts(image)
