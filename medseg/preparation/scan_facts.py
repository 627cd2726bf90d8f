"""What a scan says about itself without its labels: how its axes lie, its modality, its range of intensities.

`prepare` keeps it of every training case and inference takes it of every scan, by this one function, so that the two can be
compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medseg.imaging import Volume, ras_change, spacing_xyz_mm
from medseg.imaging.volume import Affine, FloatArray

PERCENTILES = (0.5, 50.0, 99.5)
_MOST_VOXELS = 250_000
_AXES = (("L", "R"), ("P", "A"), ("I", "S"))


@dataclass(frozen=True, kw_only=True)
class ScanFacts:
    """See the module.

    Attributes:
        axes: where the array's axes run to, nearest: "RAS", "LPS", "ASL" ...
        oblique_degrees: largest angle between an array axis and the one of the patient that it is called after.
        oriented: whether the file says where its axes run (NIfTI, NRRD and MHA may not, a picture never does).
        modality: DICOM's, or "".
        percentiles: per channel, the 0.5, 50 and 99.5 percentile of the voxels that are not 0, of at most a quarter of a
            million taken at even distances; all 0 where every voxel is.
    """

    axes: str
    oblique_degrees: float
    oriented: bool
    modality: str
    percentiles: tuple[tuple[float, float, float], ...]

    def plain(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {**vars(self), "percentiles": [list(values) for values in self.percentiles]}

    @classmethod
    def from_plain(cls, value: Mapping[str, Any]) -> ScanFacts:
        """The inverse of `plain`."""
        return cls(**{**value, "percentiles": tuple(_three(values) for values in value["percentiles"])})


def scan_facts(volume: Volume) -> ScanFacts:
    """The facts of a scan as it was read.

    Args:
        volume: (C, X, Y, Z) finite intensities in its own axis order.

    Raises:
        GeometryError: the affine is singular.
    """
    header = volume.header
    picture = header is not None and header.planar
    return ScanFacts(
        axes=axes_of(volume.affine),
        oblique_degrees=oblique_degrees(volume.affine),
        oriented=not picture
        and (header is None or header.oriented)
        and (header is None or header.format != "nifti" or header.qform_code + header.sform_code > 0),
        modality=header.modality if header is not None else "",
        percentiles=tuple(_percentiles(channel) for channel in volume.array),
    )


def axes_of(affine: Affine) -> str:
    """Three letters: which way of the patient each array axis runs, nearest."""
    change = ras_change(affine)
    letters = [""] * 3
    for world, (axis, flipped) in enumerate(zip(change.permutation, change.flips, strict=True)):
        letters[axis] = _AXES[world][0 if flipped else 1]
    return "".join(letters)


def oblique_degrees(affine: Affine) -> float:
    """Largest angle in degrees, 0 to 54.7, between an array axis and the axis of the patient that it is called after."""
    columns = np.asarray(affine, np.float64)[:3, :3] / spacing_xyz_mm(affine)
    along = (abs(columns[world, axis]) for world, axis in enumerate(ras_change(affine).permutation))
    return round(max(math.degrees(math.acos(min(1.0, float(cosine)))) for cosine in along), 2)


def _percentiles(channel: FloatArray) -> tuple[float, float, float]:
    step = max(1, math.ceil((channel.size / _MOST_VOXELS) ** (1 / 3)))
    steps = (slice(None, None, min(step, size)) for size in channel.shape)
    values = channel[tuple(steps)]
    values = values[values != 0]
    if values.size == 0:
        return (0.0, 0.0, 0.0)
    return _three([float(f"{value:.6g}") for value in np.percentile(values, PERCENTILES)])


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    low, middle, high = (float(value) for value in values)
    return low, middle, high
