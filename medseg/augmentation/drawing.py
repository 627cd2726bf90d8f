"""What happens to one sample, drawn from its own generator in a fixed order: nnU-Net's list, probabilities and ranges.

From ``nnUNetTrainer.get_training_transforms`` and ``configure_rotation_dummyDA_mirroring_and_inital_patch_size`` of nnunetv2
2.8.1 with batchgeneratorsv2 0.3.6. Two things differ on purpose: rotations are rigid in millimetres (nnU-Net turns voxels,
which shears scans with unequal spacing), and mirrors are drawn with the rotation, so that both cost one resampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medseg.config.train_sections import AugmentationSection

Triple = tuple[int, int, int]
FloatArray = npt.NDArray[np.float64]
_AXES = "xyz"


@dataclass(frozen=True)
class SpatialDraw:
    """``matrix`` (3, 3) takes patch offsets (voxels from the centre) to scan offsets; None means neither turned nor scaled."""

    matrix: FloatArray | None
    mirrored_axes: tuple[int, ...]

    @property
    def with_mirrors(self) -> FloatArray:
        """``matrix`` of the mirrored patch."""
        signs = [-1.0 if axis in self.mirrored_axes else 1.0 for axis in range(3)]
        matrix = np.eye(3) if self.matrix is None else self.matrix
        result: FloatArray = matrix * np.asarray(signs)[None, :]
        return result


@dataclass(frozen=True)
class IntensityDraw:
    """How intensities of one sample change; the neutral value means not at all. Arrays have one row per channel.

    Attributes:
        noise_sd: of the Gaussian noise added to all channels; 0 is none.
        noise_seed: of that noise.
        blur: (C, 3) SD of the Gaussian blur in voxels per axis; 0 is none.
        brightness: (C,) factor.
        contrast: (C,) factor of the deviation from the mean, within the old range.
        zoom: (C,) size of the low-resolution copy as a share; 1 is none.
        gamma_inverted: (C,) exponent for the negative; 1 is none.
        gamma: (C,) exponent.
        extra_seed: of the transforms from elsewhere.
    """

    noise_sd: float
    noise_seed: int
    blur: FloatArray
    brightness: FloatArray
    contrast: FloatArray
    zoom: FloatArray
    gamma_inverted: FloatArray
    gamma: FloatArray
    extra_seed: int


def mirror_axes(
    section: AugmentationSection, slice_axis: int | None, planned: Sequence[str] = _AXES
) -> tuple[int, ...]:
    """Axes (0 = x) that may be mirrored: the config's, else the plan's, but never the axis that 2D slices are stacked along."""
    named = planned if section.mirror_axes is None else section.mirror_axes
    return tuple(sorted({_AXES.index(axis) for axis in named} - {slice_axis}))


def in_plane_axis(size_xyz: Triple, spacing_xyz_mm: tuple[float, float, float], slice_axis: int | None) -> int | None:
    """The only axis to rotate about, or None for all three.

    2D rotates about the axis its slices are stacked along. In 3D nnU-Net's dummy-2D rule: where the longest side of the patch
    is more than 3 times the side along the coarsest spacing (of equals the first of z, y, x), patches are turned and scaled
    within their slices only, since slices this far apart can't be interpolated between.
    """
    if slice_axis is not None:
        return slice_axis
    through = max((2, 1, 0), key=lambda axis: spacing_xyz_mm[axis])
    return through if max(size_xyz) / size_xyz[through] > 3 else None


def largest_rotation(size_xyz: Triple, only_axis: int | None, slice_axis: int | None) -> float:
    """nnU-Net's largest angle in degrees: 30 in 3D, 180 within slices, 15 in 2D where a side is over 1.5 times the other."""
    if only_axis is None:
        return 30.0
    if slice_axis is None:
        return 180.0
    sides = [n for axis, n in enumerate(size_xyz) if axis != slice_axis]
    return 15.0 if max(sides) / min(sides) > 1.5 else 180.0


def _rotation(angles: FloatArray) -> FloatArray:
    cos, sin = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cos[0], -sin[0]], [0, sin[0], cos[0]]])
    about_y = np.array([[cos[1], 0, sin[1]], [0, 1, 0], [-sin[1], 0, cos[1]]])
    about_z = np.array([[cos[2], -sin[2], 0], [sin[2], cos[2], 0], [0, 0, 1]])
    result: FloatArray = about_x @ about_y @ about_z
    return result


def draw_spatial(
    rng: np.random.Generator,
    section: AugmentationSection,
    *,
    axes: tuple[int, ...],
    only_axis: int | None,
    spacing_xyz_mm: tuple[float, float, float],
    largest_degrees: float,
) -> SpatialDraw:
    """Draws rotation, scaling and mirroring. Rotation is in millimetres, so an anisotropic scan is not sheared.

    Args:
        rng: the sample's generator.
        section: probabilities and ranges; its ``rotation_degrees`` comes before ``largest_degrees``.
        axes: that may be mirrored.
        only_axis: the axis to rotate about and not to scale, None for all three.
        spacing_xyz_mm: of the voxels.
        largest_degrees: of the rotation about each axis.
    """
    rotate, scale = rng.random() < section.rotation, rng.random() < section.scaling
    largest = largest_degrees if section.rotation_degrees is None else section.rotation_degrees
    angles = np.deg2rad(rng.uniform(-largest, largest, 3))
    factor = rng.uniform(*section.scale_range)
    mirrored = tuple(axis for axis, heads in zip(range(3), rng.random(3) < 0.5, strict=True) if heads and axis in axes)
    if not (rotate or scale):
        return SpatialDraw(None, mirrored)
    matrix = np.eye(3)
    if rotate:
        if only_axis is not None:
            angles[[axis for axis in range(3) if axis != only_axis]] = 0
        spacing = np.asarray(spacing_xyz_mm)
        matrix = _rotation(angles) * spacing[None, :] / spacing[:, None]
    if scale:
        scaling = np.full(3, factor)
        if only_axis is not None:
            scaling[only_axis] = 1
        matrix = matrix * scaling[None, :]
    if only_axis is not None:  # rounding must not move slices off their own
        matrix[only_axis], matrix[:, only_axis] = np.eye(3)[only_axis], np.eye(3)[only_axis]
    return SpatialDraw(matrix, mirrored)


def draw_intensity(rng: np.random.Generator, section: AugmentationSection, channels: int) -> IntensityDraw:
    """Draws the changes of ``channels`` channels. The same numbers are drawn whatever happens, so the order is fixed."""
    (noise, blur, brightness, contrast, low_resolution, inverted, gamma) = rng.random(7).tolist()
    noise_sd = float(rng.uniform(0, 0.1))
    noise_seed, extra_seed = (int(n) for n in rng.integers(2**32, size=2))
    half = rng.random((2, channels)) < 0.5
    sigmas = rng.uniform(0.5, 1.0, (channels, 3))
    factors = [
        _about_one(rng, low, high, channels) for low, high in ((0.75, 1.25), (0.75, 1.25), (0.7, 1.5), (0.7, 1.5))
    ]
    zooms = rng.uniform(0.5, 1.0, channels)
    one = np.ones(channels)
    return IntensityDraw(
        noise_sd=noise_sd if noise < section.noise else 0.0,
        noise_seed=noise_seed,
        blur=np.where(half[0, :, None], sigmas, 0.0) if blur < section.blur else np.zeros((channels, 3)),
        brightness=factors[0] if brightness < section.brightness else one,
        contrast=factors[1] if contrast < section.contrast else one,
        zoom=np.where(half[1], zooms, 1.0) if low_resolution < section.low_resolution else one,
        gamma_inverted=factors[2] if inverted < section.gamma_inverted else one,
        gamma=factors[3] if gamma < section.gamma else one,
        extra_seed=extra_seed,
    )


def _about_one(rng: np.random.Generator, low: float, high: float, count: int) -> FloatArray:
    # batchgenerators' BGContrast: below and above 1 are equally likely, however wide the two sides are.
    below = rng.random(count) < 0.5
    return np.where(below, rng.uniform(low, 1, count), rng.uniform(1, high, count))
