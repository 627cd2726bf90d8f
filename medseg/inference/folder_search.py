"""What lies in a folder that is to be segmented: scan files, folders with DICOM images, and what is passed over."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medseg.errors import MedsegError
from medseg.imaging import suffix_of
from medseg.imaging.dicom_series import image_series
from medseg.imaging.formats import DICOM, FORMATS
from medseg.imaging.opening import display_name

_LOG = logging.getLogger(__name__)

# Files that may well be meant as scans and are of no kind that is read. Other files (texts, tables) are no loss.
_LIKE_SCANS = frozenset(
    {
        ".img", ".hdr", ".mgz", ".mgh", ".mnc", ".mif", ".mif.gz", ".img.gz", ".hdr.gz", ".nii.bz2", ".nii.xz", ".nii.zst",
        ".npy", ".npz", ".h5", ".hdf5", ".mat", ".bmp", ".gif", ".webp", ".jp2", ".svs", ".ndpi", ".czi", ".lif", ".vtk",
        ".vti", ".par", ".rec", ".zip", ".tar", ".tgz", ".tar.gz", ".7z", ".rar", ".bz2", ".xz", ".gz",
    }
)  # fmt: skip
# Structures that lie beside scans: label maps by their own suffix.
_LABELS = tuple(suffix for entry in FORMATS if entry.named and entry is not DICOM for suffix in entry.suffixes)
_SIDECAR = ".sidecar.json"
_OUTPUTS = frozenset({"report.jsonl", "stage.json"})
# Of files with these suffixes the content is not asked: every scan of some layouts has one beside it.
_TEXTS = frozenset(
    {".json", ".jsonl", ".txt", ".csv", ".tsv", ".md", ".xml", ".html", ".pdf", ".log", ".yaml", ".yml", ".bval"}
)
# Written by systems that keep or show folders; a DICOMDIR is a table of contents.
_NO_SLICES = frozenset({"dicomdir", "thumbs.db", "desktop.ini"})


@dataclass
class FolderContent:
    """What a search found, each sorted by path.

    Attributes:
        files: scans of one file each, DICOM aside.
        dicom: folders with DICOM images.
        scans_in: of those whose files are multi-frame images of a series each, these files: each is a scan.
        unread: folders that can't be listed, and why.
        other: how many files of no known kind look like scans or archives of them, by suffix.
        structures: files with structures (``.seg.nrrd``), which are no scans.
        no_images: folders whose DICOM objects are no images.
        outputs: folders that ``infer`` wrote.
    """

    files: list[Path] = field(default_factory=list)
    dicom: list[Path] = field(default_factory=list)
    scans_in: dict[Path, list[Path]] = field(default_factory=dict)
    unread: dict[Path, str] = field(default_factory=dict)
    other: Counter[str] = field(default_factory=Counter)
    structures: int = 0
    no_images: int = 0
    outputs: int = 0

    def passed_over(self) -> tuple[str, ...]:
        """A sentence each about what is no scan, without any name from inside the folder."""
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(self.other.items()))
        told = (
            (self.no_images, f"{self.no_images} DICOM folders hold no images (contours, plans)"),
            (self.structures, f"{self.structures} files hold structures ({', '.join(_LABELS)})"),
            (self.outputs, f"{self.outputs} folders hold masks of medseg infer"),
            (sum(self.other.values()), f"{sum(self.other.values())} files are of a kind that is not read ({kinds})"),
        )
        return tuple(text for count, text in told if count)


def search_folder(top: Path, leave_out: Path | None = None) -> FolderContent:
    """Searches ``top`` all the way down; what is left out is logged.

    Hidden files and folders are no scans. Links to files are followed, links to folders where they lead out of ``top``: what
    they lead to within it is found anyway. Below ``top``, folders that ``infer`` wrote are left out.

    Args:
        top: an existing folder.
        leave_out: a folder that is not searched.
    """
    content, of_series = FolderContent(), Counter[str]()
    for folder, names in _walk(top, leave_out, content):
        slices, others = _parted(folder, names)
        if slices:
            _add_dicom(content, folder, slices, of_series)
        for path in others:
            _add_file(content, path)
    content.files.sort()
    content.dicom.sort()
    for sentence in content.passed_over():
        _LOG.warning("%s: %s and are left out", display_name(top), sentence)
    if shared := sum(count for series, count in of_series.items() if series and count > 1):
        _LOG.warning(
            "%s: %d DICOM folders hold slices of a series that others hold too, and each is a scan of its own; "
            "put them into one folder if they are parts",
            display_name(top),
            shared,
        )
    return content


def _add_dicom(content: FolderContent, folder: Path, slices: Sequence[Path], of_series: Counter[str]) -> None:
    """Notes a folder with DICOM files, and the series of its first image."""
    first = next((image for path in slices if (image := _image_of(path)) is not None), None)
    if first is None:
        content.no_images += 1
        return
    series, frames = first
    content.dicom.append(folder)
    of_series[series] += 1
    if frames > 1 and (scans := _scans_among(slices)):
        content.scans_in[folder] = scans


def _add_file(content: FolderContent, path: Path) -> None:
    suffix = suffix_of(path)
    if suffix in _LABELS:
        content.structures += 1
    elif suffix is not None:
        content.files.append(path)
    elif (like := _like_a_scan(path)) is not None:
        content.other[like] += 1


def _walk(top: Path, leave_out: Path | None, content: FolderContent) -> Iterator[tuple[Path, list[str]]]:
    """(folder, names of its visible files, sorted) of every folder that is searched."""
    inside, left_out = Path(os.path.realpath(top)), None if leave_out is None else os.path.realpath(leave_out)
    followed: set[str] = set()
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(folder) as entries:
                visible = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda e: e.name)
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else type(error).__name__
            content.unread[folder] = f"{display_name(folder)}: can't be searched ({reason}); check its permissions"
            continue
        names = [entry.name for entry in visible if not _is_folder(entry)]
        if folder != top and _is_output(names):
            content.outputs += 1
            continue
        yield folder, names
        deeper = []
        for entry in visible:
            real = os.path.realpath(entry.path) if _is_folder(entry) else None
            if real is None or real == left_out or real in followed:
                continue
            if entry.is_symlink():
                if Path(real).is_relative_to(inside) or inside.is_relative_to(real):
                    continue
                if any(Path(real).is_relative_to(other) for other in followed):
                    continue
                followed.add(real)
            deeper.append(folder / entry.name)
        waiting += reversed(deeper)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link in a circle; reading it says so


def _is_output(names: Sequence[str]) -> bool:
    return names != [] and (set(names) >= _OUTPUTS or any(name.endswith(_SIDECAR) for name in names))


def _parted(folder: Path, names: Sequence[str]) -> tuple[list[Path], list[Path]]:
    """(DICOM slices, other files)."""
    slices: list[Path] = []
    others: list[Path] = []
    for name in names:
        if name.lower() not in _NO_SLICES:
            path = folder / name
            (slices if _is_slice(path) else others).append(path)
    return slices, others


def _is_slice(path: Path) -> bool:
    """Whether a file is DICOM: by suffix, or by content where its suffix is none that is known."""
    suffix = suffix_of(path)
    if suffix is not None:
        return suffix in DICOM.suffixes
    return path.suffix.lower() not in _TEXTS and is_dicom_file(path)


def is_dicom_file(path: Path) -> bool:
    """Whether a file begins like DICOM, whatever its name; False of what can't be read."""
    from medseg.imaging.dicom_headers import begins_like_dicom

    try:
        return path.is_file() and begins_like_dicom(path)
    except OSError:
        return False


def _image_of(path: Path) -> tuple[str, int] | None:
    """(series, frames) of a DICOM image, None of another object; ("", 1) of what can't be parsed: reading it says why."""
    try:
        return image_series(path)
    except (MedsegError, OSError):
        return "", 1


def _scans_among(slices: Sequence[Path]) -> list[Path]:
    """The images among a folder's DICOM files, if there are several, all multi-frame, each of a series of its own."""
    images = {path: image for path in slices if (image := _image_of(path)) is not None}
    series = {uid for uid, frames in images.values() if frames > 1}
    return list(images) if len(series) == len(images) > 1 else []


def _like_a_scan(path: Path) -> str | None:
    """The suffix of a file that may be meant as a scan, the longest that fits."""
    name = path.name.lower()
    like = max((suffix for suffix in _LIKE_SCANS if name.endswith(suffix)), key=len, default=None)
    return None if name.endswith(".raw.gz") else like  # the voxels of a .nhdr
