"""Both masks of a case, turned to RAS, for all that looks at voxels again: kinds of failure and slices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medseg.errors import GeometryError
from medseg.evaluation.case import ClassArray
from medseg.evaluation.matching import CasePaths
from medseg.evaluation.overlap import BoolArray
from medseg.evaluation.protocol import Protocol
from medseg.evaluation.reading import read_pair
from medseg.imaging import (
    IGNORE,
    AxisChange,
    apply_axes,
    grid_difference,
    index_labels,
    ras_change,
    regions_of,
    spacing_xyz_mm,
    to_classes,
)
from medseg.imaging.volume import Affine

Box = tuple[slice, slice, slice]


@dataclass(frozen=True, kw_only=True, eq=False)
class CaseMasks:
    """A case's masks.

    Attributes:
        case_id: names it.
        truth, prediction: (X, Y, Z) uint8 stored indices in RAS order, 0 where the truth is to be ignored.
        ignored: (X, Y, Z) bool, or None where nothing is.
        members: class name to the stored indices that belong to it (several where labels overlap).
        spacing_xyz_mm: voxel size along the turned axes.
        planar: a picture, whose axes are left as they are.
        change: how the file's axes were turned.
        affine: of the file, before that.
        shape: of the file, before that.
    """

    case_id: str
    truth: ClassArray
    prediction: ClassArray
    ignored: BoolArray | None
    members: Mapping[str, tuple[int, ...]]
    spacing_xyz_mm: tuple[float, float, float]
    planar: bool
    change: AxisChange
    affine: Affine
    shape: tuple[int, int, int]

    def of_class(self, name: str) -> tuple[BoolArray, BoolArray]:
        """Prediction and truth of a class, bool (X, Y, Z)."""
        indices = self.members[name]
        return np.isin(self.prediction, indices), np.isin(self.truth, indices)

    @property
    def millilitres(self) -> float:
        """Volume of a voxel."""
        return float(np.prod(self.spacing_xyz_mm)) / 1000.0


def read_masks(pair: CasePaths, protocol: Protocol) -> CaseMasks:
    """Reads both label maps of a case that was scored.

    Raises:
        InputError: a file can't be read, or is no longer what it was when it was scored.
    """
    assert pair.prediction is not None
    assert pair.reference is not None
    prediction, reference = read_pair(pair.prediction, pair.reference, naming=protocol.naming)
    if grid_difference(prediction.shape, prediction.affine, reference.shape, reference.affine) is not None:
        raise GeometryError(f"{pair.case_id}: the masks lie on different grids, expected one; evaluate again")
    planar = reference.header is not None and reference.header.planar
    change = AxisChange() if planar else ras_change(reference.affine)
    predicted = apply_axes(to_classes(prediction, protocol.labels, ignore=None, name=pair.case_id), change)
    truth = apply_axes(to_classes(reference, protocol.labels, ignore=protocol.ignore, name=pair.case_id), change)
    ignored: npt.NDArray[np.bool_] | None = None
    if protocol.ignore is not None:
        ignored = truth == IGNORE
        predicted, truth = np.where(ignored, 0, predicted), np.where(ignored, 0, truth)
    spacing = spacing_xyz_mm(reference.affine)[list(change.permutation)]
    return CaseMasks(
        case_id=pair.case_id,
        truth=truth.astype(np.uint8),
        prediction=predicted.astype(np.uint8),
        ignored=ignored,
        members=class_members(protocol),
        spacing_xyz_mm=(float(spacing[0]), float(spacing[1]), float(spacing[2])),
        planar=planar,
        change=change,
        affine=reference.affine,
        shape=reference.shape,
    )


def class_members(protocol: Protocol) -> dict[str, tuple[int, ...]]:
    """Class name to the stored indices that belong to it."""
    regions = regions_of(protocol.labels)
    if regions is None:
        return {name: (index,) for index, name in enumerate(protocol.class_names, start=1)}
    return {name: regions.indices_of(name) for name in protocol.class_names}


def index_names(protocol: Protocol) -> tuple[str, ...]:
    """Names of the stored indices from 1 on: the classes, or where they overlap their combinations."""
    return tuple(index_labels(protocol.labels))[1:]


def bounding_box(mask: BoolArray) -> Box | None:
    """The box around a mask's voxels, None where there is none."""
    sides = []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        found = np.flatnonzero(mask.any(axis=others))
        if not len(found):
            return None
        sides.append(slice(int(found[0]), int(found[-1]) + 1))
    return sides[0], sides[1], sides[2]
