"""The one writer of scans and masks: atomic, on a given grid, and proven by reading the file back before it gets its name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from medseg.durable import atomic_path
from medseg.errors import EnvironmentFault, GeometryError, InputError, LabelError
from medseg.imaging.formats import Format, writing_format
from medseg.imaging.geometry import contiguous, grid_difference
from medseg.imaging.label_table import LabelTable
from medseg.imaging.limits import Limits
from medseg.imaging.opening import display_name
from medseg.imaging.volume import Affine, Header, LabelArray, LabelMap, Volume

# The file was just made here, so only its soundness is in question, not its size.
_NO_LIMITS = Limits(max_voxels=2**62, max_picture_pixels=2**62)
_UNSIGNED = (np.dtype(np.uint8), np.dtype(np.uint16), np.dtype(np.uint32))
_SIGNED = (np.dtype(np.int8), np.dtype(np.int16), np.dtype(np.int32))


def write_label_map(label_map: LabelMap, path: Path, *, like: Header | None) -> None:
    """Writes ``label_map`` to ``path`` so that it stands there whole and right, or not at all.

    The type is the smallest that holds the values, unsigned where none is negative. Of the scan only the grid is kept
    (shape, affine, qform and sform codes, unit): no text, no extensions. Equal masks give equal bytes. The temporary file
    is read back and compared (every voxel, shape, affine, codes) before it is renamed.

    Args:
        label_map: whole numbers (X, Y, Z).
        path: its suffix decides the format: .nii.gz, .nii, .nrrd, .mha, and .png or .tif for a picture's labels.
        like: header of the scan the labels belong to; None takes the label map's own affine with codes 1.

    Raises:
        GeometryError: ``like`` has another grid than the label map.
        UnsupportedScanError: no such format is written.
        InputError: the format can't hold this label map.
        EnvironmentFault: the disk did not keep what was written.
    """
    path = Path(path)
    name = display_name(path)
    _check_grid(label_map.shape, label_map.affine, like, name)
    array = _compact(label_map.array, name)
    _write(array, label_map.affine, path, like)


def write_seg_nrrd(label_map: LabelMap, path: Path, *, label_table: LabelTable, like: Header | None) -> None:
    """Writes ``label_map`` as 3D Slicer's ``.seg.nrrd``, each structure with its name, colour and coded term.

    Structures that share values lie in layers of their own. The file is read back and compared before it gets its name.

    Raises:
        GeometryError: ``like`` has another grid than the label map.
        EnvironmentFault: the disk did not keep what was written.
    """
    from medseg.imaging.seg_nrrd import seg_nrrd_bytes
    from medseg.imaging.structure_check import check_structures

    name = display_name(path)
    _check_grid(label_map.shape, label_map.affine, like, name)
    values = [value for entry in label_table.values() for value in entry.values]
    firsts = [entry.values[0] for entry in label_table.values()]
    numbers = firsts if len(set(values)) == len(values) else range(1, len(firsts) + 1)
    with atomic_path(path) as temporary:
        temporary.write_bytes(seg_nrrd_bytes(label_map.array, label_map.affine, label_table))
        by_name = dict(zip(label_table, numbers, strict=True))
        check_structures(temporary, label_map, label_table, numbers=by_name, like=label_map, name=name)


def write_volume(volume: Volume, path: Path, *, like: Header | None = None, dtype: str = "float32") -> None:
    """Writes an image with the promises of ``write_label_map``.

    Args:
        volume: (C, X, Y, Z); several channels become the 4th axis, or the colours of a picture.
        path: .nii.gz, .nii, .nrrd, .mha, .png or .tif.
        like: a header whose grid and codes the file takes.
        dtype: type to store; the values must survive it unchanged.

    Raises:
        GeometryError: ``like`` has another grid than the volume.
        InputError: the format or ``dtype`` can't hold these values.
        EnvironmentFault: the disk did not keep what was written.
    """
    path = Path(path)
    name = display_name(path)
    _check_grid(volume.shape, volume.affine, like, name)
    if not np.isfinite(volume.array).all():
        raise InputError(f"{name}: volume has voxels that are not finite, expected finite ones")
    with np.errstate(invalid="ignore", over="ignore"):
        stored = volume.array.astype(dtype, copy=False)
    if not np.array_equal(stored, volume.array):
        raise InputError(f"{name}: values do not fit {dtype} unchanged; choose float32")
    _write(stored[0] if len(stored) == 1 else np.moveaxis(stored, 0, -1), volume.affine, path, like)


def _check_grid(shape: tuple[int, int, int], affine: Affine, like: Header | None, name: str) -> None:
    difference = None if like is None else grid_difference(shape, affine, like.shape, like.affine)
    if difference is not None:
        raise GeometryError(f"{name}: its {difference} of its scan, expected one grid; resample it to the scan's first")


def _compact(array: LabelArray, name: str) -> LabelArray:
    if array.dtype.kind not in "biu" or array.ndim != 3 or array.size == 0:
        raise LabelError(f"{name}: mask is {array.ndim}-D {array.dtype}, expected 3-D whole numbers")
    low, high = int(array.min()), int(array.max())
    for kind in _UNSIGNED if low >= 0 else _SIGNED:
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return array.astype(kind, copy=False)
    raise LabelError(f"{name}: mask values run from {low} to {high}, expected 32 bits at most; renumber the classes")


def _write(array: npt.NDArray[np.generic], affine: Affine, path: Path, like: Header | None) -> None:
    entry = writing_format(path)
    assert entry.write is not None
    # x fastest, as files have it: once and in blocks here, not plane by plane in every pass (11 times the time).
    array = contiguous(array.transpose()).transpose()
    with atomic_path(path) as temporary:
        try:
            entry.function(entry.write)(array, affine, temporary, like=like)
        except InputError as error:
            raise type(error)(str(error).replace(display_name(temporary), display_name(path))) from error
        _verify(entry, temporary, array, affine, like, display_name(path))


def _verify(
    entry: Format,
    temporary: Path,
    wanted: npt.NDArray[np.generic],
    affine: Affine,
    like: Header | None,
    name: str,
) -> None:
    try:
        found = _read_back(entry, temporary, wanted)
    except InputError as error:
        raise EnvironmentFault(
            f"{name}: written file can't be read back ({str(error).split(': ', 1)[-1]}); check the disk and its free space"
        ) from error
    faults = [] if _same(found, wanted) else ["voxels differ"]
    shape = (wanted.shape[0], wanted.shape[1], wanted.shape[2])
    difference = grid_difference(found.shape, found.affine, shape, affine, tolerance_mm=1e-3 * _metres(shape, affine))
    if difference is not None:
        faults.append(difference)
    header = found.header
    if header is not None and like is not None and header.format == like.format == "nifti":
        codes, expected = (header.qform_code, header.sform_code), (like.qform_code, like.sform_code)
        if expected not in (codes, (0, 0)):
            faults.append(f"qform and sform codes are {codes} against {expected}")
    if faults:
        raise EnvironmentFault(f"{name}: written file reads back wrong ({'; '.join(faults)}); check the disk")


def _read_back(entry: Format, temporary: Path, wanted: npt.NDArray[np.generic]) -> LabelMap | Volume:
    if wanted.ndim == 3 and wanted.dtype.kind in "iu":
        assert entry.read_labels is not None
        labels: LabelMap = entry.function(entry.read_labels)(temporary, limits=_NO_LIMITS)
        return labels
    channels = 1 if wanted.ndim == 3 else wanted.shape[3]
    volume: Volume = entry.function(entry.read)(temporary, channels=channels, limits=_NO_LIMITS)
    return volume


def _same(found: LabelMap | Volume, wanted: npt.NDArray[np.generic]) -> bool:
    if isinstance(found, LabelMap) or wanted.ndim == 4:
        array = found.array if isinstance(found, LabelMap) else np.moveaxis(found.array, 0, -1)
    else:
        array = found.array[0]
    return np.array_equal(array.transpose(), wanted.transpose())


def _metres(shape: tuple[int, int, int], affine: Affine) -> float:
    """How far from the origin the grid reaches, at least 1: NIfTI keeps 7 digits of it (float32)."""
    corners = np.abs(affine[:3, :3]) @ np.asarray(shape, np.float64) + np.abs(affine[:3, 3])
    return max(1.0, float(corners.max()) / 1000.0)
