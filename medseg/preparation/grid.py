"""Where a prepared array lies in its scan: every step of the geometry, so that it can be undone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.errors import DamagedFileError

Shape = tuple[int, int, int]
Rows = tuple[tuple[float, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The steps from a scan's own grid to its prepared one, in their order: orient, crop, resample.

    Attributes:
        original_shape, original_affine: (X, Y, Z) and 4x4 RAS+ mm of the scan as its file has it.
        permutation: oriented axis k is the scan's axis ``permutation[k]``.
        flips: whether oriented axis k runs against that axis.
        crop_start, crop_stop: half-open box of the oriented grid, per oriented axis.
        spacing_xyz_mm: voxel size of the oriented grid, before resampling.
        prepared_shape, prepared_affine: of the stored array; the affine maps its voxel indices to the same world as
            ``original_affine`` does.
        prepared_spacing_xyz_mm: the plan's target; the affine's own voxel size differs a little, because voxels are whole.
        separate_axis: axis that was resampled by itself (nearest slice), because its voxels are more than 3 times longer.
        separate_axis_back: the same for the way back, decided by nnU-Net's rule with the prepared spacing as the current one.
    """

    original_shape: Shape
    original_affine: Rows
    permutation: Shape
    flips: tuple[bool, bool, bool]
    crop_start: Shape
    crop_stop: Shape
    spacing_xyz_mm: tuple[float, float, float]
    prepared_shape: Shape
    prepared_affine: Rows
    prepared_spacing_xyz_mm: tuple[float, float, float]
    separate_axis: int | None = None
    separate_axis_back: int | None = None

    @property
    def oriented_shape(self) -> Shape:
        """(X, Y, Z) after axes were permuted, before the crop."""
        x, y, z = (self.original_shape[axis] for axis in self.permutation)
        return x, y, z

    @property
    def cropped_shape(self) -> Shape:
        """(X, Y, Z) of the crop, before resampling."""
        x, y, z = (stop - start for start, stop in zip(self.crop_start, self.crop_stop, strict=True))
        return x, y, z

    def affine(self) -> npt.NDArray[np.float64]:
        """(4, 4) of the prepared array."""
        return np.array(self.prepared_affine, dtype=np.float64)

    def plain(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {
            "original_shape": list(self.original_shape),
            "original_affine": [list(row) for row in self.original_affine],
            "permutation": list(self.permutation),
            "flips": list(self.flips),
            "crop_start": list(self.crop_start),
            "crop_stop": list(self.crop_stop),
            "spacing_xyz_mm": list(self.spacing_xyz_mm),
            "prepared_shape": list(self.prepared_shape),
            "prepared_affine": [list(row) for row in self.prepared_affine],
            "prepared_spacing_xyz_mm": list(self.prepared_spacing_xyz_mm),
            "separate_axis": self.separate_axis,
            "separate_axis_back": self.separate_axis_back,
        }

    @classmethod
    def from_plain(cls, value: dict[str, Any]) -> Grid:
        """The inverse of `plain`.

        Raises:
            DamagedFileError: a key is missing or unknown.
        """
        try:
            kept: dict[str, Any] = {key: tuple(item) if isinstance(item, list) else item for key, item in value.items()}
            for key in ("original_affine", "prepared_affine"):
                kept[key] = tuple(tuple(float(v) for v in row) for row in kept[key])
            return cls(**kept)
        except (KeyError, TypeError) as error:
            raise DamagedFileError("grid: is no grid of a prepared case; run prepare again") from error


def rows_of(affine: npt.NDArray[np.float64]) -> Rows:
    """A 4x4 array as nested tuples of plain floats."""
    return tuple(tuple(float(v) for v in row) for row in affine)
