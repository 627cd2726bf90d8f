"""Reading the probability maps that ``medseg infer --probabilities`` leaves beside its masks."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medseg.errors import GeometryError, LabelError, ScanError
from medseg.imaging import grid_difference, read_volume
from medseg.imaging.volume import Affine

_SUFFIXES = (".nii.gz", ".npz")
# Steps of 1/255 come back from float32 with their rounding.
_ROUNDING = 1e-5


def find_probabilities(prediction: Path, case_id: str) -> Path | None:
    """The map that belongs to a mask: ``maps/<case>_probabilities.nii.gz`` or ``.npz`` beside it; None where there is none."""
    candidates = (prediction.parent / "maps" / f"{case_id}_probabilities{suffix}" for suffix in _SUFFIXES)
    return next((path for path in candidates if path.is_file()), None)


def read_probabilities(
    path: Path, *, class_names: Sequence[str], affine: Affine, shape: tuple[int, int, int], name: str
) -> npt.NDArray[np.float32]:
    """(classes, X, Y, Z) of the classes without background, 0 to 1.

    Args:
        path: the map.
        class_names: without background, in the order that is wanted.
        affine: of the label map it goes with.
        shape: likewise.
        name: what messages call the case.

    Raises:
        ScanError: the file can't be read, or is no map of so many classes.
        LabelError: it holds other classes.
        GeometryError: it lies on another grid.
    """
    array, own = _read_npz(path, class_names, name) if path.suffix == ".npz" else _read_volume(path, len(class_names))
    _, *sizes = array.shape
    difference = grid_difference((sizes[0], sizes[1], sizes[2]), own, shape, affine)
    if difference is not None:
        raise GeometryError(
            f"{name}: probabilities and reference lie on different grids ({difference}), expected one grid; predict again"
        )
    if not (array.min() >= 0 and array.max() <= 1 + _ROUNDING):
        raise ScanError(f"{name}: {path.name} has values from {array.min():g} to {array.max():g}, expected 0 to 1")
    return array


def _read_npz(path: Path, class_names: Sequence[str], name: str) -> tuple[npt.NDArray[np.float32], Affine]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            array, affine, names = archive["probabilities"], archive["affine"], archive["class_names"].tolist()
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ScanError(
            f"{name}: {path.name} can't be read ({type(error).__name__}), expected a probability map; predict again"
        ) from error
    if sorted(names) != sorted(class_names) or array.shape[3:] != (len(names),):
        raise LabelError(
            f"{name}: {path.name} has the classes {', '.join(names)}, expected {', '.join(class_names)}; predict again with "
            "a model of these labels"
        )
    order = [names.index(wanted) for wanted in class_names]
    return np.moveaxis(array, 3, 0)[order].astype(np.float32), affine


def _read_volume(path: Path, classes: int) -> tuple[npt.NDArray[np.float32], Affine]:
    volume = read_volume(path, channels=classes)
    return volume.array, volume.affine
