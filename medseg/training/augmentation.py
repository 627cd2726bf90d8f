"""Random changes of training patches, as tensor operations on whatever device the tensors are.

nnU-Net's list with its probabilities and ranges (Isensee et al. 2021, supplement; nnunetv2 2.8 ``get_training_transforms``):
one composed affine and mirroring per sample, image and labels resampled once, then noise, blur, brightness, contrast,
low resolution and gamma. What is drawn comes from the sample's own generator, in a fixed order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from medseg.config.train_sections import AugmentationSection
from medseg.training.sampling import PatchSource, Triple

_AXES = "xyz"
_MAX_ONE_HOT = 16  # above this many classes labels are resampled by nearest: one plane per class would cost too much


@dataclass(frozen=True)
class SpatialDraw:
    """``matrix`` (3, 3) takes patch offsets (voxels from the centre) to scan offsets; None means unchanged."""

    matrix: npt.NDArray[np.float64] | None
    mirrored_axes: tuple[int, ...]


def mirror_axes(section: AugmentationSection, dimensions: int) -> tuple[int, ...]:
    """Axes (0 = x) that may be mirrored; all of them where the config leaves it open."""
    if section.mirror_axes is None:
        return tuple(range(dimensions))
    return tuple(sorted({_AXES.index(axis) for axis in section.mirror_axes if _AXES.index(axis) < dimensions}))


def _rotation(angles: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    cos, sin = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cos[0], -sin[0]], [0, sin[0], cos[0]]])
    about_y = np.array([[cos[1], 0, sin[1]], [0, 1, 0], [-sin[1], 0, cos[1]]])
    about_z = np.array([[cos[2], -sin[2], 0], [sin[2], cos[2], 0], [0, 0, 1]])
    result: npt.NDArray[np.float64] = about_x @ about_y @ about_z
    return result


def in_plane_axis(size_xyz: Triple, spacing_xyz_mm: tuple[float, float, float], dimensions: int) -> int | None:
    """The only axis to rotate about, or None for all three.

    2D rotates about z. A thin stack (longest side more than 3 times the shortest, nnU-Net's dummy-2D rule, along the axis
    with the coarsest voxels) rotates about its stacking axis, since slices this far apart can't be interpolated between.
    """
    if dimensions == 2:
        return 2
    thin = int(np.argmin(size_xyz))
    coarse = spacing_xyz_mm[thin] >= max(spacing_xyz_mm) * 0.999
    return thin if max(size_xyz) / size_xyz[thin] > 3 and coarse else None


def draw_spatial(
    rng: np.random.Generator,
    section: AugmentationSection,
    *,
    axes: tuple[int, ...],
    only_axis: int | None,
    spacing_xyz_mm: tuple[float, float, float],
) -> SpatialDraw:
    """Draws rotation, scaling and mirroring. Rotation is in millimetres, so an anisotropic scan is not sheared."""
    rotate, scale = rng.random() < section.rotation, rng.random() < section.scaling
    largest = section.rotation_degrees
    if largest is None:
        largest = 180.0 if only_axis is not None else 30.0
    angles = np.deg2rad(rng.uniform(-largest, largest, 3))
    low, high = section.scale_range
    factor = rng.uniform(low, 1) if rng.random() < 0.5 and low < 1 else rng.uniform(max(low, 1), max(high, 1))
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
    return SpatialDraw(matrix, mirrored)


def read_sample(
    source: PatchSource,
    start_xyz: Triple,
    size_xyz: Triple,
    draw: SpatialDraw,
    *,
    class_count: int,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Reads one patch with its spatial change done: image (C, X, Y, Z) float32 and labels (X, Y, Z) uint8.

    Only the box that the turned patch covers is read. Beyond the scan: image 0, label 0.
    """
    if draw.matrix is None:
        image, labels = source.read_patch(start_xyz, size_xyz)
        result = torch.from_numpy(image).to(device), torch.from_numpy(labels).to(device)
    else:
        size = np.asarray(size_xyz)
        reach = np.abs(draw.matrix) @ ((size - 1) / 2)
        centre = np.asarray(start_xyz) + (size - 1) / 2
        first = np.floor(centre - reach).astype(int)
        box = np.ceil(centre + reach).astype(int) - first + 1
        box[size == 1] = 1
        first[size == 1] = np.asarray(start_xyz)[size == 1]
        image, labels = source.read_patch(_triple(first), _triple(box))
        grid = _sampling_grid(draw.matrix, centre - first, size, box, device)
        result = _resample(torch.from_numpy(image).to(device), torch.from_numpy(labels).to(device), grid, class_count)
    if draw.mirrored_axes:
        result = (
            result[0].flip([axis + 1 for axis in draw.mirrored_axes]),
            result[1].flip(list(draw.mirrored_axes)),
        )
    return result


def _triple(values: npt.NDArray[np.integer]) -> Triple:
    return int(values[0]), int(values[1]), int(values[2])


def _sampling_grid(
    matrix: npt.NDArray[np.float64],
    centre: npt.NDArray[np.float64],
    size: npt.NDArray[np.integer],
    box: npt.NDArray[np.integer],
    device: torch.device,
) -> Tensor:
    offsets = [torch.arange(int(n), dtype=torch.float32, device=device) - (int(n) - 1) / 2 for n in size]
    mesh = torch.stack(torch.meshgrid(*offsets, indexing="ij"), dim=-1)
    voxels = mesh @ torch.as_tensor(matrix.T, dtype=torch.float32, device=device)
    voxels = voxels + torch.as_tensor(centre, dtype=torch.float32, device=device)
    # grid_sample counts from -1 to 1 between the outer faces (align_corners=False) and wants the last axis first.
    scaled = (2 * voxels + 1) / torch.as_tensor(box, dtype=torch.float32, device=device) - 1
    return scaled.flip(-1)[None]


def _resample(image: Tensor, labels: Tensor, grid: Tensor, class_count: int) -> tuple[Tensor, Tensor]:
    moved = functional.grid_sample(image[None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)[0]
    if class_count > _MAX_ONE_HOT or bool((labels == 255).any()):
        near = functional.grid_sample(
            labels[None, None].float(), grid, mode="nearest", padding_mode="zeros", align_corners=False
        )
        return moved, near[0, 0].round().to(torch.uint8)
    planes = torch.stack([labels == k for k in range(1, class_count)]).float()
    shares = functional.grid_sample(planes[None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)[0]
    background = 1 - shares.sum(dim=0, keepdim=True)
    return moved, torch.cat((background, shares)).argmax(dim=0).to(torch.uint8)


def augment_intensity(
    image: Tensor, rng: np.random.Generator, section: AugmentationSection, *, masked_channels: tuple[int, ...] = ()
) -> Tensor:
    """Changes the intensities of one patch.

    Args:
        image: (C, X, Y, Z) float32, normalised; not changed in place.
        rng: the sample's generator.
        section: probabilities; 0 switches one off.
        masked_channels: channels normalised inside a mask only; their zeros stay zero.

    Returns:
        (C, X, Y, Z) float32.
    """
    outside = [(c, image[c] == 0) for c in masked_channels]
    chance = rng.random(7)
    if chance[0] < section.noise:
        generator = torch.Generator(device=image.device).manual_seed(int(rng.integers(2**62)))
        noise = torch.randn(image.shape, generator=generator, device=image.device)
        image = image + float(rng.uniform(0, 0.1)) * noise
    if chance[1] < section.blur:
        image = _per_channel(image, rng, lambda channel: _blur(channel, float(rng.uniform(0.5, 1.0))))
    if chance[2] < section.brightness:
        image = image * float(rng.uniform(0.75, 1.25))
    if chance[3] < section.contrast:
        image = _contrast(image, float(rng.uniform(0.75, 1.25)))
    if chance[4] < section.low_resolution:
        image = _per_channel(image, rng, lambda channel: _low_resolution(channel, float(rng.uniform(0.5, 1.0))))
    if chance[5] < section.gamma_inverted:
        image = -_gamma(-image, _gamma_exponent(rng))
    if chance[6] < section.gamma:
        image = _gamma(image, _gamma_exponent(rng))
    for channel, mask in outside:
        image[channel] = image[channel].masked_fill(mask, 0)
    return image


def _per_channel(image: Tensor, rng: np.random.Generator, change: Callable[[Tensor], Tensor]) -> Tensor:
    return torch.stack([change(channel) if rng.random() < 0.5 else channel for channel in image])


def _gamma_exponent(rng: np.random.Generator) -> float:
    return float(rng.uniform(0.7, 1) if rng.random() < 0.5 else rng.uniform(1, 1.5))


def _gamma(image: Tensor, exponent: float) -> Tensor:
    # Per channel: to [0, 1], power, back to the old range, then the old mean and SD (nnU-Net's retain_stats).
    axes = tuple(range(1, image.ndim))
    low, high = image.amin(axes, keepdim=True), image.amax(axes, keepdim=True)
    mean, std = image.mean(axes, keepdim=True), image.std(axes, keepdim=True, correction=0)
    span = (high - low).clamp_min(1e-7)
    changed = ((image - low) / span).clamp_min(0).pow(exponent) * span + low
    new_mean, new_std = changed.mean(axes, keepdim=True), changed.std(axes, keepdim=True, correction=0)
    return (changed - new_mean) / new_std.clamp_min(1e-7) * std + mean


def _contrast(image: Tensor, factor: float) -> Tensor:
    axes = tuple(range(1, image.ndim))
    mean = image.mean(axes, keepdim=True)
    low, high = image.amin(axes, keepdim=True), image.amax(axes, keepdim=True)
    return ((image - mean) * factor + mean).clamp(low, high)


def _blur(channel: Tensor, sigma: float) -> Tensor:
    radius = max(1, round(4 * sigma))
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float32, device=channel.device)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = (kernel / kernel.sum())[None, None]
    for axis in range(channel.ndim):
        if channel.shape[axis] > radius:
            lines = channel.movedim(axis, -1)
            flat = functional.pad(lines.reshape(-1, 1, lines.shape[-1]), (radius, radius), mode="replicate")
            channel = functional.conv1d(flat, kernel).reshape(lines.shape).movedim(-1, axis)
    return channel


def _low_resolution(channel: Tensor, zoom: float) -> Tensor:
    size = list(channel.shape)
    small = [max(1, round(n * zoom)) for n in size]
    low = functional.interpolate(channel[None, None], size=small, mode="nearest-exact")
    return functional.interpolate(low, size=size, mode="trilinear", align_corners=False)[0, 0]
