"""The demo's patients: synthetic scans that look enough like anatomy to be worth segmenting.

Each patient is a body of soft tissue with an organ in it, and a curved duct inside the organ. Grey values alone can't
find either: the fat round the body, the spine and a smaller organ on the other side are as bright as the organ, and the
soft tissue with its vessel is as dark as the duct. On top come texture, a bias field, partial volume, noise, a gain for
every scan, and an anisotropic, oblique grid, stored in another axis order from case to case.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Sequence

LABELS = {"background": 0, "organ": 1, "duct": 2}

# Brightness before gain, bias and noise. Equal values for different tissues are the point of the exercise.
_AIR, _SOFT, _BRIGHT, _DARK, _MARROW = 0.03, 0.52, 0.80, 0.50, 0.66

# Points per voxel and axis at which the anatomy is sampled; their mean is the partial volume.
_SAMPLES_XYZ = (2, 2, 3)

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Patient:
    """One made-up scan: ``image`` (X, Y, Z) int16, ``labels`` (X, Y, Z) uint8, ``affine`` (4, 4) RAS+ mm."""

    id: str
    image: npt.NDArray[np.int16]
    labels: npt.NDArray[np.uint8]
    affine: Array


def make_patient(number: int, *, seed: int) -> Patient:
    """Draws patient ``number``; the same number and seed give the same voxels, whichever others are drawn.

    Args:
        number: from 0.
        seed: of the whole set.

    Returns:
        A scan of about 44 x 40 x 22 voxels of about 2.2 x 2.2 x 4.4 mm, both classes present.
    """
    generator = np.random.default_rng([seed, number])
    shape, affine = _draw_grid(generator)
    points = _sample_points(shape, affine)
    tissues, shares = _draw_anatomy(generator, points)
    brightness = _mean_of_samples(tissues, shape)
    image = _scan(generator, brightness, shape)
    background = 1.0 - shares[0] - shares[1]
    fractions = np.stack([_mean_of_samples(share, shape) for share in (background, *shares)])
    labels = fractions.argmax(axis=0).astype(np.uint8)
    image, labels, affine = _reorder_axes(generator, image, labels, affine)
    return Patient(id=f"demo_{number:03d}", image=image, labels=labels, affine=affine)


def _rotation(angles_xyz: npt.ArrayLike) -> Array:
    """Rotation about x, then y, then z by ``angles_xyz`` radians, (3, 3)."""
    matrix: Array = np.eye(3)
    for axis, angle in enumerate(np.asarray(angles_xyz, float)):
        first, second = [a for a in range(3) if a != axis]
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix


def _draw_grid(generator: np.random.Generator) -> tuple[tuple[int, int, int], Array]:
    """A tilted grid with thick slices whose middle lies near the world's origin."""
    spacing = np.array([0.0, 0.0, generator.uniform(3.8, 5.0)])
    spacing[:2] = generator.uniform(2.0, 2.4)
    extent_mm = np.array([98.0, 88.0, 98.0]) * generator.uniform(0.95, 1.05, 3)
    counts = np.round(extent_mm / spacing).astype(int)
    affine = np.eye(4)
    affine[:3, :3] = _rotation(generator.uniform(-0.2, 0.2, 3)) * spacing
    affine[:3, 3] = generator.uniform(-4, 4, 3) - affine[:3, :3] @ ((counts - 1) / 2)
    return (int(counts[0]), int(counts[1]), int(counts[2])), affine


def _sample_points(shape: tuple[int, int, int], affine: Array) -> Array:
    """World positions (3, X*a, Y*b, Z*c) of the points inside each voxel at which the anatomy is looked up."""
    axes = [
        (np.arange(count * samples) + 0.5) / samples - 0.5 for count, samples in zip(shape, _SAMPLES_XYZ, strict=True)
    ]
    indices = np.stack(np.meshgrid(*axes, indexing="ij"))
    points: Array = np.einsum("ij,jxyz->ixyz", affine[:3, :3], indices) + affine[:3, 3, None, None, None]
    return points


def _mean_of_samples(fine: Array, shape: tuple[int, int, int]) -> Array:
    a, b, c = _SAMPLES_XYZ
    mean: Array = fine.reshape(shape[0], a, shape[1], b, shape[2], c).mean(axis=(1, 3, 5))
    return mean


def _inside(points: Array, centre: Array, axes_mm: Array, turn: Array, bulge: Array) -> npt.NDArray[np.bool_]:
    """Which points lie in an ellipsoid whose surface is dented and bulged by a few waves."""
    local = np.einsum("ij,jxyz->ixyz", turn.T, points - centre[:, None, None, None])
    x, y, z = local / axes_mm[:, None, None, None]
    radius = np.sqrt(x * x + y * y + z * z)
    wave = (
        bulge[0] * np.sin(3 * x + bulge[3]) + bulge[1] * np.sin(3 * y + bulge[4]) + bulge[2] * np.sin(3 * z + bulge[5])
    )
    result: npt.NDArray[np.bool_] = radius < 1 + wave
    return result


def _draw_bulge(generator: np.random.Generator, size: float) -> Array:
    return np.concatenate([generator.uniform(0.3, 1, 3) * size, generator.uniform(0, 2 * np.pi, 3)])


def _draw_duct(
    generator: np.random.Generator, points: Array, organ: npt.NDArray[np.bool_], frame: Array, axes_mm: Array
) -> npt.NDArray[np.bool_]:
    """A tube along an arc through the organ, narrower towards its end; ``frame`` (3, 4) its turn and centre."""
    t = np.linspace(0, 1, 40)
    angle = np.pi * (0.08 + 0.84 * t)
    bend = generator.uniform(0.5, 0.75)
    line = np.stack([-0.62 * np.cos(angle), bend * np.sin(angle) - 0.4, generator.uniform(-0.25, 0.25) * (2 * t - 1)])
    line_mm = frame[:, :3] @ (line * axes_mm[:, None]) + frame[:, 3:]
    widths_mm = generator.uniform(6.6, 7.8) * (1.15 - 0.35 * t)
    candidates = points[:, organ]
    near = np.zeros(candidates.shape[1], bool)
    for middle, width in zip(line_mm.T, widths_mm, strict=True):
        near |= ((candidates - middle[:, None]) ** 2).sum(axis=0) < width**2
    duct = np.zeros_like(organ)
    duct[organ] = near
    return duct


def _draw_anatomy(generator: np.random.Generator, points: Array) -> tuple[Array, tuple[Array, Array]]:
    """Brightness at the points, and there the shares (0 or 1) of organ and duct."""
    tilt = _rotation(generator.uniform(-0.12, 0.12, 3))
    size = generator.uniform(0.92, 1.08)

    def blob(centre_mm: Sequence[float], axes_mm: Sequence[float], bulge: float) -> npt.NDArray[np.bool_]:
        middle = tilt @ (np.array(centre_mm) * size + generator.uniform(-3, 3, 3))
        return _inside(points, middle, np.array(axes_mm) * size, tilt, _draw_bulge(generator, bulge))

    skin = blob((0, 0, 0), (46, 38, 70), 0.02)
    tissue = blob((0, 0, 0), (38, 30, 62), 0.03)
    tissues = np.where(skin, _BRIGHT, _AIR)  # a rim of fat, as bright as the organ
    tissues[tissue] = _SOFT
    tissues[blob((-2, -23, 0), (8, 7, 80), 0.05)] = _BRIGHT  # the spine
    tissues[blob((-20, -2, -14), (11, 15, 15), 0.06)] = _BRIGHT  # another organ, on the other side, with no duct
    tissues[blob((-18, 6, 22), (9, 10, 12), 0.06)] = _MARROW
    tissues[blob((-2, 14, -4), (5, 5, 60), 0.03)] = _DARK  # a vessel

    centre = tilt @ (np.array([14.0, 4.0, 4.0]) * size + generator.uniform(-5, 5, 3))
    axes_mm = np.array([20.0, 18.5, 27.0]) * size * generator.uniform(0.92, 1.08, 3)
    turn = tilt @ _rotation(generator.uniform(-0.3, 0.3, 3))
    organ = _inside(points, centre, axes_mm, turn, _draw_bulge(generator, 0.05)) & skin
    duct = _draw_duct(generator, points, organ, np.column_stack([turn, centre]), axes_mm)
    tissues[organ] = _BRIGHT
    tissues[duct] = _DARK
    return tissues, ((organ & ~duct).astype(float), duct.astype(float))


def _smooth_field(generator: np.random.Generator, shape: tuple[int, int, int], knots: int) -> Array:
    """Random field in about [-1, 1], smooth at the scale of the field of view over ``knots``."""
    from scipy.ndimage import zoom

    coarse = generator.uniform(-1, 1, (knots, knots, knots))
    field: Array = zoom(coarse, [n / knots for n in shape], order=3, mode="nearest", grid_mode=True)
    return field


def _scan(generator: np.random.Generator, brightness: Array, shape: tuple[int, int, int]) -> npt.NDArray[np.int16]:
    """What the scanner makes of it: texture, bias field, noise on both of its channels, a gain of its own."""
    textured = brightness * (1 + 0.10 * _smooth_field(generator, shape, 9))
    biased = textured * np.exp(0.35 * _smooth_field(generator, shape, 3))
    noise = generator.normal(0, 0.045, (2, *shape))
    magnitude = np.hypot(biased + noise[0], noise[1])
    image: npt.NDArray[np.int16] = np.round(magnitude * generator.uniform(300, 1500)).astype(np.int16)
    return image


def _reorder_axes(
    generator: np.random.Generator, image: npt.NDArray[np.int16], labels: npt.NDArray[np.uint8], affine: Array
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8], Array]:
    """Stores the same voxels in another axis order and direction, as scanners do (axial, coronal, sagittal)."""
    order = generator.permutation(3)
    flips = tuple(axis for axis in range(3) if generator.random() < 0.5)
    change = np.eye(4)[:, [*order, 3]]
    turned: Array = affine @ change
    for axis in flips:
        turned[:3, 3] += turned[:3, axis] * (image.shape[order[axis]] - 1)
        turned[:3, axis] *= -1
    image = np.flip(image.transpose(order), flips)
    labels = np.flip(labels.transpose(order), flips)
    return np.ascontiguousarray(image), np.ascontiguousarray(labels), turned
