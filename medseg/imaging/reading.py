"""The three ways to read a scan file, whatever its format."""

from __future__ import annotations

from pathlib import Path

from medseg.errors import LabelError, ScanError
from medseg.imaging.formats import DICOM, format_of
from medseg.imaging.limits import Limits
from medseg.imaging.opening import display_name
from medseg.imaging.volume import Header, LabelMap, Volume

_DEFAULT_LIMITS = Limits()


def read_header(path: Path, *, limits: Limits = _DEFAULT_LIMITS) -> Header:
    """What a scan says about its grid, without its voxels; of a DICOM series every file's header is checked.

    Raises:
        ScanError: no such file, no scan, or a header that can't be; one line with file, value found and expected, remedy.
    """
    path = Path(path)
    entry = format_of(path)
    header: Header = entry.function(entry.read_header)(path, limits=limits)
    return header


def read_volume(
    path: Path, *, channels: int | None = None, unit: str | None = None, limits: Limits = _DEFAULT_LIMITS
) -> Volume:
    """An image as (C, X, Y, Z) float32 with its RAS+ affine in mm.

    Values are the file's own (rescaled as it says, computed in float64, rounded once to float32); NaN and infinities are
    refused. The array is in the file's memory order; sum it in a defined one (see ``apply_axes``).

    Args:
        path: a file, or a folder with one DICOM series.
        channels: how many channels the file must give; a 4-D file with so many volumes gives them. None: a 3D file gives
            1, a colour picture 3.
        unit: "SUV" turns DICOM PET into SUV; nothing to other formats.
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
    volume = read(path, unit=unit, limits=limits)
    if len(volume.array) != (channels or len(volume.array)):
        raise ScanError(
            f"{display_name(path)}: has {len(volume.array)} channel, expected {channels}; "
            "give one series per channel, or correct the manifest's channels"
        )
    return volume


def read_label_map(path: Path, *, limits: Limits = _DEFAULT_LIMITS) -> LabelMap:
    """A label map (X, Y, Z) with the file's own whole-number values, in the file's own type where that is one.

    Real numbers within 1e-2 of a whole one are rounded to int32.

    Raises:
        ScanError: the file is damaged, incomplete, or has more than one value a voxel.
        LabelError: values are not whole numbers, or the format can't hold labels.
    """
    path = Path(path)
    entry = format_of(path)
    if entry.read_labels is None:
        raise LabelError(
            f"{display_name(path)}: is a {entry.name.upper()} image, expected a label map; convert it to .nii.gz"
        )
    labels: LabelMap = entry.function(entry.read_labels)(path, limits=limits)
    return labels
