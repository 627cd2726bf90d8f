"""Paths of a manifest: what they may look like, and where they lead.

``path_fault`` looks at the text alone, so that a manifest of many cases loads without touching the disk; ``resolve``
looks at the disk, one case at a time.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medseg.errors import ManifestError
from medseg.manifest.cases import Case, Manifest

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_MAX_PATH_CHARACTERS = 2000


@dataclass(frozen=True, kw_only=True)
class ResolvedCase:
    """The files of one case on this machine; each existed when it was resolved (a DICOM series is its folder)."""

    id: str
    images: tuple[Path, ...]
    labels: tuple[Path, ...]


def path_fault(text: str) -> str | None:
    """What is wrong with a path as text, or None: it must be relative POSIX, without a URL scheme or a drive.

    ``..`` is no fault here: whether it leaves the data root is judged by :func:`resolve`.
    """
    if not text.strip():
        return "is empty, expected a path relative to the data root"
    if text.startswith("/"):
        return "is absolute, expected a path relative to the data root; give --data-root and shorten it"
    if _CONTROL.search(text):
        return "holds a control character, expected a plain relative path"
    if "\\" in text:
        return "holds a backslash, expected a relative path with forward slashes"
    if _SCHEME.match(text):
        return "begins like a URL or a drive, expected a path relative to the data root"
    if len(text) > _MAX_PATH_CHARACTERS:
        return f"has {len(text):,} characters, expected at most {_MAX_PATH_CHARACTERS:,}"
    return None


def _file_fault(root: str, relative: str, *, allow_outside: bool) -> str | None:
    fault = path_fault(relative)
    if fault:
        return fault
    real = os.path.realpath(f"{root}/{relative}")
    inside = real == root or real.startswith(root.rstrip("/") + "/")
    if not inside and not allow_outside:
        return "leads out of the data root, expected a file inside it; copy it there or give --allow-outside"
    try:
        mode = os.stat(real).st_mode  # noqa: PTH116 - a Path per file doubles the time of a large manifest
    except FileNotFoundError:
        return "is missing, expected a file under the data root; check --data-root and the name"
    except OSError as error:
        return f"can't be looked at ({error.strerror}), expected a readable file; check its permissions"
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        return "is no regular file or folder, expected one; device files and pipes are not read"
    return None


def _faults(case: Case, kind: str, paths: Sequence[str], root: str, *, allow_outside: bool) -> list[str]:
    found = ((path, _file_fault(root, path, allow_outside=allow_outside)) for path in paths)
    return [f"{case.id}: {kind} {path!r} {fault}" for path, fault in found if fault]


def resolve(manifest: Manifest, case: Case, data_root: Path | None = None, allow_outside: bool = False) -> ResolvedCase:
    """The files of ``case`` under ``data_root``, each known to exist.

    Args:
        manifest: the manifest that ``case`` is of; its own folder is the data root when none is given.
        case: the case.
        data_root: where relative paths start.
        allow_outside: whether ``..`` and symbolic links may lead out of ``data_root``. An absolute path never passes.

    Returns:
        Paths below ``data_root`` as the manifest spells them (links not followed, so that suffixes stay).

    Raises:
        ManifestError: a file is missing, outside the root or no regular file; one fault per file, all of the case's.
    """
    start = data_root if data_root is not None else manifest.path.parent
    root = os.path.realpath(start)
    faults = _faults(case, "image", case.images, root, allow_outside=allow_outside)
    faults += _faults(case, "label", case.labels, root, allow_outside=allow_outside)
    if faults:
        raise ManifestError(faults)
    images = tuple(start / image for image in case.images)
    return ResolvedCase(id=case.id, images=images, labels=tuple(start / label for label in case.labels))
