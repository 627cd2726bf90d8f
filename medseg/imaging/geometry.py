"""Where voxels lie: spacing, axis order, crops, resizes and changes of grid, in plain numpy.

An affine maps the centre of voxel (i, j, k) to RAS+ world coordinates in mm. Voxel i of n covers [i - 0.5, i + 0.5], so a
grid's extent is [-0.5, n - 0.5] along each axis, and resizing keeps that extent (half-voxel convention).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.errors import GeometryError
from medseg.imaging.volume import Affine

Shape = tuple[int, int, int]
# Two ways to name the axes that fit equally well (45 degrees) differ by float noise; below this they count as equal.
_TIE = 1e-6


@dataclass(frozen=True)
class AxisChange:
    """A renaming of axes, without interpolation: first ``permutation``, then ``flips``.

    Attributes:
        permutation: new axis i is old axis ``permutation[i]``.
        flips: whether new axis i runs against the old one.
    """

    permutation: tuple[int, int, int] = (0, 1, 2)
    flips: tuple[bool, bool, bool] = (False, False, False)

    @property
    def is_identity(self) -> bool:
        """True where nothing is renamed or turned."""
        return self == AxisChange()


def spacing_xyz_mm(affine: Affine) -> npt.NDArray[np.float64]:
    """Voxel size along each array axis, (3,) float64 mm: the lengths of the affine's columns."""
    with np.errstate(over="ignore", invalid="ignore"):  # a damaged header's 1e300 is judged by its reader
        lengths: npt.NDArray[np.float64] = np.sqrt(np.square(np.asarray(affine, np.float64)[:3, :3]).sum(axis=0))
    return lengths


def ras_change(affine: Affine) -> AxisChange:
    """The axis change after which array axes run most nearly to Right, Anterior and Superior.

    It depends on the set of axes alone, not on their order or sense, so each of the 48 orientations of one scan is brought
    to the same array (also at 45 degrees, where two namings fit equally well).

    Raises:
        GeometryError: a column of the affine is zero or not finite.
    """
    spacing = spacing_xyz_mm(affine)
    if not np.isfinite(spacing).all() or (spacing == 0).any():
        raise GeometryError(f"affine: has voxel size {_numbers(spacing)} mm, expected three positive numbers")
    # The nearest orthonormal axes, so that a slight shear does not decide; a permutation of columns permutes them alike.
    left, _, right = np.linalg.svd(np.asarray(affine, np.float64)[:3, :3] / spacing)
    axes = left @ right
    best: tuple[float, tuple[float, ...]] | None = None
    change = AxisChange()
    for permutation in itertools.permutations(range(3)):
        named = axes[:, permutation]
        flips = tuple(_runs_backwards(named[:, i], i) for i in range(3))
        turned = named * np.where(flips, -1.0, 1.0)
        fit = float(np.trace(turned))
        key = tuple(float(v) for v in np.round(turned, 5).ravel())
        if best is None or fit > best[0] + _TIE or (fit > best[0] - _TIE and key > best[1]):
            best = (fit, key)
            change = AxisChange((permutation[0], permutation[1], permutation[2]), (flips[0], flips[1], flips[2]))
    return change


def _runs_backwards(direction: npt.NDArray[np.float64], axis: int) -> bool:
    if abs(direction[axis]) > _TIE:
        return bool(direction[axis] < 0)
    return bool(direction[np.argmax(np.abs(direction) > _TIE)] < 0)


def apply_axes(array: npt.NDArray[Any], change: AxisChange) -> npt.NDArray[Any]:
    """Permutes and flips the last three axes of ``array`` (..., X, Y, Z).

    Returns:
        A C-contiguous array (``array`` itself where it is that already and nothing changes), so that float sums over it do
        not depend on how the scan lay in its file.
    """
    lead = array.ndim - 3
    turned = array.transpose(*range(lead), *(lead + axis for axis in change.permutation))
    return contiguous(turned[(..., *(slice(None, None, -1 if flip else None) for flip in change.flips))])


def undo_axes(array: npt.NDArray[Any], change: AxisChange) -> npt.NDArray[Any]:
    """The inverse of ``apply_axes``; also C-contiguous."""
    lead = array.ndim - 3
    turned = array[(..., *(slice(None, None, -1 if flip else None) for flip in change.flips))]
    inverse = np.argsort(change.permutation)
    return contiguous(turned.transpose(*range(lead), *(lead + int(axis) for axis in inverse)))


def contiguous(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """``array`` in C order, copied in blocks that fit the cache (4 times faster than one copy of a turned volume)."""
    if array.flags.c_contiguous:
        return array
    if array.ndim > 3:
        result = np.empty(array.shape, array.dtype)
        for index in np.ndindex(array.shape[:-3]):
            _copy_blocks(result[index], array[index])
        return result
    result = np.empty(array.shape, array.dtype)
    if array.ndim == 3:
        _copy_blocks(result, array)
    else:
        result[...] = array
    return result


def _copy_blocks(target: npt.NDArray[Any], source: npt.NDArray[Any]) -> None:
    width, height, depth = target.shape
    for x in range(0, width, 64):
        for y in range(0, height, 8):
            for z in range(0, depth, 64):
                block = (slice(x, x + 64), slice(y, y + 8), slice(z, z + 64))
                target[block] = source[block]


def changed_shape(shape: Shape, change: AxisChange) -> Shape:
    """The shape that ``apply_axes`` gives to an array of ``shape`` (X, Y, Z)."""
    first, second, third = (shape[axis] for axis in change.permutation)
    return first, second, third


def changed_affine(affine: Affine, shape: Shape, change: AxisChange) -> Affine:
    """The affine of ``apply_axes(array, change)``, where ``array`` has ``shape`` and ``affine``: no voxel moves."""
    to_old = np.zeros((4, 4))
    to_old[3, 3] = 1.0
    for new, (old, flip) in enumerate(zip(change.permutation, change.flips, strict=True)):
        to_old[old, new] = -1.0 if flip else 1.0
        to_old[old, 3] = shape[old] - 1 if flip else 0
    return np.asarray(affine, np.float64) @ to_old


def cropped_affine(affine: Affine, start: tuple[int, int, int]) -> Affine:
    """The affine of ``array[start:...]``; ``start`` in voxels (x, y, z), negative where the array was padded."""
    result = np.array(affine, np.float64)
    result[:3, 3] += result[:3, :3] @ np.asarray(start, np.float64)
    return result


def resized_affine(affine: Affine, old_shape: Shape, new_shape: Shape) -> Affine:
    """The affine after resampling ``old_shape`` to ``new_shape`` over the same extent.

    The centre of new voxel i lies at old index (i + 0.5) * old / new - 0.5.
    """
    scale = np.asarray(old_shape, np.float64) / np.asarray(new_shape, np.float64)
    result = np.array(affine, np.float64)
    result[:3, :3] *= scale
    result[:3, 3] += np.asarray(affine, np.float64)[:3, :3] @ (0.5 * scale - 0.5)
    return result


def grid_difference(
    shape_a: Shape, affine_a: Affine, shape_b: Shape, affine_b: Affine, *, tolerance_mm: float = 1e-3
) -> str | None:
    """One sentence on how two grids differ, or None where they are one grid.

    Grids are one where the shapes are equal and no corner voxel's centre lies further than ``tolerance_mm`` apart.

    Returns:
        Text with both values, first a's then b's, such as ``spacing is 1 x 1 x 2 mm against 1 x 1 x 2.5 mm``.
    """
    if tuple(shape_a) != tuple(shape_b):
        return f"shape is {_by(shape_a)} against {_by(shape_b)}"
    last = np.asarray(shape_a, np.float64) - 1
    corners = np.array([[*(last * choice), 1.0] for choice in itertools.product((0, 1), repeat=3)])
    apart = (corners @ (np.asarray(affine_a, np.float64) - np.asarray(affine_b, np.float64)).T)[:, :3]
    distance = float(np.sqrt(np.square(apart).sum(axis=1)).max())
    # A single slice has no second corner along its axis, so voxel sizes are compared too (over one voxel).
    spacing_a, spacing_b = spacing_xyz_mm(affine_a), spacing_xyz_mm(affine_b)
    if distance <= tolerance_mm and np.abs(spacing_a - spacing_b).max() <= tolerance_mm:
        return None
    if np.abs(spacing_a - spacing_b).max() > tolerance_mm / max(1.0, float(last.max())):
        return f"spacing is {_numbers(spacing_a)} mm against {_numbers(spacing_b)} mm (corners up to {distance:.4g} mm apart)"
    turned = np.abs(np.asarray(affine_a)[:3, :3] - np.asarray(affine_b)[:3, :3]).max() > 1e-4 * spacing_a.min()
    if turned:
        codes = f"{orientation_code(affine_a)} against {orientation_code(affine_b)}"
        return f"axes run to {codes}, corners are up to {distance:.4g} mm apart"
    origin_a, origin_b = np.asarray(affine_a)[:3, 3], np.asarray(affine_b)[:3, 3]
    return f"origin is {_numbers(origin_a, ', ')} mm against {_numbers(origin_b, ', ')} mm ({distance:.4g} mm apart)"


def orientation_code(affine: Affine) -> str:
    """Where the array axes run to, such as ``LPS`` or ``RAS``; the nearest axis each."""
    change = ras_change(affine)
    letters = [""] * 3
    for world, (axis, flip) in enumerate(zip(change.permutation, change.flips, strict=True)):
        letters[axis] = ("LPI" if flip else "RAS")[world]
    return "".join(letters)


def _by(shape: Shape) -> str:
    return "x".join(str(size) for size in shape)


def _numbers(values: npt.NDArray[np.float64], separator: str = " x ") -> str:
    return separator.join(f"{value:.5g}" for value in values)
