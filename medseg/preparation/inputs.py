"""What the input files hold: their checksums, remembered as long as a file's size, time and inode stay.

The memory is a file beside the prepared data, not in it, because it means something on this machine only. Losing it costs
one more reading of the files.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medseg.durable import read_json, remove_stale_temporaries, sha256_json, write_json
from medseg.errors import InputError, ScanError
from medseg.imaging.parts import parts_of, sha256_of_parts, sha256_of_slices

_MEMORY_FORMAT = 1


@dataclass(frozen=True)
class Fixed:
    """One input (a file, or a DICOM folder) at one moment: ``stamp`` of sizes, times and inodes, ``sha256`` of content."""

    stamp: str
    sha256: str


def stamp_of(path: Path) -> str:
    """A short text that changes when the file, its data file, or any file of the folder, is replaced or written to.

    Raises:
        ScanError: it is gone or can't be looked at.
    """
    try:
        if path.is_dir():
            entries = [(entry.name, entry.stat()) for entry in _files(path)]
        else:
            entries = [("" if part == path else part.name, part.stat()) for part in parts_of(path)]
    except OSError as error:
        raise ScanError(
            f"{path.name}: can't be looked at ({error.strerror}); check the path and its permissions"
        ) from error
    return sha256_json([[name, s.st_size, s.st_mtime_ns, s.st_ino] for name, s in entries])[:32]


def _files(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted((entry for entry in entries if entry.is_file()), key=lambda entry: entry.name)


def fix(path: Path) -> Fixed:
    """Reads an input once and gives its stamp and content checksum.

    A folder's checksum is that of its files' checksums, sorted, so renaming slices changes nothing.

    Raises:
        ScanError: it can't be read, or it changed meanwhile.
    """
    stamp = stamp_of(path)
    try:
        slices = [Path(entry.path) for entry in _files(path)] if path.is_dir() else None
        sha256 = sha256_of_parts(path) if slices is None else sha256_of_slices(slices)
    except OSError as error:
        raise ScanError(f"{path.name}: can't be read ({error.strerror}); check the path and its permissions") from error
    must_be_unchanged(path, stamp)
    return Fixed(stamp, sha256)


def must_be_unchanged(path: Path, stamp: str) -> None:
    """Refuses an input that is no longer what ``stamp`` was taken of.

    Raises:
        ScanError: it changed.
    """
    if stamp_of(path) != stamp:
        raise ScanError(f"{path.name}: changed while it was read; run again when nobody writes to it")


class InputMemory:
    """The checksums of inputs seen before, by their path in the manifest.

    A damaged or foreign memory file is forgotten: it saves time and decides nothing.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known: dict[str, Fixed] = {}
        self._changed = False
        with contextlib.suppress(InputError, KeyError, TypeError, ValueError, AttributeError):
            content = read_json(file)
            if content["format"] == _MEMORY_FORMAT:
                self._known = {name: Fixed(str(stamp), str(sha)) for name, (stamp, sha) in content["inputs"].items()}

    def recall(self, names: Sequence[str], paths: Sequence[Path]) -> tuple[Fixed, ...] | None:
        """What is known about these inputs, or None if one is unknown or no longer the same."""
        found = []
        for name, path in zip(names, paths, strict=True):
            fixed = self._known.get(name)
            with contextlib.suppress(ScanError):
                if fixed is not None and stamp_of(path) == fixed.stamp:
                    found.append(fixed)
                    continue
            return None
        return tuple(found)

    def learn(self, inputs: Mapping[str, Fixed]) -> None:
        """Takes note of inputs."""
        self._known.update(inputs)
        self._changed = True

    def save(self) -> None:
        """Writes the memory if it has changed."""
        if self._changed:
            remove_stale_temporaries(self._file.parent)
            inputs = {name: [fixed.stamp, fixed.sha256] for name, fixed in sorted(self._known.items())}
            write_json(self._file, {"format": _MEMORY_FORMAT, "inputs": inputs})
            self._changed = False
