"""The three ways to read a scan file, whatever its format."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from medseg.errors import LabelError, ScanError
from medseg.imaging.formats import DICOM, format_of
from medseg.imaging.limits import Limits
from medseg.imaging.opening import display_name
from medseg.imaging.regions import Labels
from medseg.imaging.structures import Naming, OnGrid
from medseg.imaging.volume import Header, LabelMap, Volume

if TYPE_CHECKING:
    from medseg.imaging.dicom_choice import SeriesRule

_DEFAULT_LIMITS = Limits()


def read_header(path: Path, *, series: SeriesRule | None = None, limits: Limits = _DEFAULT_LIMITS) -> Header:
    """What a scan says about its grid, without its voxels; of a DICOM series every file's header is checked.

    Args:
        path: a file, or a folder with DICOM series.
        series: which of several; see ``read_volume``.
        limits: bounds on what the header may claim.

    Raises:
        ScanError: no such file, no scan, or a header that can't be; one line with file, value found and expected, remedy.
    """
    path = Path(path)
    entry = format_of(path)
    which = {"rule": series} if entry is DICOM and series is not None else {}
    header: Header = entry.function(entry.read_header)(path, limits=limits, **which)
    return header


def read_volume(
    path: Path,
    *,
    channels: int | None = None,
    unit: str | None = None,
    series: SeriesRule | None = None,
    limits: Limits = _DEFAULT_LIMITS,
) -> Volume:
    """An image as (C, X, Y, Z) float32 with its RAS+ affine in mm.

    Values are the file's own (rescaled as it says, computed in float64, rounded once to float32); NaN and infinities are
    refused. The array is in the file's memory order; sum it in a defined one (see ``apply_axes``).

    Args:
        path: a file, or a folder with DICOM series.
        channels: how many channels the file must give; a 4-D file with so many volumes gives them. None: a 3D file gives
            1, a colour picture 3.
        unit: "SUV" turns DICOM PET into SUV; nothing to other formats.
        series: which series of a DICOM folder; nothing to other formats. None takes the only one.
        limits: bounds on what the header may claim.

    Raises:
        ScanError: the file is damaged, incomplete, or not what was asked for.
    """
    path = Path(path)
    entry = format_of(path)
    read = entry.function(entry.read)
    if entry is not DICOM:
        volume: Volume = read(path, channels=channels, limits=limits)
        return volume
    volume = read(path, unit=unit, limits=limits, **({} if series is None else {"rule": series}))
    if len(volume.array) != (channels or len(volume.array)):
        raise ScanError(
            f"{display_name(path)}: has {len(volume.array)} channel, expected {channels}; "
            "give one series per channel, or correct the manifest's channels"
        )
    return volume


def read_label_map(
    path: Path,
    *,
    naming: Naming | Labels | None = None,
    like: OnGrid | None = None,
    limits: Limits = _DEFAULT_LIMITS,
) -> LabelMap:
    """A label map (X, Y, Z) with the file's own whole-number values, in the file's own type where that is one.

    Real numbers within 1e-2 of a whole one are rounded to int32. Files of named structures (DICOM-SEG, RTSTRUCT,
    .seg.nrrd) give each class its first value, on the grid of ``like``.

    Args:
        path: a file.
        naming: class names with their values, where structures have names; None keeps the file's own numbers.
        like: the scan, needed for contours; a DICOM-SEG without it lies on the grid of its own frames.
        limits: bounds on what the header may claim.

    Raises:
        ScanError: the file is damaged, incomplete, or has more than one value a voxel.
        LabelError: values are not whole numbers, no structure is of a class, or the format can't hold labels.
        GeometryError: contours without ``like``, or structures that do not lie on its voxels.
    """
    path = Path(path)
    entry = format_of(path)
    if entry.read_labels is None:
        raise LabelError(
            f"{display_name(path)}: is a {entry.name.upper()} image, expected a label map; convert it to .nii.gz"
        )
    read = entry.function(entry.read_labels)
    named = {"naming": naming if isinstance(naming, Naming) else Naming(naming), "like": like} if entry.named else {}
    labels: LabelMap = read(path, limits=limits, **named)
    return labels
