"""Label maps of one case on one grid, whatever the kinds of file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medseg.errors import GeometryError
from medseg.imaging import LabelMap, Limits, grid_difference, read_label_map
from medseg.imaging.formats import format_of
from medseg.imaging.structures import Naming
from medseg.imaging.volume import Affine

# Positions in files are written with six digits or so; what is further off is refused by the reader.
_OFF_GRID = 0.1


@dataclass(frozen=True)
class _Grid:
    """A scan's grid: ``shape`` (X, Y, Z) and ``affine`` (4, 4) RAS+ mm."""

    shape: tuple[int, int, int]
    affine: Affine


def read_pair(prediction: Path, reference: Path, *, naming: Naming) -> tuple[LabelMap, LabelMap]:
    """Both label maps of a case, see :func:`read_maps`."""
    found = read_maps((prediction, reference), naming=naming)
    return found[0], found[1]


def read_maps(paths: Sequence[Path], *, naming: Naming) -> list[LabelMap]:
    """Label maps of one case.

    Files of named structures are often cut to what they hold, and contours have no grid: they are put on the grid of the first
    file of another kind. Where there is none, on the smallest grid that holds the grids of all segmentations.

    Args:
        paths: at least one.
        naming: by which structures are known.

    Raises:
        GeometryError: structures lie beside the voxels or outside of that grid, or there are contours alone.
        LabelError, ScanError: see :func:`~medseg.imaging.read_label_map`.
    """
    named = [format_of(path).named for path in paths]
    plain = {k: read_label_map(path) for k, path in enumerate(paths) if not named[k]}
    if plain:
        grid = next(iter(plain.values()))
        return [plain[k] if k in plain else _on(path, grid, naming) for k, path in enumerate(paths)]
    own = [_own(path, naming) for path in paths]
    grids = [one for one in own if one is not None]
    if not grids:
        return [
            read_label_map(path, naming=naming) for path in paths
        ]  # contours alone, of which the reader says why not
    union = _union(grids, paths[0].name)
    return [
        one if one is not None and _same(one, union) else _on(path, union, naming)
        for one, path in zip(own, paths, strict=True)
    ]


def _on(path: Path, grid: LabelMap | _Grid, naming: Naming) -> LabelMap:
    return read_label_map(path, naming=naming, like=grid)


def _own(path: Path, naming: Naming) -> LabelMap | None:
    """On its own grid; None of contours."""
    try:
        return read_label_map(path, naming=naming)
    except GeometryError:
        return None


def _same(one: LabelMap, grid: _Grid) -> bool:
    return grid_difference(one.shape, one.affine, grid.shape, grid.affine) is None


def _union(maps: Sequence[LabelMap], name: str) -> _Grid:
    """The finest of the grids (of planes every other of which is empty, only those that are there tell), made to hold all."""
    base = min(maps, key=lambda one: abs(float(np.linalg.det(one.affine[:3, :3]))))
    to_voxels = np.linalg.inv(base.affine)
    low, high = np.zeros(3), np.array(base.shape, np.float64) - 1
    for one in maps:
        ends = [(0, size - 1) for size in one.shape]
        corners = np.array([[x, y, z, 1] for x in ends[0] for y in ends[1] for z in ends[2]], np.float64)
        places = (corners @ (to_voxels @ one.affine).T)[:, :3]
        low = np.minimum(low, np.floor(places.min(axis=0) + _OFF_GRID))
        high = np.maximum(high, np.ceil(places.max(axis=0) - _OFF_GRID))
    sizes = (high - low).astype(int) + 1
    shape = (int(sizes[0]), int(sizes[1]), int(sizes[2]))
    Limits().check_voxels(name, shape)
    affine = np.array(base.affine, np.float64)
    affine[:3, 3] = (base.affine @ [*low, 1.0])[:3]
    return _Grid(shape, affine)
