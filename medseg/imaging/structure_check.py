"""Whether a written file of structures is the mask it was made of: its voxels, and where they lie in the patient."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medseg.errors import EnvironmentFault, InputError
from medseg.imaging.geometry import spacing_xyz_mm
from medseg.imaging.label_table import LabelEntry, LabelTable
from medseg.imaging.limits import Limits
from medseg.imaging.reading import read_label_map
from medseg.imaging.structures import Naming, OnGrid
from medseg.imaging.volume import Affine, LabelArray, LabelMap

_NO_LIMITS = Limits(max_voxels=2**62)


def check_structures(
    path: Path,
    label_map: LabelMap,
    label_table: LabelTable,
    *,
    numbers: Mapping[str, int],
    like: OnGrid,
    name: str,
    own_grid: bool = True,
) -> None:
    """Compares every structure of ``path`` with the mask.

    Args:
        path: the file as written, under whatever name.
        label_map: values of the table.
        label_table: the structures.
        numbers: of each in the file.
        like: the scan.
        name: of the file, for messages.
        own_grid: the file has a geometry of its own: each structure's centroid by that alone must be the mask's, which
            finds what two wrongs in one way of placing frames would hide.

    Raises:
        EnvironmentFault: something differs, or the file can't be read.
    """
    labels = {"background": (0,)} | {structure: entry.values for structure, entry in label_table.items()}
    naming = Naming(labels, numbers=numbers)
    try:
        found = read_label_map(path, naming=naming, like=like, limits=_NO_LIMITS)
        faults = _voxel_faults(found.array, label_map.array, label_table)
        if (
            own_grid
            and not faults
            and any(np.isin(label_map.array, entry.values).any() for entry in label_table.values())
        ):
            alone = read_label_map(path, naming=naming, limits=_NO_LIMITS)
            faults = _centroid_faults(alone, label_map, label_table)
    except InputError as error:
        raise EnvironmentFault(
            f"{name}: written file can't be read back ({str(error).split(': ', 1)[-1]}); take another format"
        ) from error
    if faults:
        raise EnvironmentFault(f"{name}: written file reads back wrong ({'; '.join(faults)}); take another format")


def _voxel_faults(found: LabelArray, wanted: LabelArray, label_table: LabelTable) -> list[str]:
    if found.shape == wanted.shape and np.array_equal(found, wanted):
        return []
    faults = []
    for structure, entry in label_table.items():
        differing = int(np.count_nonzero(np.isin(found, entry.values) != np.isin(wanted, entry.values)))
        if differing:
            faults.append(f"{differing:,} voxels of {structure} differ")
    return faults


def _centroid_faults(alone: LabelMap, wanted: LabelMap, label_table: LabelTable) -> list[str]:
    tolerance_mm = 0.1 * float(spacing_xyz_mm(wanted.affine).min())
    faults = []
    for structure, entry in label_table.items():
        there, here = _centroid_mm(alone, entry), _centroid_mm(wanted, entry)
        if here is None or there is None:
            continue
        apart = float(np.linalg.norm(there - here))
        if apart > tolerance_mm:
            faults.append(f"the centroid of {structure} lies {apart:.3g} mm off")
    return faults


def _centroid_mm(label_map: LabelMap, entry: LabelEntry) -> npt.NDArray[np.float64] | None:
    """(3,) RAS mm, None for an empty structure."""
    mask = np.isin(label_map.array, entry.values)
    total = int(np.count_nonzero(mask))
    if total == 0:
        return None
    means = []
    for axis in range(3):
        counts = np.count_nonzero(mask, axis=tuple(other for other in range(3) if other != axis))
        means.append(float(counts @ np.arange(mask.shape[axis])) / total)
    affine: Affine = label_map.affine
    return np.asarray(affine[:3, :3] @ np.array(means) + affine[:3, 3])
