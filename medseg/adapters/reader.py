"""medseg's readers as MONAI's ``ImageReader``, so that ``LoadImaged`` reads what medseg reads, as strictly."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from monai.data.image_reader import ImageReader
from monai.transforms.io.array import SUPPORTED_READERS

from medseg.errors import GeometryError, MedsegError
from medseg.imaging import Header, LabelMap, Limits, Volume, grid_difference, is_scan, read_label_map, read_volume
from medseg.imaging.dicom_choice import SeriesRule

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Refused:
    """A file that was refused, kept until ``get_data``."""

    error: MedsegError


_Read = Volume | LabelMap | Refused


class MedsegReader(ImageReader):  # type: ignore[misc]  # MONAI is not typed
    """Reads NIfTI, NRRD, MetaImage, DICOM series, PNG, TIFF and JPEG for ``LoadImage``.

    Use ``LoadImaged(keys, reader=MedsegReader)``, or ``register()`` once and let MONAI choose. Arrays come out as
    (C, X, Y, Z) with ``original_channel_dim`` 0, affines RAS+ in mm. A list of files gives one channel set after another;
    their grids must be one.

    ``LoadImage`` turns to other, lenient readers when ``read`` raises; a damaged file would then load after all. So a
    refusal is carried to ``get_data`` and raised there.

    Args:
        channels: as in ``read_volume``, for each file.
        unit: as in ``read_volume``.
        labels: read label maps, in the files' own whole-number type (``LoadImage`` makes float32 of it unless told not to).
        limits: bounds on what a header may claim.
        series: as in ``read_volume``.
    """

    def __init__(
        self,
        channels: int | None = None,
        unit: str | None = None,
        labels: bool = False,
        limits: Limits | None = None,
        series: SeriesRule | None = None,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.unit = unit
        self.series = series
        self.labels = labels
        self.limits = limits or Limits()
        self._said: set[str] = set()

    def verify_suffix(self, filename: Sequence[PathLike[str] | str] | PathLike[str] | str) -> bool:
        """True where every name has a suffix that medseg reads, or is a folder."""
        return all(is_scan(path) for path in _paths(filename))

    def read(self, data: Sequence[PathLike[str] | str] | PathLike[str] | str, **kwargs: Any) -> list[_Read]:  # noqa: ARG002
        """Reads every file of ``data``; a refused one is kept as such (see the class)."""
        return [self._read(path) for path in _paths(data)]

    def _read(self, path: Path) -> _Read:
        try:
            found: Volume | LabelMap = (
                read_label_map(path, limits=self.limits)
                if self.labels
                else read_volume(path, channels=self.channels, unit=self.unit, series=self.series, limits=self.limits)
            )
        except MedsegError as error:
            return Refused(error)
        for sentence in found.header.warnings if found.header is not None else ():
            if sentence not in self._said:
                self._said.add(sentence)
                _log.warning("%s: %s (said once)", path.name, sentence)
        return found

    def get_data(self, img: Sequence[_Read]) -> tuple[npt.NDArray[Any], dict[str, Any]]:
        """The voxels (C, X, Y, Z) of all files and MONAI's metadata.

        Raises:
            MedsegError: a file was refused; as its reader raised it.
            GeometryError: files have different grids.
        """
        scans: list[Volume | LabelMap] = []
        for found in img:
            if isinstance(found, Refused):
                raise found.error
            scans.append(found)
        first = scans[0]
        for number, other in enumerate(scans[1:], 2):
            difference = grid_difference(other.shape, other.affine, first.shape, first.affine)
            if difference is not None:
                raise GeometryError(
                    f"file {number} of {len(scans)}: {difference} of the first; resample it to the first's grid"
                )
        arrays = [scan.array[None] if isinstance(scan, LabelMap) else scan.array for scan in scans]
        array = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        return array, _meta(first.affine, first.shape, first.header)


def _paths(names: Sequence[PathLike[str] | str] | PathLike[str] | str) -> list[Path]:
    if isinstance(names, (str, PathLike)):
        return [Path(names)]
    return [Path(name) for name in names]


def _meta(affine: npt.NDArray[np.float64], shape: tuple[int, int, int], header: Header | None) -> dict[str, Any]:
    # MetaTensor keeps a copy of each affine and changes only its own.
    meta: dict[str, Any] = {
        "affine": affine.copy(),
        "original_affine": affine.copy(),
        "space": "RAS",
        "spatial_shape": np.array(shape),
        "original_channel_dim": 0,
    }
    if header is not None:
        meta["qform_code"], meta["sform_code"] = header.qform_code, header.sform_code
        meta["warnings"] = list(header.warnings)
    return meta


def register() -> None:
    """Makes ``LoadImage`` and ``LoadImaged`` without a ``reader`` choose ``MedsegReader`` wherever it knows the suffix."""
    SUPPORTED_READERS.pop("medsegreader", None)
    SUPPORTED_READERS["medsegreader"] = MedsegReader
