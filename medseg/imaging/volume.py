"""Scans and label maps in memory: an array and where its voxels lie in the patient.

Arrays are ``(C, X, Y, Z)`` for images and ``(X, Y, Z)`` for label maps; a 2D picture has ``Z = 1``. Affines are 4x4 float64,
voxel index to RAS+ world coordinates in millimetres, whatever the file format says (DICOM, NRRD and MHA are LPS+ on disk
and are turned round by their reader). The two classes are separate so that an intensity function can't be given labels.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
LabelArray = npt.NDArray[np.integer]
Affine = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a scan file says about its grid, read without its voxels, and what is needed to write a mask beside it.

    Attributes:
        shape: (X, Y, Z) voxels; Z is 1 for a 2D picture.
        affine: (4, 4) float64, RAS+ mm.
        channels: how many values a voxel has in this file.
        format: "nifti", "nrrd", "metaimage", "dicom", "png", "tiff" or "jpeg".
        dtype: the stored type's numpy name, before any rescaling, e.g. "int16".
        planar: True for a 2D picture (PNG, TIFF, JPEG or a NIfTI of rank 2).
        qform_code, sform_code: NIfTI's own codes (0 to 4); 0 elsewhere.
        zooms_unit: NIfTI's spatial unit code (0 unknown, 1 m, 2 mm, 3 um); 2 elsewhere. The affine is in mm already.
        oriented: False where the file does not say where its axes run, as a picture never does; the affine is a guess then.
        modality: DICOM Modality where there is one ("CT", "PT", "MR"), else "".
        series: short code of the DICOM series where a folder of several gave one, else "".
        warnings: sentences for the user, without header text.
    """

    shape: tuple[int, int, int]
    affine: Affine
    channels: int = 1
    format: str = "nifti"
    dtype: str = "float32"
    planar: bool = False
    qform_code: int = 0
    sform_code: int = 0
    zooms_unit: int = 2
    oriented: bool = True
    modality: str = ""
    series: str = ""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Volume:
    """An image: ``array`` (C, X, Y, Z) float32, ``affine`` (4, 4) float64 RAS+ mm, ``header`` of the file it came from."""

    array: FloatArray
    affine: Affine
    header: Header | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(X, Y, Z)."""
        return self.array.shape[1], self.array.shape[2], self.array.shape[3]


@dataclass(frozen=True, eq=False)
class LabelMap:
    """A label map: ``array`` (X, Y, Z) of a whole-number type, ``affine`` (4, 4) float64 RAS+ mm."""

    array: LabelArray
    affine: Affine
    header: Header | None = field(default=None)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(X, Y, Z)."""
        return self.array.shape[0], self.array.shape[1], self.array.shape[2]
