"""From a folder of files to one sound stack of planes, or a refusal that says which rule it breaks.

Nothing is averaged, guessed or left out: a series whose planes do not form one even, upright stack is refused with the
two numbers that disagree.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from medseg.errors import ScanError
from medseg.imaging.dicom_headers import FileHeader, read_file_header
from medseg.imaging.limits import Limits
from medseg.imaging.opening import display_name

# Kinds of DICOM object that lie beside images and are none: reports, plans, contours, masks, doses, waveforms.
_OTHER_OBJECTS = re.compile(
    r"1\.2\.840\.10008\.1\.3\.10$|1\.2\.840\.10008\.5\.1\.4\.1\.1\."
    r"(?:9\.|11\.|30$|66|67$|68\.|88\.|104\.|481\.|200\.2)|1\.2\.840\.10008\.5\.1\.4\.34\."
)
_OTHER_MODALITIES = frozenset({"SEG", "SR", "PR", "KO", "REG", "RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "DOC"})
_STANDARD = "1.2.840.10008."  # private kinds without pixels (protocols, raw data) are no images
_SLICE_SUFFIXES = frozenset({".dcm", ".dicom", ".ima"})
_SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini", "dicomdir"})


@dataclass(frozen=True, kw_only=True)
class Found:
    """The image files of a folder, grouped by series.

    Attributes:
        label: the folder's name, for messages.
        series: SeriesInstanceUID to its files, sorted by file name; UIDs are never for a message.
        warnings: sentences for the user.
    """

    label: str
    series: dict[str, tuple[FileHeader, ...]] = field(repr=False)
    warnings: tuple[str, ...]


def series_code(series_uid: str) -> str:
    """A short name of a series that can be shown: 8 hex digits of the SHA-256 of its UID."""
    return hashlib.sha256(series_uid.encode("latin-1", "replace")).hexdigest()[:8]


_READ: ContextVar[dict[tuple[Path, Limits], Found] | None] = ContextVar("_READ", default=None)


@contextlib.contextmanager
def headers_read_once() -> Iterator[None]:
    """Within it, this thread parses the headers of a folder once: for one case, whose channels may share a folder.

    Pixels are read from the very files whose headers were parsed, or refused, so a change in between goes not unseen.
    """
    token = _READ.set({})
    try:
        yield
    finally:
        _READ.reset(token)


def find_series(path: Path, limits: Limits, *, allow_none: bool = False) -> Found:
    """Read the headers of every file in a folder (its subfolders are not looked into), or of a single file.

    Args:
        path: the folder or file.
        limits: bounds of the number of files.
        allow_none: a folder without an image gives no series instead of a refusal.

    Raises:
        ScanError: no DICOM image there, a file can't be read or parsed, a damaged file lies between the slices.
    """
    read = _READ.get()
    found = None if read is None else read.get((path, limits))
    if found is None:
        found = _parsed_series(path, limits, allow_none=allow_none)
        if read is not None and found.series:  # an empty folder is refused by some callers, and not by others
            read[path, limits] = found
    return found


def _parsed_series(path: Path, limits: Limits, *, allow_none: bool) -> Found:
    label = display_name(path)
    files = _files(path, label, limits)
    headers: list[FileHeader] = []
    foreign: list[str] = []
    for file in files:
        name = display_name(file)
        header = read_file_header(file, name if file == path else f"{label}/{name}")
        if header is None:
            foreign.append(name)
        elif _is_image(header):
            headers.append(header)
    if path not in files:
        _refuse_damaged_slices(label, foreign, [header.path.name for header in headers])
    if not headers and not allow_none:
        raise ScanError(_nothing_found(path, label, len(files), len(foreign)))
    series: dict[str, list[FileHeader]] = {}
    for header in headers:
        if not header.pixel_keyword:
            raise ScanError(f"{header.label}: PixelData is missing, the file seems to be cut; copy it again")
        if not header.series_uid:
            raise ScanError(f"{header.label}: SeriesInstanceUID is missing; export the series again")
        series.setdefault(header.series_uid, []).append(header)
    warnings = () if not foreign else (f"{_listed(foreign)} ignored: not DICOM",)
    return Found(label=label, series={uid: tuple(group) for uid, group in series.items()}, warnings=warnings)


def choose_series(found: Found, wanted: str | None) -> tuple[FileHeader, ...]:
    """The files of the one series, or of the one whose UID or short code is ``wanted``.

    Raises:
        ScanError: several series and none chosen, or the chosen one is not there.
    """
    if wanted is None and len(found.series) == 1:
        return next(iter(found.series.values()))
    chosen = [files for uid, files in found.series.items() if wanted and wanted in (uid, series_code(uid))]
    if len(chosen) == 1:
        return chosen[0]
    listing = ", ".join(
        f"{series_code(uid)} ({files[0].modality or 'no modality'}, {len(files)} file{'s' * (len(files) > 1)})"
        for uid, files in sorted(found.series.items(), key=lambda item: series_code(item[0]))
    )
    count = len(found.series)
    if wanted is None:
        raise ScanError(
            f"{found.label}: has {count} series, expected 1; choose one (--series code=CODE) of {listing}, or part them"
        )
    raise ScanError(
        f"{found.label}: the series asked for is not among its {count}; choose one (--series code=CODE) of {listing}"
    )


def _files(path: Path, label: str, limits: Limits) -> list[Path]:
    try:
        if not path.is_dir():
            return [path]
        names = sorted(os.listdir(path))  # noqa: PTH208 - names alone, sorted as text
    except OSError as error:
        raise ScanError(f"{label}: can't be read ({os.strerror(error.errno or 0)})") from None
    names = [name for name in names if not name.startswith(".") and name.lower() not in _SYSTEM_FILES]
    if len(names) > limits.max_files:
        raise ScanError(f"{label}: holds {len(names):,} files, expected at most {limits.max_files:,}; split the folder")
    return [path / name for name in names if not _is_folder(path / name)]


def _is_folder(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except OSError:
        return False  # reading it says why


def _is_image(header: FileHeader) -> bool:
    """Whether a file is an image, or a piece of one: a file cut before its pixels must not pass for another object."""
    if _OTHER_OBJECTS.match(header.sop_class) or header.modality in _OTHER_MODALITIES:
        return False
    if not header.complete or not header.sop_class or header.sop_class.startswith(_STANDARD):
        return True
    return bool(header.pixel_keyword) or "Rows" in header.tags


def image_series(path: Path) -> tuple[str, int] | None:
    """Which series an image file belongs to, by its UID, never for a message, and how many frames it has.

    Returns:
        None of a DICOM object that is no image; ("", 1) where the file is no DICOM at all though it is taken for it, which
        reading it then says.

    Raises:
        ScanError: it can't be read or parsed.
    """
    header = read_file_header(path, display_name(path))
    if header is None:
        return "", 1
    return (header.series_uid, header.tags.integer("NumberOfFrames") or 1) if _is_image(header) else None


def _refuse_damaged_slices(label: str, foreign: Sequence[str], images: Sequence[str]) -> None:
    """A file that is named like the slices but is no DICOM is a damaged slice, and at the end of a stack no gap shows."""
    patterns = {_pattern(name) for name in images}
    for name in foreign:
        if _pattern(name) in patterns or Path(name).suffix.lower() in _SLICE_SUFFIXES:
            raise ScanError(
                f"{label}/{name}: is not DICOM although it is named like a slice; copy it again or remove it"
            )


def _pattern(name: str) -> str:
    return re.sub(r"[0-9]+", "#", name)


def _nothing_found(path: Path, label: str, files: int, foreign: int) -> str:
    if path.is_file():
        kind = "not DICOM" if foreign else "a DICOM object without an image (a report, contours, a mask or a plan)"
        return f"{label}: is {kind}; name a DICOM image or a folder of them"
    folders = sum(1 for entry in path.iterdir() if _is_folder(entry))
    held = f"{files} other files and {folders} subfolders" if files or folders else "nothing"
    return f"{label}: no DICOM image in the folder, it holds {held}; name the folder of one series"


def _listed(names: Sequence[str], most: int = 3) -> str:
    listed = ", ".join(names[:most])
    return listed if len(names) <= most else f"{listed} and {len(names) - most} more"
