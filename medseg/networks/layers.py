"""Layers in 2D and 3D, shared by the networks, and their initialisation.

Sizes come as (x, y, z) triples and are cut to the first two in 2D.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

SLOPE = 0.01
"""LeakyReLU's negative slope in the U-Nets, also the ``a`` of the He initialisation."""


class Dimension:
    """The layers of one dimensionality, and how an (x, y, z) triple is cut down to it.

    Args:
        dimensions: 2 or 3.
    """

    def __init__(self, dimensions: int) -> None:
        self.count = dimensions
        flat = dimensions == 2
        self.conv: type[nn.Conv2d | nn.Conv3d] = nn.Conv2d if flat else nn.Conv3d
        self.transposed: type[nn.ConvTranspose2d | nn.ConvTranspose3d] = (
            nn.ConvTranspose2d if flat else nn.ConvTranspose3d
        )
        self.dropout: type[nn.Dropout2d | nn.Dropout3d] = nn.Dropout2d if flat else nn.Dropout3d
        self.average: type[nn.AvgPool2d | nn.AvgPool3d] = nn.AvgPool2d if flat else nn.AvgPool3d
        self.maximum: type[nn.MaxPool2d | nn.MaxPool3d] = nn.MaxPool2d if flat else nn.MaxPool3d

    def cut(self, size: Sequence[int]) -> tuple[int, ...]:
        """The first ``dimensions`` of an (x, y, z) triple."""
        return tuple(size[: self.count])

    def norm(self, kind: str, channels: int) -> nn.Module:
        """Affine instance, batch or group norm; groups are as many, up to 8, as divide ``channels``."""
        if kind == "batch":
            return nn.BatchNorm2d(channels) if self.count == 2 else nn.BatchNorm3d(channels)
        if kind == "group":
            return nn.GroupNorm(next(n for n in range(min(8, channels), 0, -1) if channels % n == 0), channels)
        return (nn.InstanceNorm2d if self.count == 2 else nn.InstanceNorm3d)(channels, eps=1e-5, affine=True)

    def convolution(
        self,
        inputs: int,
        outputs: int,
        kernel: Sequence[int],
        *,
        stride: Sequence[int] = (1, 1, 1),
        dilation: Sequence[int] = (1, 1, 1),
        bias: bool = True,
    ) -> nn.Conv2d | nn.Conv3d:
        """A convolution with odd kernel, padded so that only the stride changes the size."""
        size, spread = self.cut(kernel), self.cut(dilation)
        padding = tuple(k // 2 * d for k, d in zip(size, spread, strict=True))
        return self.conv(inputs, outputs, size, self.cut(stride), padding, spread, bias=bias)  # type: ignore[arg-type]

    def block(
        self,
        inputs: int,
        outputs: int,
        kernel: Sequence[int],
        stride: Sequence[int] = (1, 1, 1),
        *,
        norm: str,
        dropout: float = 0.0,
    ) -> nn.Sequential:
        """Convolution, dropout of whole feature maps (where > 0), norm, LeakyReLU: nnU-Net's order."""
        layers: list[nn.Module] = [self.convolution(inputs, outputs, kernel, stride=stride)]
        if dropout > 0:
            layers.append(self.dropout(dropout))
        layers += [self.norm(norm, outputs), nn.LeakyReLU(SLOPE, inplace=True)]
        return nn.Sequential(*layers)

    def resize(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """``x`` (B, C, ...) on a grid of ``size``, linearly; outer edges stay where they are."""
        if tuple(x.shape[2:]) == tuple(size):
            return x
        mode = "bilinear" if self.count == 2 else "trilinear"
        return functional.interpolate(x, size=tuple(size), mode=mode, align_corners=False)


def per_stage(count: int | Sequence[int], stages: int, what: str) -> tuple[int, ...]:
    """One count for each of ``stages``; a single number stands for all.

    Raises:
        ValueError: a list has another length.
    """
    counts = (count,) * stages if isinstance(count, int) else tuple(count)
    if len(counts) != stages:
        raise ValueError(f"{what} has {len(counts)} entries, expected one per stage: {stages}")
    return counts


@torch.no_grad()
def initialise(module: nn.Module) -> None:
    """He et al. (2015) for LeakyReLU in every convolution, biases 0; for ``network.apply``."""
    if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        nn.init.kaiming_normal_(module.weight, a=SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
