"""Changes of intensities in place, as tensor operations on channels of patches.

Each works on (R, X, Y, Z) rows with one parameter per row. On a CPU a row is changed at a time (it stays in the cache, and
the result cannot depend on the batch or the number of threads); on a GPU all rows that a change was drawn for at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from medseg.augmentation.drawing import FloatArray, IntensityDraw

_EPSILON = 1e-7
_RADIUS = 3  # of the widest blur kernel: a SD of 1 at batchgenerators' 6 SDs of width


def change_intensities(
    images: Tensor,
    draws: Sequence[IntensityDraw],
    *,
    masked_channels: Sequence[int] = (),
    only_axis: int | None = None,
) -> None:
    """Changes each sample in place as drawn, in nnU-Net's order.

    Args:
        images: (B, C, X, Y, Z) float32, normalised, C-contiguous.
        draws: one per sample.
        masked_channels: channels normalised inside a mask only; their zeros stay zero.
        only_axis: the axis slices are stacked along, which low resolution leaves (2D, and thin stacks in 3D).
    """
    outside = [(c, images[:, c] == 0) for c in masked_channels]
    rows = images.view(-1, *images.shape[2:])
    for image, draw in zip(images, draws, strict=True):
        if draw.noise_sd > 0:
            _add_noise(image, draw.noise_sd, draw.noise_seed)
    _on_rows(rows, [row for draw in draws for row in draw.blur], [0.0, 0.0, 0.0], blur)
    _on_rows(rows, [row for draw in draws for row in draw.brightness], 1.0, brighten)
    _on_rows(rows, [row for draw in draws for row in draw.contrast], 1.0, change_contrast)
    _lower_resolutions(rows, [float(zoom) for draw in draws for zoom in draw.zoom], only_axis)
    _on_rows(rows, [row for draw in draws for row in draw.gamma_inverted], 1.0, change_gamma_inverted)
    _on_rows(rows, [row for draw in draws for row in draw.gamma], 1.0, change_gamma)
    for channel, mask in outside:
        images[:, channel].masked_fill_(mask, 0)


def _on_rows(
    rows: Tensor, values: Sequence[FloatArray], neutral: float | list[float], change: Callable[[Tensor, Tensor], None]
) -> None:
    parameters = torch.tensor([value.tolist() for value in values], dtype=torch.float32)
    chosen = (parameters != torch.tensor(neutral)).view(len(values), -1).any(dim=1).nonzero().view(-1)
    if len(chosen) == 0:
        return
    parameters = parameters[chosen]
    if rows.device.type == "cpu":
        for row, parameter in zip(chosen.tolist(), parameters, strict=True):
            change(rows[row : row + 1], parameter[None])
        return
    index = chosen.pin_memory().to(rows.device, non_blocking=True)
    part = rows.index_select(0, index)
    change(part, parameters.pin_memory().to(rows.device, non_blocking=True))
    rows.index_copy_(0, index, part)


def _add_noise(image: Tensor, sd: float, seed: int) -> None:
    generator = torch.Generator(device=image.device).manual_seed(seed)
    image.add_(torch.randn(image.shape, generator=generator, device=image.device), alpha=sd)


def brighten(rows: Tensor, factors: Tensor) -> None:
    """Multiplies. ``rows`` (R, X, Y, Z) float32, changed in place; ``factors`` (R,)."""
    rows.mul_(_wide(factors))


def change_contrast(rows: Tensor, factors: Tensor) -> None:
    """Stretches deviations from the mean by ``factors`` (R,), kept inside the old range. ``rows`` change in place."""
    low, high = _range(rows)
    mean = _mean(rows)
    torch.clamp(rows.sub_(mean).mul_(_wide(factors)).add_(mean), low, high, out=rows)


def change_gamma(rows: Tensor, exponents: Tensor) -> None:
    """To [0, 1], power, then back to the old mean and SD (nnU-Net's ``retain_stats``). ``rows`` change in place."""
    low, high = _range(rows)
    mean = _mean(rows)
    sd = _sd(rows, mean)
    span = high - low
    rows.sub_(low).div_(span.clamp_min(_EPSILON)).pow_(_wide(exponents))
    new_mean = _mean(rows)
    factor = sd * span / (_sd(rows, new_mean) * span).clamp_min(_EPSILON)
    rows.sub_(new_mean).mul_(factor).add_(mean)


def change_gamma_inverted(rows: Tensor, exponents: Tensor) -> None:
    """`change_gamma` of the negative."""
    change_gamma(rows.neg_(), exponents)
    rows.neg_()


def blur(rows: Tensor, sigmas: Tensor) -> None:
    """Gaussian blur, axis by axis, mirrored at the border (without repeating the border voxel). ``rows`` change in place.

    Kernels are as wide as batchgeneratorsv2's: 3, 5 or 7 voxels, sampled at the voxels and normalised to 1.

    Args:
        rows: (R, X, Y, Z) float32.
        sigmas: (R, 3) SD in voxels, at most 1.
    """
    for axis in range(3):
        length = rows.shape[axis + 1]
        reach = min(_RADIUS, length - 1)
        if reach == 0:
            continue
        weights = _kernels(sigmas[:, axis], reach)
        source = rows.movedim(axis + 1, 0).clone(memory_format=torch.preserve_format)
        target = rows.movedim(axis + 1, 0).mul_(weights[0])
        for distance in range(1, reach + 1):
            weight = weights[distance]
            target[distance:].addcmul_(source[:-distance], weight)
            target[:-distance].addcmul_(source[distance:], weight)
            target[:distance].addcmul_(source[1 : distance + 1].flip(0), weight)
            target[-distance:].addcmul_(source[-distance - 1 : -1].flip(0), weight)


def _kernels(sigmas: Tensor, reach: int) -> Tensor:
    """(reach + 1, R, 1, 1): half of each kernel, the middle first."""
    distances = torch.arange(reach + 1, device=sigmas.device)[:, None]
    widths = sigmas * 6 + 0.5
    radii = torch.where(widths < 4, 1, torch.where(widths < 6, 2, 3))  # 3, 5 or 7 voxels: the nearest odd number
    half = torch.exp(-0.5 * (distances / sigmas) ** 2) * (distances <= radii)
    half = half / (half[0] + 2 * half[1:].sum(dim=0))
    return half[:, :, None, None]


def _lower_resolutions(rows: Tensor, zooms: Sequence[float], only_axis: int | None) -> None:
    size = list(rows.shape[1:])
    for row, zoom in zip(rows, zooms, strict=True):
        small = [n if axis == only_axis else max(1, round(n * zoom)) for axis, n in enumerate(size)]
        if zoom < 1 and small != size:
            low = functional.interpolate(row[None, None], size=small, mode="nearest-exact")
            row.copy_(functional.interpolate(low, size=size, mode="trilinear", align_corners=False)[0, 0])


def _wide(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _range(rows: Tensor) -> tuple[Tensor, Tensor]:
    return rows.amin((1, 2, 3), keepdim=True), rows.amax((1, 2, 3), keepdim=True)


def _mean(rows: Tensor) -> Tensor:
    # Plane by plane, then over planes: a sum over everything would depend on how many threads share it.
    return _wide(rows.flatten(2).mean(dim=2).mean(dim=1))


def _sd(rows: Tensor, mean: Tensor) -> Tensor:
    squares = (rows - mean).square_().flatten(2).sum(dim=2).sum(dim=1)
    return _wide(torch.sqrt(squares / max(1, rows[0].numel() - 1)))
