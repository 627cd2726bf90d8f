"""The files that a scan file is made of: itself, and the data file that a NRRD or MetaImage header may name."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from medseg.durable import sha256_file, sha256_json
from medseg.errors import ScanError
from medseg.imaging.formats import suffix_of

_MAY_BE_PARTED = (".nrrd", ".nhdr", ".mha", ".mhd")


def parts_of(path: Path) -> tuple[Path, ...]:
    """``path``, and its data file where it names one beside it; of a header that can't be read ``path`` alone."""
    suffix = suffix_of(path)
    if suffix not in _MAY_BE_PARTED or not os.path.isfile(path):  # noqa: PTH113  (False behind a closed folder)
        return (path,)
    from medseg.imaging.itk_headers import meta_claim, nrrd_claim

    try:
        data = (nrrd_claim if suffix in (".nrrd", ".nhdr") else meta_claim)(path).data[0]
    except ScanError:  # reading the scan says it better
        return (path,)
    return (path,) if data == path or not data.is_file() else (path, data)


def sha256_of_parts(path: Path) -> str:
    """SHA-256 of a file's bytes; of one in several parts, of the list of theirs.

    Raises:
        OSError: one can't be read.
    """
    parts = parts_of(path)
    return sha256_file(path) if len(parts) == 1 else sha256_json([sha256_file(part) for part in parts])


def sha256_of_slices(files: Iterable[Path]) -> str:
    """SHA-256 of the list of files' own, sorted: of a DICOM folder, whose slices go by their headers and not by their names.

    Raises:
        OSError: one can't be read.
    """
    return sha256_json(sorted(sha256_file(file) for file in files))
